"""Whether a log density changes as its gradient says: what every sampler that follows gradients takes for granted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import potential_energy

from sojourn._contract import Site
from sojourn.inference._initial import compiled_once

__all__ = ["check_gradient", "check_model_gradient"]

Position = dict[str, Any]

_STEPS = {"floor", "ceil", "round", "argmax", "argmin", "stop_gradient"}
_KEEPS_MAXIMUM = {
    "broadcast_in_dim",
    "convert_element_type",
    "expand_dims",
    "is_finite",
    "max",
    "reshape",
    "select_n",
    "squeeze",
}
_SCALES = (1.0, 0.25, 0.06, 0.015)
_COARSE, _FINE = 6, 12


def check_model_gradient(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    trace: Mapping[str, Site],
    engine: str,
    key: Array,
) -> None:
    """:func:`check_gradient` of a model at the values in ``trace``, on the unconstrained scale.

    Raises:
        ValueError: as :func:`check_gradient`.
    """
    latent = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    if not latent or any(site["fn"].support.is_discrete for site in latent.values()):
        return
    position = {n: biject_to(s["fn"].support).inv(s["value"]) for n, s in latent.items()}
    seeded = handlers.seed(model, key)
    check_gradient(lambda z: potential_energy(seeded, args, dict(kwargs), z), position, engine)


def check_gradient(potential: Callable[[Position], Array], position: Position, engine: str) -> None:
    """Refuse a potential without a gradient, or whose gradient is not that of its values.

    ``stop_gradient``, rounding or an argmax inside a density leave a gradient that belongs to another density. Only
    where the traced potential holds such an operation (the maximum that ``logsumexp`` takes out does not count) are
    its values compared with its gradient: U(z + d) - U(z) against the integral of grad U along d, site by site, over
    the longest of several steps that Gauss-Legendre rules of two orders agree upon.

    Raises:
        ValueError: naming the site.

    Example:
        >>> import jax.numpy as jnp
        >>> check_gradient(lambda z: jnp.sum(z["x"] ** 2), {"x": jnp.ones(3)}, "nuts")
        >>> check_gradient(lambda z: z["x"] ** 2 + jnp.floor(3 * z["x"]), {"x": jnp.array(0.1)}, "nuts")
        Traceback (most recent call last):
        ...
        ValueError: Along site 'x' the log density changes by 2.2 where its gradient says -0.8: ...
    """
    try:
        traced = jax.make_jaxpr(potential)(position)
        jax.eval_shape(jax.grad(potential), position)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"The log density has no gradient, and {engine} follows gradients: {reason} Write that part in "
            "operations that JAX differentiates, or use an engine without gradients (engine='particle_gibbs' for the "
            "latents of a scan)."
        ) from error
    if not any(_suspicious(traced.jaxpr)):
        return
    with compiled_once():
        value, changes = jax.tree.map(
            np.asarray, jax.jit(lambda z: (potential(z), _changes(potential, z)))(position)
        )
    rounding = 100.0 * np.finfo(value.dtype).eps * (1.0 + abs(value))
    for name, (actual, fine, coarse) in changes.items():
        _compare(name, actual, fine, coarse, rounding, engine)


def _suspicious(jaxpr: Any) -> Iterator[bool]:
    """For every operation whether its derivative may differ from what its values do."""
    made_by = {variable: eqn for eqn in jaxpr.eqns for variable in eqn.outvars}

    def is_maximum(variable: Any) -> bool:
        eqn = made_by.get(variable) if not isinstance(variable, core.Literal) else None
        if eqn is None:
            return isinstance(variable, core.Literal)
        name = eqn.primitive.name
        return name == "reduce_max" or (name in _KEEPS_MAXIMUM and all(map(is_maximum, eqn.invars)))

    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "stop_gradient":
            yield not all(map(is_maximum, eqn.invars))
        elif name == "convert_element_type":
            old, new = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
            yield jnp.issubdtype(old, jnp.floating) and not jnp.issubdtype(new, jnp.inexact)
        else:
            yield name in _STEPS
        for parameter in jax.tree.leaves(
            eqn.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _suspicious(inner)


def _changes(
    potential: Callable[[Position], Array], position: Position
) -> dict[str, tuple[Array, Array, Array]]:
    """By site and step length: U(z + d) - U(z), and the integral of the gradient by a fine and by a coarse rule."""
    flat, unravel = ravel_pytree(position)
    names = sorted(position)  # the order of a flattened dictionary
    sizes = np.array([np.size(position[name]) for name in names])
    site_of = np.repeat(np.arange(len(sizes)), sizes)
    signs = [
        jax.random.rademacher(jax.random.key(n), (size,), flat.dtype) / np.sqrt(max(size, 1))
        for n, size in enumerate(sizes)
    ]
    directions = jnp.concatenate(signs)
    rules = [np.polynomial.legendre.leggauss(order) for order in (_FINE, _COARSE)]
    fractions = np.concatenate([[0.0, 1.0], *(0.5 * (nodes + 1.0) for nodes, _ in rules)])

    # All points of all sites through one program: the density and its gradient are compiled once.
    def at(point: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        site, scale, fraction = point
        step = jnp.where(site_of == site, scale * directions, 0.0)
        value, slope = jax.value_and_grad(lambda z: potential(unravel(z)))(flat + fraction * step)
        return value, slope @ step

    grid = np.meshgrid(np.arange(len(sizes)), _SCALES, fractions, indexing="ij")
    points = tuple(jnp.asarray(g.ravel(), int if n == 0 else flat.dtype) for n, g in enumerate(grid))
    value, slope = (x.reshape(grid[0].shape) for x in jax.lax.map(at, points))
    fine = 0.5 * slope[..., 2 : 2 + _FINE] @ jnp.asarray(rules[0][1], flat.dtype)
    coarse = 0.5 * slope[..., 2 + _FINE :] @ jnp.asarray(rules[1][1], flat.dtype)
    change = value[..., 1] - value[..., 0]
    return {name: (change[n], fine[n], coarse[n]) for n, name in enumerate(names)}


def _compare(
    name: str, actual: np.ndarray, fine: np.ndarray, coarse: np.ndarray, rounding: float, engine: str
) -> None:
    for change, integral, check in zip(actual, fine, coarse, strict=True):
        size = max(abs(change), abs(integral))
        if not np.isfinite([change, integral, check]).all() or abs(integral - check) > 0.02 * size:
            continue
        if abs(change - integral) > 0.1 * size + rounding:
            raise ValueError(
                f"Along site '{name}' the log density changes by {-change:.3g} where its gradient says "
                f"{-integral:.3g}: something in the model keeps the gradient back (stop_gradient, rounding, an "
                f"argmax), and {engine} would sample another law. Take it out, or use an engine without gradients."
            )
        return
