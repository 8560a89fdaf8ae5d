"""The Kalman recursions against the joint Gaussian law written out in full."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from sojourn.ops import kalman

RNG = np.random.default_rng(3)
T, D, P = 7, 3, 2


def system(p: int) -> dict[str, np.ndarray]:
    """Time-varying moves, and a noise of rank one: no covariance of a state is invertible at first."""
    load = RNG.normal(size=(D, 1))
    start = RNG.normal(size=(D, 1))
    error = RNG.normal(size=(p, p))
    return {
        "initial_mean": RNG.normal(size=D),
        "initial_covariance": start @ start.T,
        "transition": 0.6 * RNG.normal(size=(T, D, D)),
        "transition_covariance": load @ load.T,
        "observation": RNG.normal(size=(p, D)),
        "observation_covariance": error @ error.T + 0.3 * np.eye(p),
        "offset": RNG.normal(size=(T, D)),
    }


def joint(s: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (x_0, ..., x_T), from x_n = F_n x_{n-1} + c_n + noise."""
    mean = [s["initial_mean"]]
    noise = [s["initial_covariance"]]
    rows = [np.eye(D)]
    for n in range(T):
        mean.append(s["transition"][n] @ mean[-1] + s["offset"][n])
        rows.append(np.concatenate([s["transition"][n] @ rows[-1], np.eye(D)], 1))
        noise.append(s["transition_covariance"])
    total = (T + 1) * D
    full = np.zeros((total, total))
    for n, row in enumerate(rows):
        full[n * D : (n + 1) * D, : row.shape[1]] = row
    spread = np.zeros((total, total))
    for n, q in enumerate(noise):
        spread[n * D : (n + 1) * D, n * D : (n + 1) * D] = q
    return np.concatenate(mean), full @ spread @ full.T


def gaussian(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    if x.size == 0:
        return 0.0
    gap = x - mean
    return float(
        -0.5 * (gap @ np.linalg.solve(covariance, gap) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    )


@pytest.mark.parametrize("p", [1, P])
def test_all_of_it_is_the_dense_gaussian(x64, p):
    s = system(p)
    y = RNG.normal(size=(T, p))
    y[2] = np.nan
    y[4, 0] = np.nan
    mask = np.ones((T, p), bool)
    mask[5] = False
    seen = ~np.isnan(y) & mask
    mean, covariance = joint(s)
    observe = np.kron(np.eye(T), s["observation"])
    y_mean = observe @ mean[D:]
    y_covariance = observe @ covariance[D:, D:] @ observe.T + np.kron(np.eye(T), s["observation_covariance"])
    keep = seen.ravel()

    def up_to(n: int) -> float:
        k = keep & (np.arange(T * p) < n * p)
        return gaussian(y.ravel()[k], y_mean[k], y_covariance[np.ix_(k, k)])

    found = jax.jit(lambda y: kalman.filter(y, **s, mask=mask))(y)
    terms = [up_to(n + 1) - up_to(n) for n in range(T)]
    np.testing.assert_allclose(found.log_predictive, terms, atol=1e-10)
    assert found.log_predictive[2] == 0
    value, slope = jax.jit(
        jax.value_and_grad(lambda f: kalman.log_likelihood(y, **{**s, "transition": f}, mask=mask))
    )(s["transition"])
    np.testing.assert_allclose(value, up_to(T), atol=1e-10)
    assert np.isfinite(slope).all()

    cross = covariance[:, D:] @ observe.T
    gain = np.linalg.solve(y_covariance[np.ix_(keep, keep)], cross[:, keep].T).T
    after = mean + gain @ (y.ravel()[keep] - y_mean[keep])
    left = covariance - gain @ cross[:, keep].T
    smooth = jax.jit(lambda y: kalman.smooth(y, **s, mask=mask))(y)
    np.testing.assert_allclose(smooth.mean, after[D:].reshape(T, D), atol=1e-10)
    np.testing.assert_allclose(smooth.initial_mean, after[:D], atol=1e-10)
    np.testing.assert_allclose(smooth.initial_covariance, left[:D, :D], atol=1e-10)
    for n in range(T):
        block = slice((n + 1) * D, (n + 2) * D)
        np.testing.assert_allclose(smooth.covariance[n], left[block, block], atol=1e-10)
    # After the last observation there is nothing more to know.
    np.testing.assert_allclose(found.mean[-1], smooth.mean[-1], atol=1e-10)
    np.testing.assert_allclose(found.covariance[-1], smooth.covariance[-1], atol=1e-10)


def test_covariances_stay_covariances_in_single_precision():
    """A precise observation of an unknown state: P - K S K' rounds to no variance, Joseph's form does not."""
    one = np.eye(2)
    move = np.array([[1.0, 1.0], [0.0, 1.0]])
    y = np.zeros((2000, 1), np.float32)
    found = jax.jit(
        lambda y: kalman.filter(y, np.zeros(2), 1e4 * one, move, 1e-8 * one, one[:1], 1e-4 * np.eye(1))
    )(y)
    covariance = np.asarray(found.covariance)
    assert covariance.dtype == np.float32
    assert (covariance[:, [0, 1], [0, 1]] > 0).all()
    low, high = np.linalg.eigvalsh(covariance.astype(float)).T
    assert (low > -1e-6 * high).all()
