"""A path or a pipe, opened for reading, and what to call it in a message."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import av
from av.container import InputContainer

from vqtok.errors import VqtokError

Source = str | os.PathLike[str] | BinaryIO


@contextmanager
def open_container(source: Source) -> Iterator[InputContainer]:
    """Open a file for reading; VqtokError says why it cannot be."""
    name = file_name(source)
    try:
        # "file:" keeps a colon in a name from being read as a network protocol.
        stream = hasattr(source, "read")
        container = av.open(_whole(source) if stream else f"file:{os.fspath(source)}")
    except OSError as error:
        raise VqtokError(f"{name}: {error.strerror.lower()}") from error
    except av.FFmpegError as error:
        empty = not hasattr(source, "read") and Path(source).stat().st_size == 0
        reason = "is empty" if empty else "is not a video that FFmpeg can read"
        raise VqtokError(f"{name} {reason}") from error
    with container:
        yield container


def _whole(stream: BinaryIO) -> BinaryIO:
    """The stream; a copy on disk if it is a pipe with MP4, whose index may come last."""
    if stream.seekable() or stream.peek(8)[4:8] != b"ftyp":
        return stream
    copy = TemporaryFile()  # noqa: SIM115 - it lives as long as the container that reads it
    shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


def file_name(source: Source) -> str:
    """What to call a source in a message."""
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        return name if isinstance(name, str) else "the input stream"  # a bare pipe has a number
    return str(source)


def seekable(source: Source) -> bool:
    """Whether reading can go back."""
    return source.seekable() if hasattr(source, "read") else Path(source).is_file()
