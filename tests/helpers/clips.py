"""Real clips where they are at hand, and small synthetic ones."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from helpers import CLIPS

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffmpeg is not installed")


def clip_files(folder, *names):
    """Parameters for a test of every file, or those named, in a folder of the real clips."""
    files = [f for f in sorted((CLIPS / folder).glob("*")) if not names or f.name in names]
    absent = pytest.param(None, marks=pytest.mark.skip(reason=f"no clips in {CLIPS / folder}"))
    return [pytest.param(file, id=file.name) for file in files] or [absent]


def pattern(frames=17, height=64, width=96):
    """uint8 (t h w c): a light square over a gradient that moves right by 4 pixels a frame."""
    y, x = np.mgrid[:height, :width]
    still = np.stack([200 * x // width, 200 * y // height, 120 + 0 * x], -1).astype(np.uint8)
    clip = np.repeat(still[None], frames, 0)
    for t in range(frames):
        left = 4 * t % width
        clip[t, height // 4 : height // 2, left : left + 16] = 250
    return clip


def write_clip(path, frames, fps=25, codec="libx264", pix_fmt="yuv420p", times=None, rotation=0):
    """Write uint8 (t h w c), RGB or RGBA, with PyAV alone; `times` in ms, `rotation` in degrees."""
    as_is = {"avoid_negative_ts": "disabled"}
    with av.open(str(path), "w", container_options=as_is if times else {}) as container:
        stream = container.add_stream(codec, Fraction(fps))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for t, pixels in enumerate(frames):
            layout = "rgba" if pixels.shape[2] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
            if times is not None:
                frame.pts, frame.time_base = times[t], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
