"""Logging of metrics: averages over steps, metrics.jsonl and TensorBoard."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vqtok.atomic import atomic_write
from vqtok.codebook_stats.usage import codebook_use
from vqtok.errors import UsageError
from vqtok.metric_rows import Row, parse_row

Logger = Callable[[Row], None]


class MetricAverager:
    """Averages metrics over the steps since the last reset.

    zero_code: leave index 0 out of the usage; it is no token.
    """

    def __init__(self, codebook_size: int, zero_code: bool = False) -> None:
        self._codebook_size, self._first = codebook_size, int(zero_code)
        self.reset()

    def reset(self) -> None:
        """Discard all steps and restart the clock."""
        self._metrics: list[dict[str, Tensor]] = []
        self._indices: list[Tensor] = []
        self._data_wait = 0.0
        self._start = time.perf_counter()

    def update(self, metrics: dict[str, Tensor], indices: Tensor, data_wait: float) -> None:
        """Add a step.

        indices: all indices of the batch (n). data_wait: seconds spent waiting for the batch.
        """
        self._metrics.append(metrics)
        self._indices.append(indices)
        self._data_wait += data_wait

    def row(self, step: int) -> Row:
        """Return a row of metrics.jsonl: the mean metrics, codebook usage and seconds per step."""
        steps = len(self._metrics)
        seconds = {
            "seconds_per_step": (time.perf_counter() - self._start) / steps,
            "data_wait": self._data_wait / steps,
        }
        # A metric that started since the last row, such as that of the discriminator, is averaged
        # over the steps that have it.
        means = {
            name: torch.stack([m[name].float() for m in self._metrics if name in m]).mean().item()
            for name in self._metrics[-1]
        }
        indices = torch.cat(self._indices).cpu()
        counts = torch.bincount(indices, minlength=self._codebook_size).numpy()
        usage = codebook_use(counts[self._first :], self._first)
        return {"step": step} | means | usage.summary() | seconds


def jsonl_logger(path: Path, first_step: int) -> Logger:
    """Return a logger that appends rows to a file, in a run that has done `first_step` steps.

    Rows of later steps are removed: a run that was killed may have logged steps that its last save
    does not include, and the last row may be incomplete.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = ((line, parse_row(line)) for line in lines)
    saved = [line for line, row in rows if row is not None and row["step"] <= first_step]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in saved))

    def write(row: Row) -> None:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    return write


def tensorboard_logger(folder: Path, first_step: int) -> Logger:
    """Return a logger that writes event files. Raises UsageError if TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "train.tensorboard needs TensorBoard: pip install 'vqtok[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(row: Row) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return write
