"""Engines that fit any NumPyro model, and the front door to them."""

from sojourn.inference._blocked_gibbs import BlockedGibbs
from sojourn.inference._calibrate import calibrate
from sojourn.inference._fit import fit
from sojourn.inference._particle_gibbs import ConditionalSMC, ParticleGibbs
from sojourn.inference._read import ScanModel, StateSpace, read_scan
from sojourn.inference._structure import ScanStructure
from sojourn.inference._variational import Variational

__all__ = [
    "BlockedGibbs",
    "ConditionalSMC",
    "ParticleGibbs",
    "ScanModel",
    "ScanStructure",
    "StateSpace",
    "Variational",
    "calibrate",
    "fit",
    "read_scan",
]
