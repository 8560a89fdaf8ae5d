"""The kernel at its edges: forbidden moves, impossible series, underflow, one step, wrong shapes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.ops import hidden_markov as ops

INITIAL = np.array([0.5, 0.3, 0.2])
TRANSITION = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])


def emissions(steps, states=3, seed=0):
    return np.random.default_rng(seed).normal(size=(steps, states)) - 1.0


@pytest.fixture(scope="module")
def gradient():
    """Compiled value and gradient of each kind of likelihood."""
    kinds = {
        "scaled": ops.log_likelihood,
        "log space": partial(ops.log_likelihood, log_space=True),
        "autodiff": partial(ops.log_likelihood, vjp=False),
    }
    return {name: jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 2))) for name, fn in kinds.items()}


KINDS = ["scaled", "log space", "autodiff"]


# ------------------------------------------------------------------------------------- zeros, minus infinity


@pytest.mark.parametrize("kind", KINDS)
def test_forbidden_starts_and_moves(gradient, kind, x64):
    initial = np.array([1.0, 0.0, 0.0])
    transition = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 1.0]])
    log_emission = emissions(5)

    def forward(initial, transition):
        alpha = initial * np.exp(log_emission[0])
        for row in log_emission[1:]:
            alpha = (alpha @ transition) * np.exp(row)
        return np.log(alpha.sum())

    value, (d_initial, d_transition, d_emission) = gradient[kind](initial, transition, log_emission)
    assert float(value) == pytest.approx(forward(initial, transition), abs=1e-12)
    # One-sided differences from the zeros, and central ones elsewhere; error of second order in the step.
    step = 1e-7
    for k in range(3):
        move = step * np.eye(3)[k]
        slope = (forward(initial + move, transition) - forward(initial, transition)) / step
        assert float(d_initial[k]) == pytest.approx(slope, rel=1e-5, abs=1e-6)
        for j in range(3):
            bump = np.outer(move, np.eye(3)[j])
            slope = (forward(initial, transition + bump) - forward(initial, transition)) / step
            assert float(d_transition[k, j]) == pytest.approx(slope, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(d_emission.sum(-1), 1.0, rtol=1e-12)
    assert d_emission[0, 1] == 0


IMPOSSIBLE = {
    "an observation no state can make": (INITIAL, TRANSITION, [[0.0] * 3, [-np.inf] * 3, [0.0] * 3]),
    "an impossible first observation": (INITIAL, TRANSITION, [[-np.inf] * 3, [0.0] * 3, [0.0] * 3]),
    "a forbidden move": (
        np.array([1.0, 0.0, 0.0]),
        np.eye(3),
        [[0.0] * 3, [-np.inf, 0.0, 0.0], [0.0] * 3],
    ),
    "a forbidden start": (
        np.array([0.0, 0.5, 0.5]),
        TRANSITION,
        [[0.0, -np.inf, -np.inf], [0.0] * 3, [0.0] * 3],
    ),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_series(gradient, kind, what):
    value, slopes = gradient[kind](*(jnp.array(x, jnp.float32) for x in IMPOSSIBLE[what]))
    assert value == -jnp.inf
    assert all(bool(jnp.isfinite(s).all()) for s in slopes)


def test_an_impossible_series_smooths_and_samples_without_nan():
    arguments = [jnp.array(x, jnp.float32) for x in IMPOSSIBLE["a forbidden move"]]
    for log_space in (False, True):
        smoothed = jax.jit(partial(ops.smooth, log_space=log_space))(*arguments)
        assert smoothed.log_likelihood == -jnp.inf
        assert not any(bool(jnp.isnan(x).any()) for x in smoothed[1:])
        path = ops.sample_paths(jax.random.key(0), *arguments, num_samples=4, log_space=log_space)
        assert ((path >= 0) & (path < 3)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_in_some_states_only(gradient, kind, x64):
    # Steps 0 and 2 are known to be in one state: p(y) = initial[0] (P^2)[0, 2].
    log_emission = np.zeros((3, 3))
    log_emission[0, 1:] = log_emission[2, :2] = -np.inf
    value, slopes = gradient[kind](INITIAL, TRANSITION, log_emission)
    assert float(value) == pytest.approx(np.log(INITIAL[0] * (TRANSITION @ TRANSITION)[0, 2]), abs=1e-12)
    assert all(bool(jnp.isfinite(s).all()) for s in slopes)


# ----------------------------------------------------------------------------------------------- underflow


def left_to_right():
    """Stay or go on, never back; the observation in the middle is ``gap`` nats off in the state needed later."""
    log_emission = np.full((7, 3), -1.0)
    log_emission[2] = [0.0, -300.0, -300.0]  # looks like state 0 ...
    log_emission[3] = [-np.inf, 0.0, 0.0]  # ... but may not be in state 0 any more
    log_emission[4:, 0] = -np.inf
    transition = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]])
    transition[0] = [1.0, 0.0, 0.0]  # from 0 there is no way out: whoever is needed must have left before
    return np.array([0.5, 0.3, 0.2]), transition, log_emission


def test_log_space_loses_nothing_to_underflow(gradient):
    arguments = left_to_right()
    with jax.enable_x64(True):  # e^-300 is a number in double precision: the fast form is right there
        exact, slopes = gradient["scaled"](*arguments)
        assert jnp.isfinite(exact)
    single = [jnp.array(x, jnp.float32) for x in arguments]
    value, found = gradient["log space"](*single)
    assert float(value) == pytest.approx(float(exact), abs=1e-3)
    np.testing.assert_allclose(found[2], slopes[2], atol=1e-4)
    np.testing.assert_allclose(found[1] * single[1], np.asarray(slopes[1]) * arguments[1], atol=1e-3)
    # The documented limit of the fast form: e^-300 is no number in single precision.
    lost, rest = gradient["scaled"](*single)
    assert lost == -jnp.inf
    assert all(bool(jnp.isfinite(s).all()) for s in rest)
    paths = ops.sample_paths(jax.random.key(0), *single, num_samples=4000, log_space=True)
    # Frequencies over 4000 draws: 5 standard errors are at most 5 sqrt(0.25 / 4000) = 0.04.
    frequency = np.stack([(paths == k).mean(0) for k in range(3)], -1)
    np.testing.assert_allclose(frequency, slopes[2], atol=0.04)
    assert (jnp.diff(paths) >= 0).all()
    assert (ops.viterbi(*single) > 0).all()


def test_a_positive_transition_matrix_recovers_from_underflow(gradient):
    log_emission = emissions(6)
    log_emission[2] = [0.0, -300.0, -300.0]
    log_emission[3] = [-300.0, 0.0, -1.0]
    with jax.enable_x64(True):
        exact, _ = gradient["scaled"](INITIAL, TRANSITION, log_emission)
    for kind in KINDS:
        value, _ = gradient[kind](*(jnp.array(x, jnp.float32) for x in (INITIAL, TRANSITION, log_emission)))
        assert float(value) == pytest.approx(float(exact), abs=1e-3)


def test_large_log_densities_of_either_sign(gradient):
    log_emission = emissions(6)
    shift = np.array([800.0, -900.0, 0.0, 700.0, -650.0, 60.0])[:, None]
    arguments = [jnp.array(x, jnp.float32) for x in (INITIAL, TRANSITION, log_emission)]
    for kind in KINDS:
        plain, _ = gradient[kind](*arguments)
        moved, slopes = gradient[kind](*arguments[:2], jnp.array(log_emission + shift, jnp.float32))
        assert float(moved) == pytest.approx(float(plain) + shift.sum(), abs=2e-3)
        np.testing.assert_allclose(slopes[2].sum(-1), 1.0, rtol=1e-4)


# ------------------------------------------------------------------------------------- shapes and precision


def test_one_step():
    log_emission = emissions(1)
    weights = INITIAL * np.exp(log_emission[0])
    for transition in (TRANSITION, np.zeros((0, 3, 3))):
        for log_space in (False, True):
            smoothed = jax.jit(partial(ops.smooth, log_space=log_space))(INITIAL, transition, log_emission)
            assert float(smoothed.log_likelihood) == pytest.approx(np.log(weights.sum()), abs=1e-5)
            np.testing.assert_allclose(smoothed.marginals[0], weights / weights.sum(), rtol=1e-5)
            assert float(jnp.abs(smoothed.transitions).sum()) == 0
        value = jax.jit(partial(ops.log_likelihood, vjp=False))(INITIAL, transition, log_emission)
        assert float(value) == pytest.approx(np.log(weights.sum()), abs=1e-5)
        assert jax.jit(ops.viterbi)(INITIAL, transition, log_emission).tolist() == [weights.argmax()]
    paths = ops.sample_paths(jax.random.key(0), INITIAL, TRANSITION, log_emission, num_samples=5)
    assert paths.shape == (5, 1)


def test_one_state():
    log_emission = emissions(4, states=1)
    value = ops.log_likelihood(np.ones(1), np.ones((1, 1)), log_emission)
    assert float(value) == pytest.approx(log_emission.sum(), rel=1e-6)


@pytest.mark.parametrize("function", [ops.log_likelihood, ops.filter, ops.smooth, ops.viterbi])
def test_shapes_that_do_not_agree(function):
    log_emission = emissions(5)
    with pytest.raises(ValueError, match=r"`initial` has shape \(2,\); 3 states need \(3,\)"):
        function(np.ones(2) / 2, TRANSITION, log_emission)
    wanted = r"`transition` has shape \(2, 2\); 3 states and 5 steps need \(3, 3\) or \(4, 3, 3\)"
    with pytest.raises(ValueError, match=wanted):
        function(INITIAL, np.eye(2), log_emission)
    with pytest.raises(ValueError, match=r"`transition` has shape \(5, 3, 3\)"):
        function(INITIAL, np.broadcast_to(TRANSITION, (5, 3, 3)), log_emission)


def test_shapes_that_do_not_agree_when_sampling():
    with pytest.raises(ValueError, match=r"`initial` has shape \(4,\)"):
        ops.sample_paths(jax.random.key(0), np.ones(4) / 4, TRANSITION, emissions(5))


def test_integers_and_half_precision_are_accepted():
    # A chain that never moves, written in integers.
    value = ops.log_likelihood([1, 0], [[1, 0], [0, 1]], [[-1, 0], [-2, 0]])
    assert value.dtype == jnp.float32
    assert float(value) == -3.0
    single = ops.log_likelihood(INITIAL, TRANSITION, emissions(8))
    half = ops.log_likelihood(*(jnp.array(x, jnp.bfloat16) for x in (INITIAL, TRANSITION, emissions(8))))
    # bfloat16 keeps 8 bits: each of the 8 terms, of order one, is off by up to 2^-8 or so.
    assert float(half) == pytest.approx(float(single), abs=0.2)


@pytest.mark.parametrize("log_space", [False, True])
def test_ragged_batch_is_a_loop(log_space):
    lengths = np.array([1, 4, 6])
    log_emission = np.stack([emissions(6, seed=s) for s in range(3)])
    smooth = partial(ops.smooth, log_space=log_space)
    batch = jax.jit(jax.vmap(smooth, (None, None, 0, 0)))(INITIAL, TRANSITION, log_emission, lengths)
    paths = jax.jit(jax.vmap(ops.viterbi, (None, None, 0, 0)))(INITIAL, TRANSITION, log_emission, lengths)
    for n, length in enumerate(lengths):
        alone = jax.jit(smooth)(INITIAL, TRANSITION, log_emission[n, :length])
        np.testing.assert_allclose(batch.log_likelihood[n], alone.log_likelihood, rtol=1e-5)
        np.testing.assert_allclose(batch.marginals[n, :length], alone.marginals, atol=1e-6)
        np.testing.assert_array_equal(batch.marginals[n, length:], 0)
        np.testing.assert_allclose(batch.transitions[n], alone.transitions, atol=1e-5)
        np.testing.assert_array_equal(
            paths[n, :length], ops.viterbi(INITIAL, TRANSITION, log_emission[n, :length])
        )


# ------------------------------------------------------------------------------------------- stationary law


def test_stationary_law(x64):
    matrices = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 5, 4))
    law = ops.stationary(matrices)
    assert law.shape == (2, 5, 4)
    np.testing.assert_allclose(jnp.einsum("abi,abij->abj", law, matrices), law, atol=1e-13)
    np.testing.assert_allclose(law.sum(-1), 1.0, atol=1e-13)
    # Transient states have no weight.
    np.testing.assert_allclose(ops.stationary(np.array([[0.5, 0.5], [0.0, 1.0]])), [0, 1], atol=1e-13)
    # A cycle has a stationary law though it never settles.
    np.testing.assert_allclose(ops.stationary(np.roll(np.eye(3), 1, axis=1)), 1 / 3, atol=1e-13)


def test_stationary_law_of_one_state():
    assert ops.stationary(np.ones((1, 1))).tolist() == [1.0]
    assert ops.stationary(np.ones((7, 1, 1))).shape == (7, 1)


def test_stationary_law_is_differentiable(x64):
    def share(p):
        return ops.stationary(jnp.array([[1 - p, p], [0.3, 0.7]]))[0]

    # 0.3 / (p + 0.3)
    assert float(jax.grad(share)(0.1)) == pytest.approx(-0.3 / 0.4**2, abs=1e-12)


def test_paths_go_on_beyond_the_end_of_a_series():
    """The path form of a padded series holds these states: its joint law must be that of the chain."""
    draws, length = 20_000, 2
    run = jax.jit(partial(ops.sample_paths, num_samples=draws))
    paths = np.asarray(run(jax.random.key(0), INITIAL, TRANSITION, emissions(5), length))
    for t in range(length - 1, 4):
        for state in range(len(INITIAL)):
            after = paths[paths[:, t] == state, t + 1]
            rows = np.bincount(after, minlength=len(INITIAL)) / len(after)
            error = np.sqrt(TRANSITION[state] * (1 - TRANSITION[state]) / len(after))
            np.testing.assert_array_less(np.abs(rows - TRANSITION[state]), 4.5 * error + 1e-9)
