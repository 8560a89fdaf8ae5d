"""Particle filter against the Kalman filter and the forward algorithm, its gradient, its forecasts, its errors.

Averages over replicates are held to 3 standard errors (4 where many numbers are compared), seeds are fixed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from jax import random
from numpyro.contrib.control_flow import scan
from scipy import stats

from sojourn.inference._particle_filter import explain_weights, particle_filter, particle_log_likelihood
from sojourn.inference._read import read_scan

TRUE = {"a": 0.8, "q": 0.6}
NOISE = 0.5


def linear_gaussian(y):
    a = numpyro.sample("a", dist.Uniform(-1.0, 1.0))
    q = numpyro.sample("q", dist.HalfNormal(1.0))
    first = numpyro.sample("x0", dist.Normal(0.0, q / jnp.sqrt(1.0 - a**2)))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(a * x, q))
        numpyro.sample("y", dist.Normal(x, NOISE), obs=y)
        return x, None

    scan(step, first, y)


def simulate(steps, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal() * TRUE["q"] / np.sqrt(1 - TRUE["a"] ** 2), []
    for _ in range(steps):
        x = TRUE["a"] * x + TRUE["q"] * rng.normal()
        y.append(x + NOISE * rng.normal())
    return np.array(y)


def kalman(y, a, q, ahead=0, xp=np):
    """Terms of the log-likelihood, filtered means and sds, and the laws of y beyond the data."""
    mean, var = 0.0, q**2 / (1 - a**2)
    terms, means, sds, forecast = [], [], [], []
    for value in [*y, *[None] * ahead]:
        mean, var = a * mean, a**2 * var + q**2
        if value is None:
            forecast.append((mean, xp.sqrt(var + NOISE**2)))
            continue
        if xp is np and np.isnan(value):
            terms.append(0.0)
        else:
            s = var + NOISE**2
            terms.append(-0.5 * (xp.log(2 * np.pi * s) + (value - mean) ** 2 / s))
            mean, var = mean + var / s * (value - mean), var * NOISE**2 / s
        means.append(mean)
        sds.append(xp.sqrt(var))
    return terms, means, sds, forecast


def guide(x, y, parameters):
    """The law of the state given the last one and the observation, a little too wide."""
    a, q = parameters["a"], parameters["q"]
    gain = q**2 / (q**2 + NOISE**2)
    numpyro.sample("x", dist.Normal(a * x + gain * (y - a * x), 1.2 * jnp.sqrt(gain) * NOISE))


def initial_guide(parameters):
    numpyro.sample("x0", dist.Normal(0.3, 1.5))


def twist(x, y, parameters):
    """The predictive density of the next observation, flattened."""
    a, q = parameters["a"], parameters["q"]
    return 0.7 * dist.Normal(a * x, jnp.sqrt(q**2 + NOISE**2)).log_prob(y)


SHORT = simulate(12)


def replicates(count, **options):
    estimate = particle_log_likelihood(linear_gaussian, jnp.asarray(SHORT), num_particles=20, **options)
    return np.asarray(
        jax.jit(jax.vmap(lambda key: estimate(TRUE, key)))(random.split(random.key(2), count)), float
    )


@pytest.mark.parametrize(
    "options",
    [
        {"resampling": "systematic"},
        {"resampling": "multinomial", "ess_threshold": None},
        {"resampling": "killing", "ess_threshold": 0.8},
        {"guide": guide, "ess_threshold": None},
        {"twist": twist, "resampling": "multinomial"},
        {"guide": guide, "initial_guide": initial_guide, "twist": twist, "ess_threshold": 0.7},
    ],
    ids=["systematic", "multinomial", "killing", "guided", "auxiliary", "guided, auxiliary"],
)
def test_the_likelihood_is_unbiased(options):
    # Many replicates, and 4 standard errors: six such tests, and more on other machines, must not fail by chance.
    ratio = np.exp(replicates(40_000, **options) - sum(kalman(SHORT, **TRUE)[0]))
    error = ratio.std() / np.sqrt(len(ratio))
    assert error < 0.01
    assert abs(ratio.mean() - 1.0) < 4 * error


@pytest.fixture(scope="module")
def filtered():
    y = simulate(40, seed=3)
    y[[5, 17, 18]] = np.nan
    data = xr.DataArray(y, dims="day", coords={"day": np.arange(100, 140)})
    found = particle_filter(
        linear_gaussian, data, parameters=TRUE, num_particles=20_000, horizon=3, quantiles=(0.1, 0.5)
    )
    return found, kalman(y, **TRUE, ahead=3)


def test_labelled_data_are_read_as_they_are():
    data = xr.DataArray(np.array([0.1, 0.9, 1.4]), dims="day", coords={"day": [7, 8, 9]})
    for given in (data, data.to_series()):
        read = read_scan(linear_gaussian, given)
        assert read.structure.length == 3
        estimate = particle_log_likelihood(linear_gaussian, given, num_particles=5)
        plain = particle_log_likelihood(linear_gaussian, data.values, num_particles=5)
        assert estimate(TRUE, random.key(0)) == plain(TRUE, random.key(0))


def test_states_and_terms_agree_with_the_kalman_filter(filtered):
    found, (terms, means, sds, _) = filtered
    means, sds = np.array(means), np.array(sds)
    # An effective sample size of some thousands; the filter's errors add up over a few steps.
    error = 4 * np.sqrt(3) / np.sqrt(found.ess.min().item())
    assert np.abs((found.x_mean - means) / sds).max() < error
    assert np.abs(found.x_sd / sds - 1).max() < error
    quantiles = means + sds * stats.norm.ppf([0.1, 0.5])[:, None]
    assert np.abs((found.x_quantile - quantiles) / sds).max() < 2 * error
    assert np.abs(found.log_predictive - terms).max() < 2 * error
    assert found.log_likelihood.item() == pytest.approx(sum(terms), abs=0.3)
    assert found.log_predictive.values[5] == pytest.approx(0.0, abs=1e-5)  # nothing observed
    assert found.log_predictive.sum().item() == pytest.approx(found.log_likelihood.item(), rel=1e-5)


def test_dimensions_are_named(filtered):
    found, _ = filtered
    assert found.x_mean.dims == ("time",)
    assert found.x_quantile.dims == ("quantile", "time")
    assert found.x_forecast.dims == ("sample", "horizon")
    assert found["time"].values[0] == 100
    assert found["horizon"].values.tolist() == [1, 2, 3]


def test_forecasts_agree_with_the_kalman_filter(filtered):
    found, (_, _, _, forecast) = filtered
    for h, (mean, sd) in enumerate(forecast):
        drawn = found.y_forecast.values[:, h]
        # Twice the variance of independent draws: the last weights are not equal.
        assert abs(drawn.mean() - mean) < 4 * sd * np.sqrt(2 / len(drawn))
        assert abs(drawn.std() / sd - 1) < 4 * np.sqrt(1 / len(drawn))


def switching(y):
    """Two states, each with its mean."""
    stay = numpyro.sample("stay", dist.Beta(5.0, 2.0))

    def step(state, y):
        probs = jnp.where(jnp.arange(2) == state, stay, 1.0 - stay)
        state = numpyro.sample("state", dist.Categorical(probs))
        numpyro.sample("y", dist.Normal(2.0 * state, 1.0), obs=y)
        return state, None

    scan(step, 0, y)


def forward(y, stay):
    transition = np.array([[stay, 1 - stay], [1 - stay, stay]])
    alpha, terms, probabilities = np.array([1.0, 0.0]), [], []
    for value in y:
        alpha = alpha @ transition * stats.norm.pdf(value, [0.0, 2.0])
        terms.append(np.log(alpha.sum()))
        alpha = alpha / alpha.sum()
        probabilities.append(alpha)
    return np.array(terms), np.array(probabilities)


def test_a_discrete_state_has_its_probabilities():
    y = np.array([0.3, 1.8, 2.4, -0.2, 1.0, 1.1])
    found = particle_filter(switching, y, parameters={"stay": 0.7}, num_particles=20_000, quantiles=())
    terms, probabilities = forward(y, 0.7)
    assert found.state_probability.dims == ("time", "state_value")
    assert np.abs(found.state_probability.values - probabilities).max() < 4 * 0.5 * np.sqrt(4 / 20_000)
    assert np.abs(found.log_predictive.values - terms).max() < 0.04
    assert "state_quantile" not in found


def panel(y, dt):
    """Independent series in a plate, with a covariate beside the data."""
    rate = numpyro.sample("rate", dist.HalfNormal(1.0))
    with numpyro.plate("series", y.shape[1]):
        first = numpyro.sample("x0", dist.Normal(0.0, 1.0))

    def step(x, inputs):
        y, dt = inputs
        with numpyro.plate("series", x.shape[0]):
            x = numpyro.sample("x", dist.Normal(x * jnp.exp(-rate * dt), jnp.sqrt(dt)))
            y = numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, first, (y, dt))


def test_a_plate_has_a_likelihood_for_each_series_and_future_inputs_are_asked_for():
    rng = np.random.default_rng(4)
    y, dt = rng.normal(size=(6, 3)), np.array([1.0, 0.5, 2.0, 1.0, 0.3, 1.0])
    options = {"parameters": {"rate": 0.4}, "num_particles": 5000, "quantiles": (), "seed": 2}
    future = (np.full((2, 3), np.nan), np.array([0.1, 5.0]))
    whole = particle_filter(panel, y, dt, **options, future=future, particles=True)
    assert whole.log_likelihood.dims == ("series",)
    assert whole.x_mean.dims == ("time", "series")
    assert whole.x.dims == ("time", "particle", "series")
    assert whole.y_forecast.dims == ("sample", "horizon", "series")
    weighted = (np.exp(whole.log_weight) * whole.x).sum("particle")
    assert np.allclose(weighted, whole.x_mean, atol=1e-4)
    for k in range(3):
        mean, var, total = 0.0, 1.0, 0.0
        for value, step in zip(y[:, k], dt, strict=True):
            decay = np.exp(-0.4 * step)
            mean, var = decay * mean, decay**2 * var + step
            total += stats.norm.logpdf(value, mean, np.sqrt(var + 1))
            mean, var = mean + var / (var + 1) * (value - mean), var / (var + 1)
        # The variance of the log-likelihood is a few times T / N.
        assert whole.log_likelihood.values[k] == pytest.approx(total, abs=0.15)
    assert whole.y_forecast.sel(horizon=2).std("sample").values == pytest.approx(np.sqrt(6.0), rel=0.1)
    with pytest.raises(ValueError, match="pass their values beyond the data as `future`"):
        particle_filter(panel, y, dt, **options, horizon=2)


def test_a_fit_is_averaged_over():
    y = simulate(15, seed=5)
    rng = np.random.default_rng(0)
    posterior = xr.Dataset(
        {
            "a": (("chain", "draw"), rng.uniform(0.5, 0.9, (2, 30))),
            "q": (("chain", "draw"), rng.uniform(0.4, 0.8, (2, 30))),
        }
    )
    found = particle_filter(linear_gaussian, y, fit=posterior, num_draws=20, num_particles=2000, horizon=2)
    assert found.log_likelihood.dims == ("draw",)
    assert found.log_predictive.dims == ("draw", "time")
    chosen = np.linspace(0, 59, 20).astype(int)
    each = [
        kalman(y, a, q)
        for a, q in zip(posterior.a.values.ravel()[chosen], posterior.q.values.ravel()[chosen], strict=True)
    ]
    exact = np.array([sum(e[0]) for e in each])
    assert np.abs(found.log_likelihood - exact).max() < 0.5
    means, sds = np.array([e[1] for e in each]), np.array([e[2] for e in each])
    sd = np.sqrt((sds**2).mean(0) + means.var(0))
    # 20 filters of 2000 particles: errors of about a hundredth of an sd.
    assert np.abs((found.x_mean - means.mean(0)) / sd).max() < 0.04
    assert np.abs(found.x_sd / sd - 1).max() < 0.04
    inside = stats.norm.cdf((found.x_quantile.sel(quantile=0.95).values - means) / sds).mean(0)
    assert np.abs(inside - 0.95).max() < 0.02
    assert found.y_forecast.sizes["sample"] == 2000


# ----------------------------------------------------------------------------------------------- gradient


def weighted_scores(gradient, replicates=20_000, num_particles=10, steps=6):
    """``exp(estimate) * grad(estimate) / Z``, whose mean should be the exact score, and that score."""
    y = SHORT[:steps]
    estimate = particle_log_likelihood(
        linear_gaussian, jnp.asarray(y), num_particles=num_particles, gradient=gradient, ess_threshold=0.9
    )

    def exact(parameters):
        return sum(kalman(jnp.asarray(y), **parameters, xp=jnp)[0])

    total, score = jax.value_and_grad(exact)(TRUE)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(estimate), (None, 0)))(
        TRUE, random.split(random.key(8), replicates)
    )
    weight = np.exp(np.asarray(value, float) - float(total))
    return {n: weight * np.asarray(slope[n], float) for n in TRUE}, {n: float(score[n]) for n in TRUE}


@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_the_gradient_of_the_likelihood_is_unbiased(gradient):
    found, score = weighted_scores(gradient)
    for name, values in found.items():
        error = values.std() / np.sqrt(len(values))
        assert error < 0.1
        assert abs(values.mean() - score[name]) < 3 * error


def test_leaving_the_ancestors_out_of_the_gradient_is_biased():
    """As documented; the check above sees it."""
    found, score = weighted_scores("stop")
    z = [abs(v.mean() - score[n]) / (v.std() / np.sqrt(len(v))) for n, v in found.items()]
    assert max(z) > 7


def test_a_discrete_path_has_a_score_but_no_pathwise_gradient():
    y = jnp.array([0.3, 1.8, 2.4, -0.2, 1.0, 1.1])
    estimate = particle_log_likelihood(switching, y, num_particles=50)

    def slope(key):
        value, grad = jax.value_and_grad(estimate)({"stay": 0.7}, key)
        return jnp.exp(value) * grad["stay"]

    found = np.asarray(jax.jit(jax.vmap(slope))(random.split(random.key(0), 4000)), float)
    width = 1e-4
    exact = (np.exp(forward(y, 0.7 + width)[0].sum()) - np.exp(forward(y, 0.7 - width)[0].sum())) / (
        2 * width
    )
    assert abs(found.mean() - exact) < 3 * found.std() / np.sqrt(len(found))
    with pytest.raises(ValueError, match="'state' cannot be reparametrised"):
        particle_log_likelihood(switching, y, gradient="pathwise")


# ------------------------------------------------------------------------------------------------- errors


def narrow(y):
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("spread", dist.Normal(x, 1.0), obs=y[0])
        numpyro.sample("y", dist.Uniform(x + level - 5.0, x + level + 5.0), obs=y[1])
        return x, None

    scan(step, 0.0, y)


def test_a_step_that_no_particle_survives_is_named_with_its_site():
    y = np.zeros((6, 2))
    y[4, 1] = 80.0
    with pytest.raises(
        ValueError, match=r"All 50 particles have weight zero at step 4: 'y' has density zero"
    ):
        particle_filter(narrow, y, parameters={"level": 0.0}, num_particles=50)


def spiked(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("z", dist.Normal(x, 1.0), obs=y)
        numpyro.factor("spike", jnp.where(y == 0.0, jnp.inf, 0.0))
        return x, None

    scan(step, 0.0, y)


def test_an_infinite_density_is_named_with_its_site():
    with pytest.raises(ValueError, match="The density of 'spike' is infinite at step 1"):
        particle_filter(spiked, np.array([1.0, 0.0, 1.0]), num_particles=20)


def test_data_outside_a_fixed_support_are_refused_before_the_run():
    def counts(y):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Poisson(jnp.exp(x)), obs=y)
            return x, None

        scan(step, 0.0, y)

    with pytest.raises(
        ValueError, match=r"'y' lie outside the support of its law, Poisson \(first at index 2\)"
    ):
        particle_filter(counts, np.array([1, 0, -1]))


def test_a_density_that_is_nan_is_named():
    def model(y):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, jnp.sqrt(y - 2.0)), obs=y)
            return x, None

        scan(step, 0.0, y)

    said = explain_weights(read_scan(model, jnp.array([3.0, 1.0])), {}, random.key(0), 20)
    assert said.startswith("The log-density of 'y' is NaN at step 1")


def test_sound_weights_need_no_explanation():
    assert explain_weights(read_scan(linear_gaussian, jnp.asarray(SHORT)), TRUE, random.key(0), 20) is None


def remembers_the_data(y):
    def step(last, y):
        x = numpyro.sample("x", dist.Normal(last, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return y, None

    scan(step, 0.0, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "at least 2, not 1"),
        ({"resampling": "residual"}, "'systematic'"),
        ({"ess_threshold": 50}, "share of the particles"),
        ({"parameters": {"a": 0.5}}, "lacks 'q'"),
        ({"fit": xr.Dataset()}, "not both"),
        ({"future": np.zeros(3), "horizon": 2}, "length `horizon`"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        particle_filter(linear_gaussian, SHORT, **{"parameters": TRUE, **options})


def test_a_forecast_that_needs_the_data_is_refused():
    with pytest.raises(ValueError, match="The forecast of 'x' is NaN: pass the inputs"):
        particle_filter(remembers_the_data, SHORT, num_particles=20, horizon=3)
