"""Whether a codebook is healthy, in a word and a sentence."""

from dataclasses import dataclass
from typing import Literal

from vqtok.codebook_stats.usage import CodebookUse, usage_by_chance

HEALTHY = 0.25  # of the usage by chance; real video is far from using its codes evenly
EVEN = 0.1  # of the codes used, in effective use
TOKENS = 1000  # below, or below ten a code, nothing can be told
CLIPS = 8  # below, many codes may wait for scenes that were not shown
ALIVE = 500  # codes in use: then a few clips do not prove that the others are dead

REMEDIES = {
    "vq2": "train with quantizer.init_from_data=true and quantizer.revive_after=100",
    "ema": "train with quantizer.init_from_data=true and quantizer.revive_after=100",
    "gumbel": "train with quantizer.init_from_data=true, or a higher quantizer.kl_weight",
    "lfq": "train with a higher quantizer.entropy_loss_weight",
    "fsq": "train with a higher quantizer.whitening_weight",
}
State = Literal["healthy", "uneven", "collapsed", "too few tokens", "too few clips"]


@dataclass(frozen=True)
class Verdict:
    """The word, and the sentence that gives the reason and what to do."""

    state: State
    reason: str


def collapses(usage: float, by_chance: float) -> bool:
    """Whether so little of a codebook is used that its training has failed."""
    return usage < HEALTHY * by_chance


def judge(use: CodebookUse, codebooks: int, repeated: int, files: int, quantizer: str) -> Verdict:
    """What the use of a codebook shows; `repeated` tokens equal the one before in time.

    Repeats show no new codes, so chance is asked about the others. Clips of one scene use few
    codes however good the codebook: few clips only prove a collapse where little is used at all.
    """
    fresh = (use.tokens - repeated) // codebooks
    chance = usage_by_chance(fresh, use.codebook_size)
    share = f"{use.usage:.1%} of the codebook is used where chance gives {chance:.1%}"
    share += " (repeats left out)" if use.usage_by_chance - chance > 0.01 else ""
    enough = fresh >= use.codebook_size
    low = use.usage < chance * (HEALTHY if enough else HEALTHY / 5)
    if fresh < min(TOKENS, 10 * use.codebook_size):
        return Verdict("too few tokens", f"{fresh:,} tokens without repeats say nothing: show more")
    if low and (files >= CLIPS or use.used < ALIVE * codebooks):
        doubt = "" if files >= CLIPS else ", unless the clips show next to nothing"
        remedy = REMEDIES.get(quantizer, "train anew")
        return Verdict("collapsed", f"{share}{doubt}; {remedy}, or with fewer codes")
    if not enough:
        few = f"{fresh:,} tokens without repeats cannot show {use.codebook_size:,} codes"
        return Verdict("too few tokens", f"{few}: {share}")
    if low:
        return Verdict("too few clips", f"{share}, but one scene needs few: show {CLIPS} clips")
    if use.perplexity * codebooks < EVEN * use.used:
        few = f"most tokens fall on few codes, as if there were {use.perplexity:,.0f}"
        return Verdict("uneven", f"{few}; {share}")
    return Verdict("healthy", share)
