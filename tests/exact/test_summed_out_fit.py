"""A model with a discrete path under engines that follow gradients: ``fit`` sums it out, and the law is exact."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import sojourn as sj
from sojourn.diagnostics import _arviz

MOVE = np.array([[0.9, 0.1], [0.2, 0.8]])
Y = np.array([0.1, -0.4, 1.9, 2.6, 1.2, 2.2, 0.3, -0.2, 0.4, 2.0, np.nan, 1.7], np.float32)


def gap_between_regimes(y):
    gap = numpyro.sample("gap", dist.Normal(1.0, 1.0))

    def step(s, y):
        s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
        numpyro.sample("y", dist.Normal(gap * s, 0.7), obs=y)
        return s, None

    scan(step, 0, y)


def exact_moments():
    """Mean and standard deviation of the gap, the path summed out by hand at each point of a grid."""
    grid = np.linspace(-5.0, 7.0, 2001)
    law, total = np.tile([1.0, 0.0], (len(grid), 1)), stats.norm.logpdf(grid, 1.0, 1.0)
    for y in Y:
        law = law @ MOVE
        if np.isfinite(y):
            law = law * stats.norm.pdf(y, grid[:, None] * np.arange(2), 0.7)
        total += np.log(law.sum(1))
        law /= law.sum(1, keepdims=True)
    weight = np.exp(total - total.max())
    weight /= weight.sum()
    mean = weight @ grid
    return mean, np.sqrt(weight @ (grid - mean) ** 2)


@pytest.mark.parametrize("engine", ["nuts", "svi"])
def test_the_parameter_has_its_exact_posterior(engine):
    """NUTS within Monte Carlo error; a normal guide of a nearly normal posterior within a tenth of its width."""
    mean, sd = exact_moments()
    fit = sj.fit(gap_between_regimes, Y, engine=engine, num_samples=2000, seed=2, progress_bar=False)
    assert fit.attrs["summed_out"] == "s"
    posterior = _arviz.group(fit, "posterior")
    assert set(posterior.data_vars) == {"gap"}
    gap = posterior["gap"]
    allowed = 0.1 if engine == "svi" else 4 / np.sqrt(float(_arviz.ess(posterior[["gap"]])["gap"]))
    assert abs(float(gap.mean()) - mean) < allowed * sd
    assert abs(float(gap.std()) / sd - 1) < 0.1
    terms = _arviz.group(fit, "log_likelihood")["y"]
    assert np.isnan(terms.values[0, 0]).tolist() == np.isnan(Y).tolist()
