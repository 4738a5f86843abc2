"""Validation of the averaged weights on clips that are not trained on."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from vqtok.codebook_stats.usage import codebook_use
from vqtok.encoding import Rate
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import EvalResult, FramePair, evaluate_clip, write_comparison_image
from vqtok.settings import TrainSettings
from vqtok.training.clips import TrainingClips

FRAMES = 33  # of each clip, from its start
IMAGE_CLIPS = 4  # clips in the sample image
ONE_TOKEN = Rate(tokens=1.0)  # per position, for tokenizers that can spend fewer
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
    rates = [ONE_TOKEN] if tokenizer.zero_code else []
    for video in clips.validation_clips(FRAMES):
        results.append(evaluate_clip(video, tokenizer, keep_sample, rates))
    if not results:
        return {}
    image_path.parent.mkdir(exist_ok=True)
    write_comparison_image(image_path, list(samples.values()))
    usage = codebook_use(np.sum([result.counts for result in results], axis=0))
    metrics = _mean_metrics(results) | usage.summary()
    return {f"val_{name}": value for name, value in metrics.items()}


def _mean_metrics(results: list[EvalResult]) -> dict[str, float]:
    metrics = {
        "psnr": [r.full.reconstruction.psnr for r in results],
        "ssim": [r.full.reconstruction.ssim for r in results],
        "unquantized_psnr": [r.unquantized.psnr for r in results],
    }
    if results[0].curve:
        metrics["tokens_per_position"] = [r.full.tokens_per_position for r in results]
        metrics["psnr_1_token"] = [r.curve[0].reconstruction.psnr for r in results]
    return {name: float(np.mean(values)) for name, values in metrics.items()}


def compare_with_blocks(tokenizer: Tokenizer, clips: TrainingClips) -> str | None:
    """Return a warning if reconstructions of a few clips are worse than block averages."""
    results = [evaluate_clip(video, tokenizer) for video in clips.sample_clips(FRAMES)]
    if not results:
        return None
    pairs = [(result.full.reconstruction.psnr, result.baseline.psnr) for result in results]
    psnr, blocks = np.minimum(pairs, MAX_PSNR).mean(0)
    if psnr >= blocks:
        return None
    return (
        f"reconstructions are worse than block averages ({psnr:.2f} dB against {blocks:.2f} dB): "
        "train for more steps, on more clips, or with another quantizer"
    )
