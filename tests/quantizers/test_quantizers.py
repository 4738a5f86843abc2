"""The five quantizers: the laws of the contract, the values of the reference, and its traps."""

import json
import math
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import GOLDEN
from helpers.quantizers import DEVICES, MAKE, exact_indices
from vqtok.config import EMASettings, FSQSettings, GumbelSettings, LFQSettings, VQ2Settings
from vqtok.errors import UsageError
from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    EmbeddingEMA,
    GumbelQuantize,
    VectorQuantizer2,
    build,
)
from vqtok.quantizers.gumbel import _blocks
from vqtok.quantizers.search import nearest

USED = str(GOLDEN / "used.npy")

SHAPES = {"image": (2, 8, 5, 6), "video": (1, 8, 3, 16, 16)}

every_quantizer = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def golden(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["args"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def load(quantizer, tensors, prefix="param."):
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    quantizer.load_state_dict(own)
    return quantizer


def close(ours, theirs, rtol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6, check_dtype=False)


class Largest(TorchDispatchMode):
    """Notes the largest tensor made, and whether any held a subnormal float."""

    elements, subnormal = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        # Views made by `expand` hold nothing.
        owned = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.numel()]
        self.elements = max([self.elements, *(t.untyped_storage().nbytes() // 4 for t in owned)])
        for t in owned:
            if t.dtype == torch.float32 and "empty" not in func.__name__:
                self.subnormal |= bool(((t != 0) & (t.abs() < 1.17e-38)).any())
        return out


@every_quantizer
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_laws(make, shape, dtype, device):
    quantizer = make().to(device)
    z = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    out = quantizer.quantize(z)
    (out.z_q.float().square().sum() + out.loss).backward()
    assert z.grad.abs().sum() > 0
    assert out.z_q.shape == z.shape and out.z_q.dtype == dtype
    assert out.loss.shape == () and out.loss.isfinite()
    assert not any(term.requires_grad for term in out.terms.values())

    quantizer.eval()
    out, again = quantizer.quantize(z), quantizer.quantize(z)
    assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(quantizer.decode(out.indices).to(dtype), out.z_q)
    assert torch.equal(out.indices, again.indices)
    assert out.indices.dtype == torch.int64
    assert out.indices.shape[: len(shape) - 1] == (shape[0], *shape[2:])
    assert out.indices.min() >= 0 and out.indices.max() < quantizer.codebook_size
    assert out.loss == 0


@every_quantizer
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_and_memory_layout_change_nothing(make, device):
    quantizer = make().to(device).eval()
    z = torch.randn(1, 8, 64, 64, device=device)
    plain = quantizer.quantize(z)
    with torch.autocast(device, torch.bfloat16):
        cast = quantizer.quantize(z)
        assert torch.equal(quantizer.decode(cast.indices), plain.z_q)
    last = quantizer.quantize(z.to(memory_format=torch.channels_last))
    strided = quantizer.quantize(z.repeat_interleave(2, 3)[..., ::2])
    assert torch.equal(cast.z_q, plain.z_q) and torch.equal(cast.indices, plain.indices)
    assert torch.equal(last.z_q, plain.z_q) and torch.equal(last.indices, plain.indices)
    assert torch.equal(strided.z_q, plain.z_q) and torch.equal(strided.indices, plain.indices)


def test_memory_layout_does_not_even_change_rounding():
    quantizer, z = LFQ(dim=256, codebook_size=2**10), torch.randn(1, 256, 10, 100)
    last = z.to(memory_format=torch.channels_last)
    assert torch.equal(quantizer.quantize(z).loss, quantizer.quantize(last).loss)


@every_quantizer
def test_a_bfloat16_model_keeps_the_contract(make):
    quantizer = make().bfloat16()
    z = torch.randn(2, 8, 5, 6).bfloat16()
    assert quantizer.quantize(z).loss.isfinite()
    out = quantizer.eval().quantize(z)
    assert torch.equal(quantizer.decode(out.indices).bfloat16(), out.z_q)


@every_quantizer
def test_training_is_exact_after_resume(make):
    z, steps = torch.randn(4, 2, 8, 5, 6), []
    first, second = make(), make()
    first.quantize(z[0])
    second.load_state_dict(first.state_dict())
    for quantizer in (first, second):
        torch.manual_seed(1)
        steps.append([quantizer.quantize(z[1]), quantizer.quantize(z[2])])
    for ours, resumed in zip(*steps, strict=True):
        assert torch.equal(ours.indices, resumed.indices) and torch.equal(ours.loss, resumed.loss)


@pytest.mark.parametrize("make", [MAKE[k] for k in MAKE if k[:3] in ("lfq", "fsq")])
def test_sequences(make):
    quantizer = make().eval()
    z = torch.randn(2, 7, 8)
    sequence, image = quantizer.quantize(z), quantizer.quantize(z.mT.unsqueeze(-1))
    assert sequence.z_q.shape == z.shape
    assert torch.equal(sequence.indices, image.indices.squeeze(2))
    assert torch.equal(quantizer.decode(sequence.indices), sequence.z_q)


@pytest.mark.parametrize(
    "settings",
    [VQ2Settings(), EMASettings(), GumbelSettings(), LFQSettings(), FSQSettings()],
    ids=lambda s: s.kind,
)
def test_build(settings):
    quantizer = build(settings)
    out = quantizer.quantize(torch.randn(2, quantizer.dim, 8, 8))
    assert out.z_q.shape[1] == quantizer.dim and out.loss.isfinite()
    assert quantizer.codebook_size == getattr(settings, "codebook_size", 64000)


@pytest.mark.parametrize("legacy", ["true", "false"])
def test_vq2_golden(legacy):
    args, g = golden(f"vq2_legacy_{legacy}")
    quantizer = VectorQuantizer2(**args)
    quantizer.embedding.weight.data.copy_(g["codebook"])
    z = g["z"].requires_grad_()
    z_q, loss, (perplexity, encodings, indices) = quantizer(z)
    ((z_q * g["w"]).sum() + loss).backward()
    assert perplexity is None and encodings is None
    assert torch.equal(indices, g["indices"])
    close(z_q, g["z_q"]), close(loss, g["loss"])
    close(z.grad, g["grad_z"]), close(quantizer.embedding.weight.grad, g["grad_codebook"])
    close(quantizer.get_codebook_entry(indices, (2, 5, 6, 8)), g["entry"])
    assert quantizer.get_codebook_entry(indices).shape == (60, 8)
    close(quantizer.eval()(g["z"])[1], g["loss"])


def test_vq2_video_entry_and_foreign_arguments():
    quantizer = MAKE["vq2"]()
    z = torch.randn(SHAPES["video"])
    z_q, _, (_, _, indices) = quantizer(z)
    assert torch.equal(quantizer.get_codebook_entry(indices, (1, 3, 16, 16, 8)), z_q)
    with pytest.raises(UsageError):
        quantizer(z, temp=0.5)
    with pytest.raises(UsageError):
        quantizer(z, return_logits=True)


@pytest.mark.parametrize("n, k, d", [(1, 1, 1), (100, 7, 3), (2500, 4200, 4)])
@pytest.mark.parametrize("offset", [0, 1000])
def test_search_agrees_with_float64_near_and_far_from_the_origin(n, k, d, offset):
    z, codebook = torch.randn(n, d) + offset, torch.randn(k, d) + offset
    assert torch.equal(nearest(z, codebook), exact_indices(z, codebook))


@every_quantizer
def test_products_are_exact_though_the_user_chose_fast_ones(make, monkeypatch):
    places = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    seen = []
    quantizer = make()
    inner = quantizer._quantize

    def spy(z):
        seen.append([place.fp32_precision for place in places])
        return inner(z)

    monkeypatch.setattr(quantizer, "_quantize", spy)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32"
        quantizer.quantize(torch.randn(1, 8, 4, 4))
        assert [place.fp32_precision for place in places] == ["tf32", "tf32"]
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
    assert seen == [["ieee", "ieee"]]


def test_search_gives_equals_to_the_lowest_index():
    codebook = torch.randn(50, 8).repeat(100, 1)
    assert nearest(torch.randn(500, 8), codebook).max() < 50


@pytest.mark.parametrize("make", [MAKE["vq2"], MAKE["ema"]])
def test_bfloat16_latents_are_searched_in_float32(make):
    quantizer = make().eval()
    quantizer.codebook.data.normal_()
    z = torch.randn(20, 8, 10, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        indices = quantizer.quantize(z).indices
    flat = z.movedim(1, -1).reshape(-1, 8)
    assert torch.equal(indices.flatten(), exact_indices(flat, quantizer.codebook))


@pytest.mark.parametrize("name", ["vq2_remap_3", "vq2_remap_extra"])
def test_remap_golden(name):
    args, g = golden(name)
    quantizer = VectorQuantizer2(**args, remap=USED)
    quantizer.embedding.weight.data.copy_(g["codebook"])
    assert torch.equal(quantizer(g["z"])[2][2], g["indices"])
    assert torch.equal(quantizer.remap_to_used(g["raw"]), g["remapped"])
    assert torch.equal(quantizer.unmap_to_all(g["remapped"]), g["unmapped"])
    close(quantizer.get_codebook_entry(g["indices"], (2, 5, 6, 8)), g["entry"])


def test_remap_shapes_random_and_refusals():
    quantizer = VectorQuantizer2(64, 8, 0.25, remap=USED)
    assert quantizer(torch.randn(2, 8, 5, 6))[2][2].shape == (60, 1)
    positions = quantizer.remap_to_used(torch.zeros(1, 500, dtype=torch.int64))
    assert positions.unique().tolist() == list(range(20))
    with pytest.raises(UsageError):
        VectorQuantizer2(64, 8, 0.25, remap=USED, unknown_index="none")
    with pytest.raises(UsageError):
        MAKE["vq2"]().unmap_to_all(positions)


def test_remap_leaves_the_callers_tensor_alone_and_stays_small():
    quantizer = VectorQuantizer2(64, 8, 0.25, remap=USED, unknown_index="extra")
    positions = torch.randint(21, (2, 5000))
    before = positions.clone()
    with Largest() as largest:
        quantizer.remap_to_used(quantizer.unmap_to_all(positions))
    assert torch.equal(positions, before)
    assert largest.elements <= 4 * positions.numel()


def test_ema_and_gumbel_honour_remap():
    ema = EMAVectorQuantizer(64, 8, 0.25, remap=USED, unknown_index="extra")
    z = torch.randn(2, 8, 5, 6)
    expected = ema.remap_to_used(ema.eval().quantize(z).indices).flatten()
    assert torch.equal(ema(z)[1]["encoding_indices"], expected) and expected.max() == 20

    gumbel = GumbelQuantize(8, 8, 64, kl_weight=1.0, remap=USED).eval()
    z_q, kl, (_, _, indices), logits = gumbel(1e4 * z, return_logits=True)
    assert logits.shape == (2, 20, 5, 6) and indices.max() < 20
    assert torch.equal(gumbel.get_codebook_entry(indices, (2, 5, 6, 8)), z_q)
    close(kl, torch.tensor(math.log(20)), rtol=1e-3)  # surest of one of 20, not of 64


def test_ema_golden():
    args, g = golden("ema")
    quantizer = EMAVectorQuantizer(**args)
    load(quantizer.embedding, g, "start.")
    for step in ("s0.", "s1.", "s2."):
        z = g[step + "z"].requires_grad_()
        z_q, figures = quantizer(z)
        ((z_q * g[step + "w"]).sum() + figures["loss/vq"]).backward()
        close(z_q, g[step + "z_q"]), close(z.grad, g[step + "grad_z"])
        close(figures["loss/vq"], g[step + "loss"])
        close(figures["perplexity"], g[step + "perplexity"])
        assert torch.equal(figures["encoding_indices"], g[step + "indices"])
        assert torch.equal(figures["encodings"].argmax(-1), g[step + "indices"])
        for name, value in quantizer.embedding.state_dict().items():
            close(value, g[step + name])
    z_q, figures = quantizer.eval()(g["eval.z"])
    close(z_q, g["eval.z_q"]), close(figures["loss/vq"], g["eval.loss"])
    assert torch.equal(figures["encoding_indices"], g["eval.indices"])


def test_ema_first_step_keeps_the_codebook_in_use():
    quantizer, z = EMAVectorQuantizer(1024, 4, 0.25), torch.randn(8, 4, 16, 16)
    first, second = quantizer(z)[1]["perplexity"], quantizer(z)[1]["perplexity"]
    assert second > 0.8 * first
    assert EmbeddingEMA(5, 2).cluster_size.tolist() == [1] * 5


def test_ema_moves_only_in_training_and_no_optimizer_sees_it():
    quantizer, z = MAKE["ema revived"](), torch.randn(2, 8, 5, 6)
    assert not list(quantizer.parameters())
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer.eval().quantize(z)
    quantizer.train().embedding.update = False
    quantizer.quantize(z)
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())
    quantizer.embedding.update = True
    quantizer.quantize(z)
    assert not torch.equal(quantizer.embedding.weight, before["embedding.weight"])


def test_ema_decodes_its_own_indices():
    quantizer, z = MAKE["ema"]().eval(), torch.randn(SHAPES["video"])
    z_q, figures = quantizer(z)
    entry = quantizer.get_codebook_entry(figures["encoding_indices"], (1, 3, 16, 16, 8))
    assert torch.equal(entry, z_q)
    with pytest.raises(KeyError):
        figures["no such key"]


@pytest.mark.parametrize("kind", [VectorQuantizer2, EMAVectorQuantizer])
def test_init_from_data_uses_the_codebook_from_the_first_step(kind):
    z = 3 + torch.randn(4, 8, 16, 16)
    bare, started = kind(256, 8, 0.25), kind(256, 8, 0.25, init_from_data=True)
    usage = [len(q.quantize(z).indices.unique()) / 256 for q in (bare, started)]
    assert usage[0] < 0.6 and usage[1] > 0.95


def test_init_from_data_happens_once_and_not_in_eval():
    quantizer, z = VectorQuantizer2(16, 8, 0.25, init_from_data=True), torch.randn(2, 2, 8, 8, 8)
    seen = [quantizer.codebook.detach().clone()]
    for training in (False, True, True):
        quantizer.train(training).quantize(z[len(seen) % 2])
        seen.append(quantizer.codebook.detach().clone())
    changed = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changed == [False, True, False]


@pytest.mark.parametrize(
    "make",
    [
        lambda **start: VectorQuantizer2(100, 8, 0.25, revive_after=5 * len(start), **start),
        lambda **start: EMAVectorQuantizer(
            *(100, 8, 0.25), decay=1.0, revive_after=5 * len(start), **start
        ),
        lambda **start: GumbelQuantize(8, 8, 100, **start),
    ],
    ids=["vq2", "ema", "gumbel"],
)
def test_a_codebook_from_elsewhere_is_not_started_over(make):
    elsewhere, quantizer = make(), make(init_from_data=True)
    quantizer.load_state_dict(elsewhere.state_dict())
    quantizer.quantize(torch.randn(2, 8, 8, 8))
    torch.testing.assert_close(quantizer.codebook, elsewhere.codebook)


def test_weights_of_another_module_are_no_start():
    both = torch.nn.ModuleDict({"codes": VectorQuantizer2(64, 8, 0.25, init_from_data=True)})
    both["layer"] = torch.nn.Linear(2, 2)
    layer = {f"layer.{k}": v for k, v in torch.nn.Linear(2, 2).state_dict().items()}
    both.load_state_dict(layer, strict=False)
    assert not both["codes"].initialized


def test_ema_averages_stay_wide_in_a_narrow_model():
    quantizer = EMAVectorQuantizer(2, 1, 0.25, decay=0.999).bfloat16()
    for _ in range(100):
        quantizer.quantize(torch.zeros(1, 1, 4, 4).bfloat16())
    sizes = quantizer.embedding.cluster_size
    assert sizes.min().item() == pytest.approx(0.999**100, rel=1e-4)
    assert sizes.dtype == torch.float32 and quantizer.codebook.dtype == torch.bfloat16
    assert quantizer.double().embedding.cluster_size.dtype == torch.float64


def test_gumbel_trains_the_codes_it_gave_though_backward_runs_under_autocast():
    quantizer = GumbelQuantize(8, 8, 1024, kl_weight=0.0)
    out = quantizer.quantize(torch.randn(4, 8, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        out.z_q.sum().backward()
    used = quantizer.codebook.grad.abs().sum(-1).nonzero().flatten()
    assert torch.equal(used, out.indices.unique())


def test_init_from_data_with_fewer_latents_than_codes():
    quantizer = VectorQuantizer2(256, 8, 0.25, init_from_data=True)
    assert quantizer.quantize(torch.randn(1, 8, 2, 3)).z_q.isfinite().all()
    assert len(quantizer.codebook.unique(dim=0)) == 256


@pytest.mark.parametrize("kind", [VectorQuantizer2, EMAVectorQuantizer])
def test_dead_codes_are_revived_after_their_time(kind):
    quantizer = kind(64, 8, 0.25, revive_after=3)
    if kind is EMAVectorQuantizer:
        quantizer.embedding.cluster_size.fill_(9)
    with torch.no_grad():
        quantizer._set_codes(torch.arange(1, 64), 100 + torch.randn(63, 8))
    z, usage = torch.randn(4, 8, 8, 8), []
    for _ in range(4):
        usage.append(len(quantizer.quantize(z).indices.unique()))
        assert quantizer.age.max() < 3
    assert usage[:3] == [1, 1, 1] and usage[3] > 40
    if kind is EMAVectorQuantizer:
        assert quantizer.embedding.cluster_size[1:].max() < 2


def golden_gumbel():
    args, g = golden("gumbel")
    quantizer = GumbelQuantize(**args)
    weights = {"proj.weight": "proj_weight", "proj.bias": "proj_bias", "embed.weight": "codebook"}
    quantizer.load_state_dict({k: g[v] for k, v in weights.items()})
    return quantizer, g


def test_gumbel_golden():
    quantizer, g = golden_gumbel()
    z = g["z"].requires_grad_()
    _, kl, _, logits = quantizer(z, return_logits=True)
    kl.backward()
    close(kl, g["kl"]), close(logits, g["logits"])
    torch.testing.assert_close(z.grad, g["grad_z_of_kl"], rtol=1e-5, atol=1e-10)
    grad = quantizer.proj.weight.grad
    torch.testing.assert_close(grad, g["grad_proj_weight_of_kl"], rtol=1e-4, atol=1e-10)
    close(quantizer.get_codebook_entry(g["indices_any"], (2, 4, 5, 8)), g["entry"])


def test_gumbel_eval_is_the_plain_argmax():
    quantizer, g = golden_gumbel()
    quantizer.use_vqinterface = False
    z_q, _, indices = quantizer.eval()(g["z"])
    assert torch.equal(indices, g["logits"].argmax(1))
    assert torch.equal(quantizer.decode(indices), z_q)


def test_gumbel_gradient_is_that_of_the_straight_through_softmax():
    quantizer, g = golden_gumbel()
    z, w = g["z"].double().requires_grad_(), torch.randn(2, 8, 4, 5).double()
    z_q = quantizer.double().eval()(z, temp=0.7)[0]
    ours = torch.autograd.grad((z_q * w).sum(), [z, quantizer.codebook])
    logits = quantizer.proj(z)
    soft = (logits / 0.7).softmax(1)
    hard = torch.nn.functional.one_hot(logits.argmax(1), 48).movedim(-1, 1).double()
    mixed = torch.einsum("bkhw,kd->bdhw", hard + soft - soft.detach(), quantizer.codebook)
    theirs = torch.autograd.grad((mixed * w).sum(), [z, quantizer.codebook])
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


@pytest.mark.parametrize("straight_through", [True, False])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_gumbel_in_blocks_is_the_formula_with_the_same_noise(straight_through, block, monkeypatch):
    monkeypatch.setattr("vqtok.quantizers.gumbel.BLOCK", block)
    quantizer = GumbelQuantize(8, 5, 24, straight_through, kl_weight=0.5, temp_init=0.7).double()
    z, w = torch.randn(2, 8, 3, 5).double().requires_grad_(), torch.randn(2, 5, 3, 5).double()
    torch.manual_seed(3)
    out = quantizer.quantize(z)
    ((out.z_q * w).sum() + out.loss).backward()
    ours = [z.grad, *(p.grad for p in quantizer.parameters())]

    torch.manual_seed(3)
    seed = int(torch.randint(2**62, ()))
    latents = z.detach().movedim(1, -1).flatten(0, 2)
    noise = torch.cat([noise for _, noise in _blocks(latents, 24, seed)])
    logits = quantizer.proj(z).movedim(1, -1)
    noisy = logits + noise.view_as(logits)
    assert torch.equal(out.indices, noisy.argmax(-1))
    mix = soft = (noisy / quantizer.temperature).softmax(-1)
    if straight_through:
        mix = torch.nn.functional.one_hot(out.indices, 24) + soft - soft.detach()
    z_q = (mix @ quantizer.codebook).movedim(-1, 1)
    q = logits.softmax(-1)
    kl = (q * torch.log(24 * q)).sum(-1).mean()
    close(out.z_q, z_q), close(out.terms["kl"], kl)
    theirs = torch.autograd.grad((z_q * w).sum() + 0.5 * kl, [z, *quantizer.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_gumbel_init_from_data_makes_the_likeliest_code_the_nearest():
    z = 3 + torch.randn(4, 8, 16, 16)
    quantizer = GumbelQuantize(8, 8, 256, init_from_data=True)
    first = quantizer.quantize(z)
    assert len(first.indices.unique()) > 0.8 * 256
    with torch.no_grad():
        flat = z.movedim(1, -1).reshape(-1, 8)
        likeliest = quantizer.eval().quantize(z).indices.flatten()
        assert (likeliest == exact_indices(flat, quantizer.codebook)).float().mean() > 0.999
    before = quantizer.codebook.detach().clone()
    quantizer.train().quantize(z)
    assert torch.equal(quantizer.codebook, before)
    with pytest.raises(UsageError):
        GumbelQuantize(8, 4, 16, init_from_data=True)


def test_gumbel_samples_its_softmax_and_mixes_without_straight_through():
    quantizer = GumbelQuantize(8, 8, 4, straight_through=False)
    z = torch.randn(1, 8, 1, 1).expand(1, 8, 200, 200)
    z_q, _, (_, _, indices), logits = quantizer(z, return_logits=True)
    seen = indices.flatten().bincount(minlength=4) / 40000
    torch.testing.assert_close(seen, logits[0, :, 0, 0].softmax(0), rtol=0, atol=0.02)
    assert not torch.equal(z_q, quantizer.decode(indices))


def test_gumbel_temperature_is_annealed_saved_and_settable():
    z = torch.randn(1, 8, 2, 2)
    quantizer = GumbelQuantize(8, 8, 16, temp_final=0.25, anneal_steps=2)
    seen = [quantizer.quantize(z).terms["temperature"].item() for _ in range(2)]
    resumed = GumbelQuantize(8, 8, 16, temp_final=0.25, anneal_steps=2)
    resumed.load_state_dict(quantizer.state_dict())
    assert resumed.temperature == 0.5
    seen += [resumed.quantize(z).terms["temperature"].item() for _ in range(2)]
    assert seen == [1.0, 0.5, 0.25, 0.25]
    assert quantizer.eval().quantize(z).terms["temperature"] == 0.5
    free = GumbelQuantize(8, 8, 16)
    free.temperature = 0.3
    assert free.quantize(z).terms["temperature"].item() == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["lfq_video", "lfq_warm", "lfq_projected", "lfq_two_codebooks"])
def test_lfq_golden(name):
    args, g = golden(name)
    quantizer = load(LFQ(**args), g)
    x = g["x"].requires_grad_()
    (quantized, indices, loss), terms = quantizer(x, return_loss_breakdown=True)
    ((quantized * g["w"]).sum() + loss).backward()
    assert torch.equal(indices, g["indices"])
    close(quantized, g["quantized"]), close(quantizer.indices_to_codes(indices), g["codes"])
    close(terms.per_sample_entropy, g["exact_per_sample_entropy"])
    close(terms.batch_entropy, g["exact_batch_entropy"])
    close(terms.commitment, g["commitment"])
    # The reference clamps its logarithms, which shows in its loss and, a little, in gradients.
    close(loss, g["entropy_aux_loss"], rtol=1e-3)
    torch.testing.assert_close(x.grad, g["grad_x"], rtol=1e-3, atol=1e-3)
    quantized, indices, loss = quantizer.eval()(x)
    assert torch.equal(indices, g["eval_indices"]) and loss == 0
    close(quantized, g["eval_quantized"])


def direct_entropies(x, inv_temperature, scale):
    """The formula as written, (n codebooks k) and all."""
    bits = x.shape[-1]
    patterns = torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1) & 1
    log_p = (2 * inv_temperature * x @ ((2.0 * patterns - 1) * scale).to(x.dtype).T).log_softmax(-1)
    per_sample = -(log_p.exp() * log_p).sum(-1).mean()
    mean = log_p.exp().mean(0)
    return per_sample, -(mean * mean.log()).sum(-1).mean()


@pytest.mark.parametrize("bits", [1, 5, 8])
@pytest.mark.parametrize("chunk", [1 << 22, 64])
def test_lfq_entropies_are_exact(bits, chunk, monkeypatch):
    monkeypatch.setattr("vqtok.quantizers.lfq.CHUNK", chunk)
    quantizer = LFQ(codebook_size=2**bits, num_codebooks=2, codebook_scale=0.5, inv_temperature=3.0)
    x = torch.randn(2, 30, 2 * bits, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 30) > 0.3
    ours = quantizer(x, return_loss_breakdown=True, mask=mask)[1][:2]
    theirs = direct_entropies(x[mask].reshape(-1, 2, bits), 3.0, 0.5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        ours_grad, theirs_grad = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (a, b))
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-9, atol=1e-9)


def test_lfq_diversity_works_near_uniform_use_of_many_codes():
    quantizer = LFQ(codebook_size=2**18, inv_temperature=1.0)
    x = (0.01 * torch.randn(1, 50, 18)).requires_grad_()
    entropy = quantizer(x, return_loss_breakdown=True)[1].batch_entropy
    assert entropy.item() == pytest.approx(18 * math.log(2), rel=1e-3)
    entropy.backward()
    assert (x.grad != 0).all()


def test_lfq_makes_neither_a_table_nor_subnormal_floats():
    quantizer = LFQ(codebook_size=2**16)
    z = (0.3 * torch.randn(1, 16, 32, 64)).requires_grad_()
    with Largest() as largest:
        quantizer.quantize(z).loss.backward()
    assert not largest.subnormal
    assert largest.elements < 2048 * 2**9  # n x k is 2048 * 2^16


def test_lfq_indices_come_from_the_sign():
    quantizer = LFQ(codebook_size=8)
    x = torch.tensor([[[0.0, 1e-30, -1e-30]]])
    assert quantizer(x).indices.item() == 0b010
    assert quantizer(x).quantized.tolist() == [[[-1, 1, -1]]]


def test_lfq_mask_of_nothing_is_no_loss():
    x = torch.randn(1, 4, 3, requires_grad=True)
    out = LFQ(codebook_size=8)(x, mask=torch.zeros(1, 4, dtype=torch.bool))
    out.entropy_aux_loss.backward()
    assert out.entropy_aux_loss == 0 and not x.grad.any()


def test_lfq_fraction_of_positions_is_never_none():
    quantizer = LFQ(codebook_size=8, frac_per_sample_entropy=0.01)
    assert quantizer(torch.randn(1, 4, 3)).entropy_aux_loss.isfinite()


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"codebook_size": 100},
        {"codebook_size": 1},
        {"dim": 8, "frac_per_sample_entropy": 0},
        {"codebook_size": 8, "num_codebooks": 2, "keep_num_codebooks_dim": False},
    ],
    ids=str,
)
def test_lfq_refuses(args):
    with pytest.raises(UsageError):
        LFQ(**args)


@pytest.mark.parametrize(
    "name", ["fsq_image", "fsq_video", "fsq_small", "fsq_projected", "fsq_two_codebooks"]
)
def test_fsq_golden(name):
    args, g = golden(name)
    quantizer = load(FSQ(**args), g)
    z = g["z"].requires_grad_()
    out, indices = quantizer(z)
    (out * g["w"]).sum().backward()
    assert indices.dtype == torch.int32 and torch.equal(indices, g["indices"])
    close(out, g["out"]), close(z.grad, g["grad_z"])
    close(quantizer.indices_to_codes(indices), g["codes"])
    for key, value in quantizer.named_parameters():
        close(value.grad, g[f"grad.{key}"])


def test_fsq_indices_survive_a_round_trip_at_every_level():
    for level in (*range(3, 257), 500):
        quantizer = FSQ((level, 3))
        codes = quantizer.implicit_codebook
        for dtype in (torch.float32, torch.bfloat16):
            back = quantizer.codes_to_indices(codes.to(dtype))
            assert back.tolist() == list(range(3 * level))
        out, indices = quantizer(torch.linspace(-6, 6, 8000)[None, :, None].expand(1, -1, 2))
        assert torch.equal(quantizer.indices_to_codes(indices), out)
        assert len((indices % level).unique()) == level


def test_fsq_default_codebook_survives_a_round_trip_at_every_index():
    quantizer = build(FSQSettings())
    indices = torch.arange(64000).view(1, 200, 320)
    codes = quantizer.decode(indices)
    assert torch.equal(quantizer.codes_to_indices(codes.movedim(1, -1)).long(), indices)
    assert torch.equal(quantizer.codes_to_indices(codes.bfloat16().movedim(1, -1)).long(), indices)


@pytest.mark.parametrize("levels", [(), [2, 3], (1,), (2**11, 2**10, 2**10)], ids=str)
def test_fsq_refuses(levels):
    with pytest.raises(UsageError):
        FSQ(levels)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuantizer2(8192, 4, 0.25, init_from_data=True, revive_after=1),
        lambda: EMAVectorQuantizer(8192, 4, 0.25, init_from_data=True, revive_after=1),
        lambda: GumbelQuantize(4, 4, 8192, init_from_data=True),
        lambda: GumbelQuantize(4, 4, 8192, straight_through=False),
        lambda: GumbelQuantize(4, 4, 65536).eval(),
        lambda: FSQ((8,) * 4),
    ],
    ids=["vq2", "ema", "gumbel", "gumbel mixing", "gumbel in eval", "fsq"],
)
def test_a_step_makes_nothing_of_size_n_by_k(make):
    z = torch.randn(1, 4, 32, 64, requires_grad=True)
    with Largest() as largest:
        quantizer = make()
        out = quantizer(z)
        out[0].sum().backward()
    assert largest.elements <= 2048 * 2048  # n x k is 2048 * 8192


def test_gumbel_lookup_makes_no_one_hot():
    quantizer = GumbelQuantize(8, 8, 1024)
    with Largest() as largest:
        quantizer.get_codebook_entry(torch.randint(1024, (4096,)), (1, 64, 64, 8))
    assert largest.elements <= 4096 * 8
