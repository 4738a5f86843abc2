"""Synthetic training clips, for a trial without data."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vqtok.training.clips import TrainingClips

VALIDATION_CLIPS = 4


class SyntheticClips(TrainingClips):
    """Clips of moving waves and a moving box."""

    def clip(self, step: int, i: int) -> Tensor:
        """Return clip i of a step, uint8 (t h w c)."""
        return self._draw((self.settings.seed, step, i), self.settings.frames)

    def validation_clips(self, frames: int) -> Iterator[Tensor]:
        """Yield a few clips (1 3 t h w) that are not trained on."""
        for i in range(VALIDATION_CLIPS):
            yield self._draw((self.settings.seed, i), frames).movedim(-1, 0)[None]

    def sample_clips(self, frames: int) -> Iterator[Tensor]:
        """Yield the clips of `validation_clips`."""
        yield from self.validation_clips(frames)

    def _draw(self, seed: tuple[int, ...], frames: int) -> Tensor:
        rng = np.random.default_rng(seed)
        return torch.from_numpy(moving_waves(rng, frames, self.settings.crop))


def moving_waves(rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """Return a clip (t h w c) uint8: four waves of random direction, speed and color, and a box."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(size), np.arange(size), indexing="ij")
    video = np.full((frames, size, size, 3), rng.uniform(0.3, 0.7, 3))
    for _ in range(4):
        ky, kx, speed, phase = rng.normal(size=4) * (0.15, 0.15, 0.3, 3)
        wave = np.sin(ky * y + kx * x + speed * t + phase)
        video += wave[..., None] * rng.normal(size=3) * 0.12
    start, velocity = rng.uniform(0, size, 2), rng.normal(size=2) * 2
    half_sides = size * rng.uniform(0.1, 0.3, 2)
    top, left = (start[i] + velocity[i] * t for i in range(2))
    in_box = (abs(y - top) < half_sides[0]) & (abs(x - left) < half_sides[1])
    video[in_box] = rng.uniform(0, 1, 3)
    return (video.clip(0, 1) * 255).astype(np.uint8)
