"""Codebooks searched for the nearest code: the step, its first codebook and its dead codes."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vqtok.distributed import all_reduce_sum, broadcast
from vqtok.errors import UsageError
from vqtok.quantizers.base import CodebookQuantizer, Quantized, straight_through
from vqtok.quantizers.kmeans import kmeans, sample
from vqtok.quantizers.search import nearest


class NearestCode(CodebookQuantizer):
    """Each latent becomes the nearest code of a learned codebook.

    revive_after: replace a code that no latent chose for so many training steps by a latent of the
        batch (of rank 0's), drawn by its squared distance from its code; 0 never does.
    intra_codes: so many, the first, stand for a latent whatever was predicted; the others for
        what the prediction lacks. Where something new comes into the picture they are nearer.
    """

    fp16_keys = ("embedding.weight",)

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        remap: str | None,
        unknown_index: str | int,
        init_from_data: bool,
        revive_after: int,
        intra_codes: int,
    ) -> None:
        super().__init__(codebook_size, dim, remap, unknown_index, init_from_data)
        if intra_codes >= codebook_size:
            raise UsageError(
                f"intra_codes={intra_codes} leaves none of {codebook_size} codes for the rest"
            )
        self.intra_codes = intra_codes
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
        if prediction is not None and self.intra_codes:
            absolute = (indices < self.intra_codes).unsqueeze(1)
            prediction = prediction.masked_fill(absolute, 0)
        return super().restore(indices, prediction)

    def _complete(self, z: Tensor, prediction: Tensor) -> Quantized:
        if not self.intra_codes:
            return super()._complete(z, prediction)
        return self._measure(z, prediction=prediction)

    def _quantize(self, z: Tensor, prediction: Tensor | None = None) -> Quantized:
        latents = rearrange(z.detach(), "b c ... -> (b ...) c")
        kinds = (latents,)
        if prediction is not None:
            kinds = latents, latents - rearrange(prediction, "b c ... -> (b ...) c")
        if self.learns:
            self._begin(*kinds)
        indices, chosen = self._nearest(*kinds)
        grid = indices.view(len(z), *z.shape[2:])
        z_q = self.restore(grid, prediction)
        loss, commitment = self._loss(z, z_q)
        counts = torch.bincount(indices, minlength=self.codebook_size)
        counts = all_reduce_sum(counts) if self.training else counts
        terms = {"commitment": commitment, "perplexity": _perplexity(counts)}
        if self.learns:
            self._learn(chosen, indices, counts)
            if self.revive_after:
                self._revive(kinds, chosen, indices, counts)
        return Quantized(straight_through(z, z_q), grid, loss, terms)

    def _nearest(self, latents: Tensor, lacking: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices (n) for latents (n d), and what the codes stand in for.

        Where predictions lack something (n d), that or the latent, as either has the nearer code.
        """
        if lacking is None:
            return nearest(latents, self.codebook), latents
        first, rest = self.codebook.detach().tensor_split([self.intra_codes])
        absolute, relative = nearest(latents, first), nearest(lacking, rest)
        is_absolute = _distance(latents, first[absolute]) <= _distance(lacking, rest[relative])
        indices = torch.where(is_absolute, absolute, relative + self.intra_codes)
        return indices, torch.where(is_absolute.unsqueeze(-1), latents, lacking)

    @abstractmethod
    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss and the bare commitment loss."""

    @abstractmethod
    def _place(self, rows: Tensor, codes: Tensor) -> None:
        """Put codes (m d) into those rows (m) of the codebook, with a fresh state."""

    def _learn(self, chosen: Tensor, indices: Tensor, counts: Tensor) -> None:
        """Follow one training step: what chose (n d) which codes (n); counts (k) over all ranks."""

    @torch.no_grad()
    def _revive(
        self, kinds: Sequence[Tensor], chosen: Tensor, indices: Tensor, counts: Tensor
    ) -> None:
        """Replace dead codes by vectors (n d) of their kind, likelier by those far from codes."""
        self.age.add_(1).masked_fill_(counts > 0, 0)
        dead = self.age >= self.revive_after
        if not dead.any():
            return
        far = _distance(chosen, self.codebook[indices])
        for rows, vectors in zip(self._rows(kinds), kinds, strict=True):
            rows = rows[dead[rows]]
            if len(rows):
                self._place(rows, broadcast(sample(vectors, len(rows), far)))
        self.age[dead] = 0

    @torch.no_grad()
    def _start(self, *kinds: Tensor) -> None:
        for rows, vectors in zip(self._rows(kinds), kinds, strict=True):
            self._place(rows, kmeans(vectors, len(rows)))

    def _rows(self, kinds: Sequence[Tensor]) -> Sequence[Tensor]:
        """Which codes stand for which kind: all for latents, or the rest for what these lack."""
        rows = torch.arange(self.codebook_size, device=self.codebook.device)
        return rows.tensor_split([self.intra_codes]) if len(kinds) > 1 else [rows]


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared, of each row of x (n d) from that of y (n d)."""
    return (x - y).square().sum(-1)


def _perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the usage that counts (k) show: the codes in effective use."""
    p = counts / counts.sum()
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())
