"""The tokenizer's promises: shapes, exact streaming, the same tokens however a clip is cut."""

import pytest
import torch
from torch.nn import functional as F

import vqtok
from helpers import DEMO
from vqtok import config
from vqtok.errors import VqtokError
from vqtok.model.layers import CausalConv3d, streaming
from vqtok.model.tokenizer import CHUNK, Tokenizer
from vqtok.video import read_window

SMALL = ["model.widths=[8, 16]", "model.encoder_blocks=[1, 1]", "model.decoder_blocks=[1, 1]"]
PREDICTORS = ["model.predictor_blocks=0", "model.predictor_blocks=1"]
STRIDES = ["4x8x8", "4x16x16", "8x8x8", "8x16x16", "1x8x8", "1x16x16"]


def small(kind="fsq", *overrides, seed=0):
    torch.manual_seed(seed)
    settings = config.load(config.folder() / f"{kind}.toml", [*SMALL, *overrides])
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    for p in tokenizer.parameters():  # blocks start as the identity: give them something to do
        torch.nn.init.normal_(p, std=0.1) if p.ndim > 1 else None
    return tokenizer.eval()


def video(frames, height=32, width=48, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, height, width, generator=generator, dtype=dtype)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (9, 33, 47), (12, 7, 100)])
def test_every_stride_and_size_comes_back(stride, frames, height, width):
    tokenizer = small("fsq", f"model.stride={stride}")
    t, h, w = tokenizer.stride
    clip = video(frames, height, width)
    indices = tokenizer.encode(clip)
    assert indices.dtype == torch.int64
    assert indices.shape == (1, 1 + -(-(frames - 1) // t), -(-height // h), -(-width // w))
    decoded = tokenizer.decode(indices, frames, height, width)
    assert decoded.shape == clip.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_decoding_indices_is_the_reconstruction_of_training(kind, predictor):
    tokenizer = small(kind, predictor)
    clip = video(9)
    with torch.no_grad():
        reconstruction, quantized = tokenizer(clip)
    indices = tokenizer.encode(clip)
    assert torch.equal(indices, quantized.indices)
    assert indices.min() >= 0
    assert indices.max() < tokenizer.codebook_size
    decoded = tokenizer.decode(indices, 9)
    torch.testing.assert_close(decoded, reconstruction.clamp(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stride", STRIDES)
def test_streamed_latents_are_those_of_the_whole_clip(stride):
    tokenizer = small("fsq", f"model.stride={stride}").double()
    t = tokenizer.stride[0]
    clip = video(1 + 6 * t, dtype=torch.float64) * 2 - 1
    cuts = [1, 1 + t, 1 + 3 * t, 1 + 6 * t]
    with torch.no_grad():
        whole, state, parts = tokenizer.encoder(clip), {}, []
        for start, stop in zip([0, *cuts], cuts, strict=False):
            with streaming(tokenizer.encoder, state):
                parts.append(tokenizer.encoder(clip[:, :, start:stop]))
        assert (torch.cat(parts, dim=2) - whole).abs().max() < 1e-12

        z, state, parts = torch.randn(1, 6, 7, 4, 6, dtype=torch.float64), {}, []
        for piece in z.split([1, 3, 2, 1], dim=2):
            with streaming(tokenizer.decoder, state):
                parts.append(tokenizer.decoder(piece))
        assert (torch.cat(parts, dim=2) - tokenizer.decoder(z)).abs().max() < 1e-12


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_future_never_changes_the_past(predictor):
    tokenizer = small("fsq", predictor).double()
    one, other = video(17, dtype=torch.float64), video(17, seed=1, dtype=torch.float64)
    other[:, :, :9] = one[:, :, :9]
    before, after = tokenizer.encode(one), tokenizer.encode(other)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 29, 30])
@pytest.mark.parametrize("length", [1, 3, 16])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_tokens_do_not_depend_on_how_the_clip_was_cut(frames, length, predictor):
    tokenizer = small("fsq", predictor)
    clip = (video(frames) * 255).to(torch.uint8)
    whole = tokenizer.encode(clip)
    cut = torch.cat(list(tokenizer.encode_stream(clip.split(length, dim=2))), dim=1)
    assert torch.equal(cut, whole)
    parts = torch.cat(list(tokenizer.decode_stream(whole.split(1, dim=1))), dim=2)
    torch.testing.assert_close(parts[:, :, :frames], tokenizer.decode(whole, frames))


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_streams_take_turns_on_one_model(predictor):
    tokenizer = small("fsq", predictor)
    clips = [video(40, seed=s) for s in range(2)]
    both = zip(*(tokenizer.encode_stream(c.split(7, dim=2)) for c in clips), strict=True)
    for clip, parts in zip(clips, zip(*both, strict=True), strict=True):
        assert torch.equal(torch.cat(parts, dim=1), tokenizer.encode(clip))


def test_memory_of_a_stream_does_not_grow():
    tokenizer = small("fsq", PREDICTORS[1])
    sizes, state = [], {}
    for _ in range(4):
        with streaming(tokenizer.encoder, state), torch.no_grad():
            z = tokenizer.encoder(video(4 * CHUNK) if state else video(1 + 4 * (CHUNK - 1)))
            tokenizer.coder.encode(z, state)
        kept = [s[0] if isinstance(s, tuple) else s for s in state.values()]
        sizes.append(sum(s.untyped_storage().nbytes() for s in kept))
    assert len(set(sizes)) == 1
    assert not any(m.state for m in tokenizer.modules() if isinstance(m, CausalConv3d))


def test_uint8_and_float_video_mean_the_same():
    tokenizer = small()
    clip = (video(9) * 255).to(torch.uint8)
    assert torch.equal(tokenizer.encode(clip), tokenizer.encode(clip.float() / 255))


def test_what_is_no_number_is_refused():
    tokenizer = small()
    for value in (float("nan"), float("inf")):
        clip = video(5)
        clip[0, 0, 3, 4, 5] = value
        with pytest.raises(VqtokError, match="NaN or infinity"):
            tokenizer.encode(clip)


@pytest.mark.parametrize("wrong", [-1, 64000])
def test_an_index_outside_the_codebook_is_refused(wrong):
    indices = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    indices[0, 0, 1, 1] = wrong
    with pytest.raises(VqtokError, match="not in this codebook of 64,000"):
        small().decode(indices)


def test_the_default_model_is_small():
    settings = config.load(config.folder() / "fsq.toml")
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    assert tokenizer.codebook_size == 64000
    assert sum(p.numel() for p in tokenizer.parameters()) <= 10_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_cuda_decodes_what_the_cpu_encoded(kind, predictor):
    tokenizer = small(kind, predictor)
    clip = video(9)
    indices = tokenizer.encode(clip)
    expected = tokenizer.decode(indices)
    tokenizer.cuda()
    assert (tokenizer.encode(clip).cpu() == indices).float().mean() > 0.99
    torch.testing.assert_close(tokenizer.decode(indices).cpu(), expected, atol=1e-2, rtol=0)


def started(settings):
    """A tokenizer begun on smooth clips, its latents (c n), its error as a share of variance."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    clips = torch.cat([smooth(seed) for seed in range(4)])
    tokenizer.init_from_data(clips)
    with torch.no_grad():
        z = tokenizer.encoder(tokenizer._pad(clips, first=True)).movedim(1, 0).flatten(1)
        reconstruction, _ = tokenizer(clips)
    return tokenizer, z, (reconstruction - clips).square().mean() / clips.var()


@pytest.mark.parametrize("stride", STRIDES)
def test_a_started_tokenizer_is_a_linear_codec_with_white_latents(stride):
    settings = config.load(config.folder() / "fsq.toml", [f"model.stride={stride}"])
    _, z, error = started(settings)
    assert torch.allclose(z.std(1), torch.ones(len(z)), atol=0.05)
    assert torch.corrcoef(z).sub(torch.eye(len(z))).abs().max() < 0.5  # of pictures, not of noise
    assert error < 0.5


def test_a_codebook_starts_amid_latents_that_keep_distances():
    """The start suits a quantizer of whole latents: all channels are scaled by one number."""
    sizes = ["quantizer.codebook_size=256", "quantizer.dim=12"]
    settings = config.load(config.folder() / "ema.toml", sizes)
    tokenizer, z, error = started(settings)
    folds = [m.weight.flatten(1) for m in tokenizer.encoder if isinstance(m, CausalConv3d)]
    lengths = folds[-1].norm(dim=1)
    assert torch.allclose(lengths, lengths[0].expand_as(lengths), rtol=1e-4)
    assert z.square().mean().item() == pytest.approx(1, abs=0.3)
    assert error < 0.2


def test_what_stands_still_comes_back_sharper():
    pixels = read_window(DEMO, 0, 1, 128)
    still = torch.from_numpy(pixels).movedim(-1, 0)[None].expand(-1, -1, 25, -1, -1)
    tokenizer = vqtok.load()
    decoded = tokenizer.decode(tokenizer.encode(still), *still.shape[2:])
    error = (decoded - still / 255).square().mean((0, 1, 3, 4))
    assert error[-4:].mean() < 0.8 * error[1:5].mean()


@pytest.mark.parametrize("since_key", [0, 1, 2])
def test_predictions_of_a_stream_are_those_of_the_whole_clip(since_key):
    coder = small("fsq", PREDICTORS[1], "model.keyframe_interval=3").double().coder
    z_q = torch.randn(1, 6, 7, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        whole, state, streamed = coder._predictions(z_q, since_key), {coder: (None, since_key)}, []
        for frame in z_q.split(1, dim=2):
            prediction = coder._prediction(state)
            streamed.append(torch.zeros_like(frame) if prediction is None else prediction)
            coder._advance(frame, state)
    key = [i == 0 or (i + since_key) % 3 == 0 for i in range(7)]
    assert [not frame.any() for frame in whole.unbind(2)] == key
    assert (torch.cat(streamed, dim=2) - whole).abs().max() < 1e-12


def test_a_difference_between_machines_ends_at_the_next_key_frame():
    tokenizer = small("fsq", PREDICTORS[1], "model.keyframe_interval=4")
    coder = tokenizer.coder
    indices = torch.randint(0, 64000, (1, 9, 3, 3))
    with torch.no_grad():
        here, state, there = coder.decode(indices, {}), {}, []
        for i, part in enumerate(indices.split(1, dim=1)):
            there.append(coder.decode(part, state))
            if i == 0:
                prediction, since_key = state[coder]
                state[coder] = prediction + 0.1, since_key
    differs = [not torch.equal(a, b[:, :, 0]) for a, b in zip(here.unbind(2), there, strict=True)]
    assert differs == [False, True, True, True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("kind", "more"),
    [(kind, []) for kind in config.QUANTIZERS]
    + [(kind, ["model.intra_share=0.5"]) for kind in ("vq2", "ema")],
)
def test_latents_are_decoded_to_what_the_encoder_reckoned_with(kind, more):
    """Bit for bit, over a long clip, in chunks, and where the convolutions are narrow."""
    tokenizer = small(kind, PREDICTORS[1], *more).cast(torch.bfloat16)
    coder = tokenizer.coder
    z = torch.randn(1, coder.quantizer.dim, 150, 3, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        indices, expected = coder._encode_frames(z, {})
        state = {}
        parts = [coder.decode(part, state) for part in indices.split(2, dim=1)]
    assert torch.equal(torch.cat(parts, dim=2), expected)


def test_a_predictor_learns_from_its_own_loss_and_nothing_else_does():
    tokenizer = small("fsq", PREDICTORS[1], "quantizer.whitening_weight=0").train()
    reconstruction, _ = tokenizer(video(9))
    reconstruction.sum().backward()
    assert all(p.grad is None for p in tokenizer.coder.predictor.parameters())
    assert tokenizer.encoder[0].weight.grad.abs().max() > 0
    tokenizer.zero_grad()
    _, quantized = tokenizer(video(9))
    quantized.loss.backward()
    assert quantized.loss == quantized.terms["prediction_loss"] > 0
    assert all(p.grad.abs().max() > 0 for p in tokenizer.coder.predictor.parameters())
    others = [*tokenizer.encoder.parameters(), *tokenizer.decoder.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in others)


def smooth(seed, frames=17, size=64):
    """(1 3 t h w) in 0..1: noise that changes slowly over time and picture."""
    noise = torch.rand(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (frames, size, size), mode="trilinear", align_corners=True)
