"""Quality: PSNR of a tokenizer on clips, beside averages of blocks of its stride blown up again.

    python scripts/bench_quality.py CLIPS... [--tokenizer PATH] [--size 256] [--frames 33]

PSNR is that of all pixels of a clip in 8-bit RGB; the last line has the mean over clips.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F

from vqtok import DEFAULT
from vqtok.data import find
from vqtok.metrics import psnr
from vqtok.pipeline import load_tokenizer, to_frames
from vqtok.tokenizer import Tokenizer
from vqtok.video import open_video


def block_averages(video: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """(1 3 t h w) float -> the mean of each block; the first frame stands alone, edges repeat."""
    t, h, w = stride
    frames, height, width = video.shape[2:]
    x = F.pad(video, (0, -width % w, 0, -height % h, t - 1, (1 - frames) % t), mode="replicate")
    x = F.avg_pool3d(x, stride)
    for axis, factor in enumerate(stride, 2):
        x = x.repeat_interleave(factor, axis)
    return x[:, :, t - 1 :][:, :, :frames, :height, :width]


def measure(path: Path, tokenizer: Tokenizer, size: int, frames: int) -> tuple[float, float]:
    """PSNR in dB of the tokenizer and of block averages on the first frames of a clip."""
    with open_video(path, size=size) as clip:
        pixels = next(clip.chunks(frames))[0]
    video = torch.from_numpy(pixels).movedim(-1, 0)[None]  # (1 3 t h w) uint8
    decoded = to_frames(tokenizer.decode(tokenizer.encode(video), *video.shape[2:])[0]).cpu()
    reconstruction = decoded.movedim(-1, 0)[None]
    averages = block_averages(video.float(), tokenizer.stride).round()
    return tuple(psnr(video / 255, x / 255).item() for x in (reconstruction, averages))


def main(
    clips: list[Path],
    tokenizer: str = DEFAULT,
    size: int = 256,
    frames: int = 33,
    device: str = "auto",
    dtype: Annotated[str | None, typer.Option()] = None,
) -> None:
    model = load_tokenizer(tokenizer, device, dtype)
    rows = []
    print("| clip | tokenizer | block averages |\n|---|---|---|")
    for path in find(clips):
        rows.append(measure(path, model, size, frames))
        print(f"| {path.name} | {rows[-1][0]:.2f} | {rows[-1][1]:.2f} |", flush=True)
    mean = np.mean(rows, axis=0)
    print(f"| mean of {len(rows)} | {mean[0]:.2f} | {mean[1]:.2f} |")


if __name__ == "__main__":
    typer.run(main)
