"""Training clips made more various, where there are too few: turned, scaled and coloured anew."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
HUE, SATURATION, CONTRAST = 0.5, 0.5, 0.2  # standard deviations at full strength: radians, logs


def side(rng: np.random.Generator, crop: int, zoom: float, largest: int) -> int:
    """How large a square to cut out for a clip as large as `crop`.

    It is up to `zoom` times larger or smaller, and never more than `largest`.
    """
    return max(1, min(round(crop * zoom ** rng.uniform(-1, 1)), largest))


def turned(rng: np.random.Generator, clip: Tensor) -> Tensor:
    """A clip (t h w c), half of the time upside down, on its side, and backwards."""
    clip = clip.flip(1) if rng.random() < 0.5 else clip
    clip = clip.transpose(1, 2) if rng.random() < 0.5 else clip
    return clip.flip(0) if rng.random() < 0.5 else clip


def scaled(clip: Tensor, crop: int) -> Tensor:
    """A clip (t h w c) uint8, as high and wide as `crop`."""
    pixels = clip.movedim(-1, 1)
    pixels = F.interpolate(pixels, (crop, crop), mode="bilinear", antialias=True)
    return pixels.movedim(1, -1)


def coloured(rng: np.random.Generator, clip: Tensor, strength: float) -> Tensor:
    """A clip (t h w c) uint8, half of the time with another hue, saturation and contrast."""
    if rng.random() < 0.5:
        return clip
    hue, saturation, contrast = strength * rng.normal(size=3) * (HUE, SATURATION, CONTRAST)
    grey = torch.tensor(LUMA).expand(3, 3)
    mix = grey + math.exp(saturation) * (torch.eye(3) - grey) @ _rotation(hue)
    pixels = (clip.float() - 127.5) @ (math.exp(contrast) * mix.T) + 127.5
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _rotation(angle: float) -> Tensor:
    """The 3x3 matrix that turns colours about the axis of grey (Rodrigues)."""
    k = 1 / math.sqrt(3)
    cross = torch.tensor([[0, -k, k], [k, 0, -k], [-k, k, 0]])
    return torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
