"""Worker processes that make training clips: torch's DataLoader, and how its workers end."""

import os
import pickle
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from math import ceil, prod
from mmap import mmap
from pathlib import Path
from threading import Event, Thread
from traceback import format_exc
from types import FrameType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqtok.errors import VqtokError
from vqtok.interrupt import stopping
from vqtok.training.clips import TrainingClips

AHEAD = 2  # parts that each worker makes ahead
MAX_PART = 4  # clips, so that workers share a batch evenly and end soon
KILLED = (
    "a process that makes training clips was killed, perhaps because memory ran out: --resume the "
    "run from its last save, on fewer cores if it happens again (taskset --cpu-list 0-3 vqtok ...)"
)


@dataclass
class Part:
    """What a worker reports of a part of a batch.

    made: whether its clips are in the buffer; if not, there was an error or the worker shall end.
    unreadable, counts: what was added to those of `TrainingClips`.
    """

    made: bool = False
    error: BaseException | None = None
    unreadable: dict[Path, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


@contextmanager
def batches_from_processes(
    clips: TrainingClips, first_step: int, indices: Sequence[int], workers: int
) -> Iterator[tuple[Iterator[Tensor], Callable[[], None]]]:
    """Yield an endless iterator over batches of steps from one on, and a function that ends it.

    A batch (b t h w c) is overwritten once the next one is requested. It comes in parts of at most
    `MAX_PART` clips from processes that end with the block or with this process. What they find out
    about the files is added to `clips`. An exception of a worker is raised in place of its batch;
    VqtokError if a worker is killed.

    indices: numbers of the clips of a step.
    """
    size = min(MAX_PART, ceil(len(indices) / workers))
    parts = [range(len(indices))[i : i + size] for i in range(0, len(indices), size)]
    # One batch that is copied, and those of the parts that workers make meanwhile.
    buffer = _shared_buffer(1 + ceil(AHEAD * workers / len(parts)), len(indices), *clips.clip_shape)
    running = takewhile(lambda _: not stopped.is_set(), count(first_step))
    alive, end = os.pipe()
    stopped = Event()
    loader = DataLoader(
        _Parts(clips, indices, buffer),
        batch_size=None,
        sampler=((step, part) for step in running for part in parts),
        num_workers=workers,
        worker_init_fn=lambda _: _start_worker(alive, end),
        prefetch_factor=AHEAD,
        multiprocessing_context="fork",  # at once, and with the buffer
        generator=torch.Generator(),  # torch's own is for the model
    )

    def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            os.close(end)

    def batches() -> Iterator[Tensor]:
        for step in count(first_step):
            if sum(_receive(part, clips) for part in islice(items, len(parts))) < len(parts):
                return  # it shall end
            yield buffer[step % len(buffer)]

    items: Iterator[Part] = iter(loader)
    try:
        yield batches(), stop
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


def _shared_buffer(*shape: int) -> Tensor:
    """Return memory, uint8, that processes share when they are forked.

    It lies outside of /dev/shm, which has only 64 MB in Docker.
    """
    return torch.frombuffer(mmap(-1, prod(shape)), dtype=torch.uint8).view(shape)


def _receive(part: Part, clips: TrainingClips) -> bool:
    """Add to `clips` what a worker found, and return whether the part is in the buffer."""
    clips.unreadable |= part.unreadable
    clips.counts.update(part.counts)
    if part.error is not None:
        raise part.error
    return part.made


class _Parts(Dataset[Part]):
    """What the workers run: for a step and some positions in the batch, clips to the buffer."""

    def __init__(self, clips: TrainingClips, indices: Sequence[int], buffer: Tensor) -> None:
        self.clips, self.indices, self.buffer = clips, indices, buffer

    def __getitem__(self, key: tuple[int, range]) -> Part:
        (step, positions), part, clips = key, Part(), self.clips
        if stopping.is_set():
            return part
        known, counts = len(clips.unreadable), clips.counts.copy()
        try:
            for i in positions:
                self.buffer[step % len(self.buffer), i] = clips.clip(step, self.indices[i])
            part.made = True
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
    # Their locks may have been held at the fork, and a process flushes them at its end.
    sys.stdout = sys.stderr = None
    os.close(end)
    Thread(target=wait, daemon=True).start()
