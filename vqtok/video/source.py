"""A path or a pipe, opened for reading, and what to call it in a message."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from types import SimpleNamespace
from typing import BinaryIO

import av
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer

from vqtok.errors import VqtokError

Source = str | os.PathLike[str] | BinaryIO


# Decoders of FFmpeg that NVDEC can help, and formats that it gives with the same pixels.
_HARDWARE = {"h264", "hevc", "vp9"}, {"yuv420p", "yuv420p10le"}


@contextmanager
def open_container(source: Source, hardware: str | None = None) -> Iterator[InputContainer]:
    """Open a file for reading; VqtokError says why it cannot be.

    hardware: what decodes the video of a file if it is there and can, such as cuda or cuda:1.
    """
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
    if hardware is not None and not stream:
        container = _accelerated(container, hardware)
    with container:
        yield container


def _accelerated(container: InputContainer, hardware: str) -> InputContainer:
    """The same file, open for decoding by hardware; as it is where that does not go."""
    kind, _, number = hardware.partition(":")
    video = container.streams.best("video")
    codecs, formats = _HARDWARE
    if kind not in hwdevices_available() or video is None or video.codec_context is None:
        return container
    if video.codec_context.name not in codecs or video.codec_context.pix_fmt not in formats:
        return container
    try:
        faster = av.open(container.name, hwaccel=HWAccel(kind, number or None))
    except av.FFmpegError:  # no such device, or no driver
        return container
    container.close()
    return faster


def cut_short(path: Source, format: str) -> bool:
    """Whether a file lacks its end: a GIF its last byte, a Matroska file what its header counts.

    A Matroska file that was written as a stream does not say how long it is.
    """
    with Path(path).open("rb") as file:
        head, size = file.read(4096), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        tail = file.read()
    if format == "gif":
        return not tail.rstrip(b"\0\r\n").endswith(b";")
    begin = head.find(b"\x18\x53\x80\x67") + 4  # the segment: its number, its length, its content
    if not format.startswith("matroska") or begin < 4 or len(head) < begin + 8:
        return False
    width = 9 - head[begin].bit_length()  # of the length in bytes: one more than leading zero bits
    unknown = (1 << 7 * width) - 1
    length = int.from_bytes(head[begin : begin + width], "big") & unknown
    return length != unknown and begin + width + length > size


def _whole(stream: BinaryIO) -> BinaryIO | SimpleNamespace:
    """The stream; a copy on disk if it is a pipe with MP4, whose index may come last."""
    if stream.seekable():
        return stream
    if stream.peek(8)[4:8] != b"ftyp":
        return SimpleNamespace(read=stream.read1)  # `read` would wait for all it was asked for
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
