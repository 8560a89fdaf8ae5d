from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import NUTS

import sojourn as sj
from sojourn.models import hidden_markov


def normal_mean(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


class Overconfident(NUTS):
    """NUTS on a likelihood counted twice: what calibration is there to find."""

    def __init__(self, model):
        def twice(y):
            with numpyro.handlers.scale(scale=2.0):
                numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0.0, 2.0)), 1.0), obs=y)

        super().__init__(twice)


def test_right_and_wrong_posteriors():
    settings = {"num_simulations": 300, "num_samples": 1000, "num_warmup": 200, "progress_bar": False}
    # The level is 1 %: of the seeds tried 1 and 2 pass (p = 0.056, 0.68) and 0 does not (p = 0.0006).
    assert sj.calibrate(normal_mean, jnp.zeros(4), seed=1, **settings).ok
    assert not sj.calibrate(normal_mean, jnp.zeros(4), engine=Overconfident, **settings).ok


def test_same_seed_same_ranks():
    settings = {"num_simulations": 4, "num_samples": 120, "num_warmup": 50, "progress_bar": False}
    one, two = (sj.calibrate(normal_mean, jnp.zeros(4), **settings) for _ in range(2))
    np.testing.assert_array_equal(one.ranks["mu"], two.ranks["mu"])


def test_prior_that_depends_on_the_data():
    model = partial(hidden_markov.poisson, num_states=2)
    with pytest.raises(ValueError, match="The prior depends on the data"):
        sj.calibrate(
            model, jnp.arange(20), num_simulations=2, num_samples=100, num_warmup=10, progress_bar=False
        )


def test_bad_input():
    with pytest.raises(ValueError, match="needs an example of the data"):
        sj.calibrate(normal_mean)
    with pytest.raises(ValueError, match="`num_ranked` \\(99\\) cannot exceed"):
        sj.calibrate(normal_mean, jnp.zeros(3), num_samples=50)


def two_instruments(readings):
    """Looks at its data before it is traced, and has them at two sites."""
    first, second = np.asarray(readings["first"]), np.asarray(readings["second"])
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("first", dist.Normal(mu, 0.1), obs=first)
    numpyro.sample("second", dist.Normal(2.0 * mu, 0.1), obs=second)


def test_data_at_several_sites_that_are_read_on_the_host():
    """New data at both sites, or ranks are all 0 or 99.

    The posteriors are a twentieth as wide as the prior: with the example in place of new data, or new
    data at one site only, 30 simulations give p < 1e-6.
    """
    example = {"first": np.zeros(3), "second": np.zeros(4)}
    result = sj.calibrate(
        two_instruments,
        example,
        num_simulations=30,
        num_samples=300,
        num_warmup=200,
        seed=1,
        progress_bar=False,
    )
    assert set(result.ranks.data_vars) == {"mu", "log_likelihood"}
    assert result.ok, str(result)


def minibatches(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=5) as chosen:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[chosen])


def test_minibatches():
    settings = {"num_simulations": 2, "num_samples": 100, "num_warmup": 10, "progress_bar": False}
    result = sj.calibrate(minibatches, jnp.zeros(20), engine="stochastic_gradient", **settings)
    assert set(result.ranks.data_vars) == {"mu", "log_likelihood"}
    with pytest.raises(ValueError, match="Plate 'data' takes 5 of 20 elements, and nuts needs all"):
        sj.calibrate(minibatches, jnp.zeros(20), **settings)


def two_coins(heads):
    stay = numpyro.sample("stay", dist.Beta(6.0, 2.0))

    def step(coin, h):
        coin = numpyro.sample("coin", dist.Bernoulli(jnp.where(coin == 1, stay, 1.0 - stay)))
        numpyro.sample("heads", dist.Bernoulli(jnp.where(coin == 1, 0.9, 0.2)), obs=h)
        return coin, None

    scan(step, 0, heads)


@pytest.mark.slow
def test_discrete_path_is_summed_out():
    result = sj.calibrate(
        two_coins, jnp.zeros(10, int), num_simulations=2, num_samples=100, num_warmup=10, progress_bar=False
    )
    assert set(result.ranks.data_vars) == {"stay", "log_likelihood"}


def test_models_and_engines_that_cannot_be_calibrated():
    with pytest.raises(ValueError, match="the engine 'map' finds a single point"):
        sj.calibrate(normal_mean, jnp.zeros(3), engine="map")
    with pytest.raises(ValueError, match="The model observes nothing"):
        sj.calibrate(normal_mean, None)

    def transposed(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        scan(lambda c, x: (c, numpyro.sample("y", dist.Normal(mu, 1.0).expand([2]), obs=x)), 0, y.T)

    with pytest.raises(ValueError, match="it has shape \\(2, 5\\), and site 'y' \\(5, 2\\)"):
        sj.calibrate(transposed, jnp.zeros((2, 5)))

    def overflowing(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.LogNormal(200.0 + mu, 1.0), obs=y)

    with pytest.raises(ValueError, match="Data set 0 that the model simulates at site 'y' is not finite"):
        sj.calibrate(overflowing, jnp.ones(3), progress_bar=False)


@pytest.mark.slow
def test_two_state_poisson_is_calibrated():
    """Simulation-based calibration of the two-state Poisson hidden Markov model under NUTS."""
    model = partial(hidden_markov.poisson, num_states=2, rate_prior=dist.LogNormal(2.0, 0.7))
    result = sj.calibrate(
        model,
        jnp.zeros(60, int),
        num_simulations=400,
        num_samples=500,
        num_warmup=300,
        seed=1,
        progress_bar=False,
    )
    assert result.ok, str(result)
    assert not jax.config.jax_enable_x64
