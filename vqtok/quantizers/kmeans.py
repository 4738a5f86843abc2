"""k-means over the latents of all ranks, to initialize codebooks."""

import torch
from torch import Tensor

from vqtok.distributed import all_reduce_sum, broadcast
from vqtok.quantizers.search import nearest

ITERATIONS = 8


@torch.no_grad()
def kmeans(latents: Tensor, codebook_size: int) -> Tensor:
    """Return codes (k d) for latents (n d) of all ranks; the initial guess is rank 0's."""
    codes = broadcast(sample(latents, codebook_size))
    for _ in range(ITERATIONS):
        indices = nearest(latents, codes)
        counts = all_reduce_sum(count_codes(indices, codebook_size)).unsqueeze(-1)
        means = sums_per_code(latents, indices, codebook_size) / counts.clamp(min=1)
        codes = torch.where(counts > 0, means, codes)
    return codes


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Return how often each code occurs (k), int64, in indices (n).

    As torch.bincount, which makes the host wait for a GPU.
    """
    ones = indices.new_ones(1).expand(len(indices))
    return indices.new_zeros(codebook_size).scatter_add_(0, indices, ones)


def sums_per_code(latents: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    """Return the sums (k d) of the latents (n d) that chose each code, over all ranks."""
    sums = latents.new_zeros(codebook_size, latents.shape[1])
    return all_reduce_sum(sums.index_add_(0, indices, latents))


def sample(latents: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Return random latents (count d), without replacement while they last, with a little noise.

    The noise keeps equal latents from becoming equal codes. weights: (n) relative chances
    (Efraimidis and Spirakis 2006); None: uniform.
    """
    keys = torch.empty(len(latents), device=latents.device).exponential_()
    order = (keys if weights is None else keys / weights.clamp(min=1e-12)).argsort()
    picks = latents[order.repeat(-(-count // len(latents)))[:count]]
    return picks + 0.01 * latents.std(0, correction=0) * torch.randn_like(picks)
