"""The demonstrations of the command line: real data in, verdict and report page out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.contrib.control_flow import scan

import sojourn as sj
from sojourn._exceedance_demo import exceedance_demo
from sojourn._fractional_sde_demo import fractional_sde_demo
from sojourn._jump_process_demo import jump_process_demo
from sojourn._langevin_flow_demo import langevin_flow_demo
from sojourn._laws_demo import laws_demo
from sojourn.diagnostics import _arviz, _figures
from sojourn.models import hidden_markov

__all__ = ["DEMOS"]


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def earthquakes(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    data = sj.datasets.earthquakes()
    counts = data["count"]
    print(
        f"{counts.attrs['long_name'].capitalize()}, {counts.sizes['time']} years. Source: {data.attrs['source']}."
    )
    models = {n: partial(hidden_markov.poisson, num_states=n, name="count") for n in (1, 2, 3, 4)}
    settings = {"num_warmup": options.num_warmup, "num_samples": options.num_samples, "seed": options.seed}
    fits = {}
    for n, model in models.items():
        _say(f"NUTS, {n} state{'s' if n > 1 else ''}:")
        fits[n] = sj.fit(model, counts, progress_bar=sys.stderr.isatty(), **settings)
        verdict = sj.check(fits[n])
        print(f"  {fits[n].attrs['seconds_total']:.0f} s. {str(verdict).splitlines()[0]}", flush=True)
        for finding in verdict.findings:
            if not finding.ok:
                print(f"    {finding.name} {finding.value:.4g} at {finding.where}: {finding.advice}")

    comparison = _arviz.compare({f"{n} states" if n > 1 else "1 state": fit for n, fit in fits.items()})
    _say("Comparison by PSIS-LOO of the one-year-ahead densities (higher elpd is better):")
    print(comparison.round(2).to_string())
    best = int(str(comparison.index[0]).split()[0])
    fit, model = fits[best], models[best]

    _say(f"Posterior with {best} state{'s' if best > 1 else ''} (NUTS):")
    summary = _arviz.summary(fit)
    print(summary.to_string())
    _say("Check:")
    print(sj.check(fit))

    _say(f"SVI, {best} states:")
    variational = sj.fit(model, counts, engine="svi", progress_bar=sys.stderr.isatty(), **settings)
    print(sj.check(variational))
    engines = _side_by_side(fit, variational)
    print(engines.round(3).to_string())

    sections = [
        sj.Section(
            "How many regimes?",
            [
                "Poisson hidden Markov models with 1 to 4 states, compared by Pareto-smoothed leave-one-out "
                "cross-validation of log p(y_t | y_<t). Differences below two standard errors do not decide.",
                comparison.round(2),
            ],
        )
    ]
    if best > 1:
        states = hidden_markov.decode(fit, model, counts)
        future = hidden_markov.forecast(fit, model, counts, horizon=10, seed=options.seed)
        ahead = future["count"].quantile([0.05, 0.5, 0.95], ("chain", "draw"))
        years = pd.Index(future["time"].values, name="year")
        table = pd.DataFrame(ahead.values.T.astype(int), years, ["5 %", "median", "95 %"])
        sections += [
            sj.Section(
                "Which regime, when?",
                [
                    sj.diagnostics.plot_states(states, counts, level=fit.posterior["rate"]),
                    "Points carry the colour of the likeliest state in that year; the line is the rate of the "
                    "state the world was in, averaged over states and posterior draws.",
                ],
            ),
            sj.Section("The ten years after", ["Predicted counts: median and 90 % interval.", table]),
        ]
    sections.append(
        sj.Section(
            "NUTS and SVI side by side",
            [
                f"k-hat of the guide: {_khat(variational):.2f} (below 0.7 it can stand in for the posterior).",
                engines.round(3),
            ],
        )
    )
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "earthquakes.html",
        title=f"Earthquakes of magnitude 7 or more, 1900-2006: a {best}-state Poisson hidden Markov model",
        sections=sections,
        open_browser=options.open,
    )
    _say(f"Report: {page}  ({time.perf_counter() - started:.0f} s in all)")


def _khat(fit) -> float:
    return next(f.value for f in sj.check(fit).findings if f.name == "khat")


def _side_by_side(nuts, svi):
    columns = {}
    for label, fit in (("NUTS", nuts), ("SVI", svi)):
        draws = _arviz.group(fit, "posterior").stack(all_draws=("chain", "draw"))
        rows = {}
        for name, variable in draws.data_vars.items():
            variable = variable.transpose(..., "all_draws")
            for index in np.ndindex(variable.shape[:-1]):
                entry = f"{name}{list(index)}" if index else str(name)
                rows[entry] = (float(variable[index].mean()), float(variable[index].std()))
        columns[f"{label} mean"] = {entry: mean for entry, (mean, _) in rows.items()}
        columns[f"{label} sd"] = {entry: sd for entry, (_, sd) in rows.items()}
    return pd.DataFrame(columns)


def stochastic_volatility(returns):
    """Returns whose log-variance h is a stationary first-order autoregression (Taylor 1982); a plain NumPyro model."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    phi = numpyro.sample("phi", dist.Beta(20.0, 1.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    h0 = numpyro.sample("h0", dist.Normal(mu, sigma / jnp.sqrt(1.0 - phi**2)))

    def day(h, r):
        h = numpyro.sample("h", dist.Normal(mu + phi * (h - mu), sigma))
        numpyro.sample("log_return", dist.Normal(0.0, jnp.exp(h / 2.0)), obs=r)
        return h, None

    scan(day, h0, returns)


def volatility(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    num_chains = 2
    # Chains run in parallel if JAX sees as many devices; it looks when first used.
    numpyro.set_host_device_count(min(num_chains, os.cpu_count() or 1))
    data = sj.datasets.sp500()
    returns = data["log_return"]
    print(
        f"Daily log-returns of the S&P 500 in per cent, {returns.sizes['time']} days. Source: {data.attrs['source']}."
    )
    _say("What particle Gibbs reads off the model:")
    print(sj.read_scan(stochastic_volatility, returns.values).structure)
    _say(
        f"Particle Gibbs, {num_chains} chains of {options.num_samples} draws (about a minute on two idle cores):"
    )
    fit = sj.fit(
        stochastic_volatility,
        returns,
        engine="particle_gibbs",
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        num_chains=num_chains,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    print(f"  {fit.attrs['seconds_total']:.0f} s")
    _say("Posterior of the parameters:")
    print(_arviz.summary(fit, ["mu", "phi", "sigma", "h0"]).to_string())
    _say("Check:")
    print(sj.check(fit))
    scale = np.exp(fit.posterior["h"] / 2.0)
    middle = scale.median(("chain", "draw"))
    top = int(np.argmax(middle.values))
    low, high = (float(scale.isel(time=top).quantile(q)) for q in (0.05, 0.95))
    day = str(returns["time"].values[top])[:10]
    answer = (
        f"Volatility was highest on {day}: {float(middle[top]):.1f} % a day (90 % interval {low:.1f} to {high:.1f}), "
        f"against a median over the whole period of {float(middle.median()):.1f} %."
    )
    _say(answer)
    rate = fit.sample_stats["path_update"].mean(("chain", "draw"))
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "volatility.html",
        title="S&P 500, 2007-2010: stochastic volatility by particle Gibbs",
        sections=[
            sj.Section("How volatile, when?", [_volatility_band(returns, scale), answer]),
            sj.Section(
                "Does the path move?",
                [
                    _update_rate(rate),
                    "Share of draws in which the log-variance of that day took a new value. Below 0.2 the path "
                    "hardly moves there, and neither the path nor what depends on it can be relied on. The rate is "
                    "lowest around returns that the days before did not announce.",
                ],
            ),
        ],
        open_browser=options.open,
    )
    _say(f"Report: {page}  ({time.perf_counter() - started:.0f} s in all)")


def _volatility_band(returns, scale):
    time_ = returns["time"].values
    low, middle, high = scale.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values
    figure, (above, below) = _figures.panels(2, height=2.2)
    above.plot(time_, returns.values, color="0.55", linewidth=0.6, label="return")
    for sign in (1.0, -1.0):
        above.plot(
            time_,
            sign * 2.0 * middle,
            color=_figures.WARM,
            linewidth=1.0,
            label="two standard deviations, median" if sign > 0 else None,
        )
    above.set_ylabel("return, %")
    below.fill_between(time_, low, high, color=_figures.LIGHT, alpha=0.6, linewidth=0, label="90 %")
    below.plot(time_, middle, color=_figures.BLUE, linewidth=1.0, label="median")
    below.set_ylabel("exp(h / 2), % a day")
    for axis in (above, below):
        axis.margins(x=0.01)
        axis.legend(loc="upper right", fontsize=8, frameon=False)
    return figure


def _update_rate(rate):
    figure, (axis,) = _figures.panels(1, height=2.0)
    axis.plot(rate["time"].values, rate.values, color=_figures.BLUE, linewidth=0.8)
    axis.axhline(0.2, color=_figures.WARM, linewidth=0.8, linestyle="--")
    axis.set_ylim(0.0, 1.0)
    axis.set_ylabel("update rate")
    axis.margins(x=0.01)
    return figure


def seismic_activity(count):
    """Yearly counts whose log-intensity drifts as a stationary first-order autoregression; a plain NumPyro model."""
    level = numpyro.sample("level", dist.Normal(3.0, 1.0))
    persistence = numpyro.sample("persistence", dist.Beta(8.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(0.5))
    shock = numpyro.sample("shock", dist.Normal(0.0, 1.0).expand([len(count)]).to_event(1))

    def year(x, e):
        x = persistence * x + sigma * e
        return x, x

    start = sigma / jnp.sqrt(1.0 - persistence**2) * shock[0]
    _, drift = jax.lax.scan(year, start, shock[1:])
    log_rate = level + jnp.concatenate([start[None], drift])
    numpyro.deterministic("rate", jnp.exp(log_rate))
    numpyro.sample("count", dist.Poisson(jnp.exp(log_rate)).to_event(1), obs=count)


def langevin(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    data = sj.datasets.earthquakes()
    counts = data["count"]
    print(
        f"{counts.attrs['long_name'].capitalize()}, {counts.sizes['time']} years. Source: {data.attrs['source']}.\n"
        "Poisson counts whose log-rate drifts: 110 latent numbers, one posterior, three samplers."
    )
    settings = {"num_warmup": options.num_warmup, "num_samples": options.num_samples, "seed": options.seed}
    fits, rows = {}, {}
    for label, engine in (("NUTS", "nuts"), ("MALT", "langevin"), ("MCLMC", "mclmc")):
        fits[label] = fit = sj.fit(
            seismic_activity, counts, engine=engine, progress_bar=sys.stderr.isatty(), **settings
        )
        verdict = sj.check(fit)
        _say(f"{label}: {fit.attrs['seconds_total']:.0f} s. {verdict.verdict()}")
        for finding in verdict.findings:
            if not finding.ok or finding.name == "step_bias":
                print(f"  {finding.name} {finding.value:.4g} ({finding.where}) {finding.advice}")
        draws = _arviz.require_posterior(fit, "demo").drop_vars("rate")
        gradients = float(fit.sample_stats["n_steps"].sum())
        rows[label] = {
            "gradients a draw": gradients / fit.sample_stats["n_steps"].size,
            "for an effective x": gradients / _smallest_ess(draws),
            "for an effective x^2": gradients / _smallest_ess((draws - draws.mean(("chain", "draw"))) ** 2),
        }
    table = pd.DataFrame(rows).T.round(1)
    _say("Gradients (warm-up not counted; the worst of the latents):")
    print(table.to_string())

    fit = fits["MALT"]
    _say("Posterior of the parameters (MALT):")
    print(_arviz.summary(fit, ["level", "persistence", "sigma"]).to_string())
    _say("Check (MALT):")
    print(sj.check(fit))
    rate = fit.posterior["rate"].rename({fit.posterior["rate"].dims[-1]: "year"})
    years = counts["time"].values
    years = getattr(counts["time"].dt, "year", counts["time"]).values if years.dtype.kind == "M" else years
    middle = rate.median(("chain", "draw")).values
    top = int(np.argmax(middle))
    low, high = (float(rate.isel(year=top).quantile(q)) for q in (0.05, 0.95))
    answer = (
        f"The Earth was most active in {years[top]}: {middle[top]:.0f} large earthquakes a year expected "
        f"(90 % interval {low:.0f} to {high:.0f}), against {np.median(middle):.0f} in the median year."
    )
    _say(answer)
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "langevin.html",
        title="Earthquakes of magnitude 7 or more, 1900-2006: a drifting rate by Langevin trajectories",
        sections=[
            sj.Section("How active, when?", [_drift(years, counts, rate), answer]),
            sj.Section(
                "Three samplers, one posterior",
                [
                    table,
                    "NUTS and MALT are exact. MCLMC has no Metropolis test: its bias is looked for by a rerun at half "
                    "the step, see step_bias in its check.",
                    _agreement(fits, ["level", "persistence", "sigma"]),
                ],
            ),
        ],
        open_browser=options.open,
    )
    _say(f"Report: {page}  ({time.perf_counter() - started:.0f} s in all)")


def _smallest_ess(draws) -> float:
    return min(float(values.min()) for values in _arviz.ess(draws, method="mean").data_vars.values())


def _drift(years, counts, rate):
    low, middle, high = rate.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values
    figure, (axis,) = _figures.panels(1, height=2.8)
    axis.fill_between(years, low, high, color=_figures.LIGHT, alpha=0.6, linewidth=0, label="90 %")
    axis.plot(years, middle, color=_figures.BLUE, linewidth=1.2, label="rate, median")
    axis.plot(years, counts.values, ".", color="0.35", markersize=4, label="counted")
    axis.set_ylabel("earthquakes a year")
    axis.margins(x=0.01)
    axis.legend(loc="upper right", fontsize=8, frameon=False)
    return figure


def _agreement(fits, names):
    figure, axes = _figures.panels(len(names), height=1.8)
    for axis, name in zip(axes, names, strict=True):
        pooled = np.concatenate([fit.posterior[name].values.ravel() for fit in fits.values()])
        bins = np.linspace(*np.quantile(pooled, [0.002, 0.998]), 40)
        for (label, fit), colour in zip(fits.items(), ("0.5", _figures.BLUE, _figures.WARM), strict=True):
            values = fit.posterior[name].values.ravel()
            axis.hist(values, bins, density=True, histtype="step", color=colour, linewidth=1.2, label=label)
        axis.set_xlabel(name)
        axis.set_yticks([])
    axes[0].legend(fontsize=8, frameon=False)
    return figure


DEMOS = {
    "hidden-markov": (
        "earthquakes of magnitude 7 or more, 1900-2006: how many regimes, and when?",
        earthquakes,
    ),
    "particle-gibbs": (
        "returns of the S&P 500, 2007-2010: how volatile was the market, and when?",
        volatility,
    ),
    "langevin": (
        "earthquakes again: how did activity drift, and which sampler needs the fewest gradients?",
        langevin,
    ),
    "jump-process": (
        "liver cirrhosis: does prednisone change how fast patients get worse, better, or die?",
        jump_process_demo,
    ),
    "exceedance": (
        "daily temperatures: how long do warm and cold spells last, and how long does the longest?",
        exceedance_demo,
    ),
    "fractional-sde": (
        "volatility of the S&P 500: how rough is it, and would Brownian noise do?",
        fractional_sde_demo,
    ),
    "langevin-flow": (
        "spikes of thirty neurons (simulated): what moves their rates, and what will neurons not recorded do?",
        langevin_flow_demo,
    ),
    "laws": (
        "a small world (simulated), and Crafter if installed: which of these laws are real, and what should one do?",
        laws_demo,
    ),
}
"""Question and function of each, by name."""
