"""Finite scalar quantization (Mentzer et al. 2023, arXiv:2309.15505)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vqtok.distributed import synced_mean
from vqtok.errors import UsageError
from vqtok.quantizers.base import Quantized, straight_through
from vqtok.quantizers.scalar import ScalarQuantizer


class FSQ(ScalarQuantizer):
    """Bound each channel by a tanh and round it to one of its levels: no codebook to learn.

    levels: number of values of each channel, 3 or more; their product, the codebook size, is below
        2^31. The first channel is the least significant digit of an index.
    dim: channels of z; by default len(levels) * num_codebooks.
    scale: accepted for compatibility, without effect.
    whitening_weight: weight of a loss that keeps the channels uncorrelated and in the range of the
        levels. Without it, all channels tend to encode brightness and saturate the tanh.
    Raises UsageError for invalid levels.
    """

    _levels: Tensor
    _basis: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        *,
        whitening_weight: float = 0.0,
    ) -> None:
        levels = tuple(levels)
        if not levels or min(levels) < 3:
            raise UsageError(f"FSQ levels must be 3 or more each, not {levels}.")
        if math.prod(levels) >= 2**31:
            raise UsageError(f"FSQ levels {levels} multiply to 2^31 or more: use fewer or smaller.")
        super().__init__(math.prod(levels), len(levels), dim, num_codebooks, keep_num_codebooks_dim)
        self.levels, self.scale, self.whitening_weight = levels, scale, whitening_weight
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis, dtype=torch.int32), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return (z_q, indices): z's shape and dtype; int32 (b *grid) or (b *grid codebooks)."""
        out = self.quantize(z)
        return out.z_q, out.indices.int()

    def bound(self, z: Tensor, eps: float = 1e-3) -> Tensor:
        """Map z (... levels) into the open range whose rounding has exactly `levels` values."""
        half = (self._levels - 1) * (1 + eps) / 2
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Return the indices (...), int32, of codes zhat (... levels) in [-1, 1]."""
        return self._index(torch.round(zhat.float() * self._half) + self._half).int()

    @property
    def implicit_codebook(self) -> Tensor:
        """All codes (k levels), computed at each access: mind the size."""
        return self._to_codes(torch.arange(self.codebook_size, device=self._levels.device))

    @property
    def _half(self) -> Tensor:
        return self._levels // 2

    def _quantize(self, z: Tensor) -> Quantized:
        z = self._split(z)  # (b *grid codebooks levels)
        whitening = z.new_zeros(())
        if self.training and self.whitening_weight:
            whitening = _distance_from_white(z.flatten(0, -3).flatten(1))
        bounded = self.bound(z)
        digits = torch.round(bounded) + self._half  # from 0 to levels - 1
        z_q = straight_through(bounded / self._half, self._scale(digits).to(z.dtype))
        indices = self._squeeze(self._index(digits))
        terms = {"whitening": whitening}
        return Quantized(self._join(z_q), indices, self.whitening_weight * whitening, terms)

    def _to_indices(self, z: Tensor) -> Tensor:
        return self._squeeze(self._index(torch.round(self.bound(z)) + self._half))

    def _index(self, digits: Tensor) -> Tensor:
        return (digits.int() * self._basis).sum(-1)

    def _scale(self, digits: Tensor) -> Tensor:
        return (digits.float() - self._half) / self._half  # in float32, as in `decode`

    def _to_codes(self, indices: Tensor) -> Tensor:
        return self._scale(indices.unsqueeze(-1) // self._basis % self._levels)


def _distance_from_white(z: Tensor) -> Tensor:
    """Return the mean squared difference of the moments of z (n d) from those of white noise."""
    moments = synced_mean(z.T @ z / len(z))
    # Not the second moments, so that the levels reach the rare large values of sparse latents.
    variances = synced_mean(z.pow(4).mean(0)) / (3 * moments.diagonal()).clamp(min=1e-3)
    moments = moments - torch.diag(moments.diagonal() - variances)
    return (moments - torch.eye(z.shape[1], device=z.device)).square().mean()
