"""What the step of an approximate sampler does to its draws, by a rerun at half the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size

__all__ = ["shift_between"]


def shift_between(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """The largest difference between two sets of draws that chance does not explain.

    The error of the samplers at hand is of second order in the step, or higher: half the step leaves a quarter of it or
    less, so that the shift seen is three quarters of the bias at least.

    Entry by entry the draws are replaced by the normal scores of their joint ranks, which heavy tails and changes of
    scale leave alone; then means, and logarithms of standard deviations, are compared.

    Args:
        one: draws by site, shapes ``(chain, draw, ...)``.
        two: the same, as many draws.

    Returns:
        ``step_bias``: the largest shift in units of a standard deviation, less what chance explains (the 1 %
        quantile of the largest of so many differences, by Bonferroni's bound); zero if chance explains all.
        ``step_bias_seen``: the largest of these allowances: a smaller shift may go unseen.
        ``step_bias_where``: the entry.

    Example:
        >>> import numpy as np
        >>> draws = np.random.default_rng(0).normal(size=(2, 4, 1000))
        >>> shift_between({"x": draws[0]}, {"x": draws[1]})["step_bias"]
        0.0
        >>> 0.3 < shift_between({"x": draws[0]}, {"x": draws[1] + 0.5})["step_bias"] < 0.6
        True
    """
    from scipy import stats  # a second of import time

    names, first, second = [], [], []
    for name, value in one.items():
        shape = np.shape(value)
        for index in np.ndindex(shape[2:]):
            names.append(f"{name}{list(index)}" if index else name)
        first.append(np.reshape(value, (*shape[:2], -1)))
        second.append(np.reshape(np.asarray(two[name]), (*shape[:2], -1)))
    a, b = np.concatenate(first, -1), np.concatenate(second, -1)
    fits = np.isfinite(a).all((0, 1)) & np.isfinite(b).all((0, 1)) & (np.ptp(a, axis=(0, 1)) > 0)
    if not fits.any():
        return {"step_bias": 0.0, "step_bias_seen": float("inf"), "step_bias_where": ""}
    pooled = np.concatenate([a, b], axis=1)[..., fits]
    ranks = stats.rankdata(pooled.reshape(-1, pooled.shape[-1]), axis=0)
    scores = stats.norm.ppf((ranks - 0.375) / (len(ranks) + 0.25)).reshape(pooled.shape)
    halves = scores[:, : a.shape[1]], scores[:, a.shape[1] :]

    centres = [half.mean((0, 1)) for half in halves]
    spreads = [((half - centre) ** 2).mean((0, 1)) for half, centre in zip(halves, centres, strict=True)]
    squares = [(half - centre) ** 2 for half, centre in zip(halves, centres, strict=True)]
    mean_error = sum(s / _ess(half) for half, s in zip(halves, spreads, strict=True))
    # The logarithm of a standard deviation: half the relative error of the variance.
    log_sd_error = sum(
        0.25 * sq.var((0, 1)) / s**2 / _ess(sq) for sq, s in zip(squares, spreads, strict=True)
    )
    shifts = np.concatenate([np.abs(centres[1] - centres[0]), 0.5 * np.abs(np.log(spreads[1] / spreads[0]))])
    allowance = stats.norm.isf(0.005 / len(shifts)) * np.sqrt(np.concatenate([mean_error, log_sd_error]))
    excess = np.maximum(shifts - allowance, 0.0)
    where = np.flatnonzero(fits)[int(np.argmax(excess)) % int(fits.sum())]
    return {
        "step_bias": float(excess.max()),
        "step_bias_seen": float(allowance.max()),
        "step_bias_where": names[where] if excess.max() > 0 else "",
    }


def _ess(values: np.ndarray) -> np.ndarray:
    """Of values by chain, draw and entry; at most as many as there are, at least one."""
    sizes = np.nan_to_num(effective_sample_size(values), nan=1.0)
    return np.clip(sizes, 1.0, values.shape[0] * values.shape[1])
