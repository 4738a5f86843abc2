"""Lookup-free quantization (MAGVIT-v2, Yu et al. 2023, arXiv:2310.05737)."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vqtok.distributed import all_reduce_mean, synced_mean
from vqtok.errors import UsageError
from vqtok.quantizers.base import Quantized, straight_through
from vqtok.quantizers.scalar import ScalarQuantizer

CHUNK = 1 << 20  # half-code probabilities held at once: 4 MiB per tensor


class Return(NamedTuple):
    """quantized, shaped like x; indices (b *grid) or (b *grid codebooks), int64; the loss."""

    quantized: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class LossBreakdown(NamedTuple):
    """Unweighted scalars, entropies in nats; 0 in eval.

    With several ranks, per_sample_entropy and commitment are of this rank; average them.
    """

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


class LFQ(ScalarQuantizer):
    """Replace each channel by its sign times codebook_scale: one bit of the index each.

    The first channel is the most significant bit; the sign of 0 is -1. The loss makes each sample
    certain of its code and the batch use all codes: entropy_loss_weight * (E[H(p)] -
    diversity_gamma * H(E[p])) + commitment_loss_weight * mean((x - q)^2), which can be negative.
    p is a softmax over codes of 2 * inv_temperature * <x, code>; E[p] is over all ranks.

    codebook_size: a power of two; by default 2^dim.
    dim: channels of x; by default log2(codebook_size) * num_codebooks.
    straight_through_activation: applied before the sign in training, for its gradient.
    frac_per_sample_entropy: share of the positions that the entropies are estimated from.
    Raises UsageError for invalid settings.
    """

    bit_values: Tensor

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.25,
        diversity_gamma: float = 1.0,
        straight_through_activation: nn.Module | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
        inv_temperature: float = 100.0,
    ) -> None:
        if codebook_size is None:
            if dim is None:
                raise UsageError("LFQ needs dim or codebook_size.")
            codebook_size = 2**dim
        bits = codebook_size.bit_length() - 1
        if codebook_size < 2 or codebook_size != 2**bits:
            raise UsageError(f"LFQ codebook_size must be a power of two, not {codebook_size}.")
        if not 0 < frac_per_sample_entropy <= 1:
            raise UsageError("LFQ frac_per_sample_entropy must be above 0 and at most 1.")
        super().__init__(codebook_size, bits, dim, num_codebooks, keep_num_codebooks_dim)
        self.entropy_loss_weight = entropy_loss_weight
        self.commitment_loss_weight = commitment_loss_weight
        self.diversity_gamma = diversity_gamma
        self.activation = straight_through_activation or nn.Identity()
        self.codebook_scale = codebook_scale
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.inv_temperature = inv_temperature
        bit_values = torch.tensor([2**i for i in reversed(range(bits))])
        self.register_buffer("bit_values", bit_values, persistent=False)

    def forward(
        self,
        x: Tensor,
        inv_temperature: float | None = None,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
    ) -> Return | tuple[Return, LossBreakdown]:
        """Quantize x; return Return, or (Return, LossBreakdown) with return_loss_breakdown.

        inv_temperature: None for the constructor's. mask: bool (b *grid) or (b n), True where a
        position counts in the loss.
        """
        quantize = partial(self._quantize, inv_temperature=inv_temperature, mask=mask)
        out = self._quantize_local(x, quantize)
        result = Return(out.z_q, out.indices, out.loss)
        return (result, LossBreakdown(**out.terms)) if return_loss_breakdown else result

    def _quantize(
        self, z: Tensor, inv_temperature: float | None = None, mask: Tensor | None = None
    ) -> Quantized:
        x = self._split(z)  # (b *grid codebooks bits)
        codes = self._scale(x > 0).to(x.dtype)
        indices = self._to_indices(x)
        sharpness = self.inv_temperature if inv_temperature is None else inv_temperature
        losses = self._losses(x, codes, sharpness, mask)
        entropy = losses.per_sample_entropy - self.diversity_gamma * losses.batch_entropy
        loss = self.entropy_loss_weight * entropy + self.commitment_loss_weight * losses.commitment
        z_q = straight_through(self.activation(x), codes) if self.training else codes
        return Quantized(self._join(z_q), indices, loss, losses._asdict())

    def _to_indices(self, z: Tensor) -> Tensor:
        return self._squeeze(((z > 0) * self.bit_values).sum(-1))

    def _losses(
        self, x: Tensor, codes: Tensor, inv_temperature: float, mask: Tensor | None
    ) -> LossBreakdown:
        if not self.training:
            return LossBreakdown(*x.new_zeros(3))
        x, codes = x.flatten(1, -3), codes.flatten(1, -3)
        counted = ... if mask is None else mask.flatten(1)
        x, codes = x[counted].reshape(-1, *x.shape[-2:]), codes[counted].reshape(-1, *x.shape[-2:])
        commitment = _mean((x - codes).square().mean((1, 2)))
        logits = 4 * inv_temperature * self.codebook_scale * self._draw(x)  # of each bit being 1
        # Beyond this lie subnormal floats, which are twenty times slower on a CPU.
        logits = logits.clamp(-60, 60)
        return LossBreakdown(_binary_entropy(logits), _batch_entropy(logits), commitment)

    def _draw(self, x: Tensor) -> Tensor:
        """Return a random share frac_per_sample_entropy of positions x (n ...), at least one."""
        if self.frac_per_sample_entropy == 1:
            return x
        count = max(1, round(len(x) * self.frac_per_sample_entropy))
        return x[torch.randperm(len(x), device=x.device)[:count]]

    def _scale(self, positive: Tensor) -> Tensor:
        return torch.where(positive, self.codebook_scale, -self.codebook_scale)

    def _to_codes(self, indices: Tensor) -> Tensor:
        return self._scale(indices.unsqueeze(-1) & self.bit_values != 0)


def _mean(x: Tensor, total: Tensor | None = None) -> Tensor:
    """Return this rank's share of the mean of x (n ...) over the positions of all ranks.

    The mean of all shares, in value and gradient, is the mean over positions, even if ranks have
    different numbers of them. 0 if no rank has a position. total: the sum of x over n, if known.
    """
    positions = all_reduce_mean(x.new_full((), len(x)))
    return (x.sum(0) if total is None else total) / positions.clamp(min=1e-6)


def _binary_entropy(logits: Tensor) -> Tensor:
    """Return E[H(p)]. The bits are independent, so it is a sum of binary entropies."""
    a = logits.abs()
    return _mean((F.softplus(-a) + a * torch.sigmoid(-a)).sum(-1).mean(-1))


def _batch_entropy(logits: Tensor) -> Tensor:
    """Return H(E[p]) of logits (n codebooks bits), averaged over codebooks.

    Each p is the outer product of the distributions of two halves of the code, so that their sum
    is one matrix product: nothing of size n x k is held. The backward pass recomputes chunks.
    """
    codebooks, bits = logits.shape[1:]
    rows = max(1, CHUNK // (codebooks * 2 ** (bits - bits // 2)))
    if len(logits) <= rows:
        mass = _mass(logits)
    else:
        mass = sum(checkpoint(_mass, chunk, use_reentrant=False) for chunk in logits.split(rows))
    return torch.special.entr(synced_mean(_mean(logits, mass))).sum() / codebooks


def _mass(logits: Tensor) -> Tensor:
    """Return the sum over n of p, as (codebooks 2^half 2^rest)."""
    half = logits.shape[-1] // 2
    left, right = _half_codes(logits[..., :half]), _half_codes(logits[..., half:])
    return torch.einsum("nmi,nmj->mij", left, right)


def _half_codes(logits: Tensor) -> Tensor:
    """Return the probabilities (n codebooks 2^h) of all patterns of h bits."""
    h, device = logits.shape[-1], logits.device
    ones = torch.arange(2**h, device=device) >> torch.arange(h, device=device).unsqueeze(-1) & 1
    patterns = torch.cat([ones, 1 - ones]).to(logits.dtype)
    log_p = torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], -1) @ patterns
    # The product of two is then still a normal float, and E[p] has a logarithm.
    return log_p.clamp(min=-43).exp()
