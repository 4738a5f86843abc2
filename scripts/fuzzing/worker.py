"""A process that tries cases, and is replaced when it dies, hangs or takes too much memory."""

import faulthandler
import multiprocessing
import os
import re
import resource
import signal
import tempfile
from collections.abc import Collection, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from fuzzing.case import Target, build
from fuzzing.judge import MEMORY, PACKAGE, Finding, try_case

ADDRESS_SPACE = 4 * MEMORY  # MiB more than at the start: threads reserve much and use little
FILE_SIZE = 256  # MiB
CASES_PER_PROCESS = 300  # so that a leak in one case is not taken for the fault of another

_fork = multiprocessing.get_context("fork")  # what is imported and built stays so


class Worker:
    """Tries cases in a process of its own.

    targets: by name.
    limit: seconds that a case may take.
    """

    def __init__(self, targets: Mapping[str, Target], seed: int, limit: float) -> None:
        self._targets, self._seed, self._limit = targets, seed, limit
        self._temporary = tempfile.TemporaryDirectory(prefix="fuzz", ignore_cleanup_errors=True)
        self._folder = Path(self._temporary.name)
        self._process: multiprocessing.process.BaseProcess | None = None
        self._tried = 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._temporary.cleanup()

    def try_case(
        self, name: str, number: int, kept: Collection[int] | None = None
    ) -> Finding | None:
        """Return what is wrong with a case of a target, if anything; `kept` as in `build`."""
        if self._tried % CASES_PER_PROCESS == 0:
            self._stop()
        self._tried += 1
        if self._process is None:
            self._start()
        try:
            self._pipe.send((name, number, kept))
            if self._pipe.poll(self._limit):
                return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return self._died()
        return self._hung()

    def _start(self) -> None:
        self._pipe, other = _fork.Pipe()
        arguments = (other, self._targets, self._seed, self._folder)
        self._process = _fork.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _died(self) -> Finding:
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        self._stop()
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        stack = self._stack()
        return Finding("crash", f"{reason} in {own_frame(stack)}", stack[:2000])

    def _hung(self) -> Finding:
        assert self._process is not None
        os.kill(self._process.pid or 0, signal.SIGUSR1)  # writes the stack
        self._pipe.poll(1)
        self._stop()
        stack = self._stack()
        return Finding("hang", own_frame(stack), stack[:2000])

    def _stack(self) -> str:
        """Return the stack at the time of a crash or a hang, innermost frame first."""
        return (self._folder / "stack.log").read_text(errors="replace")


def own_frame(stack: str) -> str:
    """Return the innermost function of vqtok in a stack that faulthandler printed."""
    frames = re.findall(r'File "([^"]*)", line \d+ in (\S+)', stack)
    own = [frame for frame in frames if Path(frame[0]).is_relative_to(PACKAGE)]
    return "{}:{}".format(*(Path(part).name for part in (own or frames or [("?", "?")])[0]))


def _serve(pipe: Connection, targets: Mapping[str, Target], seed: int, folder: Path) -> None:
    """Try the cases that come through the pipe, and send what was found."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops
    _limit_resources()
    native = os.open(folder / "native.log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    for output in (1, 2):
        os.dup2(native, output)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with (folder / "stack.log").open("a") as stack:
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
        while True:
            name, number, kept = pipe.recv()
            stack.truncate(0)
            case, _ = build(targets[name], name, number, seed, kept)
            found = try_case(case, targets[name].run, folder)
            pipe.send(found)


def _limit_resources() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + ADDRESS_SPACE * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE * 2**20, FILE_SIZE * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
