"""What every quantizer guarantees: the contract of `Quantizer`."""

from contextlib import contextmanager

import pytest
import torch

from helpers.quantizers import (
    DEVICES,
    DIM,
    QUANTIZERS,
    SCALAR_QUANTIZERS,
    LargestTensor,
    Operators,
)
from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAQuantizer,
    EMAVectorQuantizer,
    GumbelQuantize,
    GumbelQuantizer,
    VectorQuantizer,
    VectorQuantizer2,
    build,
)
from vqtok.settings import EMASettings, FSQSettings, GumbelSettings, LFQSettings, VQ2Settings

SHAPES = {"image": (2, DIM, 5, 6), "video": (1, DIM, 3, 16, 16)}
DTYPES = [torch.float32, torch.bfloat16]
# Operators that make the host wait for a GPU, and operators that losses and statistics consist of.
SYNCHRONIZING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"}
SYNCHRONIZING |= {"masked_select", "_unique2", "unique_dim"}
MEASURING = {"mse_loss", "bincount", "_log_softmax", "softplus", "log_sigmoid_forward"}

every_quantizer = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_device = pytest.mark.parametrize("device", DEVICES)


def trained(make, z):
    """Return a quantizer in eval mode after one training step."""
    quantizer = make().to(z.device)
    quantizer.quantize(z)
    return quantizer.eval()


@every_quantizer
@every_shape
@every_dtype
@every_device
def test_a_training_step_has_a_loss_and_a_gradient(make, shape, dtype, device):
    z = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    out = make().to(device).quantize(z)
    (out.z_q.float().square().sum() + out.loss).backward()
    assert z.grad.abs().sum() > 0
    assert out.z_q.shape == z.shape and out.z_q.dtype == dtype
    assert out.loss.shape == () and out.loss.isfinite()
    assert not any(term.requires_grad for term in out.terms.values())


@every_quantizer
@every_shape
@every_dtype
@every_device
def test_decoded_indices_are_the_quantized_latents_in_eval(make, shape, dtype, device):
    z = torch.randn(shape, dtype=dtype, device=device)
    quantizer = trained(make, z)
    out, again = quantizer.quantize(z), quantizer.quantize(z)
    assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(quantizer.decode(out.indices).to(dtype), out.z_q)
    assert torch.equal(out.indices, again.indices)
    assert out.indices.dtype == torch.int64
    assert out.indices.shape[: len(shape) - 1] == (shape[0], *shape[2:])
    assert out.indices.min() >= 0 and out.indices.max() < quantizer.codebook_size
    assert out.loss == 0


@every_quantizer
def test_terms_are_detached_in_eval(make):
    out = make().eval().quantize(torch.randn(2, DIM, 5, 6, requires_grad=True))
    assert not any(term.requires_grad for term in out.terms.values())


@pytest.mark.parametrize("make", SCALAR_QUANTIZERS.values(), ids=SCALAR_QUANTIZERS)
def test_a_sequence_is_quantized_like_an_image(make):
    quantizer = make().eval()
    z = torch.randn(2, 7, DIM)
    sequence, image = quantizer.quantize(z), quantizer.quantize(z.mT.unsqueeze(-1))
    assert sequence.z_q.shape == z.shape
    assert torch.equal(sequence.indices, image.indices.squeeze(2))
    assert torch.equal(quantizer.decode(sequence.indices), sequence.z_q)
    assert torch.equal(quantizer.encode(z), sequence.indices)


@every_quantizer
def test_encode_in_training_draws_no_noise_and_changes_no_state(make):
    quantizer, z = make(), torch.randn(2, DIM, 5, 6, requires_grad=True)
    state = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    random_state = torch.get_rng_state()
    indices = quantizer.encode(z)
    assert torch.equal(torch.get_rng_state(), random_state)
    after = quantizer.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert not indices.requires_grad
    assert torch.equal(quantizer.eval().encode(z), indices)


@every_quantizer
def test_encode_computes_no_loss_or_statistics(make):
    quantizer, z = make(), torch.randn(2, DIM, 5, 6)
    with Operators() as in_encode:
        quantizer.encode(z)
    with Operators() as in_quantize:
        out = quantizer.quantize(z)
    assert not in_encode.names & MEASURING
    assert in_quantize.names & MEASURING or out.loss == 0  # those names are the right ones


@every_quantizer
@every_device
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_encode_and_decode_never_wait_for_a_gpu(make, device, training):
    z = torch.randn(2, DIM, 5, 6, device=device)
    quantizer = trained(make, z).train(training)
    quantizer.decode(quantizer.encode(z))  # libraries are initialized
    with Operators() as operators, no_synchronization(device):
        quantizer.decode(quantizer.encode(z))
    assert operators.names
    assert not operators.names & SYNCHRONIZING


@contextmanager
def no_synchronization(device):
    """Make CUDA raise an error when the host waits for the device."""
    if device != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_quantizer
@every_device
def test_autocast_and_memory_layout_do_not_change_the_result(make, device):
    quantizer = make().to(device).eval()
    z = torch.randn(1, DIM, 64, 64, device=device)
    expected = quantizer.quantize(z)
    with torch.autocast(device, torch.bfloat16):
        autocast = quantizer.quantize(z)
        assert torch.equal(quantizer.encode(z), expected.indices)
        assert torch.equal(quantizer.decode(autocast.indices), expected.z_q)
    channels_last = z.to(memory_format=torch.channels_last)
    strided = z.repeat_interleave(2, 3)[..., ::2]
    for out in (autocast, quantizer.quantize(channels_last), quantizer.quantize(strided)):
        assert torch.equal(out.z_q, expected.z_q) and torch.equal(out.indices, expected.indices)
    for latents in (channels_last, strided):
        assert torch.equal(quantizer.encode(latents), expected.indices)


def test_memory_layout_does_not_change_the_rounding_of_the_loss():
    quantizer, z = LFQ(dim=256, codebook_size=2**10), torch.randn(1, 256, 10, 100)
    channels_last = z.to(memory_format=torch.channels_last)
    assert torch.equal(quantizer.quantize(z).loss, quantizer.quantize(channels_last).loss)


@every_quantizer
def test_a_bfloat16_quantizer_keeps_the_contract(make):
    quantizer = make().bfloat16()
    z = torch.randn(2, DIM, 5, 6).bfloat16()
    assert quantizer.quantize(z).loss.isfinite()
    out = quantizer.eval().quantize(z)
    assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(quantizer.decode(out.indices).bfloat16(), out.z_q)


@every_quantizer
@pytest.mark.parametrize("method", ["quantize", "encode"])
def test_products_are_float32_even_if_tf32_is_allowed(make, method, monkeypatch):
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    quantizer, seen = make(), []
    original = getattr(quantizer, f"_{method}")

    def spy(z, *args):
        seen.append([backend.fp32_precision for backend in backends])
        return original(z, *args)

    monkeypatch.setattr(quantizer, f"_{method}", spy)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32"
        getattr(quantizer, method)(torch.randn(1, DIM, 4, 4))
        assert [backend.fp32_precision for backend in backends] == ["tf32", "tf32"]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
    assert seen == [["ieee", "ieee"]]


@every_quantizer
def test_training_resumes_exactly_from_a_state_dict(make):
    z = torch.randn(4, 2, DIM, 5, 6)
    first, resumed = make(), make()
    first.quantize(z[0])
    resumed.load_state_dict(first.state_dict())
    results = []
    for quantizer in (first, resumed):
        torch.manual_seed(1)
        results.append([quantizer.quantize(z[1]), quantizer.quantize(z[2])])
    for expected, out in zip(*results, strict=True):
        assert torch.equal(out.indices, expected.indices)
        assert torch.equal(out.loss, expected.loss)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (VQ2Settings(), VectorQuantizer),
        (EMASettings(), EMAQuantizer),
        (GumbelSettings(), GumbelQuantizer),
        (LFQSettings(), LFQ),
        (FSQSettings(), FSQ),
    ],
    ids=["vq2", "ema", "gumbel", "lfq", "fsq"],
)
def test_build_makes_the_quantizer_of_the_settings(settings, kind):
    quantizer = build(settings)
    assert type(quantizer) is kind
    assert quantizer.codebook_size == getattr(settings, "codebook_size", 64000)
    out = quantizer.quantize(torch.randn(2, quantizer.dim, 8, 8))
    assert out.z_q.shape[1] == quantizer.dim and out.loss.isfinite()


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantizer2(8192, 4, 0.25, init_from_data=True, revive_after=1),
        lambda: EMAVectorQuantizer(8192, 4, 0.25, init_from_data=True, revive_after=1),
        lambda: GumbelQuantize(4, 4, 8192, init_from_data=True),
        lambda: GumbelQuantize(4, 4, 8192, straight_through=False),
        lambda: GumbelQuantize(4, 4, 16384).eval(),
        lambda: FSQ((8,) * 4),
    ],
    ids=["vq2", "ema", "gumbel", "gumbel-mixture", "gumbel-eval", "fsq"],
)
def test_neither_step_nor_encode_allocates_a_matrix_of_positions_by_codes(make):
    z = torch.randn(1, 4, 32, 64, requires_grad=True)
    with LargestTensor() as largest:
        quantizer = make()
        quantizer(z)[0].sum().backward()
        quantizer.encode(z)
    assert largest.elements <= 2048 * 2048  # 2048 positions, 4096 codes or more
