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
from vqtok.errors import UsageError, VqtokError, describe_failure
from vqtok.files import MEDIA_SUFFIXES, FileList, check_overwrite, list_files, printable
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import EvalResult, FramePair, evaluate_clip
from vqtok.report import evaluation_table
from vqtok.video import Clip, VideoWriter, open_video

Results = list[tuple[str, EvalResult]]  # (name of the clip, result)


@dataclass(frozen=True)
class EvalClip:
    """A clip to measure: its name in the table, its file, and where to save the comparison."""

    name: str
    source: Path
    target: Path | None


def evaluate(
    sources: Sequence[str],
    save: Path | None,
    size: int | None,
    frames: int,
    as_json: bool,
    run: RunOptions,
) -> None:
    """Measure the first `frames` frames of each clip, and print a table or JSON.

    sources: videos and images, or folders and patterns of them.
    save: folder for videos with a clip on the left and its reconstruction on the right.
    size: scale the short side to this many pixels.
    Raises VqtokError at the end if any clip could not be measured.
    """
    found = list_files(sources, MEDIA_SUFFIXES)
    run.say(*found.notes)
    clips = plan_clips(found, save, run.force)
    tokenizer = run.load_tokenizer()
    results: Results = []
    failures: list[str] = []
    with ProgressBars(run.quiet) as bars, bars.task("measuring", len(clips)) as task:
        for clip in clips:
            try:
                results.append((clip.name, _measure(clip, tokenizer, size, frames)))
            except Exception as error:
                failures.append(describe_failure(error, clip.source))
            task.advance()
    if results and as_json:
        print(json.dumps(summarize(results), indent=2))
    elif results:
        width = None if sys.stdout.isatty() else 200
        Console(width=width).print(evaluation_table(summarize(results)))
    if failures:
        reasons = "; ".join(failures)
        raise VqtokError(f"{len(failures)} of {len(clips)} clips could not be measured: {reasons}")


def plan_clips(found: FileList, save: Path | None, force: bool) -> list[EvalClip]:
    """Return each clip once, named by its path in its source folder, or in full if not unique.

    Raises UsageError if there is no clip, or if a target exists, or two are the same.
    """
    clips = {path.resolve(): (str(path.relative_to(root)), path) for root, path in found.files}
    if not clips:
        raise UsageError(f"no clips in {', '.join(map(str, found.sources))}")
    targets = {} if save is None else _plan_targets(found, save, force)
    names = Counter(name for name, _ in clips.values())
    return [
        EvalClip(printable(name if names[name] == 1 else path), path, targets.get(resolved))
        for resolved, (name, path) in clips.items()
    ]


def _plan_targets(found: FileList, save: Path, force: bool) -> dict[Path, Path]:
    """Return the file of each clip's comparison, by the clip's resolved path."""
    jobs = plan_jobs(found, save, "{}.mp4".format)
    _, existing = split_existing(jobs)
    if existing:
        check_overwrite(existing[0], force)
    return {job.source.resolve(): job.target for job in jobs}


def _measure(clip: EvalClip, tokenizer: Tokenizer, size: int | None, frames: int) -> EvalResult:
    with open_video(clip.source, size=size) as video:
        pixels, timestamps = next(video.chunks(frames))  # (t h w c)
    batch = torch.from_numpy(pixels).movedim(-1, 0)[None]
    if clip.target is None:
        return evaluate_clip(batch, tokenizer)
    with _comparison_writer(clip.target, video) as writer:
        start = 0

        def write(pair: FramePair) -> None:
            nonlocal start
            joined = np.concatenate(pair, axis=2)
            writer.write(joined, timestamps[start : start + len(joined)])
            start += len(joined)

        return evaluate_clip(batch, tokenizer, write)


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
    """Return the metrics of each clip and their means; mean usage is that of all tokens."""
    clips = [{"clip": name} | _metrics(result) for name, result in results]
    means = {key: float(np.mean([c[key] for c in clips])) for key in clips[0] if key != "clip"}
    counts = np.sum([result.counts for _, result in results], axis=0)
    return {"clips": clips, "mean": means | codebook_use(counts).summary()}


def _metrics(result: EvalResult) -> dict[str, float]:
    return {
        "frames": result.frames,
        "height": result.height,
        "width": result.width,
        "psnr": result.reconstruction.psnr,
        "ssim": result.reconstruction.ssim,
        "blocks_psnr": result.baseline.psnr,
        "blocks_ssim": result.baseline.ssim,
        "bits_per_pixel": result.bits_per_pixel,
        "encode_fps": result.encode_fps,
        "decode_fps": result.decode_fps,
    } | codebook_use(result.counts).summary()
