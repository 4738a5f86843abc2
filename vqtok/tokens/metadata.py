"""Tokens as the metadata and the tensors of a token file, and back.

Metadata values are strings: fractions are written as 30000/1001 and the stride as 4x8x8. Evenly
spaced timestamps are written as `start` and `step`; others are an int64 tensor `timestamps` (t).
`origin`, `zero_code`, `rate` and `keyframe_interval` are left out where they are 0, False, empty
and None.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from vqtok.errors import VqtokError
from vqtok.safetensors_io import DTYPES, Header, TensorInfo
from vqtok.tokens.format import Tokens, find_problem, find_wrong_value, format_stride, is_named
from vqtok.untrusted import quote

_FORMAT = {"format": "vqtok-tokens", "version": "1"}
_MAX_DIGITS = 30  # of a number; the largest in use, a timestamp, is below 2^62


def pack(tokens: Tokens) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata and the tensors of a token file.

    Raises VqtokError if the tokenizer cannot be identified.
    """
    if not is_named(tokens):
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
    if tokens.keyframe_interval is not None:
        metadata["keyframe_interval"] = str(tokens.keyframe_interval)
    tensors = {"indices": tokens.indices}
    times = _as_range(tokens.timestamps)
    if isinstance(times, range):
        metadata["start"], metadata["step"] = str(times[0]), str(times.step)
    else:
        tensors["timestamps"] = times
    return metadata, tensors


def _as_range(timestamps: Sequence[int]) -> range | np.ndarray:
    """Return timestamps as a range if they are evenly spaced, else as int64 (t)."""
    if isinstance(timestamps, range) and len(timestamps) > 1:
        return timestamps
    times = np.asarray(timestamps, np.int64)
    steps = np.diff(times)
    if (steps != steps[:1]).any():
        return times
    start, step = int(times[0]), int(steps[0]) if len(steps) else 1
    return range(start, start + step * len(times), step)


def unpack(header: Header, name: str) -> Tokens:
    """Return the tokens in the file `name` as far as its header tells.

    The indices are zeros, which take no memory, and timestamps that are a tensor are 0, 1, 2...
    Raises VqtokError if they are not valid.
    """
    metadata = header.metadata
    if metadata.get("format") != _FORMAT["format"]:
        raise VqtokError(f"{name} is not a token file; make one with `vqtok encode`")
    if (version := metadata.get("version")) != _FORMAT["version"]:
        raise VqtokError(
            f"{name} has version {quote(version)} of the token format, and this vqtok reads "
            f"version {_FORMAT['version']}; encode the video again"
        )
    try:
        tokens = _parse(metadata, header.tensors)
    except KeyError as error:
        raise VqtokError(f"{name} has no {error}; encode the video again") from error
    except (ValueError, ZeroDivisionError) as error:
        raise VqtokError(f"{name} has invalid metadata: {error}; encode the video again") from error
    problem = find_problem(tokens)
    if not problem and not is_named(tokens):
        problem = "the quantizer or the model is not named"
    _raise(problem, name)
    return tokens


def check_values(tokens: Tokens, name: str) -> None:
    """Raise VqtokError if indices or timestamps of the file `name` are not valid."""
    _raise(find_wrong_value(tokens), name)


def _raise(problem: str | None, name: str) -> None:
    if problem:
        raise VqtokError(
            f"{name}: {problem}; encode the video again, or make generated tokens with "
            "vqtok.tokens_from_indices"
        )


def _parse(metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> Tokens:
    indices = tensors["indices"]
    return Tokens(
        indices=np.broadcast_to(np.zeros((), DTYPES[indices.dtype]), indices.shape),
        frames=_parse_int(metadata["frames"]),
        height=_parse_int(metadata["height"]),
        width=_parse_int(metadata["width"]),
        fps=_parse_fraction(metadata["fps"]),
        time_base=_parse_fraction(metadata["time_base"]),
        timestamps=_parse_timestamps(metadata, tensors),
        pixel_aspect=_parse_fraction(metadata["pixel_aspect"]),
        codebook_size=_parse_int(metadata["codebook_size"]),
        quantizer=metadata["quantizer"],
        stride=_parse_stride(metadata["stride"]),
        model=metadata["model"],
        origin=_parse_int(metadata.get("origin", "0")),
        zero_code=_parse_flag(metadata.get("zero_code", "false"), "zero_code"),
        rate=metadata.get("rate", ""),
        keyframe_interval=_parse_optional(metadata, "keyframe_interval"),
    )


def _parse_timestamps(metadata: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> range:
    if "timestamps" in tensors:
        info = tensors["timestamps"]
        if info.dtype != "I64" or len(info.shape) != 1:
            raise ValueError("the timestamps are not a list of integers")
        return range(info.shape[0])
    start, step, frames = (_parse_int(metadata[key]) for key in ("start", "step", "frames"))
    if step < 1:
        raise ValueError(f"the timestamps do not increase: the step is {step}")
    return range(start, start + step * frames, step)


def _parse_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"{quote(text)} is no number of this size")
    return int(text)


def _parse_optional(metadata: Mapping[str, str], key: str) -> int | None:
    return _parse_int(metadata[key]) if key in metadata else None


def _parse_flag(text: str, key: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{key} is {quote(text)}, not true or false")
    return text == "true"


def _parse_stride(text: str) -> tuple[int, int, int]:
    sides = text.split("x")
    if len(sides) != 3:
        raise ValueError(f"stride {quote(text)} is not time x height x width")
    t, h, w = map(_parse_int, sides)
    return t, h, w


def _format_fraction(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def _parse_fraction(text: str) -> Fraction:
    numerator, slash, denominator = text.partition("/")
    if not slash:
        raise ValueError(f"{quote(text)} is not a fraction")
    return Fraction(_parse_int(numerator), _parse_int(denominator))
