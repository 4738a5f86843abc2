"""One training step: losses, gradients, and the update of the weights."""

import math

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from vqtok import distributed
from vqtok.distributed import all_reduce_mean
from vqtok.precision import training_autocast
from vqtok.quality import psnr
from vqtok.settings import TrainSettings
from vqtok.training.train_state import TrainState

RANK_SEED_OFFSET = 1 << 32  # beyond every seed, so that no two ranks draw the same noise
LOG_MSE_FLOOR = 1e-4  # added to each clip's squared error, so that gains beyond 40 dB hardly count


def train_step(
    state: TrainState, video: Tensor, settings: TrainSettings
) -> tuple[dict[str, Tensor], Tensor]:
    """Update the weights and their moving average with one batch, and count the step.

    video: this rank's clips (b c t h w) uint8, processed in `settings.accumulate` micro-batches.

    Returns the metrics, averaged over micro-batches and ranks, and this rank's indices.
    """
    # Seeded by the step: a resumed run then draws what an uninterrupted one would have drawn.
    torch.manual_seed(settings.seed + state.step + RANK_SEED_OFFSET * distributed.rank())
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step, settings)
    state.tokenizer.zero_grad()
    micro_batches = video.chunk(settings.accumulate)
    weight = 1 / len(micro_batches)
    results = [backward(state, clips, settings, weight) for clips in micro_batches]
    distributed.average_gradients(state.tokenizer)
    clip_grad_norm_(state.tokenizer.parameters(), settings.clip_norm, foreach=True)
    for optimizer in state.optimizers:
        optimizer.step()
    if discriminator := state.active_discriminator:
        discriminator.update()
    state.update_ema(ema_decay(state.step, settings))
    state.step += 1
    metrics, indices = zip(*results, strict=True)
    means = torch.stack([torch.stack(list(m.values())) for m in metrics]).mean(0)
    return dict(zip(metrics[0], means, strict=True)), torch.cat(indices)


def backward(
    state: TrainState, video: Tensor, settings: TrainSettings, weight: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Add the gradients of a micro-batch, times `weight`; return its metrics and indices."""
    with training_autocast(video.device, settings.dtype):
        reconstruction, quantized = state.tokenizer(video)
    target, terms = video.float() / 255, quantized.terms
    loss = reconstruction_loss(reconstruction, target, settings) + quantized.loss
    if state.perceptual_loss:
        perceptual = state.perceptual_loss(reconstruction, target)
        loss = loss + settings.perceptual_weight * perceptual
        terms = terms | {"perceptual": all_reduce_mean(perceptual.detach())}
    total = loss
    if discriminator := state.active_discriminator:
        discriminator_loss = discriminator.discriminator_backward(target, reconstruction, weight)
        terms = terms | {"adversary": discriminator_loss}
        total = loss + discriminator.generator_loss(reconstruction, loss)
    (weight * total).backward()
    mean_psnr = psnr(target, reconstruction.detach().clamp(0, 1)).mean()
    loss, mean_psnr = all_reduce_mean(torch.stack([loss.detach(), mean_psnr]))
    return {"loss": loss, "psnr": mean_psnr} | terms, quantized.indices


def reconstruction_loss(reconstruction: Tensor, target: Tensor, settings: TrainSettings) -> Tensor:
    """Return the loss of the pixels; both videos are (b 3 t h w), about 0..1."""
    error = reconstruction - target
    mse = error.square().mean((1, 2, 3, 4))
    loss = settings.l2_weight * mse.mean()
    if settings.l1_weight:  # else its backward pass over all pixels would be for nothing
        loss = settings.l1_weight * error.abs().mean() + loss
    return loss + settings.log_mse_weight * (mse + LOG_MSE_FLOOR).log().mean()


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the learning rate: linear warm-up, then a half cosine to zero at the last step.

    The schedule wsd (warmup, stable, decay; arXiv:2404.06395) stays at the peak and decays linearly
    over the last `decay_share` of the steps.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    remaining = settings.steps - step
    if settings.schedule == "wsd":
        decay = remaining / (settings.decay_share * settings.steps)
        return settings.learning_rate * min(1, max(0, decay))
    progress = min(1, 1 - remaining / max(1, settings.steps - settings.warmup))
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def ema_decay(step: int, settings: TrainSettings) -> float:
    """Return the decay of the averaged weights; small at first, to forget the initial weights."""
    return min(settings.ema_decay, (1 + step) / (10 + step))
