"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for convolutions."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from vqtok.config import TrainSettings

MOMENTUM, BETAS, EPS = 0.95, (0.9, 0.99), 1e-8
ROUNDS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # Jordan's: small singular values grow fastest
ADAM_LENGTH = 0.2  # root mean square of a typical step of Adam, in learning rates


class Muon(Optimizer):
    """Steps of a convolution's weights are made orthogonal, so that no direction is neglected.

    A kernel counts as a matrix (c_out, c_in * its size). What is none, such as a bias or a
    codebook, takes Adam's steps; those of both are equally long (Liu et al. 2025,
    arXiv:2502.16982), so they share a learning rate. Weights decay by lr * weight_decay a step, as
    in AdamW.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = self._kernel(p) if p.ndim > 2 else self._other(p)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])

    def _kernel(self, p: nn.Parameter) -> Tensor:
        momentum = self._state(p, "momentum")
        momentum.lerp_(p.grad, 1 - MOMENTUM)
        ahead = p.grad.lerp(momentum, MOMENTUM)  # Nesterov's
        step = orthogonal(ahead.flatten(1))
        return step.mul_(ADAM_LENGTH * math.sqrt(max(step.shape))).view_as(p)

    def _other(self, p: nn.Parameter) -> Tensor:
        mean, square = self._state(p, "mean"), self._state(p, "square")
        steps = self.state[p].setdefault("steps", torch.zeros(()))
        steps += 1
        mean.lerp_(p.grad, 1 - BETAS[0])
        square.lerp_(p.grad.square(), 1 - BETAS[1])
        mean, square = mean / (1 - BETAS[0] ** steps), square / (1 - BETAS[1] ** steps)
        return mean / (square.sqrt() + EPS)

    def _state(self, p: nn.Parameter, name: str) -> Tensor:
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        return state[name]


def orthogonal(x: Tensor) -> Tensor:
    """The orthogonal matrix nearest to x (m n), roughly: singular values between 0.7 and 1.2.

    By an iteration of Newton and Schulz in bfloat16, where its errors do no harm.
    """
    y = x.bfloat16()
    y = y.T if len(y) > y.shape[1] else y
    y = y / (y.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = y @ y.T
        y = a * y + (b * square + c * square @ square) @ y
    return (y.T if len(x) > x.shape[1] else y).to(x.dtype)


def make_optimizers(model: nn.Module, settings: TrainSettings) -> list[Optimizer]:
    """Return the optimizers that together update all trainable parameters of a model."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.optimizer == "muon":
        return [Muon(parameters, settings.learning_rate, settings.weight_decay)]
    return [AdamW(parameters, settings.learning_rate, BETAS, weight_decay=settings.weight_decay)]
