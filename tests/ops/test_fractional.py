"""Fractional noise: covariances against other formulas, the recursion against the covariance it stands for, errors."""

from __future__ import annotations

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sojourn.ops import fractional
from sojourn.ops.fractional import covariance, hybrid_covariance, hybrid_scheme, past_loadings

covariance_of = jax.jit(covariance, static_argnums=2)
"""At ten times everywhere, so that it compiles once a kind and precision."""

scheme_of = jax.jit(hybrid_scheme, static_argnums=2, static_argnames=("num_terms", "kind"))
past_loadings_of = jax.jit(past_loadings, static_argnums=2)
scheme_covariance_of = jax.jit(hybrid_covariance, static_argnums=1)

TIMES = np.array([1e-5, 0.01, 0.3, 0.5, 0.5 * (1 + 1e-9), 0.5001, 0.7, 1.0, 1.001, 50.0])


def type_two_by_hypergeometric(s, t, hurst):
    """2H s^alpha t^(alpha - 1) / alpha 2F1(1 - alpha, 1; alpha + 1; s / t), for s < t.

    Where s / t is close to one, by the formula that continues 2F1 to 1 - s / t (Abramowitz and Stegun
    15.3.6).
    """
    s, t = np.minimum(s, t), np.maximum(s, t)
    alpha, gap = hurst + 0.5, (t - s) / t
    gamma, hyp2f1 = special.gamma, special.hyp2f1
    near = gamma(alpha + 1) * gamma(2 * hurst) / (gamma(2 * alpha) * gamma(alpha)) * hyp2f1(
        1 - alpha, 1, 1 - 2 * hurst, gap
    ) + gap ** (2 * hurst) * gamma(alpha + 1) * gamma(-2 * hurst) / gamma(1 - alpha) * hyp2f1(
        2 * alpha, alpha, 1 + 2 * hurst, gap
    )
    series = np.where(gap < 0.1, near, hyp2f1(1 - alpha, 1, alpha + 1, s / t))
    return 2 * hurst * s**alpha * t ** (alpha - 1) / alpha * series


@pytest.mark.parametrize("hurst", [0.02, 0.1, 0.45, 0.7, 0.98])
def test_covariance_of_kind_two(hurst, x64):
    found = np.asarray(covariance_of(TIMES, hurst, "II"))
    apart = ~np.eye(len(TIMES), dtype=bool)
    expected = type_two_by_hypergeometric(TIMES[:, None], TIMES, hurst)
    np.testing.assert_allclose(found[apart], expected[apart], rtol=1e-10)
    np.testing.assert_allclose(np.diag(found), TIMES ** (2 * hurst), rtol=1e-13)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_covariance_between_two_sets_of_times(kind, x64):
    both = np.asarray(covariance_of(TIMES, 0.3, kind))
    np.testing.assert_allclose(covariance(TIMES[:3], 0.3, kind, TIMES), both[:3], rtol=1e-13)
    zero = np.asarray(covariance(np.array([0.0]), 0.3, kind, TIMES))
    np.testing.assert_array_equal(zero, 0.0)


@pytest.mark.parametrize("kind", ["I", "II"])
def test_covariance_is_differentiable_in_hurst(kind, x64):
    slope = jax.jit(jax.jacfwd(lambda hurst: covariance(TIMES, hurst, kind)))
    for hurst in (0.1, 0.5, 0.9):
        step = 1e-5
        difference = (covariance_of(TIMES, hurst + step, kind) - covariance_of(TIMES, hurst - step, kind)) / (
            2 * step
        )
        # The error of the difference is of the order step^2 times a third derivative of 50^(2H).
        np.testing.assert_allclose(slope(hurst), difference, rtol=1e-6, atol=1e-6)


def test_covariance_in_single_precision():
    found = np.asarray(covariance_of(TIMES, 0.3, "II"))
    assert found.dtype == np.float32
    apart = np.abs(np.subtract.outer(TIMES, TIMES)) > 1e-5  # others are one number in single precision
    expected = type_two_by_hypergeometric(TIMES[:, None], TIMES, 0.3)
    np.testing.assert_allclose(found[apart], expected[apart], rtol=1e-5)


def test_autocovariance_of_the_noise_keeps_its_digits(x64):
    decimal.getcontext().prec = 50
    noise = jax.jit(fractional.noise_autocovariance, static_argnums=1)
    for hurst in (0.05, 0.3, 0.8, 0.97):
        found = np.asarray(noise(hurst, 100_001))
        power = 2 * decimal.Decimal(hurst)
        for k in (1, 2, 3, 30, 1000, 100_000):
            n = decimal.Decimal(k)
            below = (n - 1) ** power if k > 1 else decimal.Decimal(0)
            exact = float(((n + 1) ** power - 2 * n**power + below) / 2)
            assert found[k] == pytest.approx(exact, rel=1e-13)
    assert np.abs(noise(0.5, 100_001)[1:]).max() < 1e-15


def test_sampled_paths_have_the_covariance(x64):
    """Entries within 5 standard errors: sqrt((C_ii C_jj + C_ij^2) / n), for Gaussian variables (Isserlis)."""
    n = 8_000
    draw = jax.jit(lambda key, hurst: fractional.sample_paths(key, hurst, 10, 0.1, (n,)))
    for hurst in (0.2, 0.8):
        paths = np.asarray(draw(jax.random.key(3), hurst))
        times = np.arange(1, 11) * 0.1
        powers = times ** (2 * hurst)
        apart = np.abs(np.subtract.outer(times, times)) ** (2 * hurst)
        exact = (np.add.outer(powers, powers) - apart) / 2
        error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / n)
        assert (np.abs(paths.T @ paths / n - exact) < 5 * error).all()
    assert fractional.sample_paths(jax.random.key(0), 0.3, 1).shape == (1,)


# ------------------------------------------------------------------------------------------- the recursion


def test_steps_make_the_covariance_of_the_scheme(x64):
    """The map from noise to path, column by column, times its transpose."""
    num_steps = 30
    scheme = scheme_of(0.3, 0.1, num_steps, kind="I")
    unit = np.eye(2 * num_steps).reshape(2 * num_steps, num_steps, 2)
    columns = jax.jit(jax.vmap(lambda noise: jax.lax.scan(scheme.step, jnp.zeros(5), noise)[1]))(unit)
    made = np.asarray(columns.T @ columns + scheme.loadings @ scheme.loadings.T)
    np.testing.assert_allclose(made, scheme_covariance_of(scheme, num_steps), atol=1e-13)
    np.testing.assert_allclose(scheme_covariance_of(scheme, 7), made[:7, :7], atol=1e-13)


def test_first_step_is_exact_and_steps_scale_as_they_must(x64):
    for hurst in (0.1, 0.6):
        scheme, unit = scheme_of(hurst, 0.25, 30), scheme_of(hurst, 1.0, 30)
        assert scheme.loadings.shape == (30, 0)
        first = scheme.first**2 + scheme.residual**2
        assert first == pytest.approx(0.25 ** (2 * hurst), rel=1e-13)
        np.testing.assert_allclose(scheme.weights, 0.25**hurst * np.asarray(unit.weights), rtol=1e-12)
        np.testing.assert_array_equal(scheme.decay, unit.decay)


def test_brownian_motion_at_one_half(x64):
    """To the ridge of the least squares, 1e-6 squared times the condition of the design."""
    for kind in ("I", "II"):
        scheme = scheme_of(0.5, 0.1, 30, kind=kind)
        assert scheme.residual == 0
        np.testing.assert_array_equal(scheme.loadings, 0.0)
        times = np.arange(1, 31) * 0.1
        np.testing.assert_allclose(
            scheme_covariance_of(scheme, 30), np.minimum.outer(times, times), atol=1e-8
        )


@pytest.mark.parametrize("num_terms", [5, 8])
@pytest.mark.parametrize("num_steps", [20, 200])
def test_scheme_in_single_precision(num_terms, num_steps):
    """Normal equations would be solved to no digit here; the QR decomposition of the design is.

    Measured 2e-6 for 200 steps, 2e-5 at worst for 20 steps and 8 terms, which 20 lags hardly tell apart.
    """
    with jax.enable_x64(True):
        double = scheme_of(np.float64(0.25), 1 / num_steps, num_steps, num_terms=num_terms, kind="I")
        expected = np.asarray(scheme_covariance_of(double, num_steps))
    scheme = scheme_of(np.float32(0.25), np.float32(1 / num_steps), num_steps, num_terms=num_terms, kind="I")
    found = np.asarray(scheme_covariance_of(scheme, num_steps))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=4e-5 if num_steps == 20 else 1e-5)


def test_scheme_is_smooth_in_hurst_through_one_half(x64):
    def flat(hurst):
        scheme = hybrid_scheme(hurst, 0.1, 30, kind="I")
        past = scheme.loadings[::10].ravel()
        return jnp.concatenate([scheme.weights, scheme.first[None], scheme.residual[None], past])

    both = jax.jit(lambda hurst: jax.jvp(flat, (hurst,), (1.0,)))
    for hurst in (0.02, 0.3, 0.5, 0.7, 0.97):
        step = 1e-5
        difference = np.asarray(both(hurst + step)[0] - both(hurst - step)[0]) / (2 * step)
        scale = 1 + np.abs(difference)
        np.testing.assert_allclose(np.asarray(both(hurst)[1]) / scale, difference / scale, atol=1e-5)
    reverse = jax.jit(jax.grad(lambda hurst: flat(hurst).sum()))
    assert reverse(0.5) == pytest.approx(float(both(0.5)[1].sum()), rel=1e-9)


@pytest.mark.parametrize("hurst", [0.02, 0.3, 0.9, 0.98])
def test_past_loadings_hold_the_difference_of_the_kinds(hurst, x64):
    """To what a projection on few functions leaves: with 9, nothing but the quadratures' rounding."""
    times = np.array([1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.5, 0.7, 0.9, 1.0])
    share = float(fractional._type_two_share(jnp.asarray(hurst))) ** 2
    past = np.asarray(covariance_of(times, hurst, "I") - share * covariance_of(times, hurst, "II"))
    found, few = (np.asarray(past_loadings_of(hurst, times, terms)) for terms in (9, 4))
    np.testing.assert_allclose(found @ found.T, past, atol=1e-6)
    np.testing.assert_allclose(few @ few.T, past, atol=3e-4)


def test_given_rates(x64):
    rates = [0.0, 0.01, 0.03, 0.1, 0.3, 0.9]
    scheme = jax.jit(lambda hurst: hybrid_scheme(hurst, 0.1, 30, rates=rates))(0.7)
    np.testing.assert_allclose(scheme.decay, np.exp(-np.array(rates)))
    exact = type_two_by_hypergeometric(0.1, 3.0, 0.7)
    assert scheme_covariance_of(scheme, 30)[0, -1] == pytest.approx(exact, abs=3e-3 * 3**1.4)


def test_horizon_that_so_few_terms_cannot_remember(x64):
    """At the limit the lags are fitted to 2 percent of the variance; with one term less they are not."""
    hurst, num_steps = 0.1, 450
    exact = np.sqrt(2 * hurst) * np.diff(np.arange(0.0, num_steps + 1) ** (hurst + 0.5)) / (hurst + 0.5)

    def error(num_terms, limits):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fractional, "_LONGEST", limits)
            scheme = scheme_of(hurst, 1.0, num_steps, num_terms=num_terms)
        decay, loading = np.asarray(scheme.decay), np.asarray(scheme.weights * scheme.gain)
        lags = decay ** np.arange(num_steps)[:, None] @ loading
        lags[0] = exact[0]
        return np.abs(np.cumsum(lags**2) - np.cumsum(exact**2)).max() / num_steps ** (2 * hurst)

    assert error(4, fractional._LONGEST) < 0.021 < error(3, {})


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hybrid_scheme(1.0, 0.1, 50), "`hurst` is 1.0; it must be above 0 and below 1"),
        (lambda: hybrid_scheme(0.3, 0.0, 50), "`dt` is 0.0; the length of a step must be above 0"),
        (lambda: hybrid_scheme(0.3, 0.1, 0), "`num_steps` is 0; the grid needs one step"),
        (lambda: hybrid_scheme(0.3, 0.1, 50, num_terms=1), "`num_terms` is 1; the kernel's tail needs two"),
        (
            lambda: hybrid_scheme(0.3, 0.1, 20_000),
            "`num_terms=5` exponentials cannot remember 20000 steps.*pass `num_terms=6`",
        ),
        (lambda: hybrid_scheme(0.3, 0.1, 50, kind="2"), "`kind` is '2'; it must be 'I'"),
        (lambda: hybrid_scheme(0.3, 0.1, 50, rates=[1.0, -1.0]), "`rates` is .*distinct rates per step"),
        (lambda: hybrid_scheme(np.array([0.3, 0.4]), 0.1, 50), "`hurst` has shape .*use jax.vmap"),
        (
            lambda: hybrid_covariance(hybrid_scheme(0.3, 0.1, 5), 6),
            "`num_steps` is 6, and the scheme was made for 5",
        ),
        (lambda: covariance([1.0, -1.0], 0.3), r"`times\[1\]` is -1.0; times must be finite"),
        (lambda: covariance(1.0, 0.3), r"`times` has shape \(\); it must be a vector"),
        (lambda: covariance([1.0], 0.3, other=[np.nan]), r"`other\[0\]` is nan"),
        (lambda: fractional.sample_paths(jax.random.key(0), 0.3, 0), "`num_steps` is 0; a path needs"),
        (lambda: fractional.published_rates(5, 0.5), "a largest above 1"),
        (lambda: fractional.markov_weights(0.3, [0.0, 1.0], 1.0), "every rate must be above 0"),
        (
            lambda: fractional.markov_weights(0.3, np.geomspace(0.1, 10, 8), 1.0),
            "8 values.*jax.enable_x64",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
