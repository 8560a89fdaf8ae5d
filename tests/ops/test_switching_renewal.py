"""Recursions of an alternating renewal process against sums over all signs and the expanded chain."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from sojourn.ops import hidden_markov
from sojourn.ops import switching_renewal as ops

STEPS = 6
FEW = {num_ages: np.random.default_rng(num_ages).uniform(0.1, 0.9, (2, num_ages)) for num_ages in (1, 3)}
LOG_EMISSION = np.log(np.random.default_rng(0).uniform(0.05, 1.0, (STEPS, 2)))
SIGNS = list(itertools.product((0, 1), repeat=STEPS))


def survivor(hazard, most=3000):
    """P(run >= 1), P(run >= 2), ... of one side."""
    ages = np.minimum(np.arange(1, most), len(hazard)) - 1
    return np.concatenate([[1.0], np.cumprod(1 - hazard[ages])])


def renewal_probability(signs, hazard):
    """Of noise-free signs: equilibrium first run, complete runs between, a last one cut off."""
    at_least = [survivor(h) for h in hazard]
    cycle = at_least[0].sum() + at_least[1].sum()
    runs = [(side, len(list(run))) for side, run in itertools.groupby(signs)]
    (side, first), *others = runs
    if not others:
        return at_least[side][first - 1 :].sum() / cycle
    prob = at_least[side][first - 1] / cycle
    for side, n in others[:-1]:
        prob *= at_least[side][n - 1] - at_least[side][n]
    side, last = others[-1]
    return prob * at_least[side][last - 1]


def expanded(hazard):
    """Transition matrix of (sign, age), sign first."""
    num_ages = hazard.shape[1]
    move = np.zeros((2, num_ages, 2, num_ages))
    for side, age in np.ndindex(2, num_ages):
        move[side, age, 1 - side, 0] += hazard[side, age]
        move[side, age, side, min(age + 1, num_ages - 1)] += 1 - hazard[side, age]
    return move.reshape(2 * num_ages, 2 * num_ages)


log_likelihood = jax.jit(ops.log_likelihood)
value_and_grads = jax.jit(jax.value_and_grad(ops.log_likelihood, argnums=(0, 1)))


# --------------------------------------------------------------------------------------------- the likelihood


@pytest.mark.parametrize("num_ages", FEW)
def test_sum_over_all_signs(x64, num_ages):
    """Also K = 1, which is a two-state Markov chain."""
    hazard, log_emission = FEW[num_ages], LOG_EMISSION.copy()
    log_emission[2] = 0.0
    steps = np.arange(STEPS)
    terms = [np.exp(log_emission[steps, s].sum()) * renewal_probability(s, hazard) for s in SIGNS]
    assert float(log_likelihood(hazard, log_emission)) == pytest.approx(np.log(sum(terms)), abs=1e-12)
    above = sum(np.array(s) * p for s, p in zip(SIGNS, terms, strict=True)) / sum(terms)
    np.testing.assert_allclose(value_and_grads(hazard, log_emission)[1][1][:, 1], above, atol=1e-12)
    if num_ages == 1:
        (low,), (high,) = hazard
        chain = np.array([[1 - low, low], [high, 1 - high]])
        start = np.array([high, low]) / (low + high)
        markov = hidden_markov.log_likelihood(start, chain, log_emission)
        assert float(log_likelihood(hazard, log_emission)) == pytest.approx(float(markov), abs=1e-12)


def test_hidden_markov_chain_of_sign_and_age(x64):
    rng = np.random.default_rng(1)
    hazard, log_emission, length = rng.uniform(0.05, 0.9, (2, 4)), rng.normal(size=(40, 2)), 33
    initial = ops.stationary_law(hazard).reshape(-1)
    np.testing.assert_allclose(initial @ expanded(hazard), initial, atol=1e-15)
    wide = np.repeat(log_emission, 4, 1)

    def by_sign(law):
        return np.asarray(law).reshape(40, 2, 4).sum(-1)

    @jax.jit
    def both(length):
        mine = ops.filter(hazard, log_emission, length), ops.smooth(hazard, log_emission, length)
        theirs = (
            run(initial, expanded(hazard), wide, length)
            for run in (hidden_markov.filter, hidden_markov.smooth)
        )
        return *mine, *theirs

    filtered, smoothed, chain_filtered, chain_smoothed = both(length)
    np.testing.assert_allclose(filtered.log_predictive, chain_filtered.log_predictive, atol=1e-12)
    np.testing.assert_allclose(filtered.predicted, by_sign(chain_filtered.predicted), atol=1e-12)
    np.testing.assert_allclose(filtered.filtered, by_sign(chain_filtered.filtered), atol=1e-12)
    np.testing.assert_allclose(smoothed, by_sign(chain_smoothed.marginals), atol=1e-12)
    assert not np.asarray(filtered.log_predictive)[length:].any()


def test_without_noise_it_is_the_renewal_likelihood(x64):
    hazard = np.array([[0.0, 0.5, 1.0], [0.2, 0.0, 0.7]])
    likelihoods = jax.jit(jax.vmap(jax.value_and_grad(ops.log_likelihood), (None, 0)))
    exactly = np.where(np.array(SIGNS)[:, :, None] == np.arange(2), 0.0, -np.inf)
    found, slopes = likelihoods(hazard, exactly)
    expected = np.array([renewal_probability(s, hazard) for s in SIGNS])
    assert (
        10 < (expected == 0).sum() < 54
    )  # below lasts two or three steps, above never ends after the second
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-14)
    assert np.isneginf(np.asarray(found)[expected == 0]).all()
    assert np.isfinite(slopes).all()


def test_gradients(x64):
    hazard = FEW[3]
    _, (slope, _) = value_and_grads(hazard, LOG_EMISSION)
    forward = jax.jit(jax.jacfwd(ops.log_likelihood))(hazard, LOG_EMISSION)
    np.testing.assert_allclose(slope, forward, rtol=1e-12)
    small = 1e-5
    for index in np.ndindex(2, 3):
        step = np.zeros((2, 3))
        step[index] = small
        up, down = (float(log_likelihood(hazard + s, LOG_EMISSION)) for s in (step, -step))
        assert float(slope[index]) == pytest.approx((up - down) / (2 * small), rel=1e-7)


def test_a_sign_that_cannot_be_does_not_drown_the_other():
    """Below lasts one step, above two: in single precision the reading may be 200 nats off."""
    hazard = np.array([[1.0, 1.0], [0.0, 1.0]])
    log_emission = np.zeros((4, 2))
    log_emission[1] = [-np.inf, 0.0]
    log_emission[2:] = [[0.0, -np.inf], [0.0, -200.0]]
    value, slopes = value_and_grads(hazard, log_emission)
    assert float(value) == pytest.approx(-200.0 - np.log(3.0), rel=1e-6)
    assert all(np.isfinite(s).all() for s in slopes)


# ------------------------------------------------------------------------------------------------- the hazard


def test_hazard_of_a_run_length(x64):
    hazard = np.array([[0.3, 0.1, 0.6, 0.25, 0.25], [0.9, 0.0, 0.5, 0.4, 0.4]])
    pmf = np.array([survivor(h)[:5] * h for h in hazard])
    np.testing.assert_allclose(ops.hazard_from_pmf(pmf), hazard, rtol=1e-13)
    np.testing.assert_allclose(ops.hazard_from_pmf(pmf, tail=0.25)[0], hazard[0], rtol=1e-13)
    mixed = ops.hazard_from_pmf(pmf, tail=np.array([0.25, 0.4]))
    np.testing.assert_allclose(mixed, hazard, rtol=1e-13)
    # At most three long: the tail is never reached.
    np.testing.assert_allclose(ops.hazard_from_pmf(np.array([0.5, 0.2, 0.3, 0.0, 0.0])), [0.5, 0.4, 1, 1, 1])
    np.testing.assert_allclose(ops.hazard_from_pmf(np.array([0.2, 0.5, 0.3]), tail=1.0), [0.2, 0.625, 1.0])
    np.testing.assert_allclose(ops.hazard_from_pmf(np.array([0.2])), [0.2])
    slope = jax.grad(lambda p: ops.hazard_from_pmf(p).sum())(np.array([0.5, 0.2, 0.3, 0.0, 0.0]))
    assert np.isfinite(slope).all()


def test_hazard_far_out_in_single_precision():
    """One minus the sum of probabilities would have lost every digit: S(200) = e^-20."""
    pmf = np.float32(1 - np.exp(-0.1)) * np.exp(-0.1 * np.arange(200)).astype(np.float32)
    np.testing.assert_allclose(ops.hazard_from_pmf(pmf), 1 - np.exp(-0.1), rtol=1e-4)


@pytest.mark.parametrize(
    ("pmf", "tail", "message"),
    [
        (0.5, None, r"`pmf` has shape \(\); it holds the probabilities of the lengths 1, ..., K"),
        ([0.5, -0.1], None, "an entry negative or not finite"),
        ([0.5, np.nan], None, "an entry negative or not finite"),
        ([0.5, 0.4, 0.3], None, "`pmf` sums to 1.2; probabilities of run lengths sum to at most one"),
        ([0.1, 0.1], None, "does not fall at its end, so no geometric tail can continue it: give more"),
        ([0.5, 0.1], 0.0, r"`tail` is the hazard of the longest runs and must lie in \(0, 1\]"),
    ],
)
def test_bad_run_lengths(pmf, tail, message):
    with pytest.raises(ValueError, match=message):
        ops.hazard_from_pmf(np.array(pmf), tail)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"`hazard` has shape \(3, 2\); it must be \(K,\), or \(2, K\)"):
        ops.log_likelihood(np.ones((3, 2)), LOG_EMISSION)
    with pytest.raises(
        ValueError, match=r"\(T, 2\), not \(2, 3\) and \(6, 3\); map over several with jax.vmap"
    ):
        ops.log_likelihood(FEW[3], np.zeros((6, 3)))


def test_stationary_law_at_the_edge():
    """Runs that never end on one side hold all the mass; ages that are not reached hold none."""
    law = ops.stationary_law(np.array([[0.5, 0.0], [0.5, 0.5]]))
    np.testing.assert_allclose(law, [[0.0, 1.0], [0.0, 0.0]], atol=1e-6)
    np.testing.assert_allclose(ops.stationary_law(np.array([1.0, 0.0])), [[0.5, 0.0], [0.5, 0.0]], atol=1e-6)


# ------------------------------------------------------------------------------------------------------ paths


def index(state, num_ages):
    return np.where(state > 0, num_ages, 0) + np.abs(state) - 1


@pytest.mark.parametrize(("num_ages", "length"), [(1, None), (3, None), (3, 2)])
def test_paths_have_their_posterior_law(num_ages, length):
    """Frequencies of all paths of four steps, 20 000 draws: within 4.5 standard errors; none impossible."""
    hazard, log_emission, draws = FEW[num_ages], LOG_EMISSION[:4], 20_000
    paths = ops.sample_paths(jax.random.key(1), hazard, log_emission, length, num_samples=draws)
    assert paths.shape == (draws, 4)
    chain, initial = expanded(hazard), np.asarray(ops.stationary_law(hazard)).reshape(-1)
    lik = np.exp(np.where(np.arange(4)[:, None] < (length or 4), log_emission, 0.0)).repeat(num_ages, 1)
    size = 2 * num_ages
    exact = np.zeros((size,) * 4)
    for path in itertools.product(range(size), repeat=4):
        prob = initial[path[0]] * np.prod([chain[i, j] for i, j in itertools.pairwise(path)])
        exact[path] = prob * np.prod([lik[t, i] for t, i in enumerate(path)])
    exact /= exact.sum()
    count = np.zeros_like(exact)
    np.add.at(count, tuple(index(np.asarray(paths), num_ages).T), 1)
    assert not count[exact == 0].any()
    error = np.sqrt(np.maximum(exact * (1 - exact), 1e-12) / draws)
    assert np.abs((count / draws - exact) / error).max() < 4.5


def test_simulated_runs_have_their_law():
    """20 000 steps: counts of runs by side and length within 4.5 standard errors of their multinomial law."""
    hazard = np.array([[0.2, 0.7, 0.4], [0.5, 0.1, 0.3]])
    path = np.asarray(jax.jit(ops.simulate, static_argnums=2)(jax.random.key(2), hazard, 20_000))
    starts = np.flatnonzero(np.abs(path) == 1)
    lengths, sides = np.diff(starts), (path[starts[:-1]] > 0).astype(int)
    assert (np.diff(sides) != 0).all()
    for side in (0, 1):
        mine = lengths[sides == side]
        at_least = survivor(hazard[side], 8)
        prob = np.append(at_least[:-1] - at_least[1:], at_least[-1])
        count = np.bincount(np.minimum(mine, 8), minlength=9)[1:]
        z = (count - len(mine) * prob) / np.sqrt(len(mine) * prob * (1 - prob))
        assert np.abs(z).max() < 4.5
