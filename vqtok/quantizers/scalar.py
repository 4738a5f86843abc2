"""The base of FSQ and LFQ: projections, several codebooks, and sequences."""

from abc import abstractmethod

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqtok.errors import UsageError
from vqtok.precision import at_least_float32, fixed_precision
from vqtok.quantizers.base import Quantizer


class ScalarQuantizer(Quantizer):
    """A quantizer without a table: each channel of a code is rounded on its own.

    Inputs are (b dim h w), (b dim t h w) or sequences (b n dim). Linear `project_in` and
    `project_out` are used if dim differs from code_dim * num_codebooks. Indices have a last axis
    of codebooks if keep_num_codebooks_dim (default: if there are several).
    """

    per_channel = True

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        dim: int | None,
        num_codebooks: int,
        keep_num_codebooks_dim: bool | None,
    ) -> None:
        super().__init__()
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        if num_codebooks > 1 and not keep:
            raise UsageError("Several codebooks need keep_num_codebooks_dim: their indices differ.")
        inner = code_dim * num_codebooks
        self.codebook_size, self.codebook_dim = codebook_size, code_dim
        self.num_codebooks, self.keep_num_codebooks_dim = num_codebooks, keep
        self.dim = inner if dim is None else dim
        self.project_in = nn.Identity() if self.dim == inner else _Projection(self.dim, inner)
        self.project_out = nn.Identity() if self.dim == inner else _Projection(inner, self.dim)

    def decode(self, indices: Tensor) -> Tensor:
        """Return z_q in float32, (b dim *grid), or (b n dim) for a sequence."""
        return self.indices_to_codes(indices)

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Return what `decode` does, or codes without the output projection."""
        if not self.keep_num_codebooks_dim:
            indices = indices.unsqueeze(-1)
        return self._join(self._to_codes(indices), project_out)

    def _encode(self, z: Tensor) -> Tensor:
        return self._to_indices(self._split(z))

    @abstractmethod
    def _to_indices(self, z: Tensor) -> Tensor:
        """Return the indices of latents (b *grid codebooks code_dim), as callers see them."""

    @abstractmethod
    def _to_codes(self, indices: Tensor) -> Tensor:
        """Return the codes (... code_dim), float32, of indices (...)."""

    def _split(self, z: Tensor) -> Tensor:
        """Project latents and split them by codebook: (b *grid codebooks code_dim)."""
        z = z if z.ndim == 3 else z.movedim(1, -1)
        return rearrange(self.project_in(z), "b ... (m d) -> b ... m d", m=self.num_codebooks)

    def _join(self, codes: Tensor, project_out: bool = True) -> Tensor:
        """Undo `_split` for codes (b *grid codebooks code_dim)."""
        z_q = rearrange(codes, "b ... m d -> b ... (m d)")
        z_q = self.project_out(z_q) if project_out else z_q
        return z_q if z_q.ndim == 3 else z_q.movedim(-1, 1).contiguous()

    def _squeeze(self, indices: Tensor) -> Tensor:
        """Drop the axis of codebooks (b *grid codebooks) unless it is to be kept."""
        return indices if self.keep_num_codebooks_dim else indices.squeeze(-1)


class _Projection(nn.Linear):
    """Linear in float32 or wider, so that a bfloat16 model or autocast changes no index."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = at_least_float32(self.weight), at_least_float32(self.bias)
        with fixed_precision(x.device.type):
            return F.linear(x.to(weight.dtype), weight, bias)
