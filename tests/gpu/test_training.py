"""Training on a device that is not there: placement, and budgets of launches and waits.

Computes in float32: the device knows no autocast. In bfloat16, a step of the bundled recipe also
converts weights and inputs of convolutions, in about 220 launches.
"""

import pytest
import torch

from helpers.fake_device import Counters, fake_device  # noqa: F401 - a fixture
from helpers.training import settings
from vqtok import config
from vqtok.settings import QUANTIZERS
from vqtok.training.step import train_step
from vqtok.training.train_state import TrainState

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
NOT_INITIALIZED = {"quantizers/codebook.py:needs_init": False}
# What a step without dead codes finds.
ALIVE = {
    "quantizers/nearest.py:has_dead_codes": False,
    "quantizers/nearest.py:revive_dead_codes": 0,
}
# A little above what is needed now: launches of a step, and of a step of two micro-batches with
# prediction and a discriminator.
LAUNCHES = {
    "vq2": (365, 1730),
    "ema": (410, 1740),
    "gumbel": (370, 1500),
    "lfq": (290, 1460),
    "fsq": (375, 1605),
}
READS_AGES = ("vq2", "ema")  # a wait: which codes are dead


def clips(count, frames=5, size=32):
    return torch.empty(count, frames, size, size, 3, dtype=torch.uint8).movedim(-1, 1)


def new_state(options, device):
    with device:
        return TrainState.new(options, device)


def placement(tensors):
    return {name: tensor.device.type for name, tensor in tensors.items()}


def run_two_steps(state, options, device):
    """Initialize, do two steps, check where their results are, and return what the last one did."""
    with Counters(NOT_INITIALIZED):
        state.init_from_data(clips(8))
    video = clips(options.train.batch_size).to(device)
    for _ in range(2):
        with Counters(ALIVE) as counters:
            metrics, indices = train_step(state, video, options.train)
    results = metrics | {"indices": indices}
    assert set(placement(results).values()) == {device.type}, placement(results)
    return counters


def check_resuming(state, device):
    """Load what is saved from the host; everything then lies where it was."""
    before = state.state_dict()
    expected = {
        name: "cpu" if name.endswith(".step") else device.type  # the counters of AdamW
        for name in before
    }
    assert placement(before) == expected
    on_host = {n: torch.zeros(t.shape, dtype=t.dtype, device="cpu") for n, t in before.items()}
    state.load_state_dict(on_host)
    assert placement(state.state_dict()) == expected


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_step(kind, fake_device):  # noqa: F811
    options = settings(kind, "train.accumulate=1")
    state = new_state(options, fake_device)
    counters = run_two_steps(state, options, fake_device)
    assert counters.launches.total() <= LAUNCHES[kind][0], counters.lines
    assert counters.waits.total() == int(kind in READS_AGES), counters.waits
    check_resuming(state, fake_device)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_step_with_prediction_discriminator_and_micro_batches(kind, fake_device):  # noqa: F811
    stages = ["quantizer.stages=2", "model.intra_share=0.25"] if kind in READS_AGES else []
    adversary = ["train.adversarial_weight=0.1", "train.adversarial_share=0.99", "train.steps=10"]
    options = settings(kind, "model.predictor_blocks=1", *stages, *adversary)
    state = new_state(options, fake_device)
    counters = run_two_steps(state, options, fake_device)
    assert "training/discriminator.py:forward" in counters.lines
    assert counters.launches.total() <= LAUNCHES[kind][1], counters.lines
    micro_batches = options.train.accumulate
    assert counters.waits.total() == micro_batches * int(kind in READS_AGES), counters.waits
    check_resuming(state, fake_device)


def test_reviving_dead_codes_waits_no_second_time(fake_device):  # noqa: F811
    options = settings(
        "ema", "train.accumulate=1", "quantizer.stages=2", "model.predictor_blocks=1"
    )
    state = new_state(options, fake_device)
    video = clips(2).to(fake_device)
    with Counters() as counters:
        train_step(state, video, options.train)
    assert "quantizers/ema.py:reset" in counters.lines
    first_step = {"quantizers/codebook.py:needs_init": 1}
    assert counters.waits == {"quantizers/nearest.py:_count_step": 1} | first_step


def test_a_step_of_the_bundled_recipe(fake_device):  # noqa: F811
    options = config.load(config.folder() / "bundled.toml", ["train.dtype=float32"])
    state = new_state(options, fake_device)
    train = options.train
    video = clips(train.batch_size, train.frames, train.crop).to(fake_device)
    with Counters(ALIVE):  # the first step makes the state of the optimizers
        train_step(state, video, train)
    with Counters(ALIVE) as counters:
        train_step(state, video, train)
    assert counters.waits.total() <= 1
    assert counters.launches.total() <= 1420, counters.lines
