"""Choosing the device to run on."""

import re

import torch

from vqtok.errors import UsageError


def find_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; UsageError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(f"--device {name}: must be auto, cpu, cuda or cuda:N")
    available = torch.cuda.device_count()
    if name != "cpu" and int(match[1] or 0) >= available:
        raise UsageError(f"--device {name}: there are {available} CUDA devices here")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Return the device's name for a message, with the GPU's model or the number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, threads: {torch.get_num_threads()}"
