"""Questions to a world: imagined steps against the density, ranks, distances, plans, the summary."""

import jax
import numpy as np
import pytest

import sojourn as sj
from sojourn.environments import Meadow, record
from sojourn.models.laws import (
    Objects,
    RandomAction,
    Space,
    World,
    cells,
    edit_distance,
    law,
    levels,
    meadow_laws,
    meadow_space,
    when,
    wrong_meadow_laws,
)
from tests.models.laws.test_routing import LAWS, RATES, SPACE, transitions


def one(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


@pytest.fixture(scope="module")
def world():
    return World(SPACE, LAWS)


@pytest.mark.parametrize("which", [3, 8])
def test_imagined_steps_have_the_density(world, which):
    """Frequencies of whole next states, laws of several attributes and phases included."""
    states, actions, _ = transitions(12)
    state, action = one(states, which), actions[which]
    guess = world.supposing(RATES, change=0.02, flee__bold=0.3)
    num = 20_000
    paths = world.simulate(guess, state, [action], num_paths=num, seed=1, leaks=True)
    after = jax.tree.map(lambda x: x[:, 1], paths)
    codes = np.concatenate([np.asarray(v).reshape(num, -1) for v in jax.tree.leaves(after)], 1)
    found, first, count = np.unique(codes, axis=0, return_index=True, return_counts=True)
    common = np.flatnonzero(count > 100)
    assert len(common) > 4
    chosen = jax.tree.map(lambda x: x[first[common]], after)
    repeated = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], len(common), 0), state)
    p = np.exp(world.log_prob(guess, repeated, np.full(len(common), action), chosen))
    share = count[common] / num
    assert np.all(np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / num))
    assert len(found) > len(common)


def test_without_leaks_only_named_values_come(world):
    states, _, _ = transitions(12)
    paths = world.simulate(world.supposing(0.0, change=0.9), one(states, 0), [0, 1, 2], num_paths=50)
    for name in ("pos", "energy", "food", "weather"):
        np.testing.assert_array_equal(paths[name], np.broadcast_to(paths[name][:, :1], paths[name].shape))


def test_the_dead_stay_dead():
    @law(each="cow")
    def dies(cow, s, a):
        return when(True, gone=1)

    world = World(Space(cow=Objects(3, pos=cells(4, 4), gone=2)), [dies])
    state = {"cow": {"pos": np.ones((3, 2), int), "alive": np.array([True, True, False])}}
    alive = world.simulate(world.supposing(0.4), state, np.zeros(6), num_paths=2000)["cow"]["alive"]
    assert not alive[..., 2].any()
    assert (alive[:, 1:] <= alive[:, :-1]).all()
    p = 0.6 ** np.arange(7)
    assert np.all(np.abs(alive[..., 0].mean(0) - p) < 4.5 * np.sqrt(p * (1 - p) / 2000) + 1e-12)


def test_refresh_brings_the_context_up_to_date():
    @law
    def march(s, a):
        return when(s.gate == 1, pos=s.pos + 1)

    def refresh(state, action, after):
        return {**after, "gate": state["gate"] * (after["pos"] < 3)}

    world = World(Space(pos=levels(9)), [march], refresh=refresh)
    path = world.simulate(world.supposing(1.0), {"pos": 0, "gate": 1}, np.zeros(8), num_paths=1)
    assert path["pos"][0].tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("pool", ["hazard", "product"])
def test_plans_are_compared(pool):
    world = World(meadow_space(), meadow_laws(), pool=pool)
    rate = 0.9 if pool == "hazard" else 2.0
    state = {**Meadow().reset(np.random.default_rng(1)), "energy": 3}
    plans = {"rest": [5] * 6, "wander": [0, 1, 2, 3, 0, 1]}
    table = world.compare_plans(
        world.supposing(rate, change=0.1), state, plans, lambda s: s["energy"][:, -1], num_paths=200
    )
    assert table.index.tolist() == ["rest", "wander"]
    assert table.loc["rest", "best"] > 0.95
    with pytest.raises(ValueError, match="`reward` returned shape"):
        world.compare_plans(world.supposing(rate), state, plans, lambda s: s["energy"])
    with pytest.raises(ValueError, match="there are no plans"):
        world.compare_plans(world.supposing(rate), state, {}, lambda s: s["energy"])


def test_distance_counts_leaves():
    space = Space(pos=cells(4, 4), food=5, cow=Objects(2, pos=cells(4, 4), gone=2))
    a = {
        "pos": np.array([[0, 0]] * 4),
        "food": np.zeros(4, int),
        "cow": {"pos": np.zeros((4, 2, 2), int), "alive": np.array([[True, False]] * 4)},
    }
    b = jax.tree.map(np.copy, a)
    b["pos"][1] = [1, 1]
    b["food"][2] = 1
    b["cow"]["pos"][2, 0] = [0, 3]
    b["cow"]["alive"][3] = [True, True]
    assert edit_distance(space, a, b).tolist() == [0, 2, 2, 3]  # an object: whether it lives, and a place
    assert edit_distance(space, a, b, normalised=True).tolist() == [0, 2 / 6, 2 / 6, 3 / 9]


@pytest.fixture(scope="module")
def meadow():
    world = World(meadow_space(), meadow_laws() + wrong_meadow_laws())
    seen = record(Meadow(), 400, seed=1)
    routed = world.route(*seen)
    fit = sj.fit(world.model, routed, num_chains=2, num_warmup=200, num_samples=200, progress_bar=False)
    return world, seen, routed, fit


def test_summary_tells_laws_from_wrong_ideas(meadow):
    world, _, routed, fit = meadow
    table = world.summary(fit, routed)
    true = [one.name for one in meadow_laws()]
    assert (table.loc[true, "verdict"] == "real").all()
    assert not (table.loc[[n for n in table.index if n not in true], "verdict"] == "real").any()
    assert (table["low"] <= table["rate"]).all()
    assert table.loc["walk", "activations"] == routed.activations["walk"]
    assert table.loc["rewind", "rivals"] == "seasons"
    assert table.loc["tire", "rivals"] == ""


def test_a_mode_has_no_interval_and_is_judged_by_its_activations(meadow):
    world, seen, routed, _ = meadow
    rates = {"walk": 0.9, "tire": 0.2, "seasons": 0.1}
    table = world.summary(world.supposing(rates), routed)
    assert table["low"].isna().all()
    assert (table.loc[["walk", "tire", "seasons"], "verdict"] == "real").all()
    assert table.loc["rewind", "verdict"] == "absent"  # 400 activations
    few = world.summary(world.supposing({}), world.route(*seen.take(slice(0, 20))))
    assert few.loc["rewind", "verdict"] == "open"


def test_a_law_without_data_was_never_seen(meadow):
    world, _, _, fit = meadow
    only_rest = record(Meadow(), 50, policy=lambda rng, state: 5, seed=1)
    table = world.summary(fit, world.route(*only_rest))
    assert table.loc["walk", "verdict"] == "never seen"
    assert table.loc["walk", "activations"] == 0


def test_log_likelihood_is_what_arviz_compares_by(meadow):
    world, seen, routed, fit = meadow
    pointwise = world.log_likelihood(fit, routed, num_draws=50)
    assert pointwise.sizes == {"chain": 1, "draw": 50, "transition": 400}
    mean = np.log(np.exp(pointwise.values[0]).mean(0))
    np.testing.assert_allclose(world.log_prob(fit, *seen, num_draws=50), mean, atol=1e-4)
    by_row = float(fit.log_likelihood["next"].values[0, 0].sum())  # situations, as often as they were met
    whole = world.log_likelihood(fit, routed).values[0, 0].sum()
    assert whole == pytest.approx(by_row, rel=1e-4)


def test_wrong_questions(meadow):
    world, seen, routed, fit = meadow
    other = World(meadow_space(), meadow_laws())
    other.route(*seen)
    with pytest.raises(ValueError, match="no fit of this world: it has 12 laws, the world 7"):
        other.log_prob(fit, *seen)
    with pytest.raises(ValueError, match="takes what its `route` returned, not Transitions"):
        world.model(seen)
    with pytest.raises(ValueError, match="routed by a world of other laws"):
        other.summary(fit, routed)
    with pytest.raises(ValueError, match="routed by a world of other laws"):
        other.model(routed)
    with pytest.raises(ValueError, match="takes what its own `route` returned, not Routed"):
        other.under(RandomAction(6)).model(routed)
    with pytest.raises(ValueError, match="there is no law 'fly'"):
        world.supposing({"fly": 0.5})
    with pytest.raises(ValueError, match="rates are probabilities"):
        world.supposing({"walk": 1.5})
    with pytest.raises(ValueError, match="the parameters are none"):
        world.supposing(0.5, walk__p=0.5)
    with pytest.raises(ValueError, match="`plan` must hold at least one action"):
        world.simulate(fit, one(seen.states, 0), [])
    with pytest.raises(ValueError, match="`num_paths` must be at least 1"):
        world.simulate(fit, one(seen.states, 0), [0], num_paths=0)
