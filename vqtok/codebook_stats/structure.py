"""How tokens use a codebook over time, over the picture, and by the parts of their indices."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan, sqrt

import numpy as np

from vqtok.codebook_stats.counts import COLUMNS, ROWS, CodeCounts
from vqtok.codebook_stats.usage import entropy_bits

BINS = 8  # of the histogram
STRONGEST = 10  # correlations of bits that are kept


@dataclass(frozen=True)
class Repetition:
    """What a token says of the next in time at the same place.

    repeats: share of tokens equal to the one before.
    repeat_bits: bits per token of a model that knows how likely a repeat is, and how often each
        code comes where it is none: what a simple model is sure to reach.
    conditional_bits: plug-in conditional entropy given the one before; far too low for few pairs.
    pairs: those that conditional_bits rests on, of `number`.
    unseen: how likely the next pair is one never seen before (Good-Turing estimate): where this
        is not small, conditional_bits says nothing.
    """

    repeats: float
    repeat_bits: float
    conditional_bits: float
    unseen: float
    pairs: int
    number: int


@dataclass(frozen=True)
class Slice:
    """A slice of the clips' length.

    codes: how many different codes a latent frame has, the mean.
    bits: what an entropy coder that knows how often each code comes overall spends on a token.
    """

    latent_frames: int
    codes: float
    bits: float


@dataclass(frozen=True)
class Bits:
    """The bits of LFQ indices, the highest first.

    ones: how often each is 1; correlations: (bit, bit, -1..1) of the pairs of bits that go
    together or against each other most, the strongest first.
    """

    ones: list[float]
    correlations: list[tuple[int, int, float]]


def repetition(tally: CodeCounts) -> Repetition | None:
    """What tokens say of those that follow them; None where no clip has a second latent frame."""
    if not tally.followed:
        return None
    fresh = int(tally.fresh.sum()) / tally.followed
    # Of the fresh tokens' entropy, which codebook they are of needs no bits: it is known.
    books = entropy_bits(tally.fresh.reshape(tally.codebooks, -1).sum(1))
    flag = entropy_bits(np.array([fresh, 1 - fresh]))
    kept = tally.pairs.kept()
    before, _ = tally.pair_of(kept)
    pairs = np.unique(kept, return_counts=True)[1]
    given = entropy_bits(pairs) - entropy_bits(np.unique(before, return_counts=True)[1])
    return Repetition(
        repeats=1 - fresh,
        repeat_bits=flag + fresh * (entropy_bits(tally.fresh) - books),
        conditional_bits=max(0.0, given),
        unseen=float(np.count_nonzero(pairs == 1) / len(kept)),
        pairs=len(kept),
        number=tally.followed,
    )


def histogram(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """(least, most, codes): how many codes were seen so often, in classes that grow by a factor."""
    most = int(counts.max())
    step = max(1, -(-most.bit_length() // BINS))
    lows = [0, *(2 ** (step * i) for i in range(BINS) if 2 ** (step * i) <= most)]
    tops = [low - 1 for low in lows[1:]] + [2 ** (step * (len(lows) - 1)) - 1]
    classes = np.searchsorted(lows, counts.ravel(), "right") - 1
    codes = np.bincount(classes, minlength=len(lows)).tolist()
    return list(zip(lows, tops, codes, strict=True))


def over_time(tally: CodeCounts) -> list[Slice]:
    """Each slice of the clips' length that has latent frames, from the first to the last."""
    slices, _, ids = tally.place_of(tally.places.kept())
    bits = _bits_by(slices, ids, tally, len(tally.over_time))
    frames, codes = tally.over_time.T
    return [
        Slice(int(frames[i]), float(codes[i] / frames[i]), float(bits[i]))
        for i in np.flatnonzero(frames)
    ]


def over_picture(tally: CodeCounts) -> list[list[float | None]]:
    """As `bits` of a slice, by row and column of the picture; None where there are no tokens.

    Rows and columns without any, as small grids have them, are left out.
    """
    _, cells, ids = tally.place_of(tally.places.kept())
    bits = _bits_by(cells, ids, tally, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    there = ~np.isnan(bits)
    rows = bits[there.any(1)][:, there.any(0)].tolist()
    return [[None if isnan(value) else value for value in row] for row in rows]


def _bits_by(groups: np.ndarray, ids: np.ndarray, tally: CodeCounts, number: int) -> np.ndarray:
    """Mean surprise in bits of the ids (n) of each group; NaN where there are none.

    Over all tokens its mean is their entropy. Entropies of the groups themselves would be lower
    the fewer tokens a group has.
    """
    total = tally.counts.sum() / tally.codebooks
    surprise = np.log2(total / np.maximum(tally.counts, 1))
    with np.errstate(invalid="ignore"):
        return np.bincount(groups, surprise[ids], number) / np.bincount(groups, minlength=number)


def level_shares(counts: np.ndarray, levels: Sequence[int]) -> list[list[float]]:
    """Share of each level of each FSQ dimension, of counts (k); the first varies fastest."""
    return [_marginal(counts, levels, i).tolist() for i in range(len(levels))]


def bits(counts: np.ndarray) -> Bits:
    """The bits of counts (k), k a power of two: how often each is 1, and how they go together."""
    number = len(counts).bit_length() - 1
    sides = (2,) * number  # as level_shares has them: the lowest bit first
    ones = [float(_marginal(counts, sides, number - 1 - i)[1]) for i in range(number)]
    correlations = []
    for i, j in combinations(range(number), 2):
        p, q = ones[i], ones[j]
        if 0 < p < 1 and 0 < q < 1:
            both = float(_marginal(counts, sides, number - 1 - i, number - 1 - j)[1, 1])
            correlations.append((i, j, (both - p * q) / sqrt(p * (1 - p) * q * (1 - q))))
    return Bits(ones, sorted(correlations, key=lambda c: -abs(c[2]))[:STRONGEST])


def _marginal(counts: np.ndarray, sides: Sequence[int], *kept: int) -> np.ndarray:
    """Shares by the digits `kept` of the index, whose base is `sides`, the first the lowest."""
    grid = counts.reshape(tuple(sides)[::-1])
    axes = [len(sides) - 1 - i for i in kept]
    return grid.sum(tuple(a for a in range(grid.ndim) if a not in axes)) / counts.sum()
