"""Predictive calibration."""

from __future__ import annotations

import numpy as np
import pytest

from sojourn.diagnostics import _arviz
from sojourn.diagnostics.predictive import pit, plot_pit, predictive_variables


def test_calibrated_predictions_are_uniform_and_skip_missing_entries(series_fit):
    found = pit(series_fit(0), "y")
    assert found.values.shape == (110,)
    assert found.source == "predictions"
    assert found.weighted
    assert found.curve()[-1] > 0.01


@pytest.mark.parametrize("spread", [0.4, 2.5])
def test_predictions_too_narrow_or_too_wide_are_not(series_fit, spread):
    found = pit(series_fit(1, spread=spread), "y")
    assert found.curve()[-1] < 1e-3
    # Too narrow: observations fall in the tails, so the ECDF is above uniform at the left.
    points, ecdf, *_ = found.curve()
    left = (ecdf - points)[points < 0.25].mean()
    assert left > 0 if spread < 1 else left < 0


def test_integer_data_are_randomised_and_repeatable(series_fit):
    fit = series_fit(2, integer=True, length=300)
    found = pit(fit, "y")
    assert np.unique(found.values).size > 200
    assert found.curve()[-1] > 0.01
    np.testing.assert_array_equal(found.values, pit(fit, "y").values)
    assert not np.array_equal(found.values, pit(fit, "y", seed=1).values)


def test_weights_take_an_observation_out_of_its_own_prediction():
    # One observation far out pulls the posterior of a location: leaving it out, the prediction is
    # the prior N(0, 1) plus noise, whose PIT is known.
    import xarray as xr
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    y, shape = 1.5, (4, 5000)
    location = y / 2 + np.sqrt(0.5) * rng.normal(size=shape)
    draws = location + rng.normal(size=shape)
    dims = ("chain", "draw")
    groups = {
        "posterior": xr.Dataset({"location": (dims, location)}),
        "predictions": xr.Dataset({"y": ((*dims, "time"), draws[..., None])}),
        "log_likelihood": xr.Dataset({"y": ((*dims, "time"), norm.logpdf(y, location)[..., None])}),
        "observed_data": xr.Dataset({"y": ("time", [y])}),
    }
    exact = norm.cdf(y / np.sqrt(2.0))
    weighted = pit(_arviz.container(groups), "y").values[0]
    del groups["log_likelihood"]
    plain = pit(_arviz.container(groups), "y").values[0]
    # The weights are heavy; 20000 draws leave an error of about 0.01, the pulled prediction is off by 0.13.
    assert weighted == pytest.approx(exact, abs=0.04)
    assert plain == pytest.approx(norm.cdf((y / 2) / np.sqrt(1.5)), abs=0.02)
    assert abs(plain - exact) > 0.1


def test_without_predictions_the_posterior_predictive_is_used(series_fit):
    assert pit(series_fit(0, predictions=False), "y").source == "posterior_predictive"


def test_variables_without_draws_of_their_shape_are_refused(series_fit):
    fit = series_fit(0)
    short = _arviz.group(fit, "predictions").isel(time=slice(0, 5))
    fit = _arviz.with_groups(fit, {"predictions": short, "posterior_predictive": short})
    assert predictive_variables(fit) == []
    with pytest.raises(ValueError, match="no observed variable 'y'"):
        pit(fit, "y")
    with pytest.raises(ValueError, match="no observed variable"):
        plot_pit(fit)
