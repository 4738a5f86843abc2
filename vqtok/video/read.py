"""Read any video as chunks of RGB frames with timestamps, as a player shows them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from math import ceil

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vqtok.errors import UsageError, VqtokError
from vqtok.video.color import ALPHA_DROPPED, RGBConverter
from vqtok.video.container import open_container, start_seconds
from vqtok.video.cropping import read_cropping
from vqtok.video.decode import UNDECODABLE_START, Decoder
from vqtok.video.resample import TimestampedFrame, resampled
from vqtok.video.section import Section
from vqtok.video.source import PathOrFile, display_name

_TIME_TOLERANCE = 0.001  # seconds


@contextmanager
def open_video(
    source: PathOrFile,
    size: int | None = None,
    fps: Fraction | None = None,
    start: float = 0.0,
    duration: float | None = None,
    hardware: str | None = None,
    frugal: bool = False,
    section: Section | None = None,
) -> Iterator["Clip"]:
    """Open a video, or an image as a clip of one frame, from a path or a binary file or pipe.

    size: the short side in pixels; the long side keeps the aspect ratio, rounded to the nearest
        pixel.
    fps: resample to this constant rate, taking the frame that is shown at each instant.
    start, duration: in seconds of playback. The clip holds the frames whose timestamps lie in
        `start <= time < start + duration`; they keep their timestamps in the file.
    hardware: a device that decodes the video, such as cuda or cuda:1. The CPU does if the device
        is not available or does not support the codec.
    frugal: save CPU time, as many clips are decoded at once: use one thread, and leave out frames
        before `start` that no other frame needs. In a damaged file, others can then differ.
    section: read only these frames of the clip that the other arguments describe.

    Raises UsageError for a size, start or duration out of range; VqtokError, naming the file and
    the reason, if there is no such frame, and from `chunks` if one frame would be repeated more
    than a million times at `fps`.
    """
    if (size is not None and size < 1) or not all(0 <= s <= 1e9 for s in (start, duration or 0)):
        raise UsageError("size must be 1 or more, start and duration 0 to 1e9 seconds")
    with open_container(source, hardware) as container:
        decoder = Decoder(source, container, frugal)
        clip = Clip(source, container, decoder, size, fps, start, duration, section)
        try:
            yield clip
        finally:
            clip.close()


def read_window(
    source: PathOrFile, start: float, frames: int, size: int | None = None
) -> np.ndarray:
    """Return `frames` consecutive frames from `start` seconds on: uint8 (t h w c) RGB.

    Seeks to the keyframe before `start`, so the cost does not grow with it. The array is shorter
    where the clip ends. Is `frugal`, as in `open_video`.
    """
    with open_video(source, size=size, start=start, frugal=True) as clip:
        return next(clip.chunks(frames))[0]


class Clip:
    """An open video, created by `open_video` and read once with `chunks`.

    height, width: of the frames: rotation applied, scaled to `size`, never cropped.
    fps: frames per second; the average for a variable frame rate.
    time_base: seconds per tick of a timestamp.
    pixel_aspect: width of a pixel divided by its height.
    duration: of the whole video in seconds according to its header, or None.
    origin: the timestamp at which playback of the clip starts, in ticks: that of the file, or, if
        `start` is given, that of the first frame.
    bounds: the timestamp in the file of the first frame, and one that all frames are before, or
        None if the clip ends with the file.
    """

    def __init__(
        self,
        source: PathOrFile,
        container: InputContainer,
        decoder: Decoder,
        size: int | None,
        fps: Fraction | None,
        start: float,
        duration: float | None,
        section: Section | None = None,
    ) -> None:
        self._name, self._decoder = display_name(source), decoder
        self._repaired_timestamps, self._has_timestamps = 0, False
        stream = self._decoder.stream
        self.time_base = self._decoder.time_base
        self.fps = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._frame_ticks = 1 / (self.fps * self.time_base)
        self._end: int | None = None  # of the requested time range, if there are frames beyond it
        self.duration = _duration(container, stream, self.time_base)
        playback_start = _playback_start(container, stream, self.time_base)
        first_tick = self._to_ticks(start)
        end = None if duration is None else self._to_ticks(start + duration)
        if section is not None and section.number:
            first_tick = section.pts - (playback_start or 0)
            decoder.end = section.end
        frames = self._select(playback_start, first_tick, end)
        first = next(frames, None)
        if first is None:
            where = " in the requested time range" if start or duration is not None else ""
            raise VqtokError(f"{self._name} has no frame that can be decoded{where}")
        self.origin = self._first_timestamp = first[1]
        self.bounds = first[1], None if end is None else (playback_start or 0) + end
        is_complete = not start and not self._decoder.damage[UNDECODABLE_START]
        if playback_start is not None and is_complete:
            self.origin = min(playback_start, first[1])
        cropping = read_cropping(container, stream)
        with self._naming_colors(first[0]):
            self._converter = RGBConverter(first[0], size, cropping)
        self.height, self.width = self._converter.height, self._converter.width
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.pixel_aspect = 1 / aspect if self._converter.transposed else aspect
        if stream.metadata.get("alpha_mode") == "1":  # VP8 and VP9 store alpha beside the frames
            self._converter.notes[ALPHA_DROPPED] += 1
        self._frames: Iterator[TimestampedFrame] = chain([first], frames)
        if fps is not None:
            self._resample(Fraction(fps), section)
        if section is not None:
            self._frames = islice(self._frames, section.frames)

    def _resample(self, fps: Fraction, section: Section | None) -> None:
        step = 1 / (fps * self.time_base)
        first, number = self._first_timestamp, 0
        if section is not None:
            first, number = section.first_pts, section.number
        self._frames = resampled(self._frames, step, self._end_of_last, self._name, first, number)
        self.origin = round(self.origin * self.time_base * fps)
        self.fps, self.time_base = fps, 1 / fps

    def _end_of_last(self, timestamp: int) -> Fraction:
        """Return the tick at which the last frame ends, given its timestamp."""
        if self._decoder.is_image and timestamp == self._first_timestamp:
            return Fraction(timestamp)  # a still lasts for no time
        end = self._decoder.end if self._end is None else self._end
        return Fraction(end) if end and end > timestamp else timestamp + self._frame_ticks

    @property
    def decoder(self) -> str:
        """The codec and what decodes it, for the user; final from the first frame on."""
        return f"{self._decoder.stream.codec_context.name} decoded {self._decoder.backend}"

    @property
    def is_image(self) -> bool:
        """Whether the file has a format of still images."""
        return self._decoder.is_image

    @property
    def damage(self) -> list[str]:
        """What was lost or repaired, for the user; complete after reading."""
        repaired = self._repaired_timestamps if self._has_timestamps else 0
        return _format_counts({**self._decoder.damage, "{n} timestamp{s} repaired": repaired})

    @property
    def notes(self) -> list[str]:
        """What was changed on purpose, and the damage, for the user; complete after reading."""
        assumed = f"no timestamps in the file: assuming {float(self.fps):.6g} frames/s"
        is_assumed = bool(self._repaired_timestamps) and not self._has_timestamps
        return _format_counts({**self._converter.notes, assumed: is_assumed}) + self.damage

    def chunks(self, frames: int) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Yield up to `frames` frames at a time: uint8 (t h w c) RGB and t timestamps.

        Timestamps are in ticks of `time_base` and strictly increasing. Only the last chunk may be
        shorter.
        """
        chunk = self._empty_chunk(frames)
        timestamps: list[int] = []
        for frame, timestamp in self._frames:
            chunk[len(timestamps)] = self._to_rgb(frame)
            timestamps.append(timestamp)
            if len(timestamps) == frames:
                yield chunk, timestamps
                chunk, timestamps = self._empty_chunk(frames), []
        if timestamps:
            yield chunk[: len(timestamps)], timestamps

    def close(self) -> None:
        """Free the decoder now: the clip and its frame iterator refer to each other."""
        self._frames = iter(())

    def _empty_chunk(self, frames: int) -> np.ndarray:
        return np.empty((frames, self.height, self.width, 3), np.uint8)

    def _to_rgb(self, frame: VideoFrame) -> np.ndarray:
        with self._naming_colors(frame):
            return self._converter.convert(frame)

    @contextmanager
    def _naming_colors(self, frame: VideoFrame) -> Iterator[None]:
        """Raise VqtokError where FFmpeg cannot convert the colors of a frame."""
        try:
            yield
        except OSError as error:
            colors = f"{frame.format.name}, matrix {frame.colorspace}"
            reason = f"FFmpeg cannot convert its colors to RGB ({colors})"
            raise VqtokError(f"{self._name}: {reason}") from error

    def _select(
        self, playback_start: int | None, first: int, end: int | None
    ) -> Iterator[TimestampedFrame]:
        """Yield the frames from one time of playback to another, in ticks."""
        frames = self._decoder.frames()
        if first and playback_start is not None:
            frames = self._decoder.frames_from(playback_start + first)
        for frame, timestamp in self._timestamped(frames):
            if playback_start is None:
                playback_start = timestamp
            if end is not None and timestamp - playback_start >= end:
                self._end = playback_start + end
                return
            if not first or timestamp - playback_start >= first:
                yield frame, timestamp

    def _to_ticks(self, seconds: float) -> int:
        """Return the first tick that is not before a time; times are typed with rounding errors."""
        return ceil(seconds / self.time_base - min(0.5, _TIME_TOLERANCE / self.time_base))

    def _timestamped(self, frames: Iterator[VideoFrame]) -> Iterator[TimestampedFrame]:
        """Yield frames with timestamps repaired until they strictly increase."""
        step = max(1, round(self._frame_ticks))
        previous: int | None = None
        for frame in frames:
            timestamp = self._decoder.timestamp(frame)
            self._has_timestamps |= timestamp is not None
            if timestamp is None or (previous is not None and timestamp <= previous):
                self._repaired_timestamps += self._decoder.stores_pts
                timestamp = 0 if previous is None else previous + step
            previous = timestamp
            yield frame, timestamp


def _duration(container: InputContainer, stream: VideoStream, time_base: Fraction) -> float | None:
    """Return the duration of a stream, else that of its container, in seconds."""
    if stream.duration:
        return float(stream.duration * time_base)
    return container.duration and container.duration / av.time_base


def _playback_start(
    container: InputContainer, stream: VideoStream, time_base: Fraction
) -> int | None:
    """Return the timestamp at which playback of audio or video starts, or None if unknown."""
    video_start = start_seconds(stream)
    if video_start is None:
        return None
    audio = container.streams.best("audio", related=stream)
    audio_start = start_seconds(audio) if audio else None
    start = video_start if audio_start is None else min(video_start, audio_start)
    # Audio before zero only primes its decoder and is not played.
    return round(min(video_start, max(Fraction(0), start)) / time_base)


def _format_counts(counts: Mapping[str, int]) -> list[str]:
    return [
        text.format(n=count, s="" if count == 1 else "s") for text, count in counts.items() if count
    ]
