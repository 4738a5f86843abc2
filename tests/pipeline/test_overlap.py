"""Threads and device copies around the model, and the stopwatch that measures them."""

import threading

import numpy as np
import pytest
import torch

from vqtok.pipeline.overlap import DeviceTransfer, background_writer, prefetch
from vqtok.pipeline.stopwatch import Stopwatch

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def test_prefetch_computes_items_ahead_in_a_thread():
    threads = []
    items = (threads.append(threading.current_thread()) or i for i in range(5))
    with prefetch(items) as prefetched:
        assert list(prefetched) == [0, 1, 2, 3, 4]
    assert threading.current_thread() not in threads


def test_prefetch_raises_an_error_when_its_item_is_requested():
    with prefetch(1 // (2 - i) for i in range(5)) as prefetched:
        assert [next(prefetched), next(prefetched)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(prefetched)


def test_background_writer_writes_in_order():
    written = []
    with background_writer(written.append) as write:
        for i in range(10):
            write(i)
    assert written == list(range(10))


def test_background_writer_raises_the_error_of_a_write():
    with pytest.raises(ZeroDivisionError), background_writer(lambda i: 1 // i) as write:
        write(0)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_arrays_survive_a_round_trip_to_the_device(device):
    transfer = DeviceTransfer(torch.device(device))
    arrays = [np.full((8, 300, 400, 3), i, np.uint8) for i in range(20)]

    def compute():
        for array in arrays:
            tensor = transfer.to_device(array)
            assert tensor.device.type == device
            yield tensor[:, ::2].add(1)  # not contiguous; computed during the previous copy

    for array, result in zip(arrays, transfer.to_host(compute()), strict=True):
        assert result.shape == (8, 150, 400, 3)
        assert (result == array[0, 0, 0, 0] + 1).all()


def test_on_a_cpu_arrays_are_yielded_as_they_are_computed():
    transfer, computed = DeviceTransfer(torch.device("cpu")), []
    tensors = (computed.append(i) or torch.tensor(i) for i in range(3))
    counts = [(int(array), len(computed)) for array in transfer.to_host(tensors)]
    assert counts == [(0, 1), (1, 2), (2, 3)]


def test_stopwatch_reports_the_share_of_each_part(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    stopwatch = Stopwatch()  # at 0
    # 1 s for each item, and 1 s to see the end.
    assert list(stopwatch.time_each("reading", "ab")) == ["a", "b"]
    with stopwatch.time("writing"):
        pass
    assert stopwatch.shares("model") == "reading 33%, writing 11%, model 56% of 9.0 s"
