"""The optimizers of a training run: Muon for convolution kernels, AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from vqtok.settings import TrainSettings

BETAS = (0.9, 0.99)  # of AdamW
# What each optimizer keeps of a parameter: tensors of its shape, and `step`, a number.
STATE_NAMES: dict[type[Optimizer], set[str]] = {
    AdamW: {"step", "exp_avg", "exp_avg_sq"},
    Muon: {"momentum_buffer"},
}


def make_optimizers(model: nn.Module, settings: TrainSettings) -> list[Optimizer]:
    """Return the optimizers that together update all trainable parameters of a model.

    With `train.optimizer=muon`, convolution kernels go to Muon and the rest to AdamW.
    """
    use_muon = settings.optimizer == "muon"
    kernels = [p for p in model.parameters() if p.requires_grad and p.ndim > 2 and use_muon]
    groups = parameter_groups(model, settings.weight_decay, exclude=kernels)
    adamw = AdamW(groups, settings.learning_rate, BETAS)
    return [adamw, kernel_muon(kernels, settings)] if kernels else [adamw]


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


def kernel_muon(kernels: list[nn.Parameter], settings: TrainSettings) -> Muon:
    """Return a Muon optimizer (https://kellerjordan.github.io/posts/muon/) of convolution kernels.

    Each kernel counts as a matrix (c_out, c_in * its size). Updates have the RMS of AdamW's
    (arXiv:2502.16982), so both optimizers share one learning rate.

    kernels: (c_out c_in ...), in channels-last memory format.
    """
    # torch's Muon takes matrices only. These share the memory of the kernels: a view never copies.
    matrices = [nn.Parameter(_channels_last(k).view(len(k), -1)) for k in kernels]
    lr, weight_decay = settings.learning_rate, settings.weight_decay
    muon = Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    def share_gradients(*_: object) -> None:
        for kernel, matrix in zip(kernels, matrices, strict=True):
            grad = kernel.grad
            matrix.grad = None if grad is None else _channels_last(grad).reshape(matrix.shape)

    muon.register_step_pre_hook(share_gradients)
    muon.register_step_post_hook(lambda *_: muon.zero_grad())  # a view keeps its gradient alive
    return muon


def _channels_last(kernel: Tensor) -> Tensor:
    return kernel.detach().movedim(1, -1)
