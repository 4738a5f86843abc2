"""Speed of the model in frames per second, without reading or writing video.

    python scripts/bench_model.py [--size 256] [--size 720x1280] [--batch 1] [--batch 8]
        [--dtype bfloat16] [--device cpu] [--set key=value]

Runs a tokenizer of the bundled one's size, with random weights, through the same streamed code as
`vqtok encode` and `vqtok decode`. The frames are on the device already. Prints a Markdown table:
medians over interleaved rounds, and on a GPU the peak memory, of weights and results too.
"""

import statistics
from collections.abc import Callable

import torch
import typer
from benchmarks.measuring import measure_seconds, peak_memory

from vqtok import config
from vqtok.device import describe_device
from vqtok.errors import is_out_of_memory
from vqtok.model.tokenizer import Tokenizer
from vqtok.precision import set_global_flags

HEADER = """\
| size | clips at once | encode | decode | memory of encode | of decode |
|---|---|---|---|---|---|"""


def parse_size(size: str) -> tuple[int, int]:
    """Return height and width of `256` or `720x1280`."""
    height, _, width = size.partition("x")
    return int(height), int(width or height)


def measure(tokenizer: Tokenizer, shape: tuple[int, ...], rounds: int) -> list[str]:
    """Return the cells of a row for random clips of a shape (b 3 t h w)."""
    device = tokenizer.device
    # Channels last, as frames are read.
    video = torch.randint(0, 256, (shape[0], *shape[2:], 3), dtype=torch.uint8, device=device)
    video = video.movedim(-1, 1)
    indices = tokenizer.encode(video)
    parts: dict[str, Callable[[], object]] = {
        "encode": lambda: tokenizer.encode(video),
        "decode": lambda: [None for _ in tokenizer.decode_stream([indices])],
    }
    memory = [peak_memory(work, device) for work in parts.values()]  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, work in parts.items():
            seconds[name].append(measure_seconds(work, device))
    frames = shape[0] * shape[2]
    speeds = [f"{frames / statistics.median(s):.1f} frames/s" for s in seconds.values()]
    return [*speeds, *memory]


def main(
    size: list[str] = ["256"],  # noqa: B006
    batch: list[int] = [1],  # noqa: B006
    frames: int = 33,
    rounds: int = 7,
    dtype: str = "bfloat16",
    device: str = "cpu",
    set_: list[str] = typer.Option([], "--set"),  # noqa: B008
) -> None:
    settings = config.load(config.folder() / "bundled.toml", set_)
    target = torch.device(device)
    set_global_flags()
    tokenizer = Tokenizer(settings.model, settings.quantizer).eval()
    tokenizer.to(target).cast(getattr(torch, dtype))
    parameters = sum(p.numel() for p in tokenizer.parameters())
    where = f"{dtype} on {describe_device(target)}"
    print(f"{parameters / 1e6:.1f} M parameters, {frames} frames, {where}.\n")
    print(HEADER, flush=True)
    for height, width in map(parse_size, size):
        for clips in batch:
            try:
                cells = measure(tokenizer, (clips, 3, frames, height, width), rounds)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                cells = ["out of memory", "—", "—", "—"]
            print(f"| {height}x{width} | {clips} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
