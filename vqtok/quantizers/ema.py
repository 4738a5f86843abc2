"""A codebook of exponential moving averages (VQ-VAE, arXiv:1711.00937, appendix A.1)."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.precision import at_least_float32
from vqtok.quantizers.kmeans import sums_per_code
from vqtok.quantizers.nearest import NearestCode


class EmbeddingEMA(nn.Module):
    """A codebook that is the moving average of the latents that chose each code.

    weight (k d), cluster_size (k) and embed_avg (k d) are buffers: no optimizer sees them.
    With `update` False they do not change. cluster_size starts at one: from zero, the first update
    would divide by almost nothing. The averages stay in float32 when the module is cast to a
    narrower dtype, in which small updates would be rounded away.
    """

    weight: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def __init__(
        self, num_tokens: int, codebook_dim: int, decay: float = 0.99, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.decay, self.eps, self.update = decay, eps, True
        weight = torch.empty(num_tokens, codebook_dim)
        if not weight.is_meta:  # to draw nothing there, torch would import its compiler
            weight.normal_()
        self.register_buffer("weight", weight)
        self.register_buffer("cluster_size", torch.ones(num_tokens))
        self.register_buffer("embed_avg", weight.clone())

    def forward(self, embed_id: Tensor) -> Tensor:
        """Return the codes (... d) of indices (...)."""
        return F.embedding(embed_id, self.weight)

    def cluster_size_ema_update(self, new_cluster_size: Tensor) -> None:
        """Update the moving average of the counts (k)."""
        self.cluster_size.mul_(self.decay).add_(new_cluster_size, alpha=1 - self.decay)

    def embed_avg_ema_update(self, new_embed_avg: Tensor) -> None:
        """Update the moving average of the sums of latents (k d)."""
        self.embed_avg.mul_(self.decay).add_(new_embed_avg, alpha=1 - self.decay)

    def weight_update(self, num_tokens: int) -> None:
        """Set the codes to sum / count, with counts smoothed so that none is zero.

        num_tokens: accepted for compatibility, without effect.
        """
        self.weight.copy_(self.embed_avg / self._smoothed(self.cluster_size).unsqueeze(-1))

    def reset(self, rows: Tensor, codes: Tensor) -> None:
        """Overwrite rows (m) with codes (m d), each with a count of one."""
        self.weight[rows] = codes.to(self.weight.dtype)
        self.embed_avg[rows] = codes.to(self.embed_avg.dtype)
        self.cluster_size[rows] = 1

    def _smoothed(self, counts: Tensor) -> Tensor:
        total = counts.sum()
        return (counts + self.eps) / (total + len(counts) * self.eps) * total

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        weight, counts = (state.get(f"{prefix}{name}") for name in ("weight", "cluster_size"))
        if weight is not None and counts is not None and f"{prefix}embed_avg" not in state:
            state[f"{prefix}embed_avg"] = weight * self._smoothed(counts).unsqueeze(-1)
        super()._load_from_state_dict(state, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        averages = {"cluster_size": self.cluster_size, "embed_avg": self.embed_avg}
        super()._apply(fn, recurse)
        for name, before in averages.items():
            after = getattr(self, name)
            if after.dtype != at_least_float32(after).dtype:
                setattr(self, name, before.to(after.device))
        return self


class EMAQuantizer(NearestCode):
    """The codebook `.embedding` is learned by moving averages (appendix A.1), not by gradient.

    It moves in training while `embedding.update` is True. Counts and sums are of all ranks.
    """

    recomputed_keys = ("embedding.embed_avg",)

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        *,
        init_from_data: bool = False,
        revive_after: int = 0,
        stages: int = 0,
    ) -> None:
        super().__init__(codebook_size, dim, init_from_data, revive_after, stages)
        self.beta = beta
        self.embedding = EmbeddingEMA(self.rows, dim, decay, eps)
        self._clear_zero_codes()

    @property
    def codebook(self) -> Tensor:
        """The codes (k d)."""
        return self.embedding.weight

    @property
    def learns(self) -> bool:
        """True in training while `embedding.update` is True."""
        return self.training and self.embedding.update

    def codebook_state(self) -> dict[str, Tensor]:
        """Return codes, steps_unused and ema_counts; see `Quantizer.codebook_state`."""
        return super().codebook_state() | {"ema_counts": self.embedding.cluster_size}

    def _loss(
        self, z: Tensor, z_q: Tensor, codes: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        commitment = F.mse_loss(z, z_q.detach())
        return self.beta * commitment, commitment

    @torch.no_grad()
    def _update(self, latents: Tensor, rows: Tensor, counts: Tensor) -> None:
        self.embedding.cluster_size_ema_update(counts)
        self.embedding.embed_avg_ema_update(sums_per_code(latents, rows, self.rows))
        self.embedding.weight_update(self.rows)

    def _set_codes(self, rows: Tensor, codes: Tensor) -> None:
        self.embedding.reset(rows, codes)
