"""Excursion times beside what one can do today: simulating paths, and least squares on the arcsine law.

    python benchmarks/exceedance.py [--quick] [--only value|survival|moments] [--repeats N]

Parts:

- ``value``: density and gradient in (mean interval, dimension) of 100 to 4000 durations; CPU milliseconds once compiled,
  CPU seconds of the first call in a fresh interpreter (imports apart).
- ``survival``: the survival function of zero-crossing intervals from simulated paths (circulant embedding, NumPy, step
  0.01 mean intervals), how many intervals it takes until its error is that of the independent-interval law, and what
  they cost; beside one call of the law.
- ``moments``: records of one bit, about a thousand runs each at a step of 0.05 mean intervals: the likelihood of the
  runs against least squares of the sign autocorrelation on the arcsine law (60 lags, to 3 mean intervals); root mean
  square errors of the logarithms of mean interval and dimension, and the CPU seconds of a fit.

One core, float64.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hidden_markov import Target, _python, table

from sojourn.distributions import CensoredExcursion, ExcursionTime, SignRuns
from sojourn.models import exceedance
from sojourn.models.covariance import Diffusion

FIRST_CALL = """
import json, time
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
from sojourn.distributions import ExcursionTime
from sojourn.models.covariance import Diffusion
data = np.random.default_rng(0).gamma(1.3, 5.0, 4000)
start = time.process_time()
def loss(mean, dimension):
    return -ExcursionTime(Diffusion(dimension).with_mean_interval(mean)).log_prob(data).sum()
jax.block_until_ready(jax.jit(jax.value_and_grad(loss, (0, 1)))(6.0, 2.0))
print(json.dumps(time.process_time() - start))
"""


def bench_value(repeats: int, quick: bool) -> list[Any]:
    print("### Value and gradient\n")
    law = ExcursionTime(Diffusion(2.0))
    data = np.asarray(law.sample(jax.random.key(0), (4000,)))

    @jax.jit
    def program(mean, dimension, durations):
        def loss(mean, dimension):
            return -ExcursionTime(Diffusion(dimension).with_mean_interval(mean)).log_prob(durations).sum()

        return jax.value_and_grad(loss, (0, 1))(mean, dimension)

    rows, times = [], {}
    for count in (100, 1000, 4000):
        durations = jnp.asarray(data[:count])
        jax.block_until_ready(program(6.0, 2.0, durations))
        taken = []
        for n in range(repeats):
            start = time.process_time()
            for k in range(20):
                result = program(6.0 + 0.001 * n, 2.0 + 0.001 * k, durations)
            jax.block_until_ready(result)
            taken.append((time.process_time() - start) / 20 * 1e3)
        times[count] = (statistics.median(taken), min(taken))
        rows.append([str(count), f"{times[count][0]:.2f}", f"{times[count][1]:.2f}"])
    table(["durations", "CPU ms, median", "min"], rows)
    first = [json.loads(_python("-c", FIRST_CALL).stdout) for _ in range(1 if quick else 5)]
    print(f"First call, fresh interpreter: {statistics.median(first):.2f} CPU s (min {min(first):.2f}).\n")
    return [
        Target("CPU ms for value and gradient of 4000 durations", 3.0, *times[4000], at_least=False),
        Target(
            "the same, 4000 / 100 durations",
            3.0,
            times[4000][0] / times[100][0],
            times[4000][1] / times[100][1],
            at_least=False,
        ),
        Target("CPU s until a first value", 5.0, statistics.median(first), min(first), at_least=False),
    ]


def spectrum(covariance: Any, num_steps: int, step: float) -> np.ndarray:
    """Eigenvalues of the circulant that the covariance is embedded in."""
    r = np.asarray(covariance(step * np.arange(num_steps + 1)))
    return np.maximum(np.fft.rfft(np.concatenate([r, r[-2:0:-1]])).real, 0.0)


def simulate(rng: np.random.Generator, eigenvalues: np.ndarray) -> np.ndarray:
    """A path of the process, as a user would make it in NumPy."""
    num_steps = len(eigenvalues) - 1
    noise = rng.standard_normal((2, num_steps + 1))
    z = (noise[0] + 1j * noise[1]) * np.sqrt(eigenvalues * num_steps)
    z[[0, -1]] = z[[0, -1]].real * np.sqrt(2)
    return np.fft.irfft(z, 2 * num_steps)[: num_steps + 1]


def crossings(path: np.ndarray, step: float) -> np.ndarray:
    change = np.flatnonzero((path[1:] > 0) != (path[:-1] > 0))
    return (change + path[change] / (path[change] - path[change + 1])) * step


def bench_survival(repeats: int, quick: bool) -> list[Any]:
    print("### Survival function: one call, or simulated paths\n")
    covariance = Diffusion(2.0)
    law = ExcursionTime(covariance)
    mean = float(law.mean)
    grid = np.linspace(0.05, 6.0, 120) * mean
    evaluate = jax.jit(lambda c, t: ExcursionTime(c).survival(t))
    jax.block_until_ready(evaluate(covariance, grid))
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        jax.block_until_ready(evaluate(covariance, grid))
        taken.append(time.process_time() - start)
    ours = statistics.median(taken)
    approximate = np.asarray(law.survival(grid))

    step, size = 0.01 * mean, 2 ** (17 if quick else 20)
    eigenvalues = spectrum(covariance, size, step)
    rng, blocks, cost = np.random.default_rng(1), [], []
    for _ in range(2 if quick else 12):
        start = time.process_time()
        blocks.append(np.diff(crossings(simulate(rng, eigenvalues), step)))
        cost.append(time.process_time() - start)
    every = np.concatenate(blocks)
    truth = np.array([(every > t).mean() for t in grid])
    ours_error = float(np.abs(approximate - truth).max())
    # The largest error of an empirical survival function over the grid, by resampling 100 stretches.
    rows, needed = [], None
    for count in (n for n in (1000, 3000, 10_000, 30_000) if n <= len(every) // 3):
        starts = rng.integers(0, max(1, len(every) - count), 100)
        errors = [
            np.abs(np.array([(every[s : s + count] > t).mean() for t in grid]) - truth).max() for s in starts
        ]
        error, price = float(np.median(errors)), sum(cost) / len(every) * count
        rows.append([f"paths, {count} intervals", f"{error:.4f}", f"{price * 1e3:.1f}"])
        if needed is None and error <= ours_error:
            needed = price
    rows.append(["independent intervals, one call", f"{ours_error:.4f}", f"{ours * 1e3:.2f}"])
    table(["survival function", "largest error", "CPU ms"], rows)
    print(
        f"Truth: {len(every)} simulated intervals (its own error about {0.8 / np.sqrt(len(every)):.4f}). The call gives "
        "gradients in the hyper-parameters as well; paths do not.\n"
    )
    ratio = (needed or price) / ours
    return [Target("CPU time of paths of the same accuracy / one call", 1.0, ratio, ratio)]


def bench_moments(repeats: int, quick: bool) -> list[Any]:
    from scipy.optimize import least_squares, minimize

    print("### One-bit records: likelihood of the runs, or moments\n")
    covariance = Diffusion(2.0)
    mean, truth = 2 * np.pi, np.log([2 * np.pi, 2.0])
    step, segment = 0.05 * mean, 20_000
    segments = 6 if quick else 39
    rng = np.random.default_rng(2)
    fine = simulate(rng, spectrum(covariance, segments * segment, step))
    signs = (fine[: segments * segment] > 0).reshape(segments, segment)

    @jax.jit
    def loss(z, lengths, kinds):
        law = ExcursionTime(Diffusion(jnp.exp(z[1])).with_mean_interval(jnp.exp(z[0])))
        runs = CensoredExcursion(SignRuns(law, step), kinds, among=["complete", "right", "first"])
        weight = jnp.arange(lengths.shape[0]) < count_of(kinds)
        return -jnp.where(weight, runs.log_prob(lengths), 0.0).sum()

    def count_of(kinds):
        return jnp.sum(kinds >= 0)

    gradient = jax.jit(jax.value_and_grad(loss))
    lags = np.arange(1, 61)
    estimates: dict[str, list[np.ndarray]] = {"runs": [], "arcsine": []}
    seconds: dict[str, list[float]] = {"runs": [], "arcsine": []}
    room = 2048
    for row in signs:
        runs = exceedance.sign_runs(row)
        lengths, kinds = np.ones(room), np.full(room, -1)
        lengths[: runs.sizes["run"]] = runs["length"].values
        kinds[: runs.sizes["run"]] = runs["kind"].values
        start_at = np.log([step * segment / runs.sizes["run"], 1.5])
        lengths, kinds = jnp.asarray(lengths), jnp.asarray(kinds)
        gradient(jnp.asarray(start_at), lengths, kinds)

        start = time.process_time()
        found = minimize(
            lambda z, data: tuple(np.asarray(x, float) for x in gradient(jnp.asarray(z), *data)),
            start_at,
            args=((lengths, kinds),),
            jac=True,
            method="L-BFGS-B",
            bounds=[(start_at[0] - 1, start_at[0] + 1), (np.log(0.05), np.log(50.0))],
        )
        seconds["runs"].append(time.process_time() - start)
        estimates["runs"].append(found.x)

        start = time.process_time()
        s = np.where(row, 1.0, -1.0)
        sample = np.array([(s[k:] * s[:-k]).mean() for k in lags])

        def gap(z, sample):
            t = step * lags
            scale = np.exp(z[0]) * np.sqrt(np.exp(z[1]) / 8) / np.pi
            r = np.cosh(t / (2 * scale)) ** (-np.exp(z[1]) / 2)
            return 2 / np.pi * np.arcsin(r) - sample

        fitted = least_squares(
            gap,
            start_at,
            args=(sample,),
            bounds=([start_at[0] - 1, np.log(0.05)], [start_at[0] + 1, np.log(50.0)]),
        )
        seconds["arcsine"].append(time.process_time() - start)
        estimates["arcsine"].append(fitted.x)
    rows, errors = [], {}
    for name, label in (("runs", "likelihood of the runs"), ("arcsine", "least squares on the arcsine law")):
        gap_ = np.array(estimates[name]) - truth
        errors[name] = np.sqrt((gap_**2).mean(0))
        rows.append(
            [
                label,
                *(f"{e:.3f}" for e in errors[name]),
                *(f"{b:+.3f}" for b in gap_.mean(0)),
                f"{statistics.median(seconds[name]):.2f}",
            ]
        )
    table(["estimator", "RMSE log mean interval", "RMSE log dimension", "bias", "bias", "CPU s"], rows)
    ratio = float(errors["arcsine"][1] / errors["runs"][1])
    spread = np.array(estimates["arcsine"])[:, 1] - truth[1]
    ours = np.array(estimates["runs"])[:, 1] - truth[1]
    robust = float(np.median(np.abs(spread)) / np.median(np.abs(ours)))
    print(f"{segments} records of {segment} readings, about {segment * step / mean:.0f} runs each.\n")
    return [
        Target("RMSE of log dimension, arcsine law / likelihood", 2.0, ratio, ratio),
        Target("median absolute error of log dimension, arcsine law / likelihood", 1.0, robust, robust),
    ]


PARTS = {
    "value": (bench_value, 15, 5),
    "survival": (bench_survival, 15, 5),
    "moments": (bench_moments, 1, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few repeats, short paths")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--repeats", type=int, help="timed calls of each program")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    jax.config.update("jax_enable_x64", True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("sojourn", "numpyro", "jax"))
    print("## Excursion times\n")
    python = f"Python {platform.python_version()}"
    print(f"{datetime.date.today()}, {python}, {os.cpu_count()} cores, {packages}.\n")
    targets: list[Target] = []
    for name in [options.only] if options.only else list(PARTS):
        bench, usual, quick = PARTS[name]
        targets += bench(options.repeats or (quick if options.quick else usual), options.quick)
    print("### Targets\n")
    for target in targets:
        print(target)


if __name__ == "__main__":
    main()
