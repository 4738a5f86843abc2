"""Batches whose windows depend on the seed and the number of the step alone."""

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from torch.utils.data import Sampler

from vqtok.errors import UsageError

_LEAST_BITS = 4  # of half a number: with fewer, some permutations of a few windows never come up


class WindowBatchSampler(Sampler[list[int]]):
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
        while True:
            epochs, places = np.divmod(np.arange(begin, begin + size), self.windows)
            batch: list[int] = []
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
                batch += shuffle(places[epochs == epoch], self.windows, self.seed, epoch).tolist()
            yield batch
            begin += self.batch_size


def shuffle(places: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Return what a random permutation of 0 to `count` - 1 has at some places, int64.

    It is a Feistel cipher of 8 rounds, keyed with the seed and the number of the epoch. It needs no
    memory for the permutation, and is the same in every version of NumPy. The cipher permutes the
    numbers of an even number of bits; those that are too large are ciphered again until they fit.
    """
    half = max(_LEAST_BITS, -(-(count - 1).bit_length() // 2))
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = np.frombuffer(blake2b(f"{seed} {epoch}".encode()).digest(), "<u8")
    values = places.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        left, right = values[walking] >> shift, values[walking] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        values[walking] = (left << shift) | right
        walking = walking[values[walking] >= count]
    return values.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Return uint64 numbers hashed: the finalizer of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
