"""Diagnostics of a fit, on ArviZ alone: the check, the report, scores of predictions, relabelling, calibration."""

from sojourn.diagnostics.calibration import Calibration
from sojourn.diagnostics.check import Check, Finding, check
from sojourn.diagnostics.labels import relabel
from sojourn.diagnostics.report import Section, report
from sojourn.diagnostics.scoring import Score, crps, interval_coverage, log_score, score
from sojourn.diagnostics.states import plot_states

__all__ = [
    "Calibration",
    "Check",
    "Finding",
    "Score",
    "Section",
    "check",
    "crps",
    "interval_coverage",
    "log_score",
    "plot_states",
    "relabel",
    "report",
    "score",
]
