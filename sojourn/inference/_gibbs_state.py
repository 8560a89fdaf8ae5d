"""Statistics of the inner kernel of a Gibbs composite, in reach of ``MCMC(...).run(extra_fields=...)``."""

from __future__ import annotations

from jax import Array
from numpyro.infer.gibbs import GibbsState

__all__ = ["HMC_STATS", "GibbsStateWithStats"]

HMC_STATS = ("diverging", "accept_prob", "num_steps")
"""What the composite passes on from an HMC or NUTS block in the last place."""


class GibbsStateWithStats(GibbsState):
    """State of a composite whose last block is HMC or NUTS."""

    __slots__ = ()

    @property
    def diverging(self) -> Array:
        return self.block_states[-1].diverging

    @property
    def accept_prob(self) -> Array:
        return self.block_states[-1].accept_prob

    @property
    def num_steps(self) -> Array:
        return self.block_states[-1].num_steps
