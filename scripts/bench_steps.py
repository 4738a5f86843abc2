"""Training steps per second: with random video, which needs no data, and with clips.

    python scripts/bench_steps.py [CLIPS...] [--config configs/bundled.toml] [--steps 40]
        [--device auto] [--set key=value]

Random video is on the device already, so this is the speed of the training step alone. With clips,
`vqtok train` runs twice: each step decodes its clips (`train.cache_gib=0`), and with the cache,
which holds all clips after some steps. Prints a Markdown table; the first half of the steps warms
up.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import typer
from bench_jobs import run
from benchmarks.measuring import measure_seconds, peak_memory

from vqtok import config
from vqtok.device import find_device
from vqtok.files import RUN_METRICS
from vqtok.precision import set_global_flags
from vqtok.settings import Config
from vqtok.training.step import train_step
from vqtok.training.train_state import TrainState

HEADER = """\
| data | steps/s | clips/s | waiting for data | GPU memory |
|---|---|---|---|---|"""


def random_steps(settings: Config, steps: int, device: torch.device) -> tuple[float, str]:
    """Return seconds per step with random video, and the peak memory."""
    options = settings.train
    state = TrainState.new(settings, device)
    shape = options.batch_size, 3, options.frames, options.crop, options.crop
    video = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    state.init_from_data(video)

    def train() -> None:
        for _ in range(steps - steps // 2):
            train_step(state, video, options)

    memory = peak_memory(train, device)
    return measure_seconds(train, device) / (steps - steps // 2), memory


def command_steps(
    arguments: list[object], steps: int, device: torch.device
) -> tuple[float, float, str]:
    """Return seconds per step of `vqtok train`, those waiting for data, and the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        memory = peak_memory(lambda: run("train", "--out", out, *arguments), device)
        rows = list(_rows(out / RUN_METRICS))
    measured = [row for row in rows if row["step"] > steps // 2] or rows[-1:]
    means = [
        sum(row[key] for row in measured) / len(measured)
        for key in ("seconds_per_step", "data_wait")
    ]
    return means[0], means[1], memory


def _rows(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


def print_row(data: str, seconds: float, batch_size: int, wait: float, memory: str) -> None:
    speed = f"{1 / seconds:.3g} | {batch_size / seconds:.4g}"
    print(f"| {data} | {speed} | {wait / seconds:.0%} | {memory} |", flush=True)


def main(
    clips: list[Path] = typer.Argument(None),  # noqa: B008
    file: Path = typer.Option(config.folder() / "bundled.toml", "--config"),  # noqa: B008
    steps: int = 40,
    device: str = "auto",
    set_: list[str] = typer.Option([], "--set"),  # noqa: B008
) -> None:
    set_global_flags()
    target = find_device(device)
    never = ["train.validate_every=0", f"train.save_every={steps}", f"train.steps={steps}"]
    overrides = [*set_, *never]
    settings = config.load(file, overrides)
    options = settings.train
    shape = f"{options.batch_size} clips of {options.frames}x{options.crop}x{options.crop} per step"
    print(f"{file.name}, {options.dtype}, {shape}.\n\n{HEADER}", flush=True)
    seconds, memory = random_steps(settings, steps, target)
    print_row("random video", seconds, options.batch_size, 0, memory)
    common: list[object] = ["--config", file, "--device", device]
    common += [f"--data={clip}" for clip in clips or ()]
    for data, cache in ("decoded for each step", 0), ("cached", options.cache_gib):
        if clips:
            sets = [f"--set={override}" for override in [*overrides, f"train.cache_gib={cache}"]]
            seconds, wait, memory = command_steps([*common, *sets], steps, target)
            print_row(f"clips, {data}", seconds, options.batch_size, wait, memory)


if __name__ == "__main__":
    typer.run(main)
