"""Where the time of a clip goes."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds that the thread of the model spends on, or waits for, each part of the work."""

    def __init__(self) -> None:
        self._begin, self._seconds = time.perf_counter(), Counter[str]()

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Inside, time counts for this part."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - begin

    def each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """The items; the time it takes to get each counts for this part."""
        source, end = iter(items), object()
        while True:
            with self.on(part):
                item = next(source, end)
            if item is end:
                return
            yield item

    def shares(self, rest: str) -> str:
        """Each part's share of the time so far; what was not counted goes to the part `rest`."""
        whole = time.perf_counter() - self._begin
        parts = self._seconds | {rest: whole - self._seconds.total()}
        shares = ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in parts.items())
        return f"{shares} of {whole:.1f} s"
