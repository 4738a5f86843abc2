"""The table of `vqtok eval`."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

# Key of the figures: heading, format.
COLUMNS = {
    "frames": ("frames", "{:.0f}"),
    "psnr": ("PSNR", "{:.2f}"),
    "blocks_psnr": ("block PSNR", "{:.2f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "blocks_ssim": ("block SSIM", "{:.3f}"),
    "bits_per_pixel": ("bits/pixel", "{:.4f}"),
    "usage": ("usage", "{:.1%}"),
    "encode_fps": ("encode fps", "{:.1f}"),
    "decode_fps": ("decode fps", "{:.1f}"),
}


def evaluation_table(figures: dict[str, Any]) -> Table:
    """Return a table that is also valid Markdown: one row per clip, and their mean.

    figures: `clips`, a list of dicts with the key `clip` (the name) and those of COLUMNS, and
    `mean`, the same for all clips together.
    """
    table = Table(box=box.MARKDOWN)
    table.add_column("clip")
    for heading, _ in COLUMNS.values():
        table.add_column(heading, justify="right")
    mean = {"clip": f"mean of {len(figures['clips'])}"} | figures["mean"]
    for row in [*figures["clips"], mean]:
        cells = [spec.format(row[key]) for key, (_, spec) in COLUMNS.items()]
        table.add_row(Text(row["clip"]), *cells)
    return table
