"""Terminal widgets: bars, sparklines and heat maps, in characters that the terminal can show."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

WIDE = 78  # characters: from here on, two columns and longer bars fit
MIN_RANGE = 0.02  # of the highest value

# Only the 16 named colors: every terminal shows them in shades that are readable there.
STATUS_COLORS = {
    "healthy": "green",
    "uneven": "yellow",
    "collapsed": "red",
    "too few tokens": "cyan",
    "too few clips": "cyan",
}


@dataclass(frozen=True)
class Glyphs:
    """The characters of widgets.

    full, empty, mark: of a bar; steps: of a sparkline, and shades: of a heat map, from low to
    high; best: marks the best value of a row.
    """

    full: str
    empty: str
    mark: str
    steps: str
    shades: str
    best: str


UNICODE = Glyphs("█", "·", "│", "▁▂▃▄▅▆▇█", "·░▒▓█", "◀")
ASCII = Glyphs("#", ".", "|", "_.:-=+*#", ".:+%#", "<")


def glyphs(console: Console) -> Glyphs:
    """Return the glyphs that the console's encoding can represent."""
    return ASCII if console.options.ascii_only else UNICODE


def bar(g: Glyphs, share: float, width: int, mark: float | None = None) -> Text:
    """Return a bar for a share in 0..1, at least one character long unless the share is zero.

    mark: another share in 0..1, marked for comparison.
    """
    full = min(width, max(round(share * width), int(share > 0)))
    text = Text(g.full * full, "cyan") + Text(g.empty * (width - full))
    if mark is not None:
        position = min(width - 1, round(mark * width))
        text = text[:position] + Text(g.mark, "bold") + text[position + 1 :]
    return text


def sparkline(g: Glyphs, values: Sequence[float | None], low: float | None = None) -> Text:
    """Return one character per value, scaled from `low` (default: the minimum) to the maximum.

    None is blank.
    """
    known = [v for v in values if v is not None]
    low, high = min(known) if low is None else low, max(known)
    steps = (" " if v is None else _level(g.steps, v, low, high) for v in values)
    return Text("".join(steps), "cyan")


def heatmap(g: Glyphs, values: Sequence[Sequence[float | None]]) -> Text:
    """Return three characters per value, scaled from the minimum to the maximum; None is blank."""
    known = [v for row in values for v in row if v is not None]
    low, high = min(known), max(known)
    rows = (
        "".join(" " * 3 if v is None else _level(g.shades, v, low, high) * 3 for v in row)
        for row in values
    )
    return Text("\n".join(rows), "cyan", no_wrap=True)


def _level(characters: str, value: float, low: float, high: float) -> str:
    """Return the character for a value; a range below MIN_RANGE is not stretched to all of them."""
    span = max(high - low, MIN_RANGE * high)
    return characters[round((value - low) / span * (len(characters) - 1)) if span else 0]


def section(title: str, content: RenderableType) -> Group:
    """Return content under a title, followed by a blank line."""
    return Group(Text(title, "bold"), Padding(content, (0, 0, 1, 1)))


def columns(
    width: int, left: Sequence[RenderableType], right: Sequence[RenderableType]
) -> RenderableType:
    """Return two columns if the screen is wide enough, else one below the other."""
    if width < WIDE:
        return Group(*left, *right)
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(Group(*left), Group(*right))
    return grid


def progress_bar(
    console: Console, label: TextColumn, disable: bool = False, transient: bool = False
) -> Progress:
    """Return a progress bar with a label, the count of steps and the remaining time.

    disable: draw nothing. transient: erase the bar at the end.
    """
    columns = (label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=disable, transient=transient)
