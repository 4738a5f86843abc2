"""Frame rates that users write, and those that timestamps show."""

from fractions import Fraction

import pytest

from helpers.clips import pattern, write_clip
from helpers.roundtrip import round_trip
from vqtok.pipeline.frame_rate import average_frame_rate

MS = Fraction(1, 1000)


@pytest.mark.parametrize(
    ("timestamps", "nominal", "expected"),
    [
        ([0, 33, 67, 100], Fraction(30000, 1001), Fraction(30000, 1001)),  # rounded, not different
        ([0, 40, 80, 120], Fraction(1000), Fraction(25)),
        ([0, 40, 80, 120], Fraction(1, 4), Fraction(25)),
        ([0, 1000, 2000, 10000], Fraction(25), Fraction(3, 10)),
        ([7], Fraction(25), Fraction(25)),
    ],
)
def test_a_stated_rate_that_the_timestamps_contradict_is_replaced(timestamps, nominal, expected):
    assert average_frame_rate(timestamps, MS, nominal) == expected


def test_tokens_have_the_average_rate_of_their_timestamps(tmp_path):
    times = [0, 1000, 2000, 10000]
    clip = write_clip(tmp_path / "clip.mkv", pattern(4), fps=25, times=times)
    tokens, _ = round_trip(clip, tmp_path / "out.mp4")
    assert tokens.timestamps == times and tokens.fps == Fraction(3, 10)
