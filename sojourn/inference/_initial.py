"""Where chains and guides start."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    hint = site["infer"]["init"]
    numeric = jnp if isinstance(hint, jax.Array) else np
    hint = numeric.broadcast_to(hint, site["fn"].shape())
    key = site["kwargs"].get("rng_key")
    if key is None:
        return jnp.asarray(hint)

    @jax.jit  # one compilation in place of one for each operation of the transform
    def near(value, key):
        position = transform.inv(value)
        return transform(position + jax.random.uniform(key, position.shape, position.dtype, -radius, radius))

    return near(jnp.asarray(hint, float), key)
