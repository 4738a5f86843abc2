"""The contract that every quantizer keeps."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vqtok.distributed import all_reduce_mean
from vqtok.precision import at_least_float32, fixed_precision


@dataclass
class Quantized:
    """The result of `Quantizer.quantize`.

    z_q: z's shape and dtype, with straight-through gradient to z.
    indices: (b *grid) or (b *grid codebooks), int64, in [0, codebook_size).
    loss: scalar, weighted by the quantizer's settings; 0 in eval. Averaged over ranks, as
        DistributedDataParallel does, its gradient is that of one process on the whole batch.
    terms: detached parts of the loss and other values to log, averaged over all ranks.
    """

    z_q: Tensor
    indices: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Map latents to indices and back.

    In eval, `decode(encode(z))` is `quantize(z).z_q` bit for bit. All arithmetic is done in
    float32 or wider, whatever z's dtype and autocast say: in bfloat16, 4-6% of the nearest codes
    would be wrong.

    codebook_size: number of codes, of each codebook if there are several.
    dim: channels of the latents.
    levels: number of values of each channel (FSQ), else None.
    per_channel: True if each channel is rounded on its own, so that latents should have unit
        variance in each; False if whole latents are compared by distance.
    revive_after: training steps after which an unused code is replaced; 0: never.
    stages: number of indices of each position (of vq2 and ema).
    zero_code: True if code 0 of each stage is the zero vector, for which no token is spent.
    recomputed_keys: state dict keys that `load_state_dict` computes from the others if absent.
    fp16_keys: state dict keys that can be stored in float16 without noticeable loss.
    """

    codebook_size: int
    dim: int
    levels: tuple[int, ...] | None = None
    per_channel = False
    revive_after = 0
    stages = 1
    zero_code = False
    recomputed_keys: tuple[str, ...] = ()
    fp16_keys: tuple[str, ...] = ()

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Return the indices (b *grid) or (b *grid codebooks), int64, of latents.

        z: (b c h w) or (b c t h w), for FSQ and LFQ also a sequence (b n d); any float dtype and
            memory layout.
        Computes no loss or statistics, draws no noise, and does not wait for a GPU.
        """
        with fixed_precision(z.device.type):
            return self._encode(at_least_float32(z).contiguous())

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """Return the latents z_q (b c *grid) of indices, in the dtype of the codebook."""

    def restore(self, indices: Tensor) -> Tensor:
        """Return `decode(indices)`: its name in vqtok 0.1."""
        return self.decode(indices)

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize latents for training: codes with a straight-through gradient, and the loss.

        z: as in `encode`.
        """
        return self._average_terms(self._quantize_local(z, self._quantize))

    def codebook_state(self) -> dict[str, Tensor]:
        """Return what is stored about each code, for reports; empty if all codes are implicit.

        codes (k d); ema_counts (k), latents per step; steps_unused (k), training steps since a
        code was last chosen. Only those that the quantizer keeps.
        """
        return {}

    def _quantize_local(self, z: Tensor, quantize: Callable[[Tensor], Quantized]) -> Quantized:
        """Quantize z in contiguous float32 and cast the result back; the terms are this rank's."""
        with fixed_precision(z.device.type):
            out = quantize(at_least_float32(z).contiguous())
        return replace(out, z_q=out.z_q.to(z.dtype).contiguous())

    def _average_terms(self, out: Quantized) -> Quantized:
        """Average the terms over ranks, and drop the loss in eval."""
        terms = {name: value.detach().float() for name, value in out.terms.items()}
        if not self.training:
            return replace(out, loss=torch.zeros_like(out.loss), terms=terms)
        means = all_reduce_mean(torch.stack(list(terms.values())))
        return replace(out, terms=dict(zip(terms, means, strict=True)))

    @abstractmethod
    def _encode(self, z: Tensor) -> Tensor:
        """Return the indices of contiguous z in float32 or wider."""

    @abstractmethod
    def _quantize(self, z: Tensor) -> Quantized:
        """Quantize contiguous z in float32 or wider; computes loss and terms in eval too."""


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Return exactly z_q, with the gradient of z; the usual z + (z_q - z).detach() rounds."""
    return z_q.detach() + (z - z.detach())
