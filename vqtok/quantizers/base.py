"""The contract that every quantizer keeps, and what the codebook quantizers share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.distributed import all_reduce_mean
from vqtok.errors import UsageError
from vqtok.precision import at_least_float32, full_float32


@dataclass
class Quantized:
    """What `quantize` returns, whatever the quantizer.

    z_q: (b c *grid), or (b n d) for a sequence; z's dtype; gradients pass straight through to z.
    indices: (b *grid) or (b *grid codebooks), int64, in [0, codebook_size).
    loss: scalar, weighted by the quantizer's own settings; exactly 0 in eval. Averaged over ranks,
        as DistributedDataParallel does, its gradient is that of one process on the whole batch.
    terms: detached parts of the loss and other figures over all ranks, for logs only.
    """

    z_q: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Latents to indices and back: `quantize` and `restore` are all that the rest of vqtok uses.

    In eval, `restore(quantize(z, p).indices, p)` is `quantize(z, p).z_q` bit for bit.

    channelwise: whether each channel of z is rounded by itself, and so best has unit variance; else
        what counts is the distance between whole latents.
    recomputed_keys: state dict keys that `load_state_dict` computes from the others if absent.
    fp16_keys: those that are as good in float16.
    """

    codebook_size: int
    dim: int
    channelwise = False
    recomputed_keys: tuple[str, ...] = ()
    fp16_keys: tuple[str, ...] = ()

    def quantize(self, z: Tensor, prediction: Tensor | None = None) -> Quantized:
        """Quantize latents z (b c h w) or (b c t h w), of any float dtype and memory layout.

        prediction: what is known of z (shaped like it) without the indices, which tell the rest.
            No gradient reaches it.
        """
        known = None if prediction is None else at_least_float32(prediction.detach())
        out = self._measure(z) if known is None else self._complete(z, known)
        loss = out.loss if self.training else torch.zeros_like(out.loss)
        terms = torch.stack([v.detach().float() for v in out.terms.values()])
        terms = all_reduce_mean(terms) if self.training else terms
        return replace(out, loss=loss, terms=dict(zip(out.terms, terms, strict=True)))

    def restore(self, indices: Tensor, prediction: Tensor | None = None) -> Tensor:
        """Decode indices to z_q (b c *grid). prediction: the one that `quantize` was given."""
        codes = at_least_float32(self.lookup(indices))
        return codes if prediction is None else prediction + codes

    @abstractmethod
    def lookup(self, indices: Tensor) -> Tensor:
        """Decode indices (b *grid) or (b *grid codebooks) to z_q, channel-first."""

    def _complete(self, z: Tensor, prediction: Tensor) -> Quantized:
        out = self._measure(at_least_float32(z) - prediction)
        return replace(out, z_q=(prediction + out.z_q).to(z.dtype))

    def _measure(self, z: Tensor, **options: Any) -> Quantized:
        # bfloat16 moves 4-6% of the picks to another code, and matrix products round by layout:
        # both are settled here for all.
        with torch.autocast(z.device.type, enabled=False), full_float32():
            out = self._quantize(at_least_float32(z).contiguous(), **options)
        return replace(out, z_q=out.z_q.to(z.dtype).contiguous())

    @abstractmethod
    def _quantize(self, z: Tensor, **options: Any) -> Quantized:
        """Quantize z in float32 or wider; loss and terms keep their graph, in eval too."""


class CodebookQuantizer(Quantizer):
    """A quantizer with a table of codes, of which `remap` can name the ids in use.

    remap: path of a .npy with the used ids, kept as the buffer `used`; `forward` then returns
        positions in it. `quantize` and `lookup` always speak of whole-codebook ids.
    unknown_index: the position given to an id outside `used`: "random", "extra" (one more
        position, len(used)) or an integer.
    init_from_data: take the first codebook from the first training batch, by k-means; several
        batches joined make a better one. That it was done is saved with the weights.
    """

    used: Tensor | None

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        remap: str | None,
        unknown_index: str | int,
        init_from_data: bool,
    ) -> None:
        super().__init__()
        if not isinstance(unknown_index, int) and unknown_index not in ("random", "extra"):
            raise UsageError(
                f"unknown_index must be 'random', 'extra' or an integer, not {unknown_index!r}."
            )
        self.codebook_size, self.dim = codebook_size, dim
        self.remap, self.unknown_index = remap, unknown_index
        used = None if remap is None else torch.from_numpy(np.load(remap)).long()
        self.register_buffer("used", used)
        self.re_embed = codebook_size if used is None else len(used) + (unknown_index == "extra")
        self.init_from_data = init_from_data
        if init_from_data:
            self.register_buffer("started", torch.tensor(False))

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """The codes (k d)."""

    def lookup(self, indices: Tensor) -> Tensor:
        """Decode ids (b *grid) to codes (b d *grid), in the codebook's dtype."""
        return F.embedding(indices, self.codebook).movedim(-1, 1).contiguous()

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Decode the indices that `forward` returned.

        shape: (B, H, W, C) or (B, T, H, W, C) gives (B, C, *grid); None gives (*indices.shape, C).
        """
        if shape is not None:
            indices = indices.reshape(tuple(shape[:-1]))
        if self.used is not None:
            indices = self.unmap_to_all(indices)
        return F.embedding(indices, self.codebook) if shape is None else self.lookup(indices)

    def remap_to_used(self, inds: Tensor) -> Tensor:
        """Turn ids into positions in `used`; unknown ids become `unknown_index`."""
        used = self._used()
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
        """Turn positions in `used` back into ids; positions past its end become used[0]."""
        used = self._used()
        return used[torch.where(inds < len(used), inds, 0)]

    def _begin(self, *latents: Tensor) -> None:
        """In training, before anything else: start from latents (n d), but only once."""
        if self.init_from_data and not self.started:
            self._start(*latents)
            self.started.fill_(True)

    @abstractmethod
    def _start(self, *latents: Tensor) -> None:
        """Take the codebook from latents (n d)."""

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # A codebook from elsewhere is not to be started over.
        if self.init_from_data and any(key.startswith(prefix) for key in state):
            state.setdefault(f"{prefix}started", torch.tensor(True))
        super()._load_from_state_dict(state, prefix, *rest)

    def _used(self) -> Tensor:
        if self.used is None:
            raise UsageError("This quantizer was built without remap: there is nothing to map.")
        return self.used


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """z_q exactly, with the gradient of z (the usual z + (z_q - z).detach() rounds)."""
    return z_q.detach() + (z - z.detach())
