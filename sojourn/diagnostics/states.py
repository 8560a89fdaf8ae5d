"""Picture of decoded hidden states on top of the series."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sojourn._arguments import must_be

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["plot_states"]


def plot_states(states: xr.Dataset, observed: xr.DataArray, *, level: xr.DataArray | None = None) -> Figure:
    """The series with its decoded states.

    Above, the observations over bands of colour, one for each state, as high as its posterior probability is
    large at that time, and the posterior mean of the level of the state the series is in. Below, the
    posterior probability of each state.

    Args:
        states: result of ``hidden_markov.decode``: ``state_probability`` over (chain, draw, time, state).
        observed: the series, over ``time``.
        level: posterior draws of a location by state, over (chain, draw, state), such as
            ``fit.posterior["rate"]``; leaves the line out if not given.

    Raises:
        ValueError: several series; select one with ``.sel(series=...)``.

    Example:
        >>> import numpy as np, xarray as xr
        >>> probability = np.tile([0.9, 0.1], (1, 5, 20, 1))
        >>> states = xr.Dataset({"state_probability": (("chain", "draw", "time", "state"), probability)})
        >>> len(plot_states(states, xr.DataArray(np.arange(20.0), dims="time")).axes)
        2
    """
    must_be(
        hasattr(states, "data_vars") and "state_probability" in states,
        "states",
        "what hidden_markov.decode returns",
        states,
    )
    must_be(hasattr(observed, "dims"), "observed", "an xarray.DataArray", observed)
    draws = states["state_probability"]
    if "series" in draws.dims or observed.ndim != 1:
        raise ValueError("plot_states draws one series: select it with .sel(series=...) first.")
    from matplotlib.figure import Figure

    probability = draws.mean(("chain", "draw")).transpose("time", "state")
    time = observed["time"].values if "time" in observed.coords else np.arange(observed.sizes["time"])
    colours = _colours(probability.sizes["state"])
    figure = Figure(figsize=(9.5, 5.0), layout="constrained")
    series, bands = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.2])
    likeliest = probability.values.argmax(1)
    values = np.asarray(observed.values, float)
    series.plot(time, values, color="0.6", linewidth=0.8, zorder=1)
    for k, colour in enumerate(colours):
        here = likeliest == k
        series.plot(time[here], values[here], "o", markersize=4, color=colour, label=f"state {k}", zorder=3)
    if level is not None:
        path = (draws * level).sum("state")
        middle = path.mean(("chain", "draw")).values
        low, high = path.quantile([0.05, 0.95], ("chain", "draw")).values
        series.fill_between(time, low, high, color="0.2", alpha=0.15, linewidth=0, zorder=2)
        series.plot(time, middle, color="0.2", linewidth=1.3, zorder=2, label="level, mean and 90 % interval")
    series.set_ylabel(str(observed.attrs.get("long_name", observed.name or "observed")))
    series.legend(loc="upper right", fontsize=8, ncols=len(colours) + 1, frameon=False)
    series.margins(y=0.18)
    bands.stackplot(time, probability.values.T, colors=colours, linewidth=0)
    bands.set_ylim(0, 1)
    bands.set_xlim(time[0], time[-1])
    bands.set_ylabel("probability\nof each state", fontsize=9)
    name = observed["time"].attrs.get("long_name", "time") if "time" in observed.coords else "time"
    bands.set_xlabel(name)
    for axis in (series, bands):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _colours(number: int) -> list:
    from matplotlib import colormaps

    return [colormaps["viridis"](x) for x in np.linspace(0.12, 0.88, number)]
