"""Codebooks of VQ and EMA: precision, initialization from data, dead codes, moving averages."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import nn

from helpers.quantizers import DIM, QUANTIZERS, exact_indices
from vqtok.quantizers import EMAQuantizer, EmbeddingEMA, GumbelQuantizer, VectorQuantizer
from vqtok.quantizers.kmeans import count_codes

SEARCHING = {"vq": VectorQuantizer, "ema": EMAQuantizer}

every_searching = pytest.mark.parametrize("kind", SEARCHING.values(), ids=SEARCHING)


@every_searching
def test_bfloat16_latents_are_searched_in_float32(kind):
    quantizer = kind(100, DIM, 0.25).eval()
    quantizer.codebook.data.normal_()
    z = torch.randn(20, DIM, 10, 10).bfloat16()
    expected = exact_indices(z.movedim(1, -1).reshape(-1, DIM), quantizer.codebook)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.quantize(z).indices.flatten(), expected)
        assert torch.equal(quantizer.encode(z).flatten(), expected)


@every_searching
def test_a_codebook_initialized_from_data_is_in_use_from_the_first_step(kind):
    z = 3 + torch.randn(4, 8, 16, 16)
    random, from_data = kind(256, 8, 0.25), kind(256, 8, 0.25, init_from_data=True)
    usage = [len(q.quantize(z).indices.unique()) / 256 for q in (random, from_data)]
    assert usage[0] < 0.6 and usage[1] > 0.95


def test_a_codebook_is_initialized_once_and_not_in_eval():
    quantizer, z = VectorQuantizer(16, 8, 0.25, init_from_data=True), torch.randn(2, 2, 8, 8, 8)
    codebooks = [quantizer.codebook.detach().clone()]
    for training in (False, True, True):
        quantizer.train(training).quantize(z[len(codebooks) % 2])
        codebooks.append(quantizer.codebook.detach().clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(codebooks)]
    assert changed == [False, True, False]


@pytest.mark.parametrize(
    "make",
    [
        lambda **init: VectorQuantizer(100, 8, 0.25, revive_after=5 * len(init), **init),
        lambda **init: EMAQuantizer(*(100, 8, 0.25), decay=1.0, revive_after=5 * len(init), **init),
        lambda **init: GumbelQuantizer(8, 8, 100, **init),
    ],
    ids=["vq", "ema", "gumbel"],
)
def test_a_loaded_codebook_is_not_initialized_again(make):
    pretrained, quantizer = make(), make(init_from_data=True)
    quantizer.load_state_dict(pretrained.state_dict())
    quantizer.quantize(torch.randn(2, 8, 8, 8))
    torch.testing.assert_close(quantizer.codebook, pretrained.codebook)


def test_loading_another_module_does_not_count_as_loading_the_codebook():
    model = nn.ModuleDict({"quantizer": VectorQuantizer(64, 8, 0.25, init_from_data=True)})
    model["layer"] = nn.Linear(2, 2)
    layer = {f"layer.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    model.load_state_dict(layer, strict=False)
    assert not model["quantizer"].initialized


def test_a_codebook_is_initialized_after_loading_one_that_is_not():
    quantizer, z = VectorQuantizer(16, 8, 0.25, init_from_data=True), torch.randn(2, 8, 8, 8)
    new = deepcopy(quantizer.state_dict())
    assert quantizer.needs_init
    quantizer.quantize(z)
    assert not quantizer.needs_init and not deepcopy(quantizer).needs_init
    quantizer.load_state_dict(new)
    assert quantizer.needs_init


def test_codes_are_counted():
    assert count_codes(torch.tensor([3, 0, 3]), 5).tolist() == [1, 0, 0, 2, 0]


def test_initialization_from_fewer_latents_than_codes():
    quantizer = VectorQuantizer(256, 8, 0.25, init_from_data=True)
    assert quantizer.quantize(torch.randn(1, 8, 2, 3)).z_q.isfinite().all()
    assert len(quantizer.codebook.unique(dim=0)) == 256


@every_searching
def test_dead_codes_are_replaced_after_revive_after_steps(kind):
    quantizer = kind(64, 8, 0.25, revive_after=3)
    if kind is EMAQuantizer:
        quantizer.embedding.cluster_size.fill_(9)
    with torch.no_grad():
        quantizer._set_codes(torch.arange(1, 64), 100 + torch.randn(63, 8))
    z, usage = torch.randn(4, 8, 8, 8), []
    for _ in range(4):
        usage.append(len(quantizer.quantize(z).indices.unique()))
        assert quantizer.age.max() < 3
    assert usage[:3] == [1, 1, 1] and usage[3] > 40
    if kind is EMAQuantizer:
        assert quantizer.embedding.cluster_size[1:].max() < 2


def test_the_first_ema_step_keeps_the_codebook_in_use():
    quantizer, z = EMAQuantizer(1024, 4, 0.25), torch.randn(8, 4, 16, 16)
    first, second = (quantizer.quantize(z).terms["perplexity"] for _ in range(2))
    assert second > 0.8 * first
    assert EmbeddingEMA(5, 2).cluster_size.tolist() == [1] * 5


def test_an_ema_codebook_moves_only_in_training_and_has_no_parameters():
    quantizer, z = QUANTIZERS["EMAQuantizer-learning"](), torch.randn(2, DIM, 5, 6)
    assert not list(quantizer.parameters())
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.eval().quantize(z)
    quantizer.train().embedding.update = False
    quantizer.quantize(z)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    quantizer.embedding.update = True
    quantizer.quantize(z)
    assert not torch.equal(quantizer.embedding.weight, before["embedding.weight"])


def test_ema_averages_stay_float32_in_a_bfloat16_model():
    quantizer = EMAQuantizer(2, 1, 0.25, decay=0.999).bfloat16()
    for _ in range(100):
        quantizer.quantize(torch.zeros(1, 1, 4, 4).bfloat16())
    sizes = quantizer.embedding.cluster_size
    assert sizes.min().item() == pytest.approx(0.999**100, rel=1e-4)
    assert sizes.dtype == torch.float32 and quantizer.codebook.dtype == torch.bfloat16
    assert quantizer.double().embedding.cluster_size.dtype == torch.float64
