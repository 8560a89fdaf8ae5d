"""Command line: ``sojourn demo`` runs the main job on real data and writes a report page."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.models import hidden_markov

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``sojourn``.

    Example:
        >>> main(["demo", "--list"])
        hidden-markov    earthquakes of magnitude 7 or more, 1900-2006: how many regimes, and when?
        0
    """
    parser = argparse.ArgumentParser(prog="sojourn", description=sj.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="fit real data, print the verdict, write a report page")
    demo.add_argument("name", nargs="?", default="hidden-markov", choices=list(_DEMOS))
    demo.add_argument("--list", action="store_true", help="list the demonstrations")
    demo.add_argument("--output", type=Path, default=Path("reports"), help="folder of the page (reports/)")
    demo.add_argument("--num-samples", type=_positive, default=1000, help="draws a chain (1000)")
    demo.add_argument("--num-warmup", type=_positive, default=500, help="warm-up draws a chain (500)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args(arguments)
    if options.list:
        for name, (question, _) in _DEMOS.items():
            print(f"{name:16s} {question}")
        return 0
    _DEMOS[options.name][1](options)
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, not {text}")
    return value


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _earthquakes(options: argparse.Namespace) -> None:
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


_DEMOS = {
    "hidden-markov": (
        "earthquakes of magnitude 7 or more, 1900-2006: how many regimes, and when?",
        _earthquakes,
    )
}

if __name__ == "__main__":
    sys.exit(main())
