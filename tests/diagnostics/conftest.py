"""Synthetic fits: draws made with numpy, no model and no engine."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import xarray as xr

from sojourn.diagnostics._arviz import container

matplotlib.use("Agg")

DIMS = ("chain", "draw")


def autoregressive(rng, chains, draws, size, rho):
    """Stationary standard normal chains with autocorrelation rho, shape (chain, draw, size)."""
    noise = rng.normal(size=(chains, draws, size)) * np.sqrt(1.0 - rho**2)
    values = np.empty_like(noise)
    values[:, 0] = rng.normal(size=(chains, size))
    for t in range(1, draws):
        values[:, t] = rho * values[:, t - 1] + noise[:, t]
    return values


@pytest.fixture
def chains():
    """Make autocorrelated chains: chains(seed, chains, draws, size, rho)."""

    def make(seed, chains=4, draws=500, size=3, rho=0.0):
        return autoregressive(np.random.default_rng(seed), chains, draws, size, rho)

    return make


@pytest.fixture
def make_fit():
    """Pack arrays into a fit: make_fit({"x": array}, stats={"lp": array}, dims={"x": ("state",)})."""

    def make(posterior, stats=None, dims=None, coords=None, groups=None, **attrs):
        def dataset(arrays):
            named = {
                name: (
                    DIMS + tuple((dims or {}).get(name, [f"{name}_dim_{k}" for k in range(a.ndim - 2)])),
                    a,
                )
                for name, a in arrays.items()
            }
            used = {dim for variable, _ in named.values() for dim in variable}
            return xr.Dataset(named, coords={k: v for k, v in (coords or {}).items() if k in used})

        packed = {"posterior": dataset(posterior), **(groups or {})}
        if stats:
            packed["sample_stats"] = dataset(stats)
        return container(packed, {"engine": "nuts", **attrs})

    return make


@pytest.fixture
def series_fit():
    """A fitted AR(1) series with missing stretches: posterior, predictions, log likelihood, in float64.

    The posterior is narrow around the truth, so predictions are calibrated unless `spread` says otherwise.
    """

    def make(seed=0, length=120, missing=slice(40, 50), spread=1.0, integer=False, predictions=True, **attrs):
        rng = np.random.default_rng(seed)
        shape = (4, 250)
        phi, sigma = 0.8 + 0.01 * rng.normal(size=shape), spread * (1.0 + 0.01 * rng.normal(size=shape))
        y = np.zeros(length)
        for t in range(1, length):
            y[t] = 0.8 * y[t - 1] + rng.normal()
        previous = np.concatenate([[0.0], y[:-1]])
        if integer:
            y = rng.poisson(3.0, size=length).astype(float)
            ahead = rng.poisson(3.0, size=(*shape, length))
            log_likelihood = np.zeros((*shape, length)) - 1.0
        else:
            mean = phi[..., None] * previous
            ahead = mean + sigma[..., None] * rng.normal(size=(*shape, length))
            log_likelihood = -0.5 * ((y - mean) / sigma[..., None]) ** 2 - np.log(sigma[..., None])
        observed = y.copy()
        observed[missing] = np.nan
        log_likelihood[..., missing] = np.nan
        time = {"time": np.arange(length) * 0.5}
        variable = xr.Dataset({"y": ((*DIMS, "time"), ahead)}, coords=time)
        groups = {
            "posterior": xr.Dataset({"phi": (DIMS, phi), "sigma": (DIMS, sigma)}),
            "log_likelihood": xr.Dataset({"y": ((*DIMS, "time"), log_likelihood)}, coords=time),
            "posterior_predictive": variable,
            "observed_data": xr.Dataset({"y": ("time", observed)}, coords=time),
        }
        if predictions:
            groups["predictions"] = variable
        return container(groups, {"engine": "nuts", "seed": seed, "seconds": 1.5, **attrs})

    return make
