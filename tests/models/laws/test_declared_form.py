"""The declared form: what it says, and that nothing else is read."""

import re

import numpy as np
import pytest

from sojourn.models.laws import Objects, Space, TextProposer, World, anywhere, cells, levels, read_laws

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
    ("any(cow.pos == (cow.health - 3, 2))", True),
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
        (LAW.format("true") + " pos one of 1] + [2\n", "line 4, law 'a': cannot read the values '1] + [2'"),
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
        (LAW.format("lambda: " + "-" * 500 + "1"), "line 2, law 'a': the expression is nested too deeply"),
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
