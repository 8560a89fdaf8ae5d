"""What Crafter lets one do, scene by scene: the 23 scenarios OneLife is evaluated on (Khan et al. 2025), on real Crafter.

Each scenario is a situation, a scripted policy that looks at the state and a goal. They stand on sand, where nothing is
born, so that what happens is what the scene is about. :data:`PLANS` holds pairs of plans from one situation, of which
the first is the better one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from sojourn.environments.crafter import (
    COAL,
    DIAMOND,
    DIRECTIONS,
    DO,
    DOWN,
    FURNACE,
    IRON,
    MAKE_IRON_PICKAXE,
    MAKE_IRON_SWORD,
    MAKE_STONE_PICKAXE,
    MAKE_STONE_SWORD,
    MAKE_WOOD_PICKAXE,
    MAKE_WOOD_SWORD,
    MATERIALS,
    MOVE_DOWN,
    MOVE_LEFT,
    MOVE_RIGHT,
    MOVE_UP,
    NOOP,
    PLACE_FURNACE,
    PLACE_PLANT,
    PLACE_STONE,
    PLACE_TABLE,
    SAND,
    SLEEP,
    STONE,
    TABLE,
    TREE,
    WATER,
    Crafter,
    situation,
)
from sojourn.environments.transitions import Policy, State, Transitions, stack

__all__ = ["PLANS", "SCENARIOS", "Plan", "Scenario"]

Prepare = Callable[..., dict[str, np.ndarray]]
Goal = Callable[[State, State], bool]


@dataclass(frozen=True)
class Scenario:
    """A scene of Crafter.

    Attributes:
        name: as in :data:`SCENARIOS`.
        prepare: ``prepare(seed=0)`` is the snapshot it begins with.
        policy: what the player does; it looks at the state.
        goal: ``goal(first, now)`` says whether the state ``now`` is what was to be reached. None: nothing is to be
            reached, and all steps are played.
        num_steps: how many steps there are at most.
    """

    name: str
    prepare: Prepare
    policy: Policy
    goal: Goal | None = None
    num_steps: int = 30

    def play(self, seed: int = 0) -> Transitions:
        """The transitions of one performance, up to the goal, the end of the steps or death.

        Example:
            >>> from sojourn.environments.crafter_scenarios import SCENARIOS
            >>> scene = SCENARIOS["collect_wood"]
            >>> seen = scene.play()
            >>> seen.actions.tolist(), seen.next_states["wood"].tolist(), scene.succeeded(seen)
            ([2, 5], [0, 1], True)
        """
        rng = np.random.default_rng(seed)
        snapshot = self.prepare(seed=seed)
        return _perform(snapshot, lambda _, state: self.policy(rng, state), self.num_steps, self.goal)

    def succeeded(self, transitions: Transitions) -> bool:
        """Whether a performance reached the goal (always, if there is none)."""
        return self.goal is None or bool(
            self.goal(_at(transitions.states, 0), _at(transitions.next_states, -1))
        )


@dataclass(frozen=True)
class Plan:
    """Two plans for one situation; what they are worth is known before a model is asked.

    Attributes:
        name: as in :data:`PLANS`.
        prepare: ``prepare(seed=0)`` is the snapshot both begin with.
        good: actions that work.
        bad: as many that do not.
        reward: of states whose arrays are ``(..., time, ...)``, time first but for batches: what the last one is worth,
            ``(...)``. It takes NumPy's arrays and JAX's.
    """

    name: str
    prepare: Prepare
    good: tuple[int, ...]
    bad: tuple[int, ...]
    reward: Callable[[State], Any]

    def play(self, plan: tuple[int, ...], seed: int = 0) -> Transitions:
        """The transitions of one performance of a plan, up to its end or death.

        Example:
            >>> from sojourn.environments.crafter_scenarios import PLANS
            >>> miner = PLANS["stone miner"]
            >>> [int(miner.reward(miner.play(plan).next_states)) for plan in (miner.good, miner.bad)]
            [3, 0]
        """
        return _perform(self.prepare(seed=seed), lambda step, _: plan[step], len(plan))


@cache
def _stage() -> Crafter:
    """One world for all scenes: making one reads Crafter's pictures."""
    return Crafter()


def _perform(
    snapshot: State, choose: Callable[[int, State], int], num_steps: int, goal: Goal | None = None
) -> Transitions:
    world = _stage().restore(snapshot)
    states, actions, next_states = [], [], []
    for step in range(num_steps):
        states.append(world.state())
        actions.append(choose(step, states[-1]))
        after, _, done = world.step(actions[-1])
        next_states.append(after)
        if done or (goal is not None and goal(states[0], after)):
            break
    return Transitions(stack(states), np.array(actions, np.int32), stack(next_states))


# ------------------------------------------------------------------------------------------------- what one looks at


def _at(states: State, time: int) -> dict[str, Any]:
    return {
        name: _at(value, time) if isinstance(value, Mapping) else np.asarray(value)[time]
        for name, value in states.items()
    }


def _ahead(state: State) -> tuple[int, int]:
    x, y = state["pos"] + DIRECTIONS[state["facing"]]
    return int(x), int(y)


def _beside(state: State, material: int) -> bool:
    """In the three by three tiles around the player, where a table helps."""
    x, y = state["pos"]
    return bool((state["materials"][x - 1 : x + 2, y - 1 : y + 2] == material).any())


def _more(name: str) -> Goal:
    return lambda first, now: bool(now[name] > first[name])


def _placed(material: int) -> Goal:
    return lambda first, now: bool(now["target"] == material and first["target"] != material)


# ------------------------------------------------------------------------------------------------- policies


def _always(rng: np.random.Generator, state: State, action: int) -> int:
    return action


def _wander(rng: np.random.Generator, state: State) -> int:
    return int(rng.integers(MOVE_LEFT, MOVE_DOWN + 1))


def _fetch(rng: np.random.Generator, state: State, material: int) -> int:
    """Walk right until it is in front."""
    return DO if state["target"] == material else MOVE_RIGHT


def _wood_then(rng: np.random.Generator, state: State, make: int) -> int:
    """Cut the trees on the right, put up a table, use it."""
    if _beside(state, TABLE):
        return make
    if state["wood"] < 3:
        return _fetch(rng, state, TREE)
    return PLACE_TABLE if state["target"] != TREE else MOVE_LEFT


def _stone_then(rng: np.random.Generator, state: State, make: int) -> int:
    """There is a table. Break the stone on the right."""
    return make if state["stone"] else _fetch(rng, state, STONE)


def _iron_then(rng: np.random.Generator, state: State, make: int) -> int:
    """There is a table. Put the furnace in front, take the coal on the right and the iron above."""
    if not _beside(state, FURNACE):
        return PLACE_FURNACE
    if not state["coal"]:
        return DO if state["target"] == COAL else MOVE_RIGHT
    if not state["iron"]:
        return DO if state["target"] == IRON else MOVE_UP
    return make


def _hunt(rng: np.random.Generator, state: State, prey: str) -> int:
    """Go towards the nearest animal of a class, the longer way first, and strike when it is in front."""
    animal = state[prey]
    if not animal["alive"].any():
        return NOOP
    way = animal["pos"][animal["alive"]][0] - state["pos"]
    if tuple(way) == tuple(DIRECTIONS[state["facing"]]):
        return DO
    across = abs(way[0]) >= abs(way[1])
    towards = (MOVE_RIGHT if way[0] > 0 else MOVE_LEFT) if across else (MOVE_DOWN if way[1] > 0 else MOVE_UP)
    # Face an obstacle once and the way is still barred: step aside.
    barred = state["target"] != SAND and state["facing"] == towards - MOVE_LEFT
    return _wander(rng, state) if barred else towards


def _down_the_tunnel(rng: np.random.Generator, state: State) -> int:
    """Strike whatever is in front, else go on to the right."""
    return DO if state["occupied"][_ahead(state)] else MOVE_RIGHT


# ------------------------------------------------------------------------------------------------- the scenes

_PEN = {(x, y): "stone" for x in range(-2, 3) for y in range(-2, 3) if max(abs(x), abs(y)) == 2}
_TUNNEL = {(x, y): "stone" for x in range(-1, 5) for y in (-1, 0, 1)} | {(x, 0): "path" for x in range(1, 4)}
_WORKSHOP = {(-1, -1): "table", (1, 0): "coal", (0, -1): "iron"}
_ROW_OF_TREES = {(x, 0): "tree" for x in range(1, 4)}


def _scene(name: str, policy: Policy, goal: Goal | None, num_steps: int = 30, **prepared: Any) -> Scenario:
    return Scenario(name, partial(situation, **prepared), policy, goal, num_steps)


def _collect(material: int, item: str | None = None, **carries: int) -> Scenario:
    item = MATERIALS[material] if item is None else item
    tiles = {(2, 0): MATERIALS[material]}
    return _scene(f"collect_{item}", partial(_fetch, material=material), _more(item), tiles=tiles, **carries)


def _place(name: str, action: int, goal: Goal, **carries: int) -> Scenario:
    tiles = {(1, 0): "grass" if action == PLACE_PLANT else "sand"}
    return _scene(f"place_{name}", partial(_always, action=action), goal, tiles=tiles, **carries)


def _planted(first: State, now: State) -> bool:
    return bool(now["sapling"] < first["sapling"] and now["occupied"][_ahead(now)])


def _won(first: State, now: State) -> bool:
    return not now["zombie"]["alive"].any() and bool(now["health"] > 0)


def _ate_cow(first: State, now: State) -> bool:
    return not now["cow"]["alive"].any() and bool(now["food"] > first["food"])


def _alone(first: State, now: State) -> bool:
    return now["occupied"].sum() == 1 and bool(now["health"] > 0)


def _rested(first: State, now: State) -> bool:
    """Energy comes only from sleep."""
    return bool(now["energy"] > first["energy"] and not now["sleeping"])


SCENARIOS: dict[str, Scenario] = {
    scene.name: scene
    for scene in (
        _scene(
            "craft_wooden_pickaxe",
            partial(_wood_then, make=MAKE_WOOD_PICKAXE),
            _more("wood_pickaxe"),
            tiles=_ROW_OF_TREES,
        ),
        _scene(
            "craft_wooden_sword",
            partial(_wood_then, make=MAKE_WOOD_SWORD),
            _more("wood_sword"),
            tiles=_ROW_OF_TREES,
        ),
        _scene(
            "craft_stone_pickaxe",
            partial(_stone_then, make=MAKE_STONE_PICKAXE),
            _more("stone_pickaxe"),
            tiles={(1, 1): "table", (2, 0): "stone"},
            wood=1,
            wood_pickaxe=1,
        ),
        _scene(
            "craft_stone_sword",
            partial(_stone_then, make=MAKE_STONE_SWORD),
            _more("stone_sword"),
            tiles={(1, 1): "table", (2, 0): "stone"},
            wood=1,
            wood_pickaxe=1,
        ),
        _scene(
            "craft_iron_pickaxe",
            partial(_iron_then, make=MAKE_IRON_PICKAXE),
            _more("iron_pickaxe"),
            tiles=_WORKSHOP,
            facing=DOWN,
            wood=1,
            stone=4,
            wood_pickaxe=1,
            stone_pickaxe=1,
        ),
        _scene(
            "craft_iron_sword",
            partial(_iron_then, make=MAKE_IRON_SWORD),
            _more("iron_sword"),
            tiles=_WORKSHOP,
            facing=DOWN,
            wood=1,
            stone=4,
            wood_pickaxe=1,
            stone_pickaxe=1,
        ),
        _collect(COAL, wood_pickaxe=1),
        _collect(DIAMOND, iron_pickaxe=1),
        _collect(IRON, stone_pickaxe=1),
        _collect(STONE, wood_pickaxe=1),
        _collect(TREE, "wood"),
        _collect(WATER, "drink", drink=3),
        _place("stone", PLACE_STONE, _placed(STONE), stone=1),
        _place("table", PLACE_TABLE, _placed(TABLE), wood=2),
        _place("furnace", PLACE_FURNACE, _placed(FURNACE), stone=4),
        _place("plant", PLACE_PLANT, _planted, sapling=1),
        _scene(
            "eat_cow",
            partial(_hunt, prey="cow"),
            _ate_cow,
            tiles=_PEN,
            things=[("cow", (1, 1))],
            food=2,
            stone_sword=1,
        ),
        _scene(
            "eat_plant", partial(_always, action=DO), _more("food"), things=[("plant", (1, 0), 320)], food=2
        ),
        _scene(
            "zombie_defeat",
            partial(_hunt, prey="zombie"),
            _won,
            tiles=_PEN,
            things=[("zombie", (1, 1))],
            stone_sword=1,
        ),
        _scene(
            "defeat_skeleton",
            _down_the_tunnel,
            _alone,
            tiles=_TUNNEL,
            things=[("skeleton", (3, 0))],
            wood_sword=1,
        ),
        _scene("cow_movement", partial(_always, action=NOOP), None, 10, things=[("cow", (3, 0))]),
        _scene("random_movement", _wander, None, 10),
        _scene("wake_up", partial(_always, action=SLEEP), _rested, energy=8),
    )
}
"""The 23 scenarios by OneLife's names."""


# ------------------------------------------------------------------------------------------------- plans


def _victory(states: State) -> Any:
    """Ten for no zombie left, and the player's health."""
    return 10 * (states["zombie"]["alive"][..., -1, :].sum(-1) == 0) + states["health"][..., -1]


def _stones(states: State) -> Any:
    return states["stone"][..., -1]


def _blow(states: State) -> Any:
    """The damage one can do: 1, or 2, 3, 5 by a sword of wood, stone, iron."""
    wood, stone, iron = (states[f"{name}_sword"][..., -1] > 0 for name in ("wood", "stone", "iron"))
    return 1 + (wood & ~stone & ~iron) + 2 * (stone & ~iron) + 4 * iron


PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        # A zombie has 5 health: two blows of a stone sword, or five of a fist.
        Plan(
            "zombie fighter",
            partial(situation, tiles={(0, -1): "table"}, things=[("zombie", (1, 0), 5)], wood=1, stone=1),
            good=(MAKE_STONE_SWORD, DO, DO, DO),
            bad=(DO, DO, DO, DO),
            reward=_victory,
        ),
        Plan(
            "stone miner",
            partial(situation, tiles={(0, -1): "table"} | {(x, 0): "stone" for x in (1, 2, 3)}, wood=1),
            good=(MAKE_WOOD_PICKAXE, DO, MOVE_RIGHT, DO, MOVE_RIGHT, DO),
            bad=(DO, MOVE_RIGHT, DO, MOVE_RIGHT, DO, MAKE_WOOD_PICKAXE),
            reward=_stones,
        ),
        # There is wood for one sword only: who makes the wooden one first has none for the better one.
        Plan(
            "sword maker",
            partial(situation, tiles={(0, -1): "table", (1, 0): "stone"}, wood=1, wood_pickaxe=1),
            good=(DO, MAKE_STONE_SWORD, NOOP),
            bad=(MAKE_WOOD_SWORD, DO, MAKE_STONE_SWORD),
            reward=_blow,
        ),
    )
}
"""Pairs of plans: two that OneLife names (zombie fighter, stone miner) and one of our own."""
