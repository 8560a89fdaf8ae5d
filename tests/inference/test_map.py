"""The posterior mode: against modes in closed form, at bounds, in both precisions, and what a fit makes of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.inference import _map
from sojourn.inference._map import MaximumAPosteriori

TOSSES = np.array([1, 1, 0, 1, 1, 0, 1, 1, 0, 1])
Y = np.array([0.3, 1.9, 1.1, 0.4, 2.2])
# A step from the end would gain less than 1e-5 nats, so it is within sqrt(2e-5) = 0.0045 standard deviations of the
# mode; curvature measured by differences is good to some per cent, hence 0.005.
NEAR = 0.005


def run(model, *args, **options):
    engine = MaximumAPosteriori(**{"num_restarts": 2, **options})
    return engine.run(model, args, {}, key=jax.random.key(0), progress_bar=False)


def together(tosses, y):
    """Modes in closed form: Beta(9, 5); the mean of conjugate normals; hazards with Exp(1) priors, seen n times in 10
    units of time, n / 11; fractions Dirichlet(3, 4, 5) with counts (0, 2, 4), (2, 5, 8) / 15."""
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    with numpyro.plate("kind", 3):
        hazard = numpyro.sample("hazard", dist.Exponential(1.0))
        numpyro.sample("count", dist.Poisson(10.0 * hazard), obs=np.array([0, 4, 30]))
    share = numpyro.sample("share", dist.Dirichlet(jnp.array([3.0, 4.0, 5.0])))
    numpyro.sample("of", dist.Multinomial(6, share), obs=np.array([0, 2, 4]))
    numpyro.deterministic("twice", 2 * mu)


@pytest.fixture(scope="module")
def fit():
    return sj.fit(together, TOSSES, Y, engine="map", progress_bar=False)


def assert_modes(values):
    mu, variance = Y.sum() / (len(Y) + 0.25), 1 / (len(Y) + 0.25)
    assert abs(values["p"] - 8 / 12) < NEAR * np.sqrt(9 * 5 / 14**2 / 15)
    assert abs(values["mu"] - mu) < NEAR * np.sqrt(variance)
    np.testing.assert_allclose(values["hazard"][1:], [4 / 11, 30 / 11], atol=NEAR * 2 / 11)
    # The density falls by 11 nats a unit, so what is left is at most the tolerance over 11 (with the same few per cent).
    assert 0 < values["hazard"][0] < 2e-6
    np.testing.assert_allclose(values["share"], np.array([2, 5, 8]) / 15, atol=NEAR * 0.08)


def test_modes_in_closed_form(fit):
    posterior = _arviz.group(fit, "posterior")
    assert {n: v.shape for n, v in posterior.items()} == {
        "p": (1, 1), "mu": (1, 1), "twice": (1, 1), "hazard": (1, 1, 3), "share": (1, 1, 3),
    }  # fmt: skip
    values = {n: v.values[0, 0] for n, v in posterior.items()}
    assert values["p"].dtype == np.float32
    assert_modes(values)
    assert values["twice"] == 2 * values["mu"]
    assert fit.attrs["engine"] == "map"
    assert fit.attrs["converged"] == fit.attrs["point_estimate"] == 1
    assert fit.attrs["restarts_at_best"] == 4
    assert fit.attrs["restart_spread"] < 1e-3
    assert _arviz.group(fit, "log_likelihood")["y"].shape == (1, 1, 5)
    lp = float(_arviz.group(fit, "sample_stats")["lp"].squeeze())
    assert lp == pytest.approx(fit.attrs["log_density"])


def test_in_double_precision(x64):
    # Copies: JAX remembers the constant made of a NumPy array, and with it the precision.
    found = run(together, TOSSES.copy(), Y.copy(), tolerance=1e-12)
    values = {n: v[0, 0] for n, v in found.draws.items()}
    assert values["p"].dtype == np.float64
    assert found.attrs["converged"] == 1
    # sqrt(2e-12) standard deviations; the differences' per cents matter to the last Newton step only.
    assert abs(values["p"] - 8 / 12) < 2e-6 * np.sqrt(9 * 5 / 14**2 / 15)
    np.testing.assert_allclose(values["share"], np.array([2, 5, 8]) / 15, atol=2e-6 * 0.12)


def test_check_and_report_say_that_it_is_a_point(fit, tmp_path):
    found = sj.check(fit)
    assert found.ok
    assert found.verdict() == "All 2 checks passed (map, a point estimate without intervals)."
    text = sj.report(fit, tmp_path / "fit.html").read_text(encoding="utf-8")
    assert "a point estimate without intervals" in text
    assert "Intervals" not in text
    assert "hdi" not in text
    assert "Predictive calibration" not in text


def test_runaways_end_at_the_box():
    """Nothing pulls back: Uniform prior, likelihood rising to p = 1; a rate without prior, falling to 0."""

    def away(tosses):
        p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
        numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        rate = numpyro.sample("rate", dist.ImproperUniform(dist.constraints.positive, (), ()))
        numpyro.factor("pull", -jnp.log(rate))

    found = run(away, np.ones(20))
    assert "rate" in found.attrs["at_bound"].split(", ")
    # p may come to rest before, where 20 (1 - p) is below the tolerance.
    assert 1 - 2e-6 < found.draws["p"] < 1
    assert np.exp(-19.0) < found.draws["rate"] < np.exp(-15.0)  # 16 below zero, or below a start up to 2 away
    assert np.isfinite(found.attrs["log_density"])


def two_modes(y):
    """Modes near -5 and 5, the second 2 nats higher; the first is where the hint starts."""
    x = numpyro.sample("x", dist.Normal(0.0, 10.0), infer={"init": -5.0})
    law = dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.12, 0.88])), dist.Normal(jnp.array([-5.0, 5.0]), 0.5)
    )
    numpyro.factor("modes", law.log_prob(x))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_restarts_find_the_better_of_two_modes():
    one, many = run(two_modes, Y, num_restarts=1), run(two_modes, Y, num_restarts=7)
    assert abs(one.draws["x"] + 5) < 0.1
    assert abs(many.draws["x"] - 5) < 0.1
    # 1 / (1 + (0.5 / 10)^2) shrinks both alike; the difference is that of the weights.
    assert many.attrs["log_density"] - one.attrs["log_density"] == pytest.approx(
        np.log(0.88 / 0.12), abs=1e-3
    )
    assert many.attrs["restart_spread"] == pytest.approx(np.log(0.88 / 0.12), abs=1e-3)
    assert 1 <= many.attrs["restarts_at_best"] < 7
    assert len(json.loads(many.attrs["restart_log_density"])) == 7


def test_a_flat_maximum_among_many_data_in_single_precision():
    """40 000 values: the log density, -56 757, is rounded to 0.004 nats; the mode must be near all the same."""
    y = np.random.default_rng(0).normal(3.0, 1.0, 40_000).astype(np.float32)

    def normal(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
        sigma = numpyro.sample("sigma", dist.Uniform(0.0, 10.0))
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    found = run(normal, y)
    mean, sd = y.astype(float).mean(), y.astype(float).std()
    assert found.attrs["converged"] == 1
    # Rounding of the sum of 40 000 residuals: some 1e-2 against the 200 of one standard deviation.
    assert abs(found.draws["mu"] - mean) < 2 * NEAR * sd / 200
    assert abs(found.draws["sigma"] - sd) < 2 * NEAR * sd / np.sqrt(2 * 40_000)


def local_level(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 0.5))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def test_the_path_of_a_scan_beyond_the_size_of_dense_curvature(monkeypatch):
    """The most probable path of a linear-Gaussian model is its smoothed mean."""
    monkeypatch.setattr(_map, "_DENSE", 3)
    found = run(local_level, Y, num_restarts=1)
    walk = np.eye(5) - np.eye(5, k=-1)
    precision = walk.T @ walk / 0.25 + np.eye(5)
    # 0.0045 standard deviations over all five, by the memory of L-BFGS for the curvature: twice that.
    np.testing.assert_allclose(found.draws["x"][0, 0], np.linalg.solve(precision, Y), atol=0.01)
    assert found.attrs["converged"] == 1


def test_support_that_depends_on_another_site():
    def nested(y):
        top = numpyro.sample("top", dist.Gamma(3.0, 1.0))
        numpyro.sample("below", dist.Uniform(0.0, top))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    found = run(nested, Y, num_restarts=1)
    assert found.draws["top"] == pytest.approx(1.0, abs=NEAR)  # 2 log t - t - log t
    assert 0 < found.draws["below"] < found.draws["top"]


def test_a_plate_that_takes_a_subsample_takes_all():
    def minibatch(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("data", len(y), subsample_size=2) as chosen:
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[chosen])

    found = run(minibatch, jnp.asarray(Y), num_restarts=1)
    assert found.draws["mu"] == pytest.approx(Y.sum() / 5.25, abs=NEAR * 0.44)


def sometimes(y, wall=0.0):
    """Not finite below the wall."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("wall", jnp.where(x < wall, -jnp.inf, 0.0) + jnp.sqrt(x - wall))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_starts_and_steps_where_the_density_is_not_finite():
    found = run(sometimes, np.array([-1.0]), num_restarts=4)
    # d/dx [-x^2 / 2 - (x + 1)^2 / 2 + sqrt(x)] = 0: with s = sqrt(x), 4 s^3 + 2 s - 1 = 0.
    root = next(r.real for r in np.roots([4.0, 0.0, 2.0, -1.0]) if abs(r.imag) < 1e-9)
    assert found.draws["x"] == pytest.approx(root**2, abs=NEAR)
    with pytest.raises(RuntimeError, match=r"not finite at any of the starts: .* hint a start"):
        run(sometimes, np.array([-1.0]), 1e3, num_restarts=1)


def test_an_interrupt_keeps_the_best(monkeypatch):
    climb = MaximumAPosteriori._climb
    climbs = []

    def once(self, density, vector):
        if climbs:
            density(vector + 1.0)
            raise KeyboardInterrupt
        climbs.append(climb(self, density, vector))
        return climbs[0]

    monkeypatch.setattr(MaximumAPosteriori, "_climb", once)
    found = run(two_modes, Y, num_restarts=3)
    assert found.attrs["restart_kept"] == 0
    assert found.attrs["converged"] == 1
    assert len(json.loads(found.attrs["restart_log_density"])) == 2
    found = run(two_modes, Y, num_restarts=3)  # interrupted in the first climb
    assert found.attrs["converged"] == 0
    monkeypatch.setattr(MaximumAPosteriori, "_climb", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(two_modes, Y)


def test_not_converged_is_said():
    def far(y):
        rate = numpyro.sample("rate", dist.Exponential(1.0), infer={"init": 1e4})
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    engine = MaximumAPosteriori(num_restarts=1, max_steps=1)
    fit = sj.fit(far, np.array([3, 4]), engine=engine, progress_bar=False)
    assert fit.attrs["converged"] == 0
    assert (
        sj.check(fit).verdict() == "1 of 2 checks needs attention (map, a point estimate without intervals)."
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_restarts": 0}, "`num_restarts` of MaximumAPosteriori must be a positive integer, not 0"),
        ({"max_steps": 2.5}, "`max_steps` of MaximumAPosteriori must be a positive integer, not 2.5"),
        (
            {"tolerance": 0.0},
            "`tolerance` of MaximumAPosteriori is a gain in nats, positive and finite, not 0.0",
        ),
    ],
)
def test_wrong_options(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.MaximumAPosteriori(**settings)


def discrete(y):
    n = numpyro.sample("n", dist.Poisson(3.0))
    numpyro.sample("y", dist.Normal(n, 1.0), obs=y)


def test_models_it_cannot_climb():
    with pytest.raises(ValueError, match="Site 'n' is discrete, and map needs gradients"):
        sj.fit(discrete, Y, engine=MaximumAPosteriori(), progress_bar=False)
    with pytest.raises(ValueError, match="Site 'n' is discrete, and map needs gradients"):
        run(discrete, Y)
    with pytest.raises(ValueError, match="MaximumAPosteriori cannot start from an approximate posterior"):
        sj.fit(
            local_level, Y, engine="map", warm_start={"x": dist.Normal(np.zeros(5), 1.0)}, progress_bar=False
        )
