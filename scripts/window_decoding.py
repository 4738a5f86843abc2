"""PSNR by frame of windows that begin in mid-clip, beside that of the same frames of whole clips.

    python scripts/window_decoding.py CLIPS [--keyframe-interval 8] [--size 256]

Clips are encoded whole. From each key frame but the first on, the indices are decoded as if they
were a clip. Frame 0 is the last one of the window's first latent frame, the only one that it gives.
Figures are means over windows, of clips that are long enough.
"""

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


def windows(tokenizer: Tokenizer, video: Tensor, interval: int) -> list[tuple[Tensor, Tensor]]:
    """Return the PSNR by frame of each window and of the same frames of the whole clip.

    video: (1 3 t h w), uint8.
    """
    (height, width), time = video.shape[3:], tokenizer.stride[0]
    crop = {"height": height, "width": width, "keyframe_interval": interval}
    indices = tokenizer.encode(video, keyframe_interval=interval)
    whole = tokenizer.decode(indices, **crop)
    pairs = []
    for start in range(interval, LATENT_FRAMES - WINDOW + 1, interval):
        part = indices[:, start : start + WINDOW]
        decoded = tokenizer.decode(part, **crop)
        frames = slice(time * start, time * start + decoded.shape[2])
        real = video[:, :, frames].float() / 255
        pairs.append((by_frame(decoded, real), by_frame(whole[:, :, frames], real)))
    return pairs


def by_frame(decoded: Tensor, real: Tensor) -> Tensor:
    """Return the PSNR of each frame (t) of videos (1 3 t h w)."""
    return psnr(real[0].movedim(1, 0), decoded[0].movedim(1, 0).cpu())


def main(
    clips: list[str],
    tokenizer: str = DEFAULT,
    keyframe_interval: Annotated[int, typer.Option(help="Latent frames.")] = 8,
    size: int = 256,
) -> None:
    model = load_for_inference(tokenizer, "auto", None)
    frames = 1 + (LATENT_FRAMES - 1) * model.stride[0]
    pairs, used = [], 0
    for _, path in list_files(clips, MEDIA_SUFFIXES).files:
        with open_video(path, size=size) as clip:
            read = next(clip.chunks(frames))[0]
        if len(read) == frames:
            video = torch.from_numpy(read).movedim(-1, 0)[None]
            pairs += windows(model, video, keyframe_interval)
            used += 1
    if not pairs:
        raise SystemExit(f"no clip has {frames} frames")
    print(f"{len(pairs)} windows of {used} clips\n")
    print("| frame | " + " | ".join(map(str, SHOWN)) + " |")
    print("|---" * (len(SHOWN) + 1) + "|")
    for name, rows in zip(("window", "whole clip"), zip(*pairs, strict=True), strict=True):
        mean = torch.stack(rows).mean(0)
        print(f"| {name} | " + " | ".join(f"{mean[i]:.1f} dB" for i in SHOWN) + " |")


if __name__ == "__main__":
    typer.run(main)
