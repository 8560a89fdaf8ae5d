"""Named dimensions and coordinates of everything a fit returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sojourn._arguments import must_be
from sojourn._contract import Site, pointwise_ndim

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Labels", "bare", "log_likelihood_dims", "named_arrays", "site_dims"]


def bare(x: Any) -> Any:
    """An xarray or pandas object as a NumPy array; anything else as it is."""
    return x.to_numpy() if hasattr(x, "to_numpy") else x


def site_dims(site: Site) -> list[str]:
    """Names of the axes of a site, as far as the model tells them.

    ``time`` for the axis of a scan, then the plates by their names, then ``infer={"event_dims": [...]}``. Axes of an
    event that nobody named have numbers, so that the names before them stay on their own axes.
    """
    infer = site.get("infer", {})
    scanned = ["time"] if "_scan_current_index" in infer else []
    frames = sorted(site.get("cond_indep_stack", ()), key=lambda frame: frame.dim)
    outer, inner = [*scanned, *(frame.name for frame in frames)], list(infer.get("event_dims", ()))
    unnamed = getattr(site.get("fn"), "event_dim", 0) - len(inner) if outer else 0
    return [*outer, *(f"{site['name']}_dim_{i}" for i in range(unnamed)), *inner]


class Labels:
    """Dimension names by variable and coordinates by dimension, consistent over one fit.

    Args:
        shapes: shape of each variable without (chain, draw).
        trace: of the model, for the names.
        dims, coords: the user's own, which win.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        trace: Mapping[str, Site],
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
    ):
        for what, given in (("dims", dims), ("coords", coords)):
            must_be(given is None or isinstance(given, Mapping), what, "a mapping from names to lists", given)
        self.coords: dict[str, np.ndarray] = {k: np.asarray(v) for k, v in (coords or {}).items()}
        self.sizes: dict[str, int] = {k: len(v) for k, v in self.coords.items()}
        self._taken = set(shapes)
        self.dims: dict[str, list[str]] = {}
        told = dict(dims or {})
        for site in trace.values():
            for name, known in (site.get("infer") or {}).get("dims_of", {}).items():
                told.setdefault(name, known)
        for name, shape in shapes.items():
            known = list(told.get(name, site_dims(trace.get(name, {}))))
            self.dims[name] = self.fit(name, known, shape)
        for name in shapes:
            for dim, labels in trace.get(name, {}).get("infer", {}).get("event_coords", {}).items():
                if self.sizes.get(dim) == len(labels):
                    self.coords.setdefault(dim, np.asarray(labels))

    def fit(self, name: str, known: Sequence[str], shape: tuple[int, ...]) -> list[str]:
        """``known`` names for the last axes of ``shape``, made consistent with every other variable."""
        known = list(known)[-len(shape) :] if shape else []
        names = [f"{name}_dim_{i}" for i in range(len(shape) - len(known))] + known
        result: list[str] = []
        for dim, size in zip(names, shape, strict=True):
            if dim in self._taken or self.sizes.get(dim, size) != size or dim in result:
                dim = f"{name}_{dim}"
            self.sizes[dim] = size
            result.append(dim)
        return result

    def adopt(self, array: Any, dims: Sequence[str]) -> None:
        """Take the coordinates of an xarray or pandas object whose axes are ``dims``."""
        if hasattr(array, "dims") and hasattr(array, "coords"):
            found = [array.coords.get(dim) for dim in array.dims]
        elif hasattr(array, "index"):
            found = [array.index]
        else:
            return
        for dim, labels in zip(dims, found, strict=False):
            if labels is not None and len(labels) == self.sizes.get(dim):
                self.coords.setdefault(dim, np.asarray(labels))

    def dataset(
        self,
        arrays: Mapping[str, np.ndarray],
        lead: Sequence[str] = ("chain", "draw"),
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> xr.Dataset:
        """Arrays with leading axes ``lead`` as a labelled Dataset; ``dims`` overrides the names of the rest."""
        import xarray as xr

        variables = {}
        used: dict[str, int] = {}
        for name, given in arrays.items():
            array: Any = given if _reads_from_disk(given) else np.asarray(given)
            shape = array.shape[len(lead) :]
            inner = list((self.dims if dims is None else dims).get(name, ()))
            if len(inner) != len(shape):
                inner = self.fit(name, inner, shape)
            whole = [*lead, *inner]
            variables[name] = (
                array.rename(dict(zip(array.dims, whole, strict=True))).variable
                if _reads_from_disk(array)
                else (whole, array)
            )
            used |= dict(zip([*lead, *inner], array.shape, strict=True))
        coords = {dim: self.coords.get(dim, np.arange(size)) for dim, size in used.items()}
        return xr.Dataset(variables, coords=coords)


def _reads_from_disk(array: Any) -> bool:
    return hasattr(array, "variable")


def log_likelihood_dims(site: Site, dims: Sequence[str]) -> list[str]:
    """Dimensions of the pointwise log-likelihood at a site whose value has ``dims``."""
    event_ndim = site["fn"].event_dim - pointwise_ndim(site)
    return list(dims[: len(dims) - event_ndim])


def named_arrays(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The array arguments of a call, by parameter name."""
    try:
        bound = inspect.signature(model).bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {f"argument_{i}": a for i, a in enumerate(args)} | dict(kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.items():
        if isinstance(value, tuple):  # *args
            found |= {f"{name}_{i}": v for i, v in enumerate(value)}
        elif isinstance(value, dict):  # **kwargs
            found |= value
        else:
            found[name] = value
    return {n: v for n, v in found.items() if hasattr(v, "shape") and np.ndim(v) > 0 and np.size(v) > 0}
