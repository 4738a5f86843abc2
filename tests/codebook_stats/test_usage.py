"""Codebook usage against a direct computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tokens import entropy
from vqtok.codebook_stats.usage import bits_per_pixel, codebook_use, usage_by_chance


@settings(deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=60))
def test_usage_equals_a_direct_computation(indices):
    use = codebook_use(np.bincount(indices, minlength=16))
    used = len(set(indices))
    assert (use.tokens, use.used, use.dead) == (len(indices), used, 16 - used)
    assert use.usage == pytest.approx(used / 16)
    assert use.usage_by_chance == pytest.approx(1 - (1 - 1 / 16) ** len(indices))
    assert use.entropy_bits == pytest.approx(entropy(indices), abs=1e-9)
    assert use.perplexity == pytest.approx(2 ** entropy(indices))


def test_usage_by_chance_is_accurate_for_large_codebooks():
    assert usage_by_chance(65_536, 262_144) == pytest.approx(0.2212, abs=1e-4)
    assert usage_by_chance(1, 2**40) == pytest.approx(2**-40)
    assert usage_by_chance(5, 1) == 1
    assert usage_by_chance(0, 1) == usage_by_chance(0, 16) == 0


def test_bits_per_pixel_of_a_16_bit_codebook():
    assert bits_per_pixel(1, 2**16, 4 * 8 * 8) == 0.0625
