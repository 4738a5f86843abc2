"""Publish shards: the tar, then its record; and open those again in which clips have failed."""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from vqtok.atomic import atomic_write
from vqtok.corpus.index import INDEX, write_index
from vqtok.corpus.reader import shard_record
from vqtok.corpus.records import Failure, PackedClip, Record, read_record, write_record
from vqtok.corpus.settings import Corpus
from vqtok.corpus.shards import (
    ATTEMPTS,
    FAILED,
    PART,
    Shard,
    key_name,
    members_end,
    read_details,
    write_details,
)
from vqtok.corpus.tar import BLOCK, END
from vqtok.errors import VqtokError, name_file
from vqtok.files import printable

FAILURES = "failures.jsonl"
_PIECE = 2**20  # bytes copied at a time


def publish(shard: Shard) -> bool:
    """Publish a shard if all its clips are finished; return whether it is published.

    Several processes may do so at once, and any of them may be killed: the first one's tar stays.
    """
    if shard.is_published():
        return True
    done, failed = shard.finished()
    if len(done) + len(failed) < len(shard.keys):
        return False
    if shard.record.exists() and not shard.tar.exists():  # somebody has deleted the tar
        shard.record.unlink(missing_ok=True)
    shard.tar.parent.mkdir(exist_ok=True)
    try:
        record = _make_tar(shard)
    except FileNotFoundError:  # another process has published the shard, or tries failures again
        return shard.is_published()
    write_record(shard.record, record)
    if shard.is_published():
        shutil.rmtree(shard.parts, ignore_errors=True)
    return shard.is_published()


def _make_tar(shard: Shard) -> Record:
    """Give a shard its tar, and return the record of it.

    A tar that is there already stays, if it has what is in the parts. Two processes may see other
    parts: a clip that has failed for one of them may be encoded by the other.
    """
    for replace in (False, False, True):  # the first one's tar may appear meanwhile
        keys = shard.finished()[0] if replace else _keys_to_pack(shard)
        failures = [shard.failure(key) for key in shard.keys if key not in keys]
        with atomic_write(shard.tar, replace=replace) as temporary:
            clips = write_tar(shard, sorted(keys), temporary)
            size, digest = temporary.stat().st_size, _sha256(temporary)
        if _sha256(shard.tar) == digest:
            break
    return Record(shard.number, digest, size, clips, failures)


def _keys_to_pack(shard: Shard) -> set[int]:
    """Return the clips in the tar of a shard, if it can be that of these parts, else all parts."""
    done, _ = shard.finished()
    try:
        with tarfile.open(shard.tar) as tar:
            names = set(tar.getnames())
    except (OSError, tarfile.TarError):
        return done
    keys = {key for key in done if f"{key_name(key)}.safetensors" in names}
    others = set(shard.keys) - keys
    is_ours = 2 * len(keys) == len(names) and all(shard.path(k, FAILED).exists() for k in others)
    return keys if is_ours else done


def write_tar(shard: Shard, keys: Iterable[int], path: Path) -> list[PackedClip]:
    """Write the parts of clips as a tar, and return what is in it."""
    clips = []
    with path.open("wb") as tar:
        for key in keys:
            source = shard.path(key, PART)
            with source.open("rb") as part:
                clip, size = read_details(part, source)
                start = tar.tell()
                _copy(part, tar, 0, size)
            clips.append(moved(clip, start))
        tar.write(END)
        tar.flush()
        os.fsync(tar.fileno())  # before its record can be there
    return clips


def moved(clip: PackedClip, offset: int) -> PackedClip:
    """Return a clip whose offsets are larger by `offset`."""
    return clip._replace(
        offset=clip.offset + offset,
        indices=clip.indices + offset,
        timing=clip.timing.moved(offset),
    )


def _copy(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    source.seek(start)
    while size:
        piece = source.read(min(size, _PIECE))
        if not piece:
            raise VqtokError(f"{source.name} is truncated: delete it")
        size -= target.write(piece)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(corpus: Corpus, shards: Iterable[Shard] | None = None) -> None:
    """Publish what is complete, delete what is left over, and list failures.

    When all shards are published, the index is written.

    shards: those that this process looks after; all by default.
    """
    with name_file(corpus.folder):
        for shard in corpus.shards if shards is None else shards:
            if publish(shard) and shard.parts.exists():
                shutil.rmtree(shard.parts, ignore_errors=True)
        _write_failures(corpus)
        if all(shard.is_published() for shard in corpus.shards):
            write_index(corpus.folder, map(shard_record, corpus.shards))


def _write_failures(corpus: Corpus) -> None:
    lines = [json.dumps(_printable(failure)) + "\n" for failure in read_failures(corpus)]
    path = corpus.folder / FAILURES
    if not lines:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary:
        temporary.write_text("".join(lines))


def _printable(failure: Failure) -> dict[str, object]:
    texts = {key: printable(getattr(failure, key)) for key in ("source", "kind", "reason")}
    return failure._asdict() | texts


def read_failures(corpus: Corpus, shards: Iterable[Shard] | None = None) -> Iterator[Failure]:
    """Yield the failures of shards (all by default), published or not."""
    for shard in corpus.shards if shards is None else shards:
        yield from shard.read(partial(_failures, shard))


def _failures(shard: Shard, published: bool) -> Sequence[Failure]:
    if published:
        return _check_size(shard, read_record(shard.record)).failures
    return [shard.failure(key) for key in sorted(shard.finished()[1])]


def _check_size(shard: Shard, record: Record) -> Record:
    """Raise VqtokError unless the tar of a shard has the size that its record says."""
    if (size := shard.tar.stat().st_size) != record.bytes:
        raise VqtokError(
            f"{shard.tar} has {size:,} bytes and its record says {record.bytes:,}: delete both, "
            "and run the command again"
        )
    return record


def reopen(corpus: Corpus, shard: Shard) -> None:
    """Make the failures of a shard undone. Its finished clips become parts again.

    It may be killed at any time: without a record, a shard is open. Other processes may do so, too.
    """
    if shard.is_published():
        try:
            if not _unpack(corpus, shard):
                return
        except (FileNotFoundError, VqtokError):
            if shard.is_published():
                raise
    shard.record.unlink(missing_ok=True)
    shard.tar.unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # another process has published the shard just now
        for path in list(shard.parts.iterdir()):
            if path.name[0] != "." and path.suffix in (FAILED, ATTEMPTS):  # not a temporary file
                path.unlink(missing_ok=True)


def _unpack(corpus: Corpus, shard: Shard) -> bool:
    """Make parts of the clips of a shard if some have failed; return whether there are such."""
    record = read_record(shard.record)
    if not record.failures:
        return False
    shard.parts.mkdir(parents=True, exist_ok=True)
    with shard.tar.open("rb") as tar:
        for clip in record.clips:
            _extract(tar, clip, shard)
    (corpus.folder / INDEX).unlink(missing_ok=True)
    return True


def _extract(tar: BinaryIO, clip: PackedClip, shard: Shard) -> None:
    """Make a part of a clip in a tar."""
    start = clip.offset - BLOCK
    try:
        end = members_end(tar, clip)
    except ValueError as error:
        raise VqtokError(
            f"{shard.tar} is damaged: {error}; delete it and its record, and encode again"
        ) from None
    with atomic_write(shard.path(clip.key, PART)) as temporary, temporary.open("wb") as part:
        _copy(tar, part, start, end - start)
        write_details(part, moved(clip, -start))
