"""The codes of a checkpoint as a screen."""

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table as Rows
from rich.text import Text

from vqtok.report.widgets import Glyphs, glyphs, line

if TYPE_CHECKING:  # it brings torch along
    from vqtok.codebook_stats.codes import Codes, Spread, Table


def table_report(table: "Table", console: Console) -> RenderableType:
    """What `vqtok stats --tokenizer T` prints."""
    kind, size = table.quantizer, table.codebook_size
    heading = Text(f"codebook: {kind}, {size:,} codes of dim {table.dim}", "bold")
    if table.codes is None:
        return Group(
            heading,
            f"{kind} has no table that could be looked at: every code is there by construction. "
            "Give token files or clips to see how they are used.",
        )
    return Group(heading, _spreads(glyphs(console), table.codes), _remarks(table.codes, size))


def _spreads(g: Glyphs, codes: "Codes") -> Rows:
    rows = Rows(box=None, pad_edge=False, header_style="")
    rows.add_column("")
    for name in ("least", "median", "most"):
        rows.add_column(name, justify="right")
    rows.add_column("least to most")
    named = {"norm": codes.norms, "to the nearest": codes.distances, "EMA count": codes.counts}
    for name, found in named.items():
        if found is not None:
            rows.add_row(name, *_numbers(found), line(g, found.bins, low=0))
    return rows


def _numbers(found: "Spread") -> list[str]:
    return [f"{value:.4g}" for value in (found.least, found.median, found.most)]


def _remarks(codes: "Codes", size: int) -> Text:
    said = [f"{codes.duplicates:,} of {size:,} codes are duplicates of another"]
    if codes.dead is not None:
        said.append(f"{codes.dead:,} are dead: their EMA count is under a hundredth of the mean")
    if codes.idle is not None:
        said.append(f"{codes.idle:,} were not chosen for long: half the steps to a revival")
    return Text("\n".join(said))
