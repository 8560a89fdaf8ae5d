"""Observations at given times, on a regular grid of time steps that carries them."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import numbers

__all__ = ["Grid", "GridData", "GridOptions", "Units", "read_data", "read_grid"]


class Grid(NamedTuple):
    """Steps of equal length, the first from ``start`` on; step ``observed[i]`` ends at observation ``i``."""

    times: np.ndarray
    """``(N,)`` ends of the steps."""
    observed: np.ndarray
    """``(T,)`` integers, increasing."""
    step: float
    start: float

    @property
    def num_steps(self) -> int:
        return len(self.times)

    @property
    def observed_times(self) -> np.ndarray:
        return self.times[self.observed]

    def place(self, y: Any) -> Any:
        """``(T, ...)`` observations as ``(N, ...)``, NaN at the other steps; NumPy where they are."""
        if self.num_steps == len(self.observed):
            return y
        if isinstance(y, jax.core.Tracer):
            blank = jnp.full((self.num_steps, *y.shape[1:]), jnp.nan, jnp.result_type(float, y))
            return blank.at[self.observed].set(y)
        placed = np.full((self.num_steps, *y.shape[1:]), np.nan, np.result_type(np.float32, y))
        placed[self.observed] = y
        return placed


def read_grid(
    times: Any,
    num_times: int | None,
    step: float | None,
    substeps: int,
    start: float | None,
    tolerance: float,
    caller: str,
) -> Grid:
    """The grid that a model asks for, and which of its steps are observed.

    Args:
        times: ``(T,)``, or ``None`` for one observation every ``substeps`` steps.
        num_times: ``T``, where the data or the user say it.
        step: length of a step; by default the spacing of regular times over ``substeps``.
        substeps: steps from one of regular times to the next.
        start: when the first step begins; by default one step before the first time.
        tolerance: how far from the end of a step a time may lie, in steps.
        caller: name of the model, for the errors.
    """
    if not isinstance(substeps, int | np.integer) or substeps < 1:
        raise ValueError(f"{caller}(): `substeps` must be a positive integer, not {substeps!r}.")
    numbers(tolerance, "tolerance")
    if step is not None:
        numbers(step, "step")
    if start is not None:
        numbers(start, "start")
    if step is not None and not (np.ndim(step) == 0 and np.isfinite(step) and step > 0):
        raise ValueError(f"{caller}(): `step` must be positive, the length of a time step; got {step!r}.")
    if not 0 < tolerance <= 0.5:
        raise ValueError(f"{caller}(): `tolerance` must lie in (0, 0.5], in steps; got {tolerance!r}.")
    if times is None:
        if num_times is None:
            raise ValueError(f"{caller}(): to simulate, give `times`, or `num_steps`, the number of times.")
        step = 1.0 / substeps if step is None else float(step)
        times = step * substeps * np.arange(1, num_times + 1)
    else:
        times = _read_times(times, num_times, caller)
        if step is None:
            step = _spacing(times, tolerance, caller) / substeps
        elif substeps != 1:
            raise ValueError(f"{caller}(): give `step` or, for regular times, `substeps`, but not both.")
    step = float(step)
    if start is None:
        start = float(times[0]) - step
    elif not (np.ndim(start) == 0 and np.isfinite(start) and start < times[0]):
        raise ValueError(f"{caller}(): `start` must lie before the first time, {times[0]:g}; got {start!r}.")
    position = (times - start) / step
    index = np.rint(position).astype(int)
    off = np.abs(position - index)
    # Rounding of the times themselves is no fault of theirs.
    slack = tolerance + 8 * np.finfo(float).eps * np.abs(times).max() / step
    if (off > slack).any():
        i = int(np.argmax(off > slack))
        raise ValueError(
            f"{caller}(): time {times[i]:g} (entry {i}) lies {off[i]:.2g} steps off the grid {start:g} + k x "
            f"{step:g}; "
            "take a `step` that divides the times, or tolerance=0.5 to move each time to the nearest step."
        )
    if index[0] < 1 or (np.diff(index) < 1).any():
        i = int(np.argmax(np.diff(index, prepend=0) < 1))
        raise ValueError(
            f"{caller}(): time {times[i]:g} (entry {i}) falls on the same step of the grid as the one before "
            "it; take "
            "a smaller `step`."
        )
    grid = start + step * np.arange(1, index[-1] + 1)
    exact = off < 1e-6
    grid[index[exact] - 1] = times[exact]
    return Grid(grid, index - 1, step, float(start))


def _read_times(times: Any, num_times: int | None, caller: str) -> np.ndarray:
    if isinstance(times, jax.core.Tracer):
        raise ValueError(f"{caller}(): `times` must be known before compilation; close over them.")
    times = np.asarray(times)
    if times.dtype.kind not in "iuf":
        raise ValueError(
            f"{caller}(): `times` must be numbers, not {times.dtype}; express them in the unit the rates are "
            "to have."
        )
    times = times.astype(float)
    if times.ndim != 1 or times.size == 0:
        raise ValueError(
            f"{caller}(): `times` must be (T,) with at least one entry; got shape {times.shape}."
        )
    if num_times is not None and len(times) != num_times:
        raise ValueError(f"{caller}(): there are {len(times)} `times` and {num_times} observations.")
    if not np.isfinite(times).all():
        raise ValueError(
            f"{caller}(): `times` has an entry that is not finite (entry {_first(~np.isfinite(times))})."
        )
    fall = np.diff(times) <= 0
    if fall.any():
        i = _first(fall)
        raise ValueError(
            f"{caller}(): `times` must increase; entry {i + 1} ({times[i + 1]:g}) does not exceed entry {i} "
            f"({times[i]:g})."
        )
    return times


def _first(where: np.ndarray) -> int:
    return int(np.argmax(where))


def _spacing(times: np.ndarray, tolerance: float, caller: str) -> float:
    if len(times) == 1:
        raise ValueError(f"{caller}(): one time has no spacing; give `step`, the length of a time step.")
    gaps = np.diff(times)
    spacing = float((times[-1] - times[0]) / len(gaps))
    if np.abs(gaps - spacing).max() > tolerance * spacing:
        raise ValueError(
            f"{caller}(): the gaps between `times` vary from {gaps.min():g} to {gaps.max():g}; give `step`, "
            "the length of "
            "a time step, such that all times lie on its grid."
        )
    return spacing


def read_observations(
    y: Any, mask: Any, num_series: int | None, several: bool, caller: str
) -> tuple[Any, Any]:
    """Data time first, NaN where ``mask`` is false; and what was observed, or ``None`` where all was.

    Args:
        y: ``(T, ...)`` or, where ``several``, ``(N, T, ...)``.
        mask: booleans of its shape, or of its leading axes.
        num_series: ``N``, if the user said it.
        several: whether the first axis is that of the series.
        caller: name of the model, for the errors.

    Returns:
        ``(T, ...)`` or ``(T, N, ...)``, NumPy unless traced; booleans of that shape.
    """
    traced = isinstance(y, jax.core.Tracer) or isinstance(mask, jax.core.Tracer)
    xp: Any = jnp if traced else np
    y = xp.asarray(y)
    lead = 2 if several else 1
    if y.ndim < lead or 0 in y.shape:
        wanted = "(N, T, ...)" if several else "(T, ...)"
        raise ValueError(
            f"{caller}(): the data have shape {y.shape}; they must be {wanted} with no empty axis."
        )
    if several and num_series not in (None, y.shape[0]):
        raise ValueError(f"{caller}(): `num_series` is {num_series}, and the data hold {y.shape[0]} series.")
    if y.dtype.kind not in "iufb":
        raise ValueError(f"{caller}(): the data must be numbers, not {y.dtype}.")
    if mask is not None:
        mask = xp.asarray(numbers(mask, "mask"), bool)
        if mask.ndim < lead or mask.shape != y.shape[: mask.ndim]:
            raise ValueError(f"{caller}(): `mask` has shape {mask.shape}, and the data {y.shape}.")
        mask = mask.reshape(mask.shape + (1,) * (y.ndim - mask.ndim))
        y = xp.where(mask, y, xp.nan)
    if several:
        y = xp.moveaxis(y, 1, 0)
    if y.dtype.kind != "f":
        return y, None
    if traced:
        return y, ~jnp.isnan(y)
    if np.isinf(y).any():
        where = tuple(int(i) for i in np.argwhere(np.isinf(y))[0])
        raise ValueError(
            f"{caller}(): the data are infinite at time {where[0]}"
            + (f", index {where[1:]}" if where[1:] else "")
            + "; mark what was not observed by NaN."
        )
    seen = ~np.isnan(y)
    return y, None if seen.all() else seen


class Units(NamedTuple):
    """What the data say of scales, by component: the unit of default priors and where to start."""

    first: Any
    """The first value of each series."""
    mean: Any
    spread: Any
    """Standard deviation about the mean."""
    jump: Any
    """Root mean square of the difference of neighbours."""
    gap: Any
    """Time between neighbours."""


def units_of(y: Any, seen: Any, times: np.ndarray, several: bool) -> Units:
    """Scales of ``(T, ...)`` data; of no data (``None``), one."""
    if y is None:
        gap = float(np.mean(np.diff(times))) if len(times) > 1 else 1.0
        return Units(np.zeros(()), np.zeros(()), np.ones(()), np.ones(()), gap)
    xp: Any = jnp if isinstance(y, Array) else np
    y = y.astype(float)
    seen = xp.ones(y.shape, bool) if seen is None else seen
    axes = (0, 1) if several else (0,)
    filled = xp.where(seen, y, 0.0)
    count = xp.maximum(seen.sum(axes), 1)
    mean = filled.sum(axes) / count
    spread = xp.sqrt((xp.where(seen, y - mean, 0.0) ** 2).sum(axes) / count)
    spread = xp.where(spread > 0, spread, xp.maximum(xp.abs(mean), 1.0))
    start = xp.argmax(seen, 0)
    first = xp.take_along_axis(filled, start[None], 0)[0]
    first = xp.where(seen.any(0), first, mean)
    both = seen[1:] & seen[:-1]
    squares = xp.where(both, (filled[1:] - filled[:-1]) ** 2, 0.0).sum(axes)
    pairs = both.sum(axes)
    gaps = (both * np.diff(times).reshape((-1,) + (1,) * (y.ndim - 1))).sum(axes)
    known = squares > 0
    jump = xp.where(known, xp.sqrt(squares / xp.maximum(pairs, 1)), spread)
    return Units(first, mean, spread, jump, xp.where(known, gaps / xp.maximum(pairs, 1), 1.0))


class GridOptions(TypedDict, total=False):
    """Keywords that say where the data lie and how many there are."""

    step: float | None
    substeps: int
    start: float | None
    tolerance: float
    num_dims: int | None
    num_steps: int | None
    num_series: int | None
    mask: ArrayLike | None


class GridData(NamedTuple):
    """The data, time first, and the grid that carries them."""

    y: Any
    """``(T, [N,] ...)`` or ``None``."""
    seen: Any
    """Booleans of that shape, or ``None`` where all was observed."""
    num_series: int | None
    grid: Grid
    units: Units
    state_shape: tuple[int, ...]
    """``()`` or ``(D,)``."""
    event_shape: tuple[int, ...] | None
    """Of one observation; ``None`` without data."""

    @property
    def lead(self) -> tuple[int, ...]:
        return () if self.num_series is None else (self.num_series,)

    def plate(self) -> Any:
        if self.num_series is None:
            return contextlib.nullcontext()
        return numpyro.plate("series", self.num_series, dim=-1)

    def placed(self) -> tuple[Any, Any, bool]:
        """Data on the grid; where there is any (``None``: everywhere); and whether some have gaps within."""
        if self.y is None:
            return None, None, False
        y = self.grid.place(self.y)
        if y.dtype.kind == "f":
            y = y.astype(jnp.result_type(float))
        if self.seen is None and self.grid.num_steps == len(self.grid.observed):
            return y, None, False
        traced = isinstance(y, jax.core.Tracer)
        entries = ~jnp.isnan(y) if traced else ~np.isnan(y)
        event = tuple(range(1 + len(self.lead), y.ndim))
        rows = entries.any(event)
        partial = bool(event) and (traced or bool((rows != entries.all(event)).any()))
        return y, rows, partial

    def given_back(self, values: Array) -> Array:
        """The data as they came, or what the grid holds at their times."""
        y = values[self.grid.observed] if self.y is None else jnp.asarray(self.y)
        return jnp.moveaxis(y, 1, 0) if self.lead else y


def read_data(
    y: Any,
    times: Any,
    is_state: bool,
    caller: str,
    *,
    step: float | None = None,
    substeps: int = 1,
    start: float | None = None,
    tolerance: float = 0.01,
    num_dims: int | None = None,
    num_steps: int | None = None,
    num_series: int | None = None,
    mask: Any = None,
) -> GridData:
    """What a model was given, checked. ``is_state``: the observations are the state itself, with errors."""
    for what, value, least in (
        ("num_dims", num_dims, 0),
        ("num_steps", num_steps, 1),
        ("num_series", num_series, 1),
    ):
        if value is not None and (not isinstance(value, int | np.integer) or value < least):
            raise ValueError(f"{caller}(): `{what}` must be an integer of at least {least}; got {value!r}.")
    seen = None
    several = num_series is not None
    if y is not None:
        several = several or np.ndim(y) == 3 or (is_state and num_dims == 0 and np.ndim(y) == 2)
        y, seen = read_observations(y, mask, num_series, several, caller)
        num_steps, num_series = y.shape[0], y.shape[1] if several else None
    grid = read_grid(times, num_steps, step, substeps, start, tolerance, caller)
    event_shape = None if y is None else y.shape[1 + several :]
    state_shape = event_shape or ()
    if num_dims is not None:
        state_shape = (int(num_dims),) if num_dims else ()
    elif len(state_shape) > 1:
        raise ValueError(
            f"{caller}(): one observation has shape {event_shape}; say by `num_dims` how many dimensions the "
            "state has."
        )
    if is_state and event_shape not in (None, state_shape):
        other = (
            "give `observation`, its law as a function of the state"
            if caller == "sde"
            else "sde() takes observations of another kind"
        )
        raise ValueError(
            f"{caller}(): one observation has shape {event_shape} and the state {state_shape}; {other}."
        )
    units = units_of(y if is_state else None, seen, grid.observed_times, several)
    if not is_state:
        units = units._replace(jump=np.full((), 0.3))
    return GridData(y, seen, num_series, grid, units, state_shape, event_shape)
