"""One update of the weights: the loss, its gradients, the learning rate."""

import math

import torch
from torch import Tensor

from vqtok import distributed
from vqtok.config import TrainSettings
from vqtok.distributed import all_reduce_mean
from vqtok.quality import psnr
from vqtok.training.state import State

SEEDS = 1 << 32  # apart: the seeds of two ranks
FLOOR = 1e-4  # a squared error (40 dB) below which a clip need not get better


def train_step(
    state: State, video: Tensor, settings: TrainSettings
) -> tuple[dict[str, Tensor], Tensor]:
    """One update on clips (b c t h w) uint8: what to log, over all ranks, and this rank's indices.

    The clips are worked through in `settings.accumulate` parts; the update is by their mean.
    """
    # A resumed run then draws what the first would have, and every rank something else.
    torch.manual_seed(settings.seed + state.step + SEEDS * distributed.rank())
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, settings)
    state.optimizer.zero_grad()
    values, indices = [], []
    parts = video.chunk(settings.accumulate)
    for part in parts:
        figures, used = _gradients(state, part, settings, 1 / len(parts))
        values.append(figures)
        indices.append(used)
    distributed.average_gradients(state.tokenizer)
    torch.nn.utils.clip_grad_norm_(state.tokenizer.parameters(), settings.clip_norm)
    state.optimizer.step()
    if state.rival is not None:
        state.rival.update()
    means = {name: torch.stack([v[name] for v in values]).mean() for name in values[0]}
    return means, torch.cat(indices)


def _gradients(
    state: State, video: Tensor, settings: TrainSettings, share: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Add this share of the loss's gradients to those that are there."""
    with torch.autocast(video.device.type, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
        reconstruction, quantized = state.tokenizer(video)
    target, terms = video.float() / 255, quantized.terms
    loss = reconstruction_loss(reconstruction, target, settings) + quantized.loss
    if state.perceptual is not None:
        looks = state.perceptual(reconstruction, target)
        loss = loss + settings.perceptual_weight * looks
        terms = terms | {"perceptual": all_reduce_mean(looks.detach())}
    pulled = loss
    if state.rival is not None:
        terms = terms | {"adversary": state.rival.learn(target, reconstruction, share)}
        pulled = loss + state.rival.pull(reconstruction, loss)
    (share * pulled).backward()
    quality = psnr(target, reconstruction.detach().clamp(0, 1)).mean()
    loss, quality = all_reduce_mean(torch.stack([loss.detach(), quality]))
    return {"loss": loss, "psnr": quality} | terms, quantized.indices


def reconstruction_loss(reconstruction: Tensor, target: Tensor, settings: TrainSettings) -> Tensor:
    """The loss of a reconstruction's pixels; both videos are (b 3 t h w), about 0..1."""
    error = reconstruction - target
    l1, l2 = error.abs().mean(), error.square().mean((1, 2, 3, 4))
    return (
        settings.l1_weight * l1
        + settings.l2_weight * l2.mean()
        + settings.log_mse_weight * (l2 + FLOOR).log().mean()
    )


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
