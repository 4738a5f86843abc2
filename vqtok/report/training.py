"""The live view of a training run, while it trains and from its metrics.jsonl."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vqtok import config
from vqtok.codebook_stats.verdict import collapses
from vqtok.config import TrainSettings
from vqtok.errors import UsageError
from vqtok.report.widgets import glyphs, line, meter

SECONDS_BETWEEN_LINES = 10
SECONDS_BETWEEN_LOOKS = 0.5
WIDTH = 30  # of a line or a meter
KNOWN = {"step", "loss", "psnr", "usage", "usage_by_chance", "perplexity", "seconds_per_step"}
DRAWN = {"loss": "loss", "PSNR": "psnr", "perplexity": "perplexity"}  # as lines over the steps


class TrainingView:
    """What `train` shows: a live table on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console, settings: TrainSettings) -> None:
        self._console = console
        self._frames = settings.batch_size * settings.frames
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("")
        self._live = Live(console=console, refresh_per_second=4)
        self._rows: list[dict[str, Any]] = []
        self._printed_at, self._printed = -math.inf, 0  # when, and which step

    @contextmanager
    def open(self, steps: int) -> Iterator[None]:
        """Keep the table on the screen while inside; at the end, the last line is printed."""
        self._progress.update(self._task, total=steps)
        with self._live if self._console.is_terminal else nullcontext():
            yield
        if self._rows and not self._console.is_terminal:
            self._print(self._rows[-1])

    def show(self, row: dict[str, Any]) -> None:
        """Take in a line of metrics.jsonl; those of another kind are passed over."""
        if not all(isinstance(row.get(key), int | float) for key in KNOWN):
            return
        self._rows.append(row)
        self._progress.update(self._task, completed=row["step"])
        if self._console.is_terminal:
            self._live.update(Group(self._table(row), self._progress))
        elif time.monotonic() - self._printed_at > SECONDS_BETWEEN_LINES:
            self._print(row)

    def _table(self, row: dict[str, Any]) -> Table:
        """A figure a row, with its course so far or a meter where there is one."""
        table, g = Table(show_header=False), glyphs(self._console)
        for name, value in _values(row, self._frames).items():
            drawing = Text()
            if name in DRAWN:
                drawing = line(g, _thinned([r[DRAWN[name]] for r in self._rows]))
            elif name == "usage":
                drawing = meter(g, row["usage"], WIDTH, row["usage_by_chance"])
            table.add_row(name, value, drawing)
        return table

    def _print(self, row: dict[str, Any]) -> None:
        if row["step"] == self._printed:
            return
        self._printed_at, self._printed = time.monotonic(), row["step"]
        values = _values(row, self._frames)
        text = ", ".join(f"{name} {value}" for name, value in values.items())
        self._console.print(f"step {row['step']}: {text}", soft_wrap=True)


def _values(row: dict[str, Any], frames: int) -> dict[str, str]:
    """A line of metrics.jsonl in words; `frames` are those of one step."""
    values = {
        "loss": f"{row['loss']:.4f}",
        "PSNR": f"{row['psnr']:.2f} dB",
        "usage": f"{row['usage']:.1%} (chance {row['usage_by_chance']:.1%})",
        "perplexity": f"{row['perplexity']:,.0f}",
        "frames/s": f"{frames / row['seconds_per_step']:.1f}",
    }
    if collapses(row["usage"], row["usage_by_chance"]):
        values["warning"] = "the codebook collapses: usage is under a quarter of what chance gives"
    return values


def follow(run: Path, console: Console) -> None:
    """Show a run's folder as it trains, until its last step or Ctrl-C.

    Raises UsageError when the folder holds no run.
    """
    settings = run / "config.json"
    if not settings.is_file():
        raise UsageError(f"{run} holds no run: give a folder that `vqtok train` made")
    train = config.from_json(settings.read_text(), str(settings)).train
    view = TrainingView(console, train)
    with view.open(train.steps):
        for row in _rows(run / "metrics.jsonl"):
            view.show(row)
            if row["step"] >= train.steps:
                break


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that grows, forever; from the start if it is written anew.

    Lines that are no row with a step, as a crash may leave, are passed over.
    """
    seen = 0
    while True:
        text = path.read_text(errors="replace") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()
        seen = 0 if len(whole) < seen else seen
        yield from filter(_is_row, map(_parsed, whole[seen:]))
        seen = len(whole)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_row(found: object) -> bool:
    return isinstance(found, dict) and isinstance(found.get("step"), int)


def _thinned(values: list[float]) -> list[float]:
    """WIDTH values at most, evenly taken, the last among them."""
    number = min(len(values), WIDTH)
    return [values[(i + 1) * len(values) // number - 1] for i in range(number)]
