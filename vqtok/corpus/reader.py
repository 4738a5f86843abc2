"""The token files in the shards of a corpus, read one by one where they lie."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vqtok.corpus.records import Record, read_record
from vqtok.corpus.settings import Corpus
from vqtok.corpus.shards import Shard, key_name
from vqtok.corpus.tar import BLOCK
from vqtok.errors import VqtokError, os_reason
from vqtok.safetensors_io import Header
from vqtok.tokens import Tokens, read_header_at, read_tokens_at

_NAME = 100  # bytes of the name of a member, at the beginning of its header


class PackedTokens(NamedTuple):
    """A token file in the tar of a shard.

    name: of the clip, such as a/b.mp4. offset, bytes: where the token file lies in the tar.
    """

    tar: Path
    key: int
    name: str
    offset: int
    bytes: int

    @property
    def folder(self) -> Path:
        """The folder of the corpus."""
        return self.tar.parent.parent

    @property
    def path(self) -> Path:
        """The path that the token file would have if the corpus were a folder of token files."""
        return self.folder / f"{self.name}.safetensors"

    def read(self) -> Tokens:
        """Read the tokens; the indices stay on disk if they take more than 16 MiB.

        Raises VqtokError, naming the clip, if the tar or its record is damaged.
        """
        with _open(self) as tar:
            return read_tokens_at(tar, self.offset, self.bytes, str(self))

    def read_settings(self) -> Tokens:
        """Read all but indices and timestamps, as `vqtok.tokens.read_settings`."""
        return self.read_header()[1]

    def read_header(self) -> tuple[Header, Tokens]:
        """Read where the tensors lie in the token file, and what `read_settings` returns."""
        with _open(self) as tar:
            return read_header_at(tar, self.offset, self.bytes, str(self))

    def __str__(self) -> str:
        return f"{self.path} in {self.tar.name}"


@contextmanager
def _open(packed: PackedTokens) -> Iterator[BinaryIO]:
    """Open the tar of a token file; raise VqtokError if it does not have that file there."""
    try:
        with packed.tar.open("rb") as tar:
            tar.seek(packed.offset - BLOCK)
            member = tar.read(BLOCK)[:_NAME].rstrip(b"\0")
            if member != f"{key_name(packed.key)}.safetensors".encode():
                raise VqtokError(
                    f"{packed}: the tar is truncated or not the one of its record; delete both and "
                    "run `vqtok encode` again"
                )
            yield tar
    except OSError as error:
        raise VqtokError(f"{packed}: {os_reason(error)}") from None


def published_shards(corpus: Corpus) -> list[Shard]:
    """Return the shards that have a record. What is wrong with them shows when they are read."""
    return [shard for shard in corpus.shards if shard.record.exists()]


def shard_record(shard: Shard) -> Record:
    """Return the record of a published shard.

    Raises VqtokError if it is damaged, or the one of another shard.
    """
    record = read_record(shard.record)
    keys = [clip.key for clip in record.clips]
    if record.shard != shard.number or not all(key in shard.keys for key in keys):
        raise VqtokError(
            f"{shard.record} is the record of another shard or corpus; delete it and its tar, and "
            "run `vqtok encode` again"
        )
    return record


def read_shard(shard: Shard) -> list[PackedTokens]:
    """Return the token files of a published shard, in the order of their keys.

    Raises VqtokError as `shard_record`.
    """
    tar, clips = shard.tar, shard_record(shard).clips
    return [PackedTokens(tar, c.key, c.name, c.offset, c.bytes) for c in clips]


def iter_tokens(corpus: Corpus) -> Iterator[PackedTokens]:
    """Yield the token files of all published shards; one record is in memory at a time."""
    for shard in published_shards(corpus):
        yield from read_shard(shard)


def unpublished_notes(corpus: Corpus) -> list[str]:
    """Return a note for the user if some shards are not published yet."""
    published = {shard.number for shard in published_shards(corpus)}
    missing = [shard for shard in corpus.shards if shard.number not in published]
    if not missing:
        return []
    clips = sum(len(shard.keys) for shard in missing)
    return [
        f"{corpus.folder}: {len(missing)} of {len(corpus.shards)} shards, with {clips:,} of "
        f"{len(corpus):,} clips, not published yet"
    ]
