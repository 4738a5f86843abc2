"""Codebooks searched for the nearest code: the step, its first codebook and its dead codes."""

from abc import abstractmethod
from typing import Any

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
from vqtok.quantizers.kmeans import kmeans, sample
from vqtok.quantizers.search import nearest


class NearestCode(CodebookQuantizer):
    """Each latent becomes the nearest code of a learned codebook.

    revive_after: replace a code that no latent chose for so many training steps by a random
        latent of the batch (of rank 0's); 0 never does.
    """

    halved = ("embedding.weight",)

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        remap: str | None,
        unknown_index: str | int,
        data_start: bool,
        revive_after: int,
    ) -> None:
        super().__init__(codebook_size, dim, remap, unknown_index, data_start)
        self.revive_after = revive_after
        if revive_after:  # saved, so that a resumed run knows which codes are dying
            self.register_buffer("age", torch.zeros(codebook_size, dtype=torch.int64))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if self.revive_after and any(key.startswith(prefix) for key in state):
            state.setdefault(f"{prefix}age", torch.zeros_like(self.age))
        super()._load_from_state_dict(state, prefix, *rest)

    @property
    def learns(self) -> bool:
        """Whether this step may change the codebook outside the optimizer."""
        return self.training

    def _quantize(self, z: Tensor) -> Quantized:
        latents = rearrange(z.detach(), "b c ... -> (b ...) c")
        if self.learns:
            self._begin(latents)
        indices = nearest(latents, self.codebook)
        grid = indices.view(len(z), *z.shape[2:])
        z_q = widened(self.lookup(grid))
        loss, commitment = self._loss(z, z_q)
        counts = torch.bincount(indices, minlength=self.codebook_size)
        counts = summed_over_ranks(counts) if self.training else counts
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
        """Follow one training step: latents (n d), their indices (n), counts (k) over all ranks."""
        if self.revive_after:
            self._revive(latents, counts)

    @torch.no_grad()
    def _revive(self, latents: Tensor, counts: Tensor) -> None:
        self.age.add_(1).masked_fill_(counts > 0, 0)
        dead = (self.age >= self.revive_after).nonzero().squeeze(-1)
        if len(dead):
            self._place(dead, from_rank_zero(sample(latents, len(dead))))
            self.age[dead] = 0

    @torch.no_grad()
    def _start(self, latents: Tensor) -> None:
        rows = torch.arange(self.codebook_size, device=latents.device)
        self._place(rows, kmeans(latents, self.codebook_size))


def _perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the usage that counts (k) show: the codes in effective use."""
    p = counts / counts.sum()
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())
