"""Token files: reading, writing, and a disk buffer for the indices of a clip being encoded."""

import math
import os
import stat
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np

from vqtok.atomic import atomic_write
from vqtok.errors import VqtokError, os_reason
from vqtok.safetensors_io import (
    DTYPES,
    Header,
    check_size,
    read_array,
    read_header,
    read_pieces,
    serialize,
)
from vqtok.tokens.format import Tokens, index_dtype, validate
from vqtok.tokens.metadata import check_values, pack, unpack

# Bytes of indices that are read into memory: 12 minutes of 256x456 at 25 frames/s. A larger array
# is mapped, which keeps a file open, and often a process may have only 1,024 open files.
MAX_IN_MEMORY = 2**24


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
    """Yield the file piece by piece."""
    validate(tokens)
    metadata, tensors = pack(tokens)
    yield from serialize(metadata, tensors, {"indices": index_dtype(tokens.codebook_size)})


def read_tokens(source: str | os.PathLike[str] | BinaryIO) -> Tokens:
    """Read a token file from a path or a binary file such as a pipe.

    The indices may have any integer dtype; they stay on disk if they take more than 16 MiB. Raises
    VqtokError, naming the file, if it is not a complete and consistent token file.
    """
    if not isinstance(source, str | os.PathLike):
        with _explain(name := "the input stream"):
            return _read_stream(source, name)
    with _explain(name := str(source)), Path(source).open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a named pipe or a device
            return _read_stream(file, name)
        return read_tokens_at(file, 0, file.seek(0, 2), name)


def read_tokens_at(file: BinaryIO, offset: int, size: int, name: str) -> Tokens:
    """Read a token file of `size` bytes that lies at an offset of a file on disk, such as a tar.

    name: of the token file, for messages.
    Otherwise as `read_tokens`.
    """
    with _explain(name):
        header, settings = read_header_at(file, offset, size, name)
        return _read_values(file, header, offset + header.start, settings, name)


def read_settings(path: Path) -> Tokens:
    """Read the header of a token file: its tokens, but with zeros for indices and no timestamps.

    Raises VqtokError, naming the file, if it is not a complete token file with valid settings.
    """
    return read_header_of(path)[1]


def read_header_of(path: Path) -> tuple[Header, Tokens]:
    """Return where the tensors of a token file lie in it, and what `read_settings` returns."""
    with _explain(str(path)), path.open("rb") as file:
        return read_header_at(file, 0, file.seek(0, 2), str(path))


def read_header_at(file: BinaryIO, offset: int, size: int, name: str) -> tuple[Header, Tokens]:
    """Read the header of a token file at an offset, as `read_header_of` and `read_tokens_at`."""
    with _explain(name):
        file.seek(offset)
        header = read_header(file)
        settings = unpack(header, name)
        check_size(header, size)
        if file.seek(0, 2) < offset + size:
            raise ValueError("the file around it is truncated")
        return header, settings


@contextmanager
def _explain(name: str) -> Iterator[None]:
    """Raise errors of reading as a VqtokError that names the file."""
    try:
        yield
    except VqtokError:
        raise
    except OSError as error:
        raise VqtokError(f"{name}: {os_reason(error)}") from error
    except ValueError as error:
        message = f"{name} is truncated or not a token file; encode the video again"
        raise VqtokError(message) from error


def _read_stream(stream: BinaryIO, name: str) -> Tokens:
    header = read_header(stream)
    settings = unpack(header, name)  # before anything is copied
    with TemporaryFile() as copy:  # has no name, so nothing is left of it if the process dies
        copy.writelines(read_pieces(stream, header.data_size))
        if stream.read(1):
            raise ValueError("something follows the tensors")
        copy.flush()
        return _read_values(copy, header, 0, settings, name)


def _read_values(file: BinaryIO, header: Header, start: int, tokens: Tokens, name: str) -> Tokens:
    """Return tokens with the indices and timestamps of a file whose data begin at `start`."""
    indices = header.tensors["indices"]
    offset, dtype = start + indices.begin, DTYPES[indices.dtype]
    tokens = replace(tokens, indices=_open_array(file, dtype, offset, indices.shape))
    if "timestamps" in header.tensors:
        times = read_array(file, header.tensors["timestamps"], start)
        tokens = replace(tokens, timestamps=array("q", times.astype(np.int64).tobytes()))
    check_values(tokens, name)
    return tokens


def _open_array(file: BinaryIO, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the read-only array at an offset of a file: in memory if it is small, else mapped."""
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_IN_MEMORY:
        return np.memmap(file, dtype, "r", offset, shape)
    file.seek(offset)
    return np.frombuffer(file.read(size), dtype).reshape(shape)
