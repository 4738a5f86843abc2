"""Tokenizer files: saving and loading, damaged files, and every layout that was ever written."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

import vqtok
from helpers import GOLDEN
from helpers.tokenizers import small_settings
from vqtok import config
from vqtok.encoding import ALL_TOKENS, Rate
from vqtok.errors import UsageError, VqtokError
from vqtok.model import checkpoint
from vqtok.model.initialization import init_from_data
from vqtok.model.tokenizer import Tokenizer
from vqtok.settings import QUANTIZERS

HEADER = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION}
LAYOUTS = GOLDEN / "tokenizers"
NAMES = sorted(path.stem for path in LAYOUTS.glob("v*.safetensors"))
REFUSED = {"v1-lfq-encoder-norm": "its encoder ends in a norm"}


@pytest.fixture(params=QUANTIZERS)
def saved(request, tmp_path):
    """Return a tokenizer of each kind and the file that it was saved to."""
    torch.manual_seed(0)
    settings = small_settings(request.param, "model.predictor_blocks=1")
    tokenizer = Tokenizer(settings.model, settings.quantizer).eval()
    path = tmp_path / "tokenizer.safetensors"
    checkpoint.save(path, tokenizer, settings, step=7)
    return tokenizer, path


def test_a_saved_tokenizer_is_restored(saved):
    tokenizer, path = saved
    loaded = checkpoint.load(path)
    assert loaded.kind == tokenizer.kind
    assert not loaded.training
    clip = torch.rand(1, 3, 5, 16, 16)
    z, expected = loaded.encoder(clip), tokenizer.encoder(clip)
    torch.testing.assert_close(z, expected, atol=1e-2, rtol=1e-2)  # convolutions are in float16
    quantizer, original = loaded.coder.quantizer, tokenizer.coder.quantizer
    for name, weight in original.state_dict().items():
        weight = weight.half().float() if name in original.fp16_keys else weight
        tolerance = 1e-2 if name in original.recomputed_keys else 0
        restored = quantizer.state_dict()[name]
        torch.testing.assert_close(restored, weight, atol=tolerance, rtol=tolerance)


def test_the_fingerprint_is_that_of_the_weights(saved):
    _, path = saved
    fingerprint = checkpoint.load(path).fingerprint
    assert len(fingerprint) == 64
    assert checkpoint.load(path).fingerprint == fingerprint
    weights = load_file(path)
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1
    assert checkpoint.fingerprint(weights) != fingerprint


def test_a_damaged_file_is_refused(saved):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VqtokError, match=f"{path} is damaged"):
        checkpoint.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(VqtokError, match="is damaged or not a tokenizer file"):
        checkpoint.load(path)


def test_a_file_with_wrong_metadata_is_refused(saved):
    _, path = saved
    weights = load(path.read_bytes())  # load_file would map the file that is overwritten below
    save_file(weights, path, {"format": "something else"})
    with pytest.raises(VqtokError, match="not a vqtok tokenizer"):
        checkpoint.load(path)
    save_file(weights, path, HEADER)
    with pytest.raises(VqtokError, match="has no settings"):
        checkpoint.load(path)
    other = config.load(config.folder() / "fsq.toml", ["model.widths=[4, 8]"])
    sections = {"model": asdict(other.model), "quantizer": asdict(other.quantizer)}
    save_file(weights, path, HEADER | {name: json.dumps(s) for name, s in sections.items()})
    with pytest.raises(VqtokError, match="weights do not fit its settings"):
        checkpoint.load(path)


def test_training_settings_are_not_read(saved):
    tokenizer, path = saved
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load(path.read_bytes())
    for settings in ('{"no such setting": 1, "steps": -1}', "not JSON", None):
        changed = {**metadata, "training": settings}
        save_file(weights, path, {k: v for k, v in changed.items() if v is not None})
        assert checkpoint.load(path).kind == tokenizer.kind


def test_the_error_for_an_unknown_tokenizer_lists_the_bundled_ones(tmp_path):
    with pytest.raises(VqtokError, match=f"no such tokenizer.*{vqtok.DEFAULT}"):
        vqtok.load(tmp_path / "none.safetensors")


def test_the_bundled_tokenizer_is_as_documented():
    tokenizer = vqtok.load()
    assert tokenizer.kind == "ema"
    assert (tokenizer.codebook_size, tokenizer.stages) == (16384, 2)
    assert tokenizer.stride == (4, 8, 8)
    folder = checkpoint.BUNDLED
    assert (folder / f"{vqtok.DEFAULT}.safetensors").stat().st_size <= 32_000_000
    assert tokenizer.fingerprint in (folder / f"{vqtok.DEFAULT}.md").read_text()


def random_uint8_video(frames, height, width, seed):
    """Return the video (1 3 t h w) that the expected indices of the golden files are of."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, frames, height, width), generator=generator).byte()


def test_there_are_golden_files_of_every_version():
    assert len(NAMES) >= 28
    assert {name.split("-")[0] for name in NAMES} == {"v1", f"v{checkpoint.VERSION}"}


def test_the_readme_describes_every_golden_file():
    text = (LAYOUTS / "README.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(REFUSED)))
def test_a_file_of_every_layout_gives_the_same_tokens_and_video_as_when_it_was_written(name):
    tokenizer = checkpoint.load(LAYOUTS / f"{name}.safetensors")
    with safe_open(LAYOUTS / "expected.safetensors", "pt") as file:
        fingerprint = file.metadata()[name]
        expected = {key: file.get_tensor(key) for key in file.keys() if key.startswith(f"{name} ")}  # noqa: SIM118
    assert tokenizer.fingerprint == fingerprint
    indices = tokenizer.encode(random_uint8_video(9, 32, 48, seed=0))
    assert torch.equal(indices, expected[f"{name} indices"].long())
    video = tokenizer.decode(indices)[:, :, [0, -1], ::2, ::2]
    torch.testing.assert_close(video, expected[f"{name} video"].float(), atol=1e-3, rtol=0)
    if tokenizer.coder.predictor is not None:  # over several key frames
        indices = tokenizer.encode(random_uint8_video(145, 16, 16, seed=1))
        assert torch.equal(indices, expected[f"{name} long indices"].long())


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_cannot_be_built_is_refused(name):
    with pytest.raises(VqtokError, match=REFUSED[name]):
        checkpoint.load(LAYOUTS / f"{name}.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"model": []},
        {"quantizer": "ema"},
        {"quantizer": None},
        {"model": {"encoder_blocks": 3}},
        {"model": {"encoder_blocks": "ab"}},
        {"quantizer": {"kind": "ema", "absolute_codes": 8}},
        {"quantizer": {"kind": "ema", "absolute_codes": "x", "codebook_size": 32}},
        {"quantizer": {"kind": "vq2", "project": True}},
    ],
    ids=str,
)
def test_damaged_settings_of_version_1_are_refused(change, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    with safe_open(LAYOUTS / "v1-ema-0.1.0.safetensors", "pt") as file:
        metadata, weights = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["config"]) | change
    save_file(weights, path, metadata | {"config": json.dumps(settings)})
    with pytest.raises(VqtokError, match=f"cannot load {path}") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["vq2", "ema"])
def test_a_tokenizer_with_stages_is_restored(kind, tmp_path):
    torch.manual_seed(0)
    settings = small_settings(
        *(kind, "model.predictor_blocks=1", "model.intra_share=0.25", "quantizer.stages=2"),
        *("quantizer.codebook_size=64", "quantizer.dim=8"),
    )
    trained = Tokenizer(settings.model, settings.quantizer)
    clip = random_uint8_video(17, 32, 48, seed=0)
    init_from_data(trained, clip)
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    checkpoint.save(paths[0], trained, settings, step=1)
    first = checkpoint.load(paths[0])
    checkpoint.save(paths[1], first, settings, step=1)  # its weights are rounded to float16
    second = checkpoint.load(paths[1])
    assert second.stages == 2
    assert second.fingerprint == first.fingerprint
    torch.testing.assert_close(second.coder.price, trained.coder.price, rtol=1e-3, atol=0)
    assert not second.coder.quantizer.codebook[::64].any()
    for rate in (ALL_TOKENS, Rate(price=1.0)):
        indices = first.encode(clip, rate)
        assert indices.shape == (1, 5, 4, 6, 2)
        assert indices.any()
        assert torch.equal(second.encode(clip, rate), indices)
        assert torch.equal(second.decode(indices), first.decode(indices))


@pytest.mark.parametrize("kind", ["vq2", "ema"])
def test_a_file_without_the_setting_stages_has_a_plain_codebook(kind, tmp_path):
    settings = small_settings(
        kind, "quantizer.stages=0", "quantizer.codebook_size=64", "quantizer.dim=8"
    )
    tokenizer, path = Tokenizer(settings.model, settings.quantizer), tmp_path / "t.safetensors"
    checkpoint.save(path, tokenizer, settings, step=1)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load(path.read_bytes())
    assert "coder.price" not in weights
    quantizer = json.loads(metadata["quantizer"])
    assert quantizer.pop("stages") == 0
    save_file(weights, path, metadata | {"quantizer": json.dumps(quantizer)})
    loaded = checkpoint.load(path)
    assert (loaded.stages, loaded.coder.quantizer.zero_code, loaded.coder.price) == (1, False, None)


def test_several_processes_do_not_share_a_gpu(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="torchrun started 2 processes, but this machine has 1 "):
        checkpoint.load_for_inference(vqtok.DEFAULT, "cuda", None)
