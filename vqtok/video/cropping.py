"""How much a container cuts off the edges of the decoded frames of a stream."""

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

# IDs of Matroska elements.
_TRACKS_PATH = [0x18538067, 0x1654AE6B, 0xAE, 0xE0]  # Segment, Tracks, TrackEntry, Video
_EDGES = {0x54BB: "top", 0x54AA: "bottom", 0x54CC: "left", 0x54DD: "right"}  # PixelCrop...


class Cropping(NamedTuple):
    """Pixels to cut off each edge of a decoded frame, before it is rotated."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def apply(self, frame: VideoFrame) -> VideoFrame:
        """Return the part of a frame that is left, or the same frame if that is all or nothing."""
        leaves_some = self.left + self.right < frame.width and self.top + self.bottom < frame.height
        if not any(self) or not leaves_some:
            return frame
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1)
        )
        size = f"w=iw-{self.left + self.right}:h=ih-{self.top + self.bottom}"
        crop = graph.add("crop", f"{size}:x={self.left}:y={self.top}:exact=1")
        graph.link_nodes(source, crop, graph.add("buffersink")).configure()
        graph.vpush(frame)
        return graph.vpull()


def read_cropping(container: InputContainer, stream: VideoStream) -> Cropping:
    """Return the cropping that a Matroska, MP4, HEIF or AVIF file asks for.

    PyAV does not expose it, but FFmpeg copies it to the header of a new Matroska file. If Matroska
    cannot store the codec, the cropping remains unknown and nothing is cut off.
    """
    if not container.format.name.startswith(("matroska", "mov")):
        return Cropping()
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as copy:
            copy.add_stream_from_template(stream, opaque=True).metadata.clear()
            copy.start_encoding()
    except (av.FFmpegError, ValueError):
        return Cropping()
    content = [header.getvalue()]
    for path in _TRACKS_PATH:
        content = [data for part in content for id, data in _elements(part) if id == path]
    edges = {_EDGES[id]: data for part in content for id, data in _elements(part) if id in _EDGES}
    return Cropping(**{edge: int.from_bytes(data) for edge, data in edges.items()})


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the ID and the content of each element in the content of a Matroska element."""
    start = 0
    while start < len(data):
        # The ID and the length take one byte more than their leading zero bits.
        end = start + 9 - data[start].bit_length()
        id, start = int.from_bytes(data[start:end]), end
        width = 9 - data[start].bit_length()
        end = start + width
        length = int.from_bytes(data[start:end]) & ((1 << 7 * width) - 1)
        yield id, data[end : end + length]
        start = end + length
