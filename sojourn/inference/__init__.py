"""Engines that fit any NumPyro model, and the front door to them."""

from sojourn.inference._blocked_gibbs import BlockedGibbs
from sojourn.inference._calibrate import calibrate
from sojourn.inference._decode import decode_paths
from sojourn.inference._fit import fit
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._particle_filter import particle_filter, particle_log_likelihood
from sojourn.inference._particle_gibbs import ConditionalSMC, ParticleGibbs
from sojourn.inference._particle_marginal import ParticleMarginal
from sojourn.inference._read import ScanModel, StateSpace, read_scan
from sojourn.inference._score_ascent import ScoreAscent
from sojourn.inference._smoothing import paris, ppg
from sojourn.inference._structure import ScanStructure
from sojourn.inference._variational import Variational

__all__ = [
    "BlockedGibbs",
    "ConditionalSMC",
    "ParticleGibbs",
    "ParticleMarginal",
    "ScanModel",
    "ScanStructure",
    "ScoreAscent",
    "StateSpace",
    "Variational",
    "calibrate",
    "decode_paths",
    "fit",
    "marginalizable",
    "marginalize",
    "paris",
    "particle_filter",
    "particle_log_likelihood",
    "ppg",
    "read_scan",
]
