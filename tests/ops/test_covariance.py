"""Covariance families: derivatives against automatic ones, digits near zero against 50-digit arithmetic, refusals."""

from __future__ import annotations

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from sojourn.ops.covariance import (
    Covariance,
    DampedCosine,
    Diffusion,
    FromFunction,
    Matern32,
    Matern52,
    RandomAcceleration,
    RationalQuadratic,
    SquaredExponential,
    batch_shape,
    check_covariance,
    flatten,
)


class TwoScales(Covariance):
    """A family of one's own: only the correlation is written down."""

    share: Array
    short: Array

    def correlation(self, x):
        return self.share * jnp.exp(-(x**2) / 2) + (1 - self.share) * jnp.exp(-((x / self.short) ** 2) / 2)


# `FromFunction` is one type, and one program, for each function: these are made once.
SECH = FromFunction(lambda x: 1 / jnp.cosh(x), one_minus=lambda x: 2 * jnp.sinh(x / 2) ** 2 / jnp.cosh(x))

FAMILIES = {
    "Diffusion(2)": lambda: Diffusion(2.0),
    "Diffusion(0.7)": lambda: Diffusion(0.7),
    "SquaredExponential": lambda: SquaredExponential(),
    "Matern32": lambda: Matern32(),
    "Matern52": lambda: Matern52(),
    "RandomAcceleration": lambda: RandomAcceleration(),
    "RationalQuadratic(0.4)": lambda: RationalQuadratic(0.4),
    "DampedCosine(1.3)": lambda: DampedCosine(1.3),
    "FromFunction": lambda: SECH,
    "TwoScales": lambda: TwoScales(0.9, 0.3),
}
CURVATURE = {
    "Diffusion(2)": 0.25,
    "Diffusion(0.7)": 0.7 / 8,
    "SquaredExponential": 1.0,
    "Matern32": 3.0,
    "Matern52": 5 / 3,
    "RandomAcceleration": 0.75,
    "RationalQuadratic(0.4)": 1.0,
    "DampedCosine(1.3)": 1 + 1.3**2,
    "FromFunction": 1.0,
    "TwoScales": 0.9 + 0.1 / 0.09,
}
POINTS = np.array([0.01, 0.3, 0.9, 1.9, 2.1, 4.0, 11.0])  # both branches of every family


def derivatives_of_correlation(covariance, x):
    def slope(x):
        return jax.jvp(covariance.correlation, (x,), (jnp.ones_like(x),))[1]

    return (covariance.correlation(x), *jax.jvp(slope, (x,), (jnp.ones_like(x),)))


@jax.jit
def probe(covariance, x):
    """All that is compared, in one program a family."""
    at_zero = derivatives_of_correlation(covariance, jnp.zeros(()))
    return covariance.shape(x), derivatives_of_correlation(covariance, x), at_zero, covariance.curvature()


@pytest.mark.parametrize("name", FAMILIES)
def test_shape_and_curvature(name, x64):
    covariance = FAMILIES[name]()
    (rest, first, second), automatic, at_zero, curvature = probe(covariance, POINTS)
    np.testing.assert_allclose(1 - rest, automatic[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(first, automatic[1], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(second, automatic[2], rtol=1e-11, atol=1e-14)
    # At zero: one, flat, and as curved as the table in the module says.
    np.testing.assert_allclose(at_zero, [1.0, 0.0, -curvature], atol=1e-14)
    assert float(curvature) == pytest.approx(CURVATURE[name], rel=1e-14)


# ------------------------------------------------------------------------------------------------- 1 - r near zero


def exact(name, x):
    """``1 - r`` at the double ``x``, in decimal arithmetic of 50 digits."""
    with localcontext() as context:
        context.prec = 50
        x = Decimal(x)

        def cos(y):
            total = term = Decimal(1)
            for k in range(1, 60):
                term *= -y * y / ((2 * k - 1) * 2 * k)
                total += term
            return total

        def cosh(y):
            return (y.exp() + (-y).exp()) / 2

        root3, root5 = Decimal(3).sqrt(), Decimal(5).sqrt()
        dimension, alpha, frequency = (Decimal(double) for double in (0.7, 0.4, 1.3))
        r = {
            "Diffusion(2)": lambda: 1 / cosh(x / 2),
            "Diffusion(0.7)": lambda: (dimension / 2 * -cosh(x / 2).ln()).exp(),
            "SquaredExponential": lambda: (-x * x / 2).exp(),
            "Matern32": lambda: (1 + root3 * x) * (-root3 * x).exp(),
            "Matern52": lambda: (1 + root5 * x + 5 * x * x / 3) * (-root5 * x).exp(),
            "RandomAcceleration": lambda: (3 * (-x / 2).exp() - (-3 * x / 2).exp()) / 2,
            "RationalQuadratic(0.4)": lambda: (-alpha * (1 + x * x / (2 * alpha)).ln()).exp(),
            "DampedCosine(1.3)": lambda: (-x * x / 2).exp() * cos(frequency * x),
            "FromFunction": lambda: 1 / cosh(x),
        }[name]()
        return float(1 - r)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "TwoScales"])
def test_one_minus_correlation_keeps_its_digits(name, x64):
    """Plainly subtracted, all digits are gone at 1e-8. Measured: within 9.4e-15, by ``log(1 + y) - y`` of Matern
    where its series ends, and 2e-15 elsewhere."""
    x = np.array([1e-8, 1e-5, 1e-3, 0.02, 0.028, 0.03, 0.3, 1.0, 1.99, 2.01, 5.0])
    found = jax.jit(lambda covariance: covariance.one_minus_correlation(x))(FAMILIES[name]())
    np.testing.assert_allclose(found, [exact(name, each) for each in x], rtol=2e-14)


def test_one_minus_correlation_is_differentiable_in_the_hyper_parameters(x64):
    """By central differences of step h = 1e-4: h^2 / 6, times a third derivative of order one."""
    h = 1e-4
    for make in (Diffusion, RationalQuadratic, DampedCosine):
        value = jax.jit(lambda p, make=make: make(p).one_minus_correlation(jnp.array([0.05, 0.5, 3.0])))
        slope = jax.jvp(value, (0.8,), (1.0,))[1]
        np.testing.assert_allclose(slope, (value(0.8 + h) - value(0.8 - h)) / (2 * h), rtol=1e-6)


# ------------------------------------------------------------------------------------------------- in units of time


@pytest.mark.parametrize("name", ["Diffusion(2)", "Matern52", "FromFunction"])
def test_scale(name, x64):
    t, h = np.array([0.5, 1.0, 9.0]), 1e-4
    scale = 7.0 * np.sqrt(CURVATURE[name]) / np.pi

    @jax.jit
    def measured(unit):
        stretched = unit.with_mean_interval(7.0)
        lags = np.stack([t, -t, t - h, t + h, 0 * t])
        spectral = jnp.stack([stretched.mean_interval(), stretched.second_spectral_moment()])
        return stretched, unit(t / scale), stretched(lags), jnp.stack(stretched.derivatives(t)), spectral

    stretched, expected, (r, even, before, after, at_zero), (rest, first, second), spectral = measured(
        FAMILIES[name]()
    )
    assert float(stretched.scale) == pytest.approx(scale, rel=1e-14)
    np.testing.assert_allclose(spectral, [7.0, (np.pi / 7.0) ** 2], rtol=1e-14)
    np.testing.assert_allclose(r, expected, rtol=1e-14)
    np.testing.assert_array_equal(even, r)
    np.testing.assert_array_equal(at_zero, 1.0)
    # d/dt, by central differences.
    np.testing.assert_allclose(1 - rest, r, rtol=1e-13)
    np.testing.assert_allclose(first, (after - before) / (2 * h), atol=1e-8)
    np.testing.assert_allclose(second, (after - 2 * r + before) / h**2, atol=1e-7)


def test_a_batch_of_hyper_parameters(x64):
    many = Diffusion(jnp.array([1.0, 2.0, 3.0]), scale=jnp.array([[1.0], [2.0]]))
    assert batch_shape(many) == (2, 3)
    flat = flatten(many, (2, 3))
    assert (flat.dimension.shape, flat.scale.shape) == ((6,), (6,))
    expected = np.pi * np.array([[1.0], [2.0]]) * np.sqrt(8 / np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(many.mean_interval(), expected, rtol=1e-14)
    np.testing.assert_allclose(flat.mean_interval(), np.ravel(expected), rtol=1e-14)
    at = jax.jit(jax.vmap(lambda c: c(1.5)))(flat)
    np.testing.assert_allclose(at, np.cosh(0.75 / np.array([1, 1, 1, 2, 2, 2])) ** -np.tile([0.5, 1, 1.5], 2))
    stretched = jax.jit(lambda c: c.with_mean_interval(5.0).mean_interval())(many)
    np.testing.assert_allclose(stretched, np.full((2, 3), 5.0), rtol=1e-14)
    check_covariance(many)
    assert batch_shape(SECH) == ()
    assert flatten(SECH, ()).scale.shape == (1,)
    assert batch_shape(FromFunction(SECH.function, scale=jnp.ones(4))) == (4,)


def test_a_family_of_ones_own(x64):
    own = TwoScales(jnp.array([0.5, 0.9]), jnp.array(0.3), scale=2.0)
    assert batch_shape(own) == (2,)
    check_covariance(own)
    lam2 = (np.array([0.5, 0.9]) + np.array([0.5, 0.1]) / 0.09) / 4
    np.testing.assert_allclose(own.second_spectral_moment(), lam2, rtol=1e-13)
    # It is a pytree of its hyper-parameters: differentiable, mapped over.
    slope = jax.grad(lambda share: TwoScales(share, 0.3).curvature())(0.9)
    assert float(slope) == pytest.approx(1 - 1 / 0.09, rel=1e-12)
    with pytest.raises(NotImplementedError, match=r"Covariance must define `correlation\(self, x\)`"):
        Covariance().correlation(1.0)


def test_from_function_without_one_minus(x64):
    """Subtraction is all that can be done: the derivatives are as good, ``1 - r`` is lost at short lags."""
    plain = FromFunction(SECH.function)
    rest, first, second = probe(plain, POINTS)[0]
    for found, expected in zip((rest, first, second), probe(SECH, POINTS)[0], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-14)
    assert float(plain.one_minus_correlation(1e-8)) == 0.0
    assert float(SECH.one_minus_correlation(1e-8)) == pytest.approx(5e-17)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("double", [True, False])
def test_every_family_passes(name, double):
    with jax.enable_x64(double):
        check_covariance(FAMILIES[name]().with_mean_interval(0.02))
        check_covariance(FAMILIES[name]().with_mean_interval(3e5))


ROUGH = r"second spectral moment -r''\(0\) is not finite and positive.*Ornstein-Uhlenbeck.*Smooth the process"
REFUSED = {
    "no covariance": (
        lambda: jnp.exp,
        r"`covariance` must be a Covariance, such as Diffusion\(2.0, scale=3.0\) or FromFunction\(r\); got",
    ),
    "a number": (lambda: 2.0, "must be a Covariance.*; got float"),
    "negative scale": (lambda: Matern52(scale=-1.0), "Matern52: `scale` must be positive; got -1"),
    "one scale of many": (
        lambda: Matern52(scale=jnp.array([1.0, 0.0])),
        "Matern52: `scale` must be positive",
    ),
    "NaN": (lambda: Matern52(scale=jnp.nan), "Matern52: `scale` must be positive; got nan"),
    "dimension": (lambda: Diffusion(0.0), "Diffusion: `dimension` must be positive; got 0"),
    "alpha": (lambda: RationalQuadratic(-2.0), "RationalQuadratic: `alpha` must be positive; got -2"),
    "a variance": (
        lambda: FromFunction(lambda x: 4 * jnp.exp(-(x**2))),
        "FromFunction: the covariance is 4 at lag zero and must be 1 there; divide it by the variance",
    ),
    "not a number at zero": (
        lambda: FromFunction(lambda x: jnp.sin(x) / x),
        "FromFunction: the covariance is nan at lag zero and must be 1",
    ),
    "Ornstein-Uhlenbeck": (lambda: FromFunction(lambda x: jnp.exp(-x)), ROUGH),
    "Ornstein-Uhlenbeck, even": (lambda: FromFunction(lambda x: jnp.exp(-jnp.abs(x))), ROUGH),
    "fractional": (lambda: FromFunction(lambda x: jnp.exp(-(x**1.5))), ROUGH),
    "Ornstein-Uhlenbeck in part": (
        lambda: FromFunction(lambda x: 0.99 * jnp.exp(-(x**2) / 2) + 0.01 * jnp.exp(-jnp.abs(x))),
        ROUGH,
    ),
    "constant": (lambda: FromFunction(jnp.ones_like), ROUGH),
    "cosine": (
        lambda: FromFunction(jnp.cos),
        "does not fall to zero at long lags.*ten thousand mean intervals.*does not forget",
    ),
    "a constant part": (
        lambda: FromFunction(lambda x: 0.8 * jnp.exp(-(x**2)) + 0.2),
        r"does not fall to zero at long lags \(it is 0.2 after",
    ),
}


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, double):
    make, sentence = REFUSED[name]
    with jax.enable_x64(double), pytest.raises(ValueError, match=sentence):
        check_covariance(make())


def test_under_jit_nothing_is_looked_at(x64):
    """Where hyper-parameters are not known, or a function closes over such values."""

    @jax.jit
    def curvature(scale):
        check_covariance(Matern52(scale=scale))
        closed_over = FromFunction(lambda x: jnp.exp(-scale * x**2))
        check_covariance(closed_over)
        return closed_over.curvature()

    assert float(curvature(-3.0)) == pytest.approx(-6.0)
