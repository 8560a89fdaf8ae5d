"""What is told of a model before a run: sizes, costs, engines, and every sentence on what is wrong."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan

import sojourn as sj
from sojourn.inference._diagnose_model import diagnose_model
from sojourn.inference._fit import ENGINES
from sojourn.inference._model_diagnosis import ModelDiagnosis, SiteDescription
from sojourn.models import hidden_markov

TOSSES = jnp.array([1, 0, 1, 1])


def coin(tosses):
    p = numpyro.sample("p", dist.Uniform(0.0, 1.0))
    with numpyro.plate("toss", len(tosses)):
        numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)


def walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.deterministic("twice", 2 * x)
        with numpyro.plate("unit", 2):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def minibatch(y):
    width = numpyro.param("width", 1.0, constraint=dist.constraints.positive)
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=10) as chosen:
        numpyro.sample("y", dist.Normal(mean, width), obs=y[chosen])


def root(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(jnp.where(x > 0, jnp.sqrt(x), 0.0), 1.0), obs=y)


@pytest.fixture(scope="module")
def of_coin():
    return diagnose_model(coin, TOSSES, num_draws=10)


@pytest.fixture(scope="module")
def of_walk():
    y = xr.DataArray(np.ones((20, 2)), dims=("time", "unit"))
    return diagnose_model(walk, y, num_draws=10)


@pytest.fixture(scope="module")
def of_chain():
    counts = np.array([1.0, 2.0, np.nan, 4.0, 3.0] * 4)
    return diagnose_model(partial(hidden_markov.poisson, num_states=2), counts, path=True, num_draws=5)


@pytest.fixture(scope="module")
def of_minibatch():
    return diagnose_model(minibatch, jnp.arange(100.0), num_draws=5)


# ------------------------------------------------------------------------------------------------- contents


def test_a_plain_model(of_coin):
    assert of_coin.ok
    assert of_coin.model == "coin"
    p, tosses = of_coin.sites
    assert p == SiteDescription("p", "latent", "Uniform", (), "interval [0, 1]", (), "float32")
    assert (tosses.kind, tosses.shape, tosses.dims, tosses.dtype) == ("observed", (4,), ("toss",), "int32")
    assert (of_coin.num_latent, of_coin.num_observed, of_coin.num_missing) == (1, 4, 0)
    assert of_coin.scan_lengths == ()
    assert (of_coin.num_finite, of_coin.num_draws, of_coin.has_gradient) == (10, 10, True)
    assert of_coin.compile_seconds > 0
    assert of_coin.milliseconds > 0
    assert of_coin.posterior_bytes == {"p": 4 * 1000 * 4}
    assert of_coin.pointwise_bytes == {"log_likelihood": 64_000, "posterior_predictive": 64_000}
    assert set(of_coin.engines) == set(ENGINES) - {"auto"}
    assert of_coin.auto[0] == "nuts"


@pytest.mark.parametrize("engine", ["particle_gibbs", "blocked_gibbs"])
def test_reasons_are_those_that_a_fit_gives(of_coin, engine):
    with pytest.raises(ValueError, match=re.escape(of_coin.engines[engine])):
        sj.fit(coin, TOSSES, engine=engine, num_chains=1, num_warmup=1, num_samples=1, progress_bar=False)


def test_a_model_with_a_scan(of_walk):
    assert of_walk.ok
    assert of_walk.scan_lengths == (20,)
    assert of_walk.num_latent == 22
    assert of_walk.num_observed == 40
    assert of_walk.num_finite == 10
    sites = {s.name: s for s in of_walk.sites}
    assert sites["y"].dims == ("time", "unit")
    assert sites["twice"].kind == "deterministic"
    # The largest first; deterministic sites count.
    assert list(of_walk.posterior_bytes.items())[:2] == [("x", 20 * 16_000), ("twice", 20 * 16_000)]
    able = {name for name, reason in of_walk.engines.items() if reason is None}
    assert able == set(of_walk.engines) - {"blocked_gibbs", "stochastic_gradient"}
    assert of_walk.auto[0] == "nuts"
    assert "a funnel" in of_walk.auto[1]


def test_a_hidden_path_that_is_summed_out(of_chain):
    assert of_chain.ok
    path = next(s for s in of_chain.sites if s.name == "hidden_state")
    assert path.summed_out
    assert any("'hidden_state' summed out" in remark for remark in of_chain.remarks)
    assert (of_chain.num_latent, of_chain.num_discrete) == (4, 0)
    assert (of_chain.num_observed, of_chain.num_missing) == (20, 4)
    assert of_chain.has_gradient
    assert of_chain.num_finite == 5
    assert "hidden_state" not in of_chain.posterior_bytes
    assert of_chain.engines["nuts"] is None
    assert of_chain.engines["blocked_gibbs"] is None
    assert of_chain.engines["particle_gibbs"] is None


def test_a_subsample_and_a_param(of_minibatch):
    assert of_minibatch.ok
    assert of_minibatch.num_finite == 5
    assert of_minibatch.num_observed == 100
    assert next(s for s in of_minibatch.sites if s.name == "width").support == "positive"
    assert any(remark.startswith("'width' is a numpyro.param: svi") for remark in of_minibatch.remarks)
    assert of_minibatch.engines["stochastic_gradient"] is None
    assert of_minibatch.engines["svi"] is None
    assert of_minibatch.engines["nuts"].startswith(
        "Plate 'data' takes 10 of 100 elements, and nuts needs all of them"
    )
    assert of_minibatch.engines["langevin"].startswith(
        "Plate 'data' takes 10 of 100 elements, and MALT needs"
    )
    assert of_minibatch.auto is None


def test_report(of_coin, of_chain):
    said = str(of_coin)
    assert said.startswith("coin: no problem found.\nsite ")
    assert "1 latent number; 4 observations.\nFinite log density and gradient at 10 of 10 draws" in said
    assert "Engines that apply: nuts, svi, map, langevin, underdamped_langevin.\n" in said
    assert "\n  mclmc, adjusted_mclmc: MCLMC moves along a sphere" in said
    assert "4 latent numbers; 20 observations, 4 of them missing; scan of 20 steps." in str(of_chain)


def test_report_stays_short():
    site = SiteDescription("x", "latent", "Normal", (), "real", (), "float32")
    reasons = {name: f"reason {i}" for i, name in enumerate(ENGINES)}
    problems = ("one", "two", "three")
    long = ModelDiagnosis("model", (site,) * 500, engines=reasons, problems=problems)
    assert len(str(long).splitlines()) <= 40
    assert "... and 490 more" in str(long)
    assert str(long).startswith("model: 3 problems.\n  ! one\n")
    assert not long.ok


# ------------------------------------------------------------------------------------------------- problems


def test_a_gradient_that_is_nan():
    found = diagnose_model(root, 0.3, num_draws=100)
    assert not found.ok
    (problem,) = found.problems
    bad = found.num_draws - found.num_finite
    assert problem.startswith(
        f"At {bad} of 100 draws from the prior the gradient is not finite: The gradient"
    )
    assert "with respect to 'x' is nan" in problem
    assert "from the term of site 'y'" in problem
    # Half of the draws are negative: a binomial count within five standard deviations.
    assert abs(bad - 50) < 25


def test_a_density_that_is_zero_at_some_draws_is_no_problem():
    def model():
        width = numpyro.sample("width", dist.Uniform(0.0, 2.0))
        numpyro.factor("bar", jnp.where(width < 1.0, -jnp.inf, 0.0))
        numpyro.sample("y", dist.Normal(width, 1.0), obs=0.5)

    found = diagnose_model(model, num_draws=50)
    assert found.ok
    assert 0 < found.num_finite < 50
    bad = 50 - found.num_finite
    assert found.remarks == (
        f"At {bad} of 50 draws from the prior the density is zero: Factor 'bar' is -inf.",
    )


class _Rounded(dist.HalfNormal):
    """A law whose draws are cut off, many of them to zero."""

    def sample(self, key, sample_shape=()):
        return jnp.floor(super().sample(key, sample_shape))


def test_draws_on_the_edge_of_their_support():
    def model():
        p = numpyro.sample("p", _Rounded(2.0))
        numpyro.sample("y", dist.Normal(p, 1.0), obs=0.5)

    found = diagnose_model(model, num_draws=50)
    assert found.ok
    assert re.match(
        r"At \d+ of 50 draws from the prior a latent number lies on the edge of its support: Site 'p' ",
        found.remarks[0],
    )


def test_data_out_of_support():
    found = diagnose_model(coin, jnp.array([1, 0, 3]), num_draws=3)
    assert found.problems[0] == (
        "The data at site 'tosses' lie outside the support of its law, BernoulliProbs (first at index 2)."
    )
    assert len(found.problems) == 1
    assert found.remarks[0].startswith(
        "At 3 of 3 draws from the prior the density is zero: Site 'tosses' has"
    )


def _nothing_observed():
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def _nothing_latent():
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=np.zeros(3))


def _empty():
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=np.zeros(0))


def _broken():
    return jnp.zeros(3) @ jnp.zeros(4)


def _stuck():
    count = numpyro.sample("count", dist.Poisson(3.0))
    numpyro.sample("y", dist.Normal(count, 1.0), obs=0.5)


def _reversed():
    scan(lambda x, _: (numpyro.sample("x", dist.Normal(x, 1.0)), None), 0.0, jnp.zeros(3), reverse=True)


def _stopped():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(jax.lax.stop_gradient(3.0 * x), 1.0), obs=0.5)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (_nothing_observed, "The model observes nothing: pass the data"),
        (_nothing_latent, "The model has no latent sample site: there is nothing to fit."),
        (_empty, "The data at site 'y' are empty (shape (0,))."),
        (_broken, "The model raises TypeError: dot_general requires"),
        (_stuck, "No engine applies: see `engines` for the reasons."),
        (_reversed, "This scan has reverse=True"),
    ],
)
def test_what_a_fit_would_stop_at(model, says):
    found = diagnose_model(model, num_draws=2)
    assert found.problems[0].startswith(says)
    assert not found.ok
    assert says in str(found)


def test_discrete_latents():
    found = diagnose_model(_stuck, num_draws=2)
    assert (found.num_latent, found.num_discrete, found.has_gradient, found.num_finite) == (0, 1, False, 2)
    assert found.engines["svi"].startswith(
        "Site 'count' is discrete, and variational inference needs gradients"
    )
    assert "Finite log density (without gradient) at 2 of 2 draws" in str(found)


def test_a_gradient_that_is_another_densitys():
    found = diagnose_model(_stopped, num_draws=2)
    assert found.engines["nuts"].startswith("Along site 'x' the log density changes by")
    assert "and nuts would sample another law" in found.engines["nuts"]


def test_a_path_that_cannot_be_summed_out():
    def model(y):
        def step(total, y):
            total = total + numpyro.sample("jump", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(total, 1.0), obs=y)
            return total, None

        scan(step, 0, y)

    found = diagnose_model(model, np.ones(5), num_draws=2)
    assert found.engines["nuts"].startswith(
        "The path of 'jump' cannot be summed out: carry remembers it for ever."
    )
    assert found.engines["particle_gibbs"] is None
    assert any(remark.startswith("particle_gibbs: The carry") for remark in found.remarks)
    assert found.engines["score_ascent"].startswith("Smoothing backwards needs a carry")
    assert found.num_discrete == 5


def test_groups_that_a_fit_leaves_out():
    def model(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    found = diagnose_model(model, np.zeros(60_000), num_draws=1)
    assert found.ok
    assert "would hold up to 2.4e+08 numbers, and a fit leaves them out beyond 2e+08" in found.remarks[0]


def test_what_is_no_model_and_no_number():
    with pytest.raises(TypeError, match="A model is a function with NumPyro primitives, not 3"):
        diagnose_model(3)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="`num_draws` must be a whole number of at least 1"):
            diagnose_model(coin, TOSSES, num_draws=wrong)
