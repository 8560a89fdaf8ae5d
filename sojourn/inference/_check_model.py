"""What can be said to be wrong with a model and its data before anything is compiled."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from sojourn._contract import Site, observed_sites, series_law

__all__ = [
    "check_data",
    "check_gradient_engine",
    "check_latents",
    "check_names",
    "check_takes_all",
    "subsampled",
    "warn_of_params",
]


def check_names(model: Callable[..., Any], kwargs: Mapping[str, Any], caller: Callable[..., Any]) -> None:
    """Refuse an argument that the model does not have: one of ``caller``, most likely, with its name misspelt.

    Args:
        model: the model.
        kwargs: what it is about to be given.
        caller: a function with options of its own that passes on what it does not know.

    Raises:
        TypeError: a name that neither knows.
    """
    try:
        # Of the function itself: what wraps another may take more than that one.
        known = inspect.signature(model, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # built-in, or no function; others say so
        return
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    options = [n for n, p in inspect.signature(caller).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, [*options, *known], 1)
            meant = f"did you mean `{near[0]}`?" if near else f"the options are {', '.join(options)}."
            called = getattr(model, "__name__", "the model")
            raise TypeError(
                f"Neither {called}() nor sj.{caller.__name__}() has an argument `{name}`: {meant}"
            )


def check_latents(trace: Mapping[str, Site]) -> None:
    """Refuse a model with nothing to infer."""
    if not latent_sites(trace):
        raise ValueError("The model has no latent sample site: there is nothing to fit.")


def latent_sites(trace: Mapping[str, Site]) -> dict[str, Site]:
    return {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def check_gradient_engine(trace: Mapping[str, Site], engine: str) -> None:
    """Refuse discrete latent sites under an engine that follows gradients."""
    for name, site in latent_sites(trace).items():
        if site["fn"].support.is_discrete and site["infer"].get("enumerate") != "parallel":
            raise ValueError(
                f"Site '{name}' is discrete, and {engine} needs gradients: sum it out (the models of sojourn.models do "
                "so with path=False; sojourn.inference.marginalize does it for finite sites in a scan), or sample it "
                "(engine='particle_gibbs')."
            )


def subsampled(trace: Mapping[str, Site]) -> dict[str, tuple[int, int]]:
    """Size and number of taken elements of each plate that takes only some."""
    return {
        name: site["args"]
        for name, site in trace.items()
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0])
    }


def check_takes_all(
    trace: Mapping[str, Site],
    engine: str,
    otherwise: str = ", or use engine='stochastic_gradient' (StochasticGradientLangevin)",
) -> None:
    """Refuse a plate that takes a subsample under an engine that needs all data in every step."""
    for plate, (size, taken) in subsampled(trace).items():
        raise ValueError(
            f"Plate '{plate}' takes {taken} of {size} elements, and {engine} needs all of them: leave out "
            f"subsample_size{otherwise}."
        )


def warn_of_params(trace: Mapping[str, Site], engine: str) -> None:
    """Say that an engine leaves ``numpyro.param`` sites where they are."""
    names = [name for name, site in trace.items() if site["type"] == "param"]
    if names:
        warnings.warn(
            f"{engine} does not learn '{names[0]}', a numpyro.param: it stays at its first value. Give it a prior "
            "(numpyro.sample; random_eqx_module for a network), fit with engine='svi', or go on from such a fit with "
            "sojourn.inference.trained_model.",
            stacklevel=3,
        )


def check_data(trace: Mapping[str, Site]) -> None:
    """Refuse observations that are NaN without a mask, or that the law at their site cannot produce."""
    observed = observed_sites(trace)
    if not observed:
        raise ValueError("The model observes nothing: pass the data, and give it to a sample site as `obs`.")
    for name, site in observed.items():
        if isinstance(site["value"], jax.core.Tracer):
            continue
        value = np.asarray(site["value"])
        if value.size == 0:
            raise ValueError(f"The data at site '{name}' are empty (shape {value.shape}).")
        if series_law(site, "predictive_log_prob") is None:
            _check_nan(name, site, value)
        support = site["fn"].support
        fits = np.asarray(jax.jit(lambda x, support=support: support(x))(site["value"]))
        seen = masked_out(site)
        fits = fits if seen is None else fits | ~np.broadcast_to(np.asarray(seen), fits.shape)
        if not fits.all():
            where = tuple(int(i) for i in np.argwhere(~fits)[0])
            law = type(series_law(site, "log_prob") or site["fn"]).__name__
            at = f" (first at index {where if len(where) > 1 else where[0]})" if where else ""
            raise ValueError(f"The data at site '{name}' lie outside the support of its law, {law}{at}.")


def _check_nan(name: str, site: Site, value: np.ndarray) -> None:
    if not np.issubdtype(value.dtype, np.floating):
        return
    bad = np.isnan(value)
    seen = masked_out(site)
    if seen is not None:
        seen = np.asarray(seen)
        bad &= np.broadcast_to(seen.reshape((*seen.shape, *(1,) * (value.ndim - seen.ndim))), bad.shape)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"The data at site '{name}' are NaN at index {where if len(where) > 1 else where[0]}, and nothing "
            "declares them missing: wrap the site in numpyro.handlers.mask and put any number there."
        )


def masked_out(site: Site) -> Any:
    """The array of ``numpyro.handlers.mask`` at a site (true where observed), or ``None``."""
    mask = mask_of(site["fn"])
    return None if isinstance(mask, jax.core.Tracer) else mask


def mask_of(fn: dist.Distribution) -> Any:
    """The mask on a law, over its batch; ``None`` if there is none. Masks within masks count together."""
    mask = None
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        own = getattr(fn, "_mask", None)
        if own is not None and own is not True:
            mask = own if mask is None else own & mask
        fn = fn.base_dist
    return mask
