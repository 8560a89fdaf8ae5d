"""Zero-shot rates of jump processes: accuracy and calibration of the shipped weights, and what is said of odd data."""

import warnings

import jax
import numpy as np
import pytest

from sojourn.inference import _train_jump_network as training
from sojourn.inference.amortized import _weights, amortized_jump_process
from sojourn.ops import jump_network


def two_state_panel(seed, num_paths=200, length=50, interval=0.1):
    """Rates 1 and 1: the state flips between two observations with probability (1 - exp(-2 interval)) / 2."""
    flips = np.random.default_rng(seed).random((num_paths, length)) < (1 - np.exp(-2 * interval)) / 2
    return flips.cumsum(1) % 2, interval * np.arange(length)


def simulate(rates, num_paths, times, seed):
    """Noise-free paths from the stationary law, ``(num_paths, L)``."""
    K = len(rates)
    padded, initial = np.zeros((1, 8, 8)), np.zeros((1, 8))
    padded[0, :K, :K], initial[0, :K] = rates, training.stationary(rates)
    transitions = training.transition_matrices(padded[:, None], np.diff(times)[None])
    return training.sample_paths(np.random.default_rng(seed), initial, transitions, np.array([num_paths]))[0]


def off_diagonal(K):
    return ~np.eye(K, dtype=bool)


# --- accuracy of the shipped weights -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out():
    """1024 fresh panels from the training prior."""
    return training.concatenate([training.simulate_panels([77, chunk]) for chunk in range(16)])


def test_flashing_ratchet_published_comparison():
    """RMSE over the 30 rates, a system the training prior does not single out; published network (Berghaus et al.
    2024): .330 .212 .162 .230 .723. Measured over 64 other sets of paths: .243 .148 .0896 .0461 .0226. The bounds are
    .26 .16 .09 .06 .04 and two standard errors: that of a mean of 8 RMSEs, each over 30 rates, is .13 / sqrt(8) = 5 %.
    """
    table = training.evaluate_ratchet(_weights()[0], seed=5, repeats=8)
    for row, target in zip(table.values(), (0.26, 0.16, 0.09, 0.06, 0.04), strict=True):
        assert row["rmse"] < 1.1 * target
    assert table["5000 paths"]["rmse"] < 0.7 * table["5000 paths"]["counting"]


def test_held_out_accuracy(held_out):
    """Medians over panels against those of counting. Measured at training, on others: RMSE .614 against 1.12 (.184
    against .852 from 1000 paths on), relative error .35 against .81; standard errors of the medians are 5 % or less.
    """
    table = training.evaluate(_weights()[0], held_out)
    assert table["all"]["rmse"] < 0.65 * table["all"]["counting"]
    assert table["all"]["relative"] < 0.5 * table["all"]["counting_relative"]
    assert table["paths 1000-6000"]["rmse"] < 0.3 * table["paths 1000-6000"]["counting"]


def test_law_of_the_first_state(held_out):
    """From n first observations the frequencies err by about (K / 2 pi n)^1/2 in total variation: 0.03 at n = 1000
    and eight states. Misread states, up to a fifth of them, are what may come on top of that.
    """
    chosen = held_out.paths >= 1000
    q = training.predict(_weights()[0], held_out.statistics, held_out.num_states)
    initial = np.asarray(jax.nn.softmax(q.initial_logit[chosen]))
    distance = abs(initial - held_out.initial[chosen]).sum(1) / 2
    assert np.median(distance) < 0.03
    assert distance.mean() < 0.06


def test_held_out_coverage(held_out):
    """Central 90 % intervals. The rates of one panel err together, so the standard error is over panels."""
    q = training.predict(_weights()[0], held_out.statistics, held_out.num_states)
    edge = held_out.rates > 0
    z = (np.log(np.where(edge, held_out.rates, 1.0)) - q.log_rate_mean) / q.log_rate_sd
    covered = np.where(edge, np.abs(z) < 1.6449, 0.0).sum((1, 2)) / edge.sum((1, 2))
    standard_error = covered.std() / np.sqrt(len(covered))
    assert standard_error < 0.01
    assert abs(covered.mean() - 0.9) < 0.02 + 3 * standard_error


def test_edge_probabilities_are_calibrated(held_out):
    """Of the moves given a probability in a bin, that share exists: to 0.03 and three standard errors over panels,
    as the moves of one panel err together (a dense process taken for a sparse one).
    """
    q = training.predict(_weights()[0], held_out.statistics, held_out.num_states)
    states = np.arange(8) < held_out.num_states[:, None]
    off = states[:, :, None] & states[:, None, :] & off_diagonal(8)
    probability = 1 / (1 + np.exp(-q.edge_logit.astype(float)))
    for low, high in ((0.0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.0)):
        chosen = off & (probability >= low) & (probability <= high)
        excess = np.where(chosen, (held_out.rates > 0) - probability, 0.0).sum((1, 2)) / chosen.sum()
        standard_error = np.sqrt((excess**2).sum())
        assert standard_error < 0.02
        assert abs(excess.sum()) < 0.03 + 3 * standard_error


def test_one_long_path_is_as_good_as_many_short():
    """3000 observations of one path hold the pairs of 30 paths of 100, and one start: the bound is theirs, .26, and a
    tenth for four repeats.
    """
    rates, times = training.flashing_ratchet(), 0.025 * np.arange(3000)
    error = []
    for seed in range(4):
        result = amortized_jump_process(simulate(rates, 1, times, seed)[0], times, num_states=6)
        assert result.warnings == ()
        error.append(np.sqrt(np.mean((result.rate_matrix - rates)[off_diagonal(6)] ** 2)))
    assert np.mean(error) < 1.1 * 0.26


def test_fifty_steps_of_training_beat_counting(held_out):
    """The script learns: 1024 panels, 50 steps of a small network, other panels of 100 paths or more.

    There the counting estimate errs by its bias (missed moves, misread states), which only learning removes. The
    standard error of the ratio of two medians over 400 such panels is about 0.04: after 50 steps the error is
    below that of counting, and below that of the untrained network (counting, shrunk), by more than two of them.
    """
    pool = training.simulate_pool(11, 1024)
    fresh = jax.tree.map(lambda leaf: leaf[held_out.paths >= 100], held_out)
    shape = {"width": 16, "hidden": 32, "product": 8, "blocks": 1}
    start = training.evaluate(jump_network.initialise(jax.random.key(1), **shape), fresh)["all"]
    trained = training.evaluate(training.train(pool, steps=50, learning_rate=1e-2, **shape), fresh)["all"]
    assert trained["rmse"] < 0.9 * min(start["rmse"], trained["counting"])
    assert trained["relative"] < 0.9 * min(start["relative"], trained["counting_relative"])


def test_simulator_draws_the_declared_process():
    """Consecutive pairs of noise-free panels against exp(Q lag): standardised residuals have mean 0, variance 1."""
    z = []
    for chunk in range(8):
        pool = training.simulate_panels([10, chunk])
        for b in np.flatnonzero((pool.noise == 0) & (pool.paths > 100)):
            s = jump_network.PanelStatistics(*(leaf[b] for leaf in pool.statistics))
            if s.pairs[2].sum() != s.moves.sum() or abs(s.lag[2] - 1) > 1e-5:
                continue  # irregular, missing
            p = training.transition_matrices(pool.rates[b].astype(float), np.array(1.0))
            n = s.moves.sum(1, keepdims=True)
            kept = (n * p > 20) & (n * (1 - p) > 20)
            z.append(((s.moves - n * p) / np.sqrt(n * p * (1 - p) + 1e-9))[kept])
    z = np.concatenate(z)
    assert len(z) > 300
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * len(z))


# --- the answer ----------------------------------------------------------------------------------------------


def test_two_states_in_closed_form():
    """Rates 1 and 1; 200 x 49 pairs, 1000 path-times: sd of each log rate is about (500)^-1/2 = 0.045."""
    y, times = two_state_panel(0)
    result = amortized_jump_process(y, times)
    assert result.warnings == ()
    np.testing.assert_allclose(result.rate_matrix.sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(result.rate_matrix[[0, 1], [1, 0]], 1.0, atol=4 * 0.045)
    assert (result.edge_probability[[0, 1], [1, 0]] > 0.95).all()
    assert 0.02 < result.log_rate_sd[0, 1] < 0.15
    # the counting estimate misses double moves: (1 - e^-0.2) / 0.2 = 0.906 of the rate
    np.testing.assert_allclose(result.counting_estimate[[0, 1], [1, 0]], 0.906, atol=4 * 0.045)
    np.testing.assert_allclose(result.initial.sum(), 1.0, rtol=1e-6)
    assert np.isnan(np.diag(result.log_rate_mean)).all()


def test_unit_of_time():
    y, times = two_state_panel(1)
    hours, minutes = amortized_jump_process(y, times), amortized_jump_process(y, 60 * times)
    np.testing.assert_allclose(60 * minutes.rate_matrix, hours.rate_matrix, rtol=1e-4)
    np.testing.assert_allclose(minutes.log_rate_mean + np.log(60), hours.log_rate_mean, atol=1e-4)
    np.testing.assert_allclose(minutes.log_rate_sd, hours.log_rate_sd, rtol=1e-4)


def test_nan_mask_and_lengths_say_the_same():
    y, times = two_state_panel(2, num_paths=30)
    y = y.astype(float)
    lengths = np.random.default_rng(0).integers(10, 50, 30)
    inside = np.arange(50) < lengths[:, None]
    padded_times = np.where(inside, times, 0.0)  # padding may hold anything
    answers = [
        amortized_jump_process(np.where(inside, y, np.nan), times, num_states=2),
        amortized_jump_process(y, times, num_states=2, mask=inside),
        amortized_jump_process(y, padded_times, num_states=2, lengths=lengths),
    ]
    for other in answers[1:]:
        np.testing.assert_allclose(other.log_rate_mean, answers[0].log_rate_mean, rtol=1e-5)


def test_single_path_may_be_a_vector():
    y, times = two_state_panel(3, num_paths=1, length=400)
    one, two = amortized_jump_process(y[0], times), amortized_jump_process(y, times)
    np.testing.assert_array_equal(one.rate_matrix, two.rate_matrix)


def test_approximation_edges_and_table():
    rates, times = training.flashing_ratchet(), np.linspace(0, 2.5, 100)
    result = amortized_jump_process(simulate(rates, 1000, times, 0), times)
    assert result.warnings == ()
    full = result.approximation()
    off = off_diagonal(6)
    assert full.event_shape == (30,)
    np.testing.assert_allclose(full.base_dist.loc, result.log_rate_mean[off], rtol=1e-6)
    moves = [(3, 4), (0, 3), (0, 1)]
    some = result.approximation(moves)
    np.testing.assert_allclose(some.base_dist.loc, [result.log_rate_mean[m] for m in moves], rtol=1e-6)
    np.testing.assert_allclose(some.base_dist.scale, [result.log_rate_sd[m] for m in moves], rtol=1e-6)
    assert np.isfinite(full.log_prob(full.sample(jax.random.key(0))))
    # 1000 paths: all 18 moves are kept, and most of the 12 absent ones are dropped
    assert result.edges()[rates > 0].all()
    assert not result.edges().diagonal().any()
    assert result.edges(0.5)[off & (rates == 0)].sum() <= 3
    table = str(result).splitlines()
    assert table[0].split() == ["move", "rate", "90", "%", "interval", "edge", "prob.", "counting"]
    assert table[1].startswith("  0 -> 1")
    assert len(table) == 32
    assert repr(result) == str(result)


@pytest.mark.parametrize("moves", [[(0, 0)], [(0, 2)], [(-1, 0)], [(0,)]])
def test_moves_must_be_moves(moves):
    y, times = two_state_panel(0)
    with pytest.raises(ValueError, match=r"pairs of two different states in 0\.\.1"):
        amortized_jump_process(y, times).approximation(moves)


# --- data outside the training prior -------------------------------------------------------------------------


def heard(y, times, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = amortized_jump_process(y, times, **kwargs)
    assert [f"Amortised rates: {w}." for w in result.warnings] == [str(c.message) for c in caught]
    for sentence in result.warnings:
        assert sentence in str(result)
    return " | ".join(result.warnings)


def test_fast_process_is_recognised():
    """Flashing ratchet, V = 5: the largest rate is e^5 = 148, 371 of its moves in the horizon."""
    times = np.linspace(0, 2.5, 100)
    said = heard(simulate(training.flashing_ratchet(potential=5.0), 500, times, 1), times)
    assert "rate x horizon reaches" in said
    assert "outside the training range (at most 100)" in said


def test_slow_process_is_recognised():
    y, times = two_state_panel(4, num_paths=5000, length=10, interval=0.002)
    assert "outside the training range (at least 0.3)" in heard(y, times)


def test_few_moves_and_an_unseen_state():
    y = np.zeros((3, 20), int)
    y[0, 5:] = 1
    said = heard(y, np.arange(20.0), num_states=3)
    assert "only 1 changes of state observed" in said
    assert "no time observed in state 2" in said


def test_many_and_long_and_short_paths():
    y, times = two_state_panel(5, num_paths=6001, length=3)
    assert "6001 paths, more than in training (6000)" in heard(y, times)
    y, times = two_state_panel(6, num_paths=1, length=4000)
    assert "paths of 4000 observations, longer than in training (3000)" in heard(y, times)
    y, times = two_state_panel(7, num_paths=2000, length=2, interval=1.0)
    assert "two observations a path, fewer than in training" in heard(y, times)


def test_rates_far_apart():
    """State 2 is entered at 1/20 000 of the rate at which 0 and 1 exchange: about seven times in 3000 x 100 intervals."""
    rates = np.array([[0, 0.5, 2.5e-5], [0.5, 0, 2.5e-5], [0.01, 0.01, 0]])
    times = np.arange(100.0)
    assert "largest to smallest rate is" in heard(simulate(rates, 3000, times, 0), times, num_states=3)


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "times", "kwargs", "message"),
    [
        ([0, 1, -1], [0, 1, 2], {}, "0, 1, ..., K - 1 as integers, with NaN"),
        ([0, 0.5, 1], [0, 1, 2], {}, "0, 1, ..., K - 1 as integers"),
        ([0, 1, 3], [0, 1, 2], {"num_states": 3}, "holds the state 3, but the 3 states are 0..2"),
        ([0, 1, 0], [0, 1, 1], {}, "`times` must increase along each path"),
        ([[0, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 1]], {}, "`times` must increase along each path"),
        ([0, np.nan, 1], [1, 5, 0], {}, "`times` must increase along each path"),
        ([0, 1, 0], [0, np.inf, 2], {}, "`times` must be finite"),
        ([0, 0, 0], [0, 1, 2], {}, "needs two states or more: pass `num_states`"),
        ([0, 0, 0], [0, 1, 2], {"num_states": 1}, "needs two states or more"),
        ([0, 8, 0], [0, 1, 2], {}, "reads 2 to 8 states, not 9: merge states"),
        ([0, 1, 0], [0, 1, 2], {"num_states": 2.5}, "`num_states` must be an integer"),
        ([[0], [1], [1]], [0], {}, "Each path has one observation: the rates are not identified"),
        ([[0, np.nan], [np.nan, 1]], [0, 1], {}, "Each path has one observation"),
        ([np.nan, np.nan], [0, 1], {}, "holds no observation"),
        ([0, 1, 0], [0, 1], {}, "`times` must have the shape of `y`"),
        (1, 1, {}, r"of shape \(L,\) or \(N, L\)"),
        ([0, 1, 0], [0, 1, 2], {"mask": [1, 0, 1]}, "`mask` must be booleans"),
        ([0, 1, 0], [0, 1, 2], {"lengths": [4]}, "must not exceed the 3 columns"),
        ([0, 1, 0], [0, 1, 2], {"lengths": [1, 2]}, "`lengths` must be 1 integers"),
    ],
)
def test_bad_input_is_refused(y, times, kwargs, message):
    with pytest.raises(ValueError, match=message):
        amortized_jump_process(y, times, **kwargs)
