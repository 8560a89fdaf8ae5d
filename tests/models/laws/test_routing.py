"""Routing against the density worked out transition by transition, law set by law set."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from sojourn.models.laws import Objects, Space, World, anywhere, cells, law, levels, one_of, when
from sojourn.models.laws._cast import cast_one, numeric
from tests.ops.law_enumeration import enumerated


@law
def walk(s, a):
    there = s.pos + jnp.array([1, 0])
    return when((a == 0) & (there[0] < 4), pos=there, energy=s.energy - 1)


@law
def tire(s, a):
    return when(a <= 1, energy=s.energy - 2)


@law
def jump(s, a):
    return when(a == 0, pos=anywhere())


@law
def eat(s, a):
    return when(a == 2, food=s.food - 1, energy=s.energy + 2)


@law
def cook(s, a):
    return when((a == 2) & (s.food > 0), food=0, weather=one_of([0, 2], p=[0.25, 0.75]))


@law
def turn(s, a):
    return when(True, weather=(s.weather + 1) % 3)


@law(each="cow", after="pos")
def flee(cow, s, a, bold=dist.Beta(2.0, 2.0)):
    near = jnp.abs(cow.pos - s.pos).sum() <= 2
    step = jnp.where(cow.pos[1] < 3, jnp.array([0, 1]), 0)
    return when(near, pos=one_of([cow.pos + step, cow.pos], p=[1 - bold, bold]))


@law(each="cow", after="pos")
def caught(cow, s, a):
    return when((cow.pos == s.pos).all() & (a == 0), gone=1, score=s.score + 3)


LAWS = [walk, tire, jump, eat, cook, turn, flee, caught]
SPACE = Space(
    pos=cells(4, 4),
    energy=levels(6),
    food=levels(5),
    score=levels(5),
    weather=("dry", "wet", "windy"),
    cow=Objects(3, pos=cells(4, 4), gone=2),
)
RATES = {
    "walk": 0.6,
    "tire": 0.3,
    "jump": 0.2,
    "eat": 0.7,
    "cook": 0.4,
    "turn": 0.1,
    "flee": 0.5,
    "caught": 0.8,
}


def transitions(num, seed=0):
    """Any states at all: most next states are such as some law would bring about, some are not."""
    rng = np.random.default_rng(seed)
    states = {
        "pos": rng.integers(0, 4, (num, 2)),
        "energy": rng.integers(0, 6, num),
        "food": rng.integers(0, 5, num),
        "score": rng.integers(0, 5, num),
        "weather": rng.integers(0, 3, num),
        "cow": {"pos": rng.integers(0, 4, (num, 3, 2)), "alive": rng.random((num, 3)) < 0.8},
    }
    after = {
        k: np.copy(v) if not isinstance(v, dict) else {n: np.copy(x) for n, x in v.items()}
        for k, v in states.items()
    }
    moved = rng.random(num) < 0.5
    after["pos"][moved, 0] = np.minimum(after["pos"][moved, 0] + 1, 3)
    for name, size, steps in (
        ("energy", 6, (-2, -1, 0, 2)),
        ("food", 5, (-1, 0, -4)),
        ("score", 5, (0, 3)),
        ("weather", 3, (0, 1)),
    ):
        after[name] = np.clip(after[name] + rng.choice(steps, num), 0, size - 1)
    after["cow"]["pos"][..., 1] = np.minimum(after["cow"]["pos"][..., 1] + (rng.random((num, 3)) < 0.4), 3)
    after["cow"]["alive"] &= rng.random((num, 3)) < 0.8
    return states, rng.integers(0, 3, num), after


@pytest.fixture(scope="module")
def world():
    return World(SPACE, LAWS)


def reference(world, beliefs, state, action, after):
    """log p(after | state, action): every set of laws that can have fired, all cells at once."""
    space = world.space
    state, after = numeric(state), numeric(after)
    wrap = jax.tree.map(lambda x: np.asarray(x)[None], (state, after))
    now, exists = space.read(wrap[0], "states")
    then, exists_after = space.read_next(*wrap)
    hazard, writes, seen = [], [], []
    for i, one in enumerate(world.laws):
        cast = cast_one(space, one, state, after, action, world.law_parameters(i, beliefs))
        shape = world.shapes[i]
        active = np.atleast_1d(cast.active)
        for slot, cells_of_law in enumerate(world.cells[i]):
            if not active[slot]:
                continue
            row, q = np.zeros(space.num_cells, bool), np.ones(space.num_cells)
            for j, (cell, write) in enumerate(zip(cells_of_law, shape.writes, strict=True)):
                size = write.attribute.size
                values = np.asarray(cast.values[j]).reshape(-1, write.num_outcomes)
                probs = np.asarray(cast.probs[j], float).reshape(-1, write.num_outcomes)
                values, probs = values[slot % len(values)], probs[slot % len(probs)]
                p = 1 / size if write.uniform else probs[values == then[0, cell]].sum()
                row[cell], q[cell] = True, (1 - world.noise) * p + world.noise / size
            hazard.append(float(beliefs["hazard"][i]))
            writes.append(row)
            seen.append(q)
    sizes = world.sizes[world.attribute_of]
    change = np.asarray(beliefs["change"], float)[world.attribute_of]
    frame = np.where(now == then, 1 - change, 0)[0] + change / sizes
    unseen = ~(exists & exists_after)[0]
    frame[unseen] = 1.0
    for q in seen:
        q[unseen] = 1.0
    if not hazard:
        return np.log(frame).sum()
    return np.log(enumerated(np.array(hazard), np.array(writes), np.array(seen), frame))


def test_routed_density_is_the_enumeration(x64, world):
    states, actions, after = transitions(40)
    guess = world.supposing(RATES, change=0.03, flee__bold=0.3)
    routed = world.log_prob(guess, states, actions, after)
    beliefs = {n: v[0] for n, v in world.beliefs(guess).items()}
    for t in range(40):
        one = jax.tree.map(lambda x, t=t: x[t], (states, after))
        np.testing.assert_allclose(
            routed[t], reference(world, beliefs, one[0], actions[t], one[1]), atol=1e-6
        )


def test_chunks_and_merging_change_nothing(x64, world):
    given = transitions(300)
    guess = world.supposing(RATES, change=0.03)
    whole, pieces = world.route(*given), world.route(*given, chunk=37)
    assert whole.rows.num_rows < whole.book.num_rows
    np.testing.assert_array_equal(np.sort(whole.count), np.sort(pieces.count))
    np.testing.assert_allclose(
        world.log_likelihood(guess, whole), world.log_likelihood(guess, pieces), rtol=1e-12
    )
    one = [world.log_prob(guess, *jax.tree.map(lambda x, t=t: x[t : t + 1], given))[0] for t in range(5)]
    np.testing.assert_allclose(world.log_likelihood(guess, whole).values[0, 0, :5], one, rtol=1e-12)


def test_activations_count_conditions(world):
    states, actions, after = transitions(200)
    found = world.route(states, actions, after).activations
    assert found["turn"] == 200
    assert found["tire"] == (actions <= 1).sum()
    assert found["walk"] == ((actions == 0) & (states["pos"][:, 0] < 3)).sum()
    near = np.abs(states["cow"]["pos"] - after["pos"][:, None]).sum(-1) <= 2  # the phase after pos
    assert found["flee"] == (near & states["cow"]["alive"]).sum()


def test_weights_are_counts(x64, world):
    given = transitions(60)
    twice = jax.tree.map(lambda x: np.concatenate([x, x[:20]]), given)
    weighted = world.route(*given, weights=np.where(np.arange(60) < 20, 2.0, 1.0))
    assert world.route(*twice).count.sum() == weighted.count.sum()
    total = float((world.situation_log_prob(_first(world), weighted) * weighted.count).sum())
    both = world.route(*twice)
    np.testing.assert_allclose(
        total, float((world.situation_log_prob(_first(world), both) * both.count).sum())
    )


def _first(world):
    return {n: v[0] for n, v in world.beliefs(world.supposing(RATES, change=0.03)).items()}


def test_unseen_next_values_are_summed_out(x64, world):
    states, actions, after = transitions(12, seed=4)
    guess = world.supposing(RATES, change=0.03)
    hidden = {**after, "food": np.full(12, -1)}
    total = np.logaddexp.reduce(
        [world.log_prob(guess, states, actions, {**after, "food": np.full(12, v)}) for v in range(5)], axis=0
    )
    np.testing.assert_allclose(world.log_prob(guess, states, actions, hidden), total, atol=1e-9)


def test_what_depends_on_unseen_values_is_left_out(x64, world):
    states, actions, after = transitions(50, seed=5)
    guess = world.supposing(RATES, change=0.03)
    blind = {**states, "food": np.where(np.arange(50) < 25, -1, states["food"])}
    routed = world.route(blind, actions, after)
    assert routed.book.dropped > 0
    cells_of = {a.name: list(a.range) for a in SPACE}
    # `cook` reads food: weather, which it writes, is unknown; so is food itself; beasts are not
    rows = routed.book.row_of
    for name, known in (("weather", False), ("food", False), ("cow.pos", True), ("pos", True)):
        assert (rows[:25][:, cells_of[name]] >= 0).any() == known
    whole = world.log_likelihood(guess, world.route(states, actions, after)).values[0, 0]
    np.testing.assert_allclose(world.log_likelihood(guess, routed).values[0, 0, 25:], whole[25:], rtol=1e-12)


def test_zero_rates_are_a_world_without_the_law(x64):
    given = transitions(80)
    more, fewer = World(SPACE, LAWS), World(SPACE, [one for one in LAWS if one.name not in ("walk", "cook")])
    rates = {n: r for n, r in RATES.items() if n not in ("walk", "cook")}
    np.testing.assert_allclose(
        more.log_prob(more.supposing(rates, change=0.02), *given),
        fewer.log_prob(fewer.supposing(rates, change=0.02), *given),
        atol=1e-9,
    )


@pytest.mark.parametrize("pool", ["hazard", "product"])
def test_densities_sum_to_one(x64, pool):
    """Over all next values of the two attributes that `eat` ties together."""
    space = Space(energy=levels(6), food=levels(5))
    world = World(space, [eat, tire], pool=pool)
    num = 30
    energy, food = np.divmod(np.arange(num), 5)
    state = {"energy": np.full(num, 3), "food": np.full(num, 2)}
    guess = world.supposing(0.7, change=0.05)
    for action in (0, 2):
        p = np.exp(world.log_prob(guess, state, np.full(num, action), {"energy": energy, "food": food}))
        np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-9)
