"""Draw what rate_distortion.py measured, and print its table.

    python scripts/plot_rates.py RESULTS.json -o FILE.png

PSNR and SSIM against bits per pixel, means over clips. The solid curve of the tokenizer counts the
bits of its tokens and of the map of where they are, the dotted one those of the tokens alone. The
axis on top gives the tokens per position of the solid curve.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOKENIZER, FIXED, X264, BLOCKS = "tokenizer", "fixed grid", "x264", "block averages"
COLORS = {TOKENIZER: "#1f6fd0", X264: "#d95f02", FIXED: "#1b8a5a", BLOCKS: "#6b6b6b"}
Coordinates = tuple[float, float]  # bits per pixel, and PSNR or SSIM
HEADINGS = (
    *("", "tokens/position", "bits/pixel, tokens", "with map", "PSNR", "SSIM"),
    *("x264 bits/pixel", "x264 PSNR", "x264 SSIM"),
)


@dataclass(frozen=True)
class Point:
    """A clip coded in some way, or the mean over clips.

    method: TOKENIZER, FIXED, X264 or BLOCKS.
    rate: what the tokenizer was asked for; of x264, the rate whose bits it takes.
    bits_per_pixel: of the stream, with the map of tokens.
    token_bits_per_pixel: of the tokens alone.
    """

    method: str
    rate: str
    psnr: float
    ssim: float
    bits_per_pixel: float = math.nan
    token_bits_per_pixel: float = math.nan
    tokens_per_position: float = math.nan


def mean_points(clips: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the means over clips of points that are in the same order in each."""
    means = []
    for points in zip(*clips, strict=True):
        rows = [asdict(point) for point in points]
        numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
        means.append(
            Point(**rows[0] | {name: fmean(row[name] for row in rows) for name in numbers})
        )
    return means


def table(points: Sequence[Point]) -> str:
    """Return a Markdown table: a row per point of the tokenizers, beside x264 at its bits."""
    rows = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1))]
    x264 = {point.rate: point for point in points if point.method == X264}
    for point in points:
        quality = f"{point.psnr:.2f}", f"{point.ssim:.3f}"
        if point.method == BLOCKS:
            rows.append((BLOCKS, "", "", "", *quality, "", "", ""))
        elif point.method != X264:
            bits = f"{point.token_bits_per_pixel:.4f}", f"{point.bits_per_pixel:.4f}"
            rival = x264[point.rate]
            x264_quality = f"{rival.psnr:.2f}", f"{rival.ssim:.3f}"
            left = point.rate, f"{point.tokens_per_position:.3f}", *bits, *quality
            rows.append((*left, f"{rival.bits_per_pixel:.4f}", *x264_quality))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def save_plot(points: Sequence[Point], path: Path) -> None:
    """Write an image of 1800 pixels' width, which is sharp at half that."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 4), dpi=200, layout="constrained", facecolor="white")
        for axes, metric, label in zip(
            figure.subplots(1, 2), ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True
        ):
            _plot_metric(axes, points, metric)
            axes.set_title(label, loc="left", fontweight="bold")
            axes.set_xlabel("bits per pixel (dotted: of the tokens alone)")
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:].lower())


def _plot_metric(axes: "Axes", points: Sequence[Point], metric: str) -> None:
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    curves = {}
    for method in (X264, TOKENIZER, FIXED):
        chosen = [point for point in points if point.method == method]
        chosen.sort(key=lambda point: point.bits_per_pixel)
        curves[method] = [(point.bits_per_pixel, getattr(point, metric)) for point in chosen]
        axes.plot(*zip(*curves[method], strict=True), "o-", color=COLORS[method], markersize=4)
    spent = [point for point in points if point.method == TOKENIZER]
    alone = [(point.token_bits_per_pixel, getattr(point, metric)) for point in spent]
    axes.plot(*zip(*alone, strict=True), ":", color=COLORS[TOKENIZER], linewidth=1.2)
    blocks = next(getattr(point, metric) for point in points if point.method == BLOCKS)
    axes.axhline(blocks, color=COLORS[BLOCKS], linestyle="--", linewidth=1)
    axes.margins(y=0.08)
    axes.set_xlim(left=0)
    _label_curves(axes, curves, blocks)
    _add_token_axis(axes, spent)


def _label_curves(
    axes: "Axes",
    curves: dict[str, list[Coordinates]],
    blocks: float,
) -> None:
    """Write the names of the curves beside them."""

    def label(text: str, method: str, at: Coordinates, offset: tuple[int, int]) -> None:
        align = "right" if offset[0] < 0 else "left"
        note = axes.annotate(text, at, offset, textcoords="offset points", color=COLORS[method])
        note.set(ha=align, va="center")

    x264, spent = curves[X264], curves[TOKENIZER]
    side = 1 if x264[-1][1] > spent[-1][1] else -1
    label("x264", X264, x264[-1], (-9, 5 * side))
    label("vqtok", TOKENIZER, spent[-1], (-1, -11 * side))
    label("fixed grid", FIXED, curves[FIXED][0], (6, -8))
    label("block averages", BLOCKS, (axes.get_xlim()[1], blocks), (-2, 7))


def _add_token_axis(axes: "Axes", spent: Sequence[Point]) -> None:
    """Put tokens per position on top, at the bits of the tokenizer's points."""
    top = axes.secondary_xaxis("top")
    top.tick_params(labelsize=8)
    top.set_xticks(
        [point.bits_per_pixel for point in spent],
        [f"{point.tokens_per_position:.2f}".rstrip("0").rstrip(".") for point in spent],
    )
    top.set_xlabel("tokens per position")


def main(results: Path, output: Annotated[Path, typer.Option("-o", "--output")]) -> None:
    clips = json.loads(results.read_text())["clips"]
    points = mean_points([[Point(**point) for point in clip] for clip in clips.values()])
    print(table(points))
    save_plot(points, output)


if __name__ == "__main__":
    typer.run(main)
