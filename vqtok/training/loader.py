"""Batches of training clips, made ahead of the step by several threads."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from math import ceil

import torch
from torch import Tensor

from vqtok import distributed
from vqtok.pipeline.overlap import DeviceTransfer, prefetch
from vqtok.training.clips import TrainingClips


def available_cores() -> int:
    """Return this process's share of the cores that it may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // distributed.local_world_size())


def default_workers(device: torch.device) -> int:
    """Return how many threads to make clips with while a model is trained on a device."""
    # On a CPU, the model needs the cores itself.
    return 1 if device.type == "cpu" else available_cores()


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

    workers: threads that make clips. PyAV, NumPy and PyTorch run without the interpreter's lock,
        and threads share the cache and their memory. While a step runs, they make the clips of at
        most two batches and one clip per worker, besides the batches that `prefetch` holds.
    rank, world_size: which share of each batch to make.
    """
    indices = clips.indices(rank, world_size)
    transfer = DeviceTransfer(device)

    def submit(step: int) -> list[Future[Tensor]]:
        return [pool.submit(clips.clip, step, i) for i in indices]

    def batches() -> Iterator[Tensor]:
        steps = count(first_step)
        pending = deque(submit(next(steps)) for _ in range(1 + ceil(workers / len(indices))))
        for step in steps:
            batch = torch.stack([future.result() for future in pending.popleft()])
            pending.append(submit(step))
            yield transfer.to_device(batch.numpy()).movedim(-1, 1)

    with _one_thread_each(workers) as pool, prefetch(batches()) as ahead:
        try:
            yield ahead
        finally:  # before `prefetch` waits for its next batch
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads in which torch uses one thread each, as they share the cores.

    A single worker keeps torch's default. Beside a model on the same CPU, its idle threads tell
    OpenMP that there are more threads than cores: those of the model then sleep while they wait
    for each other, instead of taking the core that the worker needs.
    """
    if workers == 1:
        with ThreadPoolExecutor(1) as pool:
            yield pool
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:  # it is a setting of each thread, but the last one is the default of new threads
        torch.set_num_threads(threads)
