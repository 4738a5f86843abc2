"""Frame rates that users write, and those that timestamps show."""

from fractions import Fraction

import pytest

from helpers.clips import pattern, write_clip
from helpers.roundtrip import round_trip
from vqtok.errors import UsageError
from vqtok.pipeline.frame_rate import average_frame_rate, parse_frame_rate

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
    assert list(tokens.timestamps) == times and tokens.fps == Fraction(3, 10)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("24", Fraction(24)),
        ("29.97", Fraction(2997, 100)),
        ("30000/1001", Fraction(30000, 1001)),
        (" 2.5e1 ", Fraction(25)),
        ("1_000", Fraction(1000)),
        (0.5, Fraction(1, 2)),
        (Fraction(25), Fraction(25)),
    ],
)
def test_a_frame_rate_is_read(value, expected):
    assert parse_frame_rate(value) == expected


ABSURD = ["1e9999999", "1e-9999999", "9" * 5000, "1/" + "9" * 5000, "0", "-1", "nan", "inf", "1/0"]


@pytest.mark.parametrize("value", [*ABSURD, "1e", "", "24 fps", 1e300, float("nan"), 1001])
def test_an_absurd_frame_rate_is_refused_at_once(value):
    with pytest.raises(UsageError, match=r"must be a number up to 1000") as caught:
        parse_frame_rate(value)
    assert len(str(caught.value)) < 200
