"""The content of a token file: the tokens of a clip and what is needed to restore the video.

docs/token-format.md describes every key. Metadata values are strings: fractions are written as
30000/1001 and the stride as 4x8x8. Evenly spaced timestamps are written as `start` and `step`;
others are an int64 tensor `timestamps` (t). `origin`, `zero_code` and `rate` are left out where
they are 0, False and empty.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from vqtok.errors import VqtokError

_FORMAT = {"format": "vqtok-tokens", "version": "1"}
_MAX_STRIDE = 256  # bounds what a forged file can make a reader allocate
_RATE = re.compile(r"[a-z_]{1,32}=[!-~]{1,32}")
_ROWS_PER_COUNT = 64  # latent frames
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

    @property
    def tokens_per_position(self) -> float:
        """Tokens spent per position of the (t h w) grid: all of them, or those that are not 0."""
        return count_tokens(self) / int(np.prod(self.indices.shape[:3]))


class TokenizerInfo(Protocol):
    """What identifies a tokenizer: its kind of quantizer, stride, codebook size and weights."""

    @property
    def kind(self) -> str: ...
    @property
    def stride(self) -> tuple[int, int, int]: ...
    @property
    def codebook_size(self) -> int: ...
    @property
    def stages(self) -> int: ...
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
    if problem := _find_problem(tokens):
        raise VqtokError(f"the tokens are not valid: {problem}")


def _find_problem(tokens: Tokens) -> str | None:
    """Return the first problem. Each check may rely on those before it, so order matters."""
    sizes = tokens.frames, tokens.height, tokens.width, tokens.codebook_size
    rates = tokens.fps, tokens.time_base, tokens.pixel_aspect
    indices, timestamps = tokens.indices, tokens.timestamps
    if not all(0 < size < 2**31 for size in sizes):
        return "a size is out of range"
    if not all(0 < part < 2**31 for rate in rates for part in rate.as_integer_ratio()):
        return "a rate is out of range"
    if len(tokens.stride) != 3 or not all(0 < side <= _MAX_STRIDE for side in tokens.stride):
        return f"the stride is not three numbers from 1 to {_MAX_STRIDE}"
    if not isinstance(tokens.zero_code, bool):
        return f"zero_code is {tokens.zero_code!r}, not True or False"
    if tokens.zero_code and tokens.codebook_size < 2:
        return "a codebook with a zero code has 2 codes or more, not 1"
    if not isinstance(tokens.rate, str) or (tokens.rate and not _RATE.fullmatch(tokens.rate)):
        return f"the rate is {_shorten(tokens.rate)}, not a name and a value such as tokens=0.6"
    if not isinstance(indices, np.ndarray):
        return f"the indices are {type(indices).__name__}, not a NumPy array"
    if indices.dtype.kind not in "iu":
        return f"the indices are {indices.dtype}, not integers"
    if indices.shape[:3] != _grid(tokens) or indices.ndim > 4 or indices.shape[3:] == (1,):
        size = f"{tokens.frames} frames of {tokens.height}x{tokens.width}"
        return f"indices of shape {indices.shape} do not fit {size}"
    if indices.size == 0:
        return "there are no indices"
    if indices.min() < 0 or indices.max() >= tokens.codebook_size:
        found = f"{indices.min():,} to {indices.max():,}"
        return f"the indices are {found}, not in a codebook of {tokens.codebook_size:,}"
    if len(timestamps) != tokens.frames:
        return "the number of timestamps is not the number of frames"
    if max(map(abs, (timestamps[0], timestamps[-1], tokens.origin))) >= 2**62:
        return "a timestamp is out of range"
    if (np.diff(np.asarray(timestamps)) <= 0).any():
        return "the timestamps do not increase"
    return None


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:50]}..."


def _grid(tokens: Tokens) -> tuple[int, int, int]:
    """Return the (t h w) of the indices; the first latent frame covers the first frame alone."""
    t, h, w = tokens.stride
    return 1 - (1 - tokens.frames) // t, -(-tokens.height // h), -(-tokens.width // w)


def _is_named(tokens: Tokens) -> bool:
    return bool(tokens.quantizer) and len(tokens.model) == 64


def pack(tokens: Tokens) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata and the tensors of a token file.

    Raises VqtokError if the tokenizer cannot be identified.
    """
    if not _is_named(tokens):
        raise VqtokError("the tokens cannot be written: their tokenizer was not loaded from a file")
    metadata = _FORMAT | {
        "frames": str(tokens.frames),
        "height": str(tokens.height),
        "width": str(tokens.width),
        "codebook_size": str(tokens.codebook_size),
        "quantizer": tokens.quantizer,
        "model": tokens.model,
        "fps": _format_fraction(tokens.fps),
        "time_base": _format_fraction(tokens.time_base),
        "pixel_aspect": _format_fraction(tokens.pixel_aspect),
        "stride": format_stride(tokens.stride),
    }
    if tokens.origin:
        metadata["origin"] = str(tokens.origin)
    if tokens.zero_code:
        metadata["zero_code"] = "true"
    if tokens.rate:
        metadata["rate"] = tokens.rate
    tensors = {"indices": tokens.indices}
    timestamps = np.asarray(tokens.timestamps, "<i8")
    steps = np.diff(timestamps)
    if (steps == steps[:1]).all():
        metadata["start"] = str(timestamps[0])
        metadata["step"] = str(steps[0] if len(steps) else 1)
    else:
        tensors = {"timestamps": timestamps} | tensors
    return metadata, tensors


def unpack(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray], name: str) -> Tokens:
    """Return the tokens in the file `name`; raise VqtokError if they are not valid."""
    if metadata.get("format") != _FORMAT["format"]:
        raise VqtokError(f"{name} is not a token file; make one with `vqtok encode`")
    if metadata.get("version") != _FORMAT["version"]:
        raise VqtokError(
            f"{name} has version {metadata.get('version')} of the token format, and this vqtok "
            f"reads version {_FORMAT['version']}; encode the video again"
        )
    try:
        tokens = _parse(metadata, tensors)
    except KeyError as error:
        raise VqtokError(f"{name} has no {error}; encode the video again") from error
    except (ValueError, ZeroDivisionError) as error:
        raise VqtokError(f"{name} has invalid metadata: {error}; encode the video again") from error
    problem = _find_problem(tokens)
    if not problem and not _is_named(tokens):
        problem = "the quantizer or the model is not named"
    if problem:
        raise VqtokError(
            f"{name}: {problem}; encode the video again, or make generated tokens with "
            "vqtok.tokens_from_indices"
        )
    return tokens


def _parse(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> Tokens:
    return Tokens(
        indices=tensors["indices"],
        frames=int(metadata["frames"]),
        height=int(metadata["height"]),
        width=int(metadata["width"]),
        fps=_parse_fraction(metadata["fps"]),
        time_base=_parse_fraction(metadata["time_base"]),
        timestamps=_parse_timestamps(metadata, tensors),
        pixel_aspect=_parse_fraction(metadata["pixel_aspect"]),
        codebook_size=int(metadata["codebook_size"]),
        quantizer=metadata["quantizer"],
        stride=_parse_stride(metadata["stride"]),
        model=metadata["model"],
        origin=int(metadata.get("origin", 0)),
        zero_code=_parse_flag(metadata.get("zero_code", "false"), "zero_code"),
        rate=metadata.get("rate", ""),
    )


def _parse_timestamps(
    metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> Sequence[int]:
    if "timestamps" in tensors:
        timestamps = tensors["timestamps"]
        if timestamps.dtype != np.int64 or timestamps.ndim != 1:
            raise ValueError("the timestamps are not a list of integers")
        return timestamps.tolist()
    start, step, frames = (int(metadata[key]) for key in ("start", "step", "frames"))
    return range(start, start + step * frames, step)


def _parse_flag(text: str, key: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{key} is {_shorten(text)}, not true or false")
    return text == "true"


def _parse_stride(text: str) -> tuple[int, int, int]:
    sides = text.split("x")
    if len(sides) != 3:
        raise ValueError(f"stride {text} is not time x height x width")
    return int(sides[0]), int(sides[1]), int(sides[2])


def _format_fraction(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def _parse_fraction(text: str) -> Fraction:
    numerator, denominator = map(int, text.split("/"))
    return Fraction(numerator, denominator)
