"""PaRIS and the Parisian particle Gibbs sampler against exact smoothing of Gaussian random walks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, random
from jax.scipy.stats import norm

from sojourn.ops.paris import Statistic, additive, paris_sweep, parisian_gibbs
from sojourn.ops.particles import Move, Process

Y = jnp.array([0.5, -0.3, 1.2, 2.0, 1.1, 0.2])
NOISE = 0.7


def walk(y):
    """x_0 ~ N(0, 1), x_t ~ N(x_{t-1}, 1), y_t ~ N(x_t, NOISE); axes of ``y`` beyond time are systems."""
    systems = y.shape[1:]

    def move_to(carry, y, t, x):
        weight = norm.logpdf(y, x, NOISE)
        return Move(x, x, weight, weight + norm.logpdf(x, carry, 1.0), jnp.zeros(systems))

    def start(key):
        x = random.normal(key, systems)
        return x, x, jnp.zeros(systems)

    axes = (tuple(range(len(systems))),) if systems else None
    return Process(
        length=len(y),
        xs=y,
        start=start,
        start_at=lambda x: (x, jnp.zeros(systems)),
        move=lambda key, carry, y, t: move_to(carry, y, t, carry + random.normal(key, systems)),
        move_to=move_to,
        systems=systems,
        carry_axes=axes,
        value_axes=axes,
        start_axes=axes,
    )


def exact(y):
    """E sum x_{t-1} and E sum x_{t-1} x_t given ``y``, from the joint Gaussian law."""
    size = len(y) + 1
    steps = np.eye(size) - np.eye(size, k=-1)
    precision = steps.T @ steps
    precision[1:, 1:] += np.eye(len(y)) / NOISE**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ np.concatenate([[0.0], np.asarray(y, float) / NOISE**2])
    second = covariance + np.outer(mean, mean)
    return np.array([mean[:-1].sum(), np.trace(second, offset=1)])


def functional(process):
    return additive(process, lambda step: jnp.stack([step.carry, step.carry * step.carry_next], -1))


def chains(y, num_chains, num_sweeps, num_burn, num_particles=5, **options):
    """Mean of each chain's estimates after ``num_burn`` sweeps from a path of zeros."""
    process = walk(y)
    reference = (jnp.zeros(y.shape[1:]), jnp.zeros(y.shape))

    def run(key):
        _, estimates, _ = parisian_gibbs(
            process, key, num_particles, functional(process), reference, num_sweeps, **options
        )
        return estimates[num_burn:].mean(0)

    return each(run, random.split(random.key(1), num_chains))


def each(fn, keys):
    """``fn`` of each key. One after the other: mapped by ``vmap`` the programs take three times as long to compile."""
    return jax.jit(partial(lax.map, fn))(keys)


@pytest.mark.parametrize("backward", ["exact", "mcmc"])
def test_gibbs_has_no_bias(backward):
    """Five particles, 64 chains: the mean is within 4 standard errors of the exact one.

    If the frozen path's statistic were not brought up to date, it would be off by more than 20.
    """
    means = chains(Y, 64, 420, 20, backward=backward)
    error = means.std(0, ddof=1) / 8
    assert (np.abs(means.mean(0) - exact(Y)) < 4 * error).all()
    assert (error < 0.02 * np.abs(exact(Y))).all()  # the comparison means something


def test_one_pass_is_biased_with_few_particles_and_not_with_many():
    """Bias is of order 1 / N: over 5 standard errors at N = 5, within 4 + what 5 / 1000 of it allows at N = 1000."""
    process = walk(Y)

    def pass_of(num_particles, key, backward):
        return paris_sweep(process, key, num_particles, functional(process), backward=backward).estimate

    few = each(lambda k: pass_of(5, k, "exact"), random.split(random.key(0), 8_000))
    many = each(lambda k: pass_of(1000, k, "mcmc"), random.split(random.key(0), 60))
    bias, error = few.mean(0) - exact(Y), few.std(0) / np.sqrt(len(few))
    assert (np.abs(bias) > 5 * error).any()
    error = many.std(0) / np.sqrt(len(many))
    assert (np.abs(many.mean(0) - exact(Y)) < 4 * error + 0.005 * np.abs(bias) + 0.005).all()


def test_backward_draws_beat_the_genealogy():
    """Over a long series the statistic that follows the particles' own past varies more than twice as much.

    Under the genealogy all particles share one past, so that its estimates are those of a single path.
    """
    y = jnp.tile(Y, 12)
    process = walk(y)

    def genealogy(key):
        """The same filter; each particle keeps its ancestor's statistic: a PaRIS whose draws are all the ancestor."""

        def body(state, inputs):
            x, w, tau = state
            y, key = inputs
            key_ancestor, key_move = random.split(key)
            a = random.categorical(key_ancestor, w, shape=w.shape)
            new = x[a] + random.normal(key_move, w.shape)
            return (new, norm.logpdf(y, new, NOISE), tau[a] + x[a]), None

        x = random.normal(key, (50,))
        (_, w, tau), _ = lax.scan(body, (x, jnp.zeros(50), jnp.zeros(50)), (y, random.split(key, len(y))))
        return jax.nn.softmax(w) @ tau

    def ours(key):
        statistic = additive(process, lambda step: step.carry)
        return paris_sweep(process, key, 50, statistic, backward="mcmc", num_tries=3).estimate

    keys = random.split(random.key(3), 200)
    # The ratio of two variances from 200 draws has a relative error of 0.14.
    assert each(genealogy, keys).var() > 2 * each(ours, keys).var()


def test_log_evidence_is_unbiased():
    """Mean of the estimated evidence over the exact one, within 4 standard errors of 1."""
    size = len(Y)
    covariance = np.minimum.outer(np.arange(size), np.arange(size)) + 2.0 + NOISE**2 * np.eye(size)
    y = np.asarray(Y, float)
    log_evidence = -0.5 * (
        y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + size * np.log(2 * np.pi)
    )
    nothing = Statistic(lambda carry, values: (), lambda total, step: total)
    estimates = each(
        lambda key: paris_sweep(walk(Y), key, 20, nothing).log_evidence, random.split(random.key(5), 4000)
    )
    ratio = np.exp(np.asarray(estimates) - log_evidence)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio))


def test_independent_systems():
    """Three series side by side, each smoothed by itself: within 4 standard errors of each one's exact value."""
    y = jnp.stack([Y, Y[::-1], 2 * Y], 1)
    means = chains(y, 24, 220, 20, backward="mcmc")
    truth = np.stack([exact(y[:, k]) for k in range(3)])
    error = means.std(0, ddof=1) / np.sqrt(24)
    assert means.shape == (24, 3, 2)
    assert (np.abs(means.mean(0) - truth) < 4 * error).all()
    assert (error < 0.08 * np.abs(truth).max()).all()
