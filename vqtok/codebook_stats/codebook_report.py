"""What a tally says of a codebook, as plain numbers: what people, machines and plots are shown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log2
from typing import Any

import numpy as np

from vqtok.codebook_stats.counts import CodeCounts
from vqtok.codebook_stats.structure import (
    Bits,
    Repetition,
    Slice,
    bits,
    histogram,
    level_shares,
    over_picture,
    over_time,
    repetition,
)
from vqtok.codebook_stats.usage import CodebookUse, bits_per_pixel, codebook_use
from vqtok.codebook_stats.verdict import Verdict, judge


@dataclass(frozen=True)
class CodebookReport:
    """The codebook report of token files of one tokenizer.

    use: of all tokens; with several codebooks, sums of counts and means of the rest, without `top`.
    each: of each codebook. bits_per_pixel and kilobits_per_second: as the tokens are, and _ideal
    with an entropy coder that knows how often each code comes.
    histogram: (least, most, codes): how many codes were seen so often.
    over_picture: bits of a token by row and column; as over_time, the mean is the entropy.
    levels: for each dimension of FSQ the share of each level; None where they are not known.
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
    repetition: Repetition | None
    histogram: list[tuple[int, int, int]]
    over_time: list[Slice]
    over_picture: list[list[float | None]]
    levels: list[list[float]] | None
    bits: Bits | None
    verdict: Verdict
    counts: np.ndarray  # (codebooks k)

    def numbers(self) -> dict[str, Any]:
        """What `vqtok stats --json` prints; docs/stats.md says what each key means."""
        use, found = self.use, self.repetition
        return {
            "name": self.name,
            "model": self.model,
            "quantizer": self.quantizer,
            "stride": "x".join(map(str, self.stride)),
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
            "repeats": found and found.repeats,
            "repeat_model_bits": found and found.repeat_bits,
            "conditional_entropy_bits": found and found.conditional_bits,
            "conditional_pairs": found and found.pairs,
            "conditional_unseen": found and found.unseen,
            "verdict": self.verdict.state,
            "verdict_reason": self.verdict.reason,
            "top": use.top,
            "histogram": self.histogram,
            "over_time": [asdict(part) for part in self.over_time],
            "over_picture": self.over_picture,
            "levels": self.levels,
            "bit_ones": self.bits and self.bits.ones,
            "bit_correlations": self.bits and self.bits.correlations,
            "each_codebook": [asdict(each) for each in self.each],
        }


def figures(tally: CodeCounts, name: str, levels: Sequence[int] | None = None) -> CodebookReport:
    """All figures of a tally; `levels` are those of its FSQ, if they are known."""
    counts = tally.counts.reshape(tally.codebooks, -1)
    each = [codebook_use(row) for row in counts]
    use = _together(each)
    fixed = bits_per_pixel(use.tokens, use.codebook_size, tally.pixels)
    ideal = use.entropy_bits / max(log2(use.codebook_size), 1e-9)
    rate = fixed * tally.pixels / tally.seconds / 1000
    even = use.codebook_size & (use.codebook_size - 1) == 0  # a file can say what it likes
    repeated = tally.followed - int(tally.fresh.sum())
    return CodebookReport(
        name=name,
        model=tally.model,
        quantizer=tally.quantizer,
        stride=tally.stride,
        files=tally.files,
        frames=tally.frames,
        seconds=tally.seconds,
        use=use,
        each=each,
        bits_per_pixel=fixed,
        bits_per_pixel_ideal=fixed * ideal,
        kilobits_per_second=rate,
        kilobits_per_second_ideal=rate * ideal,
        repetition=repetition(tally),
        histogram=histogram(counts),
        over_time=over_time(tally),
        over_picture=over_picture(tally),
        levels=level_shares(counts.sum(0), levels) if levels else None,
        bits=bits(counts.sum(0)) if tally.quantizer == "lfq" and even else None,
        verdict=judge(use, len(each), repeated, tally.files, tally.quantizer),
        counts=counts,
    )


def _together(each: list[CodebookUse]) -> CodebookUse:
    """One use of several codebooks of one size, each with as many tokens."""
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
