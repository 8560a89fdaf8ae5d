"""Particle Gibbs on a volatility model and on a stochastic differential equation, against quadrature.

The state is one number, so the forward-backward recursion on a fine grid, for each of many values of the
parameter, gives the posterior of path and parameter to more digits than any sampler.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy import stats

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference import ParticleGibbs


def volatility(r):
    spread = numpyro.sample("spread", dist.LogNormal(jnp.log(0.4), 0.5))

    def step(x, r):
        x = numpyro.sample("x", dist.Normal(0.95 * x, spread))
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(x / 2)), obs=r)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 0.8)), r)


def double_well(y, gaps):
    """Euler steps of ``dX = 2 (X - X^3) dt + spread dW`` between irregular times, most of them unobserved."""
    spread = numpyro.sample("spread", dist.LogNormal(jnp.log(0.8), 0.5))

    def step(x, inputs):
        y, gap = inputs
        drift = 2.0 * (x - x**3) * gap
        x = numpyro.sample("x", dist.Normal(x + drift, spread * jnp.sqrt(gap)))
        numpyro.sample("y", dist.Normal(x, 0.3), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 0.8)), (y, gaps))


def volatility_case():
    rng = np.random.default_rng(4)
    x, returns = 0.0, []
    for _ in range(40):
        x = 0.95 * x + 0.4 * rng.normal()
        returns.append(np.exp(x / 2) * rng.normal())
    return volatility, (np.array(returns, np.float32),)


def double_well_case():
    rng = np.random.default_rng(5)
    gaps = rng.choice([0.05, 0.1, 0.2], 60)
    x, y = -1.0, []
    for k, gap in enumerate(gaps):
        x = x + 2.0 * (x - x**3) * gap + 0.9 * np.sqrt(gap) * rng.normal()
        y.append(x + 0.3 * rng.normal() if k % 4 == 3 else np.nan)
    return double_well, (np.array(y, np.float32), np.array(gaps, np.float32))


def quadrature_of_volatility(returns):
    grid = np.linspace(-7.0, 7.0, 500)
    emission = stats.norm.pdf(returns[:, None], 0.0, np.exp(grid / 2))

    def moves(spread):
        matrix = stats.norm.pdf(grid[None, :], 0.95 * grid[:, None], spread)
        return [matrix] * len(returns)

    prior = stats.lognorm(0.5, scale=0.4)
    return posterior_on_grid(grid, emission, moves, prior, np.linspace(0.05, 2.0, 79))


def quadrature_of_double_well(y, gaps):
    grid = np.linspace(-3.0, 3.0, 500)
    seen = np.isfinite(y)[:, None]
    emission = np.where(seen, stats.norm.pdf(np.nan_to_num(y)[:, None], grid, 0.3), 1.0)
    after = grid[:, None] + 2.0 * (grid - grid**3)[:, None] * np.unique(gaps)[:, None, None]

    def moves(spread):
        scale = spread * np.sqrt(np.unique(gaps))
        matrix = stats.norm.pdf(grid, after, scale[:, None, None])
        return [matrix[k] for k in np.searchsorted(np.unique(gaps), gaps)]

    prior = stats.lognorm(0.5, scale=0.8)
    return posterior_on_grid(grid, emission, moves, prior, np.linspace(0.15, 3.0, 77))


def posterior_on_grid(grid, emission, moves, prior, spreads):
    """Mean and standard deviation of the parameter, and of the state at every time."""
    width, log_weight, moments = grid[1] - grid[0], [], []
    for spread in spreads:
        matrices = moves(spread)
        ahead, total = [stats.norm.pdf(grid, 0.0, 0.8) * width], 0.0
        for matrix, seen in zip(matrices, emission, strict=True):
            joint = (ahead[-1] @ matrix) * width * seen
            total += np.log(joint.sum())
            ahead.append(joint / joint.sum())
        back, smoothed = np.ones_like(grid), []
        for k in reversed(range(len(emission))):
            law = ahead[k + 1] * back
            smoothed.append(law / law.sum())
            back = matrices[k] @ (emission[k] * back)
            back /= back.max()
        laws = np.array(smoothed[::-1])
        moments.append((laws @ grid, laws @ grid**2))
        log_weight.append(total + prior.logpdf(spread))
    weight = np.exp(np.array(log_weight) - max(log_weight))
    weight /= weight.sum()
    assert weight[[0, -1]].max() < 1e-4  # the grid of the parameter is wide enough
    first, second = np.tensordot(weight, np.array(moments), 1)
    mean = weight @ spreads
    return (mean, np.sqrt(weight @ (spreads - mean) ** 2)), (first, np.sqrt(second - first**2))


@pytest.mark.parametrize(
    ("case", "quadrature"),
    [(volatility_case, quadrature_of_volatility), (double_well_case, quadrature_of_double_well)],
    ids=["volatility", "double well"],
)
def test_path_and_parameter_have_the_posterior_of_quadrature(case, quadrature):
    model, args = case()
    (mean, spread), (means, spreads) = quadrature(*(np.asarray(a, float) for a in args))
    fit = sj.fit(
        model,
        *args,
        engine=partial(ParticleGibbs, num_particles=30),
        num_warmup=500,
        num_samples=2000,
        num_chains=4,
        progress_bar=False,
    )
    draws = fit.posterior["spread"]
    off = (draws - mean) / spread
    probe = fit.posterior[["spread"]].assign(square=off**2, path=fit.posterior["x"])
    ess = _arviz.ess(probe, method="mean")
    assert float(ess["spread"]) > 200
    for values, exact, size in ((off, 0.0, ess["spread"]), (off**2, 1.0, ess["square"])):
        error = float(values.std()) / np.sqrt(float(size))
        assert abs(float(values.mean()) - exact) < 4 * error
    scores = (fit.posterior["x"].mean(("chain", "draw")).values - means) / spreads
    scores = scores * np.sqrt(ess["path"].values)
    assert np.abs(scores).max() < 4.5  # of some fifty correlated ones
    ratio = fit.posterior["x"].std(("chain", "draw")).values / spreads
    assert np.abs(np.log(ratio)).max() < 0.12
