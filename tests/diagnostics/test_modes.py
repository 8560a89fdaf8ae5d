"""Grouping of chains by mode."""

from __future__ import annotations

import numpy as np
import pytest

from sojourn.diagnostics._modes import groups_of_chains


def test_mixed_chains_are_one_group(chains):
    groups, pairs = groups_of_chains(chains(0, size=50))
    assert groups == [[0, 1, 2, 3]]
    assert pairs.sum() == 0


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_two_modes_are_two_groups(chains, rho):
    draws = chains(1, draws=1000, size=4, rho=rho)
    draws[[1, 3], :, 2] += 5.0
    groups, pairs = groups_of_chains(draws)
    assert groups == [[0, 2], [1, 3]]
    assert np.argmax(pairs) == 2


def test_each_chain_in_a_mode_of_its_own(chains):
    draws = chains(2, size=1) + 10.0 * np.arange(4)[:, None, None]
    assert groups_of_chains(draws)[0] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("rho", [0.97, 0.99, 0.995, 0.998, 0.9995])
def test_slow_chains_in_one_mode_are_left_to_rhat(chains, rho):
    # 50 fits over the five speeds: with one false alarm in 20 fits this would fail 9 times in 10.
    for seed in range(10):
        assert len(groups_of_chains(chains(seed, draws=400, size=20, rho=rho))[0]) == 1


def test_heavy_tails_are_not_modes():
    draws = np.random.default_rng(0).standard_cauchy(size=(4, 500, 30))
    assert len(groups_of_chains(draws)[0]) == 1


def test_binary_entries_are_not_modes_when_chains_agree():
    draws = (np.random.default_rng(0).random((4, 300, 40)) < np.linspace(0.01, 0.99, 40)).astype(float)
    assert len(groups_of_chains(draws)[0]) == 1


def test_short_chains_and_single_chains_are_one_group(chains):
    assert groups_of_chains(chains(0, draws=10) + 9.0 * np.arange(4)[:, None, None])[0] == [[0, 1, 2, 3]]
    assert groups_of_chains(chains(0, chains=1))[0] == [[0]]
