"""ExcursionTime and LevelExcursionTime under NumPyro's conventions, and what they refuse."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from jax import Array
from numpyro.infer.util import log_density

from sojourn.distributions import ExcursionTime, IIAInvalidError, LevelExcursionTime, Validity
from sojourn.ops.covariance import (
    Covariance,
    DampedCosine,
    Diffusion,
    FromFunction,
    RandomAcceleration,
    RationalQuadratic,
    SquaredExponential,
)

T = np.array([0.05, 0.7, 3.0, 11.0, 47.0, 60.0, 75.0])  # the grid of diffusion ends at 50
SCALES = np.array([1.0, 1.5, 0.5])


class TwoScales(Covariance):
    share: Array
    short: Array

    def correlation(self, x):
        return self.share * jnp.exp(-(x**2) / 2) + (1 - self.share) * jnp.exp(-((x / self.short) ** 2) / 2)


# Each is asked for under double precision alone, and shared from then on.
@functools.cache
def zero():
    return ExcursionTime(Diffusion(2.0))


@functools.cache
def three():
    return ExcursionTime(Diffusion(2.0, scale=SCALES))


@functools.cache
def level(side="above"):
    return LevelExcursionTime(Diffusion(2.0), 1.0, side)


@functools.cache
def exponential():
    """``E = exp(-t)``: intervals are exponential at rate 1/2 (see tests/ops/test_excursion.py)."""
    return ExcursionTime(
        FromFunction(
            lambda x: jnp.cos(jnp.pi / 2 * -jnp.expm1(-x)),
            one_minus=lambda x: 2 * jnp.sin(jnp.pi / 4 * -jnp.expm1(-x)) ** 2,
        )
    )


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


@jax.jit
def look_up(law, value):
    return (
        law.log_prob(value),
        law.survival(value),
        law.log_survival(value),
        law.cdf(value),
        law.hazard(value),
        law.persistence(value),
        law.icdf(law.cdf(value)),
    )


sample = jax.jit(lambda law, key, shape: law.sample(key, shape), static_argnums=2)


# ---------------------------------------------------------------------------------------------- shapes, and NumPyro


def test_shapes(x64):
    law = zero()
    assert (law.batch_shape, law.event_shape, law.support) == ((), (), dist.constraints.positive)
    assert log_prob(law, T).shape == (7,)
    assert sample(law, jax.random.key(0), (4, 2)).shape == (4, 2)
    many = three()
    assert many.batch_shape == many.mean.shape == many.variance.shape == many.is_valid().shape == (3,)
    assert sample(many, jax.random.key(0), (4,)).shape == (4, 3)
    # Time stretched: T = scale x T'.
    found = log_prob(many, T[:, None])
    np.testing.assert_allclose(
        found, log_prob(law, T[:, None] / SCALES) - np.log(SCALES), rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(many.mean, 2 * np.pi * SCALES, rtol=1e-13)


def test_a_batch_of_two_dimensions(x64):
    law = ExcursionTime(Diffusion(np.array([1.0, 2.0, 3.0]), scale=np.array([[1.0], [2.0]])))
    assert law.batch_shape == (2, 3)
    found = log_prob(law, 4.0)
    assert found.shape == (2, 3)
    assert float(found[0, 1]) == pytest.approx(float(log_prob(zero(), np.full(7, 4.0))[0]), abs=1e-9)
    np.testing.assert_allclose(law.mean, np.pi * np.array([[1.0], [2.0]]) * np.sqrt(8 / np.arange(1, 4)))


def test_index_picks_a_law_for_each_entry(x64):
    which = np.array([2, 0, 0, 1, 2, 1, 0])
    law = ExcursionTime(Diffusion(2.0, scale=SCALES), index=which)
    assert law.batch_shape == (7,)
    found = log_prob(law, T)
    expected = np.asarray(log_prob(three(), T[:, None]))[np.arange(7), which]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(law.mean, np.asarray(three().mean)[which])
    np.testing.assert_array_equal(law.is_valid(), True)
    assert law.variance.shape == law.side_probability.shape == (7,)
    draws = sample(law, jax.random.key(1), (4000,))
    error = np.sqrt(np.asarray(law.variance) / 4000)
    assert (abs(np.asarray(draws).mean(0) - law.mean) < 5 * error).all()
    # An index that is not known yet, as of a subsampled plate.
    traced = jax.jit(lambda i: ExcursionTime(Diffusion(2.0, scale=SCALES), index=i).log_prob(T))
    np.testing.assert_allclose(traced(which), expected, rtol=1e-9)


def test_pytree(x64):
    for law in (zero(), three(), level()):
        leaves, tree = jax.tree.flatten(law)
        back = jax.tree.unflatten(tree, leaves)
        assert type(back) is type(law)
        assert (back.num_steps, back.horizon, back.batch_shape) == (512, 8.0, law.batch_shape)
        t = T[:, None] if law.batch_shape else T
        np.testing.assert_array_equal(log_prob(back, t), log_prob(law, t))
        assert jax.tree.structure(back) == tree


def test_expand_mask_and_to_event(x64):
    expanded = zero().expand((7,))
    assert expanded.batch_shape == (7,)
    np.testing.assert_allclose(log_prob(expanded, T), log_prob(zero(), T), rtol=1e-12)
    assert sample(expanded, jax.random.key(0), (2,)).shape == (2, 7)
    joint = three().to_event(1)
    assert (joint.batch_shape, joint.event_shape) == ((), (3,))
    each = log_prob(three(), T[:, None])
    np.testing.assert_allclose(log_prob(joint, T[:, None]), each.sum(-1), rtol=1e-12)
    masked = log_prob(three().mask(np.array([True, False, True])), T[:, None])
    np.testing.assert_allclose(masked, each * np.array([1.0, 0.0, 1.0]), rtol=1e-12)


def test_jit_vmap_and_eager_agree(x64):
    def at(d, t):
        return ExcursionTime(Diffusion(d)).log_prob(t)

    dimensions = np.array([2.0, 3.0, 1.0])
    mapped = jax.jit(jax.vmap(at, (0, None)))(dimensions, T)
    np.testing.assert_allclose(mapped[0], zero().log_prob(T), rtol=1e-7)
    many = ExcursionTime(Diffusion(dimensions, scale=np.ones(3)))
    np.testing.assert_allclose(mapped, log_prob(many, T[:, None]).T, rtol=1e-7)


def test_outside_the_support(x64):
    assert (np.asarray(log_prob(zero(), np.array([0.0, -1.0, -np.inf] + [1.0] * 4)))[:3] == -np.inf).all()
    checked = ExcursionTime(Diffusion(2.0), validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        checked.log_prob(-1.0)


def test_in_a_model(x64):
    """In a plate, under priors, by NumPyro's own density; and simulated, when there are no data."""
    gaps = np.array([2.0, 9.0, 5.0, 70.0])

    def model(gaps):
        mean = numpyro.sample("mean", dist.LogNormal(1.8, 0.5))
        dimension = numpyro.sample("dimension", dist.LogNormal(0.7, 0.5))
        law = ExcursionTime(Diffusion(dimension).with_mean_interval(mean))
        numpyro.deterministic("theta", law.persistency_exponent())
        with numpyro.plate("gap", 4):
            return numpyro.sample("gaps", law, obs=gaps)

    parameters = {"mean": jnp.array(2 * np.pi), "dimension": jnp.array(2.0)}

    @jax.jit
    def density(parameters):
        return jax.value_and_grad(lambda p: log_density(model, (gaps,), {}, p)[0])(parameters)

    found, slope = density(parameters)
    prior = scipy.stats.lognorm.logpdf
    expected = prior(2 * np.pi, 0.5, scale=np.exp(1.8)) + prior(2.0, 0.5, scale=np.exp(0.7))
    expected += np.asarray(zero().log_prob(gaps)).sum()
    assert float(found) == pytest.approx(expected, rel=1e-8)
    for name, h in (("mean", 1e-3), ("dimension", 1e-3)):
        up, down = ({**parameters, name: parameters[name] + s} for s in (h, -h))
        difference = (density(up)[0] - density(down)[0]) / (2 * h)
        assert float(slope[name]) == pytest.approx(float(difference), rel=1e-4)

    simulated = np.asarray(jax.jit(lambda key: numpyro.handlers.seed(model, key)(None))(jax.random.key(0)))
    assert simulated.shape == (4,)
    assert len(np.unique(simulated)) == 4
    assert (simulated > 0).all()


# ----------------------------------------------------------------------------------------------------------- the law


def test_a_law_in_closed_form(x64):
    """Exponential at rate 1/2. Measured: log f, log S 3.6e-7, icdf 9e-7 (rounding, at the end of the grid)."""
    law, t = exponential(), np.concatenate([np.geomspace(1e-3, 1.0, 20), np.linspace(1.5, 60.0, 40)])
    log_density, survival, log_survival, cdf, hazard, persistence, _ = look_up(law, t)
    np.testing.assert_allclose(log_density, np.log(0.5) - t / 2, atol=2e-6, rtol=0)
    np.testing.assert_allclose(log_survival, -t / 2, atol=2e-6, rtol=0)
    np.testing.assert_allclose(survival, np.exp(-t / 2), rtol=2e-6)
    np.testing.assert_allclose(cdf, -np.expm1(-t / 2), atol=1e-8, rtol=0)
    np.testing.assert_allclose(hazard, 0.5, rtol=1e-6)
    np.testing.assert_allclose(persistence, np.exp(-t / 2), rtol=2e-6)
    q = np.concatenate([np.linspace(0.001, 0.999, 56), [1e-5, 0.9999, 0.99999, 0.999999]])
    np.testing.assert_allclose(jax.jit(law.icdf)(q), -2 * np.log1p(-q), rtol=5e-6)
    assert float(law.mean) == pytest.approx(2.0, rel=1e-13)
    assert float(law.variance) == pytest.approx(4.0, rel=1e-6)
    assert float(law.persistency_exponent()) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("make", [zero, functools.partial(level, "below")])
def test_the_answers_belong_together(make, x64):
    """Survival, hazard, persistence, mean and variance are integrals of the density; icdf inverts cdf.

    Simpson's rule errs below 1e-8 here; what is compared is good to 1e-6 (rounding towards the end of the grid).
    """
    law = make()
    t = np.linspace(0.0, 30 * float(law.mean), 30 * 256 + 1)
    t[0] = 1e-12
    log_density, survival, log_survival, cdf, hazard, persistence, back = map(np.asarray, look_up(law, t))
    density = np.exp(log_density)
    step = t[2] - t[1]
    integral = functools.partial(scipy.integrate.cumulative_simpson, dx=step, initial=0)
    np.testing.assert_allclose(integral(density), cdf, atol=3e-6, rtol=0)
    np.testing.assert_allclose(survival, 1 - cdf, atol=1e-15)
    np.testing.assert_allclose(np.exp(log_survival), survival, rtol=1e-10)
    np.testing.assert_allclose(hazard, density / survival, rtol=1e-10)
    left_over = integral(survival[::-1])[::-1] / float(law.mean)
    np.testing.assert_allclose(persistence, left_over, atol=3e-6, rtol=0)
    assert float(persistence[0]) == pytest.approx(1.0, abs=1e-6)
    assert integral(t * density)[-1] == pytest.approx(float(law.mean), rel=1e-5)
    second = integral(t**2 * density)[-1]
    assert float(law.variance) == pytest.approx(second - float(law.mean) ** 2, rel=1e-5)
    # Where the cdf is neither zero nor one to rounding.
    inside = (cdf > 1e-6) & (survival > 1e-6)
    np.testing.assert_allclose(back[inside], t[inside], rtol=1e-5)


@pytest.mark.parametrize("make", [zero, level])
def test_samples_follow_the_cdf(make, x64):
    """Kolmogorov's statistic of a hundred thousand, whose 99.9 % point is 1.95 / sqrt(N); mean within 5 errors."""
    law, n = make(), 100_000
    draws, q = jax.jit(lambda law, key: (x := law.sample(key, (n,)), law.cdf(x)))(law, jax.random.key(5))
    q = np.sort(q)
    ranks = np.arange(1, n + 1) / n
    assert max((ranks - q).max(), (q - ranks + 1 / n).max()) < 1.95 / np.sqrt(n)
    error = np.sqrt(float(law.variance) / n)
    assert abs(float(draws.mean()) - float(law.mean)) < 5 * error


def test_both_sides_of_a_level(x64):
    above, below = level(), level("below")
    share = scipy.special.ndtr(-1.0)
    assert float(above.side_probability) == pytest.approx(share, rel=1e-12)
    assert float(below.side_probability) == pytest.approx(1 - share, rel=1e-12)
    # The share of time above is that of the mean durations.
    assert float(above.mean / (above.mean + below.mean)) == pytest.approx(share, rel=1e-12)
    assert above.opposite.side == "below"
    np.testing.assert_array_equal(log_prob(above.opposite, T), log_prob(below, T))
    assert float(zero().side_probability) == 1.0
    assert zero().opposite is zero()
    # At level zero, and of several sensors.
    mixed = LevelExcursionTime(Diffusion(2.0), np.array([0.0, 1.0]), "above", index=np.array([1, 0, 1]))
    assert mixed.batch_shape == mixed.opposite.batch_shape == (3,)
    np.testing.assert_allclose(mixed.side_probability, [share, 0.5, share])
    found = [log_prob(law, T[:, None])[1] for law in (mixed, mixed.opposite)]
    expected = [[log_prob(law, T)[1] for law in pair] for pair in ((above, zero()), (below, zero()))]
    np.testing.assert_allclose(found, np.array(expected)[:, [0, 1, 0]], atol=1e-9)


# --------------------------------------------------------------------------------------------------------- gradients


def differences(function, x, h):
    """Fourth order: error h^4 / 30 of the fifth derivative, and 1e-7 / h of the noise far out in the tail."""
    near, far = function(x + h) - function(x - h), function(x + 2 * h) - function(x - 2 * h)
    return (8 * near - far) / (12 * h)


def test_gradients_at_level_zero(x64):
    """Of the log-density and the exponent, in the shape and in the mean, to twelve mean intervals.

    The mean moves a time across the grid, and the slope of a cubic jumps a little (1e-5) from one piece to the next:
    the step stays within a piece. Nothing moves with the shape at a given mean.
    """

    def value(dimension, mean):
        law = ExcursionTime(Diffusion(dimension).with_mean_interval(mean))
        both = jnp.append(law.log_prob(T), jnp.log(law.persistency_exponent()))
        return both, both

    jacobian = jax.jit(jax.jacrev(value, (0, 1), has_aux=True))  # one program for values and slopes
    at = (2.0, 2 * np.pi)
    (by_shape, by_mean), _ = jacobian(*at)
    shape = differences(lambda d: jacobian(d, at[1])[1], at[0], 0.03)
    np.testing.assert_allclose(by_shape, shape, rtol=1e-5, atol=1e-5)
    mean = differences(lambda m: jacobian(at[0], m)[1], at[1], 3e-4)
    np.testing.assert_allclose(by_mean, mean, rtol=1e-5, atol=1e-9)


def test_gradients_at_a_level(x64):
    def value(u):
        law = LevelExcursionTime(Diffusion(2.0), u, "above")
        both = jnp.append(law.log_prob(T), law.persistency_exponent())
        return both, both

    jacobian = jax.jit(jax.jacfwd(value, has_aux=True))
    # Below level zero the grid of this side is that of level zero, and stays put.
    expected = differences(lambda u: jacobian(u)[1], -0.5, 0.02)
    np.testing.assert_allclose(jacobian(-0.5)[0], expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- validity

VALIDITY = {
    "squared exponential": (SquaredExponential, "guaranteed"),
    "rational quadratic": (lambda: RationalQuadratic(1.0), "guaranteed"),
    "rational quadratic, long": (lambda: RationalQuadratic(0.3), "guaranteed"),
    "cosine 0.6": (lambda: DampedCosine(0.6), "numerical"),
    "cosine 1": (lambda: DampedCosine(1.0), "numerical"),
    "cosine 1.5": (lambda: DampedCosine(1.5), "invalid"),
    "cosine 2": (lambda: DampedCosine(2.0), "invalid"),
    "cosine 3": (lambda: DampedCosine(3.0), "invalid"),
    "sinc": (lambda: FromFunction(lambda x: jnp.sinc(x / jnp.pi)), "invalid"),
    "two scales, near": (lambda: TwoScales(0.9, 0.3), "guaranteed"),
    "two scales, 1 % jitter": (lambda: TwoScales(0.99, 0.05), "invalid"),
    "two scales, 10 % jitter": (lambda: TwoScales(0.9, 0.05), "invalid"),
}


@pytest.mark.parametrize("name", VALIDITY)
def test_validity(name, x64):
    make, state = VALIDITY[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = ExcursionTime(make(), on_invalid="ignore")  # says nothing
    found = law.validity()
    assert isinstance(found, Validity)
    assert found.state == state
    assert bool(law.is_valid()) == (state != "invalid")
    if state == "invalid":
        assert found.first_negative is not None
        assert found.first_negative > 0
        assert found.min_density < 0
        assert float(law.log_prob(1.0)) == -np.inf
        with pytest.raises(IIAInvalidError, match="their density would be negative from t = "):
            ExcursionTime(make())
    else:
        assert found.first_negative is None
        assert np.isfinite(law.log_prob(1.0))


def test_what_each_choice_does_on_an_invalid_law(x64):
    cosine = DampedCosine(2.0, scale=3.0)
    with pytest.raises(IIAInvalidError) as caught:
        ExcursionTime(cosine)
    sentence = str(caught.value)
    assert sentence.startswith(
        "ExcursionTime: no independent intervals have the crossings of this DampedCosine"
    )
    assert "smooth the path first, or take another family" in sentence
    # The time that it names: spec-table value 4.917 for scale one, on a finer grid of step 0.011.
    named = float(sentence.split("t = ")[1].split()[0])
    assert named == pytest.approx(3 * 4.917, abs=3 * 0.03)
    with pytest.warns(UserWarning, match="their density would be negative from t = "):
        law = ExcursionTime(cosine, on_invalid="warn")
    assert float(law.log_prob(1.0)) == -np.inf
    with pytest.warns(
        UserWarning, match="is not guaranteed.*nowhere negative. on_invalid='ignore' says nothing"
    ):
        ExcursionTime(DampedCosine(1.0))


def test_a_batch_is_as_valid_as_its_worst(x64):
    law = ExcursionTime(DampedCosine(np.array([0.6, 2.0, 1.0])), on_invalid="ignore")
    np.testing.assert_array_equal(law.is_valid(), [True, False, True])
    assert law.validity().state == "invalid"
    assert law.validity().first_negative == pytest.approx(4.917, abs=0.02)
    np.testing.assert_array_equal(np.isfinite(law.log_prob(1.0)), [True, False, True])


def test_inside_jit_an_invalid_law_has_no_density(x64):
    at = jax.jit(jax.value_and_grad(lambda w: ExcursionTime(DampedCosine(w)).log_prob(0.5)))
    assert np.isfinite(at(1.0)).all()
    value, slope = at(2.0)
    assert float(value) == -np.inf
    assert not np.isnan(slope)


@pytest.mark.parametrize(
    ("covariance", "levels", "side"),
    [
        (Diffusion, [1.0, 2.0, 3.0, 4.0], "above"),
        (Diffusion, [1.0, 2.0, 3.0, 4.0], "below"),
        (RandomAcceleration, [0.5, 1.0, 2.0, 3.0], "below"),
    ],
)
def test_a_law_that_is_accepted_is_one(covariance, levels, side, x64):
    """Its survival stays positive and falls, also beyond the grid; and its density has the mean that it states."""
    law = LevelExcursionTime(covariance(), np.array(levels), side, on_invalid="ignore")
    t = np.array([0.0, 0.5, 1.0, 4.0, 7.0, 9.0, 12.0, 40.0])[:, None] * np.asarray(law.mean)
    both = jax.jit(lambda law: (law.log_survival(t), law.persistence(t)))(law)
    log_survival, persistence = (np.asarray(x) for x in both)
    falls = (np.diff(log_survival, axis=0) < 0).all(0) & (log_survival > -500).all(0)
    remembers = (np.diff(persistence, axis=0) < 0).all(0) & (abs(persistence[0] - 1) < 5e-3)
    assert (falls & remembers | ~np.asarray(law.is_valid())).all()


# -------------------------------------------------------------------------------------------------------- the exponent


def test_no_exponent_under_a_power_law(x64):
    law = ExcursionTime(RationalQuadratic(1.0))
    with pytest.warns(
        UserWarning, match=r"no persistency exponent \(NaN\): the covariance falls like a power"
    ):
        assert np.isnan(law.persistency_exponent())
    assert np.isnan(law.tail_rate())
    assert np.isfinite(law.log_prob(3.0))


# ------------------------------------------------------------------------------------------------------------ refusals

REFUSED = {
    "an Ornstein-Uhlenbeck process": (
        lambda: ExcursionTime(FromFunction(lambda x: jnp.exp(-x))),
        "second spectral moment .* is not finite and positive",
    ),
    "no covariance": (
        lambda: ExcursionTime(2.0),
        "`covariance` must be a Covariance, such as .*; got float",
    ),
    "no covariance at a level": (lambda: LevelExcursionTime(jnp.exp, 1.0), "must be a Covariance"),
    "negative scale": (
        lambda: ExcursionTime(Diffusion(2.0, scale=-1.0)),
        "Diffusion: `scale` must be positive",
    ),
    "on_invalid": (
        lambda: ExcursionTime(Diffusion(2.0), on_invalid="stop"),
        "ExcursionTime: `on_invalid` must be 'raise', 'warn' or 'ignore'; got 'stop'",
    ),
    "num_steps": (
        lambda: ExcursionTime(Diffusion(2.0), num_steps=130),
        "`num_steps` must be a multiple of 4, at least 64; got 130",
    ),
    "few steps": (lambda: ExcursionTime(Diffusion(2.0), num_steps=32), "at least 64; got 32"),
    "horizon": (
        lambda: ExcursionTime(Diffusion(2.0), horizon=40),
        "`horizon` must lie between 4 and 16 mean intervals.*the tail is exponential anyway\\); got 40",
    ),
    "index without a batch": (
        lambda: ExcursionTime(Diffusion(2.0), index=[0, 0]),
        r"`index` picks from several covariances, so their hyper-parameters need shape \(J,\); got \(\)",
    ),
    "index too large": (
        lambda: ExcursionTime(Diffusion(2.0, scale=SCALES), index=[0, 3]),
        "`index` must hold integers from 0 to 2; got 0 to 3",
    ),
    "index of floats": (
        lambda: ExcursionTime(Diffusion(2.0, scale=SCALES), index=[0.0, 1.0]),
        "`index` must hold integers from 0 to 2",
    ),
    "negative index": (
        lambda: ExcursionTime(Diffusion(2.0, scale=SCALES), index=[-1, 0]),
        "`index` must hold integers from 0 to 2; got -1 to 0",
    ),
    "side": (
        lambda: LevelExcursionTime(Diffusion(2.0), 1.0, "over"),
        "LevelExcursionTime: `side` must be 'above' or 'below'; got 'over'",
    ),
    "level in units of the data": (
        lambda: LevelExcursionTime(Diffusion(2.0), 25.0),
        r"`level` is in standard deviations of the process, from its mean, and must lie within 4 of zero; got 25.0. "
        r"For a level u in the units of the data give \(u - mean\) / sd",
    ),
    "NaN for a level": (lambda: LevelExcursionTime(Diffusion(2.0), np.nan), "within 4 of zero; got nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, x64):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        make()


def test_single_precision_warns():
    with pytest.warns(
        UserWarning, match="ExcursionTime in single precision is wrong.*call numpyro.enable_x64\\(\\)"
    ):
        law = ExcursionTime(Diffusion(2.0))
    # From 0.1 to 4 mean intervals it is good to 2e-5; at the end of the grid (8) rounding shows.
    t = np.array([0.7, 3.0, 11.0, 24.0], np.float32)
    single = np.asarray(law.log_prob(t))
    assert single.dtype == np.float32
    with jax.enable_x64(True):
        double = zero().log_prob(t)
    np.testing.assert_allclose(single, double, atol=1e-4, rtol=0)
