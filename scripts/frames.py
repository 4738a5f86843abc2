"""A picture of frames above what a tokenizer makes of them.

    python scripts/frames.py CLIPS... -o FILE.png

One column a clip: a square of its frame at --frame, and under it the same from its tokens.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from vqtok import DEFAULT
from vqtok.model.checkpoint import load_for_inference
from vqtok.quality import measure, write_strip
from vqtok.video import open_video


def main(
    clips: list[Path],
    output: Annotated[Path, typer.Option("-o", "--output")],
    tokenizer: str = DEFAULT,
    frame: int = 16,
    size: int = 256,
    dtype: str = "bfloat16",
) -> None:
    model, pairs = load_for_inference(tokenizer, "auto", dtype), []
    for path in clips:
        with open_video(path, size=size) as clip:
            pixels = next(clip.chunks(frame + 1))[0]  # (t h w c)
        seen = []
        measure(torch.from_numpy(pixels).movedim(-1, 0)[None], model, seen.append)
        pairs.append(seen[-1])
    write_strip(output, pairs)


if __name__ == "__main__":
    typer.run(main)
