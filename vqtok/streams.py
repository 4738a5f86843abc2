"""The standard streams of the command: closed, full, or left by their reader."""

import io
import os
import sys
from contextlib import suppress
from typing import Any

_WIDTHS = {str(columns) for columns in range(20, 1000)}


class _Messages(io.FileIO):
    """stderr. Messages that cannot be written are lost: the command goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Make the standard streams safe to use.

    - A closed stream gets /dev/null as its descriptor: the next file that is opened, such as the
      output, would get it otherwise, and with it what C code prints. `sys.stdin` and `sys.stdout`
      stay None.
    - Characters that a stream cannot encode are escaped.
    - A width of the terminal that makes no sense is ignored.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest descriptor that is free
    encoding = sys.stderr.encoding if sys.stderr is not None else "utf-8"
    raw = io.BufferedWriter(_Messages(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if os.environ.get("COLUMNS") not in _WIDTHS:
        os.environ.pop("COLUMNS", None)


def finish_stdout() -> None:
    """Write what stdout still holds; raises OSError now, where it can be reported, if it is full.

    After an error, nothing more is written there, and the interpreter does not complain at its end.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
