"""The codebook report as an image, drawn by matplotlib (the extra `plot`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqtok.atomic import atomic_write
from vqtok.codebook_stats.codebook_report import CodebookReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_plot(reports: list[CodebookReport], path: Path) -> None:
    """Write an image of code frequencies, and of bits and codes over time.

    The fourth plot is the entropy map of a single report, or the entropies of several.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    frequencies, bits, codes, last = figure.subplots(2, 2).flat
    for i, report in enumerate(reports):
        _plot_frequencies(frequencies, report, f"C{i}")
        _plot_over_time(bits, [time_bin.bits for time_bin in report.time_profile], f"C{i}")
        _plot_over_time(codes, [time_bin.codes for time_bin in report.time_profile], f"C{i}")
    frequencies.set(title="code frequencies", xlabel="rank of the code", ylabel="share of tokens")
    if any(report.use.tokens for report in reports):
        frequencies.set(xscale="log", yscale="log")
    frequencies.legend()
    bits.set(title="bits over time", xlabel="relative time", ylabel="bits per token")
    codes.set(title="codes over time", xlabel="relative time", ylabel="codes per latent frame")
    if len(reports) == 1 and sum(map(len, reports[0].entropy_map)) > 1:
        _plot_entropy_map(last, reports[0])
    else:
        last.barh([_label(report) for report in reports], [r.use.entropy_bits for r in reports])
        last.set_title("entropy in bits per token")
    # Without a date, the same tokens give the same file.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata=metadata)


def _label(report: CodebookReport) -> str:
    return report.name.replace("$", r"\$")  # else matplotlib reads the name as a formula


def _plot_frequencies(axes: "Axes", report: CodebookReport, color: str) -> None:
    """Plot the shares of codes by rank, beside the share of every code if all were equal."""
    used = report.occurrences[report.occurrences > 0]
    shares = np.sort(used)[::-1] / max(1, report.use.tokens)
    # Evenly spaced on the log scale: 500 points instead of up to a quarter million.
    ranks = np.unique(np.geomspace(1, max(1, len(shares)), 500).astype(int))[: len(shares)]
    label = f"{_label(report)}: {report.health.status}"
    axes.plot(ranks, shares[ranks - 1], color, label=label)
    axes.axhline(1 / report.occurrences.size, color=color, ls=":")


def _plot_over_time(axes: "Axes", values: Sequence[float | None], color: str) -> None:
    times = (np.arange(len(values)) + 0.5) / len(values)
    axes.plot(times, np.array(values, float), color, marker=".")  # None is a gap


def _plot_entropy_map(axes: "Axes", report: CodebookReport) -> None:
    image = axes.imshow(np.array(report.entropy_map, float))
    axes.figure.colorbar(image, ax=axes, label="bits per token")
    axes.set_title("bits per token by position")
