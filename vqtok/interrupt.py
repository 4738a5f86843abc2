"""Stop cleanly on Ctrl-C, SIGTERM and SIGHUP: at once, or after the current step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Sent by a user, by a cluster's scheduler before it kills, and by a terminal that closes.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KEPT = (signal.SIG_IGN, None)  # handlers not to replace: ignored, as under nohup, or not Python's


def raise_on_termination() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt(number), to clean up as Ctrl-C does.

    Signals that are ignored stay so.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    for number in _SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, handler)


@contextmanager
def defer_interrupt() -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the number of the signal that arrived, or None.

    A second signal interrupts.
    """
    received: int | None = None

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number
        restore()

    def restore() -> None:
        for number, previous in handlers.items():
            signal.signal(number, previous)

    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    handlers = {n: previous for n, previous in handlers.items() if previous not in _KEPT}
    for number in handlers:
        signal.signal(number, handler)
    try:
        yield lambda: received
    finally:
        restore()
