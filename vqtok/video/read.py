"""Any video as chunks of RGB frames with their timestamps, the way a player shows them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorTrc
from av.video.stream import VideoStream

from vqtok.errors import VqtokError
from vqtok.video.color import Converter
from vqtok.video.decode import Decoder
from vqtok.video.source import Source, file_name, open_container

Timed = tuple[VideoFrame, int]

_HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}


@contextmanager
def open_video(
    source: Source,
    size: int | None = None,
    fps: Fraction | None = None,
    start: float = 0.0,
    duration: float | None = None,
    hardware: str | None = None,
) -> Iterator["Clip"]:
    """Open a video or an image (a clip of one frame) from a path or a binary file, a pipe included.

    size: the short side in pixels; the long side keeps the aspect, rounded to the nearest pixel.
    fps: resample to this constant rate, by the frame that is shown at each instant.
    start, duration: in seconds after the file begins to play. The frames whose own time lies in
        `start <= time < start + duration` are given, with the timestamps they have in the file.
    hardware: what may decode a file instead of the processor, such as cuda or cuda:1; where it is
        not there or cannot, the processor does.

    Raises VqtokError, naming the file and the reason, if there is no frame to give.
    """
    with open_container(source, hardware) as container:
        clip = Clip(source, container, size, fps, start, duration)
        try:
            yield clip
        finally:
            clip.close()


def read_window(source: Source, start: float, frames: int, size: int | None = None) -> np.ndarray:
    """Decode `frames` consecutive frames from `start` seconds on: uint8 (t h w c) RGB.

    Seeks to the keyframe before, so the cost does not grow with `start`. Near the end of the clip
    the array is shorter.
    """
    with open_video(source, size=size, start=start) as clip:
        return next(clip.chunks(frames))[0]


class Clip:
    """An open video; made by `open_video`, read once by `chunks`.

    height, width: of the frames given: rotation applied, scaled to `size`, never cropped.
    fps: frames per second; the average where the rate varies.
    time_base: seconds per tick of a timestamp.
    pixel_aspect: width over height of a pixel.
    duration: of the whole picture in seconds as the header says, None where it says nothing.
    origin: the timestamp at which the clip begins to play, in ticks: where the file does, or, after
        `start`, with the first frame.
    """

    def __init__(
        self,
        source: Source,
        container: InputContainer,
        size: int | None,
        fps: Fraction | None,
        start: float,
        duration: float | None,
    ) -> None:
        self._name, self._decoder = file_name(source), Decoder(source, container)
        self._remarks: Counter[str] = Counter()
        self._repairs, self._clocked = 0, False  # timestamps; whether there are any
        stream = self._decoder.stream
        self.time_base = stream.time_base
        self.fps = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.duration = container.duration and container.duration / av.time_base
        if stream.duration:
            self.duration = float(stream.duration * stream.time_base)
        if stream.metadata.get("alpha_mode") == "1":  # VP8 and VP9 keep it beside the frames
            self._remarks["alpha dropped"] += 1
        self.origin = _beginning(container, stream)
        frames = self._window(start, duration)
        first = next(frames, None)
        if first is None:
            asked = " in the time asked for" if start or duration is not None else ""
            raise VqtokError(f"{self._name} holds no frame that can be decoded{asked}")
        self.origin = first[1] if start else min(self.origin, first[1])
        self._set_shape(first[0], size)
        self._frames = chain([first], frames)
        if fps is not None:
            self._set_rate(Fraction(fps))

    def _set_shape(self, first: VideoFrame, size: int | None) -> None:
        height, width = first.height, first.width
        if size is not None:
            short = min(height, width)
            height, width = ((2 * side * size + short) // (2 * short) for side in (height, width))
        height, width = max(height, 1), max(width, 1)
        self._first = first.height, first.width
        self._converter = Converter()
        self._turn = first.rotation, _orientation(first)
        transposed, *_ = self._turn[1]
        aspect = self._decoder.stream.sample_aspect_ratio or 1
        self.height, self.width = (width, height) if transposed else (height, width)
        self.pixel_aspect = Fraction(1, aspect) if transposed else Fraction(aspect)

    def _set_rate(self, fps: Fraction) -> None:
        self._frames = _resample(self._frames, self.fps, fps, self.time_base)
        self.origin = round(self.origin * self.time_base * fps)
        self.fps, self.time_base = fps, 1 / fps

    @property
    def decoder(self) -> str:
        """What decodes the video, in words; known from the first frame on."""
        return f"{self._decoder.stream.codec_context.name} decoded {self._decoder.where}"

    @property
    def damage(self) -> list[str]:
        """What was lost or repaired, in words; complete after reading."""
        repairs = {"{n} timestamp{s} repaired": self._repairs * self._clocked}
        return _sentences(self._decoder.damage | repairs)

    @property
    def notes(self) -> list[str]:
        """What a person should hear: what was left out on purpose, and the damage."""
        rate = f"no timestamps in the file: taken as {float(self.fps):.6g} frames/s"
        timeless = bool(self._repairs) and not self._clocked
        return _sentences(self._remarks | {rate: timeless}) + self.damage

    def chunks(self, frames: int) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Yield uint8 (t h w c) RGB and t timestamps, `frames` at a time; the last may be shorter.

        Timestamps are in ticks of `time_base` and strictly increasing.
        """
        chunk, times = self._empty(frames), []
        for frame, time in self._frames:
            chunk[len(times)] = self._picture(frame)
            times.append(time)
            if len(times) == frames:
                yield chunk, times
                chunk, times = self._empty(frames), []
        if times:
            yield chunk[: len(times)], times

    def close(self) -> None:
        """Let the decoder go at once: the clip and its frames still to come hold each other."""
        self._frames = iter(())

    def _empty(self, frames: int) -> np.ndarray:
        return np.empty((frames, self.height, self.width, 3), np.uint8)

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (h w c) RGB, scaled and the right way up."""
        if (frame.height, frame.width) != self._first:
            self._remarks["{n} frame{s} of another size scaled to the size of the first"] += 1
        if frame.color_trc in _HDR:
            self._remarks[f"HDR ({_HDR[frame.color_trc]}) not tone-mapped: colours are pale"] += 1
        angle, orientation = self._turn
        # PyAV ties a frame whose side data is read into a cycle, and such frames would pile up.
        same = frame.rotation == angle
        transposed, vertical, horizontal = orientation if same else _orientation(frame)
        alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
        rgb = self._convert(frame, "rgba" if alpha else "rgb24", transposed)
        if alpha and rgb[..., 3].min() < 255:
            self._remarks["alpha dropped"] += 1
        upright = rgb.swapaxes(0, 1) if transposed else rgb
        return upright[::vertical, ::horizontal, :3]

    def _convert(self, frame: VideoFrame, format: str, transposed: bool) -> np.ndarray:
        height, width = (self.width, self.height) if transposed else (self.height, self.width)
        try:
            return self._converter.picture(frame, height, width, format)
        except OSError as error:
            reason = f"FFmpeg cannot turn its colours into RGB (matrix {frame.colorspace})"
            raise VqtokError(f"{self._name}: {reason}") from error

    def _window(self, start: float, duration: float | None) -> Iterator[Timed]:
        first = round(start / self.time_base)
        last = None if duration is None else round((start + duration) / self.time_base)
        zero = self.origin
        if first and zero is not None:
            self._decoder.seek(zero + first)
        for frame, time in self._timed():
            if zero is None:
                zero = self.origin = time
            if last is not None and time - zero >= last:
                return
            if not first or time - zero >= first:
                yield frame, time

    def _timed(self) -> Iterator[Timed]:
        """Frames with timestamps made strictly increasing."""
        step = max(1, round(1 / (self.fps * self.time_base)))
        previous = None
        for frame in self._decoder.frames():
            time = self._decoder.time(frame)
            self._clocked |= time is not None
            if time is None or (previous is not None and time <= previous):
                self._repairs += not self._decoder.avi
                time = 0 if previous is None else previous + step
            previous = time
            yield frame, time


def _beginning(container: InputContainer, stream: VideoStream) -> int | None:
    """The timestamp at which a file begins to play, with sound or picture; None if unknown."""
    if stream.start_time is None:
        return None
    sound = container.streams.best("audio", related=stream)
    starts = [s.start_time * s.time_base for s in (stream, sound) if s and s.start_time is not None]
    opening = max(0, min(starts))  # sound before zero starts its decoder and is not heard
    return min(stream.start_time, round(opening / stream.time_base))


def _sentences(counts: dict[str, int]) -> list[str]:
    return [
        text.format(n=count, s="" if count == 1 else "s") for text, count in counts.items() if count
    ]


def _resample(
    frames: Iterator[Timed], rate: Fraction, fps: Fraction, time_base: Fraction
) -> Iterator[Timed]:
    """Give the frame shown at each instant 1/fps apart, counted from the first frame.

    The timestamps given are in ticks of 1/fps. Half a source tick of slack keeps a clip that
    already has this rate, but rounded timestamps, as it is.
    """
    step = 1 / (fps * time_base)
    shown, previous = 0, None

    def until(time: Fraction) -> Iterator[Timed]:
        nonlocal shown
        while shown * step < time - origin - Fraction(1, 2):
            yield previous, label + shown
            shown += 1

    for frame, time in frames:
        if previous is None:
            origin, label = time, round(time / step)
        yield from until(time)
        previous = frame
    yield from until(time + 1 / (rate * time_base))


def _orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    """How to turn the coded picture upright: (swap the axes, then row step, column step)."""
    if "DISPLAYMATRIX" not in frame.side_data:
        return False, 1, 1
    # A point (x, y) of the coded picture is shown at (a x + c y, b x + d y).
    a, b, _, c, d, *_ = np.frombuffer(frame.side_data["DISPLAYMATRIX"], np.int32)
    transposed = abs(int(b)) > abs(int(a))
    along_x, along_y = (c, b) if transposed else (a, d)
    return transposed, -1 if along_y < 0 else 1, -1 if along_x < 0 else 1
