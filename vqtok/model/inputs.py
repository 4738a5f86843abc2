"""Checks of the video and the indices that a caller passes to a tokenizer."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vqtok.errors import UsageError, VqtokError

_TOLERANCE = 0.01  # of the range of float video: a rounding step of bfloat16 at 1 is 0.008


def check_video(video: Tensor) -> Tensor:
    """Return a chunk of video as it is; raise if its shape, dtype or range is wrong."""
    if not isinstance(video, Tensor):
        raise UsageError(f"a video must be a torch.Tensor, not {type(video).__name__}")
    if video.ndim != 5 or video.shape[1] != 3 or 0 in (*video.shape[:2], *video.shape[3:]):
        raise UsageError(f"a video must have the shape (b 3 t h w), not {tuple(video.shape)}")
    if video.dtype == torch.uint8 or not video.shape[2]:
        return video
    if not video.is_floating_point():
        raise UsageError(f"a video must be uint8 or float, not {video.dtype}")
    low, high = torch.stack(video.aminmax()).tolist()
    if not math.isfinite(low + high):
        raise VqtokError("the video holds NaN or infinity")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise UsageError(
            f"a float video must be in 0..1, and this one ranges from {low:.4g} to {high:.4g}"
        )
    return video


def check_indices(indices: Tensor, stages: int, codebook_size: int) -> Tensor:
    """Return a chunk of indices in int64; raise if its shape, dtype or range is wrong."""
    if not isinstance(indices, Tensor):
        raise UsageError(f"indices must be a torch.Tensor, not {type(indices).__name__}")
    dtype, shape = indices.dtype, tuple(indices.shape)
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise UsageError(f"indices must be integers, not {dtype}")
    if len(shape) != (4 if stages == 1 else 5) or 0 in shape or shape[4:] not in ((), (stages,)):
        expected = "(b t h w)" if stages == 1 else f"(b t h w {stages})"
        raise UsageError(f"indices must have the shape {expected}, not {shape}")
    indices = indices.to(torch.int64)
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= codebook_size:
        found = f"{low:,} to {high:,}"
        raise VqtokError(f"the indices are {found}, not in this codebook of {codebook_size:,}")
    return indices


def check_interval(interval: int | None, longest: int) -> int:
    """Return a key-frame interval, by default the longest; raise UsageError if it is not possible.

    longest: that of the tokenizer, 1 if it predicts nothing.
    """
    if interval is None:
        return longest
    if type(interval) is not int or not 1 <= interval <= longest:
        possible = f"1 to {longest:,} latent frames" if longest > 1 else "1, as it predicts nothing"
        raise UsageError(
            f"the key-frame interval of this tokenizer can be {possible}, not {interval!r}"
        )
    return interval


def check_finite(total: Tensor) -> None:
    """Raise VqtokError unless the sum of latents is finite; it is not if one of them is not."""
    if not math.isfinite(float(total)):
        raise VqtokError("the tokenizer's weights hold NaN or infinity")


def of_one_clip(chunks: Iterable[Tensor], time: int) -> Iterator[Tensor]:
    """Yield the chunks; raise UsageError if one differs from the first in more than its length.

    time: the axis of time.
    """
    first = None
    for chunk in chunks:
        kind = chunk.dtype, chunk.shape[:time], chunk.shape[time + 1 :]
        if first not in (None, kind):
            found = f"{tuple(chunk.shape)} {chunk.dtype}"
            raise UsageError(f"the chunks of a clip differ in shape or dtype: {found} comes later")
        first = kind
        yield chunk
