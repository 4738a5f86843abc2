"""What a run says of itself: lines of metrics.jsonl, and the same for TensorBoard."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtok.codebook_stats.usage import codebook_use
from vqtok.errors import UsageError
from vqtok.files import atomic_write

Row = dict[str, Any]
Write = Callable[[Row], None]


class MetricAverager:
    """Means over the steps since the last row."""

    def __init__(self, codebook_size: int) -> None:
        self._size = codebook_size
        self.restart()

    def restart(self) -> None:
        """Forget what was added; the clock starts now."""
        self._values: list[dict[str, Tensor]] = []
        self._indices: list[Tensor] = []
        self._waited = 0.0
        self._time = time.perf_counter()

    def add(self, values: dict[str, Tensor], indices: Tensor, waited: float) -> None:
        """Take in what a step gave, and the seconds that it waited for its clips."""
        self._values.append(values)
        self._indices.append(indices)
        self._waited += waited

    def row(self, step: int) -> Row:
        """What to write after this step."""
        steps = len(self._values)
        seconds = {
            "seconds_per_step": (time.perf_counter() - self._time) / steps,
            "data_wait": self._waited / steps,
        }
        means = {
            name: torch.stack([v[name].float() for v in self._values if name in v]).mean().item()
            for name in self._values[-1]
        }
        indices = torch.cat(self._indices).cpu()
        use = codebook_use(torch.bincount(indices, minlength=self._size).numpy())
        return {"step": step} | means | use.summary() | seconds


def lines(path: Path, first: int) -> Write:
    """Append rows to a file that a resumed run, which has done `first` steps, goes on with."""
    # A run that was killed may have written lines after its last save, the last one in part.
    old = path.read_text(errors="replace").splitlines() if path.exists() else []
    kept = [line for line in old if _stands(line, first)]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept))

    def write(row: Row) -> None:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    return write


def _stands(line: str, first: int) -> bool:
    """Whether a line is a row, and of no later step."""
    try:
        return json.loads(line)["step"] <= first
    except (ValueError, KeyError, TypeError):
        return False


def tensorboard(folder: Path, first: int) -> Write:
    """Write rows to event files in a folder. Raises UsageError where TensorBoard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "train.tensorboard needs TensorBoard: pip install 'vqtok[tensorboard]'"
        ) from None
    writer = SummaryWriter(str(folder), purge_step=first)

    def write(row: Row) -> None:
        for name, value in row.items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return write
