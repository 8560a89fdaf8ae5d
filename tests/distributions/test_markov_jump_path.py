"""MarkovJumpPath under NumPyro's conventions: complete paths, and how lists of them are stacked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from sojourn.distributions import MarkovJumpPath, stack_paths

RATES = np.array([[-1.4, 1.0, 0.4], [0.3, -1.1, 0.8], [0.6, 0.2, -0.8]])
OFF = ~np.eye(3, dtype=bool)
INITIAL = np.array([0.5, 0.3, 0.2])
PATHS = stack_paths(
    [[0.0, 0.5, 1.25], [0.0], [0.0, 1.0, 1.5, 1.75]], [[0, 2, 1], [1], [2, 0, 2, 1]], [2.0, 2.0, 2.0]
)


def law(rates=RATES, initial=INITIAL, duration=2.0, max_jumps=3, **kwargs):
    return MarkovJumpPath(rates, initial, duration, max_jumps=max_jumps, **kwargs)


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


def by_hand(path, rates=RATES, end=2.0):
    times, states = path[:, 0], path[:, 1].astype(int)
    total = np.log(INITIAL[states[0]])
    for k in range(len(times)):
        until = times[k + 1] if k + 1 < len(times) else end
        total += rates[states[k], states[k]] * (until - times[k])
        if k + 1 < len(times) and states[k + 1] != states[k]:
            total += np.log(rates[states[k], states[k + 1]])
    return total


EXPECTED = [by_hand(path) for path in PATHS]


# ----------------------------------------------------------------------------------------- density and shapes


def test_density_by_hand():
    assert (law().batch_shape, law().event_shape, law().num_states) == ((), (4, 2), 3)
    np.testing.assert_allclose(log_prob(law(), PATHS), EXPECTED, rtol=1e-5)
    assert float(log_prob(law(), PATHS[0])) == pytest.approx(EXPECTED[0], rel=1e-5)


def test_batches():
    rates = np.stack([RATES, 2.0 * RATES, 0.5 * RATES])
    durations = np.array([2.0, 3.0, 2.5])
    found = law(rates, duration=durations)
    assert (found.batch_shape, found.event_shape) == ((3,), (4, 2))
    expected = [by_hand(p, q, end) for p, q, end in zip(PATHS, rates, durations, strict=True)]
    np.testing.assert_allclose(log_prob(found, PATHS), expected, rtol=1e-5)
    grid = law(rates[:, None], duration=durations[:2])
    assert grid.batch_shape == (3, 2)
    draw = jax.jit(lambda law, key: law.sample(key, (4,)))(grid, jax.random.key(0))
    assert draw.shape == (4, 3, 2, 4, 2)


def test_statistics():
    dwell, jumps = law().statistics(PATHS)
    np.testing.assert_allclose(dwell, [[0.5, 0.75, 0.75], [0.0, 2.0, 0.0], [0.5, 0.25, 1.25]], rtol=1e-6)
    np.testing.assert_array_equal(jumps.sum((1, 2)), [2, 0, 3])
    assert [float(jumps[0, 0, 2]), float(jumps[0, 2, 1])] == [1.0, 1.0]


def test_one_way_rates():
    """A jump at rate zero is impossible, with a gradient that is not NaN; one that did not happen costs nothing."""
    one_way = np.array([[-1.0, 1.0, 0.0], [0.0, -0.5, 0.5], [0.0, 0.0, 0.0]])
    paths = stack_paths([[0.0, 0.5, 1.0], [0.0, 0.5]], [[0, 1, 2], [0, 2]], [2.0, 2.0])

    @jax.jit
    def both(rates):
        def density(rates):
            each = law(rates, max_jumps=2).log_prob(paths)
            return each[0], each

        return jax.grad(density, has_aux=True)(rates)

    slope, found = both(one_way)
    expected = np.log(INITIAL[0]) - 0.5 + np.log(1.0) - 0.25 + np.log(0.5)
    np.testing.assert_allclose(found, [expected, -np.inf], rtol=1e-5)
    assert np.isfinite(slope).all()
    assert float(log_prob(law(initial=[0.0, 0.5, 0.5]), PATHS)[0]) == -np.inf


# --------------------------------------------------------------------------------------------- transformations


def test_score_is_that_of_a_gamma_density():
    """d/dq_ij = N_ij / q_ij - T_i, which makes the Gamma law conjugate."""

    def density(jumps):
        rates = jumps * OFF - jnp.diag((jumps * OFF).sum(-1))
        return law(rates).log_prob(PATHS).sum()

    slope = jax.jit(jax.grad(density))(RATES * OFF)
    dwell, jumps = (np.asarray(x).sum(0) for x in law().statistics(PATHS))
    np.testing.assert_allclose(
        slope[OFF], (jumps / np.where(OFF, RATES, 1.0) - dwell[:, None])[OFF], rtol=1e-5
    )


def test_vmap_over_rates():
    scales = np.array([0.5, 1.0, 2.0])
    found = jax.jit(jax.vmap(lambda s: law(s * RATES).log_prob(PATHS[0])))(scales)
    np.testing.assert_allclose(found, [by_hand(PATHS[0], s * RATES) for s in scales], rtol=1e-5)


def test_expand_to_event_and_round_trip():
    expanded = law().expand((3,))
    joined = expanded.to_event(1)
    assert (expanded.batch_shape, expanded.event_shape) == ((3,), (4, 2))
    assert (joined.batch_shape, joined.event_shape) == ((), (3, 4, 2))

    @jax.jit
    def everything(key):
        return expanded.log_prob(PATHS), joined.log_prob(PATHS), expanded.sample(key)

    found = everything(jax.random.key(0))
    np.testing.assert_allclose(found[0], EXPECTED, rtol=1e-5)
    assert float(found[1]) == pytest.approx(sum(EXPECTED), rel=1e-5)
    assert found[2].shape == (3, 4, 2)
    leaves, tree = jax.tree.flatten(law())
    again = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in leaves])
    assert (again.max_jumps, again.event_shape) == (3, (4, 2))
    np.testing.assert_allclose(log_prob(again, PATHS), EXPECTED, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------- sampling


def test_samples_have_the_law_of_the_process():
    """10 000 paths: time in each state and jumps between them within 4 standard errors of their exact means."""
    draws = 10_000
    here = law(max_jumps=20)  # at most 1.4 jumps a unit of time: P(Poisson(2.8) > 20) is below 1e-11

    @jax.jit
    def sampled(key):
        paths = here.sample(key, (draws,))
        return paths, *here.statistics(paths), here.support(paths), here.log_prob(paths)

    paths, dwell, jumps, inside, density = map(np.asarray, sampled(jax.random.key(0)))
    assert inside.all()
    np.testing.assert_allclose(density[:3], [by_hand(p) for p in paths[:3]], rtol=1e-4)
    first = np.bincount(paths[:, 0, 1].astype(int), minlength=3)
    assert scipy.stats.chisquare(first, draws * INITIAL).pvalue > 1e-4
    last = np.bincount(paths[:, -1, 1].astype(int), minlength=3)
    end = INITIAL @ scipy.linalg.expm(2.0 * RATES)
    assert scipy.stats.chisquare(last, draws * end).pvalue > 1e-4
    # int_0^T e^{Qu} du, from one exponential.
    block = np.zeros((6, 6))
    block[:3, :3], block[:3, 3:] = RATES, np.eye(3)
    mean_dwell = INITIAL @ scipy.linalg.expm(2.0 * block)[:3, 3:]
    for found, mean in ((dwell, mean_dwell), (jumps[:, OFF], (RATES * mean_dwell[:, None])[OFF])):
        assert np.abs((found.mean(0) - mean) / (found.std(0) / np.sqrt(draws))).max() < 4


def test_paths_with_too_many_jumps_are_nan():
    """P(more than one jump) where every state is left at rate one: 1 - 2/e; 4000 draws, 4 standard errors."""
    symmetric = np.full((3, 3), 0.5) - 1.5 * np.eye(3)
    here = law(symmetric, duration=1.0, max_jumps=1)
    draws = np.asarray(jax.jit(lambda key: here.sample(key, (4000,)))(jax.random.key(0)))
    cut = np.isnan(draws).all((1, 2))
    assert (cut == np.isnan(draws).any((1, 2))).all()
    chance = 1.0 - 2.0 / np.e
    assert abs(cut.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / 4000)


def test_default_room():
    here = MarkovJumpPath(RATES, INITIAL, 2.0)
    assert (
        scipy.stats.poisson.sf(here.max_jumps, 2.8) < 1e-6 < scipy.stats.poisson.sf(here.max_jumps - 2, 2.8)
    )
    assert MarkovJumpPath(np.zeros((3, 3)), INITIAL, 2.0).max_jumps >= 1
    batch = MarkovJumpPath(np.stack([0.1 * RATES, RATES]), INITIAL, np.array([1.0, 2.0]))
    assert batch.max_jumps == here.max_jumps
    with pytest.raises(ValueError, match="`max_jumps` is needed: with traced rates nobody knows"):
        jax.jit(lambda rates: MarkovJumpPath(rates, INITIAL, 2.0).log_prob(PATHS[0]))(RATES)


# ---------------------------------------------------------------------------------------------- bad arguments


def test_support():
    support = law().support
    assert support.event_dim == 2
    assert support(PATHS).tolist() == [True] * 3

    def accepts(row, column, value):
        path = PATHS[0].copy()
        path[row, column] = value
        return bool(support(path))

    assert accepts(1, 0, 0.9)
    assert accepts(2, 1, 0)
    assert not accepts(0, 0, 0.1)  # the first time is zero
    assert not accepts(1, 0, 1.5)  # a step back
    assert not accepts(3, 0, 2.1)  # beyond the duration
    assert not any(accepts(1, 1, s) for s in (-1, 3, 0.5, np.nan))
    assert not accepts(1, 0, np.nan)
    rounded = (PATHS[0] * [1.0 + 1e-7, 1.0]).astype(np.float32)
    assert bool(support(rounded))
    assert law(duration=np.array([2.0, 1.0])).support(PATHS[:1]).tolist() == [True, False]


def test_out_of_support_under_validation():
    with pytest.warns(UserWarning, match="Out-of-support"):
        law(validate_args=True).log_prob(PATHS[0] + [0.0, 3.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rates": RATES + np.eye(3)},
            r"Row 0 of `rate_matrix` sums to 1; the rows of a rate matrix sum to zero",
        ),
        ({"rates": -RATES}, r"`rate_matrix` has a negative rate -1 from state 0 to state 1"),
        (
            {"rates": np.zeros((1, 1)), "initial": [1.0]},
            r"`rate_matrix` has shape \(1, 1\); K >= 2 states need",
        ),
        ({"initial": [0.5, 0.4, 0.2]}, r"`initial` must hold probabilities that sum to one"),
        ({"duration": 0.0}, r"`duration` must be positive and finite"),
        ({"duration": np.array([1.0, np.inf])}, r"`duration` must be positive and finite"),
    ],
)
def test_validation_of_values(changes, message):
    with pytest.raises(ValueError, match=message):
        law(validate_args=True, **changes)
    law(validate_args=False, **changes)


def test_shapes_that_do_not_fit():
    for changes in ({"rates": RATES[:2]}, {"initial": INITIAL[:2]}, {"rates": RATES[0]}):
        with pytest.raises(ValueError, match=r"must be \(..., K, K\) and \(..., K\)"):
            law(**changes)


@pytest.mark.parametrize(
    ("times", "states", "durations", "message"),
    [
        ([[0.0]], [[0], [1]], [1.0, 1.0], r"need one entry for each path"),
        ([], [], [], r"need one entry for each path"),
        ([[0.0, 1.0]], [[0]], [2.0], r"Path 0 has 2 times and 1 states; it needs one of each an entry"),
        ([[0.0], [0.1]], [[0], [1]], [2.0, 2.0], r"Path 1 must begin at time zero"),
        ([[0.0, 1.0, 0.5]], [[0, 1, 0]], [2.0], r"Path 0 must begin .* without a step back"),
        ([[0.0, 3.0]], [[0, 1]], [2.0], r"Path 0 must begin at time zero and run on to its duration 2"),
        ([[0.0, 1.0]], [[1, 1]], [2.0], r"Path 0 jumps from a state to itself"),
    ],
)
def test_lists_that_are_not_paths(times, states, durations, message):
    with pytest.raises(ValueError, match=message):
        stack_paths(times, states, durations)


def test_stacked_paths_are_padded():
    assert PATHS.shape == (3, 4, 2)
    assert PATHS[1].tolist() == [[0.0, 1.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]]
