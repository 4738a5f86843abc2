"""Rendering: codebook reports, comparisons, plots, evaluations, and the live view of training."""

from vqtok.report.codebook_report import render_report
from vqtok.report.codebook_table import render_codebook
from vqtok.report.comparison import render_comparison
from vqtok.report.evaluation import curve_table, evaluation_table
from vqtok.report.plot import save_plot
from vqtok.report.training import TrainingView, watch_run

__all__ = [
    "TrainingView",
    "curve_table",
    "evaluation_table",
    "render_codebook",
    "render_comparison",
    "render_report",
    "save_plot",
    "watch_run",
]
