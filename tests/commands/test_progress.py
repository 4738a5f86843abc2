"""Progress bars: drawn on a terminal only, and a way to cancel what they show."""

import io

import pytest
from rich.console import Console

from vqtok.commands.progress import Cancelled, ProgressBars


@pytest.fixture
def draw(monkeypatch):
    """draw(terminal=) shows a bar and a note, and returns what was printed."""

    def draw(terminal):
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
        monkeypatch.setattr("vqtok.commands.progress.console", lambda quiet: console)
        with ProgressBars(quiet=False) as bars, bars.task("encoding") as task:
            task.set_total(10)
            task.advance(5)
            bars.say("[a note]")
        return console.file.getvalue()

    return draw


def test_bars_are_drawn_on_a_terminal(draw):
    assert "encoding" in draw(terminal=True)


def test_only_notes_are_printed_elsewhere(draw):
    assert draw(terminal=False) == "[a note]\n"


def test_a_cancelled_task_cannot_advance():
    with ProgressBars(quiet=True) as bars, bars.task("encoding") as task:
        task.advance(1)
        bars.cancel()
        with pytest.raises(Cancelled):
            task.advance(1)
