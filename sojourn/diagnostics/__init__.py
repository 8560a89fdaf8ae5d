"""Diagnostics of a fit, on ArviZ alone: the check, the report, relabelling, calibration."""

from sojourn.diagnostics.calibration import Calibration
from sojourn.diagnostics.check import Check, Finding, check
from sojourn.diagnostics.labels import relabel
from sojourn.diagnostics.report import Section, report
from sojourn.diagnostics.states import plot_states

__all__ = ["Calibration", "Check", "Finding", "Section", "check", "plot_states", "relabel", "report"]
