"""A published mechanism of a single ion channel, by the linear algebra of aggregated Markov processes.

Five states of the nicotinic receptor with the rate constants of D. Colquhoun and A. G. Hawkes (1982), *Phil. Trans. R.
Soc. Lond. B* 300:1, at 100 nM acetylcholine. Their theory of open and shut times for ideal resolution: with the
generator in blocks of open (A) and shut (F) states, open times have the time constants of ``-Q_AA``, and shut times
those of ``-Q_FF``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.models import maximum_caliber as mc

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Against the custom of this folder: these tests compile for long and run for no time."""


STATES = ("A2R*", "AR*", "A2R", "AR", "R")
CONCENTRATION = 1e-7  # molar
RATES = {  # per second
    ("AR", "AR*"): 15.0,
    ("A2R", "A2R*"): 15000.0,
    ("AR*", "AR"): 3000.0,
    ("A2R*", "A2R"): 500.0,
    ("AR", "R"): 2000.0,
    ("A2R", "AR"): 4000.0,
    ("R", "AR"): 1e8 * CONCENTRATION,
    ("AR*", "A2R*"): 5e8 * CONCENTRATION,
    ("AR", "A2R"): 5e8 * CONCENTRATION,
    ("A2R*", "AR*"): 0.66667,
}
OPEN, SHUT = slice(0, 2), slice(2, 5)
IS_OPEN = np.array([[1.0, 1.0, 0.0, 0.0, 0.0]])


@pytest.fixture(scope="module")
def rates():
    matrix = np.zeros((5, 5))
    for (origin, target), rate in RATES.items():
        matrix[STATES.index(origin), STATES.index(target)] = rate
    return matrix - np.diag(matrix.sum(1))


def time_constants(block):
    return 1e3 * np.sort(1 / -np.linalg.eigvals(block).real)[::-1]


def test_open_probability_is_the_slope_of_the_free_energy(rates):
    law = np.asarray(mc.doob_transform(np.zeros(1), rates, IS_OPEN).stationary)
    assert law[OPEN].sum() == pytest.approx(0.0018868627, rel=1e-6)
    slope = jax.grad(mc.free_energy)(np.zeros(1), rates, IS_OPEN)
    assert float(slope[0]) == pytest.approx(0.0018868627, rel=1e-6)
    assert float(mc.averages(np.zeros(1), rates, IS_OPEN)[0]) == pytest.approx(0.0018868627, rel=1e-6)


def test_mean_open_and_shut_times(rates):
    """Time in a class by the number of visits, both averages of the same process."""
    openings = np.zeros((5, 5))
    openings[SHUT, OPEN] = 1.0
    dwell = np.concatenate([IS_OPEN, 1.0 - IS_OPEN, np.zeros((1, 5))])
    jump = np.concatenate([np.zeros((2, 5, 5)), openings[None]])
    time_open, time_shut, number = np.asarray(mc.averages(np.zeros(3), rates, dwell, jump))
    assert 1e3 * time_open / number == pytest.approx(1.876543, rel=1e-6)
    assert 1e3 * time_shut / number == pytest.approx(992.6543, rel=1e-6)


def test_time_constants(rates):
    np.testing.assert_allclose(time_constants(rates[OPEN, OPEN]), [1.99738903, 0.32786745], rtol=1e-6)
    shut = [3789.381, 0.484746545, 0.0525989]
    np.testing.assert_allclose(time_constants(rates[SHUT, SHUT]), shut, rtol=1e-6)


def test_time_constants_are_limits_of_the_free_energy(rates):
    """Paths that avoid a class weigh ``e^{-t / tau}``: the free energy at a strong tilt against it is ``-1 / tau``.

    Tilted by ``-u``, it differs from the limit by a term of order (rates)^2 / u: 2e6 / 1e16 here.
    """
    assert float(mc.free_energy(np.array([-1e16]), rates, IS_OPEN)) == pytest.approx(-1 / 3.789381, rel=1e-6)
    stay_open = mc.free_energy(np.array([-1e16]), rates, 1.0 - IS_OPEN)
    assert float(stay_open) == pytest.approx(-1 / 1.99738903e-3, rel=1e-6)


def test_single_precision_keeps_slow_states_next_to_fast_ones(rates):
    """Rates from 0.7 to 15000 a second. Rounding relative to the largest would cost 6e-8 x 15000 / 0.7 = 1e-3."""
    tilt = jnp.zeros(1, jnp.float32)
    process = (jnp.asarray(rates, jnp.float32), jnp.asarray(IS_OPEN, jnp.float32))
    single, double = mc.averages(tilt, *process), mc.averages(np.zeros(1), rates, IS_OPEN)
    assert single.dtype == jnp.float32
    assert float(single[0]) == pytest.approx(float(double[0]), rel=5e-5)
