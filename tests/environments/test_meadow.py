"""The meadow: its simulator against its stated rates, and its exact law against both."""

import copy
import itertools
from collections import Counter

import numpy as np
import pytest

from sojourn.environments import Transitions, record, stack
from sojourn.environments.meadow import BUSHES, MOVES, PICK, REST, WALLS, Meadow, mutants, picture


@pytest.fixture(scope="module")
def seen():
    return record(Meadow(), 20_000, seed=4)


# a beast beside the agent, which stands on a bush at the edge; the other beast between two walls
CROWDED = {
    "pos": np.array([7, 5]),
    "energy": 1,
    "health": 1,
    "berries": 9,
    "weather": 2,
    "beast": {"pos": np.array([[7, 6], [6, 3]])},
}


def repeated(state, action, next_states):
    after = stack(next_states)
    number = len(after["energy"])
    return Transitions(stack([state] * number), np.full(number, action), after)


def near_binomial(happened, rate):
    """Within 4 standard errors of the rate: one such check fails once in 16000 seeds."""
    happened = np.asarray(happened)
    assert len(happened) > 200
    return abs(happened.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(happened))


def unblocked(pos):
    """Whether each of the four moves leads off the cell, ``(..., 4)``."""
    there = pos[..., None, :] + MOVES
    inside = ((there >= 0) & (there < 8)).all(-1)
    there = np.clip(there, 0, 7)
    return inside & ~WALLS[there[..., 0], there[..., 1]]


def test_map():
    """Eight walls, then ten bushes elsewhere, drawn over the cells row by row with the seed 5."""
    rng = np.random.default_rng(5)
    walls = np.zeros(64, bool)
    walls[rng.choice(64, 8, replace=False)] = True
    bushes = np.zeros(64, bool)
    bushes[rng.choice(np.flatnonzero(~walls), 10, replace=False)] = True
    np.testing.assert_array_equal(WALLS, walls.reshape(8, 8).T)
    np.testing.assert_array_equal(BUSHES, bushes.reshape(8, 8).T)
    with pytest.raises(ValueError, match="read-only"):
        WALLS[0, 0] = True


def test_frequencies_are_the_rates(seen):
    state, action, after = seen
    moves = action < 4
    open_way = np.take_along_axis(unblocked(state["pos"]), np.minimum(action, 3)[:, None], 1)[:, 0]
    moved = (after["pos"] != state["pos"]).any(1)
    assert near_binomial(moved[moves & open_way], 0.9)
    assert not moved[~moves | ~open_way].any()
    np.testing.assert_array_equal((after["pos"] - state["pos"])[moved], MOVES[action[moved]])
    assert near_binomial((after["energy"] < state["energy"])[moves & (state["energy"] > 0)], 0.2)
    np.testing.assert_array_equal(
        after["energy"][action == REST], np.minimum(state["energy"][action == REST] + 1, 9)
    )
    ripe = (action == PICK) & BUSHES[tuple(state["pos"].T)] & (state["berries"] < 9)
    assert near_binomial((after["berries"] > state["berries"])[ripe], 0.7)
    np.testing.assert_array_equal(after["berries"][~ripe], state["berries"][~ripe])
    assert near_binomial(after["weather"] != state["weather"], 0.1)
    near = (np.abs(state["beast"]["pos"] - state["pos"][:, None]).sum(-1) <= 1).any(1)
    assert near_binomial((after["health"] < state["health"])[near & (state["health"] > 0)], 0.3)
    np.testing.assert_array_equal(after["health"][~near], state["health"][~near])


def test_beasts_roam_in_all_directions(seen):
    """A beast sets off half the time, a quarter of it each way, and stays where the way is blocked."""
    pos, next_pos = seen.states["beast"]["pos"], seen.next_states["beast"]["pos"]
    ways = unblocked(pos)
    for direction, move in enumerate(MOVES):
        assert near_binomial((next_pos - pos == move).all(-1)[ways[..., direction]], 0.125)
    assert near_binomial((next_pos == pos).all(-1)[ways.all(-1)], 0.5)
    moved = (next_pos != pos).any(-1)
    assert not (moved & ~ways.any(-1)).any()
    # the two beasts roam independently: the frequency with which both move is the product
    both_free = ways.all((-1, -2))
    assert near_binomial(moved[both_free].all(-1), 0.25)


def test_the_law_of_the_prototype():
    """Mean log-probability of 1000 transitions at seed 99: -3.1124, standard error 0.048.

    An independent implementation (another representation of cells, other code for the law) drew the same
    numbers in the same order and gave -3.1123671. The streams of NumPy's generators do not depend on the
    machine.
    """
    test = record(Meadow(), 1000, seed=99)
    log_prob = Meadow().log_prob(test)
    assert log_prob.shape == (1000,)
    assert log_prob.mean() == pytest.approx(-3.1123671, abs=1e-6)


@pytest.mark.parametrize("action", range(6))
@pytest.mark.parametrize(
    "state",
    [
        CROWDED,
        {**CROWDED, "energy": 9, "health": 5, "berries": 3, "beast": {"pos": np.array([[7, 5], [7, 6]])}},
    ],
)
def test_law_sums_to_one(state, action):
    """Over all next states within reach: cells one step away, numbers up to two away, all weathers."""

    def cells(pos):
        around = np.concatenate([pos + MOVES, [pos]])
        return around[((around >= 0) & (around < 8)).all(1)]

    def values(name):
        return [v for v in range(state[name] - 2, state[name] + 3) if 0 <= v <= 9]

    beasts = state["beast"]["pos"]
    grid = itertools.product(
        cells(state["pos"]),
        values("energy"),
        values("health"),
        values("berries"),
        range(3),
        cells(beasts[0]),
        cells(beasts[1]),
    )
    pos, energy, health, berries, weather, first, second = map(np.array, zip(*grid, strict=True))
    after = {"pos": pos, "energy": energy, "health": health, "berries": berries, "weather": weather}
    after["beast"] = {"pos": np.stack([first, second], 1)}
    before = {name: np.broadcast_to(state[name], np.shape(after[name])) for name in after if name != "beast"}
    before["beast"] = {"pos": np.broadcast_to(beasts, after["beast"]["pos"].shape)}
    log_prob = Meadow().log_prob(Transitions(before, np.full(len(pos), action), after))
    assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("action", [3, PICK])
def test_law_is_that_of_the_simulator(action):
    """Frequencies of whole next states: within 4.5 standard errors, which some of 80 exceed once in 1800."""
    meadow, rng, number = Meadow(slip=0.4, weather=0.3), np.random.default_rng(7), 4000
    state = {**CROWDED, "pos": np.array([2, 1]), "berries": 3, "beast": {"pos": np.array([[2, 2], [7, 7]])}}
    drawn = [meadow.step(rng, state, action) for _ in range(number)]

    def key(s):
        return (
            *map(int, s["pos"]),
            s["energy"],
            s["health"],
            s["berries"],
            s["weather"],
            *s["beast"]["pos"].ravel(),
        )

    counts = Counter(map(key, drawn))
    distinct = list({key(s): s for s in drawn}.values())
    prob = np.exp(meadow.log_prob(repeated(state, action, distinct)))
    assert (prob > 0).all()
    assert prob.sum() > 0.97
    common = prob * number > 10
    assert common.sum() > 30
    frequency = np.array([counts[key(s)] for s in distinct]) / number
    z = (frequency - prob) / np.sqrt(prob * (1 - prob) / number)
    assert np.abs(z[common]).max() < 4.5


def test_certain_and_impossible_mechanics():
    meadow = Meadow(slip=0.0, tire=1.0, pick=1.0, weather=0.0, roam=0.0, bite=1.0)
    sure = record(meadow, 300, seed=2)
    np.testing.assert_allclose(meadow.log_prob(sure), 0.0)
    assert (meadow.log_prob(record(Meadow(weather=1.0), 20, seed=2)) == -np.inf).all()


def test_mutants_are_impossible(seen):
    some = seen.take(slice(0, 2000))
    assert np.isfinite(Meadow().log_prob(some)).all()
    wrong = mutants(some, seed=3)
    assert len(wrong) == 7
    for mutant in wrong:
        assert (Meadow().log_prob(some._replace(next_states=mutant)) == -np.inf).all()
        assert mutant.keys() == some.next_states.keys()
        assert not WALLS[tuple(mutant["pos"].T)].any()
        assert all(
            ((mutant[name] >= 0) & (mutant[name] <= 9)).all() for name in ("energy", "health", "berries")
        )
    # made from the true next state: what is not changed is the truth
    np.testing.assert_array_equal(wrong[0]["beast"]["pos"], some.next_states["beast"]["pos"])
    np.testing.assert_array_equal(wrong[4]["beast"]["pos"][:, 1], some.next_states["beast"]["pos"][:, 1])
    np.testing.assert_array_equal(mutants(some, seed=3)[0]["pos"], wrong[0]["pos"])
    assert (mutants(some, seed=4)[0]["pos"] != wrong[0]["pos"]).any()


def test_step_is_pure():
    meadow, state = Meadow(tire=1.0, roam=1.0), {**CROWDED, "note": 5}
    kept = copy.deepcopy(state)
    first, second = (meadow.step(np.random.default_rng(1), state, 2) for _ in range(2))
    for name in kept:
        np.testing.assert_equal(first[name], second[name])
        np.testing.assert_equal(state[name], kept[name])
    assert first["note"] == 5
    first["pos"][:] = 0  # the next state is the caller's own
    np.testing.assert_equal(meadow.step(np.random.default_rng(1), state, 2)["pos"], second["pos"])


def test_lives_begin_off_the_walls():
    rng = np.random.default_rng(0)
    first = stack([Meadow().reset(rng) for _ in range(500)])
    assert not WALLS[tuple(first["pos"].T)].any()
    assert not WALLS[tuple(first["beast"]["pos"].reshape(-1, 2).T)].any()
    assert {
        name: (first[name].min(), first[name].max()) for name in ("energy", "health", "berries", "weather")
    } == {
        "energy": (3, 7),
        "health": (3, 9),
        "berries": (0, 3),
        "weather": (0, 2),
    }


def test_wrong_inputs(seen):
    with pytest.raises(ValueError, match=r"roam of the meadow is 1\.5: give a probability"):
        Meadow(roam=1.5)
    with pytest.raises(ValueError, match="slip of the meadow is nan"):
        Meadow(slip=float("nan"))
    with pytest.raises(ValueError, match="There is an action 6: the meadow has the actions 0 to 5"):
        Meadow().step(np.random.default_rng(0), CROWDED, 6)
    some = seen.take(slice(0, 3))
    with pytest.raises(ValueError, match="There is an action -1"):
        Meadow().log_prob(some._replace(actions=np.array([0, -1, 2])))
    hidden = {**some.states, "energy": np.array([3, -1, 4])}
    with pytest.raises(
        ValueError, match=r"states\['energy'\] holds -1: .* from 0 to 9 \(a hidden attribute is -1\)"
    ):
        Meadow().log_prob(some._replace(states=hidden))
    beyond = {**some.states, "beast": {"pos": some.states["beast"]["pos"] + 8}}
    with pytest.raises(ValueError, match=r"states\['beast.pos'\] holds"):
        Meadow().log_prob(some._replace(states=beyond))


def test_picture_shows_the_state():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert picture(CROWDED, ax) is ax
    drawn = {line.get_label(): np.array(line.get_xydata()) for line in ax.lines}
    np.testing.assert_array_equal(drawn["agent"], [[7, 5]])
    np.testing.assert_array_equal(drawn["beast"].round(), [[7, 6], [6, 3]])
    np.testing.assert_array_equal(drawn["bush"], np.argwhere(BUSHES))
    ground = ax.images[0].get_array()  # rows are y
    dark = ground.sum(-1) < 1.5
    np.testing.assert_array_equal(dark, WALLS.T)
    assert ax.get_title(loc="left").split() == ["energy", "1", "health", "1", "berries", "9", "weather", "2"]
    ax.figure.canvas.draw()
