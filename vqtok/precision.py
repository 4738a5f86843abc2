"""Floating-point precision: torch's global flags, and which dtype is fast where."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor


def set_global_flags() -> None:
    """Set the torch flags that all commands run with.

    Subnormal numbers, which slow a CPU down several times, are flushed to zero; cuDNN does not
    round float32 to TensorFloat32.
    """
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False


class _FixedKernels:
    """Counts the open blocks of `fixed_kernels`, since torch's flags are those of all threads."""

    def __init__(self) -> None:
        self._lock, self._blocks = Lock(), 0
        self._reduced: list[tuple[Any, str]] = []  # backends, and the precision to restore
        self._cudnn = (False, False)  # `deterministic` and `benchmark`, to restore

    def enter(self) -> None:
        with self._lock:
            self._blocks += 1
            if self._blocks > 1:
                return
            cpu: Any = torch.backends.mkldnn
            cudnn: Any = torch.backends.cudnn
            for backend in (torch.backends.cuda.matmul, cudnn.conv, cpu.matmul, cpu.conv):
                if backend.fp32_precision not in ("none", "ieee"):
                    self._reduced.append((backend, backend.fp32_precision))
                    backend.fp32_precision = "ieee"
            self._cudnn = cudnn.deterministic, cudnn.benchmark
            cudnn.deterministic, cudnn.benchmark = True, False

    def exit(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks:
                return
            while self._reduced:
                backend, precision = self._reduced.pop()
                backend.fp32_precision = "none"  # inherit; enough if the parent has this precision
                if backend.fp32_precision != precision:
                    backend.fp32_precision = precision
            cudnn: Any = torch.backends.cudnn
            cudnn.deterministic, cudnn.benchmark = self._cudnn


_fixed_kernels = _FixedKernels()


@contextmanager
def fixed_kernels() -> Iterator[None]:
    """Compute with the same kernels on every run, and float32 in float32.

    Matrix products and convolutions in float32 use neither TensorFloat32 nor bfloat16, whatever
    `torch.set_float32_matmul_precision` or the backends' flags allow. cuDNN neither uses kernels
    whose sums have no fixed order, nor chooses kernels by their speed, which differs from run to
    run. The flags are restored once no thread is in such a block.
    """
    _fixed_kernels.enter()
    try:
        yield
    finally:
        _fixed_kernels.exit()


@contextmanager
def fixed_precision(device_type: str) -> Iterator[None]:
    """Compute in the dtype of the operands, without autocast, as in `fixed_kernels`."""
    with torch.autocast(device_type, enabled=False), fixed_kernels():
        yield


def training_autocast(device: torch.device, dtype: str) -> torch.autocast:
    """Return autocast to bfloat16 for the setting train.dtype=bfloat16, else a disabled one."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32, or unchanged if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has bfloat16 arithmetic, rather than emulating it in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # torch.cpu.get_capabilities is missing in older torch.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def to_uint8(x: Tensor) -> Tensor:
    """Convert values in 0..1 to uint8 in 0..255, rounded to the nearest."""
    return x.mul(255).round_().to(torch.uint8)
