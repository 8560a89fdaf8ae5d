"""Kinds of stochasticity that lie over a world's laws, on both sides: the environment's and the likelihood's.

The kinds are those of STORI (Barsainyan et al. 2025, "Stochastic-environment taxonomy and benchmark for model-based
reinforcement learning", read from its code): actions that are not executed as meant, events that no law explains, laws
that change with time, states that are seen in part or in another guise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpyro.distributions as dist

from sojourn._arguments import is_list, must_be, whole_number
from sojourn.environments import Environment, State, Transitions, hooks
from sojourn.models._given import check_priors
from sojourn.models.laws._law import Law

__all__ = [
    "CyclicDrift",
    "Hidden",
    "RandomAction",
    "RandomEvent",
    "Represented",
    "StickyAction",
    "SuddenDrift",
]


class RandomAction:
    """Type 1: with some probability the executed action is a uniform draw from all of them, the one meant included.

    In the likelihood the executed action is summed out.

    Args:
        num_actions: how many actions there are.
        prior: of the probability, site ``"random_action"``.

    Example:
        >>> from sojourn.environments import Meadow
        >>> from sojourn.models.laws import RandomAction
        >>> RandomAction(6).hook(Meadow(), 0.3).num_actions
        6
    """

    site = "random_action"

    def __init__(self, num_actions: int, *, prior: dist.Distribution | None = None):
        check_priors(prior=prior)
        self.num_actions = _actions(type(self).__name__, num_actions)
        self.prior = dist.Beta(1.0, 9.0) if prior is None else prior

    def hook(self, environment: Environment, probability: float) -> Environment:
        """The environment with this stochasticity."""
        return hooks.random_action(environment, probability)


class StickyAction:
    """Type 1 as others define it: with some probability the action executed before is executed again.

    The likelihood is that of a hidden Markov model over the executed action. A life begins with the action meant.

    Args:
        num_actions: how many actions there are.
        prior: of the probability, site ``"sticky_action"``.

    Example:
        >>> from sojourn.models.laws import StickyAction
        >>> StickyAction(6).site
        'sticky_action'
    """

    site = "sticky_action"

    def __init__(self, num_actions: int, *, prior: dist.Distribution | None = None):
        check_priors(prior=prior)
        self.num_actions = _actions(type(self).__name__, num_actions)
        self.prior = dist.Beta(1.0, 9.0) if prior is None else prior

    def hook(self, environment: Environment, probability: float) -> Environment:
        """The environment with this stochasticity."""
        return hooks.sticky_action(environment, probability)


class RandomEvent:
    """Type 2.1: an event that overrides whatever the laws have done to some attributes.

    As one law among the others it would compete with them, and its rate would come out too high.

    Args:
        event: a law; where its condition holds the event can happen.
        prior: of its probability, site ``"<event>.rate"``.

    Example:
        >>> from sojourn.models.laws import RandomEvent, anywhere, law, when
        >>> @law
        ... def gust(s, a):
        ...     return when(True, pos=anywhere())
        >>> RandomEvent(gust).site
        'gust.rate'
    """

    def __init__(self, event: Law, *, prior: dist.Distribution | None = None):
        if not isinstance(event, Law) or event.each is not None or event.parameters or event.after:
            raise ValueError(
                "RandomEvent: `event` must be a law of the world as a whole (no `each`), without parameters and `after`."
            )
        check_priors(prior=prior)
        self.event = event
        self.site = f"{event.name}.rate"
        self.prior = dist.Beta(1.0, 20.0) if prior is None else prior

    def hook(
        self,
        environment: Environment,
        probability: float,
        event: Callable[[np.random.Generator, State, State], State],
    ) -> Environment:
        """The environment with ``event(rng, state, next_state)`` happening with this probability."""
        return hooks.random_event(environment, event, probability)


class SuddenDrift:
    """Type 2.2: from some step on laws have other rates; the step is summed out.

    Args:
        laws: names of the laws that drift, by default all.

    Example:
        >>> from sojourn.models.laws import SuddenDrift
        >>> SuddenDrift(["bite"]).laws
        ['bite']
    """

    def __init__(self, laws: Sequence[str] | None = None):
        self.laws = _drifting(laws)

    def hook(self, environment: Environment, other: Environment, at: int) -> Environment:
        """The environment that becomes ``other`` at step ``at``, counted from 1."""
        return hooks.sudden_drift(environment, other, at)


class CyclicDrift:
    """Type 2.2: two sets of rates take turns, each for ``every`` steps.

    Args:
        every: steps of one turn; if several are given, the number is summed out.
        laws: names of the laws that drift, by default all.

    Example:
        >>> from sojourn.models.laws import CyclicDrift
        >>> CyclicDrift(range(100, 400)).every[0]
        100
    """

    def __init__(self, every: int | Sequence[int], laws: Sequence[str] | None = None):
        said: Any = every
        given = list(said) if is_list(said) else [said]
        if not given:
            raise ValueError("CyclicDrift: `every` is a number of steps, at least 1.")
        self.every = [whole_number(e, "every") for e in given]
        self.laws = _drifting(laws)

    def hook(self, environment: Environment, other: Environment, every: int) -> Environment:
        """The environment that takes turns with ``other``."""
        return hooks.cyclic_drift(environment, other, every)


class Hidden:
    """Type 3.2: attributes that were not seen, marked by -1.

    :meth:`World.route` leaves out what depends on them and sums out next values not seen, so that the likelihood needs
    no more; for hidden values that have to be inferred see :meth:`World.path`.

    Example:
        >>> from sojourn.environments import Meadow, record
        >>> from sojourn.models.laws import Hidden
        >>> seen = Hidden().hook(record(Meadow(), 100), 0.5, seed=1)
        >>> bool((seen.states["energy"] == -1).any())
        True
    """

    def hook(self, transitions: Transitions, probability: float, **options: Any) -> Transitions:
        """Recorded transitions with attributes hidden (:func:`sojourn.environments.hooks.hide`)."""
        return hooks.hide(transitions, probability, **options)


class Represented:
    """Type 3.1: states that come in another guise, which ``decode`` takes back.

    Args:
        decode: of one state, to the state that the laws are about.

    Example:
        >>> from sojourn.models.laws import Represented
        >>> Represented(lambda state: {"energy": 9 - state["fatigue"]}).decode({"fatigue": 2})
        {'energy': 7}
    """

    def __init__(self, decode: Callable[[Mapping[str, Any]], Mapping[str, Any]]):
        must_be(callable(decode), "decode", "a function of one state", decode)
        self.decode = decode

    def hook(self, transitions: Transitions, encode: Callable[[Any], Any]) -> Transitions:
        """Recorded transitions with every state encoded (:func:`sojourn.environments.hooks.represented`)."""
        return hooks.represented(transitions, encode)


def _drifting(laws: Any) -> list[str] | None:
    if laws is None:
        return None
    names = list(laws) if is_list(laws) else []
    must_be(
        len(names) > 0 and all(isinstance(n, str) for n in names), "laws", "a list of names of laws", laws
    )
    return names


def _actions(name: str, num_actions: int) -> int:
    if isinstance(num_actions, bool) or not isinstance(num_actions, int | np.integer) or num_actions < 2:
        raise ValueError(f"{name}: `num_actions` is a whole number of at least 2, not {num_actions!r}.")
    return int(num_actions)
