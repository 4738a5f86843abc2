"""A small instance of every quantizer, and what tests compare and watch them with."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAQuantizer,
    EMAVectorQuantizer,
    GumbelQuantize,
    GumbelQuantizer,
    VectorQuantizer,
    VectorQuantizer2,
)

DIM = 8  # channels of the latents that all of these quantizers take
LEARNING = {"init_from_data": True, "revive_after": 1}

CODEBOOK_QUANTIZERS = {
    "VectorQuantizer": lambda: VectorQuantizer(100, DIM, 0.25),
    "VectorQuantizer-learning": lambda: VectorQuantizer(100, DIM, 0.25, **LEARNING),
    "VectorQuantizer2": lambda: VectorQuantizer2(100, DIM, 0.25),
    "VectorQuantizer2-learning": lambda: VectorQuantizer2(100, DIM, 0.25, **LEARNING),
    "EMAQuantizer": lambda: EMAQuantizer(100, DIM, 0.25),
    "EMAQuantizer-learning": lambda: EMAQuantizer(100, DIM, 0.25, **LEARNING),
    "EMAVectorQuantizer": lambda: EMAVectorQuantizer(100, DIM, 0.25),
    "EMAVectorQuantizer-learning": lambda: EMAVectorQuantizer(100, DIM, 0.25, **LEARNING),
    "VectorQuantizer-1-stage": lambda: VectorQuantizer(100, DIM, 0.25, stages=1),
    "VectorQuantizer-3-stages": lambda: VectorQuantizer(100, DIM, 0.25, stages=3),
    "VectorQuantizer-2-stages-learning": lambda: VectorQuantizer(
        *(100, DIM, 0.25), stages=2, **LEARNING
    ),
    "EMAQuantizer-1-stage": lambda: EMAQuantizer(100, DIM, 0.25, stages=1),
    "EMAQuantizer-2-stages": lambda: EMAQuantizer(100, DIM, 0.25, stages=2),
    "EMAQuantizer-3-stages-learning": lambda: EMAQuantizer(*(100, DIM, 0.25), stages=3, **LEARNING),
    "GumbelQuantizer": lambda: GumbelQuantizer(DIM, DIM, 100),
    "GumbelQuantizer-learning": lambda: GumbelQuantizer(DIM, DIM, 100, init_from_data=True),
    "GumbelQuantize": lambda: GumbelQuantize(DIM, DIM, 100),
    "GumbelQuantize-learning": lambda: GumbelQuantize(DIM, DIM, 100, init_from_data=True),
}
SCALAR_QUANTIZERS = {
    "LFQ": lambda: LFQ(codebook_size=2**DIM),
    "LFQ-projected": lambda: LFQ(dim=DIM, codebook_size=2**5),
    "LFQ-two-codebooks": lambda: LFQ(dim=DIM, codebook_size=2**4, num_codebooks=2),
    "FSQ": lambda: FSQ((8, 3, 4, 5, 3, 3, 3, 3)),
    "FSQ-projected": lambda: FSQ([7, 5, 5], dim=DIM),
    "FSQ-two-codebooks": lambda: FSQ([4, 3, 4, 3], num_codebooks=2),
}
QUANTIZERS = CODEBOOK_QUANTIZERS | SCALAR_QUANTIZERS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def exact_indices(z, codebook):
    """Return the indices (n) of the nearest codes to z (n d), computed in float64."""
    return torch.cdist(z.double(), codebook.double()).argmin(-1)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    """Compare the values of two tensors, whatever their dtypes."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, check_dtype=False)


class Operators(TorchDispatchMode):
    """Record the names of the ATen operators that run, such as `mse_loss`.

    Indexing with a boolean mask is recorded as `nonzero`: that is what it does.
    """

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.add(name)
        if name in ("index", "index_put", "index_put_"):
            masks = [t for t in tree_leaves(args[1]) if t is not None and t.dtype == torch.bool]
            self.names |= {"nonzero"} if masks else set()
        return func(*args, **(kwargs or {}))


class LargestTensor(TorchDispatchMode):
    """Record the size of the largest tensor that is allocated, in float32 elements."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        storages = (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        self.elements = max([self.elements, *(s.nbytes() // 4 for s in storages)])
        return out


class SubnormalFloats(TorchDispatchMode):
    """Record whether any operator returns a float32 tensor with subnormal numbers."""

    seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "empty" not in func.__name__:  # uninitialized memory may hold anything
            floats = (t for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            self.seen |= any(bool(_is_subnormal(t).any()) for t in floats if t.is_floating_point())
        return out


def _is_subnormal(x):
    return (x != 0) & (x.abs() < torch.finfo(x.dtype).tiny)
