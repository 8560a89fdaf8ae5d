"""Where chains and guides start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.infer.util
from numpyro.distributions import biject_to
from numpyro.infer import init_to_uniform

__all__ = ["compiled_once", "compiled_start", "init_to_hint"]


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


@contextmanager
def compiled_once() -> Iterator[None]:
    """Within this context programs are compiled fast and run slowly: right for those that run a single time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextmanager
def compiled_start() -> Iterator[None]:
    """Within this context NumPyro's search for a start of finite density is one compiled program.

    As it stands it runs the model and its gradient operation by operation, and each operation is compiled by itself:
    a hundred small programs where one does.
    """
    search = numpyro.infer.util.find_valid_initial_params

    def compiled(rng_key, model, *, prototype_params=None, **options):
        run = jax.jit(lambda key, params: search(key, model, prototype_params=params, **options))
        with compiled_once():
            return run(rng_key, prototype_params)

    with patch.object(numpyro.infer.util, "find_valid_initial_params", compiled):
        yield
