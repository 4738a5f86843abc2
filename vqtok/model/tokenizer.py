"""The tokenizer: a causal encoder, a quantizer and a causal decoder, walked in chunks."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.config import ModelSettings, QuantizerSettings
from vqtok.errors import VqtokError
from vqtok.model import predictive as predictor
from vqtok.model.layers import (
    Block,
    CausalConv3d,
    DepthToSpace,
    State,
    principal_components,
    streaming,
)
from vqtok.quantizers import Quantized, build

CHUNK = 2  # latent frames at a time
LARGE = 2**16  # positions; a latent frame with more goes alone, for a chunk of 4K takes gigabytes


def encoder(settings: ModelSettings, dim: int) -> nn.Sequential:
    """(b 3 1+s*n h w) in -1..1 -> latents (b dim 1+n h' w')."""
    (t, h, w), (shallow, deep) = settings.strides, settings.widths
    fold = (t, h // 2, w // 2)
    return nn.Sequential(
        CausalConv3d(3, shallow, fold, stride=fold),
        *(Block(shallow) for _ in range(settings.encoder_blocks[0])),
        CausalConv3d(shallow, deep, (1, 2, 2), stride=(1, 2, 2)),
        *(Block(deep) for _ in range(settings.encoder_blocks[1])),
        CausalConv3d(deep, dim, (1, 1, 1)),
    )


def decoder(settings: ModelSettings, dim: int) -> nn.Sequential:
    """Latents (b dim n h' w') -> (b 3 s*n h w), about -1..1."""
    (t, h, w), (shallow, deep) = settings.strides, settings.widths
    return nn.Sequential(
        DepthToSpace(dim, deep, (1, 1, 1), look=3),
        *(Block(deep) for _ in range(settings.decoder_blocks[1])),
        DepthToSpace(deep, shallow, (1, 2, 2)),
        *(Block(shallow) for _ in range(settings.decoder_blocks[0])),
        DepthToSpace(shallow, 3, (t, h // 2, w // 2)),
    )


def latent_frames(height: int, width: int) -> int:
    """How many latent frames of this height and width are walked at a time.

    It depends on nothing else, so that a clip gives the same tokens every time.
    """
    return 1 if height * width > LARGE else CHUNK


class Tokenizer(nn.Module):
    """Video to a grid of integers and back, at any length, height and width.

    A clip of f frames of h x w becomes 1 + ceil((f - 1) / s) latent frames of ceil(h / sh) x
    ceil(w / sw) indices: the first frame stands alone (a still image is one latent frame), and what
    does not fill the last position is padded by repeating the edge, and cut away after decoding.

    Causal in time (MAGVIT-v2, https://arxiv.org/abs/2310.05737): tokens never depend on what comes
    later, so a clip can be encoded while it is still being made.
    """

    fingerprint = ""  # SHA-256 of the weights, set where they are read from a file

    def __init__(self, model: ModelSettings, quantizer: QuantizerSettings) -> None:
        super().__init__()
        self.stride = model.strides
        self.kind = quantizer.kind
        self.quantizer = build(quantizer, model.intra_share)
        self.encoder = encoder(model, self.quantizer.dim)
        self.decoder = decoder(model, self.quantizer.dim)
        sizes = self.quantizer.dim, model.widths[0], model.predictor_blocks, model.keyframe_interval
        self.predictor = predictor.Predictor(*sizes) if model.predictor_blocks else None
        self.encoder.to(memory_format=torch.channels_last_3d)
        self.decoder.to(memory_format=torch.channels_last_3d)

    @property
    def codebook_size(self) -> int:
        """How many values an index can take."""
        return self.quantizer.codebook_size

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the video and indices go."""
        return self.encoder[0].weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What encoder and decoder compute in; what stands between always computes in float32."""
        return self.encoder[0].weight.dtype

    def cast(self, dtype: torch.dtype) -> Self:
        """Compute encoder and decoder in this type from now on; the rest keeps float32."""
        self.encoder.to(dtype)
        self.decoder.to(dtype)
        return self

    def forward(self, video: Tensor) -> tuple[Tensor, Quantized]:
        """For training: (b 3 t h w), uint8 or float 0..1 -> its reconstruction, about 0..1."""
        frames, height, width = video.shape[2:]
        z = self.encoder(self._padded(video, first=True)).float()
        quantized = predictor.quantize(z, self.quantizer, self.predictor)
        video = self.decoder(quantized.z_q.to(self.dtype))[:, :, self.stride[0] - 1 :]
        return (video[:, :, :frames, :height, :width].float() + 1) / 2, quantized

    @torch.no_grad()
    def start(self, video: Tensor) -> None:
        """Begin as the best linear codec for these clips (b 3 t h w): their principal components.

        Blocks begin as identities, so setting the convolutions between them is all it takes. The
        latents then are free of each other and have unit variance: each channel, if the quantizer
        rounds channels one by one; else all together, so that a distance between latents is one
        between pictures.
        """
        x, bases = self._padded(video, first=True), []
        for fold in (m for m in self.encoder if isinstance(m, CausalConv3d)):
            basis = principal_components(fold.patches(x))[: fold.out_channels]  # (m k)
            fold.weight[: len(basis)] = basis.view(-1, *fold.weight.shape[1:])
            bases.append(basis)
            x = fold(x)
        over = (0, 2, 3, 4)
        std = x.std(over, keepdim=True).clamp(min=1e-3)
        if not self.quantizer.channelwise:
            std = std.square().mean().sqrt().expand_as(std)
        fold.weight.div_(std.view(-1, 1, 1, 1, 1))
        z = x / std
        z_q = predictor.start(z, self.quantizer, self.predictor)
        gain = (z * z_q).sum(over) / z_q.square().sum(over).clamp(min=1e-6)  # best guess of z
        kept = len(bases[-1])  # fewer than there are channels, where those are wider than the net
        bases[-1] = bases[-1] * (gain * std.flatten())[:kept, None]
        unfolds = [m for m in self.decoder if isinstance(m, DepthToSpace)]
        for unfold, basis in zip(unfolds, reversed(bases), strict=True):
            unfold.init_as_inverse(basis)

    def encode(self, video: Tensor) -> Tensor:
        """(b 3 t h w), uint8 or float 0..1 -> int64 indices (b t' h' w') or (b t' h' w' codebooks).

        Raises VqtokError when the video (or the weights) hold NaN or infinity.
        """
        return torch.cat(list(self.encode_stream([video])), dim=1)

    def decode(
        self,
        indices: Tensor,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Indices -> video (b 3 t h w), float 0..1, cut to `frames`, `height` and `width` if given.

        Raises VqtokError when an index is not in the codebook.
        """
        video = torch.cat(list(self.decode_stream([indices])), dim=2)
        return video[:, :, :frames, :height, :width]

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """`encode` for a clip that comes in chunks (b 3 t h w) of any length, in constant memory.

        Yields the indices of a few latent frames at a time, the same however the clip was cut.
        """
        state: State = {}
        for i, video in enumerate(self._even(chunks)):
            with streaming(self.encoder, state):
                z = self.encoder(self._padded(video, first=i == 0)).float()
            if not z.isfinite().all():
                raise VqtokError("the video or the tokenizer's weights hold NaN or infinity")
            yield predictor.encode(z, self.quantizer, self.predictor, state)[0]

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """`decode` for indices that come in chunks (b t' h' w') of any length, in constant memory.

        Yields video (b 3 t h w), float 0..1; what was padded is still there.
        """
        state: State = {}
        pieces = chain.from_iterable(
            chunk.split(latent_frames(*chunk.shape[2:4]), dim=1) for chunk in chunks
        )
        for i, indices in enumerate(pieces):
            if indices.min() < 0 or indices.max() >= self.codebook_size:
                raise VqtokError(f"an index is not in this codebook of {self.codebook_size:,}")
            # Nothing here keeps the video, so that it is gone before the next is made.
            yield self._decoded(indices, state)[:, :, self.stride[0] - 1 if i == 0 else 0 :]

    def _decoded(self, indices: Tensor, state: State) -> Tensor:
        indices = indices.to(self.device)
        z_q = predictor.decode(indices, self.quantizer, self.predictor, state).to(self.dtype)
        with streaming(self.decoder, state):
            video = self.decoder(z_q.contiguous(memory_format=torch.channels_last_3d))
        return video.float().add_(1).div_(2).clamp_(0, 1)

    def _even(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Cut a clip anew: every chunk fills `latent_frames` of them, except the last."""
        waiting: list[Tensor] = []
        step = want = 0  # frames in a chunk, and those still missing in this one
        for chunk in chunks:
            if not step:
                height, width = (-(-chunk.shape[d] // self.stride[d - 2]) for d in (3, 4))
                step = self.stride[0] * latent_frames(height, width)
                want = 1 + step - self.stride[0]
            while chunk.shape[2] >= want:
                yield torch.cat([*waiting, chunk[:, :, :want]], dim=2)
                chunk, waiting, want = chunk[:, :, want:], [], step
            waiting.append(chunk)
            want -= chunk.shape[2]
        if any(part.shape[2] for part in waiting):
            yield torch.cat(waiting, dim=2)

    def _padded(self, video: Tensor, first: bool) -> Tensor:
        """(b 3 t h w) in -1..1 whose sides fill whole latents; `first` frames stand alone."""
        t, h, w = self.stride
        frames, height, width = video.shape[2:]
        scale = 127.5 if video.dtype == torch.uint8 else 0.5
        x = video.to(self.device).to(self.dtype, copy=True).div_(scale).sub_(1)
        pad = (0, -width % w, 0, -height % h, 0, (int(first) - frames) % t)
        x = F.pad(x, pad, mode="replicate") if any(pad) else x
        return x.contiguous(memory_format=torch.channels_last_3d)
