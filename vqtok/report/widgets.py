"""What screens are drawn with: meters, lines and heat maps, in characters the terminal has."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDE = 78  # characters: two columns and longer meters fit
FLAT = 0.02

# The sixteen named colours only: every terminal shows them in its own readable shades.
COLOURS = {
    "healthy": "green",
    "uneven": "yellow",
    "collapsed": "red",
    "too few tokens": "cyan",
    "too few clips": "cyan",
}


@dataclass(frozen=True)
class Glyphs:
    """The characters of a terminal: a meter's two parts and its mark, steps of a line, shades."""

    full: str
    rest: str
    mark: str
    steps: str
    shades: str
    better: str


UNICODE = Glyphs("█", "·", "│", "▁▂▃▄▅▆▇█", "·░▒▓█", "◀")
ASCII = Glyphs("#", ".", "|", "_.:-=+*#", ".:+%#", "<")


def glyphs(console: Console) -> Glyphs:
    """Those that the console's encoding can carry."""
    return ASCII if console.options.ascii_only else UNICODE


def meter(g: Glyphs, share: float, width: int, mark: float | None = None) -> Text:
    """A bar for a share of 0 to 1, anything above zero shows; `mark` stands for another share."""
    full = min(width, max(round(share * width), int(share > 0)))
    text = Text(g.full * full, "cyan") + Text(g.rest * (width - full))
    if mark is not None:
        at = min(width - 1, round(mark * width))
        text = text[:at] + Text(g.mark, "bold") + text[at + 1 :]
    return text


def line(g: Glyphs, values: Sequence[float], low: float | None = None) -> Text:
    """A character for each value, from `low` (by default the lowest value) to the highest."""
    low = min(values) if low is None else low
    return Text("".join(_step(g.steps, v, low, max(values)) for v in values), "cyan")


def heat(g: Glyphs, values: Sequence[Sequence[float | None]]) -> Text:
    """A shade, three characters wide, for each value, from the lowest to the highest."""
    known = [v for row in values for v in row if v is not None]
    low, high = min(known), max(known)
    rows = (
        "".join(" " * 3 if v is None else _step(g.shades, v, low, high) * 3 for v in row)
        for row in values
    )
    return Text("\n".join(rows), "cyan", no_wrap=True)


def _step(steps: str, value: float, low: float, high: float) -> str:
    """The character for a value; a range below FLAT of the highest is not blown up."""
    span = max(high - low, FLAT * high)
    return steps[round((value - low) / span * (len(steps) - 1)) if span else 0]


def section(title: str, content: RenderableType) -> Group:
    """A part of a screen under its title."""
    return Group(Text(title, "bold"), Padding(content, (0, 0, 1, 1)))


def columns(width: int, left: list[RenderableType], right: list[RenderableType]) -> RenderableType:
    """Two columns where the screen is wide enough, else one below the other."""
    if width < WIDE:
        return Group(*left, *right)
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(Group(*left), Group(*right))
    return grid
