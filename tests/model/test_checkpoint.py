"""Tokenizer files: they rebuild the model, carry no pickle, and refuse damage in a sentence."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

import vqtok
from helpers import GOLDEN
from vqtok import config
from vqtok.errors import VqtokError
from vqtok.model import checkpoint
from vqtok.model.tokenizer import Tokenizer

HEADER = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION}
LAYOUTS = GOLDEN / "tokenizers"  # a file of each layout that was ever written, and what it gives
REFUSED = {"v1-lfq-encoder-norm": "its encoder ends in a norm"}
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
    quantizer = again.coder.quantizer.state_dict()
    for name, weight in tokenizer.coder.quantizer.state_dict().items():
        if name in tokenizer.coder.quantizer.fp16_keys:
            weight = weight.half().float()
        exact = name not in tokenizer.coder.quantizer.recomputed_keys
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
    save_file(weights, path, HEADER)
    with pytest.raises(VqtokError, match="holds no settings"):
        checkpoint.load(path)
    other = config.load(config.folder() / "fsq.toml", ["model.widths=[4, 8]"])
    sections = {"model": asdict(other.model), "quantizer": asdict(other.quantizer)}
    save_file(weights, path, HEADER | {name: json.dumps(s) for name, s in sections.items()})
    with pytest.raises(VqtokError, match="weights do not fit its settings"):
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


def layouts():
    return sorted(path.stem for path in LAYOUTS.glob("v*.safetensors"))


def noise(frames, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, frames, height, width), generator=generator).byte()


def test_every_layout_has_a_file():
    assert len(layouts()) >= 28
    assert {name.split("-")[0] for name in layouts()} == {"v1", f"v{checkpoint.VERSION}"}


@pytest.mark.parametrize("name", layouts())
def test_files_of_every_layout_give_the_tokens_that_they_gave(name):
    path = LAYOUTS / f"{name}.safetensors"
    if name in REFUSED:
        with pytest.raises(VqtokError, match=REFUSED[name]):
            checkpoint.load(path)
        return
    tokenizer = checkpoint.load(path)
    with safe_open(LAYOUTS / "expected.safetensors", "pt") as expected:
        assert tokenizer.fingerprint == expected.metadata()[name]
        indices = tokenizer.encode(noise(9, 32, 48, seed=0))
        assert torch.equal(indices, expected.get_tensor(f"{name} indices").long())
        video = tokenizer.decode(indices)[:, :, [0, -1], ::2, ::2]
        torch.testing.assert_close(
            video, expected.get_tensor(f"{name} video").float(), atol=1e-3, rtol=0
        )
        if f"{name} long indices" in expected.keys():  # noqa: SIM118 - over several key frames
            indices = tokenizer.encode(noise(145, 16, 16, seed=1))
            assert torch.equal(indices, expected.get_tensor(f"{name} long indices").long())


def test_training_settings_are_a_note_that_loading_does_not_read(saved):
    tokenizer, path = saved
    with safe_open(path, "pt") as file:
        metadata, weights = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    for note in ('{"no such setting": 1, "steps": -1}', "no JSON", None):
        changed = {**metadata, "training": note}
        save_file(weights, path, {k: v for k, v in changed.items() if v is not None})
        assert checkpoint.load(path).kind == tokenizer.kind
