"""What a video is read from: a path, a binary file or a pipe, as FFmpeg sees it."""

import io
import os
import select
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from vqtok.errors import INTERRUPTS, UsageError
from vqtok.interrupt import stopping

PathOrFile = str | os.PathLike[str] | BinaryIO

# What files begin with that cannot be read from a pipe: the type of the first box of an MP4 or
# QuickTime file (old ones have no ftyp), and the signatures of TIFF and OpenEXR.
_HEAD = 65536  # bytes
_POLL_INTERVAL = 200  # milliseconds
_QUICKTIME_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_SIGNATURES = (b"II*\0", b"MM\0*", b"v/1\x01")
# What the head of a JPEG contains if more follows the picture, such as a gain map or a video. Only
# from a file with this suffix does FFmpeg read the picture alone.
_JPEG_ATTACHMENTS = (b"MPF\0", b"hdrgm", b"MotionPhoto")


class InputFile:
    """What FFmpeg reads instead of a path, so that it opens nothing by name.

    head: the first bytes, up to 64 KiB.
    name: a made-up name with the suffix of the source, by which FFmpeg recognizes some formats; it
        has no path and no pattern. Empty for a pipe.
    """

    def __init__(self, file: BinaryIO, head: bytes, name: str) -> None:
        self.head, self.name = head, name
        self._file, self._is_seekable = file, is_seekable(file)
        # `read` of a buffered pipe would block until it has all bytes.
        self._read: Callable[[int], bytes] = file.read if self._is_seekable else file.read1  # type: ignore[attr-defined]
        self.tell = file.tell
        self._interrupt: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            return self._read(size)
        except INTERRUPTS as interrupt:
            # FFmpeg is told that the file ends: PyAV would drop the exception, or exit.
            self._interrupt = interrupt
            return b""

    def raise_interrupt(self) -> None:
        """Raise what interrupted a read, such as Ctrl-C, if anything did."""
        if self._interrupt is not None:
            raise self._interrupt

    def seekable(self) -> bool:
        return self._is_seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Return the new position; -1 if there is no such position, as damaged files ask for."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            # PyAV would raise the error later, in a call that has nothing to do with it.
            return -1


def open_source(source: PathOrFile, stack: ExitStack) -> InputFile:
    """Open a source for reading. The stack closes what is opened here.

    A pipe that holds a format which FFmpeg cannot read as it comes is copied to a temporary file
    without a name, so that nothing is left behind however the process ends.
    """
    file: BinaryIO
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        buffering = -1 if path.is_fifo() or path.is_char_device() else 0
        file = stack.enter_context(path.open("rb", buffering))
    elif isinstance(source, io.TextIOBase) or not hasattr(source, "read"):
        kind = type(source).__name__
        raise UsageError(f"a video is read from a path or a binary file, not from {kind}")
    else:
        file = source
    if is_seekable(file):
        position, head = file.tell(), file.read(_HEAD)
        file.seek(position)
        suffix = Path(display_name(source)).suffix
    else:
        pipe = io.BufferedReader(_Pipe(file), _HEAD)
        head, suffix, file = pipe.peek(_HEAD), "", pipe
        needs_seek = head[4:8] in _QUICKTIME_BOXES or head.startswith(_SIGNATURES)
        if not needs_seek and not _is_jpeg_with_attachments(head):
            return InputFile(file, head, "")
        file = stack.enter_context(TemporaryFile(buffering=0))  # noqa: SIM115 - the stack closes it
        shutil.copyfileobj(pipe, file)
        file.seek(0)
    if _is_jpeg_with_attachments(head):
        suffix = ".jpg"
    return InputFile(file, head, f"file{suffix}" if suffix[1:].isalnum() else "file")


def _is_jpeg_with_attachments(head: bytes) -> bool:
    return head.startswith(b"\xff\xd8\xff") and any(mark in head for mark in _JPEG_ATTACHMENTS)


class _Pipe(io.RawIOBase):
    """A raw stream of an object that may have a `read` method and nothing else.

    It ends when the process is asked to stop.
    """

    def __init__(self, source: BinaryIO) -> None:
        # The `read` of a buffered stream would block until it has all bytes.
        self._read: Callable[[int], bytes] = getattr(source, "read1", source.read)
        self._poll: select.poll | None = None
        with suppress(OSError, AttributeError):
            descriptor = source.fileno()
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
        self._is_new = True  # `source` may hold bytes already, which `poll` does not know of

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while self._poll and not self._is_new and not self._poll.poll(_POLL_INTERVAL):
            if stopping.is_set():
                return 0
        self._is_new = False
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def display_name(source: PathOrFile) -> str:
    """Return the name of a source for messages."""
    if isinstance(source, str | os.PathLike):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the input stream"  # a pipe is named by its number


def is_seekable(source: PathOrFile) -> bool:
    """Return True for a regular file and for a seekable file object."""
    if isinstance(source, str | os.PathLike):
        return Path(source).is_file()
    try:
        return source.seekable()
    except AttributeError:  # an object that has only `read`, or a member of a tar stream
        return False
