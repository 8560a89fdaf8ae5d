"""Steps of underdamped Langevin dynamics.

Position x and velocity v of a particle of unit mass in the potential U at temperature one,

    dx = v dt,    dv = -grad U(x) dt - gamma v dt + sqrt(2 gamma) dW,

whose stationary law is proportional to exp(-U(x) - |v|^2 / 2). A preconditioner is a change of coordinates and
belongs to the caller. For a Gaussian U of unit variance and gamma = 1 the integrated autocorrelation times of x and
of x^2 are both 2 units of time, and no other gamma makes the larger of the two smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["LangevinPoint", "LevyArea", "baoab_step", "baoab_trajectory", "draw_levy_area", "join_levy_areas"]

PotentialAndGrad = Callable[[Array], tuple[Array, Array]]


class LangevinPoint(NamedTuple):
    """A point of phase space, with what is known of the potential there.

    Attributes:
        position: shape ``(d,)``.
        velocity: shape ``(d,)``.
        potential: U at the position.
        gradient: of U, shape ``(d,)``.
        energy_error: what the deterministic parts of the steps so far have added to U + |v|^2 / 2.
    """

    position: Array
    velocity: Array
    potential: Array
    gradient: Array
    energy_error: Array


def baoab_step(
    potential_and_grad: PotentialAndGrad,
    point: LangevinPoint,
    step_size: Array,
    friction: float,
    noise: Array,
) -> LangevinPoint:
    """One step of the splitting kick, drift, thermostat, drift, kick (BAOAB; Leimkuhler and Matthews 2013, AMRX).

    One gradient a step. On a Gaussian potential the stationary law of the position is exact for every step below 2.
    The thermostat leaves the law of the velocity as it is, so that the change of energy over the other four parts is
    the logarithm of the ratio that a Metropolis test of the whole step needs (Bou-Rabee and Owhadi 2010, *SIAM J.
    Numer. Anal.* 48:278).

    Args:
        potential_and_grad: U and its gradient.
        point: where the step starts.
        step_size: of time.
        friction: gamma.
        noise: standard normal, shape ``(d,)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> quadratic = lambda x: (0.5 * jnp.sum(x**2), x)
        >>> x, v = jnp.array([1.0]), jnp.array([0.0])
        >>> start = LangevinPoint(x, v, *quadratic(x), jnp.array(0.0))
        >>> baoab_step(quadratic, start, 0.5, 0.0, jnp.zeros(1)).position
        Array([0.875], dtype=float32)
    """
    x, v, potential, gradient, error = point
    decay = jnp.exp(-friction * step_size)
    v_kicked = v - 0.5 * step_size * gradient
    x = x + 0.5 * step_size * v_kicked
    v_mixed = decay * v_kicked + jnp.sqrt(1.0 - decay**2) * noise
    x = x + 0.5 * step_size * v_mixed
    potential_new, gradient = potential_and_grad(x)
    v_new = v_mixed - 0.5 * step_size * gradient
    kinetic = 0.5 * (jnp.sum(v_kicked**2 - v**2) + jnp.sum(v_new**2 - v_mixed**2))
    return LangevinPoint(x, v_new, potential_new, gradient, error + (potential_new - potential) + kinetic)


def baoab_trajectory(
    key: Array,
    potential_and_grad: PotentialAndGrad,
    start: LangevinPoint,
    step_size: Array,
    friction: float,
    num_steps: Array,
) -> LangevinPoint:
    """The end of ``num_steps`` steps of :func:`baoab_step` with noise drawn from ``key``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> quadratic = lambda x: (0.5 * jnp.sum(x**2), x)
        >>> x = jnp.ones(2)
        >>> start = LangevinPoint(x, x, *quadratic(x), jnp.array(0.0))
        >>> end = baoab_trajectory(jax.random.key(0), quadratic, start, 0.1, 1.0, 20)
        >>> bool(abs(end.energy_error) < 0.05)
        True
    """

    def step(n: Array, point: LangevinPoint) -> LangevinPoint:
        noise = jax.random.normal(jax.random.fold_in(key, n), point.position.shape, point.position.dtype)
        return baoab_step(potential_and_grad, point, step_size, friction, noise)

    return jax.lax.fori_loop(0, num_steps, step, start)


class LevyArea(NamedTuple):
    """A Brownian path W on an interval of length h, as much of it as a solver of strong order three asks for.

    Attributes:
        W: the increment, of variance h.
        H: space-time Levy area, (1/h) int (W_u - (u/h) W) du, of variance h / 12.
        K: space-time-time Levy area, (1/h^2) int (W_u - (u/h) W) (h/2 - u) du, of variance h / 720.

    The three are independent normals (Foster, Lyons and Oberhauser 2020, *SIAM J. Numer. Anal.* 58:1393).
    """

    W: Array
    H: Array
    K: Array


def draw_levy_area(key: Array, length: Array, shape: tuple[int, ...], dtype: Any) -> LevyArea:
    """A path on an interval of the given length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> area = draw_levy_area(jax.random.key(0), 1.0, (10_000,), jnp.float32)
        >>> all(abs(float(v) - 1.0) < 0.05 for v in (area.W.var(), 12 * area.H.var(), 720 * area.K.var()))
        True
    """
    scales = jnp.sqrt(length * jnp.asarray([1.0, 1.0 / 12.0, 1.0 / 720.0], dtype))
    normal = jax.random.normal(key, (3, *shape), dtype)
    return LevyArea(*(scale * noise for scale, noise in zip(scales, normal, strict=True)))


def join_levy_areas(first: LevyArea, second: LevyArea) -> LevyArea:
    """The path on two adjacent intervals of equal length as one path, by the integrals that define the areas.

    Example:
        >>> import jax.numpy as jnp
        >>> one = LevyArea(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
        >>> tuple(float(part) for part in join_levy_areas(one, one))
        (2.0, 0.0, 0.0)
    """
    return LevyArea(
        first.W + second.W,
        0.5 * (first.H + second.H) + 0.25 * (first.W - second.W),
        0.25 * (first.K + second.K) + 0.125 * (first.H - second.H),
    )
