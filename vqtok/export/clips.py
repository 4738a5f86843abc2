"""The clips of an export, which must agree, and what all layouts say about them."""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vqtok.errors import UsageError, VqtokError
from vqtok.tokens import Tokens

_INDICES_AT_A_TIME = 1 << 20


class Clip(NamedTuple):
    """A clip to export.

    name: of the clip, such as a/b.mp4. source: the token file, for messages.
    """

    name: str
    source: str
    tokens: Tokens


def tokenizer_of(tokens: Tokens) -> dict[str, Any]:
    """Return what the tokens of all clips of an export have in common, as JSON values.

    tokenizer: the SHA-256 of its weights. stages: indices of a position.
    keyframe_interval: latent frames from one key frame to the next; None if it is unknown.
    """
    return {
        "tokenizer": tokens.model,
        "quantizer": tokens.quantizer,
        "stride": list(tokens.stride),
        "codebook_size": tokens.codebook_size,
        "stages": stages_of(tokens),
        "zero_code": tokens.zero_code,
        "keyframe_interval": tokens.keyframe_interval,
    }


def stages_of(tokens: Tokens) -> int:
    """Return the number of indices of a position."""
    return math.prod(tokens.indices.shape[3:])


def with_one_tokenizer(clips: Iterable[Clip]) -> Iterator[Clip]:
    """Yield the clips. VqtokError for one whose tokens differ in kind from those of the first.

    Raises UsageError if there are no clips.
    """
    first: Clip | None = None
    for clip in clips:
        first = first or clip
        ours, theirs = tokenizer_of(first.tokens), tokenizer_of(clip.tokens)
        if key := next((key for key in ours if ours[key] != theirs[key]), None):
            raise VqtokError(
                f"{clip.source}: its {key} is {theirs[key]}, and that of {first.source} is "
                f"{ours[key]}: export the clips of each tokenizer and its settings on their own"
            )
        yield clip
    if first is None:
        raise UsageError("there are no clips to export")


def parts(indices: np.ndarray) -> Iterator[np.ndarray]:
    """Yield indices a few latent frames at a time: they may be larger than the memory."""
    step = max(1, _INDICES_AT_A_TIME // math.prod(indices.shape[1:]))
    for i in range(0, len(indices), step):
        yield indices[i : i + step]


def clip_line(clip: Clip) -> bytes:
    """Return a clip as a line of JSON: its name, latent grid and size."""
    tokens = clip.tokens
    t, h, w = tokens.indices.shape[:3]
    size = {"frames": tokens.frames, "height": tokens.height, "width": tokens.width}
    line = {"name": clip.name, "t": t, "h": h, "w": w, **size, "fps": float(tokens.fps)}
    return json.dumps(line).encode() + b"\n"


def keyframe_notes(keyframe_interval: int | None) -> list[str]:
    """Return a note for a model that sees windows, unless every latent frame stands for itself."""
    if keyframe_interval == 1:
        return []
    hint = "begin windows at key frames, or use `vqtok encode --keyframe-interval 1`"
    if keyframe_interval is None:
        return [
            "the token files do not tell where key frames are, and most tokens mean little without "
            f"the latent frames since then: encode the videos again, and {hint}"
        ]
    return [
        f"a key frame is every {keyframe_interval} latent frames of a clip, and tokens mean little "
        f"without the latent frames since the last one: {hint}"
    ]
