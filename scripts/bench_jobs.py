"""Speed of whole commands over a folder of clips, some of them at once.

    python scripts/bench_jobs.py CLIPS... [--copies 8] [--jobs 1] [--jobs 4] [--device auto]

For each clip, runs `vqtok encode` and `vqtok decode` over a folder of copies of it. Prints a
Markdown table: frames per second of all copies together, and on a GPU the peak memory. Loading the
tokenizer is counted, starting Python and CUDA is not.
"""

import tempfile
from functools import partial
from pathlib import Path

import typer
from benchmarks.measuring import measure_seconds, peak_memory
from typer.testing import CliRunner

from vqtok.cli import app
from vqtok.device import describe_device, find_device
from vqtok.tokens import read_tokens

HEADER = """\
| clip | copies | `--jobs` | encode | decode | memory of encode | of decode |
|---|---|---|---|---|---|---|"""


def run(*arguments: object) -> None:
    """Run a vqtok command in this process."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--quiet"])
    if result.exit_code:
        raise SystemExit(f"vqtok {arguments[0]}: {result.output or result.exception}")


def measure(clip: Path, copies: int, jobs: int, device: str, folder: Path) -> list[str]:
    """Return the cells of a row from `encode` on; the first run of each command warms up."""
    clips, tokens, videos = (folder / name for name in ("clips", "tokens", "videos"))
    clips.mkdir()
    for i in range(copies):
        (clips / f"{i:03}{clip.suffix}").symlink_to(clip.resolve())
    options = ("--jobs", jobs, "--device", device, "--force")
    commands = [
        partial(run, "encode", clips, "-o", tokens, *options),
        partial(run, "decode", tokens, "-o", videos, *options),
    ]
    target = find_device(device)
    memory = [peak_memory(command, target) for command in commands]
    seconds = [measure_seconds(command, target) for command in commands]
    frames = sum(read_tokens(path).frames for path in tokens.glob("*.safetensors"))
    return [*(f"{frames / s:.1f} frames/s" for s in seconds), *memory]


def main(
    clips: list[Path],
    copies: int = 8,
    jobs: list[int] = [1, 4],  # noqa: B006
    device: str = "auto",
) -> None:
    print(f"On {describe_device(find_device(device))}.\n\n{HEADER}", flush=True)
    for clip in clips:
        for count in jobs:
            with tempfile.TemporaryDirectory() as folder:
                cells = measure(clip, copies, count, device, Path(folder))
            print(f"| {clip.name} | {copies} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
