"""Trajectory weights against their formulas, and what a weighted model makes of them against closed forms.

Formulas: Hong, Agrawal, Tachet des Combes and Laroche (2023), "Harnessing Mixed Offline Reinforcement Learning
Datasets via Trajectory Weighting", ICLR. The mixed bandit: 95 trajectories that take action 1 a tenth of the time, 5
that take it nine times in ten, ten steps each, rewarded by the action. A weighted likelihood of Bernoulli actions is
known in closed form: its maximum is the weighted frequency, its posterior a Beta.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from sojourn.inference.trajectory_weights import (
    advantage_weights,
    effective_sample_size,
    positive_sided_variance,
    return_weights,
    weighted,
)


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Not here: these compile for longer than they run."""


def mixed_bandit():
    rng = np.random.default_rng(0)
    rng.gamma(1.0, 1.0, 50)
    actions = np.concatenate([rng.random((95, 10)) < 0.1, rng.random((5, 10)) < 0.9]).astype(int)
    return actions.ravel(), actions.sum(1), np.full(100, 10)


ACTIONS, RETURNS, LENGTHS = mixed_bandit()
N, BATCH = len(ACTIONS), 64


def policy(actions, subsample_size=None):
    p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
    with numpyro.plate("steps", len(actions), subsample_size=subsample_size) as steps:
        numpyro.sample("action", dist.Bernoulli(p), obs=jnp.asarray(actions)[steps])


def density(model, p, key=0, **options):
    return log_density(handlers.seed(model, key), (ACTIONS,), options, {"p": p})[0]


def test_return_weights_of_three_trajectories():
    """exp(2 * (0, 1/3, 1)) over its sum, by transitions."""
    even = return_weights([0, 1, 3], [1, 1, 1], temperature=0.5)
    np.testing.assert_allclose(even, [0.096742, 0.188427, 0.714831], atol=5e-7)
    by_length = [0.036951, *[0.071971] * 2, *[0.273035] * 3]
    np.testing.assert_allclose(return_weights([0, 1, 3], [1, 2, 3], temperature=0.5), by_length, atol=5e-7)
    raw = np.exp(2 * np.array([0, 1 / 3, 1]))
    np.testing.assert_allclose(even, raw / raw.sum(), rtol=1e-14)


def test_positive_sided_variance_tells_a_few_good_from_a_few_bad():
    assert positive_sided_variance([0, 0, 0, 1]) == 9 / 64
    assert positive_sided_variance([0, 1, 1, 1]) == 3 / 64
    assert np.var([0, 0, 0, 1]) == np.var([0, 1, 1, 1]) == 3 / 16


def test_the_mean_return_grows_with_the_inverse_temperature_at_the_rate_of_the_variance():
    """d/db E_softmax(bG)[G] = Var G at b = 0; with the returns between 0 and 1, b is 1 / temperature."""
    returns = np.random.default_rng(0).gamma(1.0, 1.0, 50)
    unit = (returns - returns.min()) / np.ptp(returns)
    weights = return_weights(returns, np.ones(50, int), temperature=1e5)
    assert (weights @ unit - unit.mean()) * 1e5 == pytest.approx(unit.var(), rel=1e-5)
    assert unit.var() * np.ptp(returns) ** 2 == pytest.approx(1.21491750, abs=1e-8)


@pytest.mark.parametrize(
    ("temperature", "frequency", "size"),
    [(np.inf, 0.1320, 1000), (1.0, 0.1933, 919), (0.2, 0.8113, 72), (0.1, 0.9903, 43)],
)
@pytest.mark.parametrize("at", ["effective", "nominal"])
def test_weighted_cloning_is_the_weighted_frequency(x64, temperature, frequency, size, at):
    """The gradient of the log-density vanishes there, and is that of W Bernoulli observations elsewhere."""
    weights = return_weights(RETURNS, LENGTHS, temperature=temperature)
    best = weights @ ACTIONS
    assert best == pytest.approx(frequency, abs=5e-5)
    assert effective_sample_size(weights) == pytest.approx(size, abs=0.5)
    total = N if at == "nominal" else effective_sample_size(weights)
    model = weighted(policy, weights, "steps", at=at)
    slope = jax.grad(lambda p: density(model, p))  # the constrained density, whose prior is flat
    assert slope(best) == pytest.approx(0.0, abs=1e-8 * total)
    assert slope(0.37) == pytest.approx(total * (best - 0.37) / (0.37 * 0.63), rel=1e-8)


def test_indices_drawn_by_weight_have_the_same_gradient_on_average_and_far_less_noise(x64):
    """4000 minibatches of 64: standard deviations over minibatches 53, and 1612 for evenly drawn, weighted ones.

    Means within 4 standard errors of the whole gradient. The standard deviations against N / sqrt(64) times those of one
    transition's term, sd_p(g) and sd(N p g): within 5%, as sqrt((kurtosis - 1) / 4 / 4000) is about 1.2% with the
    kurtosis of a mean of 64 (the terms are heavy: a hundredth of the transitions carries most of the weight).
    """
    weights = return_weights(RETURNS, LENGTHS)
    model = weighted(policy, weights, "steps", at="nominal")
    p = 0.37
    whole = jax.grad(lambda p: density(model, p))(p)
    terms = ACTIONS / p - (1 - ACTIONS) / (1 - p)
    assert whole == pytest.approx(N * weights @ terms, rel=1e-10)
    keys = jax.random.split(jax.random.key(1), 4000)

    def drawn(key):
        return jax.grad(lambda p: density(model, p, key, subsample_size=BATCH))(p)

    def even(key):
        steps = jax.random.randint(key, (BATCH,), 0, N)
        chosen = handlers.substitute(model, data={"steps": steps})
        return jax.grad(lambda p: density(chosen, p, key, subsample_size=BATCH))(p)

    sd = {}
    for name, gradient, one in (
        ("drawn", drawn, np.sqrt(weights @ terms**2 - (weights @ terms) ** 2)),
        ("even", even, np.std(N * weights * terms)),
    ):
        found = np.asarray(jax.jit(jax.vmap(gradient))(keys))
        sd[name] = found.std()
        assert abs(found.mean() - whole) < 4 * sd[name] / np.sqrt(len(keys))
        assert sd[name] == pytest.approx(one * N / np.sqrt(BATCH), rel=0.05)
    assert sd["drawn"] == pytest.approx(53, rel=0.05)
    assert sd["even"] == pytest.approx(1612, rel=0.05)


def test_intervals_at_the_effective_size_are_as_wide_as_estimates_vary(x64):
    """Weights that know nothing of the data: over 20000 data sets the weighted mean varies as 1 / effective size.

    The standard deviation of 20000 normal numbers is known to 0.5%; bound 2%. At the nominal size the interval would be
    4.4 times too narrow.
    """
    rng = np.random.default_rng(3)
    weights = return_weights(rng.normal(size=50), np.full(50, 4), temperature=0.1)
    weights = weights / weights.sum()

    def model(y):
        mean = numpyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("steps", len(y)):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def width(at):
        def energy(mean):
            return -log_density(
                weighted(model, weights, "steps", at=at), (np.zeros(200),), {}, {"mean": mean}
            )[0]

        return jax.grad(energy)(1.0) ** -0.5  # of a parabola around zero: its curvature

    spread = np.std(rng.normal(size=(20_000, 200)) @ weights)
    assert width("effective") == pytest.approx(spread, rel=0.02)
    assert spread > 2 * width("nominal")


def test_a_lucky_start_wins_by_return_and_not_by_advantage():
    """Start 1 is worth 10, action 1 one more: weighted by return 99% of the weight lies on the good start."""
    rng = np.random.default_rng(1)
    start = rng.integers(0, 2, 4000)
    action = (rng.random(4000) < 0.2).astype(int)
    returns, lengths = 10.0 * start + action, np.ones(4000, int)
    by_return = return_weights(returns, lengths)
    by_advantage = advantage_weights(returns, lengths, start)
    assert by_return @ start > 0.99
    # The regression leaves 1 to action 1 up to sampling error, whatever the start.
    for s in (0, 1):
        here = by_advantage * (start == s)
        assert here @ action / here.sum() > 0.99
    assert by_advantage @ start == pytest.approx(start[action == 1].mean(), abs=0.03)


def test_luck_is_taken_for_skill_where_rewards_are_noisy():
    """The documented limit: action 0 pays N(1, 0), action 1 N(0, 3^2), and the worse one gains weight."""
    rng = np.random.default_rng(2)
    action = rng.integers(0, 2, 20_000)
    reward = np.where(action == 0, 1.0, rng.normal(0.0, 3.0, 20_000))
    weights = return_weights(reward, np.ones(20_000, int))
    assert weights @ (action == 0) < 0.45
