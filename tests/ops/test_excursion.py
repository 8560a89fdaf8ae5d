"""The clipped Slepian process and the law of independent intervals that is matched to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special

from sojourn.ops import excursion, renewal
from sojourn.ops.covariance import (
    Diffusion,
    FromFunction,
    Matern32,
    RandomAcceleration,
    RationalQuadratic,
    SquaredExponential,
)

mean_sign = jax.jit(excursion.mean_sign)
clipped_slepian = jax.jit(excursion.clipped_slepian)
solve = jax.jit(excursion.solve, static_argnums=(1, 2))
solve_level = jax.jit(excursion.solve_level, static_argnums=(2, 3, 4))
exponent = jax.jit(excursion.exponent)
level_exponent = jax.jit(excursion.exponent, static_argnums=2)
level_means = jax.jit(excursion.level_means)

# `arccos r` has the slope sqrt(lam2) E and rises by pi / 2, so any mean sign has its covariance:
# here E = exp(-t) and E = (1 + t) exp(-t).
EXPONENTIAL = FromFunction(
    lambda x: jnp.cos(jnp.pi / 2 * -jnp.expm1(-x)),
    one_minus=lambda x: 2 * jnp.sin(jnp.pi / 4 * -jnp.expm1(-x)) ** 2,
)
GAMMA = FromFunction(lambda x: jnp.cos(jnp.pi / 4 * (2 - (2 + x) * jnp.exp(-x))))


def diffusion(t, d=2.0):
    """``1 - r``, ``r'`` and ``lam2``."""
    log_r = -d / 2 * np.log1p(2 * np.sinh(t / 4) ** 2)
    return -np.expm1(log_r), -d / 4 * np.tanh(t / 2) * np.exp(log_r), d / 8


def squared_exponential(t):
    return -np.expm1(-(t**2) / 2), -t * np.exp(-(t**2) / 2), 1.0


def random_acceleration(t):
    x = -np.expm1(-t / 2)
    return x**2 * (3 - x) / 2, -0.75 * np.exp(-t / 2) * -np.expm1(-t), 0.75


BY_HAND = {
    "Diffusion": (Diffusion, diffusion),
    "SquaredExponential": (SquaredExponential, squared_exponential),
    "RandomAcceleration": (RandomAcceleration, random_acceleration),
}


# -------------------------------------------------------------------------------------------------- the mean sign


def test_diffusion_in_two_dimensions_has_a_closed_mean_sign(x64):
    t = np.concatenate([np.geomspace(1e-3, 40.0, 200), np.linspace(0.5, 40.0, 200)])
    sign, decrease = mean_sign(Diffusion(2.0), t)
    np.testing.assert_allclose(sign, 1 / np.cosh(t / 2), atol=1e-12, rtol=0)
    # f_Y is a difference that loses eps / t^2.
    np.testing.assert_allclose(decrease, np.tanh(t / 2) / np.cosh(t / 2) / 2, atol=1e-9, rtol=0)


def test_a_covariance_made_for_its_mean_sign(x64):
    t = np.linspace(0.01, 20.0, 400)
    sign, decrease = mean_sign(EXPONENTIAL, t)
    np.testing.assert_allclose(sign, np.exp(-t), atol=1e-10, rtol=0)
    np.testing.assert_allclose(decrease, np.exp(-t), atol=1e-9, rtol=0)


def test_mean_sign_next_to_zero(x64):
    """Along a line, where the difference would have lost its digits: ``E = 1 - t^2 / 8``."""
    t = np.array([0.0, 1e-9, 1e-6, 1e-4, 1e-3, 1.3e-3])
    sign, decrease = mean_sign(Diffusion(2.0), np.concatenate([t, np.zeros(394)]))
    np.testing.assert_allclose(1 - sign[:6], t**2 / 8, atol=1e-12, rtol=0)
    np.testing.assert_allclose(decrease[:6], t / 4, atol=2e-9, rtol=0)
    assert float(sign[0]) == 1.0


# ------------------------------------------------------------------------------------- above a level after a crossing

TIMES = np.array([0.3, 1.0, 2.5, 6.0])


@pytest.mark.parametrize("family", BY_HAND)
def test_clipped_slepian_against_quadrature(family, x64):
    """``X = u r + a R + Delta``, with ``R`` Rayleigh and ``a`` positive after an up-crossing."""
    make, by_hand = BY_HAND[family]
    rest, slope, lam2 = by_hand(TIMES)
    a = -slope / np.sqrt(lam2)
    spread = np.sqrt(rest * (2 - rest) - a**2)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    rayleigh, weights = 6 * (nodes + 1), 6 * weights
    for level in (-1.0, 0.0, 0.5, 2.0):
        up, down, _, _ = clipped_slepian(make(), level, TIMES)
        for found, direction in ((up, 1), (down, -1)):
            # u - u r = u (1 - r): the level is not left by subtraction.
            z = (direction * a * rayleigh[:, None] - level * rest) / spread
            density = weights * rayleigh * np.exp(-(rayleigh**2) / 2)
            np.testing.assert_allclose(found, density @ scipy.special.ndtr(z), atol=1e-11, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_clipped_slepian_against_draws(level, x64):
    """Two hundred thousand draws of the Slepian process; five standard errors."""
    rng, draws = np.random.default_rng(int(level)), 200_000
    rest, slope, lam2 = diffusion(TIMES)
    a = -slope / np.sqrt(lam2)
    delta = np.sqrt(rest * (2 - rest) - a**2) * rng.normal(size=(draws, 4))
    start = a * rng.rayleigh(size=(draws, 1))
    up, down, _, _ = clipped_slepian(Diffusion(2.0), level, TIMES)
    for found, direction in ((np.asarray(up), 1), (np.asarray(down), -1)):
        share = (level * (1 - rest) + direction * start + delta > level).mean(0)
        assert (abs(share - found) < 5 * np.sqrt(found * (1 - found) / draws)).all()


@pytest.mark.parametrize("family", BY_HAND)
def test_slopes_are_those_of_the_probabilities(family, x64):
    covariance = BY_HAND[family][0]()

    @jax.jit
    def both(level, t):
        def probabilities(t):
            return jnp.stack(excursion.clipped_slepian(covariance, level, t)[:2])

        return jax.jvp(probabilities, (t,), (jnp.ones_like(t),))[1], excursion.clipped_slepian(
            covariance, level, t
        )

    for level in (-1.0, 0.0, 0.5, 2.0):
        automatic, (_, _, falling, rising) = both(level, TIMES)
        np.testing.assert_allclose(falling, -automatic[0], atol=1e-12, rtol=1e-10)
        np.testing.assert_allclose(rising, automatic[1], atol=1e-12, rtol=1e-10)


def test_how_high_a_level_may_be(x64):
    """With ``E ~ exp(-kappa t)``, ``P_-`` rises to the end only below ``sqrt(pi / 2) kappa / sqrt(lam2)``: 1.2533."""
    for level, sign in ((1.2, 1), (1.25, 1), (1.26, -1), (1.5, -1)):
        rising = clipped_slepian(Diffusion(2.0), level, np.full(4, 30.0))[3]
        assert (sign * np.asarray(rising) > 0).all()


# --------------------------------------------------------------------------------------------------------- the laws


def left_over(law):
    return float(law.integral[-1] + law.survival[-1] ** 2 / law.density[-1])


@pytest.mark.parametrize("family", BY_HAND)
def test_mean_is_rices(family, x64):
    make, by_hand = BY_HAND[family]
    law = solve(make(), 512, 8.0)
    rice = np.pi / np.sqrt(by_hand(TIMES)[2])
    assert float(law.mean) == pytest.approx(rice, rel=1e-14)
    # Measured: 2e-11, 4e-12, 1e-8.
    assert left_over(law) == pytest.approx(rice, rel=1e-7)


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("level", [-1.0, 0.5, 1.0])
def test_mean_at_a_level_is_rices(level, above, x64):
    """``p / nu``, with ``nu = sqrt(lam2) exp(-u^2 / 2) / 2 pi`` crossings upwards in a unit of time."""
    law = solve_level(Diffusion(2.0), level, above, 512, 8.0)
    share = scipy.special.ndtr(-level if above else level)
    rice = share / (0.5 * np.exp(-(level**2) / 2) / (2 * np.pi))
    assert float(law.mean) == pytest.approx(rice, rel=1e-14)
    assert left_over(law) == pytest.approx(rice, rel=1e-7)  # measured 1.2e-8
    # Density and survival were solved apart.
    steps = float(law.step)
    lost = scipy.integrate.cumulative_simpson(np.asarray(law.density), dx=steps, initial=0)
    np.testing.assert_allclose(1 - lost, law.survival, atol=1e-5, rtol=0)


def test_at_level_zero_both_sides_are_the_same_law(x64):
    law = solve(Diffusion(2.0), 512, 8.0)
    for above in (True, False):
        same = solve_level(Diffusion(2.0), 0.0, above, 512, 8.0)
        for field in ("step", "density", "survival", "integral", "mean"):
            np.testing.assert_allclose(getattr(same, field), getattr(law, field), atol=1e-11, rtol=1e-12)


def test_below_is_above_upside_down(x64):
    above = solve_level(Diffusion(2.0), 0.7, True, 512, 8.0)
    below = solve_level(Diffusion(2.0), -0.7, False, 512, 8.0)
    for found, expected in zip(below, above, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-9, rtol=1e-12)


def at(law, t):
    return renewal.cubic(law.density[None], 0, jnp.asarray(t) / law.step)


@pytest.mark.parametrize(("make", "slope"), [(lambda: Diffusion(2.0), 1 / 8), (SquaredExponential, 1 / 4)])
def test_slope_at_zero_is_the_exact_one(make, slope, x64):
    """``(lam4 / lam2 - lam2) / 8``, with ``lam4`` = 5/16 and 3. At t = 0.01 measured: 0.125007 and 0.249998."""
    found = float(at(solve(make(), 512, 8.0), 0.01)) / 0.01
    assert found == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize(("make", "start"), [(RandomAcceleration, 1 / 3), (Matern32, 1 / np.sqrt(3))])
def test_start_where_the_velocity_is_rough(make, start, x64):
    """``r = 1 - lam2 t^2 / 2 + c t^3``: ``f(0) = c / lam2``, with c = 1/4 and sqrt(3)."""
    assert float(solve(make(), 512, 8.0).density[0]) == pytest.approx(start, rel=1e-5)


# ------------------------------------------------------------------------------------------------------- exponents


def test_exponents_in_closed_form(x64):
    """Of exp(-t / 2) / 2 and of exp(-t) sinh(t / sqrt 2) / sqrt 2."""
    assert float(exponent(EXPONENTIAL)) == pytest.approx(0.5, rel=1e-6)
    assert float(exponent(GAMMA)) == pytest.approx(1 - np.sqrt(0.5), rel=1e-6)


def test_gradient_of_the_exponent(x64):
    value_and_grad = jax.jit(jax.value_and_grad(lambda d: excursion.exponent(Diffusion(d))))
    h = 1e-3  # h^2 / 6 of the third derivative, which is of order 0.01
    difference = (value_and_grad(2 + h)[0] - value_and_grad(2 - h)[0]) / (2 * h)
    assert float(value_and_grad(2.0)[1]) == pytest.approx(float(difference), rel=1e-6)
    assert float(difference) == pytest.approx(0.05565, abs=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_exponent_above_is_the_hazard_at_the_end_of_the_grid(level, x64):
    """Which is that of all longer times within 2e-6, at eight mean intervals, for diffusion."""
    law = solve_level(Diffusion(2.0), level, True, 2048, 8.0)
    found = float(level_exponent(Diffusion(2.0), level, True))
    assert found == pytest.approx(float(law.density[-1] / law.survival[-1]), rel=1e-5)


@pytest.mark.parametrize("family", BY_HAND)
def test_exponent_below(family, x64):
    r"""The root of :math:`\theta \int e^{\theta t} (P_+ - p)\,dt = p`, integrated by parts, so that no derivative
    enters. High levels are the hard ones: ``theta`` is small, and hangs on the mass of ``-P_+'``, which is almost one."""
    make, by_hand = BY_HAND[family]
    # In v = sqrt(t), on which P_+ is smooth at zero. Beyond t = 64, P_+ is p to rounding.
    nodes, weights = np.polynomial.legendre.leggauss(300)
    v, weights = 4 * (nodes + 1), 4 * weights
    t = v**2
    rest, slope, lam2 = by_hand(t)
    e = -slope / np.sqrt(lam2 * rest * (2 - rest))

    def excess(theta, level):
        c, w = np.sqrt(np.maximum((1 - e) * (1 + e), 1e-20)), level * np.sqrt(rest / (2 - rest))
        up = scipy.special.ndtr(-w / c) + e * np.exp(-(w**2) / 2) * scipy.special.ndtr(w * e / c)
        share = scipy.special.ndtr(-level)
        return theta * (weights * 2 * v * np.exp(theta * t) * (up - share)).sum() - share

    for level in (0.5, 1.0, 2.0, 3.0):
        expected = scipy.optimize.brentq(excess, 1e-5, 0.3, args=(level,), xtol=1e-14)
        assert float(level_exponent(make(), level, False)) == pytest.approx(expected, rel=1e-4)


def test_no_exponent(x64):
    assert np.isnan(exponent(RationalQuadratic(1.0)))
    # The tail of P_-' is negative here, and its transform reaches one nowhere.
    assert np.isnan(level_exponent(Diffusion(2.0), 2.0, True))
