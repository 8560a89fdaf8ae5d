"""The layer over the two generations of ArviZ."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from sojourn.diagnostics import _arviz

DIMS = ("chain", "draw")


def pointwise_fit(values, dims=("time",), **groups):
    rng = np.random.default_rng(1)
    posterior = xr.Dataset({"mu": (DIMS, rng.normal(size=values.shape[:2]))})
    coords = {dim: np.arange(size) * 10 for dim, size in zip(dims, values.shape[2:], strict=True)}
    log_likelihood = xr.Dataset({"y": (DIMS + dims, values)}, coords=coords)
    return _arviz.container({"posterior": posterior, "log_likelihood": log_likelihood, **groups})


def elpd(result):
    return float(result.elpd_loo if _arviz.generation() == 0 else result.elpd)


def pointwise(result):
    return result.loo_i if _arviz.generation() == 0 else result.elpd_i


def test_importing_the_package_loads_neither_arviz_nor_matplotlib():
    code = "import sys, sojourn.diagnostics; print([n for n in ('arviz', 'matplotlib') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_attributes_are_on_the_container_and_on_the_posterior():
    fit = _arviz.container(
        {"posterior": xr.Dataset({"mu": (DIMS, np.zeros((2, 4)))})}, {"engine": "nuts", "seed": 3}
    )
    assert fit.attrs["seed"] == 3
    assert fit.posterior.attrs["engine"] == "nuts"
    assert _arviz.attributes(fit) == {"engine": "nuts", "seed": 3}


def test_container_is_what_the_installed_arviz_uses():
    fit = _arviz.container({"posterior": xr.Dataset({"mu": (DIMS, np.zeros((2, 4)))})})
    assert type(fit).__name__ == ("InferenceData" if _arviz.generation() == 0 else "DataTree")


def test_every_group_comes_back_as_a_plain_dataset():
    dataset = xr.Dataset({"x": (DIMS, np.arange(8.0).reshape(2, 4))})
    fit = _arviz.container(dict.fromkeys(_arviz.GROUPS, dataset))
    for name in _arviz.GROUPS:
        found = _arviz.group(fit, name)
        assert type(found) is xr.Dataset
        np.testing.assert_array_equal(found["x"], dataset["x"])


def test_with_groups_leaves_the_fit_as_it_was():
    fit = _arviz.container({"posterior": xr.Dataset({"x": (DIMS, np.zeros((2, 4)))})}, {"seed": 1})
    new = _arviz.with_groups(fit, {"posterior": xr.Dataset({"x": (DIMS, np.ones((2, 4)))})})
    assert float(fit.posterior["x"].max()) == 0.0
    assert float(new.posterior["x"].min()) == 1.0
    assert new.attrs["seed"] == 1


@pytest.mark.parametrize("groups", [{}, {"posterior": xr.Dataset(), "wrong": xr.Dataset()}])
def test_container_refuses_other_groups(groups):
    with pytest.raises(ValueError, match="group"):
        _arviz.container(groups)


def test_rhat_of_one_chain_is_split():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(1, 400))
    drift = good + np.linspace(0.0, 3.0, 400)
    values = _arviz.rhat(xr.Dataset({"good": (DIMS, good), "drift": (DIMS, drift)}))
    assert float(values["good"]) < 1.03
    assert float(values["drift"]) > 1.2


def test_rhat_of_a_binary_variable_is_a_number():
    values = np.tile([0.0, 1.0], (4, 100))
    assert float(_arviz.rhat(xr.Dataset({"z": (DIMS, values)}))["z"]) == pytest.approx(1.0, abs=0.02)


def test_psis_khat_tells_light_from_heavy_tails():
    rng = np.random.default_rng(0)
    assert _arviz.psis_khat(0.1 * rng.normal(size=2000)) < 0.5
    # Ratios that are Pareto with shape k = 1: their logs are exponential with rate 1.
    assert _arviz.psis_khat(rng.exponential(size=2000)) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [(np.array([0.0, np.nan, 1.0]), np.inf), (np.array([0.0, np.inf]), np.inf)],
)
def test_psis_khat_at_the_edges(ratios, expected):
    assert _arviz.psis_khat(ratios) == expected


@pytest.mark.parametrize("ratios", [np.full(500, -3.0), np.where(np.arange(500) < 300, 0.0, -2.0)])
def test_psis_of_bounded_ratios_is_the_best_case(ratios):
    assert _arviz.psis_khat(ratios) < 0.0
    log_weights, _ = _arviz.psis(ratios)
    np.testing.assert_allclose(np.exp(log_weights), np.exp(ratios) / np.exp(ratios).sum(), rtol=1e-6)


def test_loo_with_a_term_that_no_parameter_touches():
    values = 0.3 * np.random.default_rng(0).normal(size=(4, 200, 6)) - 1.0
    values[..., 0] = -0.7
    result = _arviz.loo(pointwise_fit(values))
    assert float(pointwise(result)[0]) == pytest.approx(-0.7, abs=1e-6)
    assert float(result.pareto_k[0]) < 0.0


def test_psis_khat_with_zero_ratios_is_finite():
    ratios = 0.1 * np.random.default_rng(0).normal(size=1000)
    without = _arviz.psis_khat(ratios)
    ratios[:5] = -np.inf
    assert _arviz.psis_khat(ratios) == pytest.approx(without, abs=0.2)


def test_psis_weights_agree_with_their_definition():
    # With a light tail smoothing changes little: the weights are the ratios, normalised.
    ratios = 0.05 * np.random.default_rng(0).normal(size=(2, 1000))
    log_weights, khat = _arviz.psis(ratios)
    plain = np.exp(ratios) / np.exp(ratios).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_weights), plain, rtol=0.03)
    assert khat.shape == (2,)


def test_loo_equals_arviz_when_nothing_is_missing():
    values = 0.3 * np.random.default_rng(0).normal(size=(4, 200, 12)) - 1.0
    fit = pointwise_fit(values)
    expected = _arviz.arviz_module().loo(fit, pointwise=True)
    assert elpd(_arviz.loo(fit)) == pytest.approx(elpd(expected), abs=1e-10)


def test_loo_drops_exactly_the_missing_entries():
    values = 0.3 * np.random.default_rng(0).normal(size=(4, 200, 12)) - 1.0
    holed = values.copy()
    holed[..., [2, 7]] = np.nan
    kept = np.delete(np.arange(12), [2, 7])
    result = _arviz.loo(pointwise_fit(holed))
    assert int(result.n_data_points) == 10
    np.testing.assert_array_equal(pointwise(result)["time"], kept * 10)
    np.testing.assert_allclose(
        pointwise(result), pointwise(_arviz.loo(pointwise_fit(values)))[kept], atol=1e-10
    )


def test_loo_over_series_and_time():
    values = 0.3 * np.random.default_rng(0).normal(size=(2, 200, 3, 5)) - 1.0
    values[..., 1, 2] = np.nan
    result = _arviz.loo(pointwise_fit(values, ("series", "time")))
    assert int(result.n_data_points) == 14
    assert pointwise(result).dims == ("observation",)
    places = set(zip(pointwise(result)["series"].values, pointwise(result)["time"].values, strict=True))
    assert (10, 20) not in places
    assert len(places) == 14


def test_loo_of_a_single_term():
    result = _arviz.loo(pointwise_fit(0.1 * np.random.default_rng(0).normal(size=(2, 200)), ()))
    assert np.isfinite(elpd(result))


def test_loo_with_a_posterior_that_has_constants_and_nan():
    fit = pointwise_fit(0.3 * np.random.default_rng(0).normal(size=(2, 100, 4)))
    posterior = _arviz.group(fit, "posterior")
    posterior = posterior.assign(zero=(DIMS, np.zeros((2, 100))), bad=(DIMS, np.full((2, 100), np.nan)))
    assert np.isfinite(elpd(_arviz.loo(_arviz.with_groups(fit, {"posterior": posterior}))))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [((0, 3, 1), np.nan, "in some draws"), ((0, 3, 1), -np.inf, "in some draws"),
     (..., np.nan, "NaN everywhere")],
)  # fmt: skip
def test_loo_refuses_what_it_cannot_answer(place, value, message):
    values = np.zeros((2, 10, 4))
    values[place] = value
    with pytest.raises(ValueError, match=message):
        _arviz.loo(pointwise_fit(values))


def test_loo_asks_which_variable():
    fit = pointwise_fit(np.zeros((2, 10, 4)))
    both = _arviz.group(fit, "log_likelihood").assign(z=(DIMS, np.zeros((2, 10))))
    fit = _arviz.with_groups(fit, {"log_likelihood": both})
    with pytest.raises(ValueError, match="several observed variables"):
        _arviz.loo(fit)
    with pytest.raises(ValueError, match="no log likelihood for 'w'"):
        _arviz.loo(fit, "w")


def test_compare_ranks_the_better_model_first_and_is_finite():
    values = 0.2 * np.random.default_rng(0).normal(size=(4, 200, 30))
    values[..., 3:6] = np.nan
    table = _arviz.compare({"poor": pointwise_fit(values - 1.0), "good": pointwise_fit(values)})
    assert list(table.index) == ["good", "poor"]
    column = "elpd_loo" if "elpd_loo" in table else "elpd"
    assert np.isfinite(table[column].astype(float)).all()
    assert abs(float(table["elpd_diff"].astype(float).iloc[1])) == pytest.approx(27.0, abs=0.5)


def test_compare_refuses_fits_of_other_data():
    values = np.random.default_rng(0).normal(size=(2, 50, 6))
    with pytest.raises(ValueError, match="same data"):
        _arviz.compare({"a": pointwise_fit(values), "b": pointwise_fit(values[..., :5])})
    with pytest.raises(ValueError, match="at least two"):
        _arviz.compare({"a": pointwise_fit(values)})


@pytest.mark.parametrize("plot", [_arviz.plot_trace, _arviz.plot_rank, _arviz.plot_forest])
def test_plots_are_figures_that_pyplot_does_not_hold(plot, make_fit, chains):
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    fit = make_fit({"mu": chains(0)[..., 0], "rate": chains(1)})
    figure = plot(fit, ["mu", "rate"])
    assert isinstance(figure, Figure)
    assert figure.get_figwidth() == pytest.approx(10.0, rel=0.01)
    assert plt.get_fignums() == []
    with pytest.raises(ValueError, match="the posterior has no"):
        plot(fit, ["nothing"])
