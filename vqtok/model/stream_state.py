"""What a model remembers of a clip between two chunks, for one clip or for a batch of them."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vqtok.device import to_device


class StreamState(dict[nn.Module, Any]):
    """What each module remembers of a clip; empty at its start.

    It belongs to the caller, so that clips can take turns on one model, and several threads can
    share one. A value is a tensor (b ...), or a StreamState for what a module remembers otherwise.
    The rows of a batch can be clips at different places: `join` makes a state for it of those of
    the clips.

    frames: frames of each row since it started, where the module counts them.
    starts: (b 1 1 1 1) marks the rows that start now, if some do and others do not. What is
        remembered of them means nothing.
    """

    frames: tuple[int, ...] = ()
    starts: Tensor | None = None

    @classmethod
    def join(cls, states: Sequence[Self], device: torch.device) -> Self:
        """Return the state of a batch of clips, each of which has one of the states.

        device: of the model. It is not waited for.
        """
        joined = cls()
        if any(state.frames for state in states):
            joined.frames = tuple(count for state in states for count in state.frames or (0,))
        starts = [not state or state.frames == (0,) for state in states]
        if all(starts):
            return joined
        joined.mark_starts(starts, device)
        for module in dict.fromkeys(module for state in states for module in state):
            joined[module] = cls._join_values([state.get(module) for state in states], device)
        return joined

    @classmethod
    def _join_values(cls, values: Sequence[Any], device: torch.device) -> Any:
        """Join what one module remembers of each clip; None for a clip that starts."""
        example = next(value for value in values if value is not None)
        if isinstance(example, cls):
            return cls.join([cls() if value is None else value for value in values], device)
        nothing = torch.zeros_like(example)
        return torch.cat([nothing if value is None else value for value in values])

    def split(self, rows: int, count: int) -> list[Self]:
        """Return the states of the first `count` rows of a batch.

        They are views, which share memory. If they are not all, they are copies: views would keep
        the other rows in memory.
        """
        states = [type(self)() for _ in range(count)]
        for module, value in self.items():
            if isinstance(value, StreamState):
                parts = value.split(rows, count)
            else:
                parts = [part.clone() if count < rows else part for part in value.split(1)[:count]]
            for state, part in zip(states, parts, strict=True):
                state[module] = part
        for i, state in enumerate(states):
            state.frames = self.frames[i : i + 1]
        return states

    def copy(self) -> Self:
        """Return a copy that changes apart from this one. Tensors are never changed in place."""
        copied = type(self)()
        copied.replace(self)
        for module, value in self.items():
            if isinstance(value, StreamState):
                copied[module] = value.copy()
        return copied

    def replace(self, other: Self) -> None:
        """Remember what another state does, and nothing else."""
        self.clear()
        self.update(other)
        self.frames, self.starts = other.frames, other.starts

    def mark_starts(self, starts: Sequence[bool], device: torch.device) -> None:
        """Set which rows start now. If all do, what was remembered is forgotten."""
        if all(starts):
            self.clear()
        self.starts = None
        if any(starts) and not all(starts):
            self.starts = to_device(torch.tensor(starts).view(-1, 1, 1, 1, 1), device)
