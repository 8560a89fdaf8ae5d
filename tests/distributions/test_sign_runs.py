"""Runs of one sign in a process read at regular times: exact means, simulated records, and what feeds on them."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

from sojourn.distributions import (
    CensoredExcursion,
    ExcursionTime,
    LevelExcursionTime,
    NoisySigns,
    SignRuns,
)
from sojourn.ops.covariance import DampedCosine, Diffusion
from sojourn.ops.gaussian_path import sample_paths

MEAN = 2 * np.pi  # of diffusion in two dimensions
SHARE_ABOVE = scipy.special.ndtr(-1.0)


# Each is asked for under double precision alone, and shared from then on.
@functools.cache
def zero():
    return ExcursionTime(Diffusion(2.0))


@functools.cache
def level(side):
    return LevelExcursionTime(Diffusion(2.0), 1.0, side)


@functools.cache
def runs(side=None, apart=0.2):
    """With readings ``apart`` mean intervals apart."""
    return SignRuns(zero() if side is None else level(side), apart * MEAN)


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


@jax.jit
def look_up(law, length):
    return law.log_prob(length), law.log_reach(length), law.cdf(length), law.persistence(length), law.mean


hazard = jax.jit(lambda law, num: law.hazard(num), static_argnums=1)
sample = jax.jit(lambda law, key, shape: law.sample(key, shape), static_argnums=2)


# --------------------------------------------------------------------------------------------------------- the law


def test_mean_run_is_exact(x64):
    """``pi / arccos r(step)`` (the chance that two readings differ is ``arccos(r) / pi``): target 0.3 %.

    What is not approximated is the excursion, but what is read of two in a row: measured at steps of .05, .1, .2
    and .4 mean intervals 0.006, 0.04, 0.13, -0.18 % for d = 1, and 0.005, 0.03, 0.15, 0.19 % for d = 2.
    """
    law = ExcursionTime(Diffusion(np.array([1.0, 2.0])))
    steps = np.array([0.05, 0.1, 0.2, 0.4])
    mean = np.asarray(law.mean)

    @jax.jit
    def means(law, steps):
        return jnp.stack([SignRuns(law, step).mean for step in steps])

    for row in (0, 1):
        found = np.asarray(means(law, steps * mean[row]))[:, row]
        exact = np.pi / np.arccos(Diffusion(row + 1.0)(steps * mean[row]))
        error = found / exact - 1
        assert (abs(error) < [3e-4, 8e-4, 2e-3, 3e-3]).all(), error
        # An excursion of T / step readings on average, and no fewer: those that are missed make runs longer.
        assert (found > 1 / steps).all()


@pytest.mark.parametrize("make", [runs, functools.partial(runs, "above"), functools.partial(runs, "below")])
def test_answers_belong_together(make, x64):
    """Sums of the probabilities, which telescope: to rounding."""
    law = make()
    k = np.arange(1.0, 1201.0)
    log_p, log_reach, cdf, persistence, mean = (np.asarray(x) for x in look_up(law, k))
    p = np.exp(log_p)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    assert (p * k).sum() == pytest.approx(float(mean), rel=1e-12)
    np.testing.assert_allclose(cdf, p.cumsum(), atol=1e-12)
    np.testing.assert_allclose(np.exp(log_reach), p[::-1].cumsum()[::-1], atol=1e-12)
    np.testing.assert_allclose(persistence, np.exp(log_reach)[::-1].cumsum()[::-1] / mean, atol=1e-12)
    assert float(persistence[0]) == pytest.approx(1.0, abs=1e-14)
    few = 60
    np.testing.assert_allclose(hazard(law, few), (p / np.exp(log_reach))[:few], rtol=1e-9)
    assert (hazard(law, few) > 0).all()
    assert (np.diff(log_p[40:]) < 0).all()
    # Beyond the grid the probabilities fall by a constant factor, which merging brings closer to one; as on a grid
    # twice as long (on which the rate above the level differs by 2e-5; without merging it would by 4 % and more).
    settings = {"horizon": 16.0, "num_steps": 1024, "on_invalid": "ignore"}
    inner = law.law
    if isinstance(inner, LevelExcursionTime):
        longer = LevelExcursionTime(inner.covariance, inner.level, inner.side, **settings)
    else:
        longer = ExcursionTime(inner.covariance, **settings)
    expected = float(np.diff(SignRuns(longer, law.step).log_reach(np.array([200.0, 201.0])))[0])
    np.testing.assert_allclose(np.diff(log_p[200:300]), expected, rtol=1e-4)
    assert -expected < float(inner.tail_rate()) * float(law.step)


def test_no_run_is_shorter_than_one_reading(x64):
    log_p, log_reach, cdf, *_ = look_up(runs(), np.array([0.0, 1.0]))
    assert float(log_p[0]) == -np.inf
    assert float(cdf[0]) == pytest.approx(0.0, abs=1e-14)
    assert float(log_reach[1]) == pytest.approx(0.0, abs=1e-14)
    checked = SignRuns(zero(), 1.0, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        checked.log_prob(0)


@pytest.mark.parametrize("side", ["above", "below"])
def test_samples_follow_the_probabilities(side, x64):
    """Chi-squared of the lengths that are expected 20 times and of the rest; 99.9 % point."""
    n, law = 50_000, runs(side)
    k = np.arange(1.0, 201.0)
    draws = np.asarray(sample(law, jax.random.key(4), (n,)))
    assert np.issubdtype(draws.dtype, np.integer)
    expected = n * np.exp(log_prob(law, k))
    common = expected > 20
    counts = np.bincount(draws, minlength=201)[1:201]
    counts = np.append(counts[common], n - counts[common].sum())
    expected = np.append(expected[common], n - expected[common].sum())
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < scipy.stats.chi2.ppf(0.999, len(expected) - 1)


# ------------------------------------------------------------------------------------------------ simulated records


def run_lengths(above):
    """Complete runs above and below, of records ``(N, T)`` of booleans."""
    lengths = {True: [], False: []}
    for record in above:
        edges = np.flatnonzero(np.diff(record)) + 1
        for start, stop in itertools.pairwise(edges):
            lengths[bool(record[start])].append(stop - start)
    return {side: np.array(x) for side, x in lengths.items()}


def distance(lengths, law, n=400):
    """Total variation between lengths and their law."""
    share = np.bincount(np.minimum(lengths, n), minlength=n + 1)[1:] / len(lengths)
    k = np.arange(1.0, n)
    p = np.exp(log_prob(law, k))
    return 0.5 * abs(share - np.append(p, 1 - p.sum())).sum()


def test_merging_matters(x64):
    """A simulated process read every 0.4 mean intervals, against the law and against runs that are never merged.

    40 records of 2500 readings hold 32,000 runs; sampling alone puts the distance at 0.007 (half of
    ``sum sqrt(2 p / pi n)``). Measured 0.006 with one seed, 0.008 with another; without the merging 0.050 and 0.048.
    """
    step = 0.4 * MEAN
    r = Diffusion(2.0)(step * np.arange(2500))
    above = np.asarray(jax.jit(lambda key, r: sample_paths(key, r, (40,)))(jax.random.key(2), r)) > 0
    lengths = np.concatenate(list(run_lengths(above).values()))
    law = runs(apart=0.4)
    assert distance(lengths, law) < 0.015
    assert lengths.mean() == pytest.approx(float(law.mean), rel=0.02)  # 4 errors

    # The law of one excursion with a uniform phase, given that it is seen.
    t = step * np.arange(401.0)
    integral = MEAN * (1 - np.asarray(jax.jit(lambda law, t: law.persistence(t))(zero(), t)))
    mass = (2 * integral[1:-1] - integral[:-2] - integral[2:]) / step
    triangular = mass / mass.sum()
    share = np.bincount(np.minimum(lengths, 400), minlength=401)[1:400] / len(lengths)
    assert 0.5 * abs(share - triangular).sum() > 0.04
    assert (np.arange(1, 400) * triangular).sum() < 0.92 * lengths.mean()


def test_at_a_level(x64):
    """The share of time above is that of the mean runs; and both laws against a simulated process.

    Readings are 0.38 mean excursions above apart. Measured: mean runs off by 0.10 and -0.31 %. 60 records of 3000
    readings hold 10,000 runs on each side, whose distance from sampling alone is 0.012 above and 0.030 below;
    measured 0.010 and 0.036.
    """
    above, below = runs("above"), runs("below")
    ratio = float(above.mean / below.mean)
    assert ratio == pytest.approx(SHARE_ABOVE / (1 - SHARE_ABOVE), rel=5e-3)
    assert float(above.side_probability) == pytest.approx(SHARE_ABOVE)
    step = 0.2 * MEAN
    # Two readings are on different sides with the probability of a bivariate normal: the exact mean run.
    joint = scipy.stats.multivariate_normal(cov=[[1.0, r := float(Diffusion(2.0)(step))], [r, 1.0]])
    leaves = SHARE_ABOVE - joint.cdf([-1.0, -1.0])
    for law, share in ((above, SHARE_ABOVE), (below, 1 - SHARE_ABOVE)):
        assert float(law.mean) == pytest.approx(share / leaves, rel=4e-3)
    r = Diffusion(2.0)(step * np.arange(3000))
    readings = np.asarray(jax.jit(lambda key, r: sample_paths(key, r, (60,)))(jax.random.key(3), r)) > 1.0
    lengths = run_lengths(readings)
    assert min(map(len, lengths.values())) > 10_000
    assert distance(lengths[True], above) < 0.02
    assert distance(lengths[False], below) < 0.045
    assert distance(lengths[True], below) > 0.3


# ------------------------------------------------------------------------------------------------------ noisy signs


def pieces_of(record):
    """Lengths, kinds and sides of the runs of a record of zeros and ones."""
    edges = np.flatnonzero(np.diff(record)) + 1
    starts, stops = np.append(0, edges), np.append(edges, len(record))
    kind = np.zeros(len(starts), int)
    kind[-1], kind[0] = 1, 4
    if len(starts) == 1:
        kind[0] = 5
    return stops - starts, kind, record[starts]


RECORDS = np.array(
    [
        [0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1] * 22,
        [0] * 22,
        [1, 0] * 11,
        [0] * 21 + [1],
    ]
)


@pytest.mark.parametrize("at_level", [False, True])
def test_noisy_signs_without_noise(at_level, x64):
    """A record is its runs: ``first``, the complete ones, ``right``, or ``empty``.

    At level zero the sides are alike, and which one comes first costs log 2. At a level the share of this side is in
    ``first`` and ``empty``; NoisySigns takes it from the mean runs, which is the same to 0.4 %.
    """
    laws = {0: runs("below"), 1: runs("above")} if at_level else {0: runs(), 1: runs()}
    # Past the end of the grid the hazard is constant, as NoisySigns takes it to be.
    num_ages = 120
    hazards = jnp.stack([hazard(laws[side], num_ages) for side in (0, 1)])
    signs = NoisySigns(hazards, num_steps=22, flip=0.0)
    found = np.asarray(log_prob(signs, RECORDS.astype(float)))
    width = max(len(pieces_of(record)[0]) for record in RECORDS)
    expected = np.zeros(len(RECORDS))
    for i, record in enumerate(RECORDS):
        length, kind, side = pieces_of(record)
        pad = width - len(length)
        length, kind = np.pad(length, (0, pad), constant_values=1), np.pad(kind, (0, pad))
        for above, law in laws.items():
            terms = np.asarray(log_prob(CensoredExcursion(law, kind, among=None), length.astype(float)))
            expected[i] += terms[: width - pad][side == above].sum()
        # The share that the mean runs give to the side of the first run, in place of that of the law.
        own, other = laws[record[0]], laws[1 - record[0]]
        expected[i] += np.log(own.mean / (own.mean + other.mean)) - np.log(own.side_probability)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    if not at_level:
        assert (laws[0].mean, laws[0].side_probability) == (laws[1].mean, 1.0)  # hence log 2


# ---------------------------------------------------------------------------------------------- NumPyro, and errors


def test_batch_index_and_pytree(x64):
    index = np.array([1, 0, 1, 1])
    law = SignRuns(ExcursionTime(Diffusion(2.0, scale=np.array([1.0, 1.5])), index=index), 1.0)
    assert (law.batch_shape, law.event_shape) == ((4,), ())
    value = np.array([1.0, 3, 3, 20])
    found = log_prob(law, value)
    assert law.mean.shape == law.side_probability.shape == law.is_valid().shape == (4,)
    assert hazard(law, 7).shape == (4, 7)
    assert sample(law, jax.random.key(0), (5,)).shape == (5, 4)
    slow = log_prob(SignRuns(zero(), 1.0 / 1.5), value)
    quick = log_prob(SignRuns(zero(), 1.0), value)
    np.testing.assert_allclose(found, np.where(index == 1, slow, quick), rtol=1e-9)
    np.testing.assert_allclose(hazard(law, 7)[1], hazard(SignRuns(zero(), 1.0), 7), rtol=1e-8)
    leaves, tree = jax.tree.flatten(law)
    back = jax.tree.unflatten(tree, leaves)
    assert jax.tree.structure(back) == tree
    np.testing.assert_array_equal(log_prob(back, value), found)
    assert law.support is dist.constraints.positive_integer


SOME = np.array([1.0, 2, 3, 8, 20])
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0, -0.7])
H = 0.02  # differences of fourth order: h^4 / 30 of the fifth derivative
AROUND = H * np.array([0, 1, -1, 2, -2])


def slope_fits(found, slope):
    difference = (8 * (found[1] - found[2]) - (found[3] - found[4])) / (12 * H)
    assert float(slope[0]) == pytest.approx(float(difference), rel=1e-4)


def test_gradient(x64):
    """In the shape at a given mean, under vmap and jit."""

    def at(dimension):
        law = ExcursionTime(Diffusion(dimension).with_mean_interval(6.0), on_invalid="ignore")
        return SignRuns(law, 1.5).log_prob(SOME) @ WEIGHTS

    slope_fits(*jax.jit(jax.vmap(jax.value_and_grad(at)))(2.0 + AROUND))


@pytest.mark.slow
def test_gradient_at_a_level(x64):
    """In the shape and in the level, through the grids of both sides."""

    def at(dimension, u):
        process = Diffusion(dimension).with_mean_interval(6.0)
        law = LevelExcursionTime(process, u, "below", on_invalid="ignore")
        return SignRuns(law, 1.5).log_prob(SOME) @ WEIGHTS

    every = jax.jit(jax.vmap(jax.value_and_grad(at, (0, 1))))
    found, (slope, _) = every(2.0 + AROUND, np.full(5, 0.4))
    slope_fits(found, slope)
    found, (_, slope) = every(np.full(5, 2.0), 0.4 + AROUND)
    slope_fits(found, slope)


def test_an_impossible_law_has_no_runs(x64):
    law = SignRuns(ExcursionTime(DampedCosine(np.array([0.6, 2.0])), on_invalid="ignore"), 0.3)
    assert np.isfinite(log_prob(law, 3.0)).tolist() == [True, False]
    assert law.is_valid().tolist() == [True, False]


ERRORS = {
    "law": (
        lambda: SignRuns(dist.Exponential(1.0), 1.0),
        "`law` must be an ExcursionTime or a LevelExcursionTime; got Exponential",
    ),
    "zero": (lambda: SignRuns(zero(), 0.0), "`step` must be positive; got 0.0"),
    "negative": (lambda: SignRuns(zero(), -1.0), "`step` must be positive; got -1.0"),
    "not a number": (lambda: SignRuns(zero(), np.nan), "`step` must be positive; got nan"),
    "many": (lambda: SignRuns(zero(), [1.0, 2.0]), "`step` is one number, the time between readings"),
    "long": (lambda: SignRuns(zero(), 7.0), "readings 7 apart miss most excursions, whose mean is 6.283"),
    "long at a level": (lambda: SignRuns(level("above"), 4.0), "readings 4 apart miss most excursions"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name, x64):
    make, sentence = ERRORS[name]
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.filterwarnings("ignore:ExcursionTime in single precision")
def test_single_precision(x64):
    """Differences of second integrals: 1e-4 in the common lengths."""
    double = np.asarray(log_prob(runs(), np.arange(1.0, 21.0)))
    with jax.enable_x64(False):
        law = SignRuns(ExcursionTime(Diffusion(2.0), on_invalid="ignore"), 0.2 * MEAN)
        single = np.asarray(log_prob(law, np.arange(1.0, 21.0)))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=5e-3)
