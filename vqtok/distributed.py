"""Data-parallel training under `torchrun`: rank, world size and collectives.

Collectives do nothing in a single process, so callers need no special case.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqtok.errors import UsageError, VqtokError

# How long a process waits for the others. Rank 0 may validate for hours while they wait, and
# torchrun ends them if one fails.
TIMEOUT = timedelta(days=2)


def rank() -> int:
    """Return the rank of this process; rank 0 writes files and prints."""
    return int(os.environ["RANK"]) if _launched() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def local_world_size() -> int:
    """Return the number of these processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _launched() else 1


def local_device(device: torch.device) -> torch.device:
    """Return the device of this process: under `torchrun`, `cuda` is one GPU for each.

    Raises UsageError if several processes would share a GPU, or if they cannot talk.
    """
    if not dist.is_available() and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("this PyTorch has no torch.distributed: run vqtok without torchrun")
    if device.type != "cuda" or not _launched():
        return device
    processes, available = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > available:
        raise UsageError(
            f"torchrun started {processes} processes, but this machine has {available} CUDA "
            f"devices: use --nproc-per-node {available}"
        )
    if device.index is not None and processes > 1:
        raise UsageError(
            f"--device {device}: torchrun started {processes} processes, which would share this "
            "device: use --device cuda"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.index is None else device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group inside the block: gloo on CPUs, NCCL between GPUs.

    Raises VqtokError if another process ends before the block does.
    """
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if not _lost_a_process(error):
            raise
        raise VqtokError(
            "another process of torchrun failed or was killed: --resume the run from its last save"
        ) from error
    # Not in a finally: after an error the other ranks may still wait for this one.
    dist.destroy_process_group()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum x over all ranks, in place, and return it."""
    if _initialized():
        dist.all_reduce(x)
    return x


def all_reduce_mean(x: Tensor) -> Tensor:
    """Return the mean of x over all ranks; no gradient flows through it."""
    if not _initialized():
        return x.detach()
    return all_reduce_sum(x.detach().clone()) / dist.get_world_size()


def synced_mean(x: Tensor) -> Tensor:
    """Return the mean of x over all ranks, with the gradient of this rank's own x.

    Averaged over ranks, as DistributedDataParallel does, these gradients are those of the mean.
    """
    return all_reduce_mean(x) + (x - x.detach()) if _initialized() else x


def broadcast(x: Tensor) -> Tensor:
    """Overwrite x with rank 0's x, in place, and return it: random draws then agree."""
    if _initialized():
        dist.broadcast(x, 0)
    return x


def broadcast_module(module: nn.Module) -> None:
    """Overwrite all parameters and buffers with those of rank 0."""
    for tensor in module.state_dict().values():
        broadcast(tensor)


def average_gradients(module: nn.Module) -> None:
    """Replace each gradient by its mean over all ranks, in one all-reduce."""
    if not _initialized():
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = all_reduce_sum(torch.cat([g.flatten() for g in gradients])).div_(dist.get_world_size())
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def all_gather(x: Tensor) -> Tensor:
    """Concatenate x (n) of all ranks; n is the same on each."""
    if not _initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank. Runs on the CPU: no GPU is waited for."""
    return bool(all_reduce_sum(torch.tensor(int(flag))))


def _lost_a_process(error: RuntimeError) -> bool:
    """Return whether a collective failed because another process is gone. gloo has no own error."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
