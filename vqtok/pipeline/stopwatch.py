"""Measure where the time of a clip goes."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds that one thread spends on, or waits for, each part of its work."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds = defaultdict[str, float](float)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time spent inside the block to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - start

    def time_each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; add the time it takes to get each one to `part`."""
        iterator = iter(items)
        while True:
            with self.time(part):
                item = list(islice(iterator, 1))  # empty at the end
            if not item:
                return
            yield item[0]

    def elapsed(self) -> float:
        """Return the seconds since the stopwatch was created."""
        return time.perf_counter() - self._start

    def seconds(self, part: str) -> float:
        """Return the seconds of a part."""
        return self._seconds[part]

    def shares(self, rest: str) -> str:
        """Return each part's share of the elapsed time; `rest` names the part not measured."""
        total = self.elapsed()
        parts = {**self._seconds, rest: total - sum(self._seconds.values())}
        shares = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in parts.items())
        return f"{shares} of {total:.1f} s"
