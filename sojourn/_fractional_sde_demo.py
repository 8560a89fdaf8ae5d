"""``sojourn demo fractional-sde``: how rough is volatility?"""

from __future__ import annotations

import argparse
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import sojourn as sj
from sojourn.diagnostics import _arviz, _figures
from sojourn.distributions import FractionalBrownianMotion, FractionalGaussianNoise
from sojourn.models import fractional_sde
from sojourn.ops.fractional import unnormalised_variance

__all__ = ["fractional_sde_demo", "late_scale", "most_likely_motion"]

_NUM_CHAINS = 2
_YEAR = "2018"
_LAGS = np.unique(np.geomspace(1, 60, 20).round().astype(int))  # days


def fractional_sde_demo(options: argparse.Namespace) -> None:
    """A year of the S&P 500; without the extra ``data``, a century of the Nile."""
    # Chains run in parallel if JAX sees as many devices; it looks when first used.
    numpyro.set_host_device_count(min(_NUM_CHAINS, os.cpu_count() or 1))
    # For the exact densities beside the fit; only in here, so that nothing else in the process changes.
    with jax.enable_x64(True):
        try:
            data = sj.datasets.sp500_ohlc()
        except ImportError as missing:
            print(f"{missing}\nWithout it, here is the Nile.")
            _nile(options)
            return
        _volatility(data.sel(time=_YEAR), options)


def most_likely_motion(series) -> dict[str, float]:
    """Exact maximum likelihood of fractional Brownian motion with errors, its level unknown.

    The density is that of the increments, which do not tell the level: it is integrated out, under a flat prior. Needs
    double precision.

    Args:
        series: ``(T,)``, at times ``1, 2, ..., T``.

    Returns:
        ``hurst``, ``scale`` (standard deviation of an increment without errors) and ``noise`` (of an error).

    Example:
        >>> import jax
        >>> from sojourn.ops.fractional import sample_paths
        >>> with jax.enable_x64(True):
        ...     found = most_likely_motion(2.0 * sample_paths(jax.random.key(1), 0.3, 100))
        >>> abs(found["hurst"] - 0.3) < 0.15, abs(found["scale"] - 2.0) < 0.5
        (True, True)
    """
    from scipy import optimize

    series = np.asarray(series, float)
    count = len(series)

    @jax.jit
    def negative(hurst, ratio):
        law = FractionalBrownianMotion(hurst, np.arange(1.0, count + 1), noise=ratio, validate_args=False)
        # A parabola in the level: three values tell it.
        nothing, low, middle, high = law.log_prob(jnp.stack([0 * series, series + 1, series, series - 1]))
        curvature = 2 * middle - low - high
        squares = 2 * (nothing - middle) - (high - low) ** 2 / (4 * curvature)
        scale = jnp.sqrt(squares / (count - 1))
        return -nothing + 0.5 * jnp.log(curvature) + (count - 1) * jnp.log(scale), scale

    best = optimize.minimize(
        lambda p: float(negative(*p)[0]),
        [0.3, 0.5],
        method="Nelder-Mead",
        bounds=[(0.02, 0.98), (0.0, 10.0)],
        options={"xatol": 1e-3, "fatol": 1e-3},
    )
    hurst, ratio = (float(x) for x in best.x)
    scale = float(negative(hurst, ratio)[1])
    return {"hurst": hurst, "scale": scale, "noise": ratio * scale}


def late_scale(hurst) -> np.ndarray:
    """Standard deviation of an increment of kind II, long after its start, over that of kind I.

    Kind II starts without a past; both have unit variance at time one.

    Example:
        >>> late_scale(np.array([0.1, 0.5])).round(2).tolist()
        [1.25, 1.0]
    """
    from scipy import special

    hurst = np.asarray(hurst)
    return special.gamma(hurst + 0.5) * np.sqrt(2 * hurst * np.asarray(unnormalised_variance(hurst)))


def _volatility(data, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    log_range = data["log_range"]
    series = log_range.values
    print(
        f"Volatility of the S&P 500 on the {len(series)} trading days of {_YEAR}, from the range of prices in each "
        f"day. Source: {data.attrs['source']}."
    )
    # Fractional Brownian motion read with errors, the path integrated out by a Kalman filter. Time in days.
    fit = sj.fit(
        fractional_sde.linear,
        series,
        rate=0.0,
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        num_chains=_NUM_CHAINS,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    print(f"\nNUTS: {fit.attrs['seconds_total']:.0f} s.")
    print(_arviz.summary(fit, ["hurst", "diffusion", "observation_noise"]).to_string())
    print(f"\nCheck:\n{sj.check(fit)}")

    hurst = fit.posterior["hurst"].values
    exact = most_likely_motion(series)
    table = _side_by_side(
        {
            "hurst": hurst,
            "scale": fit.posterior["diffusion"].values * late_scale(hurst),
            "noise": fit.posterior["observation_noise"].values,
        },
        exact,
    )
    print(f"\nBeside exact maximum likelihood, of the increments:\n{table.to_string()}")
    low, middle, high = np.quantile(hurst, [0.05, 0.5, 0.95])
    answer = (
        f"The Hurst index of volatility is {middle:.2f} (90 % interval {low:.2f} to {high:.2f}; exact maximum "
        f"likelihood {exact['hurst']:.2f}), below 1/2 with probability {(hurst < 0.5).mean():.2f}: "
        f"rough. Of a change in a day {100 * (1 - 2 ** (2 * middle - 1)):.0f} % is expected to be taken back the day "
        "after; of Brownian motion, nothing."
    )
    print(f"\n{answer}")
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "fractional_sde.html",
        title=f"Volatility of the S&P 500 in {_YEAR} as fractional Brownian motion",
        sections=[
            sj.Section("How rough?", [_roughness(fit, series, exact["hurst"]), answer]),
            sj.Section(
                "Beside exact maximum likelihood",
                [
                    table,
                    "The fit's noise begins with the record and is a few exponentials in a Kalman filter; its scale is "
                    "that of increments long after. Exact is the density of the increments of fractional Brownian "
                    "motion with errors.",
                ],
            ),
        ],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")


def _side_by_side(draws, exact) -> pd.DataFrame:
    rows = {
        name: dict(zip(("5 %", "median", "95 %"), np.quantile(values, [0.05, 0.5, 0.95]), strict=True))
        for name, values in draws.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["most likely"] = pd.Series(exact)
    return table.round(3)


def _roughness(fit, series, exact):
    figure, (left, right) = _figures.panels(2, columns=2, height=3.0)
    hurst = fit.posterior["hurst"].values.ravel()
    left.hist(hurst, 40, density=True, color=_figures.LIGHT, label="posterior")
    left.axvline(exact, color=_figures.BLUE, label="exact maximum likelihood")
    left.axvline(0.5, color=_figures.WARM, linestyle="--", label="Brownian motion")
    left.set_xlim(0, 0.9)
    left.set_yticks([])
    left.set_xlabel("Hurst index")
    left.margins(y=0.5)
    left.legend(fontsize=8, frameon=False, loc="upper right")

    seen = [np.mean((series[lag:] - series[:-lag]) ** 2) for lag in _LAGS]
    noise = fit.posterior["observation_noise"].values.ravel()[:, None]
    scale = (fit.posterior["diffusion"].values.ravel() * late_scale(hurst))[:, None]
    expected = scale**2 * _LAGS ** (2 * hurst[:, None]) + 2 * noise**2
    low, middle, high = np.quantile(expected, [0.05, 0.5, 0.95], 0)
    right.fill_between(_LAGS, low, high, color=_figures.LIGHT, alpha=0.6, linewidth=0, label="90 %")
    right.plot(_LAGS, middle, color=_figures.BLUE, label="posterior median")
    right.plot(_LAGS, seen, ".", color="0.35", label="seen")
    right.plot(_LAGS, seen[0] * _LAGS, color=_figures.WARM, linestyle="--", label="Brownian motion")
    right.set(xscale="log", yscale="log", ylim=(0.5 * min(seen), 4 * max(seen)))
    right.set_xlabel("lag, days")
    right.set_ylabel("mean square of the change")
    right.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


# ---------------------------------------------------------------------------------------------- the Nile


def _nile(options: argparse.Namespace) -> None:
    from scipy import optimize

    started = time.perf_counter()
    flow = sj.datasets.nile()["flow"].values
    # What has flowed by since 1870, in units of 1e10 cubic metres: a drift, and noise with memory.
    fit = sj.fit(
        fractional_sde.linear,
        np.cumsum(flow / 100),
        rate=0.0,
        offset=dist.Normal(9.0, 3.0),
        diffusion=dist.LogNormal(0.5, 0.7),
        observation_noise=0.01,
        initial=0.0,
        kind="I",
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        num_chains=_NUM_CHAINS,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    print(_arviz.summary(fit, ["hurst", "diffusion", "offset"]).to_string())
    print(f"\nCheck:\n{sj.check(fit)}")

    @jax.jit
    def negative(hurst, scale, mean):
        return -FractionalGaussianNoise(hurst, 100, loc=mean, scale=scale, validate_args=False).log_prob(
            flow / 100
        )

    best = optimize.minimize(
        lambda p: float(negative(*p)),
        [0.7, 1.5, 9.0],
        method="Nelder-Mead",
        bounds=[(0.02, 0.98), (0.1, 9.0), (1.0, 20.0)],
        options={"xatol": 1e-4, "fatol": 1e-5},
    )
    low, middle, high = np.quantile(fit.posterior["hurst"].values, [0.05, 0.5, 0.95])
    answer = (
        f"The Hurst index of the Nile is {middle:.2f} (90 % interval {low:.2f} to {high:.2f}; exact maximum likelihood "
        f"{best.x[0]:.3f}): dry years come together."
    )
    print(f"\n{answer}")
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "fractional_sde.html",
        title="The Nile at Aswan, 1871 to 1970, as fractional noise",
        sections=[sj.Section("How long a memory?", [answer])],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")
