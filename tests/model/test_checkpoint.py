"""Tokenizer files: they rebuild the model, carry no pickle, and refuse damage in a sentence."""

import pytest
import torch
from safetensors.torch import load, load_file, save_file

import vqtok
from vqtok import config
from vqtok.errors import VqtokError
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer

SMALL = ["model.widths=[8, 16]", "model.encoder_blocks=[1, 1]", "model.decoder_blocks=[1, 1]"]
SMALL += ["model.predictor_blocks=1"]


@pytest.fixture(params=config.QUANTIZERS)
def saved(request, tmp_path):
    """A tokenizer, and the file it was saved to."""
    torch.manual_seed(0)
    settings = config.load(config.folder() / f"{request.param}.toml", SMALL)
    tokenizer = Tokenizer(settings.model, settings.quantizer).eval()
    checkpoint.save(tmp_path / "tokenizer.safetensors", tokenizer, settings, step=7)
    return tokenizer, tmp_path / "tokenizer.safetensors"


def test_a_file_rebuilds_its_model(saved):
    tokenizer, path = saved
    again = checkpoint.load(path)
    clip = torch.rand(1, 3, 5, 16, 16)
    assert again.kind == tokenizer.kind
    assert not again.training
    one, two = (t.encoder(clip) for t in (tokenizer, again))
    torch.testing.assert_close(one, two, atol=1e-2, rtol=1e-2)  # convolutions are kept in float16
    quantizer = again.quantizer.state_dict()
    for name, weight in tokenizer.quantizer.state_dict().items():
        if name in tokenizer.quantizer.fp16_keys:
            weight = weight.half().float()
        exact = name not in tokenizer.quantizer.recomputed_keys
        torch.testing.assert_close(
            quantizer[name], weight, **dict.fromkeys(("atol", "rtol"), 0 if exact else 1e-2)
        )


def test_the_fingerprint_is_that_of_the_weights(saved, tmp_path):
    _, path = saved
    first = checkpoint.load(path).fingerprint
    assert len(first) == 64
    assert checkpoint.load(path).fingerprint == first
    weights = load_file(path)
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1
    assert checkpoint.fingerprint(weights) != first


def test_damage_is_told_in_a_sentence(saved, tmp_path):
    _, path = saved
    whole = path.read_bytes()
    weights = load(whole)  # load_file would map the file that is overwritten below
    path.write_bytes(whole[:-100])
    with pytest.raises(VqtokError, match=f"{path} is damaged"):
        checkpoint.load(path)
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(VqtokError, match="is damaged or no tokenizer"):
        checkpoint.load(path)
    save_file(weights, path, {"format": "something else"})
    with pytest.raises(VqtokError, match="not a vqtok tokenizer"):
        checkpoint.load(path)
    save_file(weights, path, checkpoint.FORMAT)
    with pytest.raises(VqtokError, match="no configuration"):
        checkpoint.load(path)
    other = config.load(config.folder() / "fsq.toml", ["model.widths=[4, 8]"])
    save_file(weights, path, checkpoint.FORMAT | {"config": other.to_json()})
    with pytest.raises(VqtokError, match="does not fit its own configuration"):
        checkpoint.load(path)


def test_an_unknown_name_is_told_with_the_names_there_are(tmp_path):
    with pytest.raises(VqtokError, match=f"no such tokenizer.*{vqtok.DEFAULT}"):
        vqtok.load(tmp_path / "none.safetensors")


def test_the_bundled_tokenizer_is_what_it_says():
    tokenizer = vqtok.load()
    assert tokenizer.kind == "ema"
    assert tokenizer.codebook_size == 64000
    assert tokenizer.stride == (4, 8, 8)
    folder = checkpoint.BUNDLED
    assert (folder / f"{vqtok.DEFAULT}.safetensors").stat().st_size <= 20_000_000
    assert tokenizer.fingerprint in (folder / f"{vqtok.DEFAULT}.md").read_text()
