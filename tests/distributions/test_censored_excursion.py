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
from sojourn.ops.covariance import Diffusion

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


LAWS = {
    "level zero": zero,
    "above": functools.partial(level, "above"),
    "below": functools.partial(level, "below"),
    "runs": runs,
    "runs below": functools.partial(runs, "below"),
}


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


@jax.jit
def formulas(law, value, lower):
    """The table of the class in terms of what is tested elsewhere."""
    reach, share = jnp.exp(law.log_reach(value)), law.side_probability
    return {
        "complete": jnp.exp(law.log_prob(value)),
        "right": reach,
        "left": law.cdf(value),
        "interval": law.cdf(value) - law.cdf(lower),
        "first": share * reach / law.mean,
        "empty": share * law.persistence(value),
    }


sample = jax.jit(lambda law, key, shape: law.sample(key, shape), static_argnums=2)


def values_of(name):
    """Times, or whole numbers of readings; and lower bounds."""
    return (np.array([1.0, 2, 5, 11, 36, 47]), np.array([0.0, 1, 2, 9, 30, 40])) if "runs" in name else (T, LOWER)


# ------------------------------------------------------------------------------------------------------ each kind


@pytest.mark.parametrize("name", LAWS)
def test_kinds(name, x64):
    """Alone, by name or by number; all at once; and not known before compilation."""
    law, (value, lower) = LAWS[name](), values_of(name)
    expected = formulas(law, value, lower)
    together = CensoredExcursion(law, np.repeat(np.arange(6), 6), lower=np.tile(lower, 6))
    assert (together.batch_shape, together.event_shape, together.support) == ((36,), (), law.support)
    found = np.asarray(log_prob(together, np.tile(value, 6))).reshape(6, 6)
    for number, kind in enumerate(KINDS):
        # A difference of two cdfs near one is good to 1e-16 of one.
        np.testing.assert_allclose(np.exp(found[number]), expected[kind], rtol=1e-11, atol=1e-15, err_msg=kind)
        alone = CensoredExcursion(law, kind if number % 2 else number, lower=lower)
        assert alone.batch_shape == (6,)
        np.testing.assert_allclose(alone.log_prob(value), found[number], rtol=1e-12, atol=1e-12)
    mix = np.array([5, 4, 3, 2, 1, 0])
    by_name = CensoredExcursion(law, [KINDS[k] for k in mix], lower=lower)
    np.testing.assert_allclose(by_name.log_prob(value), found[mix, np.arange(6)], rtol=1e-12, atol=1e-12)
    traced = jax.jit(lambda law, kind: CensoredExcursion(law, kind, lower=lower).log_prob(value))
    np.testing.assert_allclose(traced(law, mix), found[mix, np.arange(6)], rtol=1e-12, atol=1e-12)


def test_each_is_the_mass_that_it_says(x64):
    """Integrals of the density, by Simpson's rule (below 1e-8) on what is itself good to 1e-6."""
    law = zero()
    t = np.linspace(0.0, 30 * float(law.mean), 30 * 256 + 1)
    t[0] = 1e-12
    found = {k: np.exp(log_prob(CensoredExcursion(law, k, lower=3.0), t)) for k in KINDS}
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


@pytest.mark.parametrize("kind", ["time", "runs"])
def test_a_stationary_record_is_on_one_of_two_sides(kind, x64):
    """Over both sides the first pieces have mass one, and windows without a crossing what is left of it."""
    total = 0.0
    if kind == "time":
        t = np.linspace(0.0, 30 * float(level("below").mean), 30 * 512 + 1)
        t[0] = 1e-12
        for side in ("above", "below"):
            first = np.exp(log_prob(CensoredExcursion(level(side), "first"), t))
            share = float(level(side).side_probability)
            mass = scipy.integrate.cumulative_simpson(first, dx=t[2] - t[1], initial=0)
            assert mass[-1] == pytest.approx(share, abs=5e-6)
            empty = np.exp(log_prob(CensoredExcursion(level(side), "empty"), t))
            np.testing.assert_allclose(empty, share - mass, atol=5e-6, rtol=0)
            total += mass[-1]
        assert total == pytest.approx(1.0, abs=5e-6)
        return
    k = np.arange(1.0, 1001.0)
    for side in ("above", "below"):
        first = np.exp(log_prob(CensoredExcursion(runs(side), "first"), k))
        empty = np.exp(log_prob(CensoredExcursion(runs(side), "empty"), k))
        # A window of k readings on one side: the first piece is k readings long, or longer.
        np.testing.assert_allclose(empty, first[::-1].cumsum()[::-1], rtol=1e-6, atol=1e-14)
        total += first.sum()
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_window_of_one_crossing_or_more(x64):
    """A window has no crossing, one, or more: by quadrature over where the first one falls.

    ``P(one) = int first(t) S(W - t) dt`` and ``P(more) = int first(t) F(W - t) dt``; and from the next crossing on,
    ``P(two) = int int first(t) f(s) S(W - t - s)``, is what the two-crossing windows of 40,000 draws show.
    """
    law, window, n = zero(), 9.0, 40_000
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = window * (nodes + 1) / 2
    weights = weights * window / 2
    first = np.exp(log_prob(CensoredExcursion(law, "first"), t))
    last = np.exp(log_prob(CensoredExcursion(law, "right"), window - t))
    one = (weights * first * last).sum()
    empty = float(np.exp(CensoredExcursion(law, "empty").log_prob(window)))
    ends = sample(CensoredExcursion(law, ["first", "complete", "complete"]), jax.random.key(3), (n,)).cumsum(1)
    crossings = (np.asarray(ends) < window).sum(1)
    for number, probability in ((0, empty), (1, one)):
        error = np.sqrt(probability * (1 - probability) / n)
        assert abs((crossings == number).mean() - probability) < 5 * error


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
    for column, kind in enumerate(("complete", "first", "first")):
        expected = n * np.exp(CensoredExcursion(runs(), kind).log_prob(k))
        expected = np.append(expected, n - expected.sum())
        counts = np.append([(draws[:, column] == length).sum() for length in k], (draws[:, column] > 12).sum())
        assert ((counts - expected) ** 2 / expected).sum() < scipy.stats.chi2.ppf(0.999, 12)


# ---------------------------------------------------------------------------------------------- NumPyro, and errors


def test_shapes(x64):
    several = ExcursionTime(Diffusion(2.0, scale=np.array([1.0, 1.5, 0.5])))
    law = CensoredExcursion(several, np.array([[0], [1]]), lower=np.ones((4, 1, 1)))
    assert law.batch_shape == (4, 2, 3)
    assert law.log_prob(3.0).shape == (4, 2, 3)
    assert law.sample(jax.random.key(0), (5,)).shape == (5, 4, 2, 3)
    assert CensoredExcursion(zero(), "right").batch_shape == ()
    assert CensoredExcursion(zero(), "right").log_prob(T).shape == (6,)
    expanded = CensoredExcursion(zero(), "right").expand((6,))
    np.testing.assert_allclose(expanded.log_prob(T), zero().log_reach(T))
    joint = CensoredExcursion(zero(), ["right", "first"]).to_event(1)
    assert joint.event_shape == (2,)


def test_pytree_jit_vmap_and_gradients(x64):
    law = CensoredExcursion(zero(), ["complete", "right", "left", "interval", "first", "empty"], lower=LOWER)
    leaves, tree = jax.tree.flatten(law)
    back = jax.tree.unflatten(tree, leaves)
    assert jax.tree.structure(back) == tree
    np.testing.assert_array_equal(back.log_prob(T), law.log_prob(T))
    np.testing.assert_allclose(log_prob(law, T), law.log_prob(T), rtol=1e-12)

    value = T[:5]  # within the grid, where nothing moves with the shape alone

    @jax.jit
    def at(dimension, kind):
        law = ExcursionTime(Diffusion(dimension).with_mean_interval(6.0))
        return CensoredExcursion(law, kind, lower=0.1).log_prob(value)

    kinds = np.array([[k] * 5 for k in range(6)])
    every = jax.jit(jax.vmap(at, (None, 0)))
    slope = jax.jit(jax.jacrev(every))(2.0, kinds)
    assert np.isfinite(slope).all()
    h = 0.03  # of fourth order: h^4 / 30 of the fifth derivative
    near, far = (every(2.0 + s, kinds) - every(2.0 - s, kinds) for s in (h, 2 * h))
    np.testing.assert_allclose(slope, (8 * near - far) / (12 * h), rtol=1e-4, atol=1e-6)


def test_bounds_of_other_kinds_do_not_matter(x64):
    """A column of lower bounds is NaN where there are none; neither value nor gradient see it."""
    kind = np.array([0, 3, 1, 3])

    @jax.jit
    def at(dimension, lower):
        return CensoredExcursion(ExcursionTime(Diffusion(dimension)), kind, lower=lower).log_prob(T[:4]).sum()

    given = np.array([np.nan, 2.0, np.nan, 12.0])
    for found, expected in zip(
        jax.value_and_grad(at)(2.0, given), jax.value_and_grad(at)(2.0, np.nan_to_num(given)), strict=True
    ):
        assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_in_a_model(x64):
    """In a plate, its kinds known or those of a minibatch."""
    kind = np.array([4, 0, 0, 1, 5, 0])

    def model(known, subsample_size=None):
        dimension = numpyro.sample("dimension", dist.LogNormal(0.7, 0.5))
        law = ExcursionTime(Diffusion(dimension))
        with numpyro.plate("gap", 6, subsample_size=subsample_size) as chosen:
            at = np.arange(6) if known else chosen
            kinds = kind if known else jnp.asarray(kind)[chosen]
            among = None if known else ["complete", "right", "first", "empty"]
            numpyro.sample("t", CensoredExcursion(law, kinds, among=among), obs=jnp.asarray(T)[at])

    prior = scipy.stats.lognorm.logpdf(2.0, 0.5, scale=np.exp(0.7))
    expected = float(log_prob(CensoredExcursion(zero(), kind), T).sum()) + prior
    density = jax.jit(lambda known, d: log_density(model, (known,), {}, {"dimension": d})[0], static_argnums=0)
    for known in (True, False):
        assert float(density(known, 2.0)) == pytest.approx(expected, rel=1e-10)

    @jax.jit
    def part(chosen):
        substituted = numpyro.handlers.substitute(model, {"gap": chosen})
        return log_density(substituted, (False, 2), {}, {"dimension": 2.0})[0]

    chosen = np.array([4, 2])
    term = np.asarray(log_prob(CensoredExcursion(zero(), kind), T))[chosen].sum()
    assert float(part(chosen)) == pytest.approx(3 * term + prior, rel=1e-10)


def test_only_what_is_among_is_worked_out(x64):
    law = zero()

    def count(**options):
        fn = lambda kind: CensoredExcursion(law, kind, **options).log_prob(T)  # noqa: E731
        return len(jax.make_jaxpr(fn)(np.zeros(6, int)).eqns)

    assert count(among=["complete", "right"]) < count()
    fn = jax.jit(lambda kind: CensoredExcursion(law, kind, among=["complete", "right"]).log_prob(T))
    found = np.asarray(fn(np.array([0, 1, 0, 1, 2, 5])))
    np.testing.assert_allclose(found[:2], [law.log_prob(T[0]), law.log_reach(T[1])], rtol=1e-12)
    assert (found[4:] == -np.inf).all()  # what was ruled out is impossible


def test_an_impossible_law_has_no_pieces_either(x64):
    from sojourn.ops.covariance import DampedCosine

    law = ExcursionTime(DampedCosine(np.array([0.6, 2.0])), on_invalid="ignore")
    pieces = CensoredExcursion(law, np.arange(6)[:, None], lower=0.1)
    found = np.asarray(pieces.log_prob(1.0))
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
    "shapes": (lambda: CensoredExcursion(zero(), np.zeros(3, int), lower=np.ones(2)), "[Ii]ncompatible shapes"),
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
