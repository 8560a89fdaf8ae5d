"""Marginal law of noisy observations of a linear system driven by Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import numbers, whole_number
from sojourn.distributions._missing import series_support
from sojourn.ops import kalman

__all__ = ["LinearGaussian"]


class LinearGaussian(dist.Distribution):
    r"""Observations of a linear-Gaussian state space, with the states integrated out.

    .. math::
        x_0 \sim N(m_0, P_0), \quad x_n = F_n x_{n-1} + c_n + N(0, Q), \quad y_n = C x_n + N(0, R), \quad
        n = 1, \dots, N

    The value is the whole series; its log-density is one pass of a Kalman filter (:mod:`sojourn.ops.kalman`).

    Args:
        initial_mean, initial_covariance: ``(..., d)`` and ``(..., d, d)``, of the state before the first
            move.
        transition: ``(d, d)``, or ``(..., N, d, d)`` with a time axis, which may be 1 (batches of systems
            that do not change in time are ``(..., 1, d, d)``). Entry ``n`` leads to step ``n``.
        transition_covariance: ``(..., d, d)``; may be singular.
        observation: ``(..., P, d)``, or ``(d,)`` for one number a step.
        observation_covariance: ``(..., P, P)``, or ``(...)`` the variance of the one number.
        num_steps: ``N``.
        offset: ``(d,)``, or ``(..., N, d)`` with a time axis, which may be 1; none by default.
        steps: the steps that are observed, increasing integers from 0 on; all by default.
        validate_args: as in NumPyro.

    Shapes: event ``(T, P)``, or ``(T,)`` where the observation is a vector, with ``T`` the number of
    ``steps``; batch the broadcast of all ``...``.

    NaN in the value is missing: that entry alone.

    Raises:
        ValueError: shapes that do not agree, ``steps`` that do not increase or lie outside ``0, ..., N - 1``.

    Example:
        A random walk seen with unit error at its first and third step.

        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> walk = LinearGaussian(
        ...     jnp.zeros(1), 0 * one, one, one, jnp.ones(1), 1.0, num_steps=3, steps=(0, 2))
        >>> walk.event_shape, f"{walk.log_prob(jnp.array([0.5, 1.0])):.4f}"
        ((2,), '-2.9537')
        >>> mean, sd = walk.smoothed(jnp.array([0.5, 1.0]))
        >>> mean.shape
        (3, 1)
    """

    arg_constraints = {
        "initial_mean": constraints.real_vector,
        "initial_covariance": constraints.dependent(is_discrete=False, event_dim=2),
        "transition": constraints.dependent(is_discrete=False, event_dim=2),
        "transition_covariance": constraints.dependent(is_discrete=False, event_dim=2),
    }
    pytree_data_fields = (
        "initial_mean",
        "initial_covariance",
        "transition",
        "transition_covariance",
        "observation",
        "observation_covariance",
        "offset",
    )
    pytree_aux_fields = ("num_steps", "steps", "single")

    def __init__(
        self,
        initial_mean: ArrayLike,
        initial_covariance: ArrayLike,
        transition: ArrayLike,
        transition_covariance: ArrayLike,
        observation: ArrayLike,
        observation_covariance: ArrayLike,
        *,
        num_steps: int,
        offset: ArrayLike | None = None,
        steps: Any = None,
        validate_args: bool | None = None,
    ):
        self.initial_mean = _floating(initial_mean, "initial_mean")
        self.initial_covariance = _floating(initial_covariance, "initial_covariance")
        self.transition = _floating(transition, "transition")
        self.transition_covariance = _floating(transition_covariance, "transition_covariance")
        self.observation = _floating(observation, "observation")
        self.observation_covariance = _floating(observation_covariance, "observation_covariance")
        self.offset = None if offset is None else _floating(offset, "offset")
        if self.observation.ndim == 0:
            raise ValueError("`observation` must be (d,), or (..., p, d): what of the state is observed.")
        self.single = self.observation.ndim == 1
        self.num_steps = whole_number(num_steps, "num_steps", None)
        self.steps = _read_steps(steps, self.num_steps)
        batch = self._check_shapes()
        event = (self.num_observed,) if self.single else (self.num_observed, self.observation.shape[-2])
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def num_observed(self) -> int:
        return self.num_steps if self.steps is None else len(self.steps)

    def _check_shapes(self) -> tuple[int, ...]:
        """Shapes that do not agree are named; the batch shape."""
        if self.initial_mean.ndim < 1:
            raise ValueError("`initial_mean` must be (..., d), a vector.")
        d = self.initial_mean.shape[-1]
        p = 1 if self.single else self.observation.shape[-2]
        error = () if self.single else (p, p)
        wanted: list[tuple[str, Array, tuple[int, ...], bool]] = [
            ("initial_mean", self.initial_mean, (d,), False),
            ("initial_covariance", self.initial_covariance, (d, d), False),
            ("transition", self.transition, (d, d), True),
            ("transition_covariance", self.transition_covariance, (d, d), False),
            ("observation", self.observation, (d,) if self.single else (p, d), False),
            ("observation_covariance", self.observation_covariance, error, False),
        ]
        if self.offset is not None:
            wanted.append(("offset", self.offset, (d,), True))
        batches = []
        for name, array, core, timed in wanted:
            lead = array.shape[: array.ndim - len(core)]
            if array.shape[array.ndim - len(core) :] != core or array.ndim < len(core):
                raise ValueError(
                    f"`{name}` has shape {array.shape}; with {d} states and {p} observed numbers its last "
                    f"axes must be {core}."
                )
            if timed and lead:
                if lead[-1] not in (1, self.num_steps):
                    raise ValueError(
                        f"`{name}` has {lead[-1]} entries in time, and `num_steps` is {self.num_steps}; "
                        "batches of systems "
                        "that do not change in time need a time axis of length one."
                    )
                lead = lead[:-1]
            batches.append(lead)
        return jnp.broadcast_shapes(*batches)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        shape = (1,) if self.single else (1, self.observation.shape[-2])
        return series_support(dist.Normal(np.zeros(shape), 1.0).to_event(len(shape) - 1), None)

    # ---------------------------------------------------------------------------------- log-probability

    def _on_grid(self, value: ArrayLike) -> Array:
        """``(..., N, P)`` with NaN at the steps that are not observed."""
        value = _floating(value, "value")
        n = len(self.event_shape)
        if value.shape[value.ndim - n :] != self.event_shape:
            raise ValueError(f"The series has shape {value.shape}; its last axes must be {self.event_shape}.")
        value = value[..., None] if self.single else value
        if self.steps is None:
            return value
        blank = jnp.full((*value.shape[:-2], self.num_steps, value.shape[-1]), jnp.nan, value.dtype)
        return blank.at[..., np.asarray(self.steps), :].set(value)

    def _each(self, fn: Callable[..., Any], y: Array) -> Any:
        """``fn`` of :mod:`sojourn.ops.kalman` over the batch."""
        observation, error = self.observation, self.observation_covariance
        if self.single:
            observation, error = observation[None], error[..., None, None]
        transition, by_step = _without_time(self.transition, 2)
        args = [self.initial_mean, self.initial_covariance, transition, self.transition_covariance]
        args, cores = [*args, observation, error], [1, 2, 2 + by_step, 2, 2, 2]
        if self.offset is not None:
            offset, by_step = _without_time(self.offset, 1)
            args, cores = [*args, offset], [*cores, 1 + by_step]

        def one(y, *args):
            return fn(y, *args[:6], offset=args[6] if len(args) > 6 else None)

        batch = jnp.broadcast_shapes(y.shape[:-2], self.batch_shape)
        axes = [tuple(a.shape[: a.ndim - c]) for a, c in zip(args, cores, strict=True)]
        y = jnp.broadcast_to(y, (*batch, *y.shape[-2:]))
        for level in range(len(batch)):  # the innermost axis first; an array without it is shared
            fallen = [len(lead) > level for lead in axes]
            one = jax.vmap(one, in_axes=(0, *(0 if f else None for f in fallen)))
        full = [
            jnp.broadcast_to(a, (*batch[len(batch) - len(lead) :], *a.shape[len(lead) :]))
            for a, lead in zip(args, axes, strict=True)
        ]
        return one(y, *full)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        return self._each(kalman.log_likelihood, self._on_grid(value))

    def predictive_log_prob(self, value: ArrayLike) -> Array:
        """One-step-ahead log-densities ``log p(y_t | y_<t)``, ``(..., T)``; zero where there is no datum."""
        return self._observed_steps(self.filter(value).log_predictive)

    def _observed_steps(self, x: Array, event: int = 0) -> Array:
        return x if self.steps is None else jnp.take(x, np.asarray(self.steps), axis=x.ndim - 1 - event)

    # -------------------------------------------------------------------------------------- hidden states

    def filter(self, value: ArrayLike) -> kalman.Filtered:
        """Laws of the states given the past, on all ``N`` steps."""
        return self._each(kalman.filter, self._on_grid(value))

    def smooth(self, value: ArrayLike) -> kalman.Smoothed:
        """Laws of the states given the whole series, on all ``N`` steps, with covariances."""
        return self._each(kalman.smooth, self._on_grid(value))

    def smoothed(self, value: ArrayLike) -> tuple[Array, Array]:
        """Mean and standard deviation of the states given the whole series, each ``(..., N, d)``."""
        found = self.smooth(value)
        variance = jnp.diagonal(found.covariance, axis1=-2, axis2=-1)
        return found.mean, jnp.sqrt(jnp.maximum(variance, 0.0))

    # ------------------------------------------------------------------------------------------- sampling

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        key_start, key_move, key_error = jax.random.split(key, 3)
        shape = (*sample_shape, *self.batch_shape)
        d = self.initial_mean.shape[-1]
        dtype = self.initial_mean.dtype
        start = self.initial_mean + _product(
            _root(self.initial_covariance), jax.random.normal(key_start, (*shape, d), dtype)
        )
        pushes = _product(
            _root(self.transition_covariance), jax.random.normal(key_move, (self.num_steps, *shape, d), dtype)
        )
        transition, by_step = _without_time(self.transition, 2)
        moves = jnp.moveaxis(transition, -3, 0) if by_step else None
        offset, by_step = _without_time(jnp.zeros(d, dtype) if self.offset is None else self.offset, 1)
        drifts = jnp.moveaxis(offset, -2, 0) if by_step else None

        def step(x, inputs):
            push, move, drift = inputs
            x = (
                _product(transition if move is None else move, x)
                + (offset if drift is None else drift)
                + push
            )
            return x, x

        _, states = lax.scan(step, jnp.broadcast_to(start, (*shape, d)), (pushes, moves, drifts))
        states = self._observed_steps(jnp.moveaxis(states, 0, -2), 1)
        noise = jax.random.normal(key_error, (*shape, *self.event_shape), dtype)
        if self.single:
            return states @ self.observation + jnp.sqrt(self.observation_covariance)[..., None] * noise
        error = _product(_root(self.observation_covariance)[..., None, :, :], noise)
        return states @ jnp.swapaxes(self.observation, -1, -2) + error

    def sample_one_step_ahead(self, key: Array, value: ArrayLike) -> Array:
        """At every step a draw from ``p(y_t | y_<t)``, of the shape of the series."""
        mean, covariance = self._observable(self.filter(value))
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        drawn = mean + _product(_root(covariance), noise)
        return drawn[..., 0] if self.single else drawn

    def _observable(self, found: kalman.Filtered) -> tuple[Array, Array]:
        """Mean ``(..., T, P)`` and covariance of each observation before it is made."""
        observation, error = self.observation, self.observation_covariance
        if self.single:
            observation, error = observation[None], error[..., None, None]
        observation = observation[..., None, :, :]
        mean = self._observed_steps(found.predicted_mean, 1)
        covariance = self._observed_steps(found.predicted_covariance, 2)
        spread = observation @ covariance @ jnp.swapaxes(observation, -1, -2) + error[..., None, :, :]
        return _product(observation, mean), spread

    # -------------------------------------------------------------------------------------------- moments

    def _prior(self) -> tuple[Array, Array]:
        return self._observable(self.filter(jnp.full((*self.batch_shape, *self.event_shape), jnp.nan)))

    @property
    def mean(self) -> Array:
        mean = self._prior()[0]
        return mean[..., 0] if self.single else mean

    @property
    def variance(self) -> Array:
        variance = jnp.diagonal(self._prior()[1], axis1=-2, axis2=-1)
        return variance[..., 0] if self.single else variance


def _floating(x: ArrayLike, name: str) -> Array:
    return jnp.asarray(numbers(x, name), jnp.result_type(float))


def _read_steps(steps: Any, num_steps: int) -> tuple[int, ...] | None:
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be positive, not {num_steps}.")
    if steps is None:
        return None
    steps = tuple(np.asarray(numbers(steps, "steps")).ravel().astype(int).tolist())
    if not steps or steps[0] < 0 or steps[-1] >= num_steps or any(np.diff(steps) < 1):
        raise ValueError(
            f"`steps` must increase from 0 or more to at most {num_steps - 1}, one for each observation; got "
            f"{len(steps)} from {steps[0] if steps else None} to {steps[-1] if steps else None}."
        )
    return None if len(steps) == num_steps else steps


def _without_time(array: Array, core: int) -> tuple[Array, bool]:
    """``array`` without a time axis of length one; and whether it has a longer one."""
    if array.ndim == core:
        return array, False
    if array.shape[-core - 1] == 1:
        return array.squeeze(-core - 1), False
    return array, True


def _product(matrix: Array, vector: Array) -> Array:
    return jnp.einsum("...ij,...j->...i", matrix, vector)


def _root(covariance: Array) -> Array:
    """A square root of a covariance that may be singular."""
    values, vectors = jnp.linalg.eigh(covariance)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]
