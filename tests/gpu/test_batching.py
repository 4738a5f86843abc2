"""Clips in batches on a device that is not there: placement, launches and waits.

A clip alone fills a batch with repeats of itself, which takes the launches of a full one.
"""

import pytest
import torch

from helpers.fake_device import Counters, fake_device  # noqa: F401 - a fixture
from vqtok import Rate, config
from vqtok.encoding import ALL_TOKENS
from vqtok.model.stream_state import StreamState
from vqtok.model.tokenizer import Tokenizer

CLIPS = 8


@pytest.fixture
def bundled(fake_device):  # noqa: F811
    """Return a tokenizer of the bundled one's size on the device."""
    settings = config.load(config.folder() / "bundled.toml", [])
    with torch.device(fake_device):
        tokenizer = Tokenizer(settings.model, settings.quantizer)
    return tokenizer.eval().requires_grad_(False)


def make_video(frames, height=256, width=256):
    return torch.empty(1, frames, height, width, 3, dtype=torch.uint8).movedim(-1, 1)


# Latent frames of the last chunk, besides two whole ones.
@pytest.mark.parametrize("last", [1, 8])
def test_launches_and_waits_of_a_batch(bundled, last):
    latent_frames = 16 + last
    with bundled.batched(CLIPS), Counters() as counters:
        indices = bundled.encode(make_video(1 + 4 * (latent_frames - 1)))
    assert indices.shape[1] == latent_frames
    assert counters.launches.total() / 24 <= 96  # of a whole chunk, for all clips of a batch
    assert counters.waits.total() == 2  # for all of the clip
    with bundled.batched(CLIPS), Counters() as counters:
        list(bundled.decode_stream([torch.zeros(1, 24, 32, 32, 2, dtype=torch.int64)]))
    assert counters.launches.total() / 24 <= 54
    assert not counters.waits


def test_rows_between_different_key_frames_neither_wait_nor_mix_devices(bundled):
    coder, device = bundled.coder, bundled.device
    z = torch.empty(1, 64, 3, 32, 32, device=device)
    with Counters() as counters:
        states = [StreamState() for _ in range(3)]
        coder.encode(z, states[1], 1.0)
        coder.encode(z[:, :, :2], states[2], 1.0)
        state = StreamState.join(states, device)
        indices = coder.encode(z.expand(3, -1, -1, -1, -1), state, 1.0)
        decoded = coder.decode(indices, StreamState.join(states, device))
    assert state[coder].frames == (3, 6, 5) and state[coder].starts is None
    assert not counters.waits
    assert {indices.device, decoded.device} == {device}


@pytest.mark.parametrize("rate", [ALL_TOKENS, Rate(price=1.0)], ids=str)
def test_a_clip_alone_waits_at_its_start_and_end(bundled, rate):
    with Counters() as counters:
        bundled.encode(make_video(65), rate)
    assert counters.waits.total() == 2
    with Counters() as counters:
        bundled.decode(torch.zeros(1, 17, 32, 32, 2, dtype=torch.int64))
    assert not counters.waits
