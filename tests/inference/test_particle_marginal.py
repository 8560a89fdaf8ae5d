"""Particle marginal Metropolis-Hastings against the exact posterior on a grid, and as a citizen of NumPyro's MCMC.

Posterior means and second moments are held to 3.5 standard errors, found from the spread of independent chains.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC
from scipy import stats

from sojourn.inference._particle_marginal import ParticleMarginal, _hilbert_index, _quantile

NOISE = 0.7


def model(y):
    a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
    q = numpyro.sample("q", dist.Gamma(2.0, 3.0))
    numpyro.deterministic("long_run", q / jnp.sqrt(1 - a**2))
    first = numpyro.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(a * x, q))
        numpyro.sample("y", dist.Normal(x, NOISE), obs=y)
        return x, None

    scan(step, first, y)
    numpyro.sample("survey", dist.Normal(a, 0.3), obs=jnp.array(0.6))


def series(steps=15):
    rng = np.random.default_rng(8)
    x, y = rng.normal(), []
    for _ in range(steps):
        x = 0.8 * x + 0.7 * rng.normal()
        y.append(x + NOISE * rng.normal())
    return np.array(y)


Y = series()


def exact():
    """Posterior moments of a and q, by the Kalman filter on a grid; and of the state at the last step."""
    a, q = np.meshgrid(np.linspace(0.002, 0.998, 250), np.linspace(0.01, 4.0, 400), indexing="ij")
    mean, var, total = np.zeros_like(a), np.ones_like(a), np.zeros_like(a)
    for value in Y:
        mean, var = a * mean, a**2 * var + q**2
        s = var + NOISE**2
        total += stats.norm.logpdf(value, mean, np.sqrt(s))
        mean, var = mean + var / s * (value - mean), var * NOISE**2 / s
    total += stats.gamma.logpdf(q, 2.0, scale=1 / 3.0) + stats.norm.logpdf(0.6, a, 0.3)
    weight = np.exp(total - total.max())
    weight /= weight.sum()
    return {
        "a": (weight * a).sum(),
        "a2": (weight * a**2).sum(),
        "q": (weight * q).sum(),
        "q2": (weight * q**2).sum(),
        "last": (weight * mean).sum(),
        "last2": (weight * (mean**2 + var)).sum(),
    }


def check_posterior(kernel, chains, draws, bound=3.5):
    mcmc = MCMC(
        kernel,
        num_warmup=400,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(random.key(3), jnp.asarray(Y), extra_fields=("accept_prob", "log_evidence"))
    found = mcmc.get_samples(group_by_chain=True)
    numbers = {
        "a": found["a"],
        "a2": found["a"] ** 2,
        "q": found["q"],
        "q2": found["q"] ** 2,
        "last": found["x"][..., -1],
        "last2": found["x"][..., -1] ** 2,
    }
    truth = exact()
    for name, value in numbers.items():
        by_chain = np.asarray(value, float).mean(1)
        error = by_chain.std(ddof=1) / np.sqrt(chains)
        assert error < 0.1
        assert abs(by_chain.mean() - truth[name]) < bound * error, (name, by_chain.mean(), truth[name], error)
    return mcmc


def test_the_posterior_is_exact():
    mcmc = check_posterior(ParticleMarginal(model, num_particles=20), chains=16, draws=800)
    prob = np.asarray(mcmc.get_extra_fields()["accept_prob"])
    assert 0.1 < prob.mean() < 0.35  # adapted towards 0.2
    found = mcmc.get_samples()
    assert set(found) == {"a", "q", "x", "x0", "long_run"}
    assert np.allclose(found["long_run"], found["q"] / np.sqrt(1 - found["a"] ** 2), rtol=1e-4)


def test_the_posterior_is_exact_with_correlated_estimates():
    """Few particles, noise that is carried along: a wrong weight or a forgotten part of it would show."""
    mcmc = check_posterior(ParticleMarginal(model, num_particles=5, correlation=0.98), chains=16, draws=800)
    assert np.asarray(mcmc.get_extra_fields()["accept_prob"]).mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"num_particles": 30},
        {"num_particles": 30, "resampling": "killing", "ess_threshold": None},
        {"num_particles": 3, "correlation": 0.95},
        {"num_particles": 10, "correlation": 0.0},
    ],
    ids=str,
)
def test_the_posterior_is_exact_in_longer_runs(options):
    check_posterior(ParticleMarginal(model, **options), chains=32, draws=4000)


def test_correlation_takes_the_noise_out_of_ratios():
    """The spread of the change in the estimate at fixed parameters, against that of independent estimates."""

    def spread(correlation, steps=100):
        kernel = ParticleMarginal(model, 50, correlation=correlation, step_size=1e-6)
        state = kernel.init(random.key(0), 0, None, (jnp.asarray(Y[:8]),), {})

        def body(state, _):
            new = kernel.sample(state, (jnp.asarray(Y[:8]),), {})
            return new, new.log_evidence

        return float(jnp.diff(jax.lax.scan(body, state, None, length=steps)[1]).std())

    assert spread(0.99) < 0.5 * spread(0.0)


def test_same_key_same_draws_and_a_stopped_run_goes_on_bit_by_bit():
    y = jnp.asarray(Y[:8])
    settings = {"num_warmup": 20, "num_samples": 20, "progress_bar": False}
    whole = MCMC(ParticleMarginal(model, 10), **settings)
    whole.run(random.key(1), y)
    first = whole.last_state

    again = MCMC(ParticleMarginal(model, 10), **settings)
    for mcmc in (whole, again):
        mcmc.post_warmup_state = first
        mcmc.run(first.rng_key, y)
    assert (whole.get_samples()["x"] == again.get_samples()["x"]).all()
    again.run(random.key(9), y)
    assert not (whole.get_samples()["x"] == again.get_samples()["x"]).all()


def test_a_single_chain_and_its_diagnostic_string():
    kernel = ParticleMarginal(model, 10)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=5, num_chains=1, progress_bar=False)
    mcmc.run(random.key(0), jnp.asarray(Y[:5]))
    assert kernel.get_diagnostics_str(mcmc.last_state).startswith("acc. prob=0.")
    assert kernel.model is model


# ---------------------------------------------------------------------------------------------- its parts


@pytest.mark.parametrize("dimensions", [2, 3])
def test_neighbours_on_the_hilbert_curve_are_neighbours_in_space(dimensions):
    """On a grid of 8 cells a side, consecutive cells along the curve differ in one coordinate by one."""
    side = 8
    cells = np.array(list(itertools.product(range(side), repeat=dimensions)))
    order = np.argsort(np.asarray(_hilbert_index(jnp.asarray((cells + 1e-3) / side))))
    assert (np.abs(np.diff(cells[order], axis=0)).sum(1) == 1).all()


@pytest.mark.parametrize(
    ("law", "frozen"),
    [
        (dist.Normal(1.0, 2.0), stats.norm(1.0, 2.0)),
        (dist.LogNormal(0.2, 0.5), stats.lognorm(0.5, scale=np.exp(0.2))),
        (dist.Exponential(2.0), stats.expon(scale=0.5)),
        (dist.HalfNormal(3.0), stats.halfnorm(scale=3.0)),
        (dist.Laplace(1.0, 2.0), stats.laplace(1.0, 2.0)),
        (dist.Uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_draws_from_normals_are_the_quantiles(law, frozen):
    normals = jnp.linspace(-3, 3, 31)
    assert np.allclose(
        _quantile(law, normals, "x"), frozen.ppf(stats.norm.cdf(normals)), rtol=2e-3, atol=2e-3
    )


def test_draws_from_normals_of_a_vector_and_of_a_category():
    normals = random.normal(random.key(0), (20_000, 2))
    cov = np.array([[1.0, 0.6], [0.6, 2.0]])
    law = dist.MultivariateNormal(jnp.array([1.0, -1.0]), jnp.asarray(cov))
    drawn = np.asarray(jax.vmap(lambda z: _quantile(law, z, "x"))(normals))
    assert np.abs(np.cov(drawn.T) - cov).max() < 4 * 2 * np.sqrt(2 / 20_000)
    probs = np.array([0.2, 0.5, 0.3])
    law = dist.Categorical(jnp.asarray(probs))
    drawn = np.asarray(jax.vmap(lambda z: _quantile(law, z, "s"))(normals[:, 0]))
    share = np.bincount(drawn, minlength=3) / len(drawn)
    assert np.abs(share - probs).max() < 4 * np.sqrt(0.25 / 20_000)


# ------------------------------------------------------------------------------------------------- errors


def discrete_parameter(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x + k, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def moving_support(y):
    top = numpyro.sample("top", dist.HalfNormal(1.0))
    part = numpyro.sample("part", dist.Uniform(0.0, top))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(part * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def compositions(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Dirichlet(1.0 + 5.0 * x))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)
        return x, None

    scan(step, jnp.ones(3) / 3, y)


def impossible(y):
    level = numpyro.sample("level", dist.Normal(0.0, 0.01))

    def step(x, y):
        x = numpyro.sample("x", dist.Uniform(x, x + 1.0))
        numpyro.sample("y", dist.Uniform(x + level, x + level + 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (discrete_parameter, {}, "Parameter 'k' is discrete"),
        (moving_support, {}, "The support of 'part' depends on another parameter"),
        (compositions, {"correlation": 0.9}, "Site 'x' has a law, Dirichlet, without a quantile function"),
        (
            impossible,
            {},
            "positive likelihood; at one of them: All 200 particles have weight zero at step [0-2]: 'y'",
        ),
        (model, {"num_particles": 1}, "at least 2"),
        (model, {"correlation": 1.0}, r"\[0, 1\)"),
        (model, {"correlation": 0.5, "twist": lambda *_: 0.0}, "twist"),
        (model, {"target_accept_prob": 0.0}, "between 0 and 1"),
    ],
)
def test_what_it_cannot_do_is_said_before_the_run(build, options, message):
    y = jnp.array([0.2, 0.4, 30.0])
    with pytest.raises(ValueError, match=message):
        ParticleMarginal(build, **options).init(random.key(0), 10, None, (y,), {})
