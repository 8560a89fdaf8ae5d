"""The identities of maximum caliber, in float64, each against a calculation of another kind.

The numbers are those of the flashing ratchet of six states (potential 1, switching rate 1, rate 1 when off), whose
entropy production is known, and of a chain whose rates have a closed form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from sojourn.models import maximum_caliber as mc
from sojourn.ops.perron import perron

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Against the custom of this folder: these tests compile for long and run for no time."""


EXACT = {"rtol": 1e-9, "atol": 1e-9}


def generator(moves):
    moves = np.where(np.eye(len(moves), dtype=bool), 0.0, moves)
    return moves - np.diag(moves.sum(1))


def off_diagonal(rates):
    return np.where(np.eye(len(rates), dtype=bool), 0.0, rates)


def null_law(rates):
    """Stationary law, as the null vector of a singular value decomposition."""
    law = np.linalg.svd(rates.T)[2][-1]
    return law / law.sum()


STATES = 4
REFERENCE = generator(np.random.default_rng(0).gamma(2.0, 1.0, (STATES, STATES)))
LEVEL = np.arange(STATES, dtype=float)
DIRECTION = np.sign(LEVEL[None, :] - LEVEL[:, None])
DWELL = np.stack([LEVEL, np.zeros(STATES)])
JUMP = np.stack([np.zeros((STATES, STATES)), DIRECTION])
TILT = np.array([0.3, -0.2])
PROCESS = (REFERENCE, DWELL, JUMP)


def dominant(tilt, rates, dwell, jump):
    """Free energy by a general eigensolver."""
    moves = off_diagonal(rates) * np.exp(np.tensordot(tilt, jump, 1))
    return np.linalg.eigvals(moves + np.diag(np.diag(rates) + tilt @ dwell)).real.max()


def test_free_energy_is_the_dominant_eigenvalue():
    for tilt in (TILT, np.zeros(2), np.array([-3.0, 2.0]), np.array([20.0, -4.0])):
        value = float(mc.free_energy(tilt, *PROCESS))
        assert value == pytest.approx(dominant(tilt, *PROCESS), rel=1e-12, abs=1e-12)
    assert float(mc.free_energy(TILT, *PROCESS)) == pytest.approx(0.469904, abs=5e-7)


def test_doob_transform_is_a_process_with_the_law_left_times_right():
    rates, law = (np.asarray(x) for x in mc.doob_transform(TILT, *PROCESS))
    np.testing.assert_allclose(rates.sum(1), 0.0, atol=1e-13)
    assert (off_diagonal(rates) >= 0).all()
    np.testing.assert_allclose(law, null_law(rates), **EXACT)
    # Rows come to zero of themselves: the vectors are right, not only the diagonal that was filled in.
    tilted = np.asarray(mc.tilted_generator(TILT, *PROCESS))
    value, log_right, _ = perron(tilted)
    own = tilted * np.exp(log_right[None, :] - log_right[:, None]) - float(value) * np.eye(STATES)
    np.testing.assert_allclose(own, rates, rtol=1e-12, atol=1e-12)


def test_gibbs_relation():
    rates = np.asarray(mc.doob_transform(TILT, *PROCESS).rate_matrix)
    stationary = null_law(rates)
    by_hand = [stationary @ LEVEL, (stationary[:, None] * off_diagonal(rates) * DIRECTION).sum()]
    np.testing.assert_allclose(by_hand, [1.44076602, -0.33462568], atol=1e-8)
    np.testing.assert_allclose(jax.grad(mc.free_energy)(TILT, *PROCESS), by_hand, **EXACT)
    np.testing.assert_allclose(mc.averages(TILT, *PROCESS), by_hand, **EXACT)


def test_fluctuation_dissipation():
    hessian = np.asarray(jax.hessian(mc.free_energy)(TILT, *PROCESS))
    np.testing.assert_allclose(mc.covariances(TILT, *PROCESS), hessian, **EXACT)
    # Response of the averages of the eigensolver's free energy: central differences of fourth order, step 1e-3, with
    # an error of 1e-12 from the step and 1e-9 from rounding.
    step = 1e-3 * np.eye(2)
    response = np.array(
        [
            [
                sum(
                    w * v * dominant(TILT + a * step[i] + b * step[j], *PROCESS)
                    for a, w in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
                    for b, v in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
                )
                / 1e-6
                for j in range(2)
            ]
            for i in range(2)
        ]
    )
    np.testing.assert_allclose(hessian, response, atol=1e-8)


def test_green_kubo():
    rates, _ = mc.doob_transform(TILT, *PROCESS)
    hessian = np.asarray(jax.hessian(mc.free_energy)(TILT, *PROCESS))
    assert float(hessian[0, 0]) == pytest.approx(0.3267078588191036, abs=1e-12)
    integral = np.asarray(mc.green_kubo(rates, DWELL))
    assert integral[0, 0] == pytest.approx(0.3267078588191036, abs=1e-12)
    # The integral itself, by Gauss-Legendre quadrature up to where correlations are below 1e-16.
    rates = np.asarray(rates)
    law = null_law(rates)
    nodes, weights = np.polynomial.legendre.leggauss(120)
    end = 40.0 / np.sort(-np.linalg.eigvals(rates).real)[1]
    times = end * (nodes + 1) / 2
    centred = LEVEL - law @ LEVEL
    correlations = np.array([(law * centred) @ expm(t * rates) @ centred for t in times])
    assert integral[0, 0] == pytest.approx(end * weights @ correlations, rel=1e-9)


def test_green_kubo_of_several_observables():
    dwell = np.random.default_rng(1).normal(size=(3, STATES))
    tilt = np.array([0.4, -0.1, 0.7])
    rates, _ = mc.doob_transform(tilt, REFERENCE, dwell)
    np.testing.assert_allclose(mc.green_kubo(rates, dwell), mc.covariances(tilt, REFERENCE, dwell), **EXACT)


@pytest.mark.parametrize("duration", [0.5, 200.0, 3e5])
def test_finite_durations(duration):
    """``T (psi_T - psi) -> log(p . r)`` exponentially fast; before that the matrix exponential itself."""
    initial = np.full(STATES, 0.25)
    value = float(mc.finite_time_free_energy(TILT, *PROCESS, duration=duration, initial=initial))
    limit, log_right, _ = perron(mc.tilted_generator(TILT, *PROCESS))
    if duration < 300:
        tilted = np.asarray(mc.tilted_generator(TILT, *PROCESS))
        assert value == pytest.approx(np.log(initial @ expm(duration * tilted).sum(1)) / duration, rel=1e-11)
    if duration > 100:
        offset = np.log(initial @ np.exp(log_right))
        assert value - float(limit) == pytest.approx(offset / duration, abs=1e-12)
    if duration == 200.0:
        assert value == pytest.approx(0.470106, abs=1e-6)


def test_finite_duration_from_the_stationary_state_has_the_stationary_average():
    slope = jax.grad(mc.finite_time_free_energy)(np.zeros(2), *PROCESS, duration=0.7)
    np.testing.assert_allclose(slope, mc.averages(np.zeros(2), *PROCESS), **EXACT)


# ------------------------------------------------------------------------------------------ maximum caliber

LAW = np.array([0.1, 0.2, 0.3, 0.4])
EQUAL = generator(np.ones((STATES, STATES)))
OCCUPATION = np.concatenate([np.eye(STATES)[:-1], np.zeros((1, STATES))])
COUNT = np.concatenate([np.zeros((STATES - 1, STATES, STATES)), np.ones((1, STATES, STATES))])


def test_law_and_jump_rate_give_square_root_rates():
    """Of all processes with this law and two jumps in a unit of time, ``k_ij = nu sqrt(p_j / p_i)`` is nearest."""
    targets = np.append(LAW[:-1], 2.0)
    tilt = mc.solve_tilt(targets, EQUAL, OCCUPATION, COUNT)
    np.testing.assert_allclose(mc.averages(tilt, EQUAL, OCCUPATION, COUNT), targets, **EXACT)
    rates, law = (np.asarray(x) for x in mc.doob_transform(tilt, EQUAL, OCCUPATION, COUNT))
    np.testing.assert_allclose(law, LAW, **EXACT)
    ratio = rates / np.sqrt(LAW[None, :] / LAW[:, None])
    speed = 2.0 / (np.sqrt(LAW).sum() ** 2 - 1.0)
    assert speed == pytest.approx(0.72003142, abs=1e-8)
    np.testing.assert_allclose(ratio[~np.eye(STATES, dtype=bool)], speed, **EXACT)
    assert float(tilt[-1]) == pytest.approx(np.log(speed), abs=1e-9)
    static = mc.maximum_entropy(np.log(LAW), np.eye(STATES))
    np.testing.assert_allclose(law, static, **EXACT)


def relative_entropy_rate(rates, reference):
    """Of path laws, by unit of time, in the stationary state of ``rates`` (Maes and Netocny 2008)."""
    law = null_law(rates)
    moves, before = off_diagonal(rates), off_diagonal(reference)
    log = np.where(moves > 0, np.log(np.where(moves > 0, moves, 1) / np.where(before > 0, before, 1)), 0.0)
    return float((law[:, None] * (before - moves + moves * log)).sum())


def test_rate_function_is_the_least_relative_entropy():
    target = np.asarray(mc.averages(TILT, *PROCESS))
    rate = float(mc.rate_function(target, *PROCESS))
    rates = np.asarray(mc.doob_transform(TILT, *PROCESS).rate_matrix)
    assert rate == pytest.approx(TILT @ target - dominant(TILT, *PROCESS), abs=1e-11)
    assert rate == pytest.approx(relative_entropy_rate(rates, REFERENCE), abs=1e-11)
    np.testing.assert_allclose(jax.grad(mc.rate_function)(target, *PROCESS), TILT, **EXACT)
    # As many jumps more each way between two states change neither the law nor the averages, but the caliber.
    law = null_law(rates)
    for extra in (0.05, -0.05):
        flow = law[:, None] * off_diagonal(rates)
        flow[[0, 2], [2, 0]] += extra
        other = generator(flow / law[:, None])
        np.testing.assert_allclose([null_law(other) @ LEVEL, (flow * DIRECTION).sum()], target, **EXACT)
        assert relative_entropy_rate(other, REFERENCE) > rate + 1e-4


def test_tilts_are_found_again():
    for tilt in (np.zeros(2), TILT, np.array([-6.0, 3.0]), np.array([15.0, -2.0])):
        found = mc.solve_tilt(mc.averages(tilt, *PROCESS), *PROCESS)
        np.testing.assert_allclose(found, tilt, rtol=1e-7, atol=1e-9)


def test_implicit_derivatives_of_the_tilt():
    target = np.asarray(mc.averages(TILT, *PROCESS))
    slope = jax.jacrev(mc.solve_tilt)(target, *PROCESS)
    np.testing.assert_allclose(slope, np.linalg.inv(mc.covariances(TILT, *PROCESS)), rtol=1e-8)
    # Twice the rates: twice the jumps, and the same law at twice the dwell tilt.
    scaled = jax.jacfwd(lambda c: mc.solve_tilt(target * jnp.array([1.0, c]), c * REFERENCE, DWELL, JUMP))(
        1.0
    )
    np.testing.assert_allclose(scaled, [TILT[0], 0.0], atol=1e-8)


# ------------------------------------------------------------------------------------------- entropy flow


@pytest.fixture
def ratchet():
    """Rates of the flashing ratchet, and the entropy flow as a jump observable."""
    place = np.arange(3.0)
    on = np.exp(-0.5 * (place[None, :] - place[:, None]))
    rates = generator(np.block([[on, np.eye(3)], [np.eye(3), np.ones((3, 3))]]))
    return rates, np.asarray(mc.entropy_flow(rates))[None]


@pytest.mark.parametrize(
    ("tilt", "value"), [(0.3, 0.07150286324725919), (-0.2, -0.02839277982063), (0.8, 0.27932526073038)]
)
def test_gallavotti_cohen(ratchet, tilt, value):
    rates, flow = ratchet
    for one in (tilt, -1.0 - tilt):
        assert float(mc.free_energy(np.array([one]), rates, jump=flow)) == pytest.approx(value, abs=1e-12)


def test_entropy_flow_of_the_ratchet(ratchet):
    rates, flow = ratchet
    none = np.zeros(1)
    assert float(mc.averages(none, rates, jump=flow)[0]) == pytest.approx(0.17919362838891, abs=1e-12)
    assert float(mc.covariances(none, rates, jump=flow)[0, 0]) == pytest.approx(0.37997865460861, abs=1e-12)
    current = null_law(rates)[:, None] * off_diagonal(rates)
    forward = (current > 0) & (current.T > 0)
    ratio = np.where(forward, current, 1.0) / np.where(forward.T, current.T, 1.0)
    assert 0.5 * ((current - current.T) * np.log(ratio)).sum() == pytest.approx(0.17919362838891, abs=1e-12)


def test_affinities_of_the_driven_process(ratchet):
    """Around a cycle the Doob factor cancels: the affinity changes by what the tilt adds along it, and only that."""
    rates, _ = ratchet
    cycle = [0, 1, 4, 3]
    jump = np.random.default_rng(2).normal(size=(1, 6, 6))
    dwell = np.random.default_rng(3).normal(size=(1, 6))
    tilt = np.array([0.7])
    driven = mc.doob_transform(tilt, rates, dwell, jump).rate_matrix
    ends = [*cycle[1:], cycle[0]]
    added = 0.7 * (jump[0, cycle, ends] - jump[0, ends, cycle]).sum()
    before = float(mc.cycle_affinity(rates, cycle))
    assert before == pytest.approx(-0.5 * (1.0 - 0.0) * 2, abs=1e-12)
    assert float(mc.cycle_affinity(driven, cycle)) == pytest.approx(before + added, abs=1e-12)
    by_dwell = mc.doob_transform(tilt, rates, dwell).rate_matrix
    assert float(mc.cycle_affinity(by_dwell, cycle)) == pytest.approx(before, abs=1e-12)
