import warnings
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import NUTS
from scipy import stats

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference._check_model import check_names
from sojourn.models import hidden_markov

SHORT = {"num_warmup": 100, "num_samples": 50, "num_chains": 1, "progress_bar": False}


def group(fit, name):
    found = _arviz.group(fit, name)
    assert found is not None, f"no group {name}"
    return found


def normal_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_groups_and_labels(nuts_fit, quakes):
    assert dict(group(nuts_fit, "posterior").sizes) == {"chain": 4, "draw": 500, "state": 2, "next_state": 2}
    assert group(nuts_fit, "posterior")["transition"].dims == ("chain", "draw", "state", "next_state")
    for name in ("log_likelihood", "posterior_predictive", "predictions"):
        assert group(nuts_fit, name)["count"].dims == ("chain", "draw", "time")
    observed = group(nuts_fit, "observed_data")["count"]
    np.testing.assert_array_equal(observed, quakes)
    np.testing.assert_array_equal(observed["time"], quakes["time"])
    stats_ = group(nuts_fit, "sample_stats")
    assert {"lp", "energy", "n_steps", "tree_depth", "step_size", "diverging", "acceptance_rate"} <= set(
        stats_
    )
    assert nuts_fit.attrs["engine"] == "nuts"
    assert nuts_fit.attrs["seed"] == 0


def test_log_likelihood_is_one_step_ahead(nuts_fit, quakes):
    """The stored terms are log p(y_t | y_<t) of each draw: against a filter written out in NumPy."""
    posterior = group(nuts_fit, "posterior").isel(chain=1, draw=7)
    rate, move = posterior["rate"].values.astype(float), posterior["transition"].values.astype(float)
    law = np.linalg.matrix_power(move, 10_000)[0]
    terms = []
    for count in quakes.values:
        joint = law * stats.poisson.pmf(count, rate)
        terms.append(np.log(joint.sum()))
        law = joint / joint.sum() @ move
    stored = group(nuts_fit, "log_likelihood")["count"].isel(chain=1, draw=7)
    np.testing.assert_allclose(stored, terms, rtol=2e-4)


def test_posterior_of_a_conjugate_model():
    """Mean and sd of Normal-Normal in closed form, within 5 Monte Carlo errors."""
    y = np.array([0.3, 1.9, 1.1, 0.4, 2.2])
    variance = 1 / (1 / 4 + len(y))
    mean = variance * y.sum()
    fit = sj.fit(normal_mean, y, num_warmup=300, num_samples=1000, num_chains=2, progress_bar=False)
    draws = group(fit, "posterior")["mu"].values.ravel()
    size = float(_arviz.ess(group(fit, "posterior"))["mu"])
    assert abs(draws.mean() - mean) < 5 * np.sqrt(variance / size)
    assert abs(draws.std() / np.sqrt(variance) - 1) < 5 / np.sqrt(2 * size)
    assert group(fit, "posterior_predictive")["y"].shape == (2, 1000, 5)
    replicated = group(fit, "posterior_predictive")["y"].values
    assert abs(replicated.var() - (1 + variance)) < 0.15  # 10 000 values, 5 errors of a variance: 0.09
    np.testing.assert_allclose(
        group(fit, "log_likelihood")["y"].values[0, 3],
        stats.norm.logpdf(y, group(fit, "posterior")["mu"].values[0, 3]),
        rtol=1e-4,
    )


def test_same_seed_same_draws():
    y = np.array([0.3, 1.9])
    one, two, other = (sj.fit(normal_mean, y, seed=s, **SHORT) for s in (3, 3, 4))
    np.testing.assert_array_equal(group(one, "posterior")["mu"], group(two, "posterior")["mu"])
    np.testing.assert_array_equal(
        group(one, "posterior_predictive")["y"], group(two, "posterior_predictive")["y"]
    )
    assert (group(one, "posterior")["mu"].values != group(other, "posterior")["mu"].values).any()


def test_any_kernel():
    fit = sj.fit(
        normal_mean, np.ones(3), engine=partial(NUTS, target_accept_prob=0.95, max_tree_depth=3), **SHORT
    )
    assert fit.attrs["engine"] == "nuts"
    assert group(fit, "sample_stats")["n_steps"].values.max() <= 7


def stochastic_volatility(returns):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    h0 = numpyro.sample("h0", dist.Normal(mu, sigma))

    def step(h, r):
        h = numpyro.sample("h", dist.Normal(mu + 0.9 * (h - mu), sigma))
        numpyro.sample("r", dist.Normal(0.0, jnp.exp(h / 2)), obs=r)
        return h, None

    scan(step, h0, returns)


def test_plain_scan_model_of_a_user():
    returns = np.random.default_rng(0).normal(size=12)
    fit = sj.fit(stochastic_volatility, returns, **SHORT)
    assert group(fit, "posterior")["h"].dims == ("chain", "draw", "time")
    h = group(fit, "posterior")["h"].values[0, 5]
    expected = stats.norm.logpdf(returns, 0, np.exp(h / 2))
    np.testing.assert_allclose(group(fit, "log_likelihood")["r"].values[0, 5], expected, rtol=1e-3)
    assert group(fit, "posterior_predictive")["r"].shape == (1, 50, 12)


def test_names_plates_coords_and_constants():
    def schools(y, sigma):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        with numpyro.plate("school", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 3.0))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
        numpyro.deterministic("twice", 2 * mu)

    fit = sj.fit(schools, np.array([3.0, 1.0]), np.array([1.0, 2.0]), coords={"school": ["a", "b"]}, **SHORT)
    theta = group(fit, "posterior")["theta"]
    assert theta.dims == ("chain", "draw", "school")
    assert theta["school"].values.tolist() == ["a", "b"]
    np.testing.assert_allclose(group(fit, "posterior")["twice"], 2 * group(fit, "posterior")["mu"], rtol=1e-6)
    assert group(fit, "constant_data")["sigma"].values.tolist() == [1.0, 2.0]
    assert group(fit, "log_likelihood")["y"].dims == ("chain", "draw", "school")


def test_missing_observations(quakes):
    gaps = quakes.astype(float).copy()
    gaps[[3, 50]] = np.nan
    fit = sj.fit(hidden_markov.poisson, gaps, num_states=2, **SHORT)
    for name in ("log_likelihood", "posterior_predictive", "predictions"):
        empty = np.isnan(group(fit, name)["y"].values)
        assert empty[..., [3, 50]].all()
        assert empty.sum() == 2 * 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 50 draws are too few for Pareto tails, as ArviZ says
        loo = _arviz.loo(fit)
    assert np.isfinite(getattr(loo, "elpd_loo", None) or loo.elpd)


def test_ragged_series():
    series, lengths = hidden_markov.pad([[1, 2, 8, 9, 7], [2, 1], [9, 8, 7]])
    fit = sj.fit(hidden_markov.poisson, series, num_states=2, lengths=lengths, **SHORT)
    stored = group(fit, "log_likelihood")["y"]
    assert stored.dims == ("chain", "draw", "series", "time")
    assert np.isnan(stored.values).sum(-1)[0, 0].tolist() == [0, 3, 2]
    assert np.isnan(group(fit, "observed_data")["y"].values).sum() == 5
    assert group(fit, "constant_data")["lengths"].values.tolist() == [5, 2, 3]


@pytest.mark.parametrize("engine", ["nuts", "svi", "particle_gibbs"])
def test_a_model_is_a_function(engine):
    with pytest.raises(TypeError, match="A model is a function with NumPyro primitives, not 3"):
        sj.fit(3, np.ones(3), engine=engine)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"progress": False},
            r"Neither coin_of_two\(\) nor sj\.fit\(\) has an argument `progress`: did you mean `progress_bar`",
        ),
        ({"toses": 3}, r"did you mean `tosses`\?"),
        ({"draws": 100}, r"`draws`: the options are engine, num_samples, num_warmup, num_chains, seed"),
    ],
)
def test_names_that_nobody_knows(given, sentence):
    with pytest.raises(TypeError, match=sentence):
        sj.fit(coin_of_two, np.ones(3), **given)


def test_what_wraps_a_model_may_take_more():
    @wraps(coin_of_two)
    def turned(tosses, *, heads):
        coin_of_two(tosses == heads)

    check_names(turned, {"heads": 1}, sj.fit)
    with pytest.raises(TypeError, match=r"has an argument `head`: did you mean `heads`\?"):
        check_names(turned, {"head": 1}, sj.fit)


def coin_of_two(tosses):
    which = numpyro.sample("which", dist.Bernoulli(0.5))
    numpyro.sample("tosses", dist.Bernoulli(0.3 + 0.4 * which), obs=tosses)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: sj.fit(normal_mean, np.ones(3), engine="gibbs"), "There is no engine 'gibbs'"),
        (lambda: sj.fit(normal_mean, np.ones(3), engine=3), "`engine` must be a name or a callable"),
        (lambda: sj.fit(normal_mean, np.ones(3), engine=lambda model: 1), "must return a numpyro MCMCKernel"),
        (lambda: sj.fit(normal_mean, np.ones(3), num_samples=0), "`num_samples` must be a whole number"),
        (lambda: sj.fit(normal_mean, None), "The model observes nothing"),
        (lambda: sj.fit(normal_mean, np.array([])), "data at site 'y' are empty"),
        (lambda: sj.fit(hidden_markov.poisson, np.array([]), num_states=2), "is empty"),
        (
            lambda: sj.fit(hidden_markov.poisson, [3, -1, 2], num_states=2),
            "Counts are non-negative integers; at index 1 stands -1",
        ),
        (lambda: sj.fit(coin_of_two, np.ones(3)), "Site 'which' is discrete, and nuts needs gradients"),
        (
            lambda: sj.fit(hidden_markov.poisson, [3, 1, 2], num_states=2, engine="blocked_gibbs"),
            "call the model with path=True",
        ),
        (
            lambda: sj.fit(hidden_markov.poisson, [3, 1, 2], num_states=1, path=True),
            "needs at least two states",
        ),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_support_of_plain_sites():
    def counts(y):
        rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    with pytest.raises(ValueError, match=r"lie outside the support of its law, Poisson \(first at index 2\)"):
        sj.fit(counts, np.array([1, 2, -3]))


def test_nan_of_a_plain_model_is_missing():
    fit = sj.fit(normal_mean, np.array([1.0, np.nan, 2.0]), **SHORT)
    assert np.isnan(group(fit, "log_likelihood")["y"].values[0, 0]).tolist() == [False, True, False]
    assert np.isnan(group(fit, "observed_data")["y"].values).tolist() == [False, True, False]
    assert np.isfinite(group(fit, "posterior")["mu"].values).all()


def test_masked_nan_of_a_plain_model():
    def masked(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.handlers.mask(mask=~np.isnan(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=jnp.nan_to_num(y))

    fit = sj.fit(masked, np.array([1.0, np.nan, 2.0]), **SHORT)
    assert np.isnan(group(fit, "log_likelihood")["y"].values[0, 0]).tolist() == [False, True, False]


def test_names_stay_on_their_axes_where_an_event_has_none():
    def model(y):
        with numpyro.plate("series", 3):
            numpyro.sample("level", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 1.0).to_event(1), infer={"event_dims": ["place"]})
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
            return x, None

        scan(step, jnp.zeros(2), y)

    fit = sj.fit(model, np.zeros((5, 2)), **SHORT)
    posterior = group(fit, "posterior")
    assert posterior["level"].dims[2:] == ("series", "level_dim_0")
    assert posterior["x"].dims[2:] == ("time", "place")
    assert group(fit, "posterior_predictive")["y"].dims[2:] == ("time", "y_dim_0")
    assert group(fit, "log_likelihood")["y"].dims[2:] == ("time",)


def _indexed(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("unit", len(y), subsample_size=2) as chosen:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[chosen])


def _decided(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu if mu > 0 else 0.0, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (_indexed, r"hands NumPy a value .* `jnp.asarray\(data\)\[index\]`"),
        (_decided, r"decides in Python .* use jnp.where"),
    ],
)
def test_models_that_cannot_be_traced(model, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.fit(model, np.zeros(8), engine="stochastic_gradient", **SHORT)


def test_x64_is_left_alone(nuts_fit):
    assert not jax.config.jax_enable_x64
    assert group(nuts_fit, "posterior")["rate"].dtype == np.float32


def test_groups_of_many_draws_are_made_piece_by_piece(monkeypatch):
    whole = sj.fit(normal_mean, np.zeros(8), **{**SHORT, "num_chains": 2})
    monkeypatch.setattr("sojourn.inference._predictive._PIECE", 21 * (1 + 8 + 8 + 1))  # 21 does not divide 50
    parts = sj.fit(normal_mean, np.zeros(8), **{**SHORT, "num_chains": 2})
    for name in ("log_likelihood", "posterior_predictive"):
        np.testing.assert_allclose(group(parts, name)["y"], group(whole, name)["y"], rtol=1e-6)
    np.testing.assert_allclose(
        group(parts, "sample_stats")["lp"], group(whole, "sample_stats")["lp"], rtol=1e-6
    )


def test_groups_beside_draws_on_disk_have_a_lower_limit(monkeypatch, tmp_path):
    monkeypatch.setattr("sojourn.inference._chains._IN_MEMORY", 100)
    monkeypatch.setattr("sojourn.inference._predictive._MOST_BESIDE_DISK", 50 * 8 - 1)
    with pytest.warns(UserWarning, match="4e\\+02 is the limit beside draws on disk"):
        fit = sj.fit(normal_mean, np.zeros(8), checkpoint=tmp_path / "run", **SHORT)
    assert _arviz.group(fit, "log_likelihood") is None
    assert np.isfinite(group(fit, "sample_stats")["lp"]).all()


def test_groups_that_would_be_too_large_are_left_out(monkeypatch):
    monkeypatch.setattr("sojourn.inference._predictive._MOST", 50 * 8 - 1)
    with pytest.warns(UserWarning, match="are left out of the fit"):
        fit = sj.fit(normal_mean, np.zeros(8), **SHORT)
    assert _arviz.group(fit, "log_likelihood") is None
    assert _arviz.group(fit, "posterior_predictive") is None
    assert group(fit, "posterior")["mu"].shape == (1, 50)
    assert np.isfinite(group(fit, "sample_stats")["lp"]).all()
    monkeypatch.setattr("sojourn.inference._predictive._MOST", 50 * 8)
    assert group(sj.fit(normal_mean, np.zeros(8), **SHORT), "log_likelihood")["y"].shape == (1, 50, 8)
