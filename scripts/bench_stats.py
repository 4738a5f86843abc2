"""Speed and peak memory of `stats` on a made-up corpus of token files.

    python scripts/bench_stats.py [--files 1000] [--shape 256 64 64] [--codebook-size 262144]
        [--folder FOLDER]

Indices are drawn evenly, which no cache helps with. The folder is made if it is not there, and
kept if it was named. One process counts on one core; pin it to one with `taskset -c 0`. Linux
only, as bench_memory.py. Prints a line.
"""

import tempfile
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from bench_memory import peak

from vqtok.tokens import Tokens, write_tokens


def make(folder: Path, files: int, shape: tuple[int, int, int], codebook_size: int) -> None:
    """Write token files (t h w) of a stride of 4x8x8."""
    t, h, w = shape
    random = np.random.default_rng(0)
    frames = 1 + 4 * (t - 1)
    for i in range(files):
        indices = random.integers(0, codebook_size, shape, np.int32)
        rate = {"fps": Fraction(25), "time_base": Fraction(1, 25), "timestamps": range(frames)}
        size = {"frames": frames, "height": 8 * h, "width": 8 * w, "pixel_aspect": Fraction(1)}
        model = {"codebook_size": codebook_size, "quantizer": "lfq", "model": "0" * 64}
        content = Tokens(indices, **size, **rate, **model, stride=(4, 8, 8))
        write_tokens(folder / f"{i:06}.safetensors", content)


def main(
    files: int = 1000,
    shape: Annotated[tuple[int, int, int], typer.Option()] = (256, 64, 64),
    codebook_size: int = 2**18,
    folder: Path | None = None,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        where = folder or Path(temporary)
        if folder is None or not folder.exists():
            where.mkdir(exist_ok=True)
            make(where, files, shape, codebook_size)
        memory, seconds = peak("stats", where, "--json")
    number = files * prod(shape)
    print(
        f"{number:,} tokens in {files:,} files, codebook of {codebook_size:,}: {seconds:.1f} s, "
        f"{60 * number / seconds:.3g} tokens a minute, {memory:.0f} MiB"
    )


if __name__ == "__main__":
    typer.run(main)
