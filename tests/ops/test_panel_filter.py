"""The filter of many series against the sum over all paths, and its gradient against automatic differentiation."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.ops.panel_filter import log_likelihood

SERIES, STEPS, STATES, STOCK = 4, 4, 3, 5
PATHS = np.array(list(itertools.product(range(STATES), repeat=STEPS)))
INDEX = np.random.default_rng(1).integers(0, STOCK, (SERIES, STEPS - 1))

pytestmark = pytest.mark.usefixtures("x64")


def problem(seed=0):
    """Laws of the first state, a stock of matrices that are not stochastic, and log-densities."""
    rng = np.random.default_rng(seed)
    return (
        rng.dirichlet(np.ones(STATES), SERIES),
        rng.gamma(1.0, size=(STOCK, STATES, STATES)),
        3.0 * rng.normal(size=(SERIES, STEPS, STATES)) - 2.0,
    )


def enumerated(initial, moves, index, log_emission):
    total = np.zeros(len(index))
    for n, which in enumerate(index):
        weights = initial[n, PATHS[:, 0]] * np.exp(log_emission[n, np.arange(STEPS), PATHS].sum(-1))
        for step in range(STEPS - 1):
            weights = weights * moves[which[step], PATHS[:, step], PATHS[:, step + 1]]
        total[n] = weights.sum()
    with np.errstate(divide="ignore"):
        return np.log(total)


@partial(jax.jit, static_argnames="vjp")
def value(initial, moves, index, log_emission, vjp=True):
    return log_likelihood(initial, moves, index, log_emission, vjp=vjp)


@partial(jax.jit, static_argnames="vjp")
def gradient(weights, initial, moves, log_emission, vjp=True):
    def weighted(*args):
        return weights @ log_likelihood(args[0], args[1], INDEX, args[2], vjp=vjp)

    return jax.grad(weighted, argnums=(0, 1, 2))(initial, moves, log_emission)


WEIGHTS = np.array([1.0, 0.5, -2.0, 0.7])  # not all one: each series must have its own part in the gradient


def test_equal_to_the_sum_over_all_paths():
    for seed in range(3):
        initial, moves, log_emission = problem(seed)
        expected = enumerated(initial, moves, INDEX, log_emission)
        for vjp in (True, False):
            found = value(initial, moves, INDEX, log_emission, vjp=vjp)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_one_law_of_the_first_state_for_all():
    initial, moves, log_emission = problem()
    shared = log_likelihood(initial[0], moves, INDEX, log_emission)
    expected = value(np.broadcast_to(initial[0], initial.shape), moves, INDEX, log_emission)
    np.testing.assert_allclose(shared, expected, rtol=1e-14)


def test_gradient_equals_automatic_differentiation():
    args = problem()
    found, expected = gradient(WEIGHTS, *args), gradient(WEIGHTS, *args, vjp=False)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    # The gradient in the log-emission is the smoothed law.
    np.testing.assert_allclose(found[2].sum(-1), np.repeat(WEIGHTS[:, None], STEPS, 1), rtol=1e-12)


def test_gradient_with_zeros():
    """Forbidden starts, moves and states: derivatives from the edge are those of automatic differentiation."""
    initial, moves, log_emission = problem()
    initial[:, 2], moves[:, 2, 0], log_emission[1, 2, 1] = 0.0, 0.0, -np.inf
    np.testing.assert_allclose(
        value(initial, moves, INDEX, log_emission),
        enumerated(initial, moves, INDEX, log_emission),
        rtol=1e-12,
    )
    args = (initial, moves, log_emission)
    for a, b in zip(gradient(WEIGHTS, *args), gradient(WEIGHTS, *args, vjp=False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_hessian_and_forward_mode():
    initial, moves, log_emission = problem()
    moves = moves[:2]
    index = INDEX % 2

    def total(scale, vjp):
        return WEIGHTS @ log_likelihood(initial, moves * jnp.exp(scale), index, log_emission, vjp=vjp)

    scale = jnp.zeros((2, STATES, 1))
    second = jax.jit(jax.hessian(lambda s: total(s, True)))(scale)
    expected = jax.jit(jax.jacfwd(jax.jacfwd(lambda s: total(s, False))))(scale)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(second, expected, rtol=1e-11, atol=1e-12)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda s: total(s, True), (scale,), (scale,))


def test_impossible_series():
    initial, moves, log_emission = problem()
    whole = gradient(np.ones(SERIES), initial, moves, log_emission)
    log_emission[1, 2] = -np.inf  # an observation that no state can make
    initial[2], log_emission[2, 0] = [1.0, 0.0, 0.0], [-np.inf, 0.0, 0.0]  # a forbidden start
    found = np.asarray(value(initial, moves, INDEX, log_emission))
    assert np.isneginf(found).tolist() == [False, True, True, False]
    slope = gradient(np.ones(SERIES), initial, moves, log_emission)
    assert not any(np.isnan(x).any() for x in slope)
    for n in (0, 3):  # their neighbours do not notice
        np.testing.assert_allclose(slope[0][n], whole[0][n], rtol=1e-13)
        np.testing.assert_allclose(slope[2][n], whole[2][n], rtol=1e-13)
    # A move that no entry of the matrix allows.
    found = value(initial, np.zeros_like(moves), INDEX, problem()[2])
    assert np.isneginf(found).all()
    slope = gradient(np.ones(SERIES), initial, np.zeros_like(moves), problem()[2])
    assert not any(np.isnan(x).any() for x in slope)


def test_padding_by_identity_moves():
    initial, moves, log_emission = problem()
    moves[0] = np.eye(STATES)
    index, padded = INDEX.copy(), log_emission.copy()
    lengths = (4, 3, 2, 1)
    for n, length in enumerate(lengths):
        index[n, length - 1 :], padded[n, length:] = 0, 0.0
    found = value(initial, moves, index, padded)
    for n, length in enumerate(lengths):
        alpha = initial[n] * np.exp(log_emission[n, 0])
        for step in range(1, length):
            alpha = alpha @ moves[index[n, step - 1]] * np.exp(log_emission[n, step])
        assert float(found[n]) == pytest.approx(np.log(alpha.sum()), rel=1e-12)


def test_no_underflow():
    """Densities far below the smallest number, and a long series."""
    initial, moves, log_emission = problem()
    far = value(initial, moves, INDEX, log_emission - 900.0)
    np.testing.assert_allclose(far, value(initial, moves, INDEX, log_emission) - 900.0 * STEPS, rtol=1e-12)
    steps = 4000
    tile = np.full((1, steps, STATES), -1.0)
    stay = log_likelihood(initial[0], 0.1 * np.eye(STATES)[None], np.zeros((1, steps - 1), int), tile)
    assert float(stay[0]) == pytest.approx(-steps + (steps - 1) * np.log(0.1), rel=1e-12)


def test_shapes_that_do_not_agree():
    initial, moves, log_emission = problem()
    with pytest.raises(ValueError, match=r"`index` has shape \(4, 4\); the series need \(4, 3\)"):
        log_likelihood(initial, moves, np.zeros((4, 4), int), log_emission)
    with pytest.raises(ValueError, match=r"`moves` \(5, 2, 2\) do not fit the 3 states"):
        log_likelihood(initial, moves[:, :2, :2], INDEX, log_emission)
    with pytest.raises(ValueError, match=r"`initial` \(4, 2\) and `moves`"):
        log_likelihood(initial[:, :2], moves, INDEX, log_emission)
