"""`vqtok eval`: quality of a tokenizer on clips, and videos of clip and reconstruction."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vqtok.codebook_stats.usage import codebook_use
from vqtok.commands.batch import plan_jobs, split_existing
from vqtok.commands.progress import ProgressBars
from vqtok.commands.run_options import RunOptions
from vqtok.corpus.sources import list_clips
from vqtok.encoding import Rate
from vqtok.errors import (
    INTERRUPTS,
    UsageError,
    VqtokError,
    describe_failure,
    is_device_failure,
    join_reasons,
)
from vqtok.files import FileList, printable, real_path
from vqtok.model.rate import check_rate
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import EvalResult, FramePair, RatePoint, evaluate_clip
from vqtok.report import curve_table, evaluation_table
from vqtok.targets import check_overwrite, check_targets, tokenizer_file
from vqtok.video import Clip, VideoWriter, open_video

Results = list[tuple[str, EvalResult]]  # (name of the clip, result)


@dataclass(frozen=True)
class EvalClip:
    """A clip to measure: its name in the table, its file, and where to save the comparison."""

    name: str
    source: Path
    target: Path | None


@dataclass(frozen=True)
class EvalOptions:
    """What to measure.

    size: scale the short side to this many pixels.
    frames: of each clip, from its start.
    rates: measure these too, besides the tokenizer's full rate.
    """

    size: int | None
    frames: int
    rates: Sequence[Rate] = ()


def evaluate(
    sources: Sequence[str],
    save: Path | None,
    options: EvalOptions,
    as_json: bool,
    run: RunOptions,
) -> None:
    """Measure the first frames of each clip, and print tables or JSON.

    sources: videos and images, folders and patterns of them, or corpora, which stand for the clips
        that they were made from.
    save: folder for videos with a clip on the left and its reconstruction on the right.
    Raises UsageError for rates if the tokenizer has no zero code, VqtokError at the end if any clip
    could not be measured.
    """
    found = list_clips(sources)
    run.say(*found.notes)
    clips = plan_clips(found, save, run)
    check_targets([sys.stdout], [*(clip.source for clip in clips), tokenizer_file(run.tokenizer)])
    tokenizer = run.load_tokenizer()
    for rate in options.rates:
        check_rate(tokenizer, rate)
    results: Results = []
    failures: list[str] = []
    with ProgressBars(run.quiet) as bars, bars.task("measuring", len(clips)) as task:
        for clip in clips:
            try:
                results.append((clip.name, _measure(clip, tokenizer, options)))
            except INTERRUPTS:
                raise
            except BaseException as error:
                failures.append(describe_failure(error, clip.source))
                if is_device_failure(error):  # every later clip would fail
                    break
            task.advance()
    if results:
        _show(summarize(results), as_json)
    if failures:
        reasons = join_reasons(failures, len(failures))
        raise VqtokError(f"{len(failures)} of {len(clips)} clips could not be measured: {reasons}")


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(evaluation_table(figures))
    if "rates" in figures:
        console.print(curve_table(figures))


def plan_clips(found: FileList, save: Path | None, run: RunOptions) -> list[EvalClip]:
    """Return each clip once, named by its path in its source folder, or in full if not unique.

    Raises UsageError if there is no clip, or if a target exists, or two are the same, or one is
    a file to read.
    """
    clips = {real_path(path): (str(path.relative_to(root)), path) for root, path in found.files}
    if not clips:
        raise UsageError(f"no clips in {', '.join(map(str, found.sources))}")
    targets = {} if save is None else _plan_targets(found, save, run)
    names = Counter(name for name, _ in clips.values())
    return [
        EvalClip(printable(name if names[name] == 1 else path), path, targets.get(resolved))
        for resolved, (name, path) in clips.items()
    ]


def _plan_targets(found: FileList, save: Path, run: RunOptions) -> dict[Path, Path]:
    """Return the file of each clip's comparison, by the clip's resolved path."""
    jobs = plan_jobs(found, save, "{}.mp4".format, run.tokenizer)
    _, existing = split_existing(jobs)
    if existing:
        check_overwrite(existing[0].target, run.force)
    return {real_path(job.source): job.target for job in jobs}


def _measure(clip: EvalClip, tokenizer: Tokenizer, options: EvalOptions) -> EvalResult:
    with open_video(clip.source, size=options.size) as video:
        pixels, timestamps = next(video.chunks(options.frames))  # (t h w c)
    batch = torch.from_numpy(pixels).movedim(-1, 0)[None]
    if clip.target is None:
        return evaluate_clip(batch, tokenizer, rates=options.rates)
    with _comparison_writer(clip.target, video) as writer:
        start = 0

        def write(pair: FramePair) -> None:
            nonlocal start
            joined = np.concatenate(pair, axis=2)
            writer.write(joined, timestamps[start : start + len(joined)])
            start += len(joined)

        return evaluate_clip(batch, tokenizer, write, options.rates)


def _comparison_writer(target: Path, clip: Clip) -> VideoWriter:
    """Return the writer of a video that is twice as wide as the clip."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return VideoWriter(
        target,
        height=clip.height,
        width=2 * clip.width,
        fps=clip.fps,
        time_base=clip.time_base,
        origin=clip.origin,
        pixel_aspect=clip.pixel_aspect,
    )


def summarize(results: Results) -> dict[str, Any]:
    """Return the metrics of each clip and their means; mean usage is that of all tokens.

    If rates were measured, each clip has a list of them, and `rates` are the means over clips.
    """
    clips = [{"clip": name} | _metrics(result) for name, result in results]
    counts = np.sum([result.counts for _, result in results], axis=0)
    figures = {"clips": clips, "mean": _mean(clips) | codebook_use(counts).summary()}
    if "rates" in clips[0]:
        points = zip(*(clip["rates"] for clip in clips), strict=True)
        figures["rates"] = [{"rate": point[0]["rate"]} | _mean(point) for point in points]
    return figures


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the means of what are numbers."""
    keys = [key for key, value in rows[0].items() if isinstance(value, int | float)]
    return {key: float(np.mean([row[key] for row in rows])) for key in keys}


def _metrics(result: EvalResult) -> dict[str, Any]:
    metrics = {
        "frames": result.frames,
        "height": result.height,
        "width": result.width,
        **_point_metrics(result.full),
        "unquantized_psnr": result.unquantized.psnr,
        "unquantized_ssim": result.unquantized.ssim,
        "blocks_psnr": result.baseline.psnr,
        "blocks_ssim": result.baseline.ssim,
        "encode_fps": result.encode_fps,
        "decode_fps": result.decode_fps,
    } | codebook_use(result.counts).summary()
    if not result.curve:
        return metrics
    rates = [{"rate": str(point.rate)} | _point_metrics(point) for point in result.curve]
    return metrics | {"rates": rates}


def _point_metrics(point: RatePoint) -> dict[str, float]:
    return {
        "tokens_per_position": point.tokens_per_position,
        "psnr": point.reconstruction.psnr,
        "ssim": point.reconstruction.ssim,
        "bits_per_pixel": point.bits_per_pixel,
    }
