"""The figures of the codebook report against a direct computation, and how they are shown."""

import io
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from vqtok import report
from vqtok.config import TrainSettings
from vqtok.errors import VqtokError
from vqtok.metrics import bits_per_pixel, codebook_use, usage_by_chance
from vqtok.tokens import Tokens


def tokens(indices, codebook_size=16, model="a"):
    t, h, w = indices.shape
    return Tokens(
        indices=indices,
        frames=1 + 4 * (t - 1),
        height=8 * h,
        width=8 * w,
        fps=Fraction(25),
        time_base=Fraction(1, 25),
        timestamps=list(range(1 + 4 * (t - 1))),
        pixel_aspect=Fraction(1),
        codebook_size=codebook_size,
        quantizer="fsq",
        stride=(4, 8, 8),
        model=model,
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=60))
def test_figures_equal_a_direct_computation(indices):
    use = codebook_use(np.bincount(indices, minlength=16))
    counter = Counter(indices)
    shares = [n / len(indices) for n in counter.values()]
    entropy = -sum(p * math.log2(p) for p in shares)
    assert use.tokens == len(indices)
    assert use.used == len(counter)
    assert use.dead == 16 - len(counter)
    assert use.usage == pytest.approx(len(counter) / 16)
    assert use.usage_by_chance == pytest.approx(1 - (1 - 1 / 16) ** len(indices))
    assert use.entropy_bits == pytest.approx(entropy, abs=1e-9)
    assert use.perplexity == pytest.approx(2**entropy)
    assert use.top == sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))[:10]


def test_chance_stays_exact_where_floats_run_out():
    assert usage_by_chance(65_536, 262_144) == pytest.approx(0.2212, abs=1e-4)
    assert usage_by_chance(1, 2**40) == pytest.approx(2**-40)
    assert usage_by_chance(5, 1) == 1
    assert usage_by_chance(0, 1) == usage_by_chance(0, 16) == 0


def test_bits_per_pixel_of_the_default_codebook():
    assert bits_per_pixel(1, 2**16, 4 * 8 * 8) == 0.0625


def test_files_add_up():
    one, two = np.arange(16).reshape(1, 4, 4), np.zeros((2, 4, 4), np.int64)
    summary = report.summarize([("a", tokens(one)), ("b", tokens(two))])
    numbers = summary.numbers()
    assert set(numbers) == {
        *("files", "tokens", "codebook_size", "used", "usage", "usage_by_chance", "perplexity"),
        *("entropy_bits", "dead", "bits_per_pixel", "top"),
    }
    assert (numbers["files"], numbers["tokens"]) == (2, 48)
    assert numbers["top"][0] == (0, 33)
    assert numbers["bits_per_pixel"] == pytest.approx(48 * 4 / (32 * 32 * 6))


def test_files_of_two_tokenizers_are_not_mixed():
    indices = np.zeros((1, 2, 2), np.int64)
    with pytest.raises(VqtokError, match="a and b come from different tokenizers"):
        report.summarize([("a", tokens(indices)), ("b", tokens(indices, model="other"))])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_report_fits_the_screen_and_shows_the_figures(width):
    indices = np.minimum(np.arange(4 * 8 * 8), 40).reshape(4, 8, 8)
    summary = report.summarize([("a", tokens(indices, codebook_size=64))])
    screen = Console(file=io.StringIO(), width=width)
    screen.print(summary.tables())
    text = screen.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "256" in text
    assert "64.06%" in text  # 41 of 64 codes
    assert "84.38%" in text  # 216 tokens of code 40
    assert "perplexity" in text


@pytest.mark.parametrize("usage, warned", [(0.12, True), (0.13, False)])
def test_training_warns_of_a_codebook_that_collapses(usage, warned):
    row = {"loss": 0.5, "psnr": 20, "usage": usage, "usage_by_chance": 0.5, "perplexity": 12.0}
    values = report.training_values(row | {"seconds_per_step": 0.5}, frames=10)
    assert ("collapses" in values.get("warning", "")) == warned


def test_training_shows_lines_where_there_is_no_terminal():
    screen = Console(file=io.StringIO(), width=100)
    view = report.TrainingView(screen, TrainSettings())
    row = {"step": 10, "loss": 0.5, "psnr": 20, "usage": 0.25, "usage_by_chance": 0.5}
    with view.open(20):
        view.show(row | {"perplexity": 12.0, "seconds_per_step": 0.5})
        view.show(row | {"perplexity": 12.0, "seconds_per_step": 0.5})
    lines = screen.file.getvalue().splitlines()
    assert lines == [
        "step 10: loss 0.5000, PSNR 20.00 dB, usage 25.0% (chance 50.0%), perplexity 12, "
        "frames/s 104.0"
    ]
