"""Encode clips of a corpus in a process that may hang or be killed: `Encode`."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vqtok.bulk.process import Setup, WorkerProcess
from vqtok.corpus.clips import Clip
from vqtok.corpus.publish import publish
from vqtok.corpus.records import Failure
from vqtok.corpus.settings import open_corpus
from vqtok.corpus.shards import Shard
from vqtok.errors import UsageError, VqtokError

# Seconds for a worker to import PyTorch and load a tokenizer, from a network that a fleet shares.
STARTING = 1800
# A clip is given up if it was in hand so often when a worker of this process died, or if it was
# begun so often without an end and nobody is at it, as far as the file system has locks.
MAX_DEATHS, MAX_ATTEMPTS = 3, 10


class Result(NamedTuple):
    """What became of a clip.

    clip: its key. piece: if it is split, which piece was encoded.
    frames, tokens: of the clip, if it is finished with this. seconds: spent on it now.
    failure: one sentence, or "".
    notes: what the user should know about it.
    """

    clip: int
    piece: int = 0
    frames: int = 0
    tokens: int = 0
    seconds: float = 0.0
    failure: str = ""
    notes: Sequence[str] = ()


# Of the columns that `Encode` returns, the same for no clips at all: Ray joins blocks of rows.
_DTYPES = {key: np.dtype(int) for key in ("clip", "piece", "frames", "tokens")} | {
    "seconds": np.dtype(float),
    "failure": np.dtype(str),
    "notes": np.dtype(str),
}


class _Begun(NamedTuple):
    """A clip that the worker has, since when, how often it was begun, and what holds it."""

    clip: Clip
    since: float
    attempts: int
    lock: BinaryIO | None


class Encode:
    """Encodes clips of a corpus; a callable class for `ray.data.Dataset.map_batches`.

    The work is done in a process of its own. A clip that hangs or kills that process costs a new
    process, and after three times it is given up. Everything is in the files of the corpus: another
    `Encode`, here or on another machine, can go on at any time.

    folder: of the corpus, which `plan` has made.
    jobs: clips to encode at once; on a GPU, in one batch.
    timeout: seconds for each clip, after which it has failed; None for no limit.
    device: auto, cpu, cuda or cuda:N.
    tokenizer: the one that the corpus was begun with, if its file is elsewhere by now.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        jobs: int = 1,
        timeout: float | None = None,
        device: str = "auto",
        tokenizer: str | None = None,
    ) -> None:
        self._corpus = open_corpus(folder)
        name = tokenizer or self._corpus.settings.tokenizer
        self._setup = Setup(str(Path(folder).absolute()), name, device, jobs)
        self._timeout = timeout
        self._worker: WorkerProcess | None = None
        self._begun: dict[tuple[int, int], _Begun] = {}
        self._again: deque[Clip] = deque()
        self._suspects: deque[Clip] = deque()
        self._deaths = Counter[tuple[int, int | None]]()
        self._reason = ""
        self.log: Callable[[str], object] = lambda line: None  # gets lines for --verbose

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Encode the clips of rows of `plan`, given as a column for each key or as one row.

        Returns the columns of `Result`, for clips that were not finished before.
        """
        keys = "clip", *Clip._fields[1:]
        columns = [np.atleast_1d(rows[key]).tolist() for key in keys]
        results = list(self.run(map(Clip._make, zip(*columns, strict=True))))
        results = [result._replace(notes="; ".join(result.notes)) for result in results]
        return {
            key: np.array([getattr(result, key) for result in results], _DTYPES[key])
            for key in Result._fields
        }

    def run(self, clips: Iterable[Clip]) -> Iterator[Result]:
        """Encode clips, `jobs` at once, and yield what became of each as soon as it is known.

        Clips that are finished already are passed over. Those that were begun before and have not
        ended may have killed their process: they come last and one at a time, so that none is
        blamed for another.

        Raises VqtokError if no clip can be encoded, such as on a full disk.
        """
        source = iter(clips)
        try:
            while True:
                yield from self._begin_clips(source)
                if not self._begun:
                    return
                yield from self._wait()
        except BaseException:  # an interrupt, or the caller wants no more
            self._stop_worker()
            for begun in self._take_begun():
                self._shard(begun.clip).withdraw(*_label(begun.clip))
            raise

    def close(self) -> None:
        """End the process."""
        if self._worker:
            self._worker.close()
        self._worker = None

    def _begin_clips(self, source: Iterator[Clip]) -> Iterator[Result]:
        """Give the worker clips until it has enough; yield those that are given up."""
        while len(self._begun) < self._setup.jobs and (clip := self._next(source)):
            worker = self._worker or self._start_worker()
            shard = self._shard(clip)
            is_held = shard.is_held(*_label(clip))
            attempts = shard.begin(*_label(clip))
            if attempts > MAX_ATTEMPTS and not is_held:  # by processes that may yet end it
                yield self._give_up(clip, attempts - 1)
                continue
            lock = shard.hold(*_label(clip))
            self._begun[clip.key, clip.piece] = _Begun(clip, time.monotonic(), attempts, lock)
            worker.send(clip._asdict())

    def _start_worker(self) -> WorkerProcess:
        """Start a worker, before any clip is begun: what keeps it from starting is no clip's fault.

        Raises VqtokError if it does not get ready.
        """
        self._worker = WorkerProcess(self._setup, threads=self._corpus.settings.threads)
        self._reason = ""
        try:
            reply = self._worker.receive(STARTING)
        except Empty:
            raise VqtokError(
                f"the process that encodes was not ready within {STARTING} s"
            ) from None
        if reply is None:
            ending = self._worker.how_it_ended()
            raise VqtokError(f"the process that encodes has ended before it was ready ({ending})")
        if "stop" in reply:
            raise (UsageError if reply.get("usage") else VqtokError)(reply["stop"])
        self.log(reply["ready"])
        return self._worker

    def _next(self, source: Iterator[Clip]) -> Clip | None:
        """Return the next clip to begin, if there is one now."""
        while self._again:
            if not self._is_finished(clip := self._again.popleft()):
                return clip
        for clip in source:
            if self._is_finished(clip):
                continue
            if not self._shard(clip).attempts(*_label(clip)):
                return clip
            self._suspects.append(clip)
        while self._suspects and not self._begun:
            if not self._is_finished(clip := self._suspects.popleft()):
                return clip
        return None

    def _wait(self) -> Iterator[Result]:
        """Wait for the next reply of the worker, and yield what it says of a clip."""
        assert self._worker
        try:
            reply = self._worker.receive(self._seconds_left())
        except Empty:
            yield from self._time_out()
            return
        match reply:
            case None:
                yield from self._mourn()
            case {"stop": str(reason)}:
                raise VqtokError(reason)
            case {"died": str(reason)}:
                self._reason = reason
            case _:
                _release(self._begun.pop((reply["clip"], reply["piece"])))
                yield Result(**reply)

    def _seconds_left(self) -> float | None:
        if self._timeout is None:
            return None
        first = min(begun.since for begun in self._begun.values())
        return max(0.0, first + self._timeout - time.monotonic())

    def _time_out(self) -> Iterator[Result]:
        """Kill the worker; clips whose time is over have failed, and others are begun again."""
        assert self._timeout is not None
        self._stop_worker()
        now = time.monotonic()
        for clip, since, attempts, _ in self._take_begun():
            if now - since < self._timeout or self._is_finished(clip):
                self._shard(clip).withdraw(*_label(clip))
                self._again.append(clip)
                continue
            reason = f"{clip.path}: not encoded within {self._timeout:g} s (--timeout)"
            yield self._fail(clip, "TimeoutError", reason, attempts)

    def _mourn(self) -> Iterator[Result]:
        """The worker has ended by itself: its clips are suspects, or are given up."""
        assert self._worker
        self._reason = self._reason or self._worker.how_it_ended()
        self._stop_worker()
        self.log(f"the process that encodes has ended ({self._reason}): a new one goes on")
        for clip, _, attempts, _ in self._take_begun():
            self._deaths[_label(clip)] += 1
            if self._deaths[_label(clip)] < MAX_DEATHS or self._is_finished(clip):
                self._suspects.append(clip)
            else:
                yield self._give_up(clip, attempts)

    def _take_begun(self) -> list[_Begun]:
        begun = list(self._begun.values())
        self._begun.clear()
        for each in begun:
            _release(each)
        return begun

    def _give_up(self, clip: Clip, attempts: int) -> Result:
        reason = f" ({self._reason})" if self._reason else ""
        return self._fail(
            clip,
            "Killed",
            f"{clip.path}: the process that encodes it was killed {attempts} times{reason}: "
            "--retry-failed tries it again",
            attempts,
        )

    def _fail(self, clip: Clip, kind: str, reason: str, attempts: int) -> Result:
        shard = self._shard(clip)
        shard.fail(Failure(clip.key, clip.path, kind, reason, attempts))
        shard.end(*_label(clip))
        publish(shard)
        return Result(clip.key, clip.piece, failure=reason)

    def _shard(self, clip: Clip) -> Shard:
        return self._corpus.shard_of(clip.key)

    def _is_finished(self, clip: Clip) -> bool:
        return self._shard(clip).is_finished(clip.key)

    def _stop_worker(self) -> None:
        if self._worker:
            self._worker.kill()
        self._worker = None


def _release(begun: _Begun) -> None:
    if begun.lock:
        begun.lock.close()


def _label(clip: Clip) -> tuple[int, int | None]:
    """Return the key of a clip, and the number of its piece if it is split."""
    return clip.key, clip.piece if clip.pieces > 1 else None
