"""``decode_paths``: the discrete path back from a fit in which it was summed out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from sojourn._contract import Site, trace_model
from sojourn.inference import _labels as labels
from sojourn.inference._marginalize import _Marginalized, marginalize
from sojourn.inference._predictive import in_batches
from sojourn.inference._summed_scan import SummedScan

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["decode_paths"]


def decode_paths(
    fit: Any,
    model: Callable[..., Any],
    *args: Any,
    num_draws: int | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> xr.Dataset:
    """The discrete path of any model that :func:`~sojourn.inference.marginalize` sums out, for every posterior draw.

    Args:
        fit: result of ``sj.fit`` (or any container with a ``posterior`` group of its parameters).
        model, *args, **kwargs: the model and its arguments, as they were fitted.
        num_draws: use this many draws of each chain, evenly spaced (all by default).
        seed: of the sampled paths.

    Returns:
        An ``xarray.Dataset`` over ``chain``, ``draw``, ``time`` and the plates. For each site ``s`` that was summed
        out (in the scan, or before it; the latter have no ``time``):

        * ``s``: one draw of the path given the data, jointly over all sites;
        * ``s_probability``: the law of each entry given the whole series, with a last dimension ``s_value``, whose
          coordinate holds the values. Its mean over chain and draw is the posterior probability;
        * ``s_viterbi``: the most likely path, jointly over all sites;

        and every ``deterministic`` site that depends on the path, along the sampled one.

    Raises:
        ValueError: nothing in the model is summed out, or what :func:`~sojourn.inference.marginalize` refuses.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, sojourn as sj
        >>> from numpyro.contrib.control_flow import scan
        >>> from numpyro.infer import MCMC, NUTS
        >>> from sojourn.inference import decode_paths, marginalize
        >>> def calm_or_busy(counts):
        ...     rate = numpyro.sample("rate", dist.Gamma(2.0, 0.2))
        ...     def step(busy, count):
        ...         busy = numpyro.sample("busy", dist.Bernoulli(jnp.where(busy == 1, 0.9, 0.1)))
        ...         numpyro.sample("count", dist.Poisson(jnp.where(busy == 1, 1.0 + rate, 1.0)), obs=count)
        ...         return busy, None
        ...     scan(step, jnp.array(0), counts)
        >>> counts = jnp.array([0, 2, 1, 0, 9, 12, 8, 11, 1, 0])
        >>> fit = sj.fit(marginalize(calm_or_busy), counts, num_warmup=100, num_samples=50, num_chains=1,
        ...              progress_bar=False)
        >>> paths = decode_paths(fit, calm_or_busy, counts)
        >>> paths["busy_probability"].sel(busy_value=1).mean(("chain", "draw")).values.round().astype(int)
        array([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])
    """
    summed = model if isinstance(model, _Marginalized) else marginalize(model)
    assert isinstance(summed, _Marginalized)
    given = tuple(labels.bare(a) for a in args)
    given_kwargs = {name: labels.bare(value) for name, value in kwargs.items()}
    plan = summed.plan(given, given_kwargs)
    if plan is None:
        raise ValueError("No discrete site of this model is summed out: it has no path to decode.")
    posterior = _thinned(fit, num_draws)
    trace = trace_model(summed.model, given, given_kwargs, key=jax.random.key(0))
    latent = [n for n, s in trace.items() if s["type"] in ("sample", "param") and n in posterior]
    supports = {**plan.layout.sites, **plan.layout.roots}

    def one(inputs):
        values, key = inputs
        key_run, key_path = jax.random.split(key)
        with (
            handlers.block(),
            handlers.seed(rng_seed=key_run),
            handlers.substitute(data=values),
        ):
            scan = summed.run(given, given_kwargs)[1]
        assert isinstance(scan, SummedScan)
        sampled = scan.values_along(scan.sample_path(key_path))
        whole = trace_model(summed.model, given, given_kwargs, key=key_run, values={**values, **sampled})
        told = {n: whole[n]["value"] for n in plan.hidden if n in whole}
        return sampled, scan.marginals(), scan.values_along(scan.most_likely_path()), told

    draws = {
        n: jnp.asarray(posterior[n].transpose("chain", "draw", ...).values).reshape(
            -1, *posterior[n].shape[2:]
        )
        for n in latent
    }
    lead = (posterior.sizes["chain"], posterior.sizes["draw"])
    keys = jax.random.split(jax.random.key(seed), lead[0] * lead[1])
    found = in_batches(one, (draws, keys))
    sampled, marginals, viterbi, told = jax.tree.map(
        lambda x: np.asarray(x).reshape(*lead, *x.shape[1:]), found
    )

    shapes = {n: v.shape[2:] for n, v in {**sampled, **told}.items()}
    known = {n: _dims(trace[n]) for n in shapes}
    names = labels.Labels(shapes, trace, known, _coords(fit, posterior))
    arrays: dict[str, np.ndarray] = {}
    dims: dict[str, list[str]] = {}
    for name, support in supports.items():
        arrays |= {
            name: sampled[name],
            f"{name}_probability": marginals[name],
            f"{name}_viterbi": viterbi[name],
        }
        own = names.dims[name]
        dims |= {name: own, f"{name}_viterbi": own}
        dims[f"{name}_probability"] = [*own[: marginals[name].ndim - 3], f"{name}_value"]
        scalar = support.values.ndim == 1
        names.coords[f"{name}_value"] = support.values if scalar else np.arange(len(support.values))
    for name in told:
        arrays[name], dims[name] = told[name], names.dims[name]
    result = names.dataset(arrays, dims=dims)
    return result.assign_coords(chain=posterior["chain"], draw=posterior["draw"])


def _thinned(fit: Any, num_draws: int | None) -> xr.Dataset:
    posterior = _group(fit, "posterior")
    total = posterior.sizes["draw"]
    if num_draws is not None and not 1 <= num_draws <= total:
        raise ValueError(f"`num_draws` must lie between 1 and the {total} draws of a chain, not {num_draws}.")
    return posterior.isel(draw=np.linspace(0, total - 1, num_draws or total).round().astype(int))


def _group(fit: Any, name: str) -> Any:
    group = fit[name]
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def _dims(site: Site) -> list[str]:
    """As :func:`labels.site_dims`, which cannot tell a deterministic site in a scan."""
    known = labels.site_dims(site)
    return ["time", *known] if site.get("_control_flow_done") and "time" not in known else known


def _coords(fit: Any, posterior: Any) -> dict[str, Any]:
    """Labels along the dimensions that the fit has named."""
    found = dict(posterior.coords)
    with contextlib.suppress(KeyError, AttributeError):
        found |= dict(_group(fit, "observed_data").coords)
    return {str(n): c.values for n, c in found.items() if n not in ("chain", "draw") and c.ndim == 1}
