"""Renewal equations against closed forms, a dense triangular solve of the same scheme, and orders of convergence."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
from jax.test_util import check_grads

from sojourn.ops import renewal

solve = jax.jit(renewal.solve)
ROOT2 = np.sqrt(2.0)

# Mean sign after a crossing, its decrease, density and survival of the intervals, mean interval; by Laplace
# transforms: phi = 1 / (1 + s) and 1 / (1 + s)^2 in Psi = phi / (2 - phi).
CLOSED_FORMS = {
    "exponential": (
        lambda t: np.exp(-t),
        lambda t: np.exp(-t),
        lambda t: np.exp(-t / 2) / 2,
        lambda t: np.exp(-t / 2),
        2.0,
    ),
    "gamma": (
        lambda t: (1 + t) * np.exp(-t),
        lambda t: t * np.exp(-t),
        lambda t: np.exp(-t) * np.sinh(t / ROOT2) / ROOT2,
        lambda t: np.exp(-t) * (np.cosh(t / ROOT2) + ROOT2 * np.sinh(t / ROOT2)),
        4.0,
    ),
}


def solved(name, num_steps, horizon=8.0, **kwargs):
    sign, decrease, density, survival, mean = CLOSED_FORMS[name]
    t = np.linspace(0.0, horizon * mean, num_steps + 1)
    found = solve(np.stack([decrease(t) / 2, sign(t)]), (1 - sign(t)) / 2, **kwargs)
    return t, np.asarray(found), np.stack([density(t), survival(t)])


# ---------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name, x64):
    """Over eight mean intervals in 512 steps. Measured: log f 4e-7 and 3.6e-6, S 3.4e-9 and 7.1e-8."""
    t, found, expected = solved(name, 512)
    later = t > 0.05
    np.testing.assert_allclose(np.log(found[0, later]), np.log(expected[0, later]), atol=1e-5, rtol=0)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-7, rtol=0)
    np.testing.assert_allclose(found[0, 0], expected[0, 0], atol=1e-15)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_fourth_order(name, x64):
    errors = []
    for num_steps in (128, 256, 512):
        _, found, expected = solved(name, num_steps)
        errors.append(abs(found - expected).max(1))
    # Halving the step divides the error by sixteen, and by more before the leading term rules.
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert orders.min() > 3.9
    assert orders.max() < 4.7


def test_damping_trades_what_wraps_around_for_rounding(x64):
    """The solution falls by 3e-4; either damping leaves 1e-9 of it, none lets the end come back at the start."""
    _, strong, _ = solved("exponential", 512, damping=1e-11)
    _, weak, _ = solved("exponential", 512, damping=1e-6)
    np.testing.assert_allclose(strong, weak, atol=1e-10, rtol=0)
    _, none, _ = solved("exponential", 512, damping=1.0)
    assert abs(none - strong).max() > 1e-8


def test_a_density_that_is_infinite_at_zero(x64):
    r"""``F = c 2 sqrt(t / pi)`` has the transform :math:`c s^{-3/2}`, so ``g = 1 + g * dF`` is
    :math:`e^{c^2 t} \operatorname{erfc}(-c \sqrt t)`, whose slope at zero is infinite too. Order 3/2 away from it."""
    c, errors = 0.5, []
    for num_steps in (256, 1024):
        t = np.linspace(0.0, 1.0, num_steps + 1)
        found = solve(np.ones_like(t), 2 * c * np.sqrt(t / np.pi))
        expected = np.exp(c**2 * t) * scipy.special.erfc(-c * np.sqrt(t))
        errors.append(abs(found - expected)[-num_steps // 2 :].max())
    assert errors[1] < errors[0] / 7  # measured 8
    assert errors[1] < 5e-6  # measured 3.4e-6


def test_single_precision():
    """Rounding, 6e-8, over the square root of the damping."""
    _, found, expected = solved("gamma", 256, damping=1e-4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


# ---------------------------------------------------------------------------------------- the scheme, and its shapes


def dense_second_order(sources, measure):
    """``g_i = a_i + sum_m (F_m - F_{m-1}) (g_{i-m} + g_{i-m+1}) / 2``, as a triangular system."""
    points = len(measure)
    matrix = np.eye(points)
    for i in range(points):
        for m in range(1, i + 1):
            piece = measure[m] - measure[m - 1]
            matrix[i, i - m] -= piece / 2
            matrix[i, i - m + 1] -= piece / 2
    return scipy.linalg.solve_triangular(matrix, sources.T, lower=True).T


def dense(sources, measure):
    """With Richardson's correction, carried to the points between by the polynomial through the nearest four (or,
    next to the ends, three)."""
    fine = dense_second_order(sources, measure)
    correction = (fine[:, ::2] - dense_second_order(sources[:, ::2], measure[::2])) / 3
    last = correction.shape[1] - 1
    full = np.empty_like(fine)
    full[:, ::2] = correction
    for left in range(last):
        nodes = np.arange(max(left - 1, 0), min(left + 2, last) + 1)
        for row in range(len(full)):
            full[row, 2 * left + 1] = np.polyval(
                np.polyfit(nodes - left, correction[row, nodes], len(nodes) - 1), 0.5
            )
    return fine + full


@pytest.mark.parametrize("num_steps", [8, 32])
def test_equals_a_dense_triangular_solve(num_steps, x64):
    """For sequences without any smoothness, to rounding: the FFT divides the very same power series."""
    rng = np.random.default_rng(0)
    measure = np.concatenate([[0.0], np.cumsum(rng.uniform(size=num_steps))])
    measure *= 0.9 / measure[-1]
    sources = rng.normal(size=(3, num_steps + 1))
    # 1e-11 wraps around, sized as the next grid length of g.
    np.testing.assert_allclose(solve(sources, measure), dense(sources, measure), atol=1e-9, rtol=0)


def test_shapes(x64):
    rng = np.random.default_rng(1)
    t = np.linspace(0.0, 3.0, 17)
    sources, measure = rng.normal(size=(2, 3, 17)), 0.5 * -np.expm1(-t)
    together = solve(sources, measure)
    assert together.shape == (2, 3, 17)
    for i, j in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(together[i, j], solve(sources[i, j], measure), atol=1e-12)
    measures = np.stack([measure, 0.2 * t / 3])
    mapped = jax.jit(jax.vmap(renewal.solve))(sources, measures)
    np.testing.assert_allclose(mapped[1], solve(sources[1], measures[1]), atol=1e-12)
    np.testing.assert_allclose(solve(sources, np.zeros(17)), sources, atol=1e-12)  # nothing renews


def test_gradients(x64):
    t = np.linspace(0.0, 6.0, 65)
    weights = np.cos(t)

    @jax.jit
    def total(rate, share):
        density = renewal.solve(share * rate * jnp.exp(-rate * t), -share * jnp.expm1(-rate * t))
        return (weights * density).sum()

    check_grads(total, (1.3, 0.6), order=1, modes=("fwd", "rev"), rtol=1e-7)

    # Thinned by `share` renewals are exponential at rate (1 - share) rate, and so is the derivative.
    @jax.jit
    def slope(share):
        return jax.jvp(
            lambda s: renewal.solve(s * jnp.exp(-t), -s * jnp.expm1(-t)), (share,), (jnp.ones_like(share),)
        )[1]

    expected = np.exp(-0.4 * t) * (1 + 0.6 * t)
    np.testing.assert_allclose(slope(0.6), expected, atol=3e-6, rtol=0)  # 65 points


@pytest.mark.parametrize(
    ("sources", "measure", "sentence"),
    [
        (np.ones(10), np.ones(10), r"solve\(\): the grid needs an even number of steps, at least 8; got 9"),
        (np.ones(7), np.ones(7), r"an even number of steps, at least 8; got 6"),
        (
            np.ones((2, 9)),
            np.ones(11),
            r"`sources` has shape \(2, 9\), `measure` has 11 points; both lie on one grid",
        ),
    ],
)
def test_errors(sources, measure, sentence):
    with pytest.raises(ValueError, match=sentence):
        renewal.solve(sources, measure)


# -------------------------------------------------------------------------------------------------- the other pieces


def order(error):
    """Between the errors on 64 and on 128 steps."""
    return np.log2(error(64) / error(128))


def test_convolve(x64):
    convolve = jax.jit(renewal.convolve)

    def error(num_steps):
        t = np.linspace(0.0, 5.0, num_steps + 1)
        return abs(convolve(np.exp(-t), -np.expm1(-t)) - t * np.exp(-t)).max()

    assert order(error) == pytest.approx(2.0, abs=0.1)
    rng = np.random.default_rng(2)
    values, measure = rng.normal(size=13), np.cumsum(rng.uniform(size=13))
    expected = [
        sum((measure[m] - measure[m - 1]) * (values[i - m] + values[i - m + 1]) / 2 for m in range(1, i + 1))
        for i in range(13)
    ]
    np.testing.assert_allclose(convolve(values, measure), expected, atol=1e-12)


def test_running_integral(x64):
    running_integral = jax.jit(renewal.running_integral)

    def error(num_steps):
        t = np.linspace(0.0, 5.0, num_steps + 1)
        return abs(running_integral(np.sin(t), np.cos(t), t[1]) - (1 - np.cos(t))).max()

    assert order(error) == pytest.approx(4.0, abs=0.1)
    t = np.linspace(0.0, 2.0, 6)
    rows = running_integral(np.stack([t**3, 1 - t]), np.stack([3 * t**2, -np.ones(6)]), t[1])
    np.testing.assert_allclose(rows, [t**4 / 4, t - t**2 / 2], atol=1e-14)


def test_cubic(x64):
    cubic = jax.jit(renewal.cubic)

    def error(num_steps):
        position = np.linspace(0.0, num_steps, 1001)
        values = np.sin(np.linspace(0.0, 5.0, num_steps + 1))[None]
        return abs(cubic(values, 0, position) - np.sin(5.0 * position / num_steps)).max()

    assert order(error) == pytest.approx(4.0, abs=0.3)
    # Cubics are met exactly, up to both ends, each position in its own row.
    x = np.arange(9.0)
    values = np.stack([x**3 - 4 * x, 2 - x**2, 1 + x])
    position = np.array([[0.0, 0.3, 4.0], [7.9, 8.0, 5.5]])
    row = np.array([[0, 1, 2], [0, 1, 2]])
    values = jnp.asarray(values)
    found = cubic(values, row, position)
    expected = np.choose(row, [position**3 - 4 * position, 2 - position**2, 1 + position])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    slope = jax.vmap(jax.grad(lambda p: renewal.cubic(values, 0, p)))(position[1])
    np.testing.assert_allclose(slope, 3 * position[1] ** 2 - 4, rtol=1e-12)
