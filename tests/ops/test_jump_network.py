"""Counts of a panel, and the symmetries of the network that reads them (random weights: they hold for any)."""

import jax
import numpy as np
import pytest

from sojourn.ops import jump_network
from sojourn.ops.jump_network import PanelStatistics


def random_panel(seed, num_states=5, num_paths=40, length=30):
    """A sticky chain on an irregular grid of each path's own, a fifth of it missing."""
    rng = np.random.default_rng(seed)
    stay = rng.random((num_paths, length)) < 0.8
    states = rng.integers(0, num_states, (num_paths, length))
    for t in range(1, length):
        states[:, t] = np.where(stay[:, t], states[:, t - 1], states[:, t])
    states[rng.random(states.shape) < 0.2] = -1
    return states, np.cumsum(rng.gamma(2.0, size=states.shape), 1)


def batch_of_one(statistics):
    return PanelStatistics(*(leaf[None] for leaf in statistics))


@pytest.fixture(scope="module")
def params():
    # Larger last layers than a fresh network has, so that no symmetry holds because the output is nearly constant.
    return jax.tree.map(lambda w: 1.5 * w, jump_network.initialise(jax.random.key(0), width=16, hidden=32))


@pytest.fixture(scope="module")
def forward():
    return jax.jit(jump_network.apply)


def test_counts_by_hand():
    """Two paths at times 0, 1, 2, 3: 0 0 1 1 and 0 1 0 (missing)."""
    s, interval = jump_network.panel_statistics(
        np.array([[0, 0, 1, 1], [0, 1, 0, -1]]), np.arange(4.0), padded_states=2
    )
    assert interval == 1.0
    np.testing.assert_array_equal(s.moves, [[1, 2], [1, 1]])
    # intervals 00 01 11 | 01 10: state 0 owns 1 + 1/2 + 1/2 + 1/2
    np.testing.assert_array_equal(s.exposure, [2.5, 2.5])
    np.testing.assert_array_equal(s.blips, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(s.confirmed, [[0, 1], [0, 0]])
    np.testing.assert_array_equal(s.first, [2, 0])
    # lag 1 lies in the third bin, lag 2 in the fourth; no pair is four observations apart
    np.testing.assert_array_equal(s.pairs[2], s.moves)
    np.testing.assert_array_equal(s.pairs[3], [[1, 2], [0, 0]])
    assert s.pairs.sum() == 5 + 3
    np.testing.assert_array_equal(s.lag, [0, 0, 1, 2, 0, 0, 0, 0])
    np.testing.assert_allclose(jump_network.counting_rates(s), [[0, 2 / 2.5], [1 / 2.5, 0]], rtol=1e-6)


def test_log_transition_is_the_matrix_logarithm():
    """A million noise-free moves of a known generator: the logarithm comes back but for sampling error.

    Entry errors of the frequencies are below 5 sqrt(p (1 - p) / n) with n = 10^6 / 3 pairs from each state, and
    the logarithm of a matrix this near the identity stretches them by at most 1 / (1 - ||p - I||) = 1.6; the
    approximant adds ||log p||^3 / 12 and the shift 0.001 of the entry.
    """
    scipy_linalg = pytest.importorskip("scipy.linalg")
    generator = np.array([[-0.15, 0.1, 0.05], [0.05, -0.15, 0.1], [0.1, 0.05, -0.15]])
    transition = scipy_linalg.expm(generator)
    rng = np.random.default_rng(0)
    now = rng.integers(0, 3, 1_000_000)
    after = (rng.random(len(now))[:, None] > transition[now].cumsum(1)).sum(1)
    s, _ = jump_network.panel_statistics(np.stack([now, after], 1), np.array([0.0, 1.0]), padded_states=3)
    bound = 1.6 * 5 * np.sqrt(0.13 * 0.87 / 333_000) + 0.3**3 / 12 + 1e-3 * 0.15
    np.testing.assert_allclose(s.log_transition[2], generator, atol=bound)


def test_missing_observation_is_a_longer_lag():
    """Dropping a column and marking it missing are the same panel."""
    states, _ = random_panel(0)
    states = np.abs(states)
    times = np.cumsum(np.random.default_rng(1).gamma(2.0, size=states.shape[1]))
    kept = np.arange(states.shape[1]) % 3 != 1
    marked, interval = jump_network.panel_statistics(np.where(kept, states, -1), times)
    dropped, same = jump_network.panel_statistics(states[:, kept], times[kept])
    assert interval == pytest.approx(same)
    for a, b in zip(marked, dropped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_order_of_paths_and_unit_of_time_are_irrelevant():
    states, times = random_panel(2)
    order = np.random.default_rng(0).permutation(len(states))
    one, interval = jump_network.panel_statistics(states, times)
    other, scaled = jump_network.panel_statistics(states[order], 7.0 * times[order])
    assert scaled == pytest.approx(7.0 * interval)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_states", [2, 5, 8])
def test_relabelling_the_states_relabels_the_answer(params, forward, num_states):
    states, times = random_panel(3, num_states)
    order = np.random.default_rng(num_states).permutation(num_states)  # new label of each state
    relabelled = np.where(states >= 0, order[states], -1)
    one, _ = jump_network.panel_statistics(states, times)
    other, _ = jump_network.panel_statistics(relabelled, times)
    K = np.array([num_states])
    p, q = forward(params, batch_of_one(one), K), forward(params, batch_of_one(other), K)
    for a, b in zip(p[:4], q[:4], strict=True):
        a, b = np.asarray(a[0])[:num_states, :num_states], np.asarray(b[0])[:num_states, :num_states]
        np.testing.assert_allclose(b[np.ix_(order, order)], a, rtol=1e-3, atol=1e-4)
        assert num_states == 2 or np.abs(b - a).max() > 1e-2  # else nothing was tested
    np.testing.assert_allclose(
        q.initial_logit[0, order], p.initial_logit[0, :num_states], rtol=1e-3, atol=1e-4
    )


def test_padding_is_void(params, forward):
    states, times = random_panel(4, num_states=4)
    answers = []
    for size in (4, 6, 8):
        statistics, _ = jump_network.panel_statistics(states, times, padded_states=size)
        answers.append(forward(params, batch_of_one(statistics), np.array([4])))
    for other in answers[1:]:
        for a, b in zip(answers[0][:4], other[:4], strict=True):
            np.testing.assert_allclose(b[0, :4, :4], a[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            other.initial_logit[0, :4], answers[0].initial_logit[0], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("states", [[[0], [1]], [[0, -1, -1], [-1, 1, -1]]])
def test_no_pair_no_rates(states):
    with pytest.raises(ValueError, match="No path has two observations"):
        jump_network.panel_statistics(np.array(states), np.arange(len(states[0])))
