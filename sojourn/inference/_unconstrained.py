"""Latent sites on the unconstrained scale, under NumPyro's ``biject_to(support)``."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import biject_to
from numpyro.infer.util import helpful_support_errors

from sojourn._contract import Site

__all__ = ["constrained", "unconstrained_size"]


def constrained(values: Mapping[str, Array], site: Site) -> Array | None:
    """The value at a latent site whose unconstrained one is given, by the support that it has in this run."""
    if site["type"] != "sample" or site["name"] not in values:
        return None
    with helpful_support_errors(site):
        transform = biject_to(site["fn"].support)
    value = values[site["name"]]
    now = site["infer"].get("_scan_current_index")  # in a scan: this step's part of the series
    own = len(site["fn"].shape()) - (transform.codomain.event_dim - transform.domain.event_dim)
    if now is not None and jnp.ndim(value) > own:
        value = value[now]
    return transform(value)


def unconstrained_size(site: Site) -> int:
    return int(np.prod(biject_to(site["fn"].support).inverse_shape(np.shape(site["value"])), dtype=int))
