"""What a training run needs of its clips, wherever they come from."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vqtok.settings import TrainSettings


class TrainingClips(ABC):
    """The clips of a training run. Several threads may ask for clips at once.

    settings: `crop` and `frames` are the size of a clip, `batch_size` is the number of clips of a
        step, and `seed` changes all clips.
    unreadable: maps files that could not be read to the reason.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.unreadable: dict[Path, str] = {}

    @property
    def metrics(self) -> dict[str, float]:
        """For the log."""
        return {}

    @abstractmethod
    def clip(self, step: int, i: int) -> Tensor:
        """Return clip i of a step, uint8 (t h w c): always the same, whatever was asked before."""

    @abstractmethod
    def validation_clips(self, frames: int) -> Iterator[Tensor]:
        """Yield clips (1 3 t h w) uint8 that are not trained on, of at most this many frames."""

    @abstractmethod
    def sample_clips(self, frames: int) -> Iterator[Tensor]:
        """Yield a few clips like those of `validation_clips`; of training files if need be."""

    def indices(self, rank: int = 0, world_size: int = 1) -> range:
        """Return the numbers of this rank's clips of each step."""
        return range(rank, self.settings.batch_size, world_size)

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Return this rank's clips of a step, uint8 (b c t h w); one rank alone gets all."""
        clips = [self.clip(step, i) for i in self.indices(rank, world_size)]
        return torch.stack(clips).movedim(-1, 1)
