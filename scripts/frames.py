"""A picture of frames above what a tokenizer makes of them.

    python scripts/frames.py CLIPS... -o FILE.png

One column a clip: its frame at --frame, and under it the same frame from its tokens.
"""

from pathlib import Path
from typing import Annotated

import av
import numpy as np
import torch
import typer

from vqtok import DEFAULT
from vqtok.pipeline import load_tokenizer, to_frames
from vqtok.video import open_video


def main(
    clips: list[Path],
    output: Annotated[Path, typer.Option("-o", "--output")],
    tokenizer: str = DEFAULT,
    frame: int = 16,
    size: int = 256,
    dtype: str = "bfloat16",
) -> None:
    model = load_tokenizer(tokenizer, "auto", dtype)
    columns = []
    for path in clips:
        with open_video(path, size=size) as clip:
            pixels = next(clip.chunks(frame + 1))[0]  # (t h w c)
        video = torch.from_numpy(pixels).movedim(-1, 0)[None]
        decoded = to_frames(model.decode(model.encode(video), *video.shape[2:])[0]).cpu().numpy()
        left = (pixels.shape[2] - size) // 2
        pair = [f[-1, -size:, max(left, 0) :][:size, :size] for f in (pixels, decoded)]
        columns.append(np.concatenate(pair, axis=0))
    picture = np.ascontiguousarray(np.concatenate(columns, axis=1))
    with av.open(str(output), "w", format="image2") as container:
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    typer.run(main)
