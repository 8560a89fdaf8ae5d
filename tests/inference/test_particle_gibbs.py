"""Particle Gibbs as users run it: chains, resume, statistics, composition, bad input."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import partial

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import HMC, MCMC, NUTS, Gibbs
from numpyro.infer.gibbs import DiscreteGibbs

import sojourn as sj
from sojourn.inference import ConditionalSMC, ParticleGibbs

SERIES = np.array([0.3, -0.1, 0.8, 1.1, 0.2, -0.6], np.float32)
QUICK = partial(HMC, step_size=0.3, adapt_step_size=False, adapt_mass_matrix=False)


def walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def without_parameters(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, 0.0, y)


def with_start(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 0.5))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def quick_kernel(model=walk, **options):
    return ParticleGibbs(model, 8, QUICK, interweave=False, **options)


def run(kernel, *args, chains=1, method="sequential", samples=8, **options):
    mcmc = MCMC(
        kernel,
        num_warmup=4,
        num_samples=samples,
        num_chains=chains,
        chain_method=method,
        progress_bar=False,
        **options,
    )
    mcmc.run(random.key(0), *args)
    return mcmc


@pytest.fixture(scope="module")
def base():
    """One run shared by the tests: compiling is what they cost."""
    kernel = quick_kernel()
    return kernel, run(kernel, SERIES)


# ---------------------------------------------------------------------------------------------- chains


@pytest.mark.parametrize(
    "method", ["vectorized", *(pytest.param(m, marks=pytest.mark.slow) for m in ("sequential", jax.vmap))]
)
def test_chains_side_by_side_and_one_by_one(method):
    mcmc = run(quick_kernel(), SERIES, chains=2, method=method)
    x = mcmc.get_samples(group_by_chain=True)["x"]
    assert x.shape == (2, 8, 6)
    assert not np.array_equal(x[0], x[1])


@pytest.mark.slow
def test_parallel_chains_on_two_devices():
    code = f"""
import os, runpy
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax
here = runpy.run_path({__file__!r})
assert jax.local_device_count() == 2
mcmc = here["run"](here["quick_kernel"](), here["SERIES"], chains=2, method="parallel")
print(mcmc.get_samples(group_by_chain=True)["x"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 8, 6)", done.stderr


@pytest.mark.parametrize("chains", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_on_from_its_last_state(chains):
    kernel = quick_kernel()
    method = "vectorized" if chains > 1 else "sequential"
    mcmc = run(kernel, SERIES, chains=chains, method=method)
    state = mcmc.last_state

    def further(key, sampler):
        again = MCMC(
            sampler, num_warmup=4, num_samples=8, num_chains=chains, chain_method=method, progress_bar=False
        )
        again.post_warmup_state = state
        again.run(key, SERIES)
        return again.get_samples()["x"]

    once = further(random.key(1), kernel)
    assert np.array_equal(once, further(random.key(1), quick_kernel())), "a fresh kernel goes on alike"
    assert not np.array_equal(once, further(random.key(2), kernel)), "another key gives other draws"


def test_the_progress_bar_tells_how_the_path_moves(base):
    kernel, mcmc = base
    text = kernel.get_diagnostics_str(mcmc.last_state)
    assert "path update" in text
    assert "particle ESS" in text


# --------------------------------------------------------------------------------------------- results


def test_a_fit_holds_update_rates_effective_sizes_and_the_evidence():
    fit = sj.fit(
        walk, SERIES, engine=quick_kernel_of, num_warmup=20, num_samples=30, num_chains=2, progress_bar=False
    )
    stats = fit.sample_stats
    assert stats["path_update"].dims == ("chain", "draw", "time")
    assert stats["particle_ess"].dims == ("chain", "draw", "time")
    assert stats["log_evidence"].dims == ("chain", "draw")
    assert float(stats["particle_ess"].max()) <= 8.001
    assert float(stats["particle_ess"].min()) >= 0.999
    assert fit.posterior["x"].dims == ("chain", "draw", "time")
    assert fit.attrs["engine"] == "particle_gibbs"
    assert "path_update" in [finding.name for finding in sj.check(fit).findings]


def quick_kernel_of(model):
    return quick_kernel(model)


quick_kernel_of.__name__ = "particle_gibbs"


def test_arviz_reads_a_bare_run(base):
    data = az.from_numpyro(base[1])
    assert data.posterior["x"].shape == (1, 8, 6)


def test_a_model_without_parameters_and_a_site_left_out_of_the_store():
    mcmc = MCMC(quick_kernel(with_start), num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(random.key(0), SERIES, extra_fields=("~z.x",))
    assert set(mcmc.get_samples()) == {"x0"}


def test_nan_observations_are_missing_to_path_and_parameters():
    y = SERIES.copy()
    y[2] = np.nan

    def masked(y, seen):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))

        def step(x, inputs):
            y, seen = inputs
            x = numpyro.sample("x", dist.Normal(x, scale))
            with handlers.mask(mask=seen):
                numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), (y, seen))

    gone = run(quick_kernel(), y).get_samples()
    hidden = run(quick_kernel(masked), np.nan_to_num(y), ~np.isnan(y)).get_samples()
    for name in gone:
        np.testing.assert_allclose(gone[name], hidden[name], rtol=1e-4, atol=1e-5)


def test_the_path_evaluated_at_all_times_at_once_is_the_same_path(base):
    at_once = base[1].get_samples()
    in_turn = run(quick_kernel(parallel_in_time=False), SERIES).get_samples()
    for name in at_once:
        np.testing.assert_allclose(at_once[name], in_turn[name], rtol=1e-3, atol=1e-4)


# ----------------------------------------------------------------------------------------- composition


def test_a_path_a_discrete_block_and_nuts():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        k = numpyro.sample("k", dist.Bernoulli(0.5))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x + 0.2 * k, scale))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, 0.0, y)

    kernel = Gibbs([(ConditionalSMC(model, 8), ["x"]), (DiscreteGibbs(model), ["k"]), (NUTS(model), None)])
    assert set(run(kernel, SERIES).get_samples()) == {"scale", "k", "x"}
    with pytest.raises(ValueError, match="'k' is discrete and lies outside the scan"):
        run(ParticleGibbs(model, 8), SERIES)


def test_independent_series_have_statistics_of_their_own():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))

        def step(x, y):
            with numpyro.plate("series", 3):
                x = numpyro.sample("x", dist.Normal(x, scale))
                numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, jnp.zeros(3), y)

    kernel = quick_kernel(model)
    y = np.stack([SERIES, SERIES + 1, -SERIES], 1)
    mcmc = MCMC(kernel, num_warmup=2, num_samples=3, progress_bar=False)
    mcmc.run(random.key(0), y, extra_fields=kernel.stat_fields)
    assert kernel.structure.systems == (3,)
    assert mcmc.get_extra_fields()["path_update"].shape == (3, 6, 3)
    assert kernel.stat_dims["log_evidence"] == ["series"]


def test_a_guide_and_a_look_ahead_are_told_the_parameters():
    seen = set()

    def guide(carry, y, parameters):
        seen.update(parameters)
        numpyro.sample("x", dist.Normal(0.5 * (carry + y), parameters["scale"]))

    def twist(carry, y, parameters):
        return dist.Normal(carry, 0.5 + parameters["scale"]).log_prob(y)

    run(quick_kernel(guide=guide, twist=twist), SERIES)
    assert seen == {"scale"}


# -------------------------------------------------------------------------------------------- bad input


def test_a_carry_that_never_forgets_is_said_and_the_genealogy_kept():
    def model(y):
        def step(x, y):
            x = x + numpyro.sample("w", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, 0.0, y)

    with pytest.warns(UserWarning, match=r"The carry \(carry\) depends on its whole past"):
        run(quick_kernel(model), SERIES)
    with pytest.raises(ValueError, match="Ancestor sampling needs a carry that forgets"):
        run(quick_kernel(model, path="ancestor"), SERIES)
    with pytest.raises(ValueError, match="Backward sampling needs a carry"):
        run(quick_kernel(model, path="backward"), SERIES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(quick_kernel(model, memory=6), SERIES)


def no_scan(y):
    loc = numpyro.sample("loc", dist.Normal())
    numpyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def nothing_latent(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(before, y):
        numpyro.sample("y", dist.Normal(before, scale), obs=y)
        return y, None

    scan(step, 0.0, y)


def observed_after(y):
    def step(x, _):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        return x, x

    _, xs = scan(step, 0.0, None, length=len(y))
    numpyro.sample("y", dist.Normal(xs, 0.5), obs=y)


def latent_after(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    last, _ = scan(step, 0.0, y)
    numpyro.sample("next", dist.Normal(last, 1.0))


def backwards(y):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, 0.0, y, reverse=True)


def two_scans(y):
    for name in "ab":

        def step(x, y, name=name):
            x = numpyro.sample(f"x{name}", dist.Normal(x, 1.0))
            numpyro.sample(f"y{name}", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, 0.0, y)


@pytest.mark.parametrize(
    ("model", "error", "sentence"),
    [
        (no_scan, ValueError, "The model has no scan"),
        (nothing_latent, ValueError, "no latent site in its scan"),
        (observed_after, NotImplementedError, "The law of 'y', after the scan, depends on the path"),
        (latent_after, NotImplementedError, "The law of 'next', after the scan, depends on the path"),
        (backwards, NotImplementedError, "Flip xs instead"),
        (two_scans, ValueError, r"Several scans of this model have latent sites \('xa', 'xb'\)"),
        (handlers.scale(without_parameters, scale=0.5), ValueError, "sets a scale on its site 'x'"),
        (handlers.mask(without_parameters, mask=False), ValueError, "sets a mask on its site 'x'"),
        (handlers.scope(without_parameters, prefix="a"), ValueError, "renames them"),
        (handlers.do(without_parameters, data={"x": 0.0}), ValueError, "handlers.do is set on 'x'"),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is_compiled(model, error, sentence):
    with pytest.raises(error, match=sentence):
        sj.read_scan(model, SERIES)


@pytest.mark.parametrize("engine", ["nuts", "particle_gibbs"])
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "neither inputs nor a length"),
        ("abc", "no array with time as its first axis"),
        (1.0, "no array"),
    ],
)
def test_a_scan_without_time_is_said(engine, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        sj.fit(walk, data, engine=engine)


def test_do_inside_a_scan_is_refused_by_every_engine():
    with pytest.raises(ValueError, match=r"handlers\.do is set on 'x'"):
        sj.fit(handlers.do(walk, data={"x": jnp.zeros(6)}), SERIES, engine="nuts")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_particles": 1}, "`num_particles` must be a whole number of at least 2"),
        ({"num_particles": 2.5}, "`num_particles` must be a whole number of at least 2"),
        ({"path": "smooth"}, "`path` must be 'auto'"),
        ({"resampling": "stratified"}, "`resampling` must be"),
        ({"ess_threshold": 2.0}, "`ess_threshold` is a share"),
        ({"inner_kernel": NUTS(walk)}, "`inner_kernel` is a class or function"),
    ],
)
def test_settings_are_checked_at_once(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ParticleGibbs(walk, **options)


def test_a_site_that_cannot_be_interweaved_is_named():
    with pytest.raises(ValueError, match="Site 'scale' cannot be interweaved"):
        run(ParticleGibbs(walk, 8, interweave=("scale",)), SERIES)


def test_particles_of_weight_zero_are_traced_to_step_and_site():
    def model(counts):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))

        def step(t, count):
            x = numpyro.sample("x", dist.Normal(0.0, scale))
            numpyro.sample("count", dist.Poisson(jnp.where(t == 2, 0.0, jnp.exp(x))), obs=count)
            return t + 1, None

        scan(step, 0, counts)

    with pytest.raises(ValueError, match=r"'count'.*step 2|step 2.*'count'"):
        run(quick_kernel(model), np.array([1, 0, 3, 2, 0, 1]))


def test_an_observation_of_infinite_density_is_traced_to_step_and_site():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))

        def step(t, y):
            x = numpyro.sample("x", dist.Normal(0.0, scale))
            sharp = jnp.where(t == 3, 0.0, 0.5)
            numpyro.sample("y", dist.Normal(jnp.where(t == 3, y, x), sharp, validate_args=False), obs=y)
            return t + 1, None

        scan(step, 0, y)

    with pytest.raises(ValueError, match=r"'y'.*step 3|step 3.*'y'"):
        run(quick_kernel(model), SERIES)
