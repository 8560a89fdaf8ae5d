"""Exact Gaussian laws of a fractional Brownian motion read at given times, and of its increments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import numbers, whole_number
from sojourn.distributions._missing import is_missing
from sojourn.ops import fractional

__all__ = ["FractionalBrownianMotion", "FractionalGaussianNoise"]

_HALF_LOG_TWO_PI = 0.5 * np.log(2 * np.pi)


class _GaussianSeries(dist.Distribution):
    """A Gaussian vector in the order of time, by the Cholesky factor of its covariance; NaN is not observed."""

    support = constraints.real_vector

    @property
    def mean(self) -> Array:
        raise NotImplementedError

    @property
    def covariance_matrix(self) -> Array:
        raise NotImplementedError

    @property
    def variance(self) -> Array:
        return jnp.broadcast_to(
            jnp.diagonal(self.covariance_matrix, axis1=-2, axis2=-1), self.batch_shape + self.event_shape
        )

    def _validate_sample(self, value: ArrayLike) -> Array:
        value = jnp.asarray(value)
        return super()._validate_sample(jnp.where(jnp.isnan(value), 0.0, value))

    def _whiten(self, value: ArrayLike) -> tuple[Array, Array, Array | None]:
        """``(..., N)`` innovations of unit variance, the factor ``(..., N, N)``, and what is missing.

        A missing entry becomes independent of all others: the rest then has the law it has without it.
        """
        value = jnp.asarray(value)
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"{type(self).__name__}: the series has shape {value.shape}; its last axis must be the "
                f"{self.event_shape[0]} times."
            )
        missing = is_missing(value)
        covariance, residual = self.covariance_matrix, value - self.mean
        if missing is not None:
            residual = jnp.where(missing, 0.0, jnp.where(missing, 0.0, value) - self.mean)
            covariance = _without(covariance, missing)
        factor = jnp.linalg.cholesky(covariance)
        batch = jnp.broadcast_shapes(factor.shape[:-2], residual.shape[:-1])
        if factor.ndim == 2:  # one factor, many series
            flat = residual.reshape(-1, residual.shape[-1]).T
            return solve_triangular(factor, flat, lower=True).T.reshape(residual.shape), factor, missing
        factor = jnp.broadcast_to(factor, batch + factor.shape[-2:])
        residual = jnp.broadcast_to(residual, batch + residual.shape[-1:])
        return solve_triangular(factor, residual[..., None], lower=True)[..., 0], factor, missing

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        return self.predictive_log_prob(value).sum(-1)

    def predictive_log_prob(self, value: ArrayLike) -> Array:
        """One-step-ahead log-densities ``log p(y_t | y_<t)``, ``(..., N)``; zero where ``value`` is NaN.

        They sum to :meth:`log_prob`.
        """
        innovation, factor, missing = self._whiten(value)
        scale = jnp.diagonal(factor, axis1=-2, axis2=-1)
        terms = -0.5 * innovation**2 - jnp.log(scale) - _HALF_LOG_TWO_PI
        terms = terms if missing is None else jnp.where(missing, 0.0, terms)
        return jnp.broadcast_to(terms, jnp.broadcast_shapes(terms.shape, self.batch_shape + self.event_shape))

    def sample_one_step_ahead(self, key: Array, value: ArrayLike) -> Array:
        """At every time a draw from ``p(y_t | y_<t)``, of the shape of the series; missing times are drawn too."""
        value = jnp.asarray(value)
        innovation, factor, missing = self._whiten(value)
        scale = jnp.diagonal(factor, axis1=-2, axis2=-1)
        if missing is None:
            predicted = value - scale * innovation
        else:
            # On the innovations before it, an entry that was not observed loads as well.
            covariance = self.covariance_matrix
            seen = jnp.where(missing[..., None, :], 0.0, covariance)
            loading = jnp.swapaxes(
                solve_triangular(
                    jnp.broadcast_to(factor, seen.shape), jnp.swapaxes(seen, -1, -2), lower=True
                ),
                -1,
                -2,
            )
            loading = jnp.tril(loading, -1)
            predicted = self.mean + jnp.einsum("...ij,...j->...i", loading, innovation)
            left = jnp.diagonal(covariance, axis1=-2, axis2=-1) - (loading**2).sum(-1)
            scale = jnp.where(missing, jnp.sqrt(jnp.maximum(left, 0.0)), scale)
        shape = jnp.broadcast_shapes(predicted.shape, self.batch_shape + self.event_shape)
        return predicted + scale * jax.random.normal(key, shape, predicted.dtype)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        factor = jnp.linalg.cholesky(self.covariance_matrix)
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        noise = jax.random.normal(key, shape, factor.dtype)
        return self.mean + jnp.einsum("...ij,...j->...i", factor, noise)


class FractionalBrownianMotion(_GaussianSeries):
    r"""Fractional Brownian motion read at given times, with independent errors.

    .. math::
        y_n = x_0 + \sigma B(t_n) + \epsilon_n, \qquad \epsilon_n \sim N(0, \text{noise}^2),

    ``B`` of Hurst exponent ``hurst`` and unit variance at time one
    (:func:`sojourn.ops.fractional.covariance`). The law is exact, at the cost of a Cholesky factor,
    :math:`O(N^3)`. Smooth paths read without noise need double precision: in single precision the density
    may be NaN from a few hundred times on (at ``hurst = 0.9``, from 300).

    Args:
        hurst: exponent in (0, 1).
        times: ``(N,)`` increasing, positive (the motion starts at time zero), common to the batch.
        scale: standard deviation of the motion at time one, positive.
        noise: standard deviation of the errors, zero or more.
        start: value at time zero.
        kind: "I" (stationary increments) or "II" (Riemann-Liouville, no past before time zero).
        validate_args: as in NumPyro.

    Shapes: events ``(N,)``; the batch shape is the broadcast of those of ``hurst``, ``scale``, ``noise`` and
    ``start``.

    NaN in a value is a reading that is missing: it contributes nothing.

    Raises:
        ValueError: times that do not increase from above zero, ``hurst`` outside (0, 1), a ``scale`` not
        positive, a
            negative ``noise``, a ``kind`` that is neither; where the values are known.

    Example:
        >>> import jax.numpy as jnp
        >>> motion = FractionalBrownianMotion(0.7, [0.5, 1.0, 2.0], scale=2.0, noise=0.1)
        >>> print(f"{motion.log_prob(jnp.array([0.3, jnp.nan, 1.0])):.3f}")
        -3.030
    """

    arg_constraints = {
        "hurst": constraints.unit_interval,
        "times": constraints.dependent(is_discrete=False, event_dim=1),
        "scale": constraints.positive,
        "noise": constraints.nonnegative,
        "start": constraints.real,
    }
    reparametrized_params = ["hurst", "scale", "noise", "start"]
    pytree_data_fields = ("hurst", "times", "scale", "noise", "start")
    pytree_aux_fields = ("kind",)

    def __init__(
        self,
        hurst: ArrayLike,
        times: ArrayLike,
        *,
        scale: ArrayLike = 1.0,
        noise: ArrayLike = 0.0,
        start: ArrayLike = 0.0,
        kind: fractional.Kind = "I",
        validate_args: bool | None = None,
    ):
        name = "FractionalBrownianMotion"
        if kind not in ("I", "II"):
            raise ValueError(
                f"{name}: `kind` is {kind!r}; it must be 'I' (stationary increments) or 'II' (no past before time zero)."
            )
        self.kind = kind
        # NumPy where known: inside jit, jnp.asarray would hide the values.
        self.times = times if isinstance(times, jax.Array) else np.asarray(numbers(times, "times"), float)
        _check_times(self.times, name)
        _check(name, "hurst", hurst, lambda x: (x > 0) & (x < 1), "above 0 and below 1")
        _check(name, "scale", scale, lambda x: (x > 0) & np.isfinite(x), "above 0 and finite")
        _check(name, "noise", noise, lambda x: (x >= 0) & np.isfinite(x), "0 or more, and finite")
        _check(name, "start", start, np.isfinite, "finite")
        self.hurst, self.scale, self.noise, self.start = (_floating(x) for x in (hurst, scale, noise, start))
        batch = jnp.broadcast_shapes(*(jnp.shape(x) for x in (hurst, scale, noise, start)))
        super().__init__(batch, (self.times.shape[0],), validate_args=validate_args)

    def _motion(self, times: ArrayLike, other: ArrayLike | None = None) -> Array:
        """``(..., N, M)``: covariance of the motion without errors."""
        unit = _over_batch(lambda hurst: fractional.covariance(times, hurst, self.kind, other), self.hurst)
        return self.scale[..., None, None] ** 2 * unit

    @property
    def mean(self) -> Array:
        return jnp.broadcast_to(self.start[..., None], self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Array:
        """``(..., N, N)``: of the readings, errors included."""
        motion = self._motion(self.times)
        return motion + self.noise[..., None, None] ** 2 * jnp.eye(self.event_shape[0], dtype=motion.dtype)

    def path_given(self, value: ArrayLike, times: ArrayLike | None = None) -> tuple[Array, Array]:
        """Law of the motion without errors, given the readings (interpolation, forecast, bridge).

        Args:
            value: ``(..., N)``, NaN where missing.
            times: ``(M,)``, where the motion is asked for; by default the times of the readings.

        Returns:
            Mean ``(..., M)`` and covariance ``(..., M, M)``.

        Example:
            >>> import jax.numpy as jnp
            >>> end = FractionalBrownianMotion(0.3, [2.0], noise=0.1)
            >>> mean, covariance = end.path_given(jnp.zeros(1), [1.0])
            >>> print(f"{covariance[0, 0]:.4f}")
            0.6236
        """
        times = self.times if times is None else times
        innovation, factor, missing = self._whiten(value)
        between = self._motion(self.times, times)
        if missing is not None:
            between = jnp.where(missing[..., None], 0.0, between)
        batch = jnp.broadcast_shapes(between.shape[:-2], factor.shape[:-2])
        between = jnp.broadcast_to(between, batch + between.shape[-2:])
        loading = solve_triangular(jnp.broadcast_to(factor, batch + factor.shape[-2:]), between, lower=True)
        mean = self.start[..., None] + jnp.einsum("...nm,...n->...m", loading, innovation)
        covariance = self._motion(times) - jnp.swapaxes(loading, -1, -2) @ loading
        return mean, jnp.broadcast_to(covariance, mean.shape + mean.shape[-1:])


class FractionalGaussianNoise(_GaussianSeries):
    r"""Fractional Gaussian noise: the increments of fractional Brownian motion over equal steps.

    Stationary, of standard deviation ``scale`` at every step, with the autocorrelation
    :math:`\frac12 (|k + 1|^{2H} - 2 |k|^{2H} + |k - 1|^{2H})` (Mandelbrot and Van Ness 1968): long memory
    above 1/2, none at 1/2, alternation below. Exact, by a dense Cholesky factor: fine up to a few thousand
    steps.

    Args:
        hurst: exponent in (0, 1).
        num_steps: ``N``, length of the series.
        loc: mean.
        scale: standard deviation, positive.
        validate_args: as in NumPyro.

    Shapes: events ``(N,)``; the batch shape is the broadcast of those of ``hurst``, ``loc`` and ``scale``.

    NaN in a value is a reading that is missing: it contributes nothing.

    Raises:
        ValueError: ``hurst`` outside (0, 1), a ``scale`` not positive, where their values are known; no
        steps.

    Example:
        >>> import jax.numpy as jnp
        >>> noise = FractionalGaussianNoise(0.8, 3, loc=1.0)
        >>> print(f"{noise.log_prob(jnp.array([1.5, 1.2, jnp.nan])):.3f}")
        -1.811
    """

    arg_constraints = {
        "hurst": constraints.unit_interval,
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    reparametrized_params = ["hurst", "loc", "scale"]
    pytree_data_fields = ("hurst", "loc", "scale")
    pytree_aux_fields = ("num_steps",)

    def __init__(
        self,
        hurst: ArrayLike,
        num_steps: int,
        *,
        loc: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
        validate_args: bool | None = None,
    ):
        name = "FractionalGaussianNoise"
        num_steps = whole_number(num_steps, "num_steps", None)
        if num_steps < 1:
            raise ValueError(f"{name}: `num_steps` is {num_steps}; a series needs one step at least.")
        self.num_steps = int(num_steps)
        _check(name, "hurst", hurst, lambda x: (x > 0) & (x < 1), "above 0 and below 1")
        _check(name, "loc", loc, np.isfinite, "finite")
        _check(name, "scale", scale, lambda x: (x > 0) & np.isfinite(x), "above 0 and finite")
        self.hurst, self.loc, self.scale = (_floating(x) for x in (hurst, loc, scale))
        batch = jnp.broadcast_shapes(*(jnp.shape(x) for x in (hurst, loc, scale)))
        super().__init__(batch, (self.num_steps,), validate_args=validate_args)

    @property
    def mean(self) -> Array:
        return jnp.broadcast_to(self.loc[..., None], self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Array:
        """``(..., N, N)``, Toeplitz."""
        first_row = _over_batch(
            lambda hurst: fractional.noise_autocovariance(hurst, self.num_steps), self.hurst
        )
        step = np.arange(self.num_steps)
        return self.scale[..., None, None] ** 2 * first_row[..., np.abs(step[:, None] - step)]


def _without(covariance: Array, missing: Array) -> Array:
    """The covariance with unit variance, and no covariance, where an entry is missing."""
    either = missing[..., :, None] | missing[..., None, :]
    return jnp.where(either, jnp.eye(missing.shape[-1], dtype=covariance.dtype), covariance)


def _over_batch(fn: Any, hurst: Array) -> Array:
    """``fn`` at every exponent of a batch."""
    if hurst.ndim == 0:
        return fn(hurst)
    values = jax.vmap(fn)(hurst.reshape(-1))
    return values.reshape(hurst.shape + values.shape[1:])


def _floating(x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.result_type(float, x))


def _check(name: str, argument: str, value: ArrayLike, holds: Any, demand: str) -> None:
    if isinstance(value, jax.core.Tracer):
        return
    known = np.asarray(numbers(value, argument), float)
    wrong = known[~holds(known)]
    if wrong.size:
        raise ValueError(f"{name}: `{argument}` is {wrong.flat[0]:.6g}; it must be {demand}.")


def _check_times(times: np.ndarray | Array, name: str) -> None:
    if times.ndim != 1 or times.shape[0] == 0:
        raise ValueError(
            f"{name}: `times` has shape {times.shape}; it must be a vector (N,), one time at least."
        )
    if isinstance(times, jax.core.Tracer):
        return
    known = np.asarray(times)
    if not np.isfinite(known).all():
        raise ValueError(f"{name}: `times` must be finite, and some are not.")
    step = np.diff(known, prepend=0.0)
    if not (step > 0).all():
        place = int(np.argmax(~(step > 0)))
        raise ValueError(
            f"{name}: `times[{place}]` is {known[place]:.6g}; times must increase, from above 0, where the motion starts."
        )
