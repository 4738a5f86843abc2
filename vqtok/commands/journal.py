"""The journal of a batch: which files are finished, and which ended the process."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

from vqtok.atomic import hold, is_held
from vqtok.commands.progress import Cancelled
from vqtok.errors import INTERRUPTS, VqtokError, is_device_failure
from vqtok.untrusted import parse_json

MAX_KILLS = 3
MAX_LINE = 2**16  # bytes, more than those of the longest path


class _Stamp(NamedTuple):
    """What a file looked like when it was finished; its time in nanoseconds."""

    bytes: int
    mtime: int


class _Past:
    """What one journal says of its targets, by their names.

    finished: its stamp; None if it was made with other settings.
    kills: how often the process has died on it since it was last finished or has last failed.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._wanted, self._settings = settings, dict[str, Any]()
        self._begun: dict[str, str] = {}  # the run in which it was begun, and has not ended
        self.finished, self.kills = dict[str, _Stamp | None](), Counter[str]()

    def read(self, file: BinaryIO) -> None:
        for line in iter(lambda: file.readline(MAX_LINE), b""):
            with suppress(ValueError):  # torn
                self._add(parse_json(line))
        self.kills.update(self._begun.keys())
        if is_held(file):  # what is begun may yet end
            self.kills.clear()

    def _add(self, event: Any) -> None:
        match event:
            case {"run": str(run), "settings": settings}:
                self._settings[run] = settings
            case {"run": str(run), "begun": str(name)}:
                self.kills[name] += name in self._begun
                self._begun[name] = run
            case {"run": str(run), "finished": str(name), "bytes": int(size), "mtime": int(at)}:
                self._end(name)
                is_same = self._settings.get(run) == self._wanted
                self.finished[name] = _Stamp(size, at) if is_same else None
            case {"failed": str(name)}:
                self._end(name)
            case {"run": str(run), "interrupted": True}:
                self._begun = {name: r for name, r in self._begun.items() if r != run}

    def _end(self, name: str) -> None:
        self._begun.pop(name, None)
        self.kills.pop(name, None)


class Journal:
    """A hidden file of an output folder: a line when a job is begun, and one when it has ended.

    A batch that goes on reads what earlier ones have written. A target that still has the size and
    the time that it was finished with need not be opened. A job that was begun and has not ended
    may have killed the process, unless that was interrupted or is still at work: it runs last and
    alone, and fails once it has done so MAX_KILLS times. What cannot be written is left out.

    folder: of the targets. name: of what is done to them, such as "encoded".
    settings: what the targets depend on, as JSON; others are not finished.
    shard: (k, n): of n processes that share the folder, this is number k. Each writes a journal
        of its own, and reads all.
    force: whether to forget everything.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Mapping[str, Any],
        shard: tuple[int, int] = (0, 1),
        force: bool = False,
    ) -> None:
        self.folder, self.shard = folder, shard
        self.path = folder / shard_name(f".{name}", shard)
        self._settings, self._force = settings, force
        self._run, self._lock = os.urandom(4).hex(), Lock()
        self._file: BinaryIO | None = None
        self._finished, self._kills = dict[str, _Stamp | None](), Counter[str]()
        for path in () if force else sorted(folder.glob(f".{name}*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        past = _Past(self._settings)
        with suppress(OSError), path.open("r+b" if os.access(path, os.W_OK) else "rb") as file:
            past.read(file)
        self._kills += past.kills
        for name, stamp in past.finished.items():  # if journals differ, none is trusted
            same = self._finished.get(name, stamp) == stamp
            self._finished[name] = stamp if same else None

    def is_finished(self, target: Path) -> bool:
        """Return whether a target is as it was when it was finished with the same settings."""
        stamp = self._finished.get(self._name(target))
        try:
            return stamp is not None and _stamp(target) == stamp
        except (OSError, ValueError):
            return False

    def kills(self, target: Path) -> int:
        """Return how often the process has died while it made a target."""
        return self._kills[self._name(target)]

    def check(self, source: Path, target: Path) -> None:
        """Raise VqtokError if the process has died too often while it made a target."""
        if self.kills(target) >= MAX_KILLS:
            raise VqtokError(
                f"{source}: the process died {self.kills(target)} times while it worked on this "
                f"file: delete {self.path} or use --force to try it again"
            )

    @contextmanager
    def record(self, target: Path) -> Iterator[None]:
        """Write that a job is begun, and how the block has ended. Thread-safe."""
        name = self._name(target)
        self._write(begun=name)
        try:
            yield
        except (Cancelled, *INTERRUPTS):
            raise
        except BaseException as error:
            if not is_device_failure(error):  # which ends the process
                self._write(failed=name)
            raise
        with suppress(OSError):
            self._write(finished=name, **_stamp(target)._asdict())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, INTERRUPTS):
            self._write(interrupted=True)
        self.close()

    def close(self) -> None:
        """Close the file. What is begun and has not ended is held against it."""
        if self._file is not None:
            self._file.close()

    def _name(self, target: Path) -> str:
        return str(target.relative_to(self.folder))

    def _write(self, **event: object) -> None:
        with self._lock, suppress(OSError):
            if self._file is None:
                self._file = self._open()
            self._file.write(json.dumps({"run": self._run} | event).encode() + b"\n")

    def _open(self) -> BinaryIO:
        if self._force:
            self.path.unlink(missing_ok=True)
        file = self.path.open("ab", buffering=0)
        hold(file)
        first = json.dumps({"run": self._run, "settings": self._settings})
        file.write(f"\n{first}\n".encode())  # the last line may be torn
        return file


def _stamp(path: Path) -> _Stamp:
    status = path.stat()
    return _Stamp(status.st_size, status.st_mtime_ns)


def shard_name(stem: str, shard: tuple[int, int]) -> str:
    """Return the name of a file that each process of several has of its own."""
    return f"{stem}.jsonl" if shard[1] == 1 else f"{stem}-{shard[0]}-of-{shard[1]}.jsonl"
