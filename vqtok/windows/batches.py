"""Batches whose windows depend on the seed and the number of the step alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from vqtok.errors import UsageError


class Batches(Sampler[list[int]]):
    """The part of one rank of all batches from a step on, as numbers of windows; it has no end.

    Each epoch is a permutation of all windows, which the seed and the number of the epoch decide.
    Batch `step` of all ranks together is positions step * batch_size to (step + 1) * batch_size of
    the epochs in a row, so ranks and workers change nothing.
    """

    def __init__(
        self, windows: int, seed: int, batch_size: int, step: int, rank: int, world_size: int
    ) -> None:
        if batch_size < 1 or world_size < 1 or batch_size % world_size:
            raise UsageError(
                f"a batch of {batch_size} windows cannot be divided among {world_size} ranks: "
                "choose a multiple of them for batch_size"
            )
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} is not one of 0 to {world_size - 1}")
        if step < 0:
            raise UsageError(f"step {step} is negative: the first is 0")
        self.windows, self.seed, self.step = windows, seed, step
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size // self.world_size
        begin = self.step * self.batch_size + self.rank * size
        epoch, order = -1, np.empty(0, np.int64)
        while True:
            batch = []
            for position in range(begin, begin + size):
                number, place = divmod(position, self.windows)
                if number != epoch:
                    epoch, order = number, permutation(self.windows, self.seed, number)
                batch.append(int(order[place]))
            yield batch
            begin += self.batch_size


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers 0 to `count` - 1, int64, in the order of an epoch."""
    # Of NumPy's generators, only RandomState promises the same numbers in every later version.
    return np.random.RandomState((seed, epoch)).permutation(count)
