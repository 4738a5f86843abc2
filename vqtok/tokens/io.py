"""Token files: reading, writing, and a disk buffer for the indices of a clip being encoded."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from vqtok.errors import VqtokError, os_reason
from vqtok.files import atomic_write
from vqtok.tokens.format import Tokens, index_dtype, pack, unpack, validate

# Bytes of indices that are read into memory: 12 minutes of 256x456 at 25 frames/s. A larger array
# is mapped, which keeps a file open, and often a process may have only 1,024 open files.
MAX_IN_MEMORY = 2**24
_ROWS_PER_WRITE = 64  # latent frames, or timestamps, converted at a time
_INTEGERS = [np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]
_DTYPES = {f"{dtype.kind.upper()}{8 * dtype.itemsize}": dtype for dtype in _INTEGERS}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class IndexBuffer:
    """A temporary file of indices: memory does not grow with the length of the clip."""

    def __init__(self, codebook_size: int) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 - it lives as long as the buffer
        self._dtype = index_dtype(codebook_size)
        self._shape: tuple[int, ...] = ()  # of a latent frame
        self.latent_frames = 0

    def append(self, indices: np.ndarray) -> None:
        """Append indices (t h w) or (t h w codebooks)."""
        self._file.write(indices.astype(self._dtype).tobytes())
        self._shape = indices.shape[1:]
        self.latent_frames += len(indices)

    def finish(self) -> np.ndarray:
        """Close the buffer and return everything appended; as a memory map if it is large."""
        with self._file as file:
            file.flush()
            return _open_array(file, self._dtype, 0, (self.latent_frames, *self._shape))


def tokens_to_bytes(tokens: Tokens) -> bytes:
    """Return the content of a token file; the same tokens give the same bytes.

    Raises VqtokError if the tokens are inconsistent.
    """
    return b"".join(_serialize(tokens))


def write_tokens(target: str | os.PathLike[str] | BinaryIO, tokens: Tokens) -> None:
    """Write a token file to a path, atomically, or to a binary file such as a pipe.

    Raises VqtokError if the tokens are inconsistent.
    """
    pieces = _serialize(tokens)
    if isinstance(target, str | os.PathLike):
        with atomic_write(target) as temporary, temporary.open("wb") as file:
            file.writelines(pieces)
    else:
        target.writelines(pieces)
        target.flush()


def _serialize(tokens: Tokens) -> Iterator[bytes]:
    """Yield the file piece by piece.

    safetensors' own writer is not used: it orders the metadata differently on every run.
    """
    validate(tokens)
    metadata, tensors = pack(tokens)
    dtypes = {"timestamps": np.dtype("<i8"), "indices": index_dtype(tokens.codebook_size)}
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.size * dtypes[name].itemsize
        header[name] = {
            "dtype": _DTYPE_NAMES[dtypes[name]],
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name, array in tensors.items():
        for i in range(0, len(array), _ROWS_PER_WRITE):
            yield array[i : i + _ROWS_PER_WRITE].astype(dtypes[name]).tobytes()


def read_tokens(source: str | os.PathLike[str] | BinaryIO) -> Tokens:
    """Read a token file from a path or a binary file such as a pipe.

    The indices may have any integer dtype; they stay on disk if they take more than 16 MiB. Raises
    VqtokError, naming the file, if it is not a complete and consistent token file.
    """
    if not isinstance(source, str | os.PathLike):
        return _read_stream(source, "the input stream")
    if Path(source).is_file():
        return _read_file(source, str(source))
    try:
        with Path(source).open("rb") as stream:  # a named pipe
            return _read_stream(stream, str(source))
    except OSError as error:
        raise VqtokError(f"{source}: {os_reason(error)}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, unchecked; empty if the file is not one."""
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _read_stream(stream: BinaryIO, name: str) -> Tokens:
    with NamedTemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        copy.flush()
        return _read_file(copy.name, name)


def _read_file(path: str | os.PathLike[str], name: str) -> Tokens:
    tensors: dict[str, np.ndarray] = {}
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            keys = set(file.keys())
            if "timestamps" in keys:
                tensors["timestamps"] = file.get_tensor("timestamps")
    except OSError as error:
        raise VqtokError(f"{name}: {os_reason(error)}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        message = f"{name} is truncated or not a token file; encode the video again"
        raise VqtokError(message) from error
    if "indices" in keys:
        tensors["indices"] = _open_indices(path, name)
    return unpack(metadata, tensors, name)


def _open_indices(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """Return the indices of the file `name` at `path`, which safetensors has checked."""
    with Path(path).open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))["indices"]
        if entry["dtype"] not in _DTYPES:
            reason = f"the indices are {entry['dtype']}, not integers; save integers"
            raise VqtokError(f"{name}: {reason}")
        offset = 8 + size + entry["data_offsets"][0]
        return _open_array(file, _DTYPES[entry["dtype"]], offset, tuple(entry["shape"]))


def _open_array(file: BinaryIO, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the read-only array at an offset of a file: in memory if it is small, else mapped."""
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_IN_MEMORY:
        return np.memmap(file, dtype, "r", offset, shape)
    file.seek(offset)
    return np.frombuffer(file.read(size), dtype).reshape(shape)
