"""Questions to jump processes: answers by hand, on posterior draws with their labels, and of a fit with its data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import xarray as xr

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.models import jump_process as mjp

A, B = 0.7, 1.9  # rates of leaving and of coming back
TWO = np.array([[-A, A], [B, -B]])
THREE = np.array([[-1.4, 1.0, 0.4], [0.3, -1.1, 0.8], [0.6, 0.2, -0.8]])
DECAY = np.array([[-1.0, 0.7, 0.3], [0.5, -0.9, 0.4], [0.0, 0.0, 0.0]])  # the last state absorbs
GRID = np.array([0.0, 0.3, 1.0, 4.0])
NAMES = ["shut", "open", "blocked"]
DRAWS = THREE * np.array([[[1.0]], [[0.5]], [[2.0]], [[1.5]]])


@pytest.fixture(scope="module")
def draws():
    """Four draws, of two chains, as a fit holds them."""
    return xr.DataArray(
        DRAWS.reshape(2, 2, 3, 3).astype(np.float32),
        dims=("chain", "draw", "state", "next_state"),
        coords={"chain": [0, 1], "draw": [10, 20], "state": NAMES, "next_state": NAMES},
    )


# ------------------------------------------------------------------------------------------------ by hand


def test_two_states():
    total = A + B
    np.testing.assert_allclose(mjp.stationary_law(TWO), [B / total, A / total], rtol=1e-6)
    np.testing.assert_allclose(mjp.relaxation_times(TWO), [1 / total], rtol=1e-6)
    np.testing.assert_allclose(mjp.mean_sojourn_times(TWO), [1 / A, 1 / B], rtol=1e-6)
    np.testing.assert_allclose(mjp.mean_first_passage_times(TWO), [[0.0, 1 / A], [1 / B, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(mjp.probability_currents(TWO), np.zeros((2, 2)), atol=1e-7)
    assert float(mjp.entropy_production_rate(TWO)) == pytest.approx(0.0, abs=1e-6)
    moved = A / total * (1.0 - np.exp(-total * GRID))
    np.testing.assert_allclose(mjp.transition_probabilities(TWO, GRID)[:, 0, 1], moved, atol=1e-6)
    # The first sojourn is exponential.
    left = mjp.survival(TWO, GRID, until=1)
    np.testing.assert_allclose(left[:, 0], np.exp(-A * GRID), atol=1e-6)
    np.testing.assert_array_equal(left[:, 1], 0.0)


def test_first_passage_where_the_target_may_be_missed():
    found = np.asarray(mjp.mean_first_passage_times(DECAY))
    # To the absorbing state: m = 1 / q_i + sum_k (q_ik / q_i) m_k.
    into = np.linalg.solve(DECAY[:2, :2], [-1.0, -1.0])
    np.testing.assert_allclose(
        found, [[0.0, np.inf, into[0]], [np.inf, 0.0, into[1]], [np.inf, np.inf, 0.0]], rtol=1e-5
    )
    # One way round: nobody is lost, the last state reaches the others by way of the first.
    ring = mjp.masked(np.array([1.0, 2.0, 4.0]), [[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    expected = [[0.0, 1.0, 1.5], [0.75, 0.0, 0.5], [0.25, 1.25, 0.0]]
    np.testing.assert_allclose(mjp.mean_first_passage_times(ring), expected, rtol=1e-5)
    # A batch in which the target may be missed in one matrix and not in the other.
    both = np.asarray(mjp.mean_first_passage_times(np.stack([DECAY, THREE])))
    np.testing.assert_allclose(both[0], found, rtol=1e-5)
    assert np.isfinite(both[1]).all()


def test_survival():
    """1 - P where the target absorbs; with several, what leaves the rest; mean passage is its integral."""
    left = mjp.survival(DECAY, GRID, until=2)
    reached = [scipy.linalg.expm(DECAY * t)[:, 2] for t in GRID]
    np.testing.assert_allclose(left, 1.0 - np.array(reached), atol=1e-6)
    several = mjp.survival(THREE, GRID, until=[1, 2])
    np.testing.assert_allclose(several[:, 0], np.exp(-1.4 * GRID), atol=1e-6)
    fine = np.linspace(0.0, 40.0, 4001)
    area = np.trapezoid(mjp.survival(THREE, fine, until=2), fine, axis=0)  # cut off at exp(-0.8 * 40 / 2)
    np.testing.assert_allclose(area, mjp.mean_first_passage_times(THREE)[:, 2], atol=1e-3)


def test_sojourn_in_an_absorbing_state():
    assert np.asarray(mjp.mean_sojourn_times(DECAY)).tolist() == pytest.approx([1.0, 1 / 0.9, np.inf])


# --------------------------------------------------------------------------------------------- draws and labels

QUESTIONS = {
    "stationary_law": (mjp.stationary_law, ("state",)),
    "mean_sojourn_times": (mjp.mean_sojourn_times, ("state",)),
    "relaxation_times": (mjp.relaxation_times, ("mode",)),
    "mean_first_passage_times": (mjp.mean_first_passage_times, ("state", "target")),
    "probability_currents": (mjp.probability_currents, ("state", "next_state")),
    "entropy_production_rate": (mjp.entropy_production_rate, ()),
    "transition_probabilities": (
        lambda q: mjp.transition_probabilities(q, GRID),
        ("time", "state", "next_state"),
    ),
    "survival": (lambda q: mjp.survival(q, GRID, until=2), ("time", "state")),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_posterior_draws_keep_their_labels(draws, question):
    ask, dims = QUESTIONS[question]
    answer = ask(draws)
    assert answer.dims == ("chain", "draw", *dims)
    assert answer["draw"].values.tolist() == [10, 20]
    for dim in {"state", "next_state", "target"} & set(dims):
        assert answer[dim].values.tolist() == NAMES
    if "time" in dims:
        np.testing.assert_array_equal(answer["time"], GRID)
    # Draw by draw: with rates s times as large, times are s times as short.
    scale = DRAWS[:, 0, 0].reshape(2, 2) / THREE[0, 0]
    if question in ("stationary_law", "probability_currents", "entropy_production_rate"):
        power = 0.0 if question == "stationary_law" else 1.0
    elif "time" in dims:
        alone = np.asarray(ask(DRAWS[2]))
        np.testing.assert_allclose(answer.values[1, 0], alone, atol=1e-6)
        return
    else:
        power = -1.0
    one = np.asarray(ask(THREE))
    expected = one * scale.reshape(2, 2, *(1,) * one.ndim) ** power
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-6)


def test_rate_matrix_at():
    moves = ["shut->open", "shut->blocked", "open->shut", "open->blocked", "blocked->shut", "blocked->open"]
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(2, 2, 3, 6))
    posterior = xr.Dataset(
        {
            "rate_matrix": (("chain", "draw", "state", "next_state"), DRAWS.reshape(2, 2, 3, 3)),
            "covariate_effect": (("chain", "draw", "covariate", "move"), effect),
        },
        coords={"state": NAMES, "next_state": NAMES, "move": moves},
    )
    x = np.array([0.5, -1.0, 2.0])
    found = mjp.rate_matrix_at(posterior, x)
    assert found.dims == ("chain", "draw", "state", "next_state")
    off = ~np.eye(3, dtype=bool)
    expected = DRAWS.reshape(2, 2, 3, 3)[..., off] * np.exp(np.einsum("p,cdpm->cdm", x, effect))
    np.testing.assert_allclose(found.values[..., off], expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum("next_state"), 0.0, atol=1e-4)
    np.testing.assert_allclose(
        mjp.rate_matrix_at(posterior, np.zeros(3)), posterior["rate_matrix"], rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"`covariates` has shape \(2,\); the model has 3"):
        mjp.rate_matrix_at(posterior, [1.0, 2.0])
    with pytest.raises(ValueError, match="fitted without covariates"):
        mjp.rate_matrix_at(posterior.drop_vars("covariate_effect"), x)


# ---------------------------------------------------------------------------------------------------- simulation

T, MANY = 1.3, 4000


def test_simulated_states_have_the_law_of_the_process():
    """Shares of the states at T from two laws of the first state: within 4.5 standard errors of expm."""
    matrices = xr.DataArray(
        np.broadcast_to(THREE, (1, MANY, 3, 3)),
        dims=("chain", "draw", "state", "next_state"),
        coords={"draw": np.arange(MANY), "state": NAMES},
    )
    at_end = scipy.linalg.expm(THREE * T)
    for initial, first, seed in ((1, np.eye(3)[1], 0), ([0.5, 0.3, 0.2], np.array([0.5, 0.3, 0.2]), 1)):
        paths = mjp.simulate(matrices, T, initial=initial, seed=seed, max_jumps=16)  # 1e-10 of them need more
        assert paths["state"].dims == ("chain", "draw", "visit")
        assert paths.sizes["draw"] == len(paths["draw"]) == MANY
        time, state = paths["entry_time"].values[0], paths["state"].values[0]
        assert (time[:, 0] == 0).all()
        assert (np.diff(time, axis=1) >= 0).all()
        np.testing.assert_allclose(time[:, -1], T, rtol=1e-6)
        for seen, law in ((state[:, 0], first), (state[:, -1], first @ at_end)):
            share = np.bincount(seen.astype(int), minlength=3) / MANY
            assert (np.abs(share - law) <= 4.5 * np.sqrt(law * (1 - law) / MANY)).all()
    # Mean time spent in state 2 is that of the integral of its probability.
    spent = (np.diff(time, axis=1, append=T) * (state == 2)).sum(1)
    fine = np.linspace(0.0, T, 201)
    mean = np.trapezoid([(first @ scipy.linalg.expm(THREE * t))[2] for t in fine], fine)
    assert abs(spent.mean() - mean) < 4.5 * spent.std() / np.sqrt(MANY)


def test_simulation_of_bare_arrays():
    one = mjp.simulate(TWO, 2.0, initial=0, seed=3)
    assert one["state"].dims == ("visit",)
    again = mjp.simulate(TWO, 2.0, initial=0, seed=3)
    np.testing.assert_array_equal(one["entry_time"], again["entry_time"])
    assert (np.diff(np.asarray(one["state"])[np.asarray(one["entry_time"]) < 2.0]) != 0).all()


# ---------------------------------------------------------------------------------------------------- bad input

NO_RATES = np.array([[-1.0, 2.0], [1.0, -1.0]])
BAD = [
    (r"State 2 is absorbing: the stationary law is that of staying", lambda: mjp.stationary_law(DECAY)),
    (r"State 2 is absorbing: the stationary state", lambda: mjp.entropy_production_rate(DECAY)),
    (r"State 2 is absorbing: the stationary state", lambda: mjp.probability_currents(DECAY)),
    (r"Row 0 of `rate_matrix` sums to 1", lambda: mjp.mean_sojourn_times(NO_RATES)),
    (r"`rate_matrix` has shape \(2, 3\)", lambda: mjp.relaxation_times(np.zeros((2, 3)))),
    (r"`times` must be finite and not negative", lambda: mjp.transition_probabilities(TWO, [1.0, -1.0])),
    (r"`times` must be finite and not negative", lambda: mjp.survival(TWO, [np.nan], until=1)),
    (r"`until` must name some of the states 0 to 1", lambda: mjp.survival(TWO, [1.0], until=2)),
    (r"`until` must name some of the states 0 to 1", lambda: mjp.survival(TWO, [1.0], until=[])),
    (r"`duration` must be positive and finite, not 0", lambda: mjp.simulate(TWO, 0.0, initial=0)),
    (r"`initial` must be a state from 0 to 1", lambda: mjp.simulate(TWO, 1.0, initial=2)),
    (r"`initial` must hold 2 probabilities", lambda: mjp.simulate(TWO, 1.0, initial=[0.5, 0.6])),
    (r"`initial` must hold 2 probabilities", lambda: mjp.simulate(TWO, 1.0, initial=[0.5, 0.3, 0.2])),
]


@pytest.mark.parametrize(("message", "ask"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_in_a_sentence(message, ask):
    with pytest.raises(ValueError, match=message):
        ask()


def test_labelled_bad_input(draws):
    stuck = draws.copy(data=np.broadcast_to(DECAY, draws.shape))
    with pytest.raises(ValueError, match="State blocked is absorbing"):
        mjp.stationary_law(stuck)
    with pytest.raises(ValueError, match=r"last dimensions of a rate matrix are \('state', 'next_state'\)"):
        mjp.relaxation_times(draws.transpose("state", "next_state", "chain", "draw"))


# ------------------------------------------------------------------------------------------ of a fit with its data

TIMES = np.array([0.0, 1.0, 2.0, 3.5, 4.0, 6.0, 7.0, 9.0])
SEEN = np.array([0, 0, 1, 1, 0, 0, 0, 1])
KWARGS = {"num_states": 2, "states": ["shut", "open"]}


@pytest.fixture(scope="module")
def fit():
    return sj.fit(
        mjp.panel, SEEN, TIMES, num_warmup=100, num_samples=50, num_chains=1, progress_bar=False, **KWARGS
    )


def endpoint_statistics(q, i, j, t, points=401):
    """Time in state 1, and jumps 0 -> 1, in an interval given its ends, by the trapezoid rule."""
    grid = np.linspace(0.0, t, points)
    before = np.array([scipy.linalg.expm(q * u) for u in grid])
    after, whole = before[::-1], before[-1][i, j]
    inside = np.trapezoid(before[:, i, 1] * after[:, 1, j], grid) / whole
    jumps = np.trapezoid(before[:, i, 0] * q[0, 1] * after[:, 1, j], grid) / whole
    return inside, jumps


def test_expected_statistics_of_a_fit(fit):
    found = mjp.expected_statistics(fit, mjp.panel, SEEN, TIMES, num_draws=5, **KWARGS)
    assert found["dwell_time"].dims == ("chain", "draw", "state")
    assert found["jumps"].dims == ("chain", "draw", "state", "next_state")
    assert found["state"].values.tolist() == found["next_state"].values.tolist() == ["shut", "open"]
    assert found["draw"].values.tolist() == [0, 12, 24, 37, 49]
    np.testing.assert_allclose(found["dwell_time"].sum("state"), 9.0, rtol=1e-4)
    # The path begins in state 0 and ends in 1: one jump more there than back, in every path.
    there, back = found["jumps"].values[0, :, 0, 1], found["jumps"].values[0, :, 1, 0]
    np.testing.assert_allclose(there - back, 1.0, atol=1e-3)
    for draw in (0, 49):
        q = _arviz.group(fit, "posterior")["rate_matrix"].sel(chain=0, draw=draw).values.astype(float)
        each = [endpoint_statistics(q, *x) for x in zip(SEEN[:-1], SEEN[1:], np.diff(TIMES), strict=True)]
        inside, jumps = np.sum(each, axis=0)
        one = found.sel(chain=0, draw=draw)
        assert float(one["dwell_time"][1]) == pytest.approx(inside, rel=1e-3)
        assert float(one["jumps"][0, 1]) == pytest.approx(jumps, rel=1e-3)


def test_sampled_paths_of_a_fit(fit):
    """Through the observed states; in between with the probabilities of a bridge: within 4.5 standard errors."""
    at = np.concatenate([TIMES, [5.0, 8.0], [-1.0, 20.0]])
    found = mjp.sample_paths(fit, mjp.panel, SEEN, TIMES, at=at, seed=2, **KWARGS)
    assert found["state"].dims == ("chain", "draw", "path_time")
    np.testing.assert_array_equal(found["path_time"], at)
    states = found["state"].values[0]
    np.testing.assert_array_equal(states[:, :8], np.broadcast_to(SEEN, (50, 8)))
    np.testing.assert_array_equal(states[:, 10:], np.broadcast_to([0, 1], (50, 2)))  # the nearer end
    assert (found["num_jumps"] % 2 == 1).all()
    assert (found["num_jumps"] >= 3).all()
    matrices = _arviz.group(fit, "posterior")["rate_matrix"].values[0].astype(float)
    for column, (i, j, t) in ((8, (0, 0, 2.0)), (9, (0, 1, 2.0))):
        half = np.array([scipy.linalg.expm(q * t / 2) for q in matrices])
        chance = half[:, i, 1] * half[:, 1, j] / (half @ half)[:, i, j]
        error = np.sqrt((chance * (1 - chance)).sum())
        assert abs(states[:, column].sum() - chance.sum()) < 4.5 * error


def test_answers_of_a_fit(fit):
    q = _arviz.group(fit, "posterior")["rate_matrix"]
    law = mjp.stationary_law(q)
    assert law.dims == ("chain", "draw", "state")
    np.testing.assert_allclose(
        law.sel(state="open"), q.values[..., 0, 1] / (q.values[..., 0, 1] + q.values[..., 1, 0]), rtol=1e-4
    )
    paths = mjp.simulate(q, 3.0, initial=0, seed=4)
    assert paths["state"].dims == ("chain", "draw", "visit")
    assert paths.sizes["draw"] == 50


def test_models_without_a_jump_process_are_refused(fit):
    from sojourn.models import hidden_markov

    with pytest.raises(ValueError, match="observes no jump process at given times"):
        mjp.expected_statistics(fit, hidden_markov.poisson, SEEN, num_states=2)
    with pytest.raises(ValueError, match="`num_draws` must lie between 1 and the 50 draws"):
        mjp.sample_paths(fit, mjp.panel, SEEN, TIMES, at=[1.0], num_draws=51, **KWARGS)
    with pytest.raises(ValueError, match="observes no series with hidden states to decode"):
        mjp.decode(fit, mjp.panel, SEEN, TIMES, **KWARGS)


def test_decoded_states_keep_their_names(fit):
    """The same rates, seen through a confusion matrix: labels are mostly right, and so is what is decoded."""
    confusion = np.array([[0.99, 0.01], [0.01, 0.99]])
    seen = {"confusion": confusion, "initial": [0.5, 0.5], **KWARGS}
    states = mjp.decode(fit, mjp.misclassified, SEEN, TIMES, num_draws=3, **seen)
    assert states["state"].values.tolist() == ["shut", "open"]
    given = np.asarray(SEEN) == 1
    assert ((states["state_probability"].sel(state="open") > 0.5).values == given).mean() > 0.8
