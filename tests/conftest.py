"""Fixtures that several test files share."""

import signal

import av
import pytest
import torch

from helpers.clips import pattern, write_clip
from helpers.command import TINY, works
from helpers.tokenizers import save_staged_tokenizer

# A shell that starts the tests in the background makes them ignore Ctrl-C, and nohup makes them
# ignore SIGHUP, and so the commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    """Skip the tests marked `cuda` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def make_still():
    """Return a function that writes a small image: make_still(path, height=, width=)."""

    def make(path, height=64, width=96):
        with av.open(str(path), "w", format="image2") as container:
            stream = container.add_stream("png")
            stream.height, stream.width, stream.pix_fmt = height, width, "rgb24"
            frame = av.VideoFrame.from_ndarray(pattern(1, height, width)[0], format="rgb24")
            container.mux([*stream.encode(frame), *stream.encode()])

    return make


@pytest.fixture
def make_clip(tmp_path):
    """Return a function that writes a moving pattern: make_clip(name, frames=, height=, width=)."""

    def make(name="clip.mp4", frames=17, height=64, width=96, **options):
        return write_clip(tmp_path / name, pattern(frames, height, width), **options)

    return make


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a training run of two steps; do not change it."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    works(
        "train", "--quantizer", "fsq", *TINY, "--set", "train.steps=2", "--out", folder, "--quiet"
    )
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_run):
    """The option that chooses a tiny tokenizer, for tests that no quality matters to."""
    return "--tokenizer", tiny_run / "tokenizer.safetensors"


@pytest.fixture(scope="session")
def staged(tmp_path_factory):
    """The option that chooses a tokenizer with stages, which can spend fewer tokens."""
    return "--tokenizer", save_staged_tokenizer(tmp_path_factory.mktemp("staged") / "t.safetensors")
