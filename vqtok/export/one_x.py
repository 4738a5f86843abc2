"""The layout of the 1X world model challenge, https://github.com/1x-technologies/1xgpt.

video.bin: the indices of all latent frames (n h w) or (n h w stages), little-endian.
segment_ids.bin: int32 (n), the number of the clip that each latent frame is of.
clips.jsonl: a line for each of those clips.
metadata.json: token_dtype; num_images, n; h, w; s, the side of a square grid of one stage;
    vocab_size; hz, latent frames per second; and what `tokenizer_of` returns.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vqtok.errors import VqtokError
from vqtok.export.clips import (
    Clip,
    clip_line,
    keyframe_notes,
    parts,
    stages_of,
    tokenizer_of,
    with_one_tokenizer,
)
from vqtok.export.layout import Layout
from vqtok.export.output import open_outputs, to_json
from vqtok.tokens import Tokens
from vqtok.tokens.format import index_dtype


def write_1x(clips: Iterable[Clip], folder: Path) -> list[str]:
    """Write clips as one video of latent frames, one clip in memory at a time; return notes.

    Raises VqtokError for clips of several tokenizers, or of several grids.
    """
    latent_frames = 0
    slowest, fastest = math.inf, 0.0
    with open_outputs(folder, Layout.ONE_X.files) as (metadata, video, segments, lines):
        for number, clip in enumerate(_with_one_grid(clips)):
            tokens = clip.tokens
            dtype = index_dtype(tokens.codebook_size)
            video.writelines(part.astype(dtype).tobytes() for part in parts(tokens.indices))
            segments.write(np.full(len(tokens.indices), number, "<i4").tobytes())
            lines.write(clip_line(clip))
            latent_frames += len(tokens.indices)
            slowest, fastest = min(slowest, float(tokens.fps)), max(fastest, float(tokens.fps))
        metadata.write(to_json(_describe(tokens, latent_frames, slowest)))
    return _notes(tokens, slowest, fastest)


def _with_one_grid(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Yield clips of one tokenizer; raise VqtokError for one with another grid than the first."""
    first: Clip | None = None
    for clip in with_one_tokenizer(clips):
        first = first or clip
        (h, w), grid = clip.tokens.indices.shape[1:3], first.tokens.indices.shape[1:3]
        if (h, w) != grid:
            raise VqtokError(
                f"{clip.source}: its latent frames are {h}x{w}, and those of {first.source} "
                f"{grid[0]}x{grid[1]}: crop the videos to one shape and encode them with --size"
            )
        yield clip


def _describe(tokens: Tokens, latent_frames: int, fps: float) -> dict[str, Any]:
    """Return the metadata of all clips, given the tokens of one of them."""
    h, w = tokens.indices.shape[1:3]
    # Without s, a reader that knows only squares fails instead of reading other tokens.
    side = {"s": h} if _is_square(tokens) else {}
    return {
        "token_dtype": index_dtype(tokens.codebook_size).name,
        "num_images": latent_frames,
        **side,
        "h": h,
        "w": w,
        "vocab_size": tokens.codebook_size,
        "hz": fps / tokens.stride[0],
        **tokenizer_of(tokens),
    }


def _is_square(tokens: Tokens) -> bool:
    """Return whether a latent frame is a square of single indices, as in the challenge."""
    h, w = tokens.indices.shape[1:3]
    return h == w and stages_of(tokens) == 1


def _notes(tokens: Tokens, slowest: float, fastest: float) -> list[str]:
    """Return notes on clips of these frame rates, given the tokens of one of them."""
    notes = keyframe_notes(tokens.keyframe_interval)
    if not _is_square(tokens):
        notes.append(
            "metadata.json has no s, the side of a square of one stage: use a reader that knows h, "
            "w and stages"
        )
    if slowest != fastest:
        rates = f"{slowest:.6g} to {fastest:.6g} frames/s"
        notes.append(f"the clips have {rates}, and hz is of the slowest: encode them with --fps")
    return notes
