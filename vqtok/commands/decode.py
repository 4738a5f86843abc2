"""`vqtok decode`: tokens to videos."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vqtok.commands.batch import Job, plan_jobs, run_batch, split_existing
from vqtok.commands.journal import Journal
from vqtok.commands.progress import ProgressBars, ProgressTask
from vqtok.commands.run_options import RunOptions
from vqtok.corpus.sources import find_packed, list_token_files
from vqtok.files import OUTPUT_SUFFIXES
from vqtok.model.tokenizer import Tokenizer
from vqtok.pipeline.clip import decode_clip
from vqtok.pipeline.stopwatch import Stopwatch
from vqtok.tokens import Tokens, read_tokens


@dataclass(frozen=True)
class DecodeOptions:
    """How to write a video; as in `VideoWriter`."""

    codec: str | None = None
    crf: int | None = None
    audio_from: Path | None = None


def decode(
    sources: Sequence[str],
    output: str,
    folder: Path | None,
    options: DecodeOptions,
    run: RunOptions,
) -> None:
    """Decode one source to `output`, or, if there is a `folder`, many into it.

    sources: token files, folders and patterns of them, or corpora; - is stdin.
    output: a video file; - is a Matroska stream on stdout.
    """
    if folder is None:
        _decode_one(sources[0], output, options, run)
    else:
        _decode_many(sources, folder, options, run)


def _decode_one(source: str, output: str, options: DecodeOptions, run: RunOptions) -> None:
    tokens = _read(source)
    tokenizer = run.load_tokenizer()
    stopwatch = Stopwatch()
    target = sys.stdout.buffer if output == "-" else Path(output)
    with ProgressBars(run.quiet) as bars, bars.task("decoding") as task:
        notes = _decode(tokens, source, target, tokenizer, options, task, stopwatch)
    run.say(
        *notes,
        f"{output}: {tokens.frames} frames of {tokens.height}x{tokens.width} at "
        f"{float(tokens.fps):.6g} frames/s, decoded at "
        f"{tokens.frames / stopwatch.elapsed():.1f} frames/s",
    )
    run.say_verbose(f"{output}: {stopwatch.shares('writing')}")


def _read(source: str) -> Tokens:
    if source == "-":
        return read_tokens(sys.stdin.buffer)
    packed = find_packed(source)
    return read_tokens(source) if packed is None else packed.read()


def _decode_many(
    sources: Sequence[str], folder: Path, options: DecodeOptions, run: RunOptions
) -> None:
    """Decode the token files that have no video in the folder yet, or all with --force."""
    files = list_token_files(sources)
    run.say(*files.found.notes)
    journal = Journal(folder, "decoded", {}, force=run.force)
    jobs = plan_jobs(files.found, folder, video_name, run.tokenizer, journal)
    if not run.force:
        jobs, _ = split_existing(jobs)

    def work(job: Job, tokenizer: Tokenizer, task: ProgressTask) -> list[str]:
        source, stopwatch = str(job.source), Stopwatch()
        tokens = files.read(job.source)
        notes = _decode(tokens, source, job.target, tokenizer, options, task, stopwatch)
        return [*notes, stopwatch.shares("writing")] if run.verbose else notes

    run_batch("decoding", jobs, journal, run, work)


def _decode(
    tokens: Tokens,
    source: str,
    target: Path | BinaryIO,
    tokenizer: Tokenizer,
    options: DecodeOptions,
    task: ProgressTask,
    stopwatch: Stopwatch,
) -> list[str]:
    """Decode the tokens of `source` to `target` and return the notes to print."""
    task.set_total(tokens.frames)
    return decode_clip(
        tokens,
        tokenizer,
        target,
        name=source,
        codec=options.codec,
        crf=options.crf,
        audio_from=options.audio_from,
        on_progress=task.advance,
        stopwatch=stopwatch,
    )


def video_name(name: str) -> str:
    """Return the name of a decoded file: clip.mp4.safetensors becomes clip.mp4, a becomes a.mp4."""
    name = name.removesuffix(".safetensors")
    return name if Path(name).suffix.lower() in OUTPUT_SUFFIXES else f"{name}.mp4"
