"""From a fit back to the hidden path: what the states were, and what comes next.

Works for any model whose marginal form observes a distribution of a whole series that offers ``smooth``,
``most_likely_path``, ``sample_path`` and ``sample_future`` (as ``HiddenMarkov`` does): for every posterior draw
the model is run with the draw's parameters, and the distribution it builds is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import whole_number
from sojourn._contract import marginal_form, observed_sites, series_law, trace_model
from sojourn.models._given import posterior_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["decode", "forecast"]


def decode(
    fit: Any,
    model: Callable[..., Any],
    *args: Any,
    num_draws: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> xr.Dataset:
    """Hidden states of the fitted series, for every posterior draw.

    Args:
        fit: result of ``sj.fit``.
        model, *args, **kwargs: the model and the data, as they were given to ``sj.fit``.
        num_draws: use this many draws of each chain, evenly spaced (all by default).
        seed: of the sampled paths.

    Returns:
        An ``xarray.Dataset`` over ``chain``, ``draw``, ``time`` (and ``series``, ``state``):
        ``state_probability`` (the smoothed law of the state given the whole series), ``most_likely_state``
        (the Viterbi path) and ``sampled_state`` (one draw of the path). Averaged over chain and draw,
        ``state_probability`` is the posterior probability of each state. Beyond the end of a series
        probabilities are NaN and states -1.

    Raises:
        ValueError: the model observes no series with hidden states.

    Example:
        >>> import sojourn as sj
        >>> from sojourn.models import hidden_markov
        >>> quakes = sj.datasets.earthquakes()["count"]
        >>> fit = sj.fit(hidden_markov.poisson, quakes, num_states=2, num_warmup=200, num_samples=100,
        ...              num_chains=1, progress_bar=False)
        >>> states = hidden_markov.decode(fit, hidden_markov.poisson, quakes, num_states=2)
        >>> float(states["state_probability"].mean(("chain", "draw")).sel(time=1943, state=1)) > 0.9
        True
    """
    arrays = [_bare(a) for a in args]
    kwargs = {name: _bare(value) for name, value in kwargs.items()}

    def one(values, key):
        law, series = _law_of_series(model, arrays, kwargs, values, key)
        smoothed = law.smooth(series).marginals
        return smoothed, law.most_likely_path(series), law.sample_path(key, series)

    law, series = _law_of_series(model, arrays, kwargs, _one_draw(fit), jax.random.key(0))
    probability, viterbi, sampled, thinned = _over_draws(fit, one, num_draws, seed)
    lengths = law._lengths
    if lengths is not None:
        outside = np.arange(law.num_steps) >= np.asarray(lengths)[..., None]
        probability = np.where(outside[..., None], np.nan, probability)
        viterbi = np.where(outside, -1, viterbi)
        sampled = np.where(outside, -1, sampled)
    import xarray as xr

    batch = ["series"] if series.ndim - len(law.event_shape) else []
    path = ["chain", "draw", *batch, "time"]
    coords = _labels(fit, thinned, [*batch, "time"], probability.shape[2:-1])
    coords["state"] = _state_labels(thinned, law.num_states)
    return xr.Dataset(
        {
            "state_probability": ([*path, "state"], probability),
            "most_likely_state": (path, viterbi),
            "sampled_state": (path, sampled),
        },
        coords=coords,
    )


def forecast(
    fit: Any,
    model: Callable[..., Any],
    *args: Any,
    horizon: int,
    future_covariates: ArrayLike | None = None,
    num_draws: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> xr.Dataset:
    """The ``horizon`` steps that follow each series, one draw of the future for each posterior draw.

    Args:
        fit, model, *args, num_draws, seed, **kwargs: as in :func:`decode`.
        horizon: number of steps.
        future_covariates: ``(horizon - 1, P)``: the last row of the fitted ``covariates`` drives the first
            step, these drive the others.

    Returns:
        An ``xarray.Dataset`` over ``chain``, ``draw``, ``horizon`` (1, 2, ...; with a coordinate ``time`` that
        continues that of the data where it is evenly spaced): ``hidden_state`` and the observed variable under
        its own name. Its spread holds the uncertainty of the parameters, the present state and the future.

    Example:
        >>> import sojourn as sj
        >>> from sojourn.models import hidden_markov
        >>> quakes = sj.datasets.earthquakes()["count"]
        >>> fit = sj.fit(hidden_markov.poisson, quakes, num_states=2, num_warmup=200, num_samples=100,
        ...              num_chains=1, progress_bar=False)
        >>> future = hidden_markov.forecast(fit, hidden_markov.poisson, quakes, num_states=2, horizon=5)
        >>> future["time"].values.tolist()
        [2007, 2008, 2009, 2010, 2011]
    """
    if not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"`horizon` must be at least one step, not {horizon!r}.")
    arrays = [_bare(a) for a in args]
    kwargs = {name: _bare(value) for name, value in kwargs.items()}
    covariates = kwargs.get("covariates")
    if covariates is None and future_covariates is not None:
        raise ValueError("`future_covariates` is for models fitted with `covariates`.")
    longer: list[Any] = []
    if covariates is not None:
        future = (
            jnp.zeros((0, covariates.shape[-1]))
            if future_covariates is None
            else jnp.asarray(future_covariates)
        )
        if future.shape != (horizon - 1, covariates.shape[-1]):
            raise ValueError(
                f"`future_covariates` has shape {future.shape}; {horizon} steps need "
                f"({horizon - 1}, {covariates.shape[-1]})."
            )
        if kwargs.get("lengths") is not None or covariates.ndim > 2:
            raise ValueError(
                "Forecasts with covariates are for one series or series of one length that share them."
            )
        series = jnp.asarray(arrays[0], float)
        axis = series.ndim - _event_ndim(model, arrays, kwargs, fit) - 1
        gap = jnp.full([horizon if i == axis else n for i, n in enumerate(series.shape)], jnp.nan)
        longer = [jnp.concatenate([series, gap], axis), *arrays[1:]]
        last = jnp.concatenate([covariates, future, covariates[-1:]])
        longer_kwargs = {**kwargs, "covariates": last}
        if kwargs.get("mask") is not None:
            seen = jnp.asarray(kwargs["mask"], bool)
            longer_kwargs["mask"] = jnp.concatenate([seen, jnp.zeros((*seen.shape[:-1], horizon), bool)], -1)

    def one(values, key):
        law, series = _law_of_series(model, arrays, kwargs, values, key)
        moves = None
        if longer:
            moves = _law_of_series(model, longer, longer_kwargs, values, key)[0].transition[-horizon:]
        return law.sample_future(key, series, horizon, transition=moves)

    law, series = _law_of_series(model, arrays, kwargs, _one_draw(fit), jax.random.key(0))
    states, values, thinned = _over_draws(fit, one, num_draws, seed)
    import xarray as xr

    name, _ = _series_site(model, arrays, kwargs, _one_draw(fit), jax.random.key(0))
    batch = ["series"] if series.ndim - len(law.event_shape) else []
    path = ["chain", "draw", *batch, "horizon"]
    coords = _labels(fit, thinned, batch, states.shape[2:-1])
    coords["horizon"] = np.arange(1, horizon + 1)
    times = _group(fit, "observed_data").coords.get("time")
    if times is not None and law._lengths is None and np.issubdtype(times.dtype, np.number):
        gaps = np.unique(np.diff(times.values))
        if len(gaps) == 1:
            coords["time"] = ("horizon", times.values[-1] + gaps[0] * coords["horizon"])
    extra = [f"{name}_dim_{i}" for i in range(values.ndim - len(path))]
    return xr.Dataset({"hidden_state": (path, states), name: ([*path, *extra], values)}, coords=coords)


# ------------------------------------------------------------------------------------------------ helpers


def _bare(x: Any) -> Any:
    """xarray objects as arrays, everything else as it is."""
    return jnp.asarray(x.values) if hasattr(x, "values") and hasattr(x, "dims") else x


def _group(fit: Any, name: str) -> xr.Dataset:
    group = fit[name] if hasattr(fit, "__getitem__") else getattr(fit, name)
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def _one_draw(fit: Any) -> dict[str, Array]:
    posterior_of(fit)
    posterior = _group(fit, "posterior")
    return {str(n): jnp.asarray(v.values[0, 0]) for n, v in posterior.data_vars.items()}


def _series_site(model, args, kwargs, values, key, method="sample_path") -> tuple[str, dict[str, Any]]:
    trace = trace_model(model, tuple(args), marginal_form(model, kwargs), key=key, values=values)
    for name, site in observed_sites(trace).items():
        if series_law(site, method) is not None:
            return name, site
    raise ValueError(
        "The model observes no series with hidden states to decode (a HiddenMarkov distribution)."
        if method == "sample_path"
        else "The model observes no jump process at given times (PanelJumpProcess, HiddenJumpProcess)."
    )


def _law_of_series(
    model: Callable[..., Any],
    args: list[Any],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Array],
    key: Array,
    method: str = "sample_path",
) -> tuple[Any, Array]:
    _, site = _series_site(model, args, kwargs, values, key, method)
    return series_law(site, method), jnp.asarray(site["value"])


def _event_ndim(model, args, kwargs, fit) -> int:
    law, _ = _law_of_series(model, args, kwargs, _one_draw(fit), jax.random.key(0))
    return 0 if not isinstance(law.emission, dist.Distribution) else len(law.emission.event_shape)


def _over_draws(
    fit: Any, one: Callable[..., tuple[Array, ...]], num_draws: int | None, seed: int
) -> list[Any]:
    """``one(values, key)`` for every draw: arrays with leading (chain, draw), and the draws' labels."""
    posterior_of(fit)
    seed = whole_number(seed, "seed", None)
    posterior = _group(fit, "posterior")
    total = posterior.sizes["draw"]
    num_draws = None if num_draws is None else whole_number(num_draws, "num_draws")
    if num_draws is not None and not 1 <= num_draws <= total:
        raise ValueError(f"`num_draws` must lie between 1 and the {total} draws of a chain, not {num_draws}.")
    keep = np.linspace(0, total - 1, num_draws or total).round().astype(int)
    posterior = posterior.isel(draw=keep)
    shape = (posterior.sizes["chain"], len(keep))
    values = {
        str(n): jnp.asarray(v.transpose("chain", "draw", ...).values).reshape((-1, *v.shape[2:]))
        for n, v in posterior.data_vars.items()
    }
    keys = jax.random.split(jax.random.key(seed), shape[0] * shape[1])
    run = jax.jit(lambda values, keys: jax.lax.map(lambda x: one(*x), (values, keys), batch_size=64))
    results = [np.asarray(r).reshape((*shape, *r.shape[1:])) for r in run(values, keys)]
    return [*results, posterior]


def _state_labels(posterior: Any, num_states: int) -> np.ndarray:
    known = posterior.coords.get("state")
    return np.arange(num_states) if known is None or len(known) != num_states else known.values


def _labels(fit: Any, thinned: xr.Dataset, dims: list[str], sizes: tuple[int, ...]) -> dict[str, Any]:
    observed = _group(fit, "observed_data")
    labels: dict[str, Any] = {"chain": thinned["chain"].values, "draw": thinned["draw"].values}
    for dim, size in zip(dims, sizes, strict=True):
        known = observed.coords.get(dim)
        labels[dim] = np.arange(size) if known is None else known.values
    return labels
