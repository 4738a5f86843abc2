"""Batches of training clips, made ahead of the step: for a GPU by processes, else by a thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor

from vqtok import distributed
from vqtok.pipeline.overlap import DeviceTransfer, prefetch
from vqtok.scheduler import count_cores
from vqtok.training.clips import TrainingClips
from vqtok.training.workers import batches_from_processes


def available_cores() -> int:
    """Return this process's share of the cores that it may run on."""
    return max(1, count_cores() // distributed.local_world_size())


def default_workers(device: torch.device) -> int:
    """Return how many processes make clips while a model is trained on a device."""
    # On a CPU, the model needs the cores itself.
    return 0 if device.type == "cpu" else available_cores()


@contextmanager
def load_batches(
    clips: TrainingClips,
    first_step: int,
    device: torch.device,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Iterator[Tensor]]:
    """Yield an endless iterator over batches, uint8 (b c t h w) on the device, from a step on.

    The batches are the same with any number of workers. Each is on the device when it is returned.
    An exception in making a clip is raised when its batch is requested.

    workers: processes that make clips. They share decoded clips inside `clips.shared()` only. 0:
        the thread that copies batches to the device makes the clips.
    rank, world_size: which share of each batch to make.

    Raises VqtokError if a worker is killed.
    """
    indices = clips.indices(rank, world_size)
    transfer = DeviceTransfer(device)

    def copied(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        return (transfer.to_device(batch.numpy()).movedim(-1, 1) for batch in batches)

    if workers == 0:
        made = (clips.stack(step, indices) for step in count(first_step))
        with prefetch(copied(made)) as ahead:
            yield ahead
        return
    with batches_from_processes(clips, first_step, indices, workers) as (batches, stop):
        if device.type == "cpu":  # nothing would be copied
            batches = map(Tensor.clone, batches)
        with prefetch(copied(batches)) as ahead:
            try:
                yield ahead
            finally:  # before `prefetch` waits for its next batch
                stop()
