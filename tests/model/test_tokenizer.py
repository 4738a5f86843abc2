"""The tokenizer: shapes, exact streaming, causality, input checks, initialization from data."""

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch.nn import functional as F

import vqtok
from helpers import DEMO
from helpers.quantizers import Operators
from helpers.tokenizers import random_video, small_tokenizer
from vqtok import config
from vqtok.errors import UsageError, VqtokError
from vqtok.model.chunks import CHUNK
from vqtok.model.initialization import init_from_data
from vqtok.model.layers import CausalConv3d, tail_std
from vqtok.model.stream_state import StreamState
from vqtok.model.tokenizer import Tokenizer
from vqtok.settings import QUANTIZERS
from vqtok.video import read_window

STRIDES = ["4x8x8", "4x16x16", "8x8x8", "8x16x16", "1x8x8", "1x16x16"]

every_kind = pytest.mark.parametrize("kind", QUANTIZERS)
every_stride = pytest.mark.parametrize("stride", STRIDES)
with_and_without_predictor = pytest.mark.parametrize(
    "predictor", ["model.predictor_blocks=0", "model.predictor_blocks=1"]
)


@every_stride
@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 16), (9, 33, 47), (12, 7, 100)])
def test_a_clip_of_any_size_is_restored_at_its_size(stride, frames, height, width):
    tokenizer = small_tokenizer("fsq", f"model.stride={stride}")
    t, h, w = tokenizer.stride
    clip = random_video(frames, height, width)
    indices = tokenizer.encode(clip)
    assert indices.dtype == torch.int64
    assert indices.shape == (1, 1 + -(-(frames - 1) // t), -(-height // h), -(-width // w))
    decoded = tokenizer.decode(indices, frames, height, width)
    assert decoded.shape == clip.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@with_and_without_predictor
@every_kind
def test_decoding_gives_the_reconstruction_that_training_sees(kind, predictor):
    tokenizer = small_tokenizer(kind, predictor)
    clip = random_video(9)
    with torch.no_grad():
        reconstruction, quantized = tokenizer(clip)
    indices = tokenizer.encode(clip)
    assert torch.equal(indices, quantized.indices)
    assert indices.min() >= 0
    assert indices.max() < tokenizer.codebook_size
    decoded = tokenizer.decode(indices, 9)
    torch.testing.assert_close(decoded, reconstruction.clamp(0, 1), atol=1e-5, rtol=0)


@every_stride
def test_encoder_and_decoder_give_the_same_on_chunks_and_on_the_whole_clip(stride):
    tokenizer = small_tokenizer("fsq", f"model.stride={stride}").double()
    t = tokenizer.stride[0]
    video = random_video(7 * t, dtype=torch.float64) * 2 - 1
    z = torch.randn(1, 6, 7, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        streamed = run_in_chunks(tokenizer.encoder, video.split([t, t, 2 * t, 3 * t], dim=2))
        assert (streamed - tokenizer.encoder(video)).abs().max() < 1e-12
        streamed = run_in_chunks(tokenizer.decoder, z.split([1, 3, 2, 1], dim=2))
        assert (streamed - tokenizer.decoder(z)).abs().max() < 1e-12


def run_in_chunks(model, chunks):
    """Return the output of a model for a clip in chunks (b c t h w)."""
    state, parts = StreamState(), []
    for chunk in chunks:
        parts.append(model(chunk, state))
    return torch.cat(parts, dim=2)


@with_and_without_predictor
def test_later_frames_do_not_change_earlier_tokens(predictor):
    tokenizer = small_tokenizer("fsq", predictor).double()
    clip, other = (random_video(17, seed=seed, dtype=torch.float64) for seed in range(2))
    other[:, :, :9] = clip[:, :, :9]
    indices, other_indices = tokenizer.encode(clip), tokenizer.encode(other)
    assert torch.equal(indices[:, :3], other_indices[:, :3])
    assert not torch.equal(indices[:, 3], other_indices[:, 3])


@pytest.mark.parametrize("stride", ["4x8x8", "1x8x8"])
def test_the_encoder_looks_back_as_far_as_it_says(stride):
    tokenizer = small_tokenizer("fsq", f"model.stride={stride}", "model.encoder_blocks=[1, 2]")
    video = random_video(1 + tokenizer.stride[0] * 10)
    changed = torch.cat([1 - video[:, :, :1], video[:, :, 1:]], dim=2)
    z, other = (tokenizer.encoder(tokenizer.pad(v, first=True)) for v in (video, changed))
    differs = (z != other).any(1).flatten(2).any(2).squeeze(0)
    assert tokenizer.look_back == 6
    assert differs.tolist() == [True] * 7 + [False] * 4


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 29, 30])
@pytest.mark.parametrize("length", [1, 3, 16])
@with_and_without_predictor
def test_tokens_do_not_depend_on_how_a_clip_is_cut_into_chunks(frames, length, predictor):
    tokenizer = small_tokenizer("fsq", predictor)
    clip = (random_video(frames) * 255).to(torch.uint8)
    expected = tokenizer.encode(clip)
    indices = torch.cat(list(tokenizer.encode_stream(clip.split(length, dim=2))), dim=1)
    assert torch.equal(indices, expected)
    video = torch.cat(list(tokenizer.decode_stream(expected.split(1, dim=1))), dim=2)
    torch.testing.assert_close(video[:, :, :frames], tokenizer.decode(expected, frames))


@with_and_without_predictor
def test_interleaved_streams_do_not_disturb_each_other(predictor):
    tokenizer = small_tokenizer("fsq", predictor)
    clips = [random_video(40, seed=seed) for seed in range(2)]
    pairs = zip(*(tokenizer.encode_stream(c.split(7, dim=2)) for c in clips), strict=True)
    for clip, parts in zip(clips, zip(*pairs, strict=True), strict=True):
        assert torch.equal(torch.cat(parts, dim=1), tokenizer.encode(clip))


@with_and_without_predictor
def test_threads_that_share_a_tokenizer_do_not_disturb_each_other(predictor):
    tokenizer = small_tokenizer("fsq", predictor)
    clips = [random_video(33, seed=seed) for seed in range(2)]
    tokens = [tokenizer.encode(clip) for clip in clips]
    videos = [tokenizer.decode(indices) for indices in tokens]
    barrier = Barrier(2, timeout=10)

    def meet(*_):
        barrier.wait()

    for network in (tokenizer.encoder, tokenizer.decoder):  # both threads are in it together
        network[0].register_forward_hook(meet)
    with ThreadPoolExecutor(2) as pool:
        assert all(map(torch.equal, pool.map(tokenizer.encode, clips), tokens))
        assert all(map(torch.equal, pool.map(tokenizer.decode, tokens), videos))


@with_and_without_predictor
def test_the_precision_that_the_caller_allows_does_not_change_the_result(predictor):
    tokenizer = small_tokenizer("fsq", predictor)
    clip = random_video(17, 64, 64)
    tokens = tokenizer.encode(clip)
    video = tokenizer.decode(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(clip), tokens)
        assert torch.equal(tokenizer.decode(tokens), video)
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(tokenizer.encode(clip), tokens)
        assert torch.equal(tokenizer.decode(tokens), video)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_state_of_a_stream_does_not_grow():
    tokenizer = small_tokenizer("fsq", "model.predictor_blocks=1")
    encoder_state, coder_state, sizes = StreamState(), StreamState(), []
    with torch.no_grad():
        for _ in range(4):
            z = tokenizer.encoder(random_video(4 * CHUNK), encoder_state)
            tokenizer.coder.encode(z, coder_state)
            sizes.append(size_of(encoder_state) + size_of(coder_state))
    assert len(set(sizes)) == 1 and sizes[0] > 0


def size_of(state):
    """Return the bytes that a state keeps in memory."""
    return sum(
        size_of(value) if isinstance(value, StreamState) else value.untyped_storage().nbytes()
        for value in state.values()
    )


def test_uint8_and_float_video_give_the_same_tokens():
    tokenizer = small_tokenizer()
    clip = (random_video(9) * 255).to(torch.uint8)
    assert torch.equal(tokenizer.encode(clip), tokenizer.encode(clip.float() / 255))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_video_with_nan_or_infinity_is_refused(value):
    clip = random_video(5)
    clip[0, 0, 3, 4, 5] = value
    with pytest.raises(VqtokError, match="the video holds NaN or infinity"):
        small_tokenizer().encode(clip)


def test_weights_with_nan_are_named():
    tokenizer = small_tokenizer()
    tokenizer.encoder[0].weight.data[0] = float("nan")
    with pytest.raises(VqtokError, match="weights hold NaN or infinity"):
        tokenizer.encode(random_video(1))


CLIP = random_video(5, 16, 16)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (CLIP * 2 - 1, "float video must be in 0..1, and this one ranges from -[01].* to "),
        (CLIP * 255, r"ranges from 0\.\d* to 25"),
        (CLIP.double() - 0.03, "ranges from -0.0[23]"),
        ((CLIP * 255).long(), "must be uint8 or float, not torch.int64"),
        (CLIP > 0.5, "must be uint8 or float, not torch.bool"),
        (CLIP[0], r"shape \(b 3 t h w\), not \(3, 5, 16, 16\)"),
        (CLIP.movedim(1, 2), r"shape \(b 3 t h w\), not \(1, 5, 3, 16, 16\)"),
        (CLIP[:, :1], r"not \(1, 1, 5, 16, 16\)"),
        (CLIP[:0], r"not \(0, 3, 5, 16, 16\)"),
        (CLIP[..., :0], r"not \(1, 3, 5, 16, 0\)"),
        (CLIP[:, :, :0], r"no frames: its shape is \(1, 3, 0, 16, 16\)"),
        (CLIP.numpy(), "must be a torch.Tensor, not ndarray"),
    ],
)
def test_video_of_another_range_dtype_or_shape_is_refused(video, message):
    with pytest.raises(UsageError, match=message) as caught:
        small_tokenizer().encode(video)
    assert "\n" not in str(caught.value)


def test_rounding_out_of_the_range_is_accepted():
    tokenizer = small_tokenizer()
    assert tokenizer.encode(CLIP * 1.0078 - 0.003).shape == (1, 2, 2, 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert tokenizer.encode(CLIP.to(dtype)).shape == (1, 2, 2, 2)


def test_the_range_of_uint8_video_is_not_looked_at():
    with Operators() as operators:
        small_tokenizer().encode((CLIP * 255).to(torch.uint8))
    assert "aminmax" not in operators.names


@pytest.mark.parametrize(
    "later", [CLIP[..., :8], (CLIP * 255).to(torch.uint8), CLIP.expand(2, -1, -1, -1, -1)]
)
def test_chunks_of_one_clip_have_one_size_and_dtype(later):
    tokenizer = small_tokenizer()
    with pytest.raises(UsageError, match="chunks of a clip differ"):
        list(tokenizer.encode_stream([CLIP, later]))
    indices = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    with pytest.raises(UsageError, match="chunks of a clip differ"):
        list(tokenizer.decode_stream([indices, indices[..., :1]]))


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_of_any_integer_dtype_are_decoded(dtype):
    tokenizer = small_tokenizer("lfq")  # 65,536 codes
    indices = tokenizer.encode(CLIP) % 128
    video = tokenizer.decode(indices.to(getattr(torch, dtype)))
    assert torch.equal(video, tokenizer.decode(indices))


@pytest.mark.parametrize(
    ("dtype", "index"),
    [("int64", -1), ("int64", 64000), ("int8", -1), ("uint16", 64000), ("uint64", 2**63 + 1)],
)
def test_an_index_outside_the_codebook_is_refused(dtype, index):
    indices = torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    indices[0, 0, 1, 1] = index if index < 2**63 else index - 2**64
    with pytest.raises(VqtokError, match=r"the indices are .* not in this codebook of 64,000"):
        small_tokenizer().decode(indices.to(getattr(torch, dtype)))


INDICES = torch.zeros(1, 2, 2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (INDICES.float(), "must be integers, not torch.float32"),
        (INDICES.bool(), "must be integers, not torch.bool"),
        (INDICES[0], r"shape \(b t h w\), not \(2, 2, 2\)"),
        (INDICES[..., None], r"shape \(b t h w\), not \(1, 2, 2, 2, 1\)"),
        (INDICES[:, :0], r"shape \(b t h w\), not \(1, 0, 2, 2\)"),
        (INDICES.numpy(), "must be a torch.Tensor, not ndarray"),
    ],
)
def test_indices_of_another_dtype_or_shape_are_refused(indices, message):
    with pytest.raises(UsageError, match=message):
        small_tokenizer().decode(indices)


STAGED = ["quantizer.codebook_size=64", "quantizer.dim=8", "model.predictor_blocks=1"]


@pytest.mark.parametrize("kind", ["vq2", "ema"])
@pytest.mark.parametrize("stages", [1, 2])
def test_a_tokenizer_with_stages_keeps_the_promises_of_others(kind, stages):
    tokenizer = small_tokenizer(kind, *STAGED, f"quantizer.stages={stages}")
    clip = random_video(17)
    indices = tokenizer.encode(clip)
    assert tokenizer.stages == stages
    assert indices.shape == (1, 5, 4, 6, 2)[: 3 + stages]
    assert indices.min() >= 0 and indices.max() < tokenizer.codebook_size == 64
    with torch.no_grad():
        reconstruction, quantized = tokenizer(clip)
    assert torch.equal(quantized.indices, indices)
    decoded = tokenizer.decode(indices, 17)
    torch.testing.assert_close(decoded, reconstruction.clamp(0, 1), atol=1e-5, rtol=0)
    parts = list(tokenizer.encode_stream(clip.split(3, dim=2)))
    assert torch.equal(torch.cat(parts, dim=1), indices)
    parts = list(tokenizer.decode_stream(indices.split(1, dim=1)))
    torch.testing.assert_close(torch.cat(parts, dim=2), decoded)


@pytest.mark.parametrize(
    ("stages", "shape", "expected"),
    [
        (2, (1, 2, 2, 2), "b t h w 2"),
        (2, (1, 2, 2, 2, 1), "b t h w 2"),
        (2, (1, 2, 2, 2, 3), "b t h w 2"),
        (2, (1, 0, 2, 2, 2), "b t h w 2"),
        (2, (1, 2, 2, 2, 2, 1), "b t h w 2"),
        (1, (1, 2, 2, 2, 1), "b t h w"),
    ],
)
def test_indices_of_another_number_of_stages_are_refused(stages, shape, expected):
    tokenizer = small_tokenizer("ema", *STAGED, f"quantizer.stages={stages}")
    message = re.escape(f"must have the shape ({expected}), not {shape}")
    with pytest.raises(UsageError, match=message) as caught:
        tokenizer.decode(torch.zeros(shape, dtype=torch.int64))
    assert "\n" not in str(caught.value)


def test_the_default_model_has_at_most_10_million_parameters():
    settings = config.load(config.folder() / "fsq.toml")
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    assert tokenizer.codebook_size == 64000
    assert sum(p.numel() for p in tokenizer.parameters()) <= 10_000_000


@pytest.mark.cuda
@with_and_without_predictor
@every_kind
def test_cuda_decodes_what_the_cpu_encoded(kind, predictor):
    tokenizer = small_tokenizer(kind, predictor)
    clip = random_video(9)
    indices = tokenizer.encode(clip)
    expected = tokenizer.decode(indices)
    tokenizer.cuda()
    assert (tokenizer.encode(clip).cpu() == indices).float().mean() > 0.99
    torch.testing.assert_close(tokenizer.decode(indices).cpu(), expected, atol=1e-2, rtol=0)


def smooth_video(seed, frames=17, size=64):
    """Return (1 3 t h w) in 0..1: noise that varies slowly in time and space."""
    noise = torch.rand(1, 3, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (frames, size, size), mode="trilinear", align_corners=True)


def initialized_from_data(kind, *overrides):
    """Initialize a tokenizer of the default widths from smooth clips.

    Returns the tokenizer, its latents (c n), and its squared error relative to the variance.
    """
    torch.manual_seed(0)
    blocks = ["model.encoder_blocks=[1, 1]", "model.decoder_blocks=[1, 1]"]  # identities at first
    settings = config.load(config.folder() / f"{kind}.toml", [*blocks, *overrides])
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    clips = torch.cat([smooth_video(seed) for seed in range(4)])
    init_from_data(tokenizer, clips)
    with torch.no_grad():
        z = tokenizer.encoder(tokenizer.pad(clips, first=True)).movedim(1, 0).flatten(1)
        reconstruction, _ = tokenizer(clips)
    return tokenizer, z, (reconstruction - clips).square().mean() / clips.var()


@every_stride
def test_a_scalar_quantizer_gets_uncorrelated_latents_that_reach_the_outer_levels(stride):
    _, z, error = initialized_from_data("fsq", f"model.stride={stride}")
    assert torch.allclose(tail_std(z, (1,)), torch.ones(len(z), 1), atol=0.05)
    assert tail_std(torch.randn(1, 100_000), (1,)).item() == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(z).sub(torch.eye(len(z))).abs().max() < 0.5  # of clips, not of noise
    assert error < 0.5


def test_a_codebook_gets_latents_whose_distances_are_those_of_pixels():
    """All channels of the latents are scaled by the same number."""
    size = ["quantizer.codebook_size=256", "quantizer.dim=12", "quantizer.stages=0"]
    tokenizer, z, error = initialized_from_data("ema", *size)
    convolutions = [m for m in tokenizer.encoder if isinstance(m, CausalConv3d)]
    lengths = convolutions[-1].weight.flatten(1).norm(dim=1)
    assert torch.allclose(lengths, lengths[0].expand_as(lengths), rtol=1e-4)
    assert z.square().mean().item() == pytest.approx(1, abs=0.3)
    assert error < 0.2


def test_a_still_scene_gets_sharper_with_time():
    picture = torch.from_numpy(read_window(DEMO, 0, 1, 64)).movedim(-1, 0)[None]
    clip = picture.expand(-1, -1, 25, -1, -1)
    tokenizer = vqtok.load()
    decoded = tokenizer.decode(tokenizer.encode(clip), *clip.shape[2:])
    error = (decoded - clip / 255).square().mean((0, 1, 3, 4))
    assert error[-4:].mean() < 0.8 * error[1:5].mean()
