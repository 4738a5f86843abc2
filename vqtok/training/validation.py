"""Validation of the averaged weights on clips that are not trained on."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from vqtok.codebook_stats.usage import codebook_use
from vqtok.config import TrainSettings
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import EvalResult, FramePair, evaluate_clip, write_comparison_image
from vqtok.training.data import TrainingClips

FRAMES = 33  # of each clip, from its start
IMAGE_CLIPS = 4  # clips in the sample image
MAX_PSNR = 45.0  # dB; differences beyond are not seen


def validate(
    tokenizer: Tokenizer, clips: TrainingClips, settings: TrainSettings, image_path: Path
) -> dict[str, float]:
    """Return the metrics of the validation clips, named val_*; empty if there are no such clips.

    image_path: where to write an image of some of them, above their reconstructions.
    """
    results: list[EvalResult] = []
    samples: dict[int, FramePair] = {}  # by clip: its last frames

    def keep_sample(pair: FramePair) -> None:
        if len(results) < IMAGE_CLIPS:
            samples[len(results)] = pair

    if settings.dtype == "bfloat16":
        tokenizer = deepcopy(tokenizer).cast(torch.bfloat16)
    for video in clips.validation_clips(FRAMES):
        results.append(evaluate_clip(video, tokenizer, keep_sample))
    if not results:
        return {}
    image_path.parent.mkdir(exist_ok=True)
    write_comparison_image(image_path, list(samples.values()))
    fidelity = [result.reconstruction for result in results]
    usage = codebook_use(np.sum([result.counts for result in results], axis=0))
    metrics = {
        "psnr": float(np.mean([f.psnr for f in fidelity])),
        "ssim": float(np.mean([f.ssim for f in fidelity])),
    }
    return {f"val_{name}": value for name, value in (metrics | usage.summary()).items()}


def compare_with_blocks(tokenizer: Tokenizer, clips: TrainingClips) -> str | None:
    """Return a warning if reconstructions of a few clips are worse than block averages."""
    results = [evaluate_clip(video, tokenizer) for video in clips.sample_clips(FRAMES)]
    if not results:
        return None
    pairs = [(result.reconstruction.psnr, result.baseline.psnr) for result in results]
    psnr, blocks = np.minimum(pairs, MAX_PSNR).mean(0)
    if psnr >= blocks:
        return None
    return (
        f"reconstructions are worse than block averages ({psnr:.2f} dB against {blocks:.2f} dB): "
        "train for more steps, on more clips, or with another quantizer"
    )
