"""Work done in a thread while the caller does something else, and a loop that Ctrl-C may end."""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
DEPTH = 2  # items that are made, or wait to be put away, at once: it bounds memory


@contextmanager
def ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Inside, the items, each made in a thread while those before it are in use.

    What goes wrong in making one is raised where that one is asked for.
    """
    end = object()

    def ready() -> Iterator[T]:
        while (item := made.popleft().result()) is not end:
            made.append(pool.submit(next, items, end))
            yield item

    with ThreadPoolExecutor(1) as pool:
        made = deque(pool.submit(next, items, end) for _ in range(DEPTH))
        try:
            yield ready()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def behind(work: Callable[..., object]) -> Iterator[Callable[..., None]]:
    """Inside, a function that has `work` done in a thread, in order; it waits when that lags.

    What goes wrong is raised by a later call, or at the end; the work still waiting is dropped.
    """
    waiting: deque[Future[object]] = deque()

    def submit(*args: Any) -> None:
        if len(waiting) == DEPTH:
            waiting.popleft().result()
        waiting.append(pool.submit(work, *args))

    with ThreadPoolExecutor(1) as pool:
        try:
            yield submit
            for left in waiting:
                left.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only makes the function given return True; the second interrupts."""
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
