"""Training clips per second, decoded each time and from the cache, by number of workers.

    python scripts/bench_data.py CLIPS... [--config configs/bundled.toml] [--set train.crop=96]
    python scripts/bench_data.py CLIPS... --step-ms 130 --seconds 10

CPU time per clip is that of all processes; its inverse is the clips per second of a core. It
depends less on what else the machine does than the rate. What is done once for each file is left
out. With 0 workers, a thread makes the clips, and torch uses all cores.

--step-ms: also print how many cores make the clips of a step in that time.
--files: how many files to use, all of which should fit into train.cache_gib.
"""

import os
import time
from contextlib import nullcontext
from multiprocessing import active_children
from pathlib import Path

import torch
import typer

from vqtok import config
from vqtok.precision import set_global_flags
from vqtok.training.data import VideoClips, find_media
from vqtok.training.loader import available_cores, load_batches

CPU = torch.device("cpu")


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its workers."""
    stats = [Path(f"/proc/{child.pid}/stat").read_text() for child in active_children()]
    ticks = sum(int(ticks) for stat in stats for ticks in stat.rpartition(")")[2].split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measure(clips: VideoClips, workers: int, seconds: float) -> tuple[float, float]:
    """Return clips per second and CPU seconds per clip."""
    with load_batches(clips, 0, CPU, workers) as batches:
        next(batches)
        start, start_cpu, count = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() < start + seconds:
            count += len(next(batches))
        duration, cpu = time.perf_counter() - start, cpu_seconds() - start_cpu
    return count / duration, cpu / count


def main(
    clips: list[Path],
    config_: Path | None = typer.Option(None, "--config"),  # noqa: B008
    set_: list[str] = typer.Option([], "--set"),  # noqa: B008
    step_ms: float = 0.0,
    seconds: float = 5.0,
    files: int = 64,
) -> None:
    set_global_flags()
    paths = find_media(clips)
    path = config_ or config.folder() / "fsq.toml"
    counts = sorted({0, 1, 2, available_cores() // 2, available_cores()})
    print("| | workers | clips/s | CPU ms per clip | cores for the step |")
    print("|---|---|---|---|---|")
    for name, overrides in {"decoded": ["train.cache_gib=0"], "cached": []}.items():
        settings = config.load(path, [*set_, *overrides]).train
        for workers in counts:
            opened = VideoClips(paths[:: -(-len(paths) // files)], settings)
            with opened.shared() if workers else nullcontext():
                for file in opened.paths:
                    opened.info(file)
                rate, cpu = measure(opened, workers, seconds)
            row = [name, str(workers), f"{rate:.0f}", f"{1e3 * cpu:.2f}"]
            row.append(f"{cpu * settings.batch_size * 1e3 / step_ms:.1f}" if step_ms else "")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
