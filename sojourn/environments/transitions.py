"""Transitions of an environment: what was, what was done, what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sojourn._arguments import is_list, must_be, whole_number

__all__ = ["Environment", "Policy", "State", "Transitions", "record", "stack"]

State = Mapping[str, Any]
"""Named integer (or boolean, or float) arrays; a class of objects is a mapping of arrays, one row a slot."""

Policy = Callable[[np.random.Generator, State], int]
"""``policy(rng, state)`` is the number of the action to take."""


class Environment(Protocol):
    """A stochastic world as two pure functions: equal generators and states give equal next states."""

    num_actions: int

    def reset(self, rng: np.random.Generator) -> State:
        """A first state."""
        ...

    def step(self, rng: np.random.Generator, state: State, action: int) -> State:
        """The state after ``action``; ``state`` is left as it is."""
        ...


class Transitions(NamedTuple):
    """Transitions stacked along their first axis: every array of ``states`` and ``next_states`` is ``(T, ...)``.

    They unpack into the arguments of :meth:`sojourn.models.laws.World.route`. Only consecutive transitions of one
    life join up: ``next_states`` of one is ``states`` of the next unless the world was reset in between.
    """

    states: State
    actions: np.ndarray
    next_states: State

    @property
    def num_transitions(self) -> int:
        """How many there are (``len`` is that of the tuple)."""
        return len(self.actions)

    def take(self, which: Any) -> Transitions:
        """Those that ``which`` (a slice, a mask or positions) selects."""
        return Transitions(_map(self.states, which), self.actions[which], _map(self.next_states, which))


def _map(state: State, which: Any) -> dict[str, Any]:
    return {
        name: _map(value, which) if isinstance(value, Mapping) else np.asarray(value)[which]
        for name, value in state.items()
    }


def check_environment(environment: Any, name: str = "environment") -> None:
    """Refuse what is no world."""
    whole = all(hasattr(environment, method) for method in ("num_actions", "reset", "step"))
    must_be(whole, name, "a world, with `num_actions`, `reset` and `step`", environment)


def check_transitions(transitions: Any) -> None:
    """Refuse what was not recorded."""
    whole = hasattr(transitions, "states") and hasattr(transitions, "next_states")
    must_be(whole, "transitions", "Transitions, as `record` makes them", transitions)


def stack(states: Sequence[State]) -> dict[str, Any]:
    """States one after another as one state of arrays with a leading axis.

    Example:
        >>> from sojourn.environments import stack
        >>> stack([{"health": 3, "cow": {"pos": [[0, 1]]}}, {"health": 2, "cow": {"pos": [[0, 2]]}}])["cow"]["pos"].shape
        (2, 1, 2)
    """
    must_be(is_list(states) and len(states) > 0, "states", "a list of states, at least one", states)
    for state in states:
        must_be(isinstance(state, Mapping), "states", "a list of mappings from names to arrays", state)
        if set(state) != set(states[0]):
            raise ValueError(f"The states to stack differ: {sorted(states[0])} and {sorted(state)}.")
    first = states[0]
    return {
        name: stack([state[name] for state in states])
        if isinstance(first[name], Mapping)
        else np.stack([np.asarray(state[name]) for state in states])
        for name in first
    }


def record(
    environment: Environment,
    num_transitions: int,
    *,
    policy: Policy | None = None,
    horizon: int = 40,
    seed: int = 0,
) -> Transitions:
    """Transitions met by ``policy``, the world reset after every ``horizon`` of them.

    Args:
        environment: anything with ``num_actions``, ``reset`` and ``step``.
        num_transitions: how many to record.
        policy: picks an action; by default all are equally likely.
        horizon: steps of one life.
        seed: of NumPy's generator. Equal seeds give equal transitions.

    Example:
        >>> from sojourn.environments import Meadow, record
        >>> seen = record(Meadow(), 100, seed=1)
        >>> seen.num_transitions, seen.states["beast"]["pos"].shape
        (100, (100, 2, 2))
    """
    check_environment(environment)
    num_transitions = whole_number(num_transitions, "num_transitions")
    horizon = whole_number(horizon, "horizon")
    must_be(policy is None or callable(policy), "policy", "a function of a generator and a state", policy)
    rng = np.random.default_rng(whole_number(seed, "seed", 0))
    states, actions, next_states = [], [], []
    state = environment.reset(rng)
    for step in range(num_transitions):
        action = int(rng.integers(environment.num_actions)) if policy is None else int(policy(rng, state))
        after = environment.step(rng, state, action)
        states.append(state)
        actions.append(action)
        next_states.append(after)
        state = environment.reset(rng) if (step + 1) % horizon == 0 else after
    return Transitions(stack(states), np.asarray(actions), stack(next_states))
