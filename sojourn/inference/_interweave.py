"""The other parametrisation of a path: parameters given its innovations instead of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam
from numpyro.primitives import Messenger

from sojourn.inference._scan import is_scan

__all__ = ["Innovations", "location_scale"]

_FAMILIES: dict[type, tuple[str, ...]] = {
    dist.Normal: (),
    dist.Laplace: (),
    dist.Cauchy: (),
    dist.Gumbel: (),
    dist.Logistic: (),
    dist.StudentT: ("df",),
}
"""Families x = location + scale * innovation on the whole line, with their other parameters."""

_SUFFIX = "_decentered"  # LocScaleReparam's


def _bare(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def location_scale(fn: Any) -> tuple[str, ...] | None:
    """Parameters of a location-scale law besides these two; ``None`` for any other law."""
    return _FAMILIES.get(type(_bare(fn)))


class _inside_scan(Messenger):
    """``reparam`` that reaches the transition function of a scan."""

    def __init__(self, fn: Callable[..., Any], config: Mapping[str, LocScaleReparam]):
        self.config = config
        super().__init__(fn)

    def process_message(self, msg):
        if is_scan(msg):
            f, *rest = msg["args"]
            msg["args"] = (handlers.reparam(f, config=dict(self.config)), *rest)


def _noncentred(model, config, *args, **kwargs):
    with handlers.reparam(config=dict(config)), _inside_scan(None, config):
        return model(*args, **kwargs)


class Innovations:
    """A model in terms of the innovations of some location-scale sites.

    Args:
        model: the model.
        sites: for each such site the other parameters of its family, as :func:`location_scale` gives them.
    """

    def __init__(self, model: Callable[..., Any], sites: Mapping[str, tuple[str, ...]]):
        config = {n: LocScaleReparam(0.0, shape_params=other) for n, other in sites.items()}
        self.sites = tuple(sites)
        self._centred = model
        self.model = partial(_noncentred, model, config)

    def of(self, values: Mapping[str, Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Array]:
        """Innovations, under the names of the sites they stand for in ``model``."""
        trace = _trace(self._centred, values, args, kwargs)
        found = {}
        for name in self.sites:
            fn = _bare(trace[name]["fn"])
            found[name + _SUFFIX] = (values[name] - fn.loc) / fn.scale
        return found

    def values(self, given: Mapping[str, Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Array]:
        """The sites' values, from parameters and innovations."""
        trace = _trace(self.model, given, args, kwargs)
        return {n: trace[n]["value"] for n in self.sites}


def _trace(model, values, args, kwargs):
    seeded = handlers.substitute(handlers.seed(model, jax.random.key(0)), data=dict(values))
    with handlers.block():
        return handlers.trace(seeded).get_trace(*args, **kwargs)
