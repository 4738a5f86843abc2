"""The codes themselves, as a checkpoint holds them: how long, how far apart, how much chosen."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vqtok.quantizers import EMAQuantizer, Quantizer
from vqtok.quantizers.codebook import CodebookQuantizer
from vqtok.quantizers.search import neighbours

DEAD = 0.01  # of the mean EMA count
SAME = 1e-3  # of the median norm: closer codes are duplicates


@dataclass(frozen=True)
class Spread:
    """How numbers are spread: quantiles, and counts (bins) in even steps from least to most."""

    least: float
    median: float
    most: float
    bins: list[int]


@dataclass(frozen=True)
class Codes:
    """A table of codes (k d).

    norms, distances: of the codes, and from each to its nearest other (None for a single code).
    duplicates: codes within a thousandth of the median norm of another.
    counts: EMA counts per step, None where the quantizer keeps none; dead: codes below a
    hundredth of their mean.
    idle: codes that no latent chose in the last `revive_after` / 2 training steps, None where the
    quantizer does not count these.
    """

    norms: Spread
    distances: Spread | None
    duplicates: int
    counts: Spread | None
    dead: int | None
    idle: int | None


@dataclass(frozen=True)
class Table:
    """The codebook of a checkpoint; codes is None where every code is there by construction."""

    quantizer: str
    codebook_size: int
    dim: int
    codes: Codes | None

    def numbers(self) -> dict[str, Any]:
        """What `vqtok stats --json` prints; docs/stats.md says what each key means."""
        return asdict(self)


def table(kind: str, quantizer: Quantizer) -> Table:
    """The codebook of a quantizer of that kind."""
    learned = isinstance(quantizer, CodebookQuantizer)
    codes = _codes(quantizer) if learned else None
    return Table(kind, quantizer.codebook_size, quantizer.dim, codes)


@torch.no_grad()
def _codes(quantizer: CodebookQuantizer) -> Codes:
    codes = quantizer.codebook.float()
    norms = codes.norm(dim=-1)
    distances, counts, dead = norms[:0], None, None
    if len(codes) > 1:
        distances = (codes - codes[neighbours(codes)]).norm(dim=-1)
    if isinstance(quantizer, EMAQuantizer):
        counts = quantizer.embedding.cluster_size
        dead = int((counts < DEAD * counts.mean()).sum())
    after = getattr(quantizer, "revive_after", 0)
    return Codes(
        norms=spread(norms),
        distances=spread(distances) if len(distances) else None,
        duplicates=int((distances <= SAME * norms.median()).sum()),
        counts=None if counts is None else spread(counts),
        dead=dead,
        idle=int((quantizer.age >= after / 2).sum()) if after else None,
    )


def spread(values: Tensor, bins: int = 24) -> Spread:
    """How values (n) are spread."""
    low, high = values.min().item(), values.max().item()
    counts = torch.histc(values, bins, low, high).int().tolist()
    return Spread(low, values.median().item(), high, counts)
