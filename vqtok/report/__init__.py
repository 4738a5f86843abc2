"""Figures for people: the codebook report, runs side by side, and the live view of training."""

from vqtok.report.compare import comparison
from vqtok.report.plot import check_plot, plot
from vqtok.report.screen import report
from vqtok.report.table import table_report
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
