"""Lookup-free quantization: exact entropies, bits, masks and settings."""

import math

import pytest
import torch

from helpers.quantizers import LargestTensor, SubnormalFloats
from vqtok.errors import UsageError
from vqtok.quantizers import LFQ


def direct_entropies(x, inv_temperature, scale):
    """Return E[H(p)] and H(E[p]) as papers write them, with all probabilities (n codebooks k)."""
    bits = x.shape[-1]
    patterns = torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1) & 1
    log_p = (2 * inv_temperature * x @ ((2.0 * patterns - 1) * scale).to(x.dtype).T).log_softmax(-1)
    per_sample = -(log_p.exp() * log_p).sum(-1).mean()
    mean = log_p.exp().mean(0)
    return per_sample, -(mean * mean.log()).sum(-1).mean()


@pytest.mark.parametrize("bits", [1, 5, 8])
@pytest.mark.parametrize("chunk", [1 << 22, 64])
def test_entropies_and_their_gradients_are_exact(bits, chunk, monkeypatch):
    monkeypatch.setattr("vqtok.quantizers.lfq.CHUNK", chunk)
    quantizer = LFQ(codebook_size=2**bits, num_codebooks=2, codebook_scale=0.5, inv_temperature=3.0)
    x = torch.randn(2, 30, 2 * bits, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 30) > 0.3
    actual = quantizer(x, return_loss_breakdown=True, mask=mask)[1][:2]
    expected = direct_entropies(x[mask].reshape(-1, 2, bits), 3.0, 0.5)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        gradients = [torch.autograd.grad(v, x, retain_graph=True)[0] for v in (a, b)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_the_diversity_loss_has_a_gradient_near_uniform_use_of_many_codes():
    quantizer = LFQ(codebook_size=2**18, inv_temperature=1.0)
    x = (0.01 * torch.randn(1, 50, 18)).requires_grad_()
    entropy = quantizer(x, return_loss_breakdown=True)[1].batch_entropy
    assert entropy.item() == pytest.approx(18 * math.log(2), rel=1e-3)
    entropy.backward()
    assert (x.grad != 0).all()


def test_a_step_allocates_no_matrix_of_positions_by_codes():
    quantizer = LFQ(codebook_size=2**16)
    z = (0.3 * torch.randn(1, 16, 32, 64)).requires_grad_()
    with LargestTensor() as largest:
        quantizer.quantize(z).loss.backward()
    assert largest.elements < 2048 * 2**9  # 2048 positions, 2^16 codes


def test_a_step_makes_no_subnormal_floats():
    quantizer = LFQ(codebook_size=2**16)
    z = (0.3 * torch.randn(1, 16, 32, 64)).requires_grad_()
    with SubnormalFloats() as subnormals:
        quantizer.quantize(z).loss.backward()
    assert not subnormals.seen


def test_indices_are_made_of_signs():
    quantizer = LFQ(codebook_size=8)
    x = torch.tensor([[[0.0, 1e-30, -1e-30]]])
    assert quantizer(x).indices.item() == 0b010
    assert quantizer(x).quantized.tolist() == [[[-1, 1, -1]]]


def test_an_empty_mask_gives_no_loss():
    x = torch.randn(1, 4, 3, requires_grad=True)
    out = LFQ(codebook_size=8)(x, mask=torch.zeros(1, 4, dtype=torch.bool))
    out.entropy_aux_loss.backward()
    assert out.entropy_aux_loss == 0 and not x.grad.any()


def test_a_small_share_of_the_positions_is_at_least_one():
    quantizer = LFQ(codebook_size=8, frac_per_sample_entropy=0.01)
    assert quantizer(torch.randn(1, 4, 3)).entropy_aux_loss.isfinite()


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"codebook_size": 100},
        {"codebook_size": 1},
        {"dim": 8, "frac_per_sample_entropy": 0},
        {"codebook_size": 8, "num_codebooks": 2, "keep_num_codebooks_dim": False},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(args):
    with pytest.raises(UsageError):
        LFQ(**args)
