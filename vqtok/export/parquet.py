"""A Parquet file with a row for each clip, as `datasets` and most tools for tables read it.

name; indices, a flat list of unsigned integers; shape, (t h w) or (t h w stages) of them; frames,
height and width of the clip; fps; and what `tokenizer_of` returns, a column each.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqtok.export.clips import Clip, tokenizer_of, with_one_tokenizer
from vqtok.export.layout import Layout
from vqtok.export.output import open_outputs
from vqtok.tokens.format import index_dtype

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_BYTES = 2**24  # of indices in a row group, which a reader holds in memory


def write_parquet(clips: Iterable[Clip], folder: Path) -> list[str]:
    """Write clips as rows of a table, a row group in memory at a time; return no notes.

    Needs pyarrow.

    Raises VqtokError for clips of several tokenizers.
    """
    from pyarrow.parquet import ParquetWriter

    clips = with_one_tokenizer(clips)
    first = next(clips)
    schema = _schema(index_dtype(first.tokens.codebook_size))
    # A reader needs no schema of Arrow, and few know its large_list.
    options = {"compression": "zstd", "use_dictionary": ["tokenizer"], "store_schema": False}
    with (
        open_outputs(folder, Layout.PARQUET.files) as (file,),
        ParquetWriter(file, schema, **options) as writer,
    ):
        for group in _groups(chain([first], clips)):
            writer.write_batch(_to_rows(group, schema))
    return []


def _groups(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
    """Yield clips in groups of about _GROUP_BYTES."""
    group: list[Clip] = []
    size = 0
    for clip in clips:
        group.append(clip)
        size += clip.tokens.indices.nbytes
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _schema(dtype: np.dtype) -> "pa.Schema":
    import pyarrow as pa

    integers = pa.list_(pa.int32())
    return pa.schema(
        [
            ("name", pa.string()),
            ("indices", pa.large_list(pa.from_numpy_dtype(dtype))),
            ("shape", integers),
            ("frames", pa.int32()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("fps", pa.float64()),
            ("tokenizer", pa.string()),
            ("quantizer", pa.string()),
            ("stride", integers),
            ("codebook_size", pa.int32()),
            ("stages", pa.int32()),
            ("zero_code", pa.bool_()),
            ("keyframe_interval", pa.int32()),
        ]
    )


def _to_rows(clips: Sequence[Clip], schema: "pa.Schema") -> "pa.RecordBatch":
    """Return a row for each clip."""
    import pyarrow as pa

    rows = [
        {
            "name": clip.name,
            "shape": clip.tokens.indices.shape,
            "frames": clip.tokens.frames,
            "height": clip.tokens.height,
            "width": clip.tokens.width,
            "fps": float(clip.tokens.fps),
        }
        | tokenizer_of(clip.tokens)
        for clip in clips
    ]
    list_type = schema.field("indices").type
    flat = [clip.tokens.indices.reshape(-1) for clip in clips]
    values = np.concatenate(flat).astype(list_type.value_type.to_pandas_dtype(), copy=False)
    starts = np.cumsum([0, *map(len, flat)])
    indices = pa.LargeListArray.from_arrays(starts, values)
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"indices": indices}
    return pa.record_batch(columns, schema)
