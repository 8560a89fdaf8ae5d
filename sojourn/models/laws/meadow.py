"""The rule book of the meadow (:mod:`sojourn.environments.meadow`): its seven laws, and five wrong ideas."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from sojourn.environments.meadow import BUSHES, MOVES, PICK, REST, WALLS
from sojourn.models.laws._law import Law, law, one_of, when
from sojourn.models.laws._space import Objects, Space, cells, levels

__all__ = ["meadow_laws", "meadow_space", "wrong_meadow_laws"]

WEATHER = ("dry", "wet", "windy")
_MOVES = MOVES.astype(np.int32)


def meadow_space() -> Space:
    """What the meadow consists of.

    Example:
        >>> from sojourn.models.laws import meadow_space
        >>> meadow_space().attributes["weather"].labels
        ('dry', 'wet', 'windy')
    """
    side = len(WALLS)
    return Space(
        pos=cells(side, side),
        energy=levels(10),
        health=levels(10),
        berries=levels(10),
        weather=WEATHER,
        beast=Objects(2, pos=cells(side, side)),
    )


def _step(pos: Any, direction: Any) -> Any:
    """One cell on, unless a wall or the edge is in the way."""
    there = pos + jnp.asarray(direction)
    near = jnp.clip(there, 0, len(WALLS) - 1)
    blocked = (near != there).any() | jnp.asarray(WALLS)[near[0], near[1]]
    return jnp.where(blocked, pos, there)


def _beast_near(s: Any) -> Any:
    return (jnp.abs(s.beast.pos - s.pos).sum(-1) <= 1).any()


@law
def walk(s, a):
    return when(a < 4, pos=_step(s.pos, jnp.asarray(_MOVES)[jnp.minimum(a, 3)]))


@law
def tire(s, a):
    return when(a < 4, energy=s.energy - 1)


@law
def rest(s, a):
    return when(a == REST, energy=s.energy + 1)


@law
def pick(s, a):
    return when((a == PICK) & jnp.asarray(BUSHES)[s.pos[0], s.pos[1]], berries=s.berries + 1)


@law
def seasons(s, a):
    return when(True, weather=(s.weather + 1) % 3)


@law
def bite(s, a):
    return when(_beast_near(s), health=s.health - 2)


@law(each="beast")
def roam(beast, s, a):
    return when(True, pos=one_of([_step(beast.pos, move) for move in _MOVES]))


@law
def teleport_home(s, a):
    return when(a < 4, pos=jnp.array([0, 0]))


@law
def instakill(s, a):
    return when(_beast_near(s), health=0)


@law
def rot(s, a):
    return when(a == REST, berries=s.berries - 1)


@law
def rewind(s, a):
    return when(True, weather=(s.weather + 2) % 3)


@law(each="beast")
def hunt(beast, s, a):
    gap = s.pos - beast.pos
    along_x = jnp.abs(gap[0]) > jnp.abs(gap[1])
    return when(True, pos=_step(beast.pos, jnp.sign(gap) * jnp.array([along_x, ~along_x])))


def meadow_laws() -> list[Law]:
    """The laws of the meadow: walk, tire, rest, pick, seasons, bite and roam.

    Their true rates are .9, .2, 1, .7, .1, .3 and .5 (see :class:`~sojourn.environments.Meadow`).

    Example:
        >>> from sojourn.models.laws import World, meadow_laws, meadow_space
        >>> World(meadow_space(), meadow_laws()).names
        ['walk', 'tire', 'rest', 'pick', 'seasons', 'bite', 'roam']
    """
    return [walk, tire, rest, pick, seasons, bite, roam]


def wrong_meadow_laws() -> list[Law]:
    """Five wrong ideas about the meadow, one of which (beasts hunt) is sometimes right by luck.

    Example:
        >>> from sojourn.models.laws import wrong_meadow_laws
        >>> [law.name for law in wrong_meadow_laws()]
        ['teleport_home', 'instakill', 'rot', 'rewind', 'hunt']
    """
    return [teleport_home, instakill, rot, rewind, hunt]
