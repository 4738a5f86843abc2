"""Settings from a TOML file and `section.key=value` overrides, or from the JSON of a run."""

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from vqtok.errors import UsageError, VqtokError
from vqtok.settings import QUANTIZERS, Config, QuantizerSettings
from vqtok.untrusted import parse_json, parse_toml, quote, read_text, shorten

T = TypeVar("T")
MAX_TOML = 2**16  # bytes

# Settings that were renamed. Files written with an old name are still read; TOML files and
# overrides that use one are refused, and the error gives the new name.
RENAMED = {
    "quantizer.absolute_share": "model.intra_share",
    "quantizer.data_start": "quantizer.init_from_data",
    "model.key_every": "model.keyframe_interval",
    "train.turn": "train.flip",
    "train.zoom": "train.random_scale",
    "train.recolour": "train.color_jitter",
    "train.origin": "train.init_from",
    "train.start_clips": "train.init_clips",
    "train.log_weight": "train.log_mse_weight",
}


def folder() -> Path:
    """Return the folder of the configs: in an installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    return next(f for f in (here / "configs", here.parent / "configs") if f.is_dir())


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides (TOML values or plain words).

    Raises UsageError for a wrong file, key or value; the message lists the valid keys.
    """
    try:
        settings = parse_toml(read_text(path, MAX_TOML))
    except VqtokError as error:  # such as a file that does not exist
        raise UsageError(str(error)) from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _set(settings, override)
    return validate(Config, settings, str(path))


def read_json(path: Path) -> Config:
    """Read a file of what `Config.to_json` wrote; errors as in `from_json`."""
    return from_json(read_text(path), str(path))


def from_json(text: str, origin: str) -> Config:
    """Read what `Config.to_json` wrote, in this version or an earlier one.

    origin: the file's name for error messages. Raises VqtokError if the text is not a config.
    """
    try:
        settings = parse_json(text)
        if not isinstance(settings, dict):
            raise UsageError(f"{origin}: not a JSON object")
        rename_keys(settings)
        return validate(Config, settings, origin)
    except ValueError as error:
        reason = str(error).removeprefix(f"{origin}: ")
        raise VqtokError(f"{origin} is not a vqtok configuration: {reason}") from None


def rename_keys(settings: dict[str, Any]) -> None:
    """Rename the keys of earlier versions in place."""
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        source, target = settings.get(section), settings.get(new_section, {})
        # Sections that are not objects are left for validation to refuse.
        if isinstance(source, dict) and isinstance(target, dict) and key in source:
            settings[new_section] = target | {new_key: source.pop(key)}


def _set(settings: dict[str, Any], override: str) -> None:
    option = f"--set {shorten(override)}"
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not sections:
        raise UsageError(f"{option}: write section.key=value, such as train.steps=1000")
    try:
        value = parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise UsageError(f"{option}: {shorten(section)} is a value, not a section")
    settings[name] = value


def validate(kind: type[T], settings: Any, origin: str) -> T:
    """Return the settings as a `Config` or a `TokenizerConfig`; UsageError for what is wrong."""
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        raise UsageError(f"{origin}: {_explain(error.errors()[0], settings)}") from None


def _explain(error: Any, settings: Any) -> str:
    """Return a sentence for pydantic's first error."""
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["quantizer"] and path[1:2] and path[1] in QUANTIZERS:
        del path[1]  # pydantic puts the kind there; users do not write it
    name = shorten(".".join(path))
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if name in RENAMED:
            return f"{name} is now called {RENAMED[name]}"
        return f"unknown key {name}; the keys there are {', '.join(_keys(path[:-1], settings))}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{name}.kind must be one of {', '.join(QUANTIZERS)}"
    if error["type"] == "missing":
        return f"{name} is missing"
    return f"{name}: {error['msg'].lower()}, not {quote(error['input'])}"


def _keys(path: list[str], settings: Any) -> list[str]:
    """Return the valid keys of a section."""
    if path == ["quantizer"]:
        kind = settings["quantizer"].get("kind")
        choices = get_args(get_args(QuantizerSettings)[0])
        return [f.name for c in choices if c.kind == kind for f in fields(c)]
    section: Any = Config
    for part in path:
        section = get_type_hints(section)[part]
    return [f.name for f in fields(section)] if is_dataclass(section) else []
