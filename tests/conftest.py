"""What several tests need: real clips where they are at hand, small made ones everywhere."""

import av
import pytest

from helpers import CLIPS
from helpers.clips import pattern, write_clip


@pytest.fixture(scope="session")
def clips():
    """The folder of real clips."""
    if not CLIPS.is_dir():
        pytest.skip(f"no clips in {CLIPS}")
    return CLIPS


@pytest.fixture
def make_still():
    """make_still(path, height=, width=) writes a small picture."""

    def make(path, height=64, width=96):
        with av.open(str(path), "w", format="image2") as container:
            stream = container.add_stream("png")
            stream.height, stream.width, stream.pix_fmt = height, width, "rgb24"
            picture = av.VideoFrame.from_ndarray(pattern(1, height, width)[0], format="rgb24")
            container.mux([*stream.encode(picture), *stream.encode()])

    return make


@pytest.fixture
def make_clip(tmp_path):
    """make_clip(name, frames=, height=, width=, ...) writes a moving pattern, gives its path."""

    def make(name="clip.mp4", frames=17, height=64, width=96, **options):
        return write_clip(tmp_path / name, pattern(frames, height, width), **options)

    return make
