"""PanelJumpProcess under NumPyro's conventions: known states of jump processes at given times."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.linalg
import scipy.stats
from numpyro.infer.util import log_density

from sojourn.distributions import PanelJumpProcess
from sojourn.distributions._panel_times import read_times

RATES = np.array([[-1.4, 1.0, 0.4], [0.3, -1.1, 0.8], [0.6, 0.2, -0.8]])
INITIAL = np.array([0.5, 0.3, 0.2])
TIMES = np.array([[0.0, 0.5, 1.2], [1.0, 1.5, 3.5], [0.0, 0.7, 1.2], [0.0, 0.5, 0.6]])
STATES = np.array([[0, 1, 1], [2, 2, 0], [1, 0, 2], [0, 0, 2]])
K = 3


def panel(rates=RATES, times=TIMES, **kwargs):
    return PanelJumpProcess(rates, kwargs.pop("initial", INITIAL), times, **kwargs)


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


@jax.jit
def predictive(law, value):
    return law.predictive_log_prob(value)


def by_hand(states=STATES, lengths=(3, 3, 3, 3), rates=RATES):
    """The likelihood of known states, series by series."""
    total = np.log(INITIAL[states[:, 0]])
    for n, length in enumerate(lengths):
        for s in range(length - 1):
            step = scipy.linalg.expm(rates * (TIMES[n, s + 1] - TIMES[n, s]))
            total[n] += np.log(step[states[n, s], states[n, s + 1]])
    return total


# ------------------------------------------------------------------------------------------------------ shapes


def test_the_whole_panel_is_one_event():
    law = panel()
    assert (law.batch_shape, law.event_shape, law.num_states) == ((), (4, 3), 3)
    assert law.series_ndim == 2
    found = log_prob(law, STATES)
    assert found.shape == ()
    assert float(found) == pytest.approx(by_hand().sum(), rel=1e-5)
    # Several panels at once.
    several = np.stack([STATES, STATES[:, ::-1]])
    expected = [by_hand(x).sum() for x in several]
    np.testing.assert_allclose(log_prob(law, several[:, None]), np.array(expected)[:, None], rtol=1e-5)


def test_one_series():
    law = panel(times=TIMES[0])
    assert (law.batch_shape, law.event_shape, law.series_ndim) == ((), (3,), 1)
    assert float(log_prob(law, STATES[0])) == pytest.approx(by_hand()[0], rel=1e-5)
    assert predictive(law, STATES[0]).shape == (3,)
    draw = jax.jit(lambda law, key: law.sample(key, (5, 2)))(law, jax.random.key(0))
    assert draw.shape == (5, 2, 3)
    assert draw.dtype == jnp.int32


def test_arguments_are_declared():
    law = panel()
    assert set(law.arg_constraints) == {"rate_matrix", "initial"}
    assert bool(law.arg_constraints["initial"](law.initial))
    assert law.arg_constraints["rate_matrix"].event_dim == 2


def test_laws_of_the_first_states_by_series():
    given = np.eye(K)[STATES[:, 0]]
    conditional = by_hand().sum() - np.log(INITIAL[STATES[:, 0]]).sum()
    assert float(log_prob(panel(initial=given), STATES)) == pytest.approx(conditional, rel=1e-5)
    wrong = np.eye(K)[(STATES[:, 0] + 1) % K]

    @jax.jit
    @jax.grad
    def slope(scale):
        return panel(scale * RATES, initial=wrong, max_rate=30.0).log_prob(STATES)

    assert float(log_prob(panel(initial=wrong), STATES)) == -np.inf
    assert float(log_prob(panel(initial=[0.0, 0.5, 0.5]), STATES)) == -np.inf
    assert not np.isnan(slope(1.0))


# --------------------------------------------------------------------------------------------- transformations


def test_jit_vmap_and_grad_over_the_rates():
    def density(rates):
        return panel(rates, max_rate=30.0).log_prob(STATES)

    scales = np.array([0.5, 1.0, 2.0])
    together = jax.jit(jax.vmap(density))(scales[:, None, None] * RATES)
    np.testing.assert_allclose(together, [by_hand(rates=s * RATES).sum() for s in scales], rtol=1e-5)
    slope = jax.jit(jax.grad(lambda s: density(s * RATES)))(1.0)
    step = 1e-5
    expected = (by_hand(rates=(1 + step) * RATES) - by_hand(rates=(1 - step) * RATES)).sum() / (2 * step)
    assert float(slope) == pytest.approx(expected, rel=1e-4)


def test_equal_transitions_are_counted_when_compiled():
    """Besides the powers of the matrix the program has no loop, unless there is a gap inside a series."""

    def loops(states, **kwargs):
        text = str(jax.make_jaxpr(lambda rates: panel(rates, **kwargs).log_prob(states))(RATES))
        return text.count("scan[")

    gap = np.where(np.arange(3) == 1, np.nan, STATES)
    tail = np.where(np.arange(3) == 2, np.nan, STATES)
    assert loops(STATES) == 1
    assert loops(tail) == 1
    assert loops(STATES, lengths=[3, 2, 3, 1], mask=np.arange(3) < [[3], [1], [2], [3]]) == 1
    assert loops(gap) == 2


def test_pytree_round_trip():
    law = panel(lengths=[3, 2, 3, 3], censored={7: [0, 1]}, method="eigen", vjp=False, max_rate=12.0)
    leaves, tree = jax.tree.flatten(law)
    again = jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in leaves])
    assert (again.batch_shape, again.event_shape, again.num_steps) == ((), (4, 3), 3)
    assert (again.method, again.vjp, again.max_rate, again.censored) == ("eigen", False, 12.0, ((7, (0, 1)),))
    assert float(log_prob(again, STATES)) == pytest.approx(float(log_prob(law, STATES)), rel=1e-6)


def test_expand_to_event_and_mask():
    law = panel()
    alone = by_hand().sum()
    expanded = law.expand((2,))
    assert (expanded.batch_shape, expanded.event_shape) == ((2,), (4, 3))
    joined = expanded.mask(np.array([True, False])).to_event(1)
    assert (joined.batch_shape, joined.event_shape) == ((), (2, 4, 3))
    twice = np.stack([STATES, STATES])
    found = jax.jit(lambda x: (expanded.log_prob(x), joined.log_prob(x)))(twice)
    np.testing.assert_allclose(found[0], [alone, alone], rtol=1e-5)
    assert float(found[1]) == pytest.approx(alone, rel=1e-5)
    assert jax.jit(expanded.sample)(jax.random.key(0)).shape == (2, 4, 3)


def test_in_a_model():
    def model(states):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        numpyro.sample("states", panel(scale * RATES, max_rate=30.0), obs=states)

    found = jax.jit(lambda s: log_density(model, (STATES,), {}, {"scale": s})[0])(1.5)
    expected = float(dist.LogNormal(0.0, 1.0).log_prob(1.5)) + by_hand(rates=1.5 * RATES).sum()
    assert float(found) == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------- missing, padded, censored


def test_missing_is_nan_is_masked_is_summed_out():
    law = panel()
    for gone in ([(0, 1)], [(1, 0), (2, 2)]):
        blank, mask = STATES.astype(float), np.ones(STATES.shape, bool)
        everything = []
        for values in itertools.product(range(K), repeat=len(gone)):
            filled = STATES.copy()
            for (n, s), k in zip(gone, values, strict=True):
                filled[n, s] = k
                blank[n, s], mask[n, s] = np.nan, False
            everything.append(by_hand(filled).sum())
        total = np.logaddexp.reduce(everything)
        assert float(log_prob(law, blank)) == pytest.approx(total, rel=1e-5)
        garbage = np.where(mask, STATES, -7)
        assert float(log_prob(panel(mask=mask), garbage)) == pytest.approx(total, rel=1e-5)
    assert float(log_prob(law, np.full(STATES.shape, np.nan))) == pytest.approx(0.0, abs=1e-5)


def test_padding():
    lengths = (3, 2, 1, 3)
    times, states = TIMES.copy(), STATES.astype(float)
    for n, length in enumerate(lengths):
        times[n, length:], states[n, length:] = np.nan, -1
    law = panel(times=times, lengths=lengths)
    expected = by_hand(lengths=lengths).sum()
    assert float(log_prob(law, states)) == pytest.approx(expected, rel=1e-5)
    counted = jax.jit(lambda: panel(times=times, lengths=lengths).log_prob(states))()
    assert float(counted) == pytest.approx(expected, rel=1e-5)


def test_censored_states_are_a_set():
    law = panel(censored={99: [1, 2]})
    states = STATES.copy()
    states[0, 2] = 99
    total = np.logaddexp(*(by_hand(np.where(states == 99, k, states)).sum() for k in (1, 2)))
    assert float(log_prob(law, states)) == pytest.approx(total, rel=1e-5)


def test_the_density_is_the_sum_of_its_predictions():
    law = panel(
        lengths=[3, 2, 3, 3], obstype=[[1, 1, 3], [1, 2, 1], [1, 1, 1], [1, 1, 1]], censored={9: [0, 2]}
    )
    states = np.array([[0, 1, 2], [2, 0, 0], [1, np.nan, 2], [0, 9, 2]])
    terms = predictive(law, states)
    assert terms.shape == (4, 3)
    assert float(terms.sum()) == pytest.approx(float(log_prob(law, states)), rel=1e-5)
    assert float(terms[1, 2]) == pytest.approx(0.0, abs=1e-6)
    assert float(terms[2, 1]) == pytest.approx(0.0, abs=1e-6)
    # By hand: the first, and a snapshot after a known state.
    assert float(terms[3, 0]) == pytest.approx(np.log(INITIAL[0]), rel=1e-5)
    step = scipy.linalg.expm(RATES * 0.5)
    assert float(terms[3, 1]) == pytest.approx(np.log(step[0, 0] + step[0, 2]), rel=1e-4)


# ---------------------------------------------------------------------------------------------------- sampling


def test_samples_have_the_law_of_the_process():
    """Counts of the 27 series of three states in 20 000 draws: chi-square, 26 degrees of freedom, p > 1e-4.

    A replicate of a panel with deaths holds snapshots too.
    """
    steps = [scipy.linalg.expm(RATES * dt) for dt in np.diff(TIMES[0])]
    joint = INITIAL[:, None, None] * steps[0][:, :, None] * steps[1][None]
    law = panel(times=TIMES[0], obstype=[1, 1, 3])
    draws = np.asarray(jax.jit(lambda key: law.sample(key, (20_000,)))(jax.random.key(0)))
    counts = np.bincount(np.ravel_multi_index(draws.T, (K,) * 3), minlength=K**3)
    assert scipy.stats.chisquare(counts, 20_000 * joint.ravel()).pvalue > 1e-4


def test_one_step_ahead():
    """Frequencies of draws given the states before, 4000 of them: chi-square against rows of the exponential."""
    law = panel(times=TIMES[:2])
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.jit(jax.vmap(lambda key: law.sample_one_step_ahead(key, STATES[:2])))(keys)
    assert draws.shape == (4000, 2, 3)
    for n, s in np.ndindex(2, 3):
        dt = TIMES[n, s] - TIMES[n, s - 1]
        exact = INITIAL if s == 0 else scipy.linalg.expm(RATES * dt)[STATES[n, s - 1]]
        counts = np.bincount(np.asarray(draws)[:, n, s], minlength=K)
        assert scipy.stats.chisquare(counts, 4000 * exact).pvalue > 1e-4


# --------------------------------------------------------------------------------------------------- intervals


def test_intervals_that_differ_by_rounding_are_one():
    grid = 0.1 * np.arange(50)
    assert len(np.unique(np.diff(grid))) > 1
    steps, within = read_times(grid, None)
    assert within.all()
    np.testing.assert_allclose(np.unique(steps), [0.1], rtol=1e-12)
    coarse, _ = read_times(1e3 + grid.astype(np.float32), None)  # rounding of 6e-5
    assert len(np.unique(coarse)) == 1
    apart, _ = read_times(np.array([0.0, 0.1, 0.2001]), None)
    assert len(np.unique(apart)) == 2


def test_default_capacity():
    assert panel().max_rate == pytest.approx(10.0 / np.median(np.diff(TIMES)))
    lone = panel(lengths=[2, 1, 1, 1])  # padding is no interval
    assert lone.max_rate == pytest.approx(10.0 / 0.5)


# -------------------------------------------------------------------------------------------------- bad arguments

WRONG = {
    r"`times` do not increase in series 1: 1 is followed by 1": {"times": [[0.0, 1.0], [1.0, 1.0]]},
    r"`times` is not finite at step 1 of series 0; a missing state still has a time": {
        "times": [0.0, np.nan]
    },
    r"Every series has one observation only": {"lengths": [1, 1, 1, 1]},
    r"`times` has shape \(1, 4, 3\); a series needs \(L,\)": {"times": TIMES[None]},
    r"`lengths` has an entry 4; it must lie between 1 and the 3 times": {"lengths": [4, 3, 3, 3]},
    r"`lengths` has an entry 0": {"lengths": [0, 3, 3, 3]},
    r"`mask` has shape \(3,\); the times have \(4, 3\)": {"mask": np.ones(3, bool)},
    r"`obstype` has shape \(4,\); the times have \(4, 3\)": {"obstype": np.ones(4)},
    r"`obstype` holds 1 \(snapshot\), 2 .* or 3": {"obstype": np.full((4, 3), 4)},
    r"`rate_matrix` holds 2 matrices: `group` must say": {"rates": np.stack([RATES] * 2)},
    r"`group` must hold integers from 0 to 1": {"rates": np.stack([RATES] * 2), "group": [0, 1, 2, 0]},
    r"`group` has shape \(3,\); the series need \(4,\), or \(4, 2\)": {"group": [0, 0, 0]},
    r"`rate_matrix` has shape \(3, 2\); it must be \(K, K\), or \(G, K, K\)": {"rates": RATES[:, :2]},
    r"`initial` has shape \(2,\); 3 states need \(..., 3\)": {"initial": np.array([0.5, 0.5])},
    r"`method` is one of 'uniformization', .* not 'pade'": {"method": "pade"},
    r"The code 2 in `censored` is a state; codes begin at 3": {"censored": {2: [0, 1]}},
    r"`censored` code 9 needs some of the states 0 to 2": {"censored": {9: [1, 3]}},
}


@pytest.mark.parametrize("message", WRONG)
def test_arguments_that_do_not_fit(message):
    with pytest.raises(ValueError, match=message):
        panel(**WRONG[message])


BAD_VALUES = {
    r"Row 1 of `rate_matrix` sums to 0.5; the rows of a rate matrix sum to zero": {
        "rates": RATES + np.diag([0.0, 0.5, 0.0])
    },
    r"`rate_matrix` has a negative rate -1 from state 0 to state 2": {
        "rates": RATES - np.array([[-1.4, 0, 1.4], [0, 0, 0], [0, 0, 0]])
    },
    r"`rate_matrix` has an entry that is not finite": {"rates": RATES * np.array([[np.nan], [1.0], [1.0]])},
    r"`initial` must hold probabilities that sum to one": {"initial": [0.5, 0.3, 0.3]},
    r"State 0 is left at rate 1.4, beyond the capacity `max_rate` = 1.2: raise `max_rate`": {"max_rate": 1.2},
}


@pytest.mark.parametrize("message", BAD_VALUES)
def test_validation_of_values(message):
    with pytest.raises(ValueError, match=message):
        panel(validate_args=True, **BAD_VALUES[message])
    panel(validate_args=False, **BAD_VALUES[message])  # NumPyro's convention: no cost unless asked for


def test_compiled_arguments():
    """Validation leaves traced rates alone; times must not be traced."""
    found = jax.jit(lambda rates: panel(rates, validate_args=True).log_prob(STATES))(RATES)
    assert float(found) == pytest.approx(by_hand().sum(), rel=1e-5)
    with pytest.raises(ValueError, match="`times` must be known when the model is compiled"):
        jax.jit(lambda times: panel(times=times).log_prob(STATES))(TIMES)


def test_a_panel_of_another_shape():
    with pytest.raises(ValueError, match=r"The panel has shape \(2, 3\); its last axes must be \(4, 3\)"):
        panel().log_prob(STATES[:2])


def test_support():
    support = panel(censored={9: [0, 1]}, lengths=[3, 2, 3, 3]).support
    assert support.event_dim == 2
    assert support.is_discrete

    def accepts(value):
        states = STATES.astype(float)
        states[0, 1] = value
        return bool(support(states))

    assert all(accepts(x) for x in (0, 2, 9, np.nan))
    assert not any(accepts(x) for x in (-1, 3, 8, 0.5, np.inf))
    padded = STATES.copy()
    padded[1, 2] = -5
    assert bool(support(padded))
    assert support(np.stack([STATES, STATES - 1])).tolist() == [True, False]
    assert bool(support(support.feasible_like(jnp.asarray(STATES))))


def test_states_that_do_not_exist_are_impossible():
    assert float(log_prob(panel(), STATES + 1)) == -np.inf
    assert float(log_prob(panel(), STATES - 1)) == -np.inf
