"""Overlapping reading, model and writing: threads, and copies to a device and back."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
DEPTH = 2  # items in flight; bounds memory


@contextmanager
def prefetch(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Give an iterator over the items that computes the next ones in a thread.

    An exception in computing an item is raised when that item is requested.
    """
    end = object()

    def results() -> Iterator[T]:
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item

    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(DEPTH))
        try:
            yield results()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def background_writer(write: Callable[..., object]) -> Iterator[Callable[..., None]]:
    """Give a function that calls `write` in a thread, in order, and blocks when it falls behind.

    An exception in `write` is raised by a later call or at the end; calls still queued are dropped.
    """
    waiting: deque[Future[object]] = deque()

    def submit(*args: Any) -> None:
        if len(waiting) == DEPTH:
            waiting.popleft().result()
        waiting.append(pool.submit(write, *args))

    with ThreadPoolExecutor(1) as pool:
        try:
            yield submit
            for future in waiting:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class DeviceTransfer:
    """Copies arrays to a device and back, on CUDA through pinned memory on a side stream.

    Copies then overlap with the model. On a CPU nothing is copied. Create it in the thread that
    runs the model. torch's pinned-memory allocator reuses a block only after its copies are done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        if self._cuda:
            self._model = torch.cuda.current_stream(device)
            self._side = torch.cuda.Stream(device)

    def to_device(self, array: np.ndarray) -> Tensor:
        """Return the array as a tensor on the device, complete on return. Thread-safe."""
        here = torch.from_numpy(array)
        if not self._cuda:
            return here
        with torch.cuda.stream(self._side):
            there = here.pin_memory().to(self._device, non_blocking=True)
        there.record_stream(self._model)  # keep its memory until the model has read it
        self._side.synchronize()
        return there

    def to_host(self, parts: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Yield each part as an array; on CUDA, its copy overlaps with the next part."""
        if self._cuda:
            pending = chain(map(self._start_copy, parts), [None])
            yield from (finish() for finish, _ in pairwise(pending))
        else:
            yield from (part.numpy() for part in parts)

    def _start_copy(self, part: Tensor) -> Callable[[], np.ndarray]:
        """Start a copy to the host; the function returned waits for it."""
        part = part.contiguous()
        self._side.wait_stream(self._model)
        with torch.cuda.stream(self._side):
            here = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
            here.copy_(part, non_blocking=True)
            done = self._side.record_event()
        part.record_stream(self._side)

        def finish() -> np.ndarray:
            done.synchronize()
            return here.numpy()

        return finish
