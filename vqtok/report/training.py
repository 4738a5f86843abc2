"""The live view of a training run, in `vqtok train` and from the run's folder."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from vqtok import config
from vqtok.codebook_stats.health import has_collapsed
from vqtok.errors import UsageError
from vqtok.files import RUN_CONFIG, RUN_METRICS
from vqtok.metric_rows import Row, is_number, parse_row
from vqtok.report.widgets import bar, glyphs, progress_bar, sparkline
from vqtok.settings import TrainSettings

PRINT_SECONDS = 10
POLL_SECONDS = 0.5
WIDTH = 30  # characters of a sparkline or a bar
SECONDS = "seconds_per_step"
REQUIRED_KEYS = (
    *("step", SECONDS, "loss", "psnr"),
    *("usage", "usage_by_chance", "perplexity"),
)
SPARKLINES = {"loss": "loss", "PSNR": "psnr", "perplexity": "perplexity"}  # label: key


class TrainingView:
    """Live view of training metrics: a table on a terminal, else a line every ten seconds."""

    def __init__(self, console: Console, settings: TrainSettings) -> None:
        self._console = console
        self._frames_per_step = settings.batch_size * settings.frames
        self._progress = progress_bar(console, TextColumn("step"))
        self._task = self._progress.add_task("")
        self._live = Live(console=console, refresh_per_second=4)
        self._rows: list[Row] = []
        self._printed_at, self._printed_step = -math.inf, 0

    @contextmanager
    def open(self, steps: int) -> Iterator[None]:
        """Show the table inside the block; without a terminal, print the last row at its end."""
        self._progress.update(self._task, total=steps)
        with self._live if self._console.is_terminal else nullcontext():
            yield
        if self._rows and not self._console.is_terminal:
            self._print(self._rows[-1])

    def show(self, row: Row) -> None:
        """Show a row of metrics.jsonl. Rows without the required numbers are skipped."""
        if not all(is_number(row.get(key)) for key in REQUIRED_KEYS) or not row[SECONDS]:
            return
        self._rows.append(row)
        self._progress.update(self._task, completed=row["step"])
        if self._console.is_terminal:
            self._live.update(Group(self._table(row), self._progress))
        elif time.monotonic() - self._printed_at > PRINT_SECONDS:
            self._print(row)

    def _table(self, row: Row) -> Table:
        """Return one metric per row, with a sparkline of its history or a bar for some."""
        table, g = Table(show_header=False), glyphs(self._console)
        for label, value in _format_metrics(row, self._frames_per_step).items():
            drawing = Text()
            if label in SPARKLINES:
                history = [r[SPARKLINES[label]] for r in self._rows]
                drawing = sparkline(g, _downsample(history))
            elif label == "usage":
                drawing = bar(g, row["usage"], WIDTH, row["usage_by_chance"])
            table.add_row(label, value, drawing)
        return table

    def _print(self, row: Row) -> None:
        if row["step"] == self._printed_step:
            return
        self._printed_at, self._printed_step = time.monotonic(), row["step"]
        metrics = _format_metrics(row, self._frames_per_step)
        text = ", ".join(f"{label} {value}" for label, value in metrics.items())
        self._console.print(f"step {row['step']}: {text}", soft_wrap=True)


def _format_metrics(row: Row, frames_per_step: int) -> dict[str, str]:
    """Return the metrics of a row as text, by label."""
    metrics = {
        "loss": f"{row['loss']:.4f}",
        "PSNR": f"{row['psnr']:.2f} dB",
        "usage": f"{row['usage']:.1%} (by chance {row['usage_by_chance']:.1%})",
        "perplexity": f"{row['perplexity']:,.0f}",
        "frames/s": f"{frames_per_step / row[SECONDS]:.1f}",
    }
    if has_collapsed(row["usage"], row["usage_by_chance"]):
        metrics["warning"] = "codebook collapse: usage is below a quarter of usage by chance"
    return metrics


def _downsample(values: list[float]) -> list[float]:
    """Return at most WIDTH evenly spaced values, including the last one."""
    size = min(len(values), WIDTH)
    return [values[(i + 1) * len(values) // size - 1] for i in range(size)]


def watch_run(run: Path, console: Console) -> None:
    """Show the metrics of a run's folder as they are written, until its last step.

    Raises UsageError if the folder is not a training run.
    """
    settings = run / RUN_CONFIG
    if not settings.is_file():
        raise UsageError(f"{run} is not a training run: name a folder written by `vqtok train`")
    train = config.read_json(settings).train
    view = TrainingView(console, train)
    with view.open(train.steps):
        for row in _follow_rows(run / RUN_METRICS):
            view.show(row)
            if row["step"] >= train.steps:
                break


def _follow_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a growing file forever, starting over if it gets shorter.

    Lines that are not rows, as a crash may leave them, are skipped.
    """
    read = 0
    while True:
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # the last line may be incomplete
        read = 0 if len(lines) < read else read
        yield from (row for row in map(parse_row, lines[read:]) if row is not None)
        read = len(lines)
        time.sleep(POLL_SECONDS)
