"""What a run has come to: the weights, their moving average, the optimizer; saved and restored."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.optim import Optimizer

from vqtok.config import Config
from vqtok.errors import VqtokError
from vqtok.files import replacing
from vqtok.tokenizer import Tokenizer
from vqtok.training.step import make_optimizer


@dataclass
class State:
    """A run after `step` steps. `average` is the tokenizer that is shipped, in eval mode."""

    tokenizer: Tokenizer
    average: Tokenizer
    optimizer: Optimizer
    step: int = 0

    @classmethod
    def new(cls, settings: Config, device: torch.device) -> Self:
        """A run that has not begun."""
        torch.manual_seed(settings.train.seed)
        tokenizer = Tokenizer(settings.model, settings.quantizer).to(device).train()
        average = deepcopy(tokenizer).eval().requires_grad_(False)
        return cls(tokenizer, average, make_optimizer(tokenizer, settings.train))

    def start(self, video: Tensor) -> None:
        """Take the first weights from clips (b 3 t h w); see `Tokenizer.start`."""
        self.tokenizer.start(video.to(self.tokenizer.device))
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
        tensors = {f"weights {name}": w for name, w in self.tokenizer.state_dict().items()}
        tensors |= {f"average {name}": w for name, w in self.average.state_dict().items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer {i} {name}": value for name, value in values.items()}
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        with replacing(path) as temporary:
            temporary.write_bytes(to_bytes(tensors, {"step": str(self.step)}))

    def restore(self, path: Path) -> None:
        """Put back what `save` wrote. Raises VqtokError if it does not fit, or is not whole."""
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    part, name = key.split(" ", 1)
                    parts[part][name] = file.get_tensor(key)
                self.step = int((file.metadata() or {})["step"])
            self.tokenizer.load_state_dict(parts["weights"])
            self.average.load_state_dict(parts["average"])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise VqtokError(f"{path} is damaged or of another configuration: {error}") from None
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            i, name = key.split(" ")
            moments.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
