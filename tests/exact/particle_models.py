"""Linear-Gaussian models whose scans look different, and the exact answer to all of them.

The joint density is Gaussian in the latent sites, so the posterior is read off the gradient and the Hessian of
NumPyro's own log-density: no recursion that could share a mistake with the code under test.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

from sojourn.inference._scan import prepared
from sojourn.ops.particles import particle_sweep, run_filter

SERIES = np.array([0.3, -0.1, 0.8, 1.1, 0.2, -0.6, 0.4, 0.9], np.float32)


def local_level(y):
    """The state is the latent site; one initial site."""

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def second_order(y):
    """Two lags in the carry."""

    def step(carry, y):
        one, two = carry
        x = numpyro.sample("x", dist.Normal(1.2 * one - 0.5 * two, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.7), obs=y)
        return (x, one), None

    scan(step, (0.0, 0.0), y)


def increments(y):
    """The latent site is an innovation, the state lives in the carry and never forgets."""

    def step(x, y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        x = 0.8 * x + 0.5 * w
        numpyro.sample("y", dist.Normal(x, 0.7), obs=y)
        return x, None

    scan(step, 0.0, y)


def observed_first(y):
    """The initial state is observed before the scan."""
    x0 = numpyro.sample("x0", dist.Normal(0.0, 1.0))
    numpyro.sample("before", dist.Normal(x0, 0.2), obs=1.5)

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 0.3))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, x0, y)


def panel(y, gaps, seen):
    """Two series in a plate, two latent sites a step, irregular times, masks, NaN, an observation of x0."""
    with numpyro.plate("series", 2):
        level = numpyro.sample("level0", dist.Normal(0.0, 1.0))
        slope = numpyro.sample("slope0", dist.Normal(0.0, 0.5))
        numpyro.sample("before", dist.Normal(level, 1.0), obs=jnp.array([0.3, -0.2]))

    def step(carry, x):
        level, slope, clock = carry
        gap = x["gap"]
        with numpyro.plate("series", 2):
            slope = numpyro.sample("slope", dist.Normal(slope * jnp.exp(-0.5 * gap), jnp.sqrt(0.3 * gap)))
            level = numpyro.sample("level", dist.Normal(level + gap * slope, jnp.sqrt(0.2 * gap)))
            with handlers.mask(mask=x["seen"]):
                numpyro.sample("y", dist.Normal(level, 0.5), obs=x["y"])
            numpyro.deterministic("sum", level + slope)
        return (level, slope, clock + gap), level

    scan(step, (level, slope, 0.0), {"y": y, "gap": gaps, "seen": seen})


def panel_arguments():
    rng = np.random.default_rng(3)
    y = rng.normal(size=(6, 2)).astype(np.float32)
    y[4, 0] = np.nan
    seen = np.ones((6, 2), bool)
    seen[2, 1] = False
    return y, np.array([0.3, 1.0, 0.2, 0.7, 0.5, 1.2], np.float32), seen


def coupled(y):
    """A plate whose elements drive each other: one system."""

    def step(x, y):
        with numpyro.plate("series", 2):
            x = numpyro.sample("x", dist.Normal(0.5 * x + 0.4 * x[::-1], 0.4))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, jnp.zeros(2), y)


def clock(length):
    """No inputs: the time and the parameter travel in the carry, the data are closed over."""

    def step(carry, _):
        x, rho, t = carry
        x = numpyro.sample("x", dist.Normal(rho * x + 0.1 * t, 0.5))
        with handlers.scale(scale=0.5):
            numpyro.sample("y", dist.Normal(x, 0.7), obs=jnp.asarray(SERIES)[t])
        return (x, rho, t + 1), x

    _, xs = scan(step, (0.0, jnp.array(0.8), 0), None, length=length)
    numpyro.deterministic("mean", xs.mean())


def half_seen(y, seen):
    """``obs_mask``: the unobserved entries are latent sites of the path."""

    def step(x, inputs):
        y, seen = inputs
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.6), obs=y, obs_mask=seen)
        return x, None

    scan(step, 0.0, (y, seen))


def half_masked(y, seen):
    """The law of x under ``half_seen``."""

    def step(x, inputs):
        y, seen = inputs
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.5))
        with handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(x, 0.6), obs=y)
        return x, None

    scan(step, 0.0, (y, seen))


def best_proposal(carry, y, parameters):
    """The law of ``local_level``'s x given the state before and the observation."""
    variance = 1.0 / (1.0 / 0.09 + 1.0 / 0.25)
    numpyro.sample("x", dist.Normal(variance * (0.9 * carry / 0.09 + y / 0.25), jnp.sqrt(variance)))


def next_fit(carry, y, parameters):
    """How well a particle of ``local_level`` explains the observation that comes next."""
    return dist.Normal(0.9 * carry, jnp.sqrt(0.34)).log_prob(y)


def exact_moments(model, args, sites):
    """Posterior mean and covariance of the flattened latent values, in float64, and how to flatten."""
    model = prepared(model)
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(*args)
    zero = {n: jnp.zeros(trace[n]["value"].shape) for n in sites}
    flat, unravel = ravel_pytree(zero)

    def energy(v):
        return -log_density(handlers.seed(model, 0), args, {}, unravel(v))[0]

    hessian = np.asarray(jax.hessian(energy)(flat), float)
    covariance = np.linalg.inv(hessian)
    return -covariance @ np.asarray(jax.grad(energy)(flat), float), covariance


def smoothing_scores(process, exact, num_particles, *, chains=64, sweeps=1500, seed=5, **options):
    """z-scores of means, second moments and lag-one products of sweeps of conditional SMC, by latent value.

    Standard errors come from independent chains.
    """
    mean, covariance = exact
    size = len(mean)

    def chain(key):
        key_start, key_sweeps = random.split(key)
        first = run_filter(process, key_start, num_particles)

        def body(state, key):
            path, total = state
            sweep = particle_sweep(process, key, num_particles, path, **options)
            value = ravel_pytree({**sweep.path, **sweep.start})[0]
            moments = jnp.stack([value, value**2, value * jnp.roll(value, -1)])
            return ((sweep.start, sweep.path), total + moments), None

        start = ((first.start, first.path), jnp.zeros((3, size)))
        (_, total), _ = lax.scan(body, start, random.split(key_sweeps, sweeps))
        return total / sweeps

    estimates = np.asarray(jax.jit(jax.vmap(chain))(random.split(random.key(seed), chains)), float)
    second = covariance + np.outer(mean, mean)
    truth = np.stack([mean, np.diag(second), np.diag(np.roll(second, -1, axis=1))])
    error = estimates.std(0, ddof=1) / np.sqrt(chains)
    return (estimates.mean(0) - truth) / error


def root_mean_square(scores):
    return np.sqrt((scores**2).mean(-1))
