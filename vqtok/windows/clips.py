"""The clips of a source as columns of numbers: where their indices lie, and when they play."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqtok.corpus.columns import TIMING, StringColumn
from vqtok.corpus.index import clip_names, read_index
from vqtok.corpus.reader import PackedTokens, unpublished_notes
from vqtok.corpus.settings import Corpus
from vqtok.corpus.sources import resolve_source
from vqtok.corpus.timing import Timing
from vqtok.errors import UsageError, VqtokError, os_message
from vqtok.files import FileList
from vqtok.safetensors_io import DTYPES, Header
from vqtok.tokens import Tokens, read_header_of
from vqtok.windows.codes import Codes, KeyframeIntervals, check_same

Source = str | Path


class Clip(NamedTuple):
    """Where the indices of a clip lie, and when it plays.

    file: number of the file that they lie in, a token file or the tar of a shard.
    indices, itemsize: where they begin in it, and bytes of an index.
    t, h, w, stages: their shape.
    """

    file: int
    indices: int
    itemsize: int
    t: int
    h: int
    w: int
    stages: int
    timing: Timing


_PLACE = Clip._fields[1:-1]
_NUMBERS = ("file", *_PLACE, *TIMING)


@dataclass(frozen=True)
class Clips:
    """The clips of a source: no object per clip, and no open file.

    rows: int64 (clips, _NUMBERS): the fields of a Clip, those of its timing last.
    names: of the clips. files: their paths. sizes: int64, of the files in bytes.
    codes: what all clips have in common.
    """

    rows: np.ndarray
    names: StringColumn
    files: StringColumn
    sizes: np.ndarray
    codes: Codes

    def column(self, field: str) -> np.ndarray:
        """Return a field of all clips."""
        return self.rows[:, _NUMBERS.index(field)]

    def __getitem__(self, i: int) -> Clip:
        file, indices, itemsize, t, h, w, stages, *timing = self.rows[i].tolist()
        return Clip(file, indices, itemsize, t, h, w, stages, Timing(*timing))


class _Part(NamedTuple):
    """Some of the clips. In their rows, `file` counts from 0. name: for messages."""

    name: str
    rows: np.ndarray
    names: StringColumn
    files: Sequence[str]
    sizes: np.ndarray
    codes: Codes


def read_clips(sources: Source | Sequence[Source], intervals: KeyframeIntervals) -> Clips:
    """Return the clips of corpora, folders and files, in this order.

    Warns of what is passed over. Raises UsageError for a source without token files, and VqtokError
    if a file is damaged or its codes are others than those of the first.
    """
    sources = [sources] if isinstance(sources, str | Path) else sources
    parts: list[_Part] = []
    files: list[str] = []
    for source in sources:
        begin = len(parts)
        for part in _read_source(source):
            codes = intervals.complete(part.codes, part.name)
            check_same(codes, parts[0].codes if parts else codes, part.name)
            part.rows[:, 0] += len(files)
            files += part.files
            parts.append(part._replace(codes=codes))
        if len(parts) == begin:
            raise UsageError(f"{source}: no token files in it")
    if not parts:
        raise UsageError("there is no source: give a corpus, a folder or token files")
    rows = np.concatenate([part.rows for part in parts])
    names = StringColumn.join([part.names for part in parts])
    sizes = np.concatenate([part.sizes for part in parts])
    return Clips(rows, names, StringColumn.of(files), sizes, parts[0].codes)


def _read_source(source: Source) -> Iterator[_Part]:
    found = resolve_source(source)
    if isinstance(found, Corpus):
        _warn(unpublished_notes(found))
        yield _corpus_part(found)
    elif isinstance(found, PackedTokens):
        header, tokens = found.read_header()
        yield _file_part(str(found), found.name, found.tar, header, tokens, found.offset)
    else:
        _warn(found.notes)
        yield from _file_parts(found)


def _file_parts(found: FileList) -> Iterator[_Part]:
    for root, path in found.files:
        name = str(path.relative_to(root)).removesuffix(".safetensors")
        yield _file_part(str(path), name, path, *read_header_of(path), 0)


def _file_part(
    label: str, name: str, path: Path, header: Header, tokens: Tokens, offset: int
) -> _Part:
    """Return the clip of a token file that begins at an offset of the file `path`."""
    indices = header.tensors["indices"]
    place = offset + header.start + indices.begin, DTYPES[indices.dtype].itemsize
    shape = (*indices.shape, 1)[:4]
    row = [0, *place, *shape, *Timing.of(header, tokens, offset)]
    rows, names, files = np.array([row], np.int64), StringColumn.of([name]), [str(path)]
    return _Part(label, rows, names, files, _sizes(files), Codes.of_tokens(tokens))


def _corpus_part(corpus: Corpus) -> _Part:
    columns, codes = read_index(corpus.folder), Codes.of_corpus(corpus)
    if (columns["stages"] != codes.stages).any():
        raise VqtokError(
            f"{corpus.folder}: a clip has other stages than its tokenizer: encode it again"
        )
    shards, file = np.unique(columns["shard"], return_inverse=True)
    fields = [file, *(columns[field] for field in (*_PLACE, *TIMING))]
    tars = [str(corpus.shard(number).tar) for number in shards.tolist()]
    sizes, ends = _sizes(tars), np.zeros(len(tars), np.int64)
    np.maximum.at(ends, file, columns["offset"] + columns["bytes"])
    if truncated := [tar for tar, cut in zip(tars, sizes < ends, strict=True) if cut]:
        raise VqtokError(
            f"{truncated[0]} is truncated or not the one of its record; delete both and run "
            "`vqtok encode` again"
        )
    rows, names = np.stack(fields, 1), clip_names(columns)
    return _Part(str(corpus.folder), rows, names, tars, sizes, codes)


def _sizes(files: Sequence[str]) -> np.ndarray:
    try:
        return np.array([Path(file).stat().st_size for file in files], np.int64)
    except OSError as error:
        raise VqtokError(os_message(error)) from None


def _warn(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=5)
