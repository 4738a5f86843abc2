"""Worker processes that make training clips: torch's DataLoader, and how its workers end."""

import os
import pickle
import shutil
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from pathlib import Path
from threading import Event, Thread
from traceback import format_exc
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqtok import distributed
from vqtok.errors import VqtokError
from vqtok.interrupt import stopping
from vqtok.training.clips import TrainingClips

AHEAD = 2  # parts that each worker makes ahead
MAX_PART = 4  # clips
SHARED_MEMORY = "/dev/shm"  # where parts lie until they are copied; in Docker 64 MB
KILLED = (
    "a process that makes training clips was killed, perhaps because memory ran out: --resume the "
    "run from its last save, on fewer cores if it happens again (taskset --cpu-list 0-3 vqtok ...)"
)


@dataclass
class Part:
    """A part of a batch, or why there is none.

    clips: uint8 (n t h w c); None if there was an error or the worker shall end.
    unreadable, counts: what was added to those of `TrainingClips`.
    """

    clips: Tensor | None = None
    error: BaseException | None = None
    unreadable: dict[Path, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


@contextmanager
def parts_from_processes(
    clips: TrainingClips, first_step: int, indices: Sequence[int], workers: int
) -> Iterator[tuple[Iterator[Tensor], Callable[[], None]]]:
    """Yield an iterator over the clips of all steps from one on, and a function that ends it.

    The clips come in order, in parts (n t h w c) of at most `MAX_PART`, from processes that end
    with the block or with this process. What they find out about the files is added to `clips`. An
    exception of a worker is raised in place of its part; VqtokError if a worker is killed.

    indices: numbers of the clips of a step, which never share a part with those of another.
    workers: at most this many; `AHEAD` parts of each may lie in shared memory, and have half of it.
    """
    workers, parts = _split(indices, workers, _free_shared_memory() / 2 / clips.clip_bytes)
    running = takewhile(lambda _: not stopped.is_set(), count(first_step))
    alive, end = os.pipe()
    stopped = Event()
    loader = DataLoader(
        _Parts(clips),
        batch_size=None,
        sampler=((step, part) for step in running for part in parts),
        num_workers=workers,
        worker_init_fn=lambda _: _start_worker(alive, end),
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",  # at once, and without a copy of `clips`
        generator=torch.Generator(),  # torch's own is for the model
    )

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            os.close(end)

    items: Iterator[Part] = iter(loader)
    try:
        yield _received(items, clips), stop
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        items = iter(())  # or it would wait for the part of the dead worker
        raise VqtokError(KILLED) from None
    finally:
        stop()
        os.close(alive)
        with suppress(RuntimeError):
            deque(items, maxlen=0)  # the last parts; DataLoader ends its workers after them


def _split(indices: Sequence[int], workers: int, room: float) -> tuple[int, list[Sequence[int]]]:
    """Return how many workers to start, and the parts of a batch, for this many clips of room."""
    workers = max(1, min(workers, int(min(room, 2**31) / AHEAD)))
    size = max(1, min(MAX_PART, -(-len(indices) // workers), int(room / AHEAD / workers)))
    return workers, [indices[i : i + size] for i in range(0, len(indices), size)]


def _free_shared_memory() -> float:
    """Return this process's share of the free shared memory, in bytes."""
    return shutil.disk_usage(SHARED_MEMORY).free / distributed.local_world_size()


def _received(items: Iterator[Part], clips: TrainingClips) -> Iterator[Tensor]:
    for part in items:
        clips.unreadable |= part.unreadable
        clips.counts.update(part.counts)
        if part.error is not None:
            raise part.error
        if part.clips is None:
            return
        yield part.clips


class _Parts(Dataset[Part]):
    """What the workers run: the part of a batch for a step and some numbers of its clips."""

    def __init__(self, clips: TrainingClips) -> None:
        self.clips = clips

    def __getitem__(self, key: tuple[int, Sequence[int]]) -> Part:
        part, clips = Part(), self.clips
        if stopping.is_set():
            return part
        known, counts = len(clips.unreadable), clips.counts.copy()
        try:
            part.clips = clips.stack(*key)
        except BaseException as error:  # DataLoader would change its message
            part.error = _portable(error)
        part.unreadable = dict(islice(clips.unreadable.items(), known, None))
        part.counts = clips.counts - counts
        return part


def _portable(error: BaseException) -> BaseException:
    """Return an error as it can be sent to another process, with the traceback as a note."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(format_exc())
    return error


def _start_worker(alive: int, end: int) -> None:
    """Prepare a worker, which sets `stopping` once its parent stops it or is gone.

    alive, end: a pipe that the parent closes.
    """

    def wait() -> None:
        os.read(alive, 1)
        stopping.set()

    def terminate(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():  # it comes from the parent, which does not want to wait
            os._exit(0)

    # Ctrl-C and schedulers signal all processes, but the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    os.close(end)
    Thread(target=wait, daemon=True).start()
