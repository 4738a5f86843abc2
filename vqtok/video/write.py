"""RGB frames with timestamps into any video file, with the sound of the source if wanted."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from vqtok.errors import UsageError, VqtokError
from vqtok.files import atomic_write
from vqtok.video.audio import Sound
from vqtok.video.color import conversion
from vqtok.video.source import Source, file_name, open_container

Target = str | os.PathLike[str] | BinaryIO

# suffix: (FFmpeg's name of the container, its default codec)
_CONTAINERS = {
    ".mp4": ("mp4", "h264"),
    ".mov": ("mov", "h264"),
    ".mkv": ("matroska", "h264"),
    ".webm": ("webm", "vp9"),
    ".gif": ("gif", "gif"),
    # image2 would look for a %d in the name.
    ".png": ("image2pipe", "png"),
    ".jpg": ("image2pipe", "jpeg"),
    ".jpeg": ("image2pipe", "jpeg"),
}
# swscale puts chroma in the middle of its pixels, and players expect it at the left: chromaloc.
# The rest keeps most of medium's quality in a third of its time: files are a third larger. Without
# trellis, or with B-frames, the mean colours would be off by a level.
_X264 = "chromaloc=1:trellis=1:bframes=0:subme=2:mbtree=1:rc-lookahead=10"
# codec: (FFmpeg's encoder, its options)
_CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "18", "preset": "superfast", "x264-params": _X264}),
    "vp9": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "7"}),
    "ffv1": ("ffv1", {}),
    "gif": ("gif", {}),
}
# The same for the one picture that a file of pictures is.
_PICTURES: dict[str, tuple[str, dict[str, str]]] = {
    "png": ("png", {}),
    "jpeg": ("mjpeg", {"qmin": "2", "qmax": "2"}),
}
_LARGEST = 65535  # pixels along a side in any of these codecs, and centiseconds in a GIF


class VideoWriter:
    """Write a clip: `with VideoWriter(...) as out: out.write(frames, times)`.

    target: a path ending in .mp4, .mov, .mkv, .webm or .gif, or in .png or .jpg for a clip of one
        frame, which appears when the block ends without error; or a binary file (a pipe too),
        which gets a Matroska stream.
    height, width: of the frames, any size.
    fps: frames per second, the average where the rate varies.
    time_base: seconds per tick of the timestamps. mp4 and mov keep every timestamp exactly, mkv
        and webm to half a millisecond; gif to half a centisecond and always from zero on, and
        frames of more than 50 a second are left out; a picture keeps none.
    origin: the timestamp that becomes time zero.
    pixel_aspect: width over height of a pixel; h264 and pictures keep it, for others the frames
        are stretched until pixels are square, and `notes` says so.
    codec: h264, vp9, ffv1 (lossless, in mkv) or gif; by default what fits the container.
    crf: quality of h264 (default 18) and vp9 (default 24), lower is better.
    audio_from: a video whose sound is copied as it is for the time the frames cover.

    Raises UsageError for a container, codec or crf that does not exist and for a second frame in a
    picture, VqtokError for a sound that is not there or that the container cannot hold.
    """

    def __init__(
        self,
        target: Target,
        *,
        height: int,
        width: int,
        fps: Fraction,
        time_base: Fraction,
        origin: int = 0,
        pixel_aspect: Fraction | int = 1,
        codec: str | None = None,
        crf: int | None = None,
        audio_from: Source | None = None,
    ) -> None:
        self._target, self._audio_from = target, audio_from
        self._fps, self._time_base, self._origin = Fraction(fps), time_base, origin
        self._shape, self._pixel_aspect = (height, width), Fraction(pixel_aspect)
        self._sound: Sound | None = None
        self._format, default = _container(target)
        self._codec = codec or default
        self._picture = default in _PICTURES
        if self._picture and (codec is not None or audio_from is not None):
            raise UsageError(f"{target} is a picture: it takes no codec and no sound")
        self._encoder, self._options = _encoder(self._codec, crf, self._picture)
        self._given = 0  # frames, so far
        self._remarks: list[str] = []
        self._centisecond: int | None = None  # of the last frame of a GIF
        self._left_out = 0
        if self._codec != "h264" and not self._picture:
            self._make_square()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            file = self._target
            if hasattr(file, "write"):
                stack.callback(file.flush)
            else:
                file = stack.enter_context(atomic_write(file))
            self._container = stack.enter_context(
                av.open(file, "w", format=self._format, container_options=self._exact_ticks())
            )
            self._add_video()
            if self._audio_from is not None:
                source = stack.enter_context(open_container(self._audio_from))
                name, zero = file_name(self._audio_from), self._origin * self._time_base
                self._sound = Sound(source, name, self._container, zero, 1 / self._fps)
            self._write_header()
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def write(self, frames: np.ndarray, times: Sequence[int]) -> None:
        """Append uint8 (t h w c) RGB frames with t strictly increasing timestamps in ticks."""
        self._given += len(frames)
        if self._picture and self._given > 1:
            raise UsageError(
                f"{self._target} holds one frame and there are more: write to .mp4, or to .mkv "
                "with codec ffv1 to lose nothing"
            )
        for rgb, time in zip(frames, times, strict=True):
            ticks = int(time) - self._origin
            if self._codec == "gif" and self._too_soon(ticks * self._time_base):
                continue
            frame = self._convert(VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24"))
            frame.pts, frame.time_base = ticks, self._time_base
            self._container.mux(self._encoded(frame))
            if self._sound:
                self._sound.follow(int(time) * self._time_base)

    @property
    def notes(self) -> list[str]:
        """What a person should hear; complete after writing."""
        n = self._left_out
        crowded = f"{n} frame{'s' * (n > 1)} left out: gif shows each for 0.02 s or more"
        return self._remarks + [crowded] * (n > 0)

    def _too_soon(self, time: Fraction) -> bool:
        """Whether to leave a frame out of a GIF: players take less than 0.02 s for a mistake."""
        now, last = round(100 * time), self._centisecond
        if last is not None and now > last + _LARGEST:
            raise VqtokError("gif cannot show a frame for more than 655 s; write to .mp4")
        if last is not None and now < last + 2:
            self._left_out += 1
            return True
        self._centisecond = now
        return False

    def _make_square(self) -> None:
        height, width = self._shape
        wide, aspect = self._pixel_aspect >= 1, self._pixel_aspect
        shape = (height, round(width * aspect)) if wide else (round(height / aspect), width)
        if max(shape) > _LARGEST:
            raise VqtokError(f"{self._codec} cannot hold frames of {shape[0]}x{shape[1]}")
        if shape != self._shape:
            self._remarks.append(
                f"{self._codec} cannot keep pixels of {aspect.numerator}:{aspect.denominator}: "
                f"frames stretched from {height}x{width} to {shape[0]}x{shape[1]}"
            )
        self._shape, self._pixel_aspect = shape, Fraction(1)

    def _exact_ticks(self) -> dict[str, str]:
        if self._format not in ("mp4", "mov"):
            return {}
        ticks = self._time_base.denominator
        # The start of a track is kept in ticks of the movie: fine ones, for the sound as well.
        movie = ticks * max(1, 90000 // ticks)
        return {"video_track_timescale": str(ticks), "movie_timescale": str(movie)}

    def _add_video(self) -> None:
        try:
            stream = self._container.add_stream(self._encoder, self._fps, options=self._options)
        except ValueError as error:
            raise UsageError(f"{self._format} cannot hold {self._codec}; try .mkv") from error
        stream.height, stream.width = self._shape
        stream.pix_fmt, self._convert = conversion(self._codec, *self._shape)
        context = stream.codec_context
        context.time_base = stream.time_base = self._time_base
        context.sample_aspect_ratio = self._pixel_aspect
        if self._codec in ("h264", "vp9"):
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._video = stream

    def _write_header(self) -> None:
        try:
            self._container.start_encoding()
        except av.error.ArgumentError as error:
            name, (height, width) = file_name(self._target), self._shape
            sound = f" or {self._sound.codec} sound" if self._sound else ""
            raise UsageError(
                f"{name} cannot hold frames of {height}x{width}{sound}: {error.strerror.lower()}"
            ) from error

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._container.mux(self._encoded(None))
            if self._sound:
                self._sound.finish()

    def _encoded(self, frame: VideoFrame | None) -> list[av.Packet]:
        try:
            packets = self._video.encode(frame)
        except av.FFmpegError as error:  # libx264 looks at the size with the first frame only
            height, width = self._shape
            raise VqtokError(
                f"{self._codec} cannot hold frames of {height}x{width}: {error.strerror}"
            ) from error
        for packet in packets:  # without a duration, players leave out the last frame
            packet.duration = max(1, round(1 / (self._fps * self._time_base)))
        return packets


def _container(target: Target) -> tuple[str, str]:
    if hasattr(target, "write"):
        return _CONTAINERS[".mkv"]
    suffix = Path(target).suffix.lower()
    if suffix not in _CONTAINERS:
        raise UsageError(f"{target} must end in one of {', '.join(_CONTAINERS)}")
    return _CONTAINERS[suffix]


def _encoder(codec: str, crf: int | None, picture: bool) -> tuple[str, dict[str, str]]:
    codecs = _PICTURES if picture else _CODECS
    if codec not in codecs:
        raise UsageError(f"no codec {codec!r}; choose one of {', '.join(codecs)}")
    encoder, options = codecs[codec]
    if crf is None:
        return encoder, options
    if "crf" not in options:
        raise UsageError(f"{codec} has no crf")
    return encoder, options | {"crf": str(crf)}
