"""The codebook report as a picture, drawn by matplotlib (the extra `plot`)."""

from itertools import count
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqtok.codebook_stats.codebook_report import CodebookReport
from vqtok.errors import UsageError
from vqtok.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")


def check_plot(path: Path, force: bool) -> None:
    """UsageError if the picture cannot be drawn: another suffix, no folder, no matplotlib, or,
    without `force`, a file that is there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path}: must end in {' or '.join(SUFFIXES)}")
    if not path.resolve().parent.is_dir():
        raise UsageError(f"{path.parent}: no such folder")
    if path.exists() and not force:
        raise UsageError(f"{path} exists: --force overwrites it")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install matplotlib") from None


def plot(runs: list[CodebookReport], path: Path) -> None:
    """Write the picture: ranks, entropy and usage along the clips; over the picture for one run."""
    from matplotlib.figure import Figure

    single = len(runs) == 1 and sum(map(len, runs[0].over_picture)) > 1
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2).flat
    for i, run in zip(count(), runs, strict=False):
        _ranks(axes[0], run, f"C{i}")
        _along(axes[1], [part.bits for part in run.over_time], f"C{i}")
        _along(axes[2], [part.codes for part in run.over_time], f"C{i}")
    _name(axes[0], "how often the codes are used", "code, the most used first", "share of tokens")
    _name(axes[1], "bits in time", "part of the clip", "bits per token")
    _name(axes[2], "codes of a latent frame", "part of the clip", "different codes")
    axes[0].set(xscale="log", yscale="log")
    axes[0].legend()
    if single:
        _picture(axes[3], runs[0])
    else:
        axes[3].barh([run.name for run in runs], [r.use.entropy_bits for r in runs])
        axes[3].set_title("entropy in bits per token")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), metadata=_undated(path))


def _ranks(axes: "Axes", run: CodebookReport, colour: str) -> None:
    shares = np.sort(run.counts[run.counts > 0])[::-1] / run.use.tokens
    # Points even on a log scale: a picture of a quarter million would be a large file.
    ranks = np.unique(np.geomspace(1, len(shares), 500).astype(int))
    axes.plot(ranks, shares[ranks - 1], colour, label=f"{run.name}: {run.verdict.state}")
    axes.axhline(2 ** -log2(run.use.codebook_size * len(run.each)), color=colour, ls=":")


def _along(axes: "Axes", values: list[float], colour: str) -> None:
    axes.plot((np.arange(len(values)) + 0.5) / len(values), values, colour, marker=".")


def _picture(axes: "Axes", run: CodebookReport) -> None:
    shades = axes.imshow(np.array(run.over_picture, float))
    axes.figure.colorbar(shades, ax=axes, label="bits per token")
    axes.set_title("bits over the picture")


def _name(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)


def _undated(path: Path) -> dict[str, None]:
    """No time of writing: the same tokens give the same picture."""
    return {"Date": None} if path.suffix.lower() == ".svg" else {}
