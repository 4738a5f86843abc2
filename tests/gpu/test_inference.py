"""Encode and decode on a device that is not there: placement, and budgets of launches and waits."""

import pytest
import torch

from helpers.fake_device import Counters, fake_device  # noqa: F401 - a fixture
from vqtok import config
from vqtok.model.tokenizer import Tokenizer


@pytest.fixture
def bundled(fake_device):  # noqa: F811
    """Return a tokenizer of the bundled one's size on the device."""
    settings = config.load(config.folder() / "bundled.toml", [])
    with torch.device(fake_device):
        tokenizer = Tokenizer(settings.model, settings.quantizer)
    return tokenizer.eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width", "budget"), [(256, 256, 120), (1080, 1920, 200)])
def test_launches_of_encoding(bundled, height, width, budget):
    video = torch.empty(1, 33, height, width, 3, dtype=torch.uint8).movedim(-1, 1)
    with Counters() as counters:
        indices = bundled.encode(video)
    assert counters.launches.total() / indices.shape[1] <= budget


def test_launches_of_decoding(bundled):
    indices = torch.zeros(1, 9, 32, 32, 2, dtype=torch.int64)
    with Counters() as counters:
        bundled.decode(indices)
    assert counters.launches.total() / indices.shape[1] <= 60
