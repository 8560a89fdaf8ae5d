"""Distributions of paths that NumPyro lacks, under NumPyro's own conventions."""

from sojourn.distributions._hidden_markov import HiddenMarkov
from sojourn.distributions._markov_jump_path import MarkovJumpPath, stack_paths
from sojourn.distributions._ordered import Ordered
from sojourn.distributions._panel_jump_process import HiddenJumpProcess, PanelJumpProcess

__all__ = [
    "HiddenJumpProcess",
    "HiddenMarkov",
    "MarkovJumpPath",
    "Ordered",
    "PanelJumpProcess",
    "stack_paths",
]
