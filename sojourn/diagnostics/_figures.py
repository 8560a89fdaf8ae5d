"""The figures that ArviZ does not draw: fans over time, differences of distribution functions, the ELBO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.0
BLUE, LIGHT, INK, WARM = "#33658a", "#86bbd8", "#2f3e46", "#c8553d"
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 9.5,
    "axes.titleweight": "normal",
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#9aa5ad",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "text.color": INK,
    "xtick.color": "#5c6b73",
    "ytick.color": "#5c6b73",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "axes.prop_cycle": "cycler('color', ['#33658a', '#c8553d', '#6a994e', '#e0a030', '#7b6d8d', '#2f3e46'])",
}


def panels(
    count: int, *, columns: int = 1, height: float = 2.6, width: float = WIDTH
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes in rows of `columns`, not registered with pyplot.

    Args:
        count: Number of axes, at least one.
        columns: Axes in a row.
        height: Height of a row in inches.
        width: Width of the figure in inches.

    Returns:
        The figure and its axes.

    Example:
        >>> figure, axes = panels(5, columns=3)
        >>> len(axes), len(figure.axes)
        (5, 5)
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height * rows + 0.2), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in grid[count:]:
        unused.remove()
    return figure, list(grid[:count])


def ecdf_difference(axis: Axes, points: Any, ecdf: Any, low: Any, high: Any) -> None:
    """Draw an ECDF minus the uniform one, over its envelope.

    Args:
        axis: Where to draw.
        points: Where it was evaluated, shape (point,).
        ecdf: Its values there, shape (point,).
        low: Lower end of the envelope, shape (point,).
        high: Upper end of the envelope, shape (point,).

    Example:
        >>> import numpy as np
        >>> _, (axis,) = panels(1)
        >>> ecdf_difference(axis, np.array([0.5]), np.array([0.6]), np.array([0.4]), np.array([0.7]))
        >>> len(axis.lines)
        2
    """
    x = np.concatenate([[0.0], points, [1.0]])

    def difference(values: Any) -> np.ndarray:
        return np.concatenate([[0.0], np.asarray(values) - points, [0.0]])

    axis.fill_between(x, difference(low), difference(high), color=LIGHT, alpha=0.35, linewidth=0)
    axis.axhline(0.0, color="#9aa5ad", linewidth=0.8)
    axis.plot(x, difference(ecdf), color=BLUE, drawstyle="steps-post" if points.size < 50 else "default")
    axis.set_xlim(0.0, 1.0)


def fan(draws: xr.DataArray, observed: xr.DataArray | None, *, most: int = 4) -> tuple[Figure, int]:
    """Medians and central 50 % and 90 % bands over `time`, the observations on top.

    Args:
        draws: Dimensions `chain`, `draw`, `time`, and perhaps others, each entry of which gets its own panel.
        observed: The same without `chain` and `draw`, or None; NaN is not drawn.
        most: The largest number of panels.

    Returns:
        The figure, and the number of panels left out.

    Example:
        >>> import numpy as np, xarray as xr
        >>> values = np.random.default_rng(0).normal(size=(2, 50, 9))
        >>> draws = xr.DataArray(values, dims=("chain", "draw", "time"))
        >>> figure, left_out = fan(draws.rename("y"), None)
        >>> len(figure.axes), left_out
        (1, 0)
    """
    from sojourn.diagnostics._names import entry_name

    others = [dim for dim in draws.dims if dim not in ("chain", "draw", "time")]
    ordered = draws.transpose("chain", "draw", *others, "time")
    length = ordered.sizes["time"]
    samples = np.asarray(ordered.values, dtype=float).reshape(-1, int(np.prod(ordered.shape[2:-1])), length)
    time = draws["time"].values if "time" in draws.coords else np.arange(length)
    points = None
    if observed is not None:
        points = np.asarray(observed.transpose(*others, "time").values, dtype=float).reshape(-1, length)
    count = min(samples.shape[1], most)
    figure, axes = panels(count, height=2.6 if count == 1 else 2.0)
    labels = ordered.isel(chain=0, draw=0, time=0, drop=True)
    for row, axis in enumerate(axes):
        lowest, low, median, high, highest = np.nanquantile(
            samples[:, row], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0
        )
        axis.fill_between(time, lowest, highest, color=LIGHT, alpha=0.35, linewidth=0, label="90 %")
        axis.fill_between(time, low, high, color=LIGHT, alpha=0.8, linewidth=0, label="50 %")
        axis.plot(time, median, color=BLUE, linewidth=1.0, label="median")
        if points is not None:
            size = float(np.clip(600.0 / length, 2.0, 14.0))
            axis.scatter(time, points[row], s=size, color=INK, linewidths=0, zorder=3, label="observed")
        axis.set_ylabel(entry_name(labels, draws.name, row))
        axis.margins(x=0.01)
    axes[-1].set_xlabel("time")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=4, fontsize=8)
    return figure, samples.shape[1] - count


def distribution(draws: xr.DataArray, observed: xr.DataArray, *, most: int = 50) -> Figure:
    """Empirical distribution functions of predicted data sets and of the observed one.

    Args:
        draws: Dimensions `chain`, `draw` and those of the observations.
        observed: The observations; NaN is left out.
        most: The number of predicted data sets drawn.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, xarray as xr
        >>> values = np.random.default_rng(0).normal(size=(2, 50, 9))
        >>> draws = xr.DataArray(values, dims=("chain", "draw", "item"))
        >>> len(distribution(draws, draws[0, 0]).axes[0].lines)
        51
    """
    figure, (axis,) = panels(1)
    truth = np.ravel(observed.values).astype(float)
    samples = np.asarray(draws.transpose("chain", "draw", *observed.dims).values, dtype=float)
    samples = samples.reshape(-1, truth.size)[:, np.isfinite(truth)]
    for index in np.unique(np.linspace(0, len(samples) - 1, most).astype(int)):
        axis.ecdf(samples[index][np.isfinite(samples[index])], color=LIGHT, alpha=0.4, linewidth=0.8)
    axis.ecdf(truth[np.isfinite(truth)], color=INK, linewidth=1.6, label="observed")
    axis.set_xlabel(str(observed.name))
    axis.set_ylabel("fraction of values")
    axis.legend(loc="lower right")
    return figure


def elbo(values: xr.DataArray) -> Figure:
    """The evidence lower bound against the optimiser's step, one line a restart.

    Args:
        values: Dimensions (restart, step), or `step` alone.

    Returns:
        The figure; its vertical range is that of the last nine tenths of the steps.

    Example:
        >>> import numpy as np, xarray as xr
        >>> figure = elbo(xr.DataArray(-1.0 / np.arange(1.0, 100.0)[None], dims=("restart", "step")))
        >>> len(figure.axes[0].lines)
        1
    """
    figure, (axis,) = panels(1)
    rows = np.asarray(values.transpose(..., "step").values, dtype=float).reshape(-1, values.sizes["step"])
    best = int(np.argmax(np.nan_to_num(rows[:, -max(1, rows.shape[1] // 20) :], nan=-np.inf).mean(axis=1)))
    for index, row in enumerate(rows):
        chosen = index == best
        axis.plot(row, color=BLUE if chosen else LIGHT, linewidth=1.2 if chosen else 0.8, zorder=2 + chosen)
    late = rows[:, rows.shape[1] // 10 :]
    late = late[np.isfinite(late)]
    if late.size and np.ptp(late) > 0:
        low, high = np.quantile(late, [0.01, 1.0])
        axis.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axis.set_xlabel("step")
    axis.set_ylabel("ELBO")
    return figure
