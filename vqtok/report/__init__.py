"""Figures for people: the codebook report, runs side by side, and the live view of training."""

from vqtok.report.screen import report

__all__=[]
