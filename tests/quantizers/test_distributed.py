"""Two ranks train like one process on the whole batch: losses, gradients, codebooks and terms."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helpers.quantizers import LEARNING
from helpers.tokenizers import randomize
from vqtok.model.predictive import PredictiveCoder
from vqtok.model.predictor import Predictor
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
SIZE = 8  # of each axis of the latents (b c h w)
STAGES = {"stages": 2}


def coder_of(quantizer, intra_share=0.0):
    """Return a coder whose predictor does not predict zero."""
    coder = PredictiveCoder(quantizer, Predictor(8, 8, 1), 100, intra_share)
    randomize(coder.predictor)
    return coder


def with_one_price(coder):
    """Give all clips one price: each rank draws them for its own clips."""
    coder._draw_price = lambda z: 0.02
    return coder


# Nothing is drawn at random in their loss, so half of a batch on each rank equals the whole on one.
DETERMINISTIC = {
    "vq2": lambda: coder_of(VectorQuantizer2(100, 8, 0.25)),
    "ema": lambda: coder_of(EMAVectorQuantizer(100, 8, 0.25)),
    "vq2-intra": lambda: coder_of(VectorQuantizer(100, 8, 0.25), 0.3),
    "ema-intra": lambda: coder_of(EMAQuantizer(100, 8, 0.25), 0.3),
    "vq2-stages": lambda: with_one_price(coder_of(VectorQuantizer(100, 8, 0.25, **STAGES), 0.3)),
    "ema-stages": lambda: with_one_price(coder_of(EMAQuantizer(100, 8, 0.25, **STAGES), 0.3)),
    "gumbel": lambda: coder_of(GumbelQuantize(8, 8, 100)),
    "lfq": lambda: coder_of(LFQ(codebook_size=256, inv_temperature=1.0)),
    "lfq-projected": lambda: coder_of(LFQ(dim=8, codebook_size=32, inv_temperature=1.0)),
    "fsq": lambda: coder_of(FSQ((8, 3, 4, 5, 3, 3, 3, 3), whitening_weight=0.5)),
}
# Their codebooks are initialized and revived from latents that rank 0 draws for all ranks.
RANDOM = {
    "vq2": lambda: coder_of(VectorQuantizer2(100, 8, 0.25, **LEARNING)),
    "ema": lambda: coder_of(EMAVectorQuantizer(100, 8, 0.25, **LEARNING)),
    "ema-intra": lambda: coder_of(EMAQuantizer(100, 8, 0.25, **LEARNING), 0.3),
    "vq2-stages": lambda: coder_of(VectorQuantizer(100, 8, 0.25, **STAGES, **LEARNING), 0.3),
    "ema-stages": lambda: coder_of(EMAQuantizer(100, 8, 0.25, **STAGES, **LEARNING), 0.3),
    "gumbel": lambda: coder_of(GumbelQuantize(8, 8, 100, init_from_data=True)),
}


class Model(nn.Module):
    """A layer that the optimizer trains, and an EMA codebook that it does not."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 1)
        self.quantizer = EMAVectorQuantizer(32, 8, 0.25, init_from_data=True, revive_after=5)

    def forward(self, z):
        out = self.quantizer.quantize(self.layer(z))
        return (out.z_q - z).square().mean() + out.loss


def clips(z):
    """Return the latents (b c h w) as clips (b c t h/t w) of two frames."""
    return z.unflatten(2, (2, -1))


def training_step(make, z):
    """Return the loss, gradients and terms of one step, and the buffers after it."""
    torch.manual_seed(7)
    coder, z = make(), z.clone().requires_grad_()
    quantizer = coder.quantizer
    out = coder.quantize(clips(z))
    samples = isinstance(quantizer, GumbelQuantize)  # z_q is random then
    (out.loss + (0.0 if samples else out.z_q.square().mean())).backward()
    gradients = {k: p.grad for k, p in quantizer.named_parameters() if p.grad is not None}
    result = {"loss": out.loss.detach(), "z": z.grad, "terms": out.terms, "gradients": gradients}
    return result | {"buffers": dict(quantizer.named_buffers())}


def masked_lfq(z, mask):
    """Return the loss of LFQ with a mask, and its gradient."""
    z = z.clone().requires_grad_()
    loss = LFQ(codebook_size=256, inv_temperature=1.0)(z, mask=mask).entropy_aux_loss
    loss.backward()
    return {"loss": loss.detach(), "z": z.grad}


def train_50_steps(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(50):
        optimizer.zero_grad()
        model(batches[step % len(batches)]).backward()
        optimizer.step()


def random_training(make, rank, z):
    """Return the state of a quantizer that was initialized and revived on both ranks."""
    torch.manual_seed(7)
    coder, z = make(), clips(z)
    quantizer = coder.quantizer
    torch.manual_seed(rank)  # each rank alone would draw something else
    coder.quantize(z)
    with torch.no_grad():  # dead codes, which are revived
        quantizer.codebook[torch.arange(len(quantizer.codebook)) % 100 >= 10] += 100
    for _ in range(2):
        coder.quantize(z)
    if rank == 0:  # in eval, no rank may wait for another
        quantizer.eval().quantize(z)
    return quantizer.state_dict() | ({} if coder.price is None else {"price": coder.price})


def run_rank(rank, folder, z, mask):
    """Process half of every batch, and write the results."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = z.chunk(2)[rank]
    results = {"deterministic": {k: training_step(make, half) for k, make in DETERMINISTIC.items()}}
    results["masked"] = masked_lfq(half, mask.chunk(2)[rank])
    results["random"] = {k: random_training(make, rank, half) for k, make in RANDOM.items()}
    torch.manual_seed(7)
    model = Model()
    train_50_steps(DistributedDataParallel(model, broadcast_buffers=False), half.split(1))
    results["after 50 steps"] = model.state_dict()
    torch.save(results, f"{folder}/{rank}.pt")
    # DistributedDataParallel leaves gloo threads behind. One that still frees a tensor while the
    # interpreter shuts down aborts the process, so the shutdown is skipped.
    os._exit(0)


@pytest.fixture(scope="module")
def data():
    """Latents (b c h w) of the whole batch, and a sparse mask (b h w)."""
    torch.manual_seed(0)
    return torch.randn(SIZE, 8, SIZE, SIZE), torch.rand(SIZE, SIZE, SIZE) > 0.9


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, data):
    """The results of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (folder, *data), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def check_close(actual, expected):
    """Compare tensors, or dictionaries of tensors."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_two_ranks_equal_one_process_on_the_whole_batch(name, ranks, data):
    whole = training_step(DETERMINISTIC[name], data[0])
    first, second = (rank["deterministic"][name] for rank in ranks)
    check_close((first["loss"] + second["loss"]) / 2, whole["loss"])
    check_close(torch.cat([first["z"], second["z"]]) / 2, whole["z"])
    assert whole["gradients"].keys() == first["gradients"].keys()
    for key, gradient in whole["gradients"].items():
        check_close((first["gradients"][key] + second["gradients"][key]) / 2, gradient)
    for result in (first, second):
        check_close(result["terms"], whole["terms"])
        check_close(result["buffers"], whole["buffers"])


def test_lfq_weighs_positions_equally_if_ranks_mask_different_numbers(ranks, data):
    z, mask = data
    counts = [part.sum() for part in mask.chunk(2)]
    assert counts[0] != counts[1]
    whole = masked_lfq(z, mask)
    first, second = (rank["masked"] for rank in ranks)
    check_close(torch.cat([first["z"], second["z"]]) / 2, whole["z"])
    check_close((first["loss"] + second["loss"]) / 2, whole["loss"])


@pytest.mark.parametrize("name", RANDOM)
def test_ranks_agree_on_random_draws(name, ranks):
    first, second = (rank["random"][name] for rank in ranks)
    assert first["initialized"]
    if name.startswith("vq2"):
        assert first["embedding.weight"].max() < 50
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_ema_codebook_is_identical_on_all_ranks_after_50_steps(ranks):
    first, second = (rank["after 50 steps"] for rank in ranks)
    assert all(torch.equal(first[key], second[key]) for key in first)
    torch.manual_seed(7)
    assert not torch.equal(first["quantizer.embedding.weight"], Model().quantizer.codebook)
