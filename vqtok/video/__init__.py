"""Read and write videos and images: the only package that knows PyAV."""

import av.logging

from vqtok.video.read import Clip, open_video, read_window
from vqtok.video.section import CannotSplit, Section, Timeline, read_timeline
from vqtok.video.write import VideoWriter

__all__ = [
    "CannotSplit",
    "Clip",
    "Section",
    "Timeline",
    "VideoWriter",
    "open_video",
    "read_timeline",
    "read_window",
]

# Log nothing, not even panics: FFmpeg's threads need the GIL to log, and joining such a thread
# while holding the GIL deadlocks. What the user should know is in Clip.notes.
av.logging.set_level(None)
