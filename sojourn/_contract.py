"""What sojourn reads off a NumPyro callable, and nothing else.

A model is any function with NumPyro primitives. Three conventions, all optional, let the rest of the toolkit
do more with it:

* ``path=``: a keyword. ``path=True`` declares the hidden path as sample sites in a ``scan``; ``path=False``
  the same law with the path integrated out (:func:`marginal_form`).
* ``infer={"event_dims": [...]}`` at a site names its event dimensions (ArviZ's own convention), and
  ``infer={"event_coords": {dim: labels}}`` labels them; ``infer={"init": value}`` says where to start.
* an observed distribution of a whole series may offer ``predictive_log_prob(value)``, the terms
  ``log p(y_t | y_<t)`` of its density, and ``sample_one_step_ahead(key, value)``. The terms run over the first axis
  of its event, or over the first ``series_ndim``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpyro.distributions as dist
from jax import Array
from numpyro import handlers

__all__ = [
    "check_function",
    "is_path_form",
    "marginal_form",
    "observed_sites",
    "pointwise_ndim",
    "series_law",
    "trace_model",
]

Model = Callable[..., Any]
Site = dict[str, Any]


def check_function(model: Any) -> None:
    """Refuse what is no model.

    Raises:
        TypeError: no function.
    """
    if not callable(model):
        raise TypeError(f"A model is a function with NumPyro primitives, not {model!r:.60}.")


def is_path_form(model: Model, kwargs: Mapping[str, Any]) -> bool:
    """Whether the call ``model(*args, **kwargs)`` declares the hidden path as sample sites."""
    if "path" in kwargs:
        return bool(kwargs["path"])
    while isinstance(model, functools.partial):
        if "path" in model.keywords:
            return bool(model.keywords["path"])
        model = model.func
    try:
        parameter = inspect.signature(model).parameters.get("path")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is True


def marginal_form(model: Model, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the same model with its path integrated out, where it says that it can."""
    return {**kwargs, "path": False} if is_path_form(model, kwargs) else dict(kwargs)


def trace_model(
    model: Model,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    key: Array,
    values: Mapping[str, Any] | None = None,
) -> dict[str, Site]:
    """Trace of one run, with ``values`` at the sites they name and draws from the prior elsewhere."""
    check_function(model)
    seeded = handlers.seed(model, key)
    return handlers.trace(handlers.substitute(seeded, data=dict(values or {}))).get_trace(*args, **kwargs)


def observed_sites(trace: Mapping[str, Site]) -> dict[str, Site]:
    """The sample sites that hold data (not the values of a subsampling plate)."""
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"] and not isinstance(site["fn"], dist.Unit)
    }


def series_law(site: Site, method: str) -> Any:
    """The distribution at ``site``, past wrappers that only reshape, if it offers ``method``; else ``None``."""
    fn = site["fn"]
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn if hasattr(fn, method) else None


def pointwise_ndim(site: Site) -> int:
    """Number of event axes of an observed site over which its pointwise log-likelihood runs; 0 for no series."""
    law = series_law(site, "predictive_log_prob")
    return 0 if law is None else getattr(law, "series_ndim", 1)
