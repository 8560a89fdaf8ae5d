"""How rough the volatility of the S&P 500 is: exact maximum likelihood of fractional Brownian motion with errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from sojourn import datasets
from sojourn.distributions import FractionalBrownianMotion

NUM_DAYS = 700


@jax.jit
def negative(parameters, series):
    """Minus the log-density of the increments, up to a constant, at their most likely scale; and that scale.

    ``parameters`` are the exponent, and the noise as a multiple of the scale. Increments do not tell the level:
    it is integrated out, under a flat prior. The log-density is a parabola in it, so that three values do.
    """
    law = FractionalBrownianMotion(parameters[0], np.arange(1.0, NUM_DAYS + 1), noise=parameters[1])
    nothing, low, middle, high = law.log_prob(jnp.stack([0 * series, series + 1, series, series - 1]))
    curvature = 2 * middle - low - high
    squares = 2 * (nothing - middle) - (high - low) ** 2 / (4 * curvature)
    scale = jnp.sqrt(squares / (NUM_DAYS - 1))
    return -nothing + 0.5 * jnp.log(curvature) + (NUM_DAYS - 1) * jnp.log(scale), scale


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "hurst", "noise"),
    [(slice(NUM_DAYS), 0.124, 0.328), (slice(-NUM_DAYS, None), 0.106, 0.0)],
    ids=["1999-2001", "2016-2018"],
)
def test_roughness_of_volatility(part, hurst, noise, x64):
    """Values from another program: the increments' Toeplitz covariance, a simplex search.

    What becomes of the level matters. With a start one day before the record as a parameter of its own, H is
    0.160 and 0.115.
    """
    log_range = datasets.sp500_ohlc()["log_range"].values[part]

    fit = optimize.minimize(
        lambda p: float(negative(p, log_range)[0]),
        [0.2, 0.5],
        method="Nelder-Mead",  # a gradient costs as much as twenty values
        bounds=[(0.02, 0.98), (0.0, 5.0)],
        options={"xatol": 1e-3, "fatol": 1e-3},
    )
    scale = float(negative(fit.x, log_range)[1])
    assert fit.x[0] == pytest.approx(hurst, abs=0.002)
    assert fit.x[1] * scale == pytest.approx(noise, abs=0.002)
