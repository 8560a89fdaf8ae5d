"""Pareto-smoothed importance sampling, leave-one-out cross-validation and comparison."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn.diagnostics._arviz._containers import attributes, container, group, require_posterior
from sojourn.diagnostics._arviz._convergence import ess
from sojourn.diagnostics._arviz._generation import arviz_module, is_old, quiet

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas
    import xarray as xr


def psis(log_ratios: np.ndarray, relative_efficiency: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024, JMLR 25(72)).

    Args:
        log_ratios: Log importance ratios, shape (..., sample).
        relative_efficiency: Effective sample size over number of samples.

    Returns:
        The smoothed log weights, shape (..., sample), each row summing to one on the natural scale, and the
        shape k-hat of the fitted tail, shape (...). It is negative for bounded ratios.

    Example:
        >>> import numpy as np
        >>> log_weights, khat = psis(np.random.default_rng(0).normal(size=(3, 400)))
        >>> np.exp(log_weights).sum(axis=-1).round(6).tolist(), khat.shape
        ([1.0, 1.0, 1.0], (3,))
    """
    log_ratios = _untie(np.array(log_ratios, dtype=float))
    with quiet():
        az = arviz_module()
        if is_old(az):
            log_weights, khat = az.psislw(log_ratios, relative_efficiency)
        else:
            from arviz_stats.base import array_stats

            # This one takes the log likelihood that is left out, the negative of the log ratio.
            log_weights, khat = array_stats.psislw(-log_ratios, relative_efficiency, axis=-1)
    return np.asarray(log_weights), np.asarray(khat)


def _untie(log_ratios: np.ndarray) -> np.ndarray:
    """Spread out by 1e-8 the rows whose largest values are all equal, shape (..., sample).

    Such ratios are bounded, the best case there is, but without a tail to fit ArviZ 0.x calls them the worst
    (k-hat infinite) and ArviZ 1.x raises an error. Evenly spread values have a short tail: k-hat about -1.
    """
    samples = log_ratios.shape[-1]
    tail = min(samples, int(np.ceil(min(samples / 5, 3 * np.sqrt(samples)))) + 1)
    tied = np.ptp(np.sort(log_ratios, axis=-1)[..., -tail:], axis=-1, keepdims=True) < 1e-10
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    return np.where(tied, log_ratios + 1e-8 * (np.arange(samples) * golden % 1.0), log_ratios)


def psis_khat(log_ratios: Any) -> float:
    """Shape k-hat of the tail of importance ratios: below 0.7 the importance weights can be trusted.

    Args:
        log_ratios: Log importance ratios, flattened to one dimension. A ratio of zero is minus infinity.

    Returns:
        k-hat; infinity where a ratio is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> psis_khat(np.random.default_rng(0).normal(scale=0.1, size=1000)) < 0.5
        True
    """
    log_ratios = np.asarray(log_ratios, dtype=float).ravel()
    if np.isnan(log_ratios).any() or np.isposinf(log_ratios).any() or np.isneginf(log_ratios).all():
        return np.inf
    # A zero weight has no place in the tail; a very small one keeps the arithmetic finite.
    lowest = log_ratios[np.isfinite(log_ratios)].min()
    return float(psis(np.where(np.isneginf(log_ratios), lowest - 700.0, log_ratios))[1])


def log_likelihood(fit: Any, var_name: str | None = None) -> xr.DataArray:
    """Log likelihood of the entries that were observed, stacked to one dimension.

    An entry is missing where the log likelihood is NaN in every draw; those entries, and only those, are
    dropped.

    Args:
        fit: An ArviZ container with a `log_likelihood` group.
        var_name: Observed variable; may be left out where there is only one.

    Returns:
        An array with dimensions (chain, draw, observation); the original coordinates (time, series, ...) are
        kept as coordinates along `observation`.

    Raises:
        ValueError: If there is no such log likelihood, nothing was observed, or an observed entry is NaN or
            infinite in some draws.

    Example:
        >>> import numpy as np, xarray as xr
        >>> values = np.zeros((2, 5, 3))
        >>> values[..., 1] = np.nan
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> pointwise = xr.Dataset({"y": (("chain", "draw", "time"), values)})
        >>> dict(log_likelihood(container({"posterior": posterior, "log_likelihood": pointwise})).sizes)
        {'chain': 2, 'draw': 5, 'observation': 2}
    """
    dataset = group(fit, "log_likelihood")
    names = [] if dataset is None else list(dataset.data_vars)
    if dataset is None or not names:
        raise ValueError("The fit has no log_likelihood group, which leave-one-out needs.")
    if var_name is None and len(names) > 1:
        raise ValueError(f"The fit has several observed variables {names}: say which one with var_name.")
    if var_name is not None and var_name not in names:
        raise ValueError(f"The fit has no log likelihood for {var_name!r}; it has {names}.")
    array = dataset[var_name or names[0]].transpose("chain", "draw", ...)
    dims = [name for name in array.dims if name not in ("chain", "draw")]
    stacked = (
        array.stack(observation=dims, create_index=False) if dims else array.expand_dims("observation", -1)
    )
    nan = np.isnan(stacked.values)
    missing = nan.all(axis=(0, 1))
    if missing.all():
        raise ValueError(f"No entry of {array.name!r} was observed: its log likelihood is NaN everywhere.")
    stacked = stacked.isel(observation=np.flatnonzero(~missing))
    wrong = ~np.isfinite(stacked.values).all(axis=(0, 1))
    if wrong.any():
        raise ValueError(
            f"The log likelihood of {array.name!r} is NaN or infinite in some draws, for {int(wrong.sum())} "
            f"of {wrong.size} observed entries, so leave-one-out is not defined; check the model at those "
            "draws."
        )
    return stacked


def relative_efficiency(fit: Any) -> float:
    """Mean effective sample size of the posterior's scalars over the number of draws, as in ArviZ's `loo`.

    Args:
        fit: An ArviZ container.

    Returns:
        A number, 1 for a single chain or for the independent draws of a guide.

    Example:
        >>> import numpy as np, xarray as xr
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), np.zeros((1, 5)))})
        >>> relative_efficiency(container({"posterior": posterior}))
        1.0
    """
    posterior = require_posterior(fit, "loo")
    if posterior.sizes["chain"] == 1 or attributes(fit).get("engine") == "svi":
        return 1.0
    sizes = ess(posterior, method="mean")
    values = np.concatenate([np.ravel(sizes[name].values) for name in sizes.data_vars])
    values = values[np.isfinite(values)]
    total = posterior.sizes["chain"] * posterior.sizes["draw"]
    return float(values.mean() / total) if values.size else 1.0


def loo(fit: Any, var_name: str | None = None) -> Any:
    """Leave-one-out cross-validation of the observed entries, pointwise.

    Args:
        fit: An ArviZ container with a `log_likelihood` group; entries that are NaN in every draw were not
        observed.
        var_name: Observed variable; may be left out where there is only one.

    Returns:
        ArviZ's `ELPDData`: its `elpd_loo` and `loo_i` in ArviZ 0.x, `elpd` and `elpd_i` in 1.x, over the
        dimension `observation`. ArviZ warns where a Pareto k is too high for the estimate to be trusted.

    Raises:
        ValueError: As `log_likelihood` does.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rng = np.random.default_rng(0)
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), rng.normal(size=(2, 100)))})
        >>> values = rng.normal(scale=0.1, size=(2, 100, 6))
        >>> pointwise = xr.Dataset({"y": (("chain", "draw", "time"), values)})
        >>> int(loo(container({"posterior": posterior, "log_likelihood": pointwise})).n_data_points)
        6
    """
    observed = log_likelihood(fit, var_name)
    name = observed.name
    # ArviZ stacks coordinates by dimension: it is given the bare index, and the labels are put back below.
    bare = observed.drop_vars([key for key in observed.coords if key not in ("chain", "draw")])
    chains, draws, terms = bare.shape
    flat = _untie(-bare.values.reshape(chains * draws, terms).T)
    bare = bare.copy(data=-flat.T.reshape(bare.shape))
    posterior = require_posterior(fit, "loo")
    slim = container({"posterior": posterior, "log_likelihood": bare.to_dataset(name=name)})
    with quiet():
        if terms == 1:
            # One term is right for the likelihood of a whole path; ArviZ 0.23 suspects a mistake.
            warnings.filterwarnings("ignore", message="The point-wise LOO is the same with the sum LOO")
        result = arviz_module().loo(slim, pointwise=True, var_name=name, reff=relative_efficiency(fit))
    labels = {key: value for key, value in observed.coords.items() if value.dims == ("observation",)}
    for key in ("loo_i", "elpd_i", "pareto_k"):
        values = result.get(key) if hasattr(result, "get") else getattr(result, key, None)
        if values is not None:
            result[key] = values.assign_coords(labels)
    return result


def compare(fits: Mapping[str, Any], var_name: str | None = None) -> pandas.DataFrame:
    """Compare fits of the same data by leave-one-out cross-validation.

    Args:
        fits: Fits by name, at least two, all with the same observed entries.
        var_name: Observed variable; may be left out where there is only one.

    Returns:
        ArviZ's table, best first, with the columns of the ArviZ that is installed.

    Raises:
        ValueError: If there are fewer than two fits, or they were not fitted to the same entries.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rng = np.random.default_rng(0)
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), rng.normal(size=(2, 100)))})
        >>> values = rng.normal(scale=0.1, size=(2, 100, 6))
        >>> def fit(level):
        ...     pointwise = xr.Dataset({"y": (("chain", "draw", "time"), values + level)})
        ...     return container({"posterior": posterior, "log_likelihood": pointwise})
        >>> list(compare({"poor": fit(-1.0), "good": fit(0.0)}).index)
        ['good', 'poor']
    """
    if len(fits) < 2:
        raise ValueError(f"compare() needs at least two fits, got {list(fits)}.")
    counts = {name: log_likelihood(fit, var_name).sizes["observation"] for name, fit in fits.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"compare() needs fits of the same data; they observe {counts} entries.")
    results = {name: loo(fit, var_name) for name, fit in fits.items()}
    with quiet():
        return arviz_module().compare(results)
