"""The codebook report of one tokenizer as a screen."""

from math import log2

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vqtok.codebook_stats.codebook_report import CodebookReport
from vqtok.codebook_stats.structure import BitStatistics, TemporalRedundancy, TimeBin
from vqtok.codebook_stats.usage import CodebookUse
from vqtok.report.widgets import (
    STATUS_COLORS,
    WIDE,
    Glyphs,
    bar,
    columns,
    glyphs,
    heatmap,
    section,
    sparkline,
)
from vqtok.tokens.format import format_stride

TABLE_BAR = 6  # characters
MAX_CORRELATIONS = 5
MAX_UNSEEN = 0.1  # share of unseen pairs above which the conditional entropy is unreliable
LEVELS_UNKNOWN = "unknown: name the tokenizer with --tokenizer"

Row = tuple[str, str, RenderableType, str]  # label, value, bar or second value, comment


def render_report(report: CodebookReport, console: Console) -> Group:
    """Return the screen of `vqtok stats`: the health of the codebook, then its statistics."""
    g, width = glyphs(console), console.width
    left = [_codes(g, report)]
    right = [section("codes by number of uses", _histogram(g, report.histogram))]
    if len(report.time_profile) > 1:
        left.append(section("over time", _time_profile(g, report.time_profile)))
        if report.kept is not None:
            left.append(section("kept over time, in %", _kept(g, report.time_profile)))
    if report.tokens_map is not None and sum(map(len, report.tokens_map)) > 1:
        right.append(section("tokens per position", _map(g, report.tokens_map)))
    if sum(map(len, report.entropy_map)) > 1:
        right.append(section("bits per token by position", _map(g, report.entropy_map)))
    if report.quantizer == "fsq":
        levels = _levels(g, report.levels) if report.levels else LEVELS_UNKNOWN
        left.append(section("share of each level, in %", levels))
    if report.bits:
        left.append(section("share of ones in each bit, in %", _bit_shares(g, report.bits)))
        right.append(section("bit correlations", _correlations(report.bits)))
    return Group(_health(report), _summary(g, report, width), columns(width, left, right))


def _health(report: CodebookReport) -> Panel:
    """Return the health of the codebook in its color, under the name of the report."""
    health = report.health
    color = STATUS_COLORS[health.status]
    stride = format_stride(report.stride)
    title = Text(f"codebook report: {report.name} ({report.quantizer} {stride})")
    text = Text.assemble((health.status.upper(), f"bold {color}"), f"  {health.reason}")
    return Panel(text, title=title, title_align="left", border_style=color)


def _summary(g: Glyphs, report: CodebookReport, width: int) -> Table:
    """Return the main figures, one per row."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    bar_width = 18 if width >= WIDE else 10
    rows = [*_sizes(report), *_usage(g, report.use, bar_width), *_rates(report)]
    if report.redundancy is not None:
        rows += _redundancy(g, report.redundancy, bar_width)
    for row in rows:
        table.add_row(*row)
    table.add_row()
    return table


def _sizes(report: CodebookReport) -> list[Row]:
    use, codebooks = report.use, len(report.each)
    several = f"in each of {codebooks} codebooks, " if codebooks > 1 else ""
    files = f"{report.files:,} file" + "s" * (report.files > 1)
    frames = f"{report.frames:,} frame" + "s" * (report.frames > 1)
    zero_code = ", and a zero code" if report.kept is not None else ""
    codes = f"{several}{use.dead:,} dead{zero_code}"
    rows: list[Row] = [
        (" tokens", f"{use.tokens:,}", files, f"{frames}, {report.seconds:,.1f} s"),
        (" codes", f"{use.codebook_size:,}", f"{use.used:,} used", codes),
    ]
    if report.kept is not None:
        per_position = f"{report.tokens_per_position:.3f}"
        rows.insert(1, ("   per position", per_position, "", f"{report.positions:,} positions"))
    return rows


def _usage(g: Glyphs, use: CodebookUse, bar_width: int) -> list[Row]:
    max_entropy = log2(use.codebook_size)
    share, by_chance = use.perplexity / use.codebook_size, use.usage_by_chance
    usage_bar = bar(g, use.usage, bar_width, by_chance)
    perplexity_bar = bar(g, share, bar_width)
    entropy_bar = bar(g, use.entropy_bits / (max_entropy or 1), bar_width)
    entropy, corrected = f"{use.entropy_bits:.3f}", f"{use.entropy_bits_corrected:.3f}"
    return [
        (" usage", f"{use.usage:.2%}", usage_bar, f"by chance {by_chance:.2%}"),
        (" perplexity", f"{use.perplexity:,.1f}", perplexity_bar, f"{share:.2%} of the codes"),
        (" entropy", entropy, entropy_bar, f"of {max_entropy:.3f} bits (plug-in)"),
        ("   corrected", corrected, "", "Miller-Madow"),
    ]


def _rates(report: CodebookReport) -> list[Row]:
    bpp, kbps = report.bits_per_pixel, report.kilobits_per_second
    ideal_bpp, ideal_kbps = report.bits_per_pixel_ideal, report.kilobits_per_second_ideal
    rows: list[Row] = [
        (" bits per pixel", f"{bpp:.4f}", f"ideal {ideal_bpp:.4f}", "with entropy coding"),
        (" kbit/s", f"{kbps:,.1f}", f"ideal {ideal_kbps:,.1f}", "at clip frame rate"),
    ]
    if report.kept is not None:
        bpp, kbps = report.bits_per_pixel_tokens, report.kilobits_per_second_tokens
        rows.insert(1, ("   tokens alone", f"{bpp:.4f}", "", "not where they are"))
        rows.append(("   tokens alone", f"{kbps:,.1f}", "", ""))
    return rows


def _redundancy(g: Glyphs, redundancy: TemporalRedundancy, bar_width: int) -> list[Row]:
    sampled = redundancy.sampled_pairs != redundancy.pairs
    estimate = "plug-in, sampled" if sampled else "plug-in"
    if redundancy.unseen > MAX_UNSEEN:
        estimate += f"; unreliable, {redundancy.unseen:.0%} unseen"
    repeats_bar = bar(g, redundancy.repeats, bar_width)
    pairs = f"{redundancy.sampled_pairs:,} pairs"
    return [
        (" repeats", f"{redundancy.repeats:.2%}", repeats_bar, "same as previous"),
        ("   entropy", f"{redundancy.repeat_model_bits:.3f}", "bits/token", "with a repeat flag"),
        ("   conditional", f"{redundancy.conditional_bits:.3f}", pairs, estimate),
    ]


def _codes(g: Glyphs, report: CodebookReport) -> Group:
    if len(report.each) > 1:
        return section("each codebook", _each_codebook(report.each, report.kept))
    return section("most used codes", _top_codes(g, report.use))


def _top_codes(g: Glyphs, use: CodebookUse) -> Table:
    """Return the most used codes, with their share of all tokens."""
    table = _number_table("index", "count", "share")
    for index, count in use.top:
        count_bar = bar(g, count / use.top[0][1], TABLE_BAR)
        table.add_row(f"{index}", f"{count:,}", f"{count / use.tokens:.2%}", count_bar)
    return table


def _each_codebook(uses: list[CodebookUse], kept: list[float] | None) -> Table:
    """Return the usage of several codebooks, one per row."""
    first = "used" if kept is None else "kept"  # both would not fit
    table = _number_table("", first, "usage", "perplexity", "bits")
    for i, use in enumerate(uses):
        figures = f"{use.usage:.1%}", f"{use.perplexity:,.1f}", f"{use.entropy_bits:.3f}"
        table.add_row(f"{i}", f"{use.used:,}" if kept is None else f"{kept[i]:.1%}", *figures)
    return table


def _histogram(g: Glyphs, histogram: list[tuple[int, int, int]]) -> Table:
    """Return how many codes are used how often, one bin per row."""
    table = _number_table("uses", "codes")
    highest = max(codes for *_, codes in histogram)
    for least, most, codes in histogram:
        label = f"{least:,}" if least == most else f"{least:,}+"
        table.add_row(label, f"{codes:,}", bar(g, codes / highest, TABLE_BAR))
    return table


def _time_profile(g: Glyphs, time_profile: list[TimeBin]) -> Table:
    """Return sparklines of bits per token and of codes per latent frame."""
    table = Table.grid(padding=(0, 1))
    bits = [time_bin.bits for time_bin in time_profile]
    codes = [time_bin.codes for time_bin in time_profile]
    if known := [b for b in bits if b is not None]:
        table.add_row("bits", sparkline(g, bits), f"{min(known):.1f}-{max(known):.1f}")
    table.add_row("codes", sparkline(g, codes), f"{min(codes):.0f}-{max(codes):.0f}")
    return table


def _kept(g: Glyphs, time_profile: list[TimeBin]) -> Table:
    """Return a sparkline from zero of the share of positions with a token, for each stage."""
    table = Table.grid(padding=(0, 1))
    for stage, shares in enumerate(zip(*(b.kept or [] for b in time_profile), strict=True)):
        percent = f"{100 * min(shares):.1f}-{100 * max(shares):.1f}"
        table.add_row(f"{stage}", sparkline(g, shares, low=0), percent)
    return table


def _map(g: Glyphs, values: list[list[float | None]]) -> Group | Text:
    """Return a heat map with its scale."""
    known = [value for row in values for value in row if value is not None]
    if not known:
        return Text("no tokens")
    scale = Text.assemble(f"{min(known):.2f} ", (g.shades, "cyan"), f" {max(known):.2f}")
    return Group(heatmap(g, values), scale)


def _levels(g: Glyphs, dimensions: list[list[float]]) -> Table:
    """Return the level shares of each FSQ dimension, as a sparkline from zero and in percent."""
    table = Table.grid(padding=(0, 1))
    for i, shares in enumerate(dimensions):
        percent = " ".join(f"{100 * share:2.0f}" for share in shares)
        table.add_row(f"{i}", sparkline(g, shares, low=0), percent)
    return table


def _bit_shares(g: Glyphs, bits: BitStatistics) -> Table:
    """Return the share of ones in each bit, two bits per row."""
    table = Table.grid(padding=(0, 1))
    cells = [(f"{i}", bar(g, p, 10), f"{100 * p:.1f}") for i, p in enumerate(bits.ones)]
    for i in range(0, len(cells), 2):
        table.add_row(*(part for cell in cells[i : i + 2] for part in cell))
    return table


def _correlations(bits: BitStatistics) -> Table | Text:
    """Return the strongest correlations between two bits."""
    if not bits.correlations:
        return Text("none: at most one bit varies")
    table = Table.grid(padding=(0, 2))
    for i, j, correlation in bits.correlations[:MAX_CORRELATIONS]:
        table.add_row(f"{i} and {j}", f"{correlation:+.3f}")
    return table


def _number_table(*headings: str) -> Table:
    """Return an empty table of right-aligned columns, and one more for a bar."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table
