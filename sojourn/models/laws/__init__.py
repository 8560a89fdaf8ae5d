r"""Worlds made of laws: preconditions and effects whose rates are learnt.

A stochastic world is written as a rule book. Each law is a function of a state and an action that says when it holds
and what it then writes; how often that happens is not written down but fitted, and so is which laws are real.

    >>> import jax.numpy as jnp
    >>> from sojourn.models.laws import Objects, Space, World, cells, law, levels, one_of, when
    >>> space = Space(pos=cells(8, 8), energy=levels(10), cow=Objects(2, pos=cells(8, 8)))
    >>> @law
    ... def rest(s, a):
    ...     return when(a == 0, energy=s.energy + 1)
    >>> @law
    ... def walk_east(s, a):
    ...     return when((a == 1) & (s.pos[0] < 7), pos=s.pos + jnp.array([1, 0]), energy=s.energy - 1)
    >>> @law(each="cow")
    ... def cow_roams(cow, s, a):
    ...     return when(True, pos=one_of([cow.pos, (cow.pos + 1) % 8]))
    >>> World(space, [rest, walk_east, cow_roams]).names
    ['rest', 'walk_east', 'cow_roams']

A law is declared once and answers everywhere: :meth:`World.route` sorts transitions by the laws that hold in them,
``World.model`` is the NumPyro model that any engine of :func:`sojourn.fit` takes, and a fitted world says which laws are
real (:meth:`World.summary`), how likely a next state is (:meth:`World.log_prob`, :meth:`World.rank`) and what a plan
leads to (:meth:`World.simulate`, :meth:`World.compare_plans`).

After OneLife: Khan et al. (2025), "One life to learn: inferring symbolic world models for stochastic environments from
unguided exploration". The default pool is not theirs; see :class:`World`.
"""

from sojourn.models.laws._answers import Ranking, edit_distance
from sojourn.models.laws._declared_form import TextProposer, read_laws
from sojourn.models.laws._law import Effect, Law, Outcome, anywhere, law, one_of, when
from sojourn.models.laws._noisy_world import NoisyWorld, RoutedSeries
from sojourn.models.laws._propose import Proposer, library, propose
from sojourn.models.laws._routing import Routed
from sojourn.models.laws._space import Objects, Space, cells, levels
from sojourn.models.laws._stochasticity import (
    CyclicDrift,
    Hidden,
    RandomAction,
    RandomEvent,
    Represented,
    StickyAction,
    SuddenDrift,
)
from sojourn.models.laws._templates import TemplateProposer
from sojourn.models.laws._world import World
from sojourn.models.laws.crafter import crafter_laws, crafter_refresh, crafter_space, wrong_crafter_laws
from sojourn.models.laws.meadow import meadow_laws, meadow_space, wrong_meadow_laws

__all__ = [
    "CyclicDrift",
    "Effect",
    "Hidden",
    "Law",
    "NoisyWorld",
    "Objects",
    "Outcome",
    "Proposer",
    "RandomAction",
    "RandomEvent",
    "Ranking",
    "Represented",
    "Routed",
    "RoutedSeries",
    "Space",
    "StickyAction",
    "SuddenDrift",
    "TemplateProposer",
    "TextProposer",
    "World",
    "anywhere",
    "cells",
    "crafter_laws",
    "crafter_refresh",
    "crafter_space",
    "edit_distance",
    "law",
    "levels",
    "library",
    "meadow_laws",
    "meadow_space",
    "one_of",
    "propose",
    "read_laws",
    "when",
    "wrong_crafter_laws",
    "wrong_meadow_laws",
]
