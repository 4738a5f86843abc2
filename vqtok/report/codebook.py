"""The codebook report of one tokenizer's tokens as a screen."""

from math import log2

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vqtok.codebook_stats.codebook_report import CodebookReport
from vqtok.codebook_stats.structure import Bits, Repetition
from vqtok.codebook_stats.usage import CodebookUse
from vqtok.codebook_stats.verdict import Verdict
from vqtok.report.widgets import COLOURS, WIDE, Glyphs, columns, glyphs, heat, line, meter, section

BAR = 6  # characters of a meter in a table
SHOWN = 5  # correlations of bits
TRUSTED = 0.1  # unseen pairs: with more, the conditional entropy is not to be trusted
UNKNOWN = "not known here: name the tokenizer with --tokenizer"

Row = tuple[str, str, RenderableType, str]


def report(figures: CodebookReport, console: Console) -> Group:
    """What `vqtok stats` prints: the verdict first, then what it rests on."""
    g, width = glyphs(console), console.width
    stride = "x".join(map(str, figures.stride))
    heading = f"codebook report: {figures.name} ({figures.quantizer} {stride})"
    head = verdict(figures.verdict, heading)
    left, right = [_codes(g, figures)], [section("codes by times used", histogram(g, figures))]
    if len(figures.over_time) > 1:
        left.append(section("along the clip", over_time(g, figures)))
    if sum(map(len, figures.over_picture)) > 1:
        right.append(section("bits a token, over the picture", over_picture(g, figures)))
    if figures.quantizer == "fsq":
        content = levels(g, figures.levels) if figures.levels else UNKNOWN
        left.append(section("share of each level, in %", content))
    if figures.bits:
        left.append(section("bits that are 1, in %", balance(g, figures.bits)))
        right.append(section("bits that go together", correlations(figures.bits)))
    return Group(head, summary(g, figures, width), columns(width, left, right))


def _codes(g: Glyphs, figures: CodebookReport) -> RenderableType:
    if len(figures.each) > 1:
        return section("each codebook", each_codebook(figures.each))
    return section("most used codes", top_codes(g, figures.use))


def verdict(verdict: Verdict, heading: str) -> Panel:
    """The word in its colour, and the reason."""
    colour = COLOURS[verdict.state]
    text = Text.assemble((verdict.state.upper(), f"bold {colour}"), f"  {verdict.reason}")
    return Panel(text, title=Text(heading), title_align="left", border_style=colour)


def summary(g: Glyphs, figures: CodebookReport, width: int) -> Table:
    """The figures: what, how much, beside what."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    length = 18 if width >= WIDE else 10
    rows = [*_sizes(figures), *_use(g, figures, length), *_cost(figures)]
    for row in rows + _repeats(g, figures.repetition, length):
        table.add_row(*row)
    table.add_row()
    return table


def _sizes(figures: CodebookReport) -> list[Row]:
    use, number = figures.use, len(figures.each)
    several = f"in each of {number} codebooks, " if number > 1 else ""
    files = f"{figures.files:,} file" + "s" * (figures.files > 1)
    frames = f"{figures.frames:,} frame" + "s" * (figures.frames > 1)
    return [
        (
            " tokens",
            f"{use.tokens:,}",
            files,
            f"{frames}, {figures.seconds:,.1f} s",
        ),
        (" codes", f"{use.codebook_size:,}", f"{use.used:,} used", f"{several}{use.dead:,} dead"),
    ]


def _use(g: Glyphs, figures: CodebookReport, length: int) -> list[Row]:
    use, most = figures.use, log2(figures.use.codebook_size)
    share, chance = use.perplexity / use.codebook_size, use.usage_by_chance
    entropy = meter(g, use.entropy_bits / (most or 1), length)
    return [
        (
            " usage",
            f"{use.usage:.2%}",
            meter(g, use.usage, length, chance),
            f"chance gives {chance:.2%}",
        ),
        (
            " perplexity",
            f"{use.perplexity:,.1f}",
            meter(g, share, length),
            f"{share:.2%} of the codes",
        ),
        (" entropy", f"{use.entropy_bits:.3f}", entropy, f"of {most:.3f} bits (plug-in)"),
        (
            "   corrected",
            f"{use.entropy_bits_corrected:.3f}",
            "",
            "by Miller-Madow",
        ),
    ]


def _cost(figures: CodebookReport) -> list[Row]:
    bpp, rate = figures.bits_per_pixel_ideal, figures.kilobits_per_second_ideal
    return [
        (
            " bits per pixel",
            f"{figures.bits_per_pixel:.4f}",
            f"ideal {bpp:.4f}",
            "with entropy coding",
        ),
        (
            " kbit/s",
            f"{figures.kilobits_per_second:,.1f}",
            f"ideal {rate:,.1f}",
            "at the clips' rate",
        ),
    ]


def _repeats(g: Glyphs, found: Repetition | None, length: int) -> list[Row]:
    """What a model that looks one token back in time could save."""
    if found is None:
        return []
    sample = "plug-in" if found.pairs == found.number else "plug-in, of a sample"
    doubt = f"; too few: {found.unseen:.0%} new" if found.unseen > TRUSTED else ""
    repeats = meter(g, found.repeats, length)
    return [
        (" repeats", f"{found.repeats:.2%}", repeats, "equal the token before"),
        ("   knowing them", f"{found.repeat_bits:.3f}", "bits a token", "a simple model needs"),
        ("   by pairs", f"{found.conditional_bits:.3f}", f"{found.pairs:,} pairs", sample + doubt),
    ]


def top_codes(g: Glyphs, use: CodebookUse) -> Table:
    """The most used codes, with their share of all tokens."""
    table = _numbers("index", "count", "share")
    for index, count in use.top:
        share = meter(g, count / use.top[0][1], BAR)
        table.add_row(f"{index}", f"{count:,}", f"{count / use.tokens:.2%}", share)
    return table


def histogram(g: Glyphs, figures: CodebookReport) -> Table:
    """How many codes are used how often, in classes that grow by a factor."""
    table = _numbers("times used", "codes")
    most = max(codes for *_, codes in figures.histogram)
    for low, high, codes in figures.histogram:
        name = f"{low:,}" if low == high else f"{low:,}+"
        table.add_row(name, f"{codes:,}", meter(g, codes / most, BAR))
    return table


def each_codebook(uses: list[CodebookUse]) -> Table:
    """A row for each of several codebooks."""
    table = _numbers("", "used", "usage", "perplexity", "bits")
    for i, use in enumerate(uses):
        values = f"{use.usage:.1%}", f"{use.perplexity:,.1f}", f"{use.entropy_bits:.3f}"
        table.add_row(f"{i}", f"{use.used:,}", *values)
    return table


def over_time(g: Glyphs, figures: CodebookReport) -> Table:
    """Entropy and number of codes of a latent frame, along the clips."""
    table = Table.grid(padding=(0, 1))
    bits = [part.bits for part in figures.over_time]
    codes = [part.codes for part in figures.over_time]
    table.add_row("bits", line(g, bits), f"{min(bits):.1f}-{max(bits):.1f}")
    table.add_row("codes", line(g, codes), f"{min(codes):.0f}-{max(codes):.0f}")
    return table


def over_picture(g: Glyphs, figures: CodebookReport) -> Group:
    """A map of the entropy by position, with its scale."""
    flat = [bits for row in figures.over_picture for bits in row if bits is not None]
    scale = Text.assemble(f"{min(flat):.2f} ", (g.shades, "cyan"), f" {max(flat):.2f}")
    return Group(heat(g, figures.over_picture), scale)


def levels(g: Glyphs, dimensions: list[list[float]]) -> Table:
    """A row for each dimension of FSQ: a line from 0 up, and the numbers."""
    table = Table.grid(padding=(0, 1))
    for i, shares in enumerate(dimensions):
        numbers = " ".join(f"{100 * share:2.0f}" for share in shares)
        table.add_row(f"{i}", line(g, shares, low=0), numbers)
    return table


def balance(g: Glyphs, bits: Bits) -> Table:
    """Two bits a row, the highest first, each with its share of ones."""
    table = Table.grid(padding=(0, 1))
    cells = [(f"{i}", meter(g, p, 10), f"{100 * p:.1f}") for i, p in enumerate(bits.ones)]
    for i in range(0, len(cells), 2):
        table.add_row(*(part for cell in cells[i : i + 2] for part in cell))
    return table


def correlations(bits: Bits) -> Table | Text:
    """The strongest correlations between two bits."""
    if not bits.correlations:
        return Text("no two bits vary")
    table = Table.grid(padding=(0, 2))
    for one, other, strength in bits.correlations[:SHOWN]:
        table.add_row(f"{one} and {other}", f"{strength:+.3f}")
    return table


def _numbers(*names: str) -> Table:
    """An empty table with a head, of columns of numbers and one more."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table
