"""Complete paths: what they add up to, and the laws of those that are drawn.

Means over many draws are judged by ``z = (mean - exact) / standard error``: all below 4 in size, which a right program
fails with a probability below 1e-4 an entry. Seeds are fixed.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.stats

from sojourn.ops import jump_path

RATES = np.array([[-1.5, 1.0, 0.5], [0.3, -0.5, 0.2], [0.6, 0.9, -1.5]])
DURATION, DRAWS, STATES = 2.0, 20_000, 3


def integral(q, between, t):
    """int_0^t exp(Q u) B exp(Q (t - u)) du, as a block of one exponential (Van Loan 1978)."""
    k = len(q)
    block = np.zeros((2 * k, 2 * k))
    block[:k, :k], block[:k, k:], block[k:, k:] = q, between, q
    return scipy.linalg.expm(block * t)[:k, k:]


def z_scores(draws, expected, seldom=False):
    """Of every entry that varies; the others must be right as they stand.

    Counts of ``seldom`` events have at least the variance of Poisson's law, however few were seen.
    """
    draws, expected = np.asarray(draws, float), np.asarray(expected, float)
    variance = np.maximum(draws.var(0), expected) if seldom else draws.var(0)
    fixed = variance == 0
    np.testing.assert_allclose(draws.mean(0)[fixed], expected[fixed], atol=1e-6)
    return ((draws.mean(0) - expected)[~fixed]) / np.sqrt(variance[~fixed] / len(draws))


# ------------------------------------------------------------------------------------------------- statistics


def test_statistics_by_hand():
    time = np.array([[0.0, 1.5, 2.0, 4.5, 5.0], [0.0, 2.0, 2.0, 2.0, 2.0]])
    state = np.array([[0, 2, 2, 1, 0], [1, 1, 1, 1, 1]])  # an event without a jump, and a path without events
    dwell, jumps = jump_path.statistics(time, state, np.array([6.0, 2.0]), STATES)
    np.testing.assert_allclose(dwell, [[2.5, 0.5, 3.0], [0.0, 2.0, 0.0]])
    expected = np.zeros((2, STATES, STATES))
    expected[0, 0, 2] = expected[0, 2, 1] = expected[0, 1, 0] = 1.0
    np.testing.assert_array_equal(jumps, expected)


def test_state_at():
    time, state = np.array([0.0, 1.5, 2.0, 5.0]), np.array([0, 2, 1, 1])
    at = np.array([-1.0, 0.0, 1.499, 1.5, 1.7, 2.0, 5.0, 9.0])  # entered: held from that time on
    assert jump_path.state_at(time, state, at).tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


# -------------------------------------------------------------------------------------------------- simulation


@partial(jax.jit, static_argnames=("draws", "max_jumps"))
def simulated(key, rates, draws=DRAWS, max_jumps=25):
    def one(key):
        time, state, cut = jump_path.simulate(key, rates, 0, DURATION, max_jumps=max_jumps)
        dwell, jumps = jump_path.statistics(time, state, DURATION, STATES)
        return time, state, cut, dwell, jumps, jump_path.state_at(time, state, jnp.array([0.7, DURATION]))

    return jax.vmap(one)(jax.random.split(key, draws))


def test_simulation_has_the_exact_law():
    time, state, cut, dwell, jumps, at = map(np.asarray, simulated(jax.random.key(0), RATES))
    # At most 1.5 jumps a unit of time: P(Poisson(3) > 25) is below 1e-15.
    assert not cut.any()
    assert (time[:, 0] == 0).all()
    assert (np.diff(time, axis=1) >= 0).all()
    assert (time <= DURATION).all()
    assert (state[:, 0] == 0).all()
    np.testing.assert_allclose(dwell.sum(1), DURATION, rtol=1e-5)
    # The state at two times: a row of the exponential.
    for k, t in enumerate((0.7, DURATION)):
        held = at[:, k, None] == np.arange(STATES)
        assert np.abs(z_scores(held, scipy.linalg.expm(RATES * t)[0])).max() < 4
    # Dwell E[T_i] = int P_0i, counts E[N_ij] = q_ij int P_0i.
    mean_dwell = np.array([integral(RATES, np.diag(e), DURATION)[0].sum() for e in np.eye(STATES)])
    assert np.abs(z_scores(dwell, mean_dwell)).max() < 4
    mean_jumps = RATES * mean_dwell[:, None] * ~np.eye(STATES, dtype=bool)
    assert np.abs(z_scores(jumps, mean_jumps)).max() < 4


def test_first_sojourn_is_exponential():
    time, state, *_ = map(np.asarray, simulated(jax.random.key(1), RATES))
    first = time[:, 1]
    left = first < DURATION
    assert np.abs(z_scores(left[:, None], [1 - np.exp(-1.5 * DURATION)])).max() < 4
    truncated = scipy.stats.truncexpon(b=1.5 * DURATION, scale=1 / 1.5)
    assert scipy.stats.kstest(first[left], truncated.cdf).pvalue > 1e-4
    # Where to does not depend on when.
    to = state[left, 1]
    assert np.abs(z_scores(to[:, None] == [1, 2], [2 / 3, 1 / 3])).max() < 4
    early = first[left] < np.median(first[left])
    table = [[(to[early == e] == s).sum() for s in (1, 2)] for e in (True, False)]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_absorbing_states_and_cut_paths():
    progressive = np.array([[-2.0, 2.0, 0.0], [0.0, -3.0, 3.0], [0.0, 0.0, 0.0]])
    time, state, cut, *_ = map(np.asarray, simulated(jax.random.key(2), progressive, draws=100, max_jumps=2))
    assert not cut.any()  # two jumps are all there can be
    assert set(map(tuple, state)) <= {(0, 0, 0), (0, 1, 1), (0, 1, 2)}
    assert (time[state[:, 1] == 0][:, 1:] == DURATION).all()
    *_, cut, dwell, _, _ = simulated(jax.random.key(3), 100.0 * RATES, draws=100, max_jumps=2)
    assert bool(cut.all())
    assert bool(jnp.isfinite(dwell).all())


# ------------------------------------------------------------------------------------------------------ bridges


@partial(jax.jit, static_argnames="num_events")
def bridged(key, rates, start, end, interval, num_events=24):
    time, state = jump_path.bridge(key, rates, start, end, interval, num_events=num_events)
    return time, state, *jump_path.statistics(time, state, interval, STATES)


def check_bridges(rates, found, start, end, interval):
    """Ends, order and expected statistics of bridges, pair by pair."""
    time, state, dwell, jumps = map(np.asarray, found)
    np.testing.assert_array_equal(state[:, 0], start)
    np.testing.assert_array_equal(state[:, -1], end)
    assert (time[:, 0] == 0).all()
    assert (np.diff(time, axis=1) >= 0).all()
    assert (time <= interval[:, None] * (1 + 1e-6)).all()
    np.testing.assert_allclose(dwell.sum(1), interval, rtol=1e-5)
    off = ~np.eye(STATES, dtype=bool)
    for a, b in np.ndindex(STATES, STATES):
        here = (start == a) & (end == b)
        t = float(interval[here][0])
        q = rates if rates.ndim == 2 else rates[here][0]
        prob = scipy.linalg.expm(q * t)[a, b]
        unit = np.eye(STATES)
        mean_dwell = [integral(q, np.outer(e, e), t)[a, b] / prob for e in unit]
        assert np.abs(z_scores(dwell[here], mean_dwell)).max() < 4
        mean_jumps = np.array([[q[i, j] * integral(q, np.outer(unit[i], unit[j]), t)[a, b] for j in range(3)]
                               for i in range(3)]) / prob  # fmt: skip
        assert np.abs(z_scores(jumps[here], mean_jumps * off, seldom=True)).max() < 4


ENDS = np.repeat(np.array(list(np.ndindex(STATES, STATES))), 2000, axis=0)


def test_bridges_have_the_exact_law():
    """2000 bridges between each pair of states, over intervals of their own; 9 x 9 entries."""
    start, end = ENDS.T
    interval = 0.3 + 0.2 * (STATES * start + end)
    found = bridged(jax.random.key(0), RATES, start, end, interval)
    check_bridges(RATES, found, start, end, interval)


def test_bridges_with_a_matrix_each():
    start, end = ENDS.T
    interval = np.full(len(start), 1.5)
    scale = np.where(start == 0, 0.2, 1.0)[:, None, None]  # also seldom events
    rates = scale * RATES
    found = bridged(jax.random.key(1), rates, start, end, interval)
    check_bridges(rates, found, start, end, interval)


def test_time_of_the_only_jump():
    """Between two states with one way from the first to the second."""
    one_way = np.array([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    start, end = np.zeros(len(ENDS), int), np.ones(len(ENDS), int)
    _, _, dwell, _ = bridged(jax.random.key(2), one_way, start, end, np.full(len(ENDS), 2.0))
    # Time of the jump given that it came before 2: a truncated exponential.
    law = scipy.stats.truncexpon(b=2.0, scale=1.0)
    assert scipy.stats.kstest(np.asarray(dwell[:, 0]), law.cdf).pvalue > 1e-4


def test_bridges_over_nothing():
    """Equal ends over an interval of length zero, and between states that are never left."""
    start = ENDS[:, 0]
    time, state, dwell, jumps = bridged(jax.random.key(3), RATES, start, start, np.zeros(len(start)))
    assert (np.asarray(state) == start[:, None]).all()
    assert float(jnp.abs(time).max()) == float(dwell.sum()) == float(jumps.sum()) == 0.0
    _, state, dwell, jumps = bridged(jax.random.key(3), np.zeros((3, 3)), start, start, np.ones(len(start)))
    np.testing.assert_array_equal(dwell, np.eye(3)[start])
    assert float(jumps.sum()) == 0.0
