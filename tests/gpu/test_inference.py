"""Encode, decode and eval on a device that is not there: placement, launches and waits."""

import numpy as np
import pytest
import torch

from helpers.fake_device import Counters, fake_device  # noqa: F401 - a fixture
from vqtok import Rate, config, quality
from vqtok.encoding import ALL_TOKENS
from vqtok.model.tokenizer import Tokenizer
from vqtok.quality import evaluate_clip
from vqtok.settings import QUANTIZERS

SMALL = ["model.encoder_blocks=[1,1]", "model.decoder_blocks=[1,1]"]


def make_tokenizer(device, name, *overrides):
    """Return a tokenizer with the settings of configs/NAME.toml on the device."""
    settings = config.load(config.folder() / f"{name}.toml", list(overrides))
    with torch.device(device):
        tokenizer = Tokenizer(settings.model, settings.quantizer)
    return tokenizer.eval().requires_grad_(False)


def make_video(frames, height, width):
    return torch.empty(1, frames, height, width, 3, dtype=torch.uint8).movedim(-1, 1)


every_tokenizer = pytest.mark.parametrize(
    ("kind", "predictor_blocks"), [(kind, blocks) for kind in QUANTIZERS for blocks in (0, 2)]
)


def code(tokenizer, rate=ALL_TOKENS):
    """Encode and decode a clip whose edges need padding; return all that comes out."""
    video = make_video(18, 60, 70)
    with Counters():
        indices = tokenizer.encode(video, rate)
        decoded = tokenizer.decode(torch.zeros(indices.shape, dtype=torch.int32))
        return [indices, decoded, *tokenizer.reconstruct_stream([video])]


@every_tokenizer
def test_all_is_on_the_device(fake_device, kind, predictor_blocks):  # noqa: F811
    blocks = f"model.predictor_blocks={predictor_blocks}"
    tokenizer = make_tokenizer(fake_device, kind, *SMALL, blocks)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = code(tokenizer.cast(dtype))
        assert {x.device.type for x in tensors} == {fake_device.type}


@pytest.mark.parametrize("rate", [Rate(price=1.0), Rate(tokens=0.6), Rate(psnr=30.0)], ids=str)
def test_all_is_on_the_device_at_a_rate(fake_device, rate):  # noqa: F811
    tokenizer = make_tokenizer(fake_device, "ema", *SMALL, "model.predictor_blocks=1")
    assert {x.device.type for x in code(tokenizer, rate)} == {fake_device.type}


@every_tokenizer
def test_eval_mixes_no_devices(fake_device, kind, predictor_blocks, monkeypatch):  # noqa: F811
    blocks = f"model.predictor_blocks={predictor_blocks}"
    tokenizer = make_tokenizer(fake_device, kind, *SMALL, blocks)
    # Tensors without data cannot become arrays.
    counts = np.ones(tokenizer.codebook_size - tokenizer.zero_code)
    monkeypatch.setattr(quality, "_to_numpy", lambda video: np.zeros(video.shape))
    monkeypatch.setattr(quality, "_index_counts", lambda *_: counts)
    with Counters():
        result = evaluate_clip(make_video(9, 60, 70), tokenizer)
    assert result.frames == 9


# Per latent frame of the bundled tokenizer; a little above what is needed now.
LAUNCHES = {"encode 256x256": 92, "encode 1920x1080": 137, "decode 256x256": 52}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(fake_device, name):  # noqa: F811
    tokenizer = make_tokenizer(fake_device, "bundled")
    what, _, size = name.partition(" ")
    width, height = map(int, size.split("x"))
    with Counters() as counters:
        if what == "encode":
            tokenizer.encode(make_video(65, height, width))
        else:
            tokenizer.decode(torch.zeros(1, 17, height // 8, width // 8, 2, dtype=torch.int64))
    assert counters.launches.total() / 17 <= LAUNCHES[name]
