"""Engines that fit any NumPyro model, and the front door to them."""

from sojourn.inference._blocked_gibbs import BlockedGibbs
from sojourn.inference._calibrate import calibrate
from sojourn.inference._fit import fit
from sojourn.inference._variational import Variational

__all__ = ["BlockedGibbs", "Variational", "calibrate", "fit"]
