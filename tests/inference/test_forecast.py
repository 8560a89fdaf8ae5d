"""One-step-ahead forecasts against the Kalman filter and the forward algorithm.

Means of n draws are held to 4.5 standard errors: some hundred numbers are compared in a test. Seeds are
fixed.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan
from scipy import stats

from sojourn.diagnostics._arviz import container
from sojourn.diagnostics.predictive import pit
from sojourn.diagnostics.scoring import score
from sojourn.distributions import LinearGaussian
from sojourn.inference._forecast import one_step_ahead

A, Q, NOISE = 0.8, 0.6, np.array([0.5, 1.5])
SIGMAS = 4.5


def simulate(steps, seed=0):
    """Two instruments see one autoregression."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal() * Q / np.sqrt(1 - A**2), []
    for _ in range(steps):
        x = A * x + Q * rng.normal()
        y.append(x + NOISE * rng.normal(size=2))
    return np.array(y)


def kalman(y, noise):
    """Means and variances of y_t given y_<t, shapes (T, P) and (T, P, P); a step with NaN is not used."""
    mean, var = 0.0, Q**2 / (1 - A**2)
    ones, means, covariances = np.ones(len(noise)), [], []
    for value in y:
        mean, var = A * mean, A**2 * var + Q**2
        means.append(mean * ones)
        covariances.append(var * np.outer(ones, ones) + np.diag(noise**2))
        if not np.isnan(value).any():
            gain = var * ones @ np.linalg.inv(covariances[-1])
            mean, var = mean + gain @ (value - mean), var * (1 - gain @ ones)
    return np.array(means), np.array(covariances)


def one_instrument(y):
    a = numpyro.sample("a", dist.Uniform(-1.0, 1.0))
    first = numpyro.sample("x0", dist.Normal(0.0, Q / jnp.sqrt(1.0 - a**2)))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(a * x, Q))
        numpyro.sample("y", dist.Normal(x, NOISE[0]), obs=y)
        return x, None

    scan(step, first, y)


def two_instruments(y):
    """The second one's site comes without a plate: its law is broadcast to three readings."""
    a = numpyro.sample("a", dist.Uniform(-1.0, 1.0))
    first = numpyro.sample("x0", dist.Normal(0.0, Q / jnp.sqrt(1.0 - a**2)))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(a * x, Q))
        numpyro.sample("y", dist.Normal(x, NOISE[0]), obs=y[0])
        numpyro.sample("z", dist.Normal(x, NOISE[1]), obs=y[1:])
        return x, None

    scan(step, first, y)


def guide(x, y, parameters):
    """The law of the state given the last one and the observation, a little too wide."""
    gain = Q**2 / (Q**2 + NOISE[0] ** 2)
    mean = parameters["a"] * x
    numpyro.sample(
        "x", dist.Normal(mean + gain * (jnp.nan_to_num(y) - mean), 1.2 * jnp.sqrt(gain) * NOISE[0])
    )


def initial_guide(parameters):
    numpyro.sample("x0", dist.Normal(0.3, 1.5))


def agrees(drawn, mean, sd):
    """Draws (draw, ...) have this mean and standard deviation, to their Monte Carlo error."""
    n = len(drawn)
    return (np.abs(drawn.mean(0) - mean) < SIGMAS * sd / np.sqrt(n)).all() and (
        np.abs(drawn.std(0) / sd - 1) < SIGMAS / np.sqrt(2 * n)
    ).all()


Y = simulate(25)
Y[7] = np.nan


@pytest.fixture(scope="module")
def plain():
    data = xr.DataArray(Y[:, 0], dims="day", coords={"day": np.arange(100, 125)})
    return one_step_ahead(one_instrument, data, parameters={"a": A}, num_draws=200, num_particles=200)


def test_particles_agree_with_the_kalman_filter(plain):
    means, covariances = kalman(Y[:, :1], NOISE[:1])
    sd = np.sqrt(covariances[:, 0, 0])
    terms = stats.norm.logpdf(Y[:, 0], means[:, 0], sd)
    seen = ~np.isnan(Y[:, 0])
    assert plain.attrs["method"] == "particles"
    assert plain.predictions["y"].dims == ("chain", "draw", "time")
    assert plain.predictions["time"].values[0] == 100
    drawn = plain.predictions["y"].values[0]
    assert np.isnan(drawn[:, ~seen]).all()
    assert np.isnan(plain.log_likelihood["y"].values[0, :, ~seen]).all()
    assert agrees(drawn[:, seen], means[seen, 0], sd[seen])
    each = plain.log_likelihood["y"].values[0][:, seen]
    error = each.std(0) / np.sqrt(200)
    # The mean of a log-estimate is too low by half its variance; 1e-5 is for single precision.
    assert (np.abs(each.mean(0) - terms[seen]) < SIGMAS * error + each.var(0) + 1e-5).all()
    np.testing.assert_allclose(plain.sample_stats["log_predictive"].values[0][:, seen], each)
    assert plain.sample_stats["log_predictive"].values[0][:, ~seen] == pytest.approx(0.0, abs=1e-5)


def test_the_forecasts_are_scored_like_a_fit(plain):
    found = score(plain)
    means, covariances = kalman(Y[:, :1], NOISE[:1])
    sd = np.sqrt(covariances[:, 0, 0])
    terms = stats.norm.logpdf(Y[:, 0], means[:, 0], sd)
    # Known parameters: every draw has the same terms but for the noise of the filter.
    assert found.table.loc["y", "log_score"] == pytest.approx(np.nanmean(terms), abs=0.02)
    assert found.table.loc["y", "observations"] == 24
    exact = stats.norm.cdf(Y[:, 0], means[:, 0], sd)
    seen = ~np.isnan(exact)
    # A binomial of 200 draws with weights that are nearly equal.
    error = np.sqrt(exact * (1 - exact) / 200) + 1 / 200
    assert (np.abs(found.pointwise["y_pit"].values - exact)[seen] < SIGMAS * error[seen]).all()
    np.testing.assert_allclose(found.pointwise["y_pit"].values[seen], pit(plain, "y").values, atol=1e-9)


@pytest.mark.slow
def test_a_guide_moves_the_particles_and_not_the_forecasts(plain):
    guides = {"guide": guide, "initial_guide": initial_guide}
    guided = one_step_ahead(
        one_instrument, Y[:, 0], parameters={"a": A}, num_draws=200, num_particles=50, **guides
    )
    means, covariances = kalman(Y[:, :1], NOISE[:1])
    sd, seen = np.sqrt(covariances[:, 0, 0]), ~np.isnan(Y[:, 0])
    assert agrees(guided.predictions["y"].values[0][:, seen], means[seen, 0], sd[seen])
    terms = stats.norm.logpdf(Y[:, 0], means[:, 0], sd)[seen]
    each = guided.log_likelihood["y"].values[0][:, seen]
    assert (np.abs(each.mean(0) - terms) < SIGMAS * each.std(0) / np.sqrt(200) + each.var(0) + 1e-5).all()
    # Estimates with a quarter of the particles are as good.
    assert each.std(0).mean() < 1.2 * plain.log_likelihood["y"].values[0][:, seen].std(0).mean()


def test_each_of_several_observations_has_the_density_of_its_forecast():
    noise = np.array([NOISE[0], *[NOISE[1]] * 3])
    y = np.concatenate([Y, Y[:, 1:] - 0.5, Y[:, 1:] + 1.0], axis=1)[:12]
    found = one_step_ahead(two_instruments, y, parameters={"a": A}, num_draws=200, num_particles=100)
    means, covariances = kalman(y, noise)
    seen = ~np.isnan(y[:, 0])
    sd = np.sqrt(np.einsum("tii->ti", covariances))
    terms = stats.norm.logpdf(y, means, sd)[seen]
    joint = np.array(
        [
            stats.multivariate_normal.logpdf(*given)
            for given in zip(y[seen], means[seen], covariances[seen], strict=True)
        ]
    )
    assert found.predictions["z"].shape == (1, 200, 12, 3)
    arrays = {
        "predictions": np.concatenate(
            [found.predictions["y"].values[0][..., None], found.predictions["z"].values[0]], -1
        ),
        "log_likelihood": np.concatenate(
            [found.log_likelihood["y"].values[0][..., None], found.log_likelihood["z"].values[0]], -1
        ),
    }
    assert agrees(arrays["predictions"][:, seen], means[seen], sd[seen])
    # The readings of a step are drawn together: their covariance is the variance of the state.
    z = found.predictions["z"].values[0][:, seen]
    together = ((z[..., 0] - means[seen, 1]) * (z[..., 1] - means[seen, 1])).mean(0)
    state = covariances[seen][:, 1, 2]
    error = np.sqrt((sd[seen][:, 1] ** 4 + state**2) / 200)
    assert (np.abs(together - state) < SIGMAS * error).all()
    for each, exact in (
        (arrays["log_likelihood"][:, seen], terms),
        (found.sample_stats["log_predictive"].values[0][:, seen], joint),
    ):
        assert (np.abs(each.mean(0) - exact) < SIGMAS * each.std(0) / np.sqrt(200) + each.var(0) + 1e-5).all()


# --------------------------------------------------------------------------------------------- exactly


def switching(y, path=True):
    """Two states, each with its mean."""
    stay = numpyro.sample("stay", dist.Beta(5.0, 2.0))

    def step(state, y):
        probs = jnp.where(jnp.arange(2) == state, stay, 1.0 - stay)
        state = numpyro.sample("state", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(2.0 * state, 1.0), obs=y)
        return state, None

    scan(step, 0, y)


def forward(y, stay):
    """Probability of the second state before each observation, and log p(y_t | y_<t)."""
    transition = np.array([[stay, 1 - stay], [1 - stay, stay]])
    alpha, terms, second = np.array([1.0, 0.0]), [], []
    for value in y:
        alpha = alpha @ transition
        second.append(alpha[1])
        alpha = alpha * stats.norm.pdf(value, [0.0, 2.0])
        terms.append(np.log(alpha.sum()))
        alpha = alpha / alpha.sum()
    return np.array(second), np.array(terms)


def test_a_discrete_path_is_summed_out_or_filtered_to_the_same_effect():
    y = np.array([0.3, 1.8, 2.4, -0.2, 1.0, 1.1])
    second, terms = forward(y, 0.7)
    sd = np.sqrt(1.0 + 4.0 * second * (1.0 - second))
    n = 400
    for method in ("exact", "particles"):
        found = one_step_ahead(
            switching, y, parameters={"stay": 0.7}, num_draws=n, num_particles=100, method=method
        )
        assert found.attrs["method"] == method
        drawn = found.predictions["y"].values[0]
        assert (np.abs(drawn.mean(0) - 2.0 * second) < SIGMAS * sd / np.sqrt(n)).all()
        each = found.log_likelihood["y"].values[0]
        if method == "exact":
            np.testing.assert_allclose(each, np.broadcast_to(terms, each.shape), rtol=1e-5)
        else:
            assert (
                np.abs(each.mean(0) - terms) < SIGMAS * each.std(0) / np.sqrt(n) + each.var(0) + 1e-5
            ).all()
            assert each.std(0).max() > 1e-3  # it is an estimate


def test_a_marginal_form_is_exact_at_each_draw_of_a_fit(x64):
    def model(y):
        a = numpyro.sample("a", dist.Uniform(-1.0, 1.0))
        one = jnp.ones((1, 1))
        law = LinearGaussian(
            jnp.zeros(1),
            Q**2 / (1 - a**2) * one,
            a * one,
            Q**2 * one,
            jnp.ones(1),
            NOISE[0] ** 2,
            num_steps=25,
        )
        numpyro.sample("y", law, obs=y)

    draws = np.array([[0.1, A, 0.3]])
    fit = container({"posterior": xr.Dataset({"a": (("chain", "draw"), draws)})})
    found = one_step_ahead(model, Y[:, 0], fit=fit, num_draws=10)
    # Three draws, three times each.
    assert found.posterior["a"].values.tolist() == [[0.1, A, 0.3] * 3]
    means, covariances = kalman(Y[:, :1], NOISE[:1])
    terms = stats.norm.logpdf(Y[:, 0], means[:, 0], np.sqrt(covariances[:, 0, 0]))
    np.testing.assert_allclose(found.log_likelihood["y"].values[0, 4], terms, rtol=1e-9)
    np.testing.assert_allclose(
        found.sample_stats["log_predictive"].values[0, 4], np.nan_to_num(terms), rtol=1e-9
    )
    assert found.predictions["y"].dims == ("chain", "draw", "time")


def test_a_scan_without_a_path_needs_no_particles():
    def regression(y, parts):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))

        def step(last, y):
            with numpyro.plate("series", 2):
                return numpyro.sample("y", dist.Normal(a * last, 1.0), obs=y), None

        scan(step, jnp.zeros(2), y)
        numpyro.sample("n", dist.Poisson(3.0), obs=parts)

    y = np.nan_to_num(Y)
    found = one_step_ahead(regression, y, 4, parameters={"a": 0.5}, num_draws=300)
    mean = 0.5 * np.concatenate([np.zeros((1, 2)), y[:-1]])
    assert found.attrs["method"] == "exact"
    assert list(found.predictions) == ["y"]
    assert agrees(found.predictions["y"].values[0], mean, np.ones_like(mean))
    np.testing.assert_allclose(found.log_likelihood["y"].values[0, 0], stats.norm.logpdf(y, mean), rtol=1e-4)
    np.testing.assert_allclose(
        found.sample_stats["log_predictive"].values[0, 0], stats.norm.logpdf(y, mean).sum(1), rtol=1e-4
    )


# ---------------------------------------------------------------------------------------------- errors


def latent_vector(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    x = numpyro.sample("x", dist.Normal(jnp.zeros(len(y)), scale).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def whole(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(y)), scale * jnp.eye(len(y))), obs=y)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (one_instrument, {}, "pass `fit`, a fit of the model, or `parameters`"),
        (one_instrument, {"parameters": {}}, "`parameters` lacks 'a'"),
        (one_instrument, {"parameters": {"a": A}, "method": "kalman"}, "`method` must be one of"),
        (
            one_instrument,
            {"parameters": {"a": A}, "method": "exact"},
            "path 'x' cannot be integrated out exactly",
        ),
        (
            one_instrument,
            {"parameters": {"a": A}, "num_draws": 1},
            "`num_draws` must be a whole number of at least 2",
        ),
        (one_instrument, {"parameters": {"a": A}, "num_particles": 1}, "`num_particles` must be"),
        (switching, {"parameters": {"stay": 0.5}, "method": "exact", "guide": guide}, "are for particles"),
        (
            latent_vector,
            {"parameters": {"scale": 1.0, "x": np.zeros(4)}},
            "'x' has a value for each of the 4 entries",
        ),
        (whole, {"parameters": {"scale": 1.0}}, "'y', MultivariateNormal, is of the series as a whole"),
    ],
)
def test_what_cannot_be_forecast_is_named(model, options, says):
    with pytest.raises(ValueError, match=says):
        one_step_ahead(model, np.zeros(4), **options)


@pytest.mark.slow
def test_weights_that_fail_are_explained():
    def bounded(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))

        def step(x, y):
            x = numpyro.sample("x", dist.Uniform(x, x + scale))
            numpyro.sample("y", dist.Uniform(x, x + 1.0), obs=y)
            return x, None

        scan(step, 0.0, y)

    with pytest.raises(ValueError, match="All 50 particles have weight zero at step 1: 'y'"):
        one_step_ahead(
            bounded, np.array([0.5, 7.0]), parameters={"scale": 1.0}, num_draws=2, num_particles=50
        )
