"""Observations as normal ones: the working responses of iteratively reweighted least squares."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import biject_to

from sojourn._contract import Site
from sojourn.inference._path_laws import Placed, bare

__all__ = ["Working", "observed_entries", "working_parts"]


class Working(NamedTuple):
    """Working responses of the observations of a step, as in iteratively reweighted least squares.

    Every parameter of every observed law counts, on the whole line: a mean, the logarithm of a rate.
    """

    parameter: Array
    """``(systems, p)``."""
    score: Array
    """``(systems, p)`` derivative of the log-density by the parameter."""
    information: Array
    """``(systems, p)``: minus the second derivative, where it is positive."""


def observed_entries(fn: Any, shape: tuple[int, ...]) -> Array:
    """Booleans of this shape: which entries no mask on the law hides."""
    there = jnp.ones(shape, bool)
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            mask = jnp.asarray(fn._mask)
            there = there & jnp.broadcast_to(mask.reshape((*mask.shape, *(1,) * fn.event_dim)), shape)
        fn = fn.base_dist
    return there


def working_parts(
    site: Site, where: Placed, name: str, wanted: frozenset[tuple[str, str]] | None
) -> dict[str, tuple[Array, Array, Array]]:
    """Parameter, score and information of an observed law, by the parameter's name."""
    base, _ = bare(site["fn"])
    value = jnp.broadcast_to(site["value"], where.shape)
    there = observed_entries(site["fn"], where.shape)

    def asked(parameter):
        return wanted is None or (name, parameter) in wanted

    def packed(parameter, score, information):
        score, information = jnp.where(there, score, 0.0), jnp.where(there, information, 0.0)
        return tuple(where.pack(jnp.broadcast_to(x, where.shape)) for x in (parameter, score, information))

    if isinstance(base, dist.MultivariateNormal):

        def whiten(x):
            x = jnp.broadcast_to(x, where.shape)
            root = jnp.broadcast_to(base.scale_tril, (*where.shape, where.shape[-1]))
            return jax.scipy.linalg.solve_triangular(root, x[..., None], lower=True)[..., 0]

        mean = whiten(base.loc)
        return {"loc": packed(mean, whiten(value) - mean, 1.0)} if asked("loc") else {}
    if isinstance(base, dist.Normal):
        away = (value - base.loc) / base.scale
        found = {}
        if asked("loc"):
            found["loc"] = packed(base.loc, away / base.scale, 1.0 / base.scale**2)
        if asked("scale"):
            found["scale"] = packed(jnp.log(base.scale), away**2 - 1.0, 2.0 * away**2)
        return found
    if isinstance(base, dist.Poisson):
        return {"rate": packed(jnp.log(base.rate), value - base.rate, base.rate)} if asked("rate") else {}
    if base.event_dim:
        return {}
    found = {}
    for parameter, constraint in base.arg_constraints.items():
        given = getattr(base, parameter, None)
        if constraint.is_discrete or constraint.event_dim or given is None or not asked(parameter):
            continue
        if not jnp.issubdtype(jnp.result_type(given), jnp.floating):
            continue
        transform = biject_to(constraint)
        free = transform.inv(jnp.broadcast_to(given, where.shape))

        def log_prob(free, parameter=parameter, transform=transform):
            law = copy.copy(base)
            setattr(law, parameter, transform(free))
            law._batch_shape = where.shape
            return jnp.where(there, law.log_prob(value), 0.0).sum()

        score, curvature = jax.jvp(jax.grad(log_prob), (free,), (jnp.ones_like(free),))
        found[parameter] = packed(free, score, jnp.maximum(-curvature, 0.0))
    return found
