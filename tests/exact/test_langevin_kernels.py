"""The Langevin samplers against laws known in closed form or by quadrature, and wrong variants that must fail.

Means are held to five standard errors, sd / sqrt(effective sample size) with ArviZ's estimate of the latter (Vehtari
et al. 2021). The relative error of a standard deviation is sqrt(1 / (2 ESS of the squares)): with 8 000 draws or more
of an effective size of 5 000 upwards 1 %, so that three of them fit in 0.97 to 1.03.
"""

from __future__ import annotations

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from numpyro.infer.gibbs import DiscreteGibbs, Gibbs
from scipy import special, stats

import sojourn as sj
from sojourn.inference._malt import MALT
from sojourn.inference._mclmc import MCLMC, AdjustedMCLMC
from sojourn.inference._underdamped import UnderdampedLangevin


def draws_of(kernel, *args, warmup=500, draws=2500, chains=4, seed=0, fields=("diverging",), **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), *args, extra_fields=fields, **kwargs)
    return mcmc


def z_score(x, mean):
    """(average - mean) / standard error for draws of shape (chains, draws)."""
    x = np.asarray(x, float)
    return (x.mean() - mean) * np.sqrt(az.ess(x)) / x.std()


def spread(x, sd, mean):
    return np.sqrt(np.mean((np.asarray(x, float) - mean) ** 2)) / sd


# ------------------------------------------------------------------ a rotated Gaussian of condition number 100

_rng = np.random.default_rng(7)
ROTATION = np.linalg.qr(_rng.normal(size=(10, 10)))[0]
VARIANCES = np.geomspace(0.05, 5.0, 10)
COVARIANCE = ROTATION @ np.diag(VARIANCES) @ ROTATION.T


def gaussian():
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(10), jnp.asarray(COVARIANCE)))


def along_axes(mcmc):
    """Draws along the principal axes, in standard deviations: shape (chains, draws, 10)."""
    return np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float) @ ROTATION / np.sqrt(VARIANCES)


def sites_of(mcmc):
    return np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float) / np.sqrt(np.diag(COVARIANCE))


def check_gaussian(mcmc, low=0.97, high=1.03):
    for x in (along_axes(mcmc), sites_of(mcmc)):
        scores = [z_score(x[..., n], 0.0) for n in range(10)]
        ratios = np.array([spread(x[..., n], 1.0, 0.0) for n in range(10)])
        assert np.abs(scores).max() < 5.0, scores
        assert low < ratios.min(), ratios
        assert ratios.max() < high, ratios
    return ratios


EXACT = {
    "malt": MALT(gaussian),
    "malt, dense": MALT(gaussian, dense_mass=True),
    "adjusted mclmc": AdjustedMCLMC(gaussian),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_kernels_on_a_rotated_gaussian(name):
    mcmc = draws_of(EXACT[name], draws=4000)
    check_gaussian(mcmc)
    assert not mcmc.get_extra_fields()["diverging"].any()


APPROXIMATE = {
    # Tuned to an energy variance of 5e-4 a dimension; the bias of second moments that this leaves on a Gaussian is
    # about 1 % (Robnik et al. 2023, figure 3), the Monte Carlo error that of the exact kernels.
    "mclmc": (MCLMC(gaussian), 0.96, 1.04),
    # The stiffest axis sees the step in units of its own sd: with tolerance 0.02 at most about 1 (friction 1), where
    # the Lyapunov equation gives a variance of 1 - 0.0065; with 1.5 it would be 1 - 0.022.
    "quicsort": (UnderdampedLangevin(gaussian), 0.96, 1.04),
    # Exact on a Gaussian for any stable step: nothing but Monte Carlo error.
    "baoab": (UnderdampedLangevin(gaussian, solver="baoab"), 0.97, 1.03),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_kernels_on_a_rotated_gaussian(name):
    kernel, low, high = APPROXIMATE[name]
    mcmc = draws_of(kernel, draws=4000)
    check_gaussian(mcmc, low, high)
    assert not mcmc.get_extra_fields()["diverging"].any()
