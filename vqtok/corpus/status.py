"""How far a corpus is, and how fast: from its records and parts, while others write them."""

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vqtok.corpus.records import Failure, PackedClip, Record, Seconds, read_record
from vqtok.corpus.settings import open_corpus
from vqtok.corpus.shards import PART, Shard, read_details

RECENT = 600  # seconds


@dataclass(frozen=True)
class Status:
    """What is done of a corpus.

    clips: all of them; `done` and `failed` are some.
    shards: all of them; `published` are complete.
    frames, tokens, seconds: of the clips that are done; seconds of work, of all workers.
    attempts: how often the clips that are done or failed were begun.
    recent_rate: frames per second of all workers together in the last ten minutes; None if no clip
        was finished.
    """

    clips: int
    done: int
    failed: int
    shards: int
    published: int
    frames: int
    tokens: int
    seconds: Seconds
    attempts: int
    recent_rate: float | None

    @property
    def left(self) -> int:
        """Clips that are neither done nor failed."""
        return self.clips - self.done - self.failed

    @property
    def worker_rate(self) -> float | None:
        """Frames per second of work: the speed of a worker that is never idle."""
        seconds = sum(self.seconds)
        return self.frames / seconds if seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until all clips are done, if they are like those before them."""
        if not self.recent_rate or not self.done:
            return None
        return self.left * self.frames / self.done / self.recent_rate


class _Event(NamedTuple):
    """Frames that were finished at a time, after so many seconds of work."""

    time: float
    frames: int
    seconds: float


class _Progress(NamedTuple):
    """What is done of a shard, in the words of `Status`."""

    published: bool
    done: int
    failed: int
    frames: int
    tokens: int
    seconds: Seconds
    attempts: int
    events: Sequence[_Event]


def read_status(folder: str | Path) -> Status:
    """Read what is done of the corpus in a folder; processes may be working on it.

    Raises UsageError if there is no corpus, VqtokError if a file of it is damaged.
    """
    corpus = open_corpus(folder)
    shards = list(map(_read_shard, corpus.shards))
    return Status(
        clips=len(corpus),
        done=sum(shard.done for shard in shards),
        failed=sum(shard.failed for shard in shards),
        shards=len(shards),
        published=sum(shard.published for shard in shards),
        frames=sum(shard.frames for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        seconds=Seconds(*map(math.fsum, zip(*(shard.seconds for shard in shards), strict=True))),
        attempts=sum(shard.attempts for shard in shards),
        recent_rate=_recent_rate([e for shard in shards for e in shard.events], time.time()),
    )


def _read_shard(shard: Shard) -> _Progress:
    return shard.read(lambda published: (_read_published if published else _read_open)(shard))


def _read_published(shard: Shard) -> _Progress:
    written = shard.record.stat().st_mtime
    record = read_record(shard.record)
    event = _Event(written, record.frames, sum(record.seconds))
    return _sum_up(True, record.clips, record.failures, [event])


def _read_open(shard: Shard) -> _Progress:
    """Read the parts and failures of a shard. Those that vanish meanwhile are left out."""
    done, failed = shard.finished()
    clips, failures, events = list[PackedClip](), list[Failure](), list[_Event]()
    for key in sorted(done):
        path = shard.path(key, PART)
        with suppress(FileNotFoundError), path.open("rb") as file:
            clip, _ = read_details(file, path)
            clips.append(clip)
            events.append(_Event(os.fstat(file.fileno()).st_mtime, clip.frames, sum(clip.seconds)))
    for key in sorted(failed):
        with suppress(FileNotFoundError):
            failures.append(shard.failure(key))
    return _sum_up(False, clips, failures, events)


def _sum_up(
    published: bool,
    clips: Sequence[PackedClip],
    failures: Sequence[Failure],
    events: Sequence[_Event],
) -> _Progress:
    total = Record(0, "", 0, clips, failures)
    sums = total.frames, total.tokens, total.seconds, total.attempts
    return _Progress(published, len(clips), len(failures), *sums, events)


def _recent_rate(events: Sequence[_Event], now: float) -> float | None:
    """Return frames per second of the last ten minutes, or since the first work in them.

    Of a published shard only the end is known: its frames are spread over its seconds of work.
    """
    start = now - RECENT
    recent = [event for event in events if event.time > start]
    if not recent:
        return None
    frames = 0.0
    for event in recent:
        inside = min(event.seconds, event.time - start)
        frames += event.frames * (inside / event.seconds if event.seconds else 1)
    begun = max(start, min(event.time - event.seconds for event in recent))
    return frames / max(1.0, max(now, *(event.time for event in recent)) - begun)


def describe_status(status: Status) -> Iterator[str]:
    """Yield lines of text for people."""
    failed = f"{status.failed:,} failed, " if status.failed else ""
    yield f"{status.done:,} of {status.clips:,} clips done, {failed}{status.left:,} left"
    yield f"{status.published:,} of {status.shards:,} shards published"
    yield f"{status.frames:,} frames, {status.tokens:,} tokens"
    if status.worker_rate is not None:
        yield f"{status.worker_rate:,.1f} frames/s of a worker while it works"
        total = sum(status.seconds)
        parts = zip(Seconds._fields, status.seconds, strict=True)
        shares = ", ".join(f"{seconds / total:.0%} {name}" for name, seconds in parts)
        yield f"a worker's time: {shares}"
    if status.recent_rate is not None and status.left:
        rate = f"{status.recent_rate:,.1f} frames/s of all workers in the last 10 minutes"
        seconds = status.seconds_left
        yield rate if seconds is None else f"{rate}, about {_duration(seconds)} left"
    redone = status.attempts - status.done - status.failed
    if redone > 0:
        yield f"{redone:,} attempts were repeated: {redone / status.attempts:.1%} of all"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
