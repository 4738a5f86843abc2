"""Encode a video by its name, with the options of `vqtok encode`."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from vqtok.encoding import EncodeOptions
from vqtok.errors import VqtokError
from vqtok.model.inputs import check_interval
from vqtok.model.rate import check_rate
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.clip import OnProgress, encode_clip, hardware_decoder
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.tokens import Tokens
from vqtok.video import Clip, Section, open_video


def resolve_options(options: EncodeOptions, tokenizer: Tokenizer) -> EncodeOptions:
    """Return the options, with the key-frame interval that they leave to the tokenizer.

    Raises UsageError for a rate or an interval that the tokenizer cannot keep.
    """
    interval = check_interval(options.keyframe_interval, tokenizer.keyframe_interval)
    check_rate(tokenizer, options.rate)
    return replace(options, keyframe_interval=interval)


def open_clip(
    source: str, tokenizer: Tokenizer, options: EncodeOptions, section: Section | None = None
) -> AbstractContextManager[Clip]:
    """Open a video file, or stdin (-), or only a section of it, to be encoded."""
    return open_video(
        sys.stdin.buffer if source == "-" else source,
        size=options.size,
        fps=options.fps,
        start=options.start,
        duration=options.duration,
        hardware=None if options.strict else hardware_decoder(tokenizer),  # NVDEC hides damage
        section=section,
    )


def encode_source(
    source: str,
    tokenizer: Tokenizer,
    options: EncodeOptions,
    on_progress: OnProgress = lambda frames: None,
    on_length: Callable[[int | None], object] = lambda frames: None,
    stopwatch: Stopwatch | None = None,
    should_stop: Callable[[], object] = lambda: False,
) -> tuple[Tokens, Clip]:
    """Encode a video file, or stdin (-); return the tokens and the closed clip with its notes.

    on_length: called once with the approximate number of frames; None if that is unknown.
    on_progress, stopwatch, should_stop: as in `encode_clip`.
    Raises VqtokError if the video is damaged and `options.strict` is set.
    """
    with open_clip(source, tokenizer, options) as clip:
        on_length(expected_frames(clip, options))
        how = options.rate, options.keyframe_interval
        tokens = encode_clip(clip, tokenizer, on_progress, should_stop, stopwatch, *how)
    if options.strict and clip.damage:
        raise VqtokError(f"{source}: {', '.join(clip.damage)}; encode it without --strict")
    return tokens, clip


def expected_frames(clip: Clip, options: EncodeOptions) -> int | None:
    """Return the approximate number of frames to encode; None if the length is unknown."""
    seconds = max(0.0, (clip.duration or 0) - options.start)
    if options.duration is not None:
        seconds = min(seconds, options.duration)
    return round(seconds * float(clip.fps)) or None
