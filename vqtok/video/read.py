"""Any video as chunks of RGB frames with their timestamps, the way a player shows them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain, pairwise

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from vqtok.errors import VqtokError
from vqtok.video.source import Source, file_name, open_container, seekable

Timed = tuple[VideoFrame, int]


@contextmanager
def open_video(
    source: Source,
    size: int | None = None,
    fps: Fraction | None = None,
    start: float = 0.0,
    duration: float | None = None,
) -> Iterator["Clip"]:
    """Open a video or an image (a clip of one frame) from a path or a binary file, a pipe included.

    size: the short side in pixels; the long side keeps the aspect, rounded to the nearest pixel.
    fps: resample to this constant rate, by the frame that is shown at each instant.
    start, duration: in seconds after the start of the stream. The frames whose own time lies in
        `start <= time < start + duration` are given, with the timestamps they have in the file.

    Raises VqtokError, naming the file and the reason, if there is no frame to give.
    """
    with open_container(source) as container:
        yield Clip(container, file_name(source), seekable(source), size, fps, start, duration)


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
    origin: the timestamp that `start` counts from, in ticks of the file.
    notes: what a person should hear about lost or repaired frames; complete after reading.
    """

    def __init__(
        self,
        container: InputContainer,
        name: str,
        seekable: bool,
        size: int | None,
        fps: Fraction | None,
        start: float,
        duration: float | None,
    ) -> None:
        stream = container.streams.best("video")
        if stream is None:
            raise VqtokError(f"{name} has no video stream")
        if stream.codec_context is None:
            raise VqtokError(f"{name} uses a video codec that FFmpeg cannot decode")
        stream.thread_type = "AUTO"
        if stream.codec_context.name == "mjpeg" and container.format.name in (
            "image2",
            "jpeg_pipe",
        ):
            # A photograph that is cut short would come out grey in part, without a word.
            stream.codec_context.options = {"err_detect": "explode"}
        self._container, self._stream = container, stream
        # AVI stores no presentation times, and its index calls empty packets keyframes.
        self._avi = container.format.name == "avi"
        self._seekable = seekable and not self._avi
        self._counts: dict[str, int] = {}
        self.time_base = stream.time_base
        self.fps = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.origin = stream.start_time
        self.duration = container.duration and container.duration / av.time_base
        if stream.duration:
            self.duration = float(stream.duration * stream.time_base)
        frames = self._window(start, duration)
        first = next(frames, None)
        if first is None:
            asked = " in the time asked for" if start or duration is not None else ""
            raise VqtokError(f"{name} holds no frame that can be decoded{asked}")
        self._set_shape(first[0], size)
        self._frames = chain([first], frames)
        if fps is not None:
            self._frames = _resample(self._frames, self.fps, fps, self.time_base)
            self.fps, self.time_base = Fraction(fps), 1 / Fraction(fps)

    def _set_shape(self, first: VideoFrame, size: int | None) -> None:
        height, width = first.height, first.width
        if size is not None:
            short = min(height, width)
            height, width = ((2 * side * size + short) // (2 * short) for side in (height, width))
        self._coded = max(height, 1), max(width, 1)
        self._first = first.height, first.width
        transposed, *_ = _orientation(first)
        # At its own size a frame is converted by FFmpeg's usual fast path; scaling needs full
        # chroma, or swscale darkens the picture by two levels.
        self._scaler = Interpolation.BICUBIC
        if size is not None:
            self._scaler |= Interpolation.FULL_CHR_H_INT
        aspect = self._stream.sample_aspect_ratio or 1
        self.height, self.width = self._coded[::-1] if transposed else self._coded
        self.pixel_aspect = Fraction(1, aspect) if transposed else Fraction(aspect)

    @property
    def notes(self) -> list[str]:
        return [
            text.format(n=count, s="" if count == 1 else "s")
            for text, count in self._counts.items()
        ]

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

    def _empty(self, frames: int) -> np.ndarray:
        return np.empty((frames, self.height, self.width, 3), np.uint8)

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (h w c) RGB, scaled and the right way up."""
        if (frame.height, frame.width) != self._first:
            self._count("{n} frame{s} of another size scaled to the size of the first")
        height, width = self._coded
        layout = frame.format
        alpha = layout.has_palette or any(part.is_alpha for part in layout.components)
        rgb = frame.to_ndarray(
            format="rgba" if alpha else "rgb24",
            height=height,
            width=width,
            interpolation=self._scaler,
        )
        if alpha and rgb[..., 3].min() < 255:
            self._count("alpha dropped")
        transposed, vertical, horizontal = _orientation(frame)
        upright = rgb.swapaxes(0, 1) if transposed else rgb
        return upright[::vertical, ::horizontal, :3]

    def _count(self, note: str) -> None:
        self._counts[note] = self._counts.get(note, 0) + 1

    def _window(self, start: float, duration: float | None) -> Iterator[Timed]:
        first = round(start / self.time_base)
        last = None if duration is None else round((start + duration) / self.time_base)
        if first and self._seekable and self.origin is not None:
            # Where seeking fails, decoding from the beginning gives the same frames.
            with suppress(av.FFmpegError):
                self._container.seek(self.origin + first, stream=self._stream)
        for frame, time in self._timed():
            self.origin = time if self.origin is None else self.origin
            if last is not None and time - self.origin >= last:
                return
            if time - self.origin >= first:
                yield frame, time

    def _timed(self) -> Iterator[Timed]:
        """Frames with timestamps made strictly increasing."""
        step = max(1, round(1 / (self.fps * self.time_base)))
        previous = None
        for frame in self._decoded():
            # FFmpeg's guess for AVI is wrong where B-frames are packed, but frames come out in the
            # order of their decoding times (the last few have none).
            time = frame.dts if self._avi else frame.pts
            if previous is None:
                time = max(0, time or 0)
            elif time is None or time <= previous:
                time = previous + step
                if not self._avi:
                    self._count("{n} timestamp{s} repaired")
            previous = time
            yield frame, time

    def _decoded(self) -> Iterator[VideoFrame]:
        if self._stream.metadata.get("alpha_mode") == "1":  # VP8 and VP9 keep it beside the frames
            self._count("alpha dropped")
        for packet in self._packets():
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError:
                self._count("{n} damaged frame{s} skipped")
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self._count("{n} frame{s} shown damaged")
                yield frame

    def _packets(self) -> Iterator[av.Packet | None]:
        try:
            for packet, following in pairwise(self._container.demux(self._stream)):
                # A packet cut short by the end of the file is left out: PyAV gives up emptying the
                # decoder at the first error, so good frames would be lost with it.
                if packet.is_corrupt and following.size == 0:
                    self._count("the file breaks off")
                else:
                    yield packet
        except av.FFmpegError:
            self._count("the file breaks off")
        yield None  # empties the decoder


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
