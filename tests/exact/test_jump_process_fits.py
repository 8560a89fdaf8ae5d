"""Fits of jump processes against posteriors known otherwise: Gamma laws, quadrature, the truth behind simulated data."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, init_to_median
from scipy import stats

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.distributions import PanelJumpProcess
from sojourn.models import jump_process as mjp

ONE = {"num_chains": 1, "progress_bar": False}


@pytest.fixture(scope="module", autouse=True)
def optimised():
    """Unlike their neighbours these compile for longer than they run: as in the rest of the suite."""
    return


def agrees(rates, mean, sd, kurtosis=3.0, errors=4.5):
    """Mean and sd of dependent draws ``(chain, draw, move)`` within Monte Carlo error of exact ones.

    The error of the mean is sd / sqrt(ess); that of the sd, for draws with that kurtosis, sd sqrt((k - 1) / 4 ess),
    with the effective size of the squared deviations.
    """
    ess = _arviz.ess(rates.to_dataset(name="x"))["x"].values
    away = ((rates - rates.mean(("chain", "draw"))) ** 2).to_dataset(name="x")
    ess_sd = np.minimum(_arviz.ess(away)["x"].values, ess)
    score = (rates.mean(("chain", "draw")).values - mean) / (sd / np.sqrt(ess))
    score_sd = (rates.std(("chain", "draw")).values / sd - 1.0) / np.sqrt((kurtosis - 1.0) / (4.0 * ess_sd))
    assert ess.min() > 100  # the comparison means something
    assert np.abs(score).max() < errors, (score, ess)
    assert np.abs(score_sd).max() < errors, (score_sd, ess_sd)


# --------------------------------------------------------------------------------------------- complete paths


def test_complete_paths_are_conjugate():
    """With a Gamma(a, b) prior a rate is Gamma(a + N, b + T)."""
    a, b, off = 2.0, 1.5, ~np.eye(3, dtype=bool)
    paths = mjp.stack_paths(
        [[0.0, 0.5, 1.25, 1.5, 2.5, 2.75], [0.0, 1.0, 1.75], [0.0]],
        [[0, 2, 1, 0, 1, 0], [1, 0, 1], [2]],
        [3.0, 2.0, 1.0],
    )
    duration = np.array([3.0, 2.0, 1.0])
    count, dwell = np.zeros((3, 3)), np.zeros(3)
    for path, end in zip(paths, duration, strict=True):
        state = path[:, 1].astype(int)
        np.add.at(dwell, state, np.diff(path[:, 0], append=end))
        np.add.at(count, (state[:-1], state[1:]), 1.0)
    fit = sj.fit(
        mjp.complete,
        paths,
        duration,
        num_states=3,
        rate_prior=dist.Gamma(a, b),
        num_warmup=200,
        num_samples=1000,
        **ONE,
    )
    exact = stats.gamma((a + count)[off], scale=1.0 / (b + np.repeat(dwell, 2)))
    kurtosis = 3.0 + 6.0 / (a + count)[off]
    agrees(_arviz.group(fit, "posterior")["rate"], exact.mean(), exact.std(), kurtosis)


# --------------------------------------------------------------------------------------- two states, quadrature


def quadrature(log_density, low, high, points=241):
    """Mean and sd of the logarithms of two rates, and kurtosis, from a density on a grid of the logarithms."""
    grid = np.linspace(low, high, points)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    weight = log_density(x, y)
    weight = np.exp(weight - weight.max())
    edge = max(weight[[0, -1]].max(), weight[:, [0, -1]].max())
    assert edge < 1e-6  # nothing is cut off
    weight /= weight.sum()
    means = np.array([(weight * z).sum() for z in (x, y)])
    moments = [
        np.array([(weight * (z - m) ** k).sum() for z, m in zip((x, y), means, strict=True)]) for k in (2, 4)
    ]
    return means, np.sqrt(moments[0]), moments[1] / moments[0] ** 2


def moves(x, y, dt):
    """exp(Q dt) of two states for log-rates x (0 -> 1) and y (1 -> 0), (..., 2, 2)."""
    up, down = np.exp(x), np.exp(y)
    total = up + down
    gone = -np.expm1(-total * dt)
    p01, p10 = up / total * gone, down / total * gone
    return np.stack([np.stack([1 - p01, p01], -1), np.stack([p10, 1 - p10], -1)], -2)


SEEN = np.array(
    [
        [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1],
        [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0],
    ]
)
CLOCK = np.concatenate([np.arange(10) * 0.5, 5.0 + np.arange(10) * 1.0])
PANEL_PRIOR = (-0.5, 0.7)


@pytest.fixture(scope="module")
def exact_panel():
    def log_density(x, y):
        total = sum(stats.norm.logpdf(z, *PANEL_PRIOR) for z in (x, y))
        for states in SEEN:
            for dt, i, j in zip(np.diff(CLOCK), states[:-1], states[1:], strict=True):
                total = total + np.log(moves(x, y, dt)[..., i, j])
        return total

    return quadrature(log_density, -4.0, 3.5)


@pytest.mark.parametrize(
    "engine",
    [pytest.param("nuts", marks=pytest.mark.slow), "langevin", pytest.param("svi", marks=pytest.mark.slow)],
)
def test_panel_of_two_states(exact_panel, engine):
    """NUTS and MALT within Monte Carlo error; a normal guide of a nearly normal posterior within a tenth of its width."""
    mean, sd, kurtosis = exact_panel
    fit = sj.fit(
        mjp.panel,
        SEEN,
        CLOCK,
        num_states=2,
        rate_prior=dist.LogNormal(*PANEL_PRIOR),
        max_rate=40.0,  # beyond the grid of the quadrature
        engine=engine,
        num_warmup=300,
        num_samples=1000 if engine == "langevin" else 2000,
        seed=1,
        **ONE,
    )
    rates = np.log(_arviz.group(fit, "posterior")["rate"])
    if engine != "svi":
        agrees(rates, mean, sd, kurtosis)
        return
    away = (rates.mean(("chain", "draw")).values - mean) / sd
    assert np.abs(away).max() < 0.1
    assert np.abs(rates.std(("chain", "draw")).values / sd - 1.0).max() < 0.1


# ---------------------------------------------------------------------------------- noise: path and marginal form

CONFUSION = np.array([[0.85, 0.15], [0.2, 0.8]])
NOISY = np.array([[0, 0, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 0, 0, 0]])
NOISY_CLOCK = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 4.5])
START = np.array([0.6, 0.4])
NOISY_PRIOR = (-0.5, 0.7)


@pytest.fixture(scope="module")
def exact_noisy():
    def log_density(x, y):
        total = sum(stats.norm.logpdf(z, *NOISY_PRIOR) for z in (x, y))
        for labels in NOISY:
            row = START * CONFUSION[:, labels[0]] * np.ones((*x.shape, 1))
            for dt, label in zip(np.diff(NOISY_CLOCK), labels[1:], strict=True):
                row = np.einsum("...i,...ij->...j", row, moves(x, y, dt)) * CONFUSION[:, label]
            total = total + np.log(row.sum(-1))
        return total

    return quadrature(log_density, -4.5, 3.5)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("nuts", marks=pytest.mark.slow),
        "blocked_gibbs",
        pytest.param("particle_gibbs", marks=pytest.mark.slow),
    ],
)
def test_noisy_panel_in_both_forms(exact_noisy, engine):
    """The path summed out; drawn exactly in turn with the rates; drawn by conditional SMC in turn with the rates."""
    mean, sd, kurtosis = exact_noisy
    fit = sj.fit(
        mjp.misclassified,
        NOISY,
        NOISY_CLOCK,
        num_states=2,
        confusion=CONFUSION,
        initial=START,
        rate_prior=dist.LogNormal(*NOISY_PRIOR),
        max_rate=40.0,
        path=engine != "nuts",
        engine=engine,
        num_warmup=300,
        num_samples=4000 if engine == "particle_gibbs" else 1500,
        seed=1,
        **ONE,
    )
    posterior = _arviz.group(fit, "posterior")
    agrees(np.log(posterior["rate"]), mean, sd, kurtosis)
    if engine != "nuts":
        assert posterior["hidden_state"].dims == ("chain", "draw", "time", "series")


# ------------------------------------------------------------------------------------------ the flashing ratchet

TRUTH = mjp.flashing_ratchet(1.0, 1.0, 1.0)
RATCHET_CLOCK = np.linspace(0.0, 2.5, 100)


@pytest.fixture(scope="module")
def ratchet_panel():
    """5000 paths of the flashing ratchet with V = r = b = 1, at rest, looked at 100 times until 2.5."""
    law = PanelJumpProcess(
        TRUTH,
        mjp.stationary_law(TRUTH),
        np.broadcast_to(RATCHET_CLOCK, (5000, 100)),
        max_rate=20.0,
    )
    return np.asarray(jax.jit(law.sample)(jax.random.key(0)))


def ratchet_draws(panel, rates, num_samples):
    """NUTS through NumPyro: the groups of a fit with half a million terms a draw are not wanted."""
    model = partial(mjp.panel, num_states=6, rates=rates, max_rate=50.0)
    mcmc = MCMC(
        NUTS(model, init_strategy=init_to_median), num_warmup=250, num_samples=num_samples, progress_bar=False
    )
    mcmc.run(jax.random.key(1), panel, np.broadcast_to(RATCHET_CLOCK, panel.shape))
    return {name: np.asarray(x, float) for name, x in mcmc.get_samples().items()}


@pytest.mark.slow
def test_flashing_ratchet_in_three_parameters(ratchet_panel):
    """Within three posterior sds of the truth; these are near 0.01, as 5000 paths allow."""

    def rates(time_unit):
        potential = numpyro.sample("potential", dist.Normal(0.0, 3.0))
        switching, diffusion = (
            numpyro.sample(n, dist.LogNormal(0.0, 1.5)) for n in ("switching", "diffusion")
        )
        return mjp.flashing_ratchet(potential, switching, diffusion)

    draws = ratchet_draws(ratchet_panel, rates, 400)
    for name in ("potential", "switching", "diffusion"):
        assert 0.005 < draws[name].std() < 0.02
        assert abs(draws[name].mean() - 1.0) < 3.0 * draws[name].std()


@pytest.mark.slow
def test_flashing_ratchet_from_thirty_free_rates(ratchet_panel):
    """Root mean square error of the posterior means below 0.03.

    Watched without interruption the paths would give sqrt(mean of q_ij / T_i) = 0.021. The foundation model of Berghaus
    et al. (2024, arXiv:2406.06419) is off by 0.72 on such a panel of 5000 paths, by its authors' notebook.
    """
    matrix = ratchet_draws(ratchet_panel, "free", 250)["rate_matrix"].mean(0)
    error = (matrix - np.asarray(TRUTH))[~np.eye(6, dtype=bool)]
    assert np.sqrt((error**2).mean()) < 0.03


# -------------------------------------------------------------------------------------------------- calibration


@pytest.mark.slow
def test_noisy_panel_of_three_states_is_calibrated():
    """Simulation-based calibration of free rates and an error rate under NUTS."""
    times = np.broadcast_to(np.arange(12) * 0.7, (6, 12))
    result = sj.calibrate(
        mjp.misclassified,
        jnp.zeros((6, 12), int),
        times,
        num_states=3,
        rate_prior=dist.LogNormal(-0.7, 0.5),
        max_rate=20.0,  # what the prior gives never comes near: no draw is impossible
        num_simulations=120,
        num_samples=500,
        num_warmup=200,
        num_ranked=49,
        seed=1,
        progress_bar=False,
    )
    assert result.ok, str(result)
