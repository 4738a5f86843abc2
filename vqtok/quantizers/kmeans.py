"""k-means over the latents of all ranks: the first codebook of the quantizers that have a table."""

import torch
from torch import Tensor

from vqtok.quantizers.base import from_rank_zero, summed_over_ranks
from vqtok.quantizers.search import nearest

_STEPS = 8


@torch.no_grad()
def kmeans(latents: Tensor, codebook_size: int) -> Tensor:
    """Codes (k d) amid the latents (n d) of all ranks, the first guess from rank 0's alone."""
    codes = from_rank_zero(sample(latents, codebook_size))
    for _ in range(_STEPS):
        indices = nearest(latents, codes)
        counts = summed_over_ranks(torch.bincount(indices, minlength=codebook_size)).unsqueeze(-1)
        means = sums_per_code(latents, indices, codebook_size) / counts.clamp(min=1)
        codes = torch.where(counts > 0, means, codes)
    return codes


def sums_per_code(latents: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    """Sums (k d) of the latents (n d) that chose each code, over all ranks."""
    sums = latents.new_zeros(codebook_size, latents.shape[1])
    return summed_over_ranks(sums.index_add_(0, indices, latents))


def sample(latents: Tensor, count: int) -> Tensor:
    """Random latents (count d), none twice before all are used, and twins set apart by noise."""
    order = torch.randperm(len(latents), device=latents.device)
    picks = latents[order.repeat(-(-count // len(latents)))[:count]]
    return picks + 0.01 * latents.std(0, correction=0) * torch.randn_like(picks)
