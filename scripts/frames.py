"""Write an image of frames above their reconstructions by a tokenizer.

    python scripts/frames.py CLIPS... -o FILE.png

One column per clip: the center square of frame number --frame, and its reconstruction below, from
--tokens tokens per position if the tokenizer can spend fewer than all.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from vqtok import DEFAULT
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.model.checkpoint import load_for_inference
from vqtok.precision import to_uint8
from vqtok.quality import FramePair, write_comparison_image
from vqtok.video import open_video


def main(
    clips: list[Path],
    output: Annotated[Path, typer.Option("-o", "--output")],
    tokenizer: str = DEFAULT,
    frame: int = 16,
    size: int = 256,
    tokens: float = 1.0,
    dtype: str = "bfloat16",
) -> None:
    model = load_for_inference(tokenizer, "auto", dtype)
    rate = Rate(tokens=tokens) if model.zero_code else ALL_TOKENS
    pairs: list[FramePair] = []
    for path in clips:
        with open_video(path, size=size) as clip:
            frames = next(clip.chunks(frame + 1))[0]  # (t h w c)
        video = torch.from_numpy(frames).movedim(-1, 0)[None]  # (1 c t h w)
        decoded = model.decode(model.encode(video, rate), *video.shape[2:])
        pairs.append((frames, to_uint8(decoded[0].movedim(0, -1)).numpy()))
    write_comparison_image(output, pairs)


if __name__ == "__main__":
    typer.run(main)
