"""Windows of token files: which there are, and what is in each."""

import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from helpers.windows import CODES, LENGTHS, as_corpus, as_folder, numbered, sample_tokens
from vqtok import TokenWindows
from vqtok.errors import UsageError, VqtokError
from vqtok.tokens import write_tokens

WRITERS = {"corpus": as_corpus, "folder": as_folder}


@pytest.fixture(params=WRITERS)
def source(request, tmp_path):
    """The sample clips as a corpus, and as a folder."""
    return WRITERS[request.param](tmp_path / "tokens", sample_tokens())


def expected_time(tokens, frame):
    """The time of a latent frame, from the token format's description."""
    first = 0 if frame == 0 else 1 + 4 * (frame - 1)
    return float((tokens.timestamps[first] - tokens.origin) * tokens.time_base)


KEY_WINDOWS = [
    ({}, {"a.b.mp4": [0, 6], "day 1/clip.mp4": [0, 6], "día/ñandú 雪.mov": [0]}),
    ({"length": 3}, {"a.b.mp4": [0, 3, 6], "day 1/clip.mp4": [0, 3, 6, 9], "día/ñandú 雪.mov": [0, 3]}),
    ({"step": 3}, {"a.b.mp4": [0, 3], "day 1/clip.mp4": [0, 3, 6], "día/ñandú 雪.mov": [0, 3]}),
]
