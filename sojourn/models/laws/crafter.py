"""The rule book of Crafter (Hafner 2022), as far as its symbolic state goes, and a dozen plausible wrong laws.

The state is that of :mod:`sojourn.environments.crafter`. Crafter moves its objects one after another, the player
first; laws about animals therefore see the player's place after the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from sojourn._arguments import is_list, must_be
from sojourn.environments import crafter as c
from sojourn.models.laws._law import Law, law, one_of, when
from sojourn.models.laws._space import Objects, Space, cells, levels

__all__ = ["crafter_laws", "crafter_refresh", "crafter_space", "wrong_crafter_laws"]

_WALKABLE = (c.GRASS, c.PATH, c.SAND)
_DIRECTIONS = c.DIRECTIONS


def crafter_space(area: tuple[int, int] = (32, 32)) -> Space:
    """What a state of Crafter consists of; the maps ``materials`` and ``occupied`` and ``daylight`` are context.

    Args:
        area: width and height of the world.

    Example:
        >>> from sojourn.models.laws import crafter_space
        >>> len(crafter_space()), crafter_space().num_cells
        (27, 68)
    """
    must_be(is_list(area) and len(area) == 2, "area", "a pair, width and height", area)
    place = cells(*area)
    return Space(
        pos=place,
        facing=("left", "right", "up", "down"),
        sleeping=2,
        target=c.MATERIALS,
        **{name: levels(10) for name in (*c.VITALS, *c.ITEMS)},
        cow=Objects(c.NUM_COWS, pos=place, health=levels(8), gone=2),
        zombie=Objects(c.NUM_ZOMBIES, pos=place, health=levels(8), cooldown=levels(6), gone=2),
    )


# ------------------------------------------------------------------------------------------- reading a state


def _awake(s: Any) -> Any:
    return (s.sleeping == 0) | (s.energy >= 9)  # the rested wake before they act


def _does(s: Any, a: Any, action: int) -> Any:
    return (a == action) & _awake(s)


def _moves(s: Any, a: Any) -> Any:
    return (a >= c.MOVE_LEFT) & (a <= c.MOVE_DOWN) & _awake(s)


def _direction(a: Any) -> Any:
    return jnp.asarray(_DIRECTIONS)[jnp.clip(a - c.MOVE_LEFT, 0, 3)]


def _ahead(s: Any) -> Any:
    return s.pos + jnp.asarray(_DIRECTIONS)[s.facing]


def _at(grid: Any, cell: Any) -> tuple[Any, Any]:
    """What a map holds at a cell, and whether the cell is on the map."""
    size = jnp.array(grid.shape)
    inside = ((cell >= 0) & (cell < size)).all()
    x, y = jnp.clip(cell, 0, size - 1)
    return grid[x, y], inside


def _free(s: Any, cell: Any, materials: Sequence[int] = _WALKABLE) -> Any:
    """Whether something can walk there: after the player's own step, for laws that see it."""
    material, inside = _at(s.materials, cell)
    occupied, _ = _at(s.occupied, cell)
    left = (cell == s.before.pos).all() & (s.pos != s.before.pos).any()
    entered = (cell == s.pos).all()
    return inside & jnp.isin(material, jnp.array(materials)) & ((~occupied | left) & ~entered)


def _clear(s: Any) -> Any:
    """Nothing stands in front of the player."""
    occupied, inside = _at(s.occupied, _ahead(s))
    return inside & ~occupied


def _beside(s: Any, material: int) -> Any:
    """Whether it lies within the 3 by 3 tiles around the player ("nearby")."""
    around = jax.lax.dynamic_slice(jnp.pad(s.materials, 1), (s.pos[0], s.pos[1]), (3, 3))
    return (around == material).any()


def _damage(s: Any) -> Any:
    blows = ((1, True), (2, s.wood_sword > 0), (3, s.stone_sword > 0), (5, s.iron_sword > 0))
    return jnp.max(jnp.stack([jnp.where(has, blow, 0) for blow, has in blows]))


def _gap(s: Any, pos: Any) -> Any:
    return jnp.abs(s.pos - pos).sum(-1)


def _faced(s: Any, thing: Any) -> Any:
    return (thing.pos == _ahead(s)).all(-1)


def _step(s: Any, pos: Any, direction: Any) -> Any:
    there = pos + direction
    return jnp.where(_free(s, there), there, pos)


def _toward(s: Any, pos: Any, long_axis: bool) -> Any:
    gap = s.pos - pos
    wide = jnp.abs(gap[0]) > jnp.abs(gap[1])
    x = wide if long_axis else ~wide
    return jnp.sign(gap) * jnp.array([x, ~x])


# ------------------------------------------------------------------------------------------------ the player


@law
def turn(s, a):
    return when(_moves(s, a), facing=a - c.MOVE_LEFT)


@law
def walk(s, a):
    there = s.pos + _direction(a)
    material, inside = _at(s.materials, there)
    occupied, _ = _at(s.occupied, there)
    open_ = inside & ~occupied & jnp.isin(material, jnp.array([*_WALKABLE, c.LAVA]))
    return when(_moves(s, a) & open_, pos=there)


@law
def fall_asleep(s, a):
    return when((a == c.SLEEP) & (s.energy < 9), sleeping=1)


@law
def wake_rested(s, a):
    return when((s.sleeping == 1) & (s.energy >= 9), sleeping=0)


@law
def hunger(s, a):
    return when(s.sleeping == 0, food=s.food - 1)


@law
def thirst(s, a):
    return when(s.sleeping == 0, drink=s.drink - 1)


@law
def tire(s, a):
    return when(s.sleeping == 0, energy=s.energy - 1)


@law
def sleep_restores(s, a):
    return when(s.sleeping == 1, energy=s.energy + 1)


def _satisfied(s: Any) -> Any:
    return (s.food > 0) & (s.drink > 0) & ((s.energy > 0) | (s.sleeping == 1))


@law
def heal(s, a):
    return when(_satisfied(s), health=s.health + 1)


@law
def starve(s, a):
    return when(~_satisfied(s), health=s.health - 1)


@law(after=("pos", "sleeping", "zombie.pos", "zombie.gone"))
def zombie_bites(s, a):
    near = (_gap(s, s.zombie.pos) <= 1) & (s.zombie.cooldown == 0) & s.zombie.alive & ~s.zombie.gone
    return when(near.any(), health=s.health - jnp.where(s.sleeping == 1, 7, 2))


# ----------------------------------------------------------------------------- collecting, placing and making


def _collect(item: str, material: int, leaves: int, tool: str | None = None) -> Law:
    @law(name=f"collect_{item}")
    def collect(s, a):
        able = True if tool is None else s[tool] > 0
        ready = _does(s, a, c.DO) & _clear(s) & (s.target == material)
        return when(ready & able, **{item: s[item] + 1, "target": leaves})

    return collect


@law
def find_sapling(s, a):
    return when(_does(s, a, c.DO) & _clear(s) & (s.target == c.GRASS), sapling=s.sapling + 1)


def _place(
    name: str, action: int, uses: str, amount: int, where: Sequence[int], becomes: int | None = None
) -> Law:
    @law(name=f"place_{name}")
    def place(s, a):
        there = _clear(s) & jnp.isin(s.target, jnp.array(where))
        changes = {uses: s[uses] - amount} | ({} if becomes is None else {"target": becomes})
        return when(_does(s, a, action) & there & (s[uses] >= amount), **changes)

    return place


def _make(item: str, action: int, uses: Sequence[str], near: Sequence[int] = (c.TABLE,)) -> Law:
    @law(name=f"make_{item}")
    def make(s, a):
        ready = _does(s, a, action)
        for material in near:
            ready &= _beside(s, material)
        for used in uses:
            ready &= s[used] >= 1
        return when(ready, **{used: s[used] - 1 for used in uses}, **{item: s[item] + 1})

    return make


# --------------------------------------------------------------------------------------------------- animals


@law
def eat_cow(s, a):
    dies = _faced(s, s.cow) & (s.cow.health <= _damage(s)) & s.cow.alive
    return when(_does(s, a, c.DO) & dies.any(), food=s.food + 6)


def _hits(kind: str) -> list[Law]:
    @law(each=kind, name=f"hit_{kind}")
    def hit(it, s, a):
        return when(
            _does(s, a, c.DO) & _faced(s, it) & (it.health > _damage(s)), health=it.health - _damage(s)
        )

    @law(each=kind, name=f"kill_{kind}")
    def kill(it, s, a):
        return when(_does(s, a, c.DO) & _faced(s, it) & (it.health <= _damage(s)), gone=1)

    return [hit, kill]


@law(each="cow", after="pos")
def cow_roams(cow, s, a):
    near = _gap(s, cow.pos) < c.UPDATE_RANGE
    return when(near, pos=one_of([_step(s, cow.pos, d) for d in _DIRECTIONS]))


@law(each="zombie", after="pos")
def zombie_chases(zombie, s, a, long_axis=dist.Beta(1.0, 1.0)):
    steps = [_step(s, zombie.pos, _toward(s, zombie.pos, axis)) for axis in (True, False)]
    return when(_gap(s, zombie.pos) <= 8, pos=one_of(steps, p=[long_axis, 1 - long_axis]))


@law(each="zombie", after="pos")
def zombie_strolls(zombie, s, a):
    near = _gap(s, zombie.pos) < c.UPDATE_RANGE
    return when(near, pos=one_of([_step(s, zombie.pos, d) for d in _DIRECTIONS]))


@law(each="zombie", after=("pos", "zombie.pos"))
def zombie_rests(zombie, s, a):
    return when((_gap(s, zombie.pos) <= 1) & (zombie.cooldown > 0), cooldown=zombie.cooldown - 1)


@law(each="zombie", after=("pos", "zombie.pos"))
def zombie_winds_up(zombie, s, a):
    return when((_gap(s, zombie.pos) <= 1) & (zombie.cooldown == 0), cooldown=5)


def crafter_laws() -> list[Law]:
    """The laws of Crafter, 38 of them, written from its code (version 1.8.3).

    Not among them: plants and their growth, skeletons and arrows, appearing and vanishing of animals (chunks are
    balanced every ten steps), daylight. Hunger, thirst, tiredness and healing run on counters that the state does not
    show; here they are rates.

    Example:
        >>> from sojourn.models.laws import crafter_laws
        >>> len(crafter_laws())
        38
    """
    grass, path = c.GRASS, c.PATH
    collecting = [
        _collect("wood", c.TREE, grass),
        _collect("stone", c.STONE, path, "wood_pickaxe"),
        _collect("coal", c.COAL, path, "wood_pickaxe"),
        _collect("iron", c.IRON, path, "stone_pickaxe"),
        _collect("diamond", c.DIAMOND, path, "iron_pickaxe"),
        _collect("drink", c.WATER, c.WATER),
        find_sapling,
    ]
    ground = (grass, c.SAND, path)
    placing = [
        _place("stone", c.PLACE_STONE, "stone", 1, (*ground, c.WATER, c.LAVA), c.STONE),
        _place("table", c.PLACE_TABLE, "wood", 2, ground, c.TABLE),
        _place("furnace", c.PLACE_FURNACE, "stone", 4, ground, c.FURNACE),
        _place("plant", c.PLACE_PLANT, "sapling", 1, (grass,)),
    ]
    forge = (c.TABLE, c.FURNACE)
    making = [
        _make("wood_pickaxe", c.MAKE_WOOD_PICKAXE, ("wood",)),
        _make("stone_pickaxe", c.MAKE_STONE_PICKAXE, ("wood", "stone")),
        _make("iron_pickaxe", c.MAKE_IRON_PICKAXE, ("wood", "coal", "iron"), forge),
        _make("wood_sword", c.MAKE_WOOD_SWORD, ("wood",)),
        _make("stone_sword", c.MAKE_STONE_SWORD, ("wood", "stone")),
        _make("iron_sword", c.MAKE_IRON_SWORD, ("wood", "coal", "iron"), forge),
    ]
    player = [
        turn, walk, fall_asleep, wake_rested, hunger, thirst, tire, sleep_restores, heal, starve, zombie_bites,
    ]  # fmt: skip
    animals = [
        eat_cow, *_hits("cow"), *_hits("zombie"), cow_roams, zombie_chases, zombie_strolls, zombie_rests,
        zombie_winds_up,
    ]  # fmt: skip
    return [*player, *collecting, *placing, *making, *animals]


# ----------------------------------------------------------------------------------------------- wrong ideas


@law
def x_teleport(s, a):
    return when((a >= c.MOVE_LEFT) & (a <= c.MOVE_DOWN), pos=jnp.array([0, 0]))


@law
def x_backwards(s, a):
    there = s.pos - _direction(a)
    return when(_moves(s, a) & _free(s, there), pos=there)


@law
def x_bad_water(s, a):
    return when(_does(s, a, c.DO) & _clear(s) & (s.target == c.WATER), health=s.health - 1)


@law
def x_grass_is_wood(s, a):
    return when(_does(s, a, c.DO) & _clear(s) & (s.target == c.GRASS), wood=s.wood + 1)


@law
def x_bare_hands(s, a):
    ready = _does(s, a, c.DO) & _clear(s) & (s.target == c.STONE) & (s.wood_pickaxe == 0)
    return when(ready, stone=s.stone + 1, target=c.PATH)


@law
def x_free_table(s, a):
    return when(_does(s, a, c.PLACE_TABLE) & _clear(s), target=c.TABLE)


@law
def x_craft_anywhere(s, a):
    ready = _does(s, a, c.MAKE_WOOD_PICKAXE) & (s.wood > 0)
    return when(ready, wood_pickaxe=s.wood_pickaxe + 1, wood=s.wood - 1)


@law
def x_noop_heals(s, a):
    return when(a == c.NOOP, health=s.health + 3)


@law
def x_nap(s, a):
    return when(a == c.SLEEP, energy=9)


@law(each="cow")
def x_cow_flees(cow, s, a):
    return when(_gap(s, cow.pos) <= 8, pos=_step(s, cow.pos, -_toward(s, cow.pos, True)))


@law(each="cow")
def x_instakill(cow, s, a):
    return when(_does(s, a, c.DO) & _faced(s, cow), gone=1)


@law(each="zombie")
def x_sun_burns(zombie, s, a):
    return when(s.daylight > 0.5, health=zombie.health - 1)


def wrong_crafter_laws() -> list[Law]:
    """Twelve wrong laws of Crafter, some of them true laws with too little in the condition.

    Example:
        >>> from sojourn.models.laws import wrong_crafter_laws
        >>> len(wrong_crafter_laws())
        12
    """
    return [
        x_teleport, x_backwards, x_bad_water, x_grass_is_wood, x_bare_hands, x_free_table, x_craft_anywhere,
        x_noop_heals, x_nap, x_cow_flees, x_instakill, x_sun_burns,
    ]  # fmt: skip


def crafter_refresh(state: Any, action: Any, after: Any) -> Any:
    """Bring maps and target up to date after an imagined step; give it to ``World(refresh=...)``.

    ``target`` of a next state is what has become of the tile that was faced before the step; that is written into the
    map of materials, and then read off again where the player faces now.

    Example:
        >>> from sojourn.models.laws import World, crafter_laws, crafter_refresh, crafter_space
        >>> World(crafter_space(), crafter_laws(), refresh=crafter_refresh).refresh.__name__
        'crafter_refresh'
    """
    del action
    materials, size = jnp.asarray(state["materials"]), jnp.array(state["materials"].shape)
    faced = state["pos"] + jnp.asarray(_DIRECTIONS)[state["facing"]]
    _, inside = _at(materials, faced)
    x, y = jnp.clip(faced, 0, size - 1)
    new = after["target"].astype(materials.dtype)
    materials = materials.at[x, y].set(jnp.where(inside, new, materials[x, y]))
    occupied = jnp.asarray(state["occupied"]).at[state["pos"][0], state["pos"][1]].set(False)
    for kind in ("cow", "zombie"):
        old, there = state[kind], after[kind]
        occupied = _mark(occupied, old["pos"], old["alive"], False)
        occupied = _mark(occupied, there["pos"], there["alive"], True)
    occupied = occupied.at[after["pos"][0], after["pos"][1]].set(True)
    target, inside = _at(materials, after["pos"] + jnp.asarray(_DIRECTIONS)[after["facing"]])
    target = jnp.where(inside, target, 0).astype(after["target"].dtype)
    return {**after, "materials": materials, "occupied": occupied, "target": target}


def _mark(grid: Any, places: Any, alive: Any, value: bool) -> Any:
    x, y = jnp.where(alive[:, None], places, grid.shape[0]).T  # beyond the map: dropped
    return grid.at[x, y].set(value, mode="drop")
