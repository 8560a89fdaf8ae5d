"""Sampled paths as data of excursions: the pieces between crossings of a level, or the runs of one sign."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sojourn._arguments import numbers
from sojourn.distributions import KINDS

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["KINDS", "excursions", "sign_runs"]

_COMPLETE, _RIGHT, _FIRST, _EMPTY = (KINDS.index(kind) for kind in ("complete", "right", "first", "empty"))

_ROUGH = 0.2
_ENOUGH = 10  # complete excursions; a share among fewer says little
_KERNEL_WIDTH = 5.0  # standard deviations at which the Gaussian kernel is cut: 6e-7 of it is left out


def excursions(
    path: Any, *, step: float = 1.0, level: float = 0.0, smooth: float | None = None
) -> xr.Dataset:
    """The excursions of a sampled path above and below a level, complete and censored.

    Crossings are where straight lines between the samples meet the level; a sample on the level stays on the
    side that the path came from, so that touching is not crossing. NaN cuts a record into windows. A window
    with crossings gives a ``first`` piece, which is not a whole excursion, the ``complete`` ones, and one
    censored on the ``right``; a window without one is ``empty``. Windows of a single sample have no duration
    and are left out.

    An excursion shorter than the step is missed and joins its neighbours, and straight lines replace the path
    by a rougher one. Both are harmless where the step is small against the excursions; otherwise use
    :func:`sign_runs`.

    Args:
        path: ``(T,)``, one record, or ``(N, T)``, several (sensors); NaN where nothing was observed.
        step: time between samples.
        level: the level, in units of the path.
        smooth: standard deviation, in units of time, of a Gaussian kernel that the path is averaged with
            first, window by window. Near the ends of a window the weights of the samples that are there are
            renormalised, so that half the kernel acts at the very end. What is crossed, and what the
            attributes describe, is then the smoothed path, whose covariance is another one. ``None`` does not
            smooth.

    Returns:
        Over ``excursion``, in order of records and time: ``duration``, ``start`` (of the piece, since the
        first sample of its record), ``side`` (1 above, -1 below), ``kind`` (index into :data:`KINDS`) and
        ``sensor`` (the row of the path). Attributes: ``level``, ``path_mean`` and ``path_sd`` over all
        samples, ``level_in_sd``, (level - mean) / sd, ``step``, ``smooth`` (0 for none), and ``windows``, the
        number of them.

    Raises:
        ValueError: a path that is constant, boolean, infinite somewhere or of another shape, or without two
            samples in a row that are not NaN; a step or a smoothing width that is not positive; a level that
            is not finite.
        UserWarning: where more than a fifth of the complete excursions (of 10 at least) hold one sample only,
            the path crossing back at the very next. Noise of measurement does that, and so do paths without a
            derivative.

    Example:
        >>> from sojourn.models._excursion_records import excursions
        >>> pieces = excursions([1.0, 1.0, -1.0, -3.0, 1.0, 2.0], step=2.0)
        >>> pieces["duration"].values, pieces["start"].values
        (array([3. , 4.5, 2.5]), array([0. , 3. , 7.5]))
        >>> [KINDS[k] for k in pieces["kind"].values], pieces["side"].values
        (['first', 'complete', 'right'], array([ 1, -1,  1]))
    """
    if np.asarray(path).dtype == bool:
        raise ValueError(
            "excursions(): `path` is boolean, so crossings cannot be placed between samples; use sign_runs()."
        )
    values = _records(path, "excursions")
    _check_level(level, "excursions")
    step, smooth = numbers(step, "step"), None if smooth is None else numbers(smooth, "smooth")
    for name, value in (("step", step), ("smooth", smooth)):
        if value is not None and not (np.ndim(value) == 0 and np.isfinite(value) and value > 0):
            raise ValueError(f"excursions(): `{name}` must be positive, in units of time; got {value}.")
    seen = ~np.isnan(values)
    if not (seen[:, 1:] & seen[:, :-1]).any():
        raise ValueError(
            "excursions(): `path` has no two samples in a row that are not NaN, so nothing is seen to cross; "
            "fill short gaps first, or lengthen the step."
        )
    if np.nanmin(values) == np.nanmax(values):
        raise ValueError(
            f"excursions(): `path` is constant, {np.nanmin(values):.6g} throughout: nothing is crossed."
        )
    if smooth is not None:
        values = _smoothed(values, smooth / step)
    height = values - level
    pieces = _pieces(_above(height), seen, lone_samples=False)

    flat = np.append(height.ravel(), np.nan)
    # Where between samples i and i + 1 the line meets the level; below 1, so that no piece has length zero.
    with np.errstate(invalid="ignore", divide="ignore"):
        fraction = np.minimum(flat[:-1] / (flat[:-1] - flat[1:]), 1.0 - 1e-12)
    before = np.where(pieces.begins, 1.0 - fraction[pieces.first - 1], 0.0)
    after = np.where(pieces.ends, fraction[pieces.last], 0.0)
    sensor, index = np.divmod(pieces.first, values.shape[1])
    duration = step * (pieces.last - pieces.first + before + after)
    _warn_if_rough(pieces)

    attrs = {**_attributes(values, level), "step": float(step), "smooth": float(smooth or 0.0)}
    return _dataset("excursion", duration, step * (index - before), sensor, pieces, attrs, "duration")


def sign_runs(path: Any, *, level: float = 0.0) -> xr.Dataset:
    """Runs of consecutive samples on one side of a level: what a one-bit record, or one of coarse step, says.

    NaN cuts a record into windows. The first run of a window began before it, the last goes on after it, and
    both are marked. A sample on the level counts as below.

    Args:
        path: ``(T,)``, one record, or ``(N, T)``, several; NaN where nothing was observed. Booleans are True
            above the level, and then ``level`` is not used.
        level: the level, in units of the path.

    Returns:
        Over ``run``, in order of records and time: ``length`` (samples), ``start`` (index of the first
        sample), ``side`` (1 above, -1 below), ``kind`` (index into :data:`KINDS`: ``complete``, ``first``,
        ``right`` for the last one, or ``empty`` for a window in which the sign does not change) and
        ``sensor`` (the row of the path). Attributes: ``windows``, the number of them, and, unless the path is
        boolean, ``level``, ``path_mean``, ``path_sd`` and ``level_in_sd``, as of :func:`excursions`.

    Raises:
        ValueError: a path that is infinite somewhere, of another shape, or NaN throughout; a level that is
            not finite.

    Example:
        >>> from sojourn.models._excursion_records import sign_runs
        >>> runs = sign_runs([0.4, -0.1, -0.3, 0.2, 0.3, 0.1, float("nan"), 1.0])
        >>> runs["length"].values, [KINDS[k] for k in runs["kind"].values]
        (array([1, 2, 3, 1]), ['first', 'complete', 'right', 'empty'])
    """
    binary = np.asarray(path).dtype == bool
    values = _records(path, "sign_runs")
    if binary:
        level = 0.5
    _check_level(level, "sign_runs")
    seen = ~np.isnan(values)
    pieces = _pieces(values > level, seen, lone_samples=True)
    sensor, index = np.divmod(pieces.first, values.shape[1])
    attrs = {} if binary else _attributes(values, level)
    return _dataset("run", pieces.last - pieces.first + 1, index, sensor, pieces, attrs, "length")


class _Pieces(NamedTuple):
    """Maximal runs of samples on one side. Positions are in the flattened records."""

    first: np.ndarray
    last: np.ndarray
    begins: np.ndarray
    """Whether a crossing begins it (else the window does)."""
    ends: np.ndarray
    above: np.ndarray


def _pieces(above: np.ndarray, seen: np.ndarray, *, lone_samples: bool) -> _Pieces:
    # Whether a sample goes on from the one before it; the first of a record never does.
    joins = np.pad(seen[:, 1:] & seen[:, :-1], ((0, 0), (1, 0))).ravel()
    above, seen = above.ravel(), seen.ravel()
    if not lone_samples:
        seen = seen & (joins | np.append(joins[1:], False))
    crossed = joins & (above != np.append(False, above[:-1]))
    starts = seen & (~joins | crossed)
    first = np.flatnonzero(starts)
    begins = crossed[first]
    closes = seen & np.append(~joins[1:] | crossed[1:], True)
    last = np.flatnonzero(closes)
    ends = np.append(crossed[1:], False)[last]
    return _Pieces(first, last, begins, ends, above[first])


def _above(height: np.ndarray) -> np.ndarray:
    """Side of each sample; on the level, that of the sample before it, and failing that of the one after."""
    side = np.sign(height)
    if not (side == 0).any():
        return side > 0
    # A column of NaN on either side, so that no record lends its side to the next.
    padded = np.pad(side, ((0, 0), (1, 1)), constant_values=np.nan)
    flat = padded.ravel()
    carried = _carried(flat)
    carried = np.where(np.isnan(carried), _carried(flat[::-1])[::-1], carried)
    return (carried > 0).reshape(padded.shape)[:, 1:-1]


def _carried(side: np.ndarray) -> np.ndarray:
    """Each zero replaced by the last entry that is not zero."""
    return side[np.maximum.accumulate(np.where(side != 0, np.arange(len(side)), 0))]


def _smoothed(values: np.ndarray, width: float) -> np.ndarray:
    """Gaussian average of standard deviation ``width`` samples, over each window by itself."""
    radius = int(np.ceil(_KERNEL_WIDTH * width))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
    result = values.copy()
    seen = np.pad(~np.isnan(values), ((0, 0), (1, 1)))
    edges = np.diff(seen.astype(int), axis=1)
    # The k-th beginning and the k-th end, in order of records and time, are those of one window.
    begins, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    for (row, begin), (_, end) in zip(begins, ends, strict=True):
        middle = slice(radius, radius + end - begin)
        window = values[row, begin:end]
        weight = np.convolve(np.ones_like(window), kernel)[middle]
        # Around its mean, so that a constant stays one to the last digit.
        centre = window.mean()
        result[row, begin:end] = centre + np.convolve(window - centre, kernel)[middle] / weight
    return result


def _records(path: Any, caller: str) -> np.ndarray:
    """``(N, T)``, not empty, finite or NaN and not NaN throughout."""
    values = np.asarray(numbers(path, "path"), float)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(
            f"{caller}(): `path` has shape {values.shape}; one record is (T,), several are (N, T), not empty."
        )
    if np.isinf(values).any():
        where = ", ".join(str(i) for i in np.argwhere(np.isinf(values))[0])
        raise ValueError(f"{caller}(): `path` is infinite at [{where}]; mark what was not observed by NaN.")
    if np.isnan(values).all():
        raise ValueError(f"{caller}(): `path` is NaN throughout; at least one window must be observed.")
    return np.atleast_2d(values)


def _check_level(level: Any, caller: str) -> None:
    level = numbers(level, "level")
    if np.ndim(level) != 0 or not np.isfinite(level):
        raise ValueError(f"{caller}(): `level` must be one finite number, in units of the path; got {level}.")


def _attributes(values: np.ndarray, level: float) -> dict[str, float]:
    mean, sd = float(np.nanmean(values)), float(np.nanstd(values))
    in_sd = (level - mean) / sd if sd > 0 else float("nan")
    return {"level": float(level), "path_mean": mean, "path_sd": sd, "level_in_sd": float(in_sd)}


def _warn_if_rough(pieces: _Pieces) -> None:
    complete = pieces.begins & pieces.ends
    if (count := complete.sum()) < _ENOUGH:
        return
    share = (pieces.first == pieces.last)[complete].mean()
    if share > _ROUGH:
        warnings.warn(
            f"excursions(): {100 * share:.0f} % of the {count} complete excursions hold a single sample, the "
            "path crossing back at the very next: it is rough, or measured with noise, or sampled too "
            "coarsely. "
            "Smooth it first, by `smooth=`, or fit its runs of signs instead, by sign_runs().",
            stacklevel=3,
        )


def _dataset(
    dim: str,
    extent: np.ndarray,
    start: np.ndarray,
    sensor: np.ndarray,
    pieces: _Pieces,
    attrs: dict[str, Any],
    name: str,
) -> xr.Dataset:
    import xarray as xr

    kind = np.where(
        pieces.begins,
        np.where(pieces.ends, _COMPLETE, _RIGHT),
        np.where(pieces.ends, _FIRST, _EMPTY),
    )
    unit = "samples" if name == "length" else "units of time of the step"
    return xr.Dataset(
        {
            name: (dim, extent, {"long_name": f"{name} of the {dim}", "units": unit}),
            "start": (dim, start, {"long_name": "where in its record it starts", "units": unit}),
            "side": (
                dim,
                np.where(pieces.above, 1, -1),
                {"long_name": "side of the level", "flag_values": [-1, 1], "flag_meanings": "below above"},
            ),
            "kind": (
                dim,
                kind,
                {
                    "long_name": f"what is known of the {name}",
                    "flag_values": list(range(len(KINDS))),
                    "flag_meanings": " ".join(KINDS),
                },
            ),
            "sensor": (dim, sensor, {"long_name": "row of the path"}),
        },
        attrs={**attrs, "windows": int((~pieces.begins).sum())},
    )
