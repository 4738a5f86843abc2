"""Predictive coding: residuals, intra codes, key frames, and what the predictor learns from."""

import pytest
import torch

from helpers.quantizers import DEVICES, QUANTIZERS, exact_indices
from helpers.tokenizers import random_video, randomize, small_tokenizer
from vqtok import settings
from vqtok.errors import UsageError
from vqtok.model.predictive import LOG_PRICES, PredictiveCoder
from vqtok.model.predictor import Predictor
from vqtok.model.stream_state import StreamState
from vqtok.quantizers import FSQ, EMAQuantizer, VectorQuantizer

SEARCHING = {"vq": VectorQuantizer, "ema": EMAQuantizer}
INTRA = 40  # intra codes, of 100
CODERS = {name: (make, 0.0) for name, make in QUANTIZERS.items()} | {
    f"{name}-intra{stages or ''}": (lambda k=kind, s=stages: k(100, 8, 0.25, stages=s), 0.4)
    for name, kind in SEARCHING.items()
    for stages in (0, 1, 2)
}

every_quantizer = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
every_coder = pytest.mark.parametrize(("make", "intra_share"), CODERS.values(), ids=CODERS)
every_searching = pytest.mark.parametrize("kind", SEARCHING.values(), ids=SEARCHING)
every_stages = pytest.mark.parametrize("stages", [1, 2, 3])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def coder_of(quantizer, intra_share=0.0, keyframe_interval=3):
    """Return a coder whose predictor does not predict zero."""
    coder = PredictiveCoder(quantizer, Predictor(8, 8, 1), keyframe_interval, intra_share)
    randomize(coder.predictor)
    return coder


def coder_with_intra(kind, **options):
    """Return a coder of 40 intra and 60 residual codes, all of about unit variance.

    The codes of later stages are smaller. Code 0 of each stage is zero if there are stages.
    """
    quantizer = kind(100, 8, 0.25, **options)
    rows = torch.arange(len(quantizer.codebook))
    codes = torch.randn(len(rows), 8) * 0.6 ** (rows // 100)[:, None]
    with torch.no_grad():
        quantizer._set_codes(rows, codes)
    quantizer._clear_zero_codes()
    return coder_of(quantizer, INTRA / 100)


def quantize(coder, z, prediction):
    """Quantize latents (b c t h w) for training, given their predictions (0 in key frames)."""
    return coder._quantize(z, prediction, coder._frame_coder().encode(z, 0.0, prediction))


def random_latents(frames=7):
    return torch.randn(2, 8, frames, 4, 5)


def flat(z):
    """Return the latents (n c) of z (b c *grid)."""
    return z.movedim(1, -1).reshape(-1, 8)


@pytest.mark.parametrize("device", DEVICES)
@every_coder
def test_decode_gives_the_latents_of_quantize(make, intra_share, device):
    coder = coder_of(make(), intra_share).eval().to(device)
    z = random_latents().to(device)
    with torch.no_grad():
        indices = coder.encode(z, StreamState())
        out = coder.quantize(z)
        decoded = coder.decode(indices, StreamState())
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(decoded, out.z_q, rtol=0, atol=1e-5)
    assert torch.equal(decoded, coder._encode_frames(z, coder._start(len(z)))[1])
    assert out.loss == 0


@every_quantizer
def test_indices_code_the_residual(make):
    coder, z = coder_of(make()).eval(), random_latents()
    with torch.no_grad():
        prediction = coder._predictions(coder._encode_frames(z, coder._start(len(z)))[1])
        residual = coder.quantizer.quantize(z - prediction)
        out = coder.quantize(z)
    assert torch.equal(out.indices, residual.indices)
    assert torch.equal(out.z_q, prediction + residual.z_q)


@pytest.mark.parametrize(
    ("kind", "intra_share"),
    [*((kind, 0.0) for kind in settings.QUANTIZERS), ("vq2", 0.5), ("ema", 0.5)],
)
def test_decoder_and_encoder_agree_bit_for_bit_in_a_bfloat16_tokenizer(kind, intra_share):
    """Over a long clip, in chunks, and under autocast."""
    overrides = ["model.predictor_blocks=1", f"model.intra_share={intra_share}"]
    coder = small_tokenizer(kind, *overrides).cast(torch.bfloat16).coder
    z = torch.randn(1, coder.quantizer.dim, 150, 3, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        indices, expected = coder._encode_frames(z, coder._start(len(z)))
        state = StreamState()
        parts = [coder.decode(part, state) for part in indices.split(2, dim=1)]
    assert torch.equal(torch.cat(parts, dim=2), expected)


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_predictions_of_a_stream_are_those_of_the_whole_clip(phase):
    coder = coder_of(FSQ((5,) * 8), keyframe_interval=3).double()
    z_q = torch.randn(1, 8, 7, 4, 5, dtype=torch.float64)
    memory, streamed = coder._start(1, phase), []
    with torch.no_grad():
        whole = coder._predictions(z_q, phase)
        for frame in z_q.split(1, dim=2):
            prediction = memory.get(coder)
            streamed.append(torch.zeros_like(frame) if prediction is None else prediction)
            coder._advance(frame, memory)
    is_key_frame = [i == 0 or (i + phase) % 3 == 0 for i in range(7)]
    assert [not frame.any() for frame in whole.unbind(2)] == is_key_frame
    assert (torch.cat(streamed, dim=2) - whole).abs().max() < 1e-12


def test_a_difference_between_machines_ends_at_the_next_key_frame():
    coder = coder_of(FSQ((5,) * 8), keyframe_interval=4)
    indices = torch.randint(5**8, (1, 9, 3, 3))
    state, frames = StreamState(), []
    with torch.no_grad():
        expected = coder.decode(indices, StreamState()).split(1, dim=2)
        for i, part in enumerate(indices.split(1, dim=1)):
            frames.append(coder.decode(part, state))
            if i == 0:
                memory = state[coder]
                memory[coder] = memory[coder] + 0.1
    differs = [not torch.equal(a, b) for a, b in zip(frames, expected, strict=True)]
    assert differs == [False, True, True, True, False, False, False, False, False]


@every_searching
def test_the_nearer_of_intra_and_residual_codes_is_chosen(kind):
    coder, z, prediction = coder_with_intra(kind).eval(), random_latents(), random_latents()
    out = quantize(coder, z, prediction)
    codes = coder.quantizer.codebook
    intra = codes[:INTRA].expand(len(flat(z)), INTRA, 8)
    candidates = torch.cat([intra, flat(prediction)[:, None] + codes[INTRA:]], dim=1)
    nearest = (flat(z)[:, None] - candidates).square().sum(-1).argmin(-1)
    assert torch.equal(out.indices.flatten(), nearest)
    assert torch.equal(flat(out.z_q), candidates[torch.arange(len(nearest)), nearest])
    assert 0.2 < (nearest < INTRA).float().mean() < 0.8


@every_searching
@pytest.mark.parametrize("price", [0.0, 2.0])
def test_intra_codes_are_the_last_ones_with_a_zero_code(kind, price):
    coder, z = coder_with_intra(kind, stages=1).eval(), random_latents()
    prediction, codes = random_latents(), coder.quantizer.codebook
    intra = codes[-INTRA:].expand(len(flat(z)), INTRA, 8)
    candidates = torch.cat([flat(prediction)[:, None] + codes[:-INTRA], intra], dim=1)
    prices = torch.full((100,), price).index_fill_(0, torch.tensor(0), 0)
    costs = (flat(z)[:, None] - candidates).square().sum(-1) + prices
    frames = coder._frame_coder()
    indices = frames.encode(z, price, prediction)
    assert torch.equal(indices.flatten(), costs.argmin(-1))
    decoded = frames.decode(indices, prediction)
    assert torch.equal(flat(decoded), candidates[torch.arange(len(costs)), indices.flatten()])
    assert 0.2 < (indices >= 100 - INTRA).float().mean() < 0.9
    assert (indices == 0).any()


@every_searching
@every_stages
def test_a_clip_in_chunks_has_the_indices_of_the_whole_clip(kind, stages):
    coder, z = coder_with_intra(kind, stages=stages).eval(), random_latents(frames=11)
    with torch.no_grad():
        expected, latents = coder._encode_frames(z, coder._start(len(z)), 2.0)
        encoder_state, decoder_state = StreamState(), StreamState()
        parts = [coder.encode(part, encoder_state, 2.0) for part in z.split([1, 3, 2, 5], dim=2)]
        indices = torch.cat(parts, dim=1)
        parts = [coder.decode(part, decoder_state) for part in indices.split(2, dim=1)]
    assert torch.equal(indices, expected)
    assert torch.equal(torch.cat(parts, dim=2), latents)
    share = (indices == 0).float().mean()
    assert 0.1 < share < 0.9


@every_searching
@every_stages
def test_each_clip_has_a_price_of_its_own_in_training(kind, stages):
    coder = coder_with_intra(kind, stages=stages)
    coder.price.fill_(2.0)
    z = random_latents()[:1].expand(8, -1, -1, -1, -1)
    tokens = (coder.quantize(z).indices != 0).flatten(1).sum(-1)
    assert len(tokens.unique()) > 4
    prices = coder._draw_price(z) / coder.price
    assert prices.shape == (8, 1, 1, 1)
    low, high = LOG_PRICES
    assert (prices.log() > low).all() and (prices.log() < high).all()
    tokens = (coder.eval().quantize(z).indices != 0).flatten(1).sum(-1)
    assert len(tokens.unique()) == 1  # there is no price outside of training


@every_searching
@pytest.mark.parametrize("start", [0.1, 50.0])
def test_the_price_settles_where_half_of_the_tokens_are_spent(kind, start):
    coder, shares = coder_with_intra(kind, stages=2), []
    coder.price.fill_(start)
    for _ in range(60):
        terms = coder.quantize(torch.randn(8, 8, 2, 3, 3)).terms
        shares.append(terms["tokens_per_position"].item() / 2)
        assert terms["price"] == coder.price
    assert (shares[0] > 0.8) if start < 1 else (shares[0] < 0.3)
    assert sum(shares[-20:]) / 20 == pytest.approx(0.5, abs=0.08)


@every_searching
@every_stages
def test_the_first_price_is_what_a_token_saves_on_average(kind, stages):
    coder = coder_of(kind(100, 8, 0.25, stages=stages, init_from_data=True), INTRA / 100)
    z = random_latents()
    coder.init_from_data(z)
    residual = z - coder._predictions(z)
    left = residual - coder.quantizer.decode(coder.quantizer.encode(residual))
    saved = residual.square().sum(1).mean() - left.square().sum(1).mean()
    torch.testing.assert_close(coder.price, saved / stages)


@every_searching
def test_the_price_does_not_change_in_eval(kind):
    coder = coder_with_intra(kind, stages=2).eval()
    coder.quantize(random_latents())
    assert coder.price == 1
    assert coder_with_intra(kind).price is None  # there is none without stages


@every_searching
def test_key_frames_choose_from_all_codes(kind):
    coder, z = coder_with_intra(kind).eval(), random_latents(frames=1)
    expected = exact_indices(flat(z), coder.quantizer.codebook)
    assert torch.equal(coder.encode(z, StreamState()).flatten(), expected)
    assert torch.equal(quantize(coder, z, torch.zeros_like(z)).indices.flatten(), expected)


@every_searching
def test_the_codebook_is_initialized_from_latents_and_residuals(kind):
    coder = coder_of(kind(100, 8, 0.25, init_from_data=True), INTRA / 100)
    z = 100 + random_latents()
    coder._predictions = lambda z: z - 7
    coder.init_from_data(z)
    assert coder.quantizer.initialized
    assert (coder.quantizer.codebook[:INTRA] > 90).all()
    assert (coder.quantizer.codebook[INTRA:] - 7).abs().max() < 3


def test_an_ema_code_moves_to_the_mean_of_the_latents_or_residuals_that_chose_it():
    coder = coder_with_intra(EMAQuantizer, decay=0.0)
    z, prediction = random_latents(), random_latents()
    indices = quantize(coder, z, prediction).indices.flatten()
    for i in indices.unique():
        targets = flat(z) if i < INTRA else flat(z) - flat(prediction)
        mean = targets[indices == i].mean(0)
        torch.testing.assert_close(coder.quantizer.codebook[i], mean, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_chosen_intra_and_residual_codes():
    coder = coder_with_intra(VectorQuantizer)
    out = quantize(coder, random_latents(), random_latents())
    out.loss.backward()
    trained = coder.quantizer.codebook.grad.abs().sum(-1).nonzero().flatten()
    assert torch.equal(trained, out.indices.unique())
    assert trained[0] < INTRA <= trained[-1]


@every_searching
def test_a_dead_intra_code_becomes_a_latent_and_a_dead_residual_code_a_residual(kind):
    coder = coder_with_intra(kind, revive_after=1)
    with torch.no_grad():
        coder.quantizer._set_codes(torch.arange(1, 99), 1000 + torch.randn(98, 8))
    z = 100 + random_latents()
    quantize(coder, z, z - 7)
    assert (coder.quantizer.codebook[1:INTRA] - 100).abs().max() < 6
    assert (coder.quantizer.codebook[INTRA:99] - 7).abs().max() < 3


@every_searching
def test_dead_codes_are_replaced_by_latents_far_from_their_code(kind):
    coder = coder_with_intra(kind, revive_after=1)
    quantizer = coder.quantizer
    with torch.no_grad():
        quantizer._set_codes(torch.arange(1, 100), 100 + torch.randn(99, 8))
    z = quantizer.codebook[0].detach().view(1, 8, 1, 1).repeat(1, 1, 20, 20)
    z[:, :, 3, 4] += 1  # one of 400 latents
    quantizer.quantize(z)
    assert (quantizer.codebook[1] - z[0, :, 3, 4]).abs().max() < 0.2


@every_searching
def test_an_intra_share_below_one_leaves_a_residual_code(kind):
    assert coder_of(kind(100, 8, 0.25), intra_share=0.999).intra_codes == 99
    staged = coder_of(kind(100, 8, 0.25, stages=2, init_from_data=True), intra_share=0.999)
    assert staged.intra_codes == 98  # besides the zero code
    assert staged.quantize(random_latents()).z_q.isfinite().all()


def test_intra_codes_need_a_quantizer_that_searches():
    with pytest.raises(UsageError, match=r"needs quantizer\.kind vq2 or ema"):
        coder_of(FSQ((5,) * 8), intra_share=0.5)


@every_coder
def test_gradients_reach_z_and_the_predictor_learns_from_its_own_error(make, intra_share):
    coder, z = coder_of(make(), intra_share), random_latents().requires_grad_()
    out = coder.quantize(z)
    out.z_q.sum().backward()
    assert z.grad.abs().max() > 0
    assert all(p.grad is None for p in coder.predictor.parameters())
    coder.quantize(z).loss.backward()
    assert any(p.grad.abs().max() > 0 for p in coder.predictor.parameters())


def test_only_the_predictor_learns_from_the_prediction_loss():
    overrides = ["model.predictor_blocks=1", "quantizer.whitening_weight=0"]
    tokenizer = small_tokenizer("fsq", *overrides).train()
    reconstruction, _ = tokenizer(random_video(9))
    reconstruction.sum().backward()
    assert all(p.grad is None for p in tokenizer.coder.predictor.parameters())
    assert tokenizer.encoder[0].weight.grad.abs().max() > 0
    tokenizer.zero_grad()
    _, quantized = tokenizer(random_video(9))
    quantized.loss.backward()
    assert quantized.loss == quantized.terms["prediction_loss"] > 0
    assert all(p.grad.abs().max() > 0 for p in tokenizer.coder.predictor.parameters())
    others = [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in others)
