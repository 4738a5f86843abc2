"""Quality of a tokenizer on a clip, beside block averages as a baseline."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vqtok.codebook_stats.usage import bits_per_pixel, decibels, ssim
from vqtok.model.tokenizer import Tokenizer
from vqtok.video import VideoWriter

Pair = tuple[np.ndarray, np.ndarray]  # uint8 (t h w c): frames, and what came back of them


@dataclass(frozen=True)
class Fidelity:
    """How alike two clips are: PSNR in dB over all RGB pixels, mean SSIM of the frames."""

    psnr: float
    ssim: float


@dataclass(frozen=True)
class EvalResult:
    """What a tokenizer makes of a clip.

    tokenizer, blocks: likeness to the clip of its reconstruction, and of block averages.
    counts: how often each index occurs (k).
    encode_fps, decode_fps: frames in a second of the model's time.
    """

    frames: int
    height: int
    width: int
    tokenizer: Fidelity
    blocks: Fidelity
    bits_per_pixel: float
    counts: np.ndarray
    encode_fps: float
    decode_fps: float


class FidelityMeter:
    """The likeness of two clips that come a few frames at a time."""

    def __init__(self) -> None:
        self._error, self._values = 0, 0
        self._ssim: list[float] = []

    def add(self, video: Tensor, other: Tensor) -> None:
        """Take in frames (1 3 t h w) uint8 of both."""
        self._error += (video.int() - other.int()).square().sum().item()
        self._values += video.numel()
        self._ssim += ssim(video / 255, other / 255).flatten().tolist()

    def likeness(self) -> Fidelity:
        """Of all frames so far; equal clips have 100 dB."""
        error = torch.tensor(self._error / self._values / 255**2, dtype=torch.float64)
        return Fidelity(decibels(error).item(), float(np.mean(self._ssim)))


def measure(
    video: Tensor, tokenizer: Tokenizer, see: Callable[[Pair], object] = lambda pair: None
) -> EvalResult:
    """Encode and decode a clip (1 3 t h w) uint8, and compare, all in 8 bits per channel.

    see: is given the frames of the clip and of the reconstruction, a few at a time.
    """
    frames, height, width = video.shape[2:]
    begin = time.perf_counter()
    indices = tokenizer.encode(video).cpu()
    encoding, decoding = time.perf_counter() - begin, 0.0
    ours, trivial, done = FidelityMeter(), FidelityMeter(), 0
    for part, seconds in timed(tokenizer.decode_stream([indices])):
        decoding += seconds
        part = part[:, :, : frames - done, :height, :width].mul(255).round_().to(torch.uint8)
        clip = video[:, :, done : done + part.shape[2]].to(part.device)
        ours.add(clip, part)
        trivial.add(clip, block_averages(clip, tokenizer.stride, first=done == 0))
        see(tuple(x[0].movedim(0, -1).cpu().numpy() for x in (clip, part)))
        done += part.shape[2]
    counts = torch.bincount(indices.flatten(), minlength=tokenizer.codebook_size).numpy()
    return EvalResult(
        *(frames, height, width),
        tokenizer=ours.likeness(),
        blocks=trivial.likeness(),
        bits_per_pixel=bits_per_pixel(indices.numel(), len(counts), frames * height * width),
        counts=counts,
        encode_fps=frames / encoding,
        decode_fps=frames / decoding,
    )


def timed(items: Iterator[Tensor]) -> Iterator[tuple[Tensor, float]]:
    """Each item, and the seconds it took to make."""
    while True:
        begin = time.perf_counter()
        item = next(items, None)
        if item is None:
            return
        if item.is_cuda:
            torch.cuda.synchronize(item.device)
        yield item, time.perf_counter() - begin


def block_averages(video: Tensor, stride: tuple[int, int, int], first: bool) -> Tensor:
    """(1 3 t h w) uint8 -> each block replaced by its mean; the `first` frame stands alone.

    Edges repeat, as they do for the tokenizer.
    """
    t, h, w = stride
    frames, height, width = video.shape[2:]
    front = t - 1 if first else 0
    pad = (0, -width % w, 0, -height % h, front, -(frames + front) % t)
    x = F.avg_pool3d(F.pad(video.float(), pad, mode="replicate"), stride).round_()
    for axis, factor in enumerate(stride, 2):
        x = x.repeat_interleave(factor, axis)
    return x[:, :, front : front + frames, :height, :width].to(torch.uint8)


def write_strip(path: Path, pairs: Sequence[Pair]) -> None:
    """Write a picture: a square of the last frame of each, above what came back of it."""
    side = min(min(frames.shape[1:3]) for frames, _ in pairs)
    columns = [np.concatenate([_middle(x[-1], side) for x in pair]) for pair in pairs]
    picture, once = np.concatenate(columns, axis=1), Fraction(1)
    height, width, _ = picture.shape
    with VideoWriter(path, height=height, width=width, fps=once, time_base=once) as out:
        out.write(picture[None], [0])


def _middle(frame: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in frame.shape[:2])
    return frame[top : top + side, left : left + side]
