"""Maximum likelihood of published series.

Earthquakes: W. Zucchini, I. L. MacDonald and R. Langrock (2016), *Hidden Markov Models for Time Series*,
2nd edition, chapter 3 (Poisson hidden Markov models with stationary start, 1 to 4 states).
Old Faithful: the same book, section 17.2 (durations of 1985 as long and short, A. Azzalini and A. W. Bowman
1990, *Applied Statistics* 39:357); on MASS's table `geyser`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.optimize import minimize

from sojourn.datasets import earthquakes, old_faithful
from sojourn.distributions import HiddenMarkov
from sojourn.ops.hidden_markov import stationary

pytestmark = pytest.mark.usefixtures("x64")

BOUND = 30.0  # of a logit: probabilities between 1e-13 and one


def rows(logits, num_states):
    """Transition matrix from its off-diagonal logits, staying as reference."""
    origin, target = np.nonzero(~np.eye(num_states, dtype=bool))
    return jax.nn.softmax(jnp.zeros((num_states, num_states)).at[origin, target].set(logits), -1)


def maximise(log_likelihood, starts, bounds=None):
    """Best of several starts: negative log-likelihood and the point."""
    objective = jax.jit(jax.value_and_grad(lambda x: -log_likelihood(x)))

    def fun(x):
        value, gradient = objective(x)
        return float(value), np.asarray(gradient)

    options = {"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9}
    runs = [minimize(fun, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for x in starts]
    best = min(runs, key=lambda run: run.fun)
    return best.fun, best.x


# ------------------------------------------------------------------------------------------- earthquakes


def fit_earthquakes(num_states):
    counts = earthquakes()["count"].values
    quantiles = np.quantile(counts, (np.arange(num_states) + 0.5) / num_states)
    rng = np.random.default_rng(num_states)

    def parts(x):
        return jnp.exp(x[:num_states]), rows(x[num_states:], num_states)

    def log_likelihood(x):
        rate, transition = parts(x)
        return HiddenMarkov(
            stationary(transition), transition, dist.Poisson(rate), num_steps=len(counts)
        ).log_prob(counts)

    moves = num_states * (num_states - 1)
    starts = [
        np.concatenate(
            [np.log(quantiles) + 0.1 * rng.normal(size=num_states), rng.normal(-2.0, 0.7, size=moves)]
        )
        for _ in range(1 if num_states < 3 else 4)
    ]
    bounds = [(None, None)] * num_states + [(-BOUND, BOUND)] * moves
    value, x = maximise(log_likelihood, starts, bounds)
    rate, transition = parts(x)
    order = np.argsort(rate)
    return value, np.asarray(rate)[order], np.asarray(transition)[np.ix_(order, order)]


def test_earthquakes_one_state():
    value, rate, _ = fit_earthquakes(1)
    assert value == pytest.approx(391.9189, abs=1e-3)
    assert rate[0] == pytest.approx(2072 / 107, rel=1e-6)


def test_earthquakes_two_states():
    value, rate, transition = fit_earthquakes(2)
    assert value == pytest.approx(342.3183, abs=1e-3)
    np.testing.assert_allclose(rate, [15.472, 26.125], atol=1e-3)
    np.testing.assert_allclose(transition, [[0.9340, 0.0660], [0.1285, 0.8715]], atol=6e-4)


def test_earthquakes_three_states():
    value, rate, transition = fit_earthquakes(3)
    assert value == pytest.approx(329.4603, abs=1e-3)
    np.testing.assert_allclose(rate, [13.146, 19.721, 29.714], atol=1e-3)
    np.testing.assert_allclose(
        transition, [[0.955, 0.024, 0.021], [0.050, 0.899, 0.051], [0.000, 0.197, 0.803]], atol=6e-4
    )
    np.testing.assert_allclose(stationary(transition), [0.4436, 0.4045, 0.1519], atol=1e-4)


def test_earthquakes_four_states():
    value, _, _ = fit_earthquakes(4)
    assert value == pytest.approx(327.8316, abs=1e-3)


# ------------------------------------------------------------------------------------------ Old Faithful


@pytest.fixture
def geyser():
    """Log-likelihood of (logit p_0, logit p_1, off-diagonal logits) under a stationary start."""
    long = old_faithful()["long"].values

    def parts(x):
        return jax.nn.sigmoid(x[:2]), rows(x[2:], 2)

    def log_likelihood(x):
        probs, transition = parts(x)
        return HiddenMarkov(
            stationary(transition), transition, dist.Bernoulli(probs=probs), num_steps=len(long)
        ).log_prob(long)

    return long, parts, log_likelihood


def test_old_faithful_one_state(geyser):
    long, _, log_likelihood = geyser
    share = long.mean()
    value = -(np.log(share) * long.sum() + np.log1p(-share) * (1 - long).sum())
    assert value == pytest.approx(193.8023, abs=1e-3)
    logit = np.log(share / (1 - share))
    # Both states alike: the chain does not matter.
    assert -float(jax.jit(log_likelihood)(np.array([logit, logit, 0.3, -0.7]))) == pytest.approx(
        value, abs=1e-9
    )


def test_old_faithful_symmetric_start_ends_in_the_saddle(geyser):
    long, parts, log_likelihood = geyser
    value, x = maximise(log_likelihood, [np.array([0.1, 0.1, -0.5, -0.5])], [(-BOUND, BOUND)] * 4)
    assert value == pytest.approx(193.8023, abs=1e-3)
    np.testing.assert_allclose(parts(x)[0], long.mean(), atol=1e-4)


def test_old_faithful_asymmetric_start_escapes(geyser):
    _, parts, log_likelihood = geyser
    value, x = maximise(log_likelihood, [np.array([-1.0, 3.0, 2.0, 1.0])], [(-BOUND, BOUND)] * 4)
    assert value == pytest.approx(127.3110, abs=1e-3)
    probs, transition = parts(x)
    np.testing.assert_allclose(probs, [0.225, 1.0], atol=1e-3)
    np.testing.assert_allclose(transition, [[0.0, 1.0], [0.827, 0.173]], atol=1e-3)
