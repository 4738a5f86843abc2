"""The networks of a tokenizer, built from its settings."""

from vqtok.model.layers import (
    CausalConv3d,
    CausalSequential,
    DepthToSpace,
    ResidualBlock,
)
from vqtok.model.predictive import PredictiveCoder
from vqtok.model.predictor import Predictor
from vqtok.quantizers import Quantizer
from vqtok.settings import ModelSettings


def build_encoder(settings: ModelSettings, dim: int) -> CausalSequential:
    """Return the encoder: (b 3 1+s*n h w) in -1..1 -> latents (b dim 1+n h' w')."""
    (t, h, w), (shallow, deep) = settings.strides, settings.widths
    patch = (t, h // 2, w // 2)
    return CausalSequential(
        CausalConv3d(3, shallow, patch, stride=patch),
        *(ResidualBlock(shallow) for _ in range(settings.encoder_blocks[0])),
        CausalConv3d(shallow, deep, (1, 2, 2), stride=(1, 2, 2)),
        *(ResidualBlock(deep) for _ in range(settings.encoder_blocks[1])),
        CausalConv3d(deep, dim, (1, 1, 1)),
    )


def build_decoder(settings: ModelSettings, dim: int) -> CausalSequential:
    """Return the decoder: latents (b dim n h' w') -> (b 3 s*n h w), about -1..1."""
    (t, h, w), (shallow, deep) = settings.strides, settings.widths
    return CausalSequential(
        DepthToSpace(dim, deep, (1, 1, 1), kernel=3),
        *(ResidualBlock(deep) for _ in range(settings.decoder_blocks[1])),
        DepthToSpace(deep, shallow, (1, 2, 2)),
        *(ResidualBlock(shallow) for _ in range(settings.decoder_blocks[0])),
        DepthToSpace(shallow, 3, (t, h // 2, w // 2)),
    )


def build_coder(settings: ModelSettings, quantizer: Quantizer) -> PredictiveCoder:
    """Return the predictive coder between encoder and decoder."""
    predictor = None
    if settings.predictor_blocks:
        predictor = Predictor(quantizer.dim, settings.widths[0], settings.predictor_blocks)
    interval, intra_share = settings.keyframe_interval, settings.intra_share
    return PredictiveCoder(quantizer, predictor, interval, intra_share)
