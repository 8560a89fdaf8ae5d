r"""Covariance functions of stationary processes, smooth enough to count their crossings of a level.

A covariance is an equinox module whose fields are its hyper-parameters: ``Diffusion(2.0, scale=3.0)``. All have
variance one (what is at level zero has no amplitude) and a ``scale``, which stretches time. They differ in shape:

=========================================  ==========================================================  ===========
family                                     :math:`r(x)`, :math:`x = t / \mathrm{scale} \ge 0`          :math:`-r''(0)`
=========================================  ==========================================================  ===========
:class:`Diffusion` ``(dimension)``         :math:`\operatorname{sech}(x/2)^{d/2}`                      :math:`d/8`
:class:`SquaredExponential`                :math:`e^{-x^2/2}`                                          1
:class:`Matern32`                          :math:`(1 + \sqrt3 x) e^{-\sqrt3 x}`                        3
:class:`Matern52`                          :math:`(1 + \sqrt5 x + 5x^2/3) e^{-\sqrt5 x}`               5/3
:class:`RandomAcceleration`                :math:`(3 e^{-x/2} - e^{-3x/2})/2`                          3/4
:class:`RationalQuadratic` ``(alpha)``     :math:`(1 + x^2/2\alpha)^{-\alpha}`                         1
:class:`DampedCosine` ``(frequency)``      :math:`e^{-x^2/2} \cos(\omega x)`                           :math:`1 + \omega^2`
:class:`FromFunction` ``(function)``       any function                                                by derivatives
=========================================  ==========================================================  ===========

**Your own family**, with hyper-parameters of its own, is a subclass that writes down ``correlation``:

    >>> import jax.numpy as jnp
    >>> class TwoScales(Covariance):
    ...     share: Array
    ...     def correlation(self, x):
    ...         return self.share * jnp.exp(-x**2 / 2) + (1 - self.share) * jnp.exp(-x**2 / 18)
    >>> print(f"{TwoScales(jnp.array(0.9), scale=2.0).mean_interval():.3f}")
    6.583
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import finite_numbers, is_known, numbers, shown

__all__ = [
    "Covariance",
    "DampedCosine",
    "Diffusion",
    "FromFunction",
    "Matern32",
    "Matern52",
    "RandomAcceleration",
    "RationalQuadratic",
    "SquaredExponential",
]


def _real(name: str) -> Callable[[ArrayLike], Array]:
    return lambda x: jnp.asarray(numbers(x, name), float)


class Covariance(eqx.Module):
    """A stationary covariance of variance one: the base of all families.

    A subclass declares its hyper-parameters as fields and defines :meth:`correlation`; where ``1 - r`` loses digits
    near zero it also defines :meth:`one_minus_correlation`, and where derivatives are cheap in closed form
    :meth:`shape`. Hyper-parameters may be arrays: one covariance each.

    Args:
        scale: time unit of the family, positive.

    Example:
        >>> r = SquaredExponential(scale=2.0)
        >>> print(f"{r.mean_interval():.4f}")  # zero crossings are pi * scale apart on average
        6.2832
    """

    scale: Any = eqx.field(converter=_real("scale"), default=1.0, kw_only=True)

    def __check_init__(self) -> None:
        _check_positive(self)

    def correlation(self, x: Array) -> Array:
        """``r`` at ``x = t / scale``, non-negative."""
        raise NotImplementedError(f"{type(self).__name__} must define `correlation(self, x)`.")

    def one_minus_correlation(self, x: Array) -> Array:
        """``1 - r``, without cancellation near zero where a family can."""
        return 1.0 - self.correlation(x)

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        """``1 - r``, ``r'`` and ``r''`` at ``x > 0``, in units of ``scale``."""

        def slope(x: Array) -> Array:
            return jax.jvp(self.correlation, (x,), (jnp.ones_like(x),))[1]

        first, second = jax.jvp(slope, (x,), (jnp.ones_like(x),))
        return self.one_minus_correlation(x), first, second

    def curvature(self) -> Array:
        """``-r''(0)`` in units of ``scale``."""
        return -self.shape(jnp.zeros(()))[2]

    # ------------------------------------------------------------------------------------- in units of time

    def __call__(self, t: ArrayLike) -> Array:
        """Covariance at lag ``t``."""
        return self.correlation(jnp.abs(jnp.asarray(t, float)) / self.scale)

    def derivatives(self, t: Array) -> tuple[Array, Array, Array]:
        """``1 - r(t)``, ``r'(t)`` and ``r''(t)`` at lags ``t > 0``."""
        rest, first, second = self.shape(t / self.scale)
        return rest, first / self.scale, second / self.scale**2

    def second_spectral_moment(self) -> Array:
        """Variance of the derivative of the process, ``-r''(0)``; per squared unit of time."""
        return self.curvature() / self.scale**2

    def mean_interval(self) -> Array:
        """Mean time between zero crossings (Rice, 1944), in units of time."""
        return jnp.pi / jnp.sqrt(self.curvature()) * self.scale

    def with_mean_interval(self, mean_interval: ArrayLike) -> Any:
        """The same shape with its time stretched so that zero crossings are this far apart on average.

        Example:
            >>> print(f"{Diffusion(2.0).with_mean_interval(5.0).mean_interval():.4f}")
            5.0000
        """
        scale = jnp.asarray(mean_interval, float) * jnp.sqrt(self.curvature()) / jnp.pi
        return eqx.tree_at(lambda covariance: covariance.scale, self, scale)


class Diffusion(Covariance):
    """A field that diffuses from white noise, at one point, against the logarithm of time.

    ``r = sech(x / 2)^(dimension / 2)`` (Majumdar, Sire, Bray and Cornell; Derrida, Hakim and Zeitak, 1996,
    *Phys. Rev. Lett.* 77:2867 and 2871).

    Args:
        dimension: of space, positive; need not be an integer.
        scale: time unit.

    Example:
        >>> print(f"{Diffusion(2.0).mean_interval():.4f}")
        6.2832
    """

    dimension: Any = eqx.field(converter=_real("dimension"), default=2.0)

    def _parts(self, x: Array) -> tuple[Array, Array]:
        """``tanh(x / 2)`` and ``log sech(x / 2)``, the latter exact at both ends."""
        decay = jnp.exp(-x)
        tanh = -jnp.expm1(-x) / (1 + decay)
        near = 0.5 * jnp.log1p(-(jnp.where(x < 2.0, tanh, 0.0) ** 2))
        far = jnp.log(2.0) - x / 2 - jnp.log1p(decay)
        return tanh, jnp.where(x < 2.0, near, far)

    def correlation(self, x: Array) -> Array:
        return jnp.exp(0.5 * self.dimension * self._parts(x)[1])

    def one_minus_correlation(self, x: Array) -> Array:
        return -jnp.expm1(0.5 * self.dimension * self._parts(x)[1])

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        tanh, log_sech = self._parts(x)
        exponent = 0.5 * self.dimension * log_sech
        r, k = jnp.exp(exponent), self.dimension / 4
        return -jnp.expm1(exponent), -k * tanh * r, r * (k**2 * tanh**2 - k / 2 * (1 - tanh**2))

    def curvature(self) -> Array:
        return self.dimension / 8 + 0 * self.scale


class SquaredExponential(Covariance):
    """``r = exp(-x^2 / 2)``: infinitely smooth.

    Args:
        scale: length scale, in units of time.

    Example:
        >>> print(f"{SquaredExponential()(1.0):.4f}")
        0.6065
    """

    def correlation(self, x: Array) -> Array:
        return jnp.exp(-0.5 * x**2)

    def one_minus_correlation(self, x: Array) -> Array:
        return -jnp.expm1(-0.5 * x**2)

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        r = jnp.exp(-0.5 * x**2)
        return -jnp.expm1(-0.5 * x**2), -x * r, (x**2 - 1) * r

    def curvature(self) -> Array:
        return jnp.ones_like(self.scale)


def _log1p_minus(y: Array) -> Array:
    """``log(1 + y) - y`` for ``y >= 0``, without cancellation near zero: a series below 0.05."""
    near = y < 0.05
    small = jnp.where(near, y, 0.0)
    series = jnp.zeros_like(small)
    for k in range(12, 1, -1):  # Horner; the terms left out are below 1e-17
        series = small * series + (-1.0) ** (k + 1) / k
    large = jnp.where(near, 1.0, y)
    return jnp.where(near, small**2 * series, jnp.log1p(large) - large)


class Matern32(Covariance):
    """Matern covariance with smoothness 3/2: a velocity that is continuous, but rough.

    Args:
        scale: length scale, in units of time.

    Example:
        >>> print(f"{Matern32()(1.0):.4f}")
        0.4834
    """

    def correlation(self, x: Array) -> Array:
        y = jnp.sqrt(3.0) * x
        return (1 + y) * jnp.exp(-y)

    def one_minus_correlation(self, x: Array) -> Array:
        return -jnp.expm1(_log1p_minus(jnp.sqrt(3.0) * x))

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        y = jnp.sqrt(3.0) * x
        decay = jnp.exp(-y)
        return -jnp.expm1(_log1p_minus(y)), -jnp.sqrt(3.0) * y * decay, 3 * (y - 1) * decay

    def curvature(self) -> Array:
        return jnp.full_like(self.scale, 3.0)


class Matern52(Covariance):
    """Matern covariance with smoothness 5/2: twice differentiable.

    Args:
        scale: length scale, in units of time.

    Example:
        >>> print(f"{Matern52()(1.0):.4f}")
        0.5240
    """

    def correlation(self, x: Array) -> Array:
        y = jnp.sqrt(5.0) * x
        return (1 + y + y**2 / 3) * jnp.exp(-y)

    def one_minus_correlation(self, x: Array) -> Array:
        y = jnp.sqrt(5.0) * x
        return -jnp.expm1(_log1p_minus(y) + jnp.log1p(y**2 / (3 * (1 + y))))

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        y = jnp.sqrt(5.0) * x
        decay = jnp.exp(-y)
        first = -jnp.sqrt(5.0) / 3 * y * (1 + y) * decay
        return self.one_minus_correlation(x), first, 5 / 3 * (y**2 - y - 1) * decay

    def curvature(self) -> Array:
        return jnp.full_like(self.scale, 5 / 3)


class RandomAcceleration(Covariance):
    """A particle under white-noise force, its position against the logarithm of time, scaled to variance one.

    ``r = (3 exp(-x / 2) - exp(-3 x / 2)) / 2`` (the integrated Wiener process; its first returns: McKean, 1963).

    Args:
        scale: time unit.

    Example:
        >>> print(f"{RandomAcceleration().mean_interval():.4f}")
        3.6276
    """

    def correlation(self, x: Array) -> Array:
        return 1.5 * jnp.exp(-x / 2) - 0.5 * jnp.exp(-1.5 * x)

    def one_minus_correlation(self, x: Array) -> Array:
        y = -jnp.expm1(-x / 2)
        return 0.5 * y**2 * (3 - y)

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        half = jnp.exp(-x / 2)
        first = 0.75 * half * jnp.expm1(-x)
        return self.one_minus_correlation(x), first, 0.375 * half * (1 - 3 * jnp.exp(-x))

    def curvature(self) -> Array:
        return jnp.full_like(self.scale, 0.75)


class RationalQuadratic(Covariance):
    """``r = (1 + x^2 / (2 alpha))^-alpha``: squared exponentials of all lengths; memory without a longest time.

    Excursions then have no exponential tail. Below ``alpha`` of one the laws, which continue with the last hazard they
    computed, miss part of it (of their mean 0.1 % at 1, 5 % at 0.3).

    Args:
        alpha: positive; small is a longer tail.
        scale: length scale, in units of time.

    Example:
        >>> print(f"{RationalQuadratic(1.0)(2.0):.4f}")
        0.3333
    """

    alpha: Any = eqx.field(converter=_real("alpha"), default=2.0)

    def _log_correlation(self, x: Array) -> Array:
        return -self.alpha * jnp.log1p(x**2 / (2 * self.alpha))

    def correlation(self, x: Array) -> Array:
        return jnp.exp(self._log_correlation(x))

    def one_minus_correlation(self, x: Array) -> Array:
        return -jnp.expm1(self._log_correlation(x))

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        exponent = self._log_correlation(x)
        r, base = jnp.exp(exponent), 1 + x**2 / (2 * self.alpha)
        return -jnp.expm1(exponent), -x * r / base, r / base**2 * (x**2 * (1 + 0.5 / self.alpha) - 1)

    def curvature(self) -> Array:
        return jnp.ones_like(self.alpha * self.scale)


class DampedCosine(Covariance):
    """``r = exp(-x^2 / 2) cos(frequency x)``: a noisy oscillation.

    The independent-interval law holds up to a frequency of about 1.4; beyond, it is refused.

    Args:
        frequency: radians per ``scale``.
        scale: time over which the phase is forgotten.

    Example:
        >>> print(f"{DampedCosine(1.0)(1.0):.4f}")
        0.3277
    """

    frequency: Any = eqx.field(
        converter=lambda x: jnp.asarray(finite_numbers(x, "frequency"), float), default=0.5
    )

    def correlation(self, x: Array) -> Array:
        return jnp.exp(-0.5 * x**2) * jnp.cos(self.frequency * x)

    def one_minus_correlation(self, x: Array) -> Array:
        lost = -jnp.expm1(-0.5 * x**2)
        return lost + (1 - lost) * 2 * jnp.sin(0.5 * self.frequency * x) ** 2

    def shape(self, x: Array) -> tuple[Array, Array, Array]:
        w, g = self.frequency, jnp.exp(-0.5 * x**2)
        sin, cos = jnp.sin(w * x), jnp.cos(w * x)
        return (
            self.one_minus_correlation(x),
            -g * (x * cos + w * sin),
            g * ((x**2 - 1 - w**2) * cos + 2 * w * x * sin),
        )

    def curvature(self) -> Array:
        return 1 + self.frequency**2 + 0 * self.scale


class FromFunction(Covariance):
    """Any function ``r(x)`` of a non-negative lag, with ``r(0) = 1``; derivatives are taken automatically.

    Args:
        function: written with ``jax.numpy``, elementwise.
        one_minus: ``1 - r`` without cancellation, where it can be written down (``-jnp.expm1(...)``). Without it
            log-densities are good to about 1e-4 in double precision.
        scale: stretches time: ``r(t / scale)``.

    Raises:
        ValueError: ``function`` is not one at zero, is not smooth there (then crossings come in swarms and have no
            mean distance: the second spectral moment is infinite), or does not fall to zero.

    Example:
        >>> import jax.numpy as jnp
        >>> r = FromFunction(lambda x: 1 / jnp.cosh(x), one_minus=lambda x: 2 * jnp.sinh(x / 2) ** 2 / jnp.cosh(x))
        >>> print(f"{r.mean_interval():.4f}")
        3.1416
    """

    function: Callable[[Array], Array] = eqx.field(static=True)
    one_minus: Callable[[Array], Array] | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name, function in (("function", self.function), ("one_minus", self.one_minus)):
            if function is not None and not callable(function):
                raise ValueError(
                    f"FromFunction: `{name}` must be a function of the lag, not {shown(function)}."
                )

    def correlation(self, x: Array) -> Array:
        return self.function(x)

    def one_minus_correlation(self, x: Array) -> Array:
        return 1.0 - self.function(x) if self.one_minus is None else self.one_minus(x)


def _check_positive(covariance: Covariance) -> None:
    for field in ("scale", "dimension", "alpha"):
        value = getattr(covariance, field, 1.0)
        known = np.asarray(value) if is_known(value) else np.ones(())
        if not ((known > 0) & np.isfinite(known)).all():
            raise ValueError(f"{type(covariance).__name__}: `{field}` must be positive; got {value}.")


def check_covariance(covariance: Any) -> None:
    """Refuse what has no crossings to count; looks only where values are known (not under ``jit``).

    Raises:
        ValueError: not a covariance, not one at zero, an infinite second spectral moment, or no decay.
    """
    if not isinstance(covariance, Covariance):
        raise ValueError(
            f"`covariance` must be a Covariance, such as Diffusion(2.0, scale=3.0) or FromFunction(r); got "
            f"{type(covariance).__name__}."
        )
    leaves = jax.tree.leaves(covariance)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    _check_positive(covariance)
    name = type(covariance).__name__
    at_zero = covariance.correlation(jnp.zeros(()))
    if isinstance(at_zero, jax.core.Tracer):  # the function closes over values that are not known yet
        return
    if not np.allclose(at_zero, 1.0, atol=1e-5):
        raise ValueError(
            f"{name}: the covariance is {float(np.ravel(at_zero)[0]):.6g} at lag zero and must be 1 there; divide it "
            "by the variance."
        )
    curvature = np.asarray(covariance.curvature())
    rough = not np.all(np.isfinite(curvature) & (curvature > 0))
    if not rough:
        short = 3e-3 / jnp.sqrt(curvature)  # 1 - r = curvature x^2 / 2 here, or there is a kink at zero
        rest = np.asarray(covariance.one_minus_correlation(short)) * 2 / 9e-6
        rough = bool(np.any(abs(rest - 1) > 0.3))
    if rough:
        raise ValueError(
            f"{name}: the second spectral moment -r''(0) is not finite and positive, so the process crosses a level "
            "infinitely often at once (as an Ornstein-Uhlenbeck process or Matern-1/2 does): there are no excursions "
            "to time. Smooth the process, or take a covariance that is flat at lag zero."
        )
    far = np.array([1.0e4, 1.37e4, 2.11e4]).reshape(3, *(1,) * curvature.ndim)
    distant = np.abs(np.asarray(covariance.correlation(jnp.asarray(np.pi / np.sqrt(curvature) * far))))
    if np.any(distant > 0.05):
        raise ValueError(
            f"{name}: the covariance does not fall to zero at long lags (it is {distant.max():.2g} after "
            "ten thousand mean intervals): the process does not forget, and excursions have no common law."
        )


def batch_shape(covariance: Covariance) -> tuple[int, ...]:
    """Shape of the hyper-parameters: one covariance for each entry."""
    return jnp.shape(covariance.second_spectral_moment())


def flatten(covariance: Covariance, shape: tuple[int, ...]) -> Any:
    """Hyper-parameters broadcast to ``shape`` and laid out along one leading axis, for ``vmap``."""

    def lay_out(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)  # a number, in a family of one's own
        own = leaf.shape[len(shape) :] if leaf.ndim > len(shape) else ()
        return jnp.broadcast_to(leaf, (*shape, *own)).reshape(-1, *own)

    return jax.tree.map(lay_out, covariance)
