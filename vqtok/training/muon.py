"""Muon, an optimizer that orthogonalizes its steps, for many convolution kernels at once."""

import math
from collections.abc import Callable, Iterable
from itertools import groupby

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
        kernels = sorted(kernels, key=lambda kernel: sorted(as_matrix(kernel).shape))
        gradients = [_gradient(kernel) for kernel in kernels]
        momenta = [self._momentum(kernel) for kernel in kernels]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's
        steps = [_wide(update).contiguous() for update in updates]
        orthogonalize_(steps)
        matrices = [_wide(as_matrix(kernel)) for kernel in kernels]
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        for shape, group in groupby(zip(matrices, steps, strict=True), lambda pair: pair[0].shape):
            alpha = -0.2 * lr * math.sqrt(shape[1])
            torch._foreach_add_(*map(list, zip(*group, strict=True)), alpha=alpha)

    def _momentum(self, kernel: nn.Parameter) -> Tensor:
        state: dict[str, Tensor] = self.state[kernel]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(as_matrix(kernel))
        return state["momentum_buffer"]


def as_matrix(kernel: Tensor) -> Tensor:
    """Return a kernel (c_out c_in ...) in channels-last memory format as a matrix, without a copy.

    The matrix (c_out, its size * c_in) shares the memory of the kernel.
    """
    return kernel.detach().movedim(1, -1).view(len(kernel), -1)


def _gradient(kernel: nn.Parameter) -> Tensor:
    assert kernel.grad is not None
    return kernel.grad.movedim(1, -1).flatten(1)  # a copy if it is in another memory format


def _wide(matrix: Tensor) -> Tensor:
    """Return a matrix, transposed if it is taller than wide."""
    return matrix.T if len(matrix) > matrix.shape[1] else matrix


def orthogonalize_(matrices: list[Tensor]) -> None:
    """Move all singular values of matrices (m n), m <= n, near 1, in place, in bfloat16.

    By Newton-Schulz iterations, on all neighbors of one shape at once.
    """
    runs = [(shape, len(list(group))) for shape, group in groupby(m.shape for m in matrices)]
    batches = [matrices[0].new_empty(n, *shape, dtype=torch.bfloat16) for shape, n in runs]
    parts = [part for batch in batches for part in batch]
    torch._foreach_copy_(parts, matrices)
    norms = torch.stack(torch._foreach_norm(parts)).clamp(min=EPS).view(-1, 1, 1)
    limits = norms.split([len(batch) for batch in batches])  # of the singular values
    pairs = zip(batches, limits, strict=True)
    results = [_newton_schulz(batch / limit) for batch, limit in pairs]
    torch._foreach_copy_(matrices, [part for batch in results for part in batch])


def _newton_schulz(x: Tensor) -> Tensor:
    """Return matrices (b m n) whose singular values, from 0 to 1, are moved near 1."""
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
