"""Codebook reports of several tokenizers side by side."""

from collections.abc import Callable, Sequence
from math import log2

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vqtok.codebook_stats.codebook_report import CodebookReport
from vqtok.report.widgets import STATUS_COLORS, Glyphs, glyphs

LABEL_WIDTH = 16  # characters of the first column
COLUMN_WIDTH = 16  # at least, of each other column

# Label, value, format, and which value is best: 1 the highest, -1 the lowest, 0 neither. More
# tokens use more codes, so usage alone is not compared, but its ratio to usage by chance.
Row = tuple[str, Callable[[CodebookReport], float | None], str, int]
ROWS: tuple[Row, ...] = (
    ("files", lambda r: r.files, ",.0f", 0),
    ("tokens", lambda r: r.use.tokens, ",.0f", 0),
    ("  per position", lambda r: r.tokens_per_position, ".3f", 0),
    ("codes", lambda r: r.use.codebook_size, ",.0f", 0),
    ("dead codes", lambda r: r.use.dead, ",.0f", 0),
    ("usage", lambda r: r.use.usage, ".2%", 0),
    ("usage / chance", lambda r: r.use.usage / (r.use.usage_by_chance or 1), ".2%", 1),
    ("perplexity", lambda r: r.use.perplexity, ",.1f", 1),
    ("  of the codes", lambda r: r.use.perplexity / r.use.codebook_size, ".2%", 1),
    ("entropy, bits", lambda r: r.use.entropy_bits, ".3f", 1),
    ("  corrected", lambda r: r.use.entropy_bits_corrected, ".3f", 1),
    ("  maximum", lambda r: log2(r.use.codebook_size), ".3f", 0),
    ("bits per pixel", lambda r: r.bits_per_pixel, ".4f", -1),
    ("  ideal", lambda r: r.bits_per_pixel_ideal, ".4f", -1),
    ("  tokens alone", lambda r: r.bits_per_pixel_tokens, ".4f", -1),
    ("kbit/s", lambda r: r.kilobits_per_second, ",.1f", -1),
    ("  ideal", lambda r: r.kilobits_per_second_ideal, ",.1f", -1),
    ("repeats", lambda r: r.redundancy.repeats if r.redundancy else None, ".2%", 0),
)
ZERO_CODE_ROWS = "  per position", "  tokens alone"  # shown if a tokenizer has a zero code


def render_comparison(reports: list[CodebookReport], console: Console) -> Group:
    """Return a column of figures per report, the best of each row marked, and then the reasons.

    Columns that do not fit beside each other go into a table below.
    """
    g = glyphs(console)
    per_table = max(1, (console.width - LABEL_WIDTH) // COLUMN_WIDTH)
    has_zero_code = any(report.kept is not None for report in reports)
    rows = [row for row in ROWS if has_zero_code or row[0] not in ZERO_CODE_ROWS]
    best = [_best([value(report) for report in reports], sign) for _, value, _, sign in rows]
    parts: list[Table | Text] = []
    for start in range(0, len(reports), per_table):
        parts += [_table(g, reports[start : start + per_table], rows, best), Text()]
    for report in reports:
        status = report.health.status
        heading = (f"{report.name}: {status}", f"bold {STATUS_COLORS[status]}")
        parts.append(Text.assemble(heading, f"  {report.health.reason}"))
    return Group(*parts)


def _best(values: list[float | None], sign: int) -> float | None:
    """Return the best value, or None if there is nothing to compare."""
    known = [value for value in values if value is not None]
    if not sign or len(known) < 2 or min(known) == max(known):
        return None
    return max(known) if sign > 0 else min(known)


def _table(
    g: Glyphs, reports: list[CodebookReport], rows: Sequence[Row], best: list[float | None]
) -> Table:
    table = Table(title=f"{g.best} marks the best value", title_justify="left", title_style="")
    table.add_column("", no_wrap=True)
    for report in reports:
        table.add_column(Text(report.name), justify="right", overflow="fold")
    for (label, value, spec, _), best_value in zip(rows, best, strict=True):
        values = [value(report) for report in reports]
        table.add_row(label, *(_cell(g, v, spec, v == best_value) for v in values))
    statuses = [report.health.status for report in reports]
    table.add_row("verdict", *(Text(status, STATUS_COLORS[status]) for status in statuses))
    return table


def _cell(g: Glyphs, value: float | None, spec: str, is_best: bool) -> Text:
    if value is None:
        return Text("-  ")
    return Text(f"{value:{spec}} {g.best}", "bold") if is_best else Text(f"{value:{spec}}  ")
