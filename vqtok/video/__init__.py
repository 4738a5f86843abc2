"""Frames in, frames out: the only package that knows PyAV."""

import av.logging
from av.sidedata.sidedata import Type

from vqtok.video.read import Clip, open_video, read_window
from vqtok.video.write import VideoWriter

__all__ = ["Clip", "VideoWriter", "open_video", "read_window"]

# Silence: what a person should hear is in Clip.notes. Any level, PANIC too, would make FFmpeg's
# threads wait for Python's lock to log, and a thread being joined would wait for ever.
av.logging.set_level(None)


def _unnamed(cls: type[Type], value: int) -> Type:
    member = object.__new__(cls)
    member._name_, member._value_ = str(value), value
    return member


# What lies beside a frame and has no name in PyAV up to 18.1, as EXIF has none, would hide all the
# rest, such as how the picture is turned.
Type._missing_ = classmethod(_unnamed)
