"""Encode a long clip in pieces, in any order and in several processes, to the tokens of one run.

A piece begins where the clip has a key frame, at which the predictor starts anew, and a chunk. The
frames before it that the encoder looks back at are encoded first, as its warm-up. There are more
of them than it needs: the last tokens of a warm-up are those of the piece before as well, and
joining the pieces compares them.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqtok.encoding import EncodeOptions
from vqtok.errors import UsageError, VqtokError
from vqtok.model.inputs import check_interval
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.clip import OnProgress, encode_clip
from vqtok.pipeline.frame_rate import average_frame_rate
from vqtok.pipeline.source import open_clip
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.tokens import IndexBuffer, Tokens
from vqtok.video import CannotSplit, Clip, Section, Timeline, read_timeline

_COMPARED = 8  # latent frames at least
_ROWS = 64  # latent frames copied at a time


@dataclass(frozen=True)
class Piece:
    """A piece of a clip. Numbers and text only: `asdict` makes a row of JSON, and `**` reads it.

    number, pieces: which one, from 0, of how many.
    section: the frames to read, including those of the warm-up.
    first, last: timestamps of the first and the last of them. The last piece has no `last`.
    warm_up: latent frames to encode before those of the piece.
    compared: how many of these, the last ones, are encoded as in the piece before.
    height, width: of the frames.
    chunk: frames that the tokenizer takes at a time, which is not the same on all devices.
    fps: frames per second as the file states them, or after resampling.
    """

    number: int
    pieces: int
    section: Section
    first: int
    last: int | None
    warm_up: int
    compared: int
    height: int
    width: int
    chunk: int
    fps: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "section", Section(*self.section))  # a list in JSON


def plan_pieces(
    path: str, tokenizer: Tokenizer, options: EncodeOptions, seconds: float
) -> list[Piece]:
    """Return the pieces of a clip, about `seconds` long; an empty list if it is too short for two.

    Reads the file once, but decodes only its first frame, unless the header says that it is short.

    Raises UsageError for a rate that is an average over the clip, and for `seconds` out of range;
    CannotSplit, naming the file and the reason, if it can only be encoded as a whole.
    """
    if options.rate.tokens is not None or options.rate.psnr is not None:
        rate = f"{options.rate} is met over a whole clip"
        raise UsageError(f"{rate}: choose a price, or do not split clips")
    if not 0 < seconds < math.inf:
        raise UsageError(f"the length of a piece must be above 0 seconds, not {seconds}")
    if not Path(path).is_file():
        raise CannotSplit(f"{path} is not a file on disk: it is encoded as a whole")
    with open_clip(path, tokenizer, options) as clip:
        lengths = [options.duration, clip.duration and clip.duration - options.start]
        if clip.is_image or any(length and length < 1.5 * seconds for length in lengths):
            return []
        timeline = read_timeline(path, clip.bounds, options.fps)
        pieces = list(_cut(clip, timeline, tokenizer, seconds, options.keyframe_interval))
    if any(timeline.lead_in(piece.section) > seconds for piece in pieces):
        raise CannotSplit(f"{path} has too few keyframes to be split: it is encoded as a whole")
    return pieces if len(pieces) > 1 else []


def encode_piece(
    path: str,
    piece: Piece,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    on_progress: OnProgress = lambda frames: None,
    stopwatch: Stopwatch | None = None,
) -> tuple[Tokens, Clip]:
    """Return the tokens of a piece, including its warm-up, and the closed clip with its notes.

    The tokens make a valid token file, but only `join_pieces` knows what they stand for.

    options: those of `plan_pieces`. on_progress, stopwatch: as in `encode_clip`.
    Raises CannotSplit if the frames are damaged or not those that were planned: the clip can then
    only be encoded as a whole.
    """
    try:
        with open_clip(path, tokenizer, options, piece.section) as clip:
            chunk = tokenizer.chunk_frames(clip.height, clip.width)
            if (clip.height, clip.width, chunk) != (piece.height, piece.width, piece.chunk):
                raise CannotSplit(
                    f"{path} was planned for frames of another size or on another device"
                )
            tokens = encode_clip(
                clip,
                tokenizer,
                on_progress,
                stopwatch=stopwatch,
                rate=options.rate,
                keyframe_interval=options.keyframe_interval,
            )
    except (CannotSplit, UsageError):
        raise
    except VqtokError as error:
        raise CannotSplit(f"{path} cannot be encoded in pieces: {error}") from error
    times = tokens.timestamps
    is_planned = times[0] == piece.first
    if piece.last is not None:
        is_planned &= (len(times), times[-1]) == (piece.section.frames, piece.last)
    if clip.damage or not is_planned:
        reason = ", ".join(clip.damage) or "its frames are not those that its packets promise"
        raise CannotSplit(f"{path} cannot be encoded in pieces: {reason}")
    return tokens, clip


def join_pieces(pieces: Sequence[Piece], parts: Iterable[Tokens], name: str) -> Tokens:
    """Return the tokens of a clip, those that encoding it as a whole gives.

    Memory does not grow with the length of the clip, apart from its timestamps.

    pieces: all of them, in order. parts: their tokens, from `encode_piece` or a token file.
    name: of the clip, for messages.
    Raises CannotSplit if the tokens of two pieces differ where they overlap.
    """
    parts = iter(parts)
    first = previous = next(parts)
    buffer, timestamps = IndexBuffer(first.codebook_size), array("q")
    for piece, part in zip(pieces, chain([first], parts), strict=True):
        if piece.number and not _continues(part, previous, piece):
            raise CannotSplit(f"{name} cannot be encoded in pieces: they differ where they overlap")
        for i in range(piece.warm_up, len(part.indices), _ROWS):
            buffer.append(part.indices[i : i + _ROWS])
        timestamps.extend(part.timestamps[_frames(piece.warm_up, part.stride[0]) :])
        previous = part
    fps = average_frame_rate(timestamps, first.time_base, Fraction(pieces[0].fps))
    indices, count = buffer.finish(), len(timestamps)
    return replace(first, indices=indices, timestamps=timestamps, frames=count, fps=fps)


class _Steps(NamedTuple):
    """Where a clip can be cut, in latent frames.

    align: pieces begin on multiples of it.
    """

    align: int
    warm_up: int
    compared: int


def _steps(tokenizer: Tokenizer, chunk: int, keyframe_interval: int | None) -> _Steps:
    """Return where a clip can be cut, given the latent frames of a chunk."""
    interval = check_interval(keyframe_interval, tokenizer.keyframe_interval)
    # The first latent frame of a warm-up stands for a single frame, unlike in the whole clip. After
    # it and what the encoder looks back at, tokens are right from the next key frame on.
    wrong = _round_up(1 + tokenizer.look_back, interval)
    align = math.lcm(chunk, interval)
    warm_up = _round_up(wrong + max(interval, _COMPARED), align)
    return _Steps(align, warm_up, warm_up - wrong)


def _cut(
    clip: Clip,
    timeline: Timeline,
    tokenizer: Tokenizer,
    seconds: float,
    keyframe_interval: int | None,
) -> Iterator[Piece]:
    """Yield the pieces of a clip."""
    stride, chunk = tokenizer.stride[0], tokenizer.chunk_frames(clip.height, clip.width)
    steps = _steps(tokenizer, chunk // stride, keyframe_interval)
    total = 1 - (1 - timeline.frames) // stride
    length = round(seconds * clip.fps / (stride * steps.align)) * steps.align
    starts = _starts(total, max(length, steps.warm_up))
    for number, (start, end) in enumerate(pairwise([*starts, None])):
        warm_up = steps.warm_up if number else 0
        first = (start - warm_up) * stride
        frames = None if end is None else _frames(end, stride) - first
        yield Piece(
            number=number,
            pieces=len(starts),
            section=timeline.section(first, frames),
            first=timeline.timestamp(first),
            last=None if frames is None else timeline.timestamp(first + frames - 1),
            warm_up=warm_up,
            compared=steps.compared if number else 0,
            height=clip.height,
            width=clip.width,
            chunk=chunk,
            fps=str(clip.fps),
        )


def _starts(total: int, length: int) -> range:
    """Return where pieces of this length begin; the last is half to one and a half as long."""
    return range(0, max(1, total - length // 2), length)


def _continues(part: Tokens, previous: Tokens, piece: Piece) -> bool:
    """Return whether the tokens of a piece continue those of the piece before it."""
    same = _settings(part) == _settings(previous)
    frames = _frames(piece.warm_up, part.stride[0])
    same &= np.array_equal(part.timestamps[:frames], previous.timestamps[-frames:])
    compared = part.indices[piece.warm_up - piece.compared : piece.warm_up]
    return bool(same and np.array_equal(compared, previous.indices[-piece.compared :]))


def _settings(tokens: Tokens) -> tuple[object, ...]:
    """Return what all pieces of a clip have in common."""
    return (
        *(tokens.height, tokens.width, tokens.time_base, tokens.pixel_aspect),
        *(tokens.codebook_size, tokens.quantizer, tokens.stride, tokens.model),
        *(tokens.zero_code, tokens.rate, tokens.keyframe_interval, tokens.indices.shape[1:]),
    )


def _frames(latent_frames: int, stride: int) -> int:
    """Return the frames for which the first latent frames of a clip stand."""
    return 1 + (latent_frames - 1) * stride if latent_frames else 0


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
