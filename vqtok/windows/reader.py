"""Latent frames and times of a clip, read where they lie."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vqtok.errors import VqtokError, os_reason
from vqtok.windows.clips import Clip

Slices = tuple[slice, slice, slice]
_DTYPES = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


def read_indices(path: str, size: int, clip: Clip, part: Slices, codebook_size: int) -> np.ndarray:
    """Return a part (t h w) of the indices of a clip, unsigned (t h w stages), memory-mapped.

    path, size: of the file in which they lie, as it was when it was opened first.
    part: of the latent frames, rows and columns; the latent frames have a start and an end.

    The file is mapped anew each time, until nothing refers to the array: the pages of a map that
    stays count as memory of the process.
    Raises VqtokError if the file has changed, or if an index is not in the codebook.
    """
    frames, rows, columns = part
    row = clip.h * clip.w * clip.stages * clip.itemsize
    shape = frames.stop - frames.start, clip.h, clip.w, clip.stages
    begin = clip.indices + frames.start * row
    skipped = begin % mmap.ALLOCATIONGRANULARITY
    with _open(path, size) as file:
        length = skipped + shape[0] * row
        mapped = mmap.mmap(file, length, access=mmap.ACCESS_READ, offset=begin - skipped)
    indices = np.ndarray(shape, _DTYPES[clip.itemsize], mapped, skipped)[:, rows, columns]
    if codebook_size < 256**clip.itemsize and indices.max() >= codebook_size:
        raise VqtokError(f"{path}: an index is not in the codebook; encode the video again")
    return indices


def read_time(path: str, size: int, clip: Clip, frame: int) -> float:
    """Return the time of a frame of the video in seconds, from the start of playback.

    path, size: as in `read_indices`; the file is read if the timestamps are not evenly spaced.
    """
    timing = clip.timing
    ticks = timing.start + frame * timing.step
    if timing.timestamps:
        with _open(path, size) as file:
            data = os.pread(file, 8, timing.timestamps + 8 * frame)
        ticks = int.from_bytes(data, "little", signed=True)
    return (ticks - timing.origin) * timing.time_base_num / timing.time_base_den


@contextmanager
def _open(path: str, size: int) -> Iterator[int]:
    """Open a file; raise VqtokError if it cannot be read, or has another size."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            if os.fstat(file).st_size != size:
                raise VqtokError(f"{path} has changed since it was opened: open it again")
            yield file
        finally:
            os.close(file)
    except OSError as error:
        raise VqtokError(f"{path}: {os_reason(error)}") from None
