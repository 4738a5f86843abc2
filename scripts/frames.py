"""Write an image of frames above their reconstructions by a tokenizer.

    python scripts/frames.py CLIPS... -o FILE.png

One column per clip: the center square of frame number --frame, and its reconstruction below.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from vqtok import DEFAULT
from vqtok.model.checkpoint import load_for_inference
from vqtok.quality import FramePair, evaluate_clip, write_comparison_image
from vqtok.video import open_video


def main(
    clips: list[Path],
    output: Annotated[Path, typer.Option("-o", "--output")],
    tokenizer: str = DEFAULT,
    frame: int = 16,
    size: int = 256,
    dtype: str = "bfloat16",
) -> None:
    model = load_for_inference(tokenizer, "auto", dtype)
    pairs: list[FramePair] = []
    for path in clips:
        with open_video(path, size=size) as clip:
            frames = next(clip.chunks(frame + 1))[0]  # (t h w c)
        clip_pairs: list[FramePair] = []
        evaluate_clip(torch.from_numpy(frames).movedim(-1, 0)[None], model, clip_pairs.append)
        pairs.append(clip_pairs[-1])
    write_comparison_image(output, pairs)


if __name__ == "__main__":
    typer.run(main)
