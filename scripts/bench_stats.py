"""Measure the speed and the peak memory of `vqtok stats` on a synthetic corpus.

    python scripts/bench_stats.py [--files 1000] [--shape 256 64 64] [--codebook-size 262144]
        [--folder FOLDER]

Indices are uniformly random, the worst case for caches. The token files are written to FOLDER if
it does not exist, and read from it if it does; without --folder they are temporary. Counting takes
one process on one core; pin it with `taskset -c 0`. Linux only, as bench_memory.py.
"""

import tempfile
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from bench_memory import peak_memory

from vqtok.tokens import Tokens, write_tokens


def write_corpus(folder: Path, files: int, shape: tuple[int, int, int], codebook_size: int) -> None:
    """Write token files of random indices (t h w) with a stride of 4x8x8."""
    t, h, w = shape
    random = np.random.default_rng(0)
    frames = 1 + 4 * (t - 1)
    for i in range(files):
        tokens = Tokens(
            indices=random.integers(0, codebook_size, shape, np.int32),
            frames=frames,
            height=8 * h,
            width=8 * w,
            fps=Fraction(25),
            time_base=Fraction(1, 25),
            timestamps=range(frames),
            pixel_aspect=Fraction(1),
            codebook_size=codebook_size,
            quantizer="lfq",
            stride=(4, 8, 8),
            model="0" * 64,
        )
        write_tokens(folder / f"{i:06}.safetensors", tokens)


def main(
    files: int = 1000,
    shape: Annotated[tuple[int, int, int], typer.Option()] = (256, 64, 64),
    codebook_size: int = 2**18,
    folder: Path | None = None,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        corpus = folder or Path(temporary)
        if folder is None or not folder.exists():
            corpus.mkdir(exist_ok=True)
            write_corpus(corpus, files, shape, codebook_size)
        memory, seconds = peak_memory("stats", corpus, "--json")
    tokens = files * prod(shape)
    print(
        f"{tokens:,} tokens in {files:,} files, codebook of {codebook_size:,}: {seconds:.1f} s, "
        f"{60 * tokens / seconds:.3g} tokens per minute, {memory:.0f} MiB"
    )


if __name__ == "__main__":
    typer.run(main)
