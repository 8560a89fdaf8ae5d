"""Proper scores of predictions by observation: log score, CRPS, coverage of intervals and PIT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sojourn._arguments import finite_numbers, is_list, must_be, numbers, whole_number
from sojourn.diagnostics import _arviz
from sojourn.diagnostics.predictive import Pit, _draws, predictive_variables

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas
    import xarray as xr

__all__ = ["Score", "crps", "interval_coverage", "log_score", "score"]

SAMPLE_DIMS = ("chain", "draw", "sample")
"""Dimensions over which forecasts are draws of the same thing."""

HIGH_KHAT = 0.7
_BLOCK = 500  # entries looked at together: bounds the memory of the sorted draws


@dataclass(frozen=True)
class Score:
    """Scores of the observed variables; print it.

    Args:
        pointwise: Of each variable `y`, in the dimensions of the data and NaN where nothing was observed:
            `y_log_score`, `y_crps`, `y_pit`, `y_khat`, and by level of `interval` the ends `y_low`, `y_high`
            of the central interval and `y_covered` (1 where it holds the observation). `y_log_score` and
            `y_khat` only where the fit has a pointwise log-likelihood, and without the event dimensions of
            the data.
        table: A row a variable: number of `observations`, mean `log_score` and `crps` with their standard
            errors (`_se`), `coverage_80` and its standard error were the intervals right, mean `width_80`,
            ... for each level in per cent, `pit_p_value` (of uniformity) and `high_khat`, the number of terms
            with Pareto k-hat above 0.7.
        notes: What to know about the numbers.
    """

    pointwise: xr.Dataset
    table: pandas.DataFrame
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        columns = [str(column) for column in self.table]
        levels = [column.removeprefix("width_") for column in columns if column.startswith("width_")]
        for name, row in self.table.iterrows():
            count = int(row["observations"])
            lines.append(f"{name}: {count} observation{'s' * (count != 1)}")
            if np.isfinite(row["log_score"]):
                lines.append(
                    f"  log score {row['log_score']:10.4g} +- {row['log_score_se']:.2g}   (higher is better; "
                    f"sum {row['log_score'] * count:.6g})"
                )
            lines.append(f"  CRPS      {row['crps']:10.4g} +- {row['crps_se']:.2g}   (lower is better)")
            for level in levels:
                lines.append(
                    f"  {level + ' %':>5} interval holds {100 * row[f'coverage_{level}']:.1f} % "
                    f"(+- {100 * row[f'coverage_se_{level}']:.1f} by chance), mean width "
                    f"{row[f'width_{level}']:.4g}"
                )
            lines.append(f"  PIT uniform: p = {row['pit_p_value']:.2g}")
        return "\n".join([*lines, *self.notes])


def _weights(weights: Any, draws: np.ndarray) -> np.ndarray:
    """Weights of the shape of the draws that sum to one over the first axis."""
    if weights is None:
        return np.full(draws.shape, 1.0 / len(draws))
    weights = np.asarray(finite_numbers(weights, "weights"), dtype=float)
    shape = (*weights.shape, *(1,) * (draws.ndim - weights.ndim))
    try:
        weights = np.broadcast_to(weights.reshape(shape), draws.shape)
    except ValueError:
        raise ValueError(
            f"`weights` has shape {weights.shape}; it must be that of the draws, {draws.shape}, or its first "
            "axes."
        ) from None
    if not (weights >= 0.0).all() or not (weights.sum(axis=0) > 0.0).all():
        raise ValueError(
            "`weights` must not be negative or NaN, and some weight of each entry must be positive."
        )
    return weights / weights.sum(axis=0)


def _shapes(draws: Any, observed: Any, caller: str) -> tuple[np.ndarray, np.ndarray]:
    draws = np.asarray(finite_numbers(draws, "draws"), dtype=float)
    observed = np.asarray(numbers(observed, "observed"), dtype=float)
    if draws.ndim == 0 or draws.shape[1:] != observed.shape or len(draws) < 2:
        raise ValueError(
            f"{caller}() takes two or more draws on the first axis and then the axes of the observations; "
            f"the draws have shape {draws.shape}, the observations {observed.shape}."
        )
    return draws, observed


def log_score(log_likelihood: Any, weights: Any = None) -> np.ndarray:
    r"""Log of the mean density over draws, :math:`\log \sum_s w_s\, p(y \mid \theta_s)`. Higher is better.

    Args:
        log_likelihood: Shape (draw, ...): the terms :math:`\log p(y \mid \theta_s)`.
        weights: Shape (draw,) or (draw, ...), of the draws; equal by default, normalised if they are not.

    Returns:
        Shape (...).

    Raises:
        ValueError: If the weights do not fit.

    Example:
        >>> log_score(np.log([[0.1, 0.5], [0.3, 0.5]])).round(4).tolist()
        [-1.6094, -0.6931]
    """
    terms = np.asarray(numbers(log_likelihood, "log_likelihood"), dtype=float)
    if terms.ndim == 0 or not len(terms):
        raise ValueError(
            f"`log_likelihood` has shape {terms.shape}; it must be (draw, ...), with one draw at least."
        )
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(terms + np.log(_weights(weights, terms)), axis=0)


def crps(draws: Any, observed: Any, weights: Any = None, *, fair: bool = True) -> np.ndarray:
    r"""Continuous ranked probability score, in the unit of the data. Lower is better.

    .. math:: E|X - y| - \tfrac12 E|X - X'|

    with X, X' independent draws (Gneiting and Raftery 2007, *JASA* 102:359, eq. 21). For one number it is the
    absolute error. The second mean is found from the sorted draws in one pass, as
    :math:`\int F (1 - F)`.

    Args:
        draws: Shape (draw, ...), at least two draws.
        observed: Shape (...); NaN gives NaN.
        weights: Shape (draw,) or (draw, ...), of the draws; equal by default, normalised if they are not.
        fair: Leave the pairs of a draw with itself out of the second mean, so that few draws are not scored
            worse than many from the same law (Ferro 2014, *Q. J. R. Meteorol. Soc.* 140:1917). `False` scores
            the draws as if they were the whole forecast.

    Returns:
        Shape (...).

    Raises:
        ValueError: If the shapes do not agree, or there are fewer than two draws.

    Example:
        >>> crps([0.0, 1.0, 2.0], 1.0, fair=False).round(4).item()
        0.2222
    """
    draws, observed = _shapes(draws, observed, "crps")
    return _crps(*_ranked(draws, _weights(weights, draws)), observed, fair)


def _ranked(draws: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(draws, axis=0)
    return np.take_along_axis(draws, order, axis=0), np.take_along_axis(weights, order, axis=0)


def _crps(draws: np.ndarray, weights: np.ndarray, observed: np.ndarray, fair: bool) -> np.ndarray:
    """Of sorted draws."""
    below = np.cumsum(weights, axis=0)[:-1]
    spread = (below * (1.0 - below) * np.diff(draws, axis=0)).sum(axis=0)
    if fair:
        others = 1.0 - (weights**2).sum(axis=0)  # the probability that two draws are not the same one
        spread = np.divide(spread, others, out=np.zeros_like(spread), where=others > 0.0)
    return (weights * np.abs(draws - observed)).sum(axis=0) - spread


def _quantiles(draws: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles (level, ...) of sorted draws.

    Draw i of n stands for the level i / (n + 1): the chance that one more draw lies below it. With the
    quantiles of the empirical distribution an interval of 200 calibrated draws for 95 % would hold 94 %.
    Weights count as the n draws 1 / sum(w^2).
    """
    number = 1.0 / (weights**2).sum(axis=0)
    at = np.cumsum(weights, axis=0) * number / (number + 1.0)
    after = np.stack([(at < level).sum(axis=0) for level in levels])
    high = np.minimum(after, len(draws) - 1)
    low = np.maximum(after - 1, 0)
    x = [np.take_along_axis(draws, index, axis=0) for index in (low, high)]
    p = [np.take_along_axis(at, index, axis=0) for index in (low, high)]
    gap = p[1] - p[0]
    share = np.divide(
        levels.reshape(-1, *(1,) * (draws.ndim - 1)) - p[0], gap, out=np.ones_like(gap), where=gap > 0
    )
    return x[0] + np.clip(share, 0.0, 1.0) * (x[1] - x[0])


def _levels(intervals: Sequence[float]) -> np.ndarray:
    levels = np.atleast_1d(np.asarray(numbers(intervals, "intervals"), dtype=float))
    if levels.ndim != 1 or not levels.size or not ((levels > 0.0) & (levels < 1.0)).all():
        raise ValueError(
            f"`intervals` are probabilities between 0 and 1, such as (0.5, 0.9), not {intervals!r}."
        )
    return levels


def _ends(levels: np.ndarray) -> np.ndarray:
    return np.concatenate([(1.0 - levels) / 2.0, (1.0 + levels) / 2.0])


def interval_coverage(
    draws: Any, observed: Any, intervals: Sequence[float] = (0.5, 0.8, 0.95), weights: Any = None
) -> np.ndarray:
    """Whether the central interval of the draws holds each observation.

    Of calibrated draws of a continuous law, few as they may be, the interval for 80 % holds 80 % of the
    observations, with binomial standard error. Intervals of integers hold more.

    Args:
        draws: Shape (draw, ...), at least two draws.
        observed: Shape (...); NaN gives NaN.
        intervals: Probabilities of the intervals, between 0 and 1.
        weights: Shape (draw,) or (draw, ...), of the draws; equal by default, normalised if they are not.

    Returns:
        Shape (interval, ...): 1 where held, else 0.

    Raises:
        ValueError: If the shapes do not agree, there are fewer than two draws, or a probability is none.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> held = interval_coverage(rng.normal(size=(100, 5000)), rng.normal(size=5000), (0.5, 0.9))
        >>> held.mean(axis=1).round(2).tolist()
        [0.5, 0.9]
    """
    draws, observed = _shapes(draws, observed, "interval_coverage")
    levels = _levels(intervals)
    low, high = np.split(_quantiles(*_ranked(draws, _weights(weights, draws)), _ends(levels)), 2)
    return _held(low, high, observed)


def _held(low: np.ndarray, high: np.ndarray, observed: np.ndarray) -> np.ndarray:
    held = ((low <= observed) & (observed <= high)).astype(float)
    return np.where(np.isnan(observed), np.nan, held)


def score(
    fit: Any,
    var_name: str | Sequence[str] | None = None,
    *,
    observed: Any = None,
    intervals: Sequence[float] = (0.5, 0.8, 0.95),
    seed: int = 0,
) -> Score:
    """Score the predictions of a fit, or a set of forecasts, against what was observed.

    The draws are those of the group `predictions` where there is one (one step ahead: y_t given y_<t), else
    of `posterior_predictive`. Where the fit has a `log_likelihood` by observation, the draws are weighted by
    Pareto-smoothed importance sampling so that an observation's own term does not count in its prediction
    (Gelfand 1996; Vehtari, Gelman and Gabry 2017), and the log score is

        log sum_s w_s p(y_t | y_<t, draw s).

    Parameters have then seen the observations after t, if not y_t itself: `sojourn.leave_future_out` leaves
    these out as well. Standard errors are those of a mean of independent numbers, which scores of good
    one-step-ahead predictions nearly are. PIT values are those of `sojourn.diagnostics.predictive.pit`.

    Args:
        fit: An ArviZ container with `observed_data` and predictive draws, such as `sojourn.fit`,
            `sojourn.one_step_ahead` return; or forecasts, an `xarray.Dataset` of draws over `chain`, `draw`
            or `sample`, such as `sojourn.particle_filter(..., horizon=...)` returns.
        var_name: Observed variables; all that have predictive draws by default.
        observed: What came after forecasts: arrays by variable (`y` is held against `y` or `y_forecast`).
            Only with forecasts.
        intervals: Probabilities of the central intervals.
        seed: For ties between an observation and draws (PIT of integers).

    Returns:
        A :class:`Score`: print it, `.table`, `.pointwise`.

    Raises:
        TypeError: If `fit` is neither.
        ValueError: If nothing was observed, or there are no draws of the shape of the observations; draws or
            log-likelihoods of an observation that are NaN or infinite; a probability outside 0 to 1.

    Example:
        >>> import xarray as xr
        >>> rng = np.random.default_rng(0)
        >>> draws = xr.Dataset({"y": (("chain", "draw", "time"), rng.normal(size=(2, 200, 300)))})
        >>> found = score(draws, observed={"y": rng.normal(size=300)}, intervals=(0.8,))
        >>> print(found)
        y: 300 observations
          CRPS          0.5685 +- 0.024   (lower is better)
           80 % interval holds 81.0 % (+- 2.3 by chance), mean width 2.568
          PIT uniform: p = 0.4
        >>> found.pointwise["y_crps"].dims
        ('time',)
    """
    return _score(fit, var_name, observed, intervals, seed)


class _Variable(NamedTuple):
    """What there is to score of a variable."""

    observed: xr.DataArray
    draws: xr.DataArray  # (sample, *dims of observed)
    log_likelihood: xr.DataArray | None = None  # (sample, *some of them)
    log_scores: xr.DataArray | None = None  # found elsewhere


def _score(
    fit: Any,
    var_name: str | Sequence[str] | None,
    observed: Any,
    intervals: Sequence[float],
    seed: int,
    log_scores: Mapping[str, Any] | None = None,
) -> Score:
    """See `score`; `log_scores` were found elsewhere, by variable."""
    import pandas
    import xarray as xr

    levels = _levels(intervals)
    notes: list[str] = []
    if isinstance(fit, xr.Dataset | xr.DataArray):
        variables, efficiency = _forecasts(fit, var_name, observed), 1.0
    else:
        posterior = _arviz.group(fit, "posterior")
        if posterior is None or posterior.data_vars:  # there is none of a model without parameters
            _arviz.require_posterior(fit, "score")
        if observed is not None:
            raise ValueError(
                "score() takes `observed` only with forecasts; a fit holds its own observed_data."
            )
        variables, more = _of_fit(fit, var_name)
        notes += more
        variables = {n: v._replace(log_scores=(log_scores or {}).get(n)) for n, v in variables.items()}
        efficiency = _arviz.relative_efficiency(fit) if posterior is not None and posterior.data_vars else 1.0
    pointwise: dict[str, Any] = {}
    rows: dict[str, dict[str, float]] = {}
    for name, variable in variables.items():
        arrays, rows[name] = _score_variable(name, variable, levels, seed, efficiency)
        pointwise |= {f"{name}_{what}": array for what, array in arrays.items()}
        high = rows[name]["high_khat"]
        if high > 0:
            notes.append(
                f"Note: {int(high)} of the Pareto k-hat of {name} exceed {HIGH_KHAT}: the predictions there "
                "have seen the observation; refit without it (sojourn.leave_future_out does)."
            )
    dataset = xr.Dataset(pointwise).assign_coords(interval=levels)
    return Score(dataset, pandas.DataFrame.from_dict(rows, orient="index"), tuple(notes))


def _chosen(var_name: str | Sequence[str] | None, known: list[str]) -> list[str]:
    must_be(
        var_name is None or isinstance(var_name, str) or is_list(var_name),
        "var_name",
        "a name, or names",
        var_name,
    )
    names = known if var_name is None else [var_name] if isinstance(var_name, str) else list(var_name)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = repr(unknown[0]) if unknown else "that"
        raise ValueError(
            f"There is no observed variable {what} with predictive draws of its shape to score; those that "
            f"can be scored are {known}."
        )
    return names


def _of_fit(fit: Any, var_name: str | Sequence[str] | None) -> tuple[dict[str, _Variable], list[str]]:
    observed_data, terms = _arviz.group(fit, "observed_data"), _arviz.group(fit, "log_likelihood")
    names = _chosen(var_name, predictive_variables(fit))
    found, notes = {}, []
    for name in names:
        assert observed_data is not None
        observed = observed_data[name]
        source, draws = _draws(fit, name, observed)  # type: ignore[misc]  # of such a variable there are some
        if source == "posterior_predictive" and "time" in observed.dims:
            notes.append(
                f"Note: the draws of {name} are whole replicated series, not one step ahead "
                "(sojourn.one_step_ahead)."
            )
        array = None
        if terms is not None and name in terms:
            array = terms[name].transpose("chain", "draw", ...)
            inner = array.dims[2:]
            if array.shape[:2] != draws.shape[:2] or not set(inner) <= set(observed.dims) or not inner:
                array = None
            else:
                array = _sampled(array, [dim for dim in observed.dims if dim in inner])
        found[name] = _Variable(observed, _sampled(draws, observed.dims), array)
    return found, notes


def _sampled(array: Any, dims: Sequence[Any]) -> xr.DataArray:
    """One leading dimension of draws."""
    lead = [dim for dim in SAMPLE_DIMS if dim in array.dims]
    bare = array.drop_vars([dim for dim in lead if dim in array.coords])
    return bare.stack(_sample=lead, create_index=False).transpose("_sample", *dims)


def _forecasts(forecasts: Any, var_name: str | Sequence[str] | None, observed: Any) -> dict[str, _Variable]:
    import xarray as xr

    if observed is None:
        raise ValueError("score() of forecasts needs what was observed: observed={'y': array}.")
    if isinstance(forecasts, xr.DataArray):
        forecasts = forecasts.to_dataset(name=forecasts.name or "y")
    known = {
        str(n).removesuffix("_forecast"): array
        for n, array in forecasts.data_vars.items()
        if any(dim in array.dims for dim in SAMPLE_DIMS)
    }
    if not isinstance(observed, Mapping | xr.Dataset):
        if len(known) != 1:
            raise ValueError(
                f"The forecasts are of {sorted(known)}: give `observed` by name, such as {{'y': array}}."
            )
        observed = {next(iter(known)): observed}
    found = {}
    for name in _chosen(var_name, [str(n) for n in observed if n in known]):
        draws, values = known[name], observed[name]
        dims = [dim for dim in draws.dims if dim not in SAMPLE_DIMS]
        if hasattr(values, "dims") and set(values.dims) == set(dims):
            values = values.transpose(*dims)
        values = np.asarray(values, dtype=float)
        if values.shape != tuple(draws.sizes[dim] for dim in dims):
            raise ValueError(
                f"The forecasts of {name!r} have the shape {tuple(draws.sizes[dim] for dim in dims)}, and "
                f"what was observed {values.shape}."
            )
        draws = _sampled(draws, dims)
        found[name] = _Variable(draws.isel(_sample=0, drop=True).copy(data=values), draws)
    return found


def _score_variable(
    name: str, variable: _Variable, levels: np.ndarray, seed: int, efficiency: float
) -> tuple[dict[str, xr.DataArray], dict[str, float]]:
    import xarray as xr

    observed, draws, terms, log_scores = variable
    truth = np.ravel(observed.values).astype(float)
    samples = draws.values.reshape(len(draws), -1)
    if len(samples) < 2:
        raise ValueError(f"score() needs at least two predictive draws of {name!r}; there is one.")
    seen = np.isfinite(truth)
    term_of = np.zeros(truth.size, int)  # the term of the log-likelihood that belongs to each entry
    log_weights, khat, values = np.zeros((len(samples), 1)), np.full(1, np.nan), np.full(1, np.nan)
    if terms is not None:
        like = terms.isel(_sample=0, drop=True)
        number = like.copy(data=np.arange(like.size).reshape(like.shape))
        term_of = number.broadcast_like(observed).transpose(*observed.dims).values.ravel()
        flat = terms.values.reshape(len(samples), -1).astype(float)
        seen &= ~np.isnan(flat).all(axis=0)[term_of]
        needed = np.unique(term_of[seen])
        _refuse_infinite("log-likelihood", name, np.isfinite(flat[:, needed]).all(axis=0))
        log_weights, khat, values = (
            np.zeros_like(flat),
            np.full(like.size, np.nan),
            np.full(like.size, np.nan),
        )
        for part in np.array_split(needed, -(-len(needed) // _BLOCK) or 1):
            if part.size:
                smoothed, khat[part] = _arviz.psis(-flat[:, part].T, efficiency)
                log_weights[:, part] = smoothed.T
        with np.errstate(divide="ignore"):
            values[needed] = np.logaddexp.reduce(flat[:, needed] + log_weights[:, needed], axis=0)
    where = np.flatnonzero(seen)
    if not where.size:
        raise ValueError(f"No entry of {name!r} was observed, so there is nothing to score.")
    _refuse_infinite("predictive draws", name, np.isfinite(samples[:, where]).all(axis=0))
    shape = (len(levels), truth.size)
    out = {n: np.full(truth.size, np.nan) for n in ("crps", "pit")}
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    ties = np.random.default_rng(whole_number(seed, "seed", 0)).uniform(size=where.size)
    for part, broken in zip(
        *(np.array_split(a, -(-where.size // _BLOCK)) for a in (where, ties)), strict=True
    ):
        weights = np.broadcast_to(np.exp(log_weights[:, term_of[part]]), (len(samples), part.size))
        x, w = _ranked(samples[:, part].astype(float), weights / weights.sum(axis=0))
        out["crps"][part] = _crps(x, w, truth[part], fair=True)
        below, equal = ((w * found).sum(axis=0) for found in (x < truth[part], x == truth[part]))
        out["pit"][part] = np.clip(below + broken * equal, 0.0, 1.0)
        low[:, part], high[:, part] = np.split(_quantiles(x, w, _ends(levels)), 2)
    covered = _held(low, high, np.where(seen, truth, np.nan))
    blank = observed.astype(float)
    arrays = {n: blank.copy(data=v.reshape(observed.shape)) for n, v in out.items()}
    for n, v in (("low", low), ("high", high), ("covered", covered)):
        arrays[n] = xr.DataArray(
            v.reshape(-1, *observed.shape), dims=("interval", *observed.dims), coords=observed.coords
        )
    if terms is not None:
        arrays |= {"log_score": like.copy(data=values.reshape(like.shape))}
        arrays |= {"khat": like.copy(data=khat.reshape(like.shape))}
    if log_scores is not None:
        arrays["log_score"] = log_scores
        values = log_scores.values.ravel()
    scored = values[np.isfinite(values)] if not np.isneginf(values).any() else values[~np.isnan(values)]
    row: dict[str, float] = {"observations": where.size}
    row["log_score"], row["log_score_se"] = _mean(scored)
    row["crps"], row["crps_se"] = _mean(out["crps"][where])
    for k, level in enumerate(levels):
        label = f"{100 * level:g}"
        row[f"coverage_{label}"] = covered[k, where].mean()
        row[f"coverage_se_{label}"] = np.sqrt(level * (1.0 - level) / where.size)
        row[f"width_{label}"] = (high[k, where] - low[k, where]).mean()
    row["high_khat"] = int((khat > HIGH_KHAT).sum())
    row["pit_p_value"] = Pit(out["pit"][where], "", terms is not None, int(row["high_khat"])).curve()[-1]
    return arrays, row


def _mean(values: np.ndarray) -> tuple[float, float]:
    if not values.size:
        return np.nan, np.nan
    error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return float(values.mean()), float(error)


def _refuse_infinite(what: str, name: str, sound: np.ndarray) -> None:
    if not sound.all():
        raise ValueError(
            f"The {what} of {name!r} have NaN or infinite values at {int((~sound).sum())} of {sound.size} "
            "observed entries, so these have no score: check the model at those draws."
        )
