"""The codebook report: every statistic of a tokenizer's tokens, for screens, plots and JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log2
from typing import Any

import numpy as np

from vqtok.codebook_stats.counts import CodeCounts
from vqtok.codebook_stats.health import Health, codebook_health
from vqtok.codebook_stats.structure import (
    BitStatistics,
    TemporalRedundancy,
    TimeBin,
    bit_statistics,
    entropy_map,
    level_shares,
    occurrence_histogram,
    temporal_redundancy,
    time_profile,
)
from vqtok.codebook_stats.usage import CodebookUse, bits_per_pixel, codebook_use
from vqtok.tokens.format import format_stride


@dataclass(frozen=True)
class CodebookReport:
    """The codebook report of token files of one tokenizer.

    use: usage over all tokens. With several codebooks, counts are summed, the other figures are
        averaged, and `top` is empty.
    each: usage of each codebook.
    bits_per_pixel, kilobits_per_second: with fixed-length codes, or `_ideal`, with an entropy coder
        that knows the frequency of each code.
    histogram: (least, most, codes), the number of codes that occur `least` to `most` times.
    time_profile, entropy_map: bits per token over time, and by row and column of the frame.
    levels: share of each level of each FSQ dimension; None if the levels are not known.
    bits: None unless the quantizer is LFQ.
    occurrences: (codebooks k), how often each code occurs.
    """

    name: str
    model: str
    quantizer: str
    stride: tuple[int, int, int]
    files: int
    frames: int
    seconds: float
    use: CodebookUse
    each: list[CodebookUse]
    bits_per_pixel: float
    bits_per_pixel_ideal: float
    kilobits_per_second: float
    kilobits_per_second_ideal: float
    redundancy: TemporalRedundancy | None
    histogram: list[tuple[int, int, int]]
    time_profile: list[TimeBin]
    entropy_map: list[list[float | None]]
    levels: list[list[float]] | None
    bits: BitStatistics | None
    health: Health
    occurrences: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return what `vqtok stats --json` prints; docs/stats.md explains each key."""
        use, redundancy = self.use, self.redundancy
        return {
            "name": self.name,
            "model": self.model,
            "quantizer": self.quantizer,
            "stride": format_stride(self.stride),
            "files": self.files,
            "frames": self.frames,
            "seconds": self.seconds,
            **{key: value for key, value in asdict(use).items() if key != "top"},
            "codebooks": len(self.each),
            "perplexity_share": use.perplexity / use.codebook_size,
            "max_entropy_bits": log2(use.codebook_size),
            "bits_per_pixel": self.bits_per_pixel,
            "bits_per_pixel_ideal": self.bits_per_pixel_ideal,
            "kilobits_per_second": self.kilobits_per_second,
            "kilobits_per_second_ideal": self.kilobits_per_second_ideal,
            "repeats": redundancy and redundancy.repeats,
            "repeat_model_bits": redundancy and redundancy.repeat_model_bits,
            "conditional_entropy_bits": redundancy and redundancy.conditional_bits,
            "conditional_pairs": redundancy and redundancy.sampled_pairs,
            "conditional_unseen": redundancy and redundancy.unseen,
            "verdict": self.health.status,
            "verdict_reason": self.health.reason,
            "top": use.top,
            "histogram": self.histogram,
            "over_time": [asdict(time_bin) for time_bin in self.time_profile],
            "over_picture": self.entropy_map,
            "levels": self.levels,
            "bit_ones": self.bits and self.bits.ones,
            "bit_correlations": self.bits and self.bits.correlations,
            "each_codebook": [asdict(each) for each in self.each],
        }


def codebook_report(
    counts: CodeCounts, name: str, levels: Sequence[int] | None = None
) -> CodebookReport:
    """Compute the report of counted tokens; `levels` are those of the FSQ, if known."""
    occurrences = counts.occurrences.reshape(counts.codebooks, -1)
    each = [codebook_use(row) for row in occurrences]
    use = _combine(each)
    bpp = bits_per_pixel(use.tokens, use.codebook_size, counts.pixels)
    kbps = bpp * counts.pixels / counts.seconds / 1000
    compression = use.entropy_bits / max(log2(use.codebook_size), 1e-9)
    # LFQ codebooks are powers of two, but a token file may claim anything.
    has_bits = counts.quantizer == "lfq" and use.codebook_size.bit_count() == 1
    repeated = counts.transitions - int(counts.changes.sum())
    return CodebookReport(
        name=name,
        model=counts.model,
        quantizer=counts.quantizer,
        stride=counts.stride,
        files=counts.files,
        frames=counts.frames,
        seconds=counts.seconds,
        use=use,
        each=each,
        bits_per_pixel=bpp,
        bits_per_pixel_ideal=bpp * compression,
        kilobits_per_second=kbps,
        kilobits_per_second_ideal=kbps * compression,
        redundancy=temporal_redundancy(counts),
        histogram=occurrence_histogram(occurrences),
        time_profile=time_profile(counts),
        entropy_map=entropy_map(counts),
        levels=level_shares(occurrences.sum(0), levels) if levels else None,
        bits=bit_statistics(occurrences.sum(0)) if has_bits else None,
        health=codebook_health(use, len(each), repeated, counts.files, counts.quantizer),
        occurrences=occurrences,
    )


def _combine(each: list[CodebookUse]) -> CodebookUse:
    """Return the usage of several codebooks of the same size and number of tokens as one."""
    if len(each) == 1:
        return each[0]
    entropy, corrected, usage = (
        float(np.mean([getattr(use, key) for use in each]))
        for key in ("entropy_bits", "entropy_bits_corrected", "usage")
    )
    return CodebookUse(
        tokens=sum(use.tokens for use in each),
        codebook_size=each[0].codebook_size,
        used=sum(use.used for use in each),
        usage=usage,
        usage_by_chance=each[0].usage_by_chance,
        perplexity=2**entropy,
        entropy_bits=entropy,
        entropy_bits_corrected=corrected,
        dead=sum(use.dead for use in each),
        top=[],
    )
