"""Figures for people: the codebook report and the live view of a training run."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vqtok.config import TrainSettings
from vqtok.errors import VqtokError
from vqtok.metrics import CodebookUse, bits_per_pixel, codebook_use
from vqtok.tokens import Tokens

BAR = 30  # characters
BINS = 8  # of the histogram
SECONDS_BETWEEN_LINES = 10
HEALTHY = 0.25  # of the usage by chance; real video is far from using its codes evenly


@dataclass(frozen=True)
class Summary:
    """The codebook report of one or more token files of one tokenizer; `counts` is (k)."""

    files: int
    use: CodebookUse
    bits_per_pixel: float
    counts: np.ndarray

    def numbers(self) -> dict[str, Any]:
        """What `vqtok stats --json` prints."""
        return {"files": self.files} | asdict(self.use) | {"bits_per_pixel": self.bits_per_pixel}

    def tables(self) -> Group:
        """What `vqtok stats` prints: the figures, the most used codes and a histogram."""
        return Group(figures(self), top_codes(self.use), histogram(self.counts))


def summarize(files: Iterable[tuple[str, Tokens]]) -> Summary:
    """Count the indices of named token files. Raises VqtokError when the tokenizers differ."""
    counts, pixels, number, first, model = np.zeros(0, np.int64), 0, 0, "", ""
    for number, (name, content) in enumerate(files, 1):
        size = content.codebook_size
        if number == 1:
            first, model, counts = name, content.model, np.zeros(size, np.int64)
        elif content.model != model:
            raise VqtokError(
                f"{first} and {name} come from different tokenizers: report them apart"
            )
        counts += np.bincount(content.indices.ravel(), minlength=size)
        pixels += content.frames * content.height * content.width
    use = codebook_use(counts)
    return Summary(number, use, bits_per_pixel(use.tokens, use.codebook_size, pixels), counts)


def figures(summary: Summary) -> Table:
    """Two columns: what, and how much."""
    use = summary.use
    table = Table(title="codebook report", show_header=False, title_justify="left")
    bits = math.log2(use.codebook_size)
    for name, value in {
        "files": f"{summary.files:,}",
        "tokens": f"{use.tokens:,}",
        "codebook size": f"{use.codebook_size:,}",
        "codes used": f"{use.used:,}",
        "usage": f"{use.usage:.2%}  (chance would give {use.usage_by_chance:.2%})",
        "dead codes": f"{use.dead:,}",
        "perplexity": f"{use.perplexity:,.1f}",
        "entropy": f"{use.entropy_bits:.3f} of {bits:.3f} bits per token",
        "bits per pixel": f"{summary.bits_per_pixel:.4f}",
    }.items():
        table.add_row(name, value)
    return table


def top_codes(use: CodebookUse) -> Table:
    """The most used codes, with their share of all tokens."""
    table = Table(title="most used codes", title_justify="left")
    for name in ("index", "count", "share"):
        table.add_column(name, justify="right")
    table.add_column("")
    for index, count in use.top:
        share = count / use.tokens
        table.add_row(f"{index}", f"{count:,}", f"{share:.2%}", bar(count / use.top[0][1]))
    return table


def histogram(counts: np.ndarray) -> Table:
    """How many codes are used how often, in classes that double."""
    table = Table(title="codes by how often they are used", title_justify="left")
    for name in ("times used", "codes"):
        table.add_column(name, justify="right")
    table.add_column("")
    used = counts[counts > 0]
    step = max(1, math.ceil((math.log2(used.max()) + 1) / BINS))
    edges = [2 ** (step * i) for i in range(BINS + 1)]
    rows = [("0", int((counts == 0).sum()))]
    for low, high in pairwise(edges):
        if low <= used.max():
            name = str(low) if high == low + 1 else f"{low:,} to {high - 1:,}"
            rows.append((name, int(((used >= low) & (used < high)).sum())))
    most = max(n for _, n in rows)
    for name, n in rows:
        table.add_row(name, f"{n:,}", bar(n / most))
    return table


def bar(share: float) -> Text:
    """A bar of up to BAR characters; anything above zero shows."""
    return Text("█" * (math.ceil(share * BAR) if share else 0), style="cyan")


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
        self._printed = -math.inf

    @contextmanager
    def open(self, steps: int) -> Iterator[None]:
        """Keep the table on the screen while inside."""
        self._progress.update(self._task, total=steps)
        with self._live if self._console.is_terminal else nullcontext():
            yield

    def show(self, row: dict[str, Any]) -> None:
        """Take in a line of metrics.jsonl."""
        values = training_values(row, self._frames)
        self._progress.update(self._task, completed=row["step"])
        if self._console.is_terminal:
            table = Table(show_header=False)
            for name, value in values.items():
                table.add_row(name, value)
            self._live.update(Group(table, self._progress))
        elif time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            text = ", ".join(f"{name} {value}" for name, value in values.items())
            self._console.print(f"step {row['step']}: {text}", soft_wrap=True)


def training_values(row: dict[str, Any], frames: int) -> dict[str, str]:
    """A line of metrics.jsonl in words; `frames` are those of one step."""
    values = {
        "loss": f"{row['loss']:.4f}",
        "PSNR": f"{row['psnr']:.2f} dB",
        "usage": f"{row['usage']:.1%} (chance {row['usage_by_chance']:.1%})",
        "perplexity": f"{row['perplexity']:,.0f}",
        "frames/s": f"{frames / row['seconds_per_step']:.1f}",
    }
    if row["usage"] < HEALTHY * row["usage_by_chance"]:
        values["warning"] = "the codebook collapses: usage is under a quarter of what chance gives"
    return values
