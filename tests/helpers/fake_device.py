"""A device that is not there: tensors without data, and counters of launches and of waits.

Fake tensors on a Python backend of torch. An operation on tensors of two devices raises, as on a
GPU. What asks for a value of the device is answered and counted.
"""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import library, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vqtok

DEVICE = "fakegpu"
PACKAGE = f"{Path(vqtok.__file__).parent}{os.sep}"
# Operations that start no work on a GPU.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift"}
FREE |= {"_unsafe_view", "record_stream", "set_", "lift_fresh", "resize_"}


class _Backend(backend_registration._DummyBackendModule):
    def is_available(self):  # else torch.tensor would ask the backend for memory
        return False

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class Counters(TorchDispatchMode):
    """Counts launches by operation, and waits by the line of vqtok that waits.

    launches: operations with a tensor on the device that are no view and no bare allocation, by
        name; `lines` counts the same by the function of vqtok that they come from.
    waits: operations that make the host wait for the device.
    answers: the value of what is asked for, by the line that asks; else True or 1.
    """

    def __init__(self, answers=()):
        super().__init__()
        self.launches, self.lines, self.waits = Counter(), Counter(), Counter()
        self.answers = dict(answers)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        on_device = any(map(_is_on_device, tree_leaves((args, kwargs))))
        if name == "_local_scalar_dense":
            self._wait(on_device)
            value = True if args[0].dtype in (torch.bool, torch.float32, torch.float64) else 1
            return self.answers.get(self._line(), value)
        if name == "bincount":
            self._wait(2 * on_device)
            size = args[2] if len(args) > 2 else kwargs["minlength"]
            return args[0].new_zeros(size)
        if name == "nonzero":
            self._wait(on_device)
            rows = self.answers.get(self._line(), 7)
            return args[0].new_zeros(rows, args[0].ndim, dtype=torch.int64)
        mask = _boolean_index(name, args)
        if mask is not None:
            self._wait(on_device)
            return args[0].new_empty((7, *args[0].shape[mask.ndim :]))
        target = kwargs.get("device")
        if name == "_to_copy" and target and on_device != (torch.device(target).type == DEVICE):
            self._wait(not kwargs.get("non_blocking"))
        out = func(*args, **kwargs)
        if name == "convolution_backward" and out[1] is not None:
            # As cuDNN does; else each gradient would be copied to the layout of its weight.
            out = out[0], torch.empty_like(args[2]), out[2]
        on_device = on_device or any(map(_is_on_device, tree_leaves(out)))
        if on_device and func.namespace == "aten" and name not in FREE and not func.is_view:
            self.launches[name] += 1
            self.lines[self._line()] += 1
        return out

    def _wait(self, count):
        if count:
            self.waits[self._line()] += int(count)

    def _line(self):
        frame = sys._getframe(2)
        while frame and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is None:
            return "elsewhere"
        return f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_code.co_name}"


def _is_on_device(x):
    return isinstance(x, torch.Tensor) and x.device.type == DEVICE


def _boolean_index(name, args):
    if name != "index" or not isinstance(args[1], list | tuple):
        return None
    return next((i for i in args[1] if i is not None and i.dtype == torch.bool), None)


class _HostGenerator:
    """In place of torch.Generator, which the device has none of."""

    def __new__(cls, device=None):
        return torch._C.Generator()


def _apply(self, function, recurse=True):
    """Do what nn.Module._apply does; parameters without data cannot be swapped in place."""
    for module in self.children():
        module._apply(function)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = function(parameter)
            if moved is not parameter:
                self._parameters[name] = nn.Parameter(moved.detach(), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


# When this file is imported, once for the process: at the first backward pass, which another test
# may do, torch counts the devices that there are.
backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=_Backend())
# One kernel on a GPU; else torch would compute it from six operations.
_kernels = library.Library("aten", "IMPL")
_kernels.impl("silu_backward", lambda grad, x: torch.empty_like(x), "PrivateUse1")


@pytest.fixture
def fake_device(monkeypatch):
    """Make new tensors on DEVICE, without data, inside the test."""
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    monkeypatch.setattr(torch, "Generator", _HostGenerator)
    # Copies of tensors stay in the same mode.
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)
    with FakeTensorMode():
        yield torch.device(DEVICE)
