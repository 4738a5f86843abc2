"""Data-parallel training under `torchrun`: rank, world size and collectives.

Collectives do nothing in a single process, so callers need no special case.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
    """Return this process's device: `cuda` without an index means one GPU per process."""
    if device.type == "cuda" and device.index is None and _launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group inside the block: gloo on CPUs, NCCL between GPUs."""
    if world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    yield
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


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
