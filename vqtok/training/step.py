"""One update of the weights: the optimizer, its learning rate, the loss."""

import math

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from vqtok import ranks
from vqtok.config import TrainSettings
from vqtok.metrics import psnr
from vqtok.quantizers import Quantized
from vqtok.quantizers.base import mean_over_ranks
from vqtok.tokenizer import Tokenizer
from vqtok.training.adversary import Adversary
from vqtok.training.muon import Muon

SEEDS = 1 << 32  # apart: the seeds of two ranks
PERFECT = 1e-4  # a squared error (40 dB) below which a clip need not get better


def make_optimizer(tokenizer: Tokenizer, settings: TrainSettings) -> Optimizer:
    """What moves the weights."""
    learned = [p for p in tokenizer.parameters() if p.requires_grad]
    if settings.optimizer == "muon":
        return Muon(learned, settings.learning_rate, settings.weight_decay)
    return AdamW(learned, betas=(0.9, 0.99), weight_decay=settings.weight_decay)


def total_loss(
    reconstruction: Tensor, target: Tensor, quantized: Quantized, settings: TrainSettings
) -> Tensor:
    """What is made small; both videos are (b 3 t h w), about 0..1."""
    error = reconstruction - target
    l1, l2 = error.abs().mean(), error.square().mean((1, 2, 3, 4))
    return (
        settings.l1_weight * l1
        + settings.l2_weight * l2.mean()
        + settings.log_weight * (l2 + PERFECT).log().mean()
        + quantized.loss
    )


def train_step(
    tokenizer: Tokenizer,
    optimizer: Optimizer,
    video: Tensor,
    settings: TrainSettings,
    step: int,
    adversary: Adversary | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """One update on clips (b c t h w) uint8: what to log, over all ranks, and this rank's indices.

    The clips are worked through in `settings.accumulate` parts; the update is by their mean.
    """
    # A resumed run then draws what the first would have, and every rank something else.
    torch.manual_seed(settings.seed + step + SEEDS * ranks.number())
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings)
    optimizer.zero_grad()
    rival = adversary if adversary is not None and step >= adversary.first else None
    values, indices = [], []
    parts = video.chunk(settings.accumulate)
    for part in parts:
        figures, used = _gradients(tokenizer, part, settings, 1 / len(parts), rival)
        values.append(figures)
        indices.append(used)
    ranks.average_gradients(tokenizer)
    torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), settings.clip_norm)
    optimizer.step()
    if rival is not None:
        rival.update()
    means = {name: torch.stack([v[name] for v in values]).mean() for name in values[0]}
    return means, torch.cat(indices)


def _gradients(
    tokenizer: Tokenizer,
    video: Tensor,
    settings: TrainSettings,
    share: float,
    rival: Adversary | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Add this share of the loss's gradients to those that are there."""
    with torch.autocast(video.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        reconstruction, quantized = tokenizer(video)
    target = video.float() / 255
    loss, terms = total_loss(reconstruction, target, quantized, settings), quantized.terms
    if rival is not None:
        terms = terms | {"adversary": rival.learn(target, reconstruction, share)}
        (share * (loss + rival.pull(reconstruction, loss))).backward()
    else:
        (share * loss).backward()
    quality = psnr(target, reconstruction.detach().clamp(0, 1)).mean()
    loss, quality = mean_over_ranks(torch.stack([loss.detach(), quality]))
    return {"loss": loss, "psnr": quality} | terms, quantized.indices


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Up in a line over the warm-up, then along half a cosine to zero at the last step.

    With the schedule wsd (warm-up, stable, decay; arXiv:2404.06395) it stays up, and falls in a
    line over the last `decay_share` of the steps.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    left = settings.steps - step
    if settings.schedule == "wsd":
        return settings.learning_rate * min(
            1, max(0, left / (settings.decay_share * settings.steps))
        )
    done = min(1, 1 - left / max(1, settings.steps - settings.warmup))
    return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
