"""Codebooks searched for the nearest code: the step, its first codebook and its dead codes."""

from abc import abstractmethod
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vqtok.errors import UsageError
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

    revive_after: replace a code that no latent chose for so many training steps by a latent of the
        batch (of rank 0's), drawn by its squared distance from its code; 0 never does.
    absolute_codes: so many, the first, stand for a latent whatever was predicted; the others for
        what the prediction lacks. Where something new comes into the picture they are nearer.
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
        absolute_codes: int,
    ) -> None:
        super().__init__(codebook_size, dim, remap, unknown_index, data_start)
        if absolute_codes >= codebook_size:
            raise UsageError(
                f"absolute_codes={absolute_codes} leaves none of {codebook_size} codes for the rest"
            )
        self.absolute_codes = absolute_codes
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

    def restore(self, indices: Tensor, prediction: Tensor | None = None) -> Tensor:
        z_q = super().restore(indices, prediction)
        if prediction is None or not self.absolute_codes:
            return z_q
        absolute = (indices < self.absolute_codes).unsqueeze(1)
        return torch.where(absolute, super().restore(indices), z_q)

    def _complete(self, z: Tensor, prediction: Tensor) -> Quantized:
        if not self.absolute_codes:
            return super()._complete(z, prediction)
        return self._measure(z, prediction=widened(prediction))

    def _quantize(self, z: Tensor, prediction: Tensor | None = None) -> Quantized:
        latents = rearrange(z.detach(), "b c ... -> (b ...) c")
        if prediction is None:
            if self.learns:
                self._begin(latents)
            indices = nearest(latents, self.codebook)
        else:
            lacking = latents - rearrange(prediction, "b c ... -> (b ...) c")
            if self.learns:
                self._begin(latents, lacking)
            indices, latents = self._nearer(latents, lacking)
        grid = indices.view(len(z), *z.shape[2:])
        z_q = self.restore(grid, prediction)
        loss, commitment = self._loss(z, z_q)
        counts = torch.bincount(indices, minlength=self.codebook_size)
        counts = summed_over_ranks(counts) if self.training else counts
        terms = {"commitment": commitment, "perplexity": _perplexity(counts)}
        if self.learns:
            self._learn(latents, indices, counts)
        return Quantized(straight_through(z, z_q), grid, loss, terms)

    def _nearer(self, latents: Tensor, lacking: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (n) for latents (n d) or what their predictions lack; which it was (n d)."""
        first, rest = self.codebook.detach().split(
            [self.absolute_codes, self.codebook_size - self.absolute_codes]
        )
        absolute, relative = nearest(latents, first), nearest(lacking, rest)
        is_absolute = _distance(latents, first[absolute]) <= _distance(lacking, rest[relative])
        indices = torch.where(is_absolute, absolute, relative + self.absolute_codes)
        return indices, torch.where(is_absolute.unsqueeze(-1), latents, lacking)

    @abstractmethod
    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss and the bare commitment loss."""

    @abstractmethod
    def _place(self, rows: Tensor, codes: Tensor) -> None:
        """Put codes (m d) into those rows (m) of the codebook, with a fresh state."""

    def _learn(self, latents: Tensor, indices: Tensor, counts: Tensor) -> None:
        """Follow one training step: latents (n d), their indices (n), counts (k) over all ranks."""
        if self.revive_after:
            self._revive(latents, indices, counts)

    @torch.no_grad()
    def _revive(self, latents: Tensor, indices: Tensor, counts: Tensor) -> None:
        self.age.add_(1).masked_fill_(counts > 0, 0)
        dead = (self.age >= self.revive_after).nonzero().squeeze(-1)
        if len(dead):
            far = _distance(latents, self.codebook[indices])
            self._place(dead, from_rank_zero(sample(latents, len(dead), far)))
            self.age[dead] = 0

    @torch.no_grad()
    def _start(self, *latents: Tensor) -> None:
        """From latents (n d); or absolute codes from these, others from what they lack (n d)."""
        sizes = [self.codebook_size]
        if len(latents) > 1:
            sizes = [self.absolute_codes, self.codebook_size - self.absolute_codes]
        codes = torch.cat([kmeans(x, size) for x, size in zip(latents, sizes, strict=True)])
        self._place(torch.arange(self.codebook_size, device=codes.device), codes)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared, of each row of x (n d) from that of y (n d)."""
    return (x - y).square().sum(-1)


def _perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the usage that counts (k) show: the codes in effective use."""
    p = counts / counts.sum()
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())
