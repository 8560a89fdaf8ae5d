"""Simulation-based calibration: right ranks pass, wrong ones fail."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sojourn.diagnostics import Calibration
from sojourn.diagnostics.calibration import rank

DRAWS = 99


def normal_ranks(seed, shift=0.0, spread=1.0, simulations=300, size=4):
    """Ranks when the posterior of a standard normal value is normal with a wrong location or scale."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(simulations, size))
    draws = shift + spread * rng.normal(size=(DRAWS, simulations, size))
    return Calibration(xr.Dataset({"x": (("simulation", "site"), rank(truth, draws))}), DRAWS)


def test_right_posteriors_pass():
    # At an overall level of 1 % each, the chance that more than one of 20 fails is below 2 %.
    assert sum(not normal_ranks(seed).ok for seed in range(20)) <= 1


@pytest.mark.parametrize(("shift", "spread"), [(0.4, 1.0), (-0.4, 1.0), (0.0, 1.4), (0.0, 0.7)])
def test_biased_and_wide_and_narrow_posteriors_fail(shift, spread):
    calibration = normal_ranks(1, shift, spread)
    assert not calibration.ok
    assert "NOT calibrated" in str(calibration)
    assert float(calibration.p_values()["x"].min()) < 0.0025


def test_one_wrong_scalar_among_many_is_found_and_named():
    calibration = normal_ranks(2, size=30)
    ranks = calibration.ranks.copy(deep=True)
    ranks["x"][:, 7] = ranks["x"][:, 7] // 2
    wrong = Calibration(ranks, DRAWS)
    assert calibration.ok
    assert not wrong.ok
    assert "x[site=7]" in str(wrong).splitlines()[1]
    assert int(wrong.p_values()["x"].values.argmin()) == 7
    assert wrong.p_values()["x"].dims == ("site",)


def test_rank_breaks_ties_at_random():
    values, draws = np.zeros(4000), np.zeros((9, 4000))
    ranks = rank(values, draws, seed=1)
    counts = np.bincount(ranks, minlength=10)
    # Binomial with mean 400 and standard deviation 19: five of them.
    assert len(counts) == 10
    assert np.abs(counts - 400).max() < 95
    np.testing.assert_array_equal(ranks, rank(values, draws, seed=1))


def test_rank_counts_smaller_draws():
    assert rank([0.0, 2.5], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]).tolist() == [0, 2]


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="shape"):
        rank([0.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        rank(0.0, [np.nan, 1.0])
    with pytest.raises(TypeError, match=r"xarray\.Dataset"):
        Calibration({"x": [1, 2]}, 9)
    with pytest.raises(ValueError, match="no dimension 'simulation'"):
        Calibration(xr.Dataset({"x": ("draw", [1, 2])}), 9)
    with pytest.raises(ValueError, match="between 0 and num_draws"):
        Calibration(xr.Dataset({"x": ("simulation", [1, 10])}), 9)
    with pytest.raises(ValueError, match="at least one variable"):
        Calibration(xr.Dataset(), 9)


def test_plot_has_a_panel_for_each_scalar():
    assert len(normal_ranks(3).plot().axes) == 4
    assert len(normal_ranks(3, simulations=40, size=30).plot().axes) == 24
