"""Rate control: a price, a number of tokens or a PSNR decides how many tokens are spent."""

import math

import numpy as np
import pytest
import torch

from helpers.tokenizers import random_video, small_settings, small_tokenizer
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import UsageError
from vqtok.model.initialization import init_from_data
from vqtok.model.rate import TRIALS, find_price
from vqtok.model.tokenizer import Tokenizer
from vqtok.training.synthetic import moving_waves

FRAMES, SIZE, INTERVAL = 101, 32, 8  # 26 latent frames, 8 in a window
RATES = [Rate(price=1.0), Rate(tokens=0.6), Rate(psnr=18.0)]
MODEL = ["model.widths=[24, 32]", "model.predictor_blocks=1", f"model.keyframe_interval={INTERVAL}"]
CODES = ["quantizer.codebook_size=64", "quantizer.dim=8", "quantizer.stages=2"]

every_rate = pytest.mark.parametrize("rate", RATES, ids=str)


def waves(seed, frames=FRAMES):
    """Return (1 3 t h w), uint8."""
    clip = moving_waves(np.random.default_rng(seed), frames, SIZE)
    return torch.from_numpy(clip).movedim(-1, 0)[None]


@pytest.fixture(scope="module")
def tokenizer():
    """Return a tokenizer with stages that was initialized from other clips."""
    torch.manual_seed(0)
    settings = small_settings("ema", *MODEL, *CODES)
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    init_from_data(tokenizer, torch.cat([waves(seed, 17) for seed in range(1, 9)]))
    return tokenizer.eval()


@pytest.fixture(scope="module")
def clip():
    return waves(0)


def tokens_per_position(indices):
    """Return the tokens per position of indices (1 t h w stages)."""
    return (indices != 0).sum(-1).float().mean().item()


def psnr(tokenizer, indices, clip):
    decoded = tokenizer.decode(indices, *clip.shape[2:])
    return -10 * math.log10((decoded - clip / 255).square().mean())


@pytest.mark.parametrize("tokens", [0.05, 0.1, 0.6, 1.2])
def test_the_number_of_tokens_is_met(tokenizer, clip, tokens):
    indices = tokenizer.encode(clip, Rate(tokens=tokens))
    assert indices.shape[1] == 26
    one = 1 / indices[..., 0].numel()
    assert tokens_per_position(indices) == pytest.approx(tokens, rel=0.02, abs=one)


def test_more_tokens_than_there_are_stages_are_all_tokens(tokenizer, clip):
    most = tokens_per_position(tokenizer.encode(clip))
    spent = tokens_per_position(tokenizer.encode(clip, Rate(tokens=9.0)))
    assert most == pytest.approx(spent, rel=0.02)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_psnr_is_met_with_fewer_tokens(tokenizer, clip, share):
    every = tokenizer.encode(clip)
    worst, best = (psnr(tokenizer, i, clip) for i in (torch.zeros_like(every), every))
    target = worst + share * (best - worst)
    indices = tokenizer.encode(clip, Rate(psnr=target))
    assert psnr(tokenizer, indices, clip) == pytest.approx(target, abs=0.2)
    assert tokens_per_position(indices) < 0.9 * tokens_per_position(every)


def test_a_psnr_out_of_reach_gives_all_tokens(tokenizer, clip):
    best = psnr(tokenizer, tokenizer.encode(clip), clip)
    assert psnr(tokenizer, tokenizer.encode(clip, Rate(psnr=90.0)), clip) > best - 0.1


def test_a_higher_price_gives_fewer_tokens(tokenizer, clip):
    clips = [tokenizer.encode(clip, Rate(price=price)) for price in (0.0, 0.3, 1.0, 3.0, 1e6)]
    tokens = [tokens_per_position(indices) for indices in clips]
    assert tokens == sorted(tokens, reverse=True) and len(set(tokens)) == 5
    assert tokens[-1] == 0
    assert torch.equal(clips[0], tokenizer.encode(clip, ALL_TOKENS))


def test_the_price_is_relative_to_that_of_training(tokenizer, clip):
    expected = tokenizer.encode(clip, Rate(price=2.0))
    trained = tokenizer.coder.price.clone()
    try:
        tokenizer.coder.price.mul_(4)
        assert torch.equal(tokenizer.encode(clip, Rate(price=0.5)), expected)
    finally:
        tokenizer.coder.price.copy_(trained)


@every_rate
def test_a_clip_gives_the_same_tokens_however_it_is_cut(tokenizer, clip, rate):
    expected = tokenizer.encode(clip, rate)
    for cut in (FRAMES, 7, [3, 50, 1, 47]):
        parts = list(tokenizer.encode_stream(clip.split(cut, dim=2), rate))
        assert torch.equal(torch.cat(parts, dim=1), expected)
    assert 0.02 < tokens_per_position(expected) < 0.95 * tokenizer.stages


@every_rate
def test_a_stream_is_decided_a_window_at_a_time(tokenizer, clip, rate):
    lengths = [part.shape[1] for part in tokenizer.encode_stream([clip], rate)]
    whole, rest = divmod(26, 2 if rate.price else INTERVAL)
    assert lengths == [2 if rate.price else INTERVAL] * whole + [rest] * bool(rest)


@every_rate
def test_a_still_image_and_a_batch_are_encoded(tokenizer, rate):
    still = waves(0, 1)
    indices = tokenizer.encode(still.expand(2, -1, -1, -1, -1), rate)
    assert indices.shape[:4] == (2, 1, 4, 4)
    assert torch.equal(indices[0], indices[1])


@every_rate
def test_a_tokenizer_without_a_zero_code_is_refused(rate):
    for kind in ("fsq", "vq2"):
        with pytest.raises(UsageError, match=r"trained with quantizer\.stages") as caught:
            small_tokenizer(kind).encode(random_video(1), rate)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"price": -0.1}, "price of a token must be 0 to 1,000,000, not -0.1"),
        ({"price": math.inf}, "0 to 1,000,000, not inf"),
        ({"price": math.nan}, "0 to 1,000,000, not nan"),
        ({"tokens": 0.0}, "tokens per position must be 0 to 1,000,000, not 0.0"),
        ({"tokens": 1e308}, "0 to 1,000,000, not 1e.308"),
        ({"tokens": math.nan}, "0 to 1,000,000, not nan"),
        ({"tokens": math.inf}, "0 to 1,000,000, not inf"),
        ({"psnr": 0.0}, "PSNR must be above 0 and at most 100 dB, not 0.0"),
        ({"psnr": 101.0}, "at most 100 dB, not 101.0"),
        ({"psnr": math.nan}, "at most 100 dB, not nan"),
        ({"price": 1.0, "tokens": 0.6}, "choose one of .*, not price and tokens$"),
        ({"tokens": 0.6, "psnr": 30.0}, "choose one of .*, not tokens and psnr$"),
        ({"price": 0.0, "psnr": 30.0}, "choose one of .*, not price and psnr$"),
        ({"price": 1.0, "tokens": 0.6, "psnr": 30.0}, "not price and tokens and psnr$"),
    ],
    ids=str,
)
def test_a_rate_out_of_range_and_several_at_once_are_refused(values, message):
    with pytest.raises(UsageError, match=message) as caught:
        Rate(**values)
    assert "\n" not in str(caught.value)


def test_a_rate_prints_its_setting():
    assert [str(rate) for rate in RATES] == ["price=1", "tokens=0.6", "psnr=18"]
    assert str(ALL_TOKENS) == ""
    assert Rate() == ALL_TOKENS


class Measured:
    """A window of which only the measure is looked at."""

    def __init__(self, measured):
        self.measured = measured


@pytest.mark.parametrize("start", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("power", [-2.0, -0.7, 0.5, 1.5])
def test_the_price_of_a_power_law_is_found(power, start):
    tried = []

    def code(price):
        tried.append(price)
        return Measured(price**power)

    window, price = find_price(code, 0.5**power, start, rising=power > 0)
    assert price in tried and len(tried) <= TRIALS
    assert window.measured == price**power
    assert window.measured == pytest.approx(0.5**power, rel=0.05)


def test_a_quality_that_was_reached_is_kept():
    """The error jumps from 30.5 dB to 29.8 dB: nearer to 30 dB, but below."""

    def code(price):
        return Measured(10 ** (-3.046 if price < 1.5 else -2.975))

    for start in (0.1, 1.0, 10.0):
        window, _ = find_price(code, 10**-3.0, start, rising=True)
        assert window.measured < 10**-3.0


@pytest.mark.parametrize("rate", [0.6, None, "tokens=0.6"])
def test_what_is_not_a_rate_is_refused(tokenizer, rate):
    with pytest.raises(UsageError, match=r"must be a vqtok\.Rate"):
        tokenizer.encode(random_video(1), rate)


def test_a_number_as_text_is_refused():
    with pytest.raises(UsageError, match="tokens must be a number"):
        Rate(tokens="0.6")
