"""Settings: TOML files and overrides, messages for mistakes, names of earlier versions."""

import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from vqtok import config
from vqtok.errors import UsageError, VqtokError
from vqtok.settings import QUANTIZERS, ModelSettings, QuantizerSettings, TrainSettings

# A value for each renamed setting that is not its default.
OLD_VALUES = {
    "quantizer.absolute_share": 0.5,
    "quantizer.data_start": False,
    "model.key_every": 7,
    "train.turn": True,
    "train.zoom": 2.0,
    "train.recolour": 0.5,
    "train.origin": "ema-4x8x8-64k",
    "train.start_clips": 5,
    "train.log_weight": 0.5,
}
every_renamed = pytest.mark.parametrize(("old", "new"), config.RENAMED.items())


def get(settings, name):
    """Return the value of `section.key`."""
    section, key = name.split(".")
    return getattr(getattr(settings, section), key)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_every_quantizer_has_a_short_config(kind):
    path = config.folder() / f"{kind}.toml"
    settings = config.load(path)
    assert settings.quantizer.kind == kind
    assert len(path.read_text().splitlines()) <= 15
    assert config.from_json(settings.to_json(), "a file") == settings


def test_overrides_are_toml_values_or_plain_words():
    settings = config.load(
        config.folder() / "fsq.toml",
        ["train.steps=7", "quantizer.levels=[5, 5]", "model.stride=8x8x8", "train.dtype=float32"],
    )
    assert settings.train.steps == 7
    assert settings.quantizer.levels == (5, 5)
    assert settings.model.strides == (8, 8, 8)


@pytest.mark.parametrize(
    ("override", "message"),
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
        ("train.steps.now=7", "train.steps: "),
    ],
)
def test_a_wrong_override_is_explained(override, message):
    with pytest.raises(UsageError, match=message):
        config.load(config.folder() / "fsq.toml", [override])


def test_an_override_of_a_key_inside_a_value_is_explained():
    with pytest.raises(UsageError, match=r"train\.steps\.now=7: steps is a value, not a section"):
        config.load(config.folder() / "fsq.toml", ["train.steps=3", "train.steps.now=7"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "missing.toml: no such file"),
        ("bad.toml", "[quantizer", r"bad\.toml is not valid TOML"),
        ("empty.toml", "", "quantizer"),
    ],
)
def test_a_file_that_is_no_config_is_explained(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        config.load(tmp_path / name)


@pytest.mark.parametrize("text", ['{"quantizer": 3}', "[]", "not JSON"])
def test_json_that_is_no_config_is_explained(text):
    with pytest.raises(VqtokError, match=r"x\.safetensors is not a vqtok configuration"):
        config.from_json(text, "x.safetensors")


@every_renamed
def test_json_with_the_old_name_of_a_setting_is_read(old, new):
    settings = json.loads(config.load(config.folder() / "ema.toml").to_json())
    (section, key), (new_section, new_key) = old.split("."), new.split(".")
    assert settings[new_section].pop(new_key) != OLD_VALUES[old]
    settings[section][key] = OLD_VALUES[old]
    assert get(config.from_json(json.dumps(settings), "a file"), new) == OLD_VALUES[old]


@every_renamed
def test_an_override_with_the_old_name_of_a_setting_is_refused(old, new):
    override = f"{old}={json.dumps(OLD_VALUES[old])}"
    with pytest.raises(UsageError, match=f"{old} is now called {new}$"):
        config.load(config.folder() / "ema.toml", [override])


@every_renamed
def test_a_toml_file_with_the_old_name_of_a_setting_is_refused(old, new, tmp_path):
    path = tmp_path / "old.toml"
    path.write_text(f'quantizer.kind = "ema"\n{old} = {json.dumps(OLD_VALUES[old])}\n')
    with pytest.raises(UsageError, match=f"old.toml: {old} is now called {new}$"):
        config.load(path)


def test_every_setting_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    kinds = get_args(get_args(QuantizerSettings)[0])
    for section in (TrainSettings, ModelSettings, *kinds):
        for field in fields(section):
            assert f"`{field.name}`" in text, f"{section.__name__}.{field.name}"


def test_a_section_that_is_not_an_object_is_refused():
    text = '{"quantizer": {"kind": "ema", "absolute_share": 0.1}, "model": 3}'
    with pytest.raises(VqtokError, match="here is not a vqtok configuration"):
        config.from_json(text, "here")
