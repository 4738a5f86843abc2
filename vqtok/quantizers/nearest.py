"""Codebooks searched for the nearest code: the step, its first codebook and its dead codes."""

from abc import abstractmethod

import torch
from einops import rearrange
from torch import Tensor

from vqtok.quantizers.base import (
    CodebookQuantizer,
    Quantized,
    from_rank_zero,
    straight_through,
    summed_over_ranks,
    widened,
)
from vqtok.quantizers.search import nearest

_KMEANS_STEPS = 8


class NearestCode(CodebookQuantizer):
    """Each latent becomes the nearest code of a learned codebook.

    data_start: take the first codebook from the first training batch, by k-means.
    revive_after: replace a code that no latent chose for so many training steps by a random
        latent of the batch; 0 never does.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        remap: str | None,
        unknown_index: str | int,
        data_start: bool,
        revive_after: int,
    ) -> None:
        super().__init__(codebook_size, dim, remap, unknown_index)
        self.data_start, self.revive_after = data_start, revive_after
        # Saved, so that a resumed run neither starts over nor forgets which codes are dying.
        if data_start:
            self.register_buffer("started", torch.tensor(False))
        if revive_after:
            self.register_buffer("age", torch.zeros(codebook_size, dtype=torch.int64))

    @property
    def learns(self) -> bool:
        """Whether this step may change the codebook outside the optimizer."""
        return self.training

    def _quantize(self, z: Tensor) -> Quantized:
        latents = rearrange(z.detach(), "b c ... -> (b ...) c")
        if self.learns and self.data_start and not self.started:
            self._start(latents)
        indices = nearest(latents, self.codebook)
        grid = indices.view(len(z), *z.shape[2:])
        z_q = widened(self.lookup(grid))
        loss, commitment = self._loss(z, z_q)
        counts = torch.bincount(indices, minlength=self.codebook_size)
        terms = {"commitment": commitment, "perplexity": _perplexity(counts)}
        if self.learns:
            self._learn(latents, indices, counts)
        return Quantized(straight_through(z, z_q), grid, loss, terms)

    @abstractmethod
    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss and the bare commitment loss."""

    @abstractmethod
    def _place(self, rows: Tensor, codes: Tensor) -> None:
        """Put codes (m d) into those rows (m) of the codebook, with a fresh state."""

    def _learn(self, latents: Tensor, indices: Tensor, counts: Tensor) -> None:
        """Follow one training step: latents (n d), their indices (n), counts (k) on this rank."""
        if self.revive_after:
            self._revive(latents, summed_over_ranks(counts))

    @torch.no_grad()
    def _revive(self, latents: Tensor, counts: Tensor) -> None:
        self.age.add_(1).masked_fill_(counts > 0, 0)
        dead = (self.age >= self.revive_after).nonzero().squeeze(-1)
        if len(dead):
            self._place(dead, from_rank_zero(_sample(latents, len(dead))))
            self.age[dead] = 0

    @torch.no_grad()
    def _start(self, latents: Tensor) -> None:
        codes = from_rank_zero(_sample(latents, self.codebook_size))
        for _ in range(_KMEANS_STEPS):
            codes = _kmeans_step(latents, codes)
        self._place(torch.arange(self.codebook_size, device=codes.device), codes)
        self.started.fill_(True)


def _perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the usage that counts (k) show: the codes in effective use."""
    p = counts / counts.sum()
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())


def sums_per_code(latents: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    """Sums (k d) of the latents (n d) that chose each code, over all ranks."""
    sums = latents.new_zeros(codebook_size, latents.shape[1])
    return summed_over_ranks(sums.index_add_(0, indices, latents))


def _kmeans_step(latents: Tensor, codes: Tensor) -> Tensor:
    """Move each code to the mean of its latents; one without latents stays."""
    indices = nearest(latents, codes)
    counts = summed_over_ranks(torch.bincount(indices, minlength=len(codes))).unsqueeze(-1)
    means = sums_per_code(latents, indices, len(codes)) / counts.clamp(min=1)
    return torch.where(counts > 0, means, codes)


def _sample(latents: Tensor, count: int) -> Tensor:
    """Random latents (count d), none twice before all are used, and twins set apart by noise."""
    order = torch.randperm(len(latents), device=latents.device)
    picks = latents[order.repeat(-(-count // len(latents)))[:count]]
    return picks + 0.01 * latents.std(0, correction=0) * torch.randn_like(picks)
