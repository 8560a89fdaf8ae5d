"""Equations with fractional noise against Gaussian laws written out, exact solutions and published values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from sojourn.models import fractional_sde
from sojourn.ops.fractional import covariance, hybrid_covariance, hybrid_scheme

RNG = np.random.default_rng(11)


def evidence(y, **model) -> float:
    return float(jax.jit(lambda: log_density(fractional_sde.linear, (y,), model, {})[0])())


def gaussian(y: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> float:
    gap = y - mean
    return float(-0.5 * (gap @ np.linalg.solve(spread, gap) + np.linalg.slogdet(2 * np.pi * spread)[1]))


@pytest.mark.parametrize(("hurst", "kind"), [(0.2, "II"), (0.8, "I")])
def test_kalman_evidence_is_the_dense_gaussian(x64, hurst, kind):
    """Noisy fractional Brownian motion: the filter over state and memory, the covariance of the scheme."""
    n, dt, scale, error = 60, 1 / 60, 1.3, 0.1
    y = 0.4 * RNG.normal(size=n)
    found = evidence(
        y, rate=0.0, diffusion=scale, hurst=hurst, observation_noise=error, initial=0.0, step=dt, kind=kind
    )
    scheme = hybrid_scheme(hurst, dt, n, kind=kind)
    spread = scale**2 * np.asarray(hybrid_covariance(scheme, n)) + error**2 * np.eye(n)
    np.testing.assert_allclose(found, gaussian(y, np.zeros(n), spread), rtol=1e-9)


SCALAR = {
    "rate": 0.8,
    "offset": 0.2,
    "diffusion": 0.7,
    "hurst": 0.7,
    "observation_noise": 0.3,
    "initial": dist.Normal(0.4, 1.5),
    "substeps": 2,
    "step": 0.1,
}
PLANE = {
    "rate": np.array([[1.0, 0.3], [-0.2, 0.5]]),
    "offset": np.array([0.3, 0.1]),
    "diffusion": np.array([[1.0, 0.2], [0.0, 0.5]]),
    "hurst": np.array([0.3, 0.3]),
    "correlation": np.array([[1.0, 0.4], [0.4, 1.0]]),
    "observation_noise": np.array([0.2, 0.3]),
    "initial": dist.Normal(np.array([0.5, -0.5]), 1.5).to_event(1),
    "substeps": 2,
    "step": 0.1,
    "kind": "I",
    "solver": "rk4",
}


@pytest.mark.parametrize(("model", "shape"), [(SCALAR, (6,)), (PLANE, (2, 4, 2))])
def test_path_and_marginal_form_are_one_law(x64, model, shape):
    """The path is affine in its normal sites: with them integrated out, it has the marginal's density."""
    y = RNG.normal(size=shape)
    y[(1, 3, 0) if len(shape) == 3 else 2] = np.nan
    if len(shape) == 3:
        y[:, 2] = np.nan
    found = evidence(y, **model)

    seeded = handlers.seed(fractional_sde.linear, 0)
    sites = handlers.trace(seeded).get_trace(y, path=True, **model)
    latent = {
        n: jnp.zeros(s["value"].shape)
        for n, s in sites.items()
        if s["type"] == "sample" and not s["is_observed"]
    }
    several = len(shape) == 3
    loc = np.array([0.5, -0.5]) if several else 0.4
    mean = latent | {"initial_state": jnp.broadcast_to(loc, latent["initial_state"].shape)}
    sd = {n: jnp.full(v.shape, 1.5 if n == "initial_state" else 1.0) for n, v in latent.items()}
    (mean, unravel), sd = ravel_pytree(mean), ravel_pytree(sd)[0]

    def path(z):
        state = handlers.trace(handlers.substitute(seeded, data=unravel(z))).get_trace(y, path=True, **model)[
            "state"
        ]
        return state["value"], state["value"]

    slope, centre = jax.jit(jax.jacfwd(path, has_aux=True))(mean)
    load = np.asarray(slope).reshape(centre.size, -1) * np.asarray(sd)
    on_grid = np.full(centre.shape, np.nan)
    on_grid[::2] = np.moveaxis(y, 1, 0) if several else y
    seen = ~np.isnan(on_grid).ravel()
    error = np.broadcast_to(model["observation_noise"], centre.shape).ravel()
    spread = load @ load.T + np.diag(error**2)
    reference = gaussian(on_grid.ravel()[seen], np.asarray(centre).ravel()[seen], spread[np.ix_(seen, seen)])
    np.testing.assert_allclose(found, reference, rtol=1e-10)


@pytest.mark.parametrize(("hurst", "exact"), [(0.3, 0.62355), (0.5, 0.50249), (0.7, 0.34274)])
def test_bridge(x64, hurst, exact):
    """Fractional Brownian motion from 0, seen at T = 2 with error 0.1: variance half way.

    Exact: C(1, 1) - C(1, 2)^2 / (C(2, 2) + 0.01). A covariance that is off by at most ``delta`` moves it by
    at most (1 + r)^2 delta to first order, r = C(1, 2) / (C(2, 2) + 0.01).
    """
    times = np.array([1.0, 2.0])
    c = np.asarray(covariance(times, hurst))
    ratio = c[0, 1] / (c[1, 1] + 0.01)
    np.testing.assert_allclose(c[0, 0] - ratio * c[0, 1], exact, atol=1e-5)
    n = 40

    def smoothed():
        trace = handlers.trace(handlers.seed(fractional_sde.linear, 0)).get_trace(
            np.array([0.3]),
            [2.0],
            step=2.0 / n,
            start=0.0,
            rate=0.0,
            diffusion=1.0,
            hurst=hurst,
            initial=0.0,
            observation_noise=0.1,
            kind="I",
        )
        law = trace["y"]["fn"]
        return law.smoothed(trace["y"]["value"])[1][n // 2 - 1] ** 2 @ law.observation

    found = jax.jit(smoothed)()
    grid = 2.0 / n * np.arange(1, n + 1)
    if hurst == 0.5:  # fixed at one half: no approximation at all
        delta = 0.0
    else:
        scheme = hybrid_scheme(hurst, 2.0 / n, n, kind="I")
        delta = np.abs(np.asarray(hybrid_covariance(scheme, n)) - np.asarray(covariance(grid, hurst))).max()
        assert delta < 0.006 * 2 ** (2 * hurst)
    assert abs(float(found) - float(c[0, 0] - ratio * c[0, 1])) < 1.1 * (1 + ratio) ** 2 * delta + 1e-9


def multiplicative(hurst: float, num_steps: int, num_terms: int, calculus: str = "stratonovich"):
    """Paths of dX = X dB from X = 2, ``(steps, series)``, and the driver rebuilt from the same noise."""
    draws = jax.jit(
        lambda key: Predictive(fractional_sde.sde, num_samples=1)(
            key,
            None,
            diffusion=lambda x: x,
            hurst=hurst,
            initial=2.0,
            observation_noise=0.1,
            step=1 / num_steps,
            num_steps=num_steps,
            num_series=64,
            num_terms=num_terms,
            calculus=calculus,
        )
    )(jax.random.key(5))
    noise = draws["noise"][0, :, :, 0]
    if hurst == 0.5:
        return np.asarray(draws["state"][0]), np.cumsum(noise[..., 0], 0) / np.sqrt(num_steps)
    scheme = hybrid_scheme(hurst, 1 / num_steps, num_steps, num_terms=num_terms)
    driver = jax.jit(jax.vmap(lambda e: jax.lax.scan(scheme.step, jnp.zeros(num_terms), e)[1], 1, 1))(noise)
    return np.asarray(draws["state"][0]), np.asarray(driver)


@pytest.mark.parametrize("hurst", [0.3, 0.7])
def test_multiplicative_noise_converges_to_the_stratonovich_solution(x64, hurst):
    """dX = X dB has X = X(0) exp(B).

    Path by path on every grid and with any number of terms: no correction appears that grows with either
    (half the quadratic variation, N^(1 - 2 H) / 2, is 3.5 at H = 0.3 and N = 128). What remains is the error
    of the Runge-Kutta step, dB^5 / 120, of root mean square sqrt(945) / 120 N^(-5 H), and over N steps at
    most N times that; upon refinement by 4 it falls by 4^(5 H - 1) at least. And in law, because the variance
    of the driver comes to be t^2H as terms are added.
    """
    error = {}
    for num_steps, num_terms in ((32, 4), (128, 4), (128, 8))[: 3 if hurst < 0.5 else 2]:
        state, driver = multiplicative(hurst, num_steps, num_terms)
        error[num_steps, num_terms] = np.sqrt(np.mean((np.log(state[-1] / 2) - driver[-1]) ** 2))
    for (num_steps, _), found in error.items():
        assert found < np.sqrt(945) / 120 * num_steps ** (1 - 5 * hurst)
    assert (
        error[32, 4] / error[128, 4] > 4 ** (5 * hurst - 1) / 1.5
    )  # 64 series: a standard error of an eighth
    few, many = (
        np.asarray(hybrid_covariance(hybrid_scheme(hurst, 1 / 128, 128, num_terms=k), 128)) for k in (4, 8)
    )
    exact = np.asarray(covariance(np.arange(1, 129) / 128, hurst, "II"))
    assert np.abs(many - exact).max() < 1e-3
    assert np.abs(many - exact).max() < np.abs(few - exact).max()


def test_brownian_multiplicative_noise_both_ways(x64):
    """H = 1/2: Stratonovich exp(B), Ito exp(B - t / 2), path by path; both err by the order of the step."""
    stratonovich, driver = multiplicative(0.5, 128, 5)
    assert np.abs(np.log(stratonovich / 2) - driver).max() < 1e-4
    ito, driver = multiplicative(0.5, 128, 5, "ito")
    # Euler: the sum of (dB^2 - dt) / 2 has sd sqrt(t / 2 N); five of them, over 64 series at t = 1
    wrong = np.log(ito[-1] / 2) - (driver[-1] - 0.5)
    assert np.abs(wrong).max() < 5 * np.sqrt(0.5 / 128)
    assert abs(wrong.mean()) < 5 * np.sqrt(0.5 / 128 / 64) + 1 / 128


def test_brownian_noise_is_euler_maruyama(x64):
    """The joint density at H = 1/2 against a loop written in NumPy; time enters the drift."""
    n, dt, error = 8, 0.25, 0.3
    noise, start = RNG.normal(size=(n, 1, 1)), 0.7
    y = RNG.normal(size=n)
    x, total = start, -0.5 * start**2 - 0.5 * np.log(2 * np.pi)
    for k in range(n):
        time = k * dt
        x = x + (np.sin(time) - x**3) * dt + 0.8 * np.sqrt(dt) * noise[k, 0, 0]
        total += -0.5 * noise[k, 0, 0] ** 2 - 0.5 * np.log(2 * np.pi)
        total += -0.5 * ((y[k] - x) / error) ** 2 - np.log(error) - 0.5 * np.log(2 * np.pi)
    found, _ = log_density(
        fractional_sde.sde,
        (y,),
        {
            "drift": lambda x, t: jnp.sin(t) - x**3,
            "diffusion": 0.8,
            "hurst": 0.5,
            "step": dt,
            "initial": dist.Normal(0.0, 1.0),
            "observation_noise": error,
        },
        {"noise": jnp.asarray(noise), "initial_state": start},
    )
    np.testing.assert_allclose(found, total, rtol=1e-12)


def test_correlated_drivers(x64):
    """Cov(X_i(s), X_j(t)) = rho_ij sigma_i sigma_j C(s, t), from the path as a linear map of its noise."""
    n, rho, scale = 6, np.array([[1.0, -0.6], [-0.6, 1.0]]), np.array([0.5, 2.0])

    def path(noise):
        model = handlers.substitute(handlers.seed(fractional_sde.sde, 0), data={"noise": noise})
        trace = handlers.trace(model).get_trace(
            None,
            diffusion=scale,
            hurst=0.3,
            correlation=rho,
            num_dims=2,
            num_steps=n,
            initial=0.0,
            observation_noise=0.1,
        )
        return trace["state"]["value"]

    load = np.asarray(jax.jit(jax.jacfwd(path))(jnp.zeros((n, 2, 2)))).reshape(2 * n, -1)
    time = np.asarray(hybrid_covariance(hybrid_scheme(0.3, 1.0, n), n))
    expected = np.kron(time, rho * np.outer(scale, scale))
    np.testing.assert_allclose(load @ load.T, expected, rtol=1e-10)
