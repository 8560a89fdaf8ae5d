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
from sojourn.inference import _malt as malt
from sojourn.inference._malt import MALT
from sojourn.inference._mclmc import MCLMC, AdjustedMCLMC
from sojourn.inference._underdamped import UnderdampedLangevin
from tests.exact import test_langevin_solvers as solvers


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


def check_gaussian(mcmc, sds, tolerance=0.03):
    """Means zero to five standard errors; sds along the axes within ``tolerance`` of ``sds`` (one if exact)."""
    x = along_axes(mcmc)
    scores = [z_score(x[..., n], 0.0) for n in range(10)]
    ratios = np.array([spread(x[..., n], 1.0, 0.0) for n in range(10)]) / sds
    assert np.abs(scores).max() < 5.0, scores
    assert np.abs(ratios - 1.0).max() < tolerance, ratios


@pytest.mark.parametrize(
    ("kernel", "draws"),
    [
        pytest.param(MALT(gaussian), 8_000, id="malt"),
        pytest.param(MALT(gaussian, dense_mass=True), 4_000, id="malt-dense", marks=pytest.mark.slow),
        # Trajectories of two steps: one effective draw of the widest axis out of twenty.
        pytest.param(AdjustedMCLMC(gaussian), 30_000, id="adjusted_mclmc", marks=pytest.mark.slow),
    ],
)
def test_exact_kernels_on_a_rotated_gaussian(kernel, draws):
    mcmc = draws_of(kernel, draws=draws)
    check_gaussian(mcmc, 1.0)
    assert not mcmc.get_extra_fields()["diverging"].any()


def test_unadjusted_baoab_on_a_rotated_gaussian():
    """Exact on a Gaussian at every stable step, whatever the scales: nothing but Monte Carlo error is left."""
    mcmc = draws_of(UnderdampedLangevin(gaussian, solver="baoab"), draws=8_000)
    check_gaussian(mcmc, 1.0)
    assert not mcmc.get_extra_fields()["diverging"].any()


@pytest.mark.slow
def test_mclmc_on_a_rotated_gaussian():
    """Tuned to an energy variance of 5e-4 a dimension: the sds it leaves are 1 or 2 % too small at most here.

    The bound is that and the Monte Carlo error; Robnik et al. (2023) tie the bias to the energy variance.
    """
    check_gaussian(draws_of(MCLMC(gaussian), draws=8_000), 0.99, tolerance=0.03)


def biased_by_quicsort(step, friction, scales):
    """Standard deviations along the axes that QUICSORT with this step has, in units of the exact ones.

    In coordinates scaled by ``scales`` the dynamics falls apart along the eigenvectors of the covariance there, and
    along one of variance s it is that of N(0, 1) in time units of sqrt(s): the Lyapunov equation of one linear step.
    """
    variances, axes = np.linalg.eigh(COVARIANCE / np.outer(scales, scales))
    for n, s in enumerate(variances):
        h, gamma = step / np.sqrt(s), friction * np.sqrt(s)
        law = h * np.array([1.0, 1 / 12, 1 / 720])
        variances[n] *= solvers.stationary(lambda *at: solvers.linear_quicsort(*at, h, gamma), law)[0, 0]  # noqa: B023
    there = scales[:, None] * axes
    covariance = there @ np.diag(variances) @ there.T
    return np.sqrt(np.diag(ROTATION.T @ covariance @ ROTATION) / VARIANCES)


@pytest.mark.slow
def test_quicsort_on_a_rotated_gaussian_has_the_bias_that_its_step_implies():
    """A few per cent along the stiffest axis, and there to the per cent what the Lyapunov equation says."""
    mcmc = draws_of(UnderdampedLangevin(gaussian), draws=8_000, fields=("diverging", "step_size"))
    steps = np.asarray(mcmc.get_extra_fields(group_by_chain=True)["step_size"])[:, -1]
    scales = np.asarray(mcmc.last_state.adapt_state.mass_matrix_sqrt_inv, float)
    with jax.enable_x64(True):
        implied = [biased_by_quicsort(float(h), 1.0, c) for h, c in zip(steps, scales, strict=True)]
    implied = np.sqrt(np.mean(np.square(implied), axis=0))
    assert 0.9 < implied.min() < 0.99
    check_gaussian(mcmc, implied)
    assert not mcmc.get_extra_fields()["diverging"].any()


@pytest.mark.slow
def test_adaptive_quicsort_on_a_rotated_gaussian():
    """Each step is held to an error of 0.05 of a site's sd; the bias of the stiffest axis is below 5 %."""
    kernel = UnderdampedLangevin(gaussian, step="adaptive")
    check_gaussian(draws_of(kernel, draws=1_500, warmup=200), 1.0, tolerance=0.06)


# --------------------------------------------------------------------------------------- eight schools, non-centred

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools():
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu + tau * theta, ERRORS), obs=EFFECTS)


def schools_by_quadrature():
    """Posterior mean and sd of mu and of log tau: mu given tau is Gaussian, and log tau is on a grid."""
    log_tau = np.linspace(-14.0, 7.0, 20_001)
    tau = np.exp(log_tau)[:, None]
    total = ERRORS**2 + tau**2
    precision = 1 / 25 + (1 / total).sum(1)
    mean = (EFFECTS / total).sum(1) / precision
    log_weight = (
        stats.halfcauchy.logpdf(tau[:, 0], scale=5.0)
        + log_tau
        - 0.5 * np.log(precision)
        - 0.5 * np.log(total).sum(1)
        + 0.5 * precision * mean**2
        - 0.5 * (EFFECTS**2 / total).sum(1)
    )
    w = np.exp(log_weight - log_weight.max())
    w /= w.sum()
    mu, level = w @ mean, w @ log_tau
    return {
        "mu": (mu, np.sqrt(w @ (1 / precision + (mean - mu) ** 2))),
        "log tau": (level, np.sqrt(w @ (log_tau - level) ** 2)),
    }


def test_the_reference_for_eight_schools():
    """Against moments of a long run of NUTS: sds 3.344 and 1.161, means 4.382 and 0.807, to their last digit or so."""
    exact = schools_by_quadrature()
    np.testing.assert_allclose(exact["mu"], (4.382, 3.344), atol=0.03)
    np.testing.assert_allclose(exact["log tau"], (0.807, 1.161), atol=0.03)


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(MALT(eight_schools), id="malt"),
        pytest.param(AdjustedMCLMC(eight_schools), id="adjusted_mclmc", marks=pytest.mark.slow),
    ],
)
def test_exact_kernels_on_eight_schools(kernel):
    """log tau has a long left tail (skewness about -1): its sd to 0.95 to 1.06."""
    found = draws_of(kernel, draws=6_000).get_samples(group_by_chain=True)
    exact = schools_by_quadrature()
    for name, x in (("mu", found["mu"]), ("log tau", np.log(found["tau"]))):
        mean, sd = exact[name]
        assert abs(z_score(x, mean)) < 5.0, (name, z_score(x, mean))
        assert 0.95 < spread(x, sd, mean) < 1.06, (name, spread(x, sd, mean))


# --------------------------------------------------------------------------- what a wrong Metropolis test would do

STEP = 0.45


def quartic():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("quartic", 0.5 * x**2 - x**4)


def no_test(start, end):
    return jnp.where(jnp.isfinite(end.energy_error), 0.0, end.energy_error)


def without_kicks(start, end):
    return end.potential - start.potential


def with_thermostat(start, end):
    return end.potential - start.potential + 0.5 * jnp.sum(end.velocity**2 - start.velocity**2)


def quartic_score(monkeypatch, error=None):
    """z-score of the mean of x^2 under exp(-x^4), which is Gamma(3/4) / Gamma(1/4), at a fixed step.

    With the exact sd of x^2, and the chains for the least effective size: those of a wrong sampler may run away.
    """
    if error is not None:
        right = malt.baoab_trajectory

        def wrong(key, potential_and_grad, start, *rest):
            end = right(key, potential_and_grad, start, *rest)
            return end._replace(energy_error=error(start, end))

        monkeypatch.setattr(malt, "baoab_trajectory", wrong)
    kernel = MALT(quartic, step_size=STEP, adapt_step_size=False, adapt_mass_matrix=False)
    mcmc = draws_of(kernel, warmup=100, draws=4_000, chains=16, seed=1, fields=("accept_prob",))
    square = np.asarray(mcmc.get_samples(group_by_chain=True)["x"], float) ** 2
    mean = special.gamma(0.75) / special.gamma(0.25)
    size = np.fmax(az.ess(square), len(square))
    score = (square.mean() - mean) * np.sqrt(size / (0.25 - mean**2))
    return score, mcmc.get_extra_fields()["accept_prob"].mean()


def test_malt_at_a_large_step_on_a_quartic_potential(monkeypatch):
    score, accept_prob = quartic_score(monkeypatch)
    assert abs(score) < 4.0
    assert accept_prob < 0.98


@pytest.mark.parametrize("error", [no_test, without_kicks, with_thermostat])
def test_wrong_metropolis_tests_are_caught(monkeypatch, error):
    """No test at all; the kicks left out of the energy error; the thermostat counted into it."""
    score, _ = quartic_score(monkeypatch, error)
    assert abs(score) > 6.0


# ---------------------------------------------------------------------------------------------- a block of Gibbs

CHOICES, CENTRES, SEEN, COUNT = np.array([0.3, 0.7]), np.array([-1.0, 1.5]), 0.4, 4


def mixture():
    c = numpyro.sample("c", dist.Categorical(jnp.asarray(CHOICES)))
    x = numpyro.sample("x", dist.Normal(jnp.asarray(CENTRES)[c], 0.8))
    rate = numpyro.sample("rate", dist.Gamma(3.0, 2.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=SEEN)
    numpyro.sample("n", dist.Poisson(rate), obs=COUNT)


def test_malt_is_a_block_of_gibbs():
    """Against the component by Bayes' rule, the Gaussian within it, and the conjugate Gamma(7, 3) of the rate."""
    kernel = Gibbs([(DiscreteGibbs(mixture), ["c"]), (MALT(mixture), None)])
    mcmc = MCMC(
        kernel, num_warmup=500, num_samples=4_000, num_chains=4, chain_method=jax.vmap, progress_bar=False
    )
    mcmc.run(jax.random.key(0))
    found = {name: np.asarray(x, float) for name, x in mcmc.get_samples(group_by_chain=True).items()}
    second = CHOICES * stats.norm.pdf(SEEN, CENTRES, np.sqrt(1 + 0.8**2))
    second = second[1] / second.sum()
    within = (CENTRES / 0.8**2 + SEEN) / (1 / 0.8**2 + 1)
    mean = (1 - second) * within[0] + second * within[1]
    square = (1 - second) * within[0] ** 2 + second * within[1] ** 2 + 1 / (1 / 0.8**2 + 1)
    for x, expected in (
        (found["c"], second),
        (found["x"], mean),
        (found["x"] ** 2, square),
        (found["rate"], 7 / 3),
        (found["rate"] ** 2, 7 / 9 + (7 / 3) ** 2),
    ):
        assert abs(z_score(x, expected)) < 4.0
        assert az.ess(x) > 1_000


# ------------------------------------------------------------------------------------ a gradient that is kept back


def funnel(kept_back):
    x = numpyro.sample("x", dist.Normal(0.0, 3.0))
    scale = jnp.exp(x / 2)
    scale = jax.lax.stop_gradient(scale) if kept_back else scale
    numpyro.sample("y", dist.Normal(0.0, scale).expand([9]).to_event(1))


@pytest.mark.parametrize("kernel", [MALT, AdjustedMCLMC, MCLMC, UnderdampedLangevin])
def test_a_funnel_whose_scale_keeps_its_gradient_back_is_refused(kernel):
    """Samplers that follow that gradient sample another law; NUTS on it is slow at a step a hundred times smaller."""
    with pytest.raises(
        ValueError, match=r"Along site 'x' the log density changes by .* where its gradient says"
    ):
        kernel(funnel).init(jax.random.key(0), 100, None, (True,), {})


def test_the_funnel_itself_is_not_refused():
    MALT(funnel).init(jax.random.key(0), 100, None, (False,), {})


# ---------------------------------------------------------------------------------- simulation-based calibration


def unknown_level_and_scale(y):
    sigma = numpyro.sample("sigma", dist.Gamma(4.0, 4.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [MALT, AdjustedMCLMC])
def test_ranks_of_the_truth_are_uniform(engine):
    """At the level of 1 % for each engine, with a seed at which a right sampler passes."""
    result = sj.calibrate(
        unknown_level_and_scale,
        jnp.zeros(5),
        engine=engine,
        num_simulations=300,
        num_samples=1_500,
        num_warmup=500,
        seed=1,
        progress_bar=False,
    )
    assert result.ok, str(result)
