"""Decoded clips that are kept: in memory, or in a folder that several runs and processes share."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from vqtok.files import atomic_write
from vqtok.video import open_video

CHUNK = 16  # frames decoded at a time


@dataclass(frozen=True)
class CachedClip:
    """A decoded clip: its timestamps (t) in ticks, and what opens its frames (t h w c), uint8."""

    times: np.ndarray
    open: Callable[[], np.ndarray]
    found: bool  # in the folder, not decoded now


class Cache:
    """Clips decoded once, as long as they fit into so many bytes.

    In a folder, a clip is two files named after its path, size in bytes, time of change and short
    side: NAME.frames, uint8 (t h w c) and nothing else, and NAME.json, with its shape and times.
    The second is written last, and both appear whole: what is there can be used by any process.
    What was there before does not count against the room.
    """

    def __init__(self, folder: Path | None, room: float) -> None:
        self.folder, self.room = folder, room

    def get(self, path: Path, size: int, need: float) -> CachedClip | None:
        """The clip at this short side, which takes about `need` bytes; None if there is no room."""
        target = self.folder and self.folder / _name(path, size)
        kept = target and _read(target, found=True)
        if kept or need > self.room:
            return kept
        if target is None:
            with open_video(path, size=size) as clip:
                chunks, times = zip(*clip.chunks(CHUNK), strict=True)
            frames = np.concatenate(chunks)
            self.room -= frames.nbytes
            return CachedClip(np.concatenate(times), lambda: frames, found=False)
        self.room -= _write(target, path, size)
        return _read(target, found=False)


def _name(path: Path, size: int) -> str:
    about = path.stat()
    key = f"{path.resolve()} {about.st_size} {about.st_mtime_ns} {size}"
    return f"{path.stem[:40]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _files(target: Path) -> tuple[Path, Path]:
    """A stem may hold dots, so the endings are joined on."""
    return target.with_name(f"{target.name}.frames"), target.with_name(f"{target.name}.json")


def _write(target: Path, path: Path, size: int) -> int:
    """Decode a clip into its two files, a few frames at a time; how many bytes there are."""
    target.parent.mkdir(parents=True, exist_ok=True)
    frames, index = _files(target)
    with open_video(path, size=size) as clip, atomic_write(frames) as temporary:
        times: list[int] = []
        with temporary.open("wb") as file:
            for chunk, stamps in clip.chunks(CHUNK):
                file.write(chunk.data)
                times += stamps
    shape = len(times), clip.height, clip.width, 3
    with atomic_write(index) as temporary:
        temporary.write_text(json.dumps({"source": str(path), "shape": shape, "times": times}))
    return prod(shape)


def _read(target: Path, found: bool) -> CachedClip | None:
    """What is there; None if that is nothing, or cannot be read."""
    frames, index = _files(target)
    try:
        entry = json.loads(index.read_text())
        times, shape = np.asarray(entry["times"], np.int64), tuple(entry["shape"])
        whole = len(times) == shape[0] and frames.stat().st_size == prod(shape)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # Mapped anew for each use: thousands of clips would be as many open files.
    opened = partial(np.memmap, frames, np.uint8, "r", shape=shape)
    return CachedClip(times, opened, found) if whole else None
