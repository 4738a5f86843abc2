"""Pictures that a HEIF file stores as a grid of tiles, such as photographs from phones.

FFmpeg makes a stream of every tile. How they make up the picture is not exposed by PyAV up to 18.1,
so it is read from the file.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import av
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vqtok.errors import VqtokError
from vqtok.video.heif import HeifItems
from vqtok.video.images import is_heif_picture
from vqtok.video.source import PathOrFile, display_name

_GRID_BYTES = 12  # of the content of a grid, at most
_ROTATIONS: list[list[str]] = [[], ["transpose=cclock"], ["hflip", "vflip"], ["transpose=clock"]]


class TileGrid(NamedTuple):
    """A picture made of tiles of one size.

    tiles: their streams from left to right and from top to bottom.
    columns: number of tiles in a row.
    filters: FFmpeg filters that turn the joined tiles into the upright picture.
    """

    tiles: list[VideoStream]
    columns: int
    filters: list[str]

    def frames(self, container: InputContainer) -> Iterator[VideoFrame]:
        """Yield the picture, or nothing if a tile cannot be decoded."""
        decoded: dict[int, VideoFrame] = {}
        with suppress(av.FFmpegError, LookupError):
            for packet in container.demux(self.tiles):
                for frame in packet.decode():
                    if isinstance(frame, VideoFrame) and not frame.is_corrupt:
                        decoded[packet.stream.index] = frame
            yield self._join([decoded[tile.index] for tile in self.tiles])

    def _join(self, tiles: list[VideoFrame]) -> VideoFrame:
        first, graph = tiles[0], Graph()
        positions = [divmod(i, self.columns) for i in range(len(tiles))]
        layout = "|".join(f"{first.width * x}_{first.height * y}" for y, x in positions)
        stack = ["xstack", f"inputs={len(tiles)}:layout={layout}"] if len(tiles) > 1 else ["null"]
        nodes = [graph.add(*stack)]
        for i, tile in enumerate(tiles):
            buffer = graph.add_buffer(
                width=tile.width, height=tile.height, format=tile.format, time_base=Fraction(1)
            )
            buffer.link_to(nodes[0], 0, i)
        nodes += [graph.add(*filter.split("=", 1)) for filter in self.filters]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        for i, tile in enumerate(tiles):
            graph.vpush(tile, i)
        picture = graph.vpull()
        picture.colorspace, picture.color_range = first.colorspace, first.color_range
        picture.color_trc = first.color_trc
        return picture


def read_tile_grid(source: PathOrFile, container: InputContainer) -> TileGrid | None:
    """Return the primary picture of a HEIF file, or None if that is no grid of tiles.

    source: what the container was opened from.

    Raises VqtokError if the picture is made of others in a way that is not supported.
    """
    if not is_heif_picture(container):
        return None
    streams = {stream.id: stream for stream in container.streams.video if stream.codec_context}
    with suppress(LookupError, OverflowError, struct.error), _borrow_file(container) as file:
        items = HeifItems(file)
        if items.primary in streams:
            return None
        if items.type(items.primary) == b"grid":
            tiles = [streams[tile] for tile in items.inputs(items.primary)]
            columns, width, height = _parse_grid(items.data(items.primary, _GRID_BYTES))
            filters = [f"crop={width}:{height}:0:0:exact=1"]
            for kind, content in items.properties(items.primary):
                filters += _filters(kind, content)
            for tile in tiles:
                tile.codec_context.thread_count = 1  # there are many decoders
            return TileGrid(tiles, columns, filters)
    reason = "is made of several pictures in a way that is not supported"
    raise VqtokError(f"{display_name(source)} {reason}; convert it to JPEG or PNG first")


def _parse_grid(content: bytes) -> tuple[int, int, int]:
    """Return the columns of a grid and the width and height of the picture."""
    layout = ">3xB2I" if content[1] & 1 else ">3xB2H"
    last_column, width, height = struct.unpack(layout, content)
    return last_column + 1, width, height


def _filters(kind: bytes, content: bytes) -> list[str]:
    """Return the FFmpeg filters for a property of a picture."""
    if kind == b"irot":
        return _ROTATIONS[content[0] % 4]
    if kind == b"imir":
        return ["hflip" if content[0] % 2 else "vflip"]
    if kind == b"clap":  # fractions: the size, and how far its center is off
        values = struct.unpack_from(">iIiIiIiI", content)
        width, height, x, y = (f"{values[i]}/{values[i + 1]}" for i in (0, 2, 4, 6))
        return [f"crop={width}:{height}:(iw-ow)/2+{x}:(ih-oh)/2+{y}:exact=1"]
    return []


@contextmanager
def _borrow_file(container: InputContainer) -> Iterator[BinaryIO]:
    """Lend the file that a container reads."""
    file = container.file.file
    position = file.tell()
    try:
        yield file
    finally:
        file.seek(position)
