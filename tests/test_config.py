"""Settings are checked once, and every mistake is named with what would have been right."""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from vqtok import config
from vqtok.errors import UsageError, VqtokError


@pytest.mark.parametrize("kind", config.QUANTIZERS)
def test_every_quantizer_has_a_short_config(kind):
    path = config.folder() / f"{kind}.toml"
    settings = config.load(path)
    assert settings.quantizer.kind == kind
    assert len(path.read_text().splitlines()) <= 15
    assert config.from_json(settings.to_json(), "here") == settings


def test_overrides_are_read_as_toml_or_plain_words():
    settings = config.load(
        config.folder() / "fsq.toml",
        ["train.steps=7", "quantizer.levels=[5, 5]", "model.stride=8x8x8", "train.dtype=float32"],
    )
    assert settings.train.steps == 7
    assert settings.quantizer.levels == (5, 5)
    assert settings.model.strides == (8, 8, 8)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.stepz=7", "unknown key train.stepz; the keys there are steps, batch_size"),
        ("quantizer.beta=1", "unknown key quantizer.beta; the keys there are kind, levels"),
        ("trane.steps=7", "unknown key trane; the keys there are quantizer, model, train"),
        ("train.steps=many", "train.steps: .*integer.*, not 'many'"),
        ("train.steps=0", "train.steps: .*greater than 0, not 0"),
        ("train.seed=4294967296", "train.seed: .*less than 4294967296, not 4294967296"),
        ("quantizer.kind=vq3", "quantizer.kind must be one of vq2, ema, gumbel, lfq, fsq"),
        ("model.stride=3x8x8", "model.stride: .*'4x8x8'"),
        ("steps=7", "write section.key=value"),
        ("train.steps", "write section.key=value"),
        ("train.steps.now=7", "."),
    ],
)
def test_a_wrong_override_is_explained(override, sentence):
    with pytest.raises(UsageError, match=sentence):
        config.load(config.folder() / "fsq.toml", [override])


def test_files_that_are_no_config_are_explained(tmp_path):
    with pytest.raises(UsageError, match="no such config file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[quantizer")
    with pytest.raises(UsageError, match=r"bad\.toml is not valid TOML"):
        config.load(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(UsageError, match="quantizer"):
        config.load(tmp_path / "empty.toml")
    with pytest.raises(VqtokError, match="holds no configuration"):
        config.from_json('{"quantizer": 3}', "x.safetensors")


def test_every_setting_is_in_the_manual():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    kinds = get_args(get_args(config.QuantizerSettings)[0])
    for section in (config.TrainSettings, config.ModelSettings, *kinds):
        for field in fields(section):
            assert f"`{field.name}`" in text, f"{section.__name__}.{field.name}"
