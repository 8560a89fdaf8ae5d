"""Where laws come from: a library, a look at what changed, or a text that a person or a language model wrote.

A proposer is any function that looks at transitions and returns laws; :func:`propose` collects what several of them
have to say. None has to be right: a fit of the :class:`~sojourn.models.laws.World` of all proposals tells which laws
are real, and the others cost little.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from sojourn._arguments import is_list, must_be
from sojourn.environments import Transitions
from sojourn.environments.transitions import check_transitions
from sojourn.models.laws._cast import numeric
from sojourn.models.laws._law import Law
from sojourn.models.laws._space import Space
from sojourn.models.laws._world import World

__all__ = ["Proposer", "distinct", "library", "propose"]

Proposer = Callable[[Transitions], Iterable[Law]]
"""``proposer(transitions)``: laws that may explain them."""

_CHUNK = 1024
_FOREIGN = ("the space lacks", "which the states do not hold")  # what World says of a law of another world


def library(laws: Iterable[Law], space: Space | None = None) -> Proposer:
    """A proposer of hand-written laws.

    Args:
        laws: the library.
        space: if given, laws that read or write what this space or the states lack are left out, so that one library
            serves worlds that hold only part of what it speaks of.

    Example:
        >>> from sojourn.environments import Meadow, record
        >>> from sojourn.models.laws import Space, levels, library, meadow_laws
        >>> part = Space(energy=levels(10), weather=3)
        >>> [law.name for law in library(meadow_laws(), part)(record(Meadow(), 10))]
        ['tire', 'rest', 'seasons']
    """
    must_be(is_list(laws), "laws", "a list of laws", laws)
    must_be(space is None or isinstance(space, Space), "space", "a Space", space)
    laws = list(laws)
    for law in laws:
        must_be(isinstance(law, Law), "laws", "a list of laws, made by @law", law)

    def proposer(transitions: Transitions) -> list[Law]:
        if space is None:
            return laws
        first = _first(transitions)
        return [law for law in laws if _fits(law, space, *first)]

    return proposer


def _first(transitions: Transitions) -> tuple[Any, Any]:
    return jax.tree.map(itemgetter(0), (numeric(transitions.states), np.asarray(transitions.actions)))


def _fits(law: Law, space: Space, state: Any, action: Any) -> bool:
    try:
        World(space, [law]).look(state, action)
    except ValueError as error:
        if any(words in str(error) for words in _FOREIGN):
            return False
        raise
    return True


def propose(transitions: Transitions, space: Space, proposers: Iterable[Proposer]) -> list[Law]:
    """What several proposers propose, each law once.

    Of laws that behave the same in these transitions (they hold at the same times and would write the same) the first
    stays. Laws that hold nowhere in them cannot be compared and all stay. A name that is taken gets a number.

    Args:
        transitions: what the proposers look at.
        space: of the world.
        proposers: in order of preference.

    Raises:
        ValueError: nothing is proposed, or something that is no law; a law that does not fit the space or the states.

    Example:
        >>> from sojourn.environments import Meadow, record
        >>> from sojourn.models.laws import library, meadow_laws, meadow_space, propose
        >>> twice = [library(meadow_laws()), library(reversed(meadow_laws()))]
        >>> [law.name for law in propose(record(Meadow(), 100), meadow_space(), twice)]
        ['walk', 'tire', 'rest', 'pick', 'seasons', 'bite', 'roam']
    """
    check_transitions(transitions)
    must_be(isinstance(space, Space), "space", "a Space", space)
    must_be(is_list(proposers), "proposers", "a list of proposers", proposers)
    proposers = list(proposers)
    for proposer in proposers:
        must_be(callable(proposer), "proposers", "a list of functions of transitions", proposer)
    laws: list[Law] = []
    for proposed in itertools.chain.from_iterable(proposer(transitions) for proposer in proposers):
        if not isinstance(proposed, Law):
            raise ValueError(f"propose: {proposed!r} is no law; a proposer returns laws.")
        if proposed not in laws:
            laws.append(proposed)
    if not laws:
        raise ValueError(
            "propose: no proposer proposes any law for these transitions; record more of them or lower `min_count`."
        )
    names = distinct([law.name for law in laws])
    laws = [dataclasses.replace(law, name=name) for law, name in zip(laws, names, strict=True)]
    known: set[bytes] = set()
    kept = []
    for law, behaviour in zip(laws, _behaviours(space, laws, transitions), strict=True):
        if behaviour in known:
            continue
        kept.append(law)
        if behaviour is not None:
            known.add(behaviour)
    return kept


def distinct(names: Sequence[str]) -> list[str]:
    """Names made unique: from its second time on, a name gets a number."""
    taken = set(names)
    found: dict[str, None] = {}
    for name in names:
        new = name
        if name in found:
            numbered = (f"{name}_{number}" for number in itertools.count(2))
            new = next(candidate for candidate in numbered if candidate not in taken)
            taken.add(new)
        found[new] = None
    return list(found)


def _behaviours(space: Space, laws: Sequence[Law], transitions: Transitions) -> list[bytes | None]:
    """A digest of where each law holds and what it would write there; ``None`` if it holds nowhere."""
    world = World(space, laws)
    world.look(*_first(transitions))
    data = numeric(transitions.states), numeric(transitions.next_states), np.asarray(transitions.actions)
    # equal parameters get equal values, whatever law they belong to
    draws = {
        law.name: {
            name: prior.sample(jax.random.key(j)) for j, (name, prior) in enumerate(law.parameters.items())
        }
        for law in laws
    }
    # by name, so that the order in which a law writes does not matter
    writes = [sorted(enumerate(shape.writes), key=lambda w: w[1].attribute.name) for shape in world.shapes]
    digests = [
        hashlib.blake2b(repr((law.each, [w.attribute.name for _, w in of_law])).encode())
        for law, of_law in zip(laws, writes, strict=True)
    ]
    seen = np.zeros(len(laws), int)
    num = transitions.num_transitions
    for begin in range(0, num, _CHUNK):
        rows = np.minimum(np.arange(begin, begin + _CHUNK), num - 1)  # always as many: compiled once
        for i, cast in enumerate(world._cast_all(*jax.tree.map(itemgetter(rows), data), draws)):
            active = np.asarray(cast.active)[: num - begin]
            seen[i] += active.sum()
            digests[i].update(np.packbits(active).tobytes())
            for j, write in writes[i]:
                values, probs = (np.asarray(x[j])[: num - begin][active] for x in (cast.values, cast.probs))
                for array in _canonical(values, probs, write.uniform):
                    digests[i].update(array.tobytes())
    return [digest.digest() if n else None for digest, n in zip(digests, seen, strict=True)]


def _canonical(values: np.ndarray, probs: np.ndarray, uniform: bool) -> tuple[np.ndarray, ...]:
    """Outcomes ``(n, K)`` in order of their values, equal values made one, without those of probability zero."""
    if uniform:
        return (np.array([-1]),)
    order = np.argsort(values, -1, kind="stable")
    values = np.take_along_axis(values, order, -1)
    total, first = np.zeros(values.shape), np.zeros_like(values)
    place = np.cumsum(np.diff(values, axis=-1, prepend=values[:, :1]) != 0, -1)
    row = np.arange(len(values))[:, None]
    np.add.at(total, (row, place), np.take_along_axis(probs, order, -1))
    first[row, place] = values
    n, k = np.nonzero(total > 1e-9)
    return n, first[n, k].astype(np.int64), np.round(total[n, k], 5)
