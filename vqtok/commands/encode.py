"""`vqtok encode`: videos to tokens."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from vqtok.codebook_stats.usage import bits_per_pixel
from vqtok.commands.batch import Job, plan_jobs, run_batch, split_existing
from vqtok.commands.journal import Journal
from vqtok.commands.progress import ProgressBars, ProgressTask
from vqtok.commands.run_options import RunOptions
from vqtok.corpus.settings import is_corpus
from vqtok.encoding import EncodeOptions
from vqtok.errors import UsageError, VqtokError
from vqtok.files import MEDIA_SUFFIXES, list_files
from vqtok.interrupt import Interrupted, defer_interrupt
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.source import encode_source, resolve_options
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.tokens import Tokens, count_tokens, read_settings, write_tokens


def encode(
    sources: Sequence[str],
    output: str | None,
    folder: Path | None,
    options: EncodeOptions,
    run: RunOptions,
    keep_partial: bool,
    part: tuple[int, int],
) -> None:
    """Encode one source to `output`, or, if there is a `folder`, many into it.

    sources: videos, or folders and patterns of them; - is stdin.
    output: a token file; None or - is stdout.
    keep_partial: on Ctrl-C, write the tokens so far. For a single clip.
    part: (k, n): do the k-th of n parts of many clips.
    """
    if folder is None:
        _encode_one(sources[0], output, options, run, keep_partial)
    else:
        _encode_many(sources, folder, options, run, part)


def _encode_one(
    source: str, output: str | None, options: EncodeOptions, run: RunOptions, keep_partial: bool
) -> None:
    tokenizer = run.load_tokenizer()
    options = resolve_options(options, tokenizer)
    stopwatch = Stopwatch()
    target = sys.stdout.buffer if output is None or output == "-" else output
    with (
        defer_interrupt() if keep_partial else nullcontext(lambda: None) as interrupted,
        ProgressBars(run.quiet) as bars,
        bars.task("encoding") as task,
    ):
        report = task.advance, task.set_total
        tokens, clip = encode_source(source, tokenizer, options, *report, stopwatch, interrupted)
        with stopwatch.time("writing"):
            write_tokens(target, tokens)
    run.say(*clip.notes, f"{source}: {_summary(tokens, stopwatch.elapsed())}")
    run.say_verbose(f"{source}: {clip.decoder}; {stopwatch.shares('model')}")
    if number := interrupted():
        raise Interrupted(number)


def _encode_many(
    sources: Sequence[str],
    folder: Path,
    options: EncodeOptions,
    run: RunOptions,
    part: tuple[int, int],
) -> None:
    """Encode the clips that have no token file in the folder yet, or all with --force."""
    if is_corpus(folder):
        raise UsageError(f"{folder} is a packed corpus: add --pack, or choose another folder")
    found = list_files(sources, MEDIA_SUFFIXES)
    run.say(*found.notes)
    outline = checkpoint.load_outline(run.tokenizer)
    options = resolve_options(options, outline)
    settings = {
        "model": outline.fingerprint,
        "rate": str(options.rate),
        "size": options.size,
        "fps": None if options.fps is None else str(options.fps),
        "keyframe_interval": options.keyframe_interval,
    }
    journal = Journal(folder, "encoded", settings, part, run.force)
    jobs = plan_jobs(found, folder, "{}.safetensors".format, run.tokenizer, journal)
    damaged: dict[Job, VqtokError] = {}
    if not run.force:
        jobs, existing = split_existing(jobs)
        damaged = check_same_settings(existing, outline, options)

    def work(job: Job, tokenizer: Tokenizer, task: ProgressTask) -> list[str]:
        if job in damaged:
            raise damaged[job]
        stopwatch = Stopwatch()
        report = task.advance, task.set_total
        tokens, clip = encode_source(str(job.source), tokenizer, options, *report, stopwatch)
        with stopwatch.time("writing"):
            write_tokens(job.target, tokens)
        timing = f"{clip.decoder}; {stopwatch.shares('model')}"
        return [*clip.notes, timing] if run.verbose else clip.notes

    jobs = [*damaged, *jobs]
    run_batch("encoding", jobs, journal, run, work)


def check_same_settings(
    jobs: Sequence[Job], tokenizer: Tokenizer, options: EncodeOptions
) -> dict[Job, VqtokError]:
    """Raise UsageError if a target was made with another tokenizer or other options.

    Only settings that leave a trace in the file are compared; size and fps only if they are given.
    Return the jobs whose targets are damaged, with the reason.

    options: from `resolve_options`.
    """
    damaged: dict[Job, VqtokError] = {}
    asked = tokenizer.fingerprint, str(options.rate), options.keyframe_interval
    for job in jobs:
        try:
            tokens = read_settings(job.target)
        except VqtokError as error:
            damaged[job] = VqtokError(f"delete {job.target} first: {error}")
            continue
        interval = tokens.keyframe_interval or tokenizer.keyframe_interval
        same = (tokens.model, tokens.rate, interval) == asked
        same &= options.size in (None, min(tokens.height, tokens.width))
        same &= options.fps in (None, tokens.fps)
        if not same:
            raise UsageError(
                f"{job.target} exists and was made with another tokenizer, rate (--lambda, "
                "--tokens or --psnr), --keyframe-interval, --size or --fps: choose another folder, "
                "or use --force to encode all clips again"
            )
    return damaged


def _summary(tokens: Tokens, seconds: float) -> str:
    shape = "x".join(map(str, tokens.indices.shape))
    size = f"{shape} tokens of {tokens.codebook_size:,}"
    if tokens.zero_code:
        size = f"{shape} indices of {tokens.codebook_size:,}, "
        size += f"{tokens.tokens_per_position:.3f} tokens per position"
    pixels = tokens.frames * tokens.height * tokens.width
    bits = bits_per_pixel(count_tokens(tokens), tokens.codebook_size, pixels)
    return (
        f"{tokens.frames} frames of {tokens.height}x{tokens.width} at "
        f"{float(tokens.fps):.6g} frames/s -> {size}, {bits:.4f} bits per pixel, encoded at "
        f"{tokens.frames / seconds:.1f} frames/s"
    )
