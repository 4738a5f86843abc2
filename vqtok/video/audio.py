"""The sound of one file copied into another, in step with the frames written there."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from math import ceil

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from vqtok.errors import VqtokError


class Sound:
    """Copies packets of sound from `source` to `target` without re-encoding them.

    What sounds before the first or after the last frame written is copied if `source` shows
    nothing there, and left out if it does: then the frames are an excerpt. Of a source without a
    video, only what sounds during the frames is copied.

    zero: when the target begins, in seconds of the source.
    period: seconds that a frame is shown.
    """

    def __init__(
        self,
        source: InputContainer,
        name: str,
        target: OutputContainer,
        zero: Fraction,
        period: Fraction,
    ) -> None:
        stream = source.streams.best("audio")
        if stream is None:
            raise VqtokError(f"{name} has no sound to copy")
        codec = stream.codec_context and stream.codec_context.name
        if codec not in target.supported_codecs:
            raise VqtokError(f"{target.format.name} cannot hold {codec} sound; write to .mkv")
        self.codec, self._target, self._period = codec, target, period
        self._stream = target.add_stream_from_template(stream)
        video = source.streams.best("video")
        picture = video is not None and video.disposition & Disposition.attached_pic
        self._video = None if picture else video
        self._zero = zero
        self._frame: Fraction | None = None  # seconds, of the last frame written
        self._seen = Fraction(0)  # seconds, of the last frame met in the source
        self._packets = self._read(source, stream)
        self._packet = next(self._packets, None)

    def follow(self, time: Fraction) -> None:
        """Copy the packets that start before the end of the frame shown from `time` seconds on."""
        if self._frame is None:
            self._from = self._beginning(time)
        self._frame = time
        while self._packet is not None and _seconds(self._packet) < time + self._period:
            packet, self._packet = self._packet, next(self._packets, None)
            self._copy(packet)

    def finish(self) -> None:
        """Copy what is left if the last frame written was the last of the source."""
        if self._frame is None or self._video is None:
            return
        rest = []
        while self._packet is not None and self._seen <= self._frame + self._period:
            rest.append(self._packet)
            self._packet = next(self._packets, None)
        if self._seen <= self._frame + self._period:
            for packet in rest:
                self._copy(packet)

    def _beginning(self, first: Fraction) -> Fraction:
        video = self._video
        opening = video and video.start_time and video.start_time * video.time_base
        if first > (opening or 0) + self._period:
            return first
        # The packets that start a decoder lie before zero, but Matroska holds those of Opus only:
        # for others it would move every timestamp to make room.
        early = self._target.format.name in ("mp4", "mov") or self.codec in ("opus", "libopus")
        return self._zero - early

    def _copy(self, packet: av.Packet) -> None:
        if _seconds(packet) < self._from:
            return
        parts = ceil(packet.time_base * 10000)  # in AVI a tick is a packet: too coarse a shift
        tick = packet.time_base / parts
        shift = round(self._zero / tick)
        packet.pts = None if packet.pts is None else packet.pts * parts - shift
        packet.dts = packet.dts * parts - shift
        packet.duration, packet.time_base = packet.duration * parts, tick
        packet.stream = self._stream
        self._target.mux(packet)

    def _read(self, source: InputContainer, stream: AudioStream) -> Iterator[av.Packet]:
        """The packets of `stream`, up to where the file breaks off; keeps an eye on the frames."""
        streams = [stream] if self._video is None else [stream, self._video]
        with suppress(av.FFmpegError):
            for packet in source.demux(streams):
                if packet.dts is None:  # the empty packet at the end
                    continue
                if packet.stream.type == "audio":
                    yield packet
                else:
                    self._seen = max(self._seen, _seconds(packet))


def _seconds(packet: av.Packet) -> Fraction:
    time = packet.dts if packet.pts is None else packet.pts
    return time * packet.time_base
