"""Videos and stills to random training clips; the same step of a run always sees the same clips."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqtok.config import TrainSettings
from vqtok.errors import UsageError, VqtokError
from vqtok.files import MEDIA_SUFFIXES, list_files
from vqtok.training import augmentation as augment
from vqtok.training.cache import Cache, CachedClip
from vqtok.video import Clip, open_video, read_window

FASTEST_PAN = 3  # pixels per frame over a still, before it is scaled
UNSEEN = 4  # made-up clips to validate on


def find_media(sources: Iterable[str | Path]) -> list[Path]:
    """Return the videos and images in files, folders and glob patterns, sorted, each once.

    Raises UsageError if a source does not exist or there is no video or image at all.
    """
    found = sorted({path for _, path in list_files(sources, MEDIA_SUFFIXES)})
    if not found:
        raise UsageError(f"no videos or images in {', '.join(map(str, sources))}")
    return found


@dataclass(frozen=True)
class Source:
    """What is known of a file after its first use."""

    size: int  # short side to read it at
    seconds: float
    rate: float  # frames per second
    origin: int  # ticks: what a start counts from
    time_base: Fraction
    kept: CachedClip | None  # its frames, if there was room for them


class Clips:
    """Random clips (b c t h w) uint8 of files: any start, any place, mirrored half of the time, and
    made more various as `settings` ask.

    Larger files are scaled down to `settings.size` on the short side; stills become slow pans; of
    files whose length the header does not tell, only the beginning is used.
    held_out: files of which no training clip is made.
    `broken` maps each file that could not be read to the reason; it is left out from then on.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        settings: TrainSettings,
        held_out: Sequence[Path] = (),
        cache: Path | None = None,
    ) -> None:
        self.settings = settings
        self.paths, self._held_out = paths, held_out
        self.broken: dict[Path, str] = {}
        self._sources: dict[Path, Source] = {}
        self._cache = Cache(cache, settings.cache_gib * 2**30)
        self._taken, self._hits, self._lost = 0, 0, 0  # clips; files

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Tensor:
        """The clips of one step, or a rank's share of them: together, those of one rank alone.

        Raises VqtokError when no file is left that can be read.
        """
        clips = [self._clip(step, i) for i in range(rank, self.settings.batch_size, ranks)]
        return torch.stack(clips).movedim(-1, 1)

    def held_out(self, frames: int) -> Iterator[Tensor]:
        """The beginning of each file held out, uint8 (1 3 t h w), as large as it is trained on."""
        for path in self._held_out:
            try:
                if path not in self.broken:
                    with open_video(path) as clip:
                        size = self._size(clip)
                    pixels = read_window(path, 0, frames, size)
                    yield torch.from_numpy(pixels).movedim(-1, 0)[None]
            except VqtokError as error:
                self.broken[path] = str(error)

    @property
    def figures(self) -> dict[str, float]:
        """For the log: the share of clips so far for which nothing had to be decoded."""
        return {"cache_hits": self._hits / max(1, self._taken)}

    def _clip(self, step: int, i: int) -> Tensor:
        rng = np.random.default_rng((self.settings.seed, step, i))
        while self._lost < len(self.paths):
            # All at once: what is drawn next must not hang on whether a file is known to be broken.
            path, where = self.paths[rng.integers(len(self.paths))], rng.random()
            stride = rng.choice(self.settings.strides)
            if path in self.broken:
                continue
            try:
                return self._crop(self._window(path, where, stride), rng)
            except VqtokError as error:
                self.broken[path] = str(error)
                self._lost += 1
        reason = self.broken[self.paths[0]]
        raise VqtokError(f"none of the {len(self.paths)} training files can be read: {reason}")

    def _window(self, path: Path, where: float, stride: int) -> np.ndarray:
        """(t h w c): frames from `where` in 0..1 of the file on; fewer at its end.

        Where the file is too short for every n-th frame, every one is taken.
        """
        source = self._sources.get(path)
        known = source is not None
        if source is None:
            source = self._sources[path] = self._open(path)
        whole = 1 + (self.settings.frames - 1) * stride
        frames = self._read(path, source, where, whole)
        self._taken += 1
        self._hits += source.kept is not None and (known or source.kept.found)
        return frames[:: stride if len(frames) == whole else 1]

    def _read(self, path: Path, source: Source, where: float, frames: int) -> np.ndarray:
        """(t h w c): so many consecutive frames, fewer at the end."""
        start = where * max(0.0, source.seconds - frames / source.rate)
        if source.kept is not None:
            times = source.kept.times
            tick = source.origin + round(start / source.time_base)
            first = int(np.searchsorted(times, tick)) % len(times)
            return source.kept.open()[first : first + frames]
        try:
            return read_window(path, start, frames, source.size)
        except VqtokError:  # the header promised more than there is
            return read_window(path, 0, frames, source.size)

    def _open(self, path: Path) -> Source:
        with open_video(path) as clip:
            size, seconds, rate = self._size(clip), clip.duration or 0, float(clip.fps)
            scale = size / min(clip.height, clip.width)
            need = 3 * clip.height * clip.width * scale**2 * max(1, seconds * rate)
            known, origin, time_base = clip.duration is not None, clip.origin or 0, clip.time_base
        kept = self._cache.get(path, size, need) if known else None
        return Source(size, seconds, rate, origin, time_base, kept)

    def _size(self, clip: Clip) -> int:
        """The short side to read a clip at."""
        crop, size = self.settings.crop, self.settings.size
        return min(max(min(clip.height, clip.width), crop), max(size, crop))

    def _crop(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        """(t crop crop c): a fixed place of a video, a moving one of a still."""
        t, side = self.settings.frames, self.settings.crop
        if self.settings.random_scale > 1:
            side = augment.side(rng, side, self.settings.random_scale, min(frames.shape[1:3]))
        room = np.array(frames.shape[1:3]) - side
        pan = rng.integers(-FASTEST_PAN, FASTEST_PAN + 1, 2) if len(frames) == 1 else 0
        corners = np.clip(rng.integers(room + 1) + np.arange(t)[:, None] * pan, 0, room)
        crop = np.empty((t, side, side, 3), np.uint8)
        for i, (y, x) in enumerate(corners):
            crop[i] = frames[min(i, len(frames) - 1), y : y + side, x : x + side]
        clip = torch.from_numpy(crop)
        clip = clip.flip(2) if rng.random() < 0.5 else clip  # four times as fast as NumPy's
        return self._varied(clip, rng)

    def _varied(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """The clip (t h w c), made into another one as the settings ask."""
        if self.settings.flip:
            clip = augment.turned(rng, clip)
        if self.settings.random_scale > 1:
            clip = augment.scaled(clip, self.settings.crop)
        if self.settings.color_jitter:
            clip = augment.coloured(rng, clip, self.settings.color_jitter)
        return clip


class Procedural:
    """Clips (b c t h w) uint8 made from nothing: moving waves of colour, a moving box on top."""

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings
        self.broken: dict[Path, str] = {}
        self.figures: dict[str, float] = {}

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Tensor:
        """The clips of one step, or a rank's share of them."""
        numbers = range(rank, self.settings.batch_size, ranks)
        return torch.cat([self._clip((self.settings.seed, step, i)) for i in numbers])

    def held_out(self, frames: int) -> Iterator[Tensor]:
        """A few clips (1 3 t h w) that training never sees."""
        for i in range(UNSEEN):
            yield self._clip((self.settings.seed, i), frames)

    def _clip(self, seed: tuple[int, ...], frames: int | None = None) -> Tensor:
        rng = np.random.default_rng(seed)
        clip = moving_waves(rng, frames or self.settings.frames, self.settings.crop)
        return torch.from_numpy(clip).movedim(-1, 0)[None]


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
