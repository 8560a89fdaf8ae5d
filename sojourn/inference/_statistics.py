"""Statistics of a sampler, under the names that ArviZ gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel

__all__ = ["named_statistics", "statistic_fields"]

_HMC_FIELDS = ("potential_energy", "energy", "num_steps", "accept_prob", "adapt_state.step_size", "diverging")
_ARVIZ_NAMES = {
    "potential_energy": "lp",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
}


def statistic_fields(kernel: MCMCKernel) -> tuple[str, ...]:
    """Fields of a kernel's state that are statistics; known for sure once it has seen the model."""
    return _HMC_FIELDS if isinstance(kernel, HMC) else tuple(getattr(kernel, "stat_fields", ()))


def named_statistics(kernel: MCMCKernel, found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Values of such fields by ArviZ's names: log density in place of potential energy, and the depth of trees."""
    stats = {_ARVIZ_NAMES.get(n, n): np.asarray(v) for n, v in found.items()}
    if "lp" in stats:
        stats["lp"] = -stats["lp"]
    if "n_steps" in stats and isinstance(kernel, HMC):
        stats["tree_depth"] = np.floor(np.log2(np.maximum(stats["n_steps"], 1))).astype(int) + 1
        depth = getattr(kernel, "_max_tree_depth", None)
        if depth is not None:
            deepest = depth[1] if isinstance(depth, tuple) else depth
            stats["reached_max_treedepth"] = stats["n_steps"] >= 2**deepest - 1
    return stats
