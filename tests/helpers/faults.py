"""Processes that are killed before a file operation, or disturbed by others, and full disks."""

import errno
import io
import os
import sys
from contextlib import contextmanager
from pathlib import Path

_OPERATIONS = {
    *("open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"),
    *("os.listdir", "os.scandir"),
}


class Killed(BaseException):
    """The process is killed: it does nothing any more, and cleans up nothing."""


class _Watch:
    """Calls a function before each file operation, with its number from 0."""

    def __init__(self):
        self.action, self.count = None, 0
        sys.addaudithook(self._hook)  # which nobody can remove

    def _hook(self, event, args):
        if self.action is not None and event in _OPERATIONS:
            self.count += 1
            self.action(self.count - 1)


_watch = None


@contextmanager
def before_each(action):
    """Call action(number) before each file operation of the block."""
    global _watch
    _watch = _watch or _Watch()
    _watch.action, _watch.count = action, 0
    try:
        yield
    finally:
        _watch.action = None


def killed_before(number, work):
    """Run work() until it is killed before a file operation; return whether it was."""

    def kill(current):
        if current >= number:
            raise Killed

    try:
        with before_each(kill):
            work()
    except Killed:
        return True
    return False


def with_another(number, work, other):
    """Run work(), and all of other() before one of its operations; return whether it got there."""
    ran = []

    def interleave(current):
        if current == number:
            action, _watch.action = _watch.action, None
            other()
            ran.append(True)
            _watch.action = action

    with before_each(interleave):
        work()
    return bool(ran)


class _Full(io.FileIO):
    """A file on a disk that has some bytes left."""

    left = 0

    def write(self, data):
        """Write, or raise as a full disk does."""
        size = len(data)
        if size > _Full.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _Full.left -= size
        return super().write(data)


@contextmanager
def full_disk(size):
    """Let files that `Path` opens in the block take this many bytes in all."""
    original = Path.open

    def open_full(self, mode="r", *args, **options):
        if mode == "r" or mode == "rb":
            return original(self, mode, *args, **options)
        raw = _Full(self, mode.replace("b", ""))
        file = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return file if "b" in mode else io.TextIOWrapper(file)

    _Full.left = size
    Path.open = open_full
    try:
        yield
    finally:
        Path.open = original
