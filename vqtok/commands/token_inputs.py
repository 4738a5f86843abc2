"""What a command reads that goes through all tokens: files, and whole shards of corpora."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vqtok.corpus.reader import PackedTokens, published_shards, read_shard, unpublished_notes
from vqtok.corpus.settings import Corpus
from vqtok.corpus.shards import Shard
from vqtok.corpus.sources import resolve_source
from vqtok.errors import UsageError
from vqtok.files import MEDIA_SUFFIXES, list_files, real_path
from vqtok.targets import File
from vqtok.tokens import Tokens, read_tokens


class Input(NamedTuple):
    """A token file or a clip, or one token file or a whole shard of a corpus.

    argument: of the command line, that it comes from.
    root: the folder that the name of a clip is relative to.
    path: of the file, or of the record of the shard; - is stdin.
    packed: what to read of a corpus.
    """

    argument: str
    root: Path
    path: str
    packed: PackedTokens | Shard | None = None

    @property
    def size(self) -> int:
        """Number of files, those of a shard that could not be encoded included."""
        return len(self.packed.keys) if isinstance(self.packed, Shard) else 1

    def files(self) -> Sequence[str | PackedTokens]:
        """Return the files; raises VqtokError if the record of the shard is damaged."""
        if isinstance(self.packed, Shard):
            return read_shard(self.packed)
        return [self.packed or self.path]

    def clip_name(self, file: str | PackedTokens) -> str:
        """Return the name of the clip that one of the files is of, such as a/b.mp4."""
        if isinstance(file, PackedTokens):
            return file.name
        return str(Path(file).relative_to(self.root)).removesuffix(".safetensors")


def list_inputs(
    sources: Sequence[str], each: bool, clip_hint: str | None
) -> tuple[list[Input], list[str]]:
    """Return the token files of each source, or its clips if it has no token files.

    A file that several sources name is listed once, or, if `each` is set, once for each of them.
    Also return notes for the user on what was passed over.

    clip_hint: what to do with a clip, if the command cannot read one.

    Raises UsageError for a source without files, or for a clip if there is a `clip_hint`.
    """
    inputs: dict[tuple[object, Path], Input] = {}
    notes: list[str] = []
    for source in sources:
        found, source_notes = _list_source(source)
        notes += source_notes
        for entry in found:
            if clip_hint is not None and is_clip(entry.path):
                raise UsageError(f"{entry.path} is a clip: {clip_hint}")
            key = (source if each else None, real_path(entry.path))
            inputs.setdefault(key, entry)
    return list(inputs.values()), notes


def _list_source(source: str) -> tuple[list[Input], list[str]]:
    """Return the token files or clips of a source, and notes on what was passed over."""
    if source == "-":
        return [Input(source, Path(), source)], []
    found = resolve_source(source)
    if isinstance(found, Corpus):
        notes = unpublished_notes(found)
        shards = [Input(source, found.folder, str(s.record), s) for s in published_shards(found)]
        if not shards:
            raise UsageError(notes[0])
        return shards, notes
    if isinstance(found, PackedTokens):
        return [Input(source, found.folder, source, found)], []
    if not found.files:
        clips = list_files([source], MEDIA_SUFFIXES)
        if not clips.files:
            raise UsageError("; ".join([f"{source}: no token files in it", *found.notes]))
        found = clips
    return [Input(source, root, str(path)) for root, path in found.files], found.notes


def files_read(inputs: Iterable[Input]) -> list[File]:
    """Return all files that are read, which no output may be."""
    files: list[File] = []
    for entry in inputs:
        files.append(sys.stdin if entry.path == "-" else entry.path)
        if entry.packed is not None:
            files.append(entry.packed.tar)
    return files


def is_clip(path: str) -> bool:
    """Return whether a file is a video or an image, judged by its suffix."""
    return Path(path).suffix.lower() in MEDIA_SUFFIXES


def read_file(file: str | PackedTokens) -> Tokens:
    """Read a token file, or stdin for -; raises VqtokError as `read_tokens`."""
    if isinstance(file, PackedTokens):
        return file.read()
    return read_tokens(sys.stdin.buffer if file == "-" else file)
