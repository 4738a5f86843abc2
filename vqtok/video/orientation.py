"""How a decoded frame has to be flipped and transposed to be upright.

The display matrix of a frame is side data, whichever way the file states it. PyAV up to 18.1 cannot
be asked for side data: it frees the metadata of an ICC profile twice, which crashes the process,
and fails for types that it has no name for, such as EXIF. `VideoFrame.rotation` is safe, but tells
only the angle. Whether the matrix mirrors is read from a PNG image: FFmpeg's encoder states the
matrix of a frame with EXIF data as an EXIF orientation.
"""

import struct
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from av.codec import CodecContext
from av.packet import Packet, PacketSideData
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation

_EMPTY_EXIF = struct.pack("<2sHIHI", b"II", 42, 8, 0, 0)
_EXIF_SIDE_DATA = 40  # AV_PKT_DATA_EXIF, which PyAV up to 18.1 has no name for
_ORIENTATION_TAG = [0x112, 3, 1]  # with the type SHORT and the count
_SIDE = 8  # of the thumbnail; swscale scales the fields of interlaced frames one by one
_MIRRORED = {2, 4, 5, 7}  # EXIF orientations


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


def expose_orientation(packet: Packet) -> None:
    """Make `read_orientation` work for the frames that are decoded from a packet."""
    exif = PacketSideData(_EXIF_SIDE_DATA, len(_EMPTY_EXIF))  # type: ignore[call-arg]
    exif.update(_EMPTY_EXIF)
    packet.set_sidedata(exif, move=True)


def read_orientation(frame: VideoFrame) -> Orientation:
    """Return the orientation that the display matrix of a frame asks for.

    Angles are rounded to right ones. Do not call this for every frame: it encodes a thumbnail.
    """
    if abs(frame.rotation) > 180:  # an integer made of NaN: the matrix maps the frame to nothing
        return Orientation(False, False, False)
    quarter_turns = round(frame.rotation / 90) % 4
    negative = quarter_turns in (1, 2)  # the first row of the matrix
    mirrored = _exif_orientation(_encode_thumbnail(frame)) in _MIRRORED
    if quarter_turns % 2:
        return Orientation(True, negative, mirrored == negative)
    return Orientation(False, mirrored != negative, negative)


def _encode_thumbnail(frame: VideoFrame) -> bytes:
    """Return a PNG image of a few pixels with the side data of a frame."""
    # Color does not matter here.
    matrix, method = Colorspace.ITU709, Interpolation.POINT
    try:
        image = frame.reformat(_SIDE, _SIDE, "rgb24", matrix, matrix, method, threads=1)
    except OSError:  # RGBConverter.convert refuses this frame
        return b""
    encoder = CodecContext.create("png", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = _SIDE, _SIDE, "rgb24"
    encoder.time_base = Fraction(1)
    return b"".join(map(bytes, (*encoder.encode(image), *encoder.encode(None))))


def _exif_orientation(png: bytes) -> int:
    """Return the EXIF orientation of a PNG image: 1 to 8, 1 if it has none."""
    start = 8  # of a chunk, after the signature
    while start < len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        if kind == b"eXIf":
            return _find_orientation(png[start + 8 : start + 8 + length])
        start += 12 + length
    return 1


def _find_orientation(exif: bytes) -> int:
    order = "<" if exif.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for i in range(count):
        *tag, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * i)
        if tag == _ORIENTATION_TAG:
            return value
    return 1
