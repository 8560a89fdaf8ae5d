r"""Linear-Gaussian state space: likelihood, filter and smoother.

.. math::
    x_0 \sim N(m_0, P_0), \qquad x_n = F_n x_{n-1} + c_n + N(0, Q), \qquad y_n = C x_n + N(0, R), \quad n = 1,
    \dots, T

The observations begin after one move: ``x_0`` itself is not observed. An entry of ``y`` that is NaN, or false
in ``mask``, contributes nothing; the other entries of its step do.

Everything is a ``lax.scan`` over time with covariances in Joseph's form, which stay symmetric and nonnegative
under rounding (Bucy and Joseph 1968). The smoother is that of de Jong (1989, *JASA* 84:1085), which never
inverts the covariance of a state: in many models, those with a noise that enters several components at once
among them, it is singular.

Shapes: states ``(d,)``, observations ``(P,)``. ``transition`` ``(d, d)`` and ``offset`` ``(d,)`` may have a
leading time axis. For batches use ``jax.vmap``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.linalg import cho_solve
from jax.typing import ArrayLike

__all__ = ["Filtered", "Smoothed", "filter", "log_likelihood", "smooth"]


class Filtered(NamedTuple):
    """What is known at each step: before its observation (predicted), and after it."""

    log_predictive: Array
    """``(T,)``, log p(y_n | y_1, ..., y_{n-1}); zero where nothing was observed."""
    predicted_mean: Array
    """``(T, d)``."""
    predicted_covariance: Array
    """``(T, d, d)``."""
    mean: Array
    """``(T, d)``."""
    covariance: Array
    """``(T, d, d)``."""


class Smoothed(NamedTuple):
    """Laws of the states given all observations."""

    mean: Array
    """``(T, d)``."""
    covariance: Array
    """``(T, d, d)``."""
    initial_mean: Array
    """``(d,)``, of the state before the first move."""
    initial_covariance: Array
    """``(d, d)``."""


class _Update(NamedTuple):
    log_predictive: Array
    mean: Array
    covariance: Array
    score: Array  # (d,): C' S^-1 (y - C m)
    information: Array  # (d, d): C' S^-1 C
    keep: Array  # (d, d): I - K C


def filter(
    y: ArrayLike,
    initial_mean: ArrayLike,
    initial_covariance: ArrayLike,
    transition: ArrayLike,
    transition_covariance: ArrayLike,
    observation: ArrayLike,
    observation_covariance: ArrayLike,
    *,
    offset: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Filtered:
    """Kalman filter.

    Args:
        y: ``(T, P)`` observations; NaN is missing.
        initial_mean, initial_covariance: ``(d,)`` and ``(d, d)``, of the state before the first move.
        transition: ``(d, d)`` or ``(T, d, d)``; entry ``n`` leads to the state of observation ``n``.
        transition_covariance: ``(d, d)``, may be singular.
        observation: ``(P, d)``.
        observation_covariance: ``(P, P)``.
        offset: ``(d,)`` or ``(T, d)``; none by default.
        mask: ``(T, P)`` booleans, false where there is no observation.

    Returns:
        :class:`Filtered`. Differentiable; the log-likelihood is the sum of ``log_predictive``.

    Example:
        A random walk, seen twice with unit error: the second time with a variance of 1 + 1 + 1/2 ahead of it.

        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> found = filter(jnp.array([[0.5], [jnp.nan], [1.0]]), jnp.zeros(1), 0 * one, one, one, one, one)
        >>> print(found.mean[:, 0], found.predicted_covariance[:, 0, 0])
        [0.25 0.25 0.78571427] [1. 1.5 2.5]
    """
    arrays = _read(transition, transition_covariance, observation, observation_covariance, offset)
    y, seen = _observed(y, mask)

    def step(carry, x):
        (mean, covariance), (y_n, seen_n, moves) = carry, x
        mean, covariance = _predict(mean, covariance, moves, arrays)
        update = _update(mean, covariance, y_n, seen_n, arrays)
        found = Filtered(update.log_predictive, mean, covariance, update.mean, update.covariance)
        return (update.mean, update.covariance), found

    begin = _begin(initial_mean, initial_covariance)
    return lax.scan(step, begin, (y, seen, arrays.moves))[1]


def log_likelihood(
    y: ArrayLike,
    initial_mean: ArrayLike,
    initial_covariance: ArrayLike,
    transition: ArrayLike,
    transition_covariance: ArrayLike,
    observation: ArrayLike,
    observation_covariance: ArrayLike,
    *,
    offset: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Array:
    """Log-density of the observations; arguments as in :func:`filter`.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> print(log_likelihood(jnp.zeros((1, 1)), jnp.zeros(1), 0 * one, one, one, one, one))  # N(0 | 0, 2)
        -1.2655121
    """
    arrays = _read(transition, transition_covariance, observation, observation_covariance, offset)
    y, seen = _observed(y, mask)

    def step(carry, x):
        (mean, covariance), (y_n, seen_n, moves) = carry, x
        mean, covariance = _predict(mean, covariance, moves, arrays)
        update = _update(mean, covariance, y_n, seen_n, arrays)
        return (update.mean, update.covariance), update.log_predictive

    begin = _begin(initial_mean, initial_covariance)
    return lax.scan(step, begin, (y, seen, arrays.moves))[1].sum()


def smooth(
    y: ArrayLike,
    initial_mean: ArrayLike,
    initial_covariance: ArrayLike,
    transition: ArrayLike,
    transition_covariance: ArrayLike,
    observation: ArrayLike,
    observation_covariance: ArrayLike,
    *,
    offset: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Smoothed:
    """Laws of the states given all observations; arguments as in :func:`filter`.

    Example:
        A random walk between two places: the middle of the bridge.

        >>> import jax.numpy as jnp
        >>> one = jnp.ones((1, 1))
        >>> y = jnp.array([[jnp.nan], [1.0]])
        >>> found = smooth(y, jnp.zeros(1), 0 * one, one, one, one, 1e-6 * one)
        >>> print(found.mean[0].round(3), found.covariance[0, 0].round(3))
        [0.5] [0.5]
    """
    arrays = _read(transition, transition_covariance, observation, observation_covariance, offset)
    y, seen = _observed(y, mask)

    def forward(carry, x):
        (mean, covariance), (y_n, seen_n, moves) = carry, x
        mean, covariance = _predict(mean, covariance, moves, arrays)
        update = _update(mean, covariance, y_n, seen_n, arrays)
        kept = (mean, covariance, update.score, update.information, update.keep, moves)
        return (update.mean, update.covariance), kept

    def backward(carry, kept):
        ahead, tension = carry
        mean, covariance, score, information, keep, moves = kept
        ahead = score + keep.T @ ahead
        tension = information + keep.T @ tension @ keep
        found = _corrected(mean, covariance, ahead, tension)
        move = arrays.transition(moves)
        return (move.T @ ahead, move.T @ tension @ move), found

    begin = _begin(initial_mean, initial_covariance)
    _, kept = lax.scan(forward, begin, (y, seen, arrays.moves))
    nothing = (jnp.zeros_like(begin[0]), jnp.zeros_like(begin[1]))
    (ahead, tension), (mean, covariance) = lax.scan(backward, nothing, kept, reverse=True)
    return Smoothed(mean, covariance, *_corrected(*begin, ahead, tension))


class _Arrays(NamedTuple):
    fixed: tuple[Any, Any]  # transition and offset, where they do not vary in time
    noise: Array
    observation: Array
    error: Array
    moves: tuple[Any, Any]  # those that vary

    def transition(self, moves: tuple[Any, Any]) -> Array:
        return self.fixed[0] if moves[0] is None else moves[0]

    def offset(self, moves: tuple[Any, Any]) -> Any:
        return self.fixed[1] if moves[1] is None else moves[1]


def _read(transition: Any, noise: Any, observation: Any, error: Any, offset: Any) -> _Arrays:
    transition, noise = _floating(transition), _floating(noise)
    offset = jnp.zeros(()) if offset is None else _floating(offset)
    varies = transition.ndim == 3, offset.ndim == 2
    fixed = (None if varies[0] else transition, None if varies[1] else offset)
    moves = (transition if varies[0] else None, offset if varies[1] else None)
    return _Arrays(fixed, noise, _floating(observation), _floating(error), moves)


def _floating(x: ArrayLike) -> Array:
    return jnp.asarray(x, jnp.result_type(float))


def _observed(y: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array]:
    """Observations with zero where there is none, and where there are."""
    y = _floating(y)
    seen = ~jnp.isnan(y)
    if mask is not None:
        seen = seen & jnp.asarray(mask, bool)
    return jnp.where(seen, y, 0.0), seen


def _begin(mean: ArrayLike, covariance: ArrayLike) -> tuple[Array, Array]:
    return _floating(mean), _floating(covariance)


def _symmetric(x: Array) -> Array:
    return 0.5 * (x + x.T)


def _predict(mean: Array, covariance: Array, moves: Any, arrays: _Arrays) -> tuple[Array, Array]:
    move = arrays.transition(moves)
    ahead = (move * mean).sum(-1) + arrays.offset(moves)
    return ahead, _symmetric(_product(_product(move, covariance), move.T) + arrays.noise)


_SMALL = 8


def _product(a: Array, b: Array) -> Array:
    """Matrix product; for few states as a sum, which fuses with its surroundings: twice as fast at 7."""
    return (a[:, :, None] * b).sum(1) if len(a) <= _SMALL else a @ b


def _update(mean: Array, covariance: Array, y: Array, seen: Array, arrays: _Arrays) -> _Update:
    """What is not seen becomes an observation of nothing with unit error: no branch, and no information."""
    if len(seen) == 1:
        return _update_by_one(mean, covariance, y[0], seen[0], arrays)
    observation = jnp.where(seen[:, None], arrays.observation, 0.0)
    error = jnp.where(seen[:, None] & seen, arrays.error, jnp.diag((~seen).astype(arrays.error.dtype)))
    surprise = jnp.where(seen, y - observation @ mean, 0.0)
    variance = observation @ covariance @ observation.T + error
    factor = jnp.linalg.cholesky(_symmetric(variance))
    solved = cho_solve((factor, True), observation)
    weighed = cho_solve((factor, True), surprise)
    gain = covariance @ solved.T  # (d, P)
    keep = jnp.eye(len(mean), dtype=mean.dtype) - gain @ observation
    log_det = 2 * jnp.log(jnp.diagonal(factor)).sum()
    return _Update(
        -0.5 * (surprise @ weighed + log_det + seen.sum() * np.log(2 * np.pi)),
        mean + gain @ surprise,
        _symmetric(keep @ covariance @ keep.T + gain @ error @ gain.T),
        observation.T @ weighed,
        observation.T @ solved,
        keep,
    )


def _update_by_one(mean: Array, covariance: Array, y: Array, seen: Array, arrays: _Arrays) -> _Update:
    """The same for one number a step, by sums and outer products, which fuse where matrix products do not."""
    observation = jnp.where(seen, arrays.observation[0], 0.0)
    error = jnp.where(seen, arrays.error[0, 0], 1.0)
    surprise = jnp.where(seen, y - (observation * mean).sum(), 0.0)
    loaded = (covariance * observation).sum(-1)
    variance = (loaded * observation).sum() + error
    gain = loaded / variance
    half = covariance - gain[:, None] * loaded  # (I - K C) P; then times (I - K C)', plus K R K'
    updated = half + (error * gain - (half * observation).sum(-1))[:, None] * gain
    return _Update(
        -0.5 * (surprise**2 / variance + jnp.log(variance) + jnp.where(seen, np.log(2 * np.pi), 0.0)),
        mean + gain * surprise,
        _symmetric(updated),
        observation * (surprise / variance),
        observation[:, None] * observation / variance,
        jnp.eye(len(mean), dtype=mean.dtype) - gain[:, None] * observation,
    )


def _corrected(mean: Array, covariance: Array, ahead: Array, tension: Array) -> tuple[Array, Array]:
    return mean + covariance @ ahead, _symmetric(covariance - covariance @ tension @ covariance)
