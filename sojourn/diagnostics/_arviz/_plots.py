"""ArviZ's plots of a posterior, by the functions of the generation that is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn.diagnostics._arviz._containers import container, group, require_posterior
from sojourn.diagnostics._arviz._generation import arviz_module, is_old, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

RANK_CAPTION = (
    "Ranks of each chain's draws among all draws of all chains, one row of bars a chain. Chains that "
    "explore the same distribution have level bars; a slope or a hump belongs to a chain that sits "
    "elsewhere.",
    "Empirical distribution of the ranks of each chain's draws among all draws, minus the uniform one. "
    "Chains that explore the same distribution stay close to zero; points that stand out against "
    "uniformity are marked.",
)


def _figure(drawn: Any) -> Figure:
    import matplotlib.pyplot as plt

    if hasattr(drawn, "viz"):
        figure = drawn.viz["figure"].item()
        figure.set_layout_engine("constrained")
    else:
        figure = np.ravel(np.asarray(drawn, dtype=object))[0].figure
    # The caller owns the figure: left in pyplot it would be shown twice in a notebook and never freed.
    plt.close(figure)
    return figure


def plot_trace(fit: Any, var_names: Sequence[str] | None = None, *, width: float = 10.0) -> Figure:
    """Marginal density and trace of each scalar, by ArviZ.

    Args:
        fit: An ArviZ container.
        var_names: The variables to show; all by default.
        width: Width of the figure in inches.

    Returns:
        A matplotlib figure that pyplot does not hold.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = np.random.default_rng(0).normal(size=(2, 50))
        >>> figure = plot_trace(container({"posterior": xr.Dataset({"mu": (("chain", "draw"), draws)})}))
        >>> len(figure.axes)
        2
    """
    rows = _count(fit, var_names, "plot_trace")
    size = (width, 1.25 * rows + 0.4)
    az = arviz_module()
    fit = _labelled(fit)
    with quiet():
        if is_old(az):
            drawn = az.plot_trace(
                fit,
                var_names=_list(var_names),
                compact=False,
                figsize=size,
                backend_kwargs={"layout": "constrained"},
            )
        else:
            drawn = az.plot_trace_dist(
                fit,
                var_names=_list(var_names),
                compact=False,
                backend="matplotlib",
                figure_kwargs={"figsize": size},
            )
    figure = _figure(drawn)
    for axis in figure.axes:
        # ArviZ 1.x writes the name up the side of the trace, where long names run into each other.
        name = axis.get_ylabel() or axis.get_xlabel()
        if name:
            axis.set_title(name if axis.get_ylabel() else "" if name == "Draw" else name)
            axis.set_xlabel("")
            axis.set_ylabel("")
        axis.title.set_fontsize(9.5)
        axis.tick_params(labelsize=8.0)
    return figure


def plot_rank(fit: Any, var_names: Sequence[str] | None = None, *, width: float = 10.0) -> Figure:
    """Ranks of each chain's draws among all draws, by ArviZ (bars in 0.x, ECDF differences in 1.x).

    Args:
        fit: An ArviZ container.
        var_names: The variables to show; all by default.
        width: Width of the figure in inches.

    Returns:
        A matplotlib figure that pyplot does not hold.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = np.random.default_rng(0).normal(size=(2, 50))
        >>> figure = plot_rank(container({"posterior": xr.Dataset({"mu": (("chain", "draw"), draws)})}))
        >>> len(figure.axes)
        1
    """
    count = _count(fit, var_names, "plot_rank")
    columns = min(count, 4)
    rows = -(-count // columns)
    size = (width, 2.1 * rows + 0.3)
    az = arviz_module()
    fit = _labelled(fit)
    with quiet():
        if is_old(az):
            drawn = az.plot_rank(
                fit,
                var_names=_list(var_names),
                figsize=size,
                grid=(rows, columns),
                backend_kwargs={"layout": "constrained"},
            )
        else:
            drawn = az.plot_rank(
                fit,
                var_names=_list(var_names),
                backend="matplotlib",
                col_wrap=columns,
                figure_kwargs={"figsize": size},
            )
    figure = _figure(drawn)
    if not is_old(az):
        for axis in figure.axes:
            # ArviZ 1.x marks points with blots that hide the lines, and writes the p-value across them.
            for marks in axis.collections:
                marks.set(sizes=[4.0])
            for text in axis.texts:
                text.set(transform=axis.transAxes, position=(0.02, 0.02), va="bottom", fontsize=8.0)
            axis.set_xlabel("")
    return figure


def plot_forest(fit: Any, var_names: Sequence[str] | None = None, *, width: float = 10.0) -> Figure:
    """Interval of each scalar, all chains together, by ArviZ.

    Args:
        fit: An ArviZ container.
        var_names: The variables to show; all by default.
        width: Width of the figure in inches.

    Returns:
        A matplotlib figure that pyplot does not hold.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = np.random.default_rng(0).normal(size=(2, 50))
        >>> figure = plot_forest(container({"posterior": xr.Dataset({"mu": (("chain", "draw"), draws)})}))
        >>> len(figure.axes) >= 1
        True
    """
    size = (width, 0.32 * _count(fit, var_names, "plot_forest") + 1.0)
    az = arviz_module()
    fit = _labelled(fit)
    with quiet():
        if is_old(az):
            drawn = az.plot_forest(
                fit,
                var_names=_list(var_names),
                combined=True,
                figsize=size,
                backend_kwargs={"layout": "constrained"},
            )
        else:
            drawn = az.plot_forest(
                fit,
                var_names=_list(var_names),
                combined=True,
                backend="matplotlib",
                figure_kwargs={"figsize": size},
                visuals={"ticklabels": False},
            )
    figure = _figure(drawn)
    if len(figure.axes) > 1:
        # ArviZ 1.x gives the names axes of their own, whose line at the bottom means nothing.
        figure.axes[0].spines["bottom"].set_visible(False)
        figure.axes[0].tick_params(bottom=False, labelbottom=False)
    return figure


def _labelled(fit: Any) -> Any:
    """The posterior alone, every dimension with coordinates, which the plots of ArviZ 1.x insist on."""
    posterior = require_posterior(fit, "plot")
    bare = {dim: np.arange(size) for dim, size in posterior.sizes.items() if dim not in posterior.coords}
    stats = group(fit, "sample_stats")
    groups = {"posterior": posterior.assign_coords(bare)}
    if stats is not None and "diverging" in stats:
        groups["sample_stats"] = stats[["diverging"]]
    return container(groups)


def _list(var_names: Sequence[str] | None) -> list[str] | None:
    return None if var_names is None else list(var_names)


def _count(fit: Any, var_names: Sequence[str] | None, caller: str) -> int:
    posterior = require_posterior(fit, caller)
    names = list(posterior.data_vars) if var_names is None else list(var_names)
    unknown = [name for name in names if name not in posterior.data_vars]
    if unknown:
        raise ValueError(f"{caller}(): the posterior has no {unknown}; it has {list(posterior.data_vars)}.")
    draws = posterior.sizes["chain"] * posterior.sizes["draw"]
    return max(1, sum(posterior[name].size // draws for name in names))
