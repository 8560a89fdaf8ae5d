"""Ready systems, each a module of plain NumPyro model functions and the questions one asks of it."""

from sojourn.models import covariance, exceedance, hidden_markov, jump_process, maximum_caliber

__all__ = ["covariance", "exceedance", "hidden_markov", "jump_process", "maximum_caliber"]
