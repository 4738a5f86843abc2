"""Open a path or a binary file as an FFmpeg container."""

import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any, BinaryIO

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from vqtok.errors import UsageError, VqtokError, os_reason
from vqtok.video.images import is_heif_picture

PathOrFile = str | os.PathLike[str] | BinaryIO

# Codecs that NVDEC decodes to the same pixels as FFmpeg's software decoder, in these formats.
_HWACCEL_CODECS = {"h264", "hevc", "vp9"}
_HWACCEL_PIX_FMTS = {"yuv420p", "yuv420p10le"}

# What files begin with that cannot be read from a pipe: the type of the first box of an MP4 or
# QuickTime file (old ones have no ftyp), and the signatures of TIFF and OpenEXR.
_HEAD = 65536  # bytes
_QUICKTIME_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_SIGNATURES = (b"II*\0", b"MM\0*", b"v/1\x01")
# What the head of a JPEG contains if more follows the picture, such as a gain map or a video. Only
# from a file with this suffix does FFmpeg read the picture alone.
_JPEG_ATTACHMENTS = (b"MPF\0", b"hdrgm", b"MotionPhoto")


@contextmanager
def open_container(source: PathOrFile, hardware: str | None = None) -> Iterator[InputContainer]:
    """Open a container for reading.

    hardware: a device that decodes the video if it is available and supports the codec, such as
        cuda or cuda:1. Only files on disk are decoded by it.

    Raises VqtokError, naming the file and the reason.
    """
    name = display_name(source)
    with ExitStack() as stack:
        try:
            container = av.open(_open_input(source, stack), mode="r", metadata_errors="replace")
        except OSError as error:
            raise VqtokError(f"{name}: {os_reason(error)}") from error
        except av.FFmpegError as error:
            reason = "is empty" if _is_empty(source) else "is not a video that FFmpeg can read"
            raise VqtokError(f"{name} {reason}") from error
        if hardware is not None and isinstance(source, str | os.PathLike):
            container = _reopen_with_hwaccel(container, hardware)
        yield stack.enter_context(container)


def _reopen_with_hwaccel(container: InputContainer, hardware: str) -> InputContainer:
    """Return the same file opened for hardware decoding, or `container` if that is impossible."""
    device_type, _, index = hardware.partition(":")
    stream = container.streams.best("video")
    if is_heif_picture(container):  # each tile would have a decoder of its own
        return container
    if device_type not in hwdevices_available() or not isinstance(stream, VideoStream):
        return container
    context = stream.codec_context
    if context is None or context.name not in _HWACCEL_CODECS:
        return container
    if context.pix_fmt not in _HWACCEL_PIX_FMTS:
        return container
    try:
        hwaccel = HWAccel(device_type, index or None)
        accelerated = av.open(container.name, mode="r", hwaccel=hwaccel, metadata_errors="replace")
    except av.FFmpegError:  # no such device, or no driver
        return container
    container.close()
    return accelerated


def is_truncated(path: str | os.PathLike[str], format_name: str) -> bool:
    """Return True if a GIF lacks its trailer or a Matroska file is shorter than its header says.

    A Matroska file written as a stream does not store its length and is never called truncated.
    Other formats are not checked.
    """
    with Path(path).open("rb") as file:
        head, size = file.read(4096), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        tail = file.read()
    if format_name == "gif":
        return not tail.rstrip(b"\0\r\n").endswith(b";")
    if not format_name.startswith("matroska"):
        return False
    length_offset = head.find(b"\x18\x53\x80\x67") + 4  # the length follows the ID of the Segment
    if length_offset < 4 or len(head) < length_offset + 8:
        return False
    # An EBML length takes one byte more than its leading zero bits; all ones mean "unknown".
    width = 9 - head[length_offset].bit_length()
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[length_offset : length_offset + width], "big") & unknown
    return length != unknown and length_offset + width + length > size


def _open_input(source: PathOrFile, stack: ExitStack) -> Any:
    """Return what av.open should open: a URL, or an object with a `read` method.

    The stack closes what is opened here: named pipes, and copies on disk of files that FFmpeg
    cannot read as they come.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not (path.is_fifo() or path.is_char_device() or _needs_jpeg_suffix(path)):
            return f"file:{path}"  # without "file:", a colon would look like a protocol
        source = stack.enter_context(path.open("rb"))
    if isinstance(source, io.TextIOBase) or not hasattr(source, "read"):
        kind = type(source).__name__
        raise UsageError(f"a video is read from a path or a binary file, not from {kind}")
    if is_seekable(source):
        position, head = source.tell(), source.read(_HEAD)
        source.seek(position)
        if not _is_jpeg_with_attachments(head):
            return source
    else:
        source = io.BufferedReader(_Pipe(source), _HEAD)
        head = source.peek(_HEAD)
        needs_seek = head[4:8] in _QUICKTIME_BOXES or head.startswith(_SIGNATURES)
        if not needs_seek and not _is_jpeg_with_attachments(head):
            # `read` would block until the buffer is full.
            return SimpleNamespace(read=source.read1)
    suffix = ".jpg" if _is_jpeg_with_attachments(head) else None
    copy = NamedTemporaryFile(suffix=suffix)  # noqa: SIM115 - the stack closes it
    stack.enter_context(copy)
    shutil.copyfileobj(source, copy)
    copy.flush()
    return f"file:{copy.name}"


def _needs_jpeg_suffix(path: Path) -> bool:
    if path.suffix.lower() in (".jpg", ".jpeg", ".mpo") or not path.is_file():
        return False
    with path.open("rb") as file:
        return _is_jpeg_with_attachments(file.read(_HEAD))


def _is_jpeg_with_attachments(head: bytes) -> bool:
    return head.startswith(b"\xff\xd8\xff") and any(mark in head for mark in _JPEG_ATTACHMENTS)


class _Pipe(io.RawIOBase):
    """A raw stream of an object that may have a `read` method and nothing else."""

    def __init__(self, source: BinaryIO) -> None:
        # The `read` of a buffered stream would block until it has all bytes.
        self._read: Callable[[int], bytes] = getattr(source, "read1", source.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
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


def _is_empty(source: PathOrFile) -> bool:
    return (
        isinstance(source, str | os.PathLike)
        and is_seekable(source)
        and Path(source).stat().st_size == 0
    )


def start_seconds(stream: Stream) -> Fraction | None:
    """Return the first presentation time of a stream in seconds, or None if it is unknown."""
    if stream.start_time is None or stream.time_base is None:
        return None
    return stream.start_time * stream.time_base
