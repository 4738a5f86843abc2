"""The token file: safetensors with `indices`, and all that is needed to make the video again.

Metadata, all strings: format and version; frames, height, width of the clip; fps, time_base and
pixel_aspect as fractions like 30000/1001; codebook_size, quantizer, stride as 4x8x8 (time x height
x width) and model, the SHA-256 of the weights. Timestamps that are `start + i * step` are these two
numbers; others are an int64 tensor `timestamps` (t). origin, 0 if it is not there, is the timestamp
at which playing begins.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from vqtok.errors import VqtokError
from vqtok.files import replacing

FORMAT = {"format": "vqtok-tokens", "version": "1"}
MAX_STRIDE = 256  # bounds what a forged file can make a reader allocate

_DTYPES = tuple(np.dtype(name) for name in ("<u1", "<u2", "<i4"))
_NAMES = dict(zip((*_DTYPES, np.dtype("<i8")), ("U8", "U16", "I32", "I64"), strict=True))


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenized clip.

    indices: integers (t h w) or (t h w codebooks), 0 <= index < codebook_size.
    frames, height, width: of the clip, before it was padded to the stride.
    fps: frames per second; time_base: seconds per tick; timestamps: one per frame, in ticks,
        strictly increasing.
    pixel_aspect: width over height of a pixel.
    quantizer: its kind, such as fsq; stride: (time, height, width) of one index.
    model: SHA-256 of the tokenizer's weights, in hex.
    origin: the timestamp at which playing begins: time zero of the decoded video.
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


def to_bytes(tokens: Tokens) -> bytes:
    """The content of a token file; the same tokens give the same bytes.

    Raises VqtokError if the tokens contradict themselves.
    """
    _check(tokens, "tokens")
    metadata, tensors = _metadata(tokens), {}
    times = np.asarray(tokens.timestamps, "<i8")
    steps = np.diff(times)
    if (steps == steps[:1]).all():
        metadata |= {"start": str(times[0]), "step": str(steps[0] if len(steps) else 1)}
    else:
        tensors["timestamps"] = times
    tensors["indices"] = tokens.indices.astype(index_dtype(tokens.codebook_size))
    return _safetensors(tensors, metadata)


def write(path: str | os.PathLike[str], tokens: Tokens) -> None:
    """Write a token file, whole or not at all."""
    data = to_bytes(tokens)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read(source: str | os.PathLike[str] | BinaryIO) -> Tokens:
    """Read a token file from a path or a binary file; a pipe will do.

    Raises VqtokError, naming the file, for anything but a whole and consistent one.
    """
    stream = hasattr(source, "read")
    name = "the input stream" if stream else str(source)
    try:
        data = source.read() if stream else Path(source).read_bytes()
        tensors = load(data)
        metadata = _header(data).get("__metadata__", {})
    except OSError as error:
        raise VqtokError(f"{name}: {error.strerror.lower()}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise VqtokError(f"{name} is cut short or no token file; encode the video again") from error
    if metadata.get("format") != FORMAT["format"]:
        raise VqtokError(f"{name} is no token file; make one with `vqtok encode`")
    if metadata.get("version") != FORMAT["version"]:
        raise VqtokError(
            f"{name} is of version {metadata.get('version')} and this vqtok reads version "
            f"{FORMAT['version']} of the token format; encode the video again"
        )
    return _parse(metadata, tensors, name)


def _parse(metadata: dict[str, str], tensors: dict[str, np.ndarray], name: str) -> Tokens:
    try:
        fields = {key: int(metadata[key]) for key in ("frames", "height", "width", "codebook_size")}
        for key in ("fps", "time_base", "pixel_aspect"):
            above, below = metadata[key].split("/")
            fields[key] = Fraction(int(above), int(below))
        tokens = Tokens(
            indices=tensors["indices"],
            timestamps=_timestamps(metadata, tensors, fields["frames"]),
            quantizer=metadata["quantizer"],
            stride=tuple(int(side) for side in metadata["stride"].split("x")),
            model=metadata["model"],
            origin=int(metadata.get("origin", 0)),
            **fields,
        )
    except KeyError as error:
        raise VqtokError(f"{name} lacks {error}; encode the video again") from error
    except (ValueError, ZeroDivisionError) as error:
        raise VqtokError(f"{name} has been edited: {error}; encode the video again") from error
    _check(tokens, name)
    if tokens.indices.dtype != index_dtype(tokens.codebook_size):
        raise VqtokError(
            f"{name}: {tokens.indices.dtype} indices do not belong to a codebook of "
            f"{tokens.codebook_size}; encode the video again"
        )
    return tokens


def _check(tokens: Tokens, name: str) -> None:
    """Raise VqtokError for the first thing in the tokens that contradicts another."""
    sizes = tokens.frames, tokens.height, tokens.width, tokens.codebook_size
    rates = tokens.fps, tokens.time_base, tokens.pixel_aspect
    indices, times = tokens.indices, tokens.timestamps
    # Each is looked at only when those above it hold, so that no forged number is trusted.
    problems = (
        (lambda: not all(0 < size < 2**31 for size in sizes), "a size is out of range"),
        (
            lambda: not all(0 < part < 2**31 for r in rates for part in r.as_integer_ratio()),
            "a rate is out of range",
        ),
        (
            lambda: len(tokens.stride) != 3 or not all(0 < s <= MAX_STRIDE for s in tokens.stride),
            f"the stride is not three numbers from 1 to {MAX_STRIDE}",
        ),
        (lambda: not tokens.quantizer or len(tokens.model) != 64, "the model is not named"),
        (lambda: indices.dtype.kind not in "iu", "the indices are not integers"),
        (
            lambda: (
                indices.shape[:3] != _grid(tokens) or indices.ndim > 4 or indices.shape[3:] == (1,)
            ),
            f"indices of shape {indices.shape} do not fit {tokens.frames} frames of "
            f"{tokens.height}x{tokens.width}",
        ),
        (
            lambda: indices.size == 0 or indices.min() < 0 or indices.max() >= tokens.codebook_size,
            f"an index is not in a codebook of {tokens.codebook_size}",
        ),
        (lambda: len(times) != tokens.frames, "there is not one timestamp for each frame"),
        (
            lambda: max(map(abs, (times[0], times[-1], tokens.origin))) >= 2**62,
            "a timestamp is out of range",
        ),
        (lambda: (np.diff(np.asarray(times)) <= 0).any(), "the timestamps do not increase"),
    )
    for wrong, what in problems:
        if wrong():
            raise VqtokError(f"{name}: {what}; encode the video again")


def _grid(tokens: Tokens) -> tuple[int, int, int]:
    """The (t h w) that a clip has at this stride: its first frame stands alone."""
    t, h, w = tokens.stride
    return 1 - (1 - tokens.frames) // t, -(-tokens.height // h), -(-tokens.width // w)


def _timestamps(
    metadata: dict[str, str], tensors: dict[str, np.ndarray], frames: int
) -> Sequence[int]:
    if "timestamps" in tensors:
        if tensors["timestamps"].dtype != np.int64 or tensors["timestamps"].ndim != 1:
            raise ValueError("the timestamps are no list of integers")
        return tensors["timestamps"].tolist()
    start, step = int(metadata["start"]), int(metadata["step"])
    return range(start, start + step * frames, step)


def index_dtype(codebook_size: int) -> np.dtype:
    """The smallest type that a file keeps indices in."""
    return next(d for d in _DTYPES if codebook_size - 1 <= np.iinfo(d).max)


def _metadata(tokens: Tokens) -> dict[str, str]:
    fractions = {key: getattr(tokens, key) for key in ("fps", "time_base", "pixel_aspect")}
    whole = ("frames", "height", "width", "codebook_size", "quantizer", "model")
    return (
        FORMAT
        | {key: str(getattr(tokens, key)) for key in whole}
        | {key: f"{x.numerator}/{x.denominator}" for key, x in fractions.items()}
        | {"stride": "x".join(map(str, tokens.stride))}
        | ({"origin": str(tokens.origin)} if tokens.origin else {})
    )


def _safetensors(tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    # The library's own writer puts the metadata in another order on every run.
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values())


def _header(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
