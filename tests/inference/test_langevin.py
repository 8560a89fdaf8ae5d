"""The Langevin samplers as citizens of NumPyro's MCMC, and what they refuse."""

from __future__ import annotations

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, init_to_value
from numpyro.infer.gibbs import DiscreteGibbs, Gibbs

from sojourn._contract import trace_model
from sojourn.inference._check_gradient import check_gradient, check_model_gradient
from sojourn.inference._malt import MALT
from sojourn.inference._mclmc import MCLMC, AdjustedMCLMC
from sojourn.inference._underdamped import UnderdampedLangevin
from sojourn.models import hidden_markov

Y = np.array([0.3, 1.1, -0.4, 0.8])


def model(y):
    scale = numpyro.sample("scale", dist.Gamma(4.0, 4.0))
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    numpyro.deterministic("variance", scale**2)
    numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def malt():
    return MALT(model)


def mclmc():
    return MCLMC(model, tuning_steps=300)


def adjusted():
    return AdjustedMCLMC(model, tuning_steps=200)


def baoab(**settings):
    return UnderdampedLangevin(model, solver="baoab", **settings)


def quicsort():
    return UnderdampedLangevin(model)


def align():
    return UnderdampedLangevin(model, solver="align")


def should():
    return UnderdampedLangevin(model, solver="should")


def adaptive():
    return UnderdampedLangevin(model, step="adaptive", max_num_steps=256)


def slow(build):
    return pytest.param(build, marks=pytest.mark.slow)


def run_of(
    kernel, *, chains=2, method="vectorized", warmup=20, draws=30, seed=0, progress_bar=False, fields=None
):
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method=method,
        progress_bar=progress_bar,
    )
    mcmc.run(random.key(seed), Y, extra_fields=kernel.stat_fields if fields is None else fields)
    return mcmc


@pytest.fixture(scope="module")
def runs():
    """Runs by kernel and method, each made once."""
    made = {}

    def get(build, method="vectorized", **settings):
        key = build.__name__, str(method), *sorted(settings.items())
        if key not in made:
            made[key] = run_of(build(), method=method, **settings)
        return made[key]

    return get


def check_run(mcmc, chains=2, draws=30):
    found = mcmc.get_samples(group_by_chain=True)
    assert set(found) == {"scale", "mean", "variance"}
    for x in found.values():
        assert x.shape == (chains, draws)
        assert np.isfinite(x).all()
        assert all(len(np.unique(chain)) > 1 for chain in x)
    assert (found["scale"] > 0).all()
    np.testing.assert_allclose(found["variance"], found["scale"] ** 2, rtol=1e-5)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert set(mcmc.sampler.stat_fields) <= set(fields)
    for name in mcmc.sampler.stat_fields:
        assert fields[name].shape == (chains, draws), name
        assert np.isfinite(np.asarray(fields[name], float)).all(), name
    assert (np.asarray(fields["num_steps"]) >= 1).all()
    assert fields["diverging"].dtype == bool


ALL = [malt, slow(adjusted), baoab, slow(mclmc), slow(quicsort), slow(align), slow(should), slow(adaptive)]


@pytest.mark.parametrize("build", ALL)
def test_vectorised_chains(runs, build):
    check_run(runs(build))


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # NumPyro's loop under jax.vmap
@pytest.mark.parametrize(
    "method", [pytest.param("sequential", marks=pytest.mark.slow), jax.vmap], ids=["sequential", "vmap"]
)
@pytest.mark.parametrize("build", [malt, *(slow(b) for b in (adjusted, mclmc, baoab, quicsort))])
def test_other_ways_of_running_chains(runs, build, method):
    """Under ``jax.vmap`` the start itself is traced, and the checks of the model are left out."""
    check_run(runs(build, method))


@pytest.mark.parametrize("build", [malt, *(slow(b) for b in (adjusted, mclmc, baoab, quicsort))])
def test_progress_bar_and_diagnostic_string(build, capsys, monkeypatch):
    for name in ("PYTEST_XDIST_WORKER", "CI"):  # where NumPyro shows no bar
        monkeypatch.delenv(name, raising=False)
    mcmc = run_of(build(), chains=1, method="sequential", warmup=5, draws=5, progress_bar=True)
    check_run(mcmc, 1, 5)
    state = mcmc.last_state
    assert "step" in mcmc.sampler.get_diagnostics_str(
        state
    ) or "gradients" in mcmc.sampler.get_diagnostics_str(state)
    assert "sample: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("build", [malt, *(slow(b) for b in (adjusted, mclmc, baoab, quicsort))])
def test_same_key_same_draws_and_a_stopped_run_goes_on_bit_by_bit(runs, build):
    # One chain starts on a steep side, and leaves it when its step has been cut.
    settings = {"num_warmup": 60, "num_samples": 30, "num_chains": 2, "chain_method": "vectorized"}
    first = runs(build, warmup=60)
    again = MCMC(build(), **settings, progress_bar=False)
    again.run(random.key(0), Y, extra_fields=again.sampler.stat_fields)
    np.testing.assert_array_equal(first.get_samples()["mean"], again.get_samples()["mean"])
    before = first.get_samples()["mean"]
    state, rest = first.last_state, []
    for _ in range(2):
        again.post_warmup_state = state
        again.run(again.post_warmup_state.rng_key, Y)
        rest.append(again.get_samples()["mean"])
    np.testing.assert_array_equal(*rest)
    assert not (rest[0] == before).any()
    kept = again.last_state
    step = kept.step_size if hasattr(kept, "step_size") else kept.adapt_state.step_size
    earlier = state.step_size if hasattr(state, "step_size") else state.adapt_state.step_size
    np.testing.assert_array_equal(step, earlier)  # no adaptation after warm-up


def test_arviz_reads_a_run(runs):
    data = az.from_numpyro(runs(malt))
    assert dict(data.posterior.sizes) == {"chain": 2, "draw": 30}
    assert {"acceptance_rate", "diverging", "n_steps"} <= set(data.sample_stats)


@pytest.mark.parametrize("build", [malt, *(slow(b) for b in (adjusted, mclmc, baoab, quicsort))])
def test_no_warm_up(build):
    """These two keep the step they are given; a larger one would not leave the steep side that one chain starts on."""
    small = {malt: lambda: MALT(model, step_size=0.02), baoab: lambda: baoab(step_size=0.02)}
    kernel = small.get(build, build)()
    mcmc = run_of(kernel, warmup=0, draws=15)
    check_run(mcmc, draws=15)
    if build is malt:
        np.testing.assert_allclose(mcmc.last_state.adapt_state.step_size, 0.02, rtol=1e-6)


def test_a_fixed_step_stays_and_a_long_trajectory_is_cut_short():
    mcmc = run_of(MALT(model, step_size=0.01, adapt_step_size=False, max_num_steps=7))
    fields = mcmc.get_extra_fields()
    assert (fields["num_steps"] == 7).all()
    np.testing.assert_allclose(fields["adapt_state.step_size"], 0.01, rtol=1e-6)


@pytest.mark.parametrize("build", [baoab, slow(mclmc)])
def test_half_the_step_of_the_approximate_kernels(runs, build):
    kernel, state = runs(build).sampler, runs(build).last_state
    halved = kernel.halve_step(state)
    if build is mclmc:
        whole, half = state.step_size, halved.step_size
    else:
        whole, half = np.minimum(state.adapt_state.step_size, 1.8), halved.adapt_state.step_size
    np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-6)


@pytest.mark.parametrize(
    "law", [dist.Gamma(100.0, 1.0), dist.Dirichlet(jnp.ones(3))], ids=lambda law: type(law).__name__
)
def test_a_block_of_gibbs_starts_where_the_model_does(law):
    """``Gibbs`` hands over values as the model has them, not on the unconstrained scale: exp(100) is no start."""

    def switch(y):
        numpyro.sample("w", law)
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(k.astype(float), 1.0), obs=y)

    kernel = Gibbs([(DiscreteGibbs(switch), ["k"]), (MALT(switch), None)])
    state = kernel.init(random.key(0), 10, None, (0.5,), {})
    assert np.isfinite(state.block_states[1].potential_energy)
    assert np.abs(state.block_states[1].z["w"]).max() < 10.0


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (
            UnderdampedLangevin,
            {"solver": "euler"},
            "no solver 'euler'; the names are 'quicsort', 'should', 'align', 'baoab'",
        ),
        (
            UnderdampedLangevin,
            {"step": "variable"},
            "`step` must be 'constant' or 'adaptive', not 'variable'",
        ),
        (UnderdampedLangevin, {"solver": "baoab", "step": "adaptive"}, "BAOAB has no error estimate"),
        (UnderdampedLangevin, {"tolerance": 0.0}, "`tolerance` must be above 0, not 0.0"),
        (UnderdampedLangevin, {"friction": -1.0}, "`friction` must be above 0"),
        (UnderdampedLangevin, {"trajectory_length": 0.0}, "`trajectory_length` must be above 0"),
        (UnderdampedLangevin, {"step_size": 0.0}, "`step_size` must be above 0"),
        (UnderdampedLangevin, {"max_num_steps": 0}, "`max_num_steps` must be above 0"),
        (MALT, {"friction": 0.0}, "`friction` must be above 0, not 0.0"),
        (MALT, {"trajectory_length": -2.0}, "`trajectory_length` must be above 0"),
        (MALT, {"target_accept_prob": 1.0}, "`target_accept_prob` must be between 0 and 1, not 1.0"),
        (MALT, {"step_size": float("nan")}, "`step_size` must be above 0, not nan"),
        (MALT, {"max_num_steps": 0}, "`max_num_steps` must be above 0"),
        (MCLMC, {"energy_variance": 0.0}, "`energy_variance` must be above 0"),
        (MCLMC, {"tuning_steps": 10}, "`tuning_steps` must be above 99, not 10"),
        (MCLMC, {"max_num_steps": 0}, "`max_num_steps` must be above 0"),
        (AdjustedMCLMC, {"target_accept_prob": 0.0}, "`target_accept_prob` must be between 0 and 1"),
        (AdjustedMCLMC, {"num_integration_steps": 1.0}, "`num_integration_steps` must be above 1.1"),
        (AdjustedMCLMC, {"tuning_steps": 99}, "`tuning_steps` must be above 99"),
    ],
)
def test_settings_out_of_range(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(model, **options)


def discrete(y):
    numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(0.0, 1.0))


def subsampled(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]))
    with numpyro.plate("batch", 4, subsample_size=2):
        numpyro.sample("y", dist.Normal(mean[0], 1.0), obs=numpyro.subsample(y, 0))


def looping(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]))
    _, total = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x[0]), (0, x[1]))
    numpyro.factor("loop", -(total**2))


def kept_back(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]))
    numpyro.sample("y", dist.Normal(jax.lax.stop_gradient(x[0] - 2 * x[1]), 0.5), obs=y)


def stepped(y):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]))
    numpyro.factor("stairs", -3.0 * jnp.abs(jnp.floor(4.0 * x)).sum())


def nothing(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


BAD = [
    (discrete, "Site 'k' is discrete, and {} needs gradients"),
    (subsampled, "Plate 'batch' takes 2 of 4 elements, and {} needs all of them"),
    (looping, "The log density has no gradient, and {} follows gradients: .*while_loop"),
    (
        kept_back,
        "Along site 'x' the log density changes by .* keeps the gradient back .*{} would sample another law",
    ),
    (stepped, "Along site 'x' the log density changes by"),
    (nothing, "The model has no latent sample site"),
]


@pytest.mark.parametrize("kernel", [MALT, MCLMC, AdjustedMCLMC, UnderdampedLangevin])
@pytest.mark.parametrize(("bad", "message"), BAD)
def test_models_that_they_cannot_sample(kernel, bad, message):
    with pytest.raises(ValueError, match=message.format(kernel.__name__)):
        kernel(bad).init(random.key(0), 10, None, (Y,), {})


@pytest.mark.parametrize("kernel", [MCLMC, AdjustedMCLMC])
def test_microcanonical_kernels_need_two_latents(kernel):
    def one(y):
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(
        ValueError, match=f"{kernel.__name__} moves along a sphere .*two or more latent numbers"
    ):
        kernel(one).init(random.key(0), 10, None, (Y,), {})
    keys = random.split(random.key(0), 3)  # three chains of one latent number each are no three latents
    with pytest.raises(ValueError, match="two or more latent numbers"):
        kernel(one).init(keys, 10, None, (Y,), {})


@pytest.mark.parametrize("kernel", [MCLMC, pytest.param(AdjustedMCLMC, marks=pytest.mark.slow)])
def test_a_tuning_that_collapses_is_said(kernel):
    """The density is NaN everywhere but within a hair of the start."""

    def pinned(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]))
        numpyro.factor("hole", jnp.where(jnp.abs(x).max() < 1e-7, 0.0, jnp.nan))

    start = init_to_value(values={"x": jnp.zeros(2)})
    with pytest.raises(
        RuntimeError, match=f"{kernel.__name__} could not tune chain 0: its step collapsed to"
    ):
        kernel(pinned, tuning_steps=200, init_strategy=start).init(random.key(0), 10, None, (Y,), {})


# ----------------------------------------------------------------------------------- what is not to be refused


def forward_algorithm(z):
    """Log-likelihood of two states, by ``logsumexp`` in a scan."""
    log_matrix = jax.nn.log_softmax(z["rows"], axis=1)

    def step(alpha, y):
        alpha = jax.nn.logsumexp(alpha[:, None] + log_matrix, axis=0) - 0.5 * (y - z["means"]) ** 2
        return alpha, None

    return -jax.nn.logsumexp(jax.lax.scan(step, jnp.zeros(2), jnp.asarray(Y))[0])


SMOOTH = {
    "logsumexp": lambda z: (
        jax.nn.logsumexp(z["means"]) + jax.nn.logsumexp(z["rows"], axis=0, keepdims=True).sum()
    ),
    "softmax": lambda z: jnp.sum(jax.nn.softmax(z["rows"], axis=1)[:, 0] * z["means"]),
    "weighted": lambda z: jax.nn.logsumexp(z["means"], b=jnp.array([0.3, 0.7])),
    "masked": lambda z: jax.nn.logsumexp(z["means"], where=jnp.array([True, False])),
    "logaddexp": lambda z: jnp.logaddexp(z["means"][0], z["means"][1]),
    "rectified": lambda z: jnp.sum(jax.nn.relu(z["means"]) ** 2) + jnp.abs(z["rows"]).sum(),
    "maximum": lambda z: jnp.max(z["means"]) + jnp.max(z["rows"]),
    "forward algorithm": forward_algorithm,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_densities_are_not_refused(name):
    z = {"means": jnp.array([0.4, 1.3]), "rows": jnp.array([[0.3, -0.2], [1.0, 0.1]])}
    check_gradient(SMOOTH[name], z, "MALT")


def mixture(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    means = numpyro.sample("means", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    law = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(means, 1.0))
    numpyro.sample("y", law, obs=y)


def random_walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.StudentT(4.0, x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def poisson_states(y):
    return hidden_markov.poisson(jnp.array([1, 4, 0, 2]), num_states=2)


@pytest.mark.parametrize("smooth", [mixture, random_walk, slow(poisson_states)])
def test_models_with_smooth_densities_are_not_refused(smooth):
    key = random.key(0)
    check_model_gradient(smooth, (Y,), {}, trace_model(smooth, (Y,), {}, key=key), "MALT", key)


def test_a_gradient_kept_back_from_a_part_that_does_not_matter_is_let_pass():
    check_gradient(
        lambda z: jnp.sum(z["x"] ** 2) + 0.0 * jax.lax.stop_gradient(z["x"][0]), {"x": jnp.ones(2)}, "MALT"
    )


def test_a_maximum_kept_back_alone_is_refused():
    with pytest.raises(ValueError, match="Along site 'x'"):
        check_gradient(
            lambda z: jnp.sum(z["x"] ** 2) + 5.0 * jax.lax.stop_gradient(jnp.sum(z["x"])),
            {"x": jnp.ones(2)},
            "MALT",
        )
