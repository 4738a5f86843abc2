"""Forged tokenizer files: refused in one sentence, before anything of their size is built."""

import json
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from helpers import GOLDEN
from helpers.tokenizers import small_settings
from vqtok.errors import VqtokError
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer
from vqtok.settings import QUANTIZERS

LAYOUTS = GOLDEN / "tokenizers"
SOURCES = {f"v2-{kind}": "quantizer" for kind in QUANTIZERS} | {"v1-ema-0.1.0": "config"}


def read(name):
    """Return the metadata and the weights of a golden file."""
    with safe_open(LAYOUTS / f"{name}.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def refused(path, metadata, weights, message):
    """Write a file that must be refused in a short sentence that names it, with nothing built."""

    def build(*settings):
        assert torch.get_default_device().type == "meta"
        return Tokenizer(*settings)

    save_file(weights, path, metadata)
    with (
        patch.object(checkpoint, "Tokenizer", build),
        pytest.raises(VqtokError, match=message) as caught,
    ):
        checkpoint.load(path)
    text = str(caught.value)
    assert str(path) in text and text.isprintable() and len(text) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"encoder_blocks": [10**9, 1]}),
        ("model", {"decoder_blocks": [1, 10**9]}),
        ("model", {"predictor_blocks": 10**9}),
        ("model", {"widths": [10**6, 8]}),
        ("model", {"keyframe_interval": 2**31}),
        ("model", {"\x1b[31m" + "k" * 10**5: 1}),
        ("quantizer", {"codebook_size": 10**9}),
        ("quantizer", {"dim": 10**19}),
        ("quantizer", {"stages": 5}),
        ("quantizer", {"revive_after": 2**63}),
        ("quantizer", {"beta": float("nan")}),
        ("quantizer", {"kind": "\x1b[31m"}),
        ("quantizer", {"kind": "fsq", "levels": [3] * 10**5}),
        ("quantizer", {"kind": "fsq", "levels": [2000, 2000]}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_out_of_range_are_refused(section, change, tmp_path):
    metadata, weights = read("v2-ema")
    settings = json.loads(metadata[section])
    settings = change if change.get("kind") == "fsq" else settings | change
    metadata[section] = json.dumps(settings)
    refused(tmp_path / "t.safetensors", metadata, weights, "cannot load")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "9" * 5000, "9" * 100, '{"a":' * 10**5, '"x"', "", "{}", "NaN"]
)
@pytest.mark.parametrize("name", ["v2-ema", "v1-ema-0.1.0"])
def test_settings_that_are_no_object_are_refused(name, text, tmp_path):
    metadata, weights = read(name)
    refused(tmp_path / "t.safetensors", metadata | {SOURCES[name]: text}, weights, "cannot load")


def test_a_file_without_weights_builds_nothing(tmp_path):
    metadata, _ = read("v2-ema")
    # A codebook of 32 GiB: it would take minutes and more memory than there is.
    quantizer = json.loads(metadata["quantizer"]) | {"codebook_size": 2**21, "dim": 4096}
    metadata["quantizer"] = json.dumps(quantizer)
    refused(tmp_path / "t.safetensors", metadata, {}, "the weights do not fit its settings")


@pytest.mark.parametrize("name", SOURCES)
def test_every_weight_is_compared_with_the_settings(name, tmp_path):
    metadata, weights = read(name)
    path = tmp_path / "t.safetensors"
    unfit = "the weights do not fit its settings"
    some = [n for i, n in enumerate(weights) if i % 3 == 0 or "quantizer" in n or "price" in n]
    for key in some:
        tensor = weights[key]
        wider = torch.cat([tensor.reshape(1, -1)] * 2)
        refused(path, metadata, weights | {key: wider}, unfit)
        other = tensor.int() if tensor.is_floating_point() else tensor.float()
        refused(path, metadata, weights | {key: other}, unfit)
        if tensor.is_floating_point():
            for value in (float("nan"), float("inf")):
                damaged = tensor.clone()
                damaged.view(-1)[-1] = value
                refused(path, metadata, weights | {key: damaged}, "hold NaN or infinity")
    refused(path, metadata, weights | {"more": torch.ones(1)}, unfit)
    missing = {k: v for k, v in weights.items() if k != "encoder.0.weight"}
    refused(path, metadata, missing, unfit)


def test_a_projection_of_a_forged_size_is_not_computed(tmp_path):
    metadata, weights = read("v1-vq2-normalize-project")
    weights["quantizer.embedding.weight"] = torch.ones(100_000, 1)
    weights["quantizer.projection.weight"] = torch.ones(100_000, 1)
    refused(tmp_path / "t.safetensors", metadata, weights, "projected codebook is too large")


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_equal_tokenizers_are_saved_as_equal_bytes(kind, tmp_path):
    settings = small_settings(kind, "model.predictor_blocks=1")
    tokenizer = Tokenizer(settings.model, settings.quantizer)
    paths = [tmp_path / f"{i}.safetensors" for i in range(5)]
    for path in paths:
        checkpoint.save(path, tokenizer, settings, step=7)
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("name", ["n" * 5000, "nul\0", "."])
def test_a_name_that_no_file_has_is_explained(name, tmp_path):
    with pytest.raises(VqtokError, match="no such tokenizer file"):
        checkpoint.load(tmp_path / name)
