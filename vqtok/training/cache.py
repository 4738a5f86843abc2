"""A cache of decoded clips: in memory, or in a folder shared by runs and processes."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing import Value
from pathlib import Path
from shutil import disk_usage

import numpy as np

from vqtok import distributed
from vqtok.atomic import atomic_write, temporary_folder
from vqtok.files import real_path
from vqtok.interrupt import stopping
from vqtok.untrusted import parse_json
from vqtok.video import open_video

CHUNK = 16  # frames decoded at a time


Frames = np.ndarray | list[np.ndarray]  # (t h w c) uint8


@dataclass(frozen=True)
class CachedClip:
    """A decoded clip.

    timestamps: timestamp of each frame (t), in ticks of the source's time base.
    open_frames: returns the frames (t h w c) uint8.
    hit: whether the clip was in the cache folder already.
    """

    timestamps: np.ndarray
    open_frames: Callable[[], Frames]
    hit: bool


class _NoRoom(Exception):
    """There is no room for a clip."""


class ClipCache:
    """Decoded clips, up to a number of bytes, shared with processes that are forked.

    In a folder, a clip is two files, named after the source's path, size, modification time and
    the short side: NAME.frames has the pixels, uint8 (t h w c), and NAME.json the shape and the
    timestamps. The second is written last, and both atomically, so any process can use what it
    finds.

    folder: None keeps clips in memory.
    capacity: bytes that may be added; clips that were in the folder before do not count.
    """

    def __init__(self, folder: Path | None, capacity: float) -> None:
        self.folder = folder
        self._capacity = Value("d", capacity)

    @property
    def capacity(self) -> float:
        """Bytes that this process and those forked from it may still add."""
        return self._capacity.value

    @contextmanager
    def in_folder(self) -> Iterator[None]:
        """Use a temporary folder inside the block, if there is none; at most half of its disk."""
        if self.folder is not None:
            yield
            return
        capacity = self.capacity
        with temporary_folder() as self.folder:
            free = disk_usage(self.folder).free / distributed.local_world_size()
            self._capacity.value = min(capacity, free / 2)
            try:
                yield
            finally:
                self.folder, self._capacity.value = None, capacity

    def get(self, path: Path, short_side: int, estimated_bytes: float) -> CachedClip | None:
        """Return a clip scaled to this short side, decoding it if necessary.

        Returns None if there is no room for it, or if the process is asked to stop meanwhile.
        Raises VqtokError if it cannot be read.
        """
        with suppress(_NoRoom):
            if self.folder is None:
                return self._decode(path, short_side, estimated_bytes)
            entry = self.folder / _entry_name(path, short_side)
            with _locked(path):
                cached = _read_entry(entry, short_side, hit=True)
                if cached is None:
                    self._write_entry(entry, path, short_side, estimated_bytes)
                    cached = _read_entry(entry, short_side, hit=False)
                return cached
        return None

    def _decode(self, path: Path, short_side: int, estimated_bytes: float) -> CachedClip:
        frames: list[np.ndarray] = []
        timestamps: list[int] = []
        for chunk, times in self._chunks(path, short_side, estimated_bytes):
            # Part of a chunk would keep all of its memory.
            frames.extend(chunk if len(chunk) == CHUNK else chunk.copy())
            timestamps += times
        return CachedClip(np.array(timestamps), lambda: frames, hit=False)

    def _write_entry(
        self, entry: Path, path: Path, short_side: int, estimated_bytes: float
    ) -> None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        frames, index = _entry_files(entry)
        size: tuple[int, ...] = ()
        timestamps: list[int] = []
        with atomic_write(frames) as temporary, temporary.open("wb") as file:
            for chunk, times in self._chunks(path, short_side, estimated_bytes):
                file.write(chunk.data)
                timestamps += times
                size = chunk.shape[1:]
        with atomic_write(index) as temporary:
            content = {"source": str(path), "shape": (len(timestamps), *size), "times": timestamps}
            temporary.write_text(json.dumps(content))

    def _chunks(
        self, path: Path, short_side: int, estimated_bytes: float
    ) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Yield the frames and timestamps of a clip, and take the room that they need.

        Raises _NoRoom, as soon as possible.
        """
        reserved = used = 0.0
        try:
            self._reserve(estimated_bytes)  # before another process takes it
            reserved = estimated_bytes
            with open_video(path, size=short_side, frugal=True) as clip:
                for frames, timestamps in clip.chunks(CHUNK):
                    used += frames.nbytes
                    if used > reserved:  # the header promised fewer frames
                        self._reserve(used - reserved)
                        reserved = used
                    if stopping.is_set():  # the clip would take long; its window does not
                        raise _NoRoom
                    yield frames, timestamps
        except BaseException:
            used = 0
            raise
        finally:
            self._reserve(used - reserved)

    def _reserve(self, nbytes: float) -> None:
        with self._capacity.get_lock():
            if nbytes > self._capacity.value:
                raise _NoRoom
            self._capacity.value -= nbytes


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let other processes that want to decode this file wait, if its file system has locks."""
    with path.open("rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _entry_name(path: Path, short_side: int) -> str:
    stat = path.stat()
    key = f"{real_path(path)} {stat.st_size} {stat.st_mtime_ns} {short_side}"
    return f"{path.stem[:40]}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}"


def _entry_files(entry: Path) -> tuple[Path, Path]:
    """Return the paths of the frames and of the index."""
    # Not with_suffix: the name may contain dots.
    return entry.with_name(f"{entry.name}.frames"), entry.with_name(f"{entry.name}.json")


def _read_entry(entry: Path, short_side: int, hit: bool) -> CachedClip | None:
    """Return the clip of an entry; None if it does not exist or is damaged."""
    frames, index = _entry_files(entry)
    try:
        content = parse_json(index.read_bytes())
        times, shape = content["times"], tuple(content["shape"])
        if not all(type(number) is int for number in (*shape, *times)):
            return None
        t, height, width, channels = shape
        timestamps = np.asarray(times, np.int64)
        if not (min(height, width) == short_side and channels == 3 and 0 < t == len(times)):
            return None
        complete = frames.stat().st_size == prod(shape) and (np.diff(timestamps) > 0).all()
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    # Mapped for each use: thousands of clips would otherwise be as many open files.
    open_frames = partial(np.memmap, frames, np.uint8, "r", shape=shape)
    return CachedClip(timestamps, open_frames, hit) if complete else None
