"""Structure of tokens: redundancy in time, entropy over time and position, levels and bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan, sqrt

import numpy as np

from vqtok.codebook_stats.counts import GRID_COLUMNS, GRID_ROWS, TIME_BINS, CodeCounts
from vqtok.codebook_stats.usage import entropy_bits

HISTOGRAM_BINS = 8  # besides the one for unused codes
MAX_CORRELATIONS = 10


@dataclass(frozen=True)
class TemporalRedundancy:
    """How well a token is predicted by the previous index in time at the same position.

    repeats: share of tokens equal to the previous index.
    repeat_model_bits: bits per token of a model that codes a repeat flag, and then the code of a
        changed token by its frequency. A simple entropy coder reaches it.
    conditional_bits: plug-in conditional entropy given the previous token, far too low for few
        pairs.
    sampled_pairs: pairs that conditional_bits is computed from, out of `pairs`.
    unseen: Good-Turing estimate of the probability that the next pair was never seen before.
        Unless it is small, conditional_bits is meaningless.
    """

    repeats: float
    repeat_model_bits: float
    conditional_bits: float
    unseen: float
    sampled_pairs: int
    pairs: int


@dataclass(frozen=True)
class TimeBin:
    """An interval of the relative time in the clips.

    codes: mean number of distinct codes per latent frame.
    bits: mean of -log2(overall frequency of the token's code); None without tokens.
    kept: share of positions that have a token, for each stage; None without a zero code.
    """

    latent_frames: int
    codes: float
    bits: float | None
    kept: list[float] | None


@dataclass(frozen=True)
class BitStatistics:
    """The bits of LFQ indices, most significant first.

    ones: share of ones for each bit.
    correlations: (bit, bit, Pearson correlation) of the most correlated pairs, strongest first.
    """

    ones: list[float]
    correlations: list[tuple[int, int, float]]


def temporal_redundancy(counts: CodeCounts) -> TemporalRedundancy | None:
    """Return the redundancy in time, or None if no token has a previous index."""
    pairs_in_all = int(counts.transitions.sum())
    if not pairs_in_all:
        return None
    changed = int(counts.changes.sum()) / pairs_in_all
    # The codebook of a token is known from its position, so it costs no bits.
    codebook_bits = entropy_bits(counts.changes.reshape(counts.codebooks, -1).sum(1))
    flag_bits = entropy_bits(np.array([changed, 1 - changed]))
    sample = counts.transition_sample.values()
    pairs = np.unique(sample, return_counts=True)[1]
    previous = np.unique(sample // counts.codebook_size, return_counts=True)[1]
    return TemporalRedundancy(
        repeats=1 - changed,
        repeat_model_bits=flag_bits + changed * (entropy_bits(counts.changes) - codebook_bits),
        conditional_bits=max(0.0, entropy_bits(pairs) - entropy_bits(previous)),
        unseen=float(np.count_nonzero(pairs == 1) / len(sample)),
        sampled_pairs=len(sample),
        pairs=pairs_in_all,
    )


def occurrence_histogram(occurrences: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (least, most, codes), the number of codes per logarithmic bin of occurrences."""
    highest = int(occurrences.max())
    step = max(1, -(-highest.bit_length() // HISTOGRAM_BINS))
    powers = (2 ** (step * i) for i in range(HISTOGRAM_BINS))
    least = [0, *(power for power in powers if power <= highest)]
    most = [low - 1 for low in least[1:]] + [2 ** (step * (len(least) - 1)) - 1]
    bins = np.searchsorted(least, occurrences.ravel(), "right") - 1
    codes = np.bincount(bins, minlength=len(least)).tolist()
    return list(zip(least, most, codes, strict=True))


def time_profile(counts: CodeCounts) -> list[TimeBin]:
    """Return the bins of relative time that have latent frames, in order."""
    time_bins, _, ids = counts.sampled_positions()
    bits = _mean_bits(time_bins, ids, counts, TIME_BINS)
    frames, distinct = counts.latent_frames, counts.distinct_ids
    profile = []
    for i in np.flatnonzero(frames):
        kept = (counts.time_tokens[i] / counts.time_positions[i]).tolist()
        codes, mean = float(distinct[i] / frames[i]), None if isnan(bits[i]) else float(bits[i])
        profile.append(TimeBin(int(frames[i]), codes, mean, kept if counts.zero_code else None))
    return profile


def entropy_map(counts: CodeCounts) -> list[list[float | None]]:
    """Return the mean bits of tokens by row and column of the frame, None in cells without tokens.

    Rows and columns without any positions, as small grids have, are left out.
    """
    _, cells, ids = counts.sampled_positions()
    bits = _mean_bits(cells, ids, counts, GRID_ROWS * GRID_COLUMNS)
    return _grid(bits, counts)


def tokens_map(counts: CodeCounts) -> list[list[float | None]] | None:
    """Return the tokens per position as `entropy_map` does; None without a zero code."""
    if not counts.zero_code:
        return None
    with np.errstate(invalid="ignore"):
        return _grid(counts.cell_tokens.sum(1) / counts.cell_positions, counts)


def _grid(values: np.ndarray, counts: CodeCounts) -> list[list[float | None]]:
    """Return values of cells, NaN where there is none, by row and column."""
    values = values.reshape(GRID_ROWS, GRID_COLUMNS)
    has_positions = counts.cell_positions.reshape(GRID_ROWS, GRID_COLUMNS) > 0
    rows = values[has_positions.any(1)][:, has_positions.any(0)].tolist()
    return [[None if isnan(value) else value for value in row] for row in rows]


def _mean_bits(bins: np.ndarray, ids: np.ndarray, counts: CodeCounts, size: int) -> np.ndarray:
    """Return the mean of -log2(frequency) of the ids (n) in each of `size` bins, NaN if empty.

    Its mean over all tokens is their entropy. The entropies of single bins would instead be
    biased by their numbers of tokens.
    """
    occurrences = counts.occurrences.reshape(counts.codebooks, -1)
    total = occurrences[:, int(counts.zero_code) :].sum(1, keepdims=True)
    surprise = np.log2(np.maximum(total, 1) / np.maximum(occurrences, 1)).ravel()
    with np.errstate(invalid="ignore"):
        return np.bincount(bins, surprise[ids], size) / np.bincount(bins, minlength=size)


def level_shares(occurrences: np.ndarray, levels: Sequence[int]) -> list[list[float]]:
    """Return the share of each level of each FSQ dimension from the occurrences (k) of codes.

    The first dimension varies fastest in an index.
    """
    return [_marginal(occurrences, levels, i).tolist() for i in range(len(levels))]


def bit_statistics(occurrences: np.ndarray) -> BitStatistics:
    """Return the statistics of index bits from occurrences (k), where k is a power of two."""
    bits = len(occurrences).bit_length() - 1
    radices = (2,) * bits  # least significant first
    ones = [float(_marginal(occurrences, radices, bits - 1 - i)[1]) for i in range(bits)]
    correlations = []
    for i, j in combinations(range(bits), 2):
        p, q = ones[i], ones[j]
        if 0 < p < 1 and 0 < q < 1:
            both = float(_marginal(occurrences, radices, bits - 1 - i, bits - 1 - j)[1, 1])
            correlations.append((i, j, (both - p * q) / sqrt(p * (1 - p) * q * (1 - q))))
    strongest = sorted(correlations, key=lambda c: -abs(c[2]))[:MAX_CORRELATIONS]
    return BitStatistics(ones, strongest)


def _marginal(occurrences: np.ndarray, radices: Sequence[int], *digits: int) -> np.ndarray:
    """Return the joint distribution of some digits of the index, least significant digit first."""
    grid = occurrences.reshape(tuple(radices)[::-1])
    axes = [len(radices) - 1 - digit for digit in digits]
    return grid.sum(tuple(a for a in range(grid.ndim) if a not in axes)) / occurrences.sum()
