"""The codes of a checkpoint: their norms, their distances, and how much they were used."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

DEAD = 0.01  # of the mean EMA count
DUPLICATE = 1e-3  # of the median norm
BINS = 24


@dataclass(frozen=True)
class Distribution:
    """Minimum, lower median and maximum of values, and counts in BINS even steps between them."""

    least: float
    median: float
    most: float
    bins: list[int]


@dataclass(frozen=True)
class CodeStatistics:
    """Statistics of the codes (k d).

    norms, distances: of the codes, and to each code's nearest other (None for a single code).
    duplicates: codes within a thousandth of the median norm of another one.
    counts: EMA counts per training step, None if the quantizer keeps none.
    dead: codes with an EMA count below a hundredth of the mean.
    idle: codes unused in the last `revive_after` / 2 training steps, None if the quantizer does
        not count them.
    """

    norms: Distribution
    distances: Distribution | None
    duplicates: int
    counts: Distribution | None
    dead: int | None
    idle: int | None


@dataclass(frozen=True)
class CodebookTable:
    """The codebook of a checkpoint; `codes` is None if the quantizer has no learned codes."""

    quantizer: str
    codebook_size: int
    dim: int
    codes: CodeStatistics | None

    def to_dict(self) -> dict[str, Any]:
        """Return what `vqtok stats --json` prints; docs/stats.md explains each key."""
        return asdict(self)


def codebook_table(
    kind: str,
    codebook_size: int,
    dim: int,
    codes: np.ndarray | None = None,
    nearest: np.ndarray | None = None,
    ema_counts: np.ndarray | None = None,
    steps_unused: np.ndarray | None = None,
    revive_after: int = 0,
) -> CodebookTable:
    """Compute the statistics of a quantizer's codebook.

    codes: (k d) float, None if there is no learned codebook, as in LFQ and FSQ.
    nearest: (k) index of each code's nearest other code, None for a single code.
    ema_counts: (k) moving averages of how often each code is chosen per step.
    steps_unused: (k) training steps since each code was last chosen; a code is replaced after
        `revive_after` of them.
    """
    if codes is None:
        return CodebookTable(kind, codebook_size, dim, None)
    codes = codes.astype(np.float64)  # squares of float32 can overflow
    norms = np.linalg.norm(codes, axis=-1)
    distances = None if nearest is None else np.linalg.norm(codes - codes[nearest], axis=-1)
    statistics = CodeStatistics(
        norms=_distribution(norms),
        distances=None if distances is None else _distribution(distances),
        duplicates=0 if distances is None else _count(distances <= DUPLICATE * _median(norms)),
        counts=None if ema_counts is None else _distribution(ema_counts),
        dead=None if ema_counts is None else _count(ema_counts < DEAD * ema_counts.mean()),
        idle=None if steps_unused is None else _count(steps_unused >= revive_after / 2),
    )
    return CodebookTable(kind, codebook_size, dim, statistics)


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _distribution(values: np.ndarray) -> Distribution:
    values = values.astype(np.float64)
    least, most = values.min().item(), values.max().item()
    # NumPy cannot divide the range of values that are almost equal.
    margin = 1e-6 * max(abs(least), abs(most)) or 1.0
    widening = margin if most - least < margin else 0.0
    bins, _ = np.histogram(values, BINS, (least - widening, most + widening))
    return Distribution(least, _median(values), most, bins.tolist())


def _median(values: np.ndarray) -> float:
    """Return the lower of the two middle values, if there are two."""
    return np.quantile(values, 0.5, method="lower").item()
