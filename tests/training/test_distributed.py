"""Data-parallel training: two processes give the losses of one at the same total batch."""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from helpers.training import CPU, TINY, make_run, read_metrics, train_run
from vqtok import distributed
from vqtok.errors import VqtokError
from vqtok.settings import QUANTIZERS
from vqtok.training.runs import DataPaths, reopen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed"),
]
STEPS = 20
LOCALHOST = "127.0.0.1"
# Relative, of the loss. Sums are rounded in a different order; with gumbel each rank also draws its
# own noise, so the two runs only have the same distribution.
TOLERANCE = dict.fromkeys(QUANTIZERS, 1e-4) | {"gumbel": 0.02}


def comparable_run(folder, kind):
    # The second of two latent frames is a key frame half of the time. Predictions from gumbel's
    # noise would drive its two runs apart.
    predictor = [f"model.predictor_blocks={int(kind != 'gumbel')}", "model.keyframe_interval=2"]
    intra = ["model.intra_share=0.25"] if kind in ("vq2", "ema") else []
    # Muon computes in bfloat16, where another order of summation can change the step.
    train = ["train.batch_size=4", "train.optimizer=adamw"]
    validate = ["train.validate_every=20"] if kind == "fsq" else []
    return make_run(folder / kind, kind, *predictor, *intra, *train, *validate)


def train_as_rank(rank, folder, ports):
    """Train all quantizers as one of two processes that `torchrun` would start.

    ports: by quantizer, of the stores that the parent process serves, as `torchrun` does.
    """
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": LOCALHOST,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for kind, port in ports.items():
        os.environ["MASTER_PORT"] = str(port)
        rows = train_run(comparable_run(folder, kind), STEPS)
        assert len(rows) == (2 if rank == 0 else 0)  # only rank 0 logs


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory):
    """The folder in which two processes have trained every quantizer."""
    folder = tmp_path_factory.mktemp("ranks")
    # Each process group needs a store of its own. Port 0: the system picks a free port.
    stores = {
        kind: dist.TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False)
        for kind in QUANTIZERS
    }
    ports = {kind: store.port for kind, store in stores.items()}
    mp.spawn(train_as_rank, (folder, ports), nprocs=2)
    return folder


@pytest.fixture
def one_thread():
    """One thread, as in each of the two processes: more would sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_two_processes_give_the_losses_of_one(kind, folder_of_two, tmp_path, one_thread):
    alone = train_run(comparable_run(tmp_path, kind), STEPS)
    rows = read_metrics(folder_of_two / kind)
    losses = [row["loss"] for row in alone]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=TOLERANCE[kind])
    assert rows[0]["tokens"] == alone[0]["tokens"]
    assert ("val_psnr" in rows[-1]) == (kind == "fsq")


def lose_the_other(rank, port, errors):
    """Exit as rank 1; as rank 0, put what a collective raises then."""
    environment = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment["TORCHELASTIC_RUN_ID"] = "test"
    environment |= {"MASTER_ADDR": LOCALHOST, "MASTER_PORT": str(port)}
    os.environ |= environment | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    try:
        with distributed.process_group(CPU):
            distributed.any_rank(False)
            if rank == 1:
                os._exit(9)
            distributed.any_rank(False)
    except VqtokError as error:
        errors.put(str(error))


def test_a_process_that_is_killed_ends_the_others_with_a_sentence():
    store = dist.TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False)
    context = mp.get_context("spawn")
    errors = context.Queue()
    ranks = [context.Process(target=lose_the_other, args=(i, store.port, errors)) for i in (0, 1)]
    for rank in ranks:
        rank.start()
    assert "another process of torchrun failed or was killed" in errors.get(timeout=60)
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 9]


def test_one_process_resumes_what_torchrun_trained(tmp_path):
    options = [f"--set={o}" for o in [*TINY, "train.batch_size=4"]]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    out = ["--device", "cpu", "--out", str(tmp_path / "run"), "--steps", "10"]
    command = [sys.executable, *torchrun, "-m", "vqtok", "train", *out, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stderr.count(b"is ready") == 1
    run = reopen(tmp_path / "run", DataPaths())
    train_run(run, 20)
    assert [row["step"] for row in read_metrics(run.folder)] == [10, 20]
