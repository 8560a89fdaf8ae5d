"""Scores against closed forms, brute force and ArviZ's leave-one-out.

Averages of random numbers are held to 4 standard errors, seeds are fixed.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sojourn.diagnostics import _arviz
from sojourn.diagnostics.predictive import pit
from sojourn.diagnostics.scoring import crps, interval_coverage, log_score, score


def crps_normal(mean, sd, y):
    """Gneiting and Raftery (2007), JASA 102:359, eq. (21) and the line below it."""
    z = (y - mean) / sd
    return sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))


def test_crps_of_a_normal_has_its_closed_form():
    # Quantiles in place of draws: no chance, and an error of the order of their spacing in the tails.
    points = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000, 1.0, 2.0)
    y = np.array([-4.0, 0.3, 1.0, 6.0])
    found = crps(np.repeat(points[:, None], 4, axis=1), y, fair=False)
    assert np.abs(found - crps_normal(1.0, 2.0, y)).max() < 2e-4


def test_the_fair_score_does_not_depend_on_the_number_of_draws():
    rng = np.random.default_rng(1)
    draws, y = rng.normal(size=(5, 20_000)), np.full(20_000, 0.7)
    fair, plain = crps(draws, y), crps(draws, y, fair=False)
    error = fair.std() / np.sqrt(fair.size)
    assert abs(fair.mean() - crps_normal(0, 1, 0.7)) < 4 * error
    # The other is too high by E|X - X'| / (2 M).
    assert abs(plain.mean() - crps_normal(0, 1, 0.7) - 1 / np.sqrt(np.pi) / 5) < 4 * error


def test_weighted_crps_is_that_of_all_pairs():
    rng = np.random.default_rng(2)
    draws, y, weights = rng.normal(size=(40, 3)), rng.normal(size=3), rng.exponential(size=(40, 3))
    w = weights / weights.sum(0)
    pairs = (w[:, None] * w[None] * np.abs(draws[:, None] - draws[None])).sum((0, 1))
    first = (w * np.abs(draws - y)).sum(0)
    np.testing.assert_allclose(crps(draws, y, weights, fair=False), first - pairs / 2, rtol=1e-12)
    np.testing.assert_allclose(crps(draws, y, weights), first - pairs / 2 / (1 - (w**2).sum(0)), rtol=1e-12)
    np.testing.assert_allclose(crps(draws, y, np.ones(40)), crps(draws, y), rtol=1e-12)


def test_log_score_is_the_log_of_the_mean_density():
    terms = np.random.default_rng(3).normal(size=(30, 4)) - 800.0
    weights = np.arange(1.0, 31.0)
    expected = np.log((weights[:, None] * np.exp(terms + 800.0)).sum(0) / weights.sum()) - 800.0
    np.testing.assert_allclose(log_score(terms, weights), expected, rtol=1e-12)
    assert log_score([[-np.inf], [-np.inf]]).item() == -np.inf


@pytest.mark.parametrize("size", [19, 200])
def test_intervals_of_few_draws_hold_what_they_say(size):
    rng = np.random.default_rng(4)
    count, levels = 20_000, np.array([0.5, 0.9])
    held = interval_coverage(rng.normal(size=(size, count)), rng.normal(size=count), levels)
    # Quantiles of the empirical distribution would hold 0.855 of 19 draws: 16 standard errors less.
    assert (np.abs(held.mean(1) - levels) < 4 * np.sqrt(levels * (1 - levels) / count)).all()


def test_weights_move_the_interval():
    rng = np.random.default_rng(5)
    draws = rng.normal(size=(20_000, 1))
    weights = np.exp(draws)  # from N(0, 1) to N(1, 1), whose 80 % interval is (-0.28, 2.28)
    ends = np.array([-0.35, -0.2, 2.2, 2.35])
    held = [interval_coverage(draws, [y], [0.8], weights).item() for y in ends]
    # Standard error of these quantiles: sqrt(0.1 * 0.9 / ESS) / density = 0.02, with an ESS of 7000.
    assert held == [0.0, 1.0, 1.0, 0.0]


def test_nothing_is_said_where_nothing_was_observed():
    draws, y = np.zeros((3, 2)) + np.arange(3)[:, None], np.array([1.0, np.nan])
    assert np.isnan(crps(draws, y)).tolist() == [False, True]
    assert np.isnan(interval_coverage(draws, y, [0.5])).tolist() == [[False, True]]


# ----------------------------------------------------------------------------------------------- of fits


def test_a_fit_is_scored_as_pit_and_loo_do(series_fit):
    fit = series_fit(length=200)
    found = score(fit)
    loo = _arviz.loo(fit)
    each = loo.loo_i if hasattr(loo, "loo_i") else loo.elpd_i
    observed = np.flatnonzero(np.isfinite(fit.observed_data["y"].values))
    np.testing.assert_allclose(found.pointwise["y_log_score"].values[observed], each.values, rtol=1e-6)
    np.testing.assert_allclose(found.pointwise["y_pit"].values[observed], pit(fit, "y").values, atol=1e-9)
    row = found.table.loc["y"]
    assert row["observations"] == len(observed) == 190
    assert row["log_score"] == pytest.approx(each.values.mean(), rel=1e-6)
    assert row["log_score_se"] == pytest.approx(each.values.std(ddof=1) / np.sqrt(190), rel=1e-6)
    assert row["pit_p_value"] == pytest.approx(pit(fit, "y").curve()[-1])
    for level in (0.5, 0.8, 0.95):
        label = f"{100 * level:g}"
        error = np.sqrt(level * (1 - level) / 190)
        assert row[f"coverage_se_{label}"] == pytest.approx(error)
        assert abs(row[f"coverage_{label}"] - level) < 4 * error
        # Of a standard normal, nearly; the draws' quantiles have a standard error of 0.08 each at 95 %, 190
        # of them.
        assert row[f"width_{label}"] == pytest.approx(2 * stats.norm.ppf((1 + level) / 2), rel=0.02)
    assert np.isnan(found.pointwise["y_crps"].values[40:50]).all()
    assert found.pointwise["y_covered"].dims == ("interval", "time")
    assert found.pointwise["time"].values[-1] == 199 * 0.5
    # The parameters are all but known, so the predictive law is N(0.8 y_{t-1}, 1).
    y = fit.observed_data["y"].values
    expected = np.nanmean(crps_normal(0.8 * y[:-1], 1.0, y[1:]))
    assert np.nanmean(found.pointwise["y_crps"].values[1:]) == pytest.approx(expected, rel=0.02)


def test_predictions_that_are_too_wide_score_worse(series_fit):
    right, wide = score(series_fit()).table.loc["y"], score(series_fit(spread=2.5)).table.loc["y"]
    assert wide["crps"] > right["crps"] + right["crps_se"]
    assert wide["coverage_50"] > 0.5 + 4 * wide["coverage_se_50"]
    assert wide["pit_p_value"] < 1e-3 < right["pit_p_value"]


def test_an_observation_does_not_count_in_its_own_prediction():
    # Normal mean, known variance, flat prior: y_i given the others is N(mean of the others, 1 + 1 / (n - 1)).
    rng = np.random.default_rng(6)
    y = rng.normal(size=8)
    mean = y.mean() + rng.normal(size=(4, 2000)) / np.sqrt(8)
    terms = stats.norm.logpdf(y, mean[..., None])
    dims = ("chain", "draw", "item")
    groups = {
        "posterior": xr.Dataset({"mean": (dims[:2], mean)}),
        "log_likelihood": xr.Dataset({"y": (dims, terms)}),
        "posterior_predictive": xr.Dataset({"y": (dims, mean[..., None] + rng.normal(size=terms.shape))}),
        "observed_data": xr.Dataset({"y": ("item", y)}),
    }
    found = score(_arviz.container(groups))
    others = (y.sum() - y) / 7
    sd = np.sqrt(1 + 1 / 7)
    # The score is the log of a harmonic mean of densities: its standard error by the delta method, 8000
    # draws.
    inverse = np.exp(-terms).reshape(8000, 8)
    error = inverse.std(0) / inverse.mean(0) / np.sqrt(8000)
    assert (np.abs(found.pointwise["y_log_score"] - stats.norm.logpdf(y, others, sd)) < 4 * error).all()
    assert (np.log(np.exp(terms).mean((0, 1))) - stats.norm.logpdf(y, others, sd) > 4 * error).sum() >= 3
    # The CRPS of 8000 weighted draws of spread 1.
    assert np.abs(found.pointwise["y_crps"] - crps_normal(others, sd, y)).max() < 4 / np.sqrt(4000)
    assert found.table.loc["y", "high_khat"] == 0


def test_a_vector_has_one_log_score_and_a_crps_for_each_entry():
    rng = np.random.default_rng(7)
    draws, y = rng.normal(size=(1, 300, 20, 2)), rng.normal(size=(20, 2))
    y[3] = np.nan
    terms = np.full((1, 300, 20), -1.5)
    terms[:, :, 3] = np.nan
    dims = ("chain", "draw", "time", "axis")
    groups = {
        "posterior": xr.Dataset({"a": (dims[:2], draws[..., 0, 0])}),
        "log_likelihood": xr.Dataset({"y": (dims[:3], terms)}),
        "predictions": xr.Dataset({"y": (dims, draws)}),
        "observed_data": xr.Dataset({"y": (dims[2:], y)}),
    }
    found = score(_arviz.container(groups))
    assert found.pointwise["y_log_score"].dims == ("time",)
    assert found.pointwise["y_crps"].dims == ("time", "axis")
    assert found.table.loc["y", "observations"] == 38
    assert found.table.loc["y", "log_score"] == pytest.approx(-1.5)
    np.testing.assert_allclose(
        found.pointwise["y_crps"].values[0, 0], crps(draws[0, :, 0, 0], y[0, 0]), rtol=1e-6
    )


def test_integers_have_a_uniform_pit(series_fit):
    found = score(series_fit(length=400, integer=True, missing=slice(0, 0)))
    assert found.table.loc["y", "pit_p_value"] > 1e-3
    assert found.table.loc["y", "coverage_50"] > 0.5  # a closed interval of integers


def test_notes_and_text(series_fit):
    text = str(score(series_fit(predictions=False)))
    assert text.startswith("y: 110 observations\n  log score")
    assert "whole replicated series" in text
    assert "95 % interval holds" in text
    assert "whole replicated series" not in str(score(series_fit()))


# ------------------------------------------------------------------------------------------- of forecasts


def test_forecasts_are_held_against_what_came():
    rng = np.random.default_rng(8)
    draws, y = rng.normal(size=(400, 3)), np.array([0.1, np.nan, 2.0])
    forecasts = xr.Dataset(
        {"y_forecast": (("sample", "horizon"), draws), "x_mean": ("time", np.zeros(5))},
        coords={"horizon": [1, 2, 3]},
    )
    found = score(forecasts, observed=y, intervals=[0.9])
    np.testing.assert_allclose(found.pointwise["y_crps"].values, crps(draws, y), rtol=1e-12)
    assert found.pointwise["y_covered"].values.tolist()[0][::2] == [1.0, 0.0]
    assert "y_log_score" not in found.pointwise
    assert "log score" not in str(found)
    same = score(forecasts["y_forecast"].rename("y"), observed={"y": xr.DataArray(y, dims="horizon")})
    np.testing.assert_allclose(same.pointwise["y_crps"].values, found.pointwise["y_crps"].values)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda fit: score("fit"), TypeError, "takes a fit"),
        (lambda fit: score(fit, "z"), ValueError, "no observed variable 'z'.*can be scored are"),
        (lambda fit: score(fit, intervals=(0.5, 95)), ValueError, "probabilities between 0 and 1"),
        (lambda fit: score(fit, observed={"y": [1.0]}), ValueError, "only with forecasts"),
        (lambda fit: score(fit.predictions["y"].to_dataset()), ValueError, "needs what was observed"),
        (
            lambda fit: score(fit.predictions["y"].to_dataset(), observed=np.zeros(3)),
            ValueError,
            r"'y' have the shape \(120,\), and what was observed \(3,\)",
        ),
        (lambda fit: crps(np.zeros((5, 2)), np.zeros(3)), ValueError, "two or more draws on the first axis"),
        (lambda fit: crps(np.zeros((1, 3)), np.zeros(3)), ValueError, "two or more draws"),
        (lambda fit: crps(np.zeros((5, 3)), np.zeros(3), np.ones(4)), ValueError, "`weights` has shape"),
        (lambda fit: log_score(np.zeros((5, 3)), -np.ones(5)), ValueError, "must not be negative"),
    ],
)
def test_what_cannot_be_scored_is_named(call, error, says, series_fit):
    with pytest.raises(error, match=says):
        call(series_fit())


def test_infinite_terms_are_named(series_fit):
    fit = series_fit()
    fit.log_likelihood["y"].values[0, 3, 7] = -np.inf
    with pytest.raises(ValueError, match="log-likelihood of 'y' have NaN or infinite values at 1 of 110"):
        score(fit)
    fit = series_fit()
    fit.predictions["y"].values[0, 3, 7] = np.inf
    with pytest.raises(ValueError, match="predictive draws of 'y' have NaN or infinite values at 1 of 110"):
        score(fit)
