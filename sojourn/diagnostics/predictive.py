"""Predictive calibration: the probability integral transform (PIT) of each observation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn.diagnostics import _arviz
from sojourn.diagnostics._uniformity import envelope, evaluation_points, p_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure


MAX_ENTRIES = 2000
"""Observations that a probability integral transform looks at, at most."""


@dataclass(frozen=True)
class Pit:
    """PIT values of the observed entries of one variable; uniform where the predictions are calibrated.

    Args:
        values: Shape (observation,), between 0 and 1.
        source: The group the draws came from, `"predictions"` or `"posterior_predictive"`.
        weighted: Whether each observation's own term was taken out of the posterior by PSIS.
        high_khat: Number of observations whose Pareto k-hat is above 0.7.
    """

    values: np.ndarray
    source: str
    weighted: bool
    high_khat: int

    def curve(
        self, probability: float = 0.95
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
        """Points, ECDF at them, the simultaneous envelope (low, high), and the p-value of uniformity."""
        n = self.values.size
        points = evaluation_points(max(n, 2))
        counts = np.searchsorted(np.sort(self.values), points, side="right")
        low, high = envelope(n, points, probability)
        return points, counts / n, low / n, high / n, p_value(counts, n, points)


def predictive_variables(fit: Any) -> list[str]:
    """Observed variables for which the fit holds predictive draws of the same shape.

    Args:
        fit: An ArviZ container.

    Returns:
        Their names.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = xr.Dataset({"y": (("chain", "draw", "time"), np.zeros((2, 5, 3)))})
        >>> observed = xr.Dataset({"y": ("time", np.zeros(3))})
        >>> groups = {"posterior": draws, "posterior_predictive": draws, "observed_data": observed}
        >>> fit = _arviz.container(groups)
        >>> predictive_variables(fit)
        ['y']
    """
    observed = _arviz.group(fit, "observed_data")
    if observed is None:
        return []
    names = []
    for name, array in observed.data_vars.items():
        numeric = (
            array.dtype.kind in "fiub" and array.size > 0 and "entry" not in array.dims
        )  # no path of jumps
        if numeric and np.isfinite(array.values.astype(float)).any() and _draws(fit, name, array) is not None:
            names.append(str(name))
    return names


def _draws(fit: Any, name: Any, observed: Any) -> tuple[str, Any] | None:
    for source in ("predictions", "posterior_predictive"):
        found = _arviz.group(fit, source)
        if found is not None and name in found:
            array = found[name]
            dims = [dim for dim in array.dims if dim not in ("chain", "draw")]
            if set(dims) == set(observed.dims) and all(array.sizes[d] == observed.sizes[d] for d in dims):
                return source, array.transpose("chain", "draw", *observed.dims)
    return None


def pit(fit: Any, var_name: str, *, seed: int = 0) -> Pit:
    """PIT of each observed entry: the probability of a smaller value under the prediction of that entry.

    In a time series, observations depend on each other, so each is held against its one-step-ahead
    prediction: where the fit has a `predictions` group, its draws y_t ~ p(. | y_<t, draw) are used; otherwise
    those of `posterior_predictive`. With a `log_likelihood` of the same shape, here log p(y_t | y_<t, draw),
    the draws are weighted by Pareto-smoothed importance sampling so that y_t's own term does not count in its
    prediction (LOO-PIT; Gelfand 1996; Vehtari et al. 2017). Ties, which integer data have, are broken at
    random (Czado, Gneiting and Held 2009), with a fixed seed. Of more than 2000 entries as many are looked at, evenly
    spread.

    Args:
        fit: An ArviZ container with `observed_data` and predictive draws.
        var_name: The observed variable.
        seed: For the ties.

    Returns:
        The values of the entries that were observed, and how they were found.

    Raises:
        ValueError: If the fit has no predictive draws for the variable.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rng = np.random.default_rng(0)
        >>> draws = xr.Dataset({"y": (("chain", "draw", "time"), rng.normal(size=(2, 50, 30)))})
        >>> observed = xr.Dataset({"y": ("time", rng.normal(size=30))})
        >>> fit = _arviz.container({"posterior": draws, "predictions": draws, "observed_data": observed})
        >>> found = pit(fit, "y")
        >>> found.values.shape, found.source, found.weighted
        ((30,), 'predictions', False)
    """
    observed_data = _arviz.group(fit, "observed_data")
    found = None
    if observed_data is not None and var_name in predictive_variables(fit):
        observed = observed_data[var_name]
        found = _draws(fit, var_name, observed)
    if found is None:
        raise ValueError(f"The fit has no observed variable {var_name!r} with predictive draws of its shape.")
    source, draws = found
    chains, length = draws.sizes["chain"], draws.sizes["draw"]
    truth = np.ravel(observed.values).astype(float)
    looked_at = np.flatnonzero(np.isfinite(truth))
    if len(looked_at) > MAX_ENTRIES:
        looked_at = looked_at[np.linspace(0, len(looked_at) - 1, MAX_ENTRIES).round().astype(int)]
    truth = truth[looked_at]
    samples = draws.values.reshape(chains * length, -1)[:, looked_at].astype(float)
    kept = np.isfinite(samples).all(axis=0)
    weights, high = np.full((1, chains * length), 1.0 / (chains * length)), 0
    log_likelihood = _log_likelihood(fit, var_name, draws)
    if log_likelihood is not None:
        log_likelihood = log_likelihood[:, looked_at]
        kept &= np.isfinite(log_likelihood).all(axis=0)
    if not kept.any():
        raise ValueError(f"No observed entry of {var_name!r} has finite predictive draws.")
    if log_likelihood is not None:
        log_weights, khat = _arviz.psis(-log_likelihood[:, kept].T, _arviz.relative_efficiency(fit))
        weights, high = np.exp(log_weights), int((khat > 0.7).sum())
    truth, samples = truth[kept], samples[:, kept].T
    below = (weights * (samples < truth[:, None])).sum(axis=1)
    equal = (weights * (samples == truth[:, None])).sum(axis=1)
    values = below + np.random.default_rng(seed).uniform(size=truth.size) * equal
    return Pit(np.clip(values, 0.0, 1.0), source, log_likelihood is not None, high)


def plot_pit(fit: Any, var_names: Sequence[str] | None = None) -> Figure:
    """Draw the ECDF of the PIT values minus the uniform one, with the simultaneous 95 % envelope.

    Args:
        fit: An ArviZ container with `observed_data` and predictive draws.
        var_names: Observed variables, a panel each; by default all that have predictive draws.

    Returns:
        A matplotlib figure that pyplot does not hold.

    Raises:
        ValueError: If the fit has no predictive draws for a variable.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rng = np.random.default_rng(0)
        >>> draws = xr.Dataset({"y": (("chain", "draw", "time"), rng.normal(size=(2, 50, 30)))})
        >>> observed = xr.Dataset({"y": ("time", rng.normal(size=30))})
        >>> fit = _arviz.container({"posterior": draws, "predictions": draws, "observed_data": observed})
        >>> len(plot_pit(fit).axes)
        1
    """
    from sojourn.diagnostics._figures import ecdf_difference, panels

    names = list(predictive_variables(fit) if var_names is None else var_names)
    if not names:
        raise ValueError("plot_pit(): the fit has no observed variable with predictive draws.")
    figure, axes = panels(len(names), columns=min(2, len(names)), height=2.8)
    for axis, name in zip(axes, names, strict=True):
        found = pit(fit, name)
        points, ecdf, low, high, p_value = found.curve()
        ecdf_difference(axis, points, ecdf, low, high)
        axis.set_title(f"{name}  (p = {p_value:.2g}, {found.values.size} observations)")
        axis.set_xlabel("probability integral transform")
        axis.set_ylabel("ECDF minus uniform")
    return figure


def _log_likelihood(fit: Any, var_name: str, draws: Any) -> np.ndarray | None:
    found = _arviz.group(fit, "log_likelihood")
    if found is None or var_name not in found or set(found[var_name].dims) != set(draws.dims):
        return None
    array = found[var_name].transpose(*draws.dims)
    if array.shape != draws.shape:
        return None
    return np.asarray(array.values, dtype=float).reshape(draws.shape[0] * draws.shape[1], -1)
