"""Runs that go wrong say so where they do."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

import sojourn as sj
from sojourn.inference import _chains
from sojourn.inference._variational import Variational, _Search
from sojourn.inference._watch import ChainWatch, stuck_chains

SHORT = {"num_samples": 500, "num_warmup": 200, "num_chains": 2, "progress_bar": False}


def test_chains_in_different_modes_stop_and_say_so(monkeypatch):
    """Starts lie about half-way between two modes, of which one is e^-12 as probable."""

    def model(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1000.0), infer={"init": 25.24})
        numpyro.factor("modes", jnp.logaddexp(-0.5 * x**2, -0.5 * (x - 50.0) ** 2 - 12.0))
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    monkeypatch.setattr(_chains, "_CALL_SECONDS", 1e-6)  # looks after every step
    with pytest.warns(UserWarning, match="Chains have settled in different modes: chain"):
        fit = sj.fit(model, 0.0, seed=1, **{**SHORT, "num_chains": 4})
    assert fit.attrs["partial"] == 1
    assert "infer={'init': value}" in fit.attrs["stopped"]
    assert fit.posterior.sizes["draw"] < 500
    on = sj.fit(model, 0.0, seed=1, stop_early=False, **{**SHORT, "num_chains": 4})
    assert on.posterior.sizes["draw"] == 500
    assert "stopped" not in on.attrs


def test_labels_are_no_modes():
    rng = np.random.default_rng(0)
    assert stuck_chains(rng.normal(size=(4, 400))) is None


def test_chains_that_drift_have_not_settled():
    levels = np.random.default_rng(0).normal(size=(2, 400)) + np.linspace(0, 60, 400) * np.array(
        [[0.0], [1.0]]
    )
    assert stuck_chains(levels) is None


def test_a_slight_difference_is_none():
    levels = np.random.default_rng(0).normal(size=(3, 400)) + np.array([[0.0], [0.0], [2.0]])
    assert stuck_chains(levels) is None


class Drift(MCMCKernel):
    """Walks to the right, whatever the density there."""

    sample_field = "z"
    stat_fields = ("potential_energy",)

    def __init__(self, model):
        self.model = model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        lead = () if is_prng_key(rng_key) else rng_key.shape
        return _Drifting({"x": jnp.zeros(lead)}, jnp.zeros(lead), rng_key)

    def sample(self, state, model_args, model_kwargs):
        x = state.z["x"] + 0.1
        return state._replace(z={"x": x}, potential_energy=-jnp.sqrt(3.05 - x))


class _Drifting(NamedTuple):
    z: Any
    potential_energy: Any
    rng_key: Any


def narrow(y):
    """Beyond 3 there is no density."""
    x = numpyro.sample("x", dist.Normal(0.0, 3.0))
    numpyro.sample("y", dist.Normal(jnp.sqrt(3.05 - x), 1.0), obs=y)


@pytest.mark.parametrize(
    ("warmup", "when"), [(10, r"draw 21 \(iteration 31\)"), (60, "iteration 31 of the warm-up")]
)
def test_a_position_that_is_not_finite_is_named(warmup, when):
    with pytest.raises(RuntimeError, match=rf"Chain 0 is not finite from {when} on: Site 'y'"):
        sj.fit(narrow, 1.0, engine=Drift, **{**SHORT, "num_warmup": warmup})


def test_a_gradient_that_is_nan_is_named():
    """The density is finite, its gradient 0 * inf: no step of NUTS is ever accepted."""

    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        dead = jnp.where(x > 1e6, jnp.sqrt(x - 1e6), 0.0)
        numpyro.sample("y", dist.Normal(dead, scale), obs=y)

    with pytest.raises(RuntimeError, match=r"No start was found .*: The gradient .* 'x' is nan"):
        sj.fit(model, np.ones(3), **SHORT)


class _Kernel:
    sample_field = "z"
    follows_gradient = True


def watch(num_warmup=100):
    return ChainWatch(lambda: None, (), {}, _Kernel(), num_warmup)


class _State:
    def __init__(self, step_size):
        self.z, self.step_size = {"x": np.zeros(2)}, np.asarray(step_size)


@pytest.mark.parametrize(("size", "word"), [(1e-14, "collapsed"), (1e14, "exploded"), (np.nan, "collapsed")])
def test_step_sizes(size, word):
    state, good = _State([0.1, size]), [{"x": np.zeros(2)}]
    with pytest.raises(RuntimeError, match=f"The step size of chain 1 has {word}"):
        watch().look([state], good, 150, np.array([-1, -1]))
    watch().look([state], good, 5, np.array([-1, -1]))  # in its first steps it means nothing


def test_a_step_size_may_swing_out_and_come_back():
    eye, good, fine = watch(num_warmup=1000), [{"x": np.zeros(2)}], np.array([-1, -1])
    eye.look([_State([0.1, 1e20])], good, 100, fine)
    eye.look([_State([0.1, 0.2])], good, 200, fine)
    eye.look([_State([0.1, 1e20])], good, 300, fine)
    eye.look([_State([0.1, 1e20])], good, 499, fine)
    with pytest.raises(RuntimeError, match="exploded"):
        eye.look([_State([0.1, 1e20])], good, 500, fine)


def test_when_it_was():
    state, good = _State([0.1, 0.1]), [{"x": np.zeros(2)}]
    with pytest.raises(RuntimeError, match="Chain 1 is not finite from iteration 41 of the warm-up on"):
        watch().look([state], good, 50, np.array([-1, 40]))
    with pytest.raises(RuntimeError, match=r"Chain 0 is not finite from draw 21 \(iteration 121\) on"):
        watch().look([state], good, 150, np.array([120, 140]))


def test_transitions_that_all_diverge():
    rows = {"potential_energy": np.full((2, 250), 3.0), "diverging": np.ones((2, 250), bool)}
    assert "Each of the first 250 transitions diverged" in watch().weigh(rows)
    rows["potential_energy"] = np.random.default_rng(0).normal(size=(2, 250))  # they move nevertheless
    assert watch().weigh(rows) is None


def test_particles_that_are_all_dead():
    """Half of the way nothing can have produced the data."""
    from numpyro.contrib.control_flow import scan

    def model(y):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 0.1))
            numpyro.factor("near", jnp.where(jnp.abs(x - y) < 0.5, 0.0, -jnp.inf))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, 0.0, y)

    with pytest.raises(ValueError, match="weight zero at step 2: 'near' has density zero"):
        sj.fit(model, np.array([0.0, 0.1, 9.0, 9.1]), engine="particle_gibbs", **SHORT)


def test_an_elbo_that_is_not_finite():
    def model(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("hole", jnp.where(jnp.abs(x) < 50.0, jnp.nan, 0.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises((RuntimeError, ValueError), match=r"not finite|Cannot find valid"):
        sj.fit(model, 1.0, engine="svi", progress_bar=False)


def test_an_elbo_that_falls():
    search, refuse = _Search(None, 1), Variational()._refuse
    noise = np.random.default_rng(0).normal(size=(1, 250))

    def more(level):
        search.take(None, level + noise, 0.01)
        refuse(search, lambda *_: None)

    for level in (100.0, 200.0, 300.0, 400.0):
        more(level)
    with pytest.raises(
        RuntimeError, match=r"fallen over the last 5 blocks, to -500 from -99\.99 at the start"
    ):
        more(500.0)
