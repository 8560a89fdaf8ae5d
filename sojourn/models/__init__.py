"""Ready systems, each a module of plain NumPyro model functions and the questions one asks of it."""

from sojourn.models import hidden_markov, jump_process, maximum_caliber

__all__ = ["hidden_markov", "jump_process", "maximum_caliber"]
