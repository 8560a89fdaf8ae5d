"""Values of ``numpyro.param`` sites: kept in a fit, and put back into a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from sojourn._contract import Site
from sojourn.diagnostics._arviz import group

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "flat_params",
    "hold_params",
    "params_dataset",
    "read_params",
    "restore",
    "trained_model",
    "with_params",
]

GROUP = "params"


def flat_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every array by its name: that of the site, and the way to it where the site holds a tree (a network)."""
    found = {}
    for name, tree in params.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[name + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def params_dataset(params: Mapping[str, Any]) -> xr.Dataset:
    """The group ``params`` of a fit."""
    import xarray as xr

    arrays = flat_params(params)
    return xr.Dataset({name: ([f"{name}_dim_{i}" for i in range(a.ndim)], a) for name, a in arrays.items()})


def read_params(fit: Any) -> dict[str, np.ndarray]:
    """Arrays of the group ``params``, by flat name.

    Raises:
        ValueError: a fit without one.
    """
    found = group(fit, GROUP)
    if found is None:
        raise ValueError(
            "This fit holds no parameters to start from: fits with engine='svi' of sojourn do, in their group 'params'."
        )
    return {str(n): found[n].values for n in found.data_vars}


def restore(name: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value of a site whose first value was ``like``; ``None`` where the arrays do not have it, or another shape."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    found = [arrays.get(name + jax.tree_util.keystr(path)) for path, _ in leaves]
    if any(a is None or a.shape != jnp.shape(leaf) for a, (_, leaf) in zip(found, leaves, strict=True)):
        return None
    return jax.tree.unflatten(tree, found)


class _substitute_params(Messenger):
    """Values for ``param`` sites; with ``kept``, out of sight of whatever would optimise them, and noted there."""

    def __init__(self, fn: Any, arrays: Mapping[str, np.ndarray], kept: dict[str, Any] | None = None):
        self.arrays, self.kept = arrays, kept
        super().__init__(fn)

    def process_message(self, msg: Site) -> None:
        if msg["type"] != "param" or msg["value"] is not None:
            return
        # A network is given as a function of a key, which NumPyro keeps elsewhere.
        given = msg["args"]
        like = given[0] if given else msg["fn"].__kwdefaults__["init_value"](jax.random.key(0))
        value = restore(msg["name"], like, self.arrays)
        if value is not None:
            if self.kept is not None:
                msg["stop"] = True
                self.kept[msg["name"]] = value
            msg["value"] = jax.tree.map(jnp.asarray, value)


class _WithParams:
    """A model with the values of its ``numpyro.param`` sites; callable as the model is."""

    def __init__(self, model: Callable[..., Any], arrays: Mapping[str, np.ndarray]):
        self.model, self.arrays = model, arrays
        self.__name__ = getattr(model, "__name__", type(model).__name__)
        self.__wrapped__ = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _substitute_params(None, self.arrays, {}):
            return self.model(*args, **kwargs)


def hold_params(
    fn: Callable[..., Any], arrays: Mapping[str, np.ndarray], kept: dict[str, Any]
) -> Callable[..., Any]:
    """A model or guide whose ``param`` sites have these values, and are not optimised; ``kept`` gets those met."""

    def held(*args, **kwargs):
        with _substitute_params(None, arrays, kept):
            return fn(*args, **kwargs)

    held.__wrapped__ = fn  # type: ignore[attr-defined]
    return held


def with_params(model: Callable[..., Any], arrays: Mapping[str, np.ndarray]) -> Callable[..., Any]:
    """The model with these values at its ``numpyro.param`` sites; the model itself where there are none."""
    return _WithParams(model, arrays) if arrays else model


def trained_model(model: Callable[..., Any], fit: Any) -> Callable[..., Any]:
    """A model with its ``numpyro.param`` sites (networks, say) at the values that a variational fit found.

    It takes the same arguments, and any engine takes it: a particle filter for the evidence of held-out data, NUTS for
    the rest of the posterior given the networks.

    Args:
        model: as fitted.
        fit: made with ``engine="svi"``.

    Returns:
        A model.

    Raises:
        ValueError: a fit without parameters.

    Example:
        >>> import numpyro, numpyro.distributions as dist, sojourn as sj
        >>> def model(y):
        ...     width = numpyro.param("width", 1.0, constraint=dist.constraints.positive)
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     numpyro.sample("y", dist.Normal(mean, width), obs=y)
        >>> fit = sj.fit(model, np.array([1.0, 3.0, 5.0, 7.0]), engine="svi", num_samples=200, progress_bar=False)
        >>> chains = sj.fit(trained_model(model, fit), np.array([2.0, 6.0]), num_chains=1, num_samples=200,
        ...                 progress_bar=False)
        >>> round(float(fit.params["width"])), chains.posterior["mean"].shape
        (3, (1, 200))
    """
    return _WithParams(model, read_params(fit))
