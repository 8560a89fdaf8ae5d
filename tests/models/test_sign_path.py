"""The path form of NoisySigns: one law with the marginal form, and engines that agree."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.infer.util import log_density

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.distributions import NoisySigns
from sojourn.inference import ParticleGibbs
from sojourn.models._sign_path import scan_signs
from sojourn.ops import switching_renewal as ops

HAZARD = np.array([[0.3, 0.1, 0.6], [0.5, 0.8, 0.2]])
FLIP = np.array([0.1, 0.25])
VALUE = np.array([1.0, 1.0, 0.0, np.nan, 1.0, 0.0])


def law_of_paths(y, hazard=HAZARD, flip=FLIP):
    observed = None if y is None else ~np.isnan(y)
    return scan_signs(y, observed, hazard, flip, len(VALUE), "y")


def possible_paths(num_ages, steps):
    """All signed ages that can follow each other."""
    for start in [*range(-num_ages, 0), *range(1, num_ages + 1)]:
        for switches in itertools.product((False, True), repeat=steps - 1):
            path = [start]
            for ends in switches:
                sign = 1 if path[-1] > 0 else -1
                path.append(-sign if ends else sign * min(abs(path[-1]) + 1, num_ages))
            yield path


def densities(y, **kwargs):
    def one(path):
        return log_density(partial(law_of_paths, **kwargs), (y,), {}, {"signed_age": path})[0]

    return jax.jit(jax.vmap(one))


def test_sum_over_paths_is_the_marginal_form(x64):
    """The path form adds up to one and, given readings, to ``NoisySigns``."""
    paths = np.array(list(possible_paths(3, 6)))
    nothing = np.full(6, np.nan)
    prior = np.asarray(densities(nothing)(paths))
    assert np.exp(prior).sum() == pytest.approx(1.0, abs=1e-12)
    total = float(jax.nn.logsumexp(densities(VALUE)(paths)))
    law = NoisySigns(HAZARD, num_steps=6, flip=FLIP)
    assert total == pytest.approx(float(jax.jit(law.log_prob)(VALUE)), abs=1e-12)
    exact = NoisySigns(HAZARD, num_steps=6, flip=0.0)
    total = float(jax.nn.logsumexp(densities(VALUE, flip=0.0)(paths)))
    assert total == pytest.approx(float(jax.jit(exact.log_prob)(VALUE)), abs=1e-12)
    # An age that jumps, an age beyond K and a state that is none have probability zero.
    wrong = paths[:3].copy()
    wrong[0, 3], wrong[1, 3], wrong[2, 0] = 2, -4, 0
    assert np.isneginf(densities(VALUE)(wrong)).all()


def test_gradients_are_finite_where_hazards_are_zero_or_one():
    """Runs of exactly three steps, read without errors."""
    path, y = jnp.array([-2, -3, 1, 2, 3, -1]), np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])

    def density(hazard, flip):
        model = partial(law_of_paths, hazard=hazard, flip=flip)
        return log_density(model, (y,), {}, {"signed_age": path})[0]

    value, slopes = jax.jit(jax.value_and_grad(density, (0, 1)))(np.array([0.0, 0.0, 1.0]), np.zeros(2))
    assert float(value) == pytest.approx(np.log(1 / 6), rel=1e-6)
    assert all(np.isfinite(s).all() for s in slopes)


def test_simulation():
    """20 000 simulated series: states of the first and last step, and readings; 4.5 standard errors."""
    draws = 20_000

    def one(key):
        trace = handlers.trace(handlers.seed(law_of_paths, key)).get_trace(None)
        return trace["signed_age"]["value"], trace["y"]["value"]

    path, y = map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)))
    known = set(map(tuple, possible_paths(3, 6)))
    assert set(map(tuple, path)) <= known
    law = np.asarray(ops.stationary_law(HAZARD))
    states = np.array([-1, -2, -3, 1, 2, 3])
    for step in (0, 5):
        share = (path[:, step, None] == states).mean(0)
        z = (share - law.ravel()) / np.sqrt(law.ravel() * (1 - law.ravel()) / draws)
        assert np.abs(z).max() < 4.5
    for side, says_above in ((path <= 0, FLIP[0]), (path > 0, 1 - FLIP[1])):
        z = (y[side].mean() - says_above) / np.sqrt(says_above * (1 - says_above) / side.sum())
        assert abs(z) < 4.5


# ---------------------------------------------------------------------------------------------------- engines


RISE = 1 - 0.6 ** np.arange(1, 9)  # a hazard that climbs from 0.4 to 0.98 of one parameter
GRID = np.linspace(0.002, 0.998, 250)


def persistence(y, path=False):
    end = numpyro.sample("end", dist.Uniform(0.0, 1.0))
    if path:
        return scan_signs(y, None, end * RISE, 0.1, len(y), "y")
    law = NoisySigns(end * RISE, num_steps=len(y), flip=0.1)
    return numpyro.sample("y", law, obs=y, infer={"event_dims": ["time"]})


def readings(steps):
    law = NoisySigns(0.25 * RISE, num_steps=steps, flip=0.1)
    return np.asarray(law.sample(jax.random.key(3)))


def check_posterior(end, path, y):
    """Against quadrature over the marginal form: means within 4.5 standard errors, sd within 15 %.

    Args: ``end`` (chain, draw) and ``path`` (chain, draw, time).
    """

    def marginal(end):
        law = NoisySigns(end * RISE, num_steps=len(y), flip=0.1)
        return law.log_prob(y), law.sign_probabilities(y)

    log_prob, above = jax.jit(jax.vmap(marginal))(GRID)
    weight = np.asarray(jax.nn.softmax(log_prob), float)
    mean, above = weight @ GRID, weight @ np.asarray(above)
    sd = np.sqrt(weight @ (GRID - mean) ** 2)
    drawn = xr.Dataset({"end": (("chain", "draw"), end), "above": (("chain", "draw", "time"), path > 0)})
    drawn = drawn.astype(float)
    size = _arviz.ess(drawn)
    assert min(float(size["end"]), float(size["above"].min())) > 200  # the comparison means something
    found = drawn.mean(("chain", "draw"))
    assert abs(float(found["end"]) - mean) < 4.5 * sd / np.sqrt(float(size["end"]))
    assert float(drawn["end"].std()) == pytest.approx(sd, rel=0.15)
    error = np.sqrt(above * (1 - above) / size["above"].values)
    assert np.abs((found["above"].values - above) / error).max() < 4.5


def test_structure():
    """The carry is its own step's value: ancestor sampling and evaluation at all times at once both apply."""
    found = sj.read_scan(persistence, readings(8), path=True).structure
    assert found.path_sites == ("signed_age",)
    assert found.global_sites == ("end",)
    assert (found.memory, found.parallel) == (1.0, True)


def test_conditional_particle_filter_draws_the_path():
    """No parameters: the path alone, against the smoothed signs, within 4.5 standard errors."""
    y = readings(12)
    kernel = ParticleGibbs(lambda y: scan_signs(y, None, 0.25 * RISE, 0.1, 12, "y"), num_particles=10)
    mcmc = MCMC(kernel, num_warmup=50, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0), y)
    above = (np.asarray(mcmc.get_samples()["signed_age"]) > 0).astype(float)
    exact = np.asarray(NoisySigns(0.25 * RISE, num_steps=12, flip=0.1).sign_probabilities(y))
    size = _arviz.ess(xr.Dataset({"above": (("chain", "draw", "time"), above[None])}))["above"].values
    assert size.min() > 300  # the comparison means something
    z = (above.mean(0) - exact) / np.sqrt(exact * (1 - exact) / size)
    assert np.abs(z).max() < 4.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["blocked_gibbs", pytest.param(partial(ParticleGibbs, num_particles=20), id="particle_gibbs")]
)
def test_fits_of_the_path_form(engine):
    y = readings(60)
    fit = sj.fit(
        persistence,
        y,
        path=True,
        engine=engine,
        num_warmup=200,
        num_samples=4000,
        num_chains=1,
        seed=1,
        progress_bar=False,
    )
    posterior = _arviz.group(fit, "posterior")
    assert posterior["signed_age"].dims == ("chain", "draw", "time")
    check_posterior(posterior["end"].values, posterior["signed_age"].values, y)
