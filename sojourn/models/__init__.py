"""Ready systems, each a module of plain NumPyro model functions and the questions one asks of it."""

from sojourn.models import (
    covariance,
    exceedance,
    fractional_sde,
    hidden_markov,
    jump_process,
    langevin_flow,
    maximum_caliber,
)

__all__ = [
    "covariance",
    "exceedance",
    "fractional_sde",
    "hidden_markov",
    "jump_process",
    "langevin_flow",
    "maximum_caliber",
]
