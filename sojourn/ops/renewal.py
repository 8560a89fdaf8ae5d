r"""Renewal equations: Volterra equations of the second kind, solved on a grid.

With a measure ``dF`` on ``t >= 0`` and a source ``a``, the equation is

.. math::
    g(t) = a(t) + \int_0^t g(t - u)\, dF(u)

On a uniform grid the trapezoidal rule in ``dF`` (which needs ``F`` and no density, so that a density with a
singularity at zero does no harm) turns it into a lower triangular Toeplitz system, that is a division of power
series. One FFT does it, on a circle of radius below one, so that what wraps around is damped away
(Abate and Whitt, 1992, *Queueing Systems* 10:5, use the same circle to invert generating functions). Richardson
extrapolation from twice the step takes the error from second to fourth order where ``a`` and ``F`` are smooth.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

__all__ = ["convolve", "cubic", "running_integral", "solve"]


def solve(sources: ArrayLike, measure: ArrayLike, damping: ArrayLike = 1e-11) -> Array:
    r"""Solution of ``g = a + g * dF`` on a uniform grid, for several sources at once.

    Args:
        sources: ``(..., n + 1)`` values ``a(0), a(h), ..., a(n h)``; ``n`` is even.
        measure: ``(n + 1,)`` values ``F(0) = 0, F(h), ..., F(n h)``; of a total mass below one, or one.
        damping: factor on what wraps around from twice the length of the grid on. Rounding is that of the largest
            value over its square root, at the end of the grid: a solution that falls by then bears 1e-6.

    Returns:
        ``(..., n + 1)`` values of ``g``. Differentiable in both arguments.

    Raises:
        ValueError: ``n`` is odd, or the grids do not match.

    Example:
        Renewals at rate one, thinned by a half, are again exponential:

        >>> import jax.numpy as jnp
        >>> t = jnp.linspace(0.0, 4.0, 257)
        >>> density = solve(0.5 * jnp.exp(-t), 0.5 * (1 - jnp.exp(-t)), damping=1e-3)  # in single precision
        >>> bool(jnp.allclose(density, 0.5 * jnp.exp(-t / 2), atol=1e-4))
        True
    """
    sources, measure = jnp.asarray(sources), jnp.asarray(measure)
    points = measure.shape[-1]
    if points % 2 == 0 or points < 9:
        raise ValueError(f"solve(): the grid needs an even number of steps, at least 8; got {points - 1}.")
    if sources.shape[-1:] != (points,):
        raise ValueError(
            f"solve(): `sources` has shape {sources.shape}, `measure` has {points} points; both lie on one grid."
        )
    # Both resolutions in one batch, the coarse one padded: half the program to compile.
    short = (points + 1) // 2
    padding = [(0, 0)] * (sources.ndim - 1) + [(0, points - short)]
    both = _solve_second_order(
        jnp.stack([sources, jnp.pad(sources[..., ::2], padding)]),
        jnp.stack([measure, jnp.pad(measure[::2], (0, points - short), mode="edge")]),
        damping,
    )
    fine, coarse = both[0], both[1, ..., :short]
    return fine + _halve_step((fine[..., ::2] - coarse) / 3)


def _solve_second_order(sources: Array, measure: Array, damping: ArrayLike) -> Array:
    """Row ``i`` is ``g_i = a_i + sum_m k_m g_{i-m} - b_i g_0``: trapezoid weights, with one half too many at ``g_0``.

    Both arguments carry a leading axis of resolutions.
    """
    after = jnp.pad(jnp.diff(measure), ((0, 0), (0, 1)))
    before = jnp.roll(after, 1, -1)
    lift = (-1,) + (1,) * (sources.ndim - 2) + measure.shape[-1:]
    numerator = sources - 0.5 * sources[..., :1] * after.reshape(lift)
    denominator = (-0.5 * (after + before)).at[:, 0].add(1.0).reshape(lift)
    # Division of power series, on a circle of radius below one.
    points = measure.shape[-1]
    size = 2 * (points - 1)
    radius = jnp.asarray(damping ** (jnp.arange(points) / size), measure.dtype)
    quotient = jnp.fft.rfft(numerator * radius, size) / jnp.fft.rfft(denominator * radius, size)
    return jnp.fft.irfft(quotient, size)[..., :points] / radius


def _halve_step(values: Array) -> Array:
    """Values on a grid of half the step, by cubic interpolation at the middles."""
    v = values
    first = 3 * v[..., :1] - 3 * v[..., 1:2] + v[..., 2:3]
    last = 3 * v[..., -1:] - 3 * v[..., -2:-1] + v[..., -3:-2]
    wide = jnp.concatenate([first, v, last], -1)
    middle = (9 * (wide[..., 1:-2] + wide[..., 2:-1]) - wide[..., :-3] - wide[..., 3:]) / 16
    pairs = jnp.stack([v[..., :-1], middle], -1).reshape(*v.shape[:-1], -1)
    return jnp.concatenate([pairs, v[..., -1:]], -1)


def running_integral(values: Array, slopes: Array, step: ArrayLike) -> Array:
    """``int_0^t`` of a function given with its derivative on a grid of ``step``: fourth order (Euler and Maclaurin).

    Args:
        values: ``(..., n + 1)`` of the function.
        slopes: ``(..., n + 1)`` of its derivative.
        step: distance between the points.

    Returns:
        ``(..., n + 1)``, zero first.

    Example:
        >>> import jax.numpy as jnp
        >>> t = jnp.linspace(0.0, 1.0, 9)
        >>> print(f"{running_integral(t**3, 3 * t**2, 1 / 8)[-1]:.4f}")  # exact for cubics
        0.2500
    """
    pieces = 0.5 * step * (values[..., 1:] + values[..., :-1])
    pieces = pieces - step**2 / 12 * (slopes[..., 1:] - slopes[..., :-1])
    total = jnp.cumsum(pieces, -1)
    return jnp.concatenate([jnp.zeros_like(total[..., :1]), total], -1)


def cubic(values: Array, row: ArrayLike, position: Array) -> Array:
    """Cubic interpolation (Lagrange) in one of several rows of grid values.

    Args:
        values: ``(rows, n + 1)``.
        row: integers of the shape of ``position``, or one: the row to look in.
        position: in steps of the grid, from 0 to ``n``.

    Returns:
        Interpolated values, of the shape of ``position``.

    Example:
        >>> import jax.numpy as jnp
        >>> squares = jnp.arange(6.0)[None] ** 2
        >>> print(cubic(squares, 0, jnp.array([0.5, 2.5])))
        [0.25 6.25]
    """
    last = values.shape[-1] - 1
    left = jnp.clip(position.astype(int), 1, last - 2)
    u = position - left
    around = values[jnp.asarray(row)[..., None], left[..., None] + np.arange(-1, 3)]
    weights = jnp.stack(
        [
            -u * (u - 1) * (u - 2) / 6,
            (u + 1) * (u - 1) * (u - 2) / 2,
            -(u + 1) * u * (u - 2) / 2,
            (u + 1) * u * (u - 1) / 6,
        ],
        -1,
    )
    return (around * weights).sum(-1)


def convolve(values: Array, measure: Array) -> Array:
    """``int_0^t g(t - u) dF(u)`` on a uniform grid, by the trapezoidal rule in ``dF``.

    Args:
        values: ``(n + 1,)`` of ``g``.
        measure: ``(n + 1,)`` of ``F``, zero first.

    Returns:
        ``(n + 1,)``.

    Example:
        >>> import jax.numpy as jnp
        >>> t = jnp.linspace(0.0, 2.0, 65)
        >>> print(f"{convolve(jnp.exp(-t), t)[-1]:.3f}")  # 1 - exp(-2)
        0.865
    """
    points = values.shape[-1]
    pieces = jnp.diff(measure)
    middles = jnp.concatenate([jnp.zeros_like(values[:1]), 0.5 * (values[1:] + values[:-1])])
    pieces = jnp.concatenate([pieces, jnp.zeros_like(pieces[:1])])
    size = 4 * (points - 1)
    return jnp.fft.irfft(jnp.fft.rfft(middles, size) * jnp.fft.rfft(pieces, size), size)[:points]
