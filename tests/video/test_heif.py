"""HEIF files, whose pictures may be made of tiles: the picture is read, never a part of it."""

import io
import os
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest

from helpers import CLIPS
from helpers.clips import pattern, read_clip
from helpers.ffmpeg import ffmpeg_frames, run_ffmpeg
from vqtok.errors import VqtokError
from vqtok.video.heif import HeifItems

REPORTS = CLIPS.parent / "reports"
TILE = 64
IMAGE = pattern(1, 110, 180)[0]  # cuts through the last of 2x3 tiles
THUMBNAIL = np.full((TILE, TILE, 3), 255, np.uint8)
PRIMARY, FIRST_TILE = 1, 10  # IDs of items
AV1C = bytes([0x81, 0x20, 0, 0])  # profile 1, 8 bits, 4:4:4


def box(kind, *contents):
    content = b"".join(contents)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full_box(kind, version, *contents, flags=0):
    return box(kind, struct.pack(">I", version << 24 | flags), *contents)


def encode_tile(rgb):
    """Return an image (h w 3) as AV1, without loss except for the conversion to YUV."""
    size = f"{rgb.shape[1]}x{rgb.shape[0]}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-i", "-"]
    scale = ["-vf", "scale=out_color_matrix=bt709:out_range=pc:flags=accurate_rnd,format=yuv444p"]
    codec = ["-c:v", "libaom-av1", "-cpu-used", "8", "-aom-params", "lossless=1"]
    tags = ["-color_range", "pc", "-colorspace", "bt709"]
    output = ["-frames:v", "1", "-f", "obu", "-"]
    return run_ffmpeg(*raw, *scale, *codec, *tags, *output, stdin=rgb.tobytes())


@pytest.fixture(scope="module")
def tiles():
    """The tiles of IMAGE, and a thumbnail of another look, encoded."""
    padded = np.pad(IMAGE, ((0, 2 * TILE - 110), (0, 3 * TILE - 180), (0, 0)), "edge")
    parts = [part for row in np.vsplit(padded, 2) for part in np.hsplit(row, 3)]
    return [encode_tile(part) for part in [*parts, THUMBNAIL]]


def grid(height, width, rows=2, columns=3, large=False):
    return struct.pack(
        ">4B2I" if large else ">4B2H", 0, large, rows - 1, columns - 1, width, height
    )


def heif(tiles, layout, properties=(), kind=b"grid", in_idat=True):
    """Return a HEIF file whose first item is made of tiles; the last of `tiles` is its thumbnail.

    layout: the content of the first item.
    properties: boxes of transformations, in their order.
    """
    tile_ids = [FIRST_TILE + i for i in range(len(tiles))]
    thumbnail = tile_ids.pop()
    names = [(PRIMARY, kind), *((i, b"av01") for i in (*tile_ids, thumbnail))]
    ispe = [full_box(b"ispe", 0, struct.pack(">2I", *size)) for size in ((TILE, TILE), (180, 110))]
    pixi = full_box(b"pixi", 0, bytes([3, 8, 8, 8]))
    ipco = [*ispe, pixi, box(b"av1C", AV1C), *properties]
    own = bytes([2, 3, *(0x80 | index for index in range(5, 5 + len(properties)))])
    associations = [(PRIMARY, own), *((i, bytes([1, 3, 4])) for i in (*tile_ids, thumbnail))]
    ipma = b"".join(struct.pack(">HB", i, len(index)) + index for i, index in associations)
    inputs = struct.pack(f">2H{len(tile_ids)}H", PRIMARY, len(tile_ids), *tile_ids)
    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")

    def meta(start):
        """Return the boxes of which those that follow depend on where the data starts."""
        locations = []
        offset = start
        for i, data in [*zip((*tile_ids, thumbnail), tiles, strict=True), (PRIMARY, layout)]:
            inside = i == PRIMARY and in_idat
            place = 0 if inside else offset
            locations.append(struct.pack(">4H2I", i, inside, 0, 1, place, len(data)))
            offset += len(data)
        return full_box(
            b"meta",
            0,
            full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, struct.pack(">H", PRIMARY)),
            full_box(b"iloc", 1, b"\x44\x00", struct.pack(">H", len(names)), *locations),
            full_box(
                b"iinf",
                0,
                struct.pack(">H", len(names)),
                *(full_box(b"infe", 2, struct.pack(">2H4s", i, 0, t), b"\0") for i, t in names),
            ),
            full_box(
                b"iref",
                0,
                box(b"thmb", struct.pack(">3H", thumbnail, 1, PRIMARY)),
                box(b"dimg", inputs),
            ),
            box(
                b"iprp",
                box(b"ipco", *ipco),
                full_box(b"ipma", 0, struct.pack(">I", len(associations)), ipma),
            ),
            box(b"idat", layout),
        )

    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *tiles, layout)


def assert_close(frame, expected, tolerance=2):
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).max() <= tolerance


def test_the_tiles_of_a_picture_are_joined(tiles):
    for file in (
        heif(tiles, grid(110, 180)),
        heif(tiles, grid(110, 180, large=True)),
        heif(tiles, grid(110, 180), in_idat=False),
    ):
        frames, timestamps, clip = read_clip(io.BytesIO(file))
        assert timestamps == [0]
        assert_close(frames[0], IMAGE)
        assert clip.notes == []


def test_other_programs_join_the_tiles_in_the_same_way(tiles, tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    from PIL.ImageOps import exif_transpose

    path = tmp_path / "grid.avif"
    path.write_bytes(heif(tiles, grid(110, 180), [box(b"irot", b"\1"), box(b"imir", b"\0")]))
    frames = read_clip(path)[0]
    assert_close(frames, ffmpeg_frames(path, 1))
    assert_close(frames[0], np.asarray(exif_transpose(pillow.open(path))))


def test_a_grid_of_one_tile(tiles):
    file = heif([tiles[0], tiles[-1]], grid(50, 40, 1, 1))
    assert_close(read_clip(io.BytesIO(file))[0][0], IMAGE[:50, :40])


def test_the_transformations_of_a_picture_are_applied_in_their_order(tiles):
    irot = [box(b"irot", bytes([angle])) for angle in range(4)]
    imir = [box(b"imir", bytes([axis])) for axis in range(2)]
    # 100x60 pixels, whose center is 10 right of and 5 above that of the picture
    clap = box(b"clap", struct.pack(">4I" + "iI" * 2, 100, 1, 60, 1, 10, 1, -5, 1))
    cropped = IMAGE[20:80, 50:150]
    for properties, expected in (
        *(([irot[turns]], np.rot90(IMAGE, turns)) for turns in range(4)),
        ([imir[0]], IMAGE[::-1]),
        ([imir[1]], IMAGE[:, ::-1]),
        ([irot[1], imir[0]], np.rot90(IMAGE)[::-1]),
        ([imir[0], irot[1]], np.rot90(IMAGE[::-1])),
        ([clap], cropped),
        ([clap, irot[3], imir[1]], np.rot90(cropped, -1)[:, ::-1]),
    ):
        frames, _, clip = read_clip(io.BytesIO(heif(tiles, grid(110, 180), properties)))
        assert_close(frames[0], expected)
        assert (clip.height, clip.width) == expected.shape[:2]


def test_a_picture_from_a_pipe(tiles):
    file = heif(tiles, grid(110, 180))
    reading, writing = os.pipe()

    def write():
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(file)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reading, "rb") as pipe:
        assert_close(read_clip(pipe)[0][0], IMAGE)
    thread.join()


def test_a_picture_is_one_frame_at_any_rate(tiles):
    file = heif(tiles, grid(110, 180))
    assert read_clip(io.BytesIO(file), fps=Fraction(60))[1] == [0]


def test_a_picture_that_cannot_be_composed_is_refused(tiles):
    for file in (
        heif(tiles, b"", kind=b"iden"),
        heif(tiles, grid(110, 180)).replace(b"dimg", b"free"),
    ):
        with pytest.raises(VqtokError, match="not supported; convert it to JPEG or PNG first"):
            read_clip(io.BytesIO(file))


def test_a_picture_with_a_damaged_tile_is_refused(tiles):
    damaged = [*tiles[:4], b"\x12\x00\x0a" + bytes(40), *tiles[5:]]
    with pytest.raises(VqtokError, match="no frame that can be decoded"):
        read_clip(io.BytesIO(heif(damaged, grid(110, 180))))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("sofa_grid1x5_420.avif", (770, 1024)), ("L_10__29x100.heif", (100, 29))],
)
def test_photographs_are_read_as_other_programs_do(name, shape):
    if not (REPORTS / name).exists():
        pytest.skip("needs the files of the developers")
    frame = read_clip(REPORTS / name)[0][0]
    assert frame.shape == (*shape, 3)
    assert np.abs(frame - ffmpeg_frames(REPORTS / name, 1)[0].astype(float)).mean() < 1


def items_with(iloc, rest=b""):
    """Return the items of a file whose meta box has these item locations, followed by `rest`."""
    pitm = full_box(b"pitm", 0, struct.pack(">H", PRIMARY))
    meta = full_box(b"meta", 0, pitm, full_box(b"iloc", 0, iloc))
    return HeifItems(io.BytesIO(meta + rest))


def test_no_more_is_read_than_is_asked_for():
    """However many extents an item claims, each of them the whole file."""
    extents = struct.pack(">II", 0, 2**32 - 1) * 1000
    header = struct.pack(">BBHHHH", 0x44, 0, 1, PRIMARY, 0, 1000)
    assert len(items_with(header + extents, bytes(10**6)).data(PRIMARY, 12)) == 12


@pytest.mark.parametrize("sizes", [0x00, 0x44])
def test_entries_that_a_file_has_no_bytes_for_cost_nothing(sizes):
    """It takes hours to count 65,535 times 65,535 extents."""
    entries = struct.pack(">HHH", PRIMARY + 1, 0, 65535) * 60_000
    items = items_with(struct.pack(">BBH", sizes, 0, 65535) + entries)
    with pytest.raises(LookupError):
        items.data(PRIMARY, 12)
