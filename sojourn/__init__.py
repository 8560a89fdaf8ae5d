"""Probabilistic programming for stochastic dynamics: plain NumPyro models, shared engines, ArviZ results."""

# ArviZ 1.x, when imported first, leaves NumPyro as a lazy module without its submodules as attributes.
import numpyro.distributions.distribution  # noqa: F401

from sojourn import datasets, distributions, models
from sojourn.diagnostics import Section, check, relabel, report
from sojourn.inference import BlockedGibbs, ParticleGibbs, Variational, calibrate, fit, read_scan

__version__ = "0.1.0"

__all__ = [
    "BlockedGibbs",
    "ParticleGibbs",
    "Section",
    "Variational",
    "calibrate",
    "check",
    "datasets",
    "distributions",
    "fit",
    "models",
    "read_scan",
    "relabel",
    "report",
]
