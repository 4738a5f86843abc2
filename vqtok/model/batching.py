"""Model calls of several clips in one batch that clips join and leave (continuous batching)."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import torch
from torch import Tensor

from vqtok.errors import VqtokError, is_out_of_memory
from vqtok.model.stream_state import StreamState

# Seconds that a call waits for calls of other clips: these, or as long as the last batch took, as
# others are then half way.
PATIENCE, LONGEST_PATIENCE = 0.004, 0.1


def batch_rows(device: torch.device, clips: int) -> int:
    """Return how many of `clips` to run at once. On a CPU, a batch is no faster than threads."""
    return 1 if device.type == "cpu" else clips


@dataclass(eq=False)
class _Call:
    """A call that waits for others, or for its result."""

    function: Callable[..., Tensor]
    x: Tensor
    state: StreamState
    args: tuple[Any, ...]
    start: float = field(default_factory=time.monotonic)
    done: bool = False
    result: Tensor | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        """Only calls with equal keys fit in one batch."""
        inputs = ((a.shape, a.dtype) if isinstance(a, Tensor) else a for a in (self.x, *self.args))
        self.key = self.function, *inputs


class Batcher:
    """Joins the model calls of clips that are processed in several threads, a clip in each.

    A call waits a moment for those of other clips with the same function and shapes. One of the
    threads then runs them as a batch of exactly `rows` clips; where there are fewer, one is
    repeated. As shapes are always the same, so are the kernels that PyTorch chooses: what a clip
    gets depends neither on the others nor on which calls happen to meet.

    rows: clips in a batch. With 1, calls run directly.
    device: of the model.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self._device = rows, device
        self._changed = Condition()
        self._waiting: list[_Call] = []
        self._clips = 0  # that will call again
        self._busy = False  # a thread runs a batch
        self._ended, self._duration = time.monotonic(), 0.0  # of the last batch

    @contextmanager
    def clip(self) -> Iterator[None]:
        """Inside the block, the thread works on a clip, whose calls others may wait for."""
        with self._changed:
            self._clips += 1
        try:
            yield
        finally:
            with self._changed:
                self._clips -= 1
                self._changed.notify_all()

    def run(
        self, function: Callable[..., Tensor], x: Tensor, state: StreamState, *args: object
    ) -> Tensor:
        """Return function(x, state, *args), run with calls of other threads.

        function: acts on each row (b ...) of x and of the tensors in `args` alone.
        x: (1 ...); a batch already (b ...) is run directly.
        state: of the clip, and updated.
        Raises whatever a batch with this call raises, and VqtokError if it ran out of memory: all
        clips of the batch then fail. A smaller batch might have given other results.
        """
        if self.rows == 1 or len(x) > 1:
            return function(x, state, *args)
        call = _Call(function, x, state, args)
        with self._changed:
            self._waiting.append(call)
            self._changed.notify_all()
        while batch := self._next_batch(call):
            self._run_batch(batch)
        try:
            if call.error is not None:
                raise call.error
            assert call.result is not None
            return call.result
        finally:  # else error, traceback and call would keep each other, and the clip, in memory
            del call

    def _next_batch(self, call: _Call) -> list[_Call]:
        """Return a batch for this thread to run, or, once another has run the call, none."""
        with self._changed:
            while not call.done:
                if not self._busy and (batch := self._due()):
                    self._busy = True
                    self._waiting = [other for other in self._waiting if other not in batch]
                    return batch
                remaining = self._deadline(call) - time.monotonic()
                self._changed.wait(None if self._busy else max(0.0, remaining))
            return []

    def _deadline(self, call: _Call) -> float:
        """Return when a call has waited long enough."""
        patience = max(PATIENCE, min(self._duration, LONGEST_PATIENCE))
        return max(call.start, self._ended) + patience

    def _due(self) -> list[_Call]:
        """Return the first batch that is full or has no reason to wait any longer."""
        now = time.monotonic()
        all_wait = len(self._waiting) >= self._clips
        for call in self._waiting:
            batch = [other for other in self._waiting if other.key == call.key][: self.rows]
            if len(batch) == self.rows or all_wait or self._deadline(call) <= now:
                return batch
        return []

    def _run_batch(self, calls: list[_Call]) -> None:
        start = time.monotonic()
        try:
            self._join(calls)
        except BaseException as error:
            for call in calls:
                call.error = self._describe(error)
        with self._changed:
            self._busy = False
            self._ended = time.monotonic()
            self._duration = self._ended - start
            for call in calls:
                call.done = True
            self._changed.notify_all()

    def _join(self, calls: Sequence[_Call]) -> None:
        """Run the calls as one batch and give each its rows of the result and of the state."""
        first = calls[0]
        padded = [*calls, *[first] * (self.rows - len(calls))]
        x = torch.cat([call.x for call in padded])
        state = StreamState.join([call.state for call in padded], self._device)
        args = [
            torch.cat(values) if isinstance(values[0], Tensor) else values[0]
            for values in zip(*(call.args for call in padded), strict=True)
        ]
        results = first.function(x, state, *args).split(1)
        states = state.split(self.rows, len(calls))
        for call, result, part in zip(calls, results, states, strict=False):
            call.result = result
            call.state.replace(part)

    def _describe(self, error: BaseException) -> BaseException:
        if not is_out_of_memory(error):
            return error
        # Without the error, whose traceback would keep the tensors of the batch in memory.
        return VqtokError(f"out of memory with {self.rows} clips at once: choose fewer --jobs")
