"""Codebook usage and entropy from a histogram of indices."""

import math
from dataclasses import dataclass

import numpy as np

TOP = 10  # most used codes that are listed


def usage_by_chance(tokens: int, codebook_size: int) -> float:
    """The share of a codebook that this many tokens, drawn evenly, would be expected to touch."""
    if codebook_size == 1:
        return float(tokens > 0)
    return -math.expm1(tokens * math.log1p(-1 / codebook_size))


@dataclass(frozen=True)
class CodebookUse:
    """How a set of tokens uses a codebook; `perplexity` is 2 to the power of `entropy_bits`.

    entropy_bits is the plug-in estimate, which is too low for few tokens; entropy_bits_corrected
    adds the bias that Miller (1955) found, (used - 1) / (2 tokens) nats.
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
    top: list[tuple[int, int]]  # (index, count), most used first

    def brief(self) -> dict[str, float]:
        """The figures that a log and a comparison show, by name."""
        names = "tokens", "usage", "usage_by_chance", "perplexity"
        return {name: getattr(self, name) for name in names}


def codebook_use(counts: np.ndarray) -> CodebookUse:
    """Return the usage of a codebook from a histogram (k) of its indices."""
    tokens, used = int(counts.sum()), int(np.count_nonzero(counts))
    entropy = entropy_bits(counts)
    top = np.argsort(-counts, kind="stable")[: min(TOP, used)]
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
        top=[(int(i), int(counts[i])) for i in top],
    )


def entropy_bits(counts: np.ndarray) -> float:
    """The plug-in entropy of a histogram, in bits; 0 of an empty one."""
    counts = counts[counts > 0]
    total = counts.sum()
    return float((counts * np.log2(total / counts)).sum() / total) if total else 0.0


def bits_per_pixel(tokens: int, codebook_size: int, pixels: int) -> float:
    """Bits that the tokens of a clip take for each pixel of each frame, without entropy coding."""
    return tokens * math.log2(codebook_size) / pixels
