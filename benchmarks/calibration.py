"""Simulation-based calibration of every engine and every shipped system: is the truth ranked uniformly?

    python benchmarks/calibration.py [--quick] [--only NAME ...] [--results FILE] [--again] [--list]

Every entry draws parameters from a prior and data from its model, fits, and ranks the truth among the draws
(``sj.calibrate``; Talts, Betancourt, Simpson, Vehtari and Gelman 2018, arXiv:1804.06788). Uniformity is
judged by the simultaneous envelope of Säilynoja, Bürkner and Vehtari (2022, Statistics and Computing 32:32),
at a level of 1 % for all scalars of an entry together (Bonferroni). The seed of an entry is a checksum of
its name.

Results are appended to a file of JSON lines as they come, and entries that are there already are not run
again (``--again`` does). At the end the tables in ``docs/calibration.md`` are rewritten from the file.
``--quick`` runs a few simulations of each entry, to see that they run, and rewrites nothing. Everything runs
on the CPU, one chain a data set, in single precision save where the table says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import sojourn as sj
from sojourn.environments import Meadow, record
from sojourn.models import (
    exceedance,
    fractional_sde,
    hidden_markov,
    jump_process,
    langevin_flow,
    maximum_caliber,
)
from sojourn.models.covariance import Diffusion, Matern52
from sojourn.models.laws import World, meadow_laws, meadow_space

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "calibration.md"
ENGINES, SYSTEMS = "engines", "systems"


@dataclass(frozen=True)
class Entry:
    """One row: a model, an example of its data, an engine, and how much of it."""

    name: str
    table: str
    model: str
    """What the model is, in words."""
    call: Callable[[], tuple[Any, ...]]
    """Makes the model and its arguments."""
    engine: Any = "nuts"
    label: str | None = None
    """Of the engine, where it is not its name."""
    simulations: int = 100
    samples: int = 990
    warmup: int = 500
    ranked: int = 99
    x64: bool = False
    approximate: bool = False
    """The engine makes no claim to be exact."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keywords of the model."""

    @property
    def seed(self) -> int:
        """Different for every entry, so that their data sets are, and nobody's choice."""
        return zlib.crc32(self.name.encode()) % 2**31

    @property
    def engine_label(self) -> str:
        return self.label or str(self.engine)


# -------------------------------------------------------------------------------------- models of the engines


def level_and_scale(y):
    sigma = numpyro.sample("sigma", dist.Gamma(4.0, 4.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def minibatches(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(y), subsample_size=20) as chosen:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[chosen])


def local_level(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    q = numpyro.sample("q", dist.LogNormal(-0.7, 0.4))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(mu + 0.8 * (x - mu), q))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(mu, 0.5)), y)


def two_coins(heads):
    stay = numpyro.sample("stay", dist.Beta(6.0, 2.0))
    p = numpyro.sample("p", dist.Uniform(0.5, 1.0))

    def step(coin, h):
        coin = numpyro.sample("coin", dist.Bernoulli(jnp.where(coin == 1, stay, 1.0 - stay)))
        numpyro.sample("heads", dist.Bernoulli(jnp.where(coin == 1, p, 0.2)), obs=h)
        return coin, None

    scan(step, 0, heads)


LEVELS = (level_and_scale, np.zeros(10))
POISSON = {"num_states": 2, "rate_prior": dist.LogNormal(1.5, 0.7)}

# ---------------------------------------------------------------------------------------------------- systems


def negative_binomial(num_states):
    with numpyro.plate("state", num_states):
        # One chain that starts with its states the wrong way round stays there, in a mode of no weight.
        law = dist.LogNormal(np.array([0.0, 2.0]), 0.5)
        mean = numpyro.sample("mean", law, infer={"init": np.exp([0.0, 2.0])})
    return lambda state: dist.NegativeBinomial2(mean[state], 5.0)


def poisson_levels(num_states):
    with numpyro.plate("state", num_states):
        law = dist.LogNormal(np.array([0.0, 1.5]), 0.4)
        mean = numpyro.sample("mean", law, infer={"init": np.exp([0.0, 1.5])})
    return lambda state: dist.Poisson(mean[state])


RATES = {"rate_prior": dist.LogNormal(-0.7, 0.5), "max_rate": 20.0}
VISITS = np.arange(12) * 0.7
RING = np.array([[-2.0, 1.0, 1.0], [1.0, -2.0, 1.0], [1.0, 1.0, -2.0]])
TILT = dist.Normal(0.0, 0.5)
AROUND = np.array([[[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]])
CHANNEL = {
    "voltages": np.array([-60.0, -20.0, 20.0]),
    "gating_charge_prior": dist.Normal(2.0, 1.0),
    "preference_prior": dist.Normal(0.0, 1.0),
    "activity_prior": dist.LogNormal(0.0, 0.5),
}
INTERVAL = dist.LogNormal(0.0, 0.5)
NOISY_PATH = {
    "hurst": dist.Uniform(0.1, 0.9),
    "diffusion": dist.LogNormal(0.0, 0.5),
    "observation_noise": dist.LogNormal(-1.0, 0.5),
    "initial": 0.0,
    "step": 1.0,
}


def return_rate():
    rate = numpyro.sample("rate", dist.LogNormal(-1.0, 0.5))
    return lambda x: -rate * x


def first_states(num_series, num_states):
    """Labels that start in every state: with ``initial="observed"`` the first ones are kept."""
    return np.broadcast_to((np.arange(num_series) % num_states)[:, None], (num_series, len(VISITS))).astype(
        int
    )


def no_jumps(num_series, room):
    """Paths without a jump, with room for ``room``."""
    paths = np.zeros((num_series, room + 1, 2))
    paths[:, 1:, 0] = 5.0
    paths[..., 1] = (np.arange(num_series) % 2)[:, None]
    return paths


def known_flow(counts, **options):
    """The latent flow with what it would learn held fixed."""
    rng = np.random.default_rng(0)
    neurons = np.shape(counts)[-1]
    known = {"loading": 0.7 * rng.normal(size=(2, neurons)), "baseline": np.full(neurons, 0.5)}
    handlers.substitute(langevin_flow.spikes, data=known)(
        counts, num_dims=2, friction=0.7, time_step=0.3, **options
    )


def meadow(pool):
    """A world of seven laws and 150 transitions, every situation a row of its own.

    Equal situations are merged where a world is fitted; what is simulated has to differ between them.
    """
    world = World(meadow_space(), meadow_laws(), pool=pool, penalty=1.0)
    routed = world.route(*record(Meadow(), 150, seed=1))
    rows = routed.rows
    which = np.repeat(np.arange(rows.num_rows), np.asarray(routed.count).astype(int))
    apart = {n: np.asarray(getattr(rows, n))[which] for n in rows._fields if n != "several"}
    several = np.flatnonzero(np.isin(which, rows.several))
    routed = replace(
        routed,
        rows=rows._replace(**apart, several=several),
        value=np.asarray(routed.value)[which],
        count=np.ones(len(which)),
    )
    return world.model, routed


def of(model, *args):
    return lambda: (model, *args)


SHORT = {"warmup": 300}
COSTLY = {"simulations": 50, **SHORT}

ENTRIES = [
    # ------------------------------------------------------------------------------------------------ engines
    Entry("nuts", ENGINES, "normal, level and scale unknown", of(*LEVELS)),
    Entry("langevin", ENGINES, "normal, level and scale unknown", of(*LEVELS), "langevin"),
    Entry("mclmc", ENGINES, "normal, level and scale unknown", of(*LEVELS), "mclmc", approximate=True),
    Entry("adjusted_mclmc", ENGINES, "normal, level and scale unknown", of(*LEVELS), "adjusted_mclmc"),
    Entry(
        "underdamped_langevin",
        ENGINES,
        "normal, level and scale unknown",
        of(*LEVELS),
        "underdamped_langevin",
        approximate=True,
    ),
    Entry(
        "stochastic_gradient",
        ENGINES,
        "normal, level unknown, minibatches of 20 out of 100",
        of(minibatches, jnp.zeros(100)),
        "stochastic_gradient",
        samples=4950,
        approximate=True,
    ),
    Entry(
        "svi",
        ENGINES,
        "normal, level and scale unknown",
        of(*LEVELS),
        sj.Variational(num_restarts=1),
        "svi",
        simulations=25,
        approximate=True,
    ),
    Entry(
        "particle_gibbs",
        ENGINES,
        "linear-Gaussian state, 20 steps",
        of(local_level, np.zeros(20)),
        "particle_gibbs",
    ),
    Entry(
        "particle_marginal",
        ENGINES,
        "linear-Gaussian state, 20 steps",
        of(local_level, np.zeros(20)),
        "particle_marginal",
        samples=2970,
    ),
    Entry(
        "blocked_gibbs",
        ENGINES,
        "hidden Markov, Poisson, path form, 20 steps",
        of(hidden_markov.poisson, np.zeros(20, int)),
        "blocked_gibbs",
        samples=1980,
        options={**POISSON, "path": True},
    ),
    Entry(
        "nuts_summed_out",
        ENGINES,
        "two coins, discrete path summed out, 30 steps",
        of(two_coins, np.zeros(30, int)),
    ),
    Entry(
        "score_ascent",
        ENGINES,
        "linear-Gaussian state, 100 steps",
        of(local_level, np.zeros(100)),
        sj.ScoreAscent(prior=True, num_steps=200),
        "score_ascent (prior=True)",
        simulations=12,
        samples=99,
        approximate=True,
    ),
    # ------------------------------------------------------------------------------------------------ systems
    Entry(
        "hidden_markov.poisson",
        SYSTEMS,
        "2 states, 40 steps",
        of(hidden_markov.poisson, np.zeros(40, int)),
        options=POISSON,
    ),
    Entry(
        "hidden_markov.normal",
        SYSTEMS,
        "2 states, 40 steps",
        of(hidden_markov.normal, np.zeros(40)),
        options={
            "num_states": 2,
            "loc_prior": dist.Normal(0.0, 2.0),
            "scale_prior": dist.LogNormal(-0.5, 0.5),
        },
    ),
    Entry(
        "hidden_markov.multivariate_normal",
        SYSTEMS,
        "2 states told apart by their priors, 2 dimensions, 30 steps",
        of(hidden_markov.multivariate_normal, np.zeros((30, 2))),
        **COSTLY,
        options={
            "num_states": 2,
            "loc_prior": dist.Normal(np.array([[-1.5, 0.0], [1.5, 0.0]]), 0.7).to_event(1),
            "scale_prior": dist.LogNormal(np.full(2, -0.3), 0.4).to_event(1),
        },
    ),
    Entry(
        "hidden_markov.categorical",
        SYSTEMS,
        "2 states, 3 categories, 12 series of 8 that start in the first state",
        of(hidden_markov.categorical, np.zeros((12, 8), int)),
        **COSTLY,
        options={"num_states": 2, "num_categories": 3, "initial": np.array([1.0, 0.0]), "stickiness": 2.0},
    ),
    Entry(
        "hidden_markov.model",
        SYSTEMS,
        "negative binomial, 2 states, 40 steps, covariate on the moves",
        of(hidden_markov.model, np.zeros(40, int), negative_binomial),
        **COSTLY,
        options={"num_states": 2, "covariates": np.sin(np.arange(40.0))[:, None]},
    ),
    Entry(
        "jump_process.panel",
        SYSTEMS,
        "3 states, 6 series of 12 visits",
        of(jump_process.panel, first_states(6, 3), VISITS),
        **SHORT,
        options={"num_states": 3, **RATES},
    ),
    Entry(
        "jump_process.misclassified",
        SYSTEMS,
        "2 states, 6 series of 12 visits",
        of(jump_process.misclassified, first_states(6, 2), VISITS),
        **COSTLY,
        options={"num_states": 2, **RATES},
    ),
    Entry(
        "jump_process.normal",
        SYSTEMS,
        "2 states, 4 series of 12 readings",
        of(jump_process.normal, np.zeros((4, 12)), VISITS),
        **COSTLY,
        options={
            "num_states": 2,
            "loc_prior": dist.Normal(0.0, 2.0),
            "scale_prior": dist.LogNormal(-0.7, 0.5),
            **RATES,
        },
    ),
    Entry(
        "jump_process.model",
        SYSTEMS,
        "Poisson counts, 2 states, 4 series of 12 readings",
        of(jump_process.model, np.zeros((4, 12), int), VISITS, poisson_levels),
        **COSTLY,
        options={"num_states": 2, **RATES},
    ),
    Entry(
        "jump_process.complete",
        SYSTEMS,
        "2 states, 6 paths of duration 5",
        of(jump_process.complete, no_jumps(6, 60), np.full(6, 5.0)),
        **SHORT,
        options={"num_states": 2, "rate_prior": RATES["rate_prior"], "time_unit": 1.0},
    ),
    Entry(
        "maximum_caliber.complete_record",
        SYSTEMS,
        "ring of 3 states, one current",
        of(maximum_caliber.complete_record, 1 - np.eye(3, dtype=int), np.full(3, 5.0)),
        **SHORT,
        options={"rate_matrix": RING, "jump": AROUND, "tilt_prior": TILT},
    ),
    Entry(
        "maximum_caliber.long_run_averages",
        SYSTEMS,
        "ring of 3 states, one current, 2 records",
        of(maximum_caliber.long_run_averages, np.zeros((2, 1))),
        **SHORT,
        options={"rate_matrix": RING, "jump": AROUND, "tilt_prior": TILT, "duration": 30.0},
    ),
    Entry(
        "maximum_caliber.voltage_gated_channel",
        SYSTEMS,
        "3 voltages",
        of(
            maximum_caliber.voltage_gated_channel,
            np.broadcast_to((np.abs(np.subtract.outer(range(3), range(3))) == 1).astype(int), (3, 3, 3)),
            np.full((3, 3), 5.0),
        ),
        **SHORT,
        options=CHANNEL,
    ),
    Entry(
        "maximum_caliber.voltage_gated_channel_averages",
        SYSTEMS,
        "3 voltages",
        of(maximum_caliber.voltage_gated_channel_averages, np.full((3, 3), 0.5)),
        **SHORT,
        options={**CHANNEL, "duration": 50.0},
    ),
    Entry(
        "exceedance.durations",
        SYSTEMS,
        "dimension and mean interval unknown, 50 excursions",
        of(exceedance.durations, np.ones(50)),
        **SHORT,
        x64=True,
        options={"covariance": Diffusion, "mean_interval": INTERVAL},
    ),
    Entry(
        "exceedance.durations_level",
        SYSTEMS,
        "level and mean interval unknown, 30 excursions on each side",
        of(exceedance.durations, np.ones(60)),
        **COSTLY,
        x64=True,
        options={
            "covariance": Matern52(),
            "mean_interval": INTERVAL,
            "level": "free",
            "side": np.where(np.arange(60) % 2 == 0, 1, -1),
        },
    ),
    Entry(
        "exceedance.run_lengths",
        SYSTEMS,
        "mean interval unknown, 50 runs of readings 0.2 apart",
        of(exceedance.run_lengths, np.full(50, 5)),
        **COSTLY,
        x64=True,
        options={"covariance": Matern52(), "mean_interval": INTERVAL, "step": 0.2},
    ),
    Entry(
        "exceedance.noisy_signs",
        SYSTEMS,
        "mean interval and error rate unknown, 60 readings 0.2 apart",
        of(exceedance.noisy_signs, (np.arange(60) // 5 % 2).astype(float)),
        **COSTLY,
        x64=True,
        options={"covariance": Matern52(), "mean_interval": INTERVAL, "step": 0.2, "num_ages": 60},
    ),
    Entry(
        "exceedance.slepian",
        SYSTEMS,
        "path after a crossing, 8 readings, noise unknown",
        of(exceedance.slepian, np.zeros(8)),
        **SHORT,
        x64=True,
        options={
            "times": np.arange(1, 9) * 0.4,
            "covariance": Matern52(),
            "noise": dist.LogNormal(-1.0, 0.5),
        },
    ),
    Entry(
        "fractional_sde.linear",
        SYSTEMS,
        "30 steps, Hurst index, rate, diffusion and noise unknown",
        of(fractional_sde.linear, np.zeros(30)),
        **COSTLY,
        options={**NOISY_PATH, "rate": dist.LogNormal(-1.0, 0.5), "offset": 0.0},
    ),
    Entry(
        "fractional_sde.sde",
        SYSTEMS,
        "10 steps, all unknown, the path sampled",
        of(fractional_sde.sde, np.zeros(10)),
        **COSTLY,
        options={**NOISY_PATH, "drift": return_rate},
    ),
    Entry(
        "langevin_flow.spikes",
        SYSTEMS,
        "2 coordinates, 8 neurons, 10 bins; parameters held, the path sampled",
        of(known_flow, np.zeros((10, 8), int)),
        **COSTLY,
    ),
    Entry("laws.World, hazard", SYSTEMS, "the meadow's 7 laws, 150 transitions", lambda: meadow("hazard")),
    Entry("laws.World, product", SYSTEMS, "the meadow's 7 laws, 150 transitions", lambda: meadow("product")),
    Entry(
        "fractional_sde.sde, svi",
        SYSTEMS,
        "10 steps, all unknown",
        of(fractional_sde.sde, np.zeros(10)),
        sj.Variational(max_steps=3000),
        "svi (path guide)",
        simulations=12,
        samples=99,
        approximate=True,
        options={**NOISY_PATH, "drift": return_rate},
    ),
]


# ---------------------------------------------------------------------------------------------------- running


def run(entry: Entry, quick: bool) -> dict[str, Any]:
    """The line of results of one entry."""
    simulations = 3 if quick else entry.simulations
    precision = jax.enable_x64(True) if entry.x64 else contextlib.nullcontext()
    wall, cpu = time.perf_counter(), time.process_time()
    with precision:
        model, *args = entry.call()
        result = sj.calibrate(
            model,
            *args,
            engine=entry.engine,
            num_simulations=simulations,
            num_samples=entry.samples,
            num_warmup=entry.warmup,
            num_ranked=entry.ranked,
            seed=entry.seed,
            progress_bar=False,
            **entry.options,
        )
    p, ranks = {}, {}
    p_values = result.p_values()
    for name, array in result.ranks.data_vars.items():
        columns = array.transpose("simulation", ...).values.reshape(simulations, -1)
        for i, one in enumerate(np.ravel(p_values[name].values)):
            label = name if columns.shape[1] == 1 else f"{name}[{i}]"
            p[label], ranks[label] = float(one), (columns[:, i] + 0.5) / (entry.ranked + 1)
    worst = min(p, key=lambda label: p[label])
    return {
        "name": entry.name,
        "quick": quick,
        "simulations": simulations,
        "warmup": entry.warmup,
        "samples": entry.samples,
        "ranked": entry.ranked,
        "x64": entry.x64,
        "scalars": len(p),
        "worst": worst,
        "p": p[worst],
        "ok": bool(result.ok),
        # Below one half the truth lies low among the draws; a spread above one: posteriors too narrow.
        "mean_rank": float(ranks[worst].mean()),
        "rank_spread": float(ranks[worst].std() * np.sqrt(12.0)),
        "p_values": {n: round(v, 5) for n, v in p.items()},
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The last full line of each entry."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.strip()]
    return {line["name"]: line for line in found if not line["quick"]}


def verdict(line: dict[str, Any]) -> str:
    if line["ok"]:
        return "inside"
    side = f"`{line['worst']}`: mean rank {line['mean_rank']:.2f}, spread {line['rank_spread']:.2f}"
    return f"**outside** ({side})"


def table(entries: Sequence[Entry], results: dict[str, dict[str, Any]], before: str) -> str:
    """Markdown. Entries without results keep the row that they have in the table before."""
    old = {row.split(" | ")[0]: row for row in before.splitlines() if "| not run |" not in row}
    rows = [
        "| entry | model | engine | simulations x ranked draws | scalars | smallest p | envelope, 1 % | CPU s |",
        "|---|---|---|---:|---:|---:|---|---:|",
    ]
    for entry in entries:
        engine = f"`{entry.engine_label}`" + (" (approximate)" if entry.approximate else "")
        model = entry.model + (", float64" if entry.x64 else "")
        line = results.get(entry.name)
        if line is None:
            blank = f"| {entry.name} | {model} | {engine} | | | | not run | |"
            rows.append(old.get(f"| {entry.name}", blank))
            continue
        size = f"{line['simulations']} x {line['ranked']}"
        rows.append(
            f"| {entry.name} | {model} | {engine} | {size} | {line['scalars']} | {line['p']:.2g} | "
            f"{verdict(line)} | {line['cpu_s']:.0f} |"
        )
    return "\n".join(rows)


def rewrite(page: Path, results: dict[str, dict[str, Any]]) -> None:
    """Put the tables between their markers."""
    text = page.read_text()
    for which in (ENGINES, SYSTEMS):
        begin, end = f"<!-- {which}: begin -->", f"<!-- {which}: end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} has no markers {begin} and {end}: put them where the table belongs.")
        before, rest = text.split(begin)
        old, after = rest.split(end)
        chosen = [entry for entry in ENTRIES if entry.table == which]
        text = f"{before}{begin}\n{table(chosen, results, old)}\n{end}{after}"
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--quick", action="store_true", help="3 simulations each, to see that they run")
    parser.add_argument("--again", action="store_true", help="run what is in the results already, too")
    parser.add_argument("--list", action="store_true", help="the entries, and whether they have been run")
    parser.add_argument("--results", type=Path, default=ROOT / "reports" / "calibration.jsonl")
    asked = parser.parse_args()
    done = read_results(asked.results)
    if asked.list:
        for name in names:
            print(f"{name}: {'run' if name in done else 'not run'}")
        return
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    for entry in ENTRIES:
        if entry.name not in asked.only or (entry.name in done and not asked.again and not asked.quick):
            continue
        print(f"{entry.name} ...", end=" ", flush=True)
        try:
            line = run(entry, asked.quick)
        except Exception as error:  # the others are still to come
            print(f"FAILED: {type(error).__name__}: {error}", flush=True)
            failed.append(entry.name)
            continue
        with asked.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        jax.clear_caches()
        print(
            f"{'inside' if line['ok'] else 'OUTSIDE'}: p = {line['p']:.2g} ({line['worst']}), "
            f"{line['scalars']} scalars, {line['wall_s']:.0f} s ({line['cpu_s']:.0f} s of CPU)",
            flush=True,
        )
        if not asked.quick:
            rewrite(PAGE, read_results(asked.results))
    if not asked.quick:
        rewrite(PAGE, read_results(asked.results))
    if failed:
        raise SystemExit(f"Did not run: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
