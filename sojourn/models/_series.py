"""Series as data of a model: their shape, scale and missing entries, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import numbers, shown, whole_number
from sojourn.distributions._missing import is_missing

__all__ = [
    "Scale",
    "check_categories",
    "check_counts",
    "check_covariates",
    "check_lengths",
    "check_mask",
    "increasing",
    "observed_steps",
    "pad",
    "read_series",
]


class Scale:
    """Location and spread of the observed values: the unit of the default priors and the place to start.

    Plain NumPy where the data are at hand: eager JAX would compile every line of it.
    """

    def __init__(self, y: Any, mask: Any, lengths: Any, event_ndim: int = 0):
        self._np = np if all(_concrete(x) for x in (y, mask, lengths)) else jnp
        self._values = None
        self.mean = self.sd = np.ones(())
        if y is None or np.size(y) == 0:
            return
        values = self._np.asarray(y, float)
        lead = values.shape[: values.ndim - event_ndim]
        seen = self._np.ones(lead, bool)
        if mask is not None and np.shape(mask) == lead:
            seen = seen & self._np.asarray(mask, bool)
        if lengths is not None and len(lead) == 2 and np.shape(lengths) == lead[:1]:
            seen = seen & (np.arange(lead[1]) < self._np.asarray(lengths)[:, None])
        seen = seen.reshape((*lead, *(1,) * event_ndim)) & self._np.isfinite(values)
        self._values = self._np.where(seen, values, np.nan).reshape((-1, *values.shape[len(lead) :]))
        count = self._np.maximum(seen.sum(tuple(range(len(lead)))), 1)
        total = self._np.where(seen, values, 0.0)
        axes = tuple(range(len(lead)))
        self.mean = total.sum(axes) / count
        sd = self._np.sqrt((self._np.where(seen, values - self.mean, 0.0) ** 2).sum(axes) / count)
        self.sd = self._np.where(sd > 0, sd, self._np.maximum(self._np.abs(self.mean), 1.0))

    def spread(self, num_states: int) -> Any:
        """``(num_states, ...)`` quantiles of the data, one in the middle of each equal share."""
        levels = (np.arange(num_states) + 0.5) / num_states
        if self._values is None:
            return levels + 0.5
        values = self._np.where(self._np.isnan(self._values).all(0), self.mean, self._values)
        return self._np.nanquantile(values, levels, 0)


def _concrete(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def increasing(start: Any) -> Any:
    """Break ties, so that the values can start a sorted vector."""
    step = 0.02 * (1.0 + abs(start).max())
    return start + step * np.arange(len(start))


def read_series(
    y: Any, event: int, num_steps: int | None, num_series: int | None, name: str
) -> tuple[Array | None, tuple[int, ...]]:
    """The data as an array, and ``(T,)`` or ``(N, T)``."""
    if y is None:
        if not isinstance(num_steps, int | np.integer) or num_steps < 1:
            raise ValueError("To simulate, `num_steps` must be a positive number of steps.")
        num_series = None if num_series is None else whole_number(num_series, "num_series")
        return None, (num_steps,) if num_series is None else (num_series, num_steps)
    y = jnp.asarray(numbers(y, name))
    if y.ndim < event:
        raise ValueError(f"`{name}` has shape {y.shape}; one observation has {event} axes of its own.")
    shape = y.shape[: y.ndim - event]
    if len(shape) not in (1, 2):
        one = ", ..." if event else ""
        raise ValueError(f"`{name}` has shape {y.shape}; a series is (T{one}) and several are (N, T{one}).")
    if 0 in y.shape:
        raise ValueError(f"`{name}` is empty (shape {y.shape}); a series needs at least one observation.")
    return y, shape


def check_mask(y: Array | None, mask: Any, shape: tuple[int, ...], event: int, name: str) -> Array | None:
    if y is not None and not isinstance(y, jax.core.Tracer):
        infinite = np.isinf(np.asarray(y, float))
        if infinite.any():
            where = tuple(int(i) for i in np.argwhere(infinite)[0])
            raise ValueError(f"`{name}` is infinite at {_at(where)}; mark what was not observed by NaN.")
    if mask is None:
        return None
    mask = jnp.asarray(numbers(mask, "mask"), bool)
    if mask.shape != shape:
        raise ValueError(f"`mask` has shape {mask.shape}; the series need {shape}.")
    missing = None if y is None else is_missing(y, event)
    if (
        missing is not None
        and not isinstance(missing, jax.core.Tracer)
        and not isinstance(mask, jax.core.Tracer)
    ):
        undeclared = np.asarray(missing & mask)
        if undeclared.any():
            where = tuple(int(i) for i in np.argwhere(undeclared)[0])
            raise ValueError(
                f"`{name}` is NaN at {_at(where)}, where `mask` says that it was observed; "
                "mask it, or leave the mask out and let NaN mean missing."
            )
    return mask


def check_lengths(lengths: Any, shape: tuple[int, ...]) -> None:
    if lengths is None:
        return
    lengths = numbers(lengths, "lengths")
    if len(shape) == 1:
        raise ValueError("`lengths` describes several series; for one, cut it to its length.")
    if np.shape(lengths) != shape[:1]:
        raise ValueError(f"`lengths` has shape {np.shape(lengths)}; {shape[0]} series need ({shape[0]},).")
    if _concrete(lengths):
        for n in np.asarray(lengths):
            if not 1 <= n <= shape[1]:
                raise ValueError(
                    f"`lengths` has an entry {n}; it must lie between 1 and the {shape[1]} steps given."
                )


def check_covariates(covariates: Any, shape: tuple[int, ...]) -> Array | None:
    if covariates is None:
        return None
    covariates = jnp.asarray(numbers(covariates, "covariates"), float)
    if covariates.ndim < 2 or covariates.shape[:-1] not in (shape, shape[-1:]):
        wanted = f"({', '.join(map(str, shape))}, P)"
        raise ValueError(f"`covariates` has shape {covariates.shape}; the series need {wanted}.")
    if not isinstance(covariates, jax.core.Tracer) and not np.isfinite(np.asarray(covariates)).all():
        raise ValueError("`covariates` has an entry that is not finite; covariates cannot be missing.")
    return covariates


def observed_steps(
    y: Array | None, mask: Any, lengths: Any, shape: tuple[int, ...], event: int
) -> Array | None:
    """Booleans of the shape of the series: what was observed; ``None`` for everything."""
    seen = None if mask is None else jnp.asarray(mask, bool)
    missing = None if y is None else is_missing(y, event)
    if missing is not None:
        seen = ~missing if seen is None else seen & ~missing
    if lengths is not None and len(shape) == 2:
        inside = jnp.arange(shape[-1]) < jnp.asarray(lengths)[:, None]
        seen = inside if seen is None else seen & inside
    return seen


def _seen_values(y: Any, mask: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Concrete values and where they were observed; ``None`` inside a compiled function."""
    if y is None or any(isinstance(x, jax.core.Tracer) for x in (y, mask, lengths)):
        return None
    values = np.asarray(y, float)
    seen = ~np.isnan(values)
    if mask is not None and np.shape(mask) == values.shape:
        seen &= np.asarray(mask, bool)
    if lengths is not None and values.ndim == 2 and np.shape(lengths) == values.shape[:1]:
        seen &= np.arange(values.shape[1]) < np.asarray(lengths)[:, None]
    return values, seen


def check_counts(counts: Any, mask: Any, lengths: Any) -> None:
    found = _seen_values(counts, mask, lengths)
    if found is None:
        return
    values, seen = found
    bad = seen & ((values < 0) | (values != np.round(values)))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"Counts are non-negative integers; at {_at(where)} stands {values[where]:g}.")


def check_categories(y: Any, num_categories: int, mask: Any, lengths: Any) -> None:
    if not isinstance(num_categories, int | np.integer) or num_categories < 2:
        raise ValueError(f"`num_categories` must be at least two, not {shown(num_categories)}.")
    found = _seen_values(y, mask, lengths)
    if found is None:
        return
    values, seen = found
    bad = seen & ((values < 0) | (values >= num_categories) | (values != np.round(values)))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"Categories are integers from 0 to {num_categories - 1}; at {_at(where)} stands {values[where]:g}."
        )


def _at(where: tuple[int, ...]) -> str:
    return f"index {where[0]}" if len(where) == 1 else f"index {where}"


def pad(series: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """Stack series of unequal lengths.

    Args:
        series: arrays ``(T_n, ...)``.

    Returns:
        ``(N, max T_n, ...)`` array padded with its own type's zero (never looked at), and ``(N,)`` lengths.

    Example:
        >>> stacked, lengths = pad([[1, 2, 3], [4]])
        >>> stacked.tolist(), lengths.tolist()
        ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    if isinstance(series, str | Mapping) or not isinstance(series, Iterable):
        raise ValueError(f"`series` must be a list of series, not {shown(series)}.")
    arrays = [np.asarray(numbers(s, "series")) for s in series]
    if not arrays or any(a.ndim == 0 or len(a) == 0 for a in arrays):
        raise ValueError("`pad` needs at least one series, and at least one observation in each.")
    if len({a.shape[1:] for a in arrays}) > 1:
        raise ValueError(
            f"`pad` needs observations of one shape in all series; they are {[a.shape[1:] for a in arrays]}."
        )
    lengths = np.array([len(a) for a in arrays])
    stacked = np.zeros((len(arrays), lengths.max(), *arrays[0].shape[1:]), np.result_type(*arrays))
    for row, a in zip(stacked, arrays, strict=True):
        row[: len(a)] = a
    return stacked, lengths
