"""Starting training: devices of several processes, and a lack of memory."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from helpers.training import CPU
from vqtok.commands import train as command
from vqtok.distributed import local_device, process_group
from vqtok.errors import UsageError, VqtokError

CUDA, CUDA_1 = torch.device("cuda"), torch.device("cuda:1")


@pytest.fixture
def torchrun(monkeypatch):
    """Return a function that sets what torchrun tells a process, on a machine with some GPUs."""

    def set_environment(processes, gpus, local_rank=0):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        values = {"TORCHELASTIC_RUN_ID": "test", "RANK": local_rank, "LOCAL_RANK": local_rank}
        values |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return set_environment


def test_each_process_has_a_gpu_of_its_own(torchrun):
    assert local_device(CUDA) == CUDA
    torchrun(processes=2, gpus=2, local_rank=1)
    assert local_device(CUDA) == CUDA_1
    assert local_device(CPU) == CPU
    torchrun(processes=1, gpus=2)
    assert local_device(CUDA_1) == CUDA_1


def test_processes_that_would_share_a_gpu_are_refused(torchrun):
    for processes, gpus, device, message in (
        (3, 2, CUDA, "3 processes, but this machine has 2 CUDA devices: use --nproc-per-node 2"),
        (2, 2, CUDA_1, "--device cuda:1: torchrun started 2 processes, which would share"),
    ):
        torchrun(processes, gpus)
        with pytest.raises(UsageError, match=message):
            local_device(device)


def test_torchrun_needs_a_pytorch_with_distributed(torchrun, monkeypatch):
    torchrun(processes=2, gpus=0)
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"no torch\.distributed: run vqtok without torchrun"):
        local_device(CPU)


def test_processes_wait_longer_for_each_other_than_a_validation_takes(torchrun, monkeypatch):
    torchrun(processes=2, gpus=2)
    joined = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kw: joined.append((args, kw)))
    for device in (CPU, CUDA_1):
        with process_group(device):
            pass
    assert [args for args, _ in joined] == [("gloo",), ("cpu:gloo,cuda:nccl",)]
    assert all(options["timeout"] >= timedelta(hours=24) for _, options in joined)


def test_a_lack_of_memory_says_which_settings_to_lower(tmp_path, monkeypatch):
    options = command.TrainOptions(
        *((), (), None, "fsq", None, ("train.steps=1",), tmp_path / "run", None, None),
        device="cpu",
        quiet=True,
    )
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(command, "train", fail)
        with pytest.raises(VqtokError, match=r"lower train\.batch_size, .* train\.accumulate"):
            command.run_training(options)
    assert not (tmp_path / "run").exists()
