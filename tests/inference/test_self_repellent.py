"""The self-repellent walk as a kernel of NumPyro: states, weights, chains side by side, and what it refuses.

Its variances are held to theory in tests/exact.
"""

from __future__ import annotations

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, DiscreteGibbs, Gibbs

import sojourn as sj
from sojourn.inference._self_repellent import SelfRepellentWalk
from sojourn.ops import self_repellent as ops

Y = jnp.array([0.2, 1.6])


def model(y):
    """Two switches in a plate, and a level with values 0, 1, 2."""
    level = numpyro.sample("level", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
    with numpyro.plate("switch", 2):
        on = numpyro.sample("on", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(on + 0.3 * level, 0.7), obs=y)
    numpyro.deterministic("sum", level + on.sum())


def exact(y):
    """Joint states in the order of the kernel, and their log joint densities."""
    level, one, two = np.meshgrid([0, 1, 2], [0, 1], [0, 1], indexing="ij")
    level, on = level.ravel(), np.stack([one.ravel(), two.ravel()], 1)
    log_joint = np.log([0.2, 0.5, 0.3])[level] + np.log(np.where(on == 1, 0.4, 0.6)).sum(1)
    residual = (np.asarray(y) - on - 0.3 * level[:, None]) / 0.7
    log_joint += (-0.5 * residual**2 - np.log(0.7 * np.sqrt(2 * np.pi))).sum(1)
    return level, on, log_joint


def bounds(values, log_joint, draws):
    """Posterior means, and four standard errors of averages over ``draws`` in all (alpha = 5)."""
    mass = np.exp(log_joint) / np.exp(log_joint).sum()
    chain = ops.metropolis_matrix(ops.product_graph((3, 2, 2)), jnp.asarray(log_joint))
    variance = [ops.asymptotic_variance(chain, mass, 5.0, v) for v in values]
    return np.array([mass @ v for v in values]), 4 * np.sqrt(np.array(variance) / draws)


def sampler(chains=4, draws=400, warmup=0, method="vectorized", **options):
    return MCMC(
        SelfRepellentWalk(model, **options),
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method=method,
        progress_bar=False,
    )


@pytest.fixture(scope="module")
def run():
    mcmc = sampler()
    mcmc.run(random.key(0), Y, extra_fields=("node", "potential_energy"))
    return mcmc


def test_the_state_goes_with_the_draws(run):
    level, on, log_joint = exact(Y)
    draws, extra = run.get_samples(), run.get_extra_fields()
    node = np.asarray(extra["node"])
    assert (level[node] == draws["level"]).all()
    assert (on[node] == draws["on"]).all()
    assert (draws["sum"] == draws["level"] + draws["on"].sum(1)).all()
    assert np.allclose(-log_joint[node], extra["potential_energy"], atol=1e-4)
    assert np.allclose(run.last_state.log_mass, log_joint, atol=1e-4)
    assert np.allclose(run.last_state.visits.sum(1), 1, atol=1e-4)
    assert (extra["log_weight"] == 0).all()


def test_equal_weights_make_up_the_measure_but_for_the_start(run):
    node = np.asarray(run.get_extra_fields(group_by_chain=True)["node"])
    share = np.stack([np.bincount(n, minlength=12) for n in node])
    assert np.allclose(run.last_state.visits, (share + 1 / 12) / 401, atol=1e-5)


@pytest.mark.slow
def test_weights_make_up_a_measure_that_forgets():
    mcmc = sampler(draws=300, step_exponent=0.6)
    mcmc.run(random.key(0), Y, extra_fields=("node",))
    extra = mcmc.get_extra_fields(group_by_chain=True)
    weight = np.asarray(extra["log_weight"], float)
    weight = np.exp(weight - weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    found = np.stack([np.bincount(n, w, 12) for n, w in zip(extra["node"], weight, strict=True)])
    # What the start has left is prod (1 - gamma_k), next to nothing.
    assert np.allclose(mcmc.last_state.visits, found, atol=1e-4)


@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_the_draws_after_warmup_make_up_the_measure(exponent):
    mcmc = sampler(draws=100, warmup=50, step_exponent=exponent)
    mcmc.warmup(random.key(0), Y)
    before = mcmc.post_warmup_state
    assert (before.i == 0).all()
    assert (before.warmup_left == 0).all()
    mcmc.run(random.key(1), Y, extra_fields=("node",))
    extra = mcmc.get_extra_fields(group_by_chain=True)
    n = np.arange(1, 101)
    gamma = (n + 1.0) ** -exponent
    weight = gamma / np.cumprod(1 - gamma)
    assert np.allclose(
        extra["log_weight"] - extra["log_weight"][:, :1], np.log(weight / weight[0]), atol=1e-3
    )
    found = np.stack([np.bincount(k, weight, 12) for k in extra["node"]])
    expected = (found + before.visits) / (weight.sum() + 1)  # the measure it set out from counts once
    assert np.allclose(mcmc.last_state.visits, expected, atol=1e-4)


@pytest.mark.parametrize(
    "method", ["sequential", "vectorized", pytest.param(jax.vmap, marks=pytest.mark.slow)]
)
def test_chains_by_any_method_find_the_posterior(method, run):
    level, on, log_joint = exact(Y)
    mean, bound = bounds([level, *on.T], log_joint, 1600)
    mcmc = run
    if method != "vectorized":
        mcmc = sampler(chains=2, draws=800, method=method)
        mcmc.run(random.key(3), Y)
        assert mcmc.get_samples(group_by_chain=True)["on"].shape == (2, 800, 2)
    draws = mcmc.get_samples()
    found = np.array([draws["level"].mean(), *draws["on"].mean(0)])
    assert (np.abs(found - mean) < bound).all()


def test_one_chain_and_tables_that_follow_the_data():
    """A second run on other data, with the sampler compiled for any data of that shape."""
    mcmc = MCMC(
        SelfRepellentWalk(model), num_warmup=0, num_samples=2000, progress_bar=False, jit_model_args=True
    )
    for y in (Y, jnp.array([1.5, -0.8])):
        mcmc.run(random.key(1), y)
        _, on, log_joint = exact(y)
        mean, bound = bounds(on.T, log_joint, 2000)
        assert (np.abs(mcmc.get_samples()["on"].mean(0) - mean) < bound).all()


def test_under_pmap():
    kernel = SelfRepellentWalk(model)

    def steps(key):
        state = kernel.init(key, 0, None, (Y,), {})
        return jax.lax.fori_loop(0, 10, lambda _, s: kernel.sample(s, (Y,), {}), state)

    state = jax.pmap(steps)(random.split(random.key(0), 1))
    assert state.i.tolist() == [10]
    assert np.allclose(state.log_mass[0], exact(Y)[2], atol=1e-4)


def test_a_stopped_run_goes_on_bit_by_bit():
    whole = sampler(chains=2, draws=60, warmup=10)
    whole.run(random.key(0), Y)
    half = sampler(chains=2, draws=30, warmup=10)
    half.run(random.key(0), Y)
    again = sampler(chains=2, draws=30)
    again.post_warmup_state = pickle.loads(
        pickle.dumps(jax.device_get(half.last_state._replace(rng_key=None)))
    )
    again.run(half.last_state.rng_key, Y)
    both = [half.get_samples(group_by_chain=True), again.get_samples(group_by_chain=True)]
    for name, value in whole.get_samples(group_by_chain=True).items():
        assert (value == jnp.concatenate([b[name] for b in both], 1)).all()
    assert (whole.last_state.visits == again.last_state.visits).all()
    assert (whole.last_state.i == again.last_state.i).all()


def test_through_the_front_door():
    engine = partial(SelfRepellentWalk, alpha=2.0, step_exponent=0.8)
    options = {"engine": engine, "num_warmup": 0, "num_samples": 50, "num_chains": 2, "progress_bar": False}
    fit, again = (sj.fit(model, Y, **options) for _ in range(2))
    assert set(fit.posterior.data_vars) == {"level", "on", "sum"}
    assert set(fit.sample_stats.data_vars) == {"lp", "log_weight"}
    assert (fit.posterior["on"] == again.posterior["on"]).all()
    level, on, log_joint = exact(Y)
    table = {(k, *o): v for k, o, v in zip(level.tolist(), on.tolist(), log_joint, strict=True)}
    found = fit.posterior.isel(chain=1, draw=7)
    key = (int(found["level"]), *(int(v) for v in found["on"]))
    assert float(fit.sample_stats["lp"][1, 7]) == pytest.approx(table[key], abs=1e-4)


def test_it_starts_where_it_is_told():
    kernel = SelfRepellentWalk(model)
    start = {"level": jnp.array(2), "on": jnp.array([0, 1])}
    state = kernel.init(random.key(0), 0, start, (Y,), {})
    assert state.node == 9
    assert state.z["on"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="`init_params` is not among the joint states"):
        kernel.init(random.key(0), 0, {**start, "level": jnp.array(5)}, (Y,), {})
    with pytest.raises(ValueError, match=r"must have the sites \['level', 'on'\], and has \['on'\]"):
        kernel.init(random.key(0), 0, {"on": jnp.array([0, 1])}, (Y,), {})


def chain_of_states(y):
    """Discrete sites in a scan, and a site with two axes."""
    numpyro.sample("pair", dist.Binomial(2, 0.5 * jnp.ones((1, 2))).to_event(1))

    def step(state, y):
        state = numpyro.sample("state", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[state]))
        numpyro.sample("y", dist.Normal(2.0 * state, 1.0), obs=y)
        return state, None

    scan(step, 0, y)


def test_sites_in_a_scan_and_sites_of_several_axes():
    y = jnp.array([0.1, 1.9, 2.3])
    mcmc = MCMC(
        SelfRepellentWalk(chain_of_states), num_warmup=0, num_samples=4000, num_chains=1, progress_bar=False
    )
    mcmc.run(random.key(0), y)
    draws = mcmc.get_samples()
    assert draws["state"].shape == (4000, 3)
    assert draws["pair"].shape == (4000, 1, 2)
    assert abs(draws["pair"].mean() - 1) < 0.03
    forward, move = np.array([1.0, 0.0]), np.array([[0.9, 0.1], [0.2, 0.8]])
    for value in np.asarray(y):
        forward = forward @ move * np.exp(-0.5 * (value - np.array([0.0, 2.0])) ** 2)
    assert abs(draws["state"][:, -1].mean() - forward[1] / forward.sum()) < 0.03


@pytest.mark.slow
def test_a_graph_of_ones_own():
    """Three levels that can only be climbed: 0 - 1 - 2, for each pair of switches; the switches one at a time."""
    path, square = np.diag(np.ones(2), 1), 1 - np.eye(2)
    path += path.T
    eye = np.eye
    adjacency = (
        np.kron(np.kron(path, eye(2)), eye(2))
        + np.kron(np.kron(eye(3), square), eye(2))
        + np.kron(np.kron(eye(3), eye(2)), square)
    )
    mcmc = sampler(chains=1, draws=3000, adjacency=adjacency)
    mcmc.run(random.key(0), Y)
    draws = mcmc.get_samples()
    jump = np.abs(np.diff(draws["level"])) + np.abs(np.diff(draws["on"], axis=0)).sum(1)
    assert jump.max() == 1
    level, _, log_joint = exact(Y)
    assert abs(draws["level"].mean() - level @ np.exp(log_joint) / np.exp(log_joint).sum()) < 0.03


# ------------------------------------------------------------------------------------------------- errors


def continuous(y):
    numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.sample("k", dist.Bernoulli(0.5))


def improper(y):
    numpyro.sample("shift", dist.ImproperUniform(dist.constraints.real, (), ()))


def counts(y):
    numpyro.sample("k", dist.Poisson(3.0))


def nothing(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def large(y):
    with numpyro.plate("n", 40):
        numpyro.sample("k", dist.Categorical(jnp.ones(3) / 3))
    numpyro.sample("s", dist.Bernoulli(0.5))


def fixed(y):
    numpyro.sample("k", dist.Categorical(jnp.ones(1)))


def subsampled(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    with numpyro.plate("data", 2, subsample_size=1) as index:
        numpyro.sample("y", dist.Normal(k, 1.0), obs=y[index])


def uneven(y):
    with numpyro.plate("n", 2):
        numpyro.sample("k", dist.Binomial(jnp.array([1, 2]), 0.5))


def nested(y):
    n = numpyro.sample("n", dist.Binomial(30, 0.5))
    numpyro.sample("k", dist.Binomial(n, 0.5))


def parity(y):
    with numpyro.plate("n", 2):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.factor("even", jnp.where(k.sum() % 2 == 0, 0.0, -jnp.inf))


def impossible(y):
    numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.factor("never", -jnp.inf)


def undefined(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.factor("odd", jnp.where(k == 1, jnp.nan, 0.0))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (continuous, {}, "Site 'scale' is continuous.*observe it"),
        (improper, {}, "Site 'shift' is continuous"),
        (counts, {}, "Site 'k' has a law, Poisson, without a finite support.*truncate it"),
        (nothing, {}, "no latent site"),
        (large, {}, r"10\^19 joint states \('k' 3\^40, 's' 2\).*at most 4,096: raise `max_states`"),
        (model, {"max_states": 11}, r"12 joint states \('level' 3, 'on' 2\^2\).*at most 11"),
        (fixed, {}, "'k' can take no other value"),
        (subsampled, {}, "Plate 'data' takes 1 of 2 elements"),
        (uneven, {}, "entries of site 'k' differ in their supports"),
        (nested, {}, "support of site 'k' depends on another site"),
        (parity, {}, "2 joint states of positive density fall into 2 groups.*`adjacency`"),
        (impossible, {}, "None of the joint states"),
        (undefined, {}, "joint density of the model is nan at k = 1"),
        (
            model,
            {"adjacency": np.ones((3, 3))},
            "`adjacency` is of 3 states where the sites 'level', 'on' have 12",
        ),
        (model, {"adjacency": np.eye(12)}, "falls into 12 pieces"),
        (model, {"alpha": -1.0}, "`alpha` must be a number not negative"),
        (model, {"alpha": float("nan")}, "`alpha`"),
        (model, {"step_exponent": 0.5}, "`step_exponent` must be a number above 0.5"),
        (model, {"max_states": 0}, "`max_states`"),
    ],
)
def test_what_it_cannot_do_is_said_before_the_run(build, options, message):
    with pytest.raises(ValueError, match=message):
        SelfRepellentWalk(build, **options).init(random.key(0), 0, None, (Y,), {})


def test_states_without_density_are_left_out():
    """The same two even states, joined by an edge of their own."""
    adjacency = np.ones((4, 4))
    state = SelfRepellentWalk(parity, adjacency=adjacency).init(random.key(0), 0, None, (Y,), {})
    assert state.visits.tolist() == [0.5, 0, 0, 0.5]


def test_it_is_no_block_of_a_gibbs_sampler():
    with pytest.raises(
        ValueError, match=r"cannot be a block of Gibbs: its transition law depends on where it has been"
    ):
        Gibbs([(SelfRepellentWalk(continuous), ["k"]), (NUTS(continuous), None)])
    Gibbs([(DiscreteGibbs(continuous), ["k"]), (NUTS(continuous), None)])
