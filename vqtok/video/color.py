"""Convert decoded frames to RGB, and RGB frames to the pixel format of an encoder."""

from collections import Counter
from collections.abc import Callable

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from vqtok.errors import UsageError
from vqtok.video.cropping import Cropping
from vqtok.video.orientation import read_orientation

# Kinds of changes that conversion to RGB makes, worded for the user.
ALPHA_DROPPED = "alpha channel dropped"
_RESIZED = "{n} frame{s} of another size scaled to the size of the first"
_INTERLACED = "interlaced video is not deinterlaced: moving edges may be combed"
_NOT_TONE_MAPPED = "HDR ({transfer}) is not tone-mapped: colors look washed out"

_HDR_TRANSFERS: dict[int, str] = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}

MAX_SIDE = 65535  # pixels, for any codec

# Pixel formats for which swscale aborts the process.
_UNCONVERTIBLE = {"yaf32le", "yaf32be"}

# Without these flags, swscale's fast path darkens the image by one or two levels.
_EXACT = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


class RGBConverter:
    """Converts the frames of a clip to upright RGB images of one size.

    Here and in `convert`, raises OSError if FFmpeg cannot convert the colors of a frame.

    first: the first frame, which determines size and orientation.
    size: the short side of the images in pixels; None keeps the size of the first frame. The long
        side keeps the aspect ratio, rounded to the nearest pixel.
    cropping: what to cut off every frame first.

    height, width: of the images.
    transposed: True if height and width are swapped to make the first frame upright.
    notes: how often each lossy change was made.
    """

    def __init__(self, first: VideoFrame, size: int | None, cropping: Cropping) -> None:
        _check_format(first)
        self.notes: Counter[str] = Counter()
        self._cropping = cropping
        first = cropping.apply(first)
        # swscale's tables are kept between frames. It gets one thread: the model needs the others.
        self._resizer, self._to_rgb = VideoReformatter(), VideoReformatter()
        self._input_size = first.height, first.width
        self._rotation, self._orientation = first.rotation, read_orientation(first)
        self.transposed = self._orientation.transpose
        height, width = _scaled_size(first.height, first.width, size)
        self.height, self.width = (width, height) if self.transposed else (height, width)

    def convert(self, frame: VideoFrame) -> np.ndarray:
        """Return uint8 (h w 3) RGB."""
        _check_format(frame)
        frame = self._cropping.apply(frame)
        if (frame.height, frame.width) != self._input_size:
            self.notes[_RESIZED] += 1
        if frame.color_trc in _HDR_TRANSFERS:
            self.notes[_NOT_TONE_MAPPED.format(transfer=_HDR_TRANSFERS[frame.color_trc])] += 1
        self.notes[_INTERLACED] += frame.interlaced_frame
        # A stream may state its orientation with the keyframes only.
        if frame.rotation not in (0, self._rotation):
            self._rotation, self._orientation = frame.rotation, read_orientation(frame)
        height, width = self.height, self.width
        if self._orientation.transpose:
            height, width = width, height
        alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
        if _is_limited_gray(frame):
            return self._orientation.apply(self._expand_gray(frame, height, width))
        image = self._reformat(frame, height, width, "rgba" if alpha else "rgb24")
        if alpha and image[..., 3].min() < 255:
            self.notes[ALPHA_DROPPED] += 1
        return self._orientation.apply(image[..., :3])

    def _expand_gray(self, frame: VideoFrame, height: int, width: int) -> np.ndarray:
        """Return the RGB image of a gray frame of limited range, which swscale takes as full."""
        levels = self._reformat(frame, height, width, "rgb48le")[..., :1] / 256
        gray = np.rint((levels - 16) * (255 / 219)).clip(0, 255).astype(np.uint8)
        return gray.repeat(3, axis=2)

    def _reformat(self, frame: VideoFrame, height: int, width: int, format: str) -> np.ndarray:
        same_size = (height, width) == (frame.height, frame.width)
        # At the same size only the chroma planes are scaled, and bilinear is faster.
        method = (Interpolation.BILINEAR if same_size else Interpolation.BICUBIC) | _EXACT
        if not same_size and _is_yuv(frame):
            # Two steps take half the time of one: swscale scales planes with vector instructions,
            # but computes scaled RGB pixel by pixel without them.
            frame = self._resizer.reformat(
                frame, width, height, "yuv444p16le", interpolation=method, threads=1
            )
        rgb = self._to_rgb.reformat(frame, width, height, format, interpolation=method, threads=1)
        return rgb.to_ndarray()


def _check_format(frame: VideoFrame) -> None:
    if frame.format.name in _UNCONVERTIBLE:
        raise OSError("FFmpeg cannot convert this pixel format")


def _scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    if short_side is not None:
        short = min(height, width)
        height = (2 * height * short_side + short) // (2 * short)
        width = (2 * width * short_side + short) // (2 * short)
    # FFmpeg allocates no larger frame, and `VideoWriter` stores no longer sides.
    if (height + 128) * (width + 128) >= 2**28 or max(height, width) > MAX_SIDE:
        size = f"{height}x{width}" if max(height, width) < 10**9 else "that size"
        raise UsageError(f"frames of {size} are too large: choose a smaller size")
    return max(height, 1), max(width, 1)


def _is_yuv(frame: VideoFrame) -> bool:
    return len(frame.format.components) == 3 and not frame.format.is_rgb


def _is_limited_gray(frame: VideoFrame) -> bool:
    return frame.format.name.startswith("gray") and frame.color_range == ColorRange.MPEG


def encoder_input(
    codec: str, height: int, width: int
) -> tuple[str, Callable[[VideoFrame], VideoFrame]]:
    """Return the pixel format to encode `codec` in and a function that converts RGB frames to it.

    codec: h264, vp9, ffv1, gif, png or jpeg.
    height, width: of the converted frames, in pixels.
    """
    pix_fmt, colorspace, color_range = _encoder_format(codec, height, width)
    reformatter = VideoReformatter()
    method = Interpolation.BICUBIC | Interpolation.ACCURATE_RND

    def convert(frame: VideoFrame) -> VideoFrame:
        return reformatter.reformat(
            frame,
            width,
            height,
            pix_fmt,
            dst_colorspace=colorspace,
            dst_color_range=color_range,
            interpolation=method,
            threads=1,
        )

    if codec != "gif":
        return pix_fmt, convert
    quantize = _palette_quantizer(height, width)
    return "pal8", lambda frame: quantize(convert(frame))


def _encoder_format(
    codec: str, height: int, width: int
) -> tuple[str, Colorspace | None, ColorRange | None]:
    """Return pixel format, color matrix and range; the last two only for YUV."""
    if codec in ("gif", "png"):
        return "rgb24", None, None
    if codec == "ffv1":
        return "bgr0", None, None
    if codec == "jpeg":  # JFIF allows no other matrix and range
        return "yuvj444p", Colorspace.ITU601, ColorRange.JPEG
    # H.264 can subsample the chroma of even sizes only.
    odd = codec == "h264" and (height % 2 or width % 2)
    return "yuv444p" if odd else "yuv420p", Colorspace.ITU709, ColorRange.MPEG


def _palette_quantizer(height: int, width: int) -> Callable[[VideoFrame], VideoFrame]:
    """Return a function that dithers RGB frames, each to its own palette of 256 colors."""
    graph = Graph()
    source = graph.add("buffer", f"video_size={width}x{height}:pix_fmt=rgb24:time_base=1/1")
    split = graph.add("split")
    palettegen = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    paletteuse = graph.add("paletteuse", "new=1")
    source.link_to(split)
    split.link_to(paletteuse, 0, 0)
    split.link_to(palettegen, 1, 0)
    palettegen.link_to(paletteuse, 0, 1)
    paletteuse.link_to(graph.add("buffersink"))
    graph.configure()

    def quantize(frame: VideoFrame) -> VideoFrame:
        graph.vpush(frame)
        return graph.vpull()

    return quantize
