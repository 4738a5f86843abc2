"""Copy the audio of one container into another, in sync with the video frames written there."""

import io
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from math import ceil

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream

from vqtok.errors import VqtokError
from vqtok.video.container import start_seconds


class AudioCopier:
    """Copies audio packets from `source` to `target` without re-encoding them.

    Audio before the first or after the last written frame is copied if the source has no video
    there. Otherwise the frames are an excerpt, and that audio is left out. From a source without
    video, only the audio during the written frames is copied.

    name: of the source, for messages.
    origin: the time in the source, in seconds, that becomes zero in the target.
    frame_duration: in seconds.

    Raises VqtokError if the source has no audio that FFmpeg can read, or if it cannot be copied to
    the target.

    codec: FFmpeg's name of the audio decoder.
    """

    def __init__(
        self,
        source: InputContainer,
        name: str,
        target: OutputContainer,
        origin: Fraction,
        frame_duration: Fraction,
    ) -> None:
        stream = source.streams.best("audio")
        if not isinstance(stream, AudioStream) or stream.codec_context is None:
            reason = "no audio that FFmpeg can read" if source.streams.audio else "no audio to copy"
            raise VqtokError(f"{name} has {reason}")
        self.codec = stream.codec_context.name
        self._name, self._target = name, target
        self._origin, self._frame_duration = origin, frame_duration
        self._video_stream = _video_stream(source)
        self._start: Fraction | None = None  # of the audio to copy, in seconds
        self._last_written = Fraction(0)  # time of the last frame written
        self._last_in_source = Fraction(0)  # time of the last video packet read
        self._packets = self._demux(source, stream)
        self._packet = next(self._packets, None)
        if not _can_store(target.format.name, stream, self._packet):
            raise VqtokError(self._refusal(stream))
        self._output_stream = target.add_stream_from_template(stream)

    def copy_during(self, frame_time: Fraction) -> None:
        """Copy the packets up to the end of the frame shown at `frame_time` seconds."""
        if self._start is None:
            self._start = self._first_audio_time(frame_time)
        self._last_written = frame_time
        while self._packet is not None and _seconds(self._packet) < self._written_end:
            self._copy(self._packet)
            self._packet = next(self._packets, None)

    def finish(self) -> None:
        """Copy the remaining packets if the last frame written was the last of the source."""
        if self._start is None or self._video_stream is None:
            return
        remaining = []
        while self._packet is not None and self._last_in_source <= self._written_end:
            remaining.append(self._packet)
            self._packet = next(self._packets, None)
        if self._last_in_source <= self._written_end:
            for packet in remaining:
                self._copy(packet)

    @property
    def _written_end(self) -> Fraction:
        return self._last_written + self._frame_duration

    def _first_audio_time(self, first_frame_time: Fraction) -> Fraction:
        """Return the time in seconds from which on audio is copied."""
        video_start = (self._video_stream and start_seconds(self._video_stream)) or Fraction(0)
        if first_frame_time > video_start + self._frame_duration:
            return first_frame_time
        # Packets that prime a decoder come before zero. Matroska stores those of Opus only; for
        # other codecs, it would shift all timestamps to make them positive.
        primed = self._target.format.name in ("mp4", "mov") or self.codec in ("opus", "libopus")
        return self._origin - 1 if primed else self._origin

    def _copy(self, packet: av.Packet) -> None:
        assert self._start is not None
        if _seconds(packet) < self._start:
            return
        with self.explain_damage():
            self._move(packet)
            self._target.mux(packet)

    @contextmanager
    def explain_damage(self) -> Iterator[None]:
        """Raise errors of the muxer as VqtokError: it may write audio after it was copied."""
        try:
            yield
        except (av.error.ArgumentError, av.error.InvalidDataError, ArithmeticError) as error:
            raise VqtokError(
                f"{self._name}: its audio is damaged or its timestamps jump back, so it cannot be "
                "copied; write the video without audio"
            ) from error

    def _move(self, packet: av.Packet) -> None:
        """Move a packet to the target, in time too; OverflowError if FFmpeg cannot store a time."""
        # In AVI, a tick lasts as long as a packet: too coarse to subtract the origin.
        scale = ceil(packet.time_base * 10000)
        time_base = packet.time_base / scale
        shift = round(self._origin / time_base)
        packet.pts = None if packet.pts is None else packet.pts * scale - shift
        packet.dts = None if packet.dts is None else packet.dts * scale - shift
        packet.duration, packet.time_base = (packet.duration or 0) * scale, time_base
        packet.stream = self._output_stream

    def _refusal(self, stream: AudioStream) -> str:
        """Return why the audio cannot be copied, and what to do."""
        container = self._target.format.name
        elsewhere = container != "matroska" and _can_store("matroska", stream, self._packet)
        codec = "libopus" if container == "webm" else "aac"
        # -copyts keeps the audio in sync with the frames.
        command = f"ffmpeg -copyts -i {shlex.quote(self._name)} -c:v copy -c:a {codec} audio.mkv"
        return (
            f"{self._name}: its {self.codec} audio cannot be copied to {container}; "
            f"{'write to .mkv, or ' * elsewhere}convert it first: {command}"
        )

    def _demux(self, source: InputContainer, stream: AudioStream) -> Iterator[av.Packet]:
        """Yield the audio packets up to the first error, and track the time of the video."""
        streams = [stream] if self._video_stream is None else [stream, self._video_stream]
        previous: int | None = None
        with suppress(av.FFmpegError, IndexError):  # PyAV's, if a stream has appeared midway
            for packet in source.demux(streams):
                if packet.dts is None:  # the empty packet at the end
                    continue
                if packet.stream.type == "audio":
                    if not packet.duration and previous is not None:
                        # In mp4, a last packet without a duration would not be played.
                        packet.duration = packet.dts - previous
                    previous = packet.dts
                    yield packet
                else:
                    self._last_in_source = max(self._last_in_source, _seconds(packet))


def _can_store(container: str, stream: AudioStream, packet: av.Packet | None) -> bool:
    """Return whether a container takes the audio of a stream, shown by its first packet.

    Only writing tells: FFmpeg lists codecs as supported that a muxer then refuses.
    """
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            output = trial.add_stream_from_template(stream)
            trial.start_encoding()
            if packet is not None:
                copy = av.Packet(bytes(packet))
                copy.pts = copy.dts = 0
                copy.duration, copy.time_base = packet.duration, packet.time_base
                copy.stream = output
                trial.mux(copy)
    except (av.FFmpegError, ValueError):
        return False
    return True


def _video_stream(container: InputContainer) -> Stream | None:
    """Return the best video stream that is not a cover image."""
    stream = container.streams.best("video")
    return None if stream and stream.disposition & Disposition.attached_pic else stream


def _seconds(packet: av.Packet) -> Fraction:
    ticks = packet.dts if packet.pts is None else packet.pts
    assert ticks is not None
    return ticks * packet.time_base
