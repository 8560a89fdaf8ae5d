"""LinearGaussian as a NumPyro distribution."""

from __future__ import annotations

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from sojourn.distributions import LinearGaussian

MOVE = np.array([[0.9, 0.2], [-0.1, 0.8]])
NOISE = np.array([[0.5, 0.5], [0.5, 0.5]])  # singular
START = np.array([1.0, -1.0])
LEVEL = np.array([0.1, 0.3])
TILT = np.array([[1.0, 0.0], [1.0, -2.0]])


def law(**changes):
    given = {
        "initial_mean": START,
        "initial_covariance": 0.3 * np.eye(2),
        "transition": MOVE,
        "transition_covariance": NOISE,
        "observation": np.array([1.0, -0.5]),
        "observation_covariance": 0.2,
        "num_steps": 5,
        "offset": LEVEL,
    }
    return LinearGaussian(**{**given, **changes})


VECTOR = {"observation": TILT, "observation_covariance": np.array([[0.3, 0.1], [0.1, 0.2]])}


def dense(num_steps: int, observe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the observed components, without errors of measurement."""
    mean, covariance = START, 0.3 * np.eye(2)
    means, marginal = [], []
    for _ in range(num_steps):
        mean, covariance = MOVE @ mean + LEVEL, MOVE @ covariance @ MOVE.T + NOISE
        means.append(observe @ mean)
        marginal.append(covariance)
    p = len(observe)
    full = np.zeros((num_steps, p, num_steps, p))
    for n in range(num_steps):
        carried = marginal[n]
        for m in range(n, num_steps):
            full[m, :, n] = observe @ carried @ observe.T
            full[n, :, m] = full[m, :, n].T
            carried = MOVE @ carried
    return np.array(means), full


def test_density_is_the_dense_gaussian(x64):
    rng = np.random.default_rng(0)
    steps = (0, 1, 4)
    mean, covariance = dense(5, np.array([[1.0, -0.5]]))
    mean, covariance = mean[:, 0], covariance[:, 0, :, 0] + 0.2 * np.eye(5)
    k = np.array(steps)
    y = rng.normal(size=(3, 3))
    some = law(steps=steps)
    reference = dist.MultivariateNormal(mean[k], covariance[np.ix_(k, k)])
    found = jax.jit(lambda y: (some.log_prob(y), some.predictive_log_prob(y)))(y)
    np.testing.assert_allclose(found[0], reference.log_prob(y), rtol=1e-10)
    np.testing.assert_allclose(found[1].sum(-1), found[0], rtol=1e-10)
    assert some.event_shape == (3,)
    assert some.batch_shape == ()
    np.testing.assert_allclose(some.mean, mean[k], rtol=1e-10)
    np.testing.assert_allclose(some.variance, np.diag(covariance)[k], rtol=1e-10)


def test_vectors_with_gaps(x64):
    rng = np.random.default_rng(1)
    mean, covariance = dense(5, TILT)
    covariance = covariance.reshape(10, 10) + np.kron(np.eye(5), VECTOR["observation_covariance"])
    y = rng.normal(size=(5, 2))
    y[1], y[3, 0] = np.nan, np.nan
    k = ~np.isnan(y).ravel()
    found = jax.jit(law(**VECTOR).log_prob)(y)
    reference = dist.MultivariateNormal(mean.ravel()[k], covariance[np.ix_(k, k)]).log_prob(y.ravel()[k])
    np.testing.assert_allclose(found, reference, rtol=1e-10)
    assert np.isnan(y).any(), "the data are not written to"
    assert bool(law(**VECTOR).support(y).all())


def test_sampling_has_the_moments():
    """20 000 draws: means and variances within five standard errors."""
    n = 20_000
    for some in (law(steps=(1, 2, 4)), law(**VECTOR)):
        draws, mean, variance = jax.jit(
            lambda key, some=some: (some.sample(key, (n,)), some.mean, some.variance)
        )(jax.random.key(0))
        assert draws.shape == (n, *some.event_shape)
        assert (np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variance / n)).all()
        assert (np.abs(draws.var(0) - variance) < 5 * variance * np.sqrt(2 / n)).all()


def test_one_step_ahead_draws_are_calibrated():
    """Where the data are a draw, their rank among one-step-ahead draws is uniform: compare squared surprises.

    Data minus draw has twice the predictive variance; over 400 x 4 terms the ratio of both mean squares to
    the predictive variances, which log p gives, is one within five standard errors.
    """
    some = law(num_steps=4)
    y = some.sample(jax.random.key(1), (400,))

    @jax.jit
    def both(y):
        found = some.filter(y)
        variance = some._observable(found)[1][..., 0, 0]
        mean = some._observable(found)[0][..., 0]
        return some.sample_one_step_ahead(jax.random.key(2), y), mean, variance

    ahead, mean, variance = both(y)
    assert ahead.shape == (400, 4)
    error = 5 * np.sqrt(2 / 1600)
    for x in (y, ahead):
        assert abs(float(((x - mean) ** 2 / variance).mean()) - 1) < error
    assert abs(float(((y - mean) * (ahead - mean) / variance).mean())) < 5 / np.sqrt(1600)


def test_batches_of_everything():
    """Two systems, three starts: as one distribution and one by one."""
    moves = np.stack([MOVE, 0.5 * MOVE])[:, None]
    batch = law(transition=moves, initial_mean=np.stack([START, 0 * START, 2 * START])[:, None])
    assert batch.batch_shape == (3, 2)
    y = np.random.default_rng(2).normal(size=(3, 2, 5)).astype(np.float32)
    y[0, 1, 2] = np.nan
    leaves, tree = jax.tree.flatten(batch)

    @jax.jit
    def all_of_it(leaves, y):
        again = jax.tree.unflatten(tree, leaves)
        assert again.batch_shape == (3, 2)
        assert jax.eval_shape(again.expand((6, 3, 2)).log_prob, y).shape == (6, 3, 2)
        return again.log_prob(y), again.smoothed(y), again.sample(jax.random.key(0), (4,))

    found, (mean, sd), drawn = all_of_it(leaves, y)
    assert mean.shape == sd.shape == (3, 2, 5, 2)
    assert drawn.shape == (4, 3, 2, 5)
    one = jax.jit(lambda move, start, y: law(transition=move, initial_mean=start).log_prob(y))
    expected = [
        [one(moves[j, 0], k * START, y[i, j]) for j in range(2)] for i, k in enumerate((1.0, 0.0, 2.0))
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_gradient_knows_gaps():
    y = np.array([0.3, np.nan, 1.0, 0.2, -0.4], np.float32)
    slope = jax.jit(jax.grad(lambda v: law(observation_covariance=v).log_prob(y)))(0.2)
    step = 1e-2
    f = jax.jit(lambda v: law(observation_covariance=v).log_prob(y))
    np.testing.assert_allclose(slope, (f(0.2 + step) - f(0.2 - step)) / (2 * step), rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"initial_covariance": np.eye(3)},
            r"`initial_covariance` has shape \(3, 3\); with 2 states and 1 observed",
        ),
        ({"transition": np.ones((4, 2, 2))}, "`transition` has 4 entries in time, and `num_steps` is 5"),
        ({"offset": np.ones(3)}, r"`offset` has shape \(3,\)"),
        ({"steps": (0, 0)}, "`steps` must increase from 0 or more to at most 4"),
        ({"steps": (0, 5)}, "`steps` must increase from 0 or more to at most 4"),
        ({"num_steps": 0}, "`num_steps` must be positive"),
        ({"initial_mean": np.float32(1.0)}, "`initial_mean` must be"),
        ({**VECTOR, "observation_covariance": 1.0}, r"`observation_covariance` has shape \(\)"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        law(**changes)


def test_a_series_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"The series has shape \(4,\); its last axes must be \(5,\)"):
        law().log_prob(np.zeros(4))
