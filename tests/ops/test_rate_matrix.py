"""Rate matrices: the long run, against closed forms and the six-state flashing ratchet."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.ops import rate_matrix as ops

pytestmark = pytest.mark.usefixtures("x64")


def generator(jumps):
    jumps = np.asarray(jumps, float) * ~np.eye(len(jumps), dtype=bool)
    return jumps - np.diag(jumps.sum(-1))


UP, DOWN = 2.0, 3.0
RANDOM = generator(np.random.default_rng(0).gamma(1.0, size=(3, 3)))
MATRICES = {
    "random": RANDOM,
    "a thousand million times as fast": 1e9 * RANDOM,
    "a thousand million times as slow": 1e-9 * RANDOM,
    "all equal": generator(np.ones((3, 3))),  # eigenvalues 0, -3, -3
    "one way around": generator([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 0.0]]),  # 0, -3 +- i sqrt(3)
    "both ways around": generator([[0.0, 2.0, 0.5], [0.5, 0.0, 2.0], [2.0, 0.5, 0.0]]),
    "up and down": generator([[0.0, UP, 0.0], [DOWN, 0.0, UP], [0.0, DOWN, 0.0]]),
    "one transient": generator([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 1.0, 0.0]]),
    "absorbing": generator([[0.0, 1.0, 0.5], [0.3, 0.0, 0.2], [0.0, 0.0, 0.0]]),
    "two classes": generator([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    "still": np.zeros((3, 3)),
}


@jax.jit
def everything(q):
    law = ops.stationary(q)
    return {
        "stationary": law,
        "relaxation": ops.relaxation_times(q),
        "first passage": ops.mean_first_passage_times(q),
        "currents": ops.probability_currents(q),
        "entropy": ops.entropy_production_rate(q),
        "jumps": (law * ops.exit_rates(q)).sum(-1),
    }


@pytest.fixture(scope="module")
def found():
    """All functions on all matrices, as one batch."""
    with jax.enable_x64(True):
        batch = jax.tree.map(np.asarray, everything(np.stack(list(MATRICES.values()))))
    return {name: {k: x[n] for k, x in batch.items()} for n, name in enumerate(MATRICES)}


@pytest.fixture(scope="module")
def ratchet():
    """Three sites on a slope (states 0-2), which a switch of rate one makes flat (states 3-5); V = 0, 1, 2, 3."""
    site, eye, flat = np.arange(3.0), np.eye(3), np.ones((3, 3))
    slopes = [np.exp(-0.5 * v * (site[None, :] - site[:, None])) for v in range(4)]
    batch = np.stack([generator(np.block([[slope, eye], [eye, flat]])) for slope in slopes])
    with jax.enable_x64(True):
        return {"rates": batch, **jax.tree.map(np.asarray, everything(batch))}


# ------------------------------------------------------------------------------------------- parts of a matrix


def test_generator_ignores_the_diagonal():
    rates = np.arange(18.0).reshape(2, 3, 3)
    q = ops.generator(rates)
    np.testing.assert_allclose(q.sum(-1), 0.0, atol=1e-14)
    off = rates * ~np.eye(3, dtype=bool)
    np.testing.assert_array_equal(ops.off_diagonal(q), off)
    np.testing.assert_array_equal(ops.exit_rates(q), off.sum(-1))
    np.testing.assert_array_equal(ops.generator(q), q)


# ------------------------------------------------------------------------------------------------- stationary


def test_stationary_does_not_move(found):
    law = found["random"]["stationary"]
    np.testing.assert_allclose(law @ RANDOM, 0.0, atol=1e-14)
    assert law.sum() == pytest.approx(1.0, rel=1e-14)
    for unit in ("fast", "slow"):
        other = found[f"a thousand million times as {unit}"]["stationary"]
        np.testing.assert_allclose(other, law, rtol=1e-12)


def test_stationary_with_transient_states(found):
    np.testing.assert_allclose(found["one transient"]["stationary"], [0.0, 0.25, 0.75], atol=1e-14)
    np.testing.assert_allclose(found["absorbing"]["stationary"], [0.0, 0.0, 1.0], atol=1e-14)


def test_gradient_of_the_long_run():
    step = 1e-5  # central differences: error of second order in the step
    bump = generator([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])

    def numbers(q):
        return ops.stationary(q)[0] + ops.entropy_production_rate(q)

    at = jax.jit(numbers)
    slope = float(at(RANDOM + step * bump) - at(RANDOM - step * bump)) / (2.0 * step)
    gradient = jax.jit(jax.grad(numbers))(jnp.asarray(RANDOM))
    assert float((gradient * bump).sum()) == pytest.approx(slope, rel=1e-7)


# ------------------------------------------------------------------------------- relaxation and first passage


def test_relaxation_times(found):
    for name in ("all equal", "one way around"):
        np.testing.assert_allclose(found[name]["relaxation"], [1 / 3, 1 / 3], rtol=1e-12)
    np.testing.assert_allclose(found["two classes"]["relaxation"], [np.inf, 1 / 3], rtol=1e-12)
    assert np.isinf(found["still"]["relaxation"]).all()
    slow, fast = (found[f"a thousand million times as {u}"]["relaxation"] for u in ("slow", "fast"))
    np.testing.assert_allclose(slow, 1e18 * fast, rtol=1e-10)


def test_mean_first_passage_times(found):
    # From 0 to 1 takes 1 / up; from 1 to 2 that, and 1 / up again after each step down.
    up, further = 1 / UP, 1 / UP + DOWN / UP**2
    down, below = 1 / DOWN, 1 / DOWN + UP / DOWN**2
    expected = [[0.0, up, up + further], [below, 0.0, further], [below + down, down, 0.0]]
    np.testing.assert_allclose(found["up and down"]["first passage"], expected, rtol=1e-13)
    assert not np.signbit(found["up and down"]["first passage"]).any()


def test_mean_first_passage_times_satisfy_kemeny(found):
    """sum_j pi_j m_ij does not depend on i: it is the sum of -1 / eigenvalue (Kemeny and Snell 1960)."""
    kemeny = found["random"]["first passage"] @ found["random"]["stationary"]
    values = np.linalg.eigvals(RANDOM)
    total = (-1.0 / values[np.abs(values) > 1e-9]).sum().real
    np.testing.assert_allclose(kemeny, total, rtol=1e-11)


# ------------------------------------------------------------------------------------------ away from balance


def test_currents(found):
    currents = found["random"]["currents"]
    np.testing.assert_array_equal(currents, -currents.T)
    np.testing.assert_allclose(currents.sum(-1), 0.0, atol=1e-14)  # Kirchhoff
    assert np.abs(currents).max() > 0.01
    law = np.array([1.0, 0.0, 0.0])
    moved = np.asarray(ops.probability_currents(RANDOM, law))
    np.testing.assert_allclose(moved.sum(0), law @ RANDOM, atol=1e-14)  # what flows in is dp/dt


def test_entropy_production(found):
    # A ring: three edges with a current of (2 - 1/2) / 3 each and log (2 / (1/2)).
    assert found["both ways around"]["entropy"] == pytest.approx(1.5 * np.log(4.0), rel=1e-12)
    for balanced in ("all equal", "up and down"):
        assert found[balanced]["entropy"] == pytest.approx(0.0, abs=1e-14)
    assert found["one way around"]["entropy"] == np.inf
    # A transient state with a one-way exit carries no flow in the long run; the pair left is in balance.
    assert found["one transient"]["entropy"] == pytest.approx(0.0, abs=1e-13)


# ------------------------------------------------------------------------------------- the flashing ratchet


def test_flashing_ratchet_spectrum_and_law(ratchet):
    law = [0.30119155, 0.13654175, 0.06226671, 0.20029789, 0.15913544, 0.14056668]
    np.testing.assert_allclose(ratchet["stationary"][1], law, atol=1e-8)
    values = np.sort(np.linalg.eigvals(ratchet["rates"][1]).real)[::-1]
    np.testing.assert_allclose(values, [0, -2, -2.860046, -3.56429, -4.877228, -6.295102], atol=1e-5)
    times = ratchet["relaxation"][1]
    np.testing.assert_allclose(times, -1.0 / values[1:], rtol=1e-12)
    assert times[0] == pytest.approx(0.5, rel=1e-12)


def test_flashing_ratchet_first_passage(ratchet):
    expected = [0.0, 2.0535, 2.9653, 1.3307, 2.3831, 2.7266]
    np.testing.assert_allclose(ratchet["first passage"][1, 0], expected, atol=1e-4)


def test_flashing_ratchet_away_from_balance(ratchet):
    np.testing.assert_allclose(ratchet["entropy"], [0.0, 0.179194, 0.565647, 0.992735], atol=1e-5)
    np.testing.assert_allclose(ratchet["jumps"], [3.0, 2.87334, 2.65476, 2.49305], atol=1e-5)
    ring = ratchet["currents"][:, 0, 1]
    np.testing.assert_allclose(ring, [0.0, -0.042437, -0.083272, -0.107813], atol=1e-5)
