"""Settings: frozen dataclasses, checked once, from a TOML file and `key=value` overrides."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vqtok.errors import UsageError, VqtokError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]

strict = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class VQ2Settings:
    """`VectorQuantizer2`: a learned codebook, pulled towards the latents by its own loss."""

    __pydantic_config__ = strict
    kind: Literal["vq2"] = "vq2"
    codebook_size: Positive = 4096
    dim: Positive = 8
    beta: Weight = 0.25
    data_start: bool = True
    revive_after: Count = 100
    absolute_share: Share = 0.0  # of the codes, for latents themselves, not what predictions lack


@dataclass(frozen=True)
class EMASettings:
    """`EMAVectorQuantizer`: a codebook that is the running mean of the latents it is given."""

    __pydantic_config__ = strict
    kind: Literal["ema"] = "ema"
    codebook_size: Positive = 4096
    dim: Positive = 8
    beta: Weight = 0.25
    decay: Share = 0.99
    data_start: bool = True
    revive_after: Count = 100
    absolute_share: Share = 0.0  # of the codes, for latents themselves, not what predictions lack


@dataclass(frozen=True)
class GumbelSettings:
    """`GumbelQuantize`: a code drawn from logits, with a temperature that falls while training."""

    __pydantic_config__ = strict
    kind: Literal["gumbel"] = "gumbel"
    codebook_size: Positive = 1024
    dim: Positive = 32
    kl_weight: Weight = 5e-4
    temp_start: Annotated[float, Field(gt=0)] = 1.0
    temp_end: Annotated[float, Field(gt=0)] = 0.1
    temp_steps: Count = 2000
    data_start: bool = True


@dataclass(frozen=True)
class LFQSettings:
    """`LFQ`: one bit for each latent channel; codebook_size is a power of two."""

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
    """The networks. Encoder and decoder work at half of the spatial stride, and at all of it."""

    __pydantic_config__ = strict
    stride: Literal["4x8x8", "4x16x16", "8x8x8", "8x16x16", "1x8x8", "1x16x16"] = "4x8x8"
    widths: tuple[Positive, Positive] = (128, 256)  # channels at each scale
    encoder_blocks: tuple[Count, Count] = (3, 4)  # residual blocks at each scale
    decoder_blocks: tuple[Count, Count] = (4, 4)
    predictor_blocks: Count = 0  # of the network that predicts latent frames; 0: none is predicted
    key_every: Positive = 32  # latent frames; each so many-th is not predicted from others

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixels per token in time, height and width."""
        t, h, w = map(int, self.stride.split("x"))
        return t, h, w


@dataclass(frozen=True)
class TrainSettings:
    """One training run; docs/training.md says more of each."""

    __pydantic_config__ = strict
    steps: Positive = 5000
    batch_size: Positive = 4  # clips of one step, over all processes
    accumulate: Positive = 1  # parts that a batch is worked through in, to save memory
    frames: Positive = 13  # of each training clip; 1 + s*n wastes none
    crop: Positive = 112  # height and width of each training clip
    size: Positive = 256  # short side that larger clips are scaled to before cropping
    strides: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)  # every n-th frame, drawn
    turn: bool = False  # clips upside down, on their side and backwards too
    zoom: Annotated[float, Field(ge=1, le=8)] = 1.0  # clips up to so many times larger and smaller
    recolour: Annotated[float, Field(ge=0, le=4)] = 0.0  # how much the colours of half of them vary
    origin: str | None = None  # the tokenizer to begin from, a file or a bundled name
    start_clips: Positive = 32  # that the first weights and the first codebook are taken from
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 7e-4
    schedule: Literal["cosine", "wsd"] = "cosine"  # after the warm-up
    warmup: Count = 100  # steps
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of the steps, at the end of wsd
    weight_decay: Weight = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Share = 0.999  # of the weights' moving average, which is what is shipped; 0: none
    l1_weight: Weight = 1.0
    l2_weight: Weight = 1.0
    log_weight: Weight = 0.0  # of the logarithm of each clip's squared error: all clips count alike
    adversarial_weight: Weight = 0.0  # of a discriminator's pull beside that of the loss; 0: none
    adversarial_share: Share = 0.2  # of the steps, at the end, in which it takes part
    perceptual_weight: Weight = 0.0  # of differences that a trained network sees; 0: none
    perceptual_model: str = "microsoft/resnet-18"  # that network: for transformers' AutoModel
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic; weights stay float32
    save_every: Positive = 100
    validate_every: Count = 500  # steps; 0: never
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # of the files, held out
    cache_gib: Weight = 6.0  # decoded clips kept in memory, or added to the folder of --cache
    tensorboard: bool = False


@dataclass(frozen=True)
class Config:
    """Everything that makes a run."""

    __pydantic_config__ = strict
    quantizer: QuantizerSettings
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()

    def to_json(self) -> str:
        """The whole configuration, defaults included; `from_json` reads it."""
        return json.dumps(asdict(self))


QUANTIZERS = tuple(
    get_type_hints(settings)["kind"].__args__[0]
    for settings in get_args(get_args(QuantizerSettings)[0])
)
_adapter = TypeAdapter(Config)


def folder() -> Path:
    """Where the configs lie: inside an installed package, beside it in a checkout."""
    here = Path(__file__).parent
    return next(f for f in (here / "configs", here.parent / "configs") if f.is_dir())


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a TOML file and apply `section.key=value` overrides (values as in TOML, or plain words).

    Raises UsageError for a file, key or value that is not right, naming the keys that exist.
    """
    try:
        settings = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such config file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _set(settings, override)
    return _checked(settings, str(path))


def from_json(text: str, origin: str) -> Config:
    """Read what `Config.to_json` wrote; `origin` names the file in the error.

    Raises VqtokError when the text is not such a configuration.
    """
    try:
        return _checked(json.loads(text), origin)
    except (json.JSONDecodeError, UsageError) as error:
        raise VqtokError(f"{origin} holds no configuration of this version: {error}") from None


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


def _checked(settings: Any, origin: str) -> Config:
    try:
        return _adapter.validate_python(settings)
    except ValidationError as error:
        raise UsageError(f"{origin}: {_sentence(error.errors()[0], settings)}") from None


def _sentence(error: Any, settings: Any) -> str:
    path = [str(part) for part in error["loc"]]
    if path[0] == "quantizer" and path[1:2] and path[1] in QUANTIZERS:
        del path[1]  # the kind, which chooses the keys: people did not write it there
    name = ".".join(path)
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {name}; the keys there are {', '.join(_keys(path[:-1], settings))}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{name}.kind must be one of {', '.join(QUANTIZERS)}"
    return f"{name}: {error['msg'].lower()}, not {error['input']!r}"


def _keys(path: list[str], settings: Any) -> list[str]:
    if path == ["quantizer"]:
        kind = settings["quantizer"].get("kind")
        choices = get_args(get_args(QuantizerSettings)[0])
        return [f.name for c in choices if c.kind == kind for f in fields(c)]
    section: Any = Config
    for part in path:
        section = get_type_hints(section)[part]
    return [f.name for f in fields(section)] if is_dataclass(section) else []
