"""Latents of which something is predicted: indices tell the rest, or stand for all of it."""

import pytest
import torch

from helpers.quantizers import DEVICES, MAKE, exact_indices
from vqtok.errors import UsageError
from vqtok.quantizers import EMAVectorQuantizer, VectorQuantizer2

KINDS = [VectorQuantizer2, EMAVectorQuantizer]
PREDICTED = MAKE | {
    f"{kind.__name__} absolute": lambda kind=kind: kind(100, 8, 0.25, intra_codes=40)
    for kind in KINDS
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def two_kinds(kind, **options):
    """A quantizer of 40 absolute and 60 other codes, all near 1 in size."""
    quantizer = kind(100, 8, 0.25, intra_codes=40, **options)
    with torch.no_grad():
        quantizer._place(torch.arange(100), torch.randn(100, 8))
    return quantizer


def latents(scale=1.0):
    return scale * torch.randn(2, 8, 3, 4, 5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", PREDICTED.values(), ids=PREDICTED)
def test_restoring_is_quantizing_bit_for_bit(make, dtype, device):
    quantizer = make().eval().to(device)
    z, prediction = (latents().to(device, dtype) for _ in range(2))
    out = quantizer.quantize(z, prediction)
    assert torch.equal(quantizer.restore(out.indices, prediction).to(dtype), out.z_q)
    assert out.z_q.dtype == dtype
    assert out.loss == 0


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_indices_tell_what_a_prediction_lacks(make):
    quantizer, z, prediction = make().eval(), latents(), latents()
    out, lacking = quantizer.quantize(z, prediction), quantizer.quantize(z - prediction)
    assert torch.equal(out.indices, lacking.indices)
    assert torch.equal(out.z_q, prediction + lacking.z_q)


@pytest.mark.parametrize("kind", KINDS)
def test_intra_codes_are_chosen_where_they_are_nearer(kind):
    quantizer, z, prediction = two_kinds(kind).eval(), latents(), latents()
    out = quantizer.quantize(z, prediction)
    flat, known = (x.movedim(1, -1).reshape(-1, 8) for x in (z, prediction))
    absolute = quantizer.codebook[:40].expand(len(flat), 40, 8)
    candidates = torch.cat([absolute, known[:, None] + quantizer.codebook[40:]], dim=1)
    nearest = (flat[:, None] - candidates).square().sum(-1).argmin(-1)
    assert torch.equal(out.indices.flatten(), nearest)
    chosen = candidates[torch.arange(len(flat)), nearest]
    assert torch.equal(out.z_q.movedim(1, -1).reshape(-1, 8), chosen)
    assert 0.2 < (nearest < 40).float().mean() < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_prediction_all_codes_are_alike(kind):
    quantizer, z = two_kinds(kind).eval(), latents()
    expected = exact_indices(z.movedim(1, -1).reshape(-1, 8), quantizer.codebook)
    assert torch.equal(quantizer.quantize(z).indices.flatten(), expected)
    assert torch.equal(quantizer.quantize(z, torch.zeros_like(z)).indices.flatten(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_codebook_has_latents_and_what_they_lack(kind):
    quantizer = kind(100, 8, 0.25, intra_codes=40, init_from_data=True)
    z = 100 + latents()
    quantizer.quantize(z, z - 7)
    assert (quantizer.codebook[:40] > 90).all()
    assert (quantizer.codebook[40:] - 7).abs().max() < 3


def test_a_code_moves_towards_what_chose_it():
    quantizer = two_kinds(EMAVectorQuantizer, decay=0.0)
    z, prediction = latents(), latents()
    indices = quantizer.quantize(z, prediction).indices.flatten()
    flat, known = (x.movedim(1, -1).reshape(-1, 8) for x in (z, prediction))
    for i in indices.unique():
        chose = flat - known if i >= 40 else flat
        mean = chose[indices == i].mean(0)
        torch.testing.assert_close(quantizer.codebook[i], mean, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_codes_of_both_kinds():
    quantizer, z, prediction = two_kinds(VectorQuantizer2), latents(), latents()
    out = quantizer.quantize(z, prediction)
    out.loss.backward()
    used = quantizer.codebook.grad.abs().sum(-1).nonzero().flatten()
    assert torch.equal(used, out.indices.unique())


@pytest.mark.parametrize("kind", KINDS)
def test_revived_codes_are_latents_that_codes_are_far_from(kind):
    quantizer = two_kinds(kind, revive_after=1)
    with torch.no_grad():
        quantizer._place(torch.arange(1, 100), 100 + torch.randn(99, 8))
    z = quantizer.codebook[0].detach().view(1, 8, 1, 1).repeat(1, 1, 20, 20)
    z[:, :, 3, 4] += 1  # one of 400 latents
    quantizer.quantize(z)
    assert (quantizer.codebook[1] - z[0, :, 3, 4]).abs().max() < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_is_revived_as_what_its_kind_stands_for(kind):
    quantizer = two_kinds(kind, revive_after=1)
    with torch.no_grad():
        quantizer._place(torch.arange(1, 99), 1000 + torch.randn(98, 8))
    z = 100 + latents()
    quantizer.quantize(z, z - 7)
    assert (quantizer.codebook[1:40] - 100).abs().max() < 6
    assert (quantizer.codebook[40:99] - 7).abs().max() < 3


@pytest.mark.parametrize("make", PREDICTED.values(), ids=PREDICTED)
def test_a_prediction_is_given_no_gradient(make):
    z, prediction = latents().requires_grad_(), latents().requires_grad_()
    out = make().quantize(z, prediction)
    (out.loss + out.z_q.sum()).backward()
    assert z.grad.abs().max() > 0
    assert prediction.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_left_for_the_rest(kind):
    with pytest.raises(UsageError, match="100 leaves none of 100"):
        kind(100, 8, 0.25, intra_codes=100)
