"""Packed corpora: Ray against one machine, kills, many tiny clips, one long clip among short ones.

    python scripts/bench_corpus.py ray     [--clips 200] [--frames 75]
    python scripts/bench_corpus.py kills   [--kills 100] [--clips 40] [--frames 75]
    python scripts/bench_corpus.py tiny    [--clips 10000]
    python scripts/bench_corpus.py tail    [--clips 200] [--frames 25] [--factor 100]

Each runs `vqtok encode` on synthetic clips (`scripts/make_clips.py`) with two workers and prints a
Markdown table. Needs Linux, Ray (`pip install 'vqtok[ray]'`), and no other work on the machine.
"""

import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from benchmarks.corpora import Encoding, clips_of, tars_of
from make_clips import FPS, write_clip

from vqtok import DEFAULT
from vqtok.corpus.index import read_index
from vqtok.tokens import read_settings

ENGINES = {"`--jobs 2`": ("--jobs", 2), "`--on ray`": ("--on", "ray", "--workers", 2)}
ONE_SHARD = ("--pack", "100G")

app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True)
Clips = Annotated[int, typer.Option(min=1)]
Frames = Annotated[int, typer.Option(min=1, help="Of each clip.")]
Pixels = Annotated[int, typer.Option(min=8, help="Height and width of a clip.")]


@contextmanager
def work_folder() -> Iterator[Path]:
    """Yield a folder that is deleted after the block."""
    with tempfile.TemporaryDirectory(prefix="bench_corpus-") as folder:
        yield Path(folder)


def make_clips(folder: Path, count: int, frames: int, pixels: int = 256) -> Path:
    """Write clips, links to a few different ones; return their folder."""
    videos, sources = folder / "clips", folder / "sources"
    videos.mkdir()
    sources.mkdir()
    for i in range(min(count, 8)):
        write_clip(sources / f"{i}.mp4", frames, pixels, pixels, FPS, grain=3, seed=i)
    for i in range(count):
        (videos / f"{i:06}.mp4").symlink_to(sources / f"{i % 8}.mp4")
    return videos


def print_table(*rows: Sequence[object]) -> None:
    """Print a Markdown table; the first row is its header."""
    header, *lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    print("\n".join([header, "|---" * len(rows[0]) + "|", *lines]), flush=True)


@app.command("ray")
def compare_engines(
    clips: Clips = 200, frames: Frames = 75, pixels: Pixels = 256, tokenizer: str = DEFAULT
) -> None:
    """Seconds and memory on one machine and on a local Ray cluster."""
    rows: list[list[object]] = [
        ["", "whole command", "to the first clip", "from there", "ratio", "memory"]
    ]
    seconds = []
    with work_folder() as folder:
        videos = make_clips(folder, clips, frames, pixels)
        for i, (name, options) in enumerate(ENGINES.items()):
            run = Encoding(folder / str(i), videos, *options, *ONE_SHARD, "--tokenizer", tokenizer)
            whole, first = run.seconds(), min(run.finished.values())
            seconds.append(run.published() - first)
            ratio = f"{seconds[-1] / seconds[0]:.2f}"
            memory = f"{run.memory / 2**30:.2f} GiB"
            rows.append(
                [name, f"{whole:.1f} s", f"{first:.1f} s", f"{seconds[-1]:.1f} s", ratio, memory]
            )
    print_table(*rows)


def kill_often(
    folder: Path, arguments: Sequence[object], kills: int, within: float, expected: list[bytes]
) -> tuple[float, int]:
    """Kill processes of a command, and run it again, until there were so many kills.

    A corpus that is finished meanwhile is compared, and begun again in another folder.
    Returns the seconds spent on clips that were begun more than once, but for the last time, and
    how many corpora were made.
    """
    redone, made = 0.0, 0
    while kills > 0:
        target, code, again = folder / str(made), 1, ()
        while code:
            run = Encoding(target, *arguments, *again)
            count = kill_some(run, kills, within)
            kills -= count
            if (code := run.wait()) and not count and again:
                raise SystemExit(run.errors())
            again = ("--retry-failed",) if "clips failed" in run.errors() else ()
        if tars_of(target) != expected:
            raise SystemExit(f"{target} differs from what a run without kills gives")
        redone += sum(
            (clip["attempts"] - 1) * sum(clip["seconds"].values()) for clip in clips_of(target)
        )
        made += 1
        shutil.rmtree(target)
    return redone, made


def kill_some(run: Encoding, limit: int, within: float) -> int:
    """Kill random processes of a command at random moments; return how many, at most `limit`."""
    count = 0
    while run.is_running() and count < limit:
        moment = time.monotonic() + random.uniform(0, within)
        while run.is_running() and time.monotonic() < moment:
            run.look()
        if processes := run.processes():
            run.kill(random.choice(processes))
            count += 1
    return count


@app.command("kills")
def survive_kills(
    kills: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 100,
    clips: Clips = 40,
    frames: Frames = 75,
    pixels: Pixels = 256,
    within: Annotated[float, typer.Option(help="Seconds from one kill to the next, at most.")] = 20,
    engine: Annotated[str, typer.Option(help="Part of the name of the engines to test.")] = "",
    tokenizer: str = DEFAULT,
    seed: int = 0,
) -> None:
    """Seconds of work that `kill -9` costs; fails if a byte differs."""
    random.seed(seed)
    rows: list[list[object]] = [["", "kills", "corpora", "differences", "redone for each kill"]]
    with work_folder() as folder:
        videos = make_clips(folder, clips, frames, pixels)
        arguments = videos, "--pack", "1M", "--tokenizer", tokenizer
        Encoding(folder / "expected", *arguments, "--jobs", 2).seconds()
        expected = tars_of(folder / "expected")
        engines = {name: options for name, options in ENGINES.items() if engine in name}
        for name, options in engines.items():
            redone, made = kill_often(folder, (*arguments, *options), kills, within, expected)
            rows.append([name, kills, made, 0, f"{redone / kills:.2f} s"])
    print_table(*rows)


def seconds_of_command(*words: object) -> float:
    """Return how long a vqtok command takes, which must succeed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vqtok", *map(str, words), "--quiet"], check=True)
    return time.perf_counter() - start


def read_all(folder: Path) -> None:
    """Read the headers of all token files of a folder."""
    for path in sorted(folder.glob("*.safetensors")):
        read_settings(path)


def median_seconds(work: Callable[[Path], object], folder: Path) -> float:
    """Return how long a function of a folder takes, the median of three times."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work(folder)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@app.command("tiny")
def compare_storage(clips: Clips = 10_000, frames: Frames = 5, tokenizer: str = DEFAULT) -> None:
    """Files, seconds to resume and seconds to open: a folder of token files against a corpus."""
    rows: list[list[object]] = [["", "encode", "files and folders", "resume", "open"]]
    with work_folder() as folder:
        videos = make_clips(folder, clips, frames, pixels=64)
        for name, options, open_all in (
            ("folder", (), read_all),
            ("corpus", ("--pack", "256M"), read_index),
        ):
            target = folder / name
            words = "encode", videos, "-o", target, "--jobs", 2, "--tokenizer", tokenizer, *options
            encode, resume = seconds_of_command(*words), seconds_of_command(*words)
            inodes = 1 + sum(1 for _ in target.rglob("*"))
            opening = f"{median_seconds(open_all, target):.2f} s"
            rows.append([name, f"{encode:.1f} s", f"{inodes:,}", f"{resume:.1f} s", opening])
    print_table(*rows)


def tail_of(run: Encoding) -> float:
    """Return how long the last clip was encoded after all others were finished."""
    last = sorted(run.finished.values())[-2:]
    return last[-1] - last[0]


@app.command("tail")
def measure_tail(
    clips: Clips = 200,
    frames: Frames = 25,
    factor: Annotated[int, typer.Option(help="Length of one clip, in short ones.")] = 100,
    pixels: Pixels = 256,
    tokenizer: str = DEFAULT,
) -> None:
    """Seconds that one worker is busy alone at the end, where one clip is long."""
    rows: list[list[object]] = [["", "whole command", "tail", "tail at best"]]
    with work_folder() as folder:
        videos = make_clips(folder, clips, frames, pixels)
        write_clip(videos / "long.mp4", factor * frames, pixels, pixels, FPS, grain=3)
        for i, (name, options) in enumerate(ENGINES.items()):
            run = Encoding(folder / str(i), videos, *options, *ONE_SHARD, "--tokenizer", tokenizer)
            whole = run.seconds()
            seconds = [sum(clip["seconds"].values()) for clip in clips_of(run.folder)]
            ideal = max(0.0, 2 * max(seconds) - sum(seconds))
            rows.append([name, f"{whole:.1f} s", f"{tail_of(run):.1f} s", f"{ideal:.1f} s"])
    print_table(*rows)


if __name__ == "__main__":
    app()
