"""The exact laws against SciPy's multivariate normal: missing readings, forecasts, bridges, batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sojourn.distributions import FractionalBrownianMotion, FractionalGaussianNoise
from sojourn.ops.fractional import covariance

TIMES = np.array([0.2, 0.5, 0.6, 1.1, 1.5, 2.5])
Y = np.array([0.3, 0.1, -0.4, 0.9, 1.2, 0.4])
GAPS = np.array([0.3, np.nan, -0.4, 0.9, np.nan, 0.4])


def motion(**kwargs):
    settings = {"scale": 1.3, "noise": 0.2, "start": 0.1, "kind": "II"} | kwargs
    return FractionalBrownianMotion(settings.pop("hurst", 0.3), TIMES, **settings)


LAWS = {
    "motion": motion,
    "noise": lambda: FractionalGaussianNoise(0.8, len(TIMES), loc=0.1, scale=1.3),
}


def test_moments(x64):
    law = motion()
    expected = 1.3**2 * covariance(TIMES, 0.3, "II") + 0.2**2 * np.eye(6)
    np.testing.assert_allclose(law.covariance_matrix, expected, rtol=1e-13)
    np.testing.assert_allclose(law.variance, np.diag(expected), rtol=1e-13)
    np.testing.assert_array_equal(law.mean, 0.1)
    increments = np.diff(np.eye(6), axis=0, prepend=0.0)  # of motion at 1, 2, ..., 6
    steps = increments @ np.asarray(covariance(np.arange(1.0, 7.0), 0.8)) @ increments.T
    np.testing.assert_allclose(LAWS["noise"]().covariance_matrix, 1.3**2 * steps, atol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_log_prob_and_its_terms(name, x64):
    law = LAWS[name]()
    matrix, mean = np.asarray(law.covariance_matrix), np.full(6, 0.1)
    for y in (Y, GAPS):
        seen = ~np.isnan(y)
        expected = stats.multivariate_normal.logpdf(y[seen], mean[seen], matrix[np.ix_(seen, seen)])
        assert law.log_prob(y) == pytest.approx(expected, abs=1e-12)
        terms = np.asarray(law.predictive_log_prob(y))
        assert (terms[~seen] == 0).all()
        # A term is what a reading adds to the density of those before it.
        first = np.where(np.arange(6) < 3, y, np.nan)
        assert terms[:3].sum() == pytest.approx(float(law.log_prob(first)), abs=1e-12)
        gradient = jax.jit(jax.grad(law.log_prob))(y)
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[~seen] == 0).all()


@pytest.mark.parametrize("name", LAWS)
def test_one_step_ahead(name, x64):
    """Mean and spread of the draws to five standard errors, at readings and at gaps."""
    law, n = LAWS[name](), 20_000
    matrix = np.asarray(law.covariance_matrix)
    many = jnp.broadcast_to(GAPS, (n, 6))
    draws = np.asarray(law.sample_one_step_ahead(jax.random.key(1), many))
    assert draws.shape == (n, 6)
    for t in range(6):
        past = np.flatnonzero(~np.isnan(GAPS[:t]))
        gain = np.linalg.solve(matrix[np.ix_(past, past)], matrix[past, t]) if len(past) else np.zeros(0)
        mean = 0.1 + gain @ (GAPS[past] - 0.1)
        variance = matrix[t, t] - gain @ matrix[past, t]
        assert abs(draws[:, t].mean() - mean) < 5 * np.sqrt(variance / n)
        assert abs(draws[:, t].var() / variance - 1) < 5 * np.sqrt(2 / n)
    # Without gaps, the same by the shorter way.
    whole = law.sample_one_step_ahead(jax.random.key(1), Y)
    same = law.sample_one_step_ahead(jax.random.key(1), np.append(Y[:5], np.nan))
    np.testing.assert_allclose(whole, same, atol=1e-12)


def test_samples(x64):
    """Second moments to five standard errors, sqrt((C_ii C_jj + C_ij^2) / n)."""
    law, n = motion(), 20_000
    draws = np.asarray(law.sample(jax.random.key(0), (n,))) - 0.1
    matrix = np.asarray(law.covariance_matrix)
    error = np.sqrt((np.outer(np.diag(matrix), np.diag(matrix)) + matrix**2) / n)
    assert (np.abs(draws.T @ draws / n - matrix) < 5 * error).all()


def test_path_given_readings(x64):
    law, at = motion(kind="I"), np.array([0.2, 0.8, 3.0])
    seen = ~np.isnan(GAPS)
    matrix = np.asarray(law.covariance_matrix)[np.ix_(seen, seen)]
    both = np.asarray(covariance(np.append(at, TIMES[seen]), 0.3))
    cross, own = 1.3**2 * both[:3, 3:], 1.3**2 * both[:3, :3]
    mean, spread = jax.jit(law.path_given)(GAPS, at)
    np.testing.assert_allclose(mean, 0.1 + cross @ np.linalg.solve(matrix, GAPS[seen] - 0.1), atol=1e-12)
    expected = own - cross @ np.linalg.solve(matrix, cross.T)
    np.testing.assert_allclose(spread, expected, atol=1e-12)
    # By default at the times of the readings; without errors the path goes through them.
    exact = motion(kind="I", noise=0.0)
    mean, spread = jax.jit(exact.path_given)(np.stack([Y, 2 * Y]))
    np.testing.assert_allclose(mean, [Y, 2 * Y], atol=1e-12)
    assert spread.shape == (2, 6, 6)
    np.testing.assert_allclose(spread, 0.0, atol=1e-12)


def test_batches(x64):
    """A batch of laws is the laws one by one, under expand, to_event and vmap alike."""
    hurst, scale = np.array([[0.2], [0.7]]), np.array([1.0, 2.0, 3.0])
    one = jax.jit(lambda h, s: motion(hurst=h, scale=s).log_prob(GAPS))
    expected = np.array([[float(one(h, s)) for s in scale] for h in hurst[:, 0]])

    @jax.jit
    def of_batch(hurst, scale, y):
        batch, key = motion(hurst=hurst, scale=scale), jax.random.key(0)
        assert (batch.batch_shape, batch.event_shape) == ((2, 3), (6,))
        assert batch.predictive_log_prob(Y).shape == (2, 3, 6)
        assert batch.sample(key, (4,)).shape == (4, 2, 3, 6)
        assert batch.sample_one_step_ahead(key, y).shape == (2, 3, 6)
        assert batch.path_given(y, np.array([1.0]))[1].shape == (2, 3, 1, 1)
        assert batch.mean.shape == batch.variance.shape == (2, 3, 6)
        mapped = jax.vmap(lambda h: motion(hurst=h).expand((3,)).log_prob(y))(hurst[:, 0])
        return batch.log_prob(y), batch.to_event(1).log_prob(y), mapped

    together, event, mapped = of_batch(hurst, scale, GAPS)
    np.testing.assert_allclose(together, expected, atol=1e-12)
    np.testing.assert_allclose(event, expected.sum(-1), atol=1e-11)
    np.testing.assert_allclose(mapped, [[float(one(h, 1.3))] * 3 for h in hurst[:, 0]], atol=1e-12)
    two = FractionalGaussianNoise(np.array([0.3, 0.8]), 6, loc=0.1, scale=1.3)
    assert two.log_prob(Y)[1] == pytest.approx(float(LAWS["noise"]().log_prob(Y)), abs=1e-12)
    assert two.sample(jax.random.key(0)).shape == (2, 6)


@pytest.mark.parametrize("name", LAWS)
def test_pytree(name, x64):
    law = LAWS[name]()
    leaves, tree = jax.tree.flatten(law)
    again = jax.tree.unflatten(tree, leaves)
    assert again.log_prob(Y) == law.log_prob(Y)
    assert jax.jit(lambda law, y: law.log_prob(y))(law, Y) == pytest.approx(float(law.log_prob(Y)), abs=1e-12)


def test_gradient_in_the_parameters(x64):
    parameters = jnp.array([0.3, 1.3, 0.2, 0.1])

    def log_prob(p):
        return motion(hurst=p[0], scale=p[1], noise=p[2], start=p[3]).log_prob(GAPS)

    fn, step = jax.jit(log_prob), 1e-6 * np.eye(4)
    gradient = jax.jit(jax.grad(log_prob))(parameters)
    difference = [(fn(parameters + s) - fn(parameters - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(gradient, difference, rtol=1e-7, atol=1e-7)


def test_validation(x64):
    law = motion(validate_args=True)
    assert np.isfinite(law.log_prob(GAPS))  # missing is no value outside the support
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert law.log_prob(np.append(GAPS[:5], np.inf)) == -np.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FractionalBrownianMotion(1.5, [1.0]), "`hurst` is 1.5; it must be above 0 and below 1"),
        (lambda: FractionalBrownianMotion(0.3, [1.0], scale=0.0), "`scale` is 0; it must be above 0"),
        (lambda: FractionalBrownianMotion(0.3, [1.0], noise=-1.0), "`noise` is -1; it must be 0 or more"),
        (lambda: FractionalBrownianMotion(0.3, [1.0], start=np.nan), "`start` is nan; it must be finite"),
        (lambda: FractionalBrownianMotion(0.3, [0.0, 1.0]), r"`times\[0\]` is 0; times must increase"),
        (lambda: FractionalBrownianMotion(0.3, [1.0, 1.0]), r"`times\[1\]` is 1; times must increase"),
        (lambda: FractionalBrownianMotion(0.3, 1.0), r"`times` has shape \(\); it must be a vector"),
        (lambda: FractionalBrownianMotion(0.3, [1.0], kind="III"), "`kind` is 'III'; it must be 'I'"),
        (lambda: FractionalBrownianMotion(0.3, [1.0, 2.0]).log_prob(np.zeros(3)), "last axis must be the 2"),
        (lambda: FractionalGaussianNoise(0.0, 5), "`hurst` is 0; it must be above 0 and below 1"),
        (lambda: FractionalGaussianNoise(0.5, 0), "`num_steps` is 0; a series needs one step"),
        (lambda: FractionalGaussianNoise(0.5, 5, scale=-1.0), "`scale` is -1; it must be above 0"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refusal_under_jit():
    """What is known when a model is traced is refused then."""
    with pytest.raises(ValueError, match=r"`hurst` is 1\.5"):
        jax.jit(lambda y: FractionalBrownianMotion(1.5, [1.0, 2.0]).log_prob(y))(jnp.zeros(2))
