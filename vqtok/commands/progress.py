"""Messages and progress bars on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn

from vqtok.files import printable
from vqtok.report.widgets import progress_bar


def console(quiet: bool) -> Console:
    """Return a console on stderr that prints nothing when `quiet`."""
    return Console(stderr=True, quiet=quiet, highlight=False)


def say(quiet: bool, *lines: str) -> None:
    """Print lines on stderr unless `quiet`."""
    for line in () if quiet else lines:
        print(printable(line), file=sys.stderr)


class Cancelled(BaseException):
    """Raised in a thread that works on a task after the tasks were cancelled."""


class ProgressBars:
    """Progress bars on stderr, drawn only on a terminal. Tasks may run in several threads."""

    def __init__(self, quiet: bool) -> None:
        self._console = console(quiet)
        label = TextColumn("{task.description}", markup=False)
        hidden = not self._console.is_terminal
        self._progress = progress_bar(self._console, label, disable=hidden, transient=True)
        self._cancelled = Event()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator["ProgressTask"]:
        """Show a bar inside the block; raise Cancelled after `cancel`."""
        if self._cancelled.is_set():
            raise Cancelled
        task_id = self._progress.add_task(printable(description), total=total)
        try:
            yield ProgressTask(self._progress, task_id, self._cancelled)
        finally:
            self._progress.remove_task(task_id)

    def say(self, *lines: str) -> None:
        """Print lines above the bars."""
        for line in lines:
            self._console.print(printable(line), soft_wrap=True, markup=False)

    def cancel(self) -> None:
        """Raise Cancelled in every thread that begins or advances a task from now on."""
        self._cancelled.set()


class ProgressTask:
    """One bar of `ProgressBars`."""

    def __init__(self, progress: Progress, task_id: TaskID, cancelled: Event) -> None:
        self._progress, self._task_id, self._cancelled = progress, task_id, cancelled

    def set_total(self, total: int | None) -> None:
        """Set the number of steps, such as frames; None if it is unknown."""
        self._progress.update(self._task_id, total=total)

    def advance(self, steps: int = 1) -> None:
        """Move the bar forward; raise Cancelled after `ProgressBars.cancel`."""
        if self._cancelled.is_set():
            raise Cancelled
        self._progress.advance(self._task_id, steps)
