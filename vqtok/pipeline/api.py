"""Encode and decode video files from Python, as the commands do, and decode generated indices."""

import os
import warnings
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from vqtok import DEFAULT
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import UsageError
from vqtok.model.checkpoint import load_for_inference
from vqtok.model.inputs import check_indices, check_interval
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.clip import decode_clip, encode_clip, hardware_decoder
from vqtok.pipeline.frame_rate import parse_frame_rate
from vqtok.targets import File, check_targets, check_writable, tokenizer_file
from vqtok.tokens import Tokens, read_tokens, validate
from vqtok.video import open_video


def encode_video(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    tokenizer: str | Path | Tokenizer = DEFAULT,
    size: int | None = None,
    fps: Fraction | float | str | None = None,
    start: float = 0.0,
    duration: float | None = None,
    rate: Rate = ALL_TOKENS,
    keyframe_interval: int | None = None,
    device: str = "auto",
    dtype: str | None = None,
) -> Tokens:
    """Encode a video or an image to the tokens that `vqtok encode` writes.

    Memory does not grow with the length of the video: frames are read in chunks, and indices of
    more than 16 MiB stay in a temporary file.

    path: a file, or a binary file object such as a pipe.
    tokenizer: a bundled name, a file written by `vqtok train`, hf:org/name, or a loaded tokenizer.
    size: scale the short side to this many pixels.
    fps: resample to this frame rate.
    start, duration: encode this part of the video only, in seconds.
    rate: how many tokens to spend, such as `vqtok.Rate(tokens=0.6)` per position; for tokenizers
        trained with `quantizer.stages`. By default, all that help.
    keyframe_interval: latent frames from one key frame to the next; with 1, each stands for itself.
        At most those of the tokenizer, which are the default.
    device, dtype: where and in what a tokenizer that is not loaded yet runs: auto, cpu, cuda or
        cuda:N, and float32 or bfloat16 (default: bfloat16 where it is fast).

    Raises UsageError for an option out of range, or that the tokenizer cannot keep,
    VqtokError if there is no frame to encode. Warns of damaged or dropped content.
    """
    model = _load(tokenizer, device, dtype)
    with open_video(
        path,
        size=size,
        fps=None if fps is None else parse_frame_rate(fps),
        start=start,
        duration=duration,
        hardware=hardware_decoder(model),
    ) as clip:
        tokens = encode_clip(clip, model, rate=rate, keyframe_interval=keyframe_interval)
    _warn(path, clip.notes)
    return tokens


def decode_video(
    tokens: Tokens | str | os.PathLike[str] | BinaryIO,
    path: str | os.PathLike[str] | BinaryIO,
    *,
    tokenizer: str | Path | Tokenizer = DEFAULT,
    codec: str | None = None,
    crf: int | None = None,
    audio_from: str | Path | None = None,
    device: str = "auto",
    dtype: str | None = None,
) -> None:
    """Decode tokens to a video file, as `vqtok decode` does. An existing file is overwritten.

    tokens: from `encode_video`, `read_tokens` or `tokens_from_indices`, or a token file.
    path: ends in .mp4, .mkv, .webm, .mov or .gif, or, for a single frame, in .png or .jpg; or a
        binary file object, which gets a Matroska stream.
    tokenizer, device, dtype: as in `encode_video`; the tokenizer that made the tokens.
    codec: h264, vp9, ffv1 (lossless) or gif (default: the usual one of the container).
    crf: quality of h264 and vp9, 0 to 63; lower is better.
    audio_from: copy the audio of this video.

    Raises VqtokError for inconsistent tokens or those of another tokenizer, UsageError for a
    container, codec, crf or folder that does not exist and for a `path` that is one of the files
    that are read. Warns of what the container cannot hold.
    """
    name = str(tokens) if isinstance(tokens, str | os.PathLike) else "tokens"
    _check_target(path, tokens, tokenizer, audio_from)
    if isinstance(tokens, Tokens):
        validate(tokens)
    else:
        tokens = read_tokens(tokens)
    target = Path(path) if isinstance(path, str | os.PathLike) else path
    audio = None if audio_from is None else Path(audio_from)
    model = _load(tokenizer, device, dtype)
    notes = decode_clip(tokens, model, target, name=name, codec=codec, crf=crf, audio_from=audio)
    _warn(path, notes)


def _check_target(
    path: File, tokens: File | Tokens, tokenizer: Tokenizer | str | Path, audio: File
) -> None:
    """Raise UsageError if a video would overwrite an input, or cannot be written."""
    inputs = [None if isinstance(tokens, Tokens) else tokens, audio]
    inputs += [] if isinstance(tokenizer, Tokenizer) else [tokenizer_file(tokenizer)]
    check_targets([path], inputs)
    if isinstance(path, str | os.PathLike):
        check_writable(path)


def tokens_from_indices(
    indices: Tensor | np.ndarray,
    *,
    tokenizer: str | Path | Tokenizer = DEFAULT,
    fps: Fraction | float | str = 25,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    keyframe_interval: int | None = None,
) -> Tokens:
    """Return indices that a model generated as tokens, to write to a file or to decode to a video.

    indices: (t h w), or (t h w stages) for a tokenizer with several stages, of any integer dtype,
        0 <= index < codebook_size.
    tokenizer: as in `encode_video`; the one whose indices they are.
    fps: frames per second. The first frame is shown at time zero.
    frames, height, width: of the video, where it ends before the last index does. By default, all
        that the indices cover: 1 + (t - 1) * s frames of (h * sh) x (w * sw) pixels, with a stride
        of s x sh x sw.
    keyframe_interval: that of the tokens that the model was trained on; by default, the tokenizer's
        own.

    Raises UsageError for indices of another shape and for an interval out of range, VqtokError if
    they are not in the codebook or do not fit the size.
    """
    model, frame_rate = _load(tokenizer, "cpu", None), parse_frame_rate(fps)
    interval = check_interval(keyframe_interval, model.keyframe_interval)
    _check_shape(tuple(indices.shape), model.stages)
    if isinstance(indices, Tensor):
        indices = check_indices(indices[None], model.stages, model.codebook_size)[0].cpu().numpy()
    grid = indices.shape[:3]
    time, rows, columns = (n * side for n, side in zip(grid, model.stride, strict=True))
    frames = 1 + time - model.stride[0] if frames is None else frames
    tokens = Tokens(
        indices=indices,
        frames=frames,
        height=rows if height is None else height,
        width=columns if width is None else width,
        fps=frame_rate,
        time_base=1 / frame_rate,
        timestamps=range(frames),
        pixel_aspect=Fraction(1),
        codebook_size=model.codebook_size,
        quantizer=model.kind,
        stride=model.stride,
        model=model.fingerprint,
        zero_code=model.zero_code,
        keyframe_interval=interval,
    )
    validate(tokens)
    return tokens


def _check_shape(shape: tuple[int, ...], stages: int) -> None:
    last = () if stages == 1 else (stages,)
    if len(shape) < 3 or shape[3:] != last or 0 in shape:
        expected = " ".join(map(str, ("t h w", *last)))
        raise UsageError(f"the indices of one video must have the shape ({expected}), not {shape}")


def _load(tokenizer: str | Path | Tokenizer, device: str, dtype: str | None) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    return load_for_inference(tokenizer, device, dtype)


def _warn(path: object, notes: Iterable[str]) -> None:
    name = str(path) if isinstance(path, str | os.PathLike) else "the stream"
    for note in notes:
        warnings.warn(f"{name}: {note}", stacklevel=3)
