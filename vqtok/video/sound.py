"""The sound of one file copied into another, in step with the frames written there."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from vqtok.errors import VqtokError


class Sound:
    """Copies packets of sound from `source` to `target` without re-encoding them.

    What sounds before the first or after the last frame written is copied if `source` has no
    frame there, and left out if it has: then the frames are an excerpt.

    period: seconds that a frame is shown.
    """

    def __init__(
        self, source: InputContainer, name: str, target: OutputContainer, period: Fraction
    ) -> None:
        stream = source.streams.best("audio")
        if stream is None:
            raise VqtokError(f"{name} has no sound to copy")
        codec = stream.codec_context and stream.codec_context.name
        if codec not in target.supported_codecs:
            raise VqtokError(f"{target.format.name} cannot hold {codec} sound; write to .mkv")
        self._target, self._period = target, period
        self._stream = target.add_stream_from_template(stream)
        self._video = source.streams.best("video")
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
        if self._frame is None:
            return
        rest = []
        while self._packet is not None and self._seen <= self._frame + self._period:
            rest.append(self._packet)
            self._packet = next(self._packets, None)
        if self._seen <= self._frame + self._period:
            for packet in rest:
                self._copy(packet)

    def _beginning(self, first: Fraction) -> Fraction:
        # Only mp4 and mov hold the packet before zero that AAC begins with; others would move every
        # timestamp to make room for it.
        earliest = Fraction(-1) if self._target.format.name in ("mp4", "mov") else Fraction(0)
        video = self._video
        opening = video and video.start_time and video.start_time * video.time_base
        return first if first > (opening or 0) + self._period else earliest

    def _copy(self, packet: av.Packet) -> None:
        if _seconds(packet) >= self._from:
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
