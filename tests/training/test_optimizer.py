"""Optimizers and the learning-rate schedule."""

import pytest
import torch
from torch import nn

from helpers.training import CPU, settings
from vqtok.settings import QUANTIZERS
from vqtok.training.muon import Muon
from vqtok.training.optimizer import make_optimizers
from vqtok.training.step import ema_decay, learning_rate
from vqtok.training.train_state import TrainState


def test_muon_steps_of_kernels_are_orthogonal_and_adamw_takes_the_rest():
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 8, (1, 3, 3)).to(memory_format=torch.channels_last_3d)
    kernel, bias = (p.detach().clone() for p in (conv.weight, conv.bias))
    options = settings("fsq", "train.learning_rate=0.01", "train.weight_decay=0").train
    conv.weight.grad, conv.bias.grad = torch.randn_like(conv.weight), torch.linspace(-1, 1, 8)
    for optimizer in make_optimizers(conv, options):
        optimizer.step()
    rms_of_adamw = 0.2 * 36**0.5
    step = (kernel - conv.weight.detach()).flatten(1) / (0.01 * rms_of_adamw)
    singular_values = torch.linalg.svdvals(step)
    assert 0.6 < singular_values.min() < singular_values.max() < 1.3
    torch.testing.assert_close(conv.bias.detach(), bias - 0.01 * conv.bias.grad.sign())


def test_muon_steps_as_that_of_torch():
    torch.manual_seed(0)
    shapes = [(8, 4, 1, 3, 3), (8, 4, 1, 3, 3), (16, 4, 1, 1, 1), (4, 16, 1, 1, 1), (6, 5, 3, 1, 1)]
    channels_last = {"memory_format": torch.channels_last_3d}
    kernels = [nn.Parameter(torch.randn(shape).to(**channels_last)) for shape in shapes]
    matrices = [nn.Parameter(k.detach().movedim(1, -1).flatten(1).clone()) for k in kernels]
    ours = Muon([*kernels, unused := nn.Parameter(torch.ones(2, 2, 1))], 0.02, 0.1)
    theirs = torch.optim.Muon(matrices, 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    for layout in (channels_last, {}, channels_last):
        for kernel, matrix in zip(kernels, matrices, strict=True):
            kernel.grad = torch.randn(kernel.shape).to(**layout)
            matrix.grad = kernel.grad.movedim(1, -1).flatten(1).clone()
        ours.step()
        theirs.step()
    assert unused not in ours.state
    for kernel, matrix in zip(kernels, matrices, strict=True):
        found, expected = kernel.detach().movedim(1, -1).flatten(1), matrix.detach()
        # A step is 0.02 * 0.2 * 6 at most; a batch of products may be rounded in another order.
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
        momenta = ours.state[kernel]["momentum_buffer"], theirs.state[matrix]["momentum_buffer"]
        assert torch.equal(*momenta)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_weight_decay_shrinks_matrices_and_kernels_only(kind, optimizer):
    overrides = ["model.predictor_blocks=1", f"train.optimizer={optimizer}"]
    options = settings(kind, *overrides, "train.learning_rate=0.1", "train.weight_decay=1")
    state = TrainState.new(options, CPU)
    parameters = {p: p.detach().fill_(1).clone() for p in state.tokenizer.parameters()}
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d)
    decayed = {m.weight for m in state.tokenizer.modules() if isinstance(m, layers)}
    assert decayed
    for parameter, before in parameters.items():
        factor = 0.9 if parameter in decayed else 1
        torch.testing.assert_close(parameter.detach(), factor * before)


def test_cosine_schedule_warms_up_and_falls_to_zero():
    options = settings("fsq", "train.steps=100").train
    rates = [learning_rate(step, options) for step in range(101)]
    peak = options.learning_rate
    assert rates[0] == pytest.approx(peak / 5)
    assert max(rates) == peak == rates[5]
    assert rates[100] == pytest.approx(0)
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_wsd_schedule_is_constant_and_then_falls_linearly():
    wsd = settings("fsq", "train.steps=100", "train.schedule=wsd", "train.decay_share=0.25").train
    rates = [learning_rate(step, wsd) / wsd.learning_rate for step in range(121)]
    assert rates[0] == pytest.approx(1 / 5)
    assert rates[5:76] == [1] * 71
    assert rates[80] == pytest.approx(20 / 25)
    assert rates[100:] == [0] * 21


def test_ema_decay_rises_to_its_setting():
    options = settings("fsq", "train.ema_decay=0.8").train
    assert [ema_decay(step, options) for step in (0, 8, 1000)] == [1 / 10, 9 / 18, 0.8]
    assert ema_decay(1000, settings("fsq", "train.ema_decay=0").train) == 0
