"""Overlap reading, the model and writing: threads, and copies between host and device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
DEPTH = 2  # items in flight; bounds memory


@contextmanager
def prefetch(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Yield an iterator over the items that computes the next ones in a thread.

    An exception in computing an item is raised when that item is requested.
    """

    def take() -> list[T]:
        return list(islice(items, 1))  # empty at the end

    def results() -> Iterator[T]:
        while item := pending.popleft().result():
            pending.append(pool.submit(take))
            yield item[0]

    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(take) for _ in range(DEPTH))
        try:
            yield results()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def background_writer(write: Callable[..., object]) -> Iterator[Callable[..., None]]:
    """Yield a function that calls `write` in a thread, in order, and blocks when it falls behind.

    An exception in `write` is raised by a later call or at the end; calls still queued are dropped.
    """
    pending: deque[Future[object]] = deque()

    def submit(*args: Any) -> None:
        if len(pending) == DEPTH:
            pending.popleft().result()
        pending.append(pool.submit(write, *args))

    with ThreadPoolExecutor(1) as pool:
        try:
            yield submit
            for future in pending:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class DeviceTransfer:
    """Copies arrays to a device and back; on CUDA through pinned memory on side streams.

    Copies then overlap with the model. On a CPU nothing is copied. Create it in the thread that
    runs the model. torch's pinned-memory allocator reuses a block only after its copies are done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._model_stream = torch.cuda.current_stream(device)
            self._up, self._down = _copy_streams(device)

    def to_device(self, array: np.ndarray) -> Tensor:
        """Return the array as a tensor on the device, complete on return. Thread-safe."""
        host = torch.from_numpy(array)
        if not self._cuda:
            return host
        with torch.cuda.stream(self._up):
            tensor = host.pin_memory().to(self._device, non_blocking=True)
            copied = self._up.record_event()
        tensor.record_stream(self._model_stream)  # keep its memory until the model has read it
        copied.synchronize()
        return tensor

    def to_host(self, tensors: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Yield each tensor as an array; on CUDA its copy overlaps with computing the next one."""
        if self._cuda:
            pending = chain(map(self._start_copy, tensors), [None])
            yield from (finish() for finish, _ in pairwise(pending) if finish)
        else:
            yield from (tensor.numpy() for tensor in tensors)

    def _start_copy(self, tensor: Tensor) -> Callable[[], np.ndarray]:
        """Start a copy to the host and return the function that waits for it."""
        tensor = tensor.contiguous()
        self._down.wait_stream(self._model_stream)
        with torch.cuda.stream(self._down):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
            copied = self._down.record_event()
        tensor.record_stream(self._down)

        def finish() -> np.ndarray:
            copied.synchronize()
            return host.numpy()

        return finish


@cache
def _copy_streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Return the streams for copies to a device and back, the same for all clips.

    torch keeps the free memory of each stream apart, so one for each clip would waste it. Copies
    back wait for the model, and those to the device must not wait for them.
    """
    return torch.cuda.Stream(device), torch.cuda.Stream(device)
