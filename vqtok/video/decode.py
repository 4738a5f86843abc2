"""Decode the frames of a video stream in presentation order and count the damaged ones."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, count

import av
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from vqtok.errors import VqtokError
from vqtok.video.container import is_truncated, open_container
from vqtok.video.cropping import Cropping
from vqtok.video.hardware import is_from_hardware, remaining_cropping
from vqtok.video.history import History
from vqtok.video.images import is_still_image, refuse_animated_webp
from vqtok.video.orientation import expose_orientation
from vqtok.video.source import PathOrFile, display_name, is_seekable
from vqtok.video.tiles import read_tile_grid

# Kinds of damage, worded for the user.
SKIPPED = "{n} damaged frame{s} skipped"
KEPT = "{n} damaged frame{s} kept"
UNDECODABLE_START = "{n} frame{s} before the first keyframe skipped"
TRUNCATED = "the file is truncated"


class Decoder:
    """Decodes the video stream of an open container.

    source: what the container was opened from; a file on disk may be opened once more.
    frugal: as in `open_video`.

    Raises VqtokError if there is no video stream, or no decoder for it.

    stream, time_base: the video stream and its seconds per tick.
    stores_pts: False for containers without presentation timestamps (AVI), or in which FFmpeg
        stores those of another frame (ASF with B-frames).
    is_image: True for the formats of still images.
    end: the latest time, in ticks, at which the frame of a packet read so far ends, or None.
    backend: "in software" or "in hardware"; final from the first frame on.
    damage: how often each kind of damage has occurred.
    """

    def __init__(self, source: PathOrFile, container: InputContainer, frugal: bool = False) -> None:
        self._container, self._format = container, container.format.name
        self._name = display_name(source)
        self.stream = _best_video_stream(container, self._name)
        self._grid = read_tile_grid(source, container)
        if self._grid:
            self.stream = self._grid.tiles[0]
        self.time_base = self.stream.time_base or Fraction(1, av.time_base)
        self.stores_pts = self._format not in ("avi", "asf")
        self.is_image = is_still_image(container)
        self.end: int | None = None
        self.backend = "in software"
        self.damage: Counter[str] = Counter()
        self._position: int | None = None  # pts of the last seek
        self._frugal = frugal
        self._wanted_from: int | None = None  # pts before which frames need not be decoded
        self._skips_disposable = False
        self._hardware = self.stream.codec_context.is_hwaccel
        self._cropping: Cropping | None = None  # of frames from hardware
        # The index of an AVI file calls empty packets keyframes.
        self._seekable = is_seekable(source) and self._format != "avi"
        # The file to open again, if that is possible.
        self._path = source if isinstance(source, str | os.PathLike) and self._seekable else None
        # Frame threads are fast but hide errors at the end of the stream: see _decode_tail.
        self._frame_threads = self._path is not None and not self._hardware and not frugal
        if frugal:
            self.stream.codec_context.thread_count = 1
        self.stream.thread_type = "AUTO" if self._frame_threads else "SLICE"
        self._set_codec_options()

    def _set_codec_options(self) -> None:
        """Make the codec crop exactly, and report damage that it would otherwise hide."""
        context = self.stream.codec_context
        context.flags |= Flags.unaligned  # else FFmpeg rounds cropping at the left down, often to 0
        if context.name == "hevc":
            # Without this flag, all frames that refer to a lost one are dropped silently.
            context.flags |= Flags.output_corrupt
        if context.name == "libdav1d":
            # Its frame threads lose good frames after an error.
            context.options = {"max_frame_delay": "1"}
        if self._format in ("image2", "jpeg_pipe"):
            # Without this option, the missing part of a truncated JPEG is filled with gray.
            context.options = {"err_detect": "explode"}

    @property
    def can_seek(self) -> bool:
        """Whether FFmpeg finds the keyframe before a time."""
        # Without an index, it seeks to any packet.
        return self._seekable and self._format not in ("mpegts", "mpeg")

    def frames_from(self, pts: int) -> Iterator[VideoFrame]:
        """Yield every frame that can be decoded from `pts` on, after some of those before it.

        A seek may end at a keyframe after `pts`, at frames that need those before it (open GOP), or
        at a picture that is refreshed in parts over many frames (intra refresh, which FFmpeg takes
        for complete too early). Then it is repeated further back, at last at the beginning.
        """
        if not self.can_seek:
            return self.frames()
        context = self.stream.codec_context
        # Other codecs call frames disposable that later frames may refer to. The delay must be
        # known: the decoder would learn it from the frames that are skipped.
        is_known = context.name == "h264" and context.has_b_frames and self.stores_pts
        if self._frugal and is_known:
            self._wanted_from = pts
        start = self.stream.start_time or 0
        for seconds in chain([0], (4**n for n in count())):
            target = max(start, pts - round(seconds / self.time_base))
            try:
                self._seek(target)
            except av.FFmpegError as error:
                if self._position is None:  # nothing has been read
                    break
                raise VqtokError(f"{self._name}: FFmpeg cannot seek back to its start") from error
            frames = self.frames()
            first = next(frames, None)
            if target == start or (first is not None and self._is_complete_from(first, pts)):
                return chain([first], frames) if first else frames
            self.damage.clear()
        return self.frames()

    def _is_complete_from(self, first: VideoFrame, pts: int) -> bool:
        """Return True if all frames from `pts` on follow the first one after a seek."""
        timestamp = self.timestamp(first)
        is_intra = first.pict_type in (PictureType.NONE, PictureType.I)
        return is_intra and timestamp is not None and timestamp <= pts

    def _seek(self, pts: int) -> None:
        self._container.seek(pts, stream=self.stream)
        self._position = pts

    def timestamp(self, frame: VideoFrame) -> int | None:
        """Return when a frame is presented, in ticks of the stream, or None if unknown."""
        # FFmpeg's guess for AVI is wrong for packed B-frames. But decoded frames come in the order
        # of their decoding timestamps (the last few have none).
        return frame.pts if self.stores_pts else frame.dts

    def frames(self) -> Iterator[VideoFrame]:
        """Yield every frame that can be decoded, from the position of the last seek on."""
        if self._grid:
            yield from self._grid.frames(self._container)
            return
        history = History()
        for number, packet, frames in self._decode_packets():
            if packet is not None:
                history.add(number, packet, frames is None, self._is_wanted(packet))
                self.damage[SKIPPED] += frames is None
            for frame in frames or ():
                if not history.decoded and self._position is None:
                    self._count_undecodable_start(history, frame)
                history.decoded.append(frame.duration)
                yield self._inspect(frame)
        if self._path is None:
            return
        if is_truncated(self._path, self._format):
            self.damage[TRUNCATED] = 1
        # The codec has been opened by now and knows its number of threads.
        if self._frame_threads and self.stream.codec_context.thread_count > 1 and history.missing:
            yield from self._decode_tail(self._path, history)

    def _count_undecodable_start(self, history: History, first: VideoFrame) -> None:
        """Count the packets that would be presented before the first frame."""
        start = self.timestamp(first) if self.stores_pts else None
        lost = sum(
            number < first.duration if start is None or pts is None else pts < start
            for number, pts in history.early
        )
        self.damage[UNDECODABLE_START] += max(0, lost - self.damage[SKIPPED])

    def _decode_tail(self, path: str | os.PathLike[str], history: History) -> Iterator[VideoFrame]:
        """Yield the frames after the last one, decoded again without frame threads.

        PyAV stops flushing a decoder at the first error, and the good frames after it are lost.
        """
        last = history.decoded[-1] if history.decoded else 0
        known = history.decoded.count(last)  # a packet may have several frames
        uncounted = -len(history.failed)
        with open_container(path) as container:
            decoder = Decoder(path, container)
            decoder.stream.thread_type = "SLICE"
            if self._position is not None:
                decoder._seek(self._position)
            for number, packet, frames in decoder._decode_packets(history.keyframes[0]):
                if packet is not None and frames is None and number in history.missing:
                    uncounted += 1
                    self.damage[SKIPPED] += uncounted > 0
                for frame in frames or ():
                    if not known:
                        yield self._inspect(frame)
                    known -= known and frame.duration == last

    def _inspect(self, frame: VideoFrame) -> VideoFrame:
        self.damage[KEPT] += frame.is_corrupt
        if not (self._hardware and is_from_hardware(frame)):
            return frame
        self.backend = "in hardware"
        self._cropping = self._cropping or remaining_cropping(frame, self.stream.codec_context)
        return self._cropping.apply(frame)

    def _decode_packets(
        self, first: int = 1
    ) -> Iterator[tuple[int, Packet | None, list[VideoFrame] | None]]:
        """Yield the number of each packet, the packet, and the frames decoded after it was sent.

        Numbers count from 1. A frame carries that of its packet as its duration, which nothing else
        reads. Frames are None after an error. The last packet is None and flushes the decoder.

        first: the number of the first packet to decode.
        """
        for number, packet in enumerate(self.packets(), 1):
            if packet is not None:
                if packet.pts is not None and packet.duration:
                    self.end = max(self.end or 0, packet.pts + packet.duration)
                packet.duration = number
                if number < first:
                    continue
            frames = None
            if self._wanted_from is not None:
                self._skip_disposable(packet is not None and not self._is_wanted(packet))
            with suppress(av.FFmpegError):
                frames = self.stream.decode(packet)
            if frames is None and packet is not None:
                refuse_animated_webp(packet, self._name)
            yield number, packet, frames

    def _is_wanted(self, packet: Packet) -> bool:
        """Return False for the packet of a frame before those that were asked for."""
        return self._wanted_from is None or packet.pts is None or packet.pts >= self._wanted_from

    def _skip_disposable(self, skip: bool) -> None:
        """Do, or do not, decode frames that no other frame refers to, from the next packet on."""
        if skip != self._skips_disposable:
            self.stream.codec_context.skip_frame = "NONREF" if skip else "DEFAULT"
            self._skips_disposable = skip

    def packets(self) -> Iterator[Packet | None]:
        """Yield the packets, and None at the end."""
        previous: Packet | None = None
        for packet in chain(self._demux(), [None]):
            if previous is not None and previous.is_corrupt and packet is None:
                self.damage[TRUNCATED] = 1  # cut off by the end of the file
            elif previous is not None:
                yield previous
            previous = packet
        yield None

    def _demux(self) -> Iterator[Packet]:
        try:
            for packet in self._container.demux(self.stream):
                if packet.size:  # an empty packet repeats the frame before it
                    expose_orientation(packet)
                    yield packet
        except av.FFmpegError:
            self.damage[TRUNCATED] = 1
        except IndexError:
            # If a stream has appeared midway, PyAV fails at the end of the file.
            return


def _best_video_stream(container: InputContainer, name: str) -> VideoStream:
    """Return the best video stream that is not the cover picture of a recording."""
    stream = container.streams.best("video")
    if isinstance(stream, VideoStream) and stream.disposition & Disposition.attached_pic:
        videos = (
            s for s in container.streams.video if not s.disposition & Disposition.attached_pic
        )
        stream = next(videos, None)
        if stream is None:
            raise VqtokError(f"{name} has a cover picture but no video stream")
    if not isinstance(stream, VideoStream):
        raise VqtokError(f"{name} has no video stream")
    if stream.codec_context is None:
        raise VqtokError(f"{name} uses a video codec that FFmpeg cannot decode")
    return stream
