"""Predictive coding (DPCM): quantize what the previous latent frames do not predict."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vqtok.distributed import all_reduce_mean, broadcast, rank, world_size
from vqtok.model.frame_coder import FrameCoder, Price
from vqtok.model.predictor import Predictor
from vqtok.model.stream_state import StreamState
from vqtok.precision import at_least_float32, fixed_precision
from vqtok.quantizers import (
    CodebookQuantizer,
    NearestCode,
    Quantized,
    Quantizer,
    require_search,
)

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

    def encode(
        self, z: Tensor, state: StreamState, price: Price = 0.0, interval: int | None = None
    ) -> Tensor:
        """Return the indices (b t h w), or (b t h w stages), of the next latents (b c t h w).

        state: empty at the start of the clip, and updated.
        price: squared error of the latents that a token has to save, for quantizers with a zero
            code; a tensor broadcasts to (b t h w).
        interval: from one key frame of this clip to the next, instead of `keyframe_interval`.
        """
        if self.predictor is None:
            return self._frame_coder(z.dtype).search(z, price)
        memory = self._memory(state, len(z))
        indices, latents = self._encode_frames(z, memory, price, interval)
        self._advance(latents[:, :, -1:], memory, interval)
        return indices

    def decode(self, indices: Tensor, state: StreamState, interval: int | None = None) -> Tensor:
        """Return the latents (b c t h w), float32, of the next indices of a clip.

        indices: as `encode` returns them. interval: with which they were encoded.
        """
        if self.predictor is None:
            return at_least_float32(self.quantizer.decode(indices))
        latents, memory, coder = [], self._memory(state, len(indices)), self._frame_coder()
        codes, intra = coder.look_up(indices)
        for t in range(indices.shape[1]):
            mask = None if intra is None else intra[:, :, t : t + 1]
            past = memory.get(self), memory.starts
            latents.append(coder.add(codes[:, :, t : t + 1], mask, *past))
            self._advance(latents[-1], memory, interval)
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
            indices = self._frame_coder(z.dtype).search(z, price)
            return self._adapt_price(self._quantize(z, None, indices))
        phase = 0
        if self.training:
            phase = int(broadcast(torch.randint(self.keyframe_interval, (1,))))
        with torch.no_grad():
            indices, decoded = self._encode_frames(z, self._start(len(z), phase), price)
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
        return self._encode_frames(z, self._start(len(z)))[1]

    def _encode_frames(
        self, z: Tensor, memory: StreamState, price: Price = 0.0, interval: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the indices of latents, and the latents that they decode to.

        The memory is left as it was before the last frame.
        """
        coder, indices, latents = self._frame_coder(z.dtype), list[Tensor](), list[Tensor]()
        for frame in z.split(1, dim=2):
            if latents:
                self._advance(latents[-1], memory, interval)
            past = memory.get(self), memory.starts
            indices.append(coder.encode(frame, price, *past))
            latents.append(coder.decode(indices[-1], *past).to(z.dtype))
        return torch.cat(indices, dim=1), torch.cat(latents, dim=2)

    def _frame_coder(self, dtype: torch.dtype = torch.float32) -> FrameCoder:
        return FrameCoder(self.quantizer, self.intra_codes if self.predictor else 0, dtype)

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
        frames = self._frame_coder()
        z_q = frames.add(out.z_q, frames.intra_mask(out.indices), prediction, None)
        return replace(out, z_q=z_q.to(z.dtype))

    def _quantize_to(
        self, quantizer: NearestCode, z: Tensor, residual: Tensor, indices: Tensor
    ) -> Quantized:
        """Quantize each position of z or of the residual, whichever its index codes."""
        frames = self._frame_coder()
        intra = frames.intra_mask(indices)
        target = residual if intra is None else torch.where(intra, z, residual)
        out = quantizer.quantize_to(target, indices)
        if quantizer.has_dead_codes:
            distance = quantizer.distance(target, indices)
            for latents, part in zip((z, residual), frames.parts(), strict=True):
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
        for latents, part in zip((z, residual), self._frame_coder().parts(), strict=True):
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

    def _memory(self, state: StreamState, rows: int) -> StreamState:
        """Return what the state of a clip, or of a batch of them, holds for this module.

        It counts the frames since the key frame of each row, and holds the prediction of the next
        frame (b c 1 h w) besides what the predictor remembers. At a key frame, it is empty.
        """
        if self not in state:
            state[self] = self._start(rows)
        return cast(StreamState, state[self])

    def _start(self, rows: int, phase: int = 0) -> StreamState:
        """Return the memory at a key frame; the next is due as if `phase` frames had passed."""
        memory = StreamState()
        memory.frames = (phase,) * rows
        return memory

    def _advance(self, z_q: Tensor, memory: StreamState, interval: int | None = None) -> None:
        """Update the memory with the next decoded frame (b c 1 h w)."""
        interval = interval or self.keyframe_interval
        frames = tuple((count + 1) % interval for count in memory.frames)
        if any(frames):  # else the next is a key frame
            memory[self] = cast(Predictor, self.predictor)(z_q, memory)
        memory.frames = frames
        memory.mark_starts([count == 0 for count in memory.frames], z_q.device)
