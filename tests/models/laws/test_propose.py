"""Collecting proposals: libraries of laws, and laws that behave the same."""

import re

import jax.numpy as jnp
import pytest

from sojourn.environments import Meadow, record
from sojourn.models.laws import (
    Space,
    World,
    cells,
    law,
    levels,
    library,
    meadow_laws,
    meadow_space,
    one_of,
    propose,
    when,
)

SPACE = meadow_space()


@pytest.fixture(scope="module")
def seen():
    return record(Meadow(), 1000, seed=1)


def test_a_library_leaves_out_what_does_not_fit(seen):
    part = Space(energy=levels(10), weather=3, pos=cells(8, 8))
    assert [x.name for x in library(meadow_laws(), part)(seen)] == ["walk", "tire", "rest", "seasons"]
    assert library(meadow_laws())(seen) == meadow_laws()

    @law
    def broken(s, a):
        return when(s.pos > 0, energy=1)

    with pytest.raises(ValueError, match="its condition has shape"):
        library([broken], part)(seen)


def test_laws_that_behave_the_same_are_one(seen):
    @law(name="tire")
    def other_words(s, a):
        return when(~(a >= 4), energy=jnp.maximum(s.energy - 1, 0))

    @law(name="tire")
    def not_the_same(s, a):
        return when(a < 3, energy=s.energy - 1)

    @law(each="beast", name="roam")
    def other_order(beast, s, a):
        ways = next(x for x in meadow_laws() if x.name == "roam").function(beast, s, a).writes["pos"]
        twice = (*ways.values[::-1], *ways.values)  # each way counted twice, at half the probability
        return when(True, pos=one_of(twice))

    @law(name="never")
    def never(s, a):
        return when(a > 9, energy=s.energy - 1)

    @law(name="never")
    def never_either(s, a):
        return when(a > 10, energy=s.energy - 1)

    added = [other_words, not_the_same, other_order, never, never_either]
    laws = propose(seen, SPACE, [library(meadow_laws()), library(added), library(added)])
    names = [x.name for x in laws]
    assert names[:7] == [x.name for x in meadow_laws()]
    assert [re.sub(r"_\d", "", n) for n in names[7:]] == ["tire", "never", "never"]
    assert len(set(names)) == 10
    World(SPACE, laws)  # takes the names


def test_wrong_proposers(seen):
    with pytest.raises(ValueError, match="propose: no proposer proposes any law for these transitions"):
        propose(seen, SPACE, [library([])])
    with pytest.raises(ValueError, match="propose: 'tire' is no law"):
        propose(seen, SPACE, [lambda transitions: ["tire"]])
