"""From a video to tokens and back, chunk by chunk: what `encode` and `decode` run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vqtok.device import find_device
from vqtok.model import checkpoint
from vqtok.model.tokenizer import CHUNK, Tokenizer
from vqtok.pipeline.overlap import DeviceTransfer, background_writer, prefetch
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.precision import has_fast_bfloat16, set_global_flags
from vqtok.tokens import IndexBuffer, Tokens, check_tokenizer
from vqtok.video import Clip, VideoWriter

Progress = Callable[[int], None]  # told how many more frames are done


def load_tokenizer(source: str | Path, device: str, dtype: str | None) -> Tokenizer:
    """A tokenizer ready to run: `device` auto, cpu or cuda[:i]; `dtype` None for the fast one.

    The fast type is bfloat16 where the processor has it. Raises UsageError for a device that is
    not there.
    """
    set_global_flags()
    where = find_device(device)
    dtype = dtype or ("bfloat16" if has_fast_bfloat16(where) else "float32")
    return checkpoint.load(source).to(where).cast(getattr(torch, dtype))


def encode_clip(
    clip: Clip,
    tokenizer: Tokenizer,
    progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
    watch: Stopwatch | None = None,
) -> Tokens:
    """Tokenize an open video in constant memory: reading runs ahead, tokens wait on disk.

    stopped: asked now and then; once it says so, what is encoded so far is given.
    watch: told how long was waited for `reading`.
    """
    times: list[int] = []
    watch, transfer = watch or Stopwatch(), DeviceTransfer(tokenizer.device)

    def chunks() -> Iterator[Tensor]:
        for frames, stamps in watch.each("reading", read):
            times.extend(stamps)
            yield frames.movedim(-1, 0)[None]  # (1 c t h w)
            progress(len(stamps))

    buffer = IndexBuffer(tokenizer.codebook_size)
    lifted = (
        (transfer.to_device(frames), stamps) for frames, stamps in clip.chunks(tokenizer.stride[0])
    )
    with prefetch(lifted) as read:
        for part in tokenizer.encode_stream(chunks()):
            buffer.append(part[0].cpu().numpy())
            if stopped():
                del times[1 + (buffer.latent_frames - 1) * tokenizer.stride[0] :]
                break
    return Tokens(
        indices=buffer.indices(),
        frames=len(times),
        height=clip.height,
        width=clip.width,
        fps=clip.fps,
        time_base=clip.time_base,
        timestamps=times,
        pixel_aspect=clip.pixel_aspect,
        codebook_size=tokenizer.codebook_size,
        quantizer=tokenizer.kind,
        stride=tokenizer.stride,
        model=tokenizer.fingerprint,
        origin=clip.origin,
    )


def decode_clip(
    tokens: Tokens,
    tokenizer: Tokenizer,
    target: Path | BinaryIO,
    progress: Progress,
    codec: str | None = None,
    crf: int | None = None,
    audio_from: str | os.PathLike[str] | None = None,
    watch: Stopwatch | None = None,
) -> list[str]:
    """Write the video that tokens stand for; give what a person should hear about it.

    watch: told how long `the model` took.
    Raises VqtokError for tokens of another tokenizer.
    """
    check_tokenizer(tokens, tokenizer, "tokens")
    shape = {"height": tokens.height, "width": tokens.width, "pixel_aspect": tokens.pixel_aspect}
    origin = min(tokens.origin, tokens.timestamps[0])
    rate = {"fps": tokens.fps, "time_base": tokens.time_base, "origin": origin}
    watch, transfer = watch or Stopwatch(), DeviceTransfer(tokenizer.device)
    with (
        VideoWriter(target, **shape, **rate, codec=codec, crf=crf, audio_from=audio_from) as out,
        background_writer(out.write) as write,
    ):
        done = 0
        for frames in watch.each("the model", transfer.to_host(_pictures(tokens, tokenizer))):
            write(frames, tokens.timestamps[done : done + len(frames)])
            done += len(frames)
            progress(len(frames))
    return out.notes


def _pictures(tokens: Tokens, tokenizer: Tokenizer) -> Iterator[Tensor]:
    """The frames that tokens stand for, without the padding: uint8 (t h w c), some at a time."""
    starts = range(0, len(tokens.indices), CHUNK)
    parts = (tokens.indices[i : i + CHUNK].astype(np.int64) for i in starts)
    left = tokens.frames
    videos = tokenizer.decode_stream(torch.from_numpy(part)[None] for part in parts)
    for frames in map(to_frames, videos):  # so that no video is kept while the next is made
        yield frames[:left, : tokens.height, : tokens.width]
        left -= len(frames)


def to_frames(video: Tensor) -> Tensor:
    """(1 3 t h w), float 0..1 -> uint8 (t h w c), on the same device."""
    return video[0].movedim(0, -1).mul(255).round_().to(torch.uint8)
