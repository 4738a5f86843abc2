"""How tokens use a codebook over time, over the picture, and by the parts of their indices."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log2, sqrt

import numpy as np

from vqtok.codebook.tally import Pairs, Tally
from vqtok.metrics import entropy_bits

BINS = 8  # of the histogram


@dataclass(frozen=True)
class Repetition:
    """What a token says of the next in time at the same place.

    repeats: share of tokens equal to the one before.
    repeat_bits: bits per token of a model that knows how likely a repeat is, and how often each
        code comes where it is none: what a simple model is sure to reach.
    conditional_bits: plug-in conditional entropy given the one before; far too low for few pairs.
    pairs: those that these two rest on, `number` those there are.
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
    """A slice of the clips' length: means over its latent frames.

    codes: how many different codes a latent frame has; entropy_bits: of its tokens, plug-in.
    """

    latent_frames: int
    codes: float
    entropy_bits: float


@dataclass(frozen=True)
class Bits:
    """The bits of LFQ indices, the highest first.

    ones: how often each is 1; correlations: (bit, bit, -1..1) of every pair of bits that both
    vary, the strongest first.
    """

    ones: list[float]
    correlations: list[tuple[int, int, float]]


def repetition(pairs: Pairs) -> Repetition | None:
    """What tokens say of those that follow them; None where no clip has a second latent frame."""
    if not pairs.number:
        return None
    kept = pairs.kept()
    multiplicity = np.unique(kept, return_counts=True)[1]
    before, index = np.divmod(kept, pairs.codebook_size)
    codebook = before // pairs.codebook_size
    after = codebook * pairs.codebook_size + index
    changed = before != after
    rest = _entropy_of(after[changed]) - _entropy_of(codebook[changed])
    return Repetition(
        repeats=pairs.equal / pairs.number,
        repeat_bits=_entropy_of(changed) + float(changed.mean()) * rest,
        conditional_bits=max(0.0, entropy_bits(multiplicity) - _entropy_of(before)),
        unseen=float((multiplicity == 1).sum() / len(kept)),
        pairs=len(kept),
        number=pairs.number,
    )


def _entropy_of(values: np.ndarray) -> float:
    return entropy_bits(np.unique(values, return_counts=True)[1])


def histogram(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """(least, most, codes): how many codes were seen so often, in classes that grow by a factor."""
    most = int(counts.max())
    step = max(1, -(-most.bit_length() // BINS))
    lows = [0, *(2 ** (step * i) for i in range(BINS) if 2 ** (step * i) <= most)]
    tops = [low - 1 for low in lows[1:]] + [2 ** (step * (len(lows) - 1)) - 1]
    classes = np.searchsorted(lows, counts.ravel(), "right") - 1
    codes = np.bincount(classes, minlength=len(lows)).tolist()
    return list(zip(lows, tops, codes, strict=True))


def over_time(tally: Tally) -> list[Slice]:
    """Each slice of the clips' length that has latent frames, from the first to the last."""
    return [
        Slice(int(frames), float(codes / frames), _per_index(float(entropy / frames), tally))
        for frames, codes, entropy in tally.over_time
        if frames
    ]


def over_picture(tally: Tally) -> list[list[float]]:
    """Entropy in bits by row and column of the picture; those without tokens are left out."""
    tables = tally.over_picture
    filled = tables.any(2)
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    return [[_per_index(entropy_bits(tables[y, x]), tally) for x in columns] for y in rows]


def _per_index(entropy: float, tally: Tally) -> float:
    """The mean entropy of an index, from that of ids, of which each codebook has as many."""
    return max(0.0, entropy - log2(tally.codebooks))


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
    return Bits(ones, sorted(correlations, key=lambda c: -abs(c[2])))


def _marginal(counts: np.ndarray, sides: Sequence[int], *kept: int) -> np.ndarray:
    """Shares by the digits `kept` of the index, whose base is `sides`, the first the lowest."""
    grid = counts.reshape(tuple(sides)[::-1])
    axes = [len(sides) - 1 - i for i in kept]
    return grid.sum(tuple(a for a in range(grid.ndim) if a not in axes)) / counts.sum()
