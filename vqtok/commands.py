"""What `encode` and `decode` do, for one clip and for many."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from vqtok import batch, pipeline, tokens
from vqtok.batch import Job
from vqtok.errors import VqtokError
from vqtok.metrics import bits_per_pixel
from vqtok.terminal import Bars, progress, say
from vqtok.threads import stopping
from vqtok.tokenizer import Tokenizer
from vqtok.tokens import Tokens
from vqtok.video import open_video

Bar = Callable[[int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Reading:
    """How `encode` reads a clip; as in `open_video`, and strict refuses damage."""

    size: int | None
    fps: Fraction | None
    start: float
    duration: float | None
    strict: bool
    keep_partial: bool  # on Ctrl-C, of one clip


@dataclass(frozen=True)
class Writing:
    """How `decode` writes a video; as in `VideoWriter`."""

    codec: str | None
    crf: int | None
    audio_from: Path | None


def encode_one(clip: str, output: str | None, model: Tokenizer, how: Reading, quiet: bool) -> None:
    """Encode a clip (- is stdin) to a token file or stdout, and say so."""
    begin = time.perf_counter()
    source = sys.stdin.buffer if clip == "-" else clip
    with stopping() if how.keep_partial else nullcontext(lambda: False) as stopped:
        bar = partial(progress, quiet, "encoding")
        result, notes = _encode(source, clip, model, how, bar, stopped)
        tokens.write(sys.stdout.buffer if output in (None, "-") else output, result)
    say(quiet, *notes, f"{clip}: {_encoded(result, time.perf_counter() - begin)}")
    if stopped():
        raise KeyboardInterrupt


def encode_many(
    todo: Sequence[Job], folder: Path, model: Tokenizer, how: Reading, workers: int, quiet: bool
) -> None:
    """Encode clips into a folder. Raises VqtokError at the end if any could not be."""
    models = _copies(model, workers)

    def work(job: Job, check: Callable[[], None]) -> None:
        with _one_of(models) as own:
            bar = _checked(bars, job, check)
            result, notes = _encode(str(job.source), str(job.source), own, how, bar)
        tokens.write(job.target, result)
        bars.say(*(f"{job.source}: {note}" for note in notes))

    with Bars(quiet, "encoding", len(todo)) as bars:
        batch.run(todo, folder, workers, work, bars.done)
    say(quiet, f"{folder}: {len(todo)} clips encoded" if todo else "nothing left to do")


def decode_one(
    name: str, output: str, load: Callable[[], Tokenizer], how: Writing, quiet: bool
) -> None:
    """Decode a token file (- is stdin) to a video, and say so; the model is loaded last."""
    content = tokens.read(sys.stdin.buffer if name == "-" else name)
    model, begin = load(), time.perf_counter()
    target = sys.stdout.buffer if output == "-" else Path(output)
    notes = _decode(content, target, model, how, partial(progress, quiet, "decoding"))
    speed = content.frames / (time.perf_counter() - begin)
    say(
        quiet,
        *notes,
        f"{output}: {content.frames} frames of {content.height}x{content.width} "
        f"at {float(content.fps):.6g} frames/s, decoded at {speed:.1f} frames/s",
    )


def decode_many(
    todo: Sequence[Job], folder: Path, model: Tokenizer, how: Writing, workers: int, quiet: bool
) -> None:
    """Decode token files into a folder. Raises VqtokError at the end if any could not be."""
    models = _copies(model, workers)

    def work(job: Job, check: Callable[[], None]) -> None:
        content = tokens.read(job.source)
        with _one_of(models) as own:
            notes = _decode(content, job.target, own, how, _checked(bars, job, check))
        bars.say(*(f"{job.target}: {note}" for note in notes))

    with Bars(quiet, "decoding", len(todo)) as bars:
        batch.run(todo, folder, workers, work, bars.done)
    say(quiet, f"{folder}: {len(todo)} clips decoded" if todo else "nothing left to do")


def _encode(
    source: str | BinaryIO,
    name: str,
    model: Tokenizer,
    how: Reading,
    bar: Bar,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Tokens, list[str]]:
    """The tokens of a clip, and what a person should hear about it."""
    window = {"start": how.start, "duration": how.duration}
    with open_video(source, size=how.size, fps=how.fps, **window) as video:
        left = max(0.0, (video.duration or 0) - how.start)
        total = round(min(left, how.duration or left) * float(video.fps)) or None
        with bar(total) as advance:
            result = pipeline.encode_clip(video, model, advance, stopped)
    if how.strict and video.damage:
        raise VqtokError(f"{name}: {', '.join(video.damage)} (without --strict it goes on)")
    return result, video.notes


def _decode(
    content: Tokens, target: Path | BinaryIO, model: Tokenizer, how: Writing, bar: Bar
) -> list[str]:
    """Write the video of tokens; what a person should hear about it."""
    with bar(content.frames) as advance:
        return pipeline.decode_clip(
            content, model, target, advance, how.codec, how.crf, how.audio_from
        )


def _copies(model: Tokenizer, workers: int) -> "SimpleQueue[Tokenizer]":
    """A model for each worker: while it walks a clip, a model belongs to that clip."""
    models: SimpleQueue[Tokenizer] = SimpleQueue()
    for i in range(workers):
        models.put(deepcopy(model) if i else model)
    return models


@contextmanager
def _one_of(models: "SimpleQueue[Tokenizer]") -> Iterator[Tokenizer]:
    model = models.get()
    try:
        yield model
    finally:
        models.put(model)


def _checked(bars: Bars, job: Job, check: Callable[[], None]) -> Bar:
    """The job's own bar, which also stops the job when all is to stop."""

    @contextmanager
    def bar(frames: int | None) -> Iterator[Callable[[int], None]]:
        with bars.clip(job.source.name, frames) as advance:

            def moved(done: int) -> None:
                check()
                advance(done)

            yield moved

    return bar


def _encoded(result: Tokens, elapsed: float) -> str:
    """What went in and what came out."""
    pixels = result.frames * result.height * result.width
    bits = bits_per_pixel(result.indices.size, result.codebook_size, pixels)
    return (
        f"{result.frames} frames of {result.height}x{result.width} at "
        f"{float(result.fps):.6g} frames/s -> {'x'.join(map(str, result.indices.shape))} tokens of "
        f"{result.codebook_size:,}, {bits:.4f} bits per pixel, encoded at "
        f"{result.frames / elapsed:.1f} frames/s"
    )
