"""Fixtures that the command tests share."""

import pytest


@pytest.fixture
def clip(make_clip):
    """A clip of 14 frames of 64x96."""
    return make_clip("clip.mp4", frames=14, height=64, width=96, fps=25)


@pytest.fixture
def stream(make_clip):
    """The bytes of a Matroska stream of 400 frames, much longer than a pipe's buffer."""
    data = make_clip("live.mkv", frames=400, codec="ffv1").read_bytes()
    assert len(data) > 2**19
    return data
