"""Where chains and guides start."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import biject_to
from numpyro.infer import init_to_uniform

__all__ = ["init_to_hint"]


def init_to_hint(site: dict[str, Any] | None = None, *, radius: float = 0.5) -> Any:
    """Initialisation strategy that follows a model's own hints.

    A site with ``infer={"init": value}`` starts near that value: at a uniform distance of at most ``radius``
    on the unconstrained scale, a different one for each chain. Any other site starts as under NumPyro's
    ``init_to_uniform``.
    """
    if site is None:
        return partial(init_to_hint, radius=radius)
    if site["type"] != "sample" or site["is_observed"] or site["infer"].get("init") is None:
        return init_to_uniform(site, radius=2.0)
    transform = biject_to(site["fn"].support)
    value = jnp.broadcast_to(site["infer"]["init"], site["fn"].shape())
    position = transform.inv(value)
    key = site["kwargs"].get("rng_key")
    if key is None:
        return value
    shift = jax.random.uniform(key, position.shape, position.dtype, -radius, radius)
    return transform(position + shift)
