"""Vector quantization (VQ-VAE, van den Oord et al. 2017, arXiv:1711.00937): by gradient or EMA."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqtok.distributed import all_reduce_sum, broadcast
from vqtok.errors import UsageError
from vqtok.precision import at_least_float32, fixed_precision
from vqtok.quantizers.base import Quantized, Quantizer, straight_through
from vqtok.quantizers.ema import EmbeddingEMA
from vqtok.quantizers.kmeans import kmeans, sample, sums_per_code
from vqtok.quantizers.search import nearest

ALL = slice(None)


class CodebookQuantizer(Quantizer):
    """A quantizer with a table of codes (k d).

    init_from_data: initialize the codebook from the first training batch, by k-means. A larger
        first batch gives a better codebook. The buffer `initialized` is saved with the weights.
    """

    initialized: Tensor | None

    def __init__(self, codebook_size: int, dim: int, init_from_data: bool) -> None:
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.register_buffer("initialized", torch.tensor(False) if init_from_data else None)

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """The codes (k d)."""

    @property
    def learns(self) -> bool:
        """True if this step may change the codebook outside the optimizer."""
        return self.training

    @property
    def needs_init(self) -> bool:
        """True if this training step has to initialize the codebook. Waits for a GPU."""
        return self.learns and self.initialized is not None and not self.initialized

    @abstractmethod
    def init_from_data(self, z: Tensor) -> None:
        """Initialize the codebook from latents z (b c *grid) of all ranks."""

    def decode(self, indices: Tensor) -> Tensor:
        """Return the codes (b d *grid) of indices (b *grid), in the codebook's dtype."""
        return F.embedding(indices, self.codebook).movedim(-1, 1).contiguous()

    def codebook_state(self) -> dict[str, Tensor]:
        """Return the codes; see `Quantizer.codebook_state`."""
        return {"codes": self.codebook.detach()}

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # A codebook that comes from elsewhere must not be initialized again.
        if self.initialized is not None and any(key.startswith(prefix) for key in state):
            state.setdefault(f"{prefix}initialized", torch.tensor(True))
        super()._load_from_state_dict(state, prefix, *rest)


class NearestCode(CodebookQuantizer):
    """Replace each latent by the nearest code of a learned codebook.

    Besides `encode`, `decode` and `quantize` there are their parts, for a caller that uses ranges
    of the codebook differently: `encode` and `init_from_data` with a range of codes,
    `quantize_to`, `distance` and `revive_dead_codes`.

    revive_after: training steps after which a code that no latent chose is replaced by a latent
        of the batch; 0: never.
    """

    age: Tensor | None  # (k) training steps since a code was last chosen
    fp16_keys = ("embedding.weight",)

    def __init__(
        self, codebook_size: int, dim: int, init_from_data: bool, revive_after: int
    ) -> None:
        super().__init__(codebook_size, dim, init_from_data)
        self.revive_after = revive_after
        age = torch.zeros(codebook_size, dtype=torch.int64) if revive_after else None
        self.register_buffer("age", age)

    @torch.no_grad()
    def encode(self, z: Tensor, codes: slice = ALL) -> Tensor:
        """Return the indices (b *grid) of the nearest codes to z (b d *grid).

        codes: the range of the codebook to choose from.
        """
        with fixed_precision(z.device.type):
            return self._encode(z, codes)

    def quantize_to(self, z: Tensor, indices: Tensor) -> Quantized:
        """Train as `quantize` does, with indices (b *grid) that the caller chose for z.

        Initializing the codebook and reviving dead codes is left to the caller.
        """
        return self._average_terms(self._quantize_local(z, lambda z: self._train_step(z, indices)))

    @torch.no_grad()
    def distance(self, z: Tensor, indices: Tensor) -> Tensor:
        """Return the squared distance (b *grid) of each latent of z from its code."""
        difference = _flat(z) - self.codebook[indices.flatten()]
        return difference.square().sum(-1).view(indices.shape)

    @torch.no_grad()
    def init_from_data(self, z: Tensor, codes: slice = ALL) -> None:
        """Initialize the codebook, or a range of it, by k-means of latents z (b d *grid)."""
        rows = self._rows(codes)
        self._set_codes(rows, kmeans(_flat(z), len(rows)))
        if self.initialized is not None:
            self.initialized.fill_(True)

    @torch.no_grad()
    def revive_dead_codes(self, z: Tensor, weights: Tensor, codes: slice = ALL) -> None:
        """Replace codes that were not chosen for `revive_after` steps by latents z (b d *grid).

        weights: (b *grid) relative chance of each latent to be drawn. Latents are rank 0's.
        codes: the range of the codebook to look at.
        """
        if self.age is None:
            return
        rows = self._rows(codes)
        rows = rows[self.age[rows] >= self.revive_after]
        if len(rows):
            self._set_codes(rows, broadcast(sample(_flat(z), len(rows), weights.flatten())))
            self.age[rows] = 0

    def codebook_state(self) -> dict[str, Tensor]:
        """Return codes and steps_unused; see `Quantizer.codebook_state`."""
        return super().codebook_state() | ({} if self.age is None else {"steps_unused": self.age})

    def _encode(self, z: Tensor, codes: slice = ALL) -> Tensor:
        indices = nearest(_flat(z), self.codebook.detach()[codes])
        return indices.view(len(z), *z.shape[2:]) + range(self.codebook_size)[codes].start

    def _quantize(self, z: Tensor) -> Quantized:
        if self.needs_init:
            self.init_from_data(z)
        indices = self._encode(z)
        out = self._train_step(z, indices)
        if self.learns and self.age is not None:
            self.revive_dead_codes(z, self.distance(z, indices))
        return out

    def _train_step(self, z: Tensor, indices: Tensor) -> Quantized:
        z_q = self.decode(indices)
        loss, commitment = self._loss(z, z_q)
        counts = torch.bincount(indices.flatten(), minlength=self.codebook_size)
        counts = all_reduce_sum(counts) if self.training else counts
        if self.learns:
            self._update(_flat(z), indices.flatten(), counts)
            if self.age is not None:
                self.age.add_(1).masked_fill_(counts > 0, 0)
        terms = {"commitment": commitment, "perplexity": _perplexity(counts)}
        return Quantized(straight_through(z, z_q), indices, loss, terms)

    @abstractmethod
    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted loss and the unweighted commitment loss."""

    @abstractmethod
    def _set_codes(self, rows: Tensor, codes: Tensor) -> None:
        """Overwrite rows (m) of the codebook with codes (m d) and reset their state."""

    def _update(self, latents: Tensor, indices: Tensor, counts: Tensor) -> None:
        """Learn without gradient from latents (n d), indices (n) and counts (k) of all ranks."""

    def _rows(self, codes: slice) -> Tensor:
        return torch.arange(self.codebook_size, device=self.codebook.device)[codes]

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if self.age is not None and any(key.startswith(prefix) for key in state):
            state.setdefault(f"{prefix}age", torch.zeros_like(self.age))
        super()._load_from_state_dict(state, prefix, *rest)


def require_search(quantizer: Quantizer) -> NearestCode:
    """Return the quantizer; raise UsageError if it does not search a codebook."""
    if not isinstance(quantizer, NearestCode):
        raise UsageError("model.intra_share needs quantizer.kind vq2 or ema")
    return quantizer


class VectorQuantizer(NearestCode):
    """The codebook `.embedding.weight` (k d) is learned by gradient.

    beta: weight of the codebook loss if `legacy`, else (as published) of the commitment loss.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        beta: float,
        *,
        legacy: bool = True,
        init_from_data: bool = False,
        revive_after: int = 0,
    ) -> None:
        super().__init__(codebook_size, dim, init_from_data, revive_after)
        self.beta, self.legacy = beta, legacy
        self.embedding = nn.Embedding(codebook_size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    @property
    def codebook(self) -> Tensor:
        """The codes (k d)."""
        return self.embedding.weight

    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        commitment, codebook = F.mse_loss(z, z_q.detach()), F.mse_loss(z_q, z.detach())
        first, second = (1.0, self.beta) if self.legacy else (self.beta, 1.0)
        return first * commitment + second * codebook, commitment

    def _set_codes(self, rows: Tensor, codes: Tensor) -> None:
        self.embedding.weight[rows] = codes.to(self.embedding.weight.dtype)


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
    ) -> None:
        super().__init__(codebook_size, dim, init_from_data, revive_after)
        self.beta = beta
        self.embedding = EmbeddingEMA(codebook_size, dim, decay, eps)

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

    def _loss(self, z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        commitment = F.mse_loss(z, z_q.detach())
        return self.beta * commitment, commitment

    @torch.no_grad()
    def _update(self, latents: Tensor, indices: Tensor, counts: Tensor) -> None:
        self.embedding.cluster_size_ema_update(counts)
        self.embedding.embed_avg_ema_update(sums_per_code(latents, indices, self.codebook_size))
        self.embedding.weight_update(self.codebook_size)

    def _set_codes(self, rows: Tensor, codes: Tensor) -> None:
        self.embedding.reset(rows, codes)


def _flat(z: Tensor) -> Tensor:
    """Return the latents (n d) of z (b d *grid), in float32 or wider, without gradient."""
    return rearrange(at_least_float32(z.detach()).contiguous(), "b d ... -> (b ...) d")


def _perplexity(counts: Tensor) -> Tensor:
    """Return exp of the entropy of counts (k)."""
    p = counts / counts.sum()
    return torch.exp(-(p * torch.log(p + 1e-10)).sum())
