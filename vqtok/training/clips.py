"""What a training run needs of its clips, wherever they come from."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from vqtok.settings import TrainSettings


class TrainingClips(ABC):
    """The clips of a training run.

    settings: `crop` and `frames` are the size of a clip, `batch_size` is the number of clips of a
        step, and `seed` changes all clips.
    unreadable: maps files that could not be read to the reason.
    counts: what `metrics` are computed from.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.unreadable: dict[Path, str] = {}
        self.counts: Counter[str] = Counter()

    @property
    def metrics(self) -> dict[str, float]:
        """For the log."""
        return {}

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """The shape of a clip (t h w c)."""
        return self.settings.frames, self.settings.crop, self.settings.crop, 3

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside the block, processes that are forked share what they keep of the files."""
        yield

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

    def stack(self, step: int, indices: Sequence[int]) -> Tensor:
        """Return clips of a step by their numbers, uint8 (b t h w c)."""
        return torch.stack([self.clip(step, i) for i in indices])

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Return this rank's clips of a step, uint8 (b c t h w); one rank alone gets all."""
        return self.stack(step, self.indices(rank, world_size)).movedim(-1, 1)
