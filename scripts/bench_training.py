"""Training health: each quantizer, and each way to keep its codebook alive, on one equal budget.

    python scripts/bench_training.py CLIPS... [--steps 400] [--only vq2] [--set key=value]

All variants see the same clips in the same order; every eighth file is held out and measured at the
end. Prints, for 4,096 codes: PSNR and codebook use on the held-out clips, and the time of a step.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import typer

from vqtok import config
from vqtok.codebook_stats.usage import codebook_use
from vqtok.config import Config
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import psnr
from vqtok.training.data import Clips, find_media
from vqtok.training.state import State
from vqtok.training.step import train_step
from vqtok.video import open_video

VARIANTS = {
    "vq2": [],
    "vq2, no data start": ["init_from_data=false"],
    "vq2, no revival": ["revive_after=0"],
    "vq2, neither": ["init_from_data=false", "revive_after=0"],
    "ema": [],
    "ema, neither": ["init_from_data=false", "revive_after=0"],
    "gumbel": ["codebook_size=4096"],
    "gumbel, no data start": ["codebook_size=4096", "init_from_data=false"],
    "lfq": ["codebook_size=4096"],
    "fsq": ["levels=[8,8,8,8]"],
}
FRAMES, SIZE = 17, 128  # of each held-out clip


def held_out(paths: list[Path]) -> list[torch.Tensor]:
    """The beginning of every eighth file, (1 3 t h w) uint8."""
    clips = []
    for path in paths[::8]:
        with open_video(path, size=SIZE) as clip:
            clips.append(torch.from_numpy(next(clip.chunks(FRAMES))[0]).movedim(-1, 0)[None])
    return clips


def train(settings: Config, clips: Clips, device: torch.device) -> tuple[Tokenizer, float]:
    """A tokenizer trained for `train.steps`, and the median seconds of a step."""
    state = State.new(settings, device)
    batches = range(-(-settings.train.init_clips // settings.train.batch_size))
    state.start(torch.cat([clips.batch(i) for i in batches]))
    times = []
    for step in range(settings.train.steps):
        video = clips.batch(step).to(device)
        before = time.perf_counter()
        values, _ = train_step(state, video, settings.train)
        state.stepped(settings.train.ema_decay)
        loss = values["loss"].item()
        times.append(time.perf_counter() - before)
        if step % 50 == 0:
            print(f"  step {step}: loss {loss:.4f}", file=sys.stderr, flush=True)
    return state.tokenizer.eval(), float(np.median(times))


def main(
    clips: list[Path],
    steps: int = 400,
    only: str = "",
    device: str = "cpu",
    set_: list[str] = typer.Option([], "--set"),  # noqa: B008
) -> None:
    torch.set_flush_denormal(True)
    where, paths = torch.device(device), find_media(clips)
    validation = [clip.to(where) for clip in held_out(paths)]
    common = config.load(config.folder() / "fsq.toml", [f"train.steps={steps}", *set_]).train
    training = Clips([path for i, path in enumerate(paths) if i % 8], common)
    print("| quantizer | PSNR | usage | by chance | perplexity | ms per step |")
    print("|---|---|---|---|---|---|")
    for name, options in VARIANTS.items():
        if not name.startswith(only):
            continue
        file = config.folder() / f"{name.split(',')[0]}.toml"
        overrides = [*(f"quantizer.{o}" for o in options), f"train.steps={steps}", *set_]
        settings = config.load(file, overrides)
        print(name, file=sys.stderr)
        tokenizer, seconds = train(settings, training, where)
        quality, counts = [], np.zeros(tokenizer.codebook_size, np.int64)
        for video in validation:
            indices = tokenizer.encode(video)
            decoded = tokenizer.decode(indices, *video.shape[2:])
            quality.append(psnr(video / 255, decoded).item())
            counts += np.bincount(indices.flatten().cpu(), minlength=len(counts))
        use = codebook_use(counts)
        row = [name, f"{np.mean(quality):.2f} dB", f"{use.usage:.1%}", f"{use.usage_by_chance:.1%}"]
        row += [f"{use.perplexity:,.0f}", f"{seconds * 1e3:.0f}"]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
