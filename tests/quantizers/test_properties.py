"""The contract of the quantizers at random valid shapes, dtypes, memory layouts and sizes."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from helpers.quantizers import LEARNING
from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAQuantizer,
    EMAVectorQuantizer,
    GumbelQuantize,
    VectorQuantizer,
    VectorQuantizer2,
)
from vqtok.quantizers.search import nearest

# Factories of dim and codebook size, which LFQ and FSQ replace by one that they can have.
QUANTIZERS = {
    "vq2": lambda d, k: VectorQuantizer2(k, d, 0.25),
    "vq2-learning": lambda d, k: VectorQuantizer2(k, d, 0.25, **LEARNING),
    "ema": lambda d, k: EMAVectorQuantizer(k, d, 0.25),
    "ema-learning": lambda d, k: EMAVectorQuantizer(k, d, 0.25, **LEARNING),
    "vq2-stages": lambda d, k: VectorQuantizer(k + 1, d, 0.25, stages=2),
    "vq2-stage-learning": lambda d, k: VectorQuantizer(k + 1, d, 0.25, stages=1, **LEARNING),
    "ema-stage": lambda d, k: EMAQuantizer(k + 1, d, 0.25, stages=1),
    "ema-stages-learning": lambda d, k: EMAQuantizer(k + 1, d, 0.25, stages=3, **LEARNING),
    "gumbel": lambda d, k: GumbelQuantize(d, d, k),
    "gumbel-learning": lambda d, k: GumbelQuantize(d, d, k, init_from_data=True),
    "lfq": lambda d, k: LFQ(dim=d),
    "lfq-projected": lambda d, k: LFQ(dim=d, codebook_size=2 ** k.bit_length()),
    "fsq": lambda d, k: FSQ((k + 2,) * min(d, 4), dim=d),
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = {
    "contiguous": lambda z: z,
    "channels-last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda z: z.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda z: z.transpose(0, -1).contiguous().transpose(0, -1),
}

reproducible = settings(deadline=None, max_examples=40, derandomize=True, database=None)


@pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
@reproducible
@given(
    batch=st.integers(1, 3),
    grid=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    dim=st.integers(1, 9),
    codes=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(list(LAYOUTS)),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    seed=st.integers(0, 9),
)
def test_quantizers_keep_the_contract(make, batch, grid, dim, codes, dtype, layout, scale, seed):
    torch.manual_seed(seed)
    quantizer = make(dim, codes)
    contiguous = (scale * torch.randn(batch, dim, *grid)).to(dtype)
    z = LAYOUTS[layout](contiguous).detach().requires_grad_()
    out = quantizer.quantize(z)
    (out.z_q.float().sum() + out.loss).backward()
    assert z.grad.isfinite().all() and out.loss.isfinite() and out.loss.shape == ()
    assert all(term.isfinite() for term in out.terms.values())

    quantizer.eval()
    out, expected = quantizer.quantize(z), quantizer.quantize(contiguous)
    assert out.z_q.shape == z.shape and out.z_q.dtype == dtype
    stages = () if quantizer.stages == 1 else (quantizer.stages,)
    assert out.indices.shape == (batch, *grid, *stages) and out.indices.dtype == torch.int64
    assert out.indices.min() >= 0 and out.indices.max() < quantizer.codebook_size
    assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(quantizer.decode(out.indices).to(dtype), out.z_q)
    assert torch.equal(out.indices, expected.indices) and torch.equal(out.z_q, expected.z_q)


@reproducible
@given(
    n=st.integers(1, 3000),
    k=st.integers(1, 3000),
    copies=st.integers(1, 4),
    d=st.integers(1, 20),
    shift=st.sampled_from([0.0, 30.0, 1000.0]),
    seed=st.integers(0, 9),
)
def test_search_returns_the_first_of_the_nearest_codes(n, k, copies, d, shift, seed):
    torch.manual_seed(seed)
    z, codebook = torch.randn(n, d) + shift, torch.randn(k, d) + shift
    indices = nearest(z, codebook.repeat(copies, 1))
    assert indices.max() < k
    distances = (z.double() - codebook[indices].double()).square().sum(-1)
    exact = torch.cdist(z.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(distances, exact.amin(-1).square(), rtol=1e-4, atol=1e-5)


@reproducible
@given(
    levels=st.lists(st.integers(3, 40), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
def test_fsq_indices_survive_a_round_trip(levels, dtype, seed):
    torch.manual_seed(seed)
    quantizer = FSQ(levels)
    indices = torch.randint(quantizer.codebook_size, (2, 50, 1))
    codes = quantizer.indices_to_codes(indices).to(dtype)
    assert torch.equal(quantizer.codes_to_indices(codes.movedim(1, -1)), indices.int())
