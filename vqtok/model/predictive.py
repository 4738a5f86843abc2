"""Predictive quantization: of each latent frame, only what those before it did not foretell."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vqtok.distributed import all_reduce_mean, broadcast
from vqtok.model.layers import Block, CausalConv3d, State, streaming
from vqtok.precision import full_float32
from vqtok.quantizers import Quantized
from vqtok.quantizers.base import Quantizer


class Predictor(nn.Module):
    """Predicts each latent frame from those decoded before it, so that indices tell what is new.

    Encoder and decoder add what the codebook gives to the same prediction (differential pulse-code
    modulation): what stands still comes back sharper with every frame. It computes in float32
    whatever they do (in float64 where its weights are), so that both predict the same.

    keyframe_interval: latent frames from one key frame, which is not predicted, to the next. It
        bounds how long a difference in rounding between two machines can grow.
    """

    def __init__(self, dim: int, width: int, blocks: int, keyframe_interval: int) -> None:
        super().__init__()
        self.keyframe_interval = keyframe_interval
        self.net = nn.Sequential(
            CausalConv3d(dim, width, (1, 3, 3)),
            *(Block(width) for _ in range(blocks)),
            CausalConv3d(width, dim, (1, 1, 1)),
        )
        nn.init.zeros_(self.net[-1].weight)  # it begins by predicting nothing
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, z_q: Tensor) -> Tensor:
        """Decoded latents (b c t h w) -> after each frame, the prediction of the next."""
        x = z_q.to(self.net[0].weight.dtype, memory_format=torch.channels_last_3d)
        with torch.autocast(z_q.device.type, enabled=False), full_float32():
            return self.net(x).to(z_q.dtype)

    def predictions(self, z_q: Tensor, since_key: int = 0) -> Tensor:
        """Of the frames (b c t h w) of a whole clip, each from those before it; of key frames, 0.

        The first frame is one; the next comes as if `since_key` frames had gone by before.
        """
        keys = range(self.keyframe_interval - since_key, z_q.shape[2], self.keyframe_interval)
        parts = z_q.tensor_split(tuple(keys), dim=2)
        shifted = [(torch.zeros_like(p[:, :, :1]), self(p)[:, :, :-1]) for p in parts]
        return torch.cat([frame for pair in shifted for frame in pair], dim=2)

    def predict(self, state: State) -> Tensor | None:
        """The next frame (b c 1 h w) of a stream; None if it is a key frame."""
        return state.get(self, (None, 0))[0]

    def follow(self, z_q: Tensor, state: State) -> None:
        """Go on from the next decoded frame (b c 1 h w) of a stream."""
        _, since_key = state.get(self, (None, 0))
        with streaming(self, state):
            state[self] = self(z_q), since_key + 1
        if since_key + 1 == self.keyframe_interval:
            for module in self.modules():
                state.pop(module, None)

    @torch.no_grad()
    def start(self, z: Tensor) -> None:
        """Begin as the best prediction that one factor makes of each channel's last value.

        z: latents (b c t h w) of some clips.
        """
        before, after = z[:, :, :-1], z[:, :, 1:]
        over = (0, 2, 3, 4)
        factors = (before * after).sum(over) / before.square().sum(over).clamp(min=1e-6)
        first, last = self.net[0].weight.zero_(), self.net[-1].weight.zero_()
        channels = torch.arange(min(first.shape[:2]))
        first[channels, channels, 0, 1, 1] = 1
        last[channels, channels, 0, 0, 0] = factors[channels]


def encode(
    z: Tensor, quantizer: Quantizer, predictor: Predictor | None, state: State
) -> tuple[Tensor, Tensor]:
    """Indices of the next latents (b c t h w) of a stream, and what these will be decoded to."""
    if predictor is None:
        out = quantizer.quantize(z)
        return out.indices, out.z_q
    indices, latents = [], []
    for frame in z.split(1, dim=2):
        out = quantizer.quantize(frame, predictor.predict(state))
        indices.append(out.indices)
        latents.append(out.z_q)
        predictor.follow(out.z_q, state)
    return torch.cat(indices, dim=1), torch.cat(latents, dim=2)


def decode(
    indices: Tensor, quantizer: Quantizer, predictor: Predictor | None, state: State
) -> Tensor:
    """The latents (b c t h w) that the next indices (b t h w) of a stream stand for."""
    if predictor is None:
        return quantizer.restore(indices)
    latents = []
    for frame in indices.split(1, dim=1):
        latents.append(quantizer.restore(frame, predictor.predict(state)))
        predictor.follow(latents[-1], state)
    return torch.cat(latents, dim=2)


def quantize(z: Tensor, quantizer: Quantizer, predictor: Predictor | None) -> Quantized:
    """For training: the latents (b c t h w) of whole clips, all frames at once.

    The predictor's own loss is all that it learns from, and nothing else learns from that: no
    gradient passes through what it is shown, nor through what it predicts. A clip may begin
    anywhere between two key frames.
    """
    if predictor is None:
        return quantizer.quantize(z)
    since_key = 0
    if quantizer.training:
        since_key = int(broadcast(torch.randint(predictor.keyframe_interval, (1,))))
    predicted = predictor.predictions(_as_decoded(z, quantizer, predictor, since_key), since_key)
    out = quantizer.quantize(z, predicted)
    if not quantizer.training:
        return out
    lack = (predicted - z.detach())[:, :, 1:]
    loss = lack.square().sum() / max(1, lack.numel())
    terms = out.terms | {"prediction_loss": all_reduce_mean(loss.detach())}
    return replace(out, loss=out.loss + loss, terms=terms)


def start(z: Tensor, quantizer: Quantizer, predictor: Predictor | None) -> Tensor:
    """Start both on the latents (b c t h w) of some clips; what these are then decoded to."""
    if predictor is None:
        return quantizer.quantize(z).z_q
    predictor.start(z)
    quantizer.quantize(z, predictor.predictions(z))
    return _as_decoded(z, quantizer, predictor)


@torch.no_grad()
def _as_decoded(
    z: Tensor, quantizer: Quantizer, predictor: Predictor, since_key: int = 0
) -> Tensor:
    """Latents (b c t h w) with the error of indices, from which the quantizer learns nothing."""
    learning = quantizer.training
    try:
        return encode(z, quantizer.eval(), predictor, {predictor: (None, since_key)})[1]
    finally:
        quantizer.train(learning)
