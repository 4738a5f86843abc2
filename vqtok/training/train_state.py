"""The state of a training run: weights, their moving average and the optimizers."""

import re
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vqtok.errors import UsageError, VqtokError
from vqtok.files import RUN_TOKENIZER
from vqtok.model.checkpoint import is_finite
from vqtok.model.initialization import init_from_data
from vqtok.model.tokenizer import Tokenizer
from vqtok.safetensors_io import read_file, write_file
from vqtok.settings import Config
from vqtok.training.discriminator import Discriminator
from vqtok.training.optimizer import make_optimizers, state_shapes
from vqtok.training.perceptual import PerceptualLoss
from vqtok.untrusted import quote

FORMAT = {"format": "vqtok-train-state", "version": "2"}


@dataclass
class TrainState:
    """All that changes during training, after `step` steps.

    ema_model: the tokenizer with averaged weights, in eval mode; this is the one that is shipped.
    perceptual_loss: constant, so it is not saved.
    """

    tokenizer: Tokenizer
    ema_model: Tokenizer
    optimizers: list[Optimizer]
    discriminator: Discriminator | None = None
    perceptual_loss: PerceptualLoss | None = None
    step: int = 0

    @classmethod
    def new(cls, config: Config, device: torch.device) -> Self:
        """Return the state of a run that has not started, with random weights."""
        settings = config.train
        torch.manual_seed(settings.seed)
        tokenizer = Tokenizer(config.model, config.quantizer).to(device).train()
        return cls(
            tokenizer,
            deepcopy(tokenizer).eval().requires_grad_(False),
            make_optimizers(tokenizer, settings),
            Discriminator(settings).to(device) if settings.adversarial_weight else None,
            PerceptualLoss(settings).to(device) if settings.perceptual_weight else None,
        )

    @property
    def active_discriminator(self) -> Discriminator | None:
        """The discriminator, from the step on at which it takes part."""
        discriminator = self.discriminator
        return discriminator if discriminator and self.step >= discriminator.first_step else None

    def init_from_data(self, video: Tensor) -> None:
        """Compute the initial weights from clips (b 3 t h w), as the best linear codec."""
        init_from_data(self.tokenizer, video.to(self.tokenizer.device))
        self.update_ema(decay=0)

    def init_from(self, source: Tokenizer) -> None:
        """Copy the initial weights from another tokenizer.

        Raises UsageError if its model or quantizer settings differ.
        """
        if _architecture(source) != _architecture(self.tokenizer):
            raise UsageError("train.init_from has other [model] or [quantizer] settings")
        self.tokenizer.load_state_dict(source.state_dict())
        self.update_ema(decay=0)

    @torch.no_grad()
    def init_networks_from(self, source: Tokenizer, video: Tensor) -> None:
        """Copy encoder and decoder of another tokenizer; compute the rest from clips (b 3 t h w).

        Raises UsageError if its networks differ.
        """
        ours = self.tokenizer
        for module, theirs in ((ours.encoder, source.encoder), (ours.decoder, source.decoder)):
            if _shapes(module) != _shapes(theirs):
                raise UsageError(
                    "train.init_networks_from has other [model] settings or another quantizer.dim"
                )
            module.load_state_dict(theirs.state_dict())
        ours.coder.init_from_data(ours.encoder(ours.pad(video, first=True)).float())
        self.update_ema(decay=0)

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move the averaged weights toward the current ones; a decay of 0 copies them.

        Buffers, such as a codebook that is a moving average itself, are copied.
        """
        averages: list[Tensor] = list(self.ema_model.parameters())
        torch._foreach_lerp_(averages, list(self.tokenizer.parameters()), 1 - decay)
        copies, buffers = self.ema_model.buffers(), self.tokenizer.buffers()
        for copy, buffer in zip(copies, buffers, strict=True):
            copy.copy_(buffer)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors that change in training, by name."""
        tensors: dict[str, Tensor] = {}
        for name, module in self._modules().items():
            tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            for i, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{i}.{key}": value for key, value in moments.items()}
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned, wherever its tensors are.

        Raises KeyError, ValueError or RuntimeError if they are of other settings.
        """
        for name, module in self._modules().items():
            module.load_state_dict(_with_prefix(tensors, name))
        for name, optimizer in self._optimizers().items():
            _load_optimizer(optimizer, _with_prefix(tensors, name))

    def save(self, path: Path) -> None:
        """Write everything that `load` needs."""
        arrays = {key: value.cpu().numpy() for key, value in self.state_dict().items()}
        write_file(path, FORMAT | {"step": str(self.step)}, arrays)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote.

        Raises VqtokError if the file is damaged, of other settings or of another vqtok version.
        """
        step, tensors = _read(path)
        try:
            self.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise VqtokError(f"{path} does not fit the settings of its run: {reason}") from None
        self.step = step

    def _modules(self) -> dict[str, nn.Module]:
        """The modules to save, by the prefix of their keys."""
        modules = {"tokenizer": self.tokenizer, "ema_model": self.ema_model}
        return modules | ({"discriminator": self.discriminator} if self.discriminator else {})

    def _optimizers(self) -> dict[str, Optimizer]:
        """The optimizers to save, by the prefix of their keys."""
        optimizers = {f"optimizer_{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        if self.discriminator:
            optimizers["discriminator_optimizer"] = self.discriminator.optimizer
        return optimizers


def _read(path: Path) -> tuple[int, dict[str, Tensor]]:
    """Return the step and the tensors of a saved state."""
    metadata, arrays = read_file(path, "the state of a run")
    if {key: metadata.get(key) for key in FORMAT} != FORMAT:
        raise VqtokError(
            f"{path} was written by another version of vqtok and cannot be resumed: start a new "
            f"run with --set train.init_from={path.with_name(RUN_TOKENIZER)}"
        )
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    step = metadata.get("step", "")
    if not re.fullmatch("[0-9]{1,10}", step):
        raise VqtokError(f"{path} is damaged: its step is {quote(step)}")
    if not all(map(is_finite, tensors.values())):
        raise VqtokError(f"{path} holds NaN or infinity: start a new run")
    return int(step), tensors


def _architecture(tokenizer: Tokenizer) -> tuple[str, int, int, dict[str, torch.Size]]:
    """Return what two tokenizers must share for the weights of one to work in the other."""
    intra_codes = tokenizer.coder.intra_codes
    return tokenizer.kind, tokenizer.codebook_size, intra_codes, _shapes(tokenizer)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in module.state_dict().items()}


def _with_prefix(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors whose keys start with `name.`, without that prefix."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore an optimizer's state from tensors named `parameter index.state name`.

    Raises ValueError if they are not the state of these parameters, which torch does not check.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        index, name = key.split(".")
        state[int(index)][name] = value
    for i, moments in state.items():
        if i not in range(len(parameters)):
            raise ValueError("the state of an optimizer has more parameters")
        if {n: v.shape for n, v in moments.items()} != state_shapes(optimizer, parameters[i]):
            raise ValueError("the state of an optimizer has another kind or shape")
        if any(value.dtype != torch.float32 for value in moments.values()):
            raise ValueError("the state of an optimizer is not in float32")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
