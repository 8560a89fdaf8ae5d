"""Hooks: which action is executed, when an event or another concept comes, what is hidden."""

import copy

import numpy as np
import pytest

from sojourn.environments import Transitions, record
from sojourn.environments.hooks import (
    cyclic_drift,
    hide,
    random_action,
    random_event,
    represented,
    sticky_action,
    sudden_drift,
)
from sojourn.environments.meadow import Meadow


class Echo:
    """A world whose state is the last action it received. It knows of no other entries and drops them."""

    def __init__(self, num_actions=6, concept=0):
        self.num_actions, self.concept = num_actions, concept

    def reset(self, rng):
        return {"last": 0, "concept": -1, "luck": rng.integers(1000)}

    def step(self, rng, state, action):
        return {"last": action, "concept": self.concept, "luck": rng.integers(1000)}


def near_binomial(happened, rate):
    """Within 4 standard errors: one such check fails once in 16000 seeds."""
    assert len(happened) > 500
    return abs(np.mean(happened) - rate) < 4 * np.sqrt(rate * (1 - rate) / len(happened))


@pytest.mark.parametrize(("num_actions", "kept"), [(6, 0.75), (18, 0.7 + 0.3 / 18)])
def test_random_action_is_a_uniform_replacement(num_actions, kept):
    """P(executed = intended) = 1 - p + p / |A|; every other action has p / |A|."""
    seen = record(random_action(Echo(num_actions), 0.3), 10_000, seed=1)
    executed = seen.next_states["last"]
    np.testing.assert_array_equal(executed, seen.next_states["executed"])
    assert near_binomial(executed == seen.actions, kept)
    for shift in (1, num_actions - 1):
        assert near_binomial(executed == (seen.actions + shift) % num_actions, 0.3 / num_actions)


def test_sticky_action_repeats_what_was_executed():
    """P(executed = previous executed | another intended) = z, and nothing but these two is executed."""
    seen = record(sticky_action(Echo(), 0.25), 10_000, seed=1, horizon=50)
    executed, previous = seen.next_states["last"], seen.states["executed"]
    first = np.arange(10_000) % 50 == 0
    np.testing.assert_array_equal(previous[1:][~first[1:]], executed[:-1][~first[1:]])
    np.testing.assert_array_equal(previous[first], -1)
    np.testing.assert_array_equal(executed[first], seen.actions[first])
    other = ~first & (previous != seen.actions)
    assert near_binomial((executed == previous)[other], 0.25)
    assert ((executed == previous) | (executed == seen.actions)).all()


@pytest.mark.parametrize(
    "world",
    [
        sticky_action(random_action(Echo(), 0.5), 0.5),
        random_action(sticky_action(Echo(), 0.5), 0.5),
        random_event(
            sticky_action(sudden_drift(Echo(), random_action(Echo(), 0.5), at=20), 0.5), dict.fromkeys, 0.0
        ),
        sudden_drift(Echo(), sticky_action(Echo(), 0.5), at=30),
    ],
)
def test_executed_is_what_the_world_received(world):
    seen = record(world, 200, seed=3)
    np.testing.assert_array_equal(seen.next_states["executed"], seen.next_states["last"])
    joined = np.arange(1, 200) % 40 != 0
    np.testing.assert_array_equal(
        seen.states["executed"][1:][joined], seen.next_states["executed"][:-1][joined]
    )


def test_outer_sticky_repeats_what_the_inner_hook_executed():
    seen = record(sticky_action(random_action(Echo(), 1.0), 1.0), 4000, seed=5, horizon=4000)
    # everything is replaced uniformly, so that stickiness outside it leaves no trace
    executed = seen.next_states["last"]
    assert near_binomial(executed[1:] == executed[:-1], 1 / 6)
    # ... and inside it undoes all but the first replacement
    inside = record(random_action(sticky_action(Echo(), 1.0), 1.0), 50, seed=5, horizon=50)
    assert len(set(inside.next_states["last"])) == 1


def test_random_event():
    def event(rng, state, next_state):
        return {"last": state["last"] + 100}

    seen = record(random_event(Echo(), event, 0.2), 5000, seed=1, horizon=2)
    happened = seen.next_states["last"] >= 100
    assert near_binomial(happened, 0.2)
    np.testing.assert_array_equal(seen.next_states["last"][happened], seen.states["last"][happened] + 100)
    np.testing.assert_array_equal(seen.next_states["last"][~happened], seen.actions[~happened])
    assert (seen.next_states["concept"] == 0).all()  # what the event does not set remains


def test_sudden_drift_starts_at_its_step():
    """Counted from 1, step ``at`` is the first of the second concept, however often the world was reset."""
    seen = record(sudden_drift(Echo(), Echo(concept=1), at=50), 120, seed=1)
    np.testing.assert_array_equal(seen.next_states["concept"], np.arange(1, 121) >= 50)
    np.testing.assert_array_equal(seen.states["clock"], np.arange(120))
    np.testing.assert_array_equal(seen.next_states["clock"], np.arange(1, 121))


def test_cyclic_drift_takes_turns():
    seen = record(cyclic_drift(Echo(), Echo(concept=1), every=30), 120, seed=1)
    np.testing.assert_array_equal(seen.next_states["concept"], np.repeat([0, 1, 0, 1], 30))


def test_drifts_nest():
    world = sudden_drift(
        sudden_drift(Echo(), Echo(concept=1), at=30), sudden_drift(Echo(), Echo(concept=2), at=1), at=70
    )
    steps = np.arange(1, 121)
    seen = record(world, 120, seed=1)
    np.testing.assert_array_equal(seen.next_states["concept"], (steps >= 30).astype(int) + (steps >= 70))
    np.testing.assert_array_equal(seen.next_states["clock"], steps)


def test_a_drift_can_be_run_again():
    """A new generator begins a new run; steps imagined with another generator leave the run as it is."""
    world = sudden_drift(Echo(), Echo(concept=1), at=50)

    def imagining(rng, state):
        world.step(np.random.default_rng(0), {**state, "clock": 1000}, 0)
        return int(rng.integers(6))

    rng = np.random.default_rng(3)
    state = world.step(rng, world.reset(rng), 1)
    world.step(np.random.default_rng(0), {**state, "clock": 1000}, 0)
    assert world.reset(rng)["clock"] == 1
    first, second, third = (record(world, 120, seed=1, policy=policy) for policy in (None, None, imagining))
    for again in (second, third):
        for name in first.states:
            np.testing.assert_array_equal(first.states[name], again.states[name])


@pytest.mark.parametrize(
    "world",
    [
        random_action(Meadow(), 0.5),
        sticky_action(Meadow(), 0.5),
        random_event(Meadow(), lambda rng, state, after: {"energy": rng.integers(10)}, 0.5),
        sudden_drift(Meadow(), Meadow(bite=0.9), at=3),
        cyclic_drift(sticky_action(Meadow(), 0.5), random_action(Meadow(), 0.5), every=2),
    ],
)
def test_step_is_a_pure_function_of_a_hooked_state(world):
    rng = np.random.default_rng(2)
    state = world.step(rng, world.reset(rng), 3)
    kept = copy.deepcopy(state)
    for seed in range(5):
        first, second = (world.step(np.random.default_rng(seed), state, 1) for _ in range(2))
        np.testing.assert_equal(first, second)
        np.testing.assert_equal(state, kept)
        assert first.keys() == state.keys()
    assert world.num_actions == 6


@pytest.fixture(scope="module")
def seen():
    return record(sticky_action(Meadow(), 0.1), 3000, seed=6)


def test_hide(seen):
    before = copy.deepcopy(seen)
    part = hide(seen, 0.3, seed=1)
    np.testing.assert_equal(seen, before)
    np.testing.assert_array_equal(part.actions, seen.actions)
    hidden = {name: part.states[name] == -1 for name in ("energy", "health", "berries", "weather")}
    hidden["pos"] = (part.states["pos"] == -1).any(1)
    hidden["first"], hidden["second"] = (part.states["beast"]["pos"] == -1).any(-1).T
    for mask in hidden.values():
        assert near_binomial(mask, 0.3)
    # independent from attribute to attribute and from slot to slot
    for one, other in (("energy", "health"), ("pos", "weather"), ("first", "second"), ("pos", "first")):
        assert near_binomial(hidden[one] & hidden[other], 0.09)
    # ... and from time to time
    assert near_binomial(hidden["energy"][1:] & hidden["energy"][:-1], 0.09)
    # a position is hidden as a whole, and what is not hidden is the truth
    assert ((part.states["pos"] == -1).all(1) == hidden["pos"]).all()
    np.testing.assert_array_equal(part.states["pos"][~hidden["pos"]], seen.states["pos"][~hidden["pos"]])
    np.testing.assert_array_equal(part.states["executed"], seen.states["executed"])  # a hook's memory
    assert near_binomial(part.next_states["energy"] == -1, 0.3)


def test_one_state_is_seen_once(seen):
    """Within a life the next state of a transition is the state of the following one, hidden alike."""
    part = hide(seen, 0.5, seed=2)
    joined = np.arange(1, 3000) % 40 != 0
    for after, state in (
        (part.next_states["health"], part.states["health"]),
        (part.next_states["beast"]["pos"], part.states["beast"]["pos"]),
    ):
        np.testing.assert_array_equal(after[:-1][joined], state[1:][joined])
    ends = (part.next_states["health"] == -1)[39:-1:40], (part.states["health"] == -1)[40::40]
    assert (ends[0] != ends[1]).any()


def test_hide_some_attributes(seen):
    part = hide(seen, 1.0, attributes=("beast.pos", "weather"))
    assert (part.states["beast"]["pos"] == -1).all()
    assert (part.next_states["weather"] == -1).all()
    np.testing.assert_array_equal(part.states["pos"], seen.states["pos"])
    np.testing.assert_array_equal(hide(seen, 1.0, attributes="weather").states["weather"], -1)
    np.testing.assert_equal(hide(seen, 0.0), seen)


def test_hide_other_types_of_array():
    states = {
        "map": np.full((1, 2, 2), 200, np.uint8),
        "asleep": np.array([True]),
        "light": np.array([0.5]),
        "cow": {"alive": np.ones((1, 3), bool)},
    }
    one = Transitions(states, np.array([0]), states)
    part = hide(one, 1.0)
    assert (part.states["map"] == -1).all()
    np.testing.assert_equal(hide(one, 0.0).states["map"], states["map"])
    assert part.states["asleep"].all()
    assert part.states["light"] == 0.5
    np.testing.assert_array_equal(
        hide(one, 1.0, attributes=["cow.alive"]).states["cow"]["alive"], [[-1, -1, -1]]
    )
    with pytest.raises(ValueError, match="light holds float64: only integers that leave room for -1"):
        hide(one, 1.0, attributes=["light"])


def test_represented(seen):
    few = seen.take(slice(0, 50))
    other = represented(
        few, lambda state: {"cell": 8 * state["pos"][1] + state["pos"][0], "beast": state["beast"]}
    )
    np.testing.assert_array_equal(other.states["cell"], 8 * few.states["pos"][:, 1] + few.states["pos"][:, 0])
    np.testing.assert_array_equal(
        other.next_states["cell"][:-1],
        np.where(np.arange(1, 50) % 40, other.states["cell"][1:], other.next_states["cell"][:-1]),
    )
    np.testing.assert_array_equal(other.next_states["beast"]["pos"], few.next_states["beast"]["pos"])
    np.testing.assert_array_equal(other.actions, few.actions)


def test_wrong_inputs(seen):
    world, rng = Echo(), np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"probability of random_action is 1\.2: give one from 0 to 1"):
        random_action(world, 1.2)
    with pytest.raises(ValueError, match=r"probability of sticky_action is -0\.1"):
        sticky_action(world, -0.1)
    with pytest.raises(ValueError, match="probability of random_event is nan"):
        random_event(world, lambda rng, state, after: after, float("nan"))
    with pytest.raises(ValueError, match="probability of hide is 2"):
        hide(seen, 2)
    with pytest.raises(
        ValueError, match="at is 0: the first step of the second concept has a number from 1 on"
    ):
        sudden_drift(world, world, at=0)
    with pytest.raises(ValueError, match="every is 0: a concept lasts at least 1 step"):
        cyclic_drift(world, world, every=0)
    with pytest.raises(
        ValueError, match="first concept has 6 actions and the second 3: a drift changes the law"
    ):
        sudden_drift(world, Echo(3), at=1)
    with pytest.raises(
        ValueError, match=r"no attribute 'mana' to hide: the transitions have pos, energy, .*beast.pos"
    ):
        hide(seen, 0.5, attributes=["mana"])
    with pytest.raises(
        ValueError, match="no 'executed': begin with a state from reset of this same environment"
    ):
        sticky_action(world, 0.5).step(rng, world.reset(rng), 1)
    with pytest.raises(ValueError, match="no 'clock'"):
        sudden_drift(world, world, at=5).step(rng, world.reset(rng), 1)
    with pytest.raises(TypeError, match="encode returned int: return a state"):
        represented(seen, lambda state: 3)
