"""Clips with key frames at other intervals than the tokenizer's own, and latents for models."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from helpers.clips import pattern
from helpers.tokenizers import STAGED, small_tokenizer
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import UsageError, VqtokError
from vqtok.model.initialization import init_from_data
from vqtok.model.stream_state import StreamState

OWN = 4
PREDICTIVE = ["model.predictor_blocks=1", f"model.keyframe_interval={OWN}"]
KINDS = {
    "vq2": ("vq2", [*PREDICTIVE, "model.intra_share=0.3"]),
    "ema": ("ema", [*STAGED, *PREDICTIVE]),
    "gumbel": ("gumbel", PREDICTIVE),
    "lfq": ("lfq", PREDICTIVE),
    "fsq": ("fsq", [*PREDICTIVE, "model.stride=1x8x8"]),
}
RATES = [Rate(price=2), Rate(tokens=0.1), Rate(psnr=13.5)]  # within reach of this tokenizer
LATENT_FRAMES = 10


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def make(kind, *overrides):
    """Return a tokenizer of KINDS whose codes mean something, and a clip of LATENT_FRAMES."""
    name, settings = KINDS[kind]
    tokenizer = small_tokenizer(name, *settings, *overrides)
    video = clip_for(tokenizer)
    init_from_data(tokenizer, video)
    return tokenizer, video


def clip_for(tokenizer, shift=0):
    """Return a moving pattern of LATENT_FRAMES."""
    frames = 1 + (LATENT_FRAMES - 1) * tokenizer.stride[0]
    video = torch.from_numpy(pattern(frames + shift, 32, 48)[shift:])
    return video.movedim(-1, 0)[None]


def with_interval(kind, tokenizer, interval):
    """Return a tokenizer with the same weights, but another interval of its own."""
    name, settings = KINDS[kind]
    other = small_tokenizer(name, *settings, f"model.keyframe_interval={interval}")
    other.load_state_dict(tokenizer.state_dict())
    return other


@pytest.mark.parametrize("interval", [1, 2, 3, OWN, None])
def test_an_interval_is_as_if_the_tokenizer_had_it(kind, interval):
    tokenizer, video = make(kind)
    other = with_interval(kind, tokenizer, interval or OWN)
    indices = tokenizer.encode(video, keyframe_interval=interval)
    assert torch.equal(indices, other.encode(video))
    decoded = tokenizer.decode(indices, keyframe_interval=interval)
    assert torch.equal(decoded, other.decode(indices))
    latents = tokenizer.latents(indices, keyframe_interval=interval)
    assert torch.equal(latents, other.latents(indices))
    assert (tokenizer.keyframe_interval, other.keyframe_interval) == (OWN, interval or OWN)
    same = interval in (None, OWN)
    assert torch.equal(latents, tokenizer.latents(indices)) == same
    assert torch.equal(decoded, tokenizer.decode(indices)) == same


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_rates_are_met_in_windows_of_the_interval(rate):
    tokenizer, video = make("ema")
    for interval in (1, 3):
        other = with_interval("ema", tokenizer, interval)
        indices = tokenizer.encode(video, rate, interval)
        assert torch.equal(indices, other.encode(video, rate))
        assert not torch.equal(indices, tokenizer.encode(video, rate))
        assert not torch.equal(indices, tokenizer.encode(video, ALL_TOKENS, interval))


def test_a_rate_needs_no_predictor_and_an_interval_of_1_changes_nothing_then():
    tokenizer, video = make("ema", "model.predictor_blocks=0")
    for rate in (ALL_TOKENS, *RATES):
        assert torch.equal(tokenizer.encode(video, rate, 1), tokenizer.encode(video, rate))


@pytest.mark.parametrize("interval", [1, 3])
def test_chunks_give_what_the_whole_clip_gives(kind, interval):
    tokenizer, video = make(kind)
    indices = tokenizer.encode(video, keyframe_interval=interval)
    for length in (1, 5):
        parts = tokenizer.encode_stream(video.split(length, 2), keyframe_interval=interval)
        assert torch.equal(torch.cat(list(parts), 1), indices)
    chunks = tokenizer.decode_stream(indices.split(2, 1), interval)
    expected = tokenizer.decode(indices, keyframe_interval=interval)
    assert torch.equal(torch.cat(list(chunks), 2), expected)


@pytest.mark.parametrize("interval", [1, 3])
def test_a_window_that_begins_at_a_key_frame_has_the_latents_of_the_clip(kind, interval):
    tokenizer, video = make(kind)
    indices = tokenizer.encode(video, keyframe_interval=interval)
    latents = tokenizer.latents(indices, interval)
    for start in range(0, LATENT_FRAMES, interval):
        window = tokenizer.latents(indices[:, start:], interval)
        torch.testing.assert_close(window, latents[:, :, start:], rtol=0, atol=1e-5)
        frames = 1 + (LATENT_FRAMES - start - 1) * tokenizer.stride[0]
        decoded = tokenizer.decode(indices[:, start:], keyframe_interval=interval)
        assert decoded.shape == (1, 3, frames, 32, 48)


@pytest.mark.parametrize("interval", [1, 3, None])
def test_latents_are_what_decode_decodes(kind, interval):
    tokenizer, video = make(kind)
    indices = tokenizer.encode(video, keyframe_interval=interval)
    latents, state = tokenizer.latents(indices.to(torch.int32), interval), StreamState()
    dim = tokenizer.coder.quantizer.dim
    assert latents.shape == (1, dim, *indices.shape[1:4]) and latents.dtype == torch.float32
    with torch.no_grad():  # in the chunks of `decode`
        parts = [tokenizer.decoder(part, state) for part in latents.split(2, dim=2)]
    expected = (torch.cat(parts, 2)[:, :, tokenizer.stride[0] - 1 :] + 1) / 2
    decoded = tokenizer.decode(indices, keyframe_interval=interval)
    assert torch.equal(decoded, expected.clamp(0, 1))


BAD_INDICES = {
    "float": (lambda indices: indices.float(), UsageError, "must be integers"),
    "list": (lambda indices: indices.tolist(), UsageError, "must be a torch.Tensor"),
    "no batch": (lambda indices: indices[0], UsageError, "must have the shape"),
    "empty": (lambda indices: indices[:, :0], UsageError, "must have the shape"),
    "negative": (lambda indices: -1 - indices, VqtokError, "not in this codebook"),
    "too large": (lambda indices: indices + 2**16, VqtokError, "not in this codebook"),
}


@pytest.mark.parametrize("function", ["decode", "latents"])
def test_decode_and_latents_refuse_the_same(kind, function):
    tokenizer, video = make(kind)
    indices = tokenizer.encode(video[:, :, :1])
    for change, error, message in BAD_INDICES.values():
        with pytest.raises(error, match=message):
            getattr(tokenizer, function)(change(indices))


@pytest.mark.parametrize("interval", [0, -1, OWN + 1, 2**31, True, 2.0, "2"])
def test_an_interval_out_of_range_is_refused_in_one_sentence(interval):
    tokenizer, video = make("fsq")
    indices = tokenizer.encode(video)
    for function, x in (
        (tokenizer.encode, video),
        (tokenizer.decode, indices),
        (tokenizer.latents, indices),
    ):
        with pytest.raises(UsageError, match=f"can be 1 to {OWN} latent frames, not {interval!r}"):
            function(x, keyframe_interval=interval)


def test_a_tokenizer_that_predicts_nothing_has_an_interval_of_1():
    tokenizer, video = make("lfq", "model.predictor_blocks=0")
    assert tokenizer.keyframe_interval == 1
    indices = tokenizer.encode(video, keyframe_interval=1)
    assert torch.equal(indices, tokenizer.encode(video))
    with pytest.raises(UsageError, match="can be 1, as it predicts nothing, not 2"):
        tokenizer.encode(video, keyframe_interval=2)


def test_clips_of_several_intervals_in_one_batcher(kind):
    tokenizer, _ = make(kind)
    jobs = [(clip_for(tokenizer, i), k) for i, k in enumerate((1, 3, 1, None, 3, 2))]

    def work(job):
        video, interval = job
        with tokenizer.batcher.clip():
            indices = tokenizer.encode(video, keyframe_interval=interval)
            return indices, *(f(indices, keyframe_interval=interval) for f in decoders)

    decoders = tokenizer.decode, tokenizer.latents
    with tokenizer.batched(3):
        alone = [work(job) for job in jobs]
        with ThreadPoolExecutor(len(jobs)) as pool:
            together = list(pool.map(work, jobs, timeout=60))
    assert all(all(map(torch.equal, *pair)) for pair in zip(together, alone, strict=True))
