import warnings

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference import _chains

Y = np.random.default_rng(0).normal(size=12).cumsum()
SHORT = {"num_samples": 200, "num_warmup": 100, "num_chains": 2, "progress_bar": False}


def levels(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("unit", len(y)):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.deterministic("double", 2.0 * x)
        numpyro.sample("y", dist.Normal(x, scale + 0.5), obs=y)


@pytest.fixture(scope="module")
def everything():
    return sj.fit(levels, Y, **SHORT)


@pytest.fixture(scope="module")
def summarised():
    return sj.fit(levels, Y, keep=sj.Keep(summarise=["x"], quantiles=(0.1, 0.5, 0.9)), **SHORT)


def test_names_are_kept(everything):
    fit = sj.fit(levels, Y, keep=["scale", "double"], **SHORT)
    assert set(fit.posterior.data_vars) == {"scale", "double"}
    np.testing.assert_array_equal(fit.posterior["double"], everything.posterior["double"])
    # A latent is not there: what would need it is not made up from the prior.
    for group in ("log_likelihood", "posterior_predictive"):
        assert _arviz.group(fit, group) is None
    assert "lp" in fit.sample_stats


def test_a_deterministic_site_may_go_alone(everything):
    fit = sj.fit(levels, Y, keep=["scale", "x"], **SHORT)
    np.testing.assert_array_equal(fit.log_likelihood["y"], everything.log_likelihood["y"])


def test_running_summaries_are_those_of_the_draws(everything, summarised):
    assert set(summarised.posterior.data_vars) == {"scale", "double"}
    np.testing.assert_array_equal(summarised.posterior["scale"], everything.posterior["scale"])
    found = _arviz.group(summarised, "running_summary")["x"]
    assert found.dims == ("chain", "statistic", "unit")
    assert list(found["statistic"].values) == ["mean", "sd", "q10", "q50", "q90"]
    draws = everything.posterior["x"].values
    np.testing.assert_allclose(found.sel(statistic="mean"), draws.mean(1), atol=1e-5)
    np.testing.assert_allclose(found.sel(statistic="sd"), draws.std(1, ddof=1), rtol=1e-4)
    for statistic, share in (("q10", 0.1), ("q50", 0.5), ("q90", 0.9)):
        error = found.sel(statistic=statistic) - np.quantile(draws, share, axis=1)
        # The running rule on 200 draws: within what chance does to a quantile of 200 draws (.12 sd at the outer ones).
        assert np.sqrt((error**2).mean()) < 0.12 * draws.std()


def test_summaries_of_one_chain_and_of_chains_in_turn(everything):
    keep = sj.Keep(summarise=["x"])
    one = sj.fit(levels, Y, keep=keep, **{**SHORT, "num_chains": 1})
    assert one.running_summary["x"].dims == ("chain", "statistic", "unit")
    turns = sj.fit(levels, Y, keep=keep, chain_method="sequential", **SHORT)
    np.testing.assert_allclose(
        turns.running_summary["x"].sel(statistic="mean"), everything.posterior["x"].mean("draw"), atol=0.3
    )


def test_the_report_and_the_check_take_such_fits(summarised, tmp_path):
    sj.check(summarised)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sj.report(summarised, tmp_path / "page.html")


def test_draws_too_many_for_memory_are_read_from_disk(everything, tmp_path, monkeypatch):
    monkeypatch.setattr(_chains, "_IN_MEMORY", 1000)
    fit = sj.fit(levels, Y, checkpoint=tmp_path, **SHORT)
    x = fit.posterior["x"]
    assert not x.variable._in_memory
    np.testing.assert_array_equal(x, everything.posterior["x"])
    np.testing.assert_array_equal(fit.log_likelihood["y"], everything.log_likelihood["y"])


@pytest.mark.parametrize(
    ("keep", "sentence"),
    [
        ("scale", "`keep` is a list of names of sites or an sj.Keep, not 'scale'"),
        ({"x": "summary"}, "`keep` is a list of names of sites or an sj.Keep"),
        (["scales"], r"`keep` names 'scales', and the sites of the draws are \['double', 'scale', 'x'\]"),
    ],
)
def test_names_that_are_none(keep, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.fit(levels, Y, keep=keep, **SHORT)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sites": "x"}, "`sites` of Keep is a list of names of sites, not 'x'"),
        ({"summarise": [1]}, "`summarise` of Keep is a list of names"),
        ({"sites": ["x"], "summarise": ["x"]}, "Site 'x' is to be kept and to be summarised"),
        ({"thinning": 0}, "`thinning` of Keep is a whole number of at least 1, not 0"),
        ({"quantiles": (0.5, 0.1)}, "`quantiles` of Keep increase between 0 and 1"),
        ({"quantiles": (0.0,)}, "`quantiles` of Keep increase between 0 and 1"),
    ],
)
def test_settings(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.Keep(**settings)


def test_discrete_sites_have_no_mean():
    def switch(y):
        def step(k, y):
            k = numpyro.sample("k", dist.Categorical(np.array([0.5, 0.5])))
            numpyro.sample("y", dist.Normal(1.0 * k, 1.0), obs=y)
            return k, None

        scan(step, 0, y)

    with pytest.raises(ValueError, match=r"Site 'k' is discrete \(int32\)"):
        sj.fit(switch, Y, engine="particle_gibbs", keep=sj.Keep(summarise=["k"]), **SHORT)


def test_an_engine_that_draws_at_its_end():
    with pytest.raises(ValueError, match="`keep` is for samplers that run chains, and svi draws at its end"):
        sj.fit(levels, Y, engine="svi", keep=["x"], progress_bar=False)
