"""Leave-future-out cross-validation: how well a model of a series predicts what it has not seen yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from sojourn._arguments import numbers, whole_number
from sojourn._contract import Site, observed_sites, trace_model
from sojourn.diagnostics import _arviz
from sojourn.diagnostics.scoring import Score, _score, log_score
from sojourn.inference import _labels as labels
from sojourn.inference._check_model import check_data, latent_sites
from sojourn.inference._fit import Engine, fit
from sojourn.inference._forecast import _time_axis, forecaster
from sojourn.inference._predictive import missing_entries, site_log_prob
from sojourn.inference._scan import prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["LeaveFutureOut", "leave_future_out"]

TRUNCATIONS = ("auto", "missing", "slice")


@dataclass(frozen=True)
class LeaveFutureOut:
    """Result of :func:`leave_future_out`; print it.

    Args:
        log_score: ``(time,)``: log p(y_t, ..., y_{t+horizon-1} | y_<t) by t, NaN where nothing was observed.
        khat: ``(time,)``: Pareto shape of the importance weights from the last fit; NaN where the model was
            fitted to y_<t itself.
        refits: numbers of observations that each fit has seen, in order.
        horizon: steps scored together.
        threshold: k-hat above which the model was fitted anew.
        forecasts: an ArviZ container with draws y_t ~ p(. | y_<t) (``predictions``, all of equal weight)
            against ``observed_data``, and the posterior of the last fit.
    """

    log_score: xr.DataArray
    khat: xr.DataArray
    refits: tuple[int, ...]
    horizon: int
    threshold: float
    forecasts: Any = field(repr=False)

    @property
    def elpd(self) -> float:
        """Expected log predictive density: the sum of the log scores."""
        return float(self.log_score.sum(skipna=True))

    @property
    def se(self) -> float:
        """Standard error of ``elpd``, a sum of scores that depend on each other where their steps overlap.

        With a horizon of one, the standard deviation of the scores times the root of their number; beyond,
        their covariances up to ``horizon - 1`` apart count with the weights of Newey and West (1987).
        """
        scores = self.log_score.values[~np.isnan(self.log_score.values)]
        if len(scores) < 2:
            return float("nan")
        gap = scores - scores.mean()
        total = float(gap @ gap)
        for lag in range(1, min(self.horizon, len(gap))):
            total += 2.0 * (1.0 - lag / self.horizon) * float(gap[lag:] @ gap[:-lag])
        return float(np.sqrt(total * len(gap) / (len(gap) - 1)))

    def score(self, intervals: Sequence[float] = (0.5, 0.8, 0.95), *, seed: int = 0) -> Score:
        """CRPS, coverage of intervals and PIT of the one-step-ahead forecasts, by :func:`sojourn.score`.

        Args:
            intervals: probabilities of the central intervals.
            seed: for ties between an observation and draws.
        """
        predictions = _arviz.group(self.forecasts, "predictions")
        names = [] if predictions is None else list(predictions.data_vars)
        alone = self.horizon == 1 and len(names) == 1
        return _score(
            self.forecasts, None, None, intervals, seed, {str(names[0]): self.log_score} if alone else None
        )

    def plot(self) -> Figure:
        """Cumulative log score, and k-hat with the fits, over time, as a figure that pyplot does not hold."""
        from sojourn.diagnostics._figures import BLUE, WARM, panels

        (dim,) = self.log_score.dims
        time = self.log_score[dim].values
        figure, (above, below) = panels(2, height=2.3)
        above.plot(time, np.nancumsum(self.log_score.values), color=BLUE)
        above.set_ylabel("cumulative log score")
        below.scatter(time, self.khat.values, s=9.0, color=BLUE, linewidths=0)
        below.axhline(self.threshold, color=WARM, linewidth=0.8, linestyle="--")
        first = self.refits[0]
        for seen in self.refits[1:]:
            above.axvline(time[seen - first], color=WARM, linewidth=0.6, alpha=0.6)
            below.axvline(time[seen - first], color=WARM, linewidth=0.6, alpha=0.6)
        for axis in (above, below):
            axis.set_xlim(time[0], time[-1])
        below.set_ylabel("Pareto k-hat")
        below.set_xlabel(f"{dim} (lines: fitted anew)")
        return figure

    def __str__(self) -> str:
        count = int((~np.isnan(self.log_score.values)).sum())
        ahead = "one step" if self.horizon == 1 else f"{self.horizon} steps"
        fits = f"{len(self.refits)} fit{'s' * (len(self.refits) > 1)}"
        largest = np.nanmax(np.append(self.khat.values, -np.inf))
        trusted = f"k-hat at most {largest:.2f} between them" if np.isfinite(largest) else "no weights used"
        each = self.elpd / count if count else np.nan
        return (
            f"elpd {self.elpd:.5g} +- {self.se:.2g} over {count} forecasts {ahead} ahead ({each:.4g} each); "
            f"{fits}, {trusted}."
        )


def leave_future_out(
    model: Callable[..., Any],
    data: Any,
    *args: Any,
    first: int,
    horizon: int = 1,
    engine: Engine = "nuts",
    khat: float = 0.7,
    truncate: str = "auto",
    num_draws: int = 1000,
    num_particles: int = 500,
    method: str = "auto",
    guide: Callable[..., Any] | None = None,
    initial_guide: Callable[..., Any] | None = None,
    twist: Callable[..., Any] | None = None,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    seed: int = 0,
    progress_bar: bool = True,
    **kwargs: Any,
) -> LeaveFutureOut:
    r"""Predict each observation of a series from the earlier ones, with a model that has seen no others.

    The model is fitted to the first observations; then for t on from there the next ``horizon`` steps are
    scored by

    .. math::
        \log \sum_s w_s\, p(y_t, \dots, y_{t+h-1} \mid y_{<t}, \theta_s), \qquad
        w_s \propto \prod_{j \ge t^*}^{t-1} p(y_j \mid y_{<j}, \theta_s)

    where :math:`\theta_s` are draws of the last fit, which has seen :math:`y_{<t^*}`, and the weights are
    Pareto-smoothed. Where their k-hat exceeds the threshold, the model is fitted anew, to all :math:`y_{<t}`
    (Bürkner, Gabry and Vehtari 2020, *J. Stat. Comput. Simul.* 90:2499). The terms are those of
    :func:`~sojourn.inference.one_step_ahead`: exact, or from a particle filter whose unbiased estimates make
    valid weights, if noisier ones.

    Compare models by the scores of the same times: the mean of ``(a.log_score - b.log_score)`` and its
    standard error.

    Args:
        model: a NumPyro model of a series, as :func:`~sojourn.inference.one_step_ahead` takes it.
        data: its first argument, time on the first axis. NaN observations count as missing.
        *args: its further arguments.
        first: number of observations of the first fit.
        horizon: steps that are scored together. The sum then counts most observations ``horizon`` times.
        engine: as in :func:`~sojourn.inference.fit`.
        khat: threshold; 0.7 is the authors' choice, ``-inf`` fits anew at every step.
        truncate: how the future is hidden from a fit: ``"missing"`` puts NaN there, ``"slice"`` cuts the data
            and every array among the other arguments with as many entries on its first axis; ``"auto"`` the
            former for floating-point data if it hides these steps and no others, and density and gradient of
            the model are finite then.
        num_draws: draws of each fit that are weighted.
        num_particles, method, guide, initial_guide, twist: of :func:`~sojourn.inference.one_step_ahead`.
        num_samples, num_warmup, num_chains, seed: of each fit.
        progress_bar: show progress over time.
        **kwargs: keyword arguments of the model.

    Returns:
        A :class:`LeaveFutureOut`: print it, ``.elpd``, ``.se``, ``.log_score``, ``.khat``, ``.plot()``, and
        ``.score()`` for CRPS and coverage.

    Raises:
        ValueError: data without a time axis, or a ``first`` or ``horizon`` that leaves nothing to fit or to
            score; ``truncate="missing"`` of data that cannot hold NaN or by a model that makes nothing of
            them; a model whose series has another length than the data.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist
        >>> def level(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        ...     numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = np.random.default_rng(0).normal(size=14)
        >>> found = leave_future_out(level, y, first=10, num_chains=1, num_warmup=300, num_samples=500,
        ...                          num_draws=500, progress_bar=False)
        >>> print(found)
        elpd ... over 4 forecasts one step ahead (...); 1 fit, k-hat at most ... between them.
        >>> found.log_score.sizes["time"]
        4
    """
    values = np.asarray(labels.bare(data))
    if values.ndim == 0 or not len(values):
        raise ValueError(
            "leave_future_out() needs data with time on the first axis as first argument of the model."
        )
    length = len(values)
    data = values if isinstance(data, list | tuple) else data
    whole_number(seed, "seed", 0)
    whole_number(num_draws, "num_draws", 2)
    if np.ndim(numbers(khat, "khat")) or np.isnan(khat):
        raise ValueError(f"`khat` must be a number, the largest Pareto shape to trust, not {khat!r}.")
    for name, number in (("first", first), ("horizon", horizon)):
        if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1, not {number!r}.")
    if first + horizon > length:
        raise ValueError(
            f"After the first {first} of {length} observations there are no {horizon} left to score: lower "
            "`first`."
        )
    if truncate not in TRUNCATIONS:
        raise ValueError(f"`truncate` must be one of {', '.join(map(repr, TRUNCATIONS))}, not {truncate!r}.")
    if truncate == "missing" and not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"Data of type {values.dtype} cannot hold NaN: use truncate='slice', or make them floats."
        )
    by_nan = truncate != "slice" and _takes_nan(model, values, first, args, kwargs)
    if truncate == "missing" and not by_nan:
        raise ValueError(
            "With NaN in place of the future this model observes other entries than the first ones, or its "
            "density is not finite: use truncate='slice'."
        )
    forecast, steps = forecaster(
        model,
        (data, *args),
        kwargs,
        num_particles=num_particles,
        method=method,
        guide=guide,
        initial_guide=initial_guide,
        twist=twist,
    )
    if steps != length:
        raise ValueError(
            f"The data have {length} entries on their first axis, and the series of the model {steps} steps: "
            "put time first."
        )

    def fitted(seen: int) -> tuple[Any, Any, np.ndarray, float]:
        """A fit to the first observations, its forecasts, their terms (draw, time), efficiency of draws."""
        if by_nan:
            hidden = _padded(values, seen)
            hidden = data.copy(data=hidden) if hasattr(data, "dims") else hidden
            call, named = (hidden, *args), kwargs
        else:
            call = tuple(_cut(a, seen, length) for a in (data, *args))
            named = {n: _cut(a, seen, length) for n, a in kwargs.items()}
        last = fit(
            model,
            *call,
            engine=engine,
            num_samples=num_samples,
            num_warmup=num_warmup,
            num_chains=num_chains,
            seed=seed,
            progress_bar=False,
            **named,
        )
        ahead = forecast(last, None, num_draws, seed + seen)
        stats = _arviz.group(ahead, "sample_stats")
        assert stats is not None
        terms = np.asarray(stats["log_predictive"].values, dtype=float)[0]
        posterior = _arviz.require_posterior(last, "leave_future_out")
        total = posterior.sizes["chain"] * posterior.sizes["draw"]
        return last, ahead, terms, min(1.0, _arviz.relative_efficiency(last) * total / len(terms))

    seen = first
    last, ahead, terms, efficiency = fitted(seen)
    refits = [first]
    unseen = _nothing_observed(ahead, length)
    origins = range(first, length - horizon + 1)
    scores, shapes = np.full(len(origins), np.nan), np.full(len(origins), np.nan)
    drawn: list[dict[str, Any]] = []
    rng = np.random.default_rng(seed)
    for i, t in enumerate(tqdm(origins, disable=not progress_bar, desc="leave_future_out")):
        missing = unseen[t : t + horizon].all()
        log_weights = np.full(len(terms), -np.log(len(terms)))
        if not unseen[seen:t].all():
            log_weights, shapes[i] = _smoothed(terms[:, seen:t].sum(axis=1), efficiency)
            if shapes[i] > khat and not missing:
                seen, shapes[i] = t, np.nan
                refits.append(t)
                last, ahead, terms, efficiency = fitted(seen)
                log_weights = np.full(len(terms), -np.log(len(terms)))
        weights = np.exp(log_weights)
        if not missing:
            scores[i] = log_score(terms[:, t : t + horizon].sum(axis=1), weights)
        drawn.append(_resampled(ahead, t, weights, rng))
    return LeaveFutureOut(
        *_by_time(ahead, scores, shapes, origins),
        tuple(int(n) for n in refits),
        int(horizon),
        float(khat),
        _forecasts(last, ahead, drawn, origins),
    )


# ------------------------------------------------------------------------------------ hiding the future


def _padded(values: np.ndarray, seen: int) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.floating):
        return values
    hidden = np.array(values)
    hidden[seen:] = np.nan
    return hidden


def _cut(x: Any, seen: int, length: int) -> Any:
    sized = hasattr(x, "shape") and np.ndim(x) > 0 and np.shape(x)[0] == length
    return (x.iloc if hasattr(x, "iloc") else x)[:seen] if sized else x


def _takes_nan(
    model: Callable[..., Any],
    values: np.ndarray,
    first: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether NaN from ``first`` on hides these steps and no others, with finite density and gradient."""
    if not np.issubdtype(values.dtype, np.floating):
        return False
    others = tuple(labels.bare(a) for a in args)
    named = {n: labels.bare(v) for n, v in kwargs.items()}
    model = prepared(model)
    call = (_padded(values, first), *others)
    try:
        trace = trace_model(model, call, named, key=jax.random.key(0))
        check_data(trace)
        whole = trace_model(model, (values, *others), named, key=jax.random.key(0))
    except (TypeError, ValueError):
        return False
    for name, site in observed_sites(trace).items():
        if np.ndim(site["value"]) and np.shape(site["value"])[_time_axis(site)] == len(values):
            before, now = _gone(whole[name]), _gone(site)
            if not now[first:].all() or (now[:first] != before[:first]).any():
                return False
    latents = {n: jnp.asarray(s["value"]) for n, s in latent_sites(trace).items()}
    moving = {n: v for n, v in latents.items() if jnp.issubdtype(v.dtype, jnp.floating)}

    def log_joint(moving):
        sites = trace_model(model, call, named, key=jax.random.key(0), values={**latents, **moving})
        return sum(jnp.sum(site_log_prob(s)) for s in sites.values() if s["type"] == "sample")

    found = jax.jit(jax.value_and_grad(log_joint))(moving)
    return all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(found))


def _gone(site: Site) -> np.ndarray:
    """Where an observed site holds nothing, time first."""
    axis = np.ndim(site["value"]) + _time_axis(site) if _time_axis(site) else 0
    gone = missing_entries(site)
    if gone is None:
        return np.zeros(np.shape(site["value"])[axis], bool)
    return np.moveaxis(gone, axis, 0)


# ---------------------------------------------------------------------------------------------- weights


def _smoothed(log_ratios: np.ndarray, efficiency: float) -> tuple[np.ndarray, float]:
    """Normalised log-weights and their k-hat; infinite where the ratios cannot be smoothed."""
    if np.isnan(log_ratios).any() or np.isposinf(log_ratios).any() or np.isneginf(log_ratios).all():
        return np.full(len(log_ratios), -np.log(len(log_ratios))), np.inf
    # A weight of zero has no place in the tail; a very small one keeps the arithmetic finite.
    lowest = log_ratios[np.isfinite(log_ratios)].min()
    log_weights, shape = _arviz.psis(
        np.where(np.isneginf(log_ratios), lowest - 700.0, log_ratios), efficiency
    )
    return log_weights, float(shape)


def _resampled(ahead: Any, t: int, weights: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Forecasts of step t, as many of equal weight as there are draws (systematic resampling)."""
    count = len(weights)
    points = (np.arange(count) + rng.uniform()) / count
    chosen = np.minimum(np.searchsorted(np.cumsum(weights) / weights.sum(), points), count - 1)
    dim, arrays = _time_dim(ahead), _arviz.group(ahead, "predictions")
    assert arrays is not None
    return {str(n): a.isel({dim: t, "draw": chosen}) for n, a in arrays.items() if dim in a.dims}


def _time_dim(ahead: Any) -> Any:
    stats = _arviz.group(ahead, "sample_stats")
    assert stats is not None
    return stats["log_predictive"].dims[-1]


def _nothing_observed(ahead: Any, length: int) -> np.ndarray:
    dim, observed = _time_dim(ahead), _arviz.group(ahead, "observed_data")
    assert observed is not None
    gone = np.ones(length, bool)
    for array in observed.data_vars.values():
        if dim in array.dims:
            gone &= np.isnan(array.transpose(dim, ...).values.astype(float)).reshape(length, -1).all(axis=1)
    return gone


def _by_time(ahead: Any, scores: np.ndarray, shapes: np.ndarray, origins: range) -> tuple[Any, Any]:
    dim, stats = _time_dim(ahead), _arviz.group(ahead, "sample_stats")
    assert stats is not None
    like = (
        stats["log_predictive"]
        .isel(chain=0, draw=0, drop=True)
        .isel({dim: slice(origins.start, origins.stop)})
    )
    return like.copy(data=scores).rename("log_score"), like.copy(data=shapes).rename("khat")


def _forecasts(last: Any, ahead: Any, drawn: list[dict[str, Any]], origins: range) -> Any:
    import xarray as xr

    dim, observed = _time_dim(ahead), _arviz.group(ahead, "observed_data")
    assert observed is not None
    steps = observed.isel({dim: slice(origins.start, origins.stop)})
    predictions = {}
    for name in drawn[0]:
        rows = np.stack([np.asarray(at[name].values) for at in drawn], axis=2)
        inner = [d for d in drawn[0][name].dims if d not in ("chain", "draw")]
        array = xr.DataArray(rows, dims=("chain", "draw", dim, *inner))
        predictions[name] = array.transpose("chain", "draw", *observed[name].dims)
    kept = [n for n in observed.data_vars if n in predictions]
    dataset = xr.Dataset(predictions).assign_coords(
        {d: c for d, c in steps[kept].coords.items()}
        | {d: np.arange(n) for d, n in (("chain", 1), ("draw", len(rows[0])))}
    )
    groups = {"predictions": dataset, "observed_data": steps[kept]}
    for name in ("posterior", "sample_stats"):
        found = _arviz.group(last, name)
        if found is not None:
            groups[name] = found
    return _arviz.container(groups, _arviz.attributes(last))
