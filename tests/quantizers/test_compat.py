"""The documented CogVideo quantizers: their signatures, their `remap` and the values they return.

A golden file holds the constructor arguments, inputs and weights of an original class, and what it
returned for them: outputs, losses and gradients.
"""

import inspect
import json
import math

import pytest
import torch
from safetensors import safe_open
from torch import nn

from helpers import GOLDEN
from helpers.quantizers import DIM, LargestTensor, assert_close
from vqtok.errors import UsageError
from vqtok.quantizers import (
    FSQ,
    LFQ,
    EMAVectorQuantizer,
    EmbeddingEMA,
    GumbelQuantize,
    VectorQuantizer2,
)

USED = str(GOLDEN / "used.npy")  # 20 of the ids 0..63
REMAP = "remap=None, unknown_index='random'"
SIGNATURES = {
    VectorQuantizer2: f"n_e, e_dim, beta, {REMAP}, sane_index_shape=False, legacy=True",
    VectorQuantizer2.forward: "z, temp=None, rescale_logits=False, return_logits=False",
    EMAVectorQuantizer: "n_embed, embedding_dim, beta, decay=0.99, eps=1e-05, "
    f"{REMAP}, loss_key='loss/vq'",
    EMAVectorQuantizer.forward: "z",
    EmbeddingEMA: "num_tokens, codebook_dim, decay=0.99, eps=1e-05",
    EmbeddingEMA.cluster_size_ema_update: "new_cluster_size",
    EmbeddingEMA.embed_avg_ema_update: "new_embed_avg",
    EmbeddingEMA.weight_update: "num_tokens",
    GumbelQuantize: "num_hiddens, embedding_dim, n_embed, straight_through=True, "
    f"kl_weight=0.0005, temp_init=1.0, use_vqinterface=True, {REMAP}",
    GumbelQuantize.forward: "z, temp=None, return_logits=False",
    VectorQuantizer2.get_codebook_entry: "indices, shape",
    VectorQuantizer2.remap_to_used: "inds",
    VectorQuantizer2.unmap_to_all: "inds",
    # None stands for the documented nn.Identity() and 100.0.
    LFQ: "*, dim=None, codebook_size=None, entropy_loss_weight=0.1, commitment_loss_weight=0.25, "
    "diversity_gamma=1.0, straight_through_activation=None, num_codebooks=1, "
    "keep_num_codebooks_dim=None, codebook_scale=1.0, frac_per_sample_entropy=1.0",
    LFQ.forward: "x, inv_temperature=None, return_loss_breakdown=False, mask=None",
    LFQ.indices_to_codes: "indices, project_out=True",
    FSQ: "levels, dim=None, num_codebooks=1, keep_num_codebooks_dim=None, scale=None",
    FSQ.forward: "z",
    FSQ.bound: "z, eps=0.001",
    FSQ.codes_to_indices: "zhat",
    FSQ.indices_to_codes: "indices, project_out=True",
}


def golden(name):
    """Return the constructor arguments and the tensors of a golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["args"]), tensors


def load_parameters(module, tensors, prefix="param."):
    """Load the tensors whose names have the prefix."""
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    module.load_state_dict(state)
    return module


def golden_gumbel():
    """Return a GumbelQuantize with the weights of the golden file, and its tensors."""
    args, g = golden("gumbel")
    quantizer = GumbelQuantize(**args)
    names = {"proj.weight": "proj_weight", "proj.bias": "proj_bias", "embed.weight": "codebook"}
    quantizer.load_state_dict({key: g[name] for key, name in names.items()})
    return quantizer, g


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_begin_with_the_documented_parameters(function):
    signature = inspect.signature(function)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(signature.replace(parameters=plain, return_annotation=signature.empty))
    assert text.removeprefix("(self, ").removeprefix("(").startswith(SIGNATURES[function])


def test_lfq_defaults_are_the_documented_ones():
    quantizer = LFQ(codebook_size=8)
    assert quantizer.inv_temperature == 100
    assert type(quantizer.activation) is nn.Identity


@pytest.mark.parametrize("kind", [VectorQuantizer2, EMAVectorQuantizer])
def test_vq2_and_ema_take_the_options_of_vqtok_by_keyword(kind):
    quantizer = kind(64, 8, 0.25, init_from_data=True, revive_after=3)
    assert quantizer.initialized is not None
    assert quantizer.revive_after == 3


def test_gumbel_takes_the_options_of_vqtok_by_keyword():
    quantizer = GumbelQuantize(
        8, 8, 16, False, temp_final=0.25, anneal_steps=2, init_from_data=True
    )
    assert quantizer.initialized is not None
    assert (quantizer.temp_final, quantizer.anneal_steps) == (0.25, 2)
    assert not quantizer.straight_through


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
    assert_close(z_q, g["z_q"])
    assert_close(loss, g["loss"])
    assert_close(z.grad, g["grad_z"])
    assert_close(quantizer.embedding.weight.grad, g["grad_codebook"])
    assert_close(quantizer.get_codebook_entry(indices, (2, 5, 6, 8)), g["entry"])
    assert quantizer.get_codebook_entry(indices).shape == (60, 8)
    assert_close(quantizer.eval()(g["z"])[1], g["loss"])


def test_vq2_looks_up_the_codes_of_a_video():
    quantizer, z = VectorQuantizer2(100, DIM, 0.25), torch.randn(1, DIM, 3, 16, 16)
    z_q, _, (_, _, indices) = quantizer(z)
    assert torch.equal(quantizer.get_codebook_entry(indices, (1, 3, 16, 16, DIM)), z_q)


@pytest.mark.parametrize("argument", [{"temp": 0.5}, {"return_logits": True}], ids=str)
def test_vq2_refuses_the_arguments_of_gumbel(argument):
    with pytest.raises(UsageError, match="no temperature and no logits"):
        VectorQuantizer2(100, DIM, 0.25)(torch.randn(1, DIM, 2, 2), **argument)


def test_ema_golden():
    args, g = golden("ema")
    quantizer = EMAVectorQuantizer(**args)
    load_parameters(quantizer.embedding, g, "start.")
    for step in ("s0.", "s1.", "s2."):
        z = g[step + "z"].requires_grad_()
        z_q, values = quantizer(z)
        ((z_q * g[step + "w"]).sum() + values["loss/vq"]).backward()
        assert_close(z_q, g[step + "z_q"])
        assert_close(z.grad, g[step + "grad_z"])
        assert_close(values["loss/vq"], g[step + "loss"])
        assert_close(values["perplexity"], g[step + "perplexity"])
        assert torch.equal(values["encoding_indices"], g[step + "indices"])
        assert torch.equal(values["encodings"].argmax(-1), g[step + "indices"])
        for name, value in quantizer.embedding.state_dict().items():
            assert_close(value, g[step + name])
    z_q, values = quantizer.eval()(g["eval.z"])
    assert_close(z_q, g["eval.z_q"])
    assert_close(values["loss/vq"], g["eval.loss"])
    assert torch.equal(values["encoding_indices"], g["eval.indices"])


def test_ema_looks_up_the_codes_of_a_video():
    quantizer, z = EMAVectorQuantizer(100, DIM, 0.25).eval(), torch.randn(1, DIM, 3, 16, 16)
    z_q, values = quantizer(z)
    codes = quantizer.get_codebook_entry(values["encoding_indices"], (1, 3, 16, 16, DIM))
    assert torch.equal(codes, z_q)
    with pytest.raises(KeyError):
        values["no such key"]


def test_gumbel_golden():
    quantizer, g = golden_gumbel()
    z = g["z"].requires_grad_()
    _, kl, _, logits = quantizer(z, return_logits=True)
    kl.backward()
    assert_close(kl, g["kl"])
    assert_close(logits, g["logits"])
    assert_close(z.grad, g["grad_z_of_kl"], atol=1e-10)
    grad = quantizer.proj.weight.grad
    assert_close(grad, g["grad_proj_weight_of_kl"], rtol=1e-4, atol=1e-10)
    assert_close(quantizer.get_codebook_entry(g["indices_any"], (2, 4, 5, 8)), g["entry"])


def test_gumbel_takes_the_most_likely_code_in_eval():
    quantizer, g = golden_gumbel()
    quantizer.use_vqinterface = False
    z_q, _, indices = quantizer.eval()(g["z"])
    assert torch.equal(indices, g["logits"].argmax(1))
    assert torch.equal(quantizer.decode(indices), z_q)


def test_gumbel_lookup_allocates_no_one_hot_matrix():
    quantizer = GumbelQuantize(8, 8, 1024)
    with LargestTensor() as largest:
        quantizer.get_codebook_entry(torch.randint(1024, (4096,)), (1, 64, 64, 8))
    assert largest.elements <= 4096 * 8


@pytest.mark.parametrize("name", ["lfq_video", "lfq_warm", "lfq_projected", "lfq_two_codebooks"])
def test_lfq_golden(name):
    args, g = golden(name)
    quantizer = load_parameters(LFQ(**args), g)
    x = g["x"].requires_grad_()
    (quantized, indices, loss), terms = quantizer(x, return_loss_breakdown=True)
    ((quantized * g["w"]).sum() + loss).backward()
    assert torch.equal(indices, g["indices"])
    assert_close(quantized, g["quantized"])
    assert_close(quantizer.indices_to_codes(indices), g["codes"])
    assert_close(terms.per_sample_entropy, g["exact_per_sample_entropy"])
    assert_close(terms.batch_entropy, g["exact_batch_entropy"])
    assert_close(terms.commitment, g["commitment"])
    # The original clamps its logarithms, which changes the loss and, slightly, the gradients.
    assert_close(loss, g["entropy_aux_loss"], rtol=1e-3)
    assert_close(x.grad, g["grad_x"], rtol=1e-3, atol=1e-3)
    quantized, indices, loss = quantizer.eval()(x)
    assert torch.equal(indices, g["eval_indices"]) and loss == 0
    assert_close(quantized, g["eval_quantized"])


@pytest.mark.parametrize(
    "name", ["fsq_image", "fsq_video", "fsq_small", "fsq_projected", "fsq_two_codebooks"]
)
def test_fsq_golden(name):
    args, g = golden(name)
    quantizer = load_parameters(FSQ(**args), g)
    z = g["z"].requires_grad_()
    out, indices = quantizer(z)
    (out * g["w"]).sum().backward()
    assert indices.dtype == torch.int32 and torch.equal(indices, g["indices"])
    assert_close(out, g["out"])
    assert_close(z.grad, g["grad_z"])
    assert_close(quantizer.indices_to_codes(indices), g["codes"])
    for key, value in quantizer.named_parameters():
        assert_close(value.grad, g[f"grad.{key}"])


@pytest.mark.parametrize("name", ["vq2_remap_3", "vq2_remap_extra"])
def test_remap_golden(name):
    args, g = golden(name)
    quantizer = VectorQuantizer2(**args, remap=USED)
    quantizer.embedding.weight.data.copy_(g["codebook"])
    assert torch.equal(quantizer(g["z"])[2][2], g["indices"])
    assert torch.equal(quantizer.remap_to_used(g["raw"]), g["remapped"])
    assert torch.equal(quantizer.unmap_to_all(g["remapped"]), g["unmapped"])
    assert_close(quantizer.get_codebook_entry(g["indices"], (2, 5, 6, 8)), g["entry"])


def test_remap_returns_a_column_of_indices():
    quantizer = VectorQuantizer2(64, 8, 0.25, remap=USED)
    assert quantizer(torch.randn(2, 8, 5, 6))[2][2].shape == (60, 1)


def test_remap_gives_unknown_ids_random_positions():
    quantizer = VectorQuantizer2(64, 8, 0.25, remap=USED)
    positions = quantizer.remap_to_used(torch.zeros(1, 500, dtype=torch.int64))
    assert positions.unique().tolist() == list(range(20))


def test_remap_refuses_a_wrong_unknown_index():
    with pytest.raises(UsageError, match="unknown_index must be"):
        VectorQuantizer2(64, 8, 0.25, remap=USED, unknown_index="none")


def test_a_quantizer_without_remap_refuses_to_map():
    with pytest.raises(UsageError, match="without remap"):
        VectorQuantizer2(64, 8, 0.25).unmap_to_all(torch.zeros(1, 5, dtype=torch.int64))


def test_remap_does_not_write_to_its_input_and_takes_little_memory():
    quantizer = VectorQuantizer2(64, 8, 0.25, remap=USED, unknown_index="extra")
    positions = torch.randint(21, (2, 5000))
    before = positions.clone()
    with LargestTensor() as largest:
        quantizer.remap_to_used(quantizer.unmap_to_all(positions))
    assert torch.equal(positions, before)
    assert largest.elements <= 4 * positions.numel()


def test_ema_returns_remapped_indices():
    quantizer = EMAVectorQuantizer(64, 8, 0.25, remap=USED, unknown_index="extra").eval()
    z = torch.randn(2, 8, 5, 6)
    expected = quantizer.remap_to_used(quantizer.encode(z)).flatten()
    assert torch.equal(quantizer(z)[1]["encoding_indices"], expected)
    assert expected.max() == 20


def test_gumbel_chooses_among_the_used_codes_only():
    quantizer = GumbelQuantize(8, 8, 64, kl_weight=1.0, remap=USED).eval()
    z = 1e6 * torch.randn(2, 8, 5, 6)
    z_q, kl, (_, _, indices), logits = quantizer(z, return_logits=True)
    assert logits.shape == (2, 20, 5, 6) and indices.max() < 20
    assert torch.equal(quantizer.get_codebook_entry(indices, (2, 5, 6, 8)), z_q)
    assert_close(kl, torch.tensor(math.log(20)), rtol=1e-3)  # certain of one of 20 codes, not of 64
