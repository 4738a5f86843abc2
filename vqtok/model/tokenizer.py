"""The tokenizer: a causal encoder, a predictive coder and a causal decoder, run in chunks."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.errors import UsageError, VqtokError
from vqtok.model.inputs import check_indices, check_video, of_one_clip
from vqtok.model.layers import (
    CausalConv3d,
    CausalSequential,
    DepthToSpace,
    ResidualBlock,
    StreamState,
    channels_last,
)
from vqtok.model.predictive import PredictiveCoder
from vqtok.model.predictor import Predictor
from vqtok.model.rate import ALL_TOKENS, Rate, RateControl
from vqtok.precision import fixed_precision
from vqtok.quantizers import Quantized, Quantizer, build
from vqtok.settings import ModelSettings, QuantizerSettings

CHUNK = 2  # latent frames per chunk
LARGE = 2**16  # positions of a latent frame above which a chunk is one frame, to bound memory


def build_encoder(settings: ModelSettings, dim: int) -> CausalSequential:
    """Return the encoder: (b 3 1+s*n h w) in -1..1 -> latents (b dim 1+n h' w')."""
    (t, h, w), (shallow, deep) = settings.strides, settings.widths
    patch = (t, h // 2, w // 2)
    return CausalSequential(
        CausalConv3d(3, shallow, patch, stride=patch),
        *(ResidualBlock(shallow) for _ in range(settings.encoder_blocks[0])),
        CausalConv3d(shallow, deep, (1, 2, 2), stride=(1, 2, 2)),
        *(ResidualBlock(deep) for _ in range(settings.encoder_blocks[1])),
        CausalConv3d(deep, dim, (1, 1, 1)),
    )


def build_decoder(settings: ModelSettings, dim: int) -> CausalSequential:
    """Return the decoder: latents (b dim n h' w') -> (b 3 s*n h w), about -1..1."""
    (t, h, w), (shallow, deep) = settings.strides, settings.widths
    return CausalSequential(
        DepthToSpace(dim, deep, (1, 1, 1), kernel=3),
        *(ResidualBlock(deep) for _ in range(settings.decoder_blocks[1])),
        DepthToSpace(deep, shallow, (1, 2, 2)),
        *(ResidualBlock(shallow) for _ in range(settings.decoder_blocks[0])),
        DepthToSpace(shallow, 3, (t, h // 2, w // 2)),
    )


def build_coder(settings: ModelSettings, quantizer: Quantizer) -> PredictiveCoder:
    """Return the predictive coder between encoder and decoder."""
    predictor = None
    if settings.predictor_blocks:
        predictor = Predictor(quantizer.dim, settings.widths[0], settings.predictor_blocks)
    interval, intra_share = settings.keyframe_interval, settings.intra_share
    return PredictiveCoder(quantizer, predictor, interval, intra_share)


def chunk_length(height: int, width: int) -> int:
    """Return the latent frames per chunk for latents of this height and width.

    It depends on nothing else, so that a clip gives the same tokens every time.
    """
    return 1 if height * width > LARGE else CHUNK


class Tokenizer(nn.Module):
    """Video to a grid of integers and back, at any length, height and width.

    A clip of f frames of h x w becomes 1 + ceil((f - 1) / s) latent frames of ceil(h / sh) x
    ceil(w / sw) indices. The first frame is a latent frame of its own, so a still image is one
    latent frame. The clip is padded to whole latents by repeating its edges; decoding crops it.

    Causal in time (MAGVIT-v2, https://arxiv.org/abs/2310.05737): tokens never depend on later
    frames, so a clip can be encoded while it is being recorded.

    stride: (time, height, width) per token, in frames and pixels.
    kind: of the quantizer, such as fsq.
    fingerprint: SHA-256 of the weights in the file that the tokenizer was loaded from, or "".
    """

    fingerprint = ""

    def __init__(self, model: ModelSettings, quantizer: QuantizerSettings) -> None:
        super().__init__()
        self.stride = model.strides
        self.kind: str = quantizer.kind
        inner = build(quantizer)
        self.encoder = channels_last(build_encoder(model, inner.dim))
        self.decoder = channels_last(build_decoder(model, inner.dim))
        self.coder = build_coder(model, inner)

    @property
    def codebook_size(self) -> int:
        """Number of values that an index can take."""
        return self.coder.quantizer.codebook_size

    @property
    def stages(self) -> int:
        """Number of indices at each position."""
        return self.coder.quantizer.stages

    @property
    def zero_code(self) -> bool:
        """Whether index 0 means "nothing new" and costs no token; a `Rate` needs it."""
        return self.coder.quantizer.zero_code

    @property
    def levels(self) -> tuple[int, ...] | None:
        """Number of values of each channel of a code (FSQ), else None."""
        return self.coder.quantizer.levels

    @property
    def device(self) -> torch.device:
        """The device of the weights; video and indices are moved there."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that `encode` and `decode` compute in, under any autocast.

        The coder always uses float32.
        """
        return next(self.encoder.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> Self:
        """Cast encoder and decoder to a dtype; the coder keeps float32."""
        self.encoder.to(dtype)
        self.decoder.to(dtype)
        return self

    def forward(self, video: Tensor) -> tuple[Tensor, Quantized]:
        """Return the reconstruction, about 0..1, and the quantizer's result, for training.

        video: (b 3 t h w), uint8 or float 0..1.
        """
        frames, height, width = video.shape[2:]
        z = self.encoder(self.pad(video, first=True)).float()
        quantized = self.coder.quantize(z)
        video = self.decoder(quantized.z_q.to(self.dtype))[:, :, self.stride[0] - 1 :]
        return (video[:, :, :frames, :height, :width].float() + 1) / 2, quantized

    def encode(self, video: Tensor, rate: Rate = ALL_TOKENS) -> Tensor:
        """Return the indices (b t' h' w'), int64, of a video; (b t' h' w' stages) with stages.

        video: (b 3 t h w), uint8, or float in 0..1 to within 0.01.
        rate: how many tokens to spend, for a tokenizer with `quantizer.stages`.
        Raises UsageError for a video of another shape, dtype or range, VqtokError if the video or
        the weights contain NaN or infinity.
        """
        parts = list(self.encode_stream([video], rate))
        if not parts:
            raise UsageError(f"the video has no frames: its shape is {tuple(video.shape)}")
        return torch.cat(parts, dim=1)

    def decode(
        self,
        indices: Tensor,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Tensor:
        """Return the video (b 3 t h w), float 0..1, of indices, cropped to the size if given.

        indices: (b t' h' w'), or (b t' h' w' stages) with stages, any integer dtype.
        Raises UsageError for indices of another shape or dtype, VqtokError if an index is not in
        the codebook.
        """
        video = torch.cat(list(self.decode_stream([indices])), dim=2)
        return video[:, :, :frames, :height, :width]

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor], rate: Rate = ALL_TOKENS) -> Iterator[Tensor]:
        """Yield the indices of a clip that comes in chunks, a few latent frames at a time.

        chunks: (b 3 t h w) with any t. How the clip is cut does not change the indices. Memory
        does not grow with the clip's length. Otherwise as `encode`. The range of a float video is
        checked, which waits for a GPU.
        """
        control = RateControl(self, rate)
        for z, video in self._encode_parts(chunks, {}):
            # A list: while a generator waits, its caller would be in the block.
            with fixed_precision(self.device.type):
                indices = list(control.push(z, video))
            yield from indices
        with fixed_precision(self.device.type):
            indices = list(control.flush())
        yield from indices

    @torch.no_grad()
    def reconstruct_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield what the decoder makes of the encoder's latents if these are not quantized.

        chunks: as in `encode_stream`. The video is as that of `decode_stream`.
        """
        state: StreamState = {}
        for i, (z, _) in enumerate(self._encode_parts(chunks, state)):
            yield self._decode_latents(z, state)[:, :, self.stride[0] - 1 if i == 0 else 0 :]

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the video (b 3 t h w), float 0..1, of indices that come in chunks.

        chunks: of any number of latent frames, otherwise as in `decode`. The video is not cropped:
        padding is still there. Memory does not grow with the clip's length.
        """
        state: StreamState = {}
        parts = chain.from_iterable(
            chunk.split(chunk_length(*chunk.shape[2:4]), dim=1)
            for chunk in of_one_clip((check_indices(c, self.stages) for c in chunks), time=1)
        )
        for i, indices in enumerate(parts):
            low, high = (int(bound) for bound in indices.aminmax())
            if low < 0 or high >= self.codebook_size:
                found = f"{low:,} to {high:,}"
                size = f"{self.codebook_size:,}"
                raise VqtokError(f"the indices are {found}, not in this codebook of {size}")
            # Not kept in a variable: its memory is freed before the next part is decoded.
            yield self._decode_part(indices, state)[:, :, self.stride[0] - 1 if i == 0 else 0 :]

    @torch.no_grad()
    def squared_error(
        self, indices: Tensor, video: Tensor, state: StreamState, first: bool
    ) -> float:
        """Return the mean squared error, in 0..1, of the next indices of a clip.

        video: (b 3 t h w), the frames that they stand for, uint8 or float 0..1.
        state: empty at the start of the clip, and updated.
        """
        error, start = 0.0, 0
        for part in indices.split(chunk_length(*indices.shape[2:4]), dim=1):
            skip = self.stride[0] - 1 if first and start == 0 else 0
            decoded = self._decode_part(part, state)[:, :, skip:]
            original = video[:, :, start : start + decoded.shape[2]].to(decoded.device)
            start += original.shape[2]
            frames, height, width = original.shape[2:]
            scale = 255.0 if original.dtype == torch.uint8 else 1.0
            difference = decoded[:, :, :frames, :height, :width] - original.float() / scale
            error += float(difference.square().sum())
        return error / video.numel()

    def _encode_parts(
        self, chunks: Iterable[Tensor], state: StreamState
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Cut a clip anew; yield the latents (b c t h w), float32, of each chunk, and its video."""
        for i, video in enumerate(self._rechunk(of_one_clip(map(check_video, chunks), time=2))):
            with fixed_precision(self.device.type):
                z = self.encoder(self.pad(video, first=i == 0), state).float()
            if not z.isfinite().all():
                raise VqtokError("the tokenizer's weights hold NaN or infinity")
            yield z, video

    def _decode_part(self, indices: Tensor, state: StreamState) -> Tensor:
        with fixed_precision(self.device.type):
            z_q = self.coder.decode(indices.to(self.device), state)
        return self._decode_latents(z_q, state)

    def _decode_latents(self, z: Tensor, state: StreamState) -> Tensor:
        z = z.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        with fixed_precision(self.device.type):
            video = self.decoder(z, state)
        return video.float().add_(1).div_(2).clamp_(0, 1)

    def _rechunk(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Cut a clip anew, so that each chunk but the last fills `chunk_length` latent frames."""
        waiting: list[Tensor] = []
        step = missing = 0  # frames per chunk, and those still missing in this one
        for chunk in chunks:
            if not step:
                height, width = (-(-chunk.shape[d] // self.stride[d - 2]) for d in (3, 4))
                step = self.stride[0] * chunk_length(height, width)
                missing = 1 + step - self.stride[0]
            while chunk.shape[2] >= missing:
                yield torch.cat([*waiting, chunk[:, :, :missing]], dim=2)
                chunk, waiting, missing = chunk[:, :, missing:], [], step
            waiting.append(chunk)
            missing -= chunk.shape[2]
        if any(part.shape[2] for part in waiting):
            yield torch.cat(waiting, dim=2)

    def pad(self, video: Tensor, first: bool) -> Tensor:
        """Return the video (b 3 t h w) in -1..1, padded to whole latents by repeating edges.

        first: whether it starts the clip, so that its first frame is a latent frame of its own.
        """
        t, h, w = self.stride
        frames, height, width = video.shape[2:]
        scale = 127.5 if video.dtype == torch.uint8 else 0.5
        x = video.to(self.device).to(self.dtype, copy=True).div_(scale).sub_(1)
        pad = (0, -width % w, 0, -height % h, 0, (int(first) - frames) % t)
        x = F.pad(x, pad, mode="replicate") if any(pad) else x
        return x.contiguous(memory_format=torch.channels_last_3d)
