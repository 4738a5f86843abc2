"""Health of a codebook: a status and the reason for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vqtok.codebook_stats.usage import CodebookUse, usage_by_chance

MIN_USAGE_RATIO = 0.25  # of usage by chance; real video never uses its codes evenly
MIN_PERPLEXITY_RATIO = 0.1  # of the used codes
MIN_TOKENS = 1000  # or ten per code; fewer are not enough to judge
MIN_CLIPS = 8  # with fewer, unused codes may belong to scenes that are not shown
MIN_USED_CODES = 500  # with more in use, a few clips do not prove the others dead

REMEDIES = {
    "vq2": "train with quantizer.init_from_data=true and quantizer.revive_after=100",
    "ema": "train with quantizer.init_from_data=true and quantizer.revive_after=100",
    "gumbel": "train with quantizer.init_from_data=true, or a higher quantizer.kl_weight",
    "lfq": "train with a higher quantizer.entropy_loss_weight",
    "fsq": "train with a higher quantizer.whitening_weight",
}
Status = Literal["healthy", "uneven", "collapsed", "too few tokens", "too few clips"]


@dataclass(frozen=True)
class Health:
    """The status of a codebook, and a sentence with the reason and what to do."""

    status: Status
    reason: str


def has_collapsed(usage: float, by_chance: float) -> bool:
    """Return whether usage is so low that the training of the codebook has failed."""
    return usage < MIN_USAGE_RATIO * by_chance


def codebook_health(use: CodebookUse, fresh: Sequence[int], files: int, quantizer: str) -> Health:
    """Judge a codebook by its usage in `files` clips, or several codebooks by that of all.

    fresh: number of tokens of each codebook that differ from the previous index in time. Repeats
        cannot show new codes, so usage is compared with chance for these tokens.

    A single scene needs few codes even of a good codebook: a few clips only prove a collapse if
    very few codes are used.
    """
    codebooks = len(fresh)
    tokens = sum(fresh) // codebooks
    by_chance = sum(usage_by_chance(n, use.codebook_size) for n in fresh) / codebooks
    excluded = " without repeats" if use.usage_by_chance - by_chance > 0.01 else ""
    chance = f"expected by chance: {by_chance:.1%}{excluded}"
    usage = f"{use.usage:.1%} of the codebook is used ({chance})"
    few_tokens = f"{tokens:,} tokens without repeats are too few"
    if tokens < min(MIN_TOKENS, 10 * use.codebook_size):
        return Health("too few tokens", f"{few_tokens} to judge a codebook: add clips")
    enough_tokens = tokens >= use.codebook_size
    is_low = use.usage < by_chance * (MIN_USAGE_RATIO if enough_tokens else MIN_USAGE_RATIO / 5)
    if is_low and (files >= MIN_CLIPS or use.used < MIN_USED_CODES * codebooks):
        caveat = "" if files >= MIN_CLIPS else ", unless the clips show almost nothing"
        remedy = REMEDIES.get(quantizer, "train again")
        return Health("collapsed", f"{usage}{caveat}; {remedy}, or with fewer codes")
    if not enough_tokens:
        return Health("too few tokens", f"{few_tokens} for {use.codebook_size:,} codes; {usage}")
    if is_low:
        return Health(
            "too few clips",
            f"{usage}, but one scene needs few codes: use at least {MIN_CLIPS} clips",
        )
    if use.perplexity * codebooks < MIN_PERPLEXITY_RATIO * use.used:
        few_codes = f"a few codes carry most tokens (perplexity {use.perplexity:,.0f})"
        return Health("uneven", f"{few_codes}; {usage}")
    return Health("healthy", usage)
