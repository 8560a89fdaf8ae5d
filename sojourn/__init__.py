"""Probabilistic programming for stochastic dynamics: plain NumPyro models, shared engines, ArviZ results."""

# ArviZ 1.x, when imported first, leaves NumPyro as a lazy module without its submodules as attributes.
import numpyro.distributions.distribution  # noqa: F401

from sojourn import datasets, distributions, models
from sojourn.diagnostics import Section, check, relabel, report
from sojourn.inference import (
    MALT,
    MCLMC,
    AdjustedMCLMC,
    BlockedGibbs,
    MaximumAPosteriori,
    ParticleGibbs,
    ParticleMarginal,
    PathGuide,
    PseudoObservationGuide,
    ScoreAscent,
    SelfRepellentWalk,
    StochasticGradientLangevin,
    TokenWalk,
    UnderdampedLangevin,
    Variational,
    amortized_jump_process,
    calibrate,
    decode_paths,
    fit,
    marginalize,
    particle_filter,
    read_scan,
    trained_model,
)

__version__ = "0.1.0"

__all__ = [
    "MALT",
    "MCLMC",
    "AdjustedMCLMC",
    "BlockedGibbs",
    "MaximumAPosteriori",
    "ParticleGibbs",
    "ParticleMarginal",
    "PathGuide",
    "PseudoObservationGuide",
    "ScoreAscent",
    "Section",
    "SelfRepellentWalk",
    "StochasticGradientLangevin",
    "TokenWalk",
    "UnderdampedLangevin",
    "Variational",
    "amortized_jump_process",
    "calibrate",
    "check",
    "datasets",
    "decode_paths",
    "distributions",
    "fit",
    "marginalize",
    "models",
    "particle_filter",
    "read_scan",
    "relabel",
    "report",
    "trained_model",
]
