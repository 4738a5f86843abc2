"""Write RGB frames with timestamps to a video file or an image, with audio if wanted."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from fractions import Fraction
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from vqtok.atomic import atomic_write
from vqtok.errors import UsageError, VqtokError, os_reason
from vqtok.video.audio import AudioCopier
from vqtok.video.color import MAX_SIDE, encoder_input
from vqtok.video.container import open_container
from vqtok.video.formats import (
    MAX_DURATION,
    MP4,
    choose_timescale,
    find_container,
    find_encoder,
    is_image,
)
from vqtok.video.source import PathOrFile, display_name

_MAX_SECONDS = 2**32  # 136 years; in ticks of 1 ns, they fit in 64 bits
# What a container rounds times to, in ticks per second, and the ticks that a frame lasts at least.
# Players replace shorter delays in a gif by longer ones.
_ROUNDED_TIMES = {"gif": (100, 2), "matroska": (1000, 1), "webm": (1000, 1)}
_MAX_GIF_DELAY = 65535  # centiseconds


class VideoWriter:
    """Writes a clip: `with VideoWriter(...) as writer: writer.write(frames, timestamps)`.

    target: a path ending in .mp4, .mov, .mkv, .webm or .gif, or in .png or .jpg for a clip of one
        frame; the file appears when the block ends without an error. A binary file or a pipe gets a
        Matroska stream.
    height, width: of the frames, any size.
    fps: frames per second, the average for a variable frame rate.
    time_base: seconds per tick of the timestamps. mp4 and mov store every timestamp exactly, except
        that they round to 1 ns, and to a billionth of the longest time between two frames if that
        is 2^31 ticks or more. mkv and webm store them to half a millisecond, and gif to half a
        centisecond, starting from zero. Frames beyond 1000 per second, or 50 in a gif, are dropped,
        and `notes` says so. An image stores no time.
    max_gap: the longest time from one frame to the next, in ticks; needed only if that is 2^31 or
        more.
    last: the timestamp of the last frame, to refuse it before anything is written; None if it is
        not known.
    origin: the timestamp that becomes time zero.
    pixel_aspect: width of a pixel divided by its height. h264 and images store it. For other codecs
        the frames are stretched until pixels are square, and `notes` says so.
    codec: h264, vp9, ffv1 (lossless, in mkv) or gif; by default that of the container.
    crf: quality of h264 (default 18) and vp9 (default 24), lower is better.
    audio_from: a file whose audio is copied unchanged for the time that the frames cover.

    Raises UsageError for an unknown container, codec or crf and for a second frame in an image,
    VqtokError if there is no audio, or if the container cannot store it or a timestamp.
    """

    def __init__(
        self,
        target: PathOrFile,
        *,
        height: int,
        width: int,
        fps: Fraction | int,
        time_base: Fraction,
        max_gap: int = 0,
        last: int | None = None,
        origin: int = 0,
        pixel_aspect: Fraction | int = 1,
        codec: str | None = None,
        crf: int | None = None,
        audio_from: PathOrFile | None = None,
    ) -> None:
        self._target, self._audio_from = target, audio_from
        self._fps, self._time_base, self._origin = Fraction(fps), time_base, origin
        self._size, self._pixel_aspect = (height, width), Fraction(pixel_aspect)
        self._format, default_codec = find_container(target)
        self._codec = codec or default_codec
        self._is_image = is_image(default_codec)
        if self._is_image and (codec is not None or audio_from is not None):
            raise UsageError(f"{target} is an image: it takes no codec and no audio")
        if self._format == "gif" and audio_from is not None:
            raise UsageError(f"{target}: a gif has no audio; write to .mkv")
        self._encoder, self._encoder_options = find_encoder(self._codec, crf, self._is_image)
        longest = max(1 / self._fps, max_gap * time_base)  # seconds that a frame is shown
        self._timescale = choose_timescale(self._format, time_base, longest)
        if last is not None:
            self._check_time((last - origin) * time_base)
        self._last_pts: int | None = None
        self._audio: AudioCopier | None = None
        self._frame_count = 0
        self._stretch_note: str | None = None
        self._last_rounded: int | None = None  # time of the last frame; see _ROUNDED_TIMES
        self._dropped_frames = 0
        if self._codec != "h264" and not self._is_image:
            self._make_pixels_square()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            target = self._target
            if isinstance(target, str | os.PathLike):
                target = stack.enter_context(atomic_write(target))
            else:
                stack.callback(target.flush)
            options = self._container_options()
            self._container = av.open(target, "w", format=self._format, container_options=options)
            stack.push(self._close)
            self._add_video_stream()
            if self._audio_from is not None:
                source = stack.enter_context(open_container(self._audio_from))
                name, origin = display_name(self._audio_from), self._origin * self._time_base
                self._audio = AudioCopier(source, name, self._container, origin, 1 / self._fps)
            self._write_header()
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, traceback)

    def write(self, frames: np.ndarray, timestamps: Sequence[int]) -> None:
        """Append frames: uint8 (t h w c) RGB, with t strictly increasing timestamps in ticks."""
        self._frame_count += len(frames)
        if self._is_image and self._frame_count > 1:
            raise UsageError(
                f"{self._target} holds one frame and there are more: write to .mp4, or to .mkv "
                "with codec ffv1 to lose nothing"
            )
        for rgb, timestamp in zip(frames, timestamps, strict=True):
            time = (int(timestamp) - self._origin) * self._time_base
            pts = self._next_pts(time)
            if self._is_too_soon(pts):
                self._dropped_frames += 1
                continue
            frame = self._convert(VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24"))
            frame.pts, frame.time_base = pts, Fraction(1, self._timescale)
            self._mux(frame)
            if self._audio:
                self._audio.copy_during(int(timestamp) * self._time_base)

    @property
    def notes(self) -> list[str]:
        """What was changed on the way, for the user; complete after writing."""
        notes = [self._stretch_note] if self._stretch_note else []
        if count := self._dropped_frames:
            rate, shortest = _ROUNDED_TIMES[self._format]
            dropped = f"{count} frame{'s' * (count > 1)} dropped"
            notes.append(f"{dropped}: a {self._format} frame lasts {shortest / rate} s or more")
        return notes

    def _next_pts(self, time: Fraction) -> int:
        """Return the time of the next frame, in seconds, in ticks of the timescale.

        Raises VqtokError if the container cannot store it, or not after the last one.
        """
        self._check_time(time)
        pts, last = round(time * self._timescale), self._last_pts
        if self._format in MP4 and last is not None and not 0 < pts - last <= MAX_DURATION + 1:
            raise VqtokError(
                f"{self._format} cannot store both the shortest and the longest time between these "
                "frames; write to .mkv"
            )
        self._last_pts = pts
        return pts

    def _check_time(self, time: Fraction) -> None:
        if abs(time) >= _MAX_SECONDS:
            raise VqtokError(f"{self._format} cannot store a frame at {float(time):.4g} s")

    def _is_too_soon(self, pts: int) -> bool:
        """Return True if the container would not show the last frame before this one."""
        if self._format not in _ROUNDED_TIMES:
            return False
        rate, shortest = _ROUNDED_TIMES[self._format]
        # As FFmpeg rounds: to the nearest, halves up.
        now, last = (2 * pts * rate + self._timescale) // (2 * self._timescale), self._last_rounded
        if last is not None and self._format == "gif" and now > last + _MAX_GIF_DELAY:
            raise VqtokError("gif cannot show a frame for more than 655 s; write to .mp4")
        if last is not None and now < last + shortest:
            return True
        self._last_rounded = now
        return False

    def _make_pixels_square(self) -> None:
        (height, width), aspect = self._size, self._pixel_aspect
        size = (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)
        if max(size) > MAX_SIDE:
            raise VqtokError(f"{self._codec} cannot store frames of {size[0]}x{size[1]}")
        if size != self._size:
            self._stretch_note = (
                f"{self._codec} cannot store a pixel aspect ratio of {aspect.numerator}:"
                f"{aspect.denominator}: frames stretched from {height}x{width} to "
                f"{size[0]}x{size[1]}"
            )
        self._size, self._pixel_aspect = size, Fraction(1)

    def _container_options(self) -> dict[str, str]:
        """Return options for equal files of equal frames, and for timestamps of mp4 and mov.

        These store timestamps in ticks of the timescale.
        """
        options = {"fflags": "+bitexact"}  # no random IDs in mkv and webm
        if self._format not in MP4:
            return options
        # The start of a track is stored in ticks of the movie. They must be fine enough for audio.
        movie_timescale = self._timescale * max(1, 90000 // self._timescale)
        return options | {
            "video_track_timescale": str(self._timescale),
            "movie_timescale": str(movie_timescale),
        }

    def _add_video_stream(self) -> None:
        try:
            stream = self._container.add_stream(
                self._encoder, self._fps, options=self._encoder_options
            )
        except ValueError as error:
            raise self._refuse_codec() from error
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = self._size
        stream.pix_fmt, self._convert = encoder_input(self._codec, *self._size)
        context = stream.codec_context
        context.time_base = stream.time_base = Fraction(1, self._timescale)
        # libvpx takes 1 to 2^32 - 1 ticks for the average duration of a frame.
        slowest, fastest = Fraction(self._timescale, MAX_DURATION), Fraction(self._timescale)
        context.framerate = min(max(self._fps, slowest), fastest)
        context.sample_aspect_ratio = self._pixel_aspect
        if self._codec in ("h264", "vp9"):
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
            context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._stream = stream

    def _write_header(self) -> None:
        try:
            self._stream.codec_context.open()
        except av.FFmpegError as error:
            (height, width), name = self._size, display_name(self._target)
            raise UsageError(
                f"{name} cannot store frames of {height}x{width}: {os_reason(error)}"
            ) from error
        try:
            self._container.start_encoding()
        except av.error.ArgumentError as error:
            raise self._refuse_codec() from error

    def _refuse_codec(self) -> UsageError:
        suffix = ".gif" if self._codec == "gif" else ".mkv"
        return UsageError(f"{self._format} cannot store {self._codec}; write to {suffix}")

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._mux(None)
            if self._audio:
                self._audio.finish()

    def _close(self, kind: type[BaseException] | None, *_: object) -> None:
        # A file that lacks frames may not close. That must not hide the error that is the reason.
        with self._explain() if kind is None else suppress(av.FFmpegError):
            self._container.close()

    def _mux(self, frame: VideoFrame | None) -> None:
        packets = self._encode(frame)
        with self._explain():
            self._container.mux(packets)

    def _explain(self) -> AbstractContextManager[None]:
        return self._audio.explain_damage() if self._audio else nullcontext()

    def _encode(self, frame: VideoFrame | None) -> list[av.Packet]:
        try:
            packets = self._stream.encode(frame)
        except av.FFmpegError as error:
            height, width = self._size
            raise VqtokError(
                f"{self._codec} cannot encode a {height}x{width} frame: {os_reason(error)}"
            ) from error
        for packet in packets:  # without a duration, players skip the last frame
            packet.duration = max(1, round(self._timescale / self._fps))
        return packets
