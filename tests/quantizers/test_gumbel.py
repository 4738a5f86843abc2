"""Gumbel-softmax: its samples, gradients, initialization and temperature."""

import pytest
import torch
import torch.nn.functional as F

from helpers.quantizers import assert_close, exact_indices
from vqtok.errors import UsageError
from vqtok.quantizers import GumbelQuantize, GumbelQuantizer
from vqtok.quantizers.gumbel import _blocks


def test_gradients_are_those_of_the_straight_through_softmax():
    quantizer = GumbelQuantize(8, 8, 48).double().eval()
    z = torch.randn(2, 8, 4, 5).double().requires_grad_()
    w = torch.randn(2, 8, 4, 5).double()
    z_q = quantizer(z, temp=0.7)[0]
    actual = torch.autograd.grad((z_q * w).sum(), [z, quantizer.codebook])
    logits = quantizer.proj(z)
    soft = (logits / 0.7).softmax(1)
    hard = F.one_hot(logits.argmax(1), 48).movedim(-1, 1).double()
    mixture = torch.einsum("bkhw,kd->bdhw", hard + soft - soft.detach(), quantizer.codebook)
    expected = torch.autograd.grad((mixture * w).sum(), [z, quantizer.codebook])
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_blocks_give_the_values_and_gradients_of_the_formula(straight_through, block, monkeypatch):
    monkeypatch.setattr("vqtok.quantizers.gumbel.BLOCK", block)
    quantizer = GumbelQuantizer(
        *(8, 5, 24), straight_through=straight_through, kl_weight=0.5, temp_init=0.7
    ).double()
    z, w = torch.randn(2, 8, 3, 5).double().requires_grad_(), torch.randn(2, 5, 3, 5).double()
    torch.manual_seed(3)
    out = quantizer.quantize(z)
    ((out.z_q * w).sum() + out.loss).backward()
    actual = [z.grad, *(p.grad for p in quantizer.parameters())]

    torch.manual_seed(3)
    seed = int(torch.randint(2**62, ()))
    latents = z.detach().movedim(1, -1).flatten(0, 2)
    noise = torch.cat([noise for _, noise in _blocks(latents, 24, seed)])
    logits = quantizer.proj(z).movedim(1, -1)
    noisy = logits + noise.view_as(logits)
    assert torch.equal(out.indices, noisy.argmax(-1))
    weights = soft = (noisy / quantizer.temperature).softmax(-1)
    if straight_through:
        weights = F.one_hot(out.indices, 24) + soft - soft.detach()
    z_q = (weights @ quantizer.codebook).movedim(-1, 1)
    q = logits.softmax(-1)
    kl = (q * torch.log(24 * q)).sum(-1).mean()
    assert_close(out.z_q, z_q)
    assert_close(out.terms["kl"], kl)
    expected = torch.autograd.grad((z_q * w).sum() + 0.5 * kl, [z, *quantizer.parameters()])
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_backward_under_autocast_trains_the_codes_that_were_chosen():
    quantizer = GumbelQuantizer(8, 8, 1024, kl_weight=0.0)
    out = quantizer.quantize(torch.randn(4, 8, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        out.z_q.sum().backward()
    trained = quantizer.codebook.grad.abs().sum(-1).nonzero().flatten()
    assert torch.equal(trained, out.indices.unique())


def test_codes_are_sampled_from_the_softmax_and_mixed_without_straight_through():
    quantizer = GumbelQuantizer(8, 8, 4, straight_through=False)
    z = torch.randn(1, 8, 1, 1).expand(1, 8, 200, 200)
    out = quantizer.quantize(z)
    frequencies = out.indices.flatten().bincount(minlength=4) / 40000
    expected = quantizer.logits(z)[0, :, 0, 0].softmax(0)
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.02)
    assert not torch.equal(out.z_q, quantizer.decode(out.indices))


def test_the_most_likely_code_is_the_nearest_after_initialization_from_data():
    z = 3 + torch.randn(4, 8, 16, 16)
    quantizer = GumbelQuantizer(8, 8, 256, init_from_data=True)
    first = quantizer.quantize(z)
    assert len(first.indices.unique()) > 0.8 * 256
    flat = z.movedim(1, -1).reshape(-1, 8)
    most_likely = quantizer.encode(z).flatten()
    assert (most_likely == exact_indices(flat, quantizer.codebook)).float().mean() > 0.999
    before = quantizer.codebook.detach().clone()
    quantizer.quantize(z)
    assert torch.equal(quantizer.codebook, before)


def test_initialization_from_data_needs_codes_of_the_size_of_latents():
    with pytest.raises(UsageError, match="num_hiddens equal to embedding_dim"):
        GumbelQuantizer(8, 4, 16, init_from_data=True)


def test_the_temperature_is_annealed_saved_and_settable():
    z = torch.randn(1, 8, 2, 2)
    quantizer = GumbelQuantizer(8, 8, 16, temp_final=0.25, anneal_steps=2)
    temperatures = [quantizer.quantize(z).terms["temperature"].item() for _ in range(2)]
    resumed = GumbelQuantizer(8, 8, 16, temp_final=0.25, anneal_steps=2)
    resumed.load_state_dict(quantizer.state_dict())
    assert resumed.temperature == 0.5
    temperatures += [resumed.quantize(z).terms["temperature"].item() for _ in range(2)]
    assert temperatures == [1.0, 0.5, 0.25, 0.25]
    assert quantizer.eval().quantize(z).terms["temperature"] == 0.5
    constant = GumbelQuantizer(8, 8, 16)
    constant.temperature = 0.3
    assert constant.quantize(z).terms["temperature"].item() == pytest.approx(0.3)
