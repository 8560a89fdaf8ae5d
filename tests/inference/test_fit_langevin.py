"""The Langevin engines through ``sj.fit``: groups, statistics, the bias of a step, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import sojourn as sj
from sojourn.inference import _chains
from sojourn.inference._step_bias import shift_between

Y = jnp.array([0.3, -0.8, 1.1, 0.4])


def model(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = numpyro.sample("scale", dist.Gamma(3.0, 3.0))
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def fitted(engine, **settings):
    settings = {"num_warmup": 200, "num_samples": 200, "num_chains": 2, "progress_bar": False, **settings}
    return sj.fit(model, Y, engine=engine, **settings)


def test_langevin_is_malt_and_exact():
    fit = fitted("langevin")
    assert fit.attrs["engine"] == "langevin"
    assert "step_bias" not in fit.attrs
    assert {"lp", "energy", "n_steps", "acceptance_rate", "step_size", "diverging"} <= set(fit.sample_stats)
    assert fit.log_likelihood["y"].dims == ("chain", "draw", "time")
    assert "bfmi" in {finding.name for finding in sj.check(fit).findings}


def test_an_unadjusted_sampler_has_its_bias_measured():
    """BAOAB at a step of 1.2 on a skew posterior: the rerun at half of it sees the difference."""
    engine = partial(
        sj.UnderdampedLangevin, solver="baoab", step_size=1.2, trajectory_length=3.0, adapt_step_size=False
    )
    fit = fitted(engine, num_samples=4000, num_warmup=500)
    finding = next(f for f in sj.check(fit).findings if f.name == "step_bias")
    assert not finding.ok
    assert finding.where in ("mean", "scale")
    assert "tolerance" in finding.advice
    assert np.unique(fit.posterior["scale"]).size > 7000  # at 1.5 no chain moves at all: all steps diverge


def test_a_step_at_which_nothing_moves_is_said(monkeypatch):
    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)  # looks after every step
    engine = partial(
        sj.UnderdampedLangevin, solver="baoab", step_size=1.5, trajectory_length=3.0, adapt_step_size=False
    )
    with pytest.warns(UserWarning, match=r"Each of the first \d+ transitions diverged, and hardly one moved"):
        assert fitted(engine, num_samples=1000, num_warmup=500).attrs["partial"] == 1


def test_bias_is_not_measured_where_it_is_not_wanted():
    engine = partial(sj.UnderdampedLangevin, solver="baoab", measures_bias=False)
    assert "step_bias" not in fitted(engine).attrs


def test_minibatches_leave_the_groups_whole():
    def batched(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
        with numpyro.plate("data", len(y), subsample_size=5) as chosen:
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[chosen])

    y = jnp.arange(40.0) / 10.0
    settings = {"num_warmup": 100, "num_samples": 50, "num_chains": 2, "progress_bar": False}
    fit = sj.fit(batched, y, engine="stochastic_gradient", **settings)
    assert np.allclose(fit.observed_data["y"], y)
    assert fit.log_likelihood["y"].shape == (2, 50, 40)
    assert "temperature" in fit.sample_stats
    for engine, name in {"langevin": "MALT", "nuts": "nuts", "auto": "auto"}.items():
        with pytest.raises(ValueError, match=f"Plate 'data' takes 5 of 40 elements, and {name} needs all"):
            sj.fit(batched, y, engine=engine, **settings)


@pytest.mark.parametrize("engine", ["nuts", "svi", "langevin", "mclmc", "auto"])
def test_a_stopped_gradient_is_found_by_every_engine_that_follows_it(engine):
    def trap(y):
        scale = jnp.exp(jax.lax.stop_gradient(numpyro.sample("log_scale", dist.Normal(0.0, 3.0))))
        numpyro.sample("other", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, scale), obs=y)

    with pytest.raises(ValueError, match="Along site 'log_scale' the log density changes by"):
        sj.fit(trap, Y, engine=engine, progress_bar=False)


def test_a_density_without_gradient():
    def halting(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        steps = jax.lax.while_loop(lambda c: c[0] < 3.0, lambda c: (c[0] + 1.0, c[1] * x), (0.0, 1.0))[1]
        numpyro.sample("y", dist.Normal(steps, 1.0), obs=y)

    with pytest.raises(ValueError, match="The log density has no gradient, and nuts follows gradients"):
        sj.fit(halting, Y, progress_bar=False)


def test_shift_between():
    """0.3 of a standard deviation, and a spread wider by 20 %, out of 4 x 2000 independent draws."""
    one, two = np.random.default_rng(0).normal(size=(2, 4, 2000, 2))
    same = shift_between({"x": one}, {"x": two})
    assert same["step_bias"] == 0.0
    assert 0.02 < same["step_bias_seen"] < 0.08
    moved = shift_between({"x": one}, {"x": two + np.array([0.0, 0.3])})
    assert 0.2 < moved["step_bias"] < 0.3
    assert moved["step_bias_where"] == "x[1]"
    wider = shift_between({"x": one}, {"x": two * np.array([1.2, 1.0])})
    assert 0.1 < wider["step_bias"] < 0.2
    assert wider["step_bias_where"] == "x[0]"


def test_heavy_tails_do_not_matter():
    one, two = np.random.default_rng(1).standard_cauchy(size=(2, 4, 2000))
    assert shift_between({"x": one}, {"x": two})["step_bias"] == 0.0
