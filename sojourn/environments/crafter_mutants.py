"""Next states of Crafter that did not come: the distractors of OneLife's evaluation (Khan et al. 2025).

A model of the world ranks what came among states that somebody has tampered with. The seven mutators are those of the
published protocol, on recorded transitions and within the supports of the symbolic state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sojourn.environments.crafter import (
    ACTIONS,
    COAL,
    DIAMOND,
    DIRECTIONS,
    DO,
    GRASS,
    IRON,
    ITEMS,
    MAKE_WOOD_PICKAXE,
    MOVE_DOWN,
    MOVE_LEFT,
    STONE,
    TREE,
    WATER,
)
from sojourn.environments.transitions import State, Transitions

__all__ = ["MUTATORS", "crafter_mutants"]

MUTATORS = (
    "entity_health", "entity_position", "player_health", "inventory", "illegal_collect", "illegal_craft",
    "illegal_movement",
)  # fmt: skip
"""What :func:`crafter_mutants` returns, in this order."""

_CLASSES = ("cow", "zombie")
_MOST_HEALTH = 7  # of an animal: what the symbolic state has room for (Crafter's own have at most 5)
_MOST = 9
_TOOLS = ITEMS[6:]  # in the order of the actions that make them
_COLLECTED = {
    "wood": TREE,
    "stone": STONE,
    "coal": COAL,
    "iron": IRON,
    "diamond": DIAMOND,
    "drink": WATER,
    "sapling": GRASS,
}
_COMPASS = np.array([(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy])
_LEAPS = (_COMPASS[:, None] * np.arange(2, 11)[:, None]).reshape(-1, 2)


def crafter_mutants(
    transitions: Transitions, *, of: str = "next", seed: int = 0
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Seven next states somebody has tampered with, and the transitions that each is for.

    In the order of :data:`MUTATORS`:

    - all animals' health: not what it was, nor one off, from 0 to 7;
    - all animals' places: 2 to 10 tiles off, straight or diagonally, on the map;
    - the player's health: up to 3 more or less (perhaps 0), from 0 to 9;
    - food, drink, energy and all items: anything from 0 to 9;
    - for ``do``: one more of what another material than the faced one would give;
    - for ``make_*``: one more of another tool;
    - for any action that is no move: a step in any direction, faced as well.

    The published ones edit a copy of the state *before*. Whatever moved in the true next state stands still in such a
    mutant, so that a good model often thinks it likelier than the truth; mutants of the true next state ask whether a
    model knows what is legal. What would leave the state's supports (11 of something; a place off the map) is not
    drawn here.

    Args:
        transitions: of Crafter (:mod:`sojourn.environments.crafter`), T of them.
        of: which state is tampered with, ``"next"`` or, as published, ``"previous"``.
        seed: of NumPy's generator.

    Returns:
        Pairs of a state, stacked like ``transitions.next_states`` (with which it shares what is unchanged), and a mask
        ``(T,)`` of the transitions it is for: what :meth:`sojourn.models.laws.World.rank` takes as ``distractors``.
        Where the mask is False the state is the one it was made of.

    Raises:
        ValueError: if ``of`` is neither; if the transitions are none of Crafter.

    Example:
        >>> import numpy as np
        >>> from sojourn.environments import stack
        >>> from sojourn.environments.crafter import DO, SLEEP, VITALS, ITEMS
        >>> from sojourn.environments.crafter_mutants import MUTATORS, crafter_mutants
        >>> from sojourn.environments.transitions import Transitions
        >>> none = {"alive": np.zeros(1, bool), "pos": np.zeros((1, 2), int), "health": np.zeros(1, int)}
        >>> state = {"pos": np.array([5, 5]), "facing": 0, "target": 2, "cow": none, "zombie": none,
        ...          "materials": np.zeros((9, 9), int), **dict.fromkeys((*VITALS, *ITEMS), 3)}
        >>> states = stack([state, state])
        >>> mutants = crafter_mutants(Transitions(states, np.array([DO, SLEEP]), states))
        >>> for name, (_, applies) in zip(MUTATORS[3:], mutants[3:]):
        ...     print(name, applies)
        inventory [ True  True]
        illegal_collect [ True False]
        illegal_craft [False False]
        illegal_movement [ True  True]
    """
    if of not in ("next", "previous"):
        raise ValueError(f"crafter_mutants: `of` is 'next' or 'previous', not {of!r}.")
    states, actions, next_states = transitions
    lacking = [n for n in ("materials", "facing", "target", *_TOOLS, *_CLASSES) if n not in states]
    if lacking:
        raise ValueError(f"crafter_mutants: the states have no {lacking[0]!r}: pass transitions of Crafter.")
    rng, actions = np.random.default_rng(seed), np.asarray(actions)
    base = next_states if of == "next" else states
    everywhere = np.ones(len(actions), bool)
    animals = np.any([base[kind]["alive"].any(1) for kind in _CLASSES], 0)
    collects = np.stack([np.asarray(states["target"]) != material for material in _COLLECTED.values()], 1)
    makes = actions[:, None] - MAKE_WOOD_PICKAXE != np.arange(len(_TOOLS))
    stays = (actions < MOVE_LEFT) | (actions > MOVE_DOWN)
    random = {name: rng.integers(0, _MOST + 1, len(actions)) for name in ("food", "drink", "energy", *ITEMS)}
    return [
        (_change(base, _unwell(rng, base)), animals),
        (_change(base, _displaced(rng, base, np.shape(states["materials"])[1:])), animals),
        (_change(base, {"health": np.clip(base["health"] + rng.integers(-3, 4, len(actions)), 0, _MOST)}), everywhere),
        (_change(base, random), everywhere),
        _one_more(rng, base, tuple(_COLLECTED), collects & (actions == DO)[:, None]),
        _one_more(rng, base, _TOOLS, makes & ((actions >= MAKE_WOOD_PICKAXE) & (actions < len(ACTIONS)))[:, None]),
        _stray(rng, base, np.shape(states["materials"])[1:], stays),
    ]  # fmt: skip


def _change(base: State, parts: Mapping[str, Any]) -> dict[str, Any]:
    """A state with these parts, of the kind of numbers that it had."""
    changed = dict(base)
    for name, value in parts.items():
        if isinstance(value, Mapping):
            changed[name] = _change(base[name], value)
        else:
            changed[name] = value.astype(np.asarray(base[name]).dtype)
    return changed


def _pick(rng: np.random.Generator, allowed: np.ndarray) -> np.ndarray:
    """One that is allowed, all equally likely, along the last axis; nonsense where none is."""
    return np.where(allowed, rng.random(allowed.shape), -1.0).argmax(-1)


def _unwell(rng: np.random.Generator, base: State) -> dict[str, Any]:
    found = {}
    for kind in _CLASSES:
        health = np.asarray(base[kind]["health"])
        other = _pick(rng, np.abs(np.arange(_MOST_HEALTH + 1) - health[..., None]) > 1)
        found[kind] = {"health": np.where(base[kind]["alive"], other, health)}
    return found


def _displaced(rng: np.random.Generator, base: State, size: tuple[int, ...]) -> dict[str, Any]:
    found = {}
    for kind in _CLASSES:
        pos = np.asarray(base[kind]["pos"])
        places = pos[..., None, :] + _LEAPS
        which = _pick(rng, _inside(places, size))
        place = np.take_along_axis(places, which[..., None, None], -2)[..., 0, :]
        found[kind] = {"pos": np.where(base[kind]["alive"][..., None], place, pos)}
    return found


def _one_more(
    rng: np.random.Generator, base: State, names: tuple[str, ...], allowed: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """One more of something allowed of which there is room for one more."""
    room = np.stack([np.asarray(base[name]) < _MOST for name in names], 1) & allowed
    which, applies = _pick(rng, room), room.any(1)
    more = {name: base[name] + (applies & (which == i)) for i, name in enumerate(names)}
    return _change(base, more), applies


def _stray(
    rng: np.random.Generator, base: State, size: tuple[int, ...], stays: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    places = np.asarray(base["pos"])[:, None] + DIRECTIONS
    which = _pick(rng, _inside(places, size))
    place = places[np.arange(len(places)), which]
    moved = {
        "pos": np.where(stays[:, None], place, base["pos"]),
        "facing": np.where(stays, which, base["facing"]),
    }
    return _change(base, moved), stays


def _inside(places: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.asarray(((places >= 0) & (places < np.array(size))).all(-1))
