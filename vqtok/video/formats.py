"""The containers and codecs that VideoWriter can write, and the settings of their encoders."""

import os
from fractions import Fraction
from pathlib import Path

from vqtok.errors import UsageError, VqtokError
from vqtok.video.source import PathOrFile

MP4 = {"mp4", "mov"}
MAX_DURATION = 2**31 - 3  # ticks that a frame may last in these; rounding may add one

# suffix: (FFmpeg's name of the container, its default codec)
CONTAINERS = {
    ".mp4": ("mp4", "h264"),
    ".mov": ("mov", "h264"),
    ".mkv": ("matroska", "h264"),
    ".webm": ("webm", "vp9"),
    ".gif": ("gif", "gif"),
    # Unlike image2, image2pipe does not interpret a %d in the file name.
    ".png": ("image2pipe", "png"),
    ".jpg": ("image2pipe", "jpeg"),
    ".jpeg": ("image2pipe", "jpeg"),
}
# swscale centers chroma samples, and players expect them at the left: chromaloc.
# The other parameters keep most of the quality of preset medium in a third of its time; files are a
# third larger. Without trellis, or with B-frames, the mean color would be off by one level.
_X264 = "chromaloc=1:trellis=1:bframes=0:subme=2:mbtree=1:rc-lookahead=10"
# codec: (FFmpeg's name of the encoder, its options)
_VIDEO_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "18", "preset": "superfast", "x264-params": _X264}),
    "vp9": ("libvpx-vp9", {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "7"}),
    "ffv1": ("ffv1", {}),
    "gif": ("gif", {}),
}
_IMAGE_ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    "png": ("png", {}),
    "jpeg": ("mjpeg", {"qmin": "2", "qmax": "2"}),
}


def find_container(target: PathOrFile) -> tuple[str, str]:
    """Return FFmpeg's name of the container for a target and its default codec.

    A file object gets a Matroska stream. Raises UsageError for an unknown suffix.
    """
    if not isinstance(target, str | os.PathLike):
        return CONTAINERS[".mkv"]
    suffix = Path(target).suffix.lower()
    if suffix not in CONTAINERS:
        raise UsageError(f"{target} must end in one of {', '.join(CONTAINERS)}")
    return CONTAINERS[suffix]


def is_image(codec: str) -> bool:
    """Return True for a codec whose files hold one frame."""
    return codec in _IMAGE_ENCODERS


def find_encoder(codec: str, crf: int | None, image: bool) -> tuple[str, dict[str, str]]:
    """Return FFmpeg's name of the encoder for a codec and its options.

    crf: quality from 0 to 63, lower is better; None takes the default.
    image: choose among the codecs of images instead of those of videos.

    Raises UsageError for an unknown codec, and for a crf that is out of range or not supported.
    """
    encoders = _IMAGE_ENCODERS if image else _VIDEO_ENCODERS
    if codec not in encoders:
        raise UsageError(f"no codec {codec!r}; choose one of {', '.join(encoders)}")
    encoder, options = encoders[codec]
    if crf is None:
        return encoder, options
    if "crf" not in options:
        raise UsageError(f"{codec} has no crf")
    if not 0 <= crf <= 63:
        raise UsageError(f"crf {crf}: must be 0 to 63")
    return encoder, options | {"crf": str(crf)}


def choose_timescale(container: str, time_base: Fraction, longest: Fraction) -> int:
    """Return the ticks per second to write timestamps in; exact for all of them if possible.

    time_base: seconds per tick of the timestamps.
    longest: seconds that a frame is shown at most.

    Raises VqtokError if the container cannot show a frame for so long.
    """
    if container not in MP4:  # they store milliseconds, or centiseconds
        return min(time_base.denominator, 10**6)
    timescale = min(time_base.denominator, 10**9)  # libvpx takes no more
    while longest * timescale > MAX_DURATION:
        timescale //= 2
    if not timescale:
        raise VqtokError(f"{container} cannot show a frame for {float(longest):.4g} s")
    return timescale
