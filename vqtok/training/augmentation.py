"""Random augmentation of training clips: flips, scale and color."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Standard deviations at strength 1: of the hue in radians, and of the logarithms of the factors of
# saturation and contrast.
HUE, SATURATION, CONTRAST = 0.5, 0.5, 0.2


def flip(rng: np.random.Generator, clip: Tensor) -> Tensor:
    """Flip a clip (t h w c) vertically, transpose it and reverse it in time, each with p = 0.5."""
    clip = clip.flip(1) if rng.random() < 0.5 else clip
    clip = clip.transpose(1, 2) if rng.random() < 0.5 else clip
    return clip.flip(0) if rng.random() < 0.5 else clip


def random_crop_size(rng: np.random.Generator, size: int, max_scale: float, limit: int) -> int:
    """Return the side of a square to crop and resize to `size`, for a random scale of the clip.

    max_scale: largest factor, up and down; log-uniform.
    limit: largest side to return.
    """
    return max(1, min(round(size * max_scale ** rng.uniform(-1, 1)), limit))


def resize(clip: Tensor, size: int) -> Tensor:
    """Resize a clip (t h w c) uint8 to (t size size c)."""
    pixels = clip.movedim(-1, 1)
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels.movedim(1, -1)


def color_jitter(rng: np.random.Generator, clip: Tensor, strength: float) -> Tensor:
    """Change hue, saturation and contrast of a clip (t h w c) uint8 randomly, with p = 0.5."""
    if rng.random() < 0.5:
        return clip
    hue, saturation, contrast = strength * rng.normal(size=3) * (HUE, SATURATION, CONTRAST)
    gray = torch.tensor(LUMA).expand(3, 3)
    matrix = gray + math.exp(saturation) * (torch.eye(3) - gray) @ _hue_rotation(hue)
    matrix = math.exp(contrast) * matrix.T
    # Gray stays gray, so contrast around 127.5 adds the same to all channels; 0.5 rounds.
    offset = 127.5 * (1 - math.exp(contrast)) + 0.5
    result = torch.empty_like(clip, memory_format=torch.contiguous_format)
    for source, target in zip(clip, result, strict=True):  # a frame fits into the processor's cache
        target.copy_((source.float() @ matrix).add_(offset).clamp_(0, 255.5))
    return result


def _hue_rotation(angle: float) -> Tensor:
    """Return the 3x3 matrix that rotates RGB colors about the gray axis (Rodrigues' formula)."""
    k = 1 / math.sqrt(3)
    cross = torch.tensor([[0, -k, k], [k, 0, -k], [-k, k, 0]])
    return torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
