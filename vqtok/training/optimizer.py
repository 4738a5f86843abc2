"""The optimizers of a training run: Muon for convolution kernels, AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from vqtok.settings import TrainSettings
from vqtok.training.muon import Muon, as_matrix

BETAS = (0.9, 0.99)  # of AdamW


def make_optimizers(model: nn.Module, settings: TrainSettings) -> list[Optimizer]:
    """Return the optimizers that together update all trainable parameters of a model.

    With `train.optimizer=muon`, convolution kernels go to Muon and the rest to AdamW.
    """
    use_muon = settings.optimizer == "muon"
    kernels = [p for p in model.parameters() if p.requires_grad and p.ndim > 2 and use_muon]
    groups = parameter_groups(model, settings.weight_decay, exclude=kernels)
    adamw = AdamW(groups, settings.learning_rate, BETAS, foreach=True)
    muon = Muon(kernels, settings.learning_rate, settings.weight_decay) if kernels else None
    return [adamw, muon] if muon else [adamw]


def state_shapes(optimizer: Optimizer, parameter: Tensor) -> dict[str, torch.Size]:
    """Return the names and shapes of what an optimizer keeps of a parameter, all in float32."""
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": as_matrix(parameter).shape}
    shape = parameter.shape
    return {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}


def parameter_groups(
    model: nn.Module, weight_decay: float, exclude: Iterable[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Return optimizer groups that apply weight decay to matrices and kernels only.

    Biases, norm weights and codebooks (embeddings) are not decayed.
    """
    excluded = set(exclude)
    codebooks = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad and p not in excluded]
    decayed = [p for p in parameters if p.ndim > 1 and p not in codebooks]
    not_decayed = [p for p in parameters if p.ndim <= 1 or p in codebooks]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
