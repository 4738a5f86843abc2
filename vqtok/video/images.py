"""Telling files of still images from videos, and from those that FFmpeg cannot decode."""

from av.container import InputContainer
from av.packet import Packet

from vqtok.errors import VqtokError


def is_still_image(container: InputContainer) -> bool:
    """Return True for the formats of still images."""
    name = container.format.name
    return name == "image2" or name.endswith("_pipe") or is_heif_picture(container)


def is_heif_picture(container: InputContainer) -> bool:
    """Return True for HEIF files, including AVIF files, unless they are image sequences."""
    is_sequence = any(stream.frames > 1 for stream in container.streams.video)
    return "mif1" in container.metadata.get("compatible_brands", "") and not is_sequence


def refuse_animated_webp(packet: Packet, name: str) -> None:
    """Raise VqtokError for a packet, not decoded, that holds a WebP file with several frames.

    name: of the file, for the message.
    """
    head = bytes(packet)[:21]
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20:] and head[20] & 2:
        reason = "is an animated WebP, which this version of FFmpeg cannot decode"
        raise VqtokError(f"{name} {reason}; convert it to MP4 or GIF first")
