"""Stop cleanly on Ctrl-C, SIGTERM and SIGHUP: at once, or after the current step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import NoReturn

# SIGTERM comes from a cluster's scheduler before it kills, SIGHUP from a terminal that closes.
# Both often come several times.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KEPT = (signal.SIG_IGN, None)  # handlers not to replace: ignored, as under nohup, or not Python's

# Set when a signal has arrived: reading a pipe that is silent then ends.
stopping = Event()


class Interrupted(SystemExit):
    """A signal asks the process to stop. `code` is 128 + its number.

    Not a KeyboardInterrupt: after one of those has passed through an import, Python ends the
    process by SIGINT, whatever the exit code.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)
        self.signal = number


def raise_on_signals() -> None:
    """Make Ctrl-C, SIGTERM and SIGHUP raise Interrupted. Signals that are ignored stay so."""
    for number in _handlers():
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    stopping.set()
    for other in (signal.SIGTERM, signal.SIGHUP):  # that come again must not disturb cleaning up
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(signal.Signals(number))


@contextmanager
def defer_interrupt() -> Iterator[Callable[[], signal.Signals | None]]:
    """Yield a function that returns the first signal that arrived, or None.

    A second Ctrl-C interrupts; SIGTERM and SIGHUP do not, however often they arrive.
    """
    received: signal.Signals | None = None

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = received or signal.Signals(number)
        stopping.set()
        if number == signal.SIGINT:
            signal.signal(number, handlers[signal.SIGINT])

    handlers = _handlers()
    for number in handlers:
        signal.signal(number, handler)
    try:
        yield lambda: received
    finally:
        stopping.clear()
        for number, previous in handlers.items():
            signal.signal(number, previous)


def _handlers() -> dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None]:
    """Return the handlers that may be replaced."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler not in _KEPT}
