"""Validation: the tokenizer that would be shipped, on clips that training never sees."""

from pathlib import Path

import numpy as np
import torch

from vqtok.codebook_stats.usage import codebook_use
from vqtok.config import TrainSettings
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import EvalResult, FramePair, evaluate_clip, write_comparison_image
from vqtok.training.data import Clips, Procedural

FRAMES = 33  # of each clip, its first
SHOWN = 4  # clips in the picture


def validate(
    tokenizer: Tokenizer, clips: Clips | Procedural, settings: TrainSettings, picture: Path
) -> dict[str, float]:
    """Return the metrics of all clips held out, named val_*; empty if there are none.

    Writes `picture`, with frames of some of them above what came back.
    """
    found: list[EvalResult] = []
    pairs: list[FramePair] = []

    def see(pair: FramePair) -> None:
        pairs[len(found) :] = [pair]  # the last frames of the clip

    reduced = settings.dtype == "bfloat16"
    with torch.autocast(tokenizer.device.type, torch.bfloat16, enabled=reduced):
        for video in clips.held_out(FRAMES):
            callback = see if len(found) < SHOWN else lambda _: None
            found.append(evaluate_clip(video, tokenizer, callback))
    if not found:
        return {}
    picture.parent.mkdir(exist_ok=True)
    write_comparison_image(picture, pairs)
    means = {
        "psnr": float(np.mean([quality.tokenizer.psnr for quality in found])),
        "ssim": float(np.mean([quality.tokenizer.ssim for quality in found])),
    }
    use = codebook_use(sum(quality.counts for quality in found))
    return {f"val_{name}": value for name, value in (means | use.summary()).items()}
