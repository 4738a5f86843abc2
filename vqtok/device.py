"""Choosing the device and the dtype to run in."""

import re

import torch

from vqtok.errors import UsageError


def find_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; UsageError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", name)
    if match is None:
        raise UsageError(f"device {name}: must be auto, cpu, cuda or cuda:N")
    available = torch.cuda.device_count()
    if name != "cpu" and int(match[1] or 0) >= available:
        raise UsageError(f"device {name}: this machine has {available} CUDA devices")
    return torch.device(name)


def check_dtype(dtype: str | None) -> None:
    """Raise UsageError for a dtype that a tokenizer cannot run in; None is the default."""
    if dtype not in (None, "float32", "bfloat16"):
        raise UsageError(f"dtype {dtype}: must be float32 or bfloat16")


def describe_device(device: torch.device) -> str:
    """Return the device's name for a message, with the GPU's model or the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, threads: {torch.get_num_threads()}"


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all work it was given; a CPU has none outstanding."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device. A GPU copies it in its own time, and nobody waits."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "cpu")


def free_memory(device: torch.device) -> None:
    """Return memory of the GPU that is not in use, so that others can have it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
