"""Columns of numbers with a row for each clip: no object per clip, however many there are."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from vqtok.corpus.records import PackedClip
from vqtok.corpus.timing import Timing
from vqtok.safetensors_io import DTYPES

PLACE = (
    *("key", "shard", "offset", "bytes", "indices", "itemsize"),
    *("t", "h", "w", "stages", "frames", "tokens"),
)
TIMING = Timing._fields
INT64 = np.dtype("<i8")

Columns = dict[str, np.ndarray]


def to_columns(names: Iterable[str], rows: Iterable[Iterable[int]]) -> Columns:
    """Return int64 columns by name, given their rows."""
    columns = {name: array("q") for name in names}
    for row in rows:
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return {name: np.frombuffer(column, INT64) for name, column in columns.items()}


def clip_row(shard: int, clip: PackedClip) -> tuple[int, ...]:
    """Return the row of `PLACE` and `TIMING` of a clip in a shard."""
    t, h, w, stages = (*clip.shape, 1)[:4]
    place = clip.offset, clip.bytes, clip.indices, DTYPES[clip.dtype].itemsize
    return clip.key, shard, *place, t, h, w, stages, clip.frames, clip.tokens, *clip.timing


class StringColumn:
    """A column of strings, such as names of files: bytes end to end, and where each ends.

    It has no object per string, so processes that are forked share it.
    """

    def __init__(self, data: np.ndarray, ends: np.ndarray) -> None:
        """data: uint8, UTF-8 as in names of files. ends: int64, one a string."""
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> "StringColumn":
        """Return a column of strings. Raises ValueError for one that no file can be named."""
        data, ends = bytearray(), array("q")
        for string in strings:
            data += string.encode(errors="surrogateescape")
            ends.append(len(data))
        return cls(np.frombuffer(data, np.uint8), np.frombuffer(ends, INT64))

    @classmethod
    def join(cls, columns: Sequence["StringColumn"]) -> "StringColumn":
        """Return several columns as one."""
        sizes = [len(column.data) for column in columns]
        begins = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        ends = [column.ends + begin for column, begin in zip(columns, begins, strict=True)]
        return cls(np.concatenate([column.data for column in columns]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        begin = self.ends[i - 1] if i else 0
        return self.data[begin : self.ends[i]].tobytes().decode(errors="surrogateescape")
