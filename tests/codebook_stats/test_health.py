"""The health of codebooks: each status on typical counts."""

import numpy as np
import pytest

from helpers.tokens import count_codes
from vqtok.codebook_stats.codebook_report import codebook_report
from vqtok.codebook_stats.health import MIN_CLIPS, codebook_health
from vqtok.codebook_stats.usage import codebook_use
from vqtok.settings import QUANTIZERS

# Status, counts (k), repeated tokens, files.
CASES = [
    ("healthy", np.full(1024, 20), 0, 1),
    ("healthy", np.r_[np.full(400, 50), np.zeros(624, int)], 0, 1),
    ("collapsed", np.r_[np.full(123, 100), np.zeros(901, int)], 0, 1),
    ("collapsed", np.r_[100_000, np.zeros(1023, int)], 98_000, MIN_CLIPS),
    ("too few tokens", np.r_[np.ones(500, int), np.zeros(524, int)], 0, 1),
    ("too few tokens", np.r_[np.ones(999, int), np.zeros(63_001, int)], 0, MIN_CLIPS),
    ("too few tokens", np.r_[np.full(10, 90), np.zeros(1014, int)], 0, 1),
    ("too few tokens", np.r_[100_000, np.zeros(1023, int)], 99_500, 1),  # a static clip
    ("too few tokens", np.r_[np.full(2400, 15), np.zeros(61_600, int)], 0, 1),
    ("too few clips", np.r_[np.full(2400, 50), np.zeros(61_600, int)], 0, 1),
    ("collapsed", np.r_[np.full(2400, 50), np.zeros(61_600, int)], 0, MIN_CLIPS),
    ("uneven", np.r_[1_000_000, np.full(1023, 10)], 0, MIN_CLIPS),
    ("healthy", np.full(2, 20), 0, 1),
    ("too few tokens", np.full(2, 5), 0, 1),
    ("healthy", np.array([50]), 0, 1),  # a codebook of one code
]


@pytest.mark.parametrize("status, counts, repeated, files", CASES)
@pytest.mark.parametrize("quantizer", [*QUANTIZERS, "unknown"])
def test_status_and_reason(status, counts, repeated, files, quantizer):
    fresh = [int(counts.sum()) - repeated]
    health = codebook_health(codebook_use(counts), fresh, files, quantizer)
    assert health.status == status, health.reason
    assert f"{np.count_nonzero(counts) / len(counts):.1%} of the codebook" in health.reason or (
        "too few to judge" in health.reason
    )
    assert ("train" in health.reason) == (status == "collapsed")


def test_several_codebooks_are_judged_together():
    clip = np.random.default_rng(0).integers(0, 16, (9, 20, 20, 4))
    assert codebook_report(count_codes([clip]), "x").health.status == "healthy"
    clip[..., :] %= 2
    assert codebook_report(count_codes([clip]), "x").health.status == "collapsed"
