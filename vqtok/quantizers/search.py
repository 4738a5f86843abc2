"""Nearest-code search in tiles: no (positions x codes) matrix is held."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.precision import at_least_float32

TILE = 2048  # rows and columns of a tile of scores (16 MiB); nearly as fast as the matrix product
GROUP = 32  # codes; amax over groups is ten times as fast as argmax over rows
# Scores in a tile on a GPU (512 MiB): its cache is no limit, and each tile is two launches.
GPU_SCORES = 2**27


def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the indices (n), int64, of the codes (k d) nearest to z (n d); on ties the lowest.

    Computes in float32, or float64 if z is float64. Memory is one tile, whatever n and k.
    """
    z = at_least_float32(z)
    return CodeTable(codebook.to(z.dtype)).nearest(z)


def neighbors(codebook: Tensor) -> Tensor:
    """Return the index (k), int64, of each code's nearest other code; k is at least 2."""
    codebook = at_least_float32(codebook)
    return CodeTable(codebook).nearest(codebook, allow_self=False)


class CodeTable:
    """Codes (k d), float32 or float64, prepared for searches; later changes of them have no effect.

    On a CPU, tiles of scores fit its cache. On other devices, a tile has all codes.

    first: what to call the first code; the index of the others counts from there.
    """

    @torch.no_grad()
    def __init__(self, codes: Tensor, first: int = 0) -> None:
        self._first = first
        # Far from the origin |e|^2 - 2 z.e cancels catastrophically; a shift keeps all distances.
        self._center = codes.mean(0)
        self._codes = codes - self._center
        self._bias = self._codes.square().sum(-1).div_(-2)
        self._tile = max(1, GPU_SCORES // len(codes)), len(codes)
        self._grouped = codes.device.type == "cpu"
        if self._grouped:
            self._tile, padding = (TILE, TILE), -len(codes) % GROUP
            self._codes = F.pad(self._codes, (0, 0, 0, padding))
            self._bias = F.pad(self._bias, (0, padding), value=-torch.inf)

    @torch.no_grad()
    def nearest(self, z: Tensor, allow_self: bool = True) -> Tensor:
        """Return the indices (n), int64, of the codes nearest to z (n d) of the same dtype.

        allow_self: if False, row i of z may not choose code i.
        """
        if not len(z):
            return torch.zeros(0, dtype=torch.int64, device=z.device)
        z, rows = z - self._center, self._tile[0]
        # One buffer: new ones would cost page faults.
        buffer = z.new_empty(min(rows, len(z)) * min(self._tile[1], len(self._codes)))
        parts = [
            self._best(part, buffer, None if allow_self else i * rows)
            for i, part in enumerate(z.split(rows))
        ]
        indices = parts[0] if len(parts) == 1 else torch.cat(parts)
        return indices + self._first if self._first else indices

    def _best(self, z: Tensor, buffer: Tensor, first_row: int | None) -> Tensor:
        """Return the codes (n) with the highest z.e - |e|^2 / 2 for z (n d).

        first_row: row i of z may not choose code first_row + i; None for no such limit.
        """
        best: tuple[Tensor, Tensor] | None = None
        columns = self._tile[1]
        for start in range(0, len(self._codes), columns):
            codes = self._codes[start : start + columns]
            scores = buffer[: len(z) * len(codes)].view(len(z), len(codes))
            torch.addmm(self._bias[start : start + columns], z, codes.T, out=scores)
            if first_row is not None:
                scores.diagonal(first_row - start).fill_(-torch.inf)
            value, index = _grouped_max(scores) if self._grouped else scores.max(-1)
            if best is not None:
                better = value > best[0]  # strictly: on a tie, the earlier tile has the lower index
                index = torch.where(better, start + index, best[1])
                value = torch.where(better, value, best[0])
            best = value, index
        assert best is not None
        return best[1]


def _grouped_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value and its index in each row (n k), where k is a multiple of GROUP."""
    groups = scores.view(len(scores), -1, GROUP)
    value, group = groups.amax(-1).max(-1)
    member = groups[torch.arange(len(scores), device=scores.device), group].argmax(-1)
    return value, group * GROUP + member
