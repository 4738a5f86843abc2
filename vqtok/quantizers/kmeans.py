"""k-means over the latents of all ranks: the first codebook of the quantizers that have a table."""

import torch
from torch import Tensor

from vqtok.distributed import all_reduce_sum, broadcast
from vqtok.quantizers.search import nearest

_STEPS = 8


@torch.no_grad()
def kmeans(latents: Tensor, codebook_size: int) -> Tensor:
    """Codes (k d) amid the latents (n d) of all ranks, the first guess from rank 0's alone."""
    codes = broadcast(sample(latents, codebook_size))
    for _ in range(_STEPS):
        indices = nearest(latents, codes)
        counts = all_reduce_sum(torch.bincount(indices, minlength=codebook_size)).unsqueeze(-1)
        means = sums_per_code(latents, indices, codebook_size) / counts.clamp(min=1)
        codes = torch.where(counts > 0, means, codes)
    return codes


def sums_per_code(latents: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    """Sums (k d) of the latents (n d) that chose each code, over all ranks."""
    sums = latents.new_zeros(codebook_size, latents.shape[1])
    return all_reduce_sum(sums.index_add_(0, indices, latents))


def sample(latents: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Random latents (count d), none twice before all are used, and twins set apart by noise.

    weights (n): how readily each is drawn (Efraimidis and Spirakis 2006); None: all alike.
    """
    chances = torch.empty(len(latents), device=latents.device).exponential_()
    order = (chances if weights is None else chances / weights.clamp(min=1e-12)).argsort()
    picks = latents[order.repeat(-(-count // len(latents)))[:count]]
    return picks + 0.01 * latents.std(0, correction=0) * torch.randn_like(picks)
