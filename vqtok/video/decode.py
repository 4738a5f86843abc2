"""The frames of a source in the order they are shown, and what was lost on the way."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vqtok.errors import VqtokError
from vqtok.video.source import Source, cut_short, file_name, open_container, seekable

SKIPPED = "{n} damaged frame{s} skipped"
SHOWN = "{n} frame{s} shown damaged"
BREAKS_OFF = "the file breaks off"

_DOWNLOADED = {"nv12", "p010le"}  # formats that frames of hardware come in

# Packets; more than a decoder holds back: one for each thread, and those of frames to reorder.
_TAIL = 64


class Decoder:
    """Decodes the video of an open container.

    source: what the container was opened from; a file may be opened once more.
    stream: the video in it.
    avi: whether timestamps may be missing though nothing is wrong.
    damage: how often each of SKIPPED, SHOWN and BREAKS_OFF happened so far.
    where: frames are decoded, in words; known from the first on.
    """

    def __init__(self, source: Source, container: InputContainer) -> None:
        self.damage: Counter[str] = Counter()
        self._source, self._container = source, container
        # AVI stores no presentation times, and its index calls empty packets keyframes.
        self.avi = container.format.name == "avi"
        self._seekable = seekable(source) and not self.avi
        self.stream = _video(container, file_name(source))
        self.where, self._hardware = "in software", self.stream.codec_context.is_hwaccel
        self._on_disk = self._seekable and not hasattr(source, "read")
        # A thread for each frame is fast, but hides errors at the end: see _rest.
        self._ahead = self._on_disk and not self._hardware
        self.stream.thread_type = "AUTO" if self._ahead else "SLICE"
        if self.stream.codec_context.name == "hevc":
            # Else every frame that refers to a lost one would be left out without a word.
            self.stream.codec_context.flags |= Flags.output_corrupt
        if container.format.name in ("image2", "jpeg_pipe"):
            # A photograph that is cut short would come out grey in part, without a word.
            self.stream.codec_context.options = {"err_detect": "explode"}

    def seek(self, time: int) -> None:
        """Go on from a keyframe before `time`, or from here if the source cannot seek."""
        # In a file without an index FFmpeg lands on any packet, not on a keyframe.
        if self._seekable and self._container.format.name not in ("mpegts", "mpeg"):
            # Where seeking fails, decoding from the beginning gives the same frames.
            with suppress(av.FFmpegError):
                self._container.seek(time, stream=self.stream)

    def time(self, frame: VideoFrame) -> int | None:
        """When a frame is shown, in ticks of the stream; None if the file does not tell."""
        # FFmpeg's guess for AVI is wrong where B-frames are packed, but frames come out in the
        # order of their decoding times (the last few have none).
        return frame.dts if self.avi else frame.pts

    def frames(self) -> Iterator[VideoFrame]:
        """Every frame that can be decoded."""
        last, refused = None, 0  # time of the last frame, errors since then
        tail: deque[int] = deque(maxlen=_TAIL)  # times of the packets sent
        for packet, frames in self._outcomes():
            if packet is not None and packet.pts is not None and not packet.is_discard:
                tail.append(packet.pts)
            if frames is None:
                refused += packet is not None
                self.damage[SKIPPED] += packet is not None
            for frame in frames or ():
                last, refused = last if frame.pts is None else frame.pts, 0
                yield self._shown(frame)
        if self._on_disk and cut_short(self._source, self._container.format.name):
            self.damage[BREAKS_OFF] = 1
        threads = self.stream.codec_context.thread_count  # known by now: one on one processor
        if self._ahead and threads > 1 and tail and (last is None or last < max(tail)):
            yield from self._rest(last, max(tail), refused)

    def _rest(self, last: int | None, end: int, refused: int) -> Iterator[VideoFrame]:
        """The frames after `last` up to `end`, read again from the file and without threads.

        PyAV stops emptying a decoder at the first error, and good frames go with it.
        """
        after = end - 2**62 if last is None else last
        with open_container(self._source) as container:
            again = Decoder(self._source, container)
            again.stream.thread_type = "SLICE"
            if last is not None:
                again.seek(last)
            for packet, frames in again._outcomes():
                if frames is None and packet is not None and (packet.pts or 0) > after:
                    refused -= 1
                    self.damage[SKIPPED] += refused < 0
                for frame in frames or ():
                    if frame.pts is not None and after < frame.pts <= end:
                        yield self._shown(frame)

    def _shown(self, frame: VideoFrame) -> VideoFrame:
        # Where hardware cannot decode a stream after all, frames come in the stream's own format.
        if self._hardware and frame.format.name in _DOWNLOADED:
            self.where = "in hardware"
        self.damage[SHOWN] += frame.is_corrupt
        return frame

    def _outcomes(self) -> Iterator[tuple[Packet | None, list[VideoFrame] | None]]:
        """Each packet and the frames that came out when it went in; None for an error.

        The last packet is None, and empties the decoder.
        """
        for packet in self._packets():
            frames = None
            with suppress(av.FFmpegError):
                frames = self.stream.decode(packet)
            yield packet, frames

    def _packets(self) -> Iterator[Packet | None]:
        try:
            for packet, following in pairwise(self._container.demux(self.stream)):
                if packet.is_corrupt and following.size == 0:  # cut short by the end of the file
                    self.damage[BREAKS_OFF] = 1
                elif packet.size:  # an empty one repeats the frame before
                    yield packet
        except av.FFmpegError:
            self.damage[BREAKS_OFF] = 1
        yield None


def _video(container: InputContainer, name: str) -> VideoStream:
    stream = container.streams.best("video")
    if stream is None:
        raise VqtokError(f"{name} has no video stream")
    if stream.codec_context is None:
        raise VqtokError(f"{name} uses a video codec that FFmpeg cannot decode")
    return stream
