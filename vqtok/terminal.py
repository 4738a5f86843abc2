"""What people see on stderr while a command works: lines and progress bars."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    screen = console(quiet)
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=frames)
        yield lambda done: bar.advance(task, done)
