"""Random training clips from videos and images. A step of a run always sees the same clips."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqtok.errors import INTERRUPTS, UsageError, VqtokError, describe_failure
from vqtok.files import MEDIA_SUFFIXES, list_files, real_path
from vqtok.settings import TrainSettings
from vqtok.training import augmentation as augment
from vqtok.training.cache import CachedClip, ClipCache, Frames
from vqtok.training.clips import TrainingClips
from vqtok.video import Clip, open_video, read_window

SAMPLE_CLIPS = 4
MAX_PAN_SPEED = 3  # pixels per frame of a pan over an image, before scaling


def find_media(sources: Sequence[str | Path]) -> list[Path]:
    """Return the videos and images in files, folders and glob patterns, sorted, each once.

    Of several paths to one file, the first is taken.

    Raises UsageError if a source does not exist or there is no video or image at all.
    """
    paths = sorted(path for _, path in list_files(sources, MEDIA_SUFFIXES).files)
    if not paths:
        raise UsageError(f"no videos or images in {', '.join(map(str, sources))}")
    return sorted({real_path(path): path for path in reversed(paths)}.values())


@dataclass(frozen=True)
class MediaInfo:
    """Properties of a file, read once.

    short_side: target length of the short side, in pixels.
    duration: seconds; 0 if the header does not say.
    origin: timestamp of the start, in ticks of `time_base`.
    cached: the decoded clip, or None if there is no room for it or its duration is unknown.
    """

    short_side: int
    duration: float
    fps: float
    origin: int
    time_base: Fraction
    cached: CachedClip | None


class VideoClips(TrainingClips):
    """Random clips of files, augmented as the settings say.

    A clip starts at a random time, is cropped at a random place and mirrored with p = 0.5. Larger
    videos are first scaled to `settings.size` on the short side. Images become slow pans. Of
    videos whose header has no duration, only the beginning is used. Files that cannot be read are
    skipped.

    paths: files to train on.
    validation_paths: files that are held out.
    cache: folder for decoded clips; None keeps them in memory.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        settings: TrainSettings,
        validation_paths: Sequence[Path] = (),
        cache: Path | None = None,
    ) -> None:
        super().__init__(settings)
        self.paths, self.validation_paths = paths, validation_paths
        self._media: dict[Path, MediaInfo | None] = {}
        self._cache = ClipCache(cache, settings.cache_gib * 2**30)

    def clip(self, step: int, i: int) -> Tensor:
        """Return clip i of a step, uint8 (t crop crop c).

        Raises VqtokError if no file can be read.
        """
        rng = np.random.default_rng((self.settings.seed, step, i))
        failed: set[Path] = set()  # by this clip alone: what others have found must not matter
        while any(path not in failed for path in self.paths):
            path, position = self.paths[int(rng.integers(len(self.paths)))], rng.random()
            stride = int(rng.choice(self.settings.strides))
            frames = self._try_to_read(path, position, stride)
            if frames is not None:
                return self._augment(frames, rng)
            failed.add(path)
        reason = self.unreadable[self.paths[0]]
        raise VqtokError(f"none of the {len(self.paths)} training files can be read: {reason}")

    def validation_clips(self, frames: int) -> Iterator[Tensor]:
        """Yield the first frames of each held-out file, uint8 (1 3 t h w), not cropped."""
        yield from self._first_frames(self.validation_paths, frames)

    def sample_clips(self, frames: int) -> Iterator[Tensor]:
        """Yield the first frames of a few files: held-out ones, else training files."""
        yield from self._first_frames((self.validation_paths or self.paths)[:SAMPLE_CLIPS], frames)

    def _first_frames(self, paths: Sequence[Path], frames: int) -> Iterator[Tensor]:
        for path in paths:
            try:
                if path not in self.unreadable:
                    with open_video(path) as clip:
                        short_side = self._short_side(clip)
                    pixels = read_window(path, 0, frames, short_side)
                    yield torch.from_numpy(pixels).movedim(-1, 0)[None]
            except INTERRUPTS:
                raise
            except BaseException as error:
                self._skip(path, error)

    @property
    def metrics(self) -> dict[str, float]:
        """For the log: the share of clips so far that did not need decoding."""
        hits = self.counts["clips_cached"] - self.counts["files_decoded"]
        return {"cache_hits": hits / max(1, self.counts["clips_read"])}

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside the block, clips are cached in a temporary folder instead of in memory."""
        with self._cache.in_folder():
            yield

    def _skip(self, path: Path, error: BaseException) -> None:
        """Record why a file is skipped. A full disk of the cache is raised instead."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise error
        self.unreadable[path] = describe_failure(error, path)

    def _try_to_read(self, path: Path, position: float, stride: int) -> Frames | None:
        """Return every stride-th frame (t h w c) from a position in 0..1 of the file.

        Files that are too short for the stride give consecutive frames, files that cannot be read
        None.
        """
        media = self.info(path)
        if media is None:
            return None
        span = 1 + (self.settings.frames - 1) * stride
        try:
            frames = self._read(path, media, position, span)
        except INTERRUPTS:
            raise
        except BaseException as error:
            self._skip(path, error)
            return None
        self.counts["clips_read"] += 1
        self.counts["clips_cached"] += media.cached is not None
        return frames[::stride] if len(frames) == span else frames

    def info(self, path: Path) -> MediaInfo | None:
        """Return the properties of a file, None if it cannot be read."""
        if path not in self._media:
            try:
                self._media[path] = self._open(path)
            except INTERRUPTS:
                raise
            except BaseException as error:
                self._skip(path, error)
                self._media[path] = None
        return self._media[path]

    def _read(self, path: Path, media: MediaInfo, position: float, frames: int) -> Frames:
        """Return consecutive frames (t h w c), fewer at the end of the file."""
        start = position * max(0.0, media.duration - frames / media.fps)
        if media.cached is not None:
            timestamps = media.cached.timestamps
            tick = media.origin + round(start / media.time_base)
            first = int(np.searchsorted(timestamps, tick)) % len(timestamps)
            return media.cached.open_frames()[first : first + frames]
        try:
            return read_window(path, start, frames, media.short_side)
        except VqtokError:  # the header promised more frames than there are
            return read_window(path, 0, frames, media.short_side)

    def _open(self, path: Path) -> MediaInfo:
        with open_video(path, frugal=True) as clip:
            short_side, duration, fps = self._short_side(clip), clip.duration, float(clip.fps)
            scale = short_side / min(clip.height, clip.width)
            frames = max(1, (duration or 0) * fps)
            estimated_bytes = 3 * clip.height * clip.width * scale**2 * frames
            origin, time_base = clip.origin, clip.time_base
        cached = None
        if duration is not None:
            cached = self._cache.get(path, short_side, estimated_bytes)
        if cached is not None and not cached.hit:
            self.counts["files_decoded"] += 1
        return MediaInfo(short_side, duration or 0, fps, origin, time_base, cached)

    def _short_side(self, clip: Clip) -> int:
        """Return the short side to scale a video to: between `crop` and `size`, if possible."""
        crop, size = self.settings.crop, self.settings.size
        return min(max(min(clip.height, clip.width), crop), max(size, crop))

    def _augment(self, frames: Frames, rng: np.random.Generator) -> Tensor:
        """Return a random crop of the frames (t h w c) as a clip (t crop crop c)."""
        settings, size = self.settings, self.settings.crop
        if settings.random_scale > 1:
            limit = min(frames[0].shape[:2])
            size = augment.random_crop_size(rng, size, settings.random_scale, limit)
        clip = torch.from_numpy(_random_crop(frames, settings.frames, size, rng))
        if size != settings.crop:
            clip = augment.resize(clip, settings.crop)  # before flips: contiguous is faster
        clip = clip.flip(2) if rng.random() < 0.5 else clip  # in torch: four times as fast
        if settings.flip:
            clip = augment.flip(rng, clip)
        if settings.color_jitter:
            clip = augment.color_jitter(rng, clip, settings.color_jitter)
        return clip


def _random_crop(frames: Frames, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Crop frames (t h w c) to (count size size c), at a fixed place; over an image, it moves.

    The last frame is repeated if there are too few.
    """
    room = np.array(frames[0].shape[:2]) - size
    velocity = rng.integers(-MAX_PAN_SPEED, MAX_PAN_SPEED + 1, 2) if len(frames) == 1 else 0
    corners = np.clip(rng.integers(room + 1) + np.arange(count)[:, None] * velocity, 0, room)
    if isinstance(frames, np.ndarray) and len(frames) >= count:  # one copy is faster
        y, x = corners[0]
        return np.array(frames[:count, y : y + size, x : x + size])
    crop = np.empty((count, size, size, 3), np.uint8)
    for i, (y, x) in enumerate(corners):
        crop[i] = frames[min(i, len(frames) - 1)][y : y + size, x : x + size]
    return crop
