"""Engines that fit any NumPyro model, and the front door to them."""

from sojourn.inference._blocked_gibbs import BlockedGibbs
from sojourn.inference._calibrate import calibrate
from sojourn.inference._decode import decode_paths
from sojourn.inference._fit import fit
from sojourn.inference._malt import MALT
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._mclmc import MCLMC, AdjustedMCLMC
from sojourn.inference._params import trained_model
from sojourn.inference._particle_filter import particle_filter, particle_log_likelihood
from sojourn.inference._particle_gibbs import ConditionalSMC, ParticleGibbs
from sojourn.inference._particle_marginal import ParticleMarginal
from sojourn.inference._read import ScanModel, StateSpace, read_scan
from sojourn.inference._score_ascent import ScoreAscent
from sojourn.inference._self_repellent import SelfRepellentWalk
from sojourn.inference._smoothing import paris, ppg
from sojourn.inference._stochastic_gradient import StochasticGradientLangevin
from sojourn.inference._structure import ScanStructure
from sojourn.inference._token_walk import TokenWalk
from sojourn.inference._underdamped import UnderdampedLangevin
from sojourn.inference._variational import Variational
from sojourn.inference._whole_data import whole_data
from sojourn.inference.amortized import AmortizedJumpProcess, amortized_jump_process
from sojourn.inference.guides import PathGuide, PseudoObservationGuide

__all__ = [
    "MALT",
    "MCLMC",
    "AdjustedMCLMC",
    "AmortizedJumpProcess",
    "BlockedGibbs",
    "ConditionalSMC",
    "ParticleGibbs",
    "ParticleMarginal",
    "PathGuide",
    "PseudoObservationGuide",
    "ScanModel",
    "ScanStructure",
    "ScoreAscent",
    "SelfRepellentWalk",
    "StateSpace",
    "StochasticGradientLangevin",
    "TokenWalk",
    "UnderdampedLangevin",
    "Variational",
    "amortized_jump_process",
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
    "trained_model",
    "whole_data",
]
