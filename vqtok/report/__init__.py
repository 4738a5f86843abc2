"""Rendering: codebook reports, comparisons, plots, and the live view of training."""

from vqtok.report.codebook import report
from vqtok.report.codes import table_report
from vqtok.report.comparison import comparison
from vqtok.report.plot import check_plot, plot
from vqtok.report.training import TrainingView, follow

__all__ = [
    "TrainingView",
    "check_plot",
    "comparison",
    "follow",
    "plot",
    "report",
    "table_report",
]
