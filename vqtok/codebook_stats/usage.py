"""Codebook usage and entropy from a histogram of indices."""

import math
from dataclasses import dataclass

import numpy as np

TOP_CODES = 10


def usage_by_chance(tokens: int, codebook_size: int) -> float:
    """Return the share of a codebook that uniformly random tokens are expected to use."""
    if codebook_size == 1:
        return float(tokens > 0)
    return -math.expm1(tokens * math.log1p(-1 / codebook_size))


@dataclass(frozen=True)
class CodebookUse:
    """Usage of a codebook by a set of tokens. `perplexity` is 2 to the power of `entropy_bits`.

    used, dead: codes that occur, and codes that do not; usage: share of codes that occur.
    usage_by_chance: what uniformly random tokens are expected to use.
    entropy_bits: plug-in estimate, too low for few tokens. entropy_bits_corrected adds the bias
        found by Miller (1955), (used - 1) / (2 tokens) nats.
    top: (index, count) of the most used codes, in descending order.
    """

    tokens: int
    codebook_size: int
    used: int
    usage: float
    usage_by_chance: float
    perplexity: float
    entropy_bits: float
    entropy_bits_corrected: float
    dead: int
    top: list[tuple[int, int]]

    def summary(self) -> dict[str, float]:
        """Return the figures shown in training logs and by `vqtok eval`, by name."""
        names = "tokens", "usage", "usage_by_chance", "perplexity"
        return {name: getattr(self, name) for name in names}


def codebook_use(counts: np.ndarray, first: int = 0) -> CodebookUse:
    """Return the usage of a codebook from a histogram (k) of its indices, the first being `first`.

    With a zero code, `first` is 1: index 0 is not counted as a code.
    """
    tokens, used = int(counts.sum()), int(np.count_nonzero(counts))
    entropy = entropy_bits(counts)
    top = np.argsort(-counts, kind="stable")[: min(TOP_CODES, used)]
    return CodebookUse(
        tokens=tokens,
        codebook_size=len(counts),
        used=used,
        usage=used / len(counts),
        usage_by_chance=usage_by_chance(tokens, len(counts)),
        perplexity=2**entropy,
        entropy_bits=entropy,
        entropy_bits_corrected=entropy + max(used - 1, 0) / (2 * max(tokens, 1) * math.log(2)),
        dead=len(counts) - used,
        top=[(int(i) + first, int(counts[i])) for i in top],
    )


def entropy_bits(counts: np.ndarray) -> float:
    """Return the plug-in entropy of a histogram in bits; 0 if it is empty."""
    counts = counts[counts > 0]
    total = counts.sum()
    return float((counts * np.log2(total / counts)).sum() / total) if total else 0.0


def bits_per_pixel(tokens: int, codebook_size: int, pixels: int) -> float:
    """Return the bits that tokens take per pixel of all frames, without entropy coding."""
    return tokens * math.log2(codebook_size) / pixels
