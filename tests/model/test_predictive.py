"""Predictive coding: residuals of a prediction, intra codes, key frames."""

import pytest
import torch

from helpers.quantizers import DEVICES, QUANTIZERS, exact_indices
from vqtok.errors import UsageError
from vqtok.model.predictive import PredictiveCoder, Predictor
from vqtok.quantizers import FSQ, EMAQuantizer, VectorQuantizer

SEARCHED = {"vq2": VectorQuantizer, "ema": EMAQuantizer}
INTRA = 40  # of 100 codes
CODERS = {name: (make, 0.0) for name, make in QUANTIZERS.items()} | {
    f"{name} with intra codes": (lambda kind=kind: kind(100, 8, 0.25), 0.4)
    for name, kind in SEARCHED.items()
}

every_coder = pytest.mark.parametrize(("make", "intra_share"), CODERS.values(), ids=CODERS)
every_searched = pytest.mark.parametrize("kind", SEARCHED.values(), ids=SEARCHED)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def coder_of(quantizer, intra_share=0.0, keyframe_interval=3):
    """A coder whose predictor has something to say."""
    coder = PredictiveCoder(quantizer, Predictor(8, 8, 1), keyframe_interval, intra_share)
    for p in coder.predictor.parameters():
        torch.nn.init.normal_(p, std=0.1) if p.ndim > 1 else None
    return coder


def coder_with_intra(kind, **options):
    """A coder of 40 intra and 60 residual codes, all of about unit variance."""
    quantizer = kind(100, 8, 0.25, **options)
    with torch.no_grad():
        quantizer._set_codes(torch.arange(100), torch.randn(100, 8))
    return coder_of(quantizer, INTRA / 100)


def latents(frames=7):
    return torch.randn(2, 8, frames, 4, 5)


def flat(z):
    return z.movedim(1, -1).reshape(-1, 8)


@pytest.mark.parametrize("device", DEVICES)
@every_coder
def test_decode_gives_the_latents_of_quantize_bit_for_bit(make, intra_share, device):
    coder = coder_of(make(), intra_share).eval().to(device)
    z = latents().to(device)
    with torch.no_grad():
        indices = coder.encode(z, {})
        out = coder.quantize(z)
        decoded = coder.decode(indices, {})
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(decoded, out.z_q, rtol=0, atol=1e-5)
    assert torch.equal(decoded, coder._encode_decode(z))
    assert out.loss == 0


@every_coder
def test_indices_code_the_residual(make, intra_share):
    if intra_share:
        pytest.skip("intra codes ignore the prediction")
    coder, z = coder_of(make()).eval(), latents()
    with torch.no_grad():
        prediction = coder._predictions(coder._encode_decode(z))
        residual = coder.quantizer.quantize(z - prediction)
        out = coder.quantize(z)
    assert torch.equal(out.indices, residual.indices)
    assert torch.equal(out.z_q, prediction + residual.z_q)


@every_searched
def test_the_nearer_of_intra_and_residual_codes_is_chosen(kind):
    coder, z, prediction = coder_with_intra(kind).eval(), latents(), latents()
    out = coder._quantize(z, prediction)
    codes = coder.quantizer.codebook
    intra = codes[:INTRA].expand(len(flat(z)), INTRA, 8)
    candidates = torch.cat([intra, flat(prediction)[:, None] + codes[INTRA:]], dim=1)
    nearest = (flat(z)[:, None] - candidates).square().sum(-1).argmin(-1)
    assert torch.equal(out.indices.flatten(), nearest)
    assert torch.equal(flat(out.z_q), candidates[torch.arange(len(nearest)), nearest])
    assert 0.2 < (nearest < INTRA).float().mean() < 0.8


@every_searched
def test_key_frames_choose_from_all_codes(kind):
    coder, z = coder_with_intra(kind).eval(), latents(frames=1)
    expected = exact_indices(flat(z), coder.quantizer.codebook)
    assert torch.equal(coder.encode(z, {}).flatten(), expected)
    assert torch.equal(coder._quantize(z, torch.zeros_like(z)).indices.flatten(), expected)


@every_searched
def test_the_codebook_is_initialized_from_latents_and_residuals(kind):
    coder = coder_of(kind(100, 8, 0.25, init_from_data=True), INTRA / 100)
    z = 100 + latents()
    coder._quantize(z, z - 7)
    assert coder.quantizer.initialized
    assert (coder.quantizer.codebook[:INTRA] > 90).all()
    assert (coder.quantizer.codebook[INTRA:] - 7).abs().max() < 3


def test_an_ema_code_moves_to_the_mean_of_what_chose_it():
    coder = coder_with_intra(EMAQuantizer, decay=0.0)
    z, prediction = latents(), latents()
    indices = coder._quantize(z, prediction).indices.flatten()
    for i in indices.unique():
        chose = flat(z) if i < INTRA else flat(z) - flat(prediction)
        mean = chose[indices == i].mean(0)
        torch.testing.assert_close(coder.quantizer.codebook[i], mean, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_chosen_codes_of_both_kinds():
    coder = coder_with_intra(VectorQuantizer)
    out = coder._quantize(latents(), latents())
    out.loss.backward()
    trained = coder.quantizer.codebook.grad.abs().sum(-1).nonzero().flatten()
    assert torch.equal(trained, out.indices.unique())
    assert trained[0] < INTRA <= trained[-1]


@every_searched
def test_a_dead_code_is_replaced_by_a_latent_of_its_kind(kind):
    coder = coder_with_intra(kind, revive_after=1)
    with torch.no_grad():
        coder.quantizer._set_codes(torch.arange(1, 99), 1000 + torch.randn(98, 8))
    z = 100 + latents()
    coder._quantize(z, z - 7)
    assert (coder.quantizer.codebook[1:INTRA] - 100).abs().max() < 6
    assert (coder.quantizer.codebook[INTRA:99] - 7).abs().max() < 3


@every_searched
def test_dead_codes_are_replaced_by_latents_far_from_their_code(kind):
    coder = coder_with_intra(kind, revive_after=1)
    quantizer = coder.quantizer
    with torch.no_grad():
        quantizer._set_codes(torch.arange(1, 100), 100 + torch.randn(99, 8))
    z = quantizer.codebook[0].detach().view(1, 8, 1, 1).repeat(1, 1, 20, 20)
    z[:, :, 3, 4] += 1  # one of 400 latents
    quantizer.quantize(z)
    assert (quantizer.codebook[1] - z[0, :, 3, 4]).abs().max() < 0.2


@every_coder
def test_gradient_reaches_z_and_the_predictor_learns_from_its_own_error_only(make, intra_share):
    coder, z = coder_of(make(), intra_share), latents().requires_grad_()
    out = coder.quantize(z)
    out.z_q.square().sum().backward()
    assert z.grad.abs().max() > 0
    assert all(p.grad is None for p in coder.predictor.parameters())
    coder.quantize(z).loss.backward()
    assert any(p.grad.abs().max() > 0 for p in coder.predictor.parameters())


@every_searched
def test_residual_codes_are_left(kind):
    with pytest.raises(UsageError, match="needs a quantizer that searches"):
        coder_of(FSQ((5,) * 8), intra_share=0.5)
    coder = coder_of(kind(100, 8, 0.25), intra_share=0.999)
    assert coder.intra_codes == 99
