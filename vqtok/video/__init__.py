"""Frames in, frames out: the only package that knows PyAV."""

import av.logging

from vqtok.video.read import Clip, open_video, read_window
from vqtok.video.write import VideoWriter

__all__ = ["Clip", "VideoWriter", "open_video", "read_window"]

# FFmpeg writes about every oddity of a file to stderr; what a person should hear is in Clip.notes.
av.logging.set_level(av.logging.PANIC)
