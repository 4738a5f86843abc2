"""The tokenizer: a causal encoder, a predictive coder and a causal decoder, run in chunks."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtok.device import to_device
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import UsageError
from vqtok.model.batching import Batcher
from vqtok.model.chunks import chunk_length, rechunk, repeat_edges, split_chunks
from vqtok.model.inputs import (
    check_finite,
    check_indices,
    check_interval,
    check_video,
    of_one_clip,
)
from vqtok.model.layers import channels_last, look_back
from vqtok.model.networks import build_coder, build_decoder, build_encoder
from vqtok.model.rate import RateControl
from vqtok.model.stream_state import StreamState
from vqtok.precision import fixed_precision
from vqtok.quantizers import Quantized, build
from vqtok.settings import ModelSettings, QuantizerSettings


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
    batcher: joins clips that several threads encode or decode; by default, each is run alone.
    """

    fingerprint = ""
    batcher = Batcher(1, torch.device("cpu"))

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
    def keyframe_interval(self) -> int:
        """Latent frames from one key frame to the next, by default; 1 if it predicts nothing."""
        return 1 if self.coder.predictor is None else self.coder.keyframe_interval

    @property
    def look_back(self) -> int:
        """Number of latent frames before one that the encoder looks at for it."""
        return look_back(self.encoder)

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

    def chunk_frames(self, height: int, width: int) -> int:
        """Return the frames of a chunk of video of this size; the first has stride - 1 fewer."""
        time, *sides = self.stride
        rows, columns = (-(-n // side) for n, side in zip((height, width), sides, strict=True))
        return time * chunk_length(self.device, rows, columns)

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

    def encode(
        self, video: Tensor, rate: Rate = ALL_TOKENS, keyframe_interval: int | None = None
    ) -> Tensor:
        """Return the indices (b t' h' w'), int64, of a video; (b t' h' w' stages) with stages.

        video: (b 3 t h w), uint8, or float in 0..1 to within 0.01.
        rate: how many tokens to spend, for a tokenizer with `quantizer.stages`.
        keyframe_interval: latent frames from one key frame to the next, at most those of the
            tokenizer (default); with 1, each stands for itself.
        Raises UsageError for a video of another shape, dtype or range and for an interval out of
        range, VqtokError if the video or the weights contain NaN or infinity.
        """
        parts = list(self.encode_stream([video], rate, keyframe_interval))
        if not parts:
            raise UsageError(f"the video has no frames: its shape is {tuple(video.shape)}")
        return torch.cat(parts, dim=1)

    def decode(
        self,
        indices: Tensor,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        keyframe_interval: int | None = None,
    ) -> Tensor:
        """Return the video (b 3 t h w), float 0..1, of indices, cropped to the size if given.

        The indices may be a window of a clip that begins at a key frame. As at the start of a clip,
        its first latent frame gives one video frame, and none looks at what was before.

        indices: (b t' h' w'), or (b t' h' w' stages) with stages, any integer dtype.
        keyframe_interval: the one with which they were encoded.
        Raises UsageError for indices of another shape or dtype and for an interval out of range,
        VqtokError if an index is not in the codebook.
        """
        video = torch.cat(list(self.decode_stream([indices], keyframe_interval)), dim=2)
        return video[:, :, :frames, :height, :width]

    @torch.no_grad()
    def latents(self, indices: Tensor, keyframe_interval: int | None = None) -> Tensor:
        """Return the latents (b c t' h' w'), float32, of indices: what `decode` decodes.

        Arguments and errors are those of `decode`. The indices begin at a key frame.
        """
        state, interval = StreamState(), check_interval(keyframe_interval, self.keyframe_interval)
        indices = check_indices(indices, self.stages, self.codebook_size)
        parts = split_chunks(indices, self.device)  # as `decode` does, for the same rounding
        return torch.cat([self.run(self._dequantize, p, state, interval) for p in parts], dim=2)

    @torch.no_grad()
    def encode_stream(
        self,
        chunks: Iterable[Tensor],
        rate: Rate = ALL_TOKENS,
        keyframe_interval: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the indices of a clip that comes in chunks, a few latent frames at a time.

        chunks: (b 3 t h w) with any t. How the clip is cut does not change the indices. Memory
        does not grow with the clip's length. Otherwise as `encode`. The range of a float video is
        checked, which waits for a GPU.
        """
        interval = check_interval(keyframe_interval, self.keyframe_interval)
        control = RateControl(self, rate, interval)
        for z, video, frames in self._encode_parts(chunks):
            yield from control.push(z, video, frames)
        yield from control.flush()

    @torch.no_grad()
    def reconstruct_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield what the decoder makes of the encoder's latents if these are not quantized.

        chunks: as in `encode_stream`. The video is as that of `decode_stream`.
        """
        state = StreamState()
        for i, (z, _, frames) in enumerate(self._encode_parts(chunks)):
            video = self.run(self._decode_latents, z[:, :, :frames], state)
            yield video[:, :, self.stride[0] - 1 if i == 0 else 0 :]

    @torch.no_grad()
    def decode_stream(
        self, chunks: Iterable[Tensor], keyframe_interval: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the video (b 3 t h w), float 0..1, of indices that come in chunks.

        chunks: of any number of latent frames, otherwise as in `decode`. The video is not cropped:
        padding is still there. Memory does not grow with the clip's length.
        """
        state, interval = StreamState(), check_interval(keyframe_interval, self.keyframe_interval)
        checked = (check_indices(chunk, self.stages, self.codebook_size) for chunk in chunks)
        for indices in of_one_clip(checked, time=1):
            yield from self.decode_next(indices, state, interval)

    @torch.no_grad()
    def decode_next(self, indices: Tensor, state: StreamState, interval: int) -> Iterator[Tensor]:
        """Yield the video of the next indices, valid ones, of a clip, and update its state."""
        for part in split_chunks(indices, self.device):
            skip = 0 if state else self.stride[0] - 1
            # Not kept in a variable: its memory is freed before the next part is decoded.
            yield self.run(self._decode_part, part, state, interval)[:, :, skip:]

    @contextmanager
    def batched(self, clips: int) -> Iterator[None]:
        """Inside the block, run the model for up to `clips` clips of several threads at once.

        Each thread works on its clip in a block of `batcher.clip`. With more than 1, clips are
        encoded and decoded in batches of exactly this many rows.
        Raises UsageError inside another such block.
        """
        if self.batcher.rows > 1:
            raise UsageError("this tokenizer runs batches of clips already")
        self.batcher = Batcher(clips, self.device)
        try:
            yield
        finally:
            del self.batcher

    def run(
        self, function: Callable[..., Tensor], x: Tensor, state: StreamState, *args: object
    ) -> Tensor:
        """Return function(x, state, *args), run for this clip alone or with others (`batcher`).

        All calls of the networks for a clip in chunks come here.
        """
        with fixed_precision(self.device.type):
            return self.batcher.run(function, x, state, *args)

    def _encode_parts(self, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Cut a clip anew; yield the latents (b c t h w), float32, of each chunk, and its video.

        Also yield how many of the latent frames stand for the video. Those behind are padding.
        """
        state, total = StreamState(), torch.zeros((), device=self.device)
        clip = of_one_clip(map(check_video, chunks), time=2)
        for i, video in enumerate(rechunk(clip, self.stride[0], self.chunk_frames)):
            front = self.stride[0] - 1 if i == 0 else 0
            whole = i > 0 and self.batcher.rows > 1  # to have the shape of the chunks before
            step = self.chunk_frames(*video.shape[3:]) if whole else self.stride[0]
            z = self.run(self._encode_chunk, repeat_edges(video, front, step), state)
            total += z.sum()
            if i == 0:  # a GPU is only waited for here and at the end
                check_finite(total)
            yield z, video, -(-(front + video.shape[2]) // self.stride[0])
        check_finite(total)

    def _encode_chunk(self, video: Tensor, state: StreamState) -> Tensor:
        return self.encoder(self._normalize(video), state).float()

    def _decode_part(self, indices: Tensor, state: StreamState, interval: int) -> Tensor:
        return self._decode_latents(self._dequantize(indices, state, interval), state)

    def _dequantize(self, indices: Tensor, state: StreamState, interval: int) -> Tensor:
        return self.coder.decode(to_device(indices, self.device), state, interval)

    def _decode_latents(self, z: Tensor, state: StreamState) -> Tensor:
        z = z.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
        return self.decoder(z, state).float().add_(1).div_(2).clamp_(0, 1)

    def pad(self, video: Tensor, first: bool) -> Tensor:
        """Return the video (b 3 t h w) in -1..1, padded to whole latents by repeating edges.

        first: whether it starts the clip, so that its first frame is a latent frame of its own.
        """
        front = self.stride[0] - 1 if first else 0
        return self._normalize(repeat_edges(video, front, self.stride[0]))

    def _normalize(self, video: Tensor) -> Tensor:
        """Return the video in -1..1 on the device, padded in height and width."""
        height, width = video.shape[3:]
        scale = 127.5 if video.dtype == torch.uint8 else 0.5
        x = to_device(video, self.device).to(self.dtype, copy=True).div_(scale).sub_(1)
        pad = (0, -width % self.stride[2], 0, -height % self.stride[1], 0, 0)
        x = F.pad(x, pad, mode="replicate") if any(pad) else x
        return x.contiguous(memory_format=torch.channels_last_3d)
