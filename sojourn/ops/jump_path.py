r"""Complete paths of a Markov jump process: what they add up to, and how to draw them.

A path of ``J`` entries is a pair of arrays ``(J,)``: the times at which states were entered, the first zero, and the
states. What is left at the end repeats the last state, so that it adds neither jumps nor time in other states.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sojourn.ops.hidden_markov import _draw
from sojourn.ops.rate_matrix import exit_rates, off_diagonal
from sojourn.ops.transition_probability import log_poisson, powers, uniformized

__all__ = ["bridge", "simulate", "state_at", "statistics"]


def statistics(
    entry_time: ArrayLike, state: ArrayLike, duration: ArrayLike, num_states: int
) -> tuple[Array, Array]:
    """Time spent in each state ``(..., K)`` and number of jumps between states ``(..., K, K)``.

    Args:
        entry_time, state: ``(..., J)``, a path.
        duration: ``(...)`` time at which observation ends.
        num_states: ``K``.

    Example:
        >>> import jax.numpy as jnp
        >>> dwell, jumps = statistics(jnp.array([0.0, 1.5, 2.0]), jnp.array([0, 1, 0]), 5.0, 2)
        >>> dwell.tolist(), jumps.tolist()
        ([4.5, 0.5], [[0.0, 1.0], [1.0, 0.0]])
    """
    entry_time, duration = jnp.asarray(entry_time, float), jnp.asarray(duration, float)
    end = jnp.concatenate(
        [entry_time[..., 1:], jnp.broadcast_to(duration[..., None], entry_time[..., :1].shape)], -1
    )
    held = jax.nn.one_hot(state, num_states, dtype=entry_time.dtype)
    dwell = jnp.einsum("...j,...jk->...k", end - entry_time, held)
    moves = jnp.einsum("...ja,...jb->...ab", held[..., :-1, :], held[..., 1:, :])
    return dwell, off_diagonal(moves)


def state_at(entry_time: ArrayLike, state: ArrayLike, times: ArrayLike) -> Array:
    """``(T,)`` states at ``times`` ``(T,)`` of one path ``(J,)``.

    Example:
        >>> import jax.numpy as jnp
        >>> state_at(jnp.array([0.0, 1.5, 2.0]), jnp.array([0, 1, 0]), jnp.array([0.0, 1.7, 9.0])).tolist()
        [0, 1, 0]
    """
    position = jnp.searchsorted(jnp.asarray(entry_time), jnp.asarray(times), side="right") - 1
    return jnp.asarray(state)[jnp.maximum(position, 0)]


def simulate(
    key: Array, rate_matrix: ArrayLike, start: ArrayLike, duration: ArrayLike, *, max_jumps: int
) -> tuple[Array, Array, Array]:
    """One path from the state ``start``, by the direct method of Gillespie (1977, *J. Phys. Chem.* 81:2340).

    Returns:
        Entry times and states, ``(max_jumps + 1,)``, and whether more jumps than that were to come.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> rates = jnp.array([[-1.0, 1.0], [0.0, 0.0]])
        >>> time, state, cut = simulate(jax.random.key(0), rates, 0, 50.0, max_jumps=3)
        >>> state.tolist(), bool(cut)
        ([0, 1, 1, 1], False)
    """
    rate_matrix = jnp.asarray(rate_matrix, float)
    exits, jumps = exit_rates(rate_matrix), off_diagonal(rate_matrix)
    duration = jnp.asarray(duration, rate_matrix.dtype)
    key_wait, key_jump = jax.random.split(key)
    waits = jax.random.exponential(key_wait, (max_jumps + 1,), rate_matrix.dtype)
    uniforms = jax.random.uniform(key_jump, (max_jumps + 1,), rate_matrix.dtype)

    def jump(carry, x):
        time, state = carry
        wait, uniform = x
        exit_rate = exits[state]
        time = jnp.where(exit_rate > 0, time + wait / jnp.where(exit_rate > 0, exit_rate, 1.0), jnp.inf)
        happens = time < duration
        after = jnp.where(happens, _draw(jumps[state], uniform), state)
        return (time, after), (jnp.minimum(time, duration), after, happens)

    start = jnp.asarray(start)
    _, (times, states, happened) = lax.scan(jump, (jnp.zeros_like(duration), start), (waits, uniforms))
    times = jnp.concatenate([jnp.zeros(1, times.dtype), times[:-1]])
    states = jnp.concatenate([start[None], states[:-1]])
    return times, states, happened[-1]


def bridge(
    key: Array,
    rate_matrix: ArrayLike,
    start: ArrayLike,
    end: ArrayLike,
    interval: ArrayLike,
    *,
    num_events: int,
) -> tuple[Array, Array]:
    r"""Paths between known states, exactly, for many intervals (Hobolth and Stone 2009, *Ann. Appl. Stat.* 3:1204).

    Of a uniformized process the number of events given its ends has probabilities proportional to
    :math:`\mathrm{Pois}(n; q t) (R^n)_{ab}`, the states in between are a bridge of the chain :math:`R`, and the times
    are sorted uniforms. Events that do not change the state are part of the path that is returned.

    Args:
        rate_matrix: ``(K, K)``, or ``(M, K, K)`` by interval.
        start, end: ``(M,)`` states.
        interval: ``(M,)`` lengths of the intervals.
        num_events: largest number of events in an interval; beyond a few standard deviations above ``q t`` more are
            as good as impossible.

    Returns:
        Entry times within each interval and states, ``(M, num_events + 1)``. What is left holds the end.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> rates = jnp.array([[-1.0, 1.0], [2.0, -2.0]])
        >>> time, state = bridge(
        ...     jax.random.key(0), rates, jnp.array([0]), jnp.array([1]), jnp.array([2.0]), num_events=20)
        >>> state[0, 0].item(), state[0, -1].item(), time[0, 0].item()
        (0, 1, 0.0)
    """
    rate_matrix = jnp.asarray(rate_matrix, float)
    start, end, interval = jnp.asarray(start), jnp.asarray(end), jnp.asarray(interval, rate_matrix.dtype)
    rate, chain = uniformized(rate_matrix)
    stack = powers(chain, num_events + 1)  # (n, K, K) or (M, n, K, K)
    shared = stack.ndim == 3
    row = jnp.arange(len(start))
    key_number, key_state, key_time = jax.random.split(key, 3)

    to_end = jnp.moveaxis(stack[:, :, end], -1, 0) if shared else stack[row, :, :, end]  # (M, n, K)
    weights = jnp.exp(log_poisson(rate * interval, num_events + 1)) * to_end[row, :, start]
    number = _draw(weights, jax.random.uniform(key_number, start.shape, rate_matrix.dtype))

    def event(state, x):
        j, uniform = x
        left = jnp.maximum(number - j, 0)
        out = chain[state] if shared else chain[row, state]
        after = _draw(out * to_end[row, left], uniform)
        after = jnp.where(j <= number, after, state)
        return after, after

    uniforms = jax.random.uniform(key_state, (num_events, len(start)), rate_matrix.dtype)
    _, states = lax.scan(event, start, (jnp.arange(1, num_events + 1), uniforms))
    states = jnp.concatenate([start[None], states]).T
    times = jax.random.uniform(key_time, (len(start), num_events), rate_matrix.dtype)
    times = jnp.sort(jnp.where(jnp.arange(num_events) < number[:, None], times, 1.0), -1) * interval[:, None]
    return jnp.concatenate([jnp.zeros((len(start), 1), times.dtype), times], -1), states
