"""Real clips, small synthetic ones, and reading them with vqtok.video."""

from fractions import Fraction

import av
import numpy as np
import pytest

from helpers import CLIPS, TESTS
from vqtok.video import open_video


def clip_files(folder, *names):
    """Return the real clips in a folder of tests/clips and in the optional CLIPS as parameters.

    folder: dev or bad.
    names: return only the files with these names.
    """
    paths = [*(CLIPS / folder).glob("*"), *(TESTS / "clips" / folder).glob("*")]
    by_name = {path.name: path for path in paths if not names or path.name in names}
    return [pytest.param(path, id=name) for name, path in sorted(by_name.items())]


def pattern(frames=17, height=64, width=96):
    """Return uint8 (t h w c): a light square on a gradient, moving right by 4 pixels a frame."""
    y, x = np.mgrid[:height, :width]
    background = np.stack([200 * x // width, 200 * y // height, 120 + 0 * x], -1).astype(np.uint8)
    clip = np.repeat(background[None], frames, 0)
    for t in range(frames):
        left = 4 * t % width
        clip[t, height // 4 : height // 2, left : left + 16] = 250
    return clip


def write_clip(
    path, frames, fps=25, codec="libx264", pix_fmt="yuv420p", times=None, rotation=0, **options
):
    """Write uint8 (t h w c), RGB or RGBA, with PyAV alone; `times` in ms, `rotation` in degrees.

    options: of the codec.
    """
    keep_timestamps = {"avoid_negative_ts": "disabled"}
    with av.open(str(path), "w", container_options=keep_timestamps if times else {}) as container:
        stream = container.add_stream(codec, Fraction(fps), options)
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


def read_clip(source, limit=10**9, **options):
    """Return the first frames (t h w c) of a video, their timestamps, and the clip."""
    frames, timestamps = [], []
    with open_video(source, **options) as clip:
        for chunk, chunk_timestamps in clip.chunks(8):
            frames.append(chunk)
            timestamps += chunk_timestamps
            if len(timestamps) >= limit:
                break
    return np.concatenate(frames)[:limit], timestamps[:limit], clip


def mean_difference(a, b):
    """Return the largest difference of the mean color over all frames (t h w c) and channels."""
    return np.abs(a.mean((1, 2)) - b.mean((1, 2))).max()
