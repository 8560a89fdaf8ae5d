"""Many short series: ``fit_many`` beside a loop of ``sojourn.fit`` and one vectorised run of plain NumPyro.

    python benchmarks/fit_many.py [--series N] [--looped N] [--only autoregression|poisson] [--threads N]
                                  [--batch-size N ...] [--no-numpyro]

Series of an AR(1) process (50 steps, 3 parameters, written by hand) and counts of a two-state hidden Markov model
(100 steps, 4 parameters), two chains of 500 draws after 500 of warm-up. The loop is measured on a few series and
multiplied; everything else is measured in full. Prints a Markdown table of wall-clock and processor seconds: on a
machine with other work on it, compare the latter. It never fails for being slow.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

import sojourn as sj
from sojourn.inference._fit_many import fit_many
from sojourn.models import hidden_markov

SIZES = {"num_warmup": 500, "num_samples": 500}
CHAINS = 2
TARGET = 20.0


def autoregression(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    numpyro.sample("y", dist.Normal(mean + phi * (y[:-1] - mean), sigma), obs=y[1:])


def poisson(counts):
    hidden_markov.poisson(counts, num_states=2)


def autoregressions(number: int, steps: int = 50) -> np.ndarray:
    rng = np.random.default_rng(0)
    y, phi = np.zeros((number, steps), np.float32), rng.uniform(0.0, 0.9, number)
    for t in range(1, steps):
        y[:, t] = phi * y[:, t - 1] + rng.normal(size=number)
    return y


def counts(number: int, steps: int = 100) -> np.ndarray:
    rng = np.random.default_rng(0)
    state = np.zeros((number, steps), int)
    for t in range(1, steps):
        state[:, t] = np.where(rng.random(number) < 0.1, 1 - state[:, t - 1], state[:, t - 1])
    return rng.poisson(np.where(state == 0, 2.0, 8.0)).astype(np.float32)


class Cost(NamedTuple):
    wall: float
    processor: float


def cost(run: Callable[[], Any]) -> tuple[Cost, Any]:
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return Cost(time.perf_counter() - wall, time.process_time() - processor), result


def loop(model: Callable[..., Any], series: np.ndarray) -> None:
    for i, y in enumerate(series):
        sj.fit(model, y, num_chains=CHAINS, seed=i, progress_bar=False, **SIZES)


def plain_numpyro(model: Callable[..., Any], series: np.ndarray) -> Any:
    """All series and chains in one ``vmap``."""

    def one(key, y):
        mcmc = MCMC(NUTS(model), progress_bar=False, **SIZES)
        mcmc.run(key, y)
        return mcmc.get_samples()

    keys = jax.random.split(jax.random.key(0), CHAINS * len(series))
    return jax.block_until_ready(jax.jit(jax.vmap(one))(keys, np.repeat(series, CHAINS, 0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--looped", type=int, default=3, help="series that the loop is measured on")
    parser.add_argument("--only", choices=("autoregression", "poisson"))
    parser.add_argument("--threads", type=int, default=0, help="also with an executor of so many threads")
    parser.add_argument("--batch-size", type=int, nargs="*", default=[], help="other sizes than the default")
    parser.add_argument("--no-numpyro", action="store_true")
    options = parser.parse_args()
    number = options.series
    for model, data in ((autoregression, autoregressions), (poisson, counts)):
        if options.only not in (None, model.__name__):
            continue
        series = data(number)
        print(f"\n{number} series, {model.__name__}, {CHAINS} chains of 500 + 500\n")
        print(
            "| program | wall, s | processor, s | loop / this, wall | processor |\n|---|---:|---:|---:|---:|"
        )
        few, _ = cost(lambda model=model, series=series: loop(model, series[: options.looped]))
        looped = Cost(*(number / options.looped * x for x in few))
        rows, ours = {"`fit_many`": {}}, looped
        rows |= {f"`fit_many`, `batch_size={n}`": {"batch_size": n} for n in options.batch_size}
        show(f"loop of `fit`, {number} / {options.looped} times {options.looped} series", looped, looped)
        for name, settings in rows.items():
            spent, many = cost(
                lambda settings=settings, model=model, series=series: fit_many(
                    model, series, progress_bar=False, num_chains=CHAINS, **SIZES, **settings
                )
            )
            show(name, spent, looped)
            if not settings:
                ours = spent
        if options.threads:
            with ThreadPoolExecutor(options.threads) as pool:
                spent, _ = cost(
                    lambda pool=pool, model=model, series=series: fit_many(
                        model, series, executor=pool, progress_bar=False, num_chains=CHAINS, **SIZES
                    )
                )
            show(f"`fit_many`, {options.threads} threads", spent, looped)
        if not options.no_numpyro:
            spent, _ = cost(lambda model=model, series=series: plain_numpyro(model, series))
            show("plain NumPyro, one `vmap`", spent, looped)
        table, _ = cost(many.summary)
        print(f"\n{many!r}\n`summary()`: {table.processor:.1f} s.")
        ratio = looped.processor / ours.processor
        met = "met" if ratio >= TARGET else "MISSED"
        print(f"Target: {TARGET:g} times less processor time than the loop: {ratio:.0f}, {met}.", flush=True)


def show(name: str, spent: Cost, looped: Cost) -> None:
    print(
        f"| {name} | {spent.wall:.1f} | {spent.processor:.1f} | {looped.wall / spent.wall:.1f} "
        f"| {looped.processor / spent.processor:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
