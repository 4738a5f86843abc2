"""The commit record of a shard, shards/00042.json: what is in its tar, and what failed.

It is written last, so a shard is complete once its record is there. The record of a corpus that
somebody else made is read with distrust.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from vqtok.atomic import atomic_write
from vqtok.corpus.json_fields import (
    Object,
    check_count,
    get,
    get_count,
    get_object,
    get_objects,
    get_text,
    get_texts,
)
from vqtok.corpus.tar import BLOCK
from vqtok.corpus.timing import Timing
from vqtok.errors import VqtokError
from vqtok.safetensors_io import DTYPES
from vqtok.tokens.format import INDEX_DTYPES
from vqtok.untrusted import parse_json, quote, read_text

MAX_RECORD = 2**24  # bytes: 16 KiB for each of 1,000 clips

_FORMAT = {"format": "vqtok-shard", "version": 1}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Seconds(NamedTuple):
    """Seconds that were spent on each part of encoding a clip."""

    reading: float
    model: float
    writing: float


class PackedClip(NamedTuple):
    """A clip in the tar of a shard.

    key: its line in clips.jsonl, from 0. name: its path below its source folder, as a/b.mp4.
    offset, bytes: where its token file lies in the tar. indices: offset of the indices in the tar.
    dtype, shape: of the indices, (t h w) or (t h w stages); dtype as in safetensors, such as U16.
    frames: of the video. tokens: spent on it. timing: offset of its timestamps in the tar, if any.
    attempts: how often it was begun, from 1. notes: what the user was told about it.
    """

    key: int
    name: str
    offset: int
    bytes: int
    indices: int
    dtype: str
    shape: tuple[int, ...]
    frames: int
    tokens: int
    timing: Timing
    attempts: int
    seconds: Seconds
    notes: Sequence[str] = ()


class Failure(NamedTuple):
    """A clip that could not be encoded.

    source: path of the video. kind: of the error, such as VqtokError. reason: one sentence.
    """

    key: int
    source: str
    kind: str
    reason: str
    attempts: int


@dataclass(frozen=True)
class Record:
    """What is in a shard.

    sha256, bytes: of its tar.
    clips, failures: each in the order of their keys; clips do not overlap in the tar.
    """

    shard: int
    sha256: str
    bytes: int
    clips: Sequence[PackedClip]
    failures: Sequence[Failure] = ()

    @property
    def frames(self) -> int:
        """Frames of all clips."""
        return sum(clip.frames for clip in self.clips)

    @property
    def tokens(self) -> int:
        """Tokens spent on all clips."""
        return sum(clip.tokens for clip in self.clips)

    @property
    def attempts(self) -> int:
        """How often clips were begun, those that failed included."""
        entries: list[PackedClip | Failure] = [*self.clips, *self.failures]
        return sum(entry.attempts for entry in entries)

    @property
    def seconds(self) -> Seconds:
        """Seconds spent on all clips."""
        columns = zip(*(clip.seconds for clip in self.clips), strict=True)
        return Seconds(*map(math.fsum, columns)) if self.clips else Seconds(0, 0, 0)


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically; equal records give equal bytes.

    Raises VqtokError if it is not one that can be read.
    """
    value = _FORMAT | {
        "shard": record.shard,
        "sha256": record.sha256,
        "bytes": record.bytes,
        "frames": record.frames,
        "tokens": record.tokens,
        "seconds": record.seconds._asdict(),
        "attempts": record.attempts,
        "clips": [clip_to_json(clip) for clip in record.clips],
        "failures": [failure._asdict() for failure in record.failures],
    }
    text = dumps(value) + "\n"
    try:
        if len(text) > MAX_RECORD:
            raise ValueError(f"it has more than {MAX_RECORD:,} bytes")
        _parse(parse_json(text))
    except ValueError as error:
        raise VqtokError(f"{path} cannot be written: {error}") from None
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def read_record(path: Path) -> Record:
    """Read a record. Its totals are not read, but computed from its clips.

    Raises VqtokError, naming the file, if it cannot be read or is not a consistent record.
    """
    text = read_text(path, MAX_RECORD)
    try:
        return _parse(parse_json(text))
    except ValueError as error:
        raise VqtokError(
            f"{path} is damaged or not the record of a shard: {error}; delete it and its tar, and "
            "run `vqtok encode` again"
        ) from None


def _parse(value: Any) -> Record:
    """Return the record in a JSON value; raises ValueError, with a short reason."""
    if not isinstance(value, dict) or value.get("format") != _FORMAT["format"]:
        raise ValueError("its format is not vqtok-shard")
    if value.get("version") != _FORMAT["version"]:
        raise ValueError(f"its version is {quote(value.get('version'))}, not {_FORMAT['version']}")
    clips = list(map(clip_from_json, get_objects(value, "clips")))
    failures = list(map(failure_from_json, get_objects(value, "failures")))
    shard, size = get_count(value, "shard"), get_count(value, "bytes")
    record = Record(shard, _sha256(value), size, clips, failures)
    _check_keys(record)
    _check_layout(record)
    return record


def _check_keys(record: Record) -> None:
    for entries in (record.clips, record.failures):
        keys = [entry.key for entry in entries]
        if any(a >= b for a, b in pairwise(keys)):
            raise ValueError("the keys do not increase")
    clips, failures = ({entry.key for entry in e} for e in (record.clips, record.failures))
    if both := clips & failures:
        raise ValueError(f"clip {min(both)} was encoded, and has failed")


def _check_layout(record: Record) -> None:
    """Raise ValueError unless token files follow each other in the tar, with a header each."""
    end = 0
    for clip in record.clips:
        if clip.offset % BLOCK or clip.offset < end + BLOCK:
            raise ValueError(f"clip {clip.key} overlaps the clip before it, or is not aligned")
        end = clip.offset + clip.bytes
        size = math.prod(clip.shape) * DTYPES[clip.dtype].itemsize
        if not clip.offset < clip.indices <= end - size:
            raise ValueError(f"the indices of clip {clip.key} do not lie in its token file")
        times = clip.timing.timestamps
        if times and not clip.offset < times <= end - 8 * clip.frames:
            raise ValueError(f"the timestamps of clip {clip.key} do not lie in its token file")
    if end > record.bytes:
        raise ValueError("a clip ends beyond the end of the tar")


def clip_to_json(clip: PackedClip) -> dict[str, Any]:
    """Return a clip as JSON can hold it."""
    parts = {"timing": clip.timing._asdict(), "seconds": clip.seconds._asdict()}
    return clip._asdict() | parts


def clip_from_json(entry: dict[str, Any]) -> PackedClip:
    """Return a clip; raises ValueError, with a short reason, if it is not one."""
    shape = _shape(entry)
    return PackedClip(
        key=get_count(entry, "key"),
        name=_name(entry),
        offset=get_count(entry, "offset"),
        bytes=get_count(entry, "bytes"),
        indices=get_count(entry, "indices"),
        dtype=_dtype(entry),
        shape=shape,
        frames=get_count(entry, "frames", 1, 2**31),
        tokens=get_count(entry, "tokens", 0, math.prod(shape) + 1),
        timing=_timing(entry),
        attempts=get_count(entry, "attempts", 1),
        seconds=_seconds(entry),
        notes=get_texts(entry, "notes"),
    )


def failure_from_json(entry: dict[str, Any]) -> Failure:
    """Return a failure; raises ValueError, with a short reason, if it is not one."""
    source, kind, reason = (get_text(entry, key) for key in ("source", "kind", "reason"))
    return Failure(get_count(entry, "key"), source, kind, reason, get_count(entry, "attempts", 1))


def _sha256(entry: Object) -> str:
    value = get_text(entry, "sha256")
    if not _SHA256.fullmatch(value):
        raise ValueError(f"sha256 {quote(value)} is not a hash")
    return value


def _name(entry: Object) -> str:
    """Return the name of a clip: files are written under it, so it must not lead elsewhere."""
    name = get_text(entry, "name")
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"name {quote(name)} is not a relative path without . and ..")
    name.encode(errors="surrogateescape")  # ValueError for what no file can be named
    return name


def _dtype(entry: Object) -> str:
    name = get_text(entry, "dtype")
    if name not in DTYPES or DTYPES[name] not in INDEX_DTYPES:
        raise ValueError(f"dtype {quote(name)} is not one of indices")
    return name


def _shape(entry: Object) -> tuple[int, ...]:
    shape = get(entry, "shape")
    if not isinstance(shape, list) or len(shape) not in (3, 4):
        raise ValueError(f"shape {quote(shape)} is not (t h w) or (t h w stages)")
    return tuple(check_count(side, "shape", 1, 2**31) for side in shape)


def _timing(entry: Object) -> Timing:
    parts = get_object(entry, "timing", Timing._fields)
    rates = [get_count(parts, key, 1, 2**31) for key in Timing._fields[:4]]
    ticks = [get_count(parts, key, -(2**63)) for key in ("origin", "start")]
    step, timestamps = (get_count(parts, key) for key in ("step", "timestamps"))
    if (step > 0) != (timestamps == 0):
        raise ValueError("a clip has no timestamps, or both a step and timestamps")
    return Timing._make([*rates, *ticks, step, timestamps])


def _seconds(entry: Object) -> Seconds:
    parts = get_object(entry, "seconds", Seconds._fields)
    for part in parts.values():
        if type(part) not in (int, float) or not 0 <= part < 2**63:  # refuses NaN and infinity
            raise ValueError(f"seconds {quote(part)} are not a time")
    return Seconds(**parts)
