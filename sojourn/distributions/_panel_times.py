"""When the states of a jump process were looked at: the intervals in between, each distinct one once."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import numbers
from sojourn.ops.rate_matrix import exit_rates, off_diagonal
from sojourn.ops.transition_probability import Method, Plan, plan, transition_probabilities

__all__ = ["OBSTYPES", "Schedule", "default_max_rate", "moves", "read_times", "schedule"]

OBSTYPES = {1: "snapshot", 2: "exact transition time", 3: "exact time of entry"}
"""How a state was observed, in the numbering of R's ``msm`` (Jackson 2011, *J. Stat. Software* 38(8), section 1.3)."""

_JUMPS_AT_CAPACITY = 10.0
"""Mean number of jumps within a typical interval, beyond which its ends say nothing of the rates."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Schedule:
    """Which matrix carries each series from each observation to the next.

    The stock of matrices holds, in this order, transition probabilities over every distinct interval of every group,
    densities of entry at an exact time (obstype 3), and densities of exact transitions (obstype 2). NumPy arrays, which
    stay concrete while a program is traced.
    """

    plan: Plan
    """Intervals ``(G, D)`` by group, padded with zeros."""
    index: Array | np.ndarray
    """``(N, L - 1)`` positions in the stock."""
    entry: Array | np.ndarray
    """``(E,)`` positions of the transition probabilities that precede an entry at an exact time ..."""
    entry_group: Array | np.ndarray
    """... and the group of each."""
    exact: Array | np.ndarray
    """``(E',)`` times spent before an exact transition ..."""
    exact_group: Array | np.ndarray
    """... and the group of each."""
    num_groups: int = field(metadata={"static": True})


def read_times(times: ArrayLike, lengths: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Times ``(N, L)`` as float64, and booleans ``(N, L - 1)``: intervals that belong to a series, not to its padding.

    Raises:
        ValueError: times that are traced, not finite, or do not increase within a series; no interval anywhere.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (times, lengths)):
        raise ValueError(
            "`times` must be known when the model is compiled: pass them as they are, not as an argument of a jitted "
            "function."
        )
    times = np.asarray(numbers(times, "times"))
    lengths = None if lengths is None else numbers(lengths, "lengths")
    if times.ndim not in (1, 2):
        raise ValueError(f"`times` has shape {times.shape}; a series needs (L,), several need (N, L).")
    precision = np.finfo(times.dtype if np.issubdtype(times.dtype, np.floating) else float).eps
    grid = np.atleast_2d(times.astype(float))
    count = np.broadcast_to(grid.shape[1] if lengths is None else np.asarray(lengths), grid.shape[:1])
    if (count < 1).any() or (count > grid.shape[1]).any():
        bad = count[(count < 1) | (count > grid.shape[1])][0]
        raise ValueError(
            f"`lengths` has an entry {bad}; it must lie between 1 and the {grid.shape[1]} times given."
        )
    inside = np.arange(grid.shape[1]) < count[:, None]
    if not np.isfinite(grid[inside]).all():
        n, step = (int(i) for i in np.argwhere(inside & ~np.isfinite(grid))[0])
        raise ValueError(
            f"`times` is not finite at step {step} of series {n}; a missing state still has a time."
        )
    within = inside[:, 1:]
    steps = np.where(within, np.diff(np.where(inside, grid, 0.0), axis=1), 1.0)
    if (steps <= 0).any():
        n, step = (int(i) for i in np.argwhere(steps <= 0)[0])
        raise ValueError(
            f"`times` do not increase in series {n}: {grid[n, step]:g} is followed by {grid[n, step + 1]:g}."
        )
    if not within.any():
        raise ValueError(
            "Every series has one observation only: what is seen at a single time does not identify the rates."
        )
    steps = np.where(within, steps, 0.0)
    return _merge(steps, 4.0 * precision * np.abs(grid[inside]).max()), within


def _merge(steps: np.ndarray, tolerance: float) -> np.ndarray:
    """Intervals that differ by rounding of the times alone are one interval, their mean."""
    distinct, position = np.unique(steps, return_inverse=True)
    first = np.concatenate([[True], np.diff(distinct) > tolerance])
    cluster = np.cumsum(first) - 1
    means = np.bincount(cluster, distinct) / np.bincount(cluster)
    return means[cluster][position].reshape(steps.shape)


def default_max_rate(steps: np.ndarray, within: np.ndarray) -> float:
    """An exit rate that makes ten jumps in the median interval."""
    return _JUMPS_AT_CAPACITY / float(np.median(steps[within]))


def schedule(
    steps: np.ndarray,
    within: np.ndarray,
    max_rate: float,
    *,
    obstype: np.ndarray | None = None,
    group: np.ndarray | None = None,
    num_groups: int = 1,
) -> Schedule:
    """The schedule of series with intervals ``steps`` ``(N, L - 1)``.

    Args:
        steps, within: as :func:`read_times` returns them.
        max_rate: capacity.
        obstype: ``(N, L - 1)`` how the end of each interval was observed.
        group: ``(N, L - 1)`` which rate matrix holds in each interval.
        num_groups: how many rate matrices there are.
    """
    kinds = np.where(within, 1 if obstype is None else obstype, 1)
    groups = np.where(within, 0 if group is None else group, 0)
    by_sum = kinds != 2  # an exact transition needs no transition probability
    distinct, position = np.unique(steps, return_inverse=True)
    code = groups * len(distinct) + position.reshape(steps.shape)
    codes, where = np.unique(code[by_sum], return_inverse=True)
    owner = codes // max(len(distinct), 1)
    counts = np.bincount(owner, minlength=num_groups)
    width = max(int(counts.max(initial=0)), 1)
    place = owner * width + np.arange(len(codes)) - np.concatenate([[0], np.cumsum(counts)[:-1]])[owner]
    intervals = np.zeros(num_groups * width)
    intervals[place] = distinct[codes % max(len(distinct), 1)]
    stock = num_groups * width

    index = np.zeros(steps.shape, int)
    index[by_sum] = place[where]
    entry, which = np.unique(index[kinds == 3], return_inverse=True)
    entry_group = entry // width
    index[kinds == 3] = stock + which
    exact, which = np.unique(code[kinds == 2], return_inverse=True)
    index[kinds == 2] = stock + len(entry) + which
    return Schedule(
        plan(intervals.reshape(num_groups, width), max_rate),
        index,
        entry,
        entry_group,
        distinct[exact % max(len(distinct), 1)],
        exact // max(len(distinct), 1),
        num_groups,
    )


def moves(rate_matrix: Array, schedule: Schedule, method: Method = "uniformization") -> Array:
    """The stock of matrices of a schedule, ``(D, K, K)``, for rates ``(K, K)`` or ``(G, K, K)``."""
    states = rate_matrix.shape[-1]
    rates = jnp.broadcast_to(rate_matrix, (schedule.num_groups, states, states))
    stock = transition_probabilities(rates, schedule.plan, method=method).reshape(-1, states, states)
    if not (len(schedule.entry) or len(schedule.exact)):
        return stock
    jump = off_diagonal(rates)
    entry = stock[schedule.entry] @ jump[schedule.entry_group]
    stay = jnp.exp(
        -exit_rates(rates)[schedule.exact_group] * jnp.asarray(schedule.exact, rates.dtype)[:, None]
    )
    exact = stay[:, :, None] * (jnp.eye(states, dtype=rates.dtype) + jump[schedule.exact_group])
    return jnp.concatenate([stock, entry, exact])
