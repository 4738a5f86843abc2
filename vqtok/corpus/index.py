"""`index.safetensors`: where every clip of a corpus lies and when it plays, as columns of numbers.

It is made from the records of the shards. Opening it takes no object per clip.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vqtok.corpus.columns import (
    INT64,
    PLACE,
    TIMING,
    Columns,
    StringColumn,
    clip_row,
    to_columns,
)
from vqtok.corpus.reader import published_shards, shard_record
from vqtok.corpus.records import Record
from vqtok.corpus.settings import open_corpus
from vqtok.corpus.tar import BLOCK
from vqtok.safetensors_io import Header, check_size, read_header, write_file
from vqtok.untrusted import reading

INDEX = "index.safetensors"
COLUMNS = (*PLACE, *TIMING, "name_end")
NAMES = "names"
_METADATA = {"format": "vqtok-index", "version": "1"}


def write_index(folder: Path, records: Iterable[Record]) -> None:
    """Write the index of a corpus, given the records of its shards in order."""
    write_file(folder / INDEX, _METADATA, _make(records))


def read_index(folder: str | Path) -> Columns:
    """Return the columns of the index of a corpus, int64, with a row for each clip.

    key: of the clip; rows are in the order of keys.
    shard: number of its shard.
    offset, bytes: where its token file lies in the tar of the shard.
    indices, itemsize: where its indices lie in the tar, and bytes of an index: u1, u2 or i4.
    t, h, w, stages: shape of the indices; stages is 1 for those of shape (t h w).
    frames: of the video. tokens: spent on it.
    fps_num, fps_den, time_base_num, time_base_den, origin: as fractions and numbers in
        `vqtok.Tokens`.
    start, step: timestamps are start + i * step; both are 0 if they are not evenly spaced.
    timestamps: where they lie in the tar, int64, if they are not evenly spaced; else 0.
    name_end: end of the clip's name in `names`, UTF-8 as uint8, where the next one begins.

    The columns are memory-mapped. If there is no index, as before the last shard is published, they
    are made from the records. Raises VqtokError if the index or a record is damaged.
    """
    path = Path(folder) / INDEX
    corpus = open_corpus(folder)
    if not path.exists():
        return _make(map(shard_record, published_shards(corpus)))
    advice = "; delete it: the shards tell the same"
    with reading(path, "is damaged or not the index of a corpus", advice):
        columns = _map(path)
        _check(columns, len(corpus.shards))
    return columns


def clip_names(columns: Columns) -> StringColumn:
    """Return the names of the clips of an index."""
    return StringColumn(columns[NAMES], columns["name_end"])


def _make(records: Iterable[Record]) -> Columns:
    names: list[str] = []
    columns = to_columns((*PLACE, *TIMING), _rows(records, names))
    column = StringColumn.of(names)
    return columns | {"name_end": column.ends, NAMES: column.data}


def _rows(records: Iterable[Record], names: list[str]) -> Iterator[tuple[int, ...]]:
    """Yield the rows of `PLACE` and `TIMING` of all clips, and append their names."""
    for record in records:
        for clip in record.clips:
            names.append(clip.name)
            yield clip_row(record.shard, clip)


def _map(path: Path) -> Columns:
    """Return the columns of an index file; raises ValueError, with a reason, if it is not one."""
    with path.open("rb") as file:
        header = read_header(file)
        check_size(header, file.seek(0, 2))
        data = np.memmap(file, np.uint8, "r")[header.start :]
    _check_header(header)
    places = ((name, header.tensors[name]) for name in (*COLUMNS, NAMES))
    arrays = {name: data[i.begin : i.begin + i.nbytes] for name, i in places}
    return {n: array if n == NAMES else array.view(INT64) for n, array in arrays.items()}


def _check_header(header: Header) -> None:
    if header.metadata != _METADATA:
        raise ValueError("its format or version is another one")
    if header.tensors.keys() != {*COLUMNS, NAMES}:
        raise ValueError("its columns are other ones")
    rows = header.tensors["key"].shape
    infos = [header.tensors[name] for name in COLUMNS]
    if len(rows) != 1 or any((info.dtype, info.shape) != ("I64", rows) for info in infos):
        raise ValueError("its columns are not 64-bit integers, one a clip")
    names = header.tensors[NAMES]
    if names.dtype != "U8" or len(names.shape) != 1:
        raise ValueError("its names are not text")


def _check(columns: Columns, shards: int) -> None:
    """Raise ValueError unless readers may rely on what the columns say about the tars."""
    key, shard, offset, size, indices, itemsize, *shape, frames, tokens = map(
        np.asarray, (columns[name] for name in PLACE)
    )
    signed = "origin", "start"
    counts = [columns[name] for name in COLUMNS if name not in signed]
    if any((column < 0).any() for column in counts) or (shard >= shards).any():
        raise ValueError("a number is out of range")
    if (np.diff(key) <= 0).any() or (np.diff(shard) < 0).any():
        raise ValueError("its rows are not in the order of keys")
    if (offset % BLOCK).any() or not np.isin(itemsize, (1, 2, 4)).all():
        raise ValueError("a token file is not aligned, or its indices have another size")
    positions = np.prod([side.astype(float) for side in shape], axis=0)
    if (positions == 0).any() or (tokens > positions).any() or (frames < 1).any():
        raise ValueError("a clip is empty, or has more tokens than indices")
    if (indices <= offset).any() or (indices + positions * itemsize > offset + size).any():
        raise ValueError("the indices of a clip do not lie in its token file")
    _check_timing(columns, frames.astype(float), offset, offset + size)
    ends = np.asarray(columns["name_end"])
    if (np.diff(ends) < 0).any() or ends[-1:].sum() != len(columns[NAMES]):
        raise ValueError("its names do not end where they should")


def _check_timing(columns: Columns, frames: np.ndarray, begin: np.ndarray, end: np.ndarray) -> None:
    """Raise ValueError unless rates are fractions, and timestamps lie in the token file."""
    rates = (columns[name] for name in TIMING[:4])
    if any((part < 1).any() for part in rates):
        raise ValueError("a frame rate or a time base is not a positive fraction")
    step, times = columns["step"], columns["timestamps"]
    regular = times == 0
    if ((step > 0) != regular).any():
        raise ValueError("a clip has no timestamps")
    if (~regular & ((times <= begin) | (times + 8 * frames > end))).any():
        raise ValueError("the timestamps of a clip do not lie in its token file")
