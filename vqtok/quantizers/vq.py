"""Vector quantization (VQ-VAE, van den Oord et al. 2017, arXiv:1711.00937): by gradient or EMA."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.errors import UsageError
from vqtok.precision import at_least_float32
from vqtok.quantizers.codebook import NearestCode
from vqtok.quantizers.kmeans import sums_per_code


class VectorQuantizer2(NearestCode):
    """VQ-VAE: the codebook, at `.embedding.weight` (n_e, e_dim), learns by gradient.

    beta weights the codebook loss where legacy, else (as published) the commitment loss.
    sane_index_shape: `forward` returns indices (b *grid), not flat.
    remap, unknown_index, init_from_data: see `CodebookQuantizer`; revive_after, intra_codes: see
    `NearestCode`.
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        remap: str | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
        *,
        init_from_data: bool = False,
        revive_after: int = 0,
        intra_codes: int = 0,
    ) -> None:
        size = n_e, e_dim
        super().__init__(*size, remap, unknown_index, init_from_data, revive_after, intra_codes)
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.sane_index_shape, self.legacy = sane_index_shape, legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(
        self,
        z: Tensor,
        temp: float | None = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Return (z_q, loss, (None, None, indices)) for z (b c *grid).

        indices: (n); (n, 1) with remap; (b *grid) with sane_index_shape. The other arguments are
        there for interchange with Gumbel: anything but their defaults is a UsageError.
        """
        if temp not in (None, 1.0) or rescale_logits or return_logits:
            raise UsageError("VectorQuantizer2 has no temperature and no logits: leave them alone.")
        out = self._measure(z)
        indices = out.indices if self.used is None else self.remap_to_used(out.indices)
        if not self.sane_index_shape:
            indices = indices.flatten() if self.used is None else indices.reshape(-1, 1)
        return out.z_q, out.loss, (None, None, indices)

    @property
    def codebook(self) -> Tensor:
        """The codes (n_e, e_dim)."""
        return self.embedding.weight

    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        commitment, codebook = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
        first, second = (1.0, self.beta) if self.legacy else (self.beta, 1.0)
        return first * commitment + second * codebook, commitment

    def _place(self, rows: Tensor, codes: Tensor) -> None:
        self.embedding.weight[rows] = codes.to(self.embedding.weight.dtype)


class EmbeddingEMA(nn.Module):
    """A codebook that follows moving averages of the latents that chose it.

    weight (k d), cluster_size (k) and embed_avg (k d) are buffers: no optimizer sees them. Counts
    start at one (from zero, the first step would blow the codebook up). `update` False freezes it.
    The averages stay in float32 in a model of a narrower type, which would stop them.
    """

    def __init__(
        self, num_tokens: int, codebook_dim: int, decay: float = 0.99, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.decay, self.eps, self.update = decay, eps, True
        weight = torch.randn(num_tokens, codebook_dim)
        self.register_buffer("weight", weight)
        self.register_buffer("cluster_size", torch.ones(num_tokens))
        self.register_buffer("embed_avg", weight.clone())

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        weight, counts = (state.get(f"{prefix}{name}") for name in ("weight", "cluster_size"))
        if weight is not None and counts is not None:
            sums = weight * self._smoothed(counts).unsqueeze(-1)
            state.setdefault(f"{prefix}embed_avg", sums)
        super()._load_from_state_dict(state, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        averages = self.cluster_size, self.embed_avg
        super()._apply(fn, recurse)
        for name, before in zip(("cluster_size", "embed_avg"), averages, strict=True):
            after = getattr(self, name)
            if after.dtype != at_least_float32(after).dtype:
                setattr(self, name, before.to(after.device))
        return self

    def forward(self, embed_id: Tensor) -> Tensor:
        """Codes (... d) of indices (...)."""
        return F.embedding(embed_id, self.weight)

    def cluster_size_ema_update(self, new_cluster_size: Tensor) -> None:
        """Average in this step's counts (k)."""
        self.cluster_size.mul_(self.decay).add_(new_cluster_size, alpha=1 - self.decay)

    def embed_avg_ema_update(self, new_embed_avg: Tensor) -> None:
        """Average in this step's sums of latents (k d)."""
        self.embed_avg.mul_(self.decay).add_(new_embed_avg, alpha=1 - self.decay)

    def weight_update(self, num_tokens: int) -> None:
        """Set the codes to sum over count, with counts smoothed so that none is zero."""
        self.weight.copy_(self.embed_avg / self._smoothed(self.cluster_size).unsqueeze(-1))

    def _smoothed(self, counts: Tensor) -> Tensor:
        total = counts.sum()
        return (counts + self.eps) / (total + len(counts) * self.eps) * total

    def reset(self, rows: Tensor, codes: Tensor) -> None:
        """Put codes (m d) into those rows (m), each with a count of one."""
        self.weight[rows] = codes.to(self.weight.dtype)
        self.embed_avg[rows] = codes.to(self.embed_avg.dtype)
        self.cluster_size[rows] = 1


class EMAVectorQuantizer(NearestCode):
    """VQ-VAE whose codebook learns by moving averages (appendix A.1 of the paper), not gradient.

    `.embedding` is an `EmbeddingEMA` of n_embed codes; it moves in training, while its `update`
    is True. Counts and sums are taken over all ranks. loss_key names the loss that `forward`
    returns. remap, unknown_index, init_from_data: see `CodebookQuantizer`; revive_after,
    intra_codes: see `NearestCode`.
    """

    recomputed_keys = ("embedding.embed_avg",)

    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        remap: str | None = None,
        unknown_index: str | int = "random",
        loss_key: str = "loss/vq",
        *,
        init_from_data: bool = False,
        revive_after: int = 0,
        intra_codes: int = 0,
    ) -> None:
        size = n_embed, embedding_dim
        super().__init__(*size, remap, unknown_index, init_from_data, revive_after, intra_codes)
        self.num_tokens, self.codebook_dim = n_embed, embedding_dim
        self.beta, self.loss_key = beta, loss_key
        self.embedding = EmbeddingEMA(n_embed, embedding_dim, decay, eps)

    def forward(self, z: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return (z_q, figures) for z (b c *grid).

        figures: loss_key, "encoding_indices" (n), "perplexity", and "encodings" (n k), one-hot,
        which is made only when that key is read.
        """
        out = self._measure(z)
        indices = out.indices if self.used is None else self.remap_to_used(out.indices)
        figures = {
            self.loss_key: out.loss,
            "encoding_indices": indices.flatten(),
            "perplexity": out.terms["perplexity"],
        }
        return out.z_q, _Figures(figures, ids=out.indices.flatten(), codebook_size=self.num_tokens)

    @property
    def codebook(self) -> Tensor:
        """The codes (n_embed, embedding_dim)."""
        return self.embedding.weight

    @property
    def learns(self) -> bool:
        """In training, while `embedding.update` is True."""
        return self.training and self.embedding.update

    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        commitment = F.mse_loss(z, z_q.detach())
        return self.beta * commitment, commitment

    @torch.no_grad()
    def _learn(self, chosen: Tensor, indices: Tensor, counts: Tensor) -> None:
        self.embedding.cluster_size_ema_update(counts)
        self.embedding.embed_avg_ema_update(sums_per_code(chosen, indices, self.num_tokens))
        self.embedding.weight_update(self.num_tokens)

    def _place(self, rows: Tensor, codes: Tensor) -> None:
        self.embedding.reset(rows, codes)


class _Figures(dict[str, Tensor]):
    """A dict whose "encodings" are not made until they are read: they are n x k."""

    def __init__(self, figures: dict[str, Tensor], ids: Tensor, codebook_size: int) -> None:
        super().__init__(figures)
        self._ids, self._codebook_size = ids, codebook_size

    def __missing__(self, key: str) -> Tensor:
        if key != "encodings":
            raise KeyError(key)
        return F.one_hot(self._ids, self._codebook_size).float()
