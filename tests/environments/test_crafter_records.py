"""The recorded transitions, which need no Crafter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sojourn.environments.crafter_records import crafter_transitions, save_crafter_transitions

PATH = Path(__file__).parents[1] / "data" / "crafter_transitions.npz"
GRASS = 2
DO = 5


@pytest.fixture(scope="module")
def train():
    return crafter_transitions(PATH)


def test_sets(train):
    assert PATH.stat().st_size < 700_000
    assert train.num_transitions == 6000
    test, wild = (crafter_transitions(PATH, which) for which in ("test", "wild"))
    assert (test.num_transitions, wild.num_transitions) == (1000, 600)
    assert wild.states["life"][-1] >= 1
    with pytest.raises(ValueError, match=r"has no set 'tame' of transitions: choose from test, train, wild"):
        crafter_transitions(PATH, "tame")


def test_kinds_of_numbers(train):
    for state in (train.states, train.next_states):
        whole = {name: value for name, value in state.items() if not isinstance(value, dict)}
        whole |= {f"{c}.{name}": value for c in ("cow", "zombie") for name, value in state[c].items()}
        kinds = {name: value.dtype for name, value in whole.items()}
        assert all(len(value) == 6000 for value in whole.values())
        other = {"materials": np.uint8, "daylight": np.float32}
        other |= dict.fromkeys(("occupied", "cow.alive", "zombie.alive"), bool)
        assert kinds == {name: np.dtype(other.get(name, np.int32)) for name in kinds}
    assert train.actions.dtype == np.int32


def test_the_records_hang_together(train):
    states, _, next_states = train
    time = np.arange(6000)
    assert states["occupied"][time, states["pos"][:, 0], states["pos"][:, 1]].all()
    for name in ("cow", "zombie"):
        when, slot = np.nonzero(states[name]["alive"])
        x, y = states[name]["pos"][when, slot].T
        assert states["occupied"][when, x, y].all()
        both = states[name]["alive"] & next_states[name]["alive"]
        assert np.abs(next_states[name]["pos"] - states[name]["pos"]).sum(-1)[both].max() == 1
    joined = np.flatnonzero(np.diff(states["life"]) == 0)
    for name in ("pos", "materials", "occupied", "health", "wood"):
        np.testing.assert_equal(next_states[name][joined], states[name][joined + 1])


def test_rates_are_those_of_crafter(train):
    """Saplings come from grass w.p. 0.1; a cow on open ground moves w.p. 1/2. Bounds are four standard errors."""
    states, actions, next_states = train
    time = np.arange(6000)
    faced = states["pos"] + np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])[states["facing"]]
    inside = ((faced >= 0) & (faced < 32)).all(1)
    x, y = np.clip(faced, 0, 31).T
    digs = (actions == DO) & (states["target"] == GRASS) & (states["sleeping"] == 0) & (states["sapling"] < 9)
    digs &= inside & ~states["occupied"][time, x, y]
    found = (next_states["sapling"] > states["sapling"])[digs].mean()
    assert found == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / digs.sum()))
    # Open ground: grass, sand or path, and nothing within two tiles that could step in the way.
    ground = np.isin(states["materials"], (2, 4, 5))
    cows = states["cow"]
    when, slot = np.nonzero(cows["alive"] & next_states["cow"]["alive"])
    x, y = cows["pos"][when, slot].T
    near = np.abs(cows["pos"][when, slot] - states["pos"][when]).sum(1)
    clear = (x > 1) & (x < 30) & (y > 1) & (y < 30) & (near < 17)
    for dx in range(-2, 3):
        for dy in range(-2, 3):
            gap = abs(dx) + abs(dy)
            at = when, np.clip(x + dx, 0, 31), np.clip(y + dy, 0, 31)
            clear &= (gap != 1) | ground[at]
            clear &= (gap == 0) | (gap > 2) | ~states["occupied"][at]
    moved = (next_states["cow"]["pos"] != cows["pos"])[when, slot].any(-1)[clear]
    assert len(moved) > 5000
    assert moved.mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / len(moved)))


def test_what_is_saved_comes_back(train, tmp_path):
    some = train.take(slice(100, 160))
    save_crafter_transitions(tmp_path / "some.npz", few=some, one=some.take(slice(1)))
    np.testing.assert_equal(crafter_transitions(tmp_path / "some.npz", "few"), some)
    np.testing.assert_equal(crafter_transitions(tmp_path / "some.npz", "one"), some.take(slice(1)))


def test_numbers_that_do_not_fit(train, tmp_path):
    few = train.take(slice(3))
    wrong = few._replace(states={**few.states, "wood": np.array([0, 300, 0])})
    with pytest.raises(
        ValueError, match=r"'wood' has 0 to 300: only whole numbers from 0 to 255 can be stored"
    ):
        save_crafter_transitions(tmp_path / "wrong.npz", few=wrong)
