"""What people see on stderr while a command works: lines and progress bars."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def console(quiet: bool) -> Console:
    """stderr, for people; silent when `quiet`."""
    return Console(stderr=True, quiet=quiet, highlight=False)


def say(quiet: bool, *lines: str) -> None:
    """Print lines for people on stderr."""
    for line in () if quiet else lines:
        print(line, file=sys.stderr)


@contextmanager
def progress(quiet: bool, what: str, frames: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr; gives the function that moves it on by so many frames."""
    columns = (
        TextColumn(what, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    screen = console(quiet)
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=frames)
        yield lambda done: bar.advance(task, done)


class Bars:
    """A bar for many clips, and one for each that is being worked on, on a terminal's stderr."""

    def __init__(self, quiet: bool, what: str, clips: int) -> None:
        name = TextColumn("{task.description}", markup=False)
        self._screen = console(quiet)
        self._bar = Progress(
            name,
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._screen,
            disable=not self._screen.is_terminal,
            transient=True,
        )
        self._whole = self._bar.add_task(what, total=clips)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @contextmanager
    def clip(self, name: str, frames: int | None) -> Iterator[Callable[[int], None]]:
        """A clip's own bar; gives the function that moves it on by so many frames."""
        task = self._bar.add_task(name, total=frames)
        try:
            yield lambda done: self._bar.advance(task, done)
        finally:
            self._bar.remove_task(task)

    def done(self) -> None:
        """Move the bar of the whole on by a clip."""
        self._bar.advance(self._whole)

    def say(self, *lines: str) -> None:
        """Print lines above the bars."""
        for line in lines:
            self._screen.print(line, soft_wrap=True, markup=False)
