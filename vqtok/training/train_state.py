"""What a run has come to: the weights, their moving average, the optimizer; saved and restored."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from vqtok.config import Config, TrainSettings
from vqtok.errors import UsageError, VqtokError
from vqtok.files import atomic_write
from vqtok.model.tokenizer import Tokenizer
from vqtok.training.discriminator import Discriminator
from vqtok.training.optimizer import Muon
from vqtok.training.perceptual import Perceptual


@dataclass
class State:
    """A run after `step` steps. `average` is the tokenizer that is shipped, in eval mode."""

    tokenizer: Tokenizer
    average: Tokenizer
    optimizer: Optimizer
    adversary: Discriminator | None = None
    perceptual: Perceptual | None = None  # it never changes, so it is not saved
    step: int = 0

    @classmethod
    def new(cls, settings: Config, device: torch.device) -> Self:
        """A run that has not begun."""
        torch.manual_seed(settings.train.seed)
        tokenizer = Tokenizer(settings.model, settings.quantizer).to(device).train()
        average = deepcopy(tokenizer).eval().requires_grad_(False)
        optimizer = make_optimizer(tokenizer, settings.train)
        rival = (
            Discriminator(settings.train).to(device) if settings.train.adversarial_weight else None
        )
        perceptual = (
            Perceptual(settings.train).to(device) if settings.train.perceptual_weight else None
        )
        return cls(tokenizer, average, optimizer, rival, perceptual)

    @property
    def rival(self) -> Discriminator | None:
        """The adversary, once it takes part."""
        taking_part = self.adversary is not None and self.step >= self.adversary.first
        return self.adversary if taking_part else None

    def start(self, video: Tensor) -> None:
        """Take the first weights from clips (b 3 t h w); see `Tokenizer.start`."""
        self.tokenizer.start(video.to(self.tokenizer.device))
        self._follow(0)

    def adopt(self, origin: Tokenizer) -> None:
        """Take the first weights from another tokenizer. Raises UsageError if they do not fit."""
        if _sizes(origin) != _sizes(self.tokenizer):
            raise UsageError("train.init_from has other [model] or [quantizer] settings")
        self.tokenizer.load_state_dict(origin.state_dict())
        self._follow(0)

    def stepped(self, decay: float) -> None:
        """Count a step, and move the average on to its weights; 0 makes it the weights themselves.

        Early on the decay is less, so that the first weights are soon forgotten.
        """
        self._follow(min(decay, (1 + self.step) / (10 + self.step)))
        self.step += 1

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        """Buffers, such as a codebook that is a moving average already, are taken as they are."""
        average, now = self.average, self.tokenizer
        for ours, theirs in zip(average.parameters(), now.parameters(), strict=True):
            ours.lerp_(theirs, 1 - decay)
        for ours, theirs in zip(average.buffers(), now.buffers(), strict=True):
            ours.copy_(theirs)

    def save(self, path: Path) -> None:
        """Write all that `restore` needs, whole or not at all."""
        tensors = {
            f"{name} {key}": value.contiguous()
            for name, module, optimizer in self._parts()
            for key, value in (module.state_dict() | _moments(optimizer)).items()
        }
        with atomic_write(path) as temporary:
            temporary.write_bytes(to_bytes(tensors, {"step": str(self.step)}))

    def restore(self, path: Path) -> None:
        """Put back what `save` wrote. Raises VqtokError if it does not fit, or is not whole."""
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                self.step = int((file.metadata() or {})["step"])
            for name, module, optimizer in self._parts():
                of_part = {
                    key.removeprefix(f"{name} "): value
                    for key, value in tensors.items()
                    if key.startswith(f"{name} ")
                }
                _restore_moments(optimizer, of_part)
                module.load_state_dict(of_part)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise VqtokError(f"{path} is damaged or of another configuration: {error}") from None

    def _parts(self) -> Iterator[tuple[str, nn.Module, Optimizer | None]]:
        """What is saved, by name, each with what moves it."""
        yield "weights", self.tokenizer, self.optimizer
        yield "average", self.average, None
        if self.adversary is not None:
            yield "adversary", self.adversary, self.adversary.optimizer


def make_optimizer(tokenizer: Tokenizer, settings: TrainSettings) -> Optimizer:
    """What moves the weights."""
    learned = [p for p in tokenizer.parameters() if p.requires_grad]
    if settings.optimizer == "muon":
        return Muon(learned, settings.learning_rate, settings.weight_decay)
    return AdamW(learned, betas=(0.9, 0.99), weight_decay=settings.weight_decay)


def _sizes(tokenizer: Tokenizer) -> tuple[str, int, int, dict[str, torch.Size]]:
    """What two tokenizers share if the weights of one fit into the other, and mean the same."""
    shapes = {name: weight.shape for name, weight in tokenizer.state_dict().items()}
    intra_codes = getattr(tokenizer.quantizer, "intra_codes", 0)
    return tokenizer.kind, tokenizer.codebook_size, intra_codes, shapes


def _moments(optimizer: Optimizer | None) -> dict[str, Tensor]:
    """What an optimizer remembers of each weight, by number and name."""
    state = optimizer.state_dict()["state"] if optimizer is not None else {}
    return {
        f"optimizer {i} {name}": value
        for i, values in state.items()
        for name, value in values.items()
    }


def _restore_moments(optimizer: Optimizer | None, tensors: dict[str, Tensor]) -> None:
    """Take out of the tensors what `_moments` gave, and put it back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key in [key for key in tensors if key.startswith("optimizer ")]:
        _, i, name = key.split(" ")
        state.setdefault(int(i), {})[name] = tensors.pop(key)
    if optimizer is not None:
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
