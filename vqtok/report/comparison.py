"""Several codebook reports side by side."""

from collections.abc import Callable
from math import log2

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from vqtok.codebook_stats.codebook_report import CodebookReport
from vqtok.report.widgets import COLOURS, Glyphs, glyphs

NAMES = 16  # characters of the first column
COLUMN = 16  # characters of each other, at least

Value = Callable[[CodebookReport], float | None]

# What is compared, how it is written, and which is better: 1 more, -1 less, 0 neither. More tokens
# alone use more codes, so usage is judged beside that by chance.
ROWS: tuple[tuple[str, Value, str, int], ...] = (
    ("files", lambda f: f.files, ",.0f", 0),
    ("tokens", lambda f: f.use.tokens, ",.0f", 0),
    ("codes", lambda f: f.use.codebook_size, ",.0f", 0),
    ("dead codes", lambda f: f.use.dead, ",.0f", 0),
    ("usage", lambda f: f.use.usage, ".2%", 0),
    ("usage / chance", lambda f: f.use.usage / f.use.usage_by_chance, ".2%", 1),
    ("perplexity", lambda f: f.use.perplexity, ",.1f", 1),
    ("share of codes", lambda f: f.use.perplexity / f.use.codebook_size, ".2%", 1),
    ("entropy, bits", lambda f: f.use.entropy_bits, ".3f", 1),
    ("corrected", lambda f: f.use.entropy_bits_corrected, ".3f", 1),
    ("at most", lambda f: log2(f.use.codebook_size), ".3f", 0),
    ("bits per pixel", lambda f: f.bits_per_pixel, ".4f", -1),
    ("ideal", lambda f: f.bits_per_pixel_ideal, ".4f", -1),
    ("kbit/s", lambda f: f.kilobits_per_second, ",.1f", -1),
    ("ideal", lambda f: f.kilobits_per_second_ideal, ",.1f", -1),
    ("repeats", lambda f: f.repetition and f.repetition.repeats, ".2%", 0),
)


def comparison(runs: list[CodebookReport], console: Console) -> Group:
    """Columns of figures, the better ones marked; as many beside each other as fit.

    In the last row a run's verdict; the reasons follow below.
    """
    g, fit = glyphs(console), max(1, (console.width - NAMES) // COLUMN)
    best = [_best([value(run) for run in runs], sign) for _, value, _, sign in ROWS]
    parts: list[Table | Text] = []
    for start in range(0, len(runs), fit):
        parts += [_table(g, runs[start : start + fit], best), Text()]
    for run in runs:
        colour = COLOURS[run.verdict.state]
        heading = (f"{run.name}: {run.verdict.state}", f"bold {colour}")
        parts.append(Text.assemble(heading, f"  {run.verdict.reason}"))
    return Group(*parts)


def _best(values: list[float | None], sign: int) -> float | None:
    """The better of the values, where there is one."""
    known = [value for value in values if value is not None]
    if not sign or len(known) < 2 or min(known) == max(known):
        return None
    return max(known) if sign > 0 else min(known)


def _table(g: Glyphs, runs: list[CodebookReport], best: list[float | None]) -> Table:
    table = Table(title=f"{g.better} marks the better", title_justify="left", title_style="")
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(Text(run.name), justify="right", overflow="fold")
    for (name, value, form, _), better in zip(ROWS, best, strict=True):
        cells = [value(run) for run in runs]
        table.add_row(name, *(_cell(g, cell, form, cell == better) for cell in cells))
    table.add_row("verdict", *(Text(r.verdict.state, COLOURS[r.verdict.state]) for r in runs))
    return table


def _cell(g: Glyphs, value: float | None, form: str, better: bool) -> Text:
    if value is None:
        return Text("-  ")
    return Text(f"{value:{form}} {g.better}", "bold") if better else Text(f"{value:{form}}  ")
