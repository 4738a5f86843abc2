"""Frames of any size and pixel format into RGB, by their own matrix and range, and back."""

from collections.abc import Callable
from functools import partial

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

# Without these two, swscale's fast path darkens the picture by one or two levels.
_EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


class Converter:
    """Makes RGB pictures of one frame after another.

    It keeps swscale's tables between frames, and its threads away: beside a model there is no
    processor left for them.
    """

    def __init__(self) -> None:
        self._scaler, self._painter = VideoReformatter(), VideoReformatter()

    def picture(self, frame: VideoFrame, height: int, width: int, format: str) -> np.ndarray:
        """uint8 (h w c) in `format`, rgb24 or rgba; raises OSError for a matrix FFmpeg lacks."""
        own = (height, width) == (frame.height, frame.width)
        # At its own size only the chroma is stretched, and straight lines are faster.
        lines = Interpolation.BILINEAR if own else Interpolation.BICUBIC
        shape = {"height": height, "width": width, "interpolation": lines | _EXACT, "threads": 1}
        if not own and _is_yuv(frame):
            # swscale takes half the time in two steps: it scales planes with vector instructions,
            # but mixes each pixel of RGB, from as many lines as the filter is long, without.
            frame = self._scaler.reformat(frame, format="yuv444p16le", **shape)
        return self._painter.reformat(frame, format=format, **shape).to_ndarray()


def _is_yuv(frame: VideoFrame) -> bool:
    return len(frame.format.components) == 3 and not frame.format.is_rgb


def conversion(
    codec: str, height: int, width: int
) -> tuple[str, Callable[[VideoFrame], VideoFrame]]:
    """The pixel format for a codec and the way RGB frames get there."""
    bicubic = Interpolation.BICUBIC | Interpolation.ACCURATE_RND
    shape = {"height": height, "width": width, "interpolation": bicubic, "threads": 1}
    convert = partial(VideoReformatter().reformat, **shape)
    if codec == "gif":
        dither = _palette(height, width)
        return "pal8", lambda frame: dither(convert(frame))
    if codec in ("ffv1", "png"):
        pixels = {"ffv1": "bgr0", "png": "rgb24"}[codec]
        return pixels, partial(convert, format=pixels)
    # H.264 halves the chroma of even sizes only.
    odd = codec == "h264" and (height % 2 or width % 2)
    pixels = "yuv444p" if odd else "yuv420p"
    matrix, values = Colorspace.ITU709, ColorRange.MPEG
    if codec == "jpeg":  # JFIF knows this one colour space
        pixels, matrix, values = "yuvj444p", Colorspace.ITU601, ColorRange.JPEG
    return pixels, partial(convert, format=pixels, dst_colorspace=matrix, dst_color_range=values)


def _palette(height: int, width: int) -> Callable[[VideoFrame], VideoFrame]:
    """Give each frame the 256 colours that suit it best."""
    graph = Graph()
    source = graph.add("buffer", f"video_size={width}x{height}:pix_fmt=rgb24:time_base=1/1")
    split = graph.add("split")
    colours = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    dither = graph.add("paletteuse", "new=1")
    source.link_to(split)
    split.link_to(dither, 0, 0)
    split.link_to(colours, 1, 0)
    colours.link_to(dither, 0, 1)
    dither.link_to(graph.add("buffersink"))
    graph.configure()

    def convert(frame: VideoFrame) -> VideoFrame:
        graph.vpush(frame)
        return graph.vpull()

    return convert
