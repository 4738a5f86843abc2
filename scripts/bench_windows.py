"""Windows per second of `TokenWindows` beside a plain memory-mapped reader of the same tokens.

    python scripts/bench_windows.py [--clips 200] [--reads 500] [--pairs 20] [--accesses 100000]

The plain reader slices one file of raw indices, mapped anew for each window as nanoGPT does, at a
random place, and knows no clips; it returns as many latent frames as an item has. Both take turns,
in random order, on tokens of random codes that lie in the page cache. Prints a Markdown table.
Linux only: memory is RssAnon of the process.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from vqtok import Tokens, TokenWindows
from vqtok.corpus.clips import CLIPS, Clip, clip_lines
from vqtok.corpus.publish import finish
from vqtok.corpus.records import Seconds
from vqtok.corpus.settings import CorpusSettings, create_corpus, open_corpus

MODEL, INTERVAL, CLIP_LENGTH = "0" * 64, 32, 76  # latent frames; 76 are 10 s at 30 frames/s
PER_SHARD = 50

Read = Callable[[int], object]


@dataclass(frozen=True)
class Case:
    """A kind of tokens and windows.

    shape: of a latent frame, (h w stages).
    """

    name: str
    length: int
    shape: tuple[int, int, int]
    codebook_size: int
    options: dict[str, Any]


CASES = [
    Case("8 latent frames of 32x32, 2 stages", 8, (32, 32, 2), 16384, {}),
    Case("the same, factors=2", 8, (32, 32, 2), 16384, {"factors": 2}),
    Case('the same, start="any"', 8, (32, 32, 2), 16384, {"start": "any", "step": 1}),
    Case("1 latent frame of 8x12", 1, (8, 12, 1), 65536, {"start": "any", "step": 1}),
    Case("32 latent frames of 32x32, 2 stages", 32, (32, 32, 2), 16384, {}),
]


def make_tokens(case: Case, seed: int) -> Tokens:
    """Return the tokens of a clip of random codes."""
    h, w, stages = case.shape
    shape = (CLIP_LENGTH, h, w, stages)[: 3 + (stages > 1)]
    frames = 1 + 4 * (CLIP_LENGTH - 1)
    return Tokens(
        indices=np.random.default_rng(seed).integers(0, case.codebook_size, shape),
        frames=frames,
        height=8 * h,
        width=8 * w,
        fps=Fraction(30),
        time_base=Fraction(1, 30),
        timestamps=range(frames),
        pixel_aspect=Fraction(1),
        codebook_size=case.codebook_size,
        quantizer="ema",
        stride=(4, 8, 8),
        model=MODEL,
        keyframe_interval=INTERVAL,
    )


@contextmanager
def sources(case: Case, clips: int) -> Iterator[tuple[Path, Path]]:
    """Yield a corpus, and a file of the same indices without anything else."""
    settings = CorpusSettings(
        *("bench", MODEL, "ema", (4, 8, 8), case.codebook_size, case.shape[2], INTERVAL),
        *("float32", None, None, 0.0, None, False, {}, (), 2**28),
    )
    with tempfile.TemporaryDirectory(prefix="bench_windows-") as name:
        folder, raw = Path(name) / "corpus", Path(name) / "raw.bin"
        folder.mkdir()
        names = [f"{key:06}.mp4" for key in range(clips)]
        listed = (Clip(key, f"/clips/{clip}", clip, 0) for key, clip in enumerate(names))
        (folder / CLIPS).write_bytes(b"".join(clip_lines(listed)))
        create_corpus(folder, settings, [*range(0, clips, PER_SHARD), clips])
        corpus = open_corpus(folder)
        with raw.open("wb") as file:
            for key, clip in enumerate(names):
                tokens = make_tokens(case, key)
                file.write(tokens.indices.astype("<u2").tobytes())
                shard = corpus.shard_of(key)
                shard.begin(key)
                shard.add(key, clip, tokens, Seconds(0, 0, 0), [])
        finish(corpus)
        yield folder, raw


def plain_reader(case: Case, length: int, raw: Path) -> tuple[Read, int]:
    """Return a reader of latent frames of a file of raw indices, and how many places there are."""
    frame = int(np.prod(case.shape))
    places = raw.stat().st_size // (2 * frame) - length + 1

    def read(place: int) -> torch.Tensor:
        data = np.memmap(raw, "<u2", "r")
        window = data[place * frame : (place + length) * frame].astype(np.int64)
        return torch.from_numpy(window).view(length, *case.shape)

    return read, places


def rate(read: Read, places: int, reads: int) -> float:
    """Return windows per second of reads at random places."""
    chosen = random.choices(range(places), k=reads)
    start = time.perf_counter()
    for place in chosen:
        read(place)
    return reads / (time.perf_counter() - start)


def memory() -> int:
    """Return the anonymous memory of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measure(case: Case, clips: int, reads: int, pairs: int, accesses: int) -> list[str]:
    """Return the cells of the row of a case."""
    with sources(case, clips) as (corpus, raw):
        windows = TokenWindows(corpus, case.length, **case.options)
        length = len(windows[0]["indices"])
        plain, ours = plain_reader(case, length, raw), (windows.__getitem__, len(windows))
        rates: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(pairs):
            for which in random.sample([0, 1], 2):
                rates[which].append(rate(*(plain, ours)[which], reads))
        before = memory()
        rate(*ours, accesses)
        grown = memory() - before
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    speeds = [f"{statistics.median(values):,.0f}" for values in rates.values()]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [case.name, *speeds, ratio, f"{before / 1024:,.0f} MiB", f"{grown:+,} KiB"]


def main(
    clips: Annotated[int, typer.Option(min=1)] = 200,
    reads: Annotated[int, typer.Option(min=1, help="Windows of each reader in a pair.")] = 500,
    pairs: Annotated[int, typer.Option(min=1)] = 20,
    accesses: Annotated[int, typer.Option(min=1, help="Before memory is read again.")] = 100_000,
) -> None:
    random.seed(0)
    torch.set_num_threads(1)
    titles = "windows", "plain, 1/s", "TokenWindows, 1/s", "ratio", "memory"
    print(f"| {' | '.join(titles)} | after {accesses:,} more |\n|{'---|' * 6}")
    for case in CASES:
        print(f"| {' | '.join(measure(case, clips, reads, pairs, accesses))} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
