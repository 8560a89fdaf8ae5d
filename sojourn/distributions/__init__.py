"""Distributions of paths that NumPyro lacks, under NumPyro's own conventions."""

from sojourn.distributions._censored_excursion import KINDS, CensoredExcursion
from sojourn.distributions._excursion_time import (
    ExcursionTime,
    IIAInvalidError,
    LevelExcursionTime,
    Validity,
)
from sojourn.distributions._fractional_brownian_motion import (
    FractionalBrownianMotion,
    FractionalGaussianNoise,
)
from sojourn.distributions._hidden_markov import HiddenMarkov
from sojourn.distributions._law_rows import CompetingLaws, LawRows, LogLinearLaws
from sojourn.distributions._linear_gaussian import LinearGaussian
from sojourn.distributions._markov_jump_path import MarkovJumpPath, stack_paths
from sojourn.distributions._noisy_signs import NoisySigns
from sojourn.distributions._ordered import Ordered
from sojourn.distributions._panel_jump_process import HiddenJumpProcess, PanelJumpProcess
from sojourn.distributions._sign_runs import SignRuns

__all__ = [
    "KINDS",
    "CensoredExcursion",
    "CompetingLaws",
    "ExcursionTime",
    "FractionalBrownianMotion",
    "FractionalGaussianNoise",
    "HiddenJumpProcess",
    "HiddenMarkov",
    "IIAInvalidError",
    "LawRows",
    "LevelExcursionTime",
    "LinearGaussian",
    "LogLinearLaws",
    "MarkovJumpPath",
    "NoisySigns",
    "Ordered",
    "PanelJumpProcess",
    "SignRuns",
    "Validity",
    "stack_paths",
]
