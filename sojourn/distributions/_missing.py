"""Missing observations: one convention for every distribution of a series.

NaN in the value, or false in a mask, means *not observed*: the entry contributes nothing to the density and
nothing to its gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

__all__ = ["fill_missing", "is_missing", "log_prob_observed", "only_observed", "series_support"]


def is_missing(value: ArrayLike, event_ndim: int = 0) -> Array | None:
    """Where an event of ``value`` holds a NaN; ``None`` when it is known that none does."""
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return None
    if not isinstance(value, jax.core.Tracer) and not np.isnan(np.asarray(value)).any():
        return None
    return jnp.isnan(value).any(tuple(range(value.ndim - event_ndim, value.ndim)))


def log_prob_observed(
    fn: dist.Distribution, value: ArrayLike, mask: Array | None = None, *, lead_axis: bool = False
) -> Array:
    """``fn.log_prob(value)``, zero where the value is missing, with a gradient that is never NaN.

    Args:
        fn: distribution of one observation.
        value: ``(..., T) + fn.event_shape``.
        mask: ``(..., T)``, true where observed.
        lead_axis: insert an axis before the event, to broadcast the value over a last batch axis of ``fn``
            (the states).
    """
    value = jnp.asarray(value)
    event_ndim = len(fn.event_shape)
    if lead_axis:
        value = jnp.expand_dims(value, value.ndim - event_ndim)
        mask = None if mask is None else mask[..., None]
    while isinstance(fn, dist.ExpandedDistribution):  # the same density, once the result is broadcast
        fn = fn.base_dist
    if isinstance(fn, dist.Independent):
        inner = fn.reinterpreted_batch_ndims
        inner_mask = None if mask is None else mask.reshape((*mask.shape, *(1,) * inner))
        each = log_prob_observed(fn.base_dist, value, inner_mask)
        return each.sum(tuple(range(each.ndim - inner, each.ndim)))
    missing = is_missing(value, event_ndim)
    if mask is not None:
        missing = ~mask if missing is None else missing | ~mask
    if missing is None:
        return fn.log_prob(_as_support(fn, value))
    return jnp.where(missing, 0.0, fn.log_prob(fill_missing(fn, value, missing)))


def only_observed(fn: dist.Distribution, value: Array, mask: Array) -> tuple[dist.Distribution, Array]:
    """``fn`` and ``value`` for a sample site, such that its density is :func:`log_prob_observed`."""
    while isinstance(fn, dist.ExpandedDistribution) and isinstance(fn.base_dist, dist.Independent):
        fn = fn.base_dist
    if isinstance(fn, dist.Independent):
        inner = fn.reinterpreted_batch_ndims
        base, value = only_observed(fn.base_dist, value, mask.reshape((*mask.shape, *(1,) * inner)))
        return base.to_event(inner), value
    missing = is_missing(value, len(fn.event_shape))
    missing = ~mask if missing is None else missing | ~mask
    return fn.mask(~missing), fill_missing(fn, value, missing)


def fill_missing(fn: dist.Distribution, value: Array, missing: Array) -> Array:
    """``value`` with something admissible where it is missing.

    The distribution must see an admissible value, or the gradient is NaN even where it is discarded.
    """
    shape = jnp.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape)
    gap = missing.reshape((*missing.shape, *(1,) * len(fn.event_shape)))
    filled = jnp.where(gap, fn.support.feasible_like(jnp.broadcast_to(value, shape)), value)
    return _as_support(fn, filled)


def _as_support(fn: dist.Distribution, value: Array) -> Array:
    """Counts and categories that had to be floating point to hold a NaN become integers again."""
    if fn.support.is_discrete and jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype(int)
    return value


def series_support(emission: dist.Distribution | None, observed: Array | None) -> constraints.Constraint:
    """Support of a series of observations of ``emission`` (batched over states).

    ``None`` as emission (its log-densities were worked out elsewhere) admits any vector. NaN, and anything at
    a step that ``observed`` ``(..., T)`` declares missing, is admitted.
    """
    if emission is None:
        return _Series(constraints.real, 0, jnp.zeros(1, bool))
    return _Series(emission.support, len(emission.event_shape), observed)


class _Series(constraints.Constraint):
    """Every step admissible in at least one state, or missing."""

    def __init__(self, base: constraints.Constraint, event_ndim: int, observed: Array | None):
        self.base = base
        self.observed = observed
        self.event_dim = event_ndim + 1
        self.is_discrete = base.is_discrete

    def __call__(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        event_ndim = self.event_dim - 1
        fits = self.base(jnp.expand_dims(x, x.ndim - event_ndim)).any(-1)
        missing = is_missing(x, event_ndim)
        if missing is not None:
            fits = fits | missing
        if self.observed is not None:
            fits = fits | ~self.observed
        return fits.all(-1)

    def feasible_like(self, prototype: Array) -> Array:
        return self.base.feasible_like(prototype)

    def eq(self, other: object, static: bool = False) -> bool:
        return (
            isinstance(other, _Series)
            and self.event_dim == other.event_dim
            and self.observed is other.observed
            and self.base == other.base
        )

    def tree_flatten(self):
        fields = ("base", "observed")
        aux = {"event_dim": self.event_dim, "is_discrete": self.is_discrete}
        return (self.base, self.observed), (fields, aux)
