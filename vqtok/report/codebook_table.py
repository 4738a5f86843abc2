"""The codes of a checkpoint as a screen."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from vqtok.codebook_stats.codes import CodebookTable, CodeStatistics
from vqtok.report.widgets import Glyphs, glyphs, sparkline


def render_codebook(codebook: CodebookTable, console: Console) -> RenderableType:
    """Return the screen of `vqtok stats --tokenizer T`."""
    kind, size = codebook.quantizer, codebook.codebook_size
    heading = Text(f"codebook: {kind}, {size:,} codes of dim {codebook.dim}", "bold")
    if codebook.codes is None:
        return Group(
            heading,
            f"{kind} has no learned codebook: every code exists by construction. "
            "Pass token files or clips to see how the codes are used.",
        )
    remarks = Text("\n".join(_remarks(codebook.codes, size)))
    return Group(heading, _distributions(glyphs(console), codebook.codes), remarks)


def _distributions(g: Glyphs, codes: CodeStatistics) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("")
    for heading in ("min", "median", "max"):
        table.add_column(heading, justify="right")
    table.add_column("min to max")
    rows = {"norm": codes.norms, "nearest distance": codes.distances, "EMA count": codes.counts}
    for label, values in rows.items():
        if values is not None:
            numbers = (f"{value:.4g}" for value in (values.least, values.median, values.most))
            table.add_row(label, *numbers, sparkline(g, values.bins, low=0))
    return table


def _remarks(codes: CodeStatistics, size: int) -> list[str]:
    remarks = [f"{codes.duplicates:,} of {size:,} codes duplicate another code"]
    if codes.dead is not None:
        remarks.append(f"{codes.dead:,} are dead: their EMA count is below 1% of the mean")
    if codes.idle is not None:
        remarks.append(f"{codes.idle:,} are idle: unused for revive_after / 2 steps or more")
    return remarks
