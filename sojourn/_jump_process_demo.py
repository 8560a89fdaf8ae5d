"""``sojourn demo jump-process``: does prednisone change the course of liver cirrhosis?"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import pandas as pd

import sojourn as sj
from sojourn.diagnostics import _arviz, _figures
from sojourn.models import jump_process

__all__ = ["jump_process_demo", "kaplan_meier", "prothrombin"]

_STATES = ["normal", "low", "dead"]
_GRAPH = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0]])


def jump_process_demo(options: argparse.Namespace) -> None:
    """Prothrombin levels and death of 488 patients; without the extra ``data``, a flashing ratchet."""
    try:
        data = sj.datasets.prothr()
    except ImportError as missing:
        print(f"{missing}\nWithout it, here is the discrete flashing ratchet, simulated.")
        _ratchet(options)
        return
    _prothr(data, options)


def prothrombin(paths, duration, treatment):
    """Three states, four jumps, and a treatment that acts log-linearly on each of their rates."""
    jump_process.complete(
        paths, duration, num_states=3, rates=_GRAPH, covariates=treatment[:, None], states=_STATES
    )


def kaplan_meier(time_, died) -> tuple[np.ndarray, np.ndarray]:
    """Times of death and the estimated probability of living beyond each (Kaplan and Meier 1958).

    Example:
        >>> at, alive = kaplan_meier(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False]))
        >>> at.tolist(), alive.tolist()
        ([0.0, 1.0, 3.0], [1.0, 0.75, 0.375])
    """
    at = np.unique(time_[died])
    at_risk = (time_[None, :] >= at[:, None]).sum(1)
    deaths = (time_[died][None, :] == at[:, None]).sum(1)
    return np.concatenate([[0.0], at]), np.concatenate([[1.0], np.cumprod(1.0 - deaths / at_risk)])


def _prothr(data, options: argparse.Namespace) -> None:
    started = time.perf_counter()
    print(
        f"Prothrombin of {data.sizes['patient']} patients with liver cirrhosis, "
        f"{int(data['treatment'].sum())} of them on prednisone. Source: {data.attrs['source']}."
    )
    paths = np.stack([data["entry_time"].values, data["state"].values], -1)
    treated = data["treatment"].values.astype(float)
    fit = sj.fit(
        prothrombin,
        paths,
        data["duration"].values,
        treated,
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    print(
        f"\nNUTS: {fit.attrs['seconds_total']:.0f} s. Rates a year without treatment, and log rate ratios with it:"
    )
    print(_arviz.summary(fit, ["rate", "covariate_effect"]).to_string())
    print(f"\nCheck:\n{sj.check(fit)}")

    posterior = _arviz.require_posterior(fit, "demo")
    arms = {"placebo": jump_process.rate_matrix_at(posterior, [0.0])}
    arms["prednisone"] = jump_process.rate_matrix_at(posterior, [1.0])
    table = pd.concat({arm: _rates_beside_counting(data, arms[arm], i) for i, arm in enumerate(arms)})
    print("\nRates a year, beside jumps counted over time at risk (the maximum-likelihood estimate):")
    print(table.round(4).to_string())

    begin = np.bincount(data["state"].values[:, 0], minlength=3) / data.sizes["patient"]
    years = np.linspace(0.0, 10.0, 41)
    alive = {arm: jump_process.survival(q, years, until=2) for arm, q in arms.items()}
    alive = {arm: (s * np.asarray(begin)).sum("state") for arm, s in alive.items()}
    gain = (alive["prednisone"] - alive["placebo"]).sel(time=5.0)
    low, middle, high = (float(gain.quantile(q)) for q in (0.05, 0.5, 0.95))
    answer = (
        f"After five years {100 * float(alive['placebo'].sel(time=5.0).median()):.0f} % of the patients on placebo are "
        f"expected to live; with prednisone the share changes by {100 * middle:+.0f} points (90 % interval "
        f"{100 * low:+.0f} to {100 * high:+.0f})."
    )
    print(f"\n{answer}")
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "jump_process.html",
        title="Liver cirrhosis: three states, two treatments, one Markov jump process",
        sections=[
            sj.Section("Does prednisone help?", [_survival(alive, data), answer]),
            sj.Section("How fast does what happen?", [table.round(4), _effects(posterior)]),
        ],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")


def _rates_beside_counting(data, rate_matrix, arm: int) -> pd.DataFrame:
    mine = data["treatment"].values == arm
    state = data["state"].values[mine]
    entry = data["entry_time"].values[mine]
    dwell = np.diff(entry, axis=1, append=data["duration"].values[mine][:, None])
    time_in = np.bincount(state.ravel(), dwell.ravel(), 3)
    rows = {}
    for i, j in np.argwhere(_GRAPH):
        draws = rate_matrix[..., i, j].values.ravel()
        jumps = ((state[:, :-1] == i) & (state[:, 1:] == j)).sum()
        rows[f"{_STATES[i]} to {_STATES[j]}"] = {
            "median": np.median(draws),
            "5 %": np.quantile(draws, 0.05),
            "95 %": np.quantile(draws, 0.95),
            "counted": jumps / time_in[i],
        }
    return pd.DataFrame(rows).T


def _survival(alive, data):
    figure, (axis,) = _figures.panels(1, height=3.2)
    died = (data["state"].values == 2).any(1)
    for i, (arm, colour) in enumerate(zip(alive, (_figures.BLUE, _figures.WARM), strict=True)):
        low, middle, high = alive[arm].quantile([0.05, 0.5, 0.95], ("chain", "draw")).values
        years = alive[arm]["time"].values
        axis.fill_between(years, low, high, color=colour, alpha=0.25, linewidth=0)
        axis.plot(years, middle, color=colour, label=f"{arm}, median and 90 %")
        mine = data["treatment"].values == i
        at, share = kaplan_meier(data["duration"].values[mine], died[mine])
        axis.step(
            at, share, where="post", color=colour, linewidth=0.8, linestyle=":", label=f"{arm}, Kaplan-Meier"
        )
    axis.set_xlim(0, 10)
    axis.set_ylim(0, 1)
    axis.set_xlabel("years")
    axis.set_ylabel("alive")
    axis.legend(fontsize=8, frameon=False)
    return figure


def _effects(posterior):
    figure, axes = _figures.panels(4, columns=4, height=2.2)
    effect = np.exp(posterior["covariate_effect"].isel(covariate=0))
    for axis, move in zip(axes, effect["move"].values, strict=True):
        axis.hist(effect.sel(move=move).values.ravel(), 40, density=True, color=_figures.LIGHT)
        axis.axvline(1.0, color=_figures.WARM, linewidth=0.8)
        axis.set_title(str(move).replace("->", " to "))
        axis.set_yticks([])
    axes[0].set_xlabel("rate ratio, prednisone : placebo")
    return figure


# --------------------------------------------------------------------------------------------------- the ratchet


def ratchet(states, times):
    """The discrete flashing ratchet with its three parameters unknown."""
    import numpyro
    import numpyro.distributions as dist

    def rates(_):
        potential = numpyro.sample("V", dist.Normal(0.0, 2.0))
        switching = numpyro.sample("r", dist.LogNormal(0.0, 1.0))
        diffusion = numpyro.sample("b", dist.LogNormal(0.0, 1.0))
        return jump_process.flashing_ratchet(potential, switching, diffusion)

    jump_process.panel(states, times, num_states=6, rates=rates)


def _ratchet(options: argparse.Namespace) -> None:
    import jax

    from sojourn.distributions import PanelJumpProcess

    started = time.perf_counter()
    truth = jump_process.flashing_ratchet(1.0, 1.0, 1.0)
    times = np.broadcast_to(np.linspace(0.0, 2.5, 51), (300, 51))
    law = PanelJumpProcess(truth, jump_process.stationary_law(truth), times)
    states = np.asarray(law.sample(jax.random.key(options.seed)))
    fit = sj.fit(
        ratchet,
        states,
        times,
        num_warmup=options.num_warmup,
        num_samples=options.num_samples,
        seed=options.seed,
        progress_bar=sys.stderr.isatty(),
    )
    print(_arviz.summary(fit, ["V", "r", "b"]).to_string())
    print(f"\nCheck:\n{sj.check(fit)}")
    produced = jump_process.entropy_production_rate(fit.posterior["rate_matrix"])
    low, middle, high = (float(produced.quantile(q)) for q in (0.05, 0.5, 0.95))
    answer = (
        f"The ratchet produces {middle:.3f} of entropy a unit of time (90 % interval {low:.3f} to {high:.3f}; "
        "0.179 was put in)."
    )
    print(f"\n{answer}")
    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        fit,
        options.output / "jump_process.html",
        title="A discrete flashing ratchet, from 300 paths seen at 51 times",
        sections=[sj.Section("How much does it dissipate?", [answer])],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")
