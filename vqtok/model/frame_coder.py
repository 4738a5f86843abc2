"""Latent frames to indices and back, given a prediction of them."""

import torch
from torch import Tensor

from vqtok.precision import at_least_float32
from vqtok.quantizers import NearestCode, Quantizer

Price = Tensor | float


class FrameCoder:
    """Codes the residual of a prediction or, where that is cheaper, the latent itself.

    What it prepares for its searches serves all frames; the codebook must not change meanwhile.

    intra_codes: number of codes that are latents and not residuals. They are the last ones, or
        the first ones if there is no zero code.
    dtype: of the latents.
    """

    def __init__(self, quantizer: Quantizer, intra_codes: int, dtype: torch.dtype) -> None:
        self._quantizer, self._intra_codes = quantizer, intra_codes
        self._staged = (
            quantizer.prepare_search(dtype) if isinstance(quantizer, NearestCode) else None
        )

    def encode(
        self,
        z: Tensor,
        price: Price,
        prediction: Tensor | None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Return the indices (b t h w), or (b t h w stages), of latents (b c t h w).

        prediction: (b c t h w); None for key frames.
        starts: (b 1 1 1 1) marks the rows that have key frames although others are predicted.
            All rows are coded as both, so that no result depends on the other rows.
        """
        if prediction is None:
            return self.search(z, price)
        indices = self._encode_residual(z, price, prediction)
        if starts is None:
            return indices
        # (b 1 1 1), or (b 1 1 1 1) with stages
        starts = starts.flatten(indices.ndim - 1)
        return torch.where(starts, self.search(z, price), indices)

    def decode(
        self, indices: Tensor, prediction: Tensor | None, starts: Tensor | None = None
    ) -> Tensor:
        """Return the latents (b c t h w) of indices; the other arguments are those of `encode`."""
        return self.add(*self.look_up(indices), prediction, starts)

    def look_up(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the codes (b c t h w) of indices, and a mask (b 1 t h w) of the intra codes."""
        codes = at_least_float32(self._quantizer.decode(indices))
        return codes, self.intra_mask(indices)

    def add(
        self, codes: Tensor, intra: Tensor | None, prediction: Tensor | None, starts: Tensor | None
    ) -> Tensor:
        """Add the prediction to codes, except to intra codes and in key frames."""
        if prediction is None:
            return codes
        if intra is not None:
            prediction = prediction.masked_fill(intra, 0)
        latents = prediction + codes
        return latents if starts is None else torch.where(starts, codes, latents)

    def search(self, z: Tensor, price: Price) -> Tensor:
        """Return the indices of latents that have no prediction."""
        if self._staged is None:
            return self._quantizer.encode(z)
        return self._staged.search(z, price)[0]

    def _encode_residual(self, z: Tensor, price: Price, prediction: Tensor) -> Tensor:
        z = at_least_float32(z)
        if self._staged is None or not self._intra_codes:
            return self.search(z - prediction, price)
        intra_part, residual_part = self.parts()
        return self._staged.search(z - prediction, price, residual_part, (z, intra_part))[0]

    def parts(self) -> tuple[slice, slice]:
        """Return the ranges of the intra codes and of the residual codes."""
        count, size = self._intra_codes, self._quantizer.codebook_size
        if self._quantizer.zero_code:
            return slice(size - count, size), slice(0, size - count)
        return slice(0, count), slice(count, size)

    def intra_mask(self, indices: Tensor) -> Tensor | None:
        """Return a mask (b 1 t h w) of the positions with intra codes; None if there are none."""
        if not self._intra_codes:
            return None
        intra, residual = self.parts()
        first = indices[..., 0] if self._quantizer.stages > 1 else indices
        mask = first < intra.stop if intra.start < residual.start else first >= intra.start
        return mask.unsqueeze(1)
