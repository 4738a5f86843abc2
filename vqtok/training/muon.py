"""Muon, an optimizer that orthogonalizes its steps, for many convolution kernels at once."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of x, x^3 and x^5 in an iteration
ITERATIONS = 5
EPS = 1e-7


class Muon(Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) of convolution kernels.

    Each kernel counts as a matrix (c_out, its size * c_in). Updates have the RMS of AdamW's
    (arXiv:2502.16982), so both optimizers can share one learning rate. torch.optim.Muon computes
    the same, but one matrix at a time: on a GPU, the launches would take longer than the products.

    kernels: (c_out c_in ...), in channels-last memory format.
    State: momentum_buffer (c_out, its size * c_in).
    """

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(kernels, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the kernels that have a gradient."""
        for group in self.param_groups:
            kernels = [kernel for kernel in group["params"] if kernel.grad is not None]
            if kernels:
                self._step(kernels, group["lr"], group["weight_decay"])

    def _step(self, kernels: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        gradients = [as_matrix(kernel.grad) for kernel in kernels]
        pairs = zip(kernels, gradients, strict=True)
        momenta = [self._momentum(kernel, gradient) for kernel, gradient in pairs]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        torch._foreach_mul_(kernels, 1 - lr * weight_decay)
        by_shape = defaultdict(list)
        for kernel, update in zip(kernels, updates, strict=True):
            matrix = as_matrix(kernel)
            is_tall = len(matrix) > matrix.shape[1]
            pair = (matrix.T, update.T) if is_tall else (matrix, update)
            by_shape[pair[0].shape].append(pair)
        for shape, group in by_shape.items():
            matrices, parts = zip(*group, strict=True)
            steps = orthogonalize(torch.stack(parts)).float().unbind()
            torch._foreach_add_(matrices, steps, alpha=-0.2 * lr * math.sqrt(shape[1]))

    def _momentum(self, kernel: nn.Parameter, gradient: Tensor) -> Tensor:
        state: dict[str, Any] = self.state[kernel]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return state["momentum_buffer"]


def as_matrix(kernel: Tensor) -> Tensor:
    """Return a kernel (c_out c_in ...) as a matrix (c_out, its size * c_in), without a copy."""
    return kernel.detach().movedim(1, -1).reshape(len(kernel), -1)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices (b m n), m <= n, with all singular values near 1, in bfloat16.

    By Newton-Schulz iterations.
    """
    x, (a, b, c) = matrices.bfloat16(), COEFFICIENTS
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)  # singular values of 1 at most
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
