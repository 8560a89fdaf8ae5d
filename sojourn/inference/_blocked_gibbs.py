"""Exact sampling of a hidden path, in turn with NUTS for the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.infer import NUTS
from numpyro.infer.gibbs import GIBBS_SITES_KWARG, Gibbs
from numpyro.infer.mcmc import MCMCKernel

from sojourn._contract import (
    check_function,
    is_path_form,
    marginal_form,
    observed_sites,
    series_law,
    trace_model,
)
from sojourn.inference._gibbs_state import HMC_STATS, GibbsStateWithStats
from sojourn.inference._initial import init_to_hint

__all__ = ["BlockedGibbs"]


class BlockedGibbs(Gibbs):
    """Gibbs sampler for a model whose path can be drawn exactly given its parameters.

    Alternates a draw of the whole hidden path given parameters and data (forward filtering, backward
    sampling; Scott 2002, *JASA* 97:337) with a NUTS step for everything else given the path. The model takes
    ``path=True``, and its form with ``path=False`` observes a distribution that offers ``sample_path``: all of
    :mod:`sojourn.models.hidden_markov`.

    It samples the same posterior as NUTS on the marginal form and mixes more slowly, since parameters and
    path hold each other; what it gives is the path, and a check on the marginal form.

    Args:
        model: the model, with ``path=True`` in it or in the arguments of the run.
        **nuts: settings of ``numpyro.infer.NUTS`` for the parameters.

    Example:
        >>> import sojourn as sj
        >>> from sojourn.models import hidden_markov
        >>> quakes = sj.datasets.earthquakes()["count"]
        >>> fit = sj.fit(hidden_markov.poisson, quakes, num_states=2, path=True, engine="blocked_gibbs",
        ...              num_warmup=100, num_samples=100, num_chains=1, progress_bar=False)
        >>> fit.posterior["hidden_state"].dims
        ('chain', 'draw', 'time')
    """

    stat_fields = HMC_STATS
    _state_cls = GibbsStateWithStats

    def __init__(self, model: Callable[..., Any], **nuts: Any):
        check_function(model)
        settings = {"init_strategy": init_to_hint(), **nuts}
        path = _PathBlock(model)
        super().__init__([(path, _path_sites), (NUTS(model, **settings), None)])

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        kwargs = model_kwargs or {}
        if not is_path_form(self.model, kwargs):
            raise ValueError("BlockedGibbs samples the path: call the model with path=True.")
        return super().init(rng_key, num_warmup, init_params, model_args, model_kwargs)


def _path_sites(trace: Mapping[str, Any]) -> list[str]:
    found = [
        name
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"] and "_scan_current_index" in site["infer"]
    ]
    if len(found) != 1:
        raise ValueError(f"BlockedGibbs needs one latent site in the scan, the path; this model has {found}.")
    return found


class _PathState(NamedTuple):
    z: dict[str, Array]
    rng_key: Array


class _PathBlock(MCMCKernel):
    """Block kernel of ``Gibbs`` that draws the path from its conditional law."""

    sample_field = "z"

    def __init__(self, model: Callable[..., Any]):
        self._model = model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        return _PathState({n: jnp.asarray(v) for n, v in init_params.items()}, rng_key)

    def sample(self, state: _PathState, model_args: Any, model_kwargs: Any) -> _PathState:
        kwargs = dict(model_kwargs or {})
        parameters = kwargs.pop(GIBBS_SITES_KWARG, {})
        key, key_trace, key_path = jax.random.split(state.rng_key, 3)
        trace = trace_model(
            self._model, model_args, marginal_form(self._model, kwargs), key=key_trace, values=parameters
        )
        (name, old), *_ = state.z.items()
        for site in observed_sites(trace).values():
            law = series_law(site, "sample_path")
            if law is not None:
                path = law.sample_path(key_path, site["value"])
                if path.ndim == 2:  # inside the scan time comes first
                    path = path.T
                return _PathState({name: path.astype(old.dtype)}, key)
        raise ValueError("With path=False the model observes no distribution that can sample its path.")

    def refresh(self, state, model_args, model_kwargs):
        return state

    def wrap_model(self, wrapper):
        return self

    def get_constrain_fn(self, model_args, model_kwargs):
        return lambda z: z
