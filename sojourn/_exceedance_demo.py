"""``sojourn demo exceedance``: how long do warm and cold spells last?"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import pairwise

import jax
import numpy as np
import numpyro
import pandas as pd

import sojourn as sj
from sojourn._jump_process_demo import kaplan_meier
from sojourn.diagnostics import _arviz, _figures
from sojourn.distributions import KINDS, SignRuns
from sojourn.models import covariance, exceedance

__all__ = ["deseasonalised", "exceedance_demo"]

_NUM_CHAINS = 2
_LONG = 10  # days


def exceedance_demo(options: argparse.Namespace) -> None:
    """Spells of days warmer, and colder, than the season; without the extra ``data``, a simulated diffusion."""
    # Chains run in parallel if JAX sees as many devices; it looks when first used.
    numpyro.set_host_device_count(min(_NUM_CHAINS, os.cpu_count() or 1))
    # Short durations need double precision; only in here, so that nothing else in the process changes.
    with jax.enable_x64(True):
        try:
            data = sj.datasets.clemson_temperatures()
        except ImportError as missing:
            print(f"{missing}\nWithout it, here is diffusion in two dimensions, simulated.")
            _diffusion(options)
            return
        _temperatures(data, options)


def deseasonalised(temperature, time_) -> np.ndarray:
    """Anomalies of daily temperatures, in standard deviations of their season.

    A line in time and two harmonics of the year are fitted to the temperatures by least squares and taken out; what
    is left is divided by its standard deviation, whose square is a constant and two harmonics.

    Args:
        temperature: ``(T,)``, one a day; NaN for missing.
        time_: ``(T,)``, dates.

    Returns:
        ``(T,)``, NaN where the temperature is.

    Example:
        >>> days = np.datetime64("2001-01-01") + np.arange(3000)
        >>> season = 15 - 10 * np.cos(2 * np.pi * np.arange(3000) / 365.25)
        >>> weather = np.random.default_rng(1).normal(size=3000)
        >>> anomaly = deseasonalised(season + 3.0 * weather, days)
        >>> bool(abs(anomaly - weather).max() < 0.5)
        True
    """
    day = np.asarray(time_, "datetime64[D]")
    year = (day - day[0]).astype(float) / 365.25
    angle = 2 * np.pi * (day - day.astype("datetime64[Y]")).astype(float) / 365.25
    waves = [wave(k * angle) for k in (1, 2) for wave in (np.cos, np.sin)]
    seasons = np.stack([np.ones_like(angle), *waves], -1)
    trend = np.column_stack([seasons, year])
    seen = ~np.isnan(temperature)
    rest = temperature - trend @ np.linalg.lstsq(trend[seen], temperature[seen], rcond=None)[0]
    variance = seasons @ np.linalg.lstsq(seasons[seen], rest[seen] ** 2, rcond=None)[0]
    return rest / np.sqrt(variance)


def _temperatures(data, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    # Over longer times the mean drifts by a fifth of a standard deviation, which is no stationary process.
    data = data.sel(time=slice("1990", None))
    anomaly = deseasonalised(((data["minimum"] + data["maximum"]) / 2).values, data["time"].values)
    runs = exceedance.sign_runs(anomaly)
    length, kind = runs["length"].values, runs["kind"].values
    complete = length[kind == KINDS.index("complete")]
    print(
        f"Days warmer or colder than the season at Clemson, 1990 to 2020: {runs.sizes['run']} spells in "
        f"{len(anomaly)} days. Source: {data.attrs['source']}."
    )
    family = covariance.Diffusion
    fit = sj.fit(
        exceedance.run_lengths,
        runs,
        step=1.0,
        covariance=family,
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        num_chains=_NUM_CHAINS,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    print(f"\nNUTS: {fit.attrs['seconds_total']:.0f} s. Time in days:")
    print(_arviz.summary(fit, ["mean_interval", "dimension", "persistency_exponent"]).to_string())
    print(f"\nCheck:\n{sj.check(fit)}")

    days = np.arange(1, 61)
    outlasts = _outlasts(exceedance.posterior_law(fit, covariance=family), days)
    low, middle, high = np.quantile(outlasts[..., _LONG - 1], [0.05, 0.5, 0.95])
    slow, rate, fast = np.quantile(fit.posterior["persistency_exponent"].values, [0.05, 0.5, 0.95])
    # Runs of readings end more slowly than the excursions between: short ones on the other side are not seen.
    ends = np.median(1 - outlasts[..., 2 * _LONG] / outlasts[..., 2 * _LONG - 1])
    predicted = fit.posterior_predictive["length"].max("excursion").values
    least, most = np.quantile(predicted, [0.05, 0.95])
    record = length.max()
    at = int(np.argmax(length))
    reached = (predicted >= record).mean()
    answer = (
        f"A spell outlasts {_LONG} days with probability {100 * middle:.1f} % (90 % interval {100 * low:.1f} to "
        f"{100 * high:.1f} %; seen {100 * (complete > _LONG).mean():.1f} %), and one that has lasted "
        f"{2 * _LONG} ends with the next with probability {100 * ends:.0f} %. Between the readings the persistency exponent is "
        f"{rate:.3f} a day ({slow:.3f} to {fast:.3f})."
    )
    first_day = str(data["time"].values[int(runs["start"].values[at])])[:10]
    side = "warm" if runs["side"].values[at] > 0 else "cold"
    extreme = (
        f"The longest of {len(length)} spells is predicted to last {least:.0f} to {most:.0f} days (90 %). The longest seen, "
        f"{side}, from {first_day} on, lasted {record}, which the law reaches with probability {reached:.2f}."
    )
    summer, rest = _by_season(runs, data["time"].dt.month.values)
    season = (
        f"Of the spells that begin in June, July or August {100 * summer:.1f} % outlast {_LONG} days, of the others "
        f"{100 * rest:.1f} %: one law for all seasons makes the longest ones too rare."
    )
    print(f"\n{answer}\n{extreme}\n{season}")
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "exceedance.html",
        title="Warm and cold spells at Clemson, 1990 to 2020, as excursions of a Gaussian process",
        sections=[
            sj.Section(
                "How long does a spell last?",
                [
                    _survival(days, outlasts, length, kind),
                    _seen_and_expected(outlasts, complete).round(3),
                    answer,
                ],
            ),
            sj.Section("And the longest?", [_longest(predicted, record), extreme, season]),
        ],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")


def _outlasts(law, days) -> np.ndarray:
    """Probability that a spell, a run of daily signs, lasts more than each number of days, ``(chain, draw, day)``."""
    spells = SignRuns(law, 1.0)
    reach = jax.jit(lambda k: jax.lax.map(lambda d: spells.log_reach(d * np.ones(law.batch_shape)), k))
    return np.moveaxis(np.exp(np.asarray(reach(days + 1.0))), 0, -1)


def _by_season(runs, month) -> tuple[float, float]:
    """Shares of the complete spells that are long, among those that begin in summer and among the others."""
    complete = runs["kind"].values == KINDS.index("complete")
    lasted = runs["length"].values[complete] > _LONG
    summer = np.isin(month[runs["start"].values[complete].astype(int)], (6, 7, 8))
    return lasted[summer].mean(), lasted[~summer].mean()


def _seen_and_expected(outlasts, complete) -> pd.DataFrame:
    edges = np.array([0, 1, 2, 3, 5, 7, 10, 14, 21, 28])
    beyond = np.concatenate([np.ones((*outlasts.shape[:-1], 1)), outlasts[..., edges[1:] - 1]], -1)
    share = np.append(-np.diff(beyond, axis=-1), beyond[..., -1:], axis=-1)
    low, middle, high = np.quantile(share, [0.05, 0.5, 0.95], (0, 1))
    seen = np.histogram(complete, [*(edges + 0.5), np.inf])[0] / len(complete)
    names = [f"{a + 1} to {b}" if b > a + 1 else str(b) for a, b in pairwise(edges)]
    index = pd.Index([*names, f"more than {edges[-1]}"], name="days")
    return pd.DataFrame({"seen": seen, "median": middle, "5 %": low, "95 %": high}, index)


def _survival(days, outlasts, length, kind):
    figure, (axis,) = _figures.panels(1, height=3.2)
    low, middle, high = np.quantile(outlasts, [0.05, 0.5, 0.95], (0, 1))
    axis.fill_between(days, low, high, color=_figures.LIGHT, alpha=0.6, linewidth=0, label="90 %")
    axis.plot(days, middle, color=_figures.BLUE, label="law, median")
    whole = np.isin(kind, [KINDS.index("complete"), KINDS.index("right")])
    at, share = kaplan_meier(length[whole].astype(float), kind[whole] == KINDS.index("complete"))
    share = np.append(share[1:-1], share[-2])  # the longest is drawn to its end
    axis.step(at[1:], share, where="post", color=_figures.WARM, linewidth=1.0, label="seen, Kaplan-Meier")
    axis.set_yscale("log")
    axis.set_xlim(0, 1.05 * length.max())
    axis.set_ylim(1e-4, 1)
    axis.set_xlabel("days")
    axis.set_ylabel("spells that last longer")
    axis.legend(fontsize=8, frameon=False)
    return figure


def _longest(predicted, record):
    figure, (axis,) = _figures.panels(1, height=2.0)
    edges = np.arange(predicted.min() - 0.5, max(predicted.max(), record) + 1.5)
    axis.hist(predicted.ravel(), edges, density=True, color=_figures.LIGHT, label="posterior predictive")
    axis.axvline(record, color=_figures.WARM, label="seen")
    axis.set_yticks([])
    axis.set_xlabel("longest spell, days")
    axis.legend(fontsize=8, frameon=False)
    return figure


# ------------------------------------------------------------------------------------------- simulated diffusion


def _diffusion(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    truth = covariance.Diffusion(2.0)
    path = exceedance.gaussian_paths(jax.random.key(options.seed), truth, num_steps=150_000, step=0.06)
    pieces = exceedance.excursions(path, step=0.06)
    fit = sj.fit(
        exceedance.durations,
        pieces,
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        num_chains=_NUM_CHAINS,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    print(_arviz.summary(fit, ["mean_interval", "dimension", "persistency_exponent"]).to_string())
    print(f"\nCheck:\n{sj.check(fit)}")
    low, middle, high = np.quantile(fit.posterior["persistency_exponent"].values, [0.05, 0.5, 0.95])
    answer = (
        f"{pieces.sizes['excursion']} excursions give the persistency exponent {middle:.3f} (90 % interval {low:.3f} to "
        f"{high:.3f}); 3/16 = 0.1875 is exact, and independent intervals have 0.1862."
    )
    print(f"\n{answer}")
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "exceedance.html",
        title="Diffusion in two dimensions from its zero crossings",
        sections=[sj.Section("How fast does persistence decay?", [answer])],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")
