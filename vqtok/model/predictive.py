"""Predictive coding (DPCM): quantize what the previous latent frames do not predict."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vqtok.distributed import all_reduce_mean, broadcast, rank, world_size
from vqtok.model.layers import StreamState
from vqtok.model.predictor import Predictor
from vqtok.precision import at_least_float32, fixed_precision
from vqtok.quantizers import (
    CodebookQuantizer,
    NearestCode,
    Quantized,
    Quantizer,
    require_search,
)

Price = Tensor | float
LOG_PRICES = -2.5, 1.5  # range of the logarithm of a clip's price in training, over `price`
ENERGY_WEIGHT = 3e-3  # of the mean square of the latents in the loss
PRICE_RATE = 0.3  # change of the logarithm of `price` in a step, per share of tokens in excess


class PredictiveCoder(nn.Module):
    """Latents to indices and back, through a quantizer that codes the residual of a prediction.

    Encoder and decoder add the decoded residual to the same prediction, as in every video codec,
    so that a still scene gets sharper with each frame. Key frames are coded without prediction;
    they bound how long a rounding difference between two machines can grow. Without a predictor,
    all latents go to the quantizer as they are.

    With a quantizer that has a zero code, a token is only spent where it pays: the encoder
    minimizes the squared error of the latents plus a price for each token. In training, each clip
    has another price, so that one tokenizer serves all rates.

    quantizer: sees plain tensors and knows nothing of prediction.
    predictor: None for no prediction.
    keyframe_interval: latent frames from one key frame to the next; the first frame is one.
    intra_share: share of the codes that are latents themselves (intra codes) and not residuals.
        They are the last ones, or the first ones if there is no zero code. At each position,
        whichever kind is cheaper is chosen: where something new enters the picture, that is an
        intra code. Ignored without a predictor.
    price: (buffer) the price per token at which half of the tokens were spent in training.

    Raises UsageError if intra_share is given and the quantizer does not search a codebook.
    """

    price: Tensor | None

    def __init__(
        self,
        quantizer: Quantizer,
        predictor: Predictor | None,
        keyframe_interval: int,
        intra_share: float,
    ) -> None:
        super().__init__()
        if intra_share:
            require_search(quantizer)
        self.quantizer, self.predictor = quantizer, predictor
        self.keyframe_interval = keyframe_interval
        most = quantizer.codebook_size - 1 - int(quantizer.zero_code)  # one residual code is left
        self.intra_codes = min(int(intra_share * quantizer.codebook_size), most)
        self.register_buffer("price", torch.tensor(1.0) if quantizer.zero_code else None)

    def encode(self, z: Tensor, state: StreamState, price: Price = 0.0) -> Tensor:
        """Return the indices (b t h w), or (b t h w stages), of the next latents (b c t h w).

        state: empty at the start of the clip, and updated.
        price: squared error of the latents that a token has to save, for quantizers with a zero
            code; a tensor broadcasts to (b t h w).
        """
        if self.predictor is None:
            return self._search(z, price)
        return self._encode_frames(z, state, price)[0]

    def decode(self, indices: Tensor, state: StreamState) -> Tensor:
        """Return the latents (b c t h w), float32, of the next indices of a clip.

        indices: as `encode` returns them.
        """
        if self.predictor is None:
            return at_least_float32(self.quantizer.decode(indices))
        latents = []
        for frame in indices.split(1, dim=1):
            latents.append(self._decode_frame(frame, self._prediction(state)))
            self._advance(latents[-1], state)
        return torch.cat(latents, dim=2)

    def quantize(self, z: Tensor) -> Quantized:
        """Quantize the latents (b c t h w) of whole clips for training, all frames at once.

        The loss includes the squared error of the prediction, the only thing that the predictor
        learns from: no gradient passes through its input, nor through its output to anything
        else. Where tokens have a price, it includes the mean square of the latents: a predicted
        offset costs no token, so that they would drift to where key frames need large codes. In
        training, a clip starts at a random distance from the last key frame.
        """
        self._init_codebook(z)
        price = self._draw_price(z)
        if self.predictor is None:
            if not self.quantizer.zero_code:
                return self.quantizer.quantize(z)
            return self._adapt_price(self._quantize(z, None, self._search(z, price)))
        phase = 0
        if self.training:
            phase = int(broadcast(torch.randint(self.keyframe_interval, (1,))))
        with torch.no_grad():
            indices, decoded = self._encode_frames(z, {self: (None, phase)}, price)
        prediction = self._predictions(decoded, phase)
        out = self._adapt_price(self._quantize(z, prediction.detach(), indices))
        if not self.training:
            return out
        error = (prediction - z.detach())[:, :, 1:]
        loss = error.square().sum() / max(1, error.numel())
        terms = out.terms | {"prediction_loss": all_reduce_mean(loss.detach())}
        if self.price is not None:
            energy = z.square().mean()
            terms["latent_energy"] = all_reduce_mean(energy.detach())
            loss = loss + ENERGY_WEIGHT * energy
        return replace(out, loss=out.loss + loss, terms=terms)

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> Tensor:
        """Initialize predictor and codebook from latents (b c t h w); return them decoded."""
        if self.predictor is not None:
            self.predictor.init_from_data(z)
        self._init_codebook(z)
        if self.predictor is None:
            return self.quantizer.decode(self.quantizer.encode(z)).to(z.dtype)
        return self._encode_frames(z, {})[1]

    def _encode_frames(
        self, z: Tensor, state: StreamState, price: Price = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return the indices of latents, and the latents that they decode to."""
        indices, latents = [], []
        for frame in z.split(1, dim=2):
            prediction = self._prediction(state)
            indices.append(self._encode_frame(frame, prediction, price))
            latents.append(self._decode_frame(indices[-1], prediction).to(z.dtype))
            self._advance(latents[-1], state)
        return torch.cat(indices, dim=1), torch.cat(latents, dim=2)

    def _encode_frame(self, z: Tensor, prediction: Tensor | None, price: Price) -> Tensor:
        if prediction is None:
            return self._search(z, price)
        z = at_least_float32(z).contiguous()
        if not self.intra_codes:
            return self._search(z - prediction, price)
        intra_part, residual_part = self._parts()
        quantizer = require_search(self.quantizer)
        return quantizer.search(z - prediction, price, residual_part, (z, intra_part))[0]

    def _decode_frame(self, indices: Tensor, prediction: Tensor | None) -> Tensor:
        codes = at_least_float32(self.quantizer.decode(indices))
        if prediction is None:
            return codes
        return self._without_intra(prediction, indices) + codes

    def _search(self, z: Tensor, price: Price) -> Tensor:
        if not self.quantizer.zero_code:
            return self.quantizer.encode(z)
        return require_search(self.quantizer).search(z, price)[0]

    def _quantize(self, z: Tensor, prediction: Tensor | None, indices: Tensor) -> Quantized:
        """Quantize latents for training, given their predictions (0 in key frames).

        indices: used by quantizers that search a codebook; others round again, with a gradient.
        """
        z = at_least_float32(z)
        residual = z if prediction is None else z - prediction
        if not isinstance(self.quantizer, NearestCode):
            out = self.quantizer.quantize(residual)
        else:
            out = self._quantize_to(self.quantizer, z, residual, indices)
        if prediction is None:
            return out
        z_q = self._without_intra(prediction, out.indices) + out.z_q
        return replace(out, z_q=z_q.to(z.dtype))

    def _quantize_to(
        self, quantizer: NearestCode, z: Tensor, residual: Tensor, indices: Tensor
    ) -> Quantized:
        """Quantize each position of z or of the residual, whichever its index codes."""
        target = torch.where(self._is_intra(indices).unsqueeze(1), z, residual)
        out = quantizer.quantize_to(target, indices)
        if quantizer.learns and quantizer.revive_after:
            distance = quantizer.distance(target, indices)
            for latents, part in zip((z, residual), self._parts(), strict=True):
                quantizer.revive_dead_codes(latents.detach(), distance, part)
        return out

    @torch.no_grad()
    def _init_codebook(self, z: Tensor) -> None:
        """Initialize the codebook if it is due, from latents (b c t h w) and true residuals."""
        quantizer = self.quantizer
        if not (isinstance(quantizer, CodebookQuantizer) and quantizer.needs_init):
            return
        residual = z if self.predictor is None else z - self._predictions(z)
        with fixed_precision(z.device.type):
            self._init_parts(quantizer, z, residual)

    def _init_parts(self, quantizer: CodebookQuantizer, z: Tensor, residual: Tensor) -> None:
        if not isinstance(quantizer, NearestCode):
            quantizer.init_from_data(residual)
            return
        for latents, part in zip((z, residual), self._parts(), strict=True):
            if part.stop > part.start:
                quantizer.init_from_data(latents, part)
        if self.price is not None:
            costs = quantizer.search(residual)[1]
            saved = (residual.square().sum(1) - costs).mean()
            self.price.copy_(all_reduce_mean(saved) / quantizer.stages)

    def _draw_price(self, z: Tensor) -> Price:
        """Return a random price for each clip (b 1 1 1); outside of training 0."""
        if not self.training or self.price is None:
            return 0.0
        # Drawn by rank 0 for all ranks, so that one process would draw the same.
        exponents = torch.empty(len(z) * world_size(), 1, 1, 1, device=z.device)
        exponents = broadcast(exponents.uniform_(*LOG_PRICES))[rank() :: world_size()]
        return self.price * exponents.exp()

    def _adapt_price(self, out: Quantized) -> Quantized:
        """Move the price so that half of the tokens are spent; return the result as it is."""
        if self.training and self.price is not None:
            stages = self.quantizer.stages
            excess = out.terms["tokens_per_position"] / stages - 0.5
            self.price.mul_(torch.exp(PRICE_RATE * excess))
            out.terms["price"] = self.price.clone()
        return out

    def _parts(self) -> tuple[slice, slice]:
        """Return the ranges of the intra codes and of the residual codes."""
        count, size = self.intra_codes if self.predictor else 0, self.quantizer.codebook_size
        if self.quantizer.zero_code:
            return slice(size - count, size), slice(0, size - count)
        return slice(0, count), slice(count, size)

    def _is_intra(self, indices: Tensor) -> Tensor:
        """Return a mask (b t h w) of the positions whose index is that of an intra code."""
        part = self._parts()[0]
        first = indices[..., 0] if self.quantizer.stages > 1 else indices
        return (first >= part.start) & (first < part.stop)

    def _without_intra(self, prediction: Tensor, indices: Tensor) -> Tensor:
        """Return the prediction, set to 0 where the index is that of an intra code."""
        if not self.intra_codes:
            return prediction
        return prediction.masked_fill(self._is_intra(indices).unsqueeze(1), 0)

    def _predictions(self, z_q: Tensor, phase: int = 0) -> Tensor:
        """Return the prediction of each frame (b c t h w) of a clip from those before it.

        It is 0 for key frames: the first frame, and every `keyframe_interval`-th one, counted as if
        `phase` frames had passed since the last key frame.
        """
        predictor = cast(Predictor, self.predictor)
        keys = range(self.keyframe_interval - phase, z_q.shape[2], self.keyframe_interval)
        groups = z_q.tensor_split(tuple(keys), dim=2)
        shifted = [(torch.zeros_like(g[:, :, :1]), predictor(g)[:, :, :-1]) for g in groups]
        return torch.cat([frames for pair in shifted for frames in pair], dim=2)

    def _prediction(self, state: StreamState) -> Tensor | None:
        """Return the prediction of the next frame (b c 1 h w), or None for a key frame."""
        return state.get(self, (None, 0))[0]

    def _advance(self, z_q: Tensor, state: StreamState) -> None:
        """Update the state with the next decoded frame (b c 1 h w)."""
        predictor = cast(Predictor, self.predictor)
        frames = state.get(self, (None, 0))[1] + 1  # since the last key frame
        state[self] = predictor(z_q, state), frames
        if frames == self.keyframe_interval:
            for module in self.modules():
                state.pop(module, None)
