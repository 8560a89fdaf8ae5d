"""Distributions of paths that NumPyro lacks, under NumPyro's own conventions."""

from sojourn.distributions._hidden_markov import HiddenMarkov
from sojourn.distributions._ordered import Ordered

__all__ = ["HiddenMarkov", "Ordered"]
