"""`index.safetensors`: where every clip of a corpus lies, as columns of numbers.

It is made from the records of the shards. Opening it takes no object per clip.
"""

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vqtok.corpus.reader import published_shards, shard_record
from vqtok.corpus.records import PackedClip, Record
from vqtok.corpus.settings import open_corpus
from vqtok.corpus.tar import BLOCK
from vqtok.safetensors_io import DTYPES, check_size, read_header, write_file
from vqtok.untrusted import reading

INDEX = "index.safetensors"
COLUMNS = (
    *("key", "shard", "offset", "bytes", "indices", "itemsize"),
    *("t", "h", "w", "stages", "frames", "tokens"),
)
_METADATA = {"format": "vqtok-index", "version": "1"}
_INT64 = np.dtype("<i8")

Columns = dict[str, np.ndarray]


def write_index(folder: Path, records: Iterable[Record]) -> None:
    """Write the index of a corpus, given the records of its shards in order."""
    write_file(folder / INDEX, _METADATA, _to_columns(records))


def read_index(folder: str | Path) -> Columns:
    """Return the columns of the index of a corpus, int64, with a row for each clip.

    key: of the clip; rows are in the order of keys.
    shard: number of its shard.
    offset, bytes: where its token file lies in the tar of the shard.
    indices, itemsize: where its indices lie in the tar, and bytes of an index: u1, u2 or i4.
    t, h, w, stages: shape of the indices; stages is 1 for those of shape (t h w).
    frames: of the video. tokens: spent on it.

    The columns are memory-mapped, or made from the records if there is no index, as before the
    last shard is published. Raises VqtokError if the index or a record is damaged.
    """
    path = Path(folder) / INDEX
    if not path.exists():
        return _to_columns(map(shard_record, published_shards(open_corpus(folder))))
    advice = "; delete it: the records tell the same"
    with reading(path, "is damaged or not the index of a corpus", advice):
        columns = _map(path)
        _check(columns, len(open_corpus(folder).shards))
    return columns


def _to_columns(records: Iterable[Record]) -> Columns:
    columns = [array("q") for _ in COLUMNS]
    for record in records:
        for clip in record.clips:
            for column, value in zip(columns, _to_row(record.shard, clip), strict=True):
                column.append(value)
    arrays = (np.frombuffer(column, _INT64) for column in columns)
    return dict(zip(COLUMNS, arrays, strict=True))


def _to_row(shard: int, clip: PackedClip) -> tuple[int, ...]:
    t, h, w, stages = (*clip.shape, 1)[:4]
    place = clip.offset, clip.bytes, clip.indices, DTYPES[clip.dtype].itemsize
    return clip.key, shard, *place, t, h, w, stages, clip.frames, clip.tokens


def _map(path: Path) -> Columns:
    """Return the columns of an index file; raises ValueError, with a short reason."""
    with path.open("rb") as file:
        header = read_header(file)
        check_size(header, file.seek(0, 2))
        data = np.memmap(file, np.uint8, "r")[header.start :]
    if header.metadata != _METADATA:
        raise ValueError("its format or version is another one")
    if header.tensors.keys() != set(COLUMNS):
        raise ValueError("its columns are other ones")
    rows = header.tensors["key"].shape
    for info in header.tensors.values():
        if info.dtype != "I64" or info.shape != rows or len(rows) != 1:
            raise ValueError("its columns are not 64-bit integers, one a clip")
    places = ((name, header.tensors[name]) for name in COLUMNS)
    return {name: data[i.begin : i.begin + i.nbytes].view(_INT64) for name, i in places}


def _check(columns: Columns, shards: int) -> None:
    """Raise ValueError unless readers may rely on what the columns say about the tars."""
    key, shard, offset, size, indices, itemsize, *shape, frames, tokens = map(
        np.asarray, (columns[name] for name in COLUMNS)
    )
    if any((column < 0).any() for column in columns.values()) or (shard >= shards).any():
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
