"""Distractors on recorded transitions, which need no Crafter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sojourn.environments import Transitions
from sojourn.environments.crafter import DO, ITEMS, MAKE_IRON_SWORD, MAKE_WOOD_PICKAXE, MATERIALS
from sojourn.environments.crafter_mutants import MUTATORS, crafter_mutants
from sojourn.environments.crafter_records import crafter_transitions

PATH = Path(__file__).parents[1] / "data" / "crafter_transitions.npz"
YIELDS = {
    "tree": "wood",
    "stone": "stone",
    "coal": "coal",
    "iron": "iron",
    "diamond": "diamond",
    "water": "drink",
    "grass": "sapling",
}


@pytest.fixture(scope="module")
def seen():
    return crafter_transitions(PATH)


@pytest.fixture(scope="module", params=["next", "previous"])
def mutated(request, seen):
    """The state that was tampered with, and mutant and mask by name."""
    base = seen.next_states if request.param == "next" else seen.states
    return base, dict(zip(MUTATORS, crafter_mutants(seen, of=request.param, seed=3), strict=True))


def flat(state):
    whole = {name: np.asarray(value) for name, value in state.items() if not isinstance(value, dict)}
    return whole | {f"{kind}.{n}": value for kind in ("cow", "zombie") for n, value in state[kind].items()}


def changed(base, mutant):
    """Names of what differs anywhere, and by name which transitions."""
    a, b = flat(base), flat(mutant)
    assert {n: (v.dtype, v.shape) for n, v in a.items()} == {n: (v.dtype, v.shape) for n, v in b.items()}
    differs = {name: (a[name] != b[name]).reshape(len(a[name]), -1).any(1) for name in a}
    return {name: where for name, where in differs.items() if where.any()}


def test_each_changes_what_it_says_and_only_there(mutated):
    base, mutants = mutated
    collected, tools = set(YIELDS.values()), set(ITEMS[6:])
    touched = {
        "entity_health": {"cow.health", "zombie.health"},
        "entity_position": {"cow.pos", "zombie.pos"},
        "player_health": {"health"},
        "inventory": {"food", "drink", "energy", *ITEMS},
        "illegal_collect": collected,
        "illegal_craft": tools,
        "illegal_movement": {"pos", "facing"},
    }
    assert tuple(touched) == MUTATORS
    for name, (mutant, applies) in mutants.items():
        where = changed(base, mutant)
        assert set(where) == touched[name], name
        moved = np.any(list(where.values()), 0)
        assert not moved[~applies].any()
        # The player's health comes out the same once in seven times, and more often at 0 and 9.
        if name != "player_health":
            assert moved[applies].all(), name


def test_animals(mutated):
    base, mutants = mutated
    (ill, applies), (away, away_applies) = mutants["entity_health"], mutants["entity_position"]
    assert (applies == base["cow"]["alive"].any(1) | base["zombie"]["alive"].any(1)).all()
    assert (away_applies == applies).all()
    for kind in ("cow", "zombie"):
        alive, health = base[kind]["alive"], ill[kind]["health"]
        off = np.abs(health - base[kind]["health"])
        assert off[alive].min() == 2
        assert not off[~alive].any()
        assert set(np.unique(health[alive])) <= set(range(8))
        leap = np.abs(away[kind]["pos"] - base[kind]["pos"])
        longest, shortest = leap.max(-1), leap.min(-1)
        assert ((shortest == 0) | (shortest == longest))[alive].all()
        assert set(np.unique(longest[alive])) == set(range(2, 11))
        assert not longest[~alive].any()
        assert away[kind]["pos"][alive].min() >= 0
        assert away[kind]["pos"][alive].max() <= 31
        # Straight as often as diagonally where nothing is in the way.
        far = alive & ((base[kind]["pos"] >= 10) & (base[kind]["pos"] <= 21)).all(-1)
        share = (shortest == 0)[far].mean()
        assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(far.sum()))


def test_the_player(mutated, seen):
    base, mutants = mutated
    health, applies = mutants["player_health"]
    assert applies.all()
    off = health["health"] - base["health"]
    open_ = (base["health"] >= 3) & (base["health"] <= 6)
    frequency = np.bincount(off[open_] + 3, minlength=7) / open_.sum()
    assert len(frequency) == 7
    np.testing.assert_allclose(frequency, 1 / 7, atol=4 * np.sqrt(6 / 49 / open_.sum()))
    assert (health["health"].min(), health["health"].max()) == (0, 9)
    inventory, applies = mutants["inventory"]
    assert applies.all()
    for name in ("food", "drink", "energy", *ITEMS):  # ten values, evenly: 4.5 +- 2.87 / sqrt(6000)
        assert inventory[name].mean() == pytest.approx(4.5, abs=4 * 2.87 / np.sqrt(6000))
        assert set(np.unique(inventory[name])) == set(range(10))


def test_illegal_actions(mutated, seen):
    base, mutants = mutated
    states, actions, _ = seen
    mutant, applies = mutants["illegal_collect"]
    assert (actions[applies] == DO).all()
    more = np.stack([mutant[n] - base[n] for n in YIELDS.values()], 1)
    np.testing.assert_array_equal(more.sum(1), applies)
    assert (more >= 0).all()
    for i, material in enumerate(YIELDS):
        assert not more[states["target"] == MATERIALS.index(material), i].any()
    assert (more.sum(0) > 0).all()
    # All but one of seven, unless there are nine of each: then there is nothing to add.
    room = np.stack([base[n] < 9 for n in YIELDS.values()], 1)
    assert applies[(actions == DO) & (room.sum(1) > 1)].all()

    mutant, applies = mutants["illegal_craft"]
    makes = (actions >= MAKE_WOOD_PICKAXE) & (actions <= MAKE_IRON_SWORD)
    np.testing.assert_array_equal(applies, makes)  # nobody has nine of all tools
    more = np.stack([mutant[n] - base[n] for n in ITEMS[6:]], 1)
    np.testing.assert_array_equal(more.sum(1), applies)
    made = np.flatnonzero(makes)
    assert not more[made, actions[made] - MAKE_WOOD_PICKAXE].any()

    mutant, applies = mutants["illegal_movement"]
    np.testing.assert_array_equal(applies, (actions == 0) | (actions >= DO))
    step = mutant["pos"] - base["pos"]
    directions = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    np.testing.assert_array_equal(step[applies], directions[mutant["facing"][applies]])
    assert mutant["pos"].min() >= 0
    assert mutant["pos"].max() <= 31


def test_seeds(seen):
    few = seen.take(slice(50))
    one, same, other = (crafter_mutants(few, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_equal(one, same)
    assert (one[3][0]["wood"] != other[3][0]["wood"]).any()


def test_wrong_inputs(seen):
    few = seen.take(slice(5))
    with pytest.raises(ValueError, match="`of` is 'next' or 'previous', not 'both'"):
        crafter_mutants(few, of="both")
    with pytest.raises(ValueError, match="the states have no 'materials': pass transitions of Crafter"):
        crafter_mutants(Transitions({"pos": few.states["pos"]}, few.actions, {"pos": few.states["pos"]}))
