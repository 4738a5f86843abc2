"""A process that works, as seen by the one that supervises it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import vqtok

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Not with the modules of the working directory, where anything may be called random.py.
PYTHON = (sys.executable, "-P", "-m")
COMMAND = (*PYTHON, "vqtok.bulk.worker")
_PATIENCE = 10  # seconds that a worker has to end


@dataclass(frozen=True)
class Setup:
    """The first line that a worker reads.

    folder: of the corpus.
    tokenizer: a file or a bundled name; must be the one that the corpus was begun with.
    device: auto, cpu, cuda or cuda:N.
    jobs: clips to encode at once; on a GPU, in one batch.
    """

    folder: str
    tokenizer: str
    device: str
    jobs: int


class WorkerProcess:
    """A process that reads lines of JSON and replies with such lines. It ends with this one.

    setup: the first line. command: of the process, instead of that which encodes.
    threads: of PyTorch; None: as in this process.
    """

    def __init__(
        self,
        setup: "DataclassInstance",
        command: Sequence[str] = (),
        threads: int | None = None,
    ) -> None:
        package = Path(vqtok.__file__).parents[1]
        found = package.name == "site-packages"  # and so by the process
        paths = os.environ.get("PYTHONPATH", "")
        paths = paths if found else os.pathsep.join(filter(None, [str(package), paths]))
        changed = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        with _signals_blocked():
            self._process = subprocess.Popen(
                command or COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=os.environ | {"PYTHONPATH": paths} | changed,
            )
        self._replies: Queue[dict[str, Any] | None] = Queue()
        Thread(target=self._listen, daemon=True).start()
        self.send(asdict(setup))

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            reply = _parse(line)
            if reply is not None:
                self._replies.put(reply)
        self._replies.put(None)

    def send(self, line: dict[str, Any]) -> None:
        """Send a line; it is lost if the process has ended, which `receive` will tell."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def receive(self, seconds: float | None) -> dict[str, Any] | None:
        """Return the next reply, or None if the process has ended. Empty after some seconds."""
        return self._replies.get(timeout=seconds)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process, which has nothing to do."""
        assert self._process.stdin
        try:
            self._process.stdin.close()
            self._process.wait(_PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()

    def how_it_ended(self) -> str:
        """Return the signal or the exit code of a process that has ended."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


class Replies:
    """The replies of such a process to its parent. What else is printed goes to stderr."""

    def __init__(self) -> None:
        self._file, self._lock = os.fdopen(os.dup(1), "w"), Lock()
        os.dup2(2, 1)  # libraries that print must not disturb the replies

    def send(self, **line: Any) -> None:
        """Send a line of JSON. Thread-safe. Raises BrokenPipeError if the parent is gone."""
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block the signals of a terminal in processes that the block starts, from their beginning.

    They reach the whole group of processes, but this one decides what happens then.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parse(line: str) -> dict[str, Any] | None:
    """Return a reply, or None for what Python prints while it starts, and for a torn line."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
