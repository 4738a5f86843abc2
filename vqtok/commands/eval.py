"""What `eval` does: figures of each clip and their mean, and videos to look at."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vqtok.codebook_stats.usage import codebook_use
from vqtok.commands import batch
from vqtok.commands.progress import progress
from vqtok.errors import UsageError, VqtokError
from vqtok.files import MEDIA_SUFFIXES, list_files
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import EvalResult, FramePair, evaluate_clip
from vqtok.report import evaluation_table
from vqtok.video import Clip, VideoWriter, open_video

Scores = list[tuple[str, EvalResult]]  # of clips, by name


@dataclass(frozen=True)
class Task:
    """A clip to measure, its name in the table, and where it is written beside what came back."""

    name: str
    source: Path
    target: Path | None


def tasks(clips: Sequence[str], save: Path | None, force: bool) -> list[Task]:
    """What is to measure: each clip once, named by its path in the folder given, or by its whole
    path where two would be called the same.

    Raises UsageError when there is none, and where targets in `save` would be one, or are there.
    """
    files = list_files(clips, MEDIA_SUFFIXES)
    found = {path.resolve(): (str(path.relative_to(root)), path) for root, path in files}
    if not found:
        raise UsageError(f"no clips in {', '.join(clips)}")
    targets = {} if save is None else _targets(clips, save, force)
    names = Counter(name for name, _ in found.values())
    return [
        Task(name if names[name] == 1 else str(path), path, targets.get(place))
        for place, (name, path) in found.items()
    ]


def _targets(clips: Sequence[str], save: Path, force: bool) -> dict[Path, Path]:
    """Where each clip is written, by its resolved path."""
    jobs = batch.jobs(clips, save, MEDIA_SUFFIXES, "{}.mp4".format)
    _, there = batch.missing(jobs)
    if there and not force:
        raise UsageError(f"{there[0]} exists: --force overwrites it")
    return {job.source.resolve(): job.target for job in jobs}


def show(
    todo: Sequence[Task],
    tokenizer: Tokenizer,
    size: int | None,
    frames: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """`score`, printed as a table or as JSON. Raises VqtokError at the end if any were left out."""
    found, broken = score(todo, tokenizer, size, frames, quiet)
    if found and as_json:
        print(json.dumps(numbers(found), indent=2))
    elif found:
        wide = {} if sys.stdout.isatty() else {"width": 200}
        Console(**wide).print(evaluation_table(numbers(found)))
    if broken:
        raise VqtokError(f"{len(broken)} of {len(todo)} cannot be measured: {'; '.join(broken)}")


def score(
    todo: Sequence[Task],
    tokenizer: Tokenizer,
    size: int | None,
    frames: int,
    quiet: bool,
) -> tuple[Scores, list[str]]:
    """Measure the first `frames` frames of each clip, and write it beside what came back where it
    has a target; also the reasons of those that cannot be. size: short side to scale to.
    """
    scores: Scores = []
    broken: list[str] = []
    with progress(quiet, "measuring", len(todo)) as advance:
        for task in todo:
            try:
                quality = _one(task.source, tokenizer, size, frames, task.target)
                scores.append((task.name, quality))
            except (VqtokError, OSError) as error:
                broken.append(str(error))
            advance(1)
    return scores, broken


def _one(
    path: Path, tokenizer: Tokenizer, size: int | None, frames: int, target: Path | None
) -> EvalResult:
    with open_video(path, size=size) as clip:
        pixels, times = next(clip.chunks(frames))  # (t h w c)
    video = torch.from_numpy(pixels).movedim(-1, 0)[None]
    with _side_by_side(target, clip) if target else nullcontext() as out:
        done = 0

        def see(pair: FramePair) -> None:
            nonlocal done
            if out is not None:
                joined = np.concatenate(pair, axis=2)
                out.write(joined, times[done : done + len(joined)])
                done += len(joined)

        return evaluate_clip(video, tokenizer, see)


def _side_by_side(target: Path, clip: Clip) -> VideoWriter:
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


def numbers(scores: Scores) -> dict[str, Any]:
    """Plain figures: `clips`, and `mean`, in which the usage is that of all tokens together."""
    clips = [{"clip": name} | _figures(quality) for name, quality in scores]
    means = {key: float(np.mean([c[key] for c in clips])) for key in clips[0] if key != "clip"}
    together = sum(quality.counts for _, quality in scores)
    return {"clips": clips, "mean": means | codebook_use(together).summary()}


def _figures(quality: EvalResult) -> dict[str, float]:
    return {
        "frames": quality.frames,
        "height": quality.height,
        "width": quality.width,
        "psnr": quality.tokenizer.psnr,
        "ssim": quality.tokenizer.ssim,
        "blocks_psnr": quality.blocks.psnr,
        "blocks_ssim": quality.blocks.ssim,
        "bits_per_pixel": quality.bits_per_pixel,
        "encode_fps": quality.encode_fps,
        "decode_fps": quality.decode_fps,
    } | codebook_use(quality.counts).summary()
