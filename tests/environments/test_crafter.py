"""Crafter put back and played again, and what its transitions say."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("crafter")

from sojourn.environments.crafter import (
    ACTIONS,
    COAL,
    DIRECTIONS,
    DO,
    FURNACE,
    GRASS,
    ITEMS,
    MAKE_IRON_SWORD,
    MAKE_WOOD_PICKAXE,
    MATERIALS,
    MOVE_DOWN,
    MOVE_LEFT,
    MOVE_RIGHT,
    NOOP,
    NUM_COWS,
    NUM_ZOMBIES,
    PLACE_STONE,
    SLEEP,
    STONE,
    TABLE,
    VITALS,
    Crafter,
    _crafter,
    laboratory,
    play,
    situation,
)
from sojourn.environments.crafter_records import crafter_transitions


@pytest.fixture(scope="module")
def worlds():
    """Two worlds; tests put into them what they need."""
    return Crafter(seed=7), Crafter(seed=999)


@pytest.fixture(scope="module")
def lab():
    return laboratory(90, seed=4)


def test_numbers_are_those_of_crafter():
    assert (ACTIONS[MOVE_LEFT], ACTIONS[MOVE_DOWN], ACTIONS[DO], ACTIONS[SLEEP]) == (
        "move_left",
        "move_down",
        "do",
        "sleep",
    )
    assert (ACTIONS[PLACE_STONE], ACTIONS[MAKE_WOOD_PICKAXE], ACTIONS[MAKE_IRON_SWORD], len(ACTIONS)) == (
        "place_stone",
        "make_wood_pickaxe",
        "make_iron_sword",
        17,
    )
    assert [MATERIALS[i] for i in (GRASS, STONE, COAL, TABLE, FURNACE)] == [
        "grass",
        "stone",
        "coal",
        "table",
        "furnace",
    ]


def same(one, other):
    """Equal arrays by equal names, at any depth (``np.testing`` takes milliseconds)."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return np.array_equal(one, other)


def test_a_restored_world_goes_on_alike(worlds):
    world, twin = worlds
    rng = np.random.default_rng(0)
    world.reset()
    for _ in range(600):
        before, action = world.snapshot(), int(rng.integers(17))
        state, reward, done = world.step(action)
        again, reward_again, done_again = twin.restore(before).step(action)
        assert (reward, done) == (reward_again, done_again)
        assert same(again, state)
        assert same(twin.snapshot(), after := world.snapshot())
        assert after["clock"][0] == before["clock"][0] + 1
        if done:
            world.reset()
    assert world.state()["daylight"] < 1


def test_restoring_carries_the_lives_to_come(worlds):
    world, twin = worlds
    twin.restore(world.restore(situation(seed=8)).snapshot())
    assert same(world.reset(), twin.reset())


def test_a_snapshot_survives_a_file(worlds, tmp_path):
    world, twin = worlds
    world.restore(situation(tiles={(1, 0): "tree"}, things=[("zombie", (3, 0), 2)], seed=5))
    np.savez(tmp_path / "now.npz", **world.snapshot())
    with np.load(tmp_path / "now.npz") as file:
        twin.restore(file)
    for action in (DO, NOOP, MOVE_RIGHT, DO, SLEEP) * 6:
        (state, *rest), (again, *rest_again) = world.step(action), twin.step(action)
        assert same(state, again)
        assert rest == rest_again


IN_ANOTHER_PROCESS = """
import hashlib, sys
import numpy as np
import sojourn.environments
assert "crafter" not in sys.modules
from sojourn.environments.crafter import Crafter
world, rng = Crafter(seed=3), np.random.default_rng(1)
world.reset()
for _ in range(150):
    if world.step(int(rng.integers(17)))[2]:
        world.reset()
now = world.snapshot()
print(hashlib.md5(b"".join(now[name].tobytes() for name in ("materials", "objects", "counters", "rng_key"))).hexdigest())
"""


def test_other_processes_see_the_same_lives():
    """Importing the environments asks for no Crafter, too."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", IN_ANOTHER_PROCESS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    digests = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert digests[0] == digests[1]


def test_the_worlds_are_those_of_crafter(worlds):
    """The digest of 700 random actions by an independent wrapper of Crafter 1.8.3 with opensimplex 0.4.5."""
    world = Crafter(seed=7)
    world.reset()
    rng = np.random.RandomState(1)
    for _ in range(700):
        if world.step(rng.randint(17))[2]:
            world.reset()
    now = world.snapshot()
    objects = np.pad(now["objects"], ((0, 0), (0, 1)))
    objects[objects[:, 0] < 0, -1] = -1
    digest = hashlib.md5(now["materials"].tobytes() + objects.astype(np.int32).tobytes()).hexdigest()
    assert digest[:12] == "4b233adc5dcb"


def test_state(worlds):
    world, _ = worlds
    things = [("cow", (-3, 0)), ("cow", (1, 1)), ("zombie", (2, 0), 4)]
    state = world.restore(situation(things=things, wood=3)).state()
    assert state["pos"].tolist() == [16, 16]
    assert state["facing"] == 1
    assert state["target"] == MATERIALS.index("sand")
    assert [int(state[name]) for name in VITALS] == [9] * 4
    assert {name: int(state[name]) for name in ITEMS} == {name: 3 * (name == "wood") for name in ITEMS}
    assert state["materials"].shape == state["occupied"].shape == (32, 32)
    assert np.argwhere(state["occupied"]).tolist() == [[13, 16], [16, 16], [17, 17], [18, 16]]
    assert state["cow"]["alive"].tolist() == [True] * 2 + [False] * 6  # the nearest first
    assert state["cow"]["pos"][:3].tolist() == [[17, 17], [13, 16], [0, 0]]
    assert state["cow"]["health"][:3].tolist() == [3, 3, 0]
    assert state["zombie"]["pos"][0].tolist() == [18, 16]
    assert (int(state["zombie"]["health"][0]), int(state["zombie"]["cooldown"][0])) == (5, 4)
    assert state["zombie"]["alive"].shape == (6,)
    whole = {name: value for name, value in state.items() if not isinstance(value, dict)}
    kinds = {name: np.asarray(value).dtype for name, value in whole.items()}
    assert {kinds.pop(name) for name in ("materials", "occupied", "daylight")} == {
        np.dtype(np.uint8),
        np.dtype(bool),
        np.dtype(np.float32),
    }
    assert set(kinds.values()) == {np.dtype(np.int32)}


@pytest.mark.parametrize("facing", range(4))
def test_moving_and_facing(worlds, facing):
    world = worlds[0].restore(situation(facing=3 - facing))
    state, _, _ = world.step(MOVE_LEFT + facing)
    assert state["facing"] == facing
    assert (state["pos"] - 16).tolist() == DIRECTIONS[facing].tolist()
    assert world.faced == tuple((16 + 2 * DIRECTIONS[facing]).tolist())


def test_target_is_that_of_the_tile_faced_before(worlds):
    world = worlds[0].restore(situation(tiles={(1, 0): "tree", (0, 1): "water"}))
    assert world.state()["target"] == MATERIALS.index("tree")
    after, _, _ = world.step(DO)
    assert (after["target"], after["wood"]) == (GRASS, 1)
    after, _, _ = world.step(MOVE_DOWN)  # turns to the water
    assert after["target"] == GRASS
    assert world.state()["target"] == MATERIALS.index("water")


def test_outside_the_world_is_no_material(worlds):
    corner = situation()
    corner["objects"][1, 1:3] = 0, 5
    corner["objects"][1, 5:7] = -1, 0
    world = worlds[0].restore(corner)
    assert world.state()["target"] == 0
    assert world.step(DO)[0]["target"] == 0


def test_animals_farther_than_18_have_no_slot_and_stand_still(worlds):
    world = worlds[0].restore(situation(things=[("cow", (-9, -9)), ("cow", (9, 8)), ("cow", (-15, -15))]))
    state = world.state()
    assert state["cow"]["pos"][state["cow"]["alive"]].tolist() == [[25, 24]]
    for _ in range(9):
        world.step(NOOP)
    still = world.snapshot()["objects"]
    assert still[[2, 4], 1:3].tolist() == [[7, 7], [1, 1]]


def test_only_the_nearest_have_slots(worlds):
    offsets = [(x, y) for x in range(-6, 7, 2) for y in range(-6, 7, 2) if x or y]
    state = worlds[0].restore(situation(things=[("zombie", at) for at in offsets])).state()
    gaps = np.abs(state["zombie"]["pos"] - state["pos"]).sum(1)
    assert state["zombie"]["alive"].all()
    assert gaps.tolist() == [2, 2, 2, 2, 4, 4]


def test_slots_hold(worlds):
    """The nearer zombie is struck down; the other stays in its slot, though it is now the nearest."""
    world = worlds[0].restore(situation(things=[("zombie", (1, 0)), ("zombie", (6, 0))], iron_sword=1))
    after, _, _ = world.step(DO)
    assert after["zombie"]["alive"].tolist() == [False, True] + [False] * 4
    assert after["zombie"]["pos"][0].tolist() == [0, 0]
    assert world.state()["zombie"]["alive"].tolist() == [True] + [False] * 5


def test_laboratory(lab):
    states, actions, next_states = lab
    assert states["materials"].shape == (90, 32, 32)
    assert states["cow"]["pos"].shape == (90, NUM_COWS, 2)
    assert states["zombie"]["pos"].shape == (90, NUM_ZOMBIES, 2)
    assert actions.dtype == states["life"].dtype == np.int32
    np.testing.assert_equal(next_states["life"], states["life"])
    # A deal begins a stretch, and so does a death.
    begins = np.flatnonzero(np.diff(states["life"], prepend=-1))
    died = np.flatnonzero(next_states["health"] == 0) + 1
    assert set(begins) == set(range(0, 90, 15)) | set(died[died < 90])
    # Within a stretch, what came of one transition is where the next begins; only target and slots are told anew.
    joined = np.flatnonzero(np.diff(states["life"]) == 0)
    for name in ("pos", "facing", "materials", "occupied", *VITALS, *ITEMS):
        np.testing.assert_equal(next_states[name][joined], states[name][joined + 1])
    moved = np.abs(next_states["cow"]["pos"] - states["cow"]["pos"]).sum(-1)
    assert moved[states["cow"]["alive"] & next_states["cow"]["alive"]].max() == 1
    # Six deals of twelve stocks and tools: the chance that any one is never had is below 12 * 2 ** -6.
    assert sum((states[name] > 0).any() for name in ITEMS) >= 11


def test_equal_seeds_record_equally(lab):
    again = laboratory(20, seed=4)
    np.testing.assert_equal(again, lab.take(slice(20)))
    other = laboratory(20, seed=5)
    assert (other.states["materials"] != again.states["materials"]).any()


def test_the_recorded_transitions_are_the_laboratorys():
    """The file comes from this code; ``benchmarks/record_crafter.py`` makes it anew."""
    recorded = crafter_transitions(Path(__file__).parents[1] / "data" / "crafter_transitions.npz")
    np.testing.assert_equal(recorded.take(slice(45)), laboratory(45, seed=1))


def test_play_begins_again_after_death():
    def into_trouble(rng, state):
        return NOOP if state["energy"] == 9 else SLEEP  # sleeps through hunger and zombies

    seen = play(90, seed=4, policy=into_trouble)
    states, _, next_states = seen
    died = np.flatnonzero(next_states["health"] == 0)
    np.testing.assert_equal(np.flatnonzero(np.diff(states["life"])), died[died < 89])
    assert len(died) >= 1
    assert (states["health"][died[died < 89] + 1] == 9).all()


def test_area_may_be_oblong():
    seen = play(3, area=(20, 18))
    assert seen.states["materials"].shape == (3, 20, 18)


# ------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("area", [(9, 9), (32, 17)])
def test_small_areas(area):
    for make in (Crafter, situation, lambda area: play(1, area=area)):
        with pytest.raises(ValueError, match=r"nearer than 18 tiles, so make both sides at least 18"):
            make(area)


@pytest.mark.parametrize("action", [-1, 17, 2.0, "do"])
def test_unknown_actions(worlds, action):
    with pytest.raises(ValueError, match=r"action is .*: pass a whole number from 0 to 16"):
        worlds[0].restore(situation()).step(action)


def test_no_life():
    world = Crafter()
    for call in (world.state, world.snapshot, world.slots, lambda: world.step(NOOP)):
        with pytest.raises(RuntimeError, match=r"no life has begun: call reset\(\) or restore\(\)"):
            call()


def test_after_death(worlds):
    world = worlds[0].restore(situation(tiles={(1, 0): "lava"}))
    state, reward, done = world.step(MOVE_RIGHT)
    assert (int(state["health"]), done) == (0, True)
    assert reward == pytest.approx(-0.9)
    with pytest.raises(RuntimeError, match=r"this life is over: call reset\(\) or restore\(\)"):
        world.step(NOOP)


def test_snapshots_of_another_kind(worlds):
    with pytest.raises(
        ValueError, match=r"the snapshot lacks materials, .*rng_gauss: pass what snapshot\(\)"
    ):
        worlds[0].restore({"objects": np.zeros((0, 7))})
    with pytest.raises(ValueError, match=r"the snapshot's area is \(20, 30\), this world's \(32, 32\): make"):
        worlds[0].restore(situation((20, 30)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ground": "snow"}, "there is no material 'snow': choose from water, grass"),
        ({"tiles": {(1, 0): "none"}}, "there is no material 'none'"),
        ({"tiles": {(16, 0): "tree"}}, r"\(16, 0\) from the player is outside the area \(32, 32\)"),
        ({"things": [("dragon", (1, 0))]}, "cannot put a 'dragon' there: choose cow, zombie"),
        ({"things": [("cow", (1, 0)), ("cow", (1, 0))]}, r"two things at \(1, 0\): put the cow elsewhere"),
        ({"things": [("cow", (0, 0))]}, r"two things at \(0, 0\)"),
        ({"wood": 10}, "cannot carry wood=10: carry 0 to 9 of health, food"),
        ({"gold": 1}, "cannot carry gold=1"),
        ({"facing": 4}, r"facing is 4: choose 0 to 3, a row of DIRECTIONS"),
    ],
)
def test_wrong_situations(wrong, message):
    with pytest.raises(ValueError, match=message):
        situation(**wrong)


def test_nothing_to_record():
    with pytest.raises(ValueError, match="num_transitions is 0: record at least one transition"):
        play(0)
    with pytest.raises(ValueError, match="every is 0: deal anew after at least one step"):
        laboratory(10, every=0)


@pytest.fixture
def other_crafter():
    _crafter.cache_clear()
    yield
    _crafter.cache_clear()


def test_without_crafter(monkeypatch, other_crafter):
    monkeypatch.setitem(sys.modules, "crafter", None)
    with pytest.raises(ImportError, match=r'Crafter is not installed: pip install "sojourn\[crafter\]"'):
        Crafter()


def test_with_another_crafter(monkeypatch, other_crafter):
    import crafter

    monkeypatch.setattr(crafter.constants, "actions", ["noop"])
    with pytest.raises(ImportError, match=r"other actions, materials or items than Crafter 1\.8: install"):
        Crafter()
