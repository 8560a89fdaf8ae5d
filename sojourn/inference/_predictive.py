"""One pass over the draws: pointwise log-likelihood, replicated data, one-step-ahead draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from sojourn._contract import Site, marginal_form, observed_sites, pointwise_ndim, series_law, trace_model
from sojourn.inference._check_model import masked_out

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_draw",
    "in_batches",
    "missing_entries",
    "replicate",
    "site_log_prob",
]

_MOST = 200_000_000  # numbers in one group of a fit: 0.8 GB in float32
_MOST_BESIDE_DISK = 25_000_000  # the same, where draws are too many for memory
_PIECE = 2_000_000  # numbers, given and found, on the device at a time
_BATCH = 64  # draws evaluated side by side, at most: beyond this memory grows and speed does not


class Evaluation(NamedTuple):
    """Arrays with leading axes (chain, draw), by observed site."""

    log_joint: np.ndarray
    log_likelihood: dict[str, np.ndarray]
    replicated: dict[str, np.ndarray]
    one_step_ahead: dict[str, np.ndarray]


def evaluate(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    draws: Mapping[str, Any],
    key: Array,
) -> Evaluation:
    """Run the model with every draw's latent values and ask the laws of its observed sites.

    Where the hidden path can be integrated out (``path=``), it is: the terms are then log p(y_t | y_<t), and
    the replicates come with a new path. Otherwise they are conditional on the latent values of the draw.

    Args:
        model, args, kwargs: as fitted.
        draws: arrays with leading axes (chain, draw), by site.
        key: random key of the replicates.
    """
    kwargs = marginal_form(model, kwargs)
    first = next(iter(draws.values()))
    lead = first.shape[:2]

    def one(x):
        return evaluate_draw(model, args, kwargs, *x)

    keys = jax.random.split(key, lead[0] * lead[1])
    rows = {n: jax.ShapeDtypeStruct(v.shape[2:], v.dtype) for n, v in draws.items()}
    sizes = jax.eval_shape(one, (rows, keys[0]))
    most = len(keys) * max(sum(x.size for x in group.values()) for group in sizes[1:])
    lazily = any(not isinstance(v, np.ndarray | Array) for v in draws.values())
    limit = _MOST_BESIDE_DISK if lazily else _MOST
    if most > limit:
        warnings.warn(
            f"log_likelihood, posterior_predictive and predictions would hold up to {most:.1e} numbers each and are left "
            f"out of the fit ({limit:.2g} is the limit{' beside draws on disk' * lazily}): draw fewer samples to have "
            "them.",
            stacklevel=3,
        )
        return Evaluation(
            _in_pieces(lambda x: one(x)[0], draws, keys.reshape(lead), sizes[0].size), {}, {}, {}
        )
    size = sum(x.size for x in jax.tree.leaves(sizes))
    return Evaluation(*_in_pieces(one, draws, keys.reshape(lead), size))


def evaluate_draw(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Any],
    key: Array,
) -> tuple[Array, dict[str, Array], dict[str, Array], dict[str, Array]]:
    """What :class:`Evaluation` holds, of one draw; ``kwargs`` are those of the marginal form."""
    key_trace, key_replicate, key_ahead = jax.random.split(key, 3)
    trace = trace_model(model, args, kwargs, key=key_trace, values=values)
    terms = [jnp.sum(site_log_prob(site)) for site in trace.values() if site["type"] == "sample"]
    joint = sum(terms, jnp.zeros(()))
    pointwise: dict[str, Array] = {}
    replicated: dict[str, Array] = {}
    ahead: dict[str, Array] = {}
    for i, (name, site) in enumerate(observed_sites(trace).items()):
        law = series_law(site, "predictive_log_prob")
        pointwise[name] = site_log_prob(site) if law is None else law.predictive_log_prob(site["value"])
        replicated[name] = replicate(site, jax.random.fold_in(key_replicate, i))
        law = series_law(site, "sample_one_step_ahead")
        if law is not None:
            ahead[name] = law.sample_one_step_ahead(jax.random.fold_in(key_ahead, i), site["value"])
    return joint, pointwise, replicated, ahead


def _in_pieces(fn: Callable[[Any], Any], draws: Mapping[str, Any], keys: Array, size: int) -> Any:
    """``fn`` of every draw and its key, leading axes (chain, draw), with few of them on the device at a time.

    Args:
        size: numbers that it gives for one draw.
    """
    chains, length = keys.shape
    size += sum(int(np.prod(v.shape[2:])) for v in draws.values())
    piece = _PIECE // max(size, 1)
    if piece >= chains * length:
        flat = {n: jnp.asarray(v).reshape((-1, *v.shape[2:])) for n, v in draws.items()}
        found = in_batches(fn, (flat, keys.ravel()))
        return jax.tree.map(lambda x: np.asarray(x).reshape((*keys.shape, *x.shape[1:])), found)
    piece = max(min(piece, length), 1)
    piece -= piece % _BATCH if piece > _BATCH else 0
    run = jax.jit(lambda xs: _batched(fn, xs))
    whole: Any = None
    for chain in range(chains):
        for first in range(0, length, piece):
            # The last piece goes back over the one before: a shorter one would be compiled anew.
            part = slice(min(first, length - piece), min(first, length - piece) + piece)
            rows = run(({n: np.asarray(v[chain, part]) for n, v in draws.items()}, keys[chain, part]))
            if whole is None:
                whole = jax.tree.map(lambda x: np.empty((*keys.shape, *x.shape[1:]), x.dtype), rows)
            for to, row in zip(jax.tree.leaves(whole), jax.tree.leaves(rows), strict=True):
                to[chain, part] = np.asarray(row)
    return whole


def in_batches(fn: Callable[[Any], Any], xs: Any) -> Any:
    """``fn`` over the leading axis of every array in ``xs``, compiled, some entries side by side."""
    return jax.jit(lambda xs: _batched(fn, xs))(xs)


def _batched(fn: Callable[[Any], Any], xs: Any) -> Any:
    """The same, for use within a compiled program."""
    total = len(jax.tree.leaves(xs)[0])
    # A divisor: a remainder would be compiled as a second program.
    size = max(n for n in range(1, min(_BATCH, total) + 1) if total % n == 0)
    return jax.lax.map(fn, xs, batch_size=size)


def replicate(site: Site, key: Array) -> Array:
    """A new value for an observed site, of the shape of the old one (its law may have been broadcast to it)."""
    fn = _expanded_anew(site["fn"])
    shape = jnp.shape(site["value"])
    batch = jnp.broadcast_shapes(fn.batch_shape, shape[: len(shape) - fn.event_dim])
    return (fn if batch == fn.batch_shape else fn.expand(batch)).sample(key)


def _expanded_anew(fn: dist.Distribution) -> dist.Distribution:
    """The same law. NumPyro gives that of a site in a scan an axis for time, and leaves what an expanded law notes of
    its shape, and draws by, as it was."""
    if isinstance(fn, dist.Independent):
        return dist.Independent(_expanded_anew(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return dist.MaskedDistribution(_expanded_anew(fn.base_dist), fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        return dist.ExpandedDistribution(_expanded_anew(fn.base_dist), fn.batch_shape)
    return fn


def site_log_prob(site: Site) -> Array:
    """Log-density at a site, by entry of its batch, scaled as its plates ask."""
    log_prob = site["fn"].log_prob(site["value"])
    return log_prob if site["scale"] is None else site["scale"] * log_prob


def missing_entries(site: Site) -> np.ndarray | None:
    """Where an observed site holds no observation: booleans over its batch axes and, for a series, time."""
    value = np.asarray(site["value"])
    law = series_law(site, "predictive_log_prob")
    event_ndim = site["fn"].event_dim - pointwise_ndim(site)
    missing = None
    if np.issubdtype(value.dtype, np.floating):
        missing = np.isnan(value).any(tuple(range(value.ndim - event_ndim, value.ndim)))
    seen = getattr(law, "observed", None) if law is not None else masked_out(site)
    if seen is not None:
        shape = value.shape[: value.ndim - event_ndim]
        unseen = ~np.broadcast_to(np.asarray(seen), shape)
        missing = unseen if missing is None else missing | unseen
    return missing if missing is not None and missing.any() else None
