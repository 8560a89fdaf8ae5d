"""Laws read off what changed in the meadow, and off made-up changes of objects."""

import jax.numpy as jnp
import numpy as np
import pytest

import sojourn as sj
from sojourn.environments import Transitions, record
from sojourn.environments.meadow import BUSHES, MOVES, WALLS, Meadow
from sojourn.models.laws import (
    Objects,
    Space,
    TemplateProposer,
    World,
    levels,
    library,
    meadow_laws,
    meadow_space,
    propose,
    wrong_meadow_laws,
)

SPACE = meadow_space()
ACTIONS = ["up", "down", "left", "right", "pick", "rest"]


def blocked(s, a):
    there = s.pos + jnp.asarray(MOVES)[jnp.minimum(a, 3)]
    near = jnp.clip(there, 0, len(WALLS) - 1)
    return (near != there).any() | jnp.asarray(WALLS)[near[0], near[1]]


CONTEXT = {
    "blocked": blocked,
    "at_bush": lambda s, a: jnp.asarray(BUSHES)[s.pos[0], s.pos[1]],
    "beast_near": lambda s, a: (jnp.abs(s.beast.pos - s.pos).sum(-1) <= 1).any(),
}


@pytest.fixture(scope="module")
def seen():
    return record(Meadow(), 1000, seed=1)


@pytest.fixture(scope="module")
def proposed(seen):
    return propose(seen, SPACE, [TemplateProposer(SPACE, ACTIONS, context=CONTEXT)])


def test_templates_find_the_mechanics_of_the_meadow(seen):
    text = TemplateProposer(SPACE, ACTIONS).text(seen)
    for written in (
        "law energy+1_when_rest\n  when action == rest\n  energy += 1",
        "law energy-1_when_not_pick_rest\n  when action not in (pick, rest)\n  energy -= 1",
        "law weather_turns_1\n  when true\n  weather = (weather + 1) % 3",
        "law berries+1_when_pick\n  when action == pick\n  berries += 1",
        *(f"law pos_{way}_when_{way}\n  when action == {way}\n  pos += {way}" for way in ACTIONS[:4]),
        *(f"law beast_pos_{way} each beast\n  when true\n  pos += {way}" for way in ACTIONS[:4]),
    ):
        assert written in text


def test_with_context_the_proposals_are_the_true_laws(seen, proposed):
    laws = propose(seen, SPACE, [library(meadow_laws()), lambda _: proposed])
    # equal in behaviour to what was written by hand: tire, rest, pick, seasons and bite have gone; the walk is four
    # laws, and so are the steps of the beasts
    walk = {f"pos_{way}_when_{way}_not_blocked" for way in ACTIONS[:4]}
    assert {x.name for x in laws[7:]} == walk | {f"beast_pos_{way}" for way in ACTIONS[:4]}


RATES = {
    "energy-1_when_not_pick_rest": 0.2,
    "energy+1_when_rest": 1.0,
    "weather_turns_1": 0.1,
    "berries+1_when_pick_at_bush": 0.7,
    "health-2_when_beast_near": 0.3,
    **{f"pos_{way}_when_{way}_not_blocked": 0.9 for way in ACTIONS[:4]},
}


@pytest.fixture(scope="module")
def world(seen, proposed):
    laws = propose(seen, SPACE, [lambda _: proposed, library(wrong_meadow_laws())])
    return World(SPACE, laws)


def near(row, rate):
    # four posterior standard deviations, at most sqrt(p (1 - p) / n) + 1 / n
    sd = (rate * (1 - rate) / row.activations) ** 0.5 + 1 / row.activations
    return row.rate == pytest.approx(rate, abs=4 * sd)


def nothing_but_noise(transitions):
    """Mean log-probability under "attributes change at random now and then", fitted to the transitions themselves."""
    now, _ = SPACE.read(transitions.states, "states")
    then, _ = SPACE.read_next(transitions.states, transitions.next_states)
    of, total = SPACE.attribute_of_cell(), 0.0
    for i, attribute in enumerate(SPACE):
        same = (now == then)[:, of == i]
        rate = same.mean()
        total += np.where(same, np.log(rate), np.log((1 - rate) / (attribute.size - 1))).sum(1).mean()
    return total


def test_fitted_proposals_predict_as_the_truth_does(seen, world):
    routed = world.route(*seen)
    fit = sj.fit(world.model, routed, engine=sj.MaximumAPosteriori(num_restarts=1), progress_bar=False)
    table = world.summary(fit, routed)
    assert all(near(table.loc[name], rate) for name, rate in RATES.items())
    assert (table.rate[["teleport_home", "instakill", "rot", "rewind"]] < 0.02).all()
    fresh = record(Meadow(), 500, seed=7)
    ours, exact = world.log_prob(fit, *fresh).mean(), Meadow().log_prob(fresh).mean()
    # The truth is better by the error of some 20 rates, half a nat each in 1000 transitions (0.01), and by what it knows
    # of beasts at walls, which these laws let walk into them (0.1).
    assert exact - 0.2 < ours < exact + 0.01
    assert nothing_but_noise(fresh) < exact - 5


@pytest.mark.slow
def test_true_proposals_are_real_and_wrong_ones_absent(seen, world):
    routed = world.route(*seen)
    fit = sj.fit(
        world.model, routed, num_chains=1, num_warmup=300, num_samples=300, seed=0, progress_bar=False
    )
    table = world.summary(fit, routed)
    assert all(near(table.loc[name], rate) for name, rate in RATES.items())
    assert (table.verdict[[*RATES, *(f"beast_pos_{way}" for way in ACTIONS[:4])]] == "real").all()
    assert (table.verdict[["teleport_home", "rot", "rewind"]] == "absent").all()
    # A bite and an instakill are told apart only where more than 2 health is left. A law that n such activations never
    # saw happen has a rate of mean 1 / (n + 1), standard deviation the same.
    beasts, pos = seen.states["beast"]["pos"], seen.states["pos"][:, None]
    close = (np.abs(beasts - pos).sum(-1) <= 1).any(1)
    apart = (close & (seen.states["health"] > 2)).sum()
    assert apart > 15
    assert table.verdict["instakill"] != "real"
    assert table.rate["instakill"] < 2 / (apart + 1)
    assert table.rate["hunt"] < 0.1  # right by luck a quarter of the time


def test_templates_on_objects_that_die_joint_writes_and_amounts():
    rng = np.random.default_rng(3)
    num = 600
    action, target = rng.integers(0, 3, num), rng.integers(0, 3, num)
    wood, axe = rng.integers(0, 8, num), rng.integers(0, 3, num)
    alive = rng.random((num, 2)) < 0.8
    health = rng.integers(1, 6, (num, 2))
    cut = (action == 1) & (target == 1) & (rng.random(num) < 0.7)
    made = (action == 2) & (wood >= 3)
    hit = (action == 1)[:, None] & alive & (rng.random((num, 2)) < 0.5)
    dead = hit & (health == 1)
    states = {"target": target, "wood": wood, "axe": axe, "cow": {"alive": alive, "health": health}}
    after = {
        "target": np.where(cut, 0, target),
        "wood": np.where(made, wood - 3, wood + cut),
        "axe": axe + made,
        "cow": {"alive": alive & ~dead, "health": np.where(hit & ~dead, health - 1, health)},
    }
    space = Space(
        target=("grass", "tree", "coal ore"),
        wood=levels(10),
        axe=levels(10),
        cow=Objects(2, health=levels(6), gone=2),
    )
    look = TemplateProposer(space, ["noop", "do", "make"])
    text = look.text(Transitions(states, action, after))
    assert text.split("\n\n") == [
        "law target=grass_wood+1_when_do_target_tree\n  when action == do and target == tree\n"
        "  target = grass\n  wood += 1",
        "law wood-3_axe+1_when_make_wood_from_3\n  when action == make and wood >= 3\n  wood -= 3\n  axe += 1",
        "law cow_health-1_when_do_health_from_2 each cow\n  when action == do and health >= 2\n  health -= 1",
        "law cow_gone=1_when_do_health_to_1 each cow\n  when action == do and health <= 1\n  gone = 1",
    ]
    world = World(space, propose(Transitions(states, action, after), space, [look]))
    routed = world.route(states, action, after)
    assert (
        routed.activations["cow_gone=1_when_do_health_to_1"]
        == ((action == 1)[:, None] & alive & (health == 1)).sum()
    )


def test_what_was_not_seen_is_left_out(seen):
    rng = np.random.default_rng(0)
    hidden = rng.random(1000) < 0.3
    after = {**seen.next_states, "energy": np.where(hidden, -1, seen.next_states["energy"])}
    before = {**seen.states, "weather": np.where(hidden, -1, seen.states["weather"])}
    text = TemplateProposer(SPACE, ACTIONS).text(Transitions(before, seen.actions, after))
    assert "law energy+1_when_rest\n  when action == rest\n" in text
    assert "law weather_turns_1\n  when true\n" in text
    assert "energy = " not in text


def test_wrong_counts():
    with pytest.raises(ValueError, match="`min_count` is 0; it must be at least 1"):
        TemplateProposer(SPACE, min_count=0)
