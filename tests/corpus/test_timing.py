"""The timing of a clip: the same from its tokens and from the header of its token file."""

import io
from dataclasses import replace

import numpy as np
import pytest

from helpers.tokens import SAMPLE, VARYING, make_tokens
from vqtok.corpus.timing import Timing
from vqtok.tokens import read_header_at, tokens_to_bytes

ONE_FRAME = make_tokens(np.zeros((1, 4, 5), int))
CASES = [
    (SAMPLE, (30000, 1001, 1, 30000, 0, 40, 1001)),
    (replace(SAMPLE, origin=-7, timestamps=range(-9, 9, 2)), (30000, 1001, 1, 30000, -7, -9, 2)),
    (replace(SAMPLE, origin=33, timestamps=VARYING), (30000, 1001, 1, 30000, 33, 0, 0)),
    (replace(ONE_FRAME, timestamps=[500]), (25, 1, 1, 25, 0, 500, 1)),
]


@pytest.mark.parametrize(("tokens", "expected"), CASES)
def test_timing_of_tokens_is_that_of_their_file(tokens, expected):
    data = tokens_to_bytes(tokens)
    header, settings = read_header_at(io.BytesIO(bytes(512) + data), 512, len(data), "a.mp4")
    timing = Timing.of(header, tokens, 512)
    assert timing[:-1] == expected
    assert timing == Timing.of(header, settings, 512)
    at = timing.timestamps
    if timing.step == 0:
        times = np.frombuffer(data, "<i8", tokens.frames, at - 512)
        assert times.tolist() == tokens.timestamps
    assert timing.moved(1024).timestamps == (at + 1024 if timing.step == 0 else 0)
