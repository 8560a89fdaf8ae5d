"""The choice of a sampler: read off the model, nothing compiled."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

import sojourn as sj
from sojourn._contract import trace_model
from sojourn.inference._auto import choose_engine


def choose(model):
    return choose_engine(model, (), {}, trace_model(model, (), {}, key=jax.random.key(0)))


def normal(size):
    def model():
        numpyro.sample("x", dist.Normal(jnp.zeros(size), 1.0).to_event(1))

    return model


def hierarchy(size):
    def model():
        tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
        with numpyro.plate("group", size):
            numpyro.sample("theta", dist.Normal(0.0, tau))

    return model


def walled(size):
    """The same hierarchy, not centred."""

    def model():
        tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
        with numpyro.plate("group", size):
            numpyro.deterministic("theta", tau * numpyro.sample("raw", dist.Normal(0.0, 1.0)))

    return model


@pytest.mark.parametrize(
    ("model", "engine", "words"),
    [
        (normal(1), "nuts", "1 latent number every sampler"),
        (normal(9), "nuts", "9 latent numbers"),
        (normal(10), "mclmc", "no hierarchy of scales"),
        (hierarchy(20), "nuts", "the prior of 'theta' depends on 'tau'"),
        (hierarchy(200), "nuts", "a funnel"),
        (walled(20), "langevin", "'tau' is bounded"),
    ],
)
def test_rules(model, engine, words):
    chosen, why = choose(model)
    assert chosen == engine
    assert words in why


def test_the_size_is_that_of_the_unconstrained_latents():
    """A point of the simplex with 10 corners is 9 numbers."""

    def model():
        numpyro.sample("p", dist.Dirichlet(jnp.ones(10)))

    assert choose(model)[0] == "nuts"


def test_a_hierarchy_without_scales_is_none():
    def model():
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(mean, 1.0).expand([20]).to_event(1))

    assert choose(model)[0] == "mclmc"


def test_fit_says_what_it_chose(capsys):
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = sj.fit(
        model, jnp.ones(3), engine="auto", num_warmup=50, num_samples=50, num_chains=1, progress_bar=False
    )
    assert fit.attrs["engine"] == "nuts"
    assert fit.attrs["engine_choice"].startswith("NUTS: with 1 latent number")
    assert capsys.readouterr().out == ""
