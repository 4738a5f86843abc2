"""All settings: frozen dataclasses, read from a TOML file and `section.key=value` overrides."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vqtok.errors import UsageError, VqtokError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, lt=1)]

T = TypeVar("T")
strict = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class SearchSettings:
    """What quantizers that search a codebook for the nearest code have in common."""

    __pydantic_config__ = strict
    codebook_size: Positive = 4096
    dim: Positive = 8
    beta: Weight = 0.25  # weight of the codebook loss (vq2) or of the commitment loss (ema)
    init_from_data: bool = True  # k-means of the first latents
    revive_after: Count = 100  # steps unused after which a code is replaced by a latent; 0: never
    stages: Annotated[int, Field(ge=0, le=4)] = 0  # residual stages, each with a zero code


@dataclass(frozen=True)
class VQ2Settings(SearchSettings):
    """`VectorQuantizer`: a codebook learned by gradient."""

    kind: Literal["vq2"] = "vq2"


@dataclass(frozen=True)
class EMASettings(SearchSettings):
    """`EMAQuantizer`: a codebook learned by exponential moving averages of latents."""

    kind: Literal["ema"] = "ema"
    decay: UnitInterval = 0.99


@dataclass(frozen=True)
class GumbelSettings:
    """`GumbelQuantizer`: codes sampled from logits at an annealed temperature."""

    __pydantic_config__ = strict
    kind: Literal["gumbel"] = "gumbel"
    codebook_size: Positive = 1024
    dim: Positive = 32
    kl_weight: Weight = 5e-4
    temp_start: Annotated[float, Field(gt=0)] = 1.0
    temp_end: Annotated[float, Field(gt=0)] = 0.1
    temp_steps: Count = 2000
    init_from_data: bool = True  # k-means of the first latents


@dataclass(frozen=True)
class LFQSettings:
    """`LFQ`: one bit per latent channel; codebook_size is a power of two."""

    __pydantic_config__ = strict
    kind: Literal["lfq"] = "lfq"
    codebook_size: Positive = 65536
    entropy_loss_weight: Weight = 0.1
    commitment_loss_weight: Weight = 0.25
    diversity_gamma: Weight = 1.0
    inv_temperature: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True)
class FSQSettings:
    """`FSQ`: each latent channel rounded to one of a few levels; 64,000 codes by default."""

    __pydantic_config__ = strict
    kind: Literal["fsq"] = "fsq"
    levels: tuple[Positive, ...] = (8, 8, 8, 5, 5, 5)
    whitening_weight: Weight = 0.1


QuantizerSettings = Annotated[
    VQ2Settings | EMASettings | GumbelSettings | LFQSettings | FSQSettings,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class ModelSettings:
    """The networks. Encoder and decoder work at two scales: half the stride, and all of it."""

    __pydantic_config__ = strict
    stride: Literal["4x8x8", "4x16x16", "8x8x8", "8x16x16", "1x8x8", "1x16x16"] = "4x8x8"
    widths: tuple[Positive, Positive] = (128, 256)  # channels at each scale
    encoder_blocks: tuple[Count, Count] = (3, 4)  # residual blocks at each scale
    decoder_blocks: tuple[Count, Count] = (4, 4)
    predictor_blocks: Count = 0  # residual blocks of the predictor; 0: no prediction
    keyframe_interval: Positive = 32  # latent frames from one key frame to the next
    intra_share: UnitInterval = 0.0  # share of codes that ignore the prediction; vq2 and ema only

    @property
    def strides(self) -> tuple[int, int, int]:
        """The stride (time, height, width) in frames and pixels per token."""
        t, h, w = map(int, self.stride.split("x"))
        return t, h, w


@dataclass(frozen=True)
class TrainSettings:
    """A training run; docs/training.md explains each setting."""

    __pydantic_config__ = strict
    steps: Positive = 5000
    batch_size: Positive = 4  # clips per step, over all processes
    accumulate: Positive = 1  # gradient accumulation: micro-batches per step
    frames: Positive = 13  # per training clip; 1 + s*n wastes none
    crop: Positive = 112  # height and width of a training clip, pixels
    size: Positive = 256  # larger videos are scaled to this short side before cropping
    strides: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)  # frame strides, sampled
    flip: bool = False  # also flip vertically, transpose and reverse in time, each with p = 0.5
    random_scale: Annotated[float, Field(ge=1, le=8)] = 1.0  # up to this factor, up and down
    color_jitter: Annotated[float, Field(ge=0, le=4)] = 0.0  # strength, applied with p = 0.5
    init_from: str | None = None  # initial weights: a tokenizer file or the name of a bundled one
    init_clips: Positive = 32  # clips that the first weights and codebook are computed from
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 7e-4
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: Count = 100  # steps
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of the steps; wsd only
    weight_decay: Weight = 0.01  # of weight matrices and kernels
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # maximum gradient norm
    ema_decay: UnitInterval = 0.999  # of the averaged weights, which are saved; 0: no average
    l1_weight: Weight = 1.0
    l2_weight: Weight = 1.0
    log_mse_weight: Weight = 0.0  # of the log of each clip's squared error
    adversarial_weight: Weight = 0.0  # of the discriminator's gradient; 0: no discriminator
    adversarial_share: UnitInterval = 0.2  # last part of the steps, in which it is used
    perceptual_weight: Weight = 0.0  # of the distance of feature maps; 0: none
    perceptual_model: str = "microsoft/resnet-18"  # the feature network, for AutoModel
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of autocast; weights stay float32
    save_every: Positive = 100  # steps
    validate_every: Count = 500  # steps; 0: never
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # of the files
    cache_gib: Weight = 6.0  # decoded clips kept in memory or in --cache, per process
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    """Everything that defines a training run."""

    __pydantic_config__ = strict
    quantizer: QuantizerSettings
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    def to_json(self) -> str:
        """Return all settings, defaults included, as JSON for `from_json`."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class TokenizerConfig:
    """The settings that define a tokenizer; training settings do not."""

    __pydantic_config__ = ConfigDict(extra="ignore")
    quantizer: QuantizerSettings
    model: ModelSettings = ModelSettings()


QUANTIZERS = tuple(
    get_type_hints(settings)["kind"].__args__[0]
    for settings in get_args(get_args(QuantizerSettings)[0])
)

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
        settings = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _set(settings, override)
    return validate(Config, settings, str(path))


def read_json(path: Path) -> Config:
    """Read a file of what `Config.to_json` wrote; errors as in `from_json`."""
    return from_json(path.read_text(errors="replace"), str(path))


def from_json(text: str, origin: str) -> Config:
    """Read what `Config.to_json` wrote, in this version or an earlier one.

    origin: the file's name for error messages. Raises VqtokError if the text is not a config.
    """
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise UsageError(f"{origin}: not a JSON object")
        rename_keys(settings)
        return validate(Config, settings, origin)
    except (json.JSONDecodeError, UsageError) as error:
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
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not sections:
        raise UsageError(f"--set {override}: write section.key=value, such as train.steps=1000")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise UsageError(f"--set {override}: {section} is a value, not a section")
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
    name = ".".join(path)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if name in RENAMED:
            return f"{name} is now called {RENAMED[name]}"
        return f"unknown key {name}; the keys there are {', '.join(_keys(path[:-1], settings))}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{name}.kind must be one of {', '.join(QUANTIZERS)}"
    return f"{name}: {error['msg'].lower()}, not {error['input']!r}"


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
