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
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqtok.codebook_stats.usage import codebook_use
from vqtok.commands.batch import plan_jobs, split_existing
from vqtok.commands.progress import ProgressBars
from vqtok.commands.run_options import RunOptions
from vqtok.errors import UsageError, VqtokError
from vqtok.files import MEDIA_SUFFIXES, list_files
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import EvalResult, Pair, measure
from vqtok.video import Clip, VideoWriter, open_video

Scores = list[tuple[str, EvalResult]]  # of clips, by name
# key: (heading, format)
COLUMNS = {
    "frames": ("frames", "{:.0f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "blocks_psnr": ("of blocks", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "blocks_ssim": ("of blocks", "{:.3f}"),
    "bits_per_pixel": ("bits/pixel", "{:.4f}"),
    "usage": ("usage", "{:.1%}"),
    "encode_fps": ("encode", "{:.1f}"),
    "decode_fps": ("decode", "{:.1f}"),
}


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
    clips = plan_clips(sources, save, run.force)
    [tokenizer] = run.load_tokenizers()
    scores: Scores = []
    failures: list[str] = []
    with ProgressBars(run.quiet) as bars, bars.task("measuring", len(clips)) as task:
        for clip in clips:
            try:
                scores.append((clip.name, _measure(clip, tokenizer, size, frames)))
            except (VqtokError, OSError) as error:
                failures.append(str(error))
            task.advance()
    if scores and as_json:
        print(json.dumps(numbers(scores), indent=2))
    elif scores:
        width = None if sys.stdout.isatty() else 200
        Console(width=width).print(table(numbers(scores)))
    if failures:
        reasons = "; ".join(failures)
        raise VqtokError(f"{len(failures)} of {len(clips)} clips could not be measured: {reasons}")


def plan_clips(sources: Sequence[str], save: Path | None, force: bool) -> list[EvalClip]:
    """Return each clip once, named by its path in its source folder, or in full if not unique.

    Raises UsageError if there is no clip, or if a target exists, or two are the same.
    """
    files = list_files(sources, MEDIA_SUFFIXES)
    clips = {path.resolve(): (str(path.relative_to(root)), path) for root, path in files}
    if not clips:
        raise UsageError(f"no clips in {', '.join(sources)}")
    targets = {} if save is None else _plan_targets(sources, save, force)
    names = Counter(name for name, _ in clips.values())
    return [
        EvalClip(name if names[name] == 1 else str(path), path, targets.get(resolved))
        for resolved, (name, path) in clips.items()
    ]


def _plan_targets(sources: Sequence[str], save: Path, force: bool) -> dict[Path, Path]:
    """Return the file of each clip's comparison, by the clip's resolved path."""
    jobs = plan_jobs(sources, save, MEDIA_SUFFIXES, "{}.mp4".format)
    _, existing = split_existing(jobs)
    if existing and not force:
        raise UsageError(f"{existing[0]} exists: --force overwrites it")
    return {job.source.resolve(): job.target for job in jobs}


def _measure(clip: EvalClip, tokenizer: Tokenizer, size: int | None, frames: int) -> EvalResult:
    with open_video(clip.source, size=size) as video:
        pixels, timestamps = next(video.chunks(frames))  # (t h w c)
    batch = torch.from_numpy(pixels).movedim(-1, 0)[None]
    if clip.target is None:
        return measure(batch, tokenizer)
    with _comparison_writer(clip.target, video) as writer:
        start = 0

        def write(pair: Pair) -> None:
            nonlocal start
            joined = np.concatenate(pair, axis=2)
            writer.write(joined, timestamps[start : start + len(joined)])
            start += len(joined)

        return measure(batch, tokenizer, write)


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


def numbers(scores: Scores) -> dict[str, Any]:
    """Plain figures: `clips`, and `mean`, in which the usage is that of all tokens together."""
    clips = [{"clip": name} | _figures(quality) for name, quality in scores]
    means = {key: float(np.mean([c[key] for c in clips])) for key in clips[0] if key != "clip"}
    together = sum(quality.counts for _, quality in scores)
    return {"clips": clips, "mean": means | codebook_use(together).brief()}


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
    } | codebook_use(quality.counts).brief()


def table(figures: dict[str, Any]) -> Table:
    """What `numbers` gives, for people, and for a page in Markdown."""
    table = Table(box=box.MARKDOWN)
    table.add_column("clip")
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right")
    mean = {"clip": f"mean of {len(figures['clips'])}"} | figures["mean"]
    for row in [*figures["clips"], mean]:
        cells = [form.format(row[key]) for key, (_, form) in COLUMNS.items()]
        table.add_row(Text(row["clip"]), *cells)
    return table
