"""The token file: safetensors with `indices`, and all that is needed to make the video again.

Metadata, all strings: format and version; frames, height, width of the clip; fps, time_base and
pixel_aspect as fractions like 30000/1001; codebook_size, quantizer, stride as 4x8x8 (time x height
x width) and model, the SHA-256 of the weights. Timestamps that are `start + i * step` are these two
numbers; others are an int64 tensor `timestamps` (t). origin, 0 if it is not there, is the timestamp
at which playing begins.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from vqtok.errors import VqtokError
from vqtok.files import atomic_write

FORMAT = {"format": "vqtok-tokens", "version": "1"}
PIECE = 64  # latent frames written at a time
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


class IndexBuffer:
    """Indices on disk while a clip is being encoded: memory does not grow with its length."""

    def __init__(self, codebook_size: int) -> None:
        self._file, self._dtype = TemporaryFile(), index_dtype(codebook_size)  # noqa: SIM115
        self._rest: tuple[int, ...] = ()
        self.frames = 0  # latent frames so far

    def append(self, part: np.ndarray) -> None:
        """Add the next integers (t h w) or (t h w codebooks)."""
        self._file.write(part.astype(self._dtype).tobytes())
        self.frames, self._rest = self.frames + len(part), part.shape[1:]

    def indices(self) -> np.ndarray:
        """All that was added; it stays on disk."""
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", shape=(self.frames, *self._rest))


def to_bytes(tokens: Tokens) -> bytes:
    """The content of a token file; the same tokens give the same bytes.

    Raises VqtokError if the tokens contradict themselves.
    """
    return b"".join(_pieces(tokens))


def write(target: str | os.PathLike[str] | BinaryIO, tokens: Tokens) -> None:
    """Write a token file, whole or not at all, or write it to a binary file, a pipe too."""
    pieces = _pieces(tokens)
    if hasattr(target, "write"):
        target.writelines(pieces)
        target.flush()
        return
    with atomic_write(target) as temporary, temporary.open("wb") as file:
        file.writelines(pieces)


def labels(path: Path) -> dict[str, str]:
    """The metadata of a token file, as it stands there; nothing if the file is none."""
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def read(source: str | os.PathLike[str] | BinaryIO) -> Tokens:
    """Read a token file from a path or a binary file; a pipe will do. The indices stay on disk.

    Raises VqtokError, naming the file, for anything but a whole and consistent one.
    """
    if not hasattr(source, "read"):
        if Path(source).is_file():
            return _read(source, str(source))
        try:
            with Path(source).open("rb") as pipe:
                return _read_copy(pipe, str(source))
        except OSError as error:
            raise VqtokError(f"{source}: {error.strerror.lower()}") from error
    return _read_copy(source, "the input stream")


def _read_copy(pipe: BinaryIO, name: str) -> Tokens:
    with NamedTemporaryFile() as copy:
        shutil.copyfileobj(pipe, copy)
        copy.flush()
        return _read(copy.name, name)


def _read(path: str | os.PathLike[str], name: str) -> Tokens:
    tensors: dict[str, np.ndarray] = {}
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            present = set(file.keys())
            if "timestamps" in present:
                tensors["timestamps"] = file.get_tensor("timestamps")
        if "indices" in present:
            tensors["indices"] = _on_disk(path, "indices")
    except OSError as error:
        raise VqtokError(f"{name}: {(error.strerror or str(error)).lower()}") from error
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


def _pieces(tokens: Tokens) -> Iterator[bytes]:
    """The file, a part at a time. The library's own writer orders metadata anew on every run."""
    _check(tokens, "tokens")
    metadata, tensors = _metadata(tokens), {}
    times = np.asarray(tokens.timestamps, "<i8")
    steps = np.diff(times)
    if (steps == steps[:1]).all():
        metadata |= {"start": str(times[0]), "step": str(steps[0] if len(steps) else 1)}
    else:
        tensors["timestamps"] = times
    tensors["indices"] = tokens.indices
    dtypes = {"timestamps": times.dtype, "indices": index_dtype(tokens.codebook_size)}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.size * dtypes[name].itemsize
        header[name] = {
            "dtype": _NAMES[dtypes[name]],
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, array in tensors.items():
        for i in range(0, len(array), PIECE):
            yield array[i : i + PIECE].astype(dtypes[name]).tobytes()


def _on_disk(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """A tensor of a file that the library has found whole."""
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    dtype = next(d for d, n in _NAMES.items() if n == entry["dtype"])
    shape, begin = tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
    return np.memmap(path, dtype, "r", begin, shape) if all(shape) else np.empty(shape, dtype)
