"""``sojourn demo langevin-flow``: what drives these neurons, and how well is it read from their spikes?"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

import numpy as np
import pandas as pd

import sojourn as sj
from sojourn.diagnostics import _arviz, _figures
from sojourn.models import langevin_flow

__all__ = ["langevin_flow_demo"]

_HELD_OUT = np.array([0, 7, 14, 21, 28])
_WIDTHS = [1.0, 1.5, 2.0, 2.5, 3.0]  # bins
_MOST_DRAWS = 100  # of each trial: their rates are 1800 numbers


def langevin_flow_demo(options: argparse.Namespace) -> None:
    """Spikes that the Lorenz system drives: rates of neurons and trials the guide was not shown, against smoothing."""
    started = time.perf_counter()
    data = langevin_flow.lorenz_spikes(num_trials=17)
    new = data["trial"].values % 17 == 16  # one of each condition
    counts, truth = data["spikes"][new], data["rate"][new]
    print(
        f"Spikes of {data.sizes['neuron']} neurons that the Lorenz system drives (simulated), {data.sizes['time']} bins: "
        f"{(~new).sum()} trials to learn from, {new.sum()} to be read afterwards.\n"
        f"Of {len(_HELD_OUT)} neurons the encoder is never shown the spikes.",
        flush=True,
    )
    guide = partial(sj.PathGuide, encoder="gru", sites=("spikes",), width=32)
    settings = {"num_particles": 1, "step_size": 0.01, "block_size": 150, "max_steps": 450}

    def fit(counts, num_samples, trained=None):
        return sj.fit(
            langevin_flow.spikes,
            counts,
            held_out=_HELD_OUT,
            engine=sj.Variational(guide, trained=trained, **settings),
            num_samples=num_samples,
            seed=options.seed,
            progress_bar=sys.stderr.isatty(),
        )

    learnt = fit(data["spikes"][~new], 10)
    bound = learnt.sample_stats["elbo"]
    last = float(bound[..., -100:].mean()) / (~new).sum()
    print(
        f"\nVariational inference with an encoder: {learnt.attrs['seconds_total']:.0f} s, {bound.sizes['step']} steps; "
        f"ELBO {last:.1f} nats a trial at the end.\nThe dynamics it learnt, a force at each coordinate and next to it:"
    )
    dynamics = _dynamics(learnt)
    print(dynamics.to_string())
    read = fit(counts, min(options.num_samples, _MOST_DRAWS), trained=learnt)
    print(f"\nThe new trials, read without optimisation: {read.attrs['seconds_total']:.0f} s.")
    print(_arviz.summary(read, ["initial_state"], kind="stats").head(4).to_string())
    print(f"\nCheck:\n{sj.check(read)}")
    latent = sum(read.posterior[name][0, 0].size for name in ("initial_state", "noise"))
    k_hat = (
        f"k-hat is that of all {latent} latent numbers of the new trials at once; small errors at each "
        "add up there, while rates, which hang on a few of them, are judged below against the truth."
    )
    print(k_hat)

    rate = read.posterior["rate"]
    smooth = langevin_flow.gaussian_smoothing(counts, _WIDTHS)
    best = smooth[int(np.argmax([langevin_flow.rate_r2(one, truth) for one in smooth]))]
    table = _scores(rate.mean(("chain", "draw")), best, truth)
    bits = float(langevin_flow.co_smoothing(read, counts, _HELD_OUT))
    most = langevin_flow.bits_per_spike(truth[..., _HELD_OUT], counts[..., _HELD_OUT])
    latents = [f.posterior["latent"].mean(("chain", "draw")) for f in (learnt, read)]
    behaviour = data["behaviour"]
    decoded = langevin_flow.decode(latents[0], behaviour[~new], latents[1], behaviour[new])
    print("\nShare of the variance of the true rates that is explained (R^2):")
    print(table.round(3).to_string())
    explained = 100 * table.loc["all neurons"].to_numpy()
    answer = (
        f"In trials that were not learnt from, the flow explains {explained[0]:.1f} % of the "
        f"variance of the rates, the best Gaussian kernel {explained[1]:.1f} %. Of neurons "
        f"it never sees, it tells the spikes by {bits:.3f} bits a spike; the true rates do by {most:.3f}. A line through "
        f"the hidden coordinates gives the Lorenz system's with R^2 = {float(decoded['r2_total']):.3f}."
    )
    print(f"\n{answer}")

    options.output.mkdir(parents=True, exist_ok=True)
    page = sj.report(
        read,
        options.output / "langevin_flow.html",
        title="Spikes that the Lorenz system drives, as a Langevin flow",
        sections=[
            sj.Section(
                "What are the rates?",
                [
                    _rates(rate, best, truth),
                    "One new trial: true rates, those of the flow (mean and 90 %), and the best Gaussian kernel, which "
                    "sees the spikes of every neuron.",
                    table.round(3),
                    answer,
                ],
            ),
            sj.Section(
                "What moves them?",
                [
                    _attractor(decoded["prediction"].values, behaviour[new].values),
                    "The new trials in the plane of the first and third coordinate of the Lorenz system: true, and read "
                    "off the hidden coordinates by ridge regression.",
                    dynamics,
                ],
            ),
            sj.Section("Has it learnt?", [_figures.elbo(bound), f"Of the trials to learn from. {k_hat}"]),
        ],
        open_browser=options.open,
    )
    print(f"\nReport: {page}  ({time.perf_counter() - started:.0f} s in all)")


def _dynamics(learnt) -> pd.DataFrame:
    found = learnt.params
    table = pd.DataFrame({name: found[name].values for name in ("stiffness", "coupling")})
    table.index.name = "coordinate"
    table["friction a bin"] = float(found["friction"] * found["time_step"])
    return table.round(3)


def _scores(flow, smooth, truth) -> pd.DataFrame:
    shown = np.setdiff1d(np.arange(truth.sizes["neuron"]), _HELD_OUT)
    groups = {"all neurons": slice(None), "neurons shown": shown, "neurons not shown": _HELD_OUT}
    each = {"flow": flow, "smoothing": smooth}
    rows = {
        name: {k: langevin_flow.rate_r2(v[..., which], truth[..., which]) for k, v in each.items()}
        for name, which in groups.items()
    }
    return pd.DataFrame(rows).T


def _rates(rate, smooth, truth):
    """Of one trial: a neuron that was shown, and two that were not."""
    figure, axes = _figures.panels(3, height=1.7)
    rate = rate.isel(trial=3)
    low, high = rate.quantile([0.05, 0.95], ("chain", "draw"))
    middle = rate.mean(("chain", "draw"))
    for axis, neuron in zip(axes, (1, 7, 21), strict=True):
        at = rate["time"].values
        axis.fill_between(
            at,
            low[:, neuron],
            high[:, neuron],
            color=_figures.LIGHT,
            alpha=0.6,
            linewidth=0,
            label="flow, 90 %",
        )
        axis.plot(at, middle[:, neuron], color=_figures.BLUE, label="flow, mean")
        axis.plot(at, smooth[3, :, neuron], color=_figures.WARM, linewidth=0.9, label="smoothing")
        axis.plot(at, truth[3, :, neuron], color=_figures.INK, linestyle="--", label="true")
        axis.set_ylabel(f"neuron {neuron}{', not shown' if neuron in _HELD_OUT else ''}")
        axis.margins(x=0.01)
    axes[0].legend(fontsize=8, frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0.0, 1.3))
    axes[-1].set_xlabel("bin")
    return figure


def _attractor(decoded, truth):
    figure, axes = _figures.panels(2, columns=2, height=3.2)
    for axis, paths, name in zip(axes, (truth, decoded), ("true", "read from the spikes"), strict=True):
        for path in paths:
            axis.plot(path[:, 0], path[:, 2], linewidth=1.0)
        axis.set(title=name, xlabel="x", ylabel="z", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1))
    return figure
