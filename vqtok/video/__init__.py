"""Frames in, frames out: the only package that knows PyAV."""

import av.logging

from vqtok.video.read import Clip, open_video, read_window
from vqtok.video.write import VideoWriter

__all__ = ["Clip", "VideoWriter", "open_video", "read_window"]

# Silence: what a person should hear is in Clip.notes. Any level, PANIC too, would make FFmpeg's
# threads wait for Python's lock to log, and a thread being joined would wait for ever.
av.logging.set_level(None)
