"""Nearest-code search in tiles: no (positions x codes) matrix is held."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.precision import at_least_float32

TILE = 2048  # rows and columns of a tile of scores (16 MiB); nearly as fast as the matrix product
GROUP = 32  # codes; amax over groups is ten times as fast as argmax over rows


@torch.no_grad()
def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the indices (n), int64, of the codes (k d) nearest to z (n d); on ties the lowest.

    Computes in float32, or float64 if z is float64. Memory is one tile, whatever n and k.
    """
    return _search(z, codebook, allow_self=True)


@torch.no_grad()
def neighbors(codebook: Tensor) -> Tensor:
    """Return the index (k), int64, of each code's nearest other code; k is at least 2."""
    return _search(codebook, codebook, allow_self=False)


def _search(z: Tensor, codebook: Tensor, allow_self: bool) -> Tensor:
    """Search as `nearest` does; without allow_self, row i of z may not choose code i."""
    z = at_least_float32(z)
    if not len(z):
        return torch.zeros(0, dtype=torch.int64, device=z.device)
    codebook = codebook.to(z.dtype)
    # Far from the origin |e|^2 - 2 z.e cancels catastrophically; a shift keeps all distances.
    center = codebook.mean(0)
    z, codebook = z - center, codebook - center
    bias = codebook.square().sum(-1).div(-2)
    padding = -len(codebook) % GROUP
    codebook = F.pad(codebook, (0, 0, 0, padding))
    bias = F.pad(bias, (0, padding), value=-torch.inf)
    scores = z.new_empty(TILE * TILE)  # one buffer: new ones would cost page faults
    parts = (
        _best(rows, codebook, bias, scores, None if allow_self else i * TILE)
        for i, rows in enumerate(z.split(TILE))
    )
    return torch.cat(list(parts))


def _best(
    z: Tensor, codebook: Tensor, bias: Tensor, scores: Tensor, excluded: int | None
) -> Tensor:
    """Return the codes (n) with the highest z.e - |e|^2 / 2, for row i except code excluded + i."""
    top = z.new_full((len(z),), -torch.inf)
    indices = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for start in range(0, len(codebook), TILE):
        codes = codebook[start : start + TILE]
        tile = scores[: len(z) * len(codes)].view(len(z), len(codes))
        torch.addmm(bias[start : start + TILE], z, codes.T, out=tile)
        if start == excluded:
            tile.fill_diagonal_(-torch.inf)
        groups = tile.view(len(z), -1, GROUP)
        value, group = groups.amax(-1).max(-1)
        member = groups[torch.arange(len(z), device=z.device), group].argmax(-1)
        better = value > top  # strictly: on a tie, the earlier tile has the lower index
        top = torch.where(better, value, top)
        indices = torch.where(better, start + group * GROUP + member, indices)
    return indices
