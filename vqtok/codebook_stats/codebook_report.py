"""The codebook report: every statistic of a tokenizer's tokens, for screens, plots and JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log2
from statistics import fmean
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
    tokens_map,
)
from vqtok.codebook_stats.usage import CodebookUse, bits_per_pixel, codebook_use, entropy_bits
from vqtok.tokens.format import format_stride


@dataclass(frozen=True)
class CodebookReport:
    """The codebook report of token files of one tokenizer.

    With a zero code, tokens are the indices that are not 0, and the zero code is none of the codes.

    use: usage over all tokens. With several codebooks, counts are summed, the other figures are
        averaged, and `top` is empty.
    each: usage of each codebook.
    positions: number of positions (t h w); each has an index of every codebook.
    kept: share of positions that have a token, for each stage; None without a zero code.
    bits_per_pixel, kilobits_per_second: of all indices with fixed-length codes, or `_ideal`, with
        an entropy coder that knows the frequency of each index. `_tokens`: of the tokens alone
        with fixed-length codes, without telling where they are.
    histogram: (least, most, codes), the number of codes that occur `least` to `most` times.
    time_profile, entropy_map: bits per token over time, and by row and column of the frame.
    tokens_map: tokens per position by row and column; None without a zero code.
    levels: share of each level of each FSQ dimension; None if the levels are not known.
    bits: None unless the quantizer is LFQ.
    occurrences: (codebooks k), how often each code occurs, without a zero code.
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
    positions: int
    kept: list[float] | None
    bits_per_pixel: float
    bits_per_pixel_ideal: float
    bits_per_pixel_tokens: float
    kilobits_per_second: float
    kilobits_per_second_ideal: float
    kilobits_per_second_tokens: float
    redundancy: TemporalRedundancy | None
    histogram: list[tuple[int, int, int]]
    time_profile: list[TimeBin]
    entropy_map: list[list[float | None]]
    tokens_map: list[list[float | None]] | None
    levels: list[list[float]] | None
    bits: BitStatistics | None
    health: Health
    occurrences: np.ndarray

    @property
    def tokens_per_position(self) -> float:
        """Tokens spent per position."""
        return self.use.tokens / self.positions

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
            "zero_code": self.kept is not None,
            "positions": self.positions,
            "tokens_per_position": self.tokens_per_position,
            "perplexity_share": use.perplexity / use.codebook_size,
            "max_entropy_bits": log2(use.codebook_size),
            "bits_per_pixel": self.bits_per_pixel,
            "bits_per_pixel_ideal": self.bits_per_pixel_ideal,
            "bits_per_pixel_tokens": self.bits_per_pixel_tokens,
            "kilobits_per_second": self.kilobits_per_second,
            "kilobits_per_second_ideal": self.kilobits_per_second_ideal,
            "kilobits_per_second_tokens": self.kilobits_per_second_tokens,
            "repeats": redundancy and redundancy.repeats,
            "repeat_model_bits": redundancy and redundancy.repeat_model_bits,
            "conditional_entropy_bits": redundancy and redundancy.conditional_bits,
            "conditional_pairs": redundancy and redundancy.sampled_pairs,
            "conditional_unseen": redundancy and redundancy.unseen,
            "verdict": self.health.status,
            "verdict_reason": self.health.reason,
            "top": use.top,
            "kept": self.kept,
            "histogram": self.histogram,
            "over_time": [asdict(time_bin) for time_bin in self.time_profile],
            "over_picture": self.entropy_map,
            "tokens_over_picture": self.tokens_map,
            "levels": self.levels,
            "bit_ones": self.bits and self.bits.ones,
            "bit_correlations": self.bits and self.bits.correlations,
            "each_codebook": [asdict(each) for each in self.each],
        }


def codebook_report(
    counts: CodeCounts, name: str, levels: Sequence[int] | None = None
) -> CodebookReport:
    """Compute the report of counted tokens; `levels` are those of the FSQ, if known."""
    indices = counts.occurrences.reshape(counts.codebooks, -1)  # how often each occurs
    occurrences = indices[:, int(counts.zero_code) :]
    each = [codebook_use(row, first=int(counts.zero_code)) for row in occurrences]
    use, total = _combine(each), int(indices.sum())
    ideal_bits = total / counts.codebooks * sum(map(entropy_bits, indices))
    bpp = bits_per_pixel(total, counts.codebook_size, counts.pixels)
    bpp_tokens = bits_per_pixel(use.tokens, use.codebook_size, counts.pixels)
    kilopixels_per_second = counts.pixels / counts.seconds / 1000
    # LFQ codebooks are powers of two, but a token file may claim anything.
    has_bits = counts.quantizer == "lfq" and counts.codebook_size.bit_count() == 1
    repeated = counts.transitions - counts.changes.reshape(counts.codebooks, -1).sum(1)
    fresh = (occurrences.sum(1) - repeated).tolist()
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
        positions=total // counts.codebooks,
        kept=[one.tokens * counts.codebooks / total for one in each] if counts.zero_code else None,
        bits_per_pixel=bpp,
        bits_per_pixel_ideal=ideal_bits / counts.pixels,
        bits_per_pixel_tokens=bpp_tokens,
        kilobits_per_second=bpp * kilopixels_per_second,
        kilobits_per_second_ideal=ideal_bits / counts.seconds / 1000,
        kilobits_per_second_tokens=bpp_tokens * kilopixels_per_second,
        redundancy=temporal_redundancy(counts),
        histogram=occurrence_histogram(occurrences),
        time_profile=time_profile(counts),
        entropy_map=entropy_map(counts),
        tokens_map=tokens_map(counts),
        levels=level_shares(indices.sum(0), levels) if levels else None,
        bits=bit_statistics(indices.sum(0)) if has_bits else None,
        health=codebook_health(use, fresh, counts.files, counts.quantizer),
        occurrences=occurrences,
    )


def _combine(each: list[CodebookUse]) -> CodebookUse:
    """Return the usage of several codebooks of the same size as one; entropies are per token."""
    if len(each) == 1:
        return each[0]
    tokens = [use.tokens for use in each]
    entropy, corrected = (
        float(np.average([getattr(use, key) for use in each], weights=tokens)) if any(tokens) else 0
        for key in ("entropy_bits", "entropy_bits_corrected")
    )
    return CodebookUse(
        tokens=sum(tokens),
        codebook_size=each[0].codebook_size,
        used=sum(use.used for use in each),
        usage=fmean(use.usage for use in each),
        usage_by_chance=fmean(use.usage_by_chance for use in each),
        perplexity=2**entropy,
        entropy_bits=entropy,
        entropy_bits_corrected=corrected,
        dead=sum(use.dead for use in each),
        top=[],
    )
