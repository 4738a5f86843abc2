"""Nearest-code search in blocks: memory does not grow with positions times codes."""

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 2048  # rows and columns of one block of scores: 16 MiB, and near the speed of its product
_GROUP = 32  # `amax` over groups is ten times as fast as `argmax` over rows


@torch.no_grad()
def nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Indices (n) int64 of the codes (k d) nearest to z (n d); of equals the lowest.

    Always in float32 (float64 where z is). Memory is one tile, whatever n and k are.
    """
    return _search(z, codebook, itself=True)


@torch.no_grad()
def neighbours(codebook: Tensor) -> Tensor:
    """Indices (k) int64 of each code's nearest other code, of two codes (k d) or more."""
    return _search(codebook, codebook, itself=False)


def _search(z: Tensor, codebook: Tensor, itself: bool) -> Tensor:
    """As `nearest`; without `itself`, row i of z may not choose code i."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    codebook = codebook.to(z.dtype)
    # Far from the origin |e|^2 - 2 z.e cancels to noise; distances do not change under a shift.
    center = codebook.mean(0)
    z, codebook = z - center, codebook - center
    bias = codebook.square().sum(-1).div(-2)
    padding = -len(codebook) % _GROUP
    codebook = F.pad(codebook, (0, 0, 0, padding))
    bias = F.pad(bias, (0, padding), value=-torch.inf)
    scores = z.new_empty(_TILE * _TILE)  # one buffer: fresh ones would cost their page faults
    parts = (
        _best(rows, codebook, bias, scores, None if itself else i * _TILE)
        for i, rows in enumerate(z.split(_TILE))
    )
    return torch.cat(list(parts))


def _best(z: Tensor, codebook: Tensor, bias: Tensor, scores: Tensor, barred: int | None) -> Tensor:
    """The codes (n) with the highest z.e - |e|^2 / 2; not code `barred` + i for row i."""
    top = z.new_full((len(z),), -torch.inf)
    indices = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for start in range(0, len(codebook), _TILE):
        codes = codebook[start : start + _TILE]
        tile = scores[: len(z) * len(codes)].view(len(z), len(codes))
        torch.addmm(bias[start : start + _TILE], z, codes.T, out=tile)
        if start == barred:
            tile.fill_diagonal_(-torch.inf)
        groups = tile.view(len(z), -1, _GROUP)
        value, group = groups.amax(-1).max(-1)
        member = groups[torch.arange(len(z), device=z.device), group].argmax(-1)
        better = value > top  # strictly: an equal in an earlier tile has the lower index
        top = torch.where(better, value, top)
        indices = torch.where(better, start + group * _GROUP + member, indices)
    return indices
