"""The tables of `vqtok eval`."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

# Key of the figures: heading, format.
COLUMNS = {
    "frames": ("frames", "{:.0f}"),
    "tokens_per_position": ("tokens/position", "{:.3f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "unquantized_psnr": ("unquantized", "{:.2f}"),
    "blocks_psnr": ("block PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "blocks_ssim": ("block SSIM", "{:.3f}"),
    "bits_per_pixel": ("bits/pixel", "{:.4f}"),
    "usage": ("usage", "{:.1%}"),
    "encode_fps": ("encode fps", "{:.1f}"),
    "decode_fps": ("decode fps", "{:.1f}"),
}
CURVE_COLUMNS = ("tokens_per_position", "psnr", "ssim", "bits_per_pixel")


def evaluation_table(figures: dict[str, Any]) -> Table:
    """Return a table that is also valid Markdown: one row per clip, and their mean.

    figures: `clips`, a list of dicts with the key `clip` (the name) and those of COLUMNS, and
    `mean`, the same for all clips together.
    """
    mean = {"clip": f"mean of {len(figures['clips'])}"} | figures["mean"]
    # Without a zero code, there is one token at each position.
    hidden = {"tokens_per_position"} if mean["tokens_per_position"] == 1 else set()
    columns = [key for key in COLUMNS if key not in hidden]
    return _table("clip", columns, [*figures["clips"], mean])


def curve_table(figures: dict[str, Any]) -> Table:
    """Return a table that is also valid Markdown: one row per rate, with means over all clips.

    figures: `rates`, a list of dicts with the key `rate` and those of CURVE_COLUMNS.
    """
    return _table("rate", CURVE_COLUMNS, figures["rates"])


def _table(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with the key `name` of the rows on the left, and these of COLUMNS."""
    table = Table(name, box=box.MARKDOWN)
    for key in columns:
        table.add_column(COLUMNS[key][0], justify="right")
    for row in rows:
        table.add_row(Text(row[name]), *(COLUMNS[key][1].format(row[key]) for key in columns))
    return table
