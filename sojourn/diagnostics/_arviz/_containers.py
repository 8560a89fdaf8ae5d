"""The container of a fit: `arviz.InferenceData` in ArviZ 0.x, `xarray.DataTree` in 1.x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sojourn.diagnostics._arviz._generation import arviz_module, is_old

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr

GROUPS = (
    "posterior",
    "sample_stats",
    "log_likelihood",
    "posterior_predictive",
    "predictions",
    "observed_data",
    "constant_data",
    "params",
    "warm_start",
    "running_summary",
)


def container(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> Any:
    """Pack datasets into ArviZ's own container.

    Args:
        groups: Datasets by group name, at least `"posterior"`; the names (`GROUPS`) are those of ArviZ,
            `"params"`, `"warm_start"` and `"running_summary"`.
        attrs: What describes the fit (engine, seed, versions, ...). It is put on the container and on its
            `posterior` group, so that it survives being written to a file by either generation of ArviZ.

    Returns:
        `arviz.InferenceData` (ArviZ 0.x) or `xarray.DataTree` (ArviZ 1.x).

    Raises:
        ValueError: If there is no posterior, or a group name that ArviZ does not know.

    Example:
        >>> import numpy as np, xarray as xr
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> fit = container({"posterior": posterior}, {"engine": "nuts"})
        >>> fit.attrs["engine"], fit.posterior.attrs["engine"]
        ('nuts', 'nuts')
    """
    attrs = dict(attrs or {})
    if "posterior" not in groups:
        raise ValueError(f"A fit needs a 'posterior' group; the groups given are {sorted(groups)}.")
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"Unknown groups {unknown}; a fit holds {list(GROUPS)}.")
    datasets = {name: groups[name] for name in GROUPS if groups.get(name) is not None}
    posterior = datasets["posterior"]
    datasets["posterior"] = posterior.assign_attrs({**posterior.attrs, **attrs})
    az = arviz_module()
    if is_old(az):
        return az.InferenceData(**datasets, attrs=attrs)
    import xarray as xr

    root = {"/": xr.Dataset(attrs=attrs)}
    return xr.DataTree.from_dict(root | {f"/{name}": dataset for name, dataset in datasets.items()})


def _group_names(fit: Any) -> list[str]:
    groups = getattr(fit, "children", None)  # DataTree
    if groups is not None:
        return list(groups)
    return list(fit.groups()) if callable(getattr(fit, "groups", None)) else []


def group(fit: Any, name: str) -> xr.Dataset | None:
    """Return one group of a fit as a plain dataset.

    Args:
        fit: An ArviZ container.
        name: The group, for example `"sample_stats"`.

    Returns:
        The dataset, or None where the fit has no such group.

    Example:
        >>> import numpy as np, xarray as xr
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> fit = container({"posterior": posterior})
        >>> list(group(fit, "posterior")), group(fit, "log_likelihood")
        (['mu'], None)
    """
    if name not in _group_names(fit):
        return None
    found = fit[name]
    return found.to_dataset() if hasattr(found, "to_dataset") else found


def attributes(fit: Any) -> dict[str, Any]:
    """Return what describes the fit: the attributes of the container over those of its posterior.

    Args:
        fit: An ArviZ container.

    Returns:
        The attributes.

    Example:
        >>> import numpy as np, xarray as xr
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> attributes(container({"posterior": posterior}, {"seed": 3}))
        {'seed': 3}
    """
    posterior = group(fit, "posterior")
    return {**(posterior.attrs if posterior is not None else {}), **dict(getattr(fit, "attrs", {}))}


def require_posterior(fit: Any, caller: str) -> xr.Dataset:
    """Return the posterior, or say in one sentence why there is none.

    Args:
        fit: What the user passed as a fit.
        caller: Name of the public function, for the message.

    Returns:
        The posterior dataset, with its dimensions `chain` and `draw`.

    Raises:
        TypeError: If `fit` is not an ArviZ container.
        ValueError: If it has no posterior, or one without chains and draws.

    Example:
        >>> require_posterior("x", "check")
        Traceback (most recent call last):
        TypeError: check() takes a fit (arviz.InferenceData or xarray.DataTree), not a str.
    """
    if not (hasattr(fit, "children") or callable(getattr(fit, "groups", None))):
        kind = type(fit).__name__
        raise TypeError(f"{caller}() takes a fit (arviz.InferenceData or xarray.DataTree), not a {kind}.")
    posterior = group(fit, "posterior")
    if posterior is None:
        raise ValueError(f"{caller}() needs a fit with a posterior group; this one has {_group_names(fit)}.")
    missing = [name for name in ("chain", "draw") if name not in posterior.sizes]
    if missing or not posterior.data_vars:
        what = "no variables" if not posterior.data_vars else f"no dimension {missing[0]!r}"
        raise ValueError(f"{caller}() needs posterior draws by chain and draw; this posterior has {what}.")
    return posterior


def with_groups(fit: Any, groups: Mapping[str, xr.Dataset]) -> Any:
    """Return a new container with some groups replaced or added; the fit passed in is left as it was.

    Args:
        fit: An ArviZ container.
        groups: The datasets to put in, by group name.

    Returns:
        A new container with the same attributes.

    Example:
        >>> import numpy as np, xarray as xr
        >>> posterior = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> fit = container({"posterior": posterior}, {"seed": 3})
        >>> with_groups(fit, {"posterior": posterior + 1.0}).posterior["mu"].values.max()
        np.float64(1.0)
    """
    kept = {name: fit_group for name in GROUPS if (fit_group := group(fit, name)) is not None}
    return container({**kept, **groups}, attributes(fit))
