"""All settings, as frozen dataclasses with the ranges of their values."""

import json
from dataclasses import asdict, dataclass
from math import prod
from typing import Annotated, Literal, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field

# A tokenizer file may come from anyone, so every size has a limit that none in use comes near.
MAX_CODES = 2**21


def _check_product(levels: tuple[int, ...]) -> tuple[int, ...]:
    if prod(levels) > MAX_CODES:
        raise ValueError(f"the levels multiply to {prod(levels):,}; the limit is {MAX_CODES:,}")
    return levels


Steps = Annotated[int, Field(gt=0, lt=2**31)]
StepCount = Annotated[int, Field(ge=0, lt=2**31)]
CodebookSize = Annotated[int, Field(gt=0, le=MAX_CODES)]
Dim = Annotated[int, Field(gt=0, le=4096)]
Levels = Annotated[
    tuple[Annotated[int, Field(gt=0, le=MAX_CODES)], ...],
    Field(min_length=1, max_length=21),
    AfterValidator(_check_product),
]
Channels = Annotated[int, Field(gt=0, le=8192)]
Blocks = Annotated[int, Field(ge=0, le=64)]
BatchSize = Annotated[int, Field(gt=0, le=2**16)]
Pixels = Annotated[int, Field(gt=0, le=2**13)]
Strides = Annotated[
    tuple[Annotated[int, Field(gt=0, le=2**12)], ...], Field(min_length=1, max_length=64)
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(ge=0, lt=1)]

strict = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class SearchSettings:
    """What quantizers that search a codebook for the nearest code have in common."""

    __pydantic_config__ = strict
    codebook_size: CodebookSize = 4096
    dim: Dim = 8
    beta: Weight = 0.25  # weight of the codebook loss (vq2) or of the commitment loss (ema)
    init_from_data: bool = True  # k-means of the first latents
    revive_after: StepCount = 100  # steps without use, then a code becomes a latent; 0: never
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
    codebook_size: CodebookSize = 1024
    dim: Dim = 32
    kl_weight: Weight = 5e-4
    temp_start: PositiveFloat = 1.0
    temp_end: PositiveFloat = 0.1
    temp_steps: StepCount = 2000
    init_from_data: bool = True  # k-means of the first latents


@dataclass(frozen=True)
class LFQSettings:
    """`LFQ`: one bit per latent channel; codebook_size is a power of two."""

    __pydantic_config__ = strict
    kind: Literal["lfq"] = "lfq"
    codebook_size: CodebookSize = 65536
    entropy_loss_weight: Weight = 0.1
    commitment_loss_weight: Weight = 0.25
    diversity_gamma: Weight = 1.0
    inv_temperature: PositiveFloat = 1.0


@dataclass(frozen=True)
class FSQSettings:
    """`FSQ`: each latent channel rounded to one of a few levels; 64,000 codes by default."""

    __pydantic_config__ = strict
    kind: Literal["fsq"] = "fsq"
    levels: Levels = (8, 8, 8, 5, 5, 5)
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
    widths: tuple[Channels, Channels] = (128, 256)  # channels at each scale
    encoder_blocks: tuple[Blocks, Blocks] = (3, 4)  # residual blocks at each scale
    decoder_blocks: tuple[Blocks, Blocks] = (4, 4)
    predictor_blocks: Blocks = 0  # residual blocks of the predictor; 0: no prediction
    keyframe_interval: Steps = 32  # latent frames from one key frame to the next
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
    steps: Steps = 5000
    batch_size: BatchSize = 4  # clips per step, over all processes
    accumulate: BatchSize = 1  # gradient accumulation: micro-batches per step
    frames: Annotated[int, Field(gt=0, le=2**12)] = 13  # per training clip; 1 + s*n wastes none
    crop: Pixels = 112  # height and width of a training clip, pixels
    size: Pixels = 256  # larger videos are scaled to this short side before cropping
    strides: Strides = (1,)  # frame strides, sampled
    flip: bool = False  # also flip vertically, transpose and reverse in time, each with p = 0.5
    random_scale: Annotated[float, Field(ge=1, le=8)] = 1.0  # up to this factor, up and down
    color_jitter: Annotated[float, Field(ge=0, le=4)] = 0.0  # strength, applied with p = 0.5
    init_from: str | None = None  # initial weights: as --tokenizer
    init_networks_from: str | None = None  # only encoder and decoder; the rest starts from data
    init_clips: BatchSize = 32  # clips that the first weights and codebook are computed from
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: PositiveFloat = 7e-4
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: StepCount = 100  # steps
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
    save_every: Steps = 100  # steps
    validate_every: StepCount = 500  # steps; 0: never
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # of the files
    cache_gib: Weight = 6.0  # decoded clips kept in memory, in TMPDIR or in --cache
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
