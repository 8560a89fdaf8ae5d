"""Detection of label switching: it must see it, and must not see it where states merely overlap."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sojourn.diagnostics._switching import detect


def states(location, scale):
    dims = ("chain", "draw", "state")
    return xr.Dataset({"location": (dims, location), "scale": (dims, scale)})


@pytest.mark.parametrize("separation", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0])
@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_states_that_overlap_have_not_switched(chains, separation, rho):
    location = chains(1, size=2, rho=rho) + np.array([0.0, separation])
    assert detect(states(location, chains(2, size=2, rho=rho)), "state", None).fraction < 0.01


@pytest.mark.parametrize("separation", [1.0, 2.0, 5.0])
def test_a_chain_in_another_order_is_seen_even_where_states_overlap(chains, separation):
    location, scale = chains(3, size=2, rho=0.5) + np.array([0.0, separation]), chains(4, size=2)
    location[1] = location[1, :, ::-1]
    found = detect(states(location, scale), "state", None)
    assert found.fraction == pytest.approx(0.25, abs=0.01)
    assert "chain 1 in another order" in found.where()


@pytest.mark.parametrize("separation", [4.0, 8.0])
def test_switching_within_chains_is_counted(chains, separation):
    location, scale = chains(5, size=2) + np.array([0.0, separation]), chains(6, size=2)
    switched = np.random.default_rng(0).random((4, 500)) < 0.2
    switched[2] = False
    location[switched] = location[switched][:, ::-1]
    found = detect(states(location, scale), "state", None)
    assert found.fraction == pytest.approx(switched.mean(), abs=0.02)
    assert found.where() == "switching within chains 0, 1, 3"


def test_a_cycle_of_three_labels_is_seen(chains):
    location = 6.0 * np.arange(3) + chains(7, size=3)
    location[3] = location[3][:, [1, 2, 0]]
    found = detect(states(location, chains(8, size=3)), "state", None)
    assert found.where() == "chain 3 in another order"


def test_labels_that_nothing_tells_apart_have_not_switched():
    same = np.zeros((2, 50, 2))
    assert detect(states(same, same), "state", None).fraction == 0.0


def test_chain_means_that_differ_by_chance_have_not_switched(chains):
    # Two states with the same law: the better order of a chain's means is a matter of chance, in every chain.
    for seed in range(30):
        location = chains(seed, draws=200, size=2, rho=0.9)
        assert detect(states(location, np.zeros_like(location)), "state", None).fraction < 0.01
