"""Stochastic-gradient MCMC as a citizen of NumPyro's MCMC, what it refuses, and the whole data after minibatches."""

from __future__ import annotations

import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC
from numpyro.infer.gibbs import Gibbs
from numpyro.infer.util import log_density

from sojourn.inference._stochastic_gradient import StochasticGradientLangevin
from sojourn.inference._whole_data import whole_data

Y = np.random.default_rng(2).normal(1.0, 0.5, 60).astype(np.float32)


def model(y, size=6):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    numpyro.deterministic("ratio", mean / spread)
    with numpyro.plate("data", len(y), subsample_size=size) as chosen:
        numpyro.deterministic("residual", y[chosen] - mean)
        numpyro.sample("y", dist.Normal(mean, spread), obs=y[chosen])


def run(kernel, *, warmup=0, chains=1, draws=10, fields=(), progress_bar=False, **options):
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        progress_bar=progress_bar,
        **options,
    )
    mcmc.run(random.key(0), jnp.asarray(Y), extra_fields=fields)
    return mcmc


# --------------------------------------------------------------------------------------------- as a kernel


def test_what_a_run_gives_and_that_a_stopped_run_goes_on_bit_by_bit():
    kernel = StochasticGradientLangevin(model, steps_per_draw=4)
    mcmc = run(kernel, warmup=20, chains=2, chain_method="vectorized", fields=kernel.stat_fields)
    found = mcmc.get_samples(group_by_chain=True)
    assert set(found) == {"mean", "spread", "ratio"}  # not the residuals of a minibatch
    assert found["mean"].shape == (2, 10)
    assert (found["spread"] > 0).all()
    assert np.allclose(found["ratio"], found["mean"] / found["spread"], rtol=1e-4)
    assert not (found["mean"][0] == found["mean"][1]).any()
    stats = mcmc.get_extra_fields()
    assert set(stats) == {"num_steps", "diverging", "step_size", "thermostat", "temperature"}
    assert (stats["num_steps"] == 4).all()
    assert not stats["diverging"].any()
    assert np.allclose(stats["step_size"], 0.5 * 10**-0.5)

    def goes_on(state, draws):
        mcmc.post_warmup_state, mcmc.num_samples = state, draws
        mcmc.run(state.rng_key, jnp.asarray(Y))
        return np.asarray(mcmc.get_samples(group_by_chain=True)["mean"])

    state = mcmc.last_state
    whole = goes_on(state, 10)
    assert (np.concatenate([goes_on(state, 5), goes_on(mcmc.last_state, 5)], 1) == whole).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Some donated buffers")  # of NumPyro's loop, whatever the kernel
@pytest.mark.parametrize("method", ["sgnht", "sgld"])
@pytest.mark.parametrize("chain_method", ["sequential", jax.vmap], ids=["sequential", "vmap"])
def test_ways_to_run_chains(chain_method, method):
    kernel = StochasticGradientLangevin(model, method=method)
    shown = {"progress_bar": chain_method == "sequential", "chain_method": chain_method}
    mcmc = run(kernel, warmup=10, chains=2, fields=kernel.stat_fields, **shown)
    mean = mcmc.get_samples(group_by_chain=True)["mean"]
    assert mean.shape == (2, 10)
    assert np.isfinite(mean).all()
    assert not (mean[0] == mean[1]).any()
    assert ("thermostat" in mcmc.get_extra_fields()) == (method == "sgnht")


def steps(kernel, number, *, warmup=0, given=None):
    """States of a chain, the first of them ``init``'s."""
    states = [kernel.init(random.key(0), warmup, given, (jnp.asarray(Y),), {})]
    step = jax.jit(lambda s: kernel.sample(s, (jnp.asarray(Y),), {}))
    for _ in range(number):
        states.append(step(states[-1]))
    return states


def test_the_scale_is_learnt_in_warm_up_and_then_fixed_and_the_state_keeps_its_types(x64):
    states = steps(StochasticGradientLangevin(model), 4, warmup=2)
    changes = [not np.array_equal(a.scale, b.scale) for a, b in itertools.pairwise(states)]
    assert changes == [True, True, False, False]
    for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[-1]), strict=True):
        assert (a.shape, a.dtype, a.aval.weak_type) == (b.shape, b.dtype, b.aval.weak_type)


def test_starting_values_schedules_and_scales_as_given():
    scale = {"mean": 0.5, "spread": jnp.array(0.1)}
    kernel = StochasticGradientLangevin(model, lambda i: 1e-3 / (1 + i), steps_per_draw=2, scale=scale)
    given = {"mean": jnp.array(0.7), "spread": jnp.array(-1.0)}
    first, new = steps(kernel, 1, given=given)
    assert first.z == given
    assert np.allclose(first.scale, [0.5, 0.1])
    assert np.isclose(new.step_size, 1e-3 / 2)
    assert (new.scale == first.scale).all()
    assert new.i == 2
    assert 0 < abs(new.z["mean"] - 0.7) < 0.05
    assert kernel.get_diagnostics_str(new).startswith("step size 5.00e-04, thermostat 0.")
    assert kernel.model is model
    assert pickle.loads(pickle.dumps(StochasticGradientLangevin(model))).model is model


def test_a_step_too_long_says_diverging_and_stays_finite():
    _, *states = steps(StochasticGradientLangevin(model, 200.0, method="sgld", scale=1.0), 5)
    assert any(s.diverging for s in states)
    assert all(np.isfinite(v).all() for s in states for v in s.z.values())


@pytest.mark.slow
def test_network_parameters_and_other_param_sites_stay_as_they_are():
    def with_param(y):
        shift = numpyro.param("shift", lambda key: random.normal(key))
        mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
        numpyro.deterministic("level", shift + 0 * mean)
        with numpyro.plate("data", len(y), subsample_size=6):
            numpyro.sample("y", dist.Normal(mean + shift, 1.0), obs=numpyro.subsample(y, event_dim=0))

    level = run(StochasticGradientLangevin(with_param)).get_samples()["level"]
    assert (level == level[0]).all()


def test_it_is_no_block_of_gibbs():
    with pytest.raises(ValueError, match="does not implement `refresh`"):
        Gibbs([(StochasticGradientLangevin(model), ["mean"]), (StochasticGradientLangevin(model), None)])


# ---------------------------------------------------------------------------------------------------- errors


def no_subsample(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def nothing_observed_inside(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=3):
        pass
    numpyro.sample("y", dist.Normal(mean, 1.0).expand([len(y)]), obs=y)


def local_latent(y):
    with numpyro.plate("data", len(y), subsample_size=3) as chosen:
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=y[chosen])


def discrete(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    with numpyro.plate("data", len(y), subsample_size=3) as chosen:
        numpyro.sample("y", dist.Normal(k, 1.0), obs=y[chosen])


def outside(y):
    top = numpyro.sample("top", dist.HalfNormal(1e-3))
    with numpyro.plate("data", len(y), subsample_size=3) as chosen:
        numpyro.sample("y", dist.Normal(0.0, top), obs=y[chosen] / 0.0)


def steep(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=3) as chosen:
        numpyro.sample("y", dist.Normal(jnp.sqrt(0.0 * mean), 1.0), obs=y[chosen])


def too_many(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=2 * len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=jnp.zeros(2 * len(y)))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (
            no_subsample,
            {},
            "no subsampling plate around an observed site: use MALT or NUTS, or give the plate",
        ),
        (nothing_observed_inside, {}, "no subsampling plate around an observed site"),
        (local_latent, {}, "Site 'level' is latent inside the subsampling plate 'data'"),
        (discrete, {}, "Site 'k' is discrete, and StochasticGradientLangevin needs gradients"),
        (outside, {}, "The gradient is not finite at the start: the log-density at site 'y' is -?(inf|nan)"),
        (steep, {}, "not finite at the start: that with respect to site 'mean'"),
        (too_many, {}, "Plate 'data' takes a subsample of 16 out of 8"),
        (model, {"step_size": 0.0}, "`step_size` must be positive and finite, not 0.0"),
        (model, {"step_size": np.inf}, "`step_size` must be positive and finite"),
        (model, {"step_size": lambda i: -0.1}, "`step_size` must be positive and finite, not -0.1"),
        (model, {"step_size": lambda i: 0.1 - 0.01 * i}, "`step_size` must be positive and finite"),
        (model, {"method": "sghmc"}, "`method` must be one of 'sgnht', 'sgld', not 'sghmc'"),
        (model, {"steps_per_draw": 0}, "`steps_per_draw`"),
        (model, {"friction": 0.0}, "`friction`"),
        (model, {"temperature": -1.0}, "`temperature`"),
        (model, {"scale": -1.0}, "`scale` must be positive"),
        (model, {"scale": {"mean": 1.0}}, "`scale` says nothing of site 'spread'"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_it_cannot_do_is_said_before_the_run(build, options, message):
    with pytest.raises(ValueError, match=message):
        StochasticGradientLangevin(build, **options).init(random.key(0), 10, None, (jnp.asarray(Y[:8]),), {})


# ------------------------------------------------------------------------------------------------ whole_data


def by_hand(y, size=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", len(y), subsample_size=size) as chosen:
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[chosen])


def by_subsample(y, size=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", len(y), subsample_size=size):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))


def nested(y, size=None):
    y = jnp.reshape(y, (10, 6))
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with (
        numpyro.plate("columns", 6, subsample_size=size, dim=-1),
        numpyro.plate("rows", 10, subsample_size=size, dim=-2),
    ):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))


def in_a_scan(y, size=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))

    def step(carry, y):
        with numpyro.plate("series", 6, subsample_size=size) as chosen:
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[chosen])
        return carry, None

    scan(step, 0.0, jnp.reshape(y, (10, 6)))


EVERY = pytest.mark.parametrize("build", [by_hand, by_subsample, nested, in_a_scan])


@EVERY
def test_whole_data_is_the_model_without_subsample_size(build):
    y = (jnp.asarray(Y),)
    wraps = [
        whole_data(lambda y: build(y, 2)),
        handlers.seed(whole_data(lambda y: build(y, 2)), 0),
        whole_data(handlers.seed(lambda y: build(y, 2), 0)),
    ]

    @jax.jit
    def densities(mean):
        found = [log_density(m, y, {}, {"mean": mean}) for m in (build, *wraps)]
        part, _ = log_density(handlers.seed(lambda y: build(y, 2), 0), y, {}, {"mean": mean})
        return part, [(density, trace["y"]["value"]) for density, trace in found]

    part, ((want, data), *found) = densities(0.4)
    for density, value in found:
        assert np.isclose(density, want, rtol=1e-5)
        assert np.array_equal(value, data)
    assert abs(part - want) > 1e-2


@EVERY
def test_the_gradient_of_minibatches_is_that_of_the_whole_data_on_average(build):
    """Within 4.5 standard errors of 4000 minibatches."""
    kernel = StochasticGradientLangevin(lambda y: build(y, 2))
    y = (jnp.asarray(Y),)
    kernel._read_model(y, {})
    one = jax.jit(
        jax.vmap(lambda k: kernel._gradient(jnp.array([0.4]), lambda v: {"mean": v[0]}, k, y, {})[0])
    )
    found = np.asarray(one(random.split(random.key(3), 4000)), float)
    want = jax.jit(jax.grad(lambda m: log_density(build, y, {}, {"mean": m})[0]))(0.4)
    assert abs(found.mean() - want) < 4.5 * found.std() / np.sqrt(len(found))
