"""Proposers of laws: libraries, templates read off what changed, and the declared form."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import sojourn as sj
from sojourn.environments import Transitions, record
from sojourn.environments.meadow import BUSHES, MOVES, WALLS, Meadow
from sojourn.models.laws import (
    Objects,
    Space,
    World,
    anywhere,
    cells,
    law,
    levels,
    meadow_laws,
    meadow_space,
    one_of,
    when,
    wrong_meadow_laws,
)
from sojourn.models.laws.proposers import TemplateProposer, TextProposer, library, propose, read_laws

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


# ---------------------------------------------------------------------------------------------------- collecting


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
    with pytest.raises(ValueError, match="`min_count` is 0; it must be at least 1"):
        TemplateProposer(SPACE, min_count=0)


# ----------------------------------------------------------------------------------------------------- templates


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


# ----------------------------------------------------------------------------------------------------- the form

STATE = {
    "pos": [[0, 3]],
    "facing": [2],
    "stone": [2],
    "target": [2],
    "cow": {"alive": [[True, True, False]], "pos": [[[0, 2], [3, 3], [0, 3]]], "health": [[3, 1, 2]]},
}
FORM = Space(
    pos=cells(4, 6),
    facing=("left", "right", "up", "down"),
    stone=levels(10),
    target=("grass", "tree", "stone", "coal ore"),
    cow=Objects(3, pos=cells(4, 6), health=levels(6), gone=2),
)
NAMES = ["noop", "do", "sleep"]


def look_at(text, action=1, after=None, **options):
    """Where each law holds, and the codes that it would write."""
    laws = read_laws(text, FORM, NAMES, **options)
    world = World(FORM, laws)
    state = {k: np.asarray(v) if not isinstance(v, dict) else {} for k, v in STATE.items()}
    state["cow"] = {k: np.asarray(v) for k, v in STATE["cow"].items()}
    world.look(
        {k: v[0] if not isinstance(v, dict) else {n: x[0] for n, x in v.items()} for k, v in state.items()}
    )
    casts = world._cast_all(state, after or state, np.array([action]), world._prior_draw(0))
    return {
        law.name: (np.asarray(cast.active)[0].tolist(), [np.asarray(v)[0].tolist() for v in cast.values])
        for law, cast in zip(laws, casts, strict=True)
    }


CONDITIONS = [
    ("true", True),
    ("false or not true", False),
    ("action == do and target == stone", True),  # the category, not the amount of stone
    ("stone == target", True),  # two attributes, both 2
    ("stone == target and stone == 2", True),
    ("action == sleep", False),
    ("action in (do, sleep) and action != sleep", True),
    ("facing not in (left, right)", True),
    ("facing == up and 'up' == facing", True),
    ("target != 'coal ore'", True),
    ("1 < stone <= 2", True),
    ("stone - 3 < -1 or stone % 2 == 1", False),
    ("stone + 1 == 3 and -stone == -2", True),
    ("pos == (0, 3)", True),
    ("pos + up == (0, 2)", True),
    ("pos in ((1, 1), (0, 3))", True),
    ("distance(pos, (2, 2)) == 3", True),
    ("any(distance(pos, cow.pos) <= 1)", True),
    ("any(distance(pos, cow.pos) == 0)", False),  # that one is not alive
    ("any(cow.health < 2 and cow.pos == (3, 3))", True),
    ("any(not cow.pos == (0, 2) and cow.health == 3)", False),
]


def test_conditions():
    text = "".join(
        f"law law_{i}\n when {condition}\n stone += 1\n" for i, (condition, _) in enumerate(CONDITIONS)
    )
    found = [active for active, _ in look_at(text).values()]
    assert dict(zip([c for c, _ in CONDITIONS], found, strict=True)) == dict(CONDITIONS)


def test_conditions_may_use_functions():
    context = {
        "rich": lambda s, a: s.stone > 1,
        "depth": lambda s, a: s.pos[1],
        "cow.weak": lambda c, s, a: c.health < 2,
    }
    text = """
        law a each cow
          when weak and rich
          gone = 1
        law b
          when rich and depth == 3 and not depth == 2
          stone += 1
        """
    found = look_at(text, context=context)
    assert found["a"][0] == [False, True, False]
    assert found["b"][0] is True


def test_effects():
    found = look_at(
        """
        law by_steps     # a comment
          when true
          pos one of stay, left, right, pos + (1, 1)   # (1, 1) further on
          stone -= 5
        law off_the_grid
          when true
          pos += (0, 9)
        law absolute
          when true
          pos = (3, 5)
          target = 'coal ore'  # it's black
          facing one of left, down
        law swap
          when true
          target = facing + 1
          stone = any_number % 2
        law own each cow after pos
          when distance(world.pos, pos) < 3 and cow.health >= health
          pos += down
          health = world.stone - 1
        """,
        context={"any_number": lambda s, a: 5},
    )
    height = 6
    assert found["by_steps"][1] == [[3, 3, height + 3, height + 4], [0]]
    assert found["off_the_grid"] == (True, [[3]])
    assert found["absolute"][1] == [[3 * height + 5], [3], [0, 3]]
    assert found["swap"][1] == [[3], [1]]
    active, (pos, health) = found["own"]
    assert active == [True, False, False]
    assert pos == [[3], [3 * height + 4], [4]]
    assert health == [[1]] * 3


def test_laws_of_a_later_phase_see_what_has_happened():
    after = {
        "pos": np.array([[3, 4]]),
        "cow": {"alive": np.array([[False, True, False]]), "pos": np.zeros((1, 3, 2))},
    }
    text = "law a after pos, cow.gone\n when pos == (3, 4) and any(cow.health {})\n stone += 1"
    full = {**{k: np.asarray(v) for k, v in STATE.items() if k != "cow"}, **after}
    assert look_at(text.format("< 2"), after=full)["a"][0] is True
    assert look_at(text.format("== 3"), after=full)["a"][0] is False  # that cow is gone


def test_anywhere_and_a_file(tmp_path):
    path = tmp_path / "laws.txt"
    path.write_text("law lost\n when action == 2\n pos = anywhere\n")
    for given in (path, str(path)):
        (found,) = read_laws(given, FORM, NAMES)
        assert found.function(None, 2).writes["pos"] == anywhere()
    assert [x.name for x in TextProposer(path, FORM, NAMES)(None)] == ["lost"]


LAW = "law a\n  when {}\n  stone += 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stone += 1\n", "line 1: this belongs to no law; begin with `law name`"),
        ("law\n", "line 1: a law begins with `law name`"),
        ("law a b\n", "line 1: a law begins with `law name`"),
        ("law a each dog\n", "line 1, law 'a': there is no class of objects 'dog'; there are cow"),
        ("law a after sky\n", "line 1, law 'a': after 'sky': no such attribute; there are pos, facing"),
        ("law a\n stone += 1\n", "line 1, law 'a': it has no `when`; a law that always holds says `when true`"),
        ("\nlaw a\n when true\n", "line 2, law 'a': it writes nothing"),
        (LAW.format("true") + LAW.format("true"), "line 4, law 'a': another law has this name"),
        (LAW.format("true") + " when true\n", "line 4, law 'a': there is a second `when`"),
        (LAW.format("true") + " stone = 1\n", "line 4, law 'a': 'stone' is written twice"),
        (LAW.format("true") + " gold += 1\n", "line 4, law 'a': it cannot write 'gold'; there are pos"),
        (LAW.format("true") + " cow.pos += up\n", "line 4, law 'a': it cannot write 'cow.pos'"),
        (LAW.format("true") + " make it so\n", "line 4, law 'a': cannot read 'make it so'; write `when condition`"),
        (LAW.format("true") + " pos = 3\n", "line 4, law 'a': 'pos' takes a pair (x, y), not a number"),
        (LAW.format("true") + " pos += 3\n", "line 4, law 'a': 'pos' takes a pair (x, y), not a number"),
        (LAW.format("true") + " target = up\n", "line 4, law 'a': 'target' takes a number, not a pair"),
        (LAW.format("true") + " target = tre\n", "line 4, law 'a': nothing is called 'tre' here; there are grass, tree"),
        (LAW.format("true") + " pos = cow.pos\n", "line 4, law 'a': what is written to 'pos' ranges over all cow objects"),
        (LAW.format(""), "line 2, law 'a': '()' is not in the declared form"),
        (LAW.format("stone"), "line 2, law 'a': 'stone' is a number, where a condition is needed"),
        (LAW.format("stone and true"), "line 2, law 'a': 'stone' is a number, where a condition is needed"),
        (LAW.format("target == 'tree"), "line 2, law 'a': cannot read the expression"),
        (LAW.format("stone =="), "line 2, law 'a': cannot read the expression 'stone =='"),
        (LAW.format("pos == 3"), "line 2, law 'a': 'pos == 3' does not work for a number and a pair"),
        (LAW.format("pos < (1, 2)"), "line 2, law 'a': 'pos < (1, 2)' puts cells in order"),
        (LAW.format("distance(pos, 2) < 1"), "line 2, law 'a': 'distance(pos, 2)': a distance is that of two cells"),
        (LAW.format("cow.health < 2"), "line 2, law 'a': 'cow.health < 2' ranges over all cow objects; say any(..)"),
        (LAW.format("any(stone < 2)"), "line 2, law 'a': any(stone < 2) asks about no class of objects"),
        (LAW.format("cow.colour == 2"), "line 2, law 'a': there is no cow.colour; there are world.pos"),
        (LAW.format("stone in target"), "line 2, law 'a': 'stone in target': after `in` comes a list of values"),
        (LAW.format("target == gras"), "line 2, law 'a': nothing is called 'gras' here; there are grass, tree"),
        (LAW.format("action == jump"), "line 2, law 'a': nothing is called 'jump' here; there are noop, do"),
        (LAW.format("stone < 99999999999"), "line 2, law 'a': '99999999999' is not in the declared form"),
        (LAW.format("not " * 60 + "true"), "line 2, law 'a': the expression is nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_not_in_the_form_is_named_by_line_and_law(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_laws(text, FORM, NAMES)


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('true')",
        "pos.__class__",
        "(lambda: true)()",
        "[x for x in (1, 2)]",
        "stone if true else stone",
        "(stone := 3) == 3",
        "stone ** 99 == 1",
        "stone[0] == 1",
        "f'{stone}' == 1",
        "any(cow.pos == pos, key=1)",
        "stone is 2",
        "...",
        "None",
        "b'tree' == target",
        "-" * 5000 + "stone == 1",
        "(" * 3000,
    ],
)
def test_nothing_else_is_read(attack):
    for text in (LAW.format(attack), LAW.format("true") + f" target = {attack}\n"):
        with pytest.raises(ValueError, match=r"line \d, law 'a': "):
            read_laws(text, FORM, NAMES)
