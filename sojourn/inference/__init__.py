"""Engines that fit any NumPyro model, and the front door to them."""

from sojourn.inference._blocked_gibbs import BlockedGibbs
from sojourn.inference._calibrate import calibrate
from sojourn.inference._checkpoint import Checkpoint
from sojourn.inference._decode import decode_paths
from sojourn.inference._diagnose_model import diagnose_model
from sojourn.inference._fit import fit
from sojourn.inference._fit_many import fit_many
from sojourn.inference._forecast import one_step_ahead
from sojourn.inference._keep import Keep
from sojourn.inference._leave_future_out import LeaveFutureOut, leave_future_out
from sojourn.inference._malt import MALT
from sojourn.inference._many_fits import ManyFits
from sojourn.inference._map import MaximumAPosteriori
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._mclmc import MCLMC, AdjustedMCLMC
from sojourn.inference._model_diagnosis import ModelDiagnosis
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
from sojourn.inference.trajectory_weights import (
    advantage_weights,
    effective_sample_size,
    positive_sided_variance,
    return_weights,
    top_fraction_weights,
    weighted,
)

__all__ = [
    "MALT",
    "MCLMC",
    "AdjustedMCLMC",
    "AmortizedJumpProcess",
    "BlockedGibbs",
    "Checkpoint",
    "ConditionalSMC",
    "Keep",
    "LeaveFutureOut",
    "ManyFits",
    "MaximumAPosteriori",
    "ModelDiagnosis",
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
    "advantage_weights",
    "amortized_jump_process",
    "calibrate",
    "decode_paths",
    "diagnose_model",
    "effective_sample_size",
    "fit",
    "fit_many",
    "leave_future_out",
    "marginalizable",
    "marginalize",
    "one_step_ahead",
    "paris",
    "particle_filter",
    "particle_log_likelihood",
    "positive_sided_variance",
    "ppg",
    "read_scan",
    "return_weights",
    "top_fraction_weights",
    "trained_model",
    "weighted",
    "whole_data",
]
