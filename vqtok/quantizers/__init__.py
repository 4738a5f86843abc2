"""The five quantizers, behind one contract."""

from vqtok.config import (
    EMASettings,
    FSQSettings,
    GumbelSettings,
    LFQSettings,
    QuantizerSettings,
    VQ2Settings,
)
from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.fsq import FSQ
from vqtok.quantizers.gumbel import GumbelQuantize
from vqtok.quantizers.lfq import LFQ
from vqtok.quantizers.vq import EMAVectorQuantizer, EmbeddingEMA, VectorQuantizer2

__all__ = [
    "FSQ",
    "LFQ",
    "EMAVectorQuantizer",
    "EmbeddingEMA",
    "GumbelQuantize",
    "Quantized",
    "Quantizer",
    "VectorQuantizer2",
    "build",
]


def build(settings: QuantizerSettings, intra_share: float = 0.0) -> Quantizer:
    """The quantizer that the settings describe, ready to train: codebooks start from the data."""
    match settings:
        case VQ2Settings() as s:
            return VectorQuantizer2(
                *(s.codebook_size, s.dim, s.beta),
                init_from_data=s.init_from_data,
                revive_after=s.revive_after,
                intra_codes=int(intra_share * s.codebook_size),
            )
        case EMASettings() as s:
            return EMAVectorQuantizer(
                *(s.codebook_size, s.dim, s.beta, s.decay),
                init_from_data=s.init_from_data,
                revive_after=s.revive_after,
                intra_codes=int(intra_share * s.codebook_size),
            )
        case GumbelSettings() as s:
            return GumbelQuantize(
                *(s.dim, s.dim, s.codebook_size),
                kl_weight=s.kl_weight,
                temp_init=s.temp_start,
                temp_final=s.temp_end,
                anneal_steps=s.temp_steps,
                init_from_data=s.init_from_data,
            )
        case LFQSettings() as s:
            return LFQ(
                codebook_size=s.codebook_size,
                entropy_loss_weight=s.entropy_loss_weight,
                commitment_loss_weight=s.commitment_loss_weight,
                diversity_gamma=s.diversity_gamma,
                inv_temperature=s.inv_temperature,
            )
        case FSQSettings() as s:
            return FSQ(s.levels, whitening_weight=s.whitening_weight)
