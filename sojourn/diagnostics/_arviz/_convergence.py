"""ArviZ's summary and convergence numbers, on plain datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn.diagnostics._arviz._containers import require_posterior
from sojourn.diagnostics._arviz._generation import arviz_module, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas
    import xarray as xr


def summary(
    fit: Any, var_names: Sequence[str] | None = None, *, kind: str = "all", rounded: bool = True
) -> pandas.DataFrame:
    """ArviZ's summary table of the posterior, one row a scalar.

    Args:
        fit: An ArviZ container.
        var_names: The variables to show; all by default.
        kind: `"all"`, `"stats"` or `"diagnostics"`, as in ArviZ.
        rounded: Whether ArviZ is to round, as it does by default; ArviZ 0.x then shows 1e-4 as 0.

    Returns:
        The table, with the columns of the ArviZ that is installed.

    Example:
        >>> import numpy as np, xarray as xr
        >>> from sojourn.diagnostics._arviz import container
        >>> draws = np.random.default_rng(0).normal(size=(2, 50))
        >>> fit = container({"posterior": xr.Dataset({"mu": (("chain", "draw"), draws)})})
        >>> "ess_bulk" in summary(fit).columns
        True
    """
    require_posterior(fit, "summary")
    with quiet():
        names = None if var_names is None else list(var_names)
        rounding = {} if rounded else {"round_to": "none"}
        return arviz_module().summary(fit, var_names=names, kind=kind, **rounding)


def rhat(posterior: xr.Dataset) -> xr.Dataset:
    """Rank-normalised split R-hat of every scalar (Vehtari et al. 2021, Bayesian Analysis 16:667-718).

    A single chain is cut in two halves that stand for two chains. An entry that never varies gives NaN; one
    that is stuck at a different value in each chain gives infinity.

    Args:
        posterior: Variables with dimensions `chain`, `draw` and their own.

    Returns:
        The same variables without `chain` and `draw`.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = np.random.default_rng(0).normal(size=(4, 250))
        >>> float(rhat(xr.Dataset({"mu": (("chain", "draw"), draws)}))["mu"]) < 1.02
        True
    """
    if posterior.sizes["chain"] == 1:
        half = posterior.sizes["draw"] // 2
        first, second = (posterior.isel(chain=0, draw=slice(k * half, (k + 1) * half)) for k in (0, 1))
        import xarray as xr

        halves = [part.drop_vars(["chain", "draw"], errors="ignore") for part in (first, second)]
        posterior = xr.concat(halves, dim="chain")
    with quiet():
        az = arviz_module()
        ranked = az.rhat(posterior, method="rank")
        # The folded half of the rank R-hat is 0/0 for a variable with two values; its bulk half is not.
        undefined = [name for name in ranked.data_vars if bool(ranked[name].isnull().any())]
        if not undefined:
            return ranked
        bulk = az.rhat(posterior[undefined], method="z_scale")
        return ranked.assign({name: ranked[name].fillna(bulk[name]) for name in undefined})


def ess(posterior: xr.Dataset, method: str = "bulk") -> xr.Dataset:
    """Effective sample size of every scalar.

    Args:
        posterior: Variables with dimensions `chain`, `draw` and their own.
        method: `"bulk"` or `"tail"` (the smaller of the 5 % and 95 % quantiles), or another of ArviZ's.

    Returns:
        The same variables without `chain` and `draw`.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = np.random.default_rng(0).normal(size=(4, 250))
        >>> 600 < float(ess(xr.Dataset({"mu": (("chain", "draw"), draws)}))["mu"]) < 1400
        True
    """
    with quiet():
        return arviz_module().ess(posterior, method=method)


def bfmi(energy: Any) -> np.ndarray:
    """Energy Bayesian fraction of missing information of each chain (Betancourt 2016, arXiv:1604.00695).

    Args:
        energy: Hamiltonian of each draw, shape (chain, draw).

    Returns:
        One number a chain, shape (chain,).

    Example:
        >>> import numpy as np
        >>> bfmi(np.random.default_rng(0).normal(size=(3, 100))).shape
        (3,)
    """
    with quiet():
        return np.atleast_1d(arviz_module().bfmi(np.asarray(energy, dtype=float)))
