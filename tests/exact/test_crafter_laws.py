"""The laws of Crafter, learnt from recorded transitions of the real game, against its code (Hafner 2022, version 1.8.3).

6000 transitions of the law laboratory to learn from, 1000 more and 600 of random play to be asked about; the posterior
mode of the rates of the 38 laws together with twelve wrong ones. Bounds are of the sampling error of the records or
those that a first program of this kind reached on other records of the same size (prototype).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sojourn as sj
from sojourn.environments.crafter_mutants import crafter_mutants
from sojourn.environments.crafter_records import crafter_transitions
from sojourn.models.laws import (
    Space,
    World,
    crafter_laws,
    crafter_space,
    law,
    levels,
    when,
    wrong_crafter_laws,
)

PATH = Path(__file__).parents[1] / "data" / "crafter_transitions.npz"
TRUE, WRONG = ([one.name for one in laws] for laws in (crafter_laws(), wrong_crafter_laws()))


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Not here: these compile for longer than they run."""


@pytest.fixture(scope="module")
def learnt():
    """World, fit and routed transitions."""
    world = World(crafter_space(), crafter_laws() + wrong_crafter_laws())
    routed = world.route(*crafter_transitions(PATH))
    engine = sj.MaximumAPosteriori(num_restarts=1)
    return world, sj.fit(world.model, routed, engine=engine, progress_bar=False), routed


@pytest.fixture(scope="module")
def rates(learnt):
    world, fit, _ = learnt
    return dict(zip(world.names, np.asarray(fit.posterior["rate"])[0, 0], strict=True))


def test_transitions_merge(learnt):
    """Some 37 situations a transition; all in all 600 different ones."""
    _, _, routed = learnt
    assert routed.num_transitions == 6000
    assert routed.book.num_rows > 200_000
    assert routed.rows.num_rows < 700
    assert routed.book.dropped == 0


def test_rates_are_those_in_the_code(rates, learnt):
    """Saplings 0.1, seen 627 times: standard error 0.012. Cows 0.5, seen 27680 times: 0.003."""
    assert rates["find_sapling"] == pytest.approx(0.0933, abs=0.02)
    assert rates["find_sapling"] == pytest.approx(0.1, abs=0.024)
    assert rates["cow_roams"] == pytest.approx(0.502, abs=0.01)
    assert learnt[2].activations["find_sapling"] == 627


def test_laws_that_always_happen(rates, learnt):
    """Where a law never failed in n activations the mode is n / (n + 1), the prior of the hazard being exponential.

    Less up to 0.002, for what is written might have come by noise or unexplained change.
    """
    assert sum(rates[name] > 0.85 for name in TRUE) >= 27
    _, _, routed = learnt
    for name in ("turn", "walk", "collect_drink", "collect_wood", "kill_cow", "place_stone"):
        n = routed.activations[name]
        assert n / (n + 1) - 0.002 < rates[name] < n / (n + 1) + 1e-4, name


def test_laws_that_see_the_player_after_its_step(rates):
    """With phases; without them they come out at 0.91 to 0.94."""
    for name in ("zombie_bites", "zombie_rests", "zombie_winds_up"):
        assert rates[name] > 0.99, name


def test_wrong_laws_are_absent(rates):
    assert {name: rates[name] for name in WRONG if rates[name] > 0.005} == {}


def test_held_out_likelihood(learnt):
    """Nats a transition. The prototype reached -6.84 on other records of the laboratory, which vary by 0.1.

    On these: fitted -6.71, all rates one half -9.99, no laws -43.98; in random play, fitted, -4.46.
    """
    world, fit, _ = learnt
    seen, wild = (crafter_transitions(PATH, name) for name in ("test", "wild"))
    fitted, even, none = (
        world.log_prob(beliefs, *seen).mean() for beliefs in (fit, world.supposing(0.5), world.supposing(0.0))
    )
    assert fitted > -6.84
    assert fitted > even + 2
    assert even > none + 20
    assert world.log_prob(fit, *wild).mean() > -4.6


def test_the_truth_is_told_from_what_is_illegal(learnt):
    world, fit, _ = learnt
    seen = crafter_transitions(PATH, "test")
    ranking = world.rank(fit, seen, crafter_mutants(seen))
    assert ranking.rank_1 >= 0.98
    assert ranking.num_candidates.mean() > 5


@pytest.mark.parametrize(("number", "reciprocal"), [(7, 0.3704), (11, 0.2745)])
def test_a_model_that_knows_nothing_ranks_at_random(number, reciprocal):
    """Rank@1 = 1/N, MRR = H_N / N; within 4 standard errors of 8000 rankings."""

    @law
    def asleep(s, a):
        return when(a == 1, value=0)

    world, num = World(Space(value=levels(100)), [asleep]), 8000
    seen = {"value": np.zeros(num, int)}, np.zeros(num, int), {"value": np.full(num, 50)}
    ranking = world.rank(world.supposing(0.5), seen, [{"value": np.full(num, k)} for k in range(1, number)])
    assert (ranking.num_candidates == number).all()
    places = np.arange(1, number + 1)
    assert np.mean(1 / places) == pytest.approx(reciprocal, abs=5e-5)
    error = np.sqrt((1 / number) * (1 - 1 / number) / num)
    assert ranking.rank_1 == pytest.approx(1 / number, abs=4 * error)
    assert ranking.mean_reciprocal_rank == pytest.approx(
        np.mean(1 / places), abs=4 * np.std(1 / places) / np.sqrt(num)
    )
    counts = np.bincount(ranking.rank, minlength=number + 1)[1:]
    np.testing.assert_allclose(counts / num, 1 / number, atol=4 * error)
