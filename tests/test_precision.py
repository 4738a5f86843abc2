"""Torch's global precision flags."""

import torch

from vqtok.precision import full_float32


def test_one_thread_does_not_reduce_the_precision_of_another():
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "tf32"
    try:
        first, second = full_float32(), full_float32()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert backend.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before
