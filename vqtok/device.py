"""What the model runs on: which device, in which type, and copies that go on beside the model."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from vqtok.errors import UsageError


def find_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda[:i]` means here; UsageError if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if asked is None:
        raise UsageError(f"--device {name}: must be auto, cpu, cuda or cuda:N")
    if name != "cpu" and int(asked[1] or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here"
        )
    return torch.device(name)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, not through float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    abilities = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot tell: float32
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def device_name(device: torch.device) -> str:
    """What to call a device in a message."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, threads: {torch.get_num_threads()}"


class Ferry:
    """Carries arrays to a device and back. On CUDA through pinned memory and on a stream of its
    own, so that copies go on beside the model; on a CPU there is nothing to carry.

    Made in the thread that runs the model. Pinned memory is torch's own, which gives a block out
    again only once the copies that use it are done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        if self._cuda:
            self._model = torch.cuda.current_stream(device)
            self._side = torch.cuda.Stream(device)

    def up(self, array: np.ndarray) -> Tensor:
        """On the device, and whole there on return; called in any thread."""
        here = torch.from_numpy(array)
        if not self._cuda:
            return here
        with torch.cuda.stream(self._side):
            there = here.pin_memory().to(self._device, non_blocking=True)
        there.record_stream(self._model)  # its memory is in use until the model has read it
        self._side.synchronize()
        return there

    def down(self, parts: Iterable[Tensor]) -> Iterator[np.ndarray]:
        """Each part on the processor; on CUDA, copied while the device makes the next."""
        if self._cuda:
            landings = chain(map(self._land, parts), [None])
            yield from (landed() for landed, _ in pairwise(landings))
        else:
            yield from (part.numpy() for part in parts)

    def _land(self, part: Tensor) -> Callable[[], np.ndarray]:
        """Begin a copy to the processor; the function given waits for its end."""
        part = part.contiguous()
        self._side.wait_stream(self._model)
        with torch.cuda.stream(self._side):
            here = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
            here.copy_(part, non_blocking=True)
            done = self._side.record_event()
        part.record_stream(self._side)

        def landed() -> np.ndarray:
            done.synchronize()
            return here.numpy()

        return landed
