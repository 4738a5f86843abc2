"""The five quantizers, behind one contract."""

from vqtok.quantizers.base import Quantized, Quantizer
from vqtok.quantizers.codebook import CodebookQuantizer
from vqtok.quantizers.compat import EMAVectorQuantizer, GumbelQuantize, VectorQuantizer2
from vqtok.quantizers.ema import EMAQuantizer, EmbeddingEMA
from vqtok.quantizers.fsq import FSQ
from vqtok.quantizers.gumbel import GumbelQuantizer
from vqtok.quantizers.lfq import LFQ
from vqtok.quantizers.nearest import NearestCode, require_search
from vqtok.quantizers.vector import VectorQuantizer
from vqtok.settings import (
    EMASettings,
    FSQSettings,
    GumbelSettings,
    LFQSettings,
    QuantizerSettings,
    VQ2Settings,
)

__all__ = [
    "FSQ",
    "LFQ",
    "CodebookQuantizer",
    "EMAQuantizer",
    "EMAVectorQuantizer",
    "EmbeddingEMA",
    "GumbelQuantize",
    "GumbelQuantizer",
    "NearestCode",
    "Quantized",
    "Quantizer",
    "VectorQuantizer",
    "VectorQuantizer2",
    "build",
    "require_search",
]


def build(settings: QuantizerSettings) -> Quantizer:
    """Return the quantizer that the settings describe."""
    match settings:
        case VQ2Settings() as s:
            return VectorQuantizer(
                *(s.codebook_size, s.dim, s.beta),
                init_from_data=s.init_from_data,
                revive_after=s.revive_after,
                stages=s.stages,
            )
        case EMASettings() as s:
            return EMAQuantizer(
                *(s.codebook_size, s.dim, s.beta, s.decay),
                init_from_data=s.init_from_data,
                revive_after=s.revive_after,
                stages=s.stages,
            )
        case GumbelSettings() as s:
            return GumbelQuantizer(
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
