"""From a video to tokens and back, chunk by chunk: what `encode` and `decode` run."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vqtok import checkpoint
from vqtok.errors import UsageError, VqtokError
from vqtok.tokenizer import CHUNK, Tokenizer
from vqtok.tokens import Tokens
from vqtok.video import Clip, VideoWriter

Progress = Callable[[int], None]  # told how many more frames are done


def load_tokenizer(source: str, device: str, dtype: str | None) -> Tokenizer:
    """A tokenizer ready to run: `device` auto, cpu or cuda[:i]; `dtype` None for the fast one.

    The fast type is bfloat16, except on a CPU without bfloat16 instructions. Raises UsageError
    for a device that is not there.
    """
    torch.set_flush_denormal(True)
    where = find_device(device)
    if dtype is None:
        slow = where.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
        dtype = "float32" if slow else "bfloat16"
    return checkpoint.load(source).to(where).cast(getattr(torch, dtype))


def find_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda[:i]` means here; UsageError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or not (number or "0").isdecimal()):
        raise UsageError(f"--device {name}: must be auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here"
        )
    return torch.device(name)


def encode_clip(clip: Clip, tokenizer: Tokenizer, progress: Progress) -> Tokens:
    """Tokenize an open video in constant memory (but for the tokens themselves)."""
    times: list[int] = []

    def chunks() -> Iterator[Tensor]:
        for frames, stamps in clip.chunks(CHUNK * tokenizer.stride[0]):
            times.extend(stamps)
            yield torch.from_numpy(frames).movedim(-1, 0)[None]  # (1 c t h w)
            progress(len(stamps))

    indices = [part[0].cpu().numpy() for part in tokenizer.encode_stream(chunks())]
    return Tokens(
        indices=np.concatenate(indices),
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
    )


def decode_clip(
    tokens: Tokens,
    tokenizer: Tokenizer,
    target: Path | BinaryIO,
    progress: Progress,
    codec: str | None = None,
    crf: int | None = None,
    audio_from: str | os.PathLike[str] | None = None,
) -> None:
    """Write the video that tokens stand for. Raises VqtokError for tokens of another tokenizer."""
    if tokens.model != tokenizer.fingerprint:
        raise VqtokError(
            f"these tokens were made by another tokenizer ({tokens.quantizer}, weights "
            f"{tokens.model[:12]}); give that one with --tokenizer (this is "
            f"{tokenizer.fingerprint[:12]})"
        )
    shape = {"height": tokens.height, "width": tokens.width, "pixel_aspect": tokens.pixel_aspect}
    rate = {"fps": tokens.fps, "time_base": tokens.time_base}
    with VideoWriter(target, **shape, **rate, codec=codec, crf=crf, audio_from=audio_from) as out:
        done = 0
        indices = torch.from_numpy(tokens.indices.astype(np.int64))[None]
        for video in tokenizer.decode_stream(indices.split(CHUNK, dim=1)):
            frames = to_frames(video)[: tokens.frames - done, : tokens.height, : tokens.width]
            out.write(frames, tokens.timestamps[done : done + len(frames)])
            done += len(frames)
            progress(len(frames))


def to_frames(video: Tensor) -> np.ndarray:
    """(1 3 t h w), float 0..1 -> uint8 (t h w c)."""
    return video[0].movedim(0, -1).mul(255).round_().to(torch.uint8).cpu().numpy()
