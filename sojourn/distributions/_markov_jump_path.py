"""Law of complete paths of a Markov jump process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import numbers, positive_numbers, shown, whole_number
from sojourn.distributions._hidden_markov import _concrete, _draw
from sojourn.ops import jump_path
from sojourn.ops.hidden_markov import _log
from sojourn.ops.rate_matrix import check_rate_matrix, exit_rates, off_diagonal
from sojourn.ops.transition_probability import most_events

__all__ = ["MarkovJumpPath", "stack_paths"]


class MarkovJumpPath(dist.Distribution):
    r"""A path of a Markov jump process observed without interruption from time zero to ``duration``.

    .. math::
        \log p = \log \pi_{s_0} + \sum_{i \ne j} N_{ij} \log q_{ij} - \sum_i T_i \sum_{j \ne i} q_{ij}

    with :math:`N_{ij}` jumps from ``i`` to ``j`` and a time :math:`T_i` in ``i``: with a Gamma(a, b) prior a rate is
    Gamma(a + N, b + T) a posteriori.

    Args:
        rate_matrix: ``(..., K, K)``, rows summing to zero.
        initial: ``(..., K)`` law of the first state.
        duration: ``(...)`` how long the path was watched (to censoring, or to an absorbing state).
        max_jumps: room for jumps in a path. By default enough for all but one path in a million, which needs concrete
            rates.
        validate_args: as in NumPyro.

    Shapes: batch shape the broadcast of all ``...``; event shape ``(max_jumps + 1, 2)``. Row ``k`` of a value holds the
    time at which the ``k``-th state was entered and the state; the first time is zero. Rows after the last jump hold
    ``duration`` (or any later time up to it) and the last state again. :func:`stack_paths` makes it from lists.
    A simulated path with more jumps than there is room for is NaN.

    Raises:
        ValueError: a path that is not one: times that decrease or lie beyond ``duration``, states that are not
            ``0..K - 1`` are outside the support; no ``max_jumps`` where the rates are traced.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> law = MarkovJumpPath(jnp.array([[-1.0, 1.0], [2.0, -2.0]]), jnp.array([1.0, 0.0]), 5.0, max_jumps=3)
        >>> path = jnp.array([[0.0, 0], [1.5, 1], [2.0, 0], [5.0, 0]])
        >>> f"{law.log_prob(path):.4f}"  # log 1 + log 2 - 4.5 * 1 - 0.5 * 2
        '-4.8069'
    """

    arg_constraints = {
        "rate_matrix": constraints.dependent(is_discrete=False, event_dim=2),
        "initial": constraints.simplex,
        "duration": constraints.positive,
    }
    pytree_data_fields = ("rate_matrix", "initial", "duration")
    pytree_aux_fields = ("max_jumps",)

    def __init__(
        self,
        rate_matrix: ArrayLike,
        initial: ArrayLike,
        duration: ArrayLike,
        *,
        max_jumps: int | None = None,
        validate_args: bool | None = None,
    ):
        self.rate_matrix = jnp.asarray(numbers(rate_matrix, "rate_matrix"))
        self.initial = jnp.asarray(numbers(initial, "initial"))
        self.duration = jnp.asarray(numbers(duration, "duration"))
        states = self.rate_matrix.shape[-1:]
        if (
            self.rate_matrix.ndim < 2
            or self.rate_matrix.shape[-2:-1] != states
            or self.initial.shape[-1:] != states
        ):
            raise ValueError(
                f"`rate_matrix` {self.rate_matrix.shape} and `initial` {self.initial.shape} must be (..., K, K) and "
                "(..., K)."
            )
        self.max_jumps = self._room() if max_jumps is None else whole_number(max_jumps, "max_jumps", 0)
        batch = jnp.broadcast_shapes(
            self.rate_matrix.shape[:-2], self.initial.shape[:-1], self.duration.shape
        )
        super().__init__(batch, (self.max_jumps + 1, 2), validate_args=validate_args)

    def _room(self) -> int:
        rates, duration = _concrete(self.rate_matrix), _concrete(self.duration)
        if rates is not None:
            check_rate_matrix(rates)
        if rates is None or duration is None:
            raise ValueError("`max_jumps` is needed: with traced rates nobody knows how long a path can get.")
        _check_duration(duration)
        return most_events(float(np.asarray(exit_rates(rates)).max() * duration.max()), 1e-6) + 1

    @property
    def num_states(self) -> int:
        """Number of states ``K``."""
        return self.rate_matrix.shape[-1]

    def validate_args(self, strict: bool = True) -> None:
        """Check the values of the arguments; those inside a compiled function are skipped, or refused."""
        if strict and any(_concrete(x) is None for x in (self.rate_matrix, self.initial, self.duration)):
            raise RuntimeError("Cannot validate arguments inside jitted code.")
        check_rate_matrix(self.rate_matrix)
        _check_duration(_concrete(self.duration))
        initial = _concrete(self.initial)
        if initial is not None and (not (initial >= 0).all() or (np.abs(initial.sum(-1) - 1) > 1e-4).any()):
            raise ValueError("`initial` must hold probabilities that sum to one.")

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return _Path(self.num_states, self.duration)

    def statistics(self, value: ArrayLike) -> tuple[Array, Array]:
        """Time in each state ``(..., K)`` and jumps between states ``(..., K, K)`` of a path."""
        value = jnp.asarray(value)
        batch = jnp.broadcast_shapes(value.shape[:-2], self.batch_shape)
        state = value[..., 1].astype(int)
        return jump_path.statistics(
            value[..., 0], state, jnp.broadcast_to(self.duration, batch), self.num_states
        )

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        value = jnp.asarray(value)
        dwell, jumps = self.statistics(value)
        first = jax.nn.one_hot(value[..., 0, 1].astype(int), self.num_states, dtype=dwell.dtype)
        log_initial = _weighted_log(first, self.initial, (-1,))
        log_jumps = _weighted_log(jumps, off_diagonal(self.rate_matrix), (-2, -1))
        return log_initial + log_jumps - (dwell * exit_rates(self.rate_matrix)).sum(-1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = (*sample_shape, *self.batch_shape)
        count = int(np.prod(shape, dtype=int))
        states = self.num_states
        rates = jnp.broadcast_to(self.rate_matrix, (*shape, states, states)).reshape(count, states, states)
        duration = jnp.broadcast_to(self.duration, shape).reshape(count)
        key_start, key_path = jax.random.split(key)
        initial = jnp.broadcast_to(self.initial, (*shape, states))
        start = _draw(initial, jax.random.uniform(key_start, shape)).reshape(count)

        def one(key, rates, start, duration):
            time, state, cut = jump_path.simulate(key, rates, start, duration, max_jumps=self.max_jumps)
            path = jnp.stack([time, state.astype(time.dtype)], -1)
            return jnp.where(cut, jnp.nan, path)

        paths = jax.vmap(one)(jax.random.split(key_path, count), rates, start, duration)
        return paths.reshape(*shape, *self.event_shape)


def _weighted_log(weights: Array, probs: Array, axes: tuple[int, ...]) -> Array:
    """``sum(weights * log(probs))``, where nothing times the logarithm of zero is nothing."""
    return jnp.where(weights > 0, weights * _log(probs), 0.0).sum(axes)


def _check_duration(duration: np.ndarray | None) -> None:
    if duration is not None and not (np.isfinite(duration).all() and (duration > 0).all()):
        raise ValueError("`duration` must be positive and finite.")


def stack_paths(
    entry_times: Sequence[ArrayLike], states: Sequence[ArrayLike], durations: ArrayLike
) -> np.ndarray:
    """Paths of unequal numbers of jumps as one array for :class:`MarkovJumpPath`.

    Args:
        entry_times: for each path, the times at which states were entered, the first zero.
        states: for each path, the states.
        durations: ``(N,)`` how long each was watched.

    Returns:
        ``(N, J, 2)``.

    Raises:
        ValueError: lists of unequal length, a path that does not begin at time zero, times that decrease, or lie
            beyond the duration, a jump from a state to itself.

    Example:
        >>> stack_paths([[0.0, 1.5], [0.0]], [[0, 1], [1]], [4.0, 2.0]).tolist()
        [[[0.0, 0.0], [1.5, 1.0]], [[0.0, 1.0], [2.0, 1.0]]]
    """
    ends = np.asarray(positive_numbers(durations, "durations"), float)
    for name, given in (("entry_times", entry_times), ("states", states)):
        if isinstance(given, str | Mapping) or not isinstance(given, Sequence | np.ndarray):
            raise ValueError(f"`{name}` must be a list with one entry for each path, not {shown(given)}.")
    if ends.ndim != 1:
        raise ValueError(f"`durations` has shape {ends.shape}; it must be (N,), one for each path.")
    entries = [np.atleast_1d(np.asarray(numbers(t, "entry_times"), float)) for t in entry_times]
    entered = [np.atleast_1d(np.asarray(numbers(path, "states"))) for path in states]
    if not len(entries) == len(entered) == len(ends) or not len(ends):
        raise ValueError("`entry_times`, `states` and `durations` need one entry for each path.")
    width = max(len(times) for times in entries)
    stacked = np.empty((len(ends), width, 2))
    for n, (times, path, end) in enumerate(zip(entries, entered, ends, strict=True)):
        if len(times) != len(path) or not len(times):
            raise ValueError(
                f"Path {n} has {len(times)} times and {len(path)} states; it needs one of each an entry."
            )
        if times[0] != 0.0 or not (np.diff(times) >= 0).all() or not times[-1] <= end:
            raise ValueError(
                f"Path {n} must begin at time zero and run on to its duration {end:g} without a step back."
            )
        if (path[1:] == path[:-1]).any():
            raise ValueError(f"Path {n} jumps from a state to itself; an entry is a change of state.")
        stacked[n, : len(times), 0], stacked[n, len(times) :, 0] = times, end
        stacked[n, : len(path), 1], stacked[n, len(path) :, 1] = path, path[-1]
    return stacked


class _Path(constraints.Constraint):
    """Times from zero to the duration that do not decrease, with states."""

    is_discrete = False
    event_dim = 2

    def __init__(self, num_states: int, duration: Array):
        self.num_states, self.duration = num_states, duration

    def __call__(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        time, state = x[..., 0], x[..., 1]
        ordered = (time[..., 0] == 0) & (jnp.diff(time, axis=-1) >= 0).all(-1)
        # A time that was rounded to float32 may lie beyond the duration by as much.
        inside = time[..., -1] <= self.duration * (1.0 + 1e-6)
        return (
            ordered
            & inside
            & ((state >= 0) & (state < self.num_states) & (state == jnp.floor(state))).all(-1)
        )

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.zeros_like(prototype)

    def eq(self, other: object, static: bool = False) -> bool:
        return (
            isinstance(other, _Path)
            and self.num_states == other.num_states
            and self.duration is other.duration
        )

    def tree_flatten(self):
        return (self.duration,), (("duration",), {"num_states": self.num_states})
