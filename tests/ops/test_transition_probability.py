"""Transition probabilities by four methods, against SciPy's exponential, in float64 to 1e-12."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from sojourn.ops import transition_probability as ops

STATES = 3


def generator(jumps):
    jumps = np.asarray(jumps, float) * ~np.eye(STATES, dtype=bool)
    return jumps - jumps.sum(-1, keepdims=True) * np.eye(STATES)


def rates(seed=0, *batch):
    return generator(np.random.default_rng(seed).uniform(0.1, 1.5, size=(*batch, STATES, STATES)))


def reversible_rates(seed=0):
    rng = np.random.default_rng(seed)
    flow = rng.gamma(1.0, size=(STATES, STATES))
    return generator((flow + flow.T) / rng.dirichlet(5.0 * np.ones(STATES))[:, None])


def exact(q, times):
    return np.stack([scipy.linalg.expm(np.asarray(q, float) * t) for t in times])


def exact_jacobian(q, times):
    """Fréchet derivatives in every single entry, by SciPy (Al-Mohy and Higham 2009)."""
    found = np.zeros((len(times), *(STATES,) * 4))
    for d, t in enumerate(times):
        for i, j in np.ndindex(STATES, STATES):
            one = np.zeros((STATES, STATES))
            one[i, j] = t
            found[d, :, :, i, j] = scipy.linalg.expm_frechet(q * t, one, compute_expm=False)
    return found


@partial(jax.jit, static_argnames="method")
def probabilities(q, plan, method="uniformization"):
    return ops.transition_probabilities(q, plan, method=method)


@partial(jax.jit, static_argnames="method")
def jacobian(q, plan, method="uniformization"):
    """Derivatives in every entry of the rate matrix by itself, ``(D, K, K, K, K)``."""
    return jax.jacrev(lambda q: ops.transition_probabilities(q, plan, method=method))(q)


SHORT = np.array([0.0, 0.5, 1e-6, 3.0, 0.02])
"""Fits one Poisson sum."""
LONG = np.array([0.5, 0.0, 200.0, 3.0, 1000.0, 80.0])
"""Needs squaring, differently often, and is out of order."""

MATRICES = {
    "any": rates(0),
    "one exit faster than the others": generator([[0, 2.9, 0.1], [0.01, 0, 0.02], [0.01, 0.01, 0]]),
    "absorbing": generator([[0.0, 1.0, 0.5], [0.3, 0.0, 0.2], [0.0, 0.0, 0.0]]),
    "progressive": generator([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]),
    "two classes": generator([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    "a ring": generator([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 0.0]]),
    "nothing moves": np.zeros((3, 3)),
}


# ------------------------------------------------------------------------------------------------- the values


@pytest.mark.parametrize("what", MATRICES)
def test_equal_to_the_exponential(what, x64):
    q = MATRICES[what]
    for times in (SHORT, LONG):
        plan = ops.plan(times, 3.0)
        assert bool(plan.squarings) == (times is LONG)  # up to q t = 3000
        found = np.asarray(probabilities(q, plan))
        np.testing.assert_allclose(found, exact(q, times), atol=1e-12)
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(-1), 1.0, rtol=4e-16)
        np.testing.assert_array_equal(found[times == 0], np.eye(STATES)[None])


@pytest.mark.parametrize("what", MATRICES)
def test_small_probabilities_are_right_in_relation(what, x64):
    """All terms of the sum are positive: two jumps within a microsecond lose nothing to cancellation."""
    q, t = MATRICES[what], 1e-6
    found = np.asarray(probabilities(q, ops.plan(np.array([t]), 3.0)))[0]
    series = np.eye(STATES) + q * t + q @ q * t**2 / 2 + q @ q @ q * t**3 / 6
    np.testing.assert_allclose(found, series, rtol=3e-6)  # the first term left out is smaller by q t


def test_whatever_can_be_reached_has_a_positive_probability(x64):
    """However few terms the plan has: six states in a row need five jumps."""
    q = np.diag(np.full(5, 1e-3), 1) - np.diag([1e-3] * 5 + [0.0])
    plan = ops.plan(np.array([1.0]), 1e-3)
    assert plan.num_terms < 6
    found = np.asarray(probabilities(q, plan))[0]
    assert found[0, 5] == pytest.approx(1e-15 / 120, rel=2e-3)  # (q t)^5 / 5!, times 1 - O(q t)
    np.testing.assert_array_equal(found > 0, np.triu(np.ones((6, 6), bool)))


@pytest.mark.parametrize("method", ["eigen", "expm"])
def test_the_other_methods_agree(method, x64):
    for q in (MATRICES["any"], MATRICES["absorbing"], MATRICES["a ring"], MATRICES["nothing moves"]):
        found = np.asarray(probabilities(q, ops.plan(LONG, 3.0), method))
        np.testing.assert_allclose(found, exact(q, LONG), atol=1e-12)
        assert (found >= 0).all()


def test_reversible(x64):
    for q in (reversible_rates(), generator(np.ones((3, 3)))):  # the second with a tie
        for method in ("reversible", "eigen"):
            found = probabilities(q, ops.plan(SHORT, 1.0), method)
            np.testing.assert_allclose(found, exact(q, SHORT), atol=1e-12)


def test_batches_with_their_own_intervals(x64):
    q = rates(4, 2)
    times = np.stack([LONG, 2.0 * LONG[::-1]])
    plan = ops.plan(times, float(-np.diagonal(q, axis1=1, axis2=2).min()))
    expected = np.stack([exact(q[g], times[g]) for g in range(2)])
    for method in ops.METHODS[:2]:
        np.testing.assert_allclose(probabilities(q, plan, method), expected, atol=1e-12)


def test_batches_broadcast(x64):
    q, one = rates(5, 2), rates(6)
    top = float(max(-np.diagonal(q, axis1=1, axis2=2).min(), -one.min()))
    shared = probabilities(q, ops.plan(LONG, top))
    np.testing.assert_allclose(shared, np.stack([exact(x, LONG) for x in q]), atol=1e-12)
    times = np.stack([LONG, LONG[::-1] / 7.0])
    several = probabilities(one, ops.plan(times, top))
    np.testing.assert_allclose(several, np.stack([exact(one, t) for t in times]), atol=1e-12)
    grid = probabilities(q[:, None], ops.plan(times, top))
    assert grid.shape == (2, 2, len(LONG), 3, 3)
    np.testing.assert_allclose(grid[1, 0], exact(q[1], LONG), atol=1e-12)


def test_float32():
    """Rounding of sums of positive terms: below 1e-6 in a single sum, and doubled by each of up to six squarings."""
    q = MATRICES["any"].astype(np.float32)
    reference = np.asarray(q, float)
    for times, bound in ((SHORT, 1e-6), (LONG, 3e-5)):
        found = np.asarray(probabilities(q, ops.plan(times, 3.0)))
        assert found.dtype == np.float32
        assert (found >= 0).all()
        np.testing.assert_allclose(found.sum(-1), 1.0, rtol=3e-7)
        np.testing.assert_allclose(found, exact(reference, times), atol=bound)


# ---------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("what", ["any", "absorbing", "progressive", "nothing moves"])
def test_derivative_in_every_free_entry(what, x64):
    q = MATRICES[what]
    times = np.array([0.5, 0.0, 3.0, 80.0])
    plan = ops.plan(times, 3.0)
    assert plan.squarings == (1, 1)
    expected = exact_jacobian(q, times)
    np.testing.assert_allclose(jacobian(q, plan), expected, atol=1e-12 * max(1.0, np.abs(expected).max()))


def test_derivative_by_eigenvectors(x64):
    cases = [("eigen", MATRICES["any"]), ("eigen", MATRICES["a ring"])]
    tied = generator(np.ones((3, 3)))
    cases += [(m, q) for m in ("eigen", "reversible") for q in (reversible_rates(), tied)]
    for method, q in cases:
        expected = exact_jacobian(q, SHORT)
        np.testing.assert_allclose(jacobian(q, ops.plan(SHORT, 1.0), method), expected, atol=1e-11)


def test_derivative_near_a_tie(x64):
    """The divided difference changes its formula where the eigenvalues come close: both sides must be right."""
    for gap in (1e-13, 1e-9, 1e-5, 1e-2):
        q = generator([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0 + gap], [1.0, 1.0 + gap, 0.0]])
        expected = exact_jacobian(q, SHORT)
        np.testing.assert_allclose(jacobian(q, ops.plan(SHORT, 1.0), "reversible"), expected, atol=1e-11)


def test_derivative_in_the_intervals(x64):
    q = MATRICES["any"]
    times = jnp.array([0.5, 3.0])
    # Along a fixed direction of the outputs; d/dt e^{Qt} = Q e^{Qt}.
    weights = np.random.default_rng(0).normal(size=(2, 3, 3))
    expected = (weights * (q @ exact(q, times))).sum((1, 2))

    @jax.jit
    @jax.grad
    def slope(t):
        return (weights * ops.transition_probabilities(q, t, method="eigen")).sum()

    np.testing.assert_allclose(slope(times), expected, rtol=1e-11)


# --------------------------------------------------------------------------------------------------- capacity


def test_plan_holds_up_to_its_capacity(x64):
    for load in (0.01, 63.0, 3000.0):
        q = generator([[0.0, load, 0.0], [0.0, 0.0, load], [load / 2, load / 2, 0.0]])
        plan = ops.plan(np.array([1.0]), load)
        assert bool(ops.within_capacity(q, plan))
        assert not bool(ops.within_capacity(1.001 * q, plan))
        np.testing.assert_allclose(probabilities(q, plan), exact(q, [1.0]), atol=1e-12)


def test_plan_cuts_the_sum_beyond_its_capacity(x64):
    q = MATRICES["any"]
    plan = ops.plan(np.array([1.0]), 0.01)
    assert not bool(ops.within_capacity(q, plan))
    assert np.abs(np.asarray(probabilities(q, plan)) - exact(q, [1.0])).max() > 1e-4


def test_within_capacity_of_a_batch():
    plan = ops.plan(np.array([1.0]), 1.5)
    q = np.stack([MATRICES["absorbing"], 1.1 * MATRICES["absorbing"]])
    assert ops.within_capacity(jnp.asarray(q), plan).tolist() == [True, False]


def test_plan_counts_squarings():
    plan = ops.plan(np.array([1.0, 0.0, 50.0, 200.0]), 1.0)
    assert plan.order.tolist() == [3, 2, 0, 1]
    assert plan.order[plan.rank].tolist() == [3, 2, 0, 1] or plan.rank.tolist() == [2, 3, 1, 0]
    assert plan.squarings == (1, 1)  # 200 / 4 is below 64; 50 needs none
    assert ops.plan(np.array([1.0, 200.0, 100.0]), 1.0).squarings == (1, 2)
    assert 64 < plan.num_terms < 150


def test_plan_is_a_pytree():
    plan = ops.plan(LONG, 3.0)
    leaves, tree = jax.tree.flatten(plan)
    again = jax.tree.unflatten(tree, leaves)
    assert (again.num_terms, again.squarings, again.max_rate) == (
        plan.num_terms,
        plan.squarings,
        plan.max_rate,
    )


@pytest.mark.parametrize(
    ("intervals", "max_rate", "message"),
    [
        ([0.1, -0.2], 1.0, "Intervals must be finite and not negative"),
        ([0.1, np.nan], 1.0, "Intervals must be finite"),
        ([0.1], 0.0, "`max_rate` must be a positive number, not 0.0"),
        ([0.1], np.inf, "`max_rate` must be a positive number"),
    ],
)
def test_bad_plans(intervals, max_rate, message):
    with pytest.raises(ValueError, match=message):
        ops.plan(np.array(intervals), max_rate)


def test_bad_calls():
    with pytest.raises(ValueError, match=r"`method` is one of 'uniformization'.*not 'pade'"):
        ops.transition_probabilities(MATRICES["any"], SHORT, method="pade")
    with pytest.raises(ValueError, match="`max_rate`, the largest exit rate, must be given"):
        jax.jit(lambda q: ops.transition_probabilities(q, SHORT))(MATRICES["any"])


# ----------------------------------------------------------------------------------------------------- pieces


def test_poisson_weights(x64):
    mean = np.array([0.0, 1e-9, 0.3, 7.0, 64.0])
    found = np.asarray(ops.log_poisson(jnp.asarray(mean), 150))
    expected = scipy.stats.poisson.logpmf(np.arange(150), mean[:, None])
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    shown = np.isfinite(expected)
    np.testing.assert_allclose(found[shown], expected[shown], rtol=1e-13, atol=1e-13)


def test_powers(x64):
    matrix = np.random.default_rng(0).dirichlet(np.ones(3), (2, 3))
    for num in (1, 2, 7, 8):
        found = np.asarray(ops.powers(jnp.asarray(matrix), num))
        assert found.shape == (2, num, 3, 3)
        for k in range(num):
            expected = np.stack([np.linalg.matrix_power(m, k) for m in matrix])
            np.testing.assert_allclose(found[:, k], expected, atol=1e-15 * max(k, 1))


def test_uniformized(x64):
    rate, chain = ops.uniformized(jnp.asarray(np.stack([MATRICES["any"], np.zeros((3, 3))])))
    assert float(rate[0]) > -MATRICES["any"].min()
    assert float(rate[1]) == 1.0
    assert (np.asarray(chain) >= 0).all()
    assert (np.diagonal(np.asarray(chain)[0]) > 0).all()
    np.testing.assert_allclose(rate[0] * (chain[0] - np.eye(3)), MATRICES["any"], atol=1e-14)
    np.testing.assert_array_equal(chain[1], np.eye(3))
