"""Statistics of the inner kernel of a Gibbs composite, in reach of ``MCMC(...).run(extra_fields=...)``."""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

from jax import Array
from numpyro.infer.gibbs import GibbsState

__all__ = ["HMC_STATS", "GibbsStateWithStats"]

HMC_STATS = ("diverging", "accept_prob", "num_steps")
"""What the composite passes on from the HMC or NUTS blocks that come after its first."""


class GibbsStateWithStats(GibbsState):
    """State of a composite whose blocks after the first are HMC or NUTS, one or two of them."""

    __slots__ = ()

    @property
    def _inner(self) -> tuple[Any, ...]:
        return self.block_states[1:]

    @property
    def diverging(self) -> Array:
        return reduce(operator.or_, (state.diverging for state in self._inner))

    @property
    def accept_prob(self) -> Array:
        return reduce(operator.add, (state.accept_prob for state in self._inner)) / len(self._inner)

    @property
    def num_steps(self) -> Array:
        return reduce(operator.add, (state.num_steps for state in self._inner))
