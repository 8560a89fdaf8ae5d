"""The kernel against the sum over every path: 3 states, 6 steps, 729 paths, float64, 1e-12."""

from __future__ import annotations

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.ops import hidden_markov as ops

STATES, STEPS = 3, 6
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("x64")


def chain(varies, seed=0, steps=STEPS):
    rng = np.random.default_rng(seed)
    lead = (steps - 1,) if varies else ()
    return (
        rng.dirichlet(np.ones(STATES)),
        rng.dirichlet(np.ones(STATES), size=(*lead, STATES)),
        2.0 * rng.normal(size=(steps, STATES)) - 3.0,
    )


def paths_of(length):
    return np.array(list(itertools.product(range(STATES), repeat=length)))


def path_probabilities(initial, transition, log_emission, length):
    """p(path, y_1..y_length) of every path, without a recursion."""
    paths = paths_of(length)
    exp = np.exp if isinstance(log_emission, np.ndarray) else jnp.exp
    probs = initial[paths[:, 0]]
    for t in range(length - 1):
        move = transition if transition.ndim == 2 else transition[t]
        probs = probs * move[paths[:, t], paths[:, t + 1]]
    for t in range(length):
        probs = probs * exp(log_emission[t, paths[:, t]])
    return probs


@partial(jax.jit, static_argnums=3)
def enumerated_value(initial, transition, log_emission, length):
    return jnp.log(path_probabilities(initial, transition, log_emission, length).sum())


@partial(jax.jit, static_argnums=3)
def enumerated_gradient(initial, transition, log_emission, length):
    return jax.grad(enumerated_value, argnums=(0, 1, 2))(initial, transition, log_emission, length)


def enumerated(initial, transition, log_emission, length):
    """Everything the kernel gives, by counting paths in NumPy."""
    log_emission = np.asarray(log_emission)
    steps = len(log_emission)
    by_length = [
        np.asarray(path_probabilities(np.asarray(initial), np.asarray(transition), log_emission, n))
        for n in range(1, length + 1)
    ]
    totals = [p.sum() for p in by_length]
    paths, probs = paths_of(length), by_length[-1] / totals[-1]
    marginals, moves = np.zeros((steps, STATES)), np.zeros((steps - 1, STATES, STATES))
    for t in range(length):
        np.add.at(marginals[t], paths[:, t], probs)
    for t in range(length - 1):
        np.add.at(moves[t], (paths[:, t], paths[:, t + 1]), probs)
    filtered, predicted = np.zeros((length, STATES)), np.zeros((length, STATES))
    for n in range(1, length + 1):
        np.add.at(filtered[n - 1], paths_of(n)[:, -1], by_length[n - 1] / totals[n - 1])
        before = by_length[n - 1] / np.exp(log_emission[n - 1, paths_of(n)[:, -1]])
        np.add.at(predicted[n - 1], paths_of(n)[:, -1], before / before.sum())
    return SimpleNamespace(
        value=np.log(totals[-1]),
        log_predictive=np.diff(np.log([1.0, *totals])),
        marginals=marginals,
        moves=moves if np.ndim(transition) == 3 else moves.sum(0),
        filtered=filtered,
        predicted=predicted,
        best=paths[probs.argmax()],
        probs=probs,
    )


def spoil(log_emission, transition, length):
    """Garbage in the padding: it must not matter."""
    rng = np.random.default_rng(9)
    log_emission, transition = log_emission.copy(), transition.copy()
    log_emission[length:] = 500.0 * rng.normal(size=log_emission[length:].shape)
    if transition.ndim == 3:
        transition[length - 1 :] = rng.uniform(-3.0, 3.0, size=transition[length - 1 :].shape)
    return log_emission, transition


@pytest.fixture(scope="module")
def compiled():
    """One compilation for all lengths: the length is traced."""

    def value_and_grad(log_space, vjp):
        fn = partial(ops.log_likelihood, vjp=vjp, log_space=log_space)
        return jax.jit(jax.value_and_grad(fn, argnums=(0, 1, 2)))

    kinds = [(False, True), (True, True), (False, False)]
    return {
        "gradient": {kind: value_and_grad(*kind) for kind in kinds},
        "smooth": {s: jax.jit(partial(ops.smooth, log_space=s)) for s in (False, True)},
        "filter": {s: jax.jit(partial(ops.filter, log_space=s)) for s in (False, True)},
        "viterbi": jax.jit(ops.viterbi),
    }


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize(("log_space", "vjp"), [(False, True), (True, True), (False, False)])
def test_likelihood_and_gradient(compiled, varies, log_space, vjp):
    initial, transition, log_emission = chain(varies)
    for length in range(1, STEPS + 1):
        expected = enumerated_value(initial, transition, log_emission, length)
        slopes = enumerated_gradient(initial, transition, log_emission, length)
        padded, moves = spoil(log_emission, transition, length)
        value, gradient = compiled["gradient"][log_space, vjp](initial, moves, padded, length)
        np.testing.assert_allclose(value, expected, **TOLERANCE)
        for found, slope in zip(gradient, slopes, strict=True):
            np.testing.assert_allclose(found, slope, **TOLERANCE)


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("log_space", [False, True])
def test_smoothing_filtering_and_the_best_path(compiled, varies, log_space):
    initial, transition, log_emission = chain(varies, seed=1)
    for length in range(1, STEPS + 1):
        expected = enumerated(initial, transition, log_emission, length)
        padded, moves = spoil(log_emission, transition, length)
        smoothed = compiled["smooth"][log_space](initial, moves, padded, length)
        np.testing.assert_allclose(smoothed.log_likelihood, expected.value, **TOLERANCE)
        np.testing.assert_allclose(smoothed.marginals, expected.marginals, **TOLERANCE)
        np.testing.assert_allclose(smoothed.transitions, expected.moves, **TOLERANCE)
        filtered = compiled["filter"][log_space](initial, moves, padded, length)
        np.testing.assert_allclose(filtered.log_predictive[:length], expected.log_predictive, **TOLERANCE)
        np.testing.assert_array_equal(filtered.log_predictive[length:], 0.0)
        np.testing.assert_allclose(filtered.filtered[:length], expected.filtered, **TOLERANCE)
        np.testing.assert_allclose(filtered.predicted[:length], expected.predicted, **TOLERANCE)
        path = compiled["viterbi"](initial, moves, padded, length)
        np.testing.assert_array_equal(path[:length], expected.best)
        np.testing.assert_array_equal(path[length:], expected.best[-1])


def test_without_a_length_the_whole_array_counts():
    initial, transition, log_emission = chain(False, seed=2)
    expected = enumerated(initial, transition, log_emission, STEPS)
    value = jax.jit(ops.log_likelihood)(initial, transition, log_emission)
    np.testing.assert_allclose(value, expected.value, **TOLERANCE)
    smoothed = jax.jit(ops.smooth)(initial, transition, log_emission)
    np.testing.assert_allclose(smoothed.marginals, expected.marginals, **TOLERANCE)
    np.testing.assert_allclose(smoothed.transitions, expected.moves, **TOLERANCE)
    np.testing.assert_array_equal(jax.jit(ops.viterbi)(initial, transition, log_emission), expected.best)


@pytest.mark.parametrize("log_space", [False, True])
def test_a_missing_step_is_a_row_of_zeros(compiled, log_space):
    initial, transition, log_emission = chain(False, seed=3)
    log_emission[[0, 3, 4]] = 0.0
    expected = enumerated(initial, transition, log_emission, STEPS)
    smoothed = compiled["smooth"][log_space](initial, transition, log_emission, STEPS)
    np.testing.assert_allclose(smoothed.log_likelihood, expected.value, **TOLERANCE)
    np.testing.assert_allclose(smoothed.marginals, expected.marginals, **TOLERANCE)
    filtered = compiled["filter"][log_space](initial, transition, log_emission, STEPS)
    np.testing.assert_allclose(filtered.log_predictive[jnp.array([0, 3, 4])], 0.0, atol=1e-14)


def test_viterbi_over_many_chains():
    solve = jax.jit(ops.viterbi)
    for seed in range(20):
        initial, transition, log_emission = chain(True, seed=100 + seed)
        best = enumerated(initial, transition, log_emission, STEPS).best
        np.testing.assert_array_equal(solve(initial, transition, log_emission), best)


def test_forward_mode_needs_vjp_false_and_is_then_right():
    initial, transition, log_emission = chain(True, seed=4)
    forward = jax.jit(jax.jacfwd(partial(ops.log_likelihood, vjp=False), argnums=(0, 1, 2)))
    slopes = enumerated_gradient(initial, transition, log_emission, STEPS)
    for found, slope in zip(forward(initial, transition, log_emission), slopes, strict=True):
        np.testing.assert_allclose(found, slope, **TOLERANCE)
    with pytest.raises(TypeError):
        jax.jacfwd(ops.log_likelihood)(jnp.asarray(initial), transition, log_emission)


def hessian(fn, initial, transition, log_emission):
    """Of the log-likelihood in all arguments at once, entry by entry."""
    shapes = [np.shape(x) for x in (initial, transition, log_emission)]
    sizes = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]

    def flat(x):
        return fn(*(part.reshape(s) for part, s in zip(jnp.split(x, sizes), shapes, strict=True)))

    x = jnp.concatenate([jnp.ravel(a) for a in (initial, transition, log_emission)])
    return jax.jit(jax.hessian(flat))(x)


def test_hessian():
    arguments = chain(False, seed=5)
    expected = hessian(lambda *a: enumerated_value(*a, STEPS), *arguments)
    by_scan = hessian(partial(ops.log_likelihood, vjp=False), *arguments)
    np.testing.assert_allclose(by_scan, expected, rtol=1e-10, atol=1e-10)
    for log_space in (False, True):
        by_rule = hessian(partial(ops.log_likelihood, log_space=log_space), *arguments)
        np.testing.assert_allclose(by_rule, by_scan, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("varies", "log_space", "length"), [(False, False, 6), (True, True, 6), (True, False, 4)]
)
def test_sampled_paths_have_their_posterior_probabilities(varies, log_space, length):
    initial, transition, log_emission = chain(varies, seed=6)
    expected = enumerated(initial, transition, log_emission, length).probs
    padded, moves = spoil(log_emission, transition, length) if length < STEPS else (log_emission, transition)
    moves = np.abs(moves)
    draws = 200_000
    sample = jax.jit(partial(ops.sample_paths, num_samples=draws, log_space=log_space))
    drawn = np.asarray(sample(jax.random.key(1), initial, moves, padded, length))[:, :length]
    index = drawn @ (STATES ** np.arange(length)[::-1])
    counts = np.bincount(index, minlength=STATES**length)
    # Pearson's statistic, cells of expectation below 5 pooled. Its mean is the degrees of freedom and its
    # variance twice that (a little more with small cells): 5 standard deviations. Backward sampling that
    # ignores the next state misses by thousands.
    rare = expected * draws < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    mean = np.append(expected[~rare], expected[rare].sum()) * draws
    observed, mean = observed[mean > 0], mean[mean > 0]
    freedom = len(mean) - 1
    statistic = ((observed - mean) ** 2 / mean).sum()
    assert freedom > 20
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(("states", "log_space"), [(5, False), (5, True), (50, False)])
def test_float32_over_50_000_steps(states, log_space):
    # Log-normalisers carried through the scan in float32 would be off by 0.1 here.
    steps = 50_000
    rng = np.random.default_rng(7)
    initial = rng.dirichlet(np.ones(states))
    transition = 0.9 * np.eye(states) + 0.1 * rng.dirichlet(np.ones(states), size=states)
    log_emission = -0.5 * (2.0 * rng.normal(size=(steps, 1)) - np.linspace(-4, 4, states)) ** 2 - 0.9189385
    # The same rounded numbers in both precisions: what is left is the error of the recursion.
    single = [np.asarray(x, np.float32) for x in (initial, transition, log_emission)]
    exact = jax.jit(ops.log_likelihood)(*(x.astype(np.float64) for x in single))
    assert exact.dtype == jnp.float64
    with jax.enable_x64(False):
        found = jax.jit(partial(ops.log_likelihood, log_space=log_space))(*single)
        assert found.dtype == jnp.float32
        terms = jax.jit(partial(ops.filter, log_space=log_space))(*single).log_predictive
    assert abs(np.asarray(terms, np.float64).sum() - float(exact)) < 0.01
    # The sum itself is rounded to float32: half a unit in the last place at 1e5 is 0.004.
    assert abs(float(found) - float(exact)) < 0.01
