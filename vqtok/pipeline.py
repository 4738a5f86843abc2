"""From a video to tokens and back, chunk by chunk: what `encode` and `decode` run."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vqtok import checkpoint
from vqtok.errors import UsageError, VqtokError
from vqtok.threads import ahead, behind
from vqtok.tokenizer import CHUNK, Tokenizer
from vqtok.tokens import Spool, Tokens
from vqtok.video import Clip, VideoWriter

Progress = Callable[[int], None]  # told how many more frames are done


def load_tokenizer(source: str, device: str, dtype: str | None) -> Tokenizer:
    """A tokenizer ready to run: `device` auto, cpu or cuda[:i]; `dtype` None for the fast one.

    The fast type is bfloat16 where the processor has it. Raises UsageError for a device that is
    not there.
    """
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    where = find_device(device)
    dtype = dtype or ("bfloat16" if fast_bfloat16(where) else "float32")
    return checkpoint.load(source).to(where).cast(getattr(torch, dtype))


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, not through float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell: float32
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def find_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda[:i]` means here; UsageError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if asked is None:
        raise UsageError(f"--device {name}: must be auto, cpu, cuda or cuda:N")
    if name != "cpu" and int(asked[1] or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here"
        )
    return torch.device(name)


def encode_clip(
    clip: Clip,
    tokenizer: Tokenizer,
    progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
) -> Tokens:
    """Tokenize an open video in constant memory: reading runs ahead, tokens wait on disk.

    stopped: asked now and then; once it says so, what is encoded so far is given.
    """
    times: list[int] = []

    def chunks() -> Iterator[Tensor]:
        for frames, stamps in read:
            times.extend(stamps)
            yield torch.from_numpy(frames).movedim(-1, 0)[None]  # (1 c t h w)
            progress(len(stamps))

    spool = Spool(tokenizer.codebook_size)
    with ahead(clip.chunks(tokenizer.stride[0])) as read:
        for part in tokenizer.encode_stream(chunks()):
            spool.append(part[0].cpu().numpy())
            if stopped():
                del times[1 + (spool.frames - 1) * tokenizer.stride[0] :]
                break
    return Tokens(
        indices=spool.indices(),
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
) -> list[str]:
    """Write the video that tokens stand for; give what a person should hear about it.

    Raises VqtokError for tokens of another tokenizer.
    """
    theirs = tokens.model, tokens.quantizer, tokens.stride, tokens.codebook_size
    ours = tokenizer.fingerprint, tokenizer.kind, tokenizer.stride, tokenizer.codebook_size
    if theirs != ours:
        raise VqtokError(
            f"these tokens were made by another tokenizer ({tokens.quantizer}, weights "
            f"{tokens.model[:12]}); give that one with --tokenizer (this is {tokenizer.kind}, "
            f"{tokenizer.fingerprint[:12]})"
        )
    shape = {"height": tokens.height, "width": tokens.width, "pixel_aspect": tokens.pixel_aspect}
    origin = min(tokens.origin, tokens.timestamps[0])
    rate = {"fps": tokens.fps, "time_base": tokens.time_base, "origin": origin}
    with (
        VideoWriter(target, **shape, **rate, codec=codec, crf=crf, audio_from=audio_from) as out,
        behind(out.write) as write,
    ):
        done = 0
        starts = range(0, len(tokens.indices), CHUNK)
        parts = (tokens.indices[i : i + CHUNK].astype(np.int64) for i in starts)
        videos = tokenizer.decode_stream(torch.from_numpy(part)[None] for part in parts)
        for frames in map(to_frames, videos):  # so that no video is kept while the next is made
            frames = frames[: tokens.frames - done, : tokens.height, : tokens.width]
            write(frames, tokens.timestamps[done : done + len(frames)])
            done += len(frames)
            progress(len(frames))
    return out.notes


def to_frames(video: Tensor) -> np.ndarray:
    """(1 3 t h w), float 0..1 -> uint8 (t h w c)."""
    return video[0].movedim(0, -1).mul(255).round_().to(torch.uint8).cpu().numpy()
