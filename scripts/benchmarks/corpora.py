"""Watch `vqtok encode` make a packed corpus: its processes, their memory, and finished clips."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_INTERVAL = 0.05  # seconds between two looks at the folder
_MEMORY_INTERVAL = 2.0  # seconds: the kernel adds up all pages of a process


class Encoding:
    """A running `vqtok encode`, in a session of its own.

    folder: of the corpus.
    finished: when a clip was finished, in seconds from the start, by the name of its part.
    memory: the most bytes that all its processes took at once, shared memory counted once.
    """

    def __init__(self, folder: Path, *arguments: object) -> None:
        words = ["encode", *map(str, arguments), "-o", str(folder)]
        self.folder, self.finished, self.memory = folder, dict[str, float](), 0
        self._errors = folder.with_name(f"{folder.name}.stderr").open("w+")
        self._start = self._weighed = time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vqtok", *words], stderr=self._errors, start_new_session=True
        )

    def is_running(self) -> bool:
        """Return whether the command has not ended."""
        return self.process.poll() is None

    def look(self) -> None:
        """Note clips that are finished, and the memory; wait a moment."""
        for path in self.folder.glob("parts/*/*.part"):
            with suppress(FileNotFoundError):
                self.finished.setdefault(path.name, path.stat().st_mtime - self._start)
        if time.time() > self._weighed + _MEMORY_INTERVAL:
            self._weighed = time.time()
            self.memory = max(self.memory, sum(map(_memory, self.processes())))
        time.sleep(_INTERVAL)

    def processes(self) -> list[int]:
        """Return the processes of the command that run."""
        return [pid for pid in _all_processes() if _session(pid) == self.process.pid]

    def kill(self, pid: int) -> None:
        """End one of its processes at once."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def wait(self) -> int:
        """Watch to the end; return the exit code once all its processes have ended."""
        while self.is_running():
            self.look()
        while any("vqtok" in _command(pid) for pid in self.processes()):
            time.sleep(_INTERVAL)
        for pid in self.processes():  # agents of Ray, which outlive a cluster that was killed
            self.kill(pid)
        return self.process.returncode

    def seconds(self) -> float:
        """Watch to the end; return the seconds of the whole command. It must succeed."""
        while self.is_running():
            self.look()
        seconds = time.time() - self._start
        if self.wait():
            raise SystemExit(self.errors())
        return seconds

    def published(self) -> float:
        """Return when the last shard was published, in seconds from the start."""
        records = self.folder.glob("shards/*.json")
        return max(path.stat().st_mtime for path in records) - self._start

    def errors(self) -> str:
        """Return what the command has printed on stderr."""
        self._errors.seek(0)
        return self._errors.read()


def clips_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the clips in the records of a corpus, in order."""
    for path in sorted(folder.glob("shards/*.json")):
        yield from json.loads(path.read_bytes())["clips"]


def tars_of(folder: Path) -> list[bytes]:
    """Return the bytes of the shards of a corpus."""
    return [path.read_bytes() for path in sorted(folder.glob("shards/*.tar"))]


def _all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _command(pid: int) -> str:
    """Return the command line of a process; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _memory(pid: int) -> int:
    """Return the bytes of a process, its share of what several use."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended meanwhile
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
