import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.ops import information_filter as ops

T, D, M = 4, 3, 2


@pytest.mark.parametrize("m", [1, 2, 3])
def test_controls_are_the_posterior(m, x64):
    """Mean and covariance of all noises together, against the dense normal posterior.

    The law of the noises is a product of the controls' laws, each given the state that the earlier noises made; its
    mean solves them one after another and its log-density at any point must be that of the dense posterior.
    """
    rng = np.random.default_rng(m)
    move, push = rng.normal(size=(T, D, D)) / 2, rng.normal(size=(T, D, m))
    shift, prior_mean = rng.normal(size=(T, D)), rng.normal(size=(T, m))
    first = rng.normal(size=D)
    rows = rng.normal(size=(T, 2, D + m))  # what is seen: -(row . (z, e))^2 / 2 + b row . (z, e)
    b = rng.normal(size=(T, 2))
    whole = np.einsum("tpi,tpj->tij", rows, rows)
    score = np.einsum("tp,tpi->ti", b, rows)
    seen = ops.Quadratic(
        *map(jnp.asarray, (whole[:, :D, :D], whole[:, D:, :D], whole[:, D:, D:], score[:, :D], score[:, D:]))
    )
    control, future = jax.jit(ops.backward)(
        *map(jnp.asarray, (move, push, shift)), seen, jnp.asarray(prior_mean)
    )

    # Dense: state before step t as an affine function of all noises.
    slope, level = [np.zeros((D, T * m))], [first]
    for t in range(T):
        pick = np.zeros((m, T * m))
        pick[:, t * m : (t + 1) * m] = np.eye(m)
        slope.append(move[t] @ slope[-1] + push[t] @ pick)
        level.append(move[t] @ level[-1] + shift[t])
    precision, pull = np.eye(T * m), prior_mean.ravel().copy()
    for t in range(T):
        pick = np.zeros((m, T * m))
        pick[:, t * m : (t + 1) * m] = np.eye(m)
        a = rows[t] @ np.concatenate([slope[t], pick])
        precision += a.T @ a
        pull += a.T @ (b[t] - rows[t][:, :D] @ level[t])
    mean = np.linalg.solve(precision, pull)

    noise = rng.normal(size=T * m)
    log_dense = -0.5 * (noise - mean) @ precision @ (noise - mean) + 0.5 * np.linalg.slogdet(precision)[1]
    total, state = 0.0, first
    for t in range(T):
        e = noise[t * m : (t + 1) * m]
        root = np.asarray(control.precision_root[t])
        away = root.T @ (e - np.asarray(control.mean[t]) - np.asarray(control.gain[t]) @ state)
        total += -0.5 * away @ away + np.log(np.diag(root)).sum()
        state = move[t] @ state + push[t] @ e + shift[t]
    assert total == pytest.approx(log_dense, abs=1e-9)

    # The first state too: its log-density from the future is that of the dense evidence, up to a constant.
    def log_future(z):
        return -0.5 * z @ np.asarray(future[0]) @ z + np.asarray(future[1]) @ z

    def dense(z):
        pull = prior_mean.ravel().copy()
        constant = 0.0
        lead = z
        for t in range(T):
            pick = np.zeros((m, T * m))
            pick[:, t * m : (t + 1) * m] = np.eye(m)
            a = rows[t] @ np.concatenate([slope[t], pick])
            away = rows[t][:, :D] @ lead
            pull += a.T @ (b[t] - away)
            constant += b[t] @ away - 0.5 * away @ away
            lead = move[t] @ lead + shift[t]
        return 0.5 * pull @ np.linalg.solve(precision, pull) + constant

    other = rng.normal(size=D)
    assert log_future(other) - log_future(first) == pytest.approx(dense(other) - dense(first), abs=1e-9)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_noise_factor(m, x64):
    rng = np.random.default_rng(0)
    root = np.tril(rng.normal(size=(5, m, m))) + 2 * np.eye(m)
    factor = np.asarray(ops.noise_factor(jnp.asarray(root)))
    np.testing.assert_allclose(
        factor @ np.swapaxes(factor, -1, -2), np.linalg.inv(root @ np.swapaxes(root, -1, -2)), atol=1e-12
    )
    np.testing.assert_allclose(factor, np.triu(factor))
