"""Fixtures that the command tests share."""

import pytest

from helpers.command import TINY, works
from helpers.tokenizers import save_staged_tokenizer


@pytest.fixture
def clip(make_clip):
    """A clip of 14 frames of 64x96."""
    return make_clip("clip.mp4", frames=14, height=64, width=96, fps=25)


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


@pytest.fixture
def stream(make_clip):
    """The bytes of a Matroska stream of 400 frames, much longer than a pipe's buffer."""
    data = make_clip("live.mkv", frames=400, codec="ffv1").read_bytes()
    assert len(data) > 2**19
    return data
