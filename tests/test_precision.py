"""Torch's global flags while a tokenizer computes."""

import pytest
import torch

from helpers.tokenizers import random_video, small_tokenizer
from vqtok.precision import fixed_kernels

cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul


def flags():
    return matmul.fp32_precision, cudnn.deterministic, cudnn.benchmark


FIXED = ("ieee", True, False)
FAST = ("tf32", False, True)


@pytest.fixture
def fast_flags(monkeypatch):
    """Set the flags of a program that wants speed."""
    before = matmul.fp32_precision
    monkeypatch.setattr(cudnn, "deterministic", False)
    monkeypatch.setattr(cudnn, "benchmark", True)
    matmul.fp32_precision = "tf32"
    yield
    matmul.fp32_precision = before


def test_one_thread_does_not_change_the_flags_of_another(fast_flags):
    first, second = fixed_kernels(), fixed_kernels()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert flags() == FIXED
    second.__exit__(None, None, None)
    assert flags() == FAST


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_tokenizer_uses_the_same_kernels_on_every_run(part, fast_flags, monkeypatch):
    tokenizer, seen = small_tokenizer("ema", "model.predictor_blocks=1"), []
    for module in getattr(tokenizer, part).modules():
        module.register_forward_hook(lambda *_: seen.append(flags()))
    tokenizer.decode(tokenizer.encode(random_video(9)))
    assert set(seen) == {FIXED}
    assert flags() == FAST
