"""Several processes learn as one: losses, gradients, codebooks and figures over all ranks."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vqtok.model.predictive import PredictiveCoder
from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAQuantizer,
    EMAVectorQuantizer,
    GumbelQuantize,
    VectorQuantizer,
    VectorQuantizer2,
)

pytestmark = pytest.mark.skipif(
    not dist.is_available(), reason="torch was built without torch.distributed"
)
SIDES = 8  # of the latents (b c h w), all four


def coder(quantizer, intra_share=0.0):
    return PredictiveCoder(quantizer, None, 1, intra_share)


# Those whose loss has nothing random: half of a batch on each rank is then the whole on one.
SAME = {
    "vq2": lambda: coder(VectorQuantizer2(100, 8, 0.25)),
    "ema": lambda: coder(EMAVectorQuantizer(100, 8, 0.25)),
    "vq2 with intra codes": lambda: coder(VectorQuantizer(100, 8, 0.25), 0.3),
    "ema with intra codes": lambda: coder(EMAQuantizer(100, 8, 0.25), 0.3),
    "gumbel": lambda: coder(GumbelQuantize(8, 8, 100)),
    "lfq": lambda: coder(LFQ(codebook_size=256, inv_temperature=1.0)),
    "lfq projected": lambda: coder(LFQ(dim=8, codebook_size=32, inv_temperature=1.0)),
    "fsq": lambda: coder(FSQ((8, 3, 4, 5, 3, 3, 3, 3), whitening_weight=0.5)),
}
# Those that do: rank 0 draws for all.
DRAWN = {
    "vq2": lambda: coder(VectorQuantizer2(100, 8, 0.25, init_from_data=True, revive_after=1)),
    "ema": lambda: coder(EMAVectorQuantizer(100, 8, 0.25, init_from_data=True, revive_after=1)),
    "ema with intra codes": lambda: coder(
        EMAQuantizer(100, 8, 0.25, init_from_data=True, revive_after=1), 0.3
    ),
    "gumbel": lambda: coder(GumbelQuantize(8, 8, 100, init_from_data=True)),
}


class Model(nn.Module):
    """A layer that an optimizer moves, and an EMA codebook that it does not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)
        self.quantizer = EMAVectorQuantizer(32, 8, 0.25, init_from_data=True, revive_after=5)

    def forward(self, z):
        out = self.quantizer.quantize(self.layer(z))
        return (out.z_q - z).square().mean() + out.loss


def learn(make, z):
    """One training step's loss, gradients and figures, and the state it leaves."""
    torch.manual_seed(7)
    coder, z = make(), z.clone().requires_grad_()
    quantizer = coder.quantizer
    out = coder._quantize(z, z.detach() / 2)
    drawn = isinstance(quantizer, GumbelQuantize)
    (out.loss + (0.0 if drawn else out.z_q.square().mean())).backward()
    gradients = {k: p.grad for k, p in quantizer.named_parameters() if p.grad is not None}
    return {"loss": out.loss.detach(), "z": z.grad, "terms": out.terms, "gradients": gradients} | {
        "buffers": dict(quantizer.named_buffers())
    }


def masked(z, mask):
    """The loss of LFQ with a mask, and its gradient."""
    z = z.clone().requires_grad_()
    loss = LFQ(codebook_size=256, inv_temperature=1.0)(z, mask=mask).entropy_aux_loss
    loss.backward()
    return {"loss": loss.detach(), "z": z.grad}


def fifty_steps(model, z):
    """The state of a model after so many steps of gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(50):
        optimizer.zero_grad()
        model(z[step % len(z)]).backward()
        optimizer.step()


def one_of_two(rank, folder, z, mask):
    """Work on half of every batch; write what came of it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = z.chunk(2)[rank]
    seen = {"same": {k: learn(make, half) for k, make in SAME.items()}}
    seen["masked"] = masked(half, mask.chunk(2)[rank])
    drawn = {}
    for name, make in DRAWN.items():
        torch.manual_seed(7)
        coder = make()
        quantizer = coder.quantizer
        torch.manual_seed(rank)  # ranks must agree though they would draw differently
        coder._quantize(half, half / 2)
        with torch.no_grad():
            quantizer.codebook[10:] += 100  # dead, so that they are revived
        for _ in range(2):
            coder._quantize(half, half / 2)
        drawn[name] = quantizer.state_dict()
        if rank == 0:  # in eval nothing may wait for the other rank
            quantizer.eval().quantize(half)
    torch.manual_seed(7)
    model = Model()
    fifty_steps(DistributedDataParallel(model, broadcast_buffers=False), half.split(1))
    seen |= {"drawn": drawn, "fifty": model.state_dict()}
    torch.save(seen, f"{folder}/{rank}.pt")
    # DistributedDataParallel leaves threads of gloo behind, and one that still drops a tensor when
    # the interpreter ends aborts the process: it ends without that.
    os._exit(0)


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return torch.randn(SIDES, 8, SIDES, SIDES), torch.rand(SIDES, SIDES, SIDES) > 0.9


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_of_two, (folder, *data), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SAME)
def test_two_ranks_are_one_process_on_the_whole_batch(name, ranks, data):
    whole = learn(SAME[name], data[0])
    first, second = (rank["same"][name] for rank in ranks)
    close((first["loss"] + second["loss"]) / 2, whole["loss"])
    close(torch.cat([first["z"], second["z"]]) / 2, whole["z"])
    assert whole["gradients"].keys() == first["gradients"].keys()
    for key, gradient in whole["gradients"].items():
        close((first["gradients"][key] + second["gradients"][key]) / 2, gradient)
    for seen in (first, second):
        close(seen["terms"], whole["terms"])
        close(seen["buffers"], whole["buffers"])


def test_lfq_weighs_every_position_alike_though_ranks_mask_different_numbers(ranks, data):
    z, mask = data
    counts = [part.sum() for part in mask.chunk(2)]
    assert counts[0] != counts[1]
    whole = masked(z, mask)
    first, second = (rank["masked"] for rank in ranks)
    close(torch.cat([first["z"], second["z"]]) / 2, whole["z"])
    close((first["loss"] + second["loss"]) / 2, whole["loss"])


@pytest.mark.parametrize("name", DRAWN)
def test_ranks_agree_on_what_is_drawn_at_random(name, ranks):
    first, second = (rank["drawn"][name] for rank in ranks)
    assert first["initialized"]
    if name == "vq2":
        assert first["embedding.weight"].max() < 50
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_ema_codebook_is_identical_on_all_ranks_after_50_steps(ranks):
    first, second = (rank["fifty"] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(7)
    assert not torch.equal(first["quantizer.embedding.weight"], Model().quantizer.codebook)
