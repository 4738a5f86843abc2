"""Predictive coding (DPCM): quantize what the previous latent frames do not predict."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from vqtok.distributed import all_reduce_mean, broadcast
from vqtok.model.layers import (
    CausalConv3d,
    CausalSequential,
    ResidualBlock,
    StreamState,
    channels_last,
)
from vqtok.precision import at_least_float32, fixed_precision
from vqtok.quantizers import Quantized, Quantizer, require_search


class Predictor(nn.Module):
    """Predict each latent frame from the decoded ones before it: (b c t h w) -> (b c t h w).

    Computes in float32 (or the wider dtype of its weights) under any autocast, so that encoder
    and decoder predict the same.
    """

    def __init__(self, dim: int, width: int, blocks: int) -> None:
        super().__init__()
        self.net = CausalSequential(
            CausalConv3d(dim, width, (1, 3, 3)),
            *(ResidualBlock(width) for _ in range(blocks)),
            CausalConv3d(width, dim, (1, 1, 1)),
        )
        nn.init.zeros_(self._last.weight)  # it predicts zero at first
        channels_last(self)

    def forward(self, z_q: Tensor, state: StreamState | None = None) -> Tensor:
        """Return, at each frame of z_q, the prediction of the next frame."""
        x = z_q.to(self._first.weight.dtype, memory_format=torch.channels_last_3d)
        with fixed_precision(z_q.device.type):
            return self.net(x, state).to(z_q.dtype)

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> None:
        """Initialize as a linear prediction of each channel from its last value.

        z: latents (b c t h w) of some clips.
        """
        before, after = z[:, :, :-1], z[:, :, 1:]
        over = (0, 2, 3, 4)
        factors = (before * after).sum(over) / before.square().sum(over).clamp(min=1e-6)
        first, last = self._first.weight.zero_(), self._last.weight.zero_()
        channels = torch.arange(min(first.shape[:2]))
        first[channels, channels, 0, 1, 1] = 1
        last[channels, channels, 0, 0, 0] = factors[channels]

    @property
    def _first(self) -> CausalConv3d:
        return cast(CausalConv3d, self.net[0])

    @property
    def _last(self) -> CausalConv3d:
        return cast(CausalConv3d, self.net[-1])


class PredictiveCoder(nn.Module):
    """Latents to indices and back, through a quantizer that codes the residual of a prediction.

    Encoder and decoder add the decoded residual to the same prediction, as in every video codec,
    so that a still scene gets sharper with each frame. Key frames are coded without prediction;
    they bound how long a rounding difference between two machines can grow. Without a predictor,
    all latents go to the quantizer as they are.

    quantizer: sees plain tensors and knows nothing of prediction.
    predictor: None for no prediction.
    keyframe_interval: latent frames from one key frame to the next; the first frame is one.
    intra_share: share of the codes, the first ones, that are latents themselves (intra codes)
        and not residuals. At each position, whichever kind is nearer is chosen: where something
        new enters the picture, that is an intra code. Ignored without a predictor.

    Raises UsageError if intra_share is given and the quantizer does not search a codebook.
    """

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
        self.intra_codes = int(intra_share * quantizer.codebook_size)

    def encode(self, z: Tensor, state: StreamState) -> Tensor:
        """Return the indices (b t h w) of the next latents (b c t h w) of a clip.

        state: empty at the start of the clip, and updated.
        """
        if self.predictor is None:
            return self.quantizer.encode(z)
        return self._encode_frames(z, state)[0]

    def decode(self, indices: Tensor, state: StreamState) -> Tensor:
        """Return the latents (b c t h w), float32, of the next indices (b t h w) of a clip."""
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
        else. In training, a clip starts at a random distance from the last key frame.
        """
        if self.predictor is None:
            return self.quantizer.quantize(z)
        phase = 0
        if self.training:
            phase = int(broadcast(torch.randint(self.keyframe_interval, (1,))))
        decoded = self._encode_decode(z, phase)
        prediction = self._predictions(decoded, phase)
        out = self._quantize(z, prediction.detach())
        if not self.training:
            return out
        error = (prediction - z.detach())[:, :, 1:]
        loss = error.square().sum() / max(1, error.numel())
        terms = out.terms | {"prediction_loss": all_reduce_mean(loss.detach())}
        return replace(out, loss=out.loss + loss, terms=terms)

    @torch.no_grad()
    def init_from_data(self, z: Tensor) -> Tensor:
        """Initialize predictor and codebook from latents (b c t h w); return them decoded."""
        if self.predictor is None:
            return self.quantizer.quantize(z).z_q
        self.predictor.init_from_data(z)
        self._quantize(z, self._predictions(z))
        return self._encode_decode(z)

    @torch.no_grad()
    def _encode_decode(self, z: Tensor, phase: int = 0) -> Tensor:
        """Return the latents (b c t h w) of whole clips as they will be decoded."""
        return self._encode_frames(z, {self: (None, phase)})[1]

    def _encode_frames(self, z: Tensor, state: StreamState) -> tuple[Tensor, Tensor]:
        """Return the indices of latents, and the latents that they decode to."""
        indices, latents = [], []
        for frame in z.split(1, dim=2):
            prediction = self._prediction(state)
            indices.append(self._encode_frame(frame, prediction))
            latents.append(self._decode_frame(indices[-1], prediction).to(z.dtype))
            self._advance(latents[-1], state)
        return torch.cat(indices, dim=1), torch.cat(latents, dim=2)

    def _encode_frame(self, z: Tensor, prediction: Tensor | None) -> Tensor:
        if prediction is None:
            return self.quantizer.encode(z)
        z = at_least_float32(z).contiguous()
        if self.intra_codes:
            return self._choose(z, z - prediction)
        return self.quantizer.encode(z - prediction)

    def _decode_frame(self, indices: Tensor, prediction: Tensor | None) -> Tensor:
        codes = at_least_float32(self.quantizer.decode(indices))
        if prediction is None:
            return codes
        return self._without_intra(prediction, indices) + codes

    def _choose(self, z: Tensor, residual: Tensor) -> Tensor:
        """Return the indices of the nearer of the best intra code and the best residual code."""
        quantizer = require_search(self.quantizer)
        intra_part, residual_part = self._parts()
        intra = quantizer.encode(z, intra_part)
        inter = quantizer.encode(residual, residual_part)
        nearer = quantizer.distance(z, intra) <= quantizer.distance(residual, inter)
        return torch.where(nearer, intra, inter)

    def _quantize(self, z: Tensor, prediction: Tensor) -> Quantized:
        """Quantize latents for training, given their predictions (0 in key frames)."""
        residual = at_least_float32(z) - prediction
        if self.intra_codes:
            out = self._quantize_with_intra(at_least_float32(z), residual)
        else:
            out = self.quantizer.quantize(residual)
        z_q = self._without_intra(prediction, out.indices) + out.z_q
        return replace(out, z_q=z_q.to(z.dtype))

    def _quantize_with_intra(self, z: Tensor, residual: Tensor) -> Quantized:
        """Quantize each position of z or of the residual, whichever has the nearer code."""
        quantizer = require_search(self.quantizer)
        parts = list(zip((z.detach(), residual.detach()), self._parts(), strict=True))
        if quantizer.needs_init:
            for latents, part in parts:
                quantizer.init_from_data(latents, part)
        indices = self._choose(z, residual)
        target = torch.where((indices < self.intra_codes).unsqueeze(1), z, residual)
        out = quantizer.quantize_to(target, indices)
        if quantizer.learns:
            distance = quantizer.distance(target, indices)
            for latents, part in parts:
                quantizer.revive_dead_codes(latents, distance, part)
        return out

    def _parts(self) -> tuple[slice, slice]:
        """Return the ranges of the intra codes and of the residual codes."""
        return slice(0, self.intra_codes), slice(self.intra_codes, self.quantizer.codebook_size)

    def _without_intra(self, prediction: Tensor, indices: Tensor) -> Tensor:
        """Return the prediction, set to 0 where the index is that of an intra code."""
        if not self.intra_codes:
            return prediction
        return prediction.masked_fill((indices < self.intra_codes).unsqueeze(1), 0)

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
