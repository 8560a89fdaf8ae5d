"""Every kind of censored duration against the formulas, on the laws that it wraps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
from numpyro.infer.util import log_density

from sojourn.distributions import KINDS, CensoredExcursion, ExcursionTime, LevelExcursionTime, SignRuns
from sojourn.ops.covariance import DampedCosine, Diffusion

T = np.array([0.5, 3.0, 9.0, 20.0, 45.0, 60.0])  # the grid of diffusion ends at 50
LOWER = np.array([0.2, 2.0, 0.0, 12.0, 30.0, 55.0])
STEP = 0.2 * 2 * np.pi


# Each is asked for under double precision alone, and shared from then on.
@functools.cache
def zero():
    return ExcursionTime(Diffusion(2.0))


@functools.cache
def level(side):
    return LevelExcursionTime(Diffusion(2.0), 1.0, side)


@functools.cache
def runs(side=None):
    return SignRuns(zero() if side is None else level(side), STEP)


@functools.cache
def two():
    """The second one does not exist."""
    return ExcursionTime(DampedCosine(np.array([0.6, 2.0])), on_invalid="ignore")


LAWS = {
    "level zero": zero,
    "below": functools.partial(level, "below"),
    "runs": runs,
}


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


sample = jax.jit(lambda law, key, shape: law.sample(key, shape), static_argnums=2)


# ------------------------------------------------------------------------------------------------------ each kind


@jax.jit
def in_every_way(law, value, lower, mix):
    """Each kind by the table of the class, in terms of what is tested elsewhere; and kinds not known before."""
    reach, share = jnp.exp(law.log_reach(value)), law.side_probability
    table = [
        jnp.exp(law.log_prob(value)),
        reach,
        law.cdf(value),
        law.cdf(value) - law.cdf(lower),
        share * reach / law.mean,
        share * law.persistence(value),
    ]
    return table, CensoredExcursion(law, mix, lower=lower).log_prob(value)


@pytest.mark.parametrize("name", LAWS)
def test_kinds(name, x64):
    """By number; by name; and not known before compilation."""
    law = LAWS[name]()
    value, lower = (T, LOWER)
    if name == "runs":
        value, lower = np.array([1.0, 2, 5, 11, 36, 47]), np.array([0.0, 1, 2, 9, 30, 40])
    mix = np.array([5, 4, 3, 2, 1, 0])
    table, unknown = in_every_way(law, value, lower, mix)
    together = CensoredExcursion(law, np.repeat(np.arange(6), 6), lower=np.tile(lower, 6))
    assert (together.batch_shape, together.event_shape, together.support) == ((36,), (), law.support)
    found = np.asarray(log_prob(together, np.tile(value, 6))).reshape(6, 6)
    # A difference of two cdfs near one is good to 1e-16 of one.
    np.testing.assert_allclose(np.exp(found), np.stack(table), rtol=1e-11, atol=1e-15)
    by_name = log_prob(CensoredExcursion(law, [KINDS[k] for k in mix], lower=lower), value)
    for given in (by_name, unknown):
        np.testing.assert_allclose(np.exp(given), np.exp(found[mix, np.arange(6)]), rtol=1e-11, atol=1e-15)


def test_each_is_the_mass_that_it_says(x64):
    """Integrals of the density, by Simpson's rule (below 1e-8) on what is itself good to 1e-6."""
    law = zero()
    t = np.linspace(0.0, 30 * float(law.mean), 30 * 256 + 1)
    t[0] = 1e-12
    every = CensoredExcursion(law, np.arange(6)[:, None], lower=3.0)
    found = dict(zip(KINDS, np.exp(log_prob(every, t)), strict=True))
    integral = functools.partial(scipy.integrate.cumulative_simpson, dx=t[2] - t[1], initial=0)
    mass = integral(found["complete"])
    np.testing.assert_allclose(found["left"], mass, atol=3e-6, rtol=0)
    np.testing.assert_allclose(found["right"], 1 - mass, atol=3e-6, rtol=0)
    after = t > 3.0
    at_lower = np.interp(3.0, t, mass)  # to 1e-5, a step being 0.025
    np.testing.assert_allclose(found["interval"][after], mass[after] - at_lower, atol=2e-5, rtol=0)
    first = integral(found["first"])
    assert first[-1] == pytest.approx(1.0, abs=3e-6)
    np.testing.assert_allclose(found["empty"], 1 - first, atol=3e-6, rtol=0)


def test_a_stationary_record_is_on_one_of_two_sides(x64):
    """Over both sides the first pieces have mass one, and windows without a crossing what is left of it."""
    t = np.linspace(0.0, 30 * float(level("below").mean), 30 * 512 + 1)
    t[0] = 1e-12
    total = 0.0
    for side in ("above", "below"):
        pieces = CensoredExcursion(level(side), [["first"], ["empty"]])
        first, empty = np.exp(log_prob(pieces, t))
        share = float(level(side).side_probability)
        mass = scipy.integrate.cumulative_simpson(first, dx=t[2] - t[1], initial=0)
        np.testing.assert_allclose(empty, share - mass, atol=5e-6, rtol=0)
        total += mass[-1]
    assert total == pytest.approx(1.0, abs=5e-6)


def test_a_stationary_record_of_readings(x64):
    """A window of k readings on one side: its first piece is k readings long, or longer."""
    k = np.arange(1.0, 1001.0)
    total = 0.0
    for side in ("above", "below"):
        first, empty = np.exp(log_prob(CensoredExcursion(runs(side), [["first"], ["empty"]]), k))
        np.testing.assert_allclose(empty, first[::-1].cumsum()[::-1], rtol=1e-6, atol=1e-14)
        total += first.sum()
    assert total == pytest.approx(1.0, abs=1e-12)


def test_windows(x64):
    """Windows without a crossing, and with one, ``int first(t) S(W - t) dt``, among 40,000 that are simulated."""
    law, window, n = zero(), 9.0, 40_000
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = window * (nodes + 1) / 2
    first, last, empty = np.exp(
        log_prob(
            CensoredExcursion(law, [["first"], ["right"], ["empty"]]),
            np.stack([t, window - t, 0 * t + window]),
        )
    )
    probability = np.array([empty[0], (weights * window / 2 * first * last).sum()])
    pieces = CensoredExcursion(law, ["first", "complete"])
    ends = np.asarray(sample(pieces, jax.random.key(3), (n,))).cumsum(1)
    crossings = (ends < window).sum(1)
    found = np.array([(crossings == number).mean() for number in (0, 1)])
    assert (abs(found - probability) < 5 * np.sqrt(probability * (1 - probability) / n)).all()


# -------------------------------------------------------------------------------------------------------- sampling


def kolmogorov(draws, cdf):
    q = np.sort(cdf)
    ranks = np.arange(1, len(q) + 1) / len(q)
    return max((ranks - q).max(), (q - ranks + 1 / len(q)).max())


def test_samples(x64):
    """Whole excursions, and what is left of them for ``first`` and ``empty``; 99.9 % points of Kolmogorov's law."""
    law, n = level("below"), 20_000
    draws = np.asarray(sample(CensoredExcursion(law, list(KINDS), lower=1.0), jax.random.key(8), (n,)))
    assert draws.shape == (n, 6)
    whole = jax.jit(lambda law, t: law.cdf(t))(law, draws)
    left_over = jax.jit(lambda law, t: 1 - law.persistence(t))(law, draws)
    for number, kind in enumerate(KINDS):
        cdf = left_over if kind in ("first", "empty") else whole
        assert kolmogorov(draws[:, number], np.asarray(cdf)[:, number]) < 1.95 / np.sqrt(n), kind
    # Without either, the draws of the law itself.
    plain = sample(CensoredExcursion(law, ["complete", "right"]), jax.random.key(8), (5,))
    assert plain.shape == (5, 2)


def test_samples_of_runs(x64):
    """Chi-squared of the first twelve lengths and the rest, 99.9 % point."""
    n, k = 20_000, np.arange(1.0, 13.0)
    law = CensoredExcursion(runs(), ["complete", "first", "empty"])
    draws = np.asarray(sample(law, jax.random.key(9), (n,)))
    assert np.issubdtype(draws.dtype, np.integer)
    assert draws.min() >= 1
    probabilities = np.exp(log_prob(CensoredExcursion(runs(), [["complete"], ["first"]]), k))
    for column, of in enumerate((0, 1, 1)):  # what is left of an excursion, also where no crossing was seen
        expected = n * probabilities[of]
        expected = np.append(expected, n - expected.sum())
        counts = np.append(
            [(draws[:, column] == length).sum() for length in k], (draws[:, column] > 12).sum()
        )
        assert ((counts - expected) ** 2 / expected).sum() < scipy.stats.chi2.ppf(0.999, 12)


# ---------------------------------------------------------------------------------------------- NumPyro, and errors


def test_shapes(x64):
    law = CensoredExcursion(two(), np.array([[0], [1], [3]]), lower=np.ones((4, 1, 1)))
    assert law.batch_shape == (4, 3, 2)
    assert log_prob(law, 3.0).shape == (4, 3, 2)
    assert sample(law, jax.random.key(0), (5,)).shape == (5, 4, 3, 2)
    single = CensoredExcursion(zero(), "right")
    assert single.batch_shape == ()
    expanded = single.expand((6,))
    np.testing.assert_allclose(log_prob(expanded, T), log_prob(single, T))
    joint = CensoredExcursion(zero(), ["right", "first"]).to_event(1)
    assert (joint.batch_shape, joint.event_shape) == ((), (2,))


def test_pytree(x64):
    law = CensoredExcursion(zero(), list(KINDS), lower=LOWER)
    leaves, tree = jax.tree.flatten(law)
    back = jax.tree.unflatten(tree, leaves)
    assert type(back) is CensoredExcursion
    assert jax.tree.structure(back) == tree
    np.testing.assert_array_equal(log_prob(back, T), log_prob(law, T))
    np.testing.assert_allclose(log_prob(law, T), law.log_prob(T), rtol=1e-12)  # without jit


def test_gradients(x64):
    """Of each kind, under vmap and jit; bounds that are NaN where there are none touch neither value nor slope."""
    kind = np.array([0, 1, 2, 3, 4, 5])
    value = np.array([0.5, 3.0, 9.0, 20.0, 35.0, 45.0])  # on the grid, where no value moves with the shape

    def at(dimension, lower):
        law = ExcursionTime(Diffusion(dimension).with_mean_interval(6.0), on_invalid="ignore")
        terms = CensoredExcursion(law, kind, lower=lower).log_prob(value)
        return terms @ np.array([1.0, -2.0, 3.0, 0.5, -0.7, 1.3]), terms

    given = np.where(kind == 3, 12.0, np.nan)
    h = 0.03  # differences of fourth order: h^4 / 30 of the fifth derivative
    dimension = 2.0 + h * np.array([0, 0, 1, -1, 2, -2])
    lower = np.where(np.arange(6)[:, None] == 1, np.nan_to_num(given), given)
    (found, terms), slope = jax.jit(jax.vmap(jax.value_and_grad(at, has_aux=True)))(dimension, lower)
    assert np.isfinite(terms).all()
    assert float(found[1]) == pytest.approx(float(found[0]), rel=1e-12)
    assert float(slope[1]) == pytest.approx(float(slope[0]), rel=1e-12)
    difference = (8 * (found[2] - found[3]) - (found[4] - found[5])) / (12 * h)
    assert float(slope[0]) == pytest.approx(float(difference), rel=1e-4)


def test_in_a_model(x64):
    """In a plate, its kinds known or those of a minibatch."""
    kind = np.array([4, 0, 0, 1, 5, 0])

    def model(law, known, subsample_size=None):
        with numpyro.plate("gap", 6, subsample_size=subsample_size) as chosen:
            if known:
                return numpyro.sample("t", CensoredExcursion(law, kind), obs=T)
            among = ["complete", "right", "first", "empty"]
            pieces = CensoredExcursion(law, jnp.asarray(kind)[chosen], among=among)
            return numpyro.sample("t", pieces, obs=jnp.asarray(T)[chosen])

    @jax.jit
    def densities(law, chosen):
        minibatch = numpyro.handlers.substitute(model, {"gap": chosen})
        runs = ((model, (law, True)), (model, (law, False)), (minibatch, (law, False, 2)))
        return [log_density(fn, args, {}, {})[0] for fn, args in runs]

    chosen = np.array([4, 2])
    terms = np.asarray(log_prob(CensoredExcursion(zero(), kind), T))
    expected = [terms.sum(), terms.sum(), 3 * terms[chosen].sum()]
    np.testing.assert_allclose(densities(zero(), chosen), expected, rtol=1e-10)


def test_only_what_is_among_is_worked_out(x64):
    law = zero()

    def work(**options):
        return len(
            jax.make_jaxpr(lambda k: CensoredExcursion(law, k, **options).log_prob(T))(np.zeros(6, int)).eqns
        )

    assert work(among=["complete", "right"]) < work()
    fn = jax.jit(lambda law, kind: CensoredExcursion(law, kind, among=["complete", "right"]).log_prob(T))
    found = np.asarray(fn(law, np.array([0, 1, 0, 1, 2, 5])))
    assert np.isfinite(found[:4]).all()
    assert (found[4:] == -np.inf).all()  # what was ruled out is impossible


def test_an_impossible_law_has_no_pieces_either(x64):
    found = np.asarray(log_prob(CensoredExcursion(two(), np.arange(6)[:, None], lower=0.1), 1.0))
    assert np.isfinite(found[:, 0]).all()
    assert (found[:, 1] == -np.inf).all()


ERRORS = {
    "law": (
        lambda: CensoredExcursion(dist.Exponential(1.0), "right"),
        "`law` must be an ExcursionTime, LevelExcursionTime or SignRuns; got Exponential",
    ),
    "name": (
        lambda: CensoredExcursion(zero(), ["right", "censored"]),
        "`kind` must be among complete, right, left, interval, first, empty; got 'censored'",
    ),
    "number": (lambda: CensoredExcursion(zero(), [0, 6]), r"their numbers, 0 to 5; got \[0, 6\]"),
    "negative": (lambda: CensoredExcursion(zero(), [-1, 0]), r"their numbers, 0 to 5; got \[-1, 0\]"),
    "boolean": (lambda: CensoredExcursion(zero(), [True, False]), "`kind` holds names"),
    "float": (lambda: CensoredExcursion(zero(), [0.0, 1.0]), "`kind` holds names"),
    "lower": (
        lambda: CensoredExcursion(zero(), ["interval", "right"]),
        "kind 'interval' needs `lower`, the lower bounds",
    ),
    "lower, traced": (
        lambda: jax.jit(lambda k: CensoredExcursion(zero(), k, among=["interval"]).log_prob(1.0))(3),
        "kind 'interval' needs `lower`, the lower bounds",
    ),
    "among": (
        lambda: jax.jit(lambda k: CensoredExcursion(zero(), k, among=["cut"]).log_prob(1.0))(3),
        "`kind` must be among complete, .*; got 'cut'",
    ),
    "shapes": (
        lambda: CensoredExcursion(zero(), np.zeros(3, int), lower=np.ones(2)),
        "[Ii]ncompatible shapes",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name, x64):
    make, sentence = ERRORS[name]
    with pytest.raises(ValueError, match=sentence):
        make()


def test_outside_the_support_warns(x64):
    law = CensoredExcursion(zero(), "right", validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        law.log_prob(-1.0)
