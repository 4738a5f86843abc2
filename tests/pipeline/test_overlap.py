"""Copies to the device and back: what arrives is what was sent, whatever goes on beside."""

import numpy as np
import pytest
import torch

from vqtok.pipeline.overlap import DeviceTransfer
from vqtok.pipeline.stopwatch import Stopwatch

CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_is_carried_up_and_down_again_stays_the_same(device):
    transfer = DeviceTransfer(torch.device(device))
    arrays = [np.full((8, 300, 400, 3), i, np.uint8) for i in range(20)]

    def parts():
        for array in arrays:
            there = transfer.to_device(array)
            assert there.device.type == device
            yield there[:, ::2].add(1)  # not contiguous, and made while the one before comes down

    for array, back in zip(arrays, transfer.to_host(parts()), strict=True):
        assert back.shape == (8, 150, 400, 3)
        assert (back == array[0, 0, 0, 0] + 1).all()


def test_a_part_comes_down_while_the_next_is_made():
    """On CUDA only, where making it only asks for it; on a CPU parts come as they are made."""
    transfer, made = DeviceTransfer(torch.device("cpu")), []
    parts = (made.append(i) or torch.tensor(i) for i in range(3))
    assert [(int(part), len(made)) for part in transfer.to_host(parts)] == [(0, 1), (1, 2), (2, 3)]


def test_a_stopwatch_gives_each_part_its_share(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    watch = Stopwatch()  # at 0
    assert list(watch.each("reading", "ab")) == ["a", "b"]  # 1 s each, and 1 s to see the end
    with watch.on("writing"):
        pass
    assert watch.shares("the model") == "reading 33%, writing 11%, the model 56% of 9.0 s"
