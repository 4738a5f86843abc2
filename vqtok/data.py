"""Videos and stills to random training clips; the same step of a run always sees the same clips."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqtok.config import TrainSettings
from vqtok.errors import UsageError, VqtokError
from vqtok.files import EXTENSIONS
from vqtok.video import open_video, read_window

FASTEST_PAN = 3  # pixels per frame over a still


def find(sources: Iterable[Path]) -> list[Path]:
    """The files given, and the videos and stills in the folders given, sorted.

    Raises UsageError when a source does not exist or none holds a video or a still.
    """
    found: set[Path] = set()
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source}: no such file or folder")
        inside = source.rglob("*") if source.is_dir() else [source]
        found.update(f for f in inside if f == source or f.suffix.lower() in EXTENSIONS)
    if not found:
        raise UsageError(f"no video or still in {', '.join(map(str, sources))}")
    return sorted(found)


@dataclass
class Source:
    """What is known of a file after its first use; the last two only if it is kept in memory."""

    size: int  # short side to read it at
    latest: float  # seconds: the last start that leaves time for a whole training clip
    origin: int  # ticks: what a start counts from
    time_base: Fraction
    frames: np.ndarray | None = None  # uint8 (t h w c)
    times: np.ndarray | None = None  # ticks (t)


class Clips:
    """Random clips (b c t h w) uint8 of files: any start, any place, mirrored half of the time.

    Larger files are scaled down to `settings.size` on the short side; stills become slow pans; of
    files whose length the header does not tell, only the beginning is used.
    `broken` maps each file that could not be read to the reason; it is left out from then on.
    """

    def __init__(self, paths: list[Path], settings: TrainSettings) -> None:
        self.settings = settings
        self.paths = paths
        self.broken: dict[Path, str] = {}
        self._sources: dict[Path, Source] = {}
        self._room = settings.cache_gib * 2**30

    def batch(self, step: int) -> Tensor:
        """The clips of one step. Raises VqtokError when no file is left that can be read."""
        clips = [self._clip(step, i) for i in range(self.settings.batch_size)]
        return torch.from_numpy(np.stack(clips)).movedim(-1, 1)

    def _clip(self, step: int, i: int) -> np.ndarray:
        rng = np.random.default_rng((self.settings.seed, step, i))
        while len(self.broken) < len(self.paths):
            path, where = self.paths[rng.integers(len(self.paths))], rng.random()
            if path in self.broken:
                continue
            try:
                return self._crop(self._window(path, where), rng)
            except VqtokError as error:
                self.broken[path] = str(error)
        reason = next(iter(self.broken.values()))
        raise VqtokError(f"none of the {len(self.paths)} training files can be read: {reason}")

    def _window(self, path: Path, where: float) -> np.ndarray:
        """(t h w c): consecutive frames from `where` in 0..1 of the file on; fewer at its end."""
        if path not in self._sources:
            self._sources[path] = self._open(path)
        source, frames = self._sources[path], self.settings.frames
        start = where * source.latest
        if source.frames is not None:
            tick = source.origin + round(start / source.time_base)
            first = int(np.searchsorted(source.times, tick)) % len(source.times)
            return source.frames[first : first + frames]
        try:
            return read_window(path, start, frames, source.size)
        except VqtokError:  # the header promised more than there is
            return read_window(path, 0, frames, source.size)

    def _open(self, path: Path) -> Source:
        with open_video(path) as clip:
            short, seconds, rate = min(clip.height, clip.width), clip.duration or 0, float(clip.fps)
            size = min(max(short, self.settings.crop), max(self.settings.size, self.settings.crop))
            need = 3 * clip.height * clip.width * (size / short) ** 2 * max(1, seconds * rate)
            latest = max(0.0, seconds - self.settings.frames / rate)
            source = Source(size, latest, clip.origin or 0, clip.time_base)
            known = clip.duration is not None
        if known and need <= self._room:
            self._keep(source, path)
        return source

    def _keep(self, source: Source, path: Path) -> None:
        with open_video(path, size=source.size) as clip:
            chunks, times = zip(*clip.chunks(self.settings.frames), strict=True)
        source.frames, source.times = np.concatenate(chunks), np.concatenate(times)
        self._room -= source.frames.nbytes

    def _crop(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(t crop crop c): a fixed place of a video, a moving one of a still."""
        t, side = self.settings.frames, self.settings.crop
        still = len(frames) == 1
        frames = frames[np.minimum(np.arange(t), len(frames) - 1)]
        room = np.array(frames.shape[1:3]) - side
        pan = rng.integers(-FASTEST_PAN, FASTEST_PAN + 1, 2) if still else 0
        corners = rng.integers(room + 1) + np.arange(t)[:, None] * pan
        corners = np.clip(corners, 0, room)
        crop = np.stack(
            [f[y : y + side, x : x + side] for f, (y, x) in zip(frames, corners, strict=True)]
        )
        return crop[:, :, ::-1] if rng.random() < 0.5 else crop


class Procedural:
    """Clips (b c t h w) uint8 made from nothing: moving waves of colour, a moving box on top."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.broken: dict[Path, str] = {}

    def batch(self, step: int) -> Tensor:
        """The clips of one step."""
        seeds = [(self.settings.seed, step, i) for i in range(self.settings.batch_size)]
        clips = [
            moving_waves(np.random.default_rng(s), self.settings.frames, self.settings.crop)
            for s in seeds
        ]
        return torch.from_numpy(np.stack(clips)).movedim(-1, 1)


def moving_waves(rng: np.random.Generator, frames: int, side: int) -> np.ndarray:
    """uint8 (t h w c): four waves of random direction, speed and colour, and a box that moves."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(side), np.arange(side), indexing="ij")
    video = np.full((frames, side, side, 3), rng.uniform(0.3, 0.7, 3))
    for _ in range(4):
        ky, kx, speed, phase = rng.normal(size=4) * (0.15, 0.15, 0.3, 3)
        video += np.sin(ky * y + kx * x + speed * t + phase)[..., None] * rng.normal(size=3) * 0.12
    start, speed, reach = rng.uniform(0, side, 2), rng.normal(size=2) * 2, rng.uniform(0.1, 0.3, 2)
    top, left = (start[i] + speed[i] * t for i in range(2))
    inside = (abs(y - top) < side * reach[0]) & (abs(x - left) < side * reach[1])
    video[inside] = rng.uniform(0, 1, 3)
    return (video.clip(0, 1) * 255).astype(np.uint8)
