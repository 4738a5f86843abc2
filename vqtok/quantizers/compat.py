"""The quantizers of CogVideo's `sgm.modules.autoencoding`: the same signatures and results.

Code written for those classes runs unchanged on these. Inside, vqtok uses their base classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.errors import UsageError
from vqtok.quantizers.codebook import CodebookQuantizer
from vqtok.quantizers.ema import EMAQuantizer
from vqtok.quantizers.gumbel import GumbelQuantizer
from vqtok.quantizers.vector import VectorQuantizer


class Remapped(CodebookQuantizer):
    """Adds `remap` to a codebook quantizer: `forward` returns positions in a list of used ids.

    remap: path of a .npy file with the used ids, kept as the buffer `used`.
    unknown_index: the position given to an id outside `used`: "random", "extra" (one more
        position, len(used)) or an integer.
    `encode`, `decode` and `quantize` use ids of the whole codebook.
    """

    used: Tensor | None

    def set_remap(self, remap: str | None, unknown_index: str | int) -> None:
        """Load the used ids. Raises UsageError for an unknown_index that does not exist."""
        if not isinstance(unknown_index, int) and unknown_index not in ("random", "extra"):
            raise UsageError(
                f"unknown_index must be 'random', 'extra' or an integer, not {unknown_index!r}."
            )
        self.remap, self.unknown_index = remap, unknown_index
        used = None if remap is None else torch.from_numpy(np.load(remap)).long()
        self.register_buffer("used", used)
        extra = unknown_index == "extra"
        self.re_embed = self.codebook_size if used is None else len(used) + extra

    def remap_to_used(self, inds: Tensor) -> Tensor:
        """Return the positions in `used` of ids; unknown ids become `unknown_index`."""
        used = self._used_ids()
        table = used.new_full((self.codebook_size,), len(used))
        table.scatter_reduce_(0, used, torch.arange(len(used), device=used.device), "amin")
        positions = table[inds]
        if self.unknown_index == "extra":
            return positions
        unknown = (
            torch.randint_like(positions, len(used))
            if self.unknown_index == "random"
            else torch.full_like(positions, int(self.unknown_index))
        )
        return torch.where(positions == len(used), unknown, positions)

    def unmap_to_all(self, inds: Tensor) -> Tensor:
        """Return the ids of positions in `used`; positions past its end become used[0]."""
        used = self._used_ids()
        return used[torch.where(inds < len(used), inds, 0)]

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Return the codes of indices that `forward` returned.

        shape: (B, H, W, C) or (B, T, H, W, C) gives (B, C, *grid); None gives (*indices.shape, C).
        """
        if shape is not None:
            indices = indices.reshape(tuple(shape[:-1]))
        if self.used is not None:
            indices = self.unmap_to_all(indices)
        return F.embedding(indices, self.codebook) if shape is None else self.decode(indices)

    def _remapped(self, indices: Tensor) -> Tensor:
        return indices if self.used is None else self.remap_to_used(indices)

    def _used_ids(self) -> Tensor:
        if self.used is None:
            raise UsageError("This quantizer was built without remap: there is nothing to map.")
        return self.used


class VectorQuantizer2(VectorQuantizer, Remapped):
    """VQ-VAE with a codebook learned by gradient; see `VectorQuantizer` and `Remapped`.

    sane_index_shape: `forward` returns indices (b *grid), not flat.
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
    ) -> None:
        super().__init__(
            *(n_e, e_dim, beta),
            legacy=legacy,
            init_from_data=init_from_data,
            revive_after=revive_after,
        )
        self.set_remap(remap, unknown_index)
        self.n_e, self.e_dim, self.sane_index_shape = n_e, e_dim, sane_index_shape

    def forward(
        self,
        z: Tensor,
        temp: float | None = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Return (z_q, loss, (None, None, indices)) for z (b c *grid).

        indices: (n); (n, 1) with remap; (b *grid) with sane_index_shape. The other arguments
        exist for interchange with Gumbel: anything but their defaults is a UsageError.
        """
        if temp not in (None, 1.0) or rescale_logits or return_logits:
            raise UsageError("VectorQuantizer2 has no temperature and no logits: leave them alone.")
        out = self._quantize_local(z, self._quantize)
        indices = self._remapped(out.indices)
        if not self.sane_index_shape:
            indices = indices.flatten() if self.used is None else indices.reshape(-1, 1)
        return out.z_q, out.loss, (None, None, indices)


class EMAVectorQuantizer(EMAQuantizer, Remapped):
    """VQ-VAE with a codebook of moving averages; see `EMAQuantizer` and `Remapped`.

    loss_key: the key of the loss in the dictionary that `forward` returns.
    """

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
    ) -> None:
        super().__init__(
            *(n_embed, embedding_dim, beta, decay, eps),
            init_from_data=init_from_data,
            revive_after=revive_after,
        )
        self.set_remap(remap, unknown_index)
        self.num_tokens, self.codebook_dim, self.loss_key = n_embed, embedding_dim, loss_key

    def forward(self, z: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return (z_q, values) for z (b c *grid).

        values: loss_key, "encoding_indices" (n), "perplexity", and "encodings" (n k), one-hot,
        which is computed only when that key is read.
        """
        out = self._quantize_local(z, self._quantize)
        values = {
            self.loss_key: out.loss,
            "encoding_indices": self._remapped(out.indices).flatten(),
            "perplexity": out.terms["perplexity"],
        }
        return out.z_q, _LazyEncodings(values, out.indices.flatten(), self.num_tokens)


class GumbelQuantize(GumbelQuantizer, Remapped):
    """Gumbel-softmax; see `GumbelQuantizer` and `Remapped`. Only the used ids take part.

    use_vqinterface: `forward` returns indices as VectorQuantizer2 does.
    """

    def __init__(
        self,
        num_hiddens: int,
        embedding_dim: int,
        n_embed: int,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        use_vqinterface: bool = True,
        remap: str | None = None,
        unknown_index: str | int = "random",
        *,
        temp_final: float | None = None,
        anneal_steps: int = 0,
        init_from_data: bool = False,
    ) -> None:
        super().__init__(
            *(num_hiddens, embedding_dim, n_embed),
            straight_through=straight_through,
            kl_weight=kl_weight,
            temp_init=temp_init,
            temp_final=temp_final,
            anneal_steps=anneal_steps,
            init_from_data=init_from_data,
        )
        self.set_remap(remap, unknown_index)
        self.num_hiddens, self.embedding_dim, self.n_embed = num_hiddens, embedding_dim, n_embed
        self.use_vqinterface = use_vqinterface

    @property
    def active(self) -> Tensor | None:
        """The used ids, if there is a remap."""
        return self.used

    def forward(
        self, z: Tensor, temp: float | None = None, return_logits: bool = False
    ) -> tuple[Tensor | tuple[None, None, Tensor], ...]:
        """Return (z_q, kl, (None, None, indices)) for z (b num_hiddens *grid), indices (b *grid).

        Without use_vqinterface the last one is the bare indices. temp replaces the temperature in
        this call. return_logits adds the logits (b k *grid), with remap of the used ids only.
        """
        out = self._quantize_local(z, partial(self._quantize, temp=temp))
        indices = self._remapped(out.indices)
        last = (None, None, indices) if self.use_vqinterface else indices
        return out.z_q, out.loss, last, *((self.logits(z),) if return_logits else ())


class _LazyEncodings(dict[str, Tensor]):
    """A dict that computes "encodings" (n k) on access: they are large and rarely used."""

    def __init__(self, values: dict[str, Tensor], ids: Tensor, codebook_size: int) -> None:
        super().__init__(values)
        self._ids, self._codebook_size = ids, codebook_size

    def __missing__(self, key: str) -> Tensor:
        if key != "encodings":
            raise KeyError(key)
        return F.one_hot(self._ids, self._codebook_size).float()
