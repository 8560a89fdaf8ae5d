r"""How long a stationary Gaussian process stays above or below a level: the independent-interval law.

At an up-crossing of level ``u`` (in standard deviations) the process is, from then on, the Slepian process
:math:`u\,r(t) - r'(t) R / \sqrt{\lambda_2} + \Delta(t)`, with ``R`` a Rayleigh variable and ``Delta`` Gaussian
(Leadbetter, Lindgren and Rootzen, 1983, chapter 10). Its mean sign is matched to that of a process that switches after
independent intervals (Bengtsson and Podgorski, 2024, arXiv:2401.01805; for ``u`` other than zero the idea of
arXiv:2410.06000). At level zero that gives the law of McFadden (1958), Majumdar et al. and Derrida et al. (1996).

With :math:`E = -r' / \sqrt{\lambda_2 (1 - r^2)}` and :math:`f_Y = -E'`, the density ``f`` and the survival ``S``
of an interval at level zero solve

.. math:: f = f_Y / 2 + (f_Y / 2) * f, \qquad S = E + (f_Y / 2) * S .

At level ``u`` let :math:`P_\pm(t)` be the probability to be above the level a time ``t`` after an up- or a
down-crossing. Above and below it the intervals solve

.. math::
    f_+ = -P_+' + P_-' * f_+, \quad S_+ = (P_+ - P_-) + P_-' * S_+, \qquad
    f_- = P_-' - P_+' * f_-, \quad S_- = (P_+ - P_-) - P_+' * S_- .

Times are laid on a grid in units of the mean interval, so that the resolution does not depend on the
hyper-parameters and the result is smooth in them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from sojourn.ops import renewal

__all__ = ["ExcursionGrid", "clipped_slepian", "exponent", "mean_sign", "solve", "solve_level"]


class ExcursionGrid(NamedTuple):
    """The law of an interval on a uniform grid from zero; beyond it the hazard is that of the last point."""

    step: Array
    """``()``: distance between the points, in units of time."""
    density: Array
    """``(n + 1,)``: ``f``, per unit of time. Negative somewhere where no law of independent intervals exists."""
    survival: Array
    """``(n + 1,)``: ``S = P(T > t)``."""
    integral: Array
    """``(n + 1,)``: ``H``, the integral of ``S`` from zero; in units of time."""
    mean: Array
    """``()``: mean of an interval, exactly Rice's."""
    kernel: Array
    """``(n + 1,)``: the density whose sign tells whether the law surely exists (``f_Y`` at level zero)."""
    exponential_tail: Array
    """``()`` boolean: whether the hazard has settled, so that the last one is the persistency exponent (to 1e-6)."""


def mean_sign(covariance: Any, t: Array) -> tuple[Array, Array]:
    """``E(t)``, the mean sign of the process a time ``t`` after an up-crossing of zero, and ``f_Y = -E'``.

    Args:
        covariance: a :class:`~sojourn.ops.covariance.Covariance` with scalar hyper-parameters.
        t: ``(n,)`` times from zero on, in units of time.

    Returns:
        Two arrays ``(n,)``; the second per unit of time.

    Example:
        >>> import jax.numpy as jnp
        >>> from sojourn.ops.covariance import Diffusion
        >>> t = jnp.array([1.0, 2.0])
        >>> e, _ = mean_sign(Diffusion(2.0), t)
        >>> bool(jnp.allclose(e, 1 / jnp.cosh(t / 2), atol=1e-6))
        True
    """
    # f_Y loses eps / t^2 to cancellation; below `near` both go on along a line.
    near = covariance.mean_interval() * (2e-4 if t.dtype == jnp.float64 else 2e-2)
    sign, decrease = _mean_sign(
        covariance, jnp.concatenate([jnp.stack([near, 2 * near]), jnp.maximum(t, near)])
    )
    slope = (decrease[1] - decrease[0]) / near
    early = near - t
    line = decrease[0] - early * slope
    start = sign[0] + early * (decrease[0] - 0.5 * slope * early)
    is_early = t < near
    return (
        jnp.where(is_early, jnp.where(t <= 0, 1.0, start), sign[2:]),
        jnp.where(is_early, line, decrease[2:]),
    )


def _mean_sign(covariance: Any, t: Array) -> tuple[Array, Array]:
    """The same, at times far enough from zero."""
    rest, first, second = covariance.derivatives(t)
    root = jnp.sqrt(covariance.second_spectral_moment())
    inverse = lax.rsqrt(rest * (2 - rest))
    sign = first * inverse / -root
    return sign, (second / root + root * (1 - rest) * sign**2) * inverse


def solve(covariance: Any, num_steps: int = 512, horizon: float = 8.0) -> ExcursionGrid:
    """The law of the intervals between zero crossings.

    Args:
        covariance: with scalar hyper-parameters.
        num_steps: of the grid, even. With 512, log-densities are good to 1e-6 where the process is smooth.
        horizon: length of the grid in mean intervals. The survival there is about 1e-4; much beyond 12 it drowns in
            rounding.

    Example:
        >>> from sojourn.ops.covariance import SquaredExponential
        >>> law = solve(SquaredExponential(scale=2.0))
        >>> print(f"{law.mean:.4f}", law.density.shape)
        6.2832 (513,)
    """
    mean = covariance.mean_interval()
    step = mean * (horizon / num_steps)
    # As `mean_sign`, whose line is needed at zero alone here: less to compile.
    near = mean * 2e-4 if step.dtype == jnp.float64 else step
    points = step * jnp.arange(1, num_steps + 1)
    sign, decrease = _mean_sign(covariance, jnp.concatenate([jnp.stack([near, 2 * near]), points]))
    sign = jnp.concatenate([jnp.ones_like(sign[:1]), sign[2:]])
    decrease = jnp.concatenate([2 * decrease[:1] - decrease[1:2], decrease[2:]])
    both = renewal.solve(jnp.stack([0.5 * decrease, sign]), 0.5 * (1 - sign), _damping(step.dtype, True))
    integral = renewal.running_integral(both[1], -both[0], step)
    settled = ~_power_law(sign[num_steps // 4], sign[num_steps // 2], sign[num_steps])
    return ExcursionGrid(step, both[0], both[1], integral, mean, decrease, settled)


def _damping(dtype: Any, falls: ArrayLike) -> Array:
    """For :func:`sojourn.ops.renewal.solve`: what falls to 1e-4 over the grid may wrap around and must not be rounded."""
    light, heavy = (1e-6, 1e-11) if dtype == jnp.float64 else (3e-2, 1e-4)
    return jnp.where(falls, light, heavy)


def _power_law(quarter: Array, half: Array, end: Array) -> Array:
    """Whether ``E``, given at three times, falls like a power: its rate then halves when the time doubles."""
    quarter, half, end = (jnp.log(jnp.abs(e)) for e in (quarter, half, end))
    return half - end < 1.5 * (quarter - half)


def clipped_slepian(covariance: Any, level: ArrayLike, t: Array) -> tuple[Array, Array, Array, Array]:
    r"""``P(X(t) > u)`` after an up- and after a down-crossing of ``u``, and how fast they fall and rise.

    With :math:`w = u \sqrt{(1-r)/(1+r)}` and :math:`c = \sqrt{1-E^2}`:
    :math:`P_\pm = \Phi(-w/c) \pm E e^{-w^2/2} \Phi(\pm wE/c)`.

    Args:
        covariance: with scalar hyper-parameters.
        level: ``u``, in standard deviations of the process.
        t: ``(n,)`` times from zero on.

    Returns:
        :math:`P_+`, :math:`P_-`, :math:`-P_+'` and :math:`P_-'`, ``(n,)`` each.

    Example:
        Long after a crossing it is forgotten:

        >>> import jax.numpy as jnp
        >>> from sojourn.ops.covariance import SquaredExponential
        >>> up, down, _, _ = clipped_slepian(SquaredExponential(), 1.0, jnp.array([0.0, 20.0]))
        >>> up.round(3).tolist(), down.round(3).tolist()
        ([1.0, 0.15...], [0.0, 0.15...])
    """
    level = jnp.asarray(level, t.dtype)
    sign, decrease = mean_sign(covariance, t)
    at_start = t <= 0
    rest = covariance.derivatives(jnp.where(at_start, 1.0, t))[0]
    ratio = jnp.where(at_start, 0.0, rest / (2 - rest))
    w = level * jnp.sqrt(jnp.where(at_start, 1.0, ratio)) * ~at_start
    spread = jnp.sqrt(jnp.where(at_start, 1.0, (1 - sign) * (1 + sign)))
    z, above = w / spread, w * sign / spread
    damped = jnp.exp(-0.5 * w**2)
    w_slope = 0.5 * level * (1 + ratio) * jnp.sqrt(covariance.second_spectral_moment()) * sign
    common = damped * (decrease + w * sign * w_slope)
    # At zero the spread vanishes, so the second term does; z tends to a constant there, which only `common` = 0 hides.
    drift = jnp.where(at_start, 0.0, spread * norm.pdf(z) * w_slope)
    return (
        jnp.where(at_start, 1.0, norm.cdf(-z) + sign * damped * norm.cdf(above)),
        jnp.where(at_start, 0.0, norm.cdf(-z) - sign * damped * norm.cdf(-above)),
        common * norm.cdf(above) + drift,
        common * norm.cdf(-above) - drift,
    )


def level_means(covariance: Any, level: ArrayLike) -> tuple[Array, Array]:
    """Mean time above and below a level, from Rice's formula; in units of time."""
    level = jnp.asarray(level, float)
    pair = 2 * covariance.mean_interval() * jnp.exp(0.5 * level**2)
    return pair * norm.sf(level), pair * norm.cdf(level)


def solve_level(
    covariance: Any, level: ArrayLike, above: bool, num_steps: int = 512, horizon: float = 8.0
) -> ExcursionGrid:
    """The law of the time spent above, or below, a level at one go.

    Args:
        covariance: with scalar hyper-parameters.
        level: in standard deviations of the process.
        above: which side.
        num_steps: of the grid, even.
        horizon: length of the grid, in mean intervals of this side or at level zero, whichever is shorter: past a few
            of the latter the hazard is constant.

    Example:
        >>> from sojourn.ops.covariance import SquaredExponential
        >>> law = solve_level(SquaredExponential(), 1.0, above=True)
        >>> print(f"{law.mean:.3f}")
        1.644
    """
    means = level_means(covariance, level)
    mean = means[0 if above else 1]
    step = jnp.minimum(mean, covariance.mean_interval()) * (horizon / num_steps)
    t = step * jnp.arange(num_steps + 1)
    up, down, falling, rising = clipped_slepian(covariance, level, t)
    if above:
        source, kernel, measure = falling, rising, down
    else:
        source, kernel, measure = rising, falling, 1 - up
    falls = mean <= covariance.mean_interval()
    both = renewal.solve(jnp.stack([source, up - down]), measure, _damping(step.dtype, falls))
    integral = renewal.running_integral(both[1], -both[0], step)
    sign, _ = _mean_sign(covariance, t[num_steps // 4 :: num_steps // 4])
    settled = ~_power_law(sign[0], sign[1], sign[3])
    return ExcursionGrid(step, both[0], both[1], integral, mean, jnp.minimum(kernel, source), settled)


def exponent(covariance: Any, level: ArrayLike | None = None, above: bool = True) -> Array:
    r"""Persistency exponent: the rate ``theta`` at which ``P(T > t)`` falls at long times.

    The root of :math:`\theta \int_0^\infty e^{\theta t} E(t)\,dt = 1` at level zero, and at others of
    :math:`\int_0^\infty e^{\theta t} P_-'(t)\,dt = 1` (above; with :math:`-P_+'` below). Differentiated
    implicitly.

    Args:
        covariance: with scalar hyper-parameters.
        level: in standard deviations; ``None`` for zero.
        above: which side of the level.

    Returns:
        ``()``, per unit of time; NaN where the covariance falls like a power and there is no exponent.

    Example:
        >>> import jax
        >>> from sojourn.ops.covariance import Diffusion
        >>> print(f"{jax.jit(exponent)(Diffusion(2.0)):.4f}")  # 3/16 exactly (Poplavskyi and Schehr, 2018)
        0.1862
    """
    num_steps, horizon = 4096, 40.0
    mean = covariance.mean_interval()
    step = mean * (horizon / num_steps)
    t = step * jnp.arange(num_steps + 1)
    sign, _ = mean_sign(covariance, t)
    # The sum stops where E underflows; from there on both E and what is integrated fall at the same rate.
    seen = lax.cummin((jnp.abs(sign) > (1e-280 if t.dtype == jnp.float64 else 1e-30)).astype(int)) > 0
    last = jnp.sum(seen) - 1
    half = last // 2
    decay = jnp.log(jnp.abs(sign[half] / sign[last])) / (t[last] - t[half])
    kernel = sign if level is None else clipped_slepian(covariance, level, t)[3 if above else 2]
    kernel = jnp.where(seen, kernel, 0.0)
    # It is 1.0 to 1.5 in intervals of this side; far above, an oscillating covariance has roots that mean nothing.
    if level is not None:
        mean = level_means(covariance, level)[0 if above else 1]
    ceiling = jnp.minimum(decay, 2 / mean)
    # At a level the mass of the kernel, which the sum would lose digits of, is known: `excess` is of what exceeds it.
    target = (
        jnp.ones_like(decay)
        if level is None
        else (norm.cdf if above else norm.sf)(jnp.asarray(level, t.dtype))
    )
    theta = _root(jnp.where(seen, t, 0.0), kernel, decay, step, target, ceiling, last, level is None)
    broken = _power_law(sign[half // 2], sign[half], sign[last]) | (theta >= ceiling * (1 - 1e-6))
    return jnp.where(broken, jnp.nan, theta)


def _excess(
    theta: Array,
    t: Array,
    kernel: Array,
    decay: Array,
    step: Array,
    target: Array,
    last: Array,
    at_zero: bool,
) -> Array:
    if at_zero:
        grown = jnp.exp(theta * t) * kernel
        return theta * (step * (jnp.sum(grown) + _gregory(grown)) + grown[last] / (decay - theta)) - target
    grown = jnp.expm1(theta * t) * kernel
    tail = (grown[last] + kernel[last]) / (decay - theta) - kernel[last] / decay
    return step * (jnp.sum(grown) + _gregory(grown)) + tail - target


@partial(jax.custom_jvp, nondiff_argnums=(7,))
def _root(
    t: Array,
    kernel: Array,
    decay: Array,
    step: Array,
    target: Array,
    ceiling: Array,
    last: Array,
    at_zero: bool,
) -> Array:
    """Where the excess, which grows with ``theta``, is zero; below ``ceiling``."""

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        beyond = _excess(middle, t, kernel, decay, step, target, last, at_zero) > 0
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    low, high = lax.fori_loop(0, 52, halve, (jnp.zeros_like(ceiling), ceiling))
    return 0.5 * (low + high)


@_root.defjvp
def _root_jvp(at_zero: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    t, kernel, decay, step, target, _, last = primals
    theta = _root(*primals, at_zero)

    def moving(*smooth: Array) -> Array:
        return _excess(theta, *smooth, last, at_zero)  # type: ignore[call-arg, arg-type]

    _, moved = jax.jvp(moving, (t, kernel, decay, step, target), tangents[:5])
    slope = jax.grad(_excess)(theta, t, kernel, decay, step, target, last, at_zero)
    return theta, -moved / slope


def _gregory(values: Array) -> Array:
    """What the trapezoidal sum with full end weights lacks at the left end (Gregory, third order)."""
    return -5 / 8 * values[0] + 1 / 6 * values[1] - 1 / 24 * values[2]
