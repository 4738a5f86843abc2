"""Usage of a codebook, and the quality of video."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TOP = 10


def psnr(video: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip, (b c t h w) in 0..1 -> (b)."""
    error = (video.float() - reconstruction.float()).square().flatten(1).mean(1)
    return decibels(error)


def decibels(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of mean squared errors of values in 0..1; of none, 100 dB."""
    return -10 * error.clamp(min=1e-10).log10()


def ssim(video: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of each frame, (b c t h w) in 0..1 -> (b t).

    As published (Wang et al. 2004, doi:10.1109/TIP.2003.819861): a Gaussian window of 11x11 pixels
    with a deviation of 1.5, only where it fits; the mean over pixels and channels. In frames
    smaller than that the window is cut to the frame.
    """
    from torch import autocast, stack

    x, y = (v.float().movedim(1, 2).flatten(0, 1) for v in (video, reconstruction))  # (b*t c h w)
    with autocast(x.device.type, enabled=False):  # a variance is a small difference of two numbers
        # A frame at a time: small memory.
        values = [_ssim(a, b) for a, b in zip(x.unsqueeze(1), y.unsqueeze(1), strict=True)]
    return stack(values).view(video.shape[0], video.shape[2])


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Of two frames (1 c h w)."""
    from torch import cat

    mean_a, mean_b, aa, bb, ab = _blurred(cat([a, b, a * a, b * b, a * b])).unbind()
    covariance = ab - mean_a * mean_b
    variances = aa - mean_a.square() + bb - mean_b.square()
    light = (2 * mean_a * mean_b + 1e-4) / (mean_a.square() + mean_b.square() + 1e-4)
    return (light * (2 * covariance + 9e-4) / (variances + 9e-4)).mean()


def _blurred(x: Tensor) -> Tensor:
    """(n c h w) weighted by a Gaussian window, where it fits, along the height and the width."""
    from torch.nn.functional import conv2d

    n, c = x.shape[:2]
    x = x.reshape(1, n * c, *x.shape[2:])  # as channels: one picture each is 20 times slower
    for axis in (2, 3):
        width = min(11, x.shape[axis])
        weights = np.exp(-((np.arange(width) - (width - 1) / 2) ** 2) / (2 * 1.5**2))
        kernel = x.new_tensor(weights / weights.sum()).view((-1, 1) if axis == 2 else (1, -1))
        x = conv2d(x, kernel.expand(n * c, 1, *kernel.shape), groups=n * c)
    return x.view(n, c, *x.shape[2:])


def usage_by_chance(tokens: int, codebook_size: int) -> float:
    """The share of a codebook that this many tokens, drawn evenly, would be expected to touch."""
    if codebook_size == 1:
        return float(tokens > 0)
    return -math.expm1(tokens * math.log1p(-1 / codebook_size))


@dataclass(frozen=True)
class CodebookUse:
    """How a set of tokens uses a codebook; `perplexity` is 2 to the power of `entropy_bits`.

    entropy_bits is the plug-in estimate, which is too low for few tokens; entropy_bits_corrected
    adds the bias that Miller (1955) found, (used - 1) / (2 tokens) nats.
    """

    tokens: int
    codebook_size: int
    used: int
    usage: float
    usage_by_chance: float
    perplexity: float
    entropy_bits: float
    entropy_bits_corrected: float
    dead: int
    top: list[tuple[int, int]]  # (index, count), most used first

    def brief(self) -> dict[str, float]:
        """The figures that a log and a comparison show, by name."""
        names = "tokens", "usage", "usage_by_chance", "perplexity"
        return {name: getattr(self, name) for name in names}


def codebook_use(counts: np.ndarray) -> CodebookUse:
    """Return the usage of a codebook from a histogram (k) of its indices."""
    tokens, used = int(counts.sum()), int(np.count_nonzero(counts))
    entropy = entropy_bits(counts)
    top = np.argsort(-counts, kind="stable")[: min(TOP, used)]
    return CodebookUse(
        tokens=tokens,
        codebook_size=len(counts),
        used=used,
        usage=used / len(counts),
        usage_by_chance=usage_by_chance(tokens, len(counts)),
        perplexity=2**entropy,
        entropy_bits=entropy,
        entropy_bits_corrected=entropy + max(used - 1, 0) / (2 * max(tokens, 1) * math.log(2)),
        dead=len(counts) - used,
        top=[(int(i), int(counts[i])) for i in top],
    )


def entropy_bits(counts: np.ndarray) -> float:
    """The plug-in entropy of a histogram, in bits; 0 of an empty one."""
    counts = counts[counts > 0]
    total = counts.sum()
    return float((counts * np.log2(total / counts)).sum() / total) if total else 0.0


def bits_per_pixel(tokens: int, codebook_size: int, pixels: int) -> float:
    """Bits that the tokens of a clip take for each pixel of each frame, without entropy coding."""
    return tokens * math.log2(codebook_size) / pixels
