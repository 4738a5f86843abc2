"""Open videos in a process of their own (`prober.py`), as one may crash or hang it."""

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty
from typing import NamedTuple, Self

from vqtok.bulk.process import WorkerProcess

COMMAND = (sys.executable, "-P", "-m", "vqtok.bulk.prober")
PATIENCE = 60.0  # seconds for a video


@dataclass(frozen=True)
class Setup:
    """How videos are opened, the first line that the process reads.

    size: of the short side, in pixels. fps: as text.
    """

    size: int | None
    fps: str | None


class Probed(NamedTuple):
    """What the header of a video says, as it would be encoded: 0 seconds if they are unknown."""

    seconds: float
    fps: float
    height: int
    width: int


class Prober:
    """Opens videos. Use it as a context manager."""

    def __init__(self, size: int | None, fps: Fraction | None) -> None:
        self._setup = Setup(size, None if fps is None else str(fps))
        self._process: WorkerProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()

    def probe(self, path: Path) -> Probed | None:
        """Return what the header of a video says; None if it cannot be read."""
        self._process = self._process or WorkerProcess(self._setup, COMMAND)
        self._process.send({"path": str(path)})
        try:
            reply = self._process.receive(PATIENCE)
        except Empty:
            reply = None
        if reply is None:
            self._process.kill()
            self._process = None
        return Probed(**reply) if reply else None
