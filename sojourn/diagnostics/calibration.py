"""Simulation-based calibration: do the posteriors of an engine rank the truth uniformly?

Draw parameters from the prior, data from the model, and fit: the rank of the true value among the posterior
draws is uniform if the engine is right (Talts et al. 2018, arXiv:1804.06788).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn._arguments import whole_number
from sojourn.diagnostics._names import entry_name
from sojourn.diagnostics._uniformity import envelope, evaluation_points, p_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from matplotlib.figure import Figure

LEVEL = 0.01
MAX_PANELS = 24


def rank(prior_value: Any, posterior_draws: Any, *, seed: int | np.random.Generator = 0) -> np.ndarray:
    """Rank of the true value among posterior draws, ties broken at random.

    Args:
        prior_value: The value the data were simulated from, shape (...).
        posterior_draws: Draws of its posterior, nearly independent (thin those of a Markov chain), shape
            (draw, ...).
        seed: For the ties, which discrete values have: a seed, or a generator that is used up call by call.

    Returns:
        Integers from 0 to the number of draws, shape (...), uniform where the posterior is right.

    Raises:
        ValueError: If the shapes do not match or a value is NaN.

    Example:
        >>> rank(2.5, [1.0, 2.0, 3.0]).tolist()
        2
    """
    value, draws = np.asarray(prior_value), np.asarray(posterior_draws)
    if draws.ndim != value.ndim + 1 or draws.shape[1:] != value.shape:
        raise ValueError(f"rank() needs draws of shape (draw, *{value.shape}), got {draws.shape}.")
    if np.isnan(value.astype(float)).any() or np.isnan(draws.astype(float)).any():
        raise ValueError("rank() cannot rank NaN: look at the fit that produced it.")
    ties = (draws == value).sum(axis=0)
    return (draws < value).sum(axis=0) + np.random.default_rng(seed).integers(0, ties + 1)


@dataclass(frozen=True)
class Calibration:
    """Ranks of true values among posterior draws, over many simulations, and their test.

    Args:
        ranks: Integers from 0 to `num_draws`, dimension `simulation` and each variable's own.
        num_draws: Number of posterior draws each value was ranked among.

    Raises:
        TypeError: If `ranks` is not a dataset.
        ValueError: If there is no dimension `simulation`, or a rank is not between 0 and `num_draws`.

    Example:
        >>> import numpy as np, xarray as xr
        >>> uniform = np.random.default_rng(0).integers(0, 100, size=200)
        >>> Calibration(xr.Dataset({"mu": ("simulation", uniform)}), num_draws=99).ok
        True
    """

    ranks: xr.Dataset
    num_draws: int

    def __post_init__(self) -> None:
        if not hasattr(self.ranks, "data_vars"):
            raise TypeError(
                f"Calibration takes ranks as an xarray.Dataset, not a {type(self.ranks).__name__}."
            )
        whole_number(self.num_draws, "num_draws")
        for name, array in self.ranks.data_vars.items():
            if "simulation" not in array.dims:
                raise ValueError(f"The ranks of {name!r} have no dimension 'simulation', only {array.dims}.")
            values = array.values
            if not (np.isfinite(values).all() and (values >= 0).all() and (values <= self.num_draws).all()):
                raise ValueError(
                    f"The ranks of {name!r} must lie between 0 and num_draws = {self.num_draws}."
                )
        if not self.ranks.data_vars:
            raise ValueError("Calibration needs the ranks of at least one variable.")

    def _scalars(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, array in self.ranks.data_vars.items():
            values = array.transpose("simulation", ...).values
            columns = values.reshape(values.shape[0], -1)
            entry = array.isel(simulation=0, drop=True)
            for index in range(columns.shape[1]):
                yield entry_name(entry, name, index), columns[:, index]

    def _points(self) -> np.ndarray:
        return evaluation_points(self.num_draws + 1)

    def _counts(self, ranks: np.ndarray) -> np.ndarray:
        # The fractional rank (rank + 1) / (num_draws + 1) is at most k / (num_draws + 1) for ranks below k.
        below = np.rint(self._points() * (self.num_draws + 1)).astype(int)
        return np.searchsorted(np.sort(ranks), below, side="left")

    def p_values(self) -> xr.Dataset:
        """Exact p-value of uniform ranks for each scalar (Säilynoja, Bürkner and Vehtari 2022).

        Returns:
            The same variables without `simulation`.

        Example:
            >>> import numpy as np, xarray as xr
            >>> biased = np.random.default_rng(0).integers(0, 50, size=200)
            >>> calibration = Calibration(xr.Dataset({"mu": ("simulation", biased)}), num_draws=99)
            >>> float(calibration.p_values()["mu"]) < 1e-6
            True
        """
        points = self._points()

        def test(array: xr.DataArray) -> xr.DataArray:
            values = array.transpose("simulation", ...).values
            columns = values.reshape(values.shape[0], -1).T
            tested = [p_value(self._counts(column), column.size, points) for column in columns]
            return array.isel(simulation=0, drop=True).copy(data=np.reshape(tested, values.shape[1:]))

        return self.ranks.map(test)

    @property
    def ok(self) -> bool:
        """Whether all ranks pass at an overall level of 1 %: the least p-value times the number of scalars.

        This is Bonferroni's bound, so a right engine is rejected in at most one case in a hundred however
        many scalars there are and however they depend on each other.
        """
        values = [np.ravel(array.values) for array in self.p_values().data_vars.values()]
        together = np.concatenate(values)
        return bool(together.min() * together.size >= LEVEL)

    def __str__(self) -> str:
        p_values = np.concatenate([np.ravel(array.values) for array in self.p_values().data_vars.values()])
        names = [name for name, _ in self._scalars()]
        passed = p_values.min() * p_values.size >= LEVEL
        simulations = self.ranks.sizes["simulation"]
        verdict = "calibrated" if passed else "NOT calibrated"
        width = max(map(len, names))
        lines = [
            f"{verdict}: {simulations} simulations, {self.num_draws} draws, {p_values.size} scalars, "
            f"overall level {LEVEL:.0%}"
        ]
        order = np.argsort(p_values)
        for index in order[:MAX_PANELS]:
            mark = "" if p_values[index] * p_values.size >= LEVEL else "  <- not uniform"
            lines.append(f"  {names[index]:<{width}}  p = {p_values[index]:.2g}{mark}")
        if order.size > MAX_PANELS:
            lines.append(f"  and {order.size - MAX_PANELS} more with larger p")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw, for each scalar, the ECDF of the ranks minus the uniform one, with the 95 % envelope.

        Above zero throughout, the posterior lies too high; a curve that is above at the left and below at the
        right comes from posteriors that are too narrow, the opposite from ones that are too wide. At most the
        first 24 scalars are drawn.

        Returns:
            A matplotlib figure that pyplot does not hold.

        Example:
            >>> import numpy as np, xarray as xr
            >>> uniform = np.random.default_rng(0).integers(0, 20, size=50)
            >>> figure = Calibration(xr.Dataset({"mu": ("simulation", uniform)}), num_draws=19).plot()
            >>> len(figure.axes)
            1
        """
        from sojourn.diagnostics._figures import ecdf_difference, panels

        scalars = list(self._scalars())[:MAX_PANELS]
        figure, axes = panels(len(scalars), columns=min(4, len(scalars)), height=2.2)
        points = self._points()
        for axis, (name, ranks) in zip(axes, scalars, strict=True):
            low, high = envelope(ranks.size, points)
            ecdf_difference(
                axis, points, self._counts(ranks) / ranks.size, low / ranks.size, high / ranks.size
            )
            axis.set_title(name)
        return figure
