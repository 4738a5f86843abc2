"""Encode and decode one clip in constant memory; reading, the model and writing overlap."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.model.inputs import check_interval
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.frame_rate import average_frame_rate
from vqtok.pipeline.overlap import DeviceTransfer, background_writer, prefetch
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.precision import to_uint8
from vqtok.tokens import IndexBuffer, Tokens, check_tokenizer
from vqtok.video import Clip, VideoWriter

OnProgress = Callable[[int], object]  # called with the number of frames done since the last call


def hardware_decoder(tokenizer: Tokenizer) -> str | None:
    """Return the device that should decode video for this tokenizer: its GPU, or None."""
    return str(tokenizer.device) if tokenizer.device.type == "cuda" else None


def encode_clip(
    clip: Clip,
    tokenizer: Tokenizer,
    on_progress: OnProgress = lambda frames: None,
    should_stop: Callable[[], object] = lambda: False,
    stopwatch: Stopwatch | None = None,
    rate: Rate = ALL_TOKENS,
    keyframe_interval: int | None = None,
) -> Tokens:
    """Encode an open video.

    A thread decodes the next frames while the model runs. Indices go to a temporary file.

    rate, keyframe_interval: as in `Tokenizer.encode`.
    should_stop: polled while the clip is encoded; when it returns a true value, the tokens so far
        are returned.
    stopwatch: records how long the model waits for `reading`.
    Raises UsageError for a rate or an interval that the tokenizer cannot keep.
    """
    interval = check_interval(keyframe_interval, tokenizer.keyframe_interval)
    stopwatch = stopwatch or Stopwatch()
    transfer = DeviceTransfer(tokenizer.device)
    stride = tokenizer.stride[0]
    timestamps: list[int] = []
    buffer = IndexBuffer(tokenizer.codebook_size)
    read = clip.chunks(tokenizer.chunk_frames(clip.height, clip.width))
    chunks = ((transfer.to_device(frames), times) for frames, times in read)

    def videos() -> Iterator[Tensor]:
        for frames, times in stopwatch.time_each("reading", prefetched):
            timestamps.extend(times)
            yield frames.movedim(-1, 0)[None]  # (1 c t h w)
            on_progress(len(times))

    with prefetch(chunks) as prefetched:
        parts = (indices[0] for indices in tokenizer.encode_stream(videos(), rate, interval))
        for indices in transfer.to_host(parts):
            buffer.append(indices)
            if should_stop():
                break
    del timestamps[1 + (buffer.latent_frames - 1) * stride :]  # read, but not encoded
    return Tokens(
        indices=buffer.finish(),
        frames=len(timestamps),
        height=clip.height,
        width=clip.width,
        fps=average_frame_rate(timestamps, clip.time_base, clip.fps),
        time_base=clip.time_base,
        timestamps=timestamps,
        pixel_aspect=clip.pixel_aspect,
        codebook_size=tokenizer.codebook_size,
        quantizer=tokenizer.kind,
        stride=tokenizer.stride,
        model=tokenizer.fingerprint,
        origin=clip.origin,
        zero_code=tokenizer.zero_code,
        rate=str(rate),
        keyframe_interval=interval,
    )


def decode_clip(
    tokens: Tokens,
    tokenizer: Tokenizer,
    target: Path | BinaryIO,
    *,
    name: str = "tokens",
    codec: str | None = None,
    crf: int | None = None,
    audio_from: Path | None = None,
    on_progress: OnProgress = lambda frames: None,
    stopwatch: Stopwatch | None = None,
) -> list[str]:
    """Decode tokens to a video file or a stream, and return the writer's notes for the user.

    A thread encodes and writes frames while the model decodes the next ones.

    name: what to call the tokens in an error, such as their file.
    codec, crf, audio_from: as in `VideoWriter`.
    stopwatch: records how long the `model` takes.
    Raises VqtokError for tokens of another tokenizer.
    """
    check_tokenizer(tokens, tokenizer, name)
    stopwatch = stopwatch or Stopwatch()
    transfer = DeviceTransfer(tokenizer.device)
    writer = VideoWriter(
        target,
        height=tokens.height,
        width=tokens.width,
        fps=tokens.fps,
        time_base=tokens.time_base,
        max_gap=tokens.max_gap,
        last=tokens.timestamps[-1],
        origin=min(tokens.origin, tokens.timestamps[0]),
        pixel_aspect=tokens.pixel_aspect,
        codec=codec,
        crf=crf,
        audio_from=audio_from,
    )
    chunks = transfer.to_host(_decode_frames(tokens, tokenizer))
    with writer, background_writer(writer.write) as write:
        start = 0
        for frames in stopwatch.time_each("model", chunks):
            write(frames, tokens.timestamps[start : start + len(frames)])
            start += len(frames)
            on_progress(len(frames))
    return writer.notes


def _decode_frames(tokens: Tokens, tokenizer: Tokenizer) -> Iterator[Tensor]:
    """Yield uint8 frames (t h w c) on the tokenizer's device, with the padding cut off."""
    length = tokenizer.chunk_frames(tokens.height, tokens.width) // tokenizer.stride[0]
    chunks = _index_chunks(tokens, length, tokenizer.batcher.rows > 1)
    videos = tokenizer.decode_stream(chunks, tokens.keyframe_interval)
    remaining = tokens.frames
    for frames in map(_to_frames, videos):  # map: no video is alive while the next is decoded
        yield frames[:remaining, : tokens.height, : tokens.width]
        remaining -= len(frames)


def _index_chunks(tokens: Tokens, length: int, pad: bool) -> Iterator[Tensor]:
    """Yield the indices (1 t h w ...), int64, `length` latent frames at a time.

    pad: repeat the last frame of the last chunk, to get the shape of the chunks before it.
    """
    for start in range(0, len(tokens.indices), length):
        chunk = torch.from_numpy(tokens.indices[start : start + length].astype(np.int64))
        missing = length - len(chunk) if pad and start else 0
        yield torch.cat([chunk, chunk[-1:].expand(missing, *chunk.shape[1:])])[None]


def _to_frames(video: Tensor) -> Tensor:
    """Convert (1 3 t h w), float 0..1, to uint8 (t h w c) on the same device."""
    return to_uint8(video[0].movedim(0, -1))
