"""What a user can get wrong about laws: each has its sentence, and names the law."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from sojourn.models.laws import Objects, Space, World, cells, law, levels, one_of, when

SPACE = Space(
    pos=cells(4, 4), wood=levels(5), weather=("dry", "wet"), kind=3, cow=Objects(2, pos=cells(4, 4), gone=2)
)
STATE = {
    "pos": np.array([[1, 1], [2, 2]]),
    "wood": np.array([1, 4]),
    "weather": np.array([0, 1]),
    "kind": np.array([0, 2]),
    "cow": {"pos": np.zeros((2, 2, 2), int)},
}
ACTIONS = np.array([0, 1])


def test_laws_read_like_a_rule_book():
    @law
    def chop(s, a):
        return when((a == 1) & (s.weather == 0), wood=s.wood + 1)

    @law(each="cow", after="pos", prior=dist.Beta(9.0, 1.0), name="cow_flees")
    def flee(cow, s, a, bold=dist.Beta(1.0, 1.0)):
        return when((cow.pos == s.pos).all(), pos=one_of([cow.pos, s.before.pos], p=[bold, 1 - bold]))

    world = World(SPACE, [chop, flee])
    assert world.names == ["chop", "cow_flees"]
    assert list(world.parameters) == ["cow_flees.bold"]
    seen = world.route(STATE, ACTIONS, STATE)
    assert world.levels == [0, 1]
    assert seen.activations == {"chop": 0, "cow_flees": 0}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: World(SPACE, []), "there is no law at all"),
        (lambda: World(SPACE, [_chop(), _chop()]), "more than one is called 'chop'"),
        (lambda: World(SPACE, [lambda s, a: 0]), "is no law; decorate the function with @law"),
        (lambda: World(SPACE, [_chop()], pool="vote"), "`pool` is 'hazard' or 'product', not 'vote'"),
        (
            lambda: World(SPACE, [_chop()], prior=dist.Normal()),
            "`prior` is a Beta distribution of rates, not Normal",
        ),
        (lambda: World(SPACE, [_chop()], noise=0.0), "`noise` is a probability above 0"),
        (
            lambda: World(SPACE, [_chop(each="sheep")]),
            "law 'chop' is about each 'sheep', which the space lacks",
        ),
        (
            lambda: World(SPACE, [_chop(after="sun")]),
            "law 'chop' cannot see 'sun' after the step: the space lacks",
        ),
        (
            lambda: World(SPACE, [_chop(prior=dist.Beta(2.0, 2.0))], pool="product"),
            "law 'chop' has a prior of its rate, which pool='product' does not know",
        ),
        (lambda: _chop(prior=dist.Normal()), "law 'chop': `prior` is a Beta distribution"),
        (lambda: law(lambda s: when(True, wood=1)), r"must be \(state, action\); there are 1"),
        (lambda: law(each="cow")(lambda s, a: when(True, pos=1)), r"must be \(cow, state, action\)"),
        (lambda: law("chop"), "a law is a function of a state and an action"),
        (lambda: when(True), "a law has to write at least one attribute"),
        (lambda: one_of([1, 2], p=[0.5, 0.6]), r"\[0.5, 0.6\] do not sum to one"),
        (lambda: one_of([1, 2], p=[1.0]), "2 values have 1 probabilities"),
        (lambda: one_of([]), "at least one value"),
        (lambda: Space(), "declare at least one attribute"),
        (lambda: Space(before=3), "'before' is no name for an attribute"),
        (lambda: Space(wood=0), "'wood': a size is a whole number of at least 1, not 0"),
        (lambda: Space(gone=2), "'gone' must belong to Objects"),
        (lambda: cells(4, 2.5), "not 2.5"),
        (lambda: World(SPACE, [_chop()]).shapes, "it has seen no state yet"),
    ],
)
def test_at_declaration(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def _chop(**options):
    arguments = "cow, s, a" if "each" in options else "s, a"
    scope = {"when": when}
    exec(f"def chop({arguments}):\n    return when(a == 1, wood=s.wood + 1)", scope)
    return law(**options)(scope["chop"])


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (
            lambda s, a: when(True, stone=1),
            {},
            "law 'x' writes 'stone', which the space lacks; it has pos, wood",
        ),
        (
            lambda s, a: when(a == 1, kind=s.kind + 1),
            {},
            r"law 'x' writes 3 to 'kind', outside its support \(0..2\)",
        ),
        (lambda s, a: when(True, pos=s.pos + 2), {}, "law 'x' writes a cell off the grid to 'pos'"),
        (lambda s, a: when(True, pos=s.wood), {}, r"the value it writes to 'pos' must be a pair \(x, y\)"),
        (lambda s, a: when(True, wood=s.pos), {}, "the value it writes to 'wood' must be one number"),
        (
            lambda s, a: when(s.pos > 1, wood=1),
            {},
            r"its condition has shape \(2,\); it must be one truth value",
        ),
        (
            lambda s, a: when(s.cow.pos.sum() > s.moon, wood=1),
            {},
            "law 'x' reads 'moon', which the states do not hold",
        ),
        (lambda s, a: (s.wood, 1), {}, r"must return when\(condition, attribute=value, ...\), not tuple"),
        (
            lambda s, a: when(True, wood=one_of([1, 2], p=[s.wood / 8, 0.5])),
            {},
            "the probabilities of the values it writes to 'wood' do not sum to one",
        ),
        (
            lambda s, a: when(True, wood=s.wood + 1),
            {"after": "wood"},
            "law 'x' cannot see 'wood' after the step: it writes",
        ),
        (
            lambda s, a, p=dist.Beta(1.0, 1.0): when(p > 0.5, wood=1),
            {},
            "depend on a parameter; only the probabilities",
        ),
    ],
)
def test_at_routing(function, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        World(SPACE, [law(name="x", **options)(function)]).route(STATE, ACTIONS, STATE)


def test_probabilities_of_parameter_and_state():
    @law
    def x(s, a, p=dist.Beta(1.0, 1.0)):
        q = p * s.wood / 8
        return when(True, wood=one_of([1, 2], p=[q, 1 - q]))

    with pytest.raises(
        NotImplementedError, match="law 'x': its probabilities depend on a parameter and on the state"
    ):
        World(SPACE, [x]).route(STATE, ACTIONS, STATE)


def test_laws_that_wait_for_each_other():
    @law(after="pos")
    def chop(s, a):
        return when(True, wood=s.wood + s.pos[0])

    @law(after="wood")
    def walk(s, a):
        return when(True, pos=s.pos * (s.wood > 1))

    with pytest.raises(ValueError, match="'chop', 'walk' wait for each other"):
        World(SPACE, [chop, walk]).route(STATE, ACTIONS, STATE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wood": None}, "there is no 'wood', which the space declares"),
        ({"wood": np.array([1, 9])}, r"'wood' is 9 at \(1,\), outside its support"),
        ({"wood": np.array([1.5, 2])}, "'wood' must hold whole numbers"),
        ({"wood": np.array([1, 2, 3])}, "rows, and there are 2 actions"),
        ({"pos": np.array([1, 2])}, r"'pos' has shape \(2,\); it must be \(T, 2\)"),
        (
            {"pos": np.array([[1, 2], [4, 0]])},
            r"'pos' is \[4, 0\] at \(1,\), outside its support \(a cell of 4 x 4\)",
        ),
        ({"cow": None}, "there is no 'cow.pos', which the space declares"),
    ],
)
def test_states_that_do_not_fit(change, sentence):
    states = {k: v for k, v in {**STATE, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=sentence):
        World(SPACE, [_chop()]).route(states, ACTIONS, STATE)


def test_no_transitions_and_bad_weights():
    world = World(SPACE, [_chop()])
    with pytest.raises(ValueError, match="there are no transitions"):
        world.route(STATE, [], STATE)
    with pytest.raises(ValueError, match="`weights` must be 2 numbers that are not negative"):
        world.route(STATE, ACTIONS, STATE, weights=[1.0, -1.0])


def test_saturating_amounts_stop_at_their_ends():
    assert SPACE.attributes["wood"].encode(jnp.array([-3, 2, 7])).tolist() == [0, 2, 4]
    assert SPACE.attributes["kind"].encode(jnp.array([-3, 2, 7])).tolist() == [-3, 2, 7]
    assert SPACE.attributes["pos"].encode(jnp.array([[3, 2], [4, 0]])).tolist() == [14, -1]
    assert SPACE.attributes["pos"].value(14) == (3, 2)
    assert SPACE.attributes["weather"].value(1) == "wet"
