"""Processes that train as one, started by `torchrun`: each works on its share of a batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def number() -> int:
    """Which of the processes this is; rank 0 alone writes and speaks."""
    return int(os.environ["RANK"]) if _launched() else 0


def count() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def own_device(device: torch.device) -> torch.device:
    """This process's share of what the user asked for: "cuda" is a GPU for each process."""
    if device.type == "cuda" and device.index is None and _launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, the processes can speak to each other: by gloo, and between GPUs by NCCL."""
    if count() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    yield
    dist.destroy_process_group()  # not after an error: the others may be waiting for this one


def alike(model: nn.Module) -> None:
    """Give every process the weights and buffers of rank 0."""
    if count() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def average_gradients(model: nn.Module) -> None:
    """Replace each gradient by its mean over all processes, in one exchange."""
    if count() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    parts = flat.div_(count()).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def gathered(x: Tensor) -> Tensor:
    """x (n) of all processes, joined."""
    if count() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def any_of(flag: bool) -> bool:
    """Whether it is so in any process. On the CPU: nothing waits for a GPU."""
    if count() == 1:
        return flag
    votes = torch.tensor(int(flag))
    dist.all_reduce(votes)
    return bool(votes)


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()
