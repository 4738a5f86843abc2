"""The content of a token file: the tokens of a clip and what is needed to restore the video.

docs/token-format.md describes every key.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from vqtok.errors import VqtokError
from vqtok.untrusted import quote

# Bounds on what a forged file can make a reader allocate.
_MAX_STRIDE = 256
MAX_CODEBOOKS = 64
_QUANTIZER = re.compile(r"[!-~]{1,32}")
_MODEL = re.compile(r"[0-9a-f]{64}")
_RATE = re.compile(r"[a-z_]{1,32}=[!-~]{1,32}")
_ROWS_PER_COUNT = 64  # latent frames
_TIMES_PER_CHECK = 2**16
INDEX_DTYPES = tuple(np.dtype(name) for name in ("<u1", "<u2", "<i4"))


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenized clip.

    indices: integers of any dtype (t h w) or (t h w codebooks), 0 <= index < codebook_size.
    frames, height, width: of the clip, before it was padded to the stride.
    fps: frames per second; the average where the rate varies.
    time_base: seconds per tick of a timestamp.
    timestamps: one per frame, in ticks, strictly increasing.
    pixel_aspect: width over height of a pixel.
    quantizer: kind of the quantizer, such as fsq.
    stride: (time, height, width) that one index covers, in frames and pixels.
    model: SHA-256 of the tokenizer's weights, in hex; "" if it was not loaded from a file.
    origin: the timestamp at which playback starts, time zero of the decoded video.
    zero_code: whether index 0 of each codebook means "nothing new", for which no token is spent.
    rate: how the encoder chose what to spend tokens on, such as tokens=0.6, price=0.5 or psnr=32;
        "" if it coded everything.
    keyframe_interval: latent frames from one key frame to the next; 1: each stands for itself;
        None: that of the tokenizer, in files of older versions.
    """

    indices: np.ndarray
    frames: int
    height: int
    width: int
    fps: Fraction
    time_base: Fraction
    timestamps: Sequence[int]
    pixel_aspect: Fraction
    codebook_size: int
    quantizer: str
    stride: tuple[int, int, int]
    model: str
    origin: int = 0
    zero_code: bool = False
    rate: str = ""
    keyframe_interval: int | None = None

    @property
    def max_gap(self) -> int:
        """The longest time from one frame to the next, in ticks; 0 for a single frame."""
        return max((int(steps.max()) for steps in _steps(self.timestamps)), default=0)

    @property
    def tokens_per_position(self) -> float:
        """Tokens spent per position of the (t h w) grid: all of them, or those that are not 0."""
        return count_tokens(self) / int(np.prod(self.indices.shape[:3]))


class TokenizerInfo(Protocol):
    """What identifies a tokenizer, and what its tokens can be."""

    @property
    def kind(self) -> str: ...
    @property
    def stride(self) -> tuple[int, int, int]: ...
    @property
    def codebook_size(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def keyframe_interval(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...


def check_tokenizer(tokens: Tokens, tokenizer: TokenizerInfo, name: str) -> None:
    """Raise VqtokError if the tokens, read from the file `name`, belong to another tokenizer."""
    theirs = tokens.quantizer, tokens.stride, tokens.codebook_size, tokens.model
    ours = tokenizer.kind, tokenizer.stride, tokenizer.codebook_size, tokenizer.fingerprint
    codebooks = tokens.indices.shape[3] if tokens.indices.ndim > 3 else 1
    if theirs == ours and codebooks != tokenizer.stages:
        raise VqtokError(
            f"{name}: these tokens have {codebooks} codebooks, and their tokenizer has "
            f"{tokenizer.stages}; encode the video again"
        )
    if theirs == ours and (tokens.keyframe_interval or 1) > tokenizer.keyframe_interval:
        raise VqtokError(
            f"{name}: these tokens have a key frame every {tokens.keyframe_interval:,} latent "
            f"frames, and their tokenizer every {tokenizer.keyframe_interval:,}; encode the video "
            "again"
        )
    if theirs != ours:
        raise VqtokError(
            f"{name}: these tokens were made by another tokenizer ({_describe(*theirs)}); choose "
            f"it with --tokenizer instead of this one ({_describe(*ours)})"
        )


def _describe(kind: str, stride: tuple[int, int, int], codebook_size: int, model: str) -> str:
    return f"{kind} {format_stride(stride)}, {codebook_size:,} codes, weights {model[:12]}"


def format_stride(stride: tuple[int, int, int]) -> str:
    """Return a stride as text, such as 4x8x8."""
    return "x".join(map(str, stride))


def count_tokens(tokens: Tokens) -> int:
    """Return the number of tokens spent: all indices, or with a zero code those that are not 0."""
    indices = tokens.indices
    if not tokens.zero_code:
        return indices.size
    starts = range(0, len(indices), _ROWS_PER_COUNT)  # in parts: the indices may be on disk
    return sum(int(np.count_nonzero(indices[i : i + _ROWS_PER_COUNT])) for i in starts)


def index_dtype(codebook_size: int) -> np.dtype:
    """Return the smallest dtype that token files use for indices of this codebook."""
    return next(d for d in INDEX_DTYPES if codebook_size - 1 <= np.iinfo(d).max)


def validate(tokens: Tokens) -> None:
    """Raise VqtokError if the tokens are out of range or inconsistent."""
    if problem := find_problem(tokens) or find_wrong_value(tokens):
        raise VqtokError(f"the tokens are not valid: {problem}")


def find_problem(tokens: Tokens) -> str | None:
    """Return the first problem, apart from the values of indices and of a list of timestamps.

    Each check may rely on those before it, so order matters.
    """
    sizes = tokens.frames, tokens.height, tokens.width, tokens.codebook_size
    rates = tokens.fps, tokens.time_base, tokens.pixel_aspect
    indices = tokens.indices
    if not all(0 < size < 2**31 for size in sizes):
        return "a size is out of range"
    if not all(0 < part < 2**31 for rate in rates for part in rate.as_integer_ratio()):
        return "a rate is out of range"
    if len(tokens.stride) != 3 or not all(0 < side <= _MAX_STRIDE for side in tokens.stride):
        return f"the stride is not three numbers from 1 to {_MAX_STRIDE}"
    interval = tokens.keyframe_interval
    if interval is not None and not (type(interval) is int and 0 < interval < 2**31):
        return f"the key-frame interval is {quote(interval)}, not a number of latent frames"
    if not isinstance(tokens.zero_code, bool):
        return f"zero_code is {quote(tokens.zero_code)}, not True or False"
    if tokens.zero_code and tokens.codebook_size < 2:
        return "a codebook with a zero code has 2 codes or more, not 1"
    if not isinstance(tokens.rate, str) or (tokens.rate and not _RATE.fullmatch(tokens.rate)):
        return f"the rate is {quote(tokens.rate)}, not a name and a value such as tokens=0.6"
    if not isinstance(indices, np.ndarray):
        return f"the indices are {type(indices).__name__}, not a NumPy array"
    if indices.dtype.kind not in "iu":
        return f"the indices are {indices.dtype}, not integers"
    if indices.shape[:3] != _grid(tokens) or indices.ndim > 4 or indices.shape[3:] == (1,):
        size = f"{tokens.frames} frames of {tokens.height}x{tokens.width}"
        return f"indices of shape {quote(indices.shape)} do not fit {size}"
    if indices.size == 0:
        return "there are no indices"
    if math.prod(indices.shape[3:]) > MAX_CODEBOOKS:
        return f"there are {indices.shape[3]:,} codebooks; the limit is {MAX_CODEBOOKS}"
    if len(tokens.timestamps) != tokens.frames:
        return "the number of timestamps is not the number of frames"
    return None


def find_wrong_value(tokens: Tokens) -> str | None:
    """Return the problem of the indices or the timestamps, if `find_problem` found none."""
    indices = tokens.indices
    ends = tokens.timestamps[0], tokens.timestamps[-1], tokens.origin
    if max(map(abs, ends)) >= 2**62:
        return "a timestamp is out of range"
    if indices.min() < 0 or indices.max() >= tokens.codebook_size:
        found = f"{indices.min():,} to {indices.max():,}"
        return f"the indices are {found}, not in a codebook of {tokens.codebook_size:,}"
    try:
        increasing = all((steps > 0).all() for steps in _steps(tokens.timestamps))
    except OverflowError:
        return "a timestamp is out of range"
    return None if increasing else "the timestamps do not increase"


def _steps(timestamps: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the steps between timestamps, part by part; that of a range only once."""
    if isinstance(timestamps, range):
        timestamps = timestamps[:2]
    for i in range(0, len(timestamps) - 1, _TIMES_PER_CHECK):
        yield np.diff(np.asarray(timestamps[i : i + _TIMES_PER_CHECK + 1], np.int64))


def is_named(tokens: Tokens) -> bool:
    """Return whether the tokens tell which tokenizer made them, as a file has to."""
    return bool(_QUANTIZER.fullmatch(tokens.quantizer) and _MODEL.fullmatch(tokens.model))


def _grid(tokens: Tokens) -> tuple[int, int, int]:
    """Return the (t h w) of the indices; the first latent frame covers the first frame alone."""
    t, h, w = tokens.stride
    return 1 - (1 - tokens.frames) // t, -(-tokens.height // h), -(-tokens.width // w)
