"""How a decoded frame has to be flipped and transposed to be upright."""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame


class Orientation(NamedTuple):
    """The transposition and the flips, in this order, that make a frame upright."""

    transpose: bool
    flip_vertical: bool
    flip_horizontal: bool

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return an upright view of a decoded image (h w c)."""
        if self.transpose:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


def read_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation that the display matrix of a frame asks for.

    Reading side data puts a frame into a reference cycle in PyAV, so that only the garbage
    collector frees it: do not call this for every frame.
    """
    side_data: Any = _without_icc_profile(frame).side_data
    if "DISPLAYMATRIX" not in side_data:
        return Orientation(False, False, False)
    # A pixel (x, y) of the decoded frame is displayed at (a x + c y, b x + d y).
    a, b, _, c, d, *_ = map(int, np.frombuffer(side_data["DISPLAYMATRIX"], np.int32))
    if abs(b) > abs(a):
        return Orientation(True, b < 0, c < 0)
    return Orientation(False, d < 0, a < 0)


def _without_icc_profile(frame: VideoFrame) -> VideoFrame:
    """Return the same frame without the ICC profile in its side data.

    The PNG decoder attaches metadata to the profile, and PyAV up to 18.1 frees such metadata twice
    once side data has been read, which crashes the process.
    """
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
    )
    delete = graph.add("sidedata", "mode=delete:type=ICC_PROFILE")
    graph.link_nodes(source, delete, graph.add("buffersink")).configure()
    graph.vpush(frame)
    return graph.vpull()
