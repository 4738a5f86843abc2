"""Open videos in a process of their own, as one may crash or hang it.

The process is `python -m vqtok.bulk.probe`. It reads `Setup`, then a line of JSON with the path of
each video, and replies with a line on each.
"""

import json
import os
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty
from typing import NamedTuple, Self

from vqtok.bulk.process import WorkerProcess
from vqtok.errors import VqtokError

COMMAND = (sys.executable, "-P", "-m", "vqtok.bulk.probe")
PATIENCE = 60.0  # seconds for a video


@dataclass(frozen=True)
class Setup:
    """How the videos are opened. size: of the short side in pixels. fps: as text."""

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

    def __init__(self, size: int | None, fps: str | None) -> None:
        self._setup = Setup(size, fps)
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


def read_video(path: str, setup: Setup) -> Probed | None:
    """Return what the header of a video says; None if it cannot be read."""
    from vqtok.video import open_video

    fps = None if setup.fps is None else Fraction(setup.fps)
    try:
        with open_video(path, size=setup.size, fps=fps) as video:
            size = video.height, video.width
            return Probed(video.duration or 0.0, float(video.fps), *size)
    except (VqtokError, OSError):  # encoding it will say what is wrong
        return None


def main() -> None:
    """Open the videos on stdin until it ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not disturb the replies
    setup = Setup(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        video = read_video(json.loads(line)["path"], setup)
        replies.write(json.dumps(video._asdict() if video else {}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
