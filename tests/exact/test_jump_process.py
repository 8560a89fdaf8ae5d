"""Jump processes against sums over all states at the times of observation, with SciPy's exponentials, in float64.

The rules for snapshots, exact transitions and exact times of entry are written out once more here, as R's msm documents
them (Jackson 2011, J. Stat. Software 38(8), section 1.3), without a recursion.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.linalg

from sojourn.distributions import HiddenJumpProcess, MarkovJumpPath, PanelJumpProcess, stack_paths
from sojourn.ops import jump_path
from sojourn.ops.rate_matrix import generator

STATES, STEPS = 3, 4
OFF = ~np.eye(STATES, dtype=bool)
PATHS = np.array(list(itertools.product(range(STATES), repeat=STEPS)))

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Unlike their neighbours these compile for longer than they run: as in the rest of the suite."""
    return


def once(fn, *args):
    """Compiled as one piece: step by step NumPyro's laws take several times as long to compile."""
    return jax.jit(fn)(*args)


def full(jumps):
    jumps = np.asarray(jumps, float) * OFF
    return jumps - jumps.sum(-1, keepdims=True) * np.eye(STATES)


RATES = full([[0.0, 1.0, 0.4], [0.3, 0.0, 0.8], [0.6, 0.2, 0.0]])
GROUPS = np.stack([RATES, full([[0.0, 0.2, 0.1], [2.0, 0.0, 0.3], [0.0, 0.0, 0.0]])])  # the second absorbs
INITIAL = np.array([0.5, 0.3, 0.2])
TIMES = np.array([[0.0, 0.5, 1.2, 3.0], [1.0, 1.5, 3.5, 4.0], [0.0, 0.7, 1.2, 1.9]])
LENGTHS = np.array([4, 4, 3])
OBSTYPE = np.array([[1, 1, 2, 3], [1, 3, 1, 1], [1, 2, 1, 1]])
GROUP = np.array([0, 0, 1])
LOC, SCALE = np.array([-1.0, 0.0, 1.5]), 0.8
Y = np.array([[-0.5, np.nan, 0.9, 1.7], [0.2, -1.3, 0.4, 0.0], [-1.1, 0.6, 1.0, np.nan]])
MAX_RATE = 30.0


# ------------------------------------------------------------------------------------- the rules, written out


def move(q, dt, kind):
    """Probability, or density in time, of going from a state to a state over an interval."""
    jump = q * OFF
    if kind == 2:
        return np.diag(np.exp(np.diag(q) * dt)) @ (np.eye(STATES) + jump)
    return scipy.linalg.expm(q * dt) @ (jump if kind == 3 else np.eye(STATES))


def integral(q, i, j, t):
    """int_0^t P(u)_ai P(t - u)_jb du, as a block of one exponential (Van Loan 1978, IEEE TAC 23:395)."""
    block = np.zeros((2 * STATES, 2 * STATES))
    block[:STATES, :STATES] = block[STATES:, STATES:] = q
    block[i, STATES + j] = 1.0
    return scipy.linalg.expm(block * t)[:STATES, STATES:]


def statistics_of_move(q, dt, kind):
    """``move`` times the time in each state ``(K, K, K)``, and times the jumps ``(K, K, K, K)``; ends last."""
    dwell, jumps = np.zeros((STATES,) * 3), np.zeros((STATES,) * 4)
    whole, jump = move(q, dt, kind), q * OFF
    for i, j in np.ndindex(STATES, STATES):
        last = np.zeros((STATES, STATES))
        last[i, j] = jump[i, j]
        if kind == 2:
            dwell[i, i], jumps[i, j] = dt * whole[i], np.where(last > 0, whole, 0.0)
            continue
        after = jump if kind == 3 else np.eye(STATES)
        if i == j:
            dwell[i] = integral(q, i, i, dt) @ after
        else:
            jumps[i, j] = q[i, j] * integral(q, i, j, dt) @ after
            jumps[i, j] += scipy.linalg.expm(q * dt) @ last if kind == 3 else 0.0
    return dwell, jumps


def enumerated(q, initial, times, kinds, log_emission):
    """Likelihood, expected time in each state, expected jumps of one series: a sum over all paths."""
    moves = [move(q, dt, k) for dt, k in zip(np.diff(times), kinds[1:], strict=True)]
    paths = PATHS[PATHS[:, len(times) :].sum(1) == 0][:, : len(times)]
    first = initial[paths[:, 0]] * np.exp(log_emission[np.arange(len(times)), paths].sum(1))
    steps = np.stack([m[paths[:, s], paths[:, s + 1]] for s, m in enumerate(moves)])
    total = (first * steps.prod(0)).sum()
    dwell, jumps = np.zeros(STATES), np.zeros((STATES, STATES))
    for s, (dt, kind) in enumerate(zip(np.diff(times), kinds[1:], strict=True)):
        others = first * np.delete(steps, s, 0).prod(0) / total
        each_dwell, each_jumps = statistics_of_move(q, dt, kind)
        dwell += each_dwell[:, paths[:, s], paths[:, s + 1]] @ others
        jumps += each_jumps[:, :, paths[:, s], paths[:, s + 1]] @ others
    return np.log(total), dwell, jumps


def log_normal(y):
    found = -0.5 * ((y[..., None] - LOC) / SCALE) ** 2 - np.log(SCALE) - 0.5 * np.log(2 * np.pi)
    return np.where(np.isnan(y)[..., None], 0.0, found)


def hidden(rates, **kwargs):
    rest = {"lengths": LENGTHS, "obstype": OBSTYPE, "group": GROUP, "max_rate": MAX_RATE}
    return HiddenJumpProcess(rates, INITIAL, dist.Normal(LOC, SCALE), TIMES, **{**rest, **kwargs})


@pytest.fixture(scope="module")
def everything():
    """For the three series: likelihoods, expected time and jumps, by enumeration."""
    log_emission = log_normal(Y)
    return [
        enumerated(GROUPS[g], INITIAL, TIMES[n, :length], OBSTYPE[n, :length], log_emission[n, :length])
        for n, (g, length) in enumerate(zip(GROUP, LENGTHS, strict=True))
    ]


# -------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("method", ["uniformization", "eigen"])
def test_noisy_series_against_enumeration(everything, method):
    found = jax.jit(lambda q: hidden(q, method=method).log_prob(Y))(GROUPS)
    np.testing.assert_allclose(found, [value for value, *_ in everything], rtol=1e-12)


def test_groups_by_interval():
    group = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 1]])
    law = hidden(GROUPS, group=group, lengths=None, obstype=None)
    found = jax.jit(law.log_prob)(Y)
    for n in range(3):
        weights = INITIAL[PATHS[:, 0]] * np.exp(log_normal(Y)[n, np.arange(STEPS), PATHS].sum(1))
        for s in range(STEPS - 1):
            step = scipy.linalg.expm(GROUPS[group[n, s]] * np.diff(TIMES[n])[s])
            weights = weights * step[PATHS[:, s], PATHS[:, s + 1]]
        assert float(found[n]) == pytest.approx(np.log(weights.sum()), rel=1e-12)


def test_beyond_capacity():
    """Faster exits than ``max_rate`` have probability zero, and a gradient that is not NaN."""

    @jax.jit
    def value_and_slope(scale):
        return jax.value_and_grad(lambda s: hidden(s * GROUPS, max_rate=2.5).log_prob(Y).sum())(scale)

    assert np.isfinite(value_and_slope(1.0)).all()  # the fastest exit is 2.3
    value, slope = value_and_slope(1.1)
    assert float(value) == -np.inf
    assert not np.isnan(slope)


# ------------------------------------------------------------------------------------------ expected statistics


def test_expected_statistics_against_block_exponentials(everything):
    dwell, jumps = jax.jit(lambda q: hidden(q).expected_statistics(Y))(GROUPS)
    for g in range(2):
        mine = [stats for stats, group in zip(everything, GROUP, strict=True) if group == g]
        np.testing.assert_allclose(dwell[g], sum(d for _, d, _ in mine), atol=1e-10)
        np.testing.assert_allclose(jumps[g], sum(j for *_, j in mine), atol=1e-10)
    watched = [TIMES[n, length - 1] - TIMES[n, 0] for n, length in enumerate(LENGTHS)]
    np.testing.assert_allclose(dwell.sum(1), [watched[0] + watched[1], watched[2]], rtol=1e-12)


def test_fisher_identity_and_em():
    """The score is E[N] / q - E[T]; q = E[N] / E[T] cannot lower the likelihood (Dempster, Laird, Rubin 1977)."""

    @jax.jit
    def at(rates):
        law = hidden(generator(rates))
        score = jax.grad(lambda r: hidden(generator(r)).log_prob(Y).sum())(rates)
        return law.log_prob(Y).sum(), score, *law.expected_statistics(Y)

    rates = jnp.asarray(GROUPS * OFF)
    values = []
    for _ in range(4):
        value, score, dwell, jumps = at(rates)
        values.append(float(value))
        allowed = np.asarray(rates) > 0
        expected = (jumps / np.where(allowed, rates, 1.0) - dwell[..., None])[allowed]
        np.testing.assert_allclose(np.asarray(score)[allowed], expected, atol=1e-10)
        rates = jumps / np.where(dwell > 0, dwell, 1.0)[..., None]
    assert (np.diff(values) > 1e-3).all()


def test_expected_statistics_of_a_panel():
    """Known states, a gap, a censored state and a death, counted or filtered."""
    states = np.array([[0, 1, np.nan, 2], [0, 0, 1, 9], [1, 0, 2, 2]])
    obstype = np.array([[1, 1, 1, 3], [1, 1, 2, 1], [1, 1, 1, 1]])
    law = PanelJumpProcess(
        RATES, INITIAL, TIMES, lengths=LENGTHS, obstype=obstype, censored={9: [0, 2]}, max_rate=MAX_RATE
    )
    found, dwell, jumps = once(lambda: (law.log_prob(states), *law.expected_statistics(states)))
    seen = (states[..., None] == np.arange(STATES)) | np.isnan(states)[..., None]
    seen |= (states == 9)[..., None] & np.array([True, False, True])
    log_seen = np.where(seen, 0.0, -np.inf)
    value = 0.0
    expected_dwell, expected_jumps = np.zeros(STATES), np.zeros((STATES, STATES))
    for n, length in enumerate(LENGTHS):
        each = enumerated(RATES, INITIAL, TIMES[n, :length], obstype[n, :length], log_seen[n, :length])
        value, expected_dwell, expected_jumps = (
            value + each[0],
            expected_dwell + each[1],
            expected_jumps + each[2],
        )
    assert float(found) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(dwell, expected_dwell, atol=1e-10)
    np.testing.assert_allclose(jumps, expected_jumps, atol=1e-10)


def test_posterior_paths_have_the_expected_statistics():
    """4000 paths given the three series, jumps between observations included: 15 means, each |z| < 4."""
    draws = 4000
    law = hidden(GROUPS)
    ends = np.take_along_axis(TIMES, LENGTHS[:, None] - 1, 1)[:, 0]

    @jax.jit
    def sampled(key):
        keys = jax.random.split(key, draws)
        # q t is at most 2.8, and P(Poisson(2.8) > 15) below 1e-7
        paths = jax.vmap(lambda key: law.sample_jump_path(key, Y, num_events=15))(keys)
        return paths, law.expected_statistics(Y)

    paths, expected = sampled(jax.random.key(0))
    time, state = paths[..., 0], paths[..., 1].astype(int)
    assert (np.diff(time, axis=-1) >= 0).all()
    np.testing.assert_array_equal(time[..., 0], np.broadcast_to(TIMES[:, 0], (draws, 3)))
    assert (time <= ends[:, None]).all()
    found = jump_path.statistics(time, state, np.broadcast_to(ends, (draws, 3)), STATES)
    for each, mean in zip(found, expected, strict=True):
        each = np.asarray(each)
        each = np.stack([each[:, g == GROUP].sum(1) for g in range(2)], 1)
        error = each.std(0) / np.sqrt(draws)
        varies = error > 0
        np.testing.assert_allclose(each.mean(0)[~varies], mean[~varies], atol=1e-10)
        assert np.abs((each.mean(0) - mean)[varies] / error[varies]).max() < 4
    # An exact transition leaves from the state of the observation before, and not earlier.
    at_three = np.asarray([jump_path.state_at(t, x, TIMES[0, 1:3] + [0.3, -1e-9]) for t, x in zip(
        time[:50, 0], state[:50, 0], strict=True)])  # fmt: skip
    assert (at_three[:, 0] == at_three[:, 1]).all()


# ------------------------------------------------------------------------------------- where the laws must agree


def test_a_complete_path_is_a_product_of_exact_transitions():
    """Obstype 2 at every jump, and the last state again at the end, which censors."""
    times, states, end = [0.0, 0.4, 1.1, 1.3], [0, 2, 1, 2], 2.5
    roomy, snug = _path(times, states, end, 5), stack_paths([times], [states], [end])[0]

    def values():
        panel = PanelJumpProcess(RATES, INITIAL, [*times, end], obstype=[1, 2, 2, 2, 2], max_rate=MAX_RATE)
        return (
            panel.log_prob(np.array([*states, states[-1]])),
            MarkovJumpPath(RATES, INITIAL, end, max_jumps=4).log_prob(roomy),
            MarkovJumpPath(RATES, INITIAL, end, max_jumps=3).log_prob(snug),
        )

    by_hand = np.log(INITIAL[0]) + sum(np.log(RATES[p]) for p in itertools.pairwise(states))
    by_hand += sum(RATES[s, s] * dt for s, dt in zip(states, np.diff([*times, end]), strict=True))
    np.testing.assert_allclose(once(values), by_hand, rtol=1e-12)


def _path(times, states, end, rows):
    spare = rows - len(times)
    return np.stack([[*times, *[end] * spare], [*states, *[states[-1]] * spare]], -1)


def test_counts_and_filter_agree():
    """Known states by counting, by the filter with indicators, and as an emission that shows the state."""
    rng = np.random.default_rng(0)
    states = rng.integers(0, STATES, TIMES.shape)
    obstype = np.array([[1, 2, 1, 3], [1, 1, 1, 1], [1, 3, 3, 2]])
    rest = {"lengths": LENGTHS, "obstype": obstype, "max_rate": MAX_RATE}
    indicator = np.where(states[..., None] == np.arange(STATES), 0.0, -np.inf)

    @jax.jit
    def values(traced):
        panel = PanelJumpProcess(RATES, INITIAL, TIMES, **rest)
        raw = HiddenJumpProcess(RATES, INITIAL, indicator, TIMES, **rest)
        shown = HiddenJumpProcess(RATES, INITIAL, dist.Categorical(probs=np.eye(STATES)), TIMES, **rest)
        filtered = panel.log_prob(traced)  # traced data cannot be counted
        each = raw.log_prob(np.zeros(TIMES.shape)).sum(), shown.log_prob(states).sum()
        return panel.log_prob(states), filtered, *each

    counted, filtered, raw, shown = map(float, values(states))
    assert filtered == pytest.approx(counted, rel=1e-12)
    assert raw == pytest.approx(counted, rel=1e-12)
    # NumPyro keeps the probabilities of a Categorical above the smallest difference from one.
    assert shown == pytest.approx(counted, rel=1e-10)
    value = sum(
        enumerated(RATES, INITIAL, TIMES[n, :k], obstype[n, :k], indicator[n, :k])[0]
        for n, k in enumerate(LENGTHS)
    )
    assert counted == pytest.approx(value, rel=1e-12)


def test_counts_give_the_gradient_of_the_filter():
    states = np.random.default_rng(1).integers(0, STATES, TIMES.shape)

    def panel(q):
        return PanelJumpProcess(q, INITIAL, TIMES, max_rate=MAX_RATE, obstype=OBSTYPE)

    counted = jax.jit(jax.grad(lambda q: panel(q).log_prob(states)))(RATES)
    filtered = jax.jit(jax.grad(lambda q, x: panel(q).log_prob(x)))(RATES, states)
    np.testing.assert_allclose(counted, filtered, rtol=1e-11, atol=1e-12)


def test_a_death_is_the_limit_of_a_short_window():
    """P(dead within h of time t, alive at t) / h, with an error of order h."""
    q = full([[0.0, 1.0, 0.4], [0.3, 0.0, 0.8], [0.0, 0.0, 0.0]])
    initial = np.array([1.0, 0.0, 0.0])

    def values():
        rest = {"censored": {7: [0, 1]}, "max_rate": MAX_RATE}
        death = PanelJumpProcess(q, initial, [0.0, 1.3], obstype=[1, 3], max_rate=MAX_RATE)
        windows = [PanelJumpProcess(q, initial, [0.0, 1.3, 1.3 + h], **rest) for h in (1e-3, 1e-4)]
        return death.log_prob(np.array([0, 2])), *[w.log_prob(np.array([0, 7, 2])) for w in windows]

    exact, *found = map(float, once(values))
    errors = np.array(found) - np.log([1e-3, 1e-4]) - exact
    assert abs(errors[1]) < 1e-4
    assert errors[0] / errors[1] == pytest.approx(10.0, rel=0.01)


def test_a_censored_state_is_the_sum_over_its_set():
    law = PanelJumpProcess(
        RATES, INITIAL, TIMES[0], obstype=[1, 1, 1, 3], censored={5: [1, 2], 8: [0]}, max_rate=MAX_RATE
    )
    panel = jax.jit(law.log_prob)

    def value(*states):
        return float(panel(np.array(states, float)))

    middle = np.logaddexp.reduce([value(0, 1, 0, 2), value(0, 2, 0, 2)])
    assert value(0, 5, 8, 2) == pytest.approx(middle, rel=1e-12)
    ends = np.logaddexp.reduce([value(a, 0, 0, b) for a in (1, 2) for b in (1, 2)])
    assert value(5, 0, 0, 5) == pytest.approx(ends, rel=1e-12)
    anything = np.logaddexp.reduce([value(0, 1, s, 2) for s in range(STATES)])
    assert value(0, 1, np.nan, 2) == pytest.approx(anything, rel=1e-12)
    # The same through the counts: what is censored goes through the filter, and the rest is counted.
    counted = once(lambda: law.log_prob(np.array([0, 5, 8, 2])))
    assert float(counted) == pytest.approx(middle, rel=1e-12)


def test_dense_snapshots_approach_the_complete_path():
    """The density of a path is the probability of its snapshots over (interval ^ jumps), with an error of its order."""
    times, states, end = [0.0, 0.45, 1.05], [0, 2, 1], 2.1  # jumps in the middle of intervals of 0.3 / 3^k
    counts = 7 * 27, 7 * 81

    def values():
        found = []
        for cells in counts:
            grid = np.linspace(0.0, end, cells + 1)
            seen = np.array(states)[np.searchsorted(times, grid, side="right") - 1]
            found.append(PanelJumpProcess(RATES, INITIAL, grid, max_rate=MAX_RATE).log_prob(seen))
        return MarkovJumpPath(RATES, INITIAL, end, max_jumps=2).log_prob(_path(times, states, end, 3)), *found

    exact, *found = map(float, once(values))
    errors = np.array(found) - 2 * np.log(end / np.array(counts)) - exact
    assert errors[0] / errors[1] == pytest.approx(3.0, rel=0.02)
    assert abs(1.5 * errors[1] - 0.5 * errors[0]) < 1e-4  # what is left after the term of first order
