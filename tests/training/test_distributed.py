"""Two processes train as one: the same losses at the same total batch, and one folder."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from helpers.training import TINY
from vqtok import config
from vqtok.training import runs, train

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="torch was built without torch.distributed"
)
STEPS = 20
# Relative, of the loss. Sums are rounded in another order; each rank draws noise of its own for
# gumbel, which makes it another run of the same kind.
TOLERANCE = dict.fromkeys(config.QUANTIZERS, 1e-4) | {"gumbel": 0.02}


def settings(kind):
    # Of two latent frames the second is a key frame half of the time. Predictions from gumbel's
    # noise would lead two runs of it further apart.
    guessed = [f"model.predictor_blocks={int(kind != 'gumbel')}", "model.keyframe_interval=2"]
    small = [] if kind in ("fsq", "lfq") else ["quantizer.codebook_size=64"]
    # Muon computes in bfloat16, where sums in another order can make another step.
    more = ["train.batch_size=4", "train.validate_every=10", "train.optimizer=adamw"]
    return config.load(config.folder() / f"{kind}.toml", [*TINY, *small, *guessed, *more])


def losses(folder, kind):
    run, rows = runs.Run(folder / kind, settings(kind), []), []
    train(run, run.clips(), torch.device("cpu"), rows.append, STEPS)
    return [row["loss"] for row in rows]


def one_of_two(rank, folder, ports):
    """What `torchrun` would start, once for all quantizers."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for kind, port in ports.items():
        os.environ["MASTER_PORT"] = str(port)
        rows = losses(folder, kind)
        assert len(rows) == (2 if rank == 0 else 0)  # rank 0 alone speaks


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder in which two processes have trained every quantizer."""
    folder = tmp_path_factory.mktemp("ranks")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in config.QUANTIZERS]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    mp.spawn(one_of_two, (folder, dict(zip(config.QUANTIZERS, ports, strict=True))), nprocs=2)
    return folder


@pytest.fixture
def one_thread():
    """As in each of the two: threads would add up in another order, and Adam makes much of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_two_processes_are_one(kind, together, tmp_path, one_thread):
    alone = losses(tmp_path, kind)
    rows = [json.loads(r) for r in (together / kind / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == pytest.approx(alone, rel=TOLERANCE[kind])
    first = json.loads((tmp_path / kind / "metrics.jsonl").read_text().splitlines()[0])
    assert rows[0]["tokens"] == first["tokens"]
    assert "val_psnr" in rows[0]


def test_torchrun_trains_what_one_process_can_go_on_with(tmp_path):
    options = [f"--set={o}" for o in [*TINY, "train.batch_size=4"]]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "vqtok", "train"]
    rest = ["--device", "cpu", "--out", tmp_path / "run", "--steps", "10", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, *map(str, rest)]
    done = subprocess.run(command, capture_output=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.count(b"is ready") == 1
    run = runs.reopen(tmp_path / "run", [])
    train(run, run.clips(), torch.device("cpu"), [].append, 20)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
