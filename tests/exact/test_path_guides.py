"""Variational inference of paths against exact evidence, exact posteriors, and NUTS.

Numbers to hold: ``A8``, ``A10`` and ``A11`` of the specification are met here with data of our own (its random
numbers are NumPy's of another program): the guide is compared with exact results for the very same data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.distributions import FractionalBrownianMotion
from sojourn.models import fractional_sde

N = 64
TIMES = np.arange(1, N + 1) / N
NOISE = 0.1
KNOWN = {"diffusion": 1.0, "observation_noise": NOISE, "initial": 0.0, "start": 0.0, "step": 1 / N}


def _data(hurst, seed):
    """Type II fractional Brownian motion and white noise."""
    law = FractionalBrownianMotion(hurst, TIMES, noise=NOISE, kind="II")
    return np.asarray(law.sample(jax.random.key(seed)))


def _log_evidence(y):
    """Of the same discretised model with the path integrated out (Kalman filter), as a function of H."""

    def value(hurst):
        seeded = handlers.seed(fractional_sde.linear, 0)
        trace = handlers.trace(seeded).get_trace(y, TIMES, rate=0.0, offset=0.0, hurst=hurst, **KNOWN)
        return sum(s["fn"].log_prob(s["value"]).sum() for s in trace.values() if s["type"] == "sample")

    return jax.jit(value)


def test_every_draw_of_the_bound_is_the_log_evidence(x64):
    """A8: at H = 0.4 known, sd over 200 draws below 1e-10 and the value exact to 1e-9, before any optimisation."""
    y = _data(0.4, 1)
    guide = sj.PseudoObservationGuide(fractional_sde.sde)
    settings = {"drift": lambda x: 0.0 * x, "hurst": 0.4, **KNOWN}
    guide.setup(y, TIMES, **settings)
    draws = jax.jit(jax.vmap(lambda k: handlers.seed(guide.bound, k)(y, TIMES, **settings)))(
        jax.random.split(jax.random.key(0), 200)
    )
    assert float(draws.std()) < 1e-10
    assert float(draws.mean()) == pytest.approx(float(_log_evidence(y)(0.4)), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("hurst", "seed"), [(0.2, 2), (0.8, 8)])
def test_hurst_index_by_variational_inference(hurst, seed, x64):
    """A10: the posterior of H (flat prior) against quadrature of the exact evidence on 400 points.

    The guide is exact given H and normal in logit H; what is left is that shape. Mean within 0.15 sd (of it 0.03 sd
    Monte Carlo error of 1000 draws), sd within 15 %, and the bound within 0.3 nats of the evidence.
    """
    y = _data(hurst, seed)
    fit = sj.fit(
        fractional_sde.sde,
        y,
        TIMES,
        drift=lambda x: 0.0 * x,
        engine="svi",
        num_samples=1000,
        progress_bar=False,
        **KNOWN,
    )
    assert fit.attrs["guide"] == "PseudoObservationGuide"
    grid = np.linspace(0.02, 0.98, 401)
    log_evidence = np.asarray(jax.lax.map(_log_evidence(y), jnp.asarray(grid)))
    weight = np.exp(log_evidence - log_evidence.max())
    weight /= weight.sum()
    mean = weight @ grid
    sd = np.sqrt(weight @ (grid - mean) ** 2)
    draws = _arviz.group(fit, "posterior")["hurst"].values.ravel()
    assert abs(draws.mean() - mean) < 0.15 * sd
    assert abs(draws.std() / sd - 1) < 0.15
    whole = log_evidence.max() + np.log(np.exp(log_evidence - log_evidence.max()).mean())
    bound = _arviz.group(fit, "sample_stats")["elbo"].values[0, -250:].mean()
    assert whole - 0.3 < bound < whole + 0.05
    assert fit.attrs["converged"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("hurst", "variance"), [(0.3, 0.62355), (0.5, 0.50249), (0.7, 0.34274)])
def test_bridge(hurst, variance, x64):
    """A11: variance half way of type I fractional Brownian motion to T = 2, seen there as 0 with sd 0.1.

    Exact values from the covariance. 4000 draws: standard error of a variance 2.2 %, bound 5 % as the specification
    has it (less than 2.5 standard errors, so the seed is fixed) plus the scheme's own error, below 0.2 %.
    """
    n = 100
    fit = sj.fit(
        fractional_sde.sde,
        np.array([0.0]),
        np.array([2.0]),
        drift=lambda x: 0.0 * x,
        hurst=hurst,
        kind="I",
        **(KNOWN | {"step": 2.0 / n}),
        engine=sj.Variational(max_steps=1, block_size=1),
        num_samples=4000,
        progress_bar=False,
        seed=1,
    )
    half = _arviz.group(fit, "posterior")["state"].values[0, :, n // 2 - 1]
    exact = FractionalBrownianMotion(hurst, np.array([1.0, 2.0]))
    covariance = np.asarray(exact.covariance_matrix)
    assert covariance[0, 0] - covariance[0, 1] ** 2 / (covariance[1, 1] + 0.01) == pytest.approx(
        variance, abs=1e-5
    )
    assert half.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.slow
def test_double_well_against_nuts(x64):
    """Nonlinear drift, unknown H, 16 observations on 96 steps: H and the path by SVI and by NUTS.

    The specification's prototype had a root mean square difference of the mean path of .010 and a mean sd ratio of .97.
    Bounds: H's mean within 0.2 sd, its sd within 25 %; path .02 (sd of the path .11; Monte Carlo error of NUTS' mean with
    some 400 effective draws .006) and 10 %.
    """
    n, dt = 96, 3.0 / 96
    settings = {
        "drift": lambda x: 2.0 * x * (1.0 - x**2),
        "diffusion": 0.7,
        "observation_noise": 0.15,
        "initial": -1.0,
        "start": 0.0,
        "step": dt,
    }
    times = np.arange(1, n + 1) * dt
    simulated = handlers.trace(handlers.seed(fractional_sde.sde, 3)).get_trace(
        None, times, hurst=0.7, **settings
    )
    seen = np.arange(5, n, 6)
    y = np.asarray(simulated["y"]["value"])[seen]
    flat = dist.Uniform(0.02, 0.98)
    svi = sj.fit(
        fractional_sde.sde,
        y,
        times[seen],
        hurst=flat,
        engine="svi",
        num_samples=2000,
        progress_bar=False,
        **settings,
    )
    nuts = sj.fit(
        fractional_sde.sde,
        y,
        times[seen],
        hurst=flat,
        num_chains=2,
        num_warmup=400,
        num_samples=800,
        progress_bar=False,
        **settings,
    )
    one, two = (_arviz.group(fit, "posterior") for fit in (svi, nuts))
    over = ("chain", "draw")
    h, g = one["hurst"], two["hurst"]
    assert abs(float(h.mean() - g.mean())) < 0.2 * float(g.std())
    assert abs(float(h.std() / g.std()) - 1) < 0.25
    x, z = one["state"], two["state"]
    assert float(((x.mean(over) - z.mean(over)) ** 2).mean()) ** 0.5 < 0.02
    assert abs(float((x.std(over) / z.std(over)).mean()) - 1) < 0.1
