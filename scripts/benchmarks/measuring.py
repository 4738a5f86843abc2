"""Seconds and memory of work on a device."""

import time
from collections.abc import Callable

import torch

from vqtok.device import synchronize


def measure_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long the device takes for the work."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def peak_memory(work: Callable[[], object], device: torch.device) -> str:
    """Do the work; return the most memory of a GPU that tensors take meanwhile, — on a CPU."""
    if device.type == "cpu":
        work()
        return "—"
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return f"{torch.cuda.max_memory_allocated(device) / 2**20:,.0f} MiB"
