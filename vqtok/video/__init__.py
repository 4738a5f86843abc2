"""Read and write videos and images: the only package that knows PyAV."""

from typing import Any

import av.logging
from av.sidedata.sidedata import Type

from vqtok.video.read import Clip, open_video, read_window
from vqtok.video.write import VideoWriter

__all__ = ["Clip", "VideoWriter", "open_video", "read_window"]

# Log nothing, not even panics: FFmpeg's threads need the GIL to log, and joining such a thread
# while holding the GIL deadlocks. What the user should know is in Clip.notes.
av.logging.set_level(None)


def _add_unknown_type(cls: type[Type], value: Any) -> Type:
    """Return an enum member for a side data type that PyAV has no name for."""
    member = object.__new__(cls)
    member._name_, member._value_ = str(value), value
    return member


# One unknown side data type, such as EXIF up to PyAV 18.1, makes all side data of a frame
# unreadable, the display matrix included.
Type._missing_ = classmethod(_add_unknown_type)  # type: ignore[method-assign, assignment]
