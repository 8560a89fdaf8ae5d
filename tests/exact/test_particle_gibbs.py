"""Particle Gibbs against posteriors known otherwise.

Bounds: |estimate - exact| below 4 standard errors, from the bulk effective sample size or from independent chains.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax, random
from numpyro.contrib.control_flow import scan
from numpyro.infer import HMC, MCMC, init_to_median
from numpyro.infer.gibbs import with_conditioning

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference import ParticleGibbs
from sojourn.ops import hidden_markov
from sojourn.ops.particles import particle_sweep, run_filter
from tests.exact.particle_models import root_mean_square


def autoregression(y):
    rho = numpyro.sample("rho", dist.Uniform(-1.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(rho * x, scale))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def autoregressive_series(length, rho=0.9, scale=0.3, seed=3):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(), []
    for _ in range(length):
        x = rho * x + scale * rng.normal()
        y.append(x + 0.5 * rng.normal())
    return np.array(y, np.float32)


def kalman_log_likelihood(y, rho, scale):
    def step(state, y):
        mean, variance = state
        mean, variance = rho * mean, rho**2 * variance + scale**2
        total = variance + 0.25
        gain = variance / total
        term = dist.Normal(mean, jnp.sqrt(total)).log_prob(y)
        return (mean + gain * (y - mean), (1.0 - gain) * variance), term

    return lax.scan(step, (jnp.zeros(()), jnp.ones(())), y)[1].sum()


def exact_posterior(y):
    """Means of (rho, scale) by quadrature on a grid."""
    rho, scale = jnp.linspace(-0.999, 0.999, 301), jnp.linspace(0.005, 1.5, 301)
    grid = jax.vmap(lambda r: jax.vmap(lambda s: kalman_log_likelihood(y, r, s))(scale))(rho)
    grid = grid + dist.HalfNormal(1.0).log_prob(scale)[None, :]
    weight = np.asarray(jax.nn.softmax(grid.ravel()), float).reshape(grid.shape)
    return float((weight.sum(1) * rho).sum()), float((weight.sum(0) * scale).sum())


@pytest.mark.parametrize("interweave", ["auto", pytest.param(False, marks=pytest.mark.slow)])
def test_parameters_of_a_linear_gaussian_model_have_their_exact_posterior(interweave):
    y = autoregressive_series(60)
    fit = sj.fit(
        autoregression,
        y,
        engine=partial(ParticleGibbs, num_particles=20, interweave=interweave),
        num_warmup=500,
        num_samples=1500 if interweave else 4000,
        num_chains=4,
        progress_bar=False,
    )
    for name, exact in zip(("rho", "scale"), exact_posterior(y), strict=True):
        draws = fit.posterior[name]
        ess = float(_arviz.ess(fit.posterior[[name]], method="bulk")[name])
        assert ess > 200
        assert abs(float(draws.mean()) - exact) < 4 * float(draws.std()) / np.sqrt(ess), (name, exact)


# ------------------------------------------------------------------ Geweke (2004, JASA 99:799): the joint law


def short_autoregression(y):
    rho = numpyro.sample("rho", dist.Normal(0.5, 0.3))
    log_scale = numpyro.sample("log_scale", dist.Normal(-0.5, 0.3))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(rho * x, jnp.exp(log_scale)))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


class StaleParameters(ParticleGibbs):
    """The mistake of a published package: the path is moved given the parameters of the turn before."""

    def _sample_chain(self, state, model_args, kwargs):
        new = super()._sample_chain(state, model_args, kwargs)
        block, _ = self._kernels
        keys = random.split(new.rng_key)
        old = self._kernels[1].get_constrain_fn(model_args, kwargs)(state.block_states[1].z)
        stale = block.sample(
            state.block_states[0]._replace(rng_key=keys[0]), model_args, with_conditioning(kwargs, old)
        )
        first = self._kernels[1].refresh(new.block_states[1], model_args, with_conditioning(kwargs, stale.z))
        return new._replace(
            z={**new.z, **stale.z}, rng_key=keys[1], block_states=(stale, first, *new.block_states[2:])
        )


GEWEKE_TRUTH = np.array([0.0, 0.09, 0.0, 0.09, 0.0, 0.0, 1.0, 0.5, 0.09])


def geweke_scores(kernel_class, noise=0.5, chains=64, turns=1200, burn=200, **options):
    """Alternate new data given the path and one turn of the sampler: everything must keep its prior law."""
    y = jnp.zeros(4)
    inner = partial(
        HMC,
        step_size=0.12,
        trajectory_length=0.6,
        init_strategy=init_to_median,
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    kernel = kernel_class(short_autoregression, 4, inner, **options)
    states = kernel.init(random.split(random.key(1), chains), 0, None, (y,), {})

    def chain(state, key):
        def turn(state, key):
            path = state.block_states[0].z
            y = path["x"] + noise * random.normal(key, path["x"].shape)
            first = kernel._kernels[1].refresh(state.block_states[1], (y,), with_conditioning({}, path))
            blocks = (state.block_states[0], first, *state.block_states[2:])
            state = kernel._sample_chain(state._replace(block_states=blocks), (y,), {})
            z = state.z
            rho, scale, x0, x1 = z["rho"] - 0.5, z["log_scale"] + 0.5, z["x0"], z["x"][0]
            return state, jnp.stack(
                [rho, rho**2, scale, scale**2, rho * scale, x0, x0**2, x0 * x1, rho * x0 * x1]
            )

        return lax.scan(turn, state, random.split(key, turns + burn))[1][burn:].mean(0)

    means = np.asarray(jax.jit(jax.vmap(chain))(states, random.split(random.key(2), chains)), float)
    return (means.mean(0) - GEWEKE_TRUTH) / (means.std(0, ddof=1) / np.sqrt(chains))


@pytest.mark.parametrize("interweave", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_data_and_unknowns_keep_their_joint_law(interweave):
    scores = geweke_scores(ParticleGibbs, interweave=interweave)
    assert np.abs(scores).max() < 4.0, scores


@pytest.mark.slow
def test_a_path_moved_with_stale_parameters_is_caught():
    assert np.abs(geweke_scores(StaleParameters, interweave=False)).max() > 6.0


@pytest.mark.slow
def test_data_from_another_law_are_caught():
    assert np.abs(geweke_scores(ParticleGibbs, noise=0.6, interweave=False)).max() > 6.0


# --------------------------------------------------------------------------------- discrete and mixed paths


def regimes(y):
    move = jnp.array([[0.9, 0.07, 0.03], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])
    level = jnp.array([-1.0, 0.0, 1.2])

    def step(s, y):
        s = numpyro.sample("s", dist.Categorical(move[s]))
        numpyro.sample("y", dist.Normal(level[s], 0.6), obs=y)
        return s, None

    scan(step, numpyro.sample("s0", dist.Categorical(jnp.full(3, 1 / 3))), y)


def chain_means(process, statistic, *, chains=64, sweeps=1500, num_particles=8):
    def chain(key):
        key_start, key_sweeps = random.split(key)
        first = run_filter(process, key_start, num_particles)

        def body(path, key):
            sweep = particle_sweep(process, key, num_particles, path)
            return (sweep.start, sweep.path), statistic({**sweep.path, **sweep.start})

        return lax.scan(body, (first.start, first.path), random.split(key_sweeps, sweeps))[1].mean(0)

    return np.asarray(jax.jit(jax.vmap(chain))(random.split(random.key(4), chains)), float)


def test_a_discrete_path_has_its_exact_smoothing_law():
    y = jnp.array([-0.8, -1.1, 0.2, 1.3, 0.9, 1.4, -0.2, 0.1])
    move = jnp.array([[0.9, 0.07, 0.03], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])
    emission = dist.Normal(jnp.array([-1.0, 0.0, 1.2]), 0.6).log_prob(y[:, None])
    exact = hidden_markov.smooth(jnp.full(3, 1 / 3) @ move, move, emission).marginals
    process = sj.read_scan(regimes, y).at().process()
    means = chain_means(process, lambda z: jax.nn.one_hot(z["s"], 3)[:, :2].ravel())
    scores = (means.mean(0) - np.asarray(exact)[:, :2].ravel()) / (means.std(0, ddof=1) / 8.0)
    assert root_mean_square(scores) < 2.0
    assert np.abs(scores).max() < 5.0


def switching(y):
    stay = jnp.array([[0.85, 0.15], [0.2, 0.8]])

    def step(carry, y):
        s, x = carry
        s = numpyro.sample("s", dist.Categorical(stay[s]))
        x = numpyro.sample(
            "x", dist.Normal(jnp.where(s == 0, 0.9, 0.3) * x + 0.5 * s, jnp.where(s == 0, 0.3, 0.8))
        )
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return (s, x), None

    scan(step, (0, 0.2), y)


def test_a_switching_linear_model_has_its_enumerated_law():
    y = np.array([0.4, -0.2, 1.6, 2.0, 0.3, 0.9], np.float32)
    sequences = np.array(np.meshgrid(*[[0, 1]] * len(y), indexing="ij")).reshape(len(y), -1).T
    logs, means = [], []
    for states in sequences:
        log, mean, variance, before = 0.0, 0.2, 0.0, 0
        filtered = []
        for s, value in zip(states, y, strict=True):
            log += np.log([[0.85, 0.15], [0.2, 0.8]][before][s])
            a, scale, before = (0.9, 0.3, s) if s == 0 else (0.3, 0.8, s)
            mean, variance = a * mean + 0.5 * s, a**2 * variance + scale**2
            total = variance + 0.25
            log += -0.5 * np.log(2 * np.pi * total) - 0.5 * (value - mean) ** 2 / total
            predicted = (mean, variance, a)
            mean, variance = mean + variance / total * (value - mean), variance * 0.25 / total
            filtered.append((mean, variance, predicted))
        smooth, later = [filtered[-1][0]], None
        for t in range(len(y) - 2, -1, -1):
            mean, variance, _ = filtered[t]
            predicted_mean, predicted_variance, a = filtered[t + 1][2]
            later = mean + variance * a / predicted_variance * (smooth[0] - predicted_mean)
            smooth.insert(0, later)
        logs.append(log)
        means.append(smooth)
    weight = np.exp(np.array(logs) - max(logs))
    weight /= weight.sum()
    exact = np.concatenate([weight @ sequences, weight @ np.array(means)])
    process = sj.read_scan(switching, y).at().process()
    found = chain_means(process, lambda z: jnp.concatenate([z["s"].astype(float), z["x"]]))
    scores = (found.mean(0) - exact) / (found.std(0, ddof=1) / 8.0)
    assert root_mean_square(scores) < 2.0
    assert np.abs(scores).max() < 5.0


# ------------------------------------------------------------------------------------------ why ancestors matter


def volatility(returns):
    def step(h, r):
        h = numpyro.sample("h", dist.Normal(0.95 * h, 0.25))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=r)
        return h, None

    scan(step, numpyro.sample("h0", dist.Normal(0.0, 0.8)), returns)


@pytest.mark.parametrize(("path", "lowest", "highest"), [("ancestor", 0.95, 1.0), ("genealogy", 0.0, 0.01)])
def test_the_first_state_of_a_long_series_moves_only_if_it_can_be_given_a_new_future(path, lowest, highest):
    rng = np.random.default_rng(0)
    h, returns = 0.0, []
    for _ in range(1000):
        h = 0.95 * h + 0.25 * rng.normal()
        returns.append(np.exp(h / 2) * rng.normal())
    kernel = ParticleGibbs(volatility, 100, path=path, resampling="multinomial")
    mcmc = MCMC(kernel, num_warmup=50, num_samples=300, progress_bar=False)
    mcmc.run(random.key(0), np.array(returns, np.float32), extra_fields=("path_update",))
    rate = float(np.mean(mcmc.get_extra_fields()["path_update"][:, 0]))
    assert lowest <= rate <= highest
