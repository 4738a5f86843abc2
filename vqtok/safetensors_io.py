"""safetensors files, read with distrust and written so that equal tensors give equal bytes.

The safetensors package does neither: its writer orders the metadata differently on every run, and
its reader maps the file, so it needs a path.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vqtok.atomic import atomic_write
from vqtok.untrusted import parse_json, quote, reading

# Bytes of the JSON. The format allows 100 MB, of which Python would make gigabytes of objects;
# the largest of vqtok's own files, the state of a training run, has some 100 KB.
MAX_HEADER = 2**22
MAX_RANK = 16  # dimensions of a tensor
_PIECE = 2**20  # bytes read or converted at a time

_NUMBERS = [np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]
_NUMBERS += [np.dtype(f"<f{size}") for size in (2, 4, 8)]
DTYPES = {f"{dtype.kind.upper()}{8 * dtype.itemsize}": dtype for dtype in _NUMBERS}
DTYPES["BOOL"] = np.dtype("?")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: begin is its first byte, counted from the first tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    """What a file says about itself. Its tensors fill its data without gaps and overlaps.

    start: offset of the data in the file. data_size: bytes of the data.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    start: int
    data_size: int


def read_header(file: BinaryIO) -> Header:
    """Read the header of a safetensors file, and not a byte more.

    Raises ValueError, with a short reason, if it is not one. Whether the data follow is left to
    the caller.
    """
    size = int.from_bytes(read_exactly(file, 8), "little")
    if not 2 <= size <= MAX_HEADER:
        raise ValueError("it does not begin as a safetensors file does")
    header = parse_json(read_exactly(file, size))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())):
        raise ValueError("its metadata are not strings")
    if not all(name.isprintable() for name in header):
        raise ValueError("a tensor has a name that cannot be printed")
    tensors = {name: _parse_info(entry) for name, entry in header.items()}
    end = 0
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.nbytes)):
        if info.begin != end:
            raise ValueError("its tensors overlap or leave gaps")
        end += info.nbytes
    return Header(metadata, tensors, 8 + size, end)


def _parse_info(entry: Any) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a tensor has no dtype, shape or offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"a tensor has the dtype {quote(dtype)}")
    if not (_are_counts(shape, MAX_RANK) and _are_counts(offsets, 2) and len(offsets) == 2):
        raise ValueError("a shape or an offset is not valid")
    info = TensorInfo(dtype, tuple(shape), offsets[0])
    if offsets != [info.begin, info.begin + info.nbytes]:
        raise ValueError("the size of a tensor is not that of its shape")
    return info


def _are_counts(values: Any, most: int) -> bool:
    """Return whether this is a list of at most `most` numbers that sizes can have."""
    is_short = isinstance(values, list) and len(values) <= most
    return is_short and all(type(value) is int and 0 <= value < 2**63 for value in values)


def read_exactly(file: BinaryIO, size: int) -> bytes:
    """Return the next `size` bytes; raises ValueError if there are fewer."""
    return b"".join(read_pieces(file, size))


def read_pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes piece by piece; raises ValueError if there are fewer."""
    while size:
        piece = file.read(min(size, _PIECE))
        if not piece:
            raise ValueError("it is truncated")
        size -= len(piece)
        yield piece


def read_array(file: BinaryIO, info: TensorInfo, start: int) -> np.ndarray:
    """Return a tensor of a file whose data begin at `start`.

    Raises ValueError if the file ends before it.
    """
    file.seek(start + info.begin)
    data = bytearray()
    for piece in read_pieces(file, info.nbytes):
        data += piece
    return np.frombuffer(data, DTYPES[info.dtype]).reshape(info.shape)


def read_file(path: Path, kind: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata and the tensors of a file.

    kind: what the file should be, for the message, such as "a tokenizer file".
    Raises VqtokError, naming the file, if it cannot be read or is not a complete safetensors file.
    """
    with reading(path, f"is damaged or not {kind}"), path.open("rb") as file:
        header = read_header(file)
        check_size(header, file.seek(0, 2))
        tensors = header.tensors.items()
        return header.metadata, {n: read_array(file, i, header.start) for n, i in tensors}


def check_size(header: Header, size: int) -> None:
    """Raise ValueError if a file of `size` bytes does not end where its header says."""
    if size != header.start + header.data_size:
        raise ValueError("it is truncated, or something follows it")


def serialize(
    metadata: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    dtypes: Mapping[str, np.dtype] | None = None,
) -> Iterator[bytes]:
    """Yield a safetensors file piece by piece; equal arguments give equal bytes.

    dtypes: what to convert tensors to, by name; others keep theirs.
    """
    targets = {name: array.dtype.newbyteorder("<") for name, array in tensors.items()}
    targets |= dtypes or {}
    # As the safetensors package does: the larger its elements, the earlier, so all are aligned.
    names = sorted(tensors, key=lambda name: (-targets[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].size * targets[name].itemsize
        header[name] = {
            "dtype": _NAMES[targets[name]],
            "shape": tensors[name].shape,
            "data_offsets": [begin, end],
        }
    text = dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        array = np.atleast_1d(tensors[name])
        rows = max(1, _PIECE * len(array) // max(1, array.nbytes))
        for i in range(0, len(array), rows):
            yield array[i : i + rows].astype(targets[name], copy=False).tobytes()


def write_file(
    path: str | Path, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write a file atomically; equal metadata and tensors give equal bytes."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.writelines(serialize(metadata, tensors))
