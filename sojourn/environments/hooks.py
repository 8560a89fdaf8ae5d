"""One kind of stochasticity after another, added to any environment or to what was recorded of it.

The kinds are those of STORI (Barsainyan, Lim & Liu 2025, arXiv:2509.01793):

====== ================================================ ============================================
type   what is uncertain                                here
====== ================================================ ============================================
1      the action: another may be executed              :func:`random_action`, :func:`sticky_action`
2.1    the world: an event that no action causes        :func:`random_event`
2.2    the world: its law changes with time             :func:`sudden_drift`, :func:`cyclic_drift`
3.1    the observation: another representation          :func:`represented`
3.2    the observation: parts are missing               :func:`hide`
====== ================================================ ============================================

Types 1 and 2 wrap an :class:`Environment` and are environments again, so they compose: the outermost hook
acts first. Type 3 leaves the world as it is and recodes transitions after :func:`record`, because a step
needs the true state.

What a hook has to remember is part of the state, so that ``step`` stays a pure function: ``executed``, the
action the world really received (-1 at the start of a life), and ``clock``, the steps made so far. Both are
recorded with the other attributes; a world that is to be learnt without them leaves them out of its space. A
policy that should not know them must not read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from sojourn._arguments import is_list, must_be, whole_number
from sojourn.environments.transitions import (
    Environment,
    State,
    Transitions,
    check_environment,
    check_transitions,
    stack,
)

__all__ = [
    "cyclic_drift",
    "hide",
    "random_action",
    "random_event",
    "represented",
    "sticky_action",
    "sudden_drift",
]

Event = Callable[[np.random.Generator, State, State], State]
"""``event(rng, state, next_state)`` returns the attributes of ``next_state`` that it sets, or all of it."""

_NONE = -1  # no action executed yet; a hidden attribute


class _Hook:
    """An environment around another. ``memory`` holds what it and those inside add to a first state."""

    def __init__(self, environment: Environment, **memory: int) -> None:
        check_environment(environment)
        self.environment = environment
        self.num_actions = environment.num_actions
        self.memory: dict[str, int] = {**_memory(environment), **memory}

    def reset(self, rng: np.random.Generator) -> State:
        return {**self.environment.reset(rng), **self.memory}

    def step(self, rng: np.random.Generator, state: State, action: int) -> State:
        return self._pass_on(self.environment, rng, state, action)

    def _recall(self, state: State, name: str) -> int:
        if name not in state:
            raise ValueError(
                f"The state has no {name!r}: begin with a state from reset of this same environment."
            )
        return int(state[name])

    def _pass_on(
        self, environment: Environment, rng: np.random.Generator, state: State, action: int
    ) -> State:
        """The next state by ``environment``, with the same entries whether or not it knows of the memory."""
        kept = {name: self._recall(state, name) for name in self.memory}
        after = {**kept, **environment.step(rng, state, action)}
        # what is executed is what the innermost hook hands to the world itself
        if "executed" in kept and "executed" not in _memory(environment):
            after["executed"] = int(action)
        return after


def _memory(environment: Environment) -> dict[str, int]:
    return environment.memory if isinstance(environment, _Hook) else {}


class _RandomAction(_Hook):
    def __init__(self, environment: Environment, probability: float) -> None:
        super().__init__(environment, executed=_NONE)
        self.probability = _checked(probability, "random_action")

    def step(self, rng: np.random.Generator, state: State, action: int) -> State:
        if rng.random() < self.probability:
            action = int(rng.integers(self.num_actions))
        return self._pass_on(self.environment, rng, state, action)


class _StickyAction(_Hook):
    def __init__(self, environment: Environment, probability: float) -> None:
        super().__init__(environment, executed=_NONE)
        self.probability = _checked(probability, "sticky_action")

    def step(self, rng: np.random.Generator, state: State, action: int) -> State:
        previous = self._recall(state, "executed")
        if rng.random() < self.probability and previous != _NONE:
            action = previous
        return self._pass_on(self.environment, rng, state, action)


class _RandomEvent(_Hook):
    def __init__(self, environment: Environment, event: Event, probability: float) -> None:
        super().__init__(environment)
        must_be(callable(event), "event", "a function of a generator, a state and the next state", event)
        self.event = event
        self.probability = _checked(probability, "random_event")

    def step(self, rng: np.random.Generator, state: State, action: int) -> State:
        after = super().step(rng, state, action)
        return {**after, **self.event(rng, state, after)} if rng.random() < self.probability else after


class _Drift(_Hook):
    def __init__(self, concepts: tuple[Environment, Environment], which: Callable[[int], int]) -> None:
        first, second = concepts
        check_environment(first)
        check_environment(second, "other")
        if first.num_actions != second.num_actions:
            raise ValueError(
                f"The first concept has {first.num_actions} actions and the second {second.num_actions}: "
                "a drift changes the law of a world, not its actions."
            )
        super().__init__(first, **{**_memory(second), "clock": 0})
        self._concepts = concepts
        self._which = which
        # the one impurity: reset is not told the state that it follows, so the clock of a run is kept here,
        # beside the generator that drives it
        self._run: np.random.Generator | None = None
        self._clock = 0

    def reset(self, rng: np.random.Generator) -> State:
        if rng is not self._run:
            self._run, self._clock = rng, 0
        return {**super().reset(rng), "clock": self._clock}

    def step(self, rng: np.random.Generator, state: State, action: int) -> State:
        clock = self._recall(state, "clock") + 1
        after = {**self._pass_on(self._concepts[self._which(clock)], rng, state, action), "clock": clock}
        if rng is self._run:
            self._clock = clock
        return after


def random_action(environment: Environment, probability: float) -> Environment:
    """Type 1: with ``probability`` an action drawn uniformly, perhaps the intended one, is executed instead.

    So P(executed = intended) = 1 - p + p / num_actions. The action executed is ``executed`` of the next
    state.

    Args:
        environment: the world to wrap.
        probability: p, from 0 to 1.

    Raises:
        ValueError: if ``probability`` is not one.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.hooks import random_action
        >>> from sojourn.environments.meadow import Meadow
        >>> seen = record(random_action(Meadow(), 0.3), 2000, seed=1)
        >>> float((seen.next_states["executed"] == seen.actions).mean())
        0.7...
    """
    return _RandomAction(environment, probability)


def sticky_action(environment: Environment, probability: float) -> Environment:
    """Type 1 as sticky actions: with ``probability`` the action executed before is executed again.

    Machado et al. (2018, Section 5). What repeats is the action *executed* in the previous step, which may
    itself have been a repetition; it is ``executed`` of the state, and of the next state for this step. The
    first action of a life has none before it and is executed as intended.

    Args:
        environment: the world to wrap.
        probability: from 0 to 1.

    Raises:
        ValueError: if ``probability`` is not one, or a state that is stepped from has no ``executed``.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.hooks import sticky_action
        >>> from sojourn.environments.meadow import Meadow
        >>> seen = record(sticky_action(Meadow(), 1.0), 5, seed=1)
        >>> seen.actions, seen.next_states["executed"]
        (array([5, 0, 0, 1, 0]), array([5, 5, 5, 5, 5]))
    """
    return _StickyAction(environment, probability)


def random_event(environment: Environment, event: Event, probability: float) -> Environment:
    """Type 2.1: after each step, whatever the action, ``event`` happens with ``probability``.

    Args:
        environment: the world to wrap.
        event: ``event(rng, state, next_state)`` returns the attributes that it sets, as a new mapping (all of
            ``next_state`` with changes will do, a class of objects as a whole); it leaves its arguments as
            they are.
        probability: from 0 to 1.

    Raises:
        ValueError: if ``probability`` is not one.

    Example:
        A sudden warmth that heals, whatever the beasts did:

        >>> from sojourn.environments import record
        >>> from sojourn.environments.hooks import random_event
        >>> from sojourn.environments.meadow import Meadow
        >>> warmth = lambda rng, state, next_state: {"health": min(next_state["health"] + 1, 9)}
        >>> seen = record(random_event(Meadow(), warmth, 0.05), 2000, seed=1)
        >>> int((seen.next_states["health"] > seen.states["health"]).sum())
        91
    """
    return _RandomEvent(environment, event, probability)


def sudden_drift(environment: Environment, other: Environment, at: int) -> Environment:
    """Type 2.2, sudden: from step number ``at`` on the world follows ``other``, before it ``environment``.

    Steps are numbered from 1 since the start of the run and go on counting from life to life; every life
    begins as ``environment`` begins it. The steps made are ``clock`` of the state, and ``step`` reads no
    other clock. ``reset`` is not given a state: it continues the clock of the last step made with its
    generator, and begins a new run when the generator is not the one it was last called with. So
    :func:`record`, which makes a generator of its own, always records from step 1. Two runs of one drift at
    the same time need two drifts. STORI counts from the start of the episode and begins each in the first
    concept; record a single life (``horizon`` of its length) for that.

    Args:
        environment: the first concept.
        other: the second concept, a world with the same attributes and actions (it may be hooked itself).
        at: number of the first step of the second concept, at least 1.

    Raises:
        ValueError: if ``at`` is below 1, the numbers of actions differ, or a state that is stepped from has
            no ``clock``.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.hooks import sudden_drift
        >>> from sojourn.environments.meadow import Meadow
        >>> seen = record(sudden_drift(Meadow(weather=0.0), Meadow(weather=1.0), at=4), 6, horizon=2)
        >>> (seen.states["weather"] != seen.next_states["weather"]).astype(int)
        array([0, 0, 0, 1, 1, 1])
    """
    at = whole_number(at, "at", None)
    if at < 1:
        raise ValueError(f"at is {at}: the first step of the second concept has a number from 1 on.")
    return _Drift((environment, other), lambda step: int(step >= at))


def cyclic_drift(environment: Environment, other: Environment, every: int) -> Environment:
    """Type 2.2, cyclic: two concepts take turns of ``every`` steps, ``environment`` first.

    After t steps of the run the next one follows ``other`` where floor(t / every) is odd. The steps are
    counted as in :func:`sudden_drift`, over all lives of a run.

    Args:
        environment: the first concept.
        other: the second concept, a world with the same attributes and actions (it may be hooked itself).
        every: steps of a concept, at least 1.

    Raises:
        ValueError: if ``every`` is below 1, the numbers of actions differ, or a state that is stepped from
            has no ``clock``.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.hooks import cyclic_drift
        >>> from sojourn.environments.meadow import Meadow
        >>> seen = record(cyclic_drift(Meadow(weather=0.0), Meadow(weather=1.0), every=3), 9, horizon=2)
        >>> (seen.states["weather"] != seen.next_states["weather"]).astype(int)
        array([0, 0, 0, 1, 1, 1, 0, 0, 0])
    """
    every = whole_number(every, "every", None)
    if every < 1:
        raise ValueError(f"every is {every}: a concept lasts at least 1 step.")
    return _Drift((environment, other), lambda step: (step - 1) // every % 2)


def hide(
    transitions: Transitions, probability: float, *, seed: int = 0, attributes: Iterable[str] | None = None
) -> Transitions:
    """Type 3.2: transitions of which parts were not seen; what is hidden reads -1.

    At each time each attribute is hidden with ``probability``, independently; so is an attribute of each
    object of a class, slot by slot. An attribute is hidden as a whole: both coordinates of a position, or
    none. The state after one step and before the next is one state, seen once: where ``next_states`` of a
    transition equals ``states`` of the following one, as within a life, the same parts of both are hidden.

    Args:
        transitions: as recorded; they are left as they are.
        probability: from 0 to 1.
        seed: of NumPy's generator.
        attributes: names of those that may be hidden, ``"energy"`` or for a class ``"beast.pos"``; by default
            all integer ones except what hooks remember. A truth value can be named and becomes an integer.

    Returns:
        Transitions of the same shapes. An unsigned integer attribute gets a signed type that holds its
        values.

    Raises:
        ValueError: if ``probability`` is not one, an attribute is unknown, or its values are not integers.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.hooks import hide
        >>> from sojourn.environments.meadow import Meadow
        >>> seen = hide(record(Meadow(), 1000, seed=1), 0.5, attributes=["energy", "beast.pos"])
        >>> float((seen.states["energy"] == -1).mean()), int((seen.states["health"] == -1).sum())
        (0.473, 0)
    """
    check_transitions(transitions)
    must_be(
        attributes is None or isinstance(attributes, str) or is_list(attributes),
        "attributes",
        "names of attributes",
        attributes,
    )
    _checked(probability, "hide")
    before, after = _copied(transitions.states), _copied(transitions.next_states)
    places = {name: (within, key) for name, within, key in _leaves(before)}
    if attributes is None:
        remembered = {"executed", "clock"}
        chosen = [
            name
            for name, (within, key) in places.items()
            if within[key].dtype.kind in "iu" and name not in remembered
        ]
    else:
        chosen = [attributes] if isinstance(attributes, str) else list(attributes)
        for name in chosen:
            if name not in places:
                raise ValueError(
                    f"There is no attribute {name!r} to hide: the transitions have {', '.join(places)}."
                )
    twins = {name: (within, key) for name, within, key in _leaves(after)}
    joined = _joined(transitions)
    rng = np.random.default_rng(whole_number(seed, "seed", 0))
    for name in chosen:
        within, key = places[name]
        values = within[key]
        if np.result_type(values, np.int8).kind != "i":
            raise ValueError(
                f"{name} holds {values.dtype}: only integers that leave room for -1 can be hidden."
            )
        shape = values.shape[: 2 if "." in name else 1]
        here, there = rng.random(shape) < probability, rng.random(shape) < probability
        there[:-1][joined] = here[1:][joined]
        within[key] = _blank(values, here)
        within, key = twins[name]
        within[key] = _blank(within[key], there)
    return Transitions(before, transitions.actions, after)


def represented(transitions: Transitions, encode: Callable[[State], State]) -> Transitions:
    """Type 3.1: the same transitions in another representation.

    Args:
        transitions: as recorded; they are left as they are.
        encode: a function of one state (not stacked) that returns the state to be seen, with arrays of one
            shape whatever the state. It should be deterministic: the state between two steps is encoded for
            both.

    Raises:
        TypeError: if ``encode`` does not return a mapping.

    Example:
        The number of the cell instead of its coordinates:

        >>> from sojourn.environments import record
        >>> from sojourn.environments.hooks import represented
        >>> from sojourn.environments.meadow import Meadow
        >>> seen = record(Meadow(), 100, seed=1)
        >>> cells = represented(seen, lambda state: {"cell": 8 * state["pos"][1] + state["pos"][0]})
        >>> list(cells.states), cells.states["cell"].shape
        (['cell'], (100,))
    """

    check_transitions(transitions)
    must_be(callable(encode), "encode", "a function of one state", encode)

    def recoded(state: State) -> State:
        seen = encode(state)
        if not isinstance(seen, Mapping):
            raise TypeError(
                f"encode returned {type(seen).__name__}: return a state, a mapping of names to arrays."
            )
        return seen

    single = [transitions.take(t) for t in range(transitions.num_transitions)]
    return Transitions(
        stack([recoded(one.states) for one in single]),
        transitions.actions,
        stack([recoded(one.next_states) for one in single]),
    )


def _checked(probability: float, where: str) -> float:
    if not (isinstance(probability, int | float | np.number) and 0 <= probability <= 1):
        raise ValueError(f"probability of {where} is {probability}: give one from 0 to 1.")
    return float(probability)


def _copied(state: State) -> dict[str, Any]:
    return {
        name: _copied(value) if isinstance(value, Mapping) else np.asarray(value)
        for name, value in state.items()
    }


def _leaves(state: State) -> Iterator[tuple[str, Any, str]]:
    """Every array of a state: its name, the mapping that holds it, and its key there."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            for key in value:
                yield f"{name}.{key}", value, key
        else:
            yield name, state, name


def _joined(transitions: Transitions) -> np.ndarray:
    """Whether each transition but the last ends in the state where the next begins, ``(T - 1,)``."""
    same = np.ones(max(transitions.num_transitions - 1, 0), bool)
    afters = {name: within[key] for name, within, key in _leaves(transitions.next_states)}
    for name, within, key in _leaves(transitions.states):
        equal = np.asarray(within[key])[1:] == np.asarray(afters[name])[:-1]
        same &= equal.all(axis=tuple(range(1, equal.ndim)))
    return same


def _blank(values: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden.reshape(hidden.shape + (1,) * (values.ndim - hidden.ndim)), np.int8(_NONE), values)
