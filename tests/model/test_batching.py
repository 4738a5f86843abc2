"""Clips of several threads in one batch: the same tokens in any company, and failures."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from helpers.tokenizers import STAGED, random_video, small_tokenizer
from vqtok.model.rate import ALL_TOKENS, Rate

PREDICTIVE = ["model.predictor_blocks=1", "model.keyframe_interval=3"]
# Clips that meet in one batch: equal and different lengths and sizes.
SIZES = {
    "one": [(30, 32, 48)],
    "equal": [(21, 32, 48)] * 3,
    "lengths": [(38, 32, 48), (1, 32, 48), (9, 32, 48), (12, 32, 48)],
    "sizes": [(13, 32, 48), (21, 48, 32), (17, 30, 41), (17, 32, 48)],
}


def in_threads(tokenizer, function, inputs, delay=0.0):
    """Return function(input) of each input, computed in a thread each; they start one by one."""

    def work(item):
        i, value = item
        time.sleep(i * delay)
        with tokenizer.batcher.clip():
            return function(value)

    with ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(work, enumerate(inputs), timeout=60))


def clips_of(sizes):
    return [
        (random_video(*size, seed=seed) * 255).to(torch.uint8) for seed, size in enumerate(sizes)
    ]


def assert_equal(actual, expected):
    assert all(map(torch.equal, actual, expected))


KINDS = {
    "fsq": ("fsq", PREDICTIVE, ALL_TOKENS),
    "no predictor": ("lfq", ["model.predictor_blocks=0"], ALL_TOKENS),
    "staged": ("ema", [*STAGED, *PREDICTIVE], ALL_TOKENS),
    "intra": ("vq2", [*STAGED, *PREDICTIVE, "model.intra_share=0.3"], ALL_TOKENS),
    "price": ("ema", [*STAGED, *PREDICTIVE, "model.intra_share=0.3"], Rate(price=0.3)),
    "tokens": ("ema", [*STAGED, *PREDICTIVE], Rate(tokens=0.9)),
    "psnr": ("ema", [*STAGED, *PREDICTIVE], Rate(psnr=9.0)),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("kind", "overrides", "rate"), KINDS.values(), ids=KINDS)
def test_a_clip_gets_the_same_tokens_and_video_in_any_company(kind, overrides, rate, sizes):
    tokenizer, clips = small_tokenizer(kind, *overrides), clips_of(sizes)

    def encode(clip):
        return tokenizer.encode(clip, rate)

    expected = [encode(clip) for clip in clips]
    videos = [tokenizer.decode(indices) for indices in expected]
    with tokenizer.batched(4):
        alone = [encode(clip) for clip in clips]
        assert_equal(alone, expected)
        videos_alone = [tokenizer.decode(indices) for indices in expected]
        for delay in (0.0, 0.02):
            assert_equal(in_threads(tokenizer, encode, clips, delay), alone)
            assert_equal(in_threads(tokenizer, tokenizer.decode, expected, delay), videos_alone)
    for video, video_alone in zip(videos, videos_alone, strict=True):
        torch.testing.assert_close(video_alone, video)
