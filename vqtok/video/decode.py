"""Decode the frames of a video stream in presentation order and count the damaged ones."""

import os
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vqtok.errors import VqtokError
from vqtok.video.source import PathOrFile, display_name, is_seekable, is_truncated, open_container

# Kinds of damage, worded for the user.
SKIPPED = "{n} damaged frame{s} skipped"
KEPT = "{n} damaged frame{s} kept"
TRUNCATED = "the file is truncated"

# The formats in which PyAV downloads frames from hardware.
_DOWNLOADED_FORMATS = {"nv12", "p010le"}

# More packets than any decoder holds back: one per thread plus those of reordered frames.
_MAX_DECODER_DELAY = 64


class Decoder:
    """Decodes the video stream of an open container.

    source: what the container was opened from; a file on disk may be opened once more.

    Raises VqtokError if there is no video stream, or no decoder for it.

    stream, time_base: the video stream and its seconds per tick.
    stores_pts: False for containers without presentation timestamps (AVI).
    backend: "in software" or "in hardware"; final from the first frame on.
    damage: the number of times each of SKIPPED, KEPT and TRUNCATED has occurred.
    """

    def __init__(self, source: PathOrFile, container: InputContainer) -> None:
        self._container, self._format = container, container.format.name
        self.stream = _best_video_stream(container, display_name(source))
        self.time_base = self.stream.time_base or Fraction(1, av.time_base)
        self.stores_pts = self._format != "avi"
        self.backend = "in software"
        self.damage: Counter[str] = Counter()
        self._hardware = self.stream.codec_context.is_hwaccel
        # The index of an AVI file calls empty packets keyframes.
        self._seekable = is_seekable(source) and self._format != "avi"
        # The file to open again, if that is possible.
        self._path = source if isinstance(source, str | os.PathLike) and self._seekable else None
        # Frame threads are fast but hide errors at the end of the stream: see _decode_tail.
        self._frame_threads = self._path is not None and not self._hardware
        self.stream.thread_type = "AUTO" if self._frame_threads else "SLICE"
        self._expose_errors()

    def _expose_errors(self) -> None:
        """Make the codec report damage that it would otherwise hide."""
        context = self.stream.codec_context
        if context.name == "hevc":
            # Without this flag, all frames that refer to a lost one are dropped silently.
            context.flags |= Flags.output_corrupt
        if self._format in ("image2", "jpeg_pipe"):
            # Without this option, the missing part of a truncated JPEG is filled with gray.
            context.options = {"err_detect": "explode"}

    def seek(self, pts: int) -> None:
        """Seek to a keyframe before `pts`; stay at the current position if that is impossible."""
        # Without an index, FFmpeg seeks to any packet, not to a keyframe.
        if self._seekable and self._format not in ("mpegts", "mpeg"):
            # If seeking fails, decoding from the beginning gives the same frames.
            with suppress(av.FFmpegError):
                self._container.seek(pts, stream=self.stream)

    def timestamp(self, frame: VideoFrame) -> int | None:
        """Return when a frame is presented, in ticks of the stream, or None if unknown."""
        # FFmpeg's guess for AVI is wrong for packed B-frames. But decoded frames come in the order
        # of their decoding timestamps (the last few have none).
        return frame.pts if self.stores_pts else frame.dts

    def frames(self) -> Iterator[VideoFrame]:
        """Yield every frame that can be decoded."""
        last_pts: int | None = None
        pending_errors = 0  # since the last decoded frame
        sent_pts: deque[int] = deque(maxlen=_MAX_DECODER_DELAY)
        for packet, frames in self._decode_packets():
            if packet is not None and packet.pts is not None and not packet.is_discard:
                sent_pts.append(packet.pts)
            if packet is not None and frames is None:
                pending_errors += 1
                self.damage[SKIPPED] += 1
            for frame in frames or ():
                last_pts, pending_errors = last_pts if frame.pts is None else frame.pts, 0
                yield self._inspect(frame)
        if self._path is None:
            return
        if is_truncated(self._path, self._format):
            self.damage[TRUNCATED] = 1
        # The codec has been opened by now and knows its number of threads.
        if self._frame_threads and sent_pts and self.stream.codec_context.thread_count > 1:
            end = max(sent_pts)
            if last_pts is None or last_pts < end:
                yield from self._decode_tail(self._path, last_pts, end, pending_errors)

    def _decode_tail(
        self, path: str | os.PathLike[str], last_pts: int | None, end: int, counted_errors: int
    ) -> Iterator[VideoFrame]:
        """Yield the frames after `last_pts` up to `end`, decoded again without frame threads.

        PyAV stops flushing a decoder at the first error, and the good frames after it are lost.

        counted_errors: the number of errors after `last_pts` that are in `damage` already.
        """
        start = end - 2**62 if last_pts is None else last_pts
        with open_container(path) as container:
            decoder = Decoder(path, container)
            decoder.stream.thread_type = "SLICE"
            if last_pts is not None:
                decoder.seek(last_pts)
            for packet, frames in decoder._decode_packets():
                if packet is not None and frames is None and (packet.pts or 0) > start:
                    self.damage[SKIPPED] += counted_errors <= 0
                    counted_errors -= 1
                for frame in frames or ():
                    if frame.pts is not None and start < frame.pts <= end:
                        yield self._inspect(frame)

    def _inspect(self, frame: VideoFrame) -> VideoFrame:
        # If the hardware cannot decode a stream after all, frames come in the stream's own format.
        if self._hardware and frame.format.name in _DOWNLOADED_FORMATS:
            self.backend = "in hardware"
        self.damage[KEPT] += frame.is_corrupt
        return frame

    def _decode_packets(self) -> Iterator[tuple[Packet | None, list[VideoFrame] | None]]:
        """Yield each packet and the frames decoded after it was sent, None after an error.

        The last packet is None and flushes the decoder.
        """
        for packet in self._packets():
            frames = None
            with suppress(av.FFmpegError):
                frames = self.stream.decode(packet)
            yield packet, frames

    def _packets(self) -> Iterator[Packet | None]:
        try:
            for packet, following in pairwise(self._container.demux(self.stream)):
                if packet.is_corrupt and following.size == 0:  # cut off by the end of the file
                    self.damage[TRUNCATED] = 1
                elif packet.size:  # an empty packet repeats the frame before it
                    yield packet
        except av.FFmpegError:
            self.damage[TRUNCATED] = 1
        yield None


def _best_video_stream(container: InputContainer, name: str) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise VqtokError(f"{name} has no video stream")
    if stream.codec_context is None:
        raise VqtokError(f"{name} uses a video codec that FFmpeg cannot decode")
    return stream
