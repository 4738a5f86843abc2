"""Compare quantizers, and ways to avoid dead codes, at the same number of training steps.

    python scripts/bench_training.py CLIPS... [--steps 400] [--only vq2] [--set key=value]

All variants see the same clips in the same order. Every eighth file is held out and evaluated at
the end. Prints, for 4,096 codes: PSNR and codebook usage of these clips, and the time per step.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import typer

from vqtok import config
from vqtok.codebook_stats.usage import codebook_use
from vqtok.model.tokenizer import Tokenizer
from vqtok.precision import set_global_flags
from vqtok.quality import psnr
from vqtok.settings import Config
from vqtok.training.data import VideoClips, find_media
from vqtok.training.step import train_step
from vqtok.training.train_state import TrainState
from vqtok.video import open_video

VARIANTS = {
    "vq2": [],
    "vq2, random init": ["init_from_data=false"],
    "vq2, no revival": ["revive_after=0"],
    "vq2, neither": ["init_from_data=false", "revive_after=0"],
    "ema": [],
    "ema, neither": ["init_from_data=false", "revive_after=0"],
    "gumbel": ["codebook_size=4096"],
    "gumbel, random init": ["codebook_size=4096", "init_from_data=false"],
    "lfq": ["codebook_size=4096"],
    "fsq": ["levels=[8,8,8,8]"],
}
FRAMES, SIZE = 17, 128  # of each held-out clip


def read_clips(paths: list[Path], device: torch.device) -> list[torch.Tensor]:
    """Return the first frames of each file, (1 3 t h w) uint8."""
    clips = []
    for path in paths:
        with open_video(path, size=SIZE) as clip:
            frames, _ = next(clip.chunks(FRAMES))
        clips.append(torch.from_numpy(frames).movedim(-1, 0)[None].to(device))
    return clips


def train(settings: Config, clips: VideoClips, device: torch.device) -> tuple[Tokenizer, float]:
    """Return a tokenizer trained for `train.steps`, and the median seconds per step."""
    options = settings.train
    state = TrainState.new(settings, device)
    init_steps = range(math.ceil(options.init_clips / options.batch_size))
    state.init_from_data(torch.cat([clips.batch(step) for step in init_steps]))
    seconds = []
    for step in range(options.steps):
        video = clips.batch(step).to(device)
        start = time.perf_counter()
        metrics, _ = train_step(state, video, options)
        loss = metrics["loss"].item()
        seconds.append(time.perf_counter() - start)
        if step % 50 == 0:
            print(f"  step {step}: loss {loss:.4f}", file=sys.stderr, flush=True)
    return state.tokenizer.eval(), float(np.median(seconds))


def evaluate(tokenizer: Tokenizer, clips: list[torch.Tensor]) -> tuple[float, np.ndarray]:
    """Return the mean PSNR of some clips, and how often each code is used (k)."""
    values, counts = [], np.zeros(tokenizer.codebook_size, np.int64)
    for video in clips:
        indices = tokenizer.encode(video)
        decoded = tokenizer.decode(indices, *video.shape[2:])
        values.append(psnr(video / 255, decoded).item())
        counts += np.bincount(indices.flatten().cpu(), minlength=len(counts))
    return float(np.mean(values)), counts


def main(
    clips: list[Path],
    steps: int = 400,
    only: str = "",
    device: str = "cpu",
    set_: list[str] = typer.Option([], "--set"),  # noqa: B008
) -> None:
    set_global_flags()
    paths, overrides = find_media(clips), [f"train.steps={steps}", *set_]
    validation_clips = read_clips(paths[::8], torch.device(device))
    common = config.load(config.folder() / "fsq.toml", overrides).train
    training_clips = VideoClips([path for i, path in enumerate(paths) if i % 8], common)
    print("| quantizer | PSNR | usage | by chance | perplexity | ms per step |")
    print("|---|---|---|---|---|---|")
    for name, options in VARIANTS.items():
        if not name.startswith(only):
            continue
        print(name, file=sys.stderr)
        file = config.folder() / f"{name.split(',')[0]}.toml"
        settings = config.load(file, [*(f"quantizer.{o}" for o in options), *overrides])
        tokenizer, seconds = train(settings, training_clips, torch.device(device))
        mean_psnr, counts = evaluate(tokenizer, validation_clips)
        use = codebook_use(counts)
        row = [name, f"{mean_psnr:.2f} dB", f"{use.usage:.1%}", f"{use.usage_by_chance:.1%}"]
        row += [f"{use.perplexity:,.0f}", f"{seconds * 1e3:.0f}"]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
