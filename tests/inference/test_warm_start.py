"""Fits that start from an approximate posterior."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan
from numpyro.infer import NUTS
from numpyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from scipy import stats

import sojourn as sj
from sojourn._contract import trace_model
from sojourn.diagnostics import _arviz
from sojourn.inference import MALT, ParticleGibbs, UnderdampedLangevin
from sojourn.inference._warm_start import read_warm_start, start_kernel

SDS = np.logspace(-2, 1, 10)
POINTS = np.linspace(-1.0, 1.0, 10)
COUNTS = np.array([3, 1, 4, 1, 5, 9, 2])
Y = np.array([0.3, 1.9, 1.1, 0.4, 2.2])
CHAIN = ("chain", "draw")
QUIET = {"num_chains": 2, "progress_bar": False}


def scales(y):
    """Independent normals with standard deviations from 0.01 to 10."""
    x = numpyro.sample("x", dist.Normal(0.0, 1000.0).expand([10]).to_event(1))
    numpyro.sample("y", dist.Normal(x, jnp.asarray(SDS, float)).to_event(1), obs=y)


def conjugate(counts, y):
    """Gamma posterior of the rate, normal posteriors of the means, of which the last has no data."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0), infer={"init": 2.0})
    numpyro.deterministic("twice", 2.0 * rate)
    numpyro.sample("counts", dist.Poisson(rate), obs=counts)
    numpyro.sample("y", dist.Normal(mean[0], 1.0), obs=y)


DATA = (COUNTS, Y)
SHAPE, RATE = 3.0 + COUNTS.sum(), 2.0 + len(COUNTS)
VARIANCE = 1 / (1 / 4 + len(Y))
EXACT = {"mean": np.array([VARIANCE * Y.sum(), 0.0]), "rate": SHAPE / RATE}
EXACT_SD = {"mean": np.array([VARIANCE**0.5, 2.0]), "rate": SHAPE**0.5 / RATE}
LAWS = {
    "rate": dist.Gamma(SHAPE, RATE),
    "mean": dist.Normal(jnp.array(EXACT["mean"], float), jnp.array(EXACT_SD["mean"], float)).to_event(1),
}


def trace_of(model=conjugate, data=DATA):
    return trace_model(model, data, {}, key=jax.random.key(0))


def errors(fit, exact, sd):
    """Largest distance from the exact means in Monte Carlo errors, sd / sqrt(ess)."""
    posterior = _arviz.group(fit, "posterior")
    ess = _arviz.ess(posterior, method="mean")
    gaps = [abs(posterior[n].mean(("chain", "draw")) - exact[n]) / (sd[n] / np.sqrt(ess[n])) for n in exact]
    return max(float(gap.max()) for gap in gaps)


def finding(fit):
    return next(f for f in sj.check(fit).findings if f.name == "warm_start")


def test_fewer_steps_after_a_short_warm_up():
    """40 draws of warm-up are too few to learn scales from 0.01 to 10, and enough where they are known by a third."""
    close = {"x": dist.Normal(POINTS + 0.3 * SDS, 1.3 * SDS).to_event(1)}
    settings = {"num_warmup": 40, "num_samples": 200, "num_chains": 4, "progress_bar": False}
    cold, warm = (sj.fit(scales, POINTS, warm_start=w, **settings) for w in (None, close))
    steps_cold, steps_warm = (int(f.sample_stats["n_steps"].sum()) for f in (cold, warm))
    assert steps_warm < 0.5 * steps_cold
    # 10 numbers, 5 Monte Carlo errors: chance 6e-6.
    assert errors(warm, {"x": POINTS}, {"x": SDS}) < 5.0
    # Each of 400 draws shifts a median by 1.25 sd / 20, and ratios by 4 %: five errors of each.
    found = finding(warm)
    assert abs(found.value - 0.3) < 0.35
    low, high = (float(part) for part in found.where.split("sd ")[1].split(":")[0].split(" to "))
    assert 1.3 * 0.8 < low < high < 1.3 * 1.25
    assert found.where.endswith("not to be used in place of this fit")
    assert warm.attrs["warm_start"] == "dict"
    assert "warm_start" not in cold.attrs


@pytest.mark.parametrize("engine", ["nuts", "langevin"])
def test_a_wrong_warm_start_does_no_harm_in_the_end(engine):
    """20 standard deviations away and 10 times too narrow; the last mean is left to the hints."""
    wrong = {
        "rate": dist.LogNormal(jnp.log(EXACT["rate"]) + 20 / SHAPE**0.5, 0.1 / SHAPE**0.5),
        "mean": dist.Normal(jnp.array([20.0, 0.0]), 0.1).to_event(1),
    }
    fit = sj.fit(conjugate, *DATA, engine=engine, warm_start=wrong, num_warmup=500, num_samples=1000, **QUIET)
    assert errors(fit, EXACT, EXACT_SD) < 5.0  # chance 2e-6
    assert finding(fit).value > 10.0
    assert finding(fit).ok


def test_from_an_earlier_fit():
    """Its draws of the sites that the model has, not of what follows from them, under the names of this fit."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(SHAPE, 1 / RATE, size=(2, 300))
    mean = EXACT["mean"] + EXACT_SD["mean"] * rng.normal(size=(2, 300, 2))
    variables = {"rate": (CHAIN, rate), "mean": ((*CHAIN, "group"), mean), "twice": (CHAIN, 2.0 * rate)}
    earlier = _arviz.container({"posterior": xr.Dataset(variables)})
    names = {"dims": {"mean": ["group"]}, "coords": {"group": ["a", "b"]}}
    fit = sj.fit(conjugate, *DATA, warm_start=earlier, num_warmup=100, num_samples=500, **names, **QUIET)
    group = _arviz.group(fit, "warm_start")
    assert set(group.data_vars) == {"mean", "rate"}
    assert group["mean"].dims == ("warm_draw", "group")
    assert group["group"].values.tolist() == ["a", "b"]
    # 400 of 600 draws, evenly: the first and the last are among them.
    assert group["rate"].shape == (400,)
    assert np.allclose(group["rate"].values[[0, -1]], [rate[0, 0], rate[1, -1]])
    assert fit.attrs["warm_start"] == type(earlier).__name__
    # Both are right: a median of 400 draws errs by 0.06 standard deviations, one of the fit's by as much.
    assert finding(fit).value < 0.4
    again = read_warm_start(fit, trace_of())  # a fit with a group `warm_start` is a fit, too
    assert np.array_equal(again.draws["rate"][0], fit.posterior["rate"].values[0, 0])


class Amortized:
    def warm_start(self, trace):
        assert trace["rate"]["infer"]["init"] == 2.0
        return {"rate": LAWS["rate"]}


def test_an_object_that_makes_the_laws():
    warm = read_warm_start(Amortized(), trace_of())
    assert warm.source == "Amortized"
    assert set(warm.mean) == {"rate"}
    # log of a Gamma of shape 28: mean log(28 / 9) - 1 / 56 and sd 1 / sqrt(28) to 2 %, from 400 draws: 5 errors.
    assert abs(warm.mean["rate"] - np.log(SHAPE / RATE) + 0.5 / SHAPE) < 5 * SHAPE**-0.5 / 20
    assert abs(warm.sd["rate"] * SHAPE**0.5 - 1.0) < 5 / np.sqrt(2 * 400) + 0.02


MASS = {  # by what the sites are flattened in the order of
    "diagonal": (False, ("mean", "rate")),
    "dense": (True, ("mean", "rate")),
    "blocks": ([("rate", "mean")], ("rate", "mean")),
    "some": ([("rate",)], ("rate",)),
}


@pytest.mark.parametrize(("dense_mass", "order"), MASS.values(), ids=MASS)
def test_mass_and_starts_of_nuts(dense_mass, order):
    warm = read_warm_start(LAWS, trace_of())
    kernel = NUTS(conjugate, dense_mass=dense_mass)
    start_kernel(kernel, warm)
    state = kernel.init(jax.random.split(jax.random.key(1), 3), 10, None, DATA, {})
    mass = state.adapt_state.inverse_mass_matrix[order][0]
    wanted = np.concatenate([np.ravel(warm.sd[n] ** 2) for n in order])
    assert np.allclose(mass, np.diag(wanted) if dense_mass else wanted)
    if len(order) == 1:
        assert np.allclose(state.adapt_state.inverse_mass_matrix[("mean",)][0], warm.sd["mean"] ** 2)
    for name in ("mean", "rate"):
        start = (state.z[name] - warm.mean[name]) / (1.5 * warm.sd[name])
        assert np.abs(start).max() < 5.0
        assert len(np.unique(start)) == start.size  # every chain has its own


@pytest.mark.parametrize("kernel", [MALT, partial(MALT, dense_mass=True), UnderdampedLangevin])
def test_mass_of_the_langevin_samplers(kernel):
    """A site without a law keeps variance one and its hint."""
    warm = read_warm_start({"mean": LAWS["mean"]}, trace_of())
    kernel = kernel(conjugate)
    start_kernel(kernel, warm)
    state = kernel.init(jax.random.split(jax.random.key(1), 2), 10, None, DATA, {})
    mass = state.adapt_state.inverse_mass_matrix[0]
    assert np.allclose(mass if mass.ndim == 1 else np.diag(mass), [*(warm.sd["mean"] ** 2), 1.0])
    assert np.abs(state.z["rate"] - np.log(2.0)).max() <= 0.5
    assert np.abs((state.z["mean"] - warm.mean["mean"]) / warm.sd["mean"]).max() < 7.5


def test_a_mass_matrix_of_the_user_stays():
    mine = jnp.array([1.0, 2.0, 3.0])
    kernel = NUTS(conjugate, inverse_mass_matrix=mine)
    start_kernel(kernel, read_warm_start(LAWS, trace_of()))
    assert kernel._inverse_mass_matrix is mine


def test_sites_of_a_scan():
    """A path starts at its own law, entry by entry."""

    def walk(y):
        def step(x, y_t):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
            return x, None

        scan(step, 0.0, y)

    y = jnp.arange(20.0)
    warm = read_warm_start({"x": dist.Normal(y, 0.01).to_event(1)}, trace_of(walk, (y,)))
    kernel = NUTS(walk)
    start_kernel(kernel, warm)
    state = kernel.init(jax.random.key(0), 10, None, (y,), {})
    assert np.abs(state.z["x"] - y).max() < 0.1
    assert np.std(state.z["x"] - y) > 0.005
    with pytest.raises(ValueError, match="ParticleGibbs cannot start from an approximate posterior"):
        start_kernel(ParticleGibbs(walk), warm)


def test_a_point_and_the_edge_of_a_support():
    warm = read_warm_start({"rate": dist.Delta(jnp.array(3.0))}, trace_of())
    assert np.isclose(warm.mean["rate"], np.log(3.0))
    assert np.isclose(warm.sd["rate"], 0.1)
    draws = np.random.default_rng(0).gamma(3.0, size=(1, 400)).astype(np.float32)
    draws[0, 7] = 0.0  # as float32 rounds
    fit = _arviz.container({"posterior": xr.Dataset({"rate": (CHAIN, draws)})})
    kept = np.log(np.delete(draws[0], 7))
    assert np.isclose(read_warm_start(fit, trace_of()).mean["rate"], kept.mean(), atol=1e-4)


def log_evidence():
    # log p(data) = log p(data, theta) - log p(theta | data) at any theta.
    rate, mean = 3.0, 1.0
    joint = stats.gamma.logpdf(rate, 3.0, scale=0.5) + stats.poisson.logpmf(COUNTS, rate).sum()
    joint += stats.norm.logpdf(mean, 0.0, 2.0) + stats.norm.logpdf(Y, mean).sum()
    posterior = stats.gamma.logpdf(rate, SHAPE, scale=1 / RATE)
    return joint - posterior - stats.norm.logpdf(mean, EXACT["mean"][0], EXACT_SD["mean"][0])


def elbo(guide, warm_start):
    engine = sj.Variational(guide=guide, num_restarts=2, block_size=50, max_steps=50)
    fit = sj.fit(conjugate, *DATA, engine=engine, warm_start=warm_start, num_samples=50, progress_bar=False)
    return fit.sample_stats["elbo"].values


@pytest.mark.parametrize("guide", [AutoNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal])
def test_the_first_elbo(guide):
    """From the exact posterior the first ELBO is the evidence, less the divergence of a guide from 400 draws.

    The guide's moments and the log Gamma's skewness cost a few hundredths of a nat; 40 draws (of 8 in 5 steps) of a
    log ratio with a standard deviation of 0.3 or less add 0.05.
    """
    warm = elbo(guide, LAWS)
    first = warm[0, :5].mean()
    assert abs(first - log_evidence()) < 0.25
    if guide is AutoNormal:
        cold = elbo(guide, None)
        assert cold[0, :5].mean() < first - 1.0
        assert np.array_equal(cold[1], warm[1])  # the other restart is what it was


@pytest.mark.parametrize(
    ("guide", "sentence"),
    [
        (AutoIAFNormal, "The guide AutoIAFNormal has no location and scale for each site"),
        (
            lambda *data: numpyro.sample("rate", dist.Gamma(1.0, 1.0)),
            "The guide <lambda> has no location and scale",
        ),
    ],
    ids=["flow", "function"],
)
def test_guides_without_locations(guide, sentence):
    def rate_alone(counts):
        rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
        extra = numpyro.sample("extra", dist.Normal(0.0, 1.0)) if guide is AutoIAFNormal else 0.0
        numpyro.sample("counts", dist.Poisson(rate * jnp.exp(extra)), obs=counts)

    with pytest.raises(ValueError, match=sentence):
        sj.fit(
            rate_alone,
            COUNTS,
            engine=sj.Variational(guide=guide, num_restarts=1),
            warm_start={"rate": LAWS["rate"]},
            progress_bar=False,
        )


@pytest.mark.parametrize(
    ("wrong", "kind", "sentence"),
    [
        (3, TypeError, "an earlier fit, not a int"),
        ({"rate": 2.0}, TypeError, "an earlier fit, not one with a float for 'rate'"),
        (type("Odd", (), {"warm_start": lambda self, trace: 1})(), TypeError, "not a Odd whose method returns a int"),
        ({}, ValueError, r"says nothing of the continuous latent sites \['mean', 'rate'\]"),
        ({"twice": dist.Gamma(1.0)}, ValueError, r"law for 'twice', and the continuous latent sites .* \['mean', 'rate'\]"),
        ({"mean": dist.Normal(0.0, 1.0)}, ValueError, r"Site 'mean' has shape \(2,\), and in `warm_start` .* \(\)"),
        ({"rate": dist.Normal(0.0, 1.0)}, ValueError, r"Draws of 'rate' .* outside the support .*: Positive"),
        ({"rate": dist.Delta(jnp.nan)}, ValueError, "Draws of 'rate' .* outside the support"),
        ({"rate": dist.Delta(0.0)}, ValueError, "Draws of 'rate' .* outside the support"),
    ],
)  # fmt: skip
def test_bad_warm_starts(wrong, kind, sentence):
    with pytest.raises(kind, match=sentence):
        sj.fit(conjugate, *DATA, warm_start=wrong, progress_bar=False)


def test_maximum_likelihood_has_no_use_for_it():
    with pytest.raises(ValueError, match="ScoreAscent cannot start from an approximate posterior"):
        sj.fit(conjugate, *DATA, engine="score_ascent", warm_start=LAWS, progress_bar=False)
