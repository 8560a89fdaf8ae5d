"""Likelihoods under stochasticity against sums written out, and what is learnt with them."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import sojourn as sj
from sojourn.environments import Meadow, hooks, record
from sojourn.environments.meadow import WALLS
from sojourn.models.laws import (
    CyclicDrift,
    RandomAction,
    RandomEvent,
    Represented,
    StickyAction,
    SuddenDrift,
    World,
    law,
    meadow_laws,
    meadow_space,
    one_of,
    when,
    wrong_meadow_laws,
)

RATES = {"walk": 0.9, "tire": 0.2, "rest": 0.95, "pick": 0.7, "seasons": 0.1, "bite": 0.3, "roam": 0.5}
LATER = {**RATES, "bite": 0.8, "walk": 0.4}
FREE = np.argwhere(~WALLS).astype(np.int32)
NUM = 8


@law
def gust(s, a):
    return when(a != 5, pos=one_of(FREE))


@pytest.fixture(scope="module")
def world():
    return World(meadow_space(), meadow_laws())


@pytest.fixture(scope="module")
def seen():
    return record(Meadow(), NUM, seed=3, horizon=5)


def beliefs(world, rates=RATES, **more):
    return {n: v[0] for n, v in world.beliefs(world.supposing(rates, change=0.01)).items()} | {
        n: jnp.asarray(v) for n, v in more.items()
    }


def by_action(world, seen, rates=RATES):
    """``(T, 6)``: log-probability of each transition by the action executed."""
    guess = world.supposing(rates, change=0.01)
    return np.stack(
        [world.log_prob(guess, seen.states, np.full(NUM, a), seen.next_states) for a in range(6)], 1
    )


def total(noisy, series, values):
    log_prob = noisy._log_prob(values, series)
    return float((log_prob * series.count).sum() if log_prob.ndim else log_prob)


def test_random_actions_are_summed_out(x64, world, seen):
    noisy = world.under(RandomAction(6))
    p = 0.3
    exact = 0.0
    for t, row in enumerate(by_action(world, seen)):
        weights = np.full(6, p / 6)
        weights[seen.actions[t]] += 1 - p
        exact += np.log((weights * np.exp(row)).sum())
    assert total(noisy, noisy.route(*seen), beliefs(world, random_action=p)) == pytest.approx(exact, abs=1e-6)


def enumerated_sticky(world, seen, z, regimes):
    """Every sequence of executed actions and every moment of change, ``regimes`` being by time."""
    begins = np.arange(NUM) % 5 == 0
    chance = 0.0
    for log_probs in regimes:
        belief = None
        for t in range(NUM):
            meant = np.eye(6)[seen.actions[t]]
            if belief is None or begins[t]:
                moved = (1.0 if belief is None else belief.sum()) * meant
            else:
                moved = (1 - z) * belief.sum() * meant + z * belief
            belief = moved * np.exp(log_probs[t])
        chance += belief.sum() / len(regimes)
    return np.log(chance)


def test_sticky_actions_are_a_hidden_chain(x64, world, seen):
    noisy = world.under(StickyAction(6))
    exact = enumerated_sticky(world, seen, 0.25, [by_action(world, seen)])
    assert total(noisy, noisy.route(*seen), beliefs(world, sticky_action=0.25)) == pytest.approx(
        exact, abs=1e-6
    )


def hazards(world):
    return {"hazard_after": beliefs(world, LATER)["hazard"]}


@pytest.mark.parametrize("sticky", [False, True])
def test_the_moment_of_a_change_is_summed_out(x64, world, seen, sticky):
    first, second = by_action(world, seen), by_action(world, seen, LATER)
    regimes = [np.where(np.arange(NUM)[:, None] < tau, first, second) for tau in range(1, NUM)]
    if sticky:
        noisy = world.under(StickyAction(6), SuddenDrift())
        exact = enumerated_sticky(world, seen, 0.25, regimes)
        values = beliefs(world, sticky_action=0.25, **hazards(world))
    else:
        noisy = world.under(SuddenDrift())
        each = [r[np.arange(NUM), seen.actions].sum() for r in regimes]
        exact = np.logaddexp.reduce(each) - np.log(NUM - 1)
        values = beliefs(world, **hazards(world))
    assert total(noisy, noisy.route(*seen), values) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("sticky", [False, True])
def test_the_length_of_a_turn_is_summed_out(x64, world, seen, sticky):
    first, second = by_action(world, seen), by_action(world, seen, LATER)
    every = [2, 3]
    regimes = [np.where((np.arange(NUM) // e % 2 == 0)[:, None], first, second) for e in every]
    if sticky:
        noisy = world.under(StickyAction(6), CyclicDrift(every))
        exact = enumerated_sticky(world, seen, 0.25, regimes)
        values = beliefs(world, sticky_action=0.25, **hazards(world))
    else:
        noisy = world.under(CyclicDrift(every))
        each = [r[np.arange(NUM), seen.actions].sum() for r in regimes]
        exact = np.logaddexp.reduce(each) - np.log(2)
        values = beliefs(world, **hazards(world))
    assert total(noisy, noisy.route(*seen), values) == pytest.approx(exact, abs=1e-6)


def test_events_override_what_laws_did(x64, world, seen):
    """Where the event can happen: a mixture, position replaced, the rest of the state as the laws have it."""
    noisy = world.under(RandomEvent(gust))
    rate = 0.05
    guess = world.supposing(RATES, change=0.01)
    full = world.log_prob(guess, *seen)
    without = world.log_prob(
        guess, seen.states, seen.actions, {**seen.next_states, "pos": np.full((NUM, 2), -1)}
    )
    mixed = np.logaddexp(np.log1p(-rate) + full, np.log(rate) + without - np.log(len(FREE)))
    exact = np.where(seen.actions == 5, full, mixed).sum()
    values = beliefs(world, **{"gust.rate": rate})
    assert total(noisy, noisy.route(*seen), values) == pytest.approx(exact, abs=1e-6)


def test_kinds_compose(x64, world, seen):
    noisy = world.under(RandomEvent(gust), RandomAction(6), SuddenDrift(["bite"]))
    rate, p = 0.05, 0.3
    only_bite = {**RATES, "bite": LATER["bite"]}
    hidden = {**seen.next_states, "pos": np.full((NUM, 2), -1)}
    regimes = []
    for rates in (RATES, only_bite):
        guess = world.supposing(rates, change=0.01)
        rows = []
        for a in range(6):
            full = world.log_prob(guess, seen.states, np.full(NUM, a), seen.next_states)
            without = world.log_prob(guess, seen.states, np.full(NUM, a), hidden) - np.log(len(FREE))
            mixed = np.logaddexp(np.log1p(-rate) + full, np.log(rate) + without)
            # the event's condition is on the action that was meant
            rows.append(np.where(seen.actions == 5, full, mixed))
        weights = np.full((NUM, 6), p / 6)
        weights[np.arange(NUM), seen.actions] += 1 - p
        regimes.append(np.log((weights * np.exp(np.stack(rows, 1))).sum(1)))
    each = [np.where(np.arange(NUM) < tau, *regimes).sum() for tau in range(1, NUM)]
    exact = np.logaddexp.reduce(each) - np.log(NUM - 1)
    bite = beliefs(world, only_bite)["hazard"][world.names.index("bite")][None]
    values = beliefs(world, random_action=p, hazard_after=bite, **{"gust.rate": rate})
    assert total(noisy, noisy.route(*seen), values) == pytest.approx(exact, abs=1e-6)


def test_another_guise_is_taken_back(x64, world, seen):
    coded = hooks.represented(seen, lambda s: {**s, "pos": s["pos"] * 10 + 3})
    noisy = world.under(Represented(lambda s: {**s, "pos": (s["pos"] - 3) // 10}))
    plain = world.route(*seen)
    exact = float((world.situation_log_prob(beliefs(world), plain) * plain.count).sum())
    assert total(noisy, noisy.route(*coded), beliefs(world)) == pytest.approx(exact, abs=1e-9)


def test_activations_are_those_of_the_meant_actions(x64, world, seen):
    plain = world.route(*seen).activations
    for transform in (RandomAction(6), StickyAction(6), RandomEvent(gust), SuddenDrift()):
        assert world.under(transform).route(*seen).activations == plain


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda w: w.under(RandomAction(6), StickyAction(6)), "at most one RandomAction or StickyAction"),
        (lambda w: w.under("noise"), "'noise' is none of RandomAction"),
        (lambda w: w.under(RandomEvent(w.laws[0])), "already a law called 'walk'"),
        (lambda w: w.under(SuddenDrift(["fly"])), "there is no law 'fly' to drift"),
        (lambda w: RandomAction(1), "`num_actions` is a whole number of at least 2, not 1"),
        (lambda w: CyclicDrift([]), "`every` is a number of steps"),
        (lambda w: RandomEvent(w.laws[-1]), "must be a law of the world as a whole"),
        (
            lambda w: w.under(RandomAction(3)).route({}, np.array([1, 5]), {}),
            "actions must lie between 0 and 2",
        ),
        (
            lambda w: w.under(RandomAction(3)).moment(SimpleNamespace(posterior={}), None),
            "ask it of a world under drift",
        ),
        (
            lambda w: World(w.space, w.laws, pool="product").under(SuddenDrift()),
            "drift is for worlds with pool='hazard'",
        ),
    ],
)
def test_wrong_input(world, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(world)


def test_the_moment_of_a_change_is_found():
    """Biting .3 -> .9 and roaming .5 -> .1 at step 401 of 700."""
    world = World(meadow_space(), meadow_laws())
    seen = record(hooks.sudden_drift(Meadow(), Meadow(bite=0.9, roam=0.1), at=401), 700, seed=5)
    noisy = world.under(SuddenDrift(["bite", "roam"]))
    series = noisy.route(*seen)
    fit = sj.fit(noisy.model, series, engine="map", progress_bar=False)
    moment = noisy.moment(fit, series)
    assert abs(moment.idxmax() - 401) <= 6
    assert moment.sum() == pytest.approx(1.0, abs=1e-4)
    rate, after = (fit.posterior[n].values[0, 0] for n in ("rate", "rate_after"))
    roam = world.names.index("roam")
    assert abs(rate[roam] - 0.5) < 4.5 * np.sqrt(0.25 / 800)
    assert abs(after[1] - 0.1) < 4.5 * np.sqrt(0.09 / 600)


TRUE = {**RATES, "rest": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transform", "hook", "site", "truth"),
    [
        (RandomAction(6), lambda env: hooks.random_action(env, 0.3), "random_action", 0.3),
        (StickyAction(6), lambda env: hooks.sticky_action(env, 0.25), "sticky_action", 0.25),
        (
            RandomEvent(gust),
            lambda env: hooks.random_event(env, lambda rng, s, n: {"pos": rng.choice(FREE)}, 0.05),
            "gust.rate",
            0.05,
        ),
    ],
)
def test_the_matched_wrapper_recovers_the_rates(transform, hook, site, truth):
    world = World(meadow_space(), meadow_laws() + wrong_meadow_laws())
    seen = record(hook(Meadow()), 1500, seed=2)
    noisy = world.under(transform)
    matched = sj.fit(noisy.model, noisy.route(*seen), engine="map", progress_bar=False)
    naive = sj.fit(world.model, world.route(*seen), engine="map", progress_bar=False)

    def error(fit):
        rate = dict(zip(world.names, fit.posterior["rate"].values[0, 0], strict=True))
        return np.mean([abs(rate[n] - r) for n, r in TRUE.items()])

    assert error(matched) < 0.045
    if site != "gust.rate":
        assert error(matched) < 0.5 * error(naive)
    assert abs(float(matched.posterior[site].values[0, 0]) - truth) < 0.03
    wrong = [world.names.index(one.name) for one in wrong_meadow_laws()]
    assert matched.posterior["rate"].values[0, 0][wrong].max() < 0.03


def test_a_drifting_world_is_a_numpyro_model(world):
    """Its prior alone, too."""
    from numpyro import handlers

    noisy = world.under(RandomAction(6, prior=dist.Beta(2.0, 5.0)), CyclicDrift(3))
    trace = handlers.trace(handlers.seed(noisy.model, 0)).get_trace()
    assert set(trace) == {"hazard", "rate", "change", "hazard_after", "rate_after", "random_action"}


def test_every_pattern_has_one_action_at_least(x64, world, seen):
    noisy = world.under(RandomAction(6), RandomEvent(gust))
    series = noisy.route(*seen)
    assert series.situations.shape[1:3] == (6, 2)
    assert series.count.sum() == NUM
    assert set(itertools.chain(series.meant.tolist())) <= set(range(6))
    assert jax.tree.leaves(series)
