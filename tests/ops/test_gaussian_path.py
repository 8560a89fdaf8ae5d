"""Paths by circulant embedding: their covariance, by matrices and by samples, and what cannot be embedded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sojourn.ops.gaussian_path import embedding_eigenvalues, path_from_noise, relative_minimum, sample_paths

LAGS = np.arange(12) * 0.3
HURST = 0.8


def fractional_noise(k):
    return 0.5 * (abs(k + 1) ** (2 * HURST) - 2 * abs(k) ** (2 * HURST) + abs(k - 1) ** (2 * HURST))


AUTOCOVARIANCES = {
    "Ornstein-Uhlenbeck": 2.5 * np.exp(-LAGS),
    "Matérn 3/2": (1 + 2 * LAGS) * np.exp(-2 * LAGS),
    "persistent fractional noise": fractional_noise(np.arange(12.0)),
    "white": np.eye(12)[0],
    "moving average, negative at lag 1": np.array([1.0, -0.5, 0.0]),
    "two values": np.array([1.0, 0.3]),
}


def toeplitz(autocovariance):
    n = len(autocovariance)
    return autocovariance[abs(np.subtract.outer(np.arange(n), np.arange(n)))]


@pytest.mark.parametrize("name", AUTOCOVARIANCES)
def test_covariance_of_the_linear_map(name, x64):
    autocovariance = AUTOCOVARIANCES[name]
    n = len(autocovariance)
    root = np.asarray(path_from_noise(np.eye(2 * (n - 1)), autocovariance))
    np.testing.assert_allclose(root.T @ root, toeplitz(autocovariance), atol=1e-12)


@pytest.mark.parametrize("name", AUTOCOVARIANCES)
def test_eigenvalues(name, x64):
    autocovariance = AUTOCOVARIANCES[name]
    found = np.asarray(embedding_eigenvalues(autocovariance))
    circulant = toeplitz(np.concatenate([autocovariance, autocovariance[-2:0:-1]]))
    expected = np.linalg.eigvalsh(circulant)
    np.testing.assert_allclose(np.sort(np.concatenate([found, found[1:-1]])), expected, atol=1e-12)
    # Bochner's sum: the variances by frequency.
    assert np.concatenate([found, found[1:-1]]).mean() == pytest.approx(autocovariance[0], abs=1e-12)
    assert float(relative_minimum(autocovariance)) == pytest.approx(
        expected.min() / expected.max(), abs=1e-12
    )


def test_sample_covariance(x64):
    """Every entry within 5 standard errors, (C_ii C_jj + C_ij^2) / N of Isserlis, and the mean too."""
    autocovariance, num_paths = AUTOCOVARIANCES["Matérn 3/2"], 20_000
    paths = np.asarray(sample_paths(jax.random.key(1), autocovariance, (num_paths,)))
    covariance = toeplitz(autocovariance)
    error = np.sqrt((1.0 + covariance**2) / num_paths)
    assert (abs(paths.T @ paths / num_paths - covariance) < 5 * error).all()
    assert (abs(paths.mean(0)) < 5 / np.sqrt(num_paths)).all()


def test_shapes_and_keys():
    batch = np.stack([AUTOCOVARIANCES["Ornstein-Uhlenbeck"], AUTOCOVARIANCES["Matérn 3/2"]])
    paths = sample_paths(jax.random.key(0), batch, (3, 4))
    assert paths.shape == (3, 4, 2, 12)
    assert embedding_eigenvalues(batch).shape == (2, 12)
    assert relative_minimum(batch).shape == (2,)
    np.testing.assert_array_equal(paths, sample_paths(jax.random.key(0), batch, (3, 4)))
    assert (paths != sample_paths(jax.random.key(1), batch, (3, 4))).all()
    # No two paths of a sample are the same.
    assert len(np.unique(np.asarray(paths)[..., 0].ravel())) == 24


def test_integers_are_covariances_too():
    np.testing.assert_allclose(embedding_eigenvalues([4, 1, 0]), [6.0, 4.0, 2.0], rtol=1e-6)


def test_jit_and_vmap_agree_with_eager(x64):
    key, rates = jax.random.key(2), np.array([0.5, 1.0, 2.0])

    def path(key, rate):
        return sample_paths(key, jnp.exp(-rate * LAGS))

    keys = jax.random.split(key, 3)
    mapped = jax.jit(jax.vmap(path))(keys, rates)
    one_by_one = [sample_paths(k, np.exp(-r * LAGS)) for k, r in zip(keys, rates, strict=True)]
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-10, atol=1e-10)


def test_known_covariances_are_checked_under_jit():
    with pytest.raises(ValueError, match="The circulant embedding"):
        jax.jit(lambda key: sample_paths(key, np.array([1.0, 0.9, -0.9])))(jax.random.key(0))


def test_gradient_in_the_autocovariance(x64):
    noise = np.random.default_rng(0).normal(size=(22,))

    @jax.jit
    def path(rate):
        return path_from_noise(noise, jnp.exp(-rate * LAGS))

    check_grads(path, (0.7,), order=1, modes=("fwd", "rev"), rtol=1e-6)


def test_gradient_is_finite_where_eigenvalues_vanish(x64):
    """A squared exponential, whose eigenvalues fall below rounding: the derivative is that of the others."""
    lags = np.arange(400) * 0.1
    noise = np.random.default_rng(1).normal(size=(798,))

    @jax.jit
    def path(scale):
        return path_from_noise(noise, jnp.exp(-((lags / scale) ** 2) / 2))

    eigenvalues = np.asarray(embedding_eigenvalues(np.exp(-(lags**2) / 2)))
    assert (eigenvalues < 1e-14).sum() > 100
    value, slope = jax.jvp(path, (1.0,), (1.0,))
    assert np.isfinite(value).all()
    # Central differences of step h err by h^2/6 of the third derivative, of order one here, and 1e-8/h of the
    # noise.
    step = 1e-4
    np.testing.assert_allclose(slope, (path(1 + step) - path(1 - step)) / (2 * step), atol=1e-3)
    gradient = jax.grad(lambda r: (path_from_noise(noise, r) ** 2).sum())(jnp.exp(-(lags**2) / 2))
    assert np.isfinite(gradient).all()


def test_rounding_is_not_noise_on_the_path():
    """In single precision, at 1000 steps to a length scale; Rice's mean of crossings is T / (pi ell), 83.

    The limit is 5 standard deviations above it, if the count were Poisson's (it is less variable); with
    nothing taken for rounding there are about twice as many crossings.
    """
    lags = np.arange(2**16) / 1000
    expected = 4 * lags[-1] / np.pi
    paths = np.asarray(sample_paths(jax.random.key(3), np.exp(-(lags**2) / 2).astype(np.float32), (4,)))
    crossings = (np.diff(np.sign(paths)) != 0).sum()
    assert paths.dtype == np.float32
    assert crossings < expected + 5 * np.sqrt(expected)


def test_a_record_that_is_too_short_is_refused_and_a_longer_one_is_not(x64):
    lags = np.arange(2000) * 0.05
    autocovariance = np.exp(-(lags**2) / 2)
    assert float(relative_minimum(autocovariance[:64])) < -1e-6
    with pytest.raises(
        ValueError, match=r"has an eigenvalue -\S+ times its largest: lengthen the record \(more lags"
    ):
        sample_paths(jax.random.key(0), autocovariance[:64])
    assert float(relative_minimum(autocovariance)) > -1e-12
    assert np.isfinite(sample_paths(jax.random.key(0), autocovariance)).all()


def test_an_indefinite_function_is_refused_and_gives_nan_where_it_is_traced():
    boxcar = (np.arange(200) < 50).astype(float)  # its transform is a Dirichlet kernel, negative in places
    with pytest.raises(
        ValueError, match="it is not positive definite, and no stationary process has it"
    ) as error:
        sample_paths(jax.random.key(0), boxcar)
    eigenvalues = np.fft.rfft(np.concatenate([boxcar, boxcar[-2:0:-1]])).real
    assert f"an eigenvalue {eigenvalues.min() / eigenvalues.max():.2g} times" in str(error.value)
    batch = np.stack([boxcar, np.exp(-np.arange(200.0))])
    paths = jax.jit(lambda r: sample_paths(jax.random.key(0), r))(batch)
    assert np.isnan(paths[0]).all()
    assert np.isfinite(paths[1]).all()


@pytest.mark.parametrize(
    ("autocovariance", "sentence"),
    [
        (
            1.0,
            r"`autocovariance` has shape \(\); it needs \(\.\.\., n\), values r\(0\), r\(dt\), \.\.\., two",
        ),
        ([1.0], r"`autocovariance` has shape \(1,\)"),
        ([1.0, np.nan, 0.0], r"`autocovariance` is not finite at lag 1 \(in steps\)\."),
        ([0.0, 0.0], r"begins with r\(0\) = 0, the variance; it must be above 0\."),
        ([[1.0, 0.0], [-2.0, 0.0]], r"begins with r\(0\) = -2"),
    ],
)
def test_refusals(autocovariance, sentence):
    for call in (embedding_eigenvalues, lambda r: sample_paths(jax.random.key(0), r)):
        with pytest.raises(ValueError, match=sentence):
            call(np.array(autocovariance))


def test_noise_of_another_length():
    with pytest.raises(ValueError, match=r"`noise` has shape \(3,\); 3 autocovariances need \(\.\.\., 4\)\."):
        path_from_noise(np.zeros(3), np.array([1.0, 0.5, 0.25]))
