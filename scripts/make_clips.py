"""Write synthetic clips: waves that move over a gradient, and a grain that is hard to predict.

    python scripts/make_clips.py FOLDER [--clip 480x256x256] [--training 32x60x360x640]

A clip is given by its frames, height and width, and is named by its size, such as 256x256.mp4. N
different ones for training, NxTxHxW, are written to FOLDER/training. h264, 25 frames per second.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import typer

GRAIN = 3.0  # standard deviation in 8 bits: about 15 Mbit/s at 1080p
FPS = 25


def write_clip(
    path: Path, frames: int, height: int, width: int, fps: int, grain: float = 0, seed: int = 0
) -> None:
    """Write a clip; the grain moves from frame to frame."""
    random = np.random.default_rng(seed)
    noise = grain * random.standard_normal((height, width, 1))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", Fraction(fps), options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for t in range(frames):
            wave = 128 + 60 * np.sin(x / 23 + t / 5 + seed) + 60 * np.cos(y / 17 - t / 7)
            rgb = np.stack([wave, 255 - wave, 255 * x / width], -1)
            if grain:
                rgb += np.roll(noise, random.integers(0, height * width))
            pixels = rgb.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def main(
    folder: Path,
    clip: list[str] = [],  # noqa: B006
    training: str = "0x1x2x2",
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shape in clip:
        frames, height, width = map(int, shape.split("x"))
        write_clip(folder / f"{height}x{width}.mp4", frames, height, width, FPS, GRAIN)
    count, frames, height, width = map(int, training.split("x"))
    (folder / "training").mkdir(exist_ok=True)
    for i in range(count):
        path = folder / "training" / f"{i}.mp4"
        write_clip(path, frames, height, width, FPS, GRAIN, seed=i)


if __name__ == "__main__":
    typer.run(main)
