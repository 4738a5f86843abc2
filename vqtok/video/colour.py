"""Frames of any size and pixel format into RGB, by their own matrix and range."""

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

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
