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

from vqtok.codebook_stats.usage import bits_per_pixel
from vqtok.commands import batch
from vqtok.commands.batch import Job
from vqtok.commands.progress import Bars, progress, say
from vqtok.device import describe_device
from vqtok.errors import UsageError, VqtokError
from vqtok.interrupt import defer_sigint
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline import clip as pipeline
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.tokens import Tokens, read_metadata, read_tokens, write_tokens
from vqtok.video import open_video

Bar = Callable[[int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class EncodeOptions:
    """How `encode` reads a clip; as in `open_video`, and strict refuses damage."""

    size: int | None
    fps: Fraction | None
    start: float
    duration: float | None
    strict: bool
    keep_partial: bool  # on Ctrl-C, of one clip


@dataclass(frozen=True)
class DecodeOptions:
    """How `decode` writes a video; as in `VideoWriter`."""

    codec: str | None
    crf: int | None
    audio_from: Path | None


@dataclass(frozen=True)
class RunOptions:
    """What a command runs, where, how many at once, and how much it says."""

    tokenizer: str
    device: str
    dtype: str | None
    workers: int
    quiet: bool
    verbose: bool

    def load(self, copies: int = 1) -> list[Tokenizer]:
        """The tokenizer, ready to run, so many times: each walks one clip at a time. The copies
        share their weights.
        """
        model = pipeline.load_tokenizer(self.tokenizer, self.device, self.dtype)
        weights = {id(w): w for w in (*model.parameters(), *model.buffers())}
        models = [model, *(deepcopy(model, dict(weights)) for _ in range(copies - 1))]
        dtype = str(model.dtype).removeprefix("torch.")
        self.detail(
            f"{self.tokenizer}: {model.kind}, weights {model.fingerprint[:12]}, in {dtype} "
            f"on {describe_device(model.device)}"
        )
        return models

    def say(self, *lines: str) -> None:
        """Lines for people, unless they want silence."""
        say(self.quiet, *lines)

    def detail(self, *lines: str) -> None:
        """Lines for people who want to know all."""
        say(not self.verbose, *lines)


def encode_one(clip: str, output: str | None, running: RunOptions, how: EncodeOptions) -> None:
    """Encode a clip (- is stdin) to a token file or stdout, and say so."""
    [model] = running.load()
    begin, watch = time.perf_counter(), Stopwatch()
    source = sys.stdin.buffer if clip == "-" else clip
    with defer_sigint() if how.keep_partial else nullcontext(lambda: False) as stopped:
        bar = partial(progress, running.quiet, "encoding")
        result, notes, decoder = _encode(source, clip, model, how, bar, watch, stopped)
        with watch.on("writing"):
            write_tokens(sys.stdout.buffer if output in (None, "-") else output, result)
    running.say(*notes, f"{clip}: {_encoded(result, time.perf_counter() - begin)}")
    running.detail(f"{clip}: {decoder}; {watch.shares('the model')}")
    if stopped():
        raise KeyboardInterrupt


def encode_many(
    todo: Sequence[Job], folder: Path, running: RunOptions, how: EncodeOptions, force: bool
) -> None:
    """Encode clips into a folder, those that are not there yet or, with `force`, all.

    Raises UsageError if one that is there was made by another tokenizer, or in another size or
    frame rate than is asked for; VqtokError at the end if any could not be encoded.
    """
    if not force:
        todo, kept = batch.missing(todo)
        _check_alike(kept, checkpoint.identify(running.tokenizer) if kept else "", how)

    def work(job: Job, model: Tokenizer, bar: Bar) -> list[str]:
        name, watch = str(job.source), Stopwatch()
        result, notes, decoder = _encode(name, name, model, how, bar, watch)
        with watch.on("writing"):
            write_tokens(job.target, result)
        return [*notes, *[f"{decoder}; {watch.shares('the model')}"] * running.verbose]

    _many("encoding", todo, folder, running, work)


def decode_one(name: str, output: str, running: RunOptions, how: DecodeOptions) -> None:
    """Decode a token file (- is stdin) to a video, and say so; the model is loaded last."""
    content = read_tokens(sys.stdin.buffer if name == "-" else name)
    [model] = running.load()
    begin, watch = time.perf_counter(), Stopwatch()
    target = sys.stdout.buffer if output == "-" else Path(output)
    notes = _decode(
        content, target, model, how, partial(progress, running.quiet, "decoding"), watch
    )
    speed = content.frames / (time.perf_counter() - begin)
    running.say(
        *notes,
        f"{output}: {content.frames} frames of {content.height}x{content.width} "
        f"at {float(content.fps):.6g} frames/s, decoded at {speed:.1f} frames/s",
    )
    running.detail(f"{output}: {watch.shares('writing')}")


def decode_many(
    todo: Sequence[Job], folder: Path, running: RunOptions, how: DecodeOptions, force: bool
) -> None:
    """Decode token files into a folder, those that are not there yet or, with `force`, all.

    Raises VqtokError at the end if any could not be.
    """

    def work(job: Job, model: Tokenizer, bar: Bar) -> list[str]:
        watch = Stopwatch()
        notes = _decode(read_tokens(job.source), job.target, model, how, bar, watch)
        return [*notes, *[watch.shares("writing")] * running.verbose]

    _many("decoding", todo if force else batch.missing(todo)[0], folder, running, work)


def _many(
    what: str,
    todo: Sequence[Job],
    folder: Path,
    running: RunOptions,
    work: Callable[[Job, Tokenizer, Bar], list[str]],
) -> None:
    """Do the jobs; `work` gives what a person should hear of one. No model is loaded for none."""
    models: SimpleQueue[Tokenizer] = SimpleQueue()
    for model in running.load(running.workers) if todo else ():
        models.put(model)

    def one(job: Job, check: Callable[[], None]) -> None:
        with _one_of(models) as model:
            notes = work(job, model, _checked(bars, job, check))
        bars.say(*(f"{job.source}: {note}" for note in notes))

    with Bars(running.quiet, what, len(todo)) as bars:
        batch.run(todo, folder, running.workers, one, bars.done)
    running.say(f"{folder}: {len(todo)} clips written" if todo else "nothing left to do")


def _check_alike(targets: Sequence[Path], model: str, how: EncodeOptions) -> None:
    """UsageError if a token file is of another tokenizer, size or frame rate than asked for."""
    for target in targets:
        label = read_metadata(target)
        alike = label.get("model") == model
        if alike and how.size is not None:
            alike = min(int(label["height"]), int(label["width"])) == how.size
        if alike and how.fps is not None:
            alike = Fraction(label["fps"]) == how.fps
        if not alike:
            raise UsageError(
                f"{target} is there, of another tokenizer, --size or --fps: choose another folder, "
                "or --force to make all again"
            )


def _encode(
    source: str | BinaryIO,
    name: str,
    model: Tokenizer,
    how: EncodeOptions,
    bar: Bar,
    watch: Stopwatch,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Tokens, list[str], str]:
    """The tokens of a clip, what a person should hear about it, and who decoded the video."""
    window = {"start": how.start, "duration": how.duration}
    # NVDEC does not tell of damage.
    hardware = str(model.device) if model.device.type == "cuda" and not how.strict else None
    with open_video(source, size=how.size, fps=how.fps, **window, hardware=hardware) as video:
        left = max(0.0, (video.duration or 0) - how.start)
        total = round(min(left, how.duration or left) * float(video.fps)) or None
        with bar(total) as advance:
            result = pipeline.encode_clip(video, model, advance, stopped, watch)
    if how.strict and video.damage:
        raise VqtokError(f"{name}: {', '.join(video.damage)} (without --strict it goes on)")
    return result, video.notes, video.decoder


def _decode(
    content: Tokens,
    target: Path | BinaryIO,
    model: Tokenizer,
    how: DecodeOptions,
    bar: Bar,
    watch: Stopwatch,
) -> list[str]:
    """Write the video of tokens; what a person should hear about it."""
    with bar(content.frames) as advance:
        return pipeline.decode_clip(
            content, model, target, advance, how.codec, how.crf, how.audio_from, watch
        )


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
