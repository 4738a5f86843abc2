"""PSNR by frame of windows that begin in mid-clip, beside that of the same frames of whole clips.

    python scripts/window_decoding.py CLIPS [--keyframe-interval 8] [--size 256]

The first 25 latent frames of each clip are encoded. From each key frame but the first on, 9 of them
are decoded as if they were a clip. Frame 0 is the last one of the window's first latent frame, the
only one that it gives. Figures are means over windows, and clips that are shorter are left out.
"""

from collections.abc import Iterator
from math import prod
from statistics import mean
from typing import Annotated

import torch
import typer
from torch import Tensor

from vqtok import DEFAULT
from vqtok.files import MEDIA_SUFFIXES, list_files
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import psnr
from vqtok.video import open_video

LATENT_FRAMES, WINDOW = 25, 9  # of a clip, and of a window
SHOWN = (0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28, 32)


class Clip:
    """The indices of a video (1 3 t h w) uint8, and the PSNR by frame of what they decode to."""

    def __init__(self, tokenizer: Tokenizer, video: Tensor, interval: int) -> None:
        self.tokenizer, self.interval, self.video = tokenizer, interval, video
        self.indices = tokenizer.encode(video, keyframe_interval=interval)
        self.psnr = self.decode(0, LATENT_FRAMES)
        spent = self.indices.count_nonzero() if tokenizer.zero_code else self.indices.numel()
        self.tokens = int(spent) / prod(self.indices.shape[:4])

    def decode(self, start: int, latent_frames: int) -> Tensor:
        """Return the PSNR by frame of a window that begins at a latent frame."""
        height, width = self.video.shape[3:]
        part = self.indices[:, start : start + latent_frames]
        decoded = self.tokenizer.decode(part, None, height, width, self.interval)[0]
        real = self.video[0, :, self.tokenizer.stride[0] * start :][:, : decoded.shape[1]]
        return psnr(real.movedim(1, 0).float() / 255, decoded.movedim(1, 0).cpu())

    def windows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the PSNR by frame of each window, and of the same frames of the whole clip."""
        for start in range(self.interval, LATENT_FRAMES - WINDOW + 1, self.interval):
            window = self.decode(start, WINDOW)
            yield window, self.psnr[self.tokenizer.stride[0] * start :][: len(window)]


def main(
    clips: list[str],
    tokenizer: str = DEFAULT,
    keyframe_interval: Annotated[int, typer.Option(help="Latent frames.")] = 8,
    size: int = 256,
) -> None:
    model = load_for_inference(tokenizer, "auto", None)
    frames = 1 + (LATENT_FRAMES - 1) * model.stride[0]
    encoded = []
    for _, path in list_files(clips, MEDIA_SUFFIXES).files:
        with open_video(path, size=size) as clip:
            read = next(clip.chunks(frames))[0]
        if len(read) == frames:
            video = torch.from_numpy(read).movedim(-1, 0)[None]
            encoded.append(Clip(model, video, keyframe_interval))
    if not encoded:
        raise SystemExit(f"no clip has {frames} frames")
    quality = mean(float(clip.psnr.mean()) for clip in encoded)
    tokens = mean(clip.tokens for clip in encoded)
    print(f"{len(encoded)} clips: {quality:.2f} dB, {tokens:.3f} tokens per position\n")
    pairs = [pair for clip in encoded for pair in clip.windows()]
    print(f"| {len(pairs)} windows, frame | " + " | ".join(map(str, SHOWN)) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    for name, rows in zip(("window", "whole clip"), zip(*pairs, strict=True), strict=False):
        values = torch.stack(rows).mean(0)
        print(f"| {name} | " + " | ".join(f"{values[i]:.1f} dB" for i in SHOWN) + " |")


if __name__ == "__main__":
    typer.run(main)
