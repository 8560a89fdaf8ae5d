"""Particle estimates of the score beside the exact one, and the maximum that following them leads to.

    python benchmarks/score.py [--repeats N] [--only score|maximum]

A linear-Gaussian model, of which the Kalman filter gives the likelihood; its derivative is the exact score. Prints
Markdown tables and, at the end, each target and whether it was met. Everything runs on the CPU in float32; the
Kalman filter in float64. The numbers depend on seeds, not on the speed of the machine.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from sojourn.inference._read import read_scan
from sojourn.inference._score_ascent import ScoreAscent
from sojourn.inference._smoothing import paris, ppg
from sojourn.ops.particles import particle_sweep

NOISE = 0.5
NAMES = ("phi", "q")
AT = {"phi": 0.7, "q": 0.5}
"""Where the score is taken."""


def model(y):
    """x_0 ~ N(0, 1), x_t ~ N(phi x_{t-1}, q), y_t ~ N(x_t, 0.5)."""
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    q = numpyro.sample("q", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(phi * x, q))
        numpyro.sample("y", dist.Normal(x, NOISE), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, 1.0)), y)


def simulate(seed: int, num_steps: int, phi: float, q: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(), []
    for _ in range(num_steps):
        x = phi * x + q * rng.normal()
        y.append(x + NOISE * rng.normal())
    return np.array(y)


def kalman(y: Any, parameters: Any) -> Any:
    """Exact log-likelihood at ``(phi, q)``."""
    phi, q = parameters

    def body(state, y):
        mean, variance = phi * state[0], phi**2 * state[1] + q**2
        total = variance + NOISE**2
        gain = variance / total
        term = -0.5 * ((y - mean) ** 2 / total + jnp.log(2 * jnp.pi * total))
        return (mean + gain * (y - mean), (1 - gain) * variance), term

    return jax.lax.scan(body, (0.0 * phi, 0.0 * phi + 1.0), y)[1].sum()


def exactly(fn: Callable[[Any, Any], Any], y: np.ndarray, *parameters: float) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(fn(jnp.asarray(y, jnp.float64), jnp.asarray(parameters, jnp.float64)))


def maximum(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum-likelihood estimates and standard errors, by Newton's method on the Kalman filter."""
    score, hessian = (jax.jit(f(kalman, 1)) for f in (jax.grad, jax.hessian))
    parameters = np.array([0.8, 0.6])
    for _ in range(50):
        move = np.linalg.solve(exactly(hessian, y, *parameters), exactly(score, y, *parameters))
        parameters = parameters - np.clip(move, -0.05, 0.05)
    return parameters, np.sqrt(np.diag(np.linalg.inv(-exactly(hessian, y, *parameters))))


def path_averages(
    y: np.ndarray, num_particles: int, num_sweeps: int, num_burn: int, repeats: int
) -> np.ndarray:
    """Plain particle Gibbs with backward sampling: the mean of the complete-data score over the paths drawn."""
    process = read_scan(model, jnp.asarray(y, float)).at(AT).process()

    def complete(parameters, x0, x):
        phi, q = parameters
        return dist.Normal(phi * jnp.concatenate([x0[None], x[:-1]]), q).log_prob(x).sum()

    def sweep(reference, key):
        swept = particle_sweep(
            process, key, num_particles, reference, path="backward", resampling="multinomial"
        )
        score = jax.grad(complete)(jnp.array([AT[n] for n in NAMES]), swept.start["x0"], swept.path["x"])
        return (swept.start, swept.path), score

    def one(key):
        key_first, key = jax.random.split(key)
        first = particle_sweep(process, key_first, num_particles, path="backward", resampling="multinomial")
        scores = jax.lax.scan(sweep, (first.start, first.path), jax.random.split(key, num_sweeps))[1]
        return scores[num_burn:].mean(0)

    return np.asarray(jax.jit(partial(jax.lax.map, one))(jax.random.split(jax.random.key(4), repeats)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def bench_score(repeats: int) -> list[tuple[str, bool]]:
    y = simulate(0, 60, 0.9, 0.3)
    truth = exactly(jax.grad(kalman, 1), y, *AT.values())
    common = {"parameters": AT, "functional": "score", "num_repeats": repeats}
    data = jnp.asarray(y, float)
    found: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}

    def note(label: str, run: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = run()
        seconds[label] = time.perf_counter() - began
        return result

    def stacked(result: Any) -> np.ndarray:
        return np.stack([result.sweeps[n] for n in NAMES], -1)

    for backward in ("exact", "mcmc"):
        label = f"PaRIS, N = 10, {backward}"
        run = partial(paris, model, data, num_particles=10, backward=backward, **common)
        found[label] = stacked(note(label, run))[:, 0]
    label = "PaRIS, N = 200, mcmc"
    found[label] = stacked(
        note(label, partial(paris, model, data, num_particles=200, backward="mcmc", **common))
    )[:, 0]
    for backward in ("exact", "mcmc"):
        run = partial(
            ppg, model, data, num_particles=10, num_sweeps=20, num_burn=0, backward=backward, **common
        )
        label = f"PPG, N = 10, k = 20, k0 = 0, {backward}"
        sweeps = stacked(note(label, run))
        for burn in (0, 5, 10):
            label = f"PPG, N = 10, k = 20, k0 = {burn}, {backward}"
            found[label] = sweeps[:, burn:].mean(1)
    label = "particle Gibbs paths, N = 10, k = 20, k0 = 5"
    found[label] = note(label, lambda: path_averages(y, 10, 20, 5, repeats))

    print(
        f"### Score at phi = 0.7, q = 0.5; exactly ({truth[0]:.3f}, {truth[1]:.3f}). T = 60, {repeats} repeats\n"
    )
    bias = {label: v.mean(0) - truth for label, v in found.items()}
    error = {label: v.std(0, ddof=1) / np.sqrt(repeats) for label, v in found.items()}
    rows = []
    for label, estimates in found.items():
        sd = estimates.std(0, ddof=1)
        rmse = np.sqrt(((estimates - truth) ** 2).mean(0))
        cells = [f"{b:+.3f} ({b / e:+.1f})" for b, e in zip(bias[label], error[label], strict=True)]
        took = f"{seconds[label]:.0f}" if label in seconds else ""
        rows.append((label, *cells, f"{sd[0]:.2f}, {sd[1]:.2f}", f"{rmse[0]:.2f}, {rmse[1]:.2f}", took))
    table(("estimator", "bias in phi (errors)", "bias in q (errors)", "sd", "rmse", "seconds"), rows)

    best, paths = "PPG, N = 10, k = 20, k0 = 5, exact", "particle Gibbs paths, N = 10, k = 20, k0 = 5"
    few, many = "PaRIS, N = 10, exact", "PaRIS, N = 200, mcmc"
    two = ("PPG, N = 10, k = 20, k0 = 5, exact", "PPG, N = 10, k = 20, k0 = 5, mcmc")
    between = np.abs(bias[two[0]] - bias[two[1]]) / np.hypot(error[two[0]], error[two[1]])
    larger = np.linalg.norm(bias[best]) < np.linalg.norm(bias[many])
    ratio = (found[best].var(0) / found[paths].var(0)).round(2)
    return [
        ("bias of PPG (k0 = 5) below that of PaRIS with as many sweeps of as many particles", bool((np.abs(bias[best]) < np.abs(bias[few])).all())),
        ("and, as a vector, below that of one pass of PaRIS with the whole budget of particles", bool(larger)),
        (f"bias of PPG (k0 = 5) within 3 errors of zero: {np.abs(bias[best] / error[best]).round(1)}", bool((np.abs(bias[best]) < 3 * error[best]).all())),
        (f"variance of PPG below that of paths: ratios {ratio}", bool((ratio < 1).all())),
        (f"mcmc and exact draws agree within 3 errors: {between.round(1)}", bool((between < 3).all())),
    ]  # fmt: skip


def bench_maximum(repeats: int) -> list[tuple[str, bool]]:
    y = simulate(0, 400, 0.8, 0.6)
    truth, errors = maximum(y)
    print(f"### Maximum likelihood, T = 400; exactly ({truth[0]:.4f}, {truth[1]:.4f}), "
          f"standard errors ({errors[0]:.4f}, {errors[1]:.4f})\n")  # fmt: skip
    settings: dict[str, dict[str, Any]] = {
        "PPG, N = 32, 4 sweeps, 1000 steps": {"num_steps": 1000},
        "score climbing: PPG, N = 32, 1 sweep, 1000 steps": {"num_sweeps": 1, "num_steps": 1000},
        "PaRIS, N = 32, 4 sweeps, 1000 steps": {"num_steps": 1000, "estimator": "paris"},
    }
    rows, gaps = [], []
    for label, options in settings.items():
        for seed in range(repeats):
            began = time.perf_counter()
            engine = ScoreAscent(**options)
            found = engine.maximise(
                model, (jnp.asarray(y, float),), key=jax.random.key(seed), progress_bar=False
            )
            gap = np.array([found.estimate[n] for n in NAMES]) - truth
            ratio = np.array([found.standard_error[n] for n in NAMES]) / errors
            rows.append((
                label, f"{gap[0]:+.4f}, {gap[1]:+.4f}", f"{ratio[0]:.3f}, {ratio[1]:.3f}",
                f"{found.error_of_standard_error:.3f}", f"{found.distance:.3f}", f"{time.perf_counter() - began:.0f}",
            ))  # fmt: skip
            if label.startswith("PPG"):
                gaps.append(np.abs(gap).max())
    table(
        (
            "settings",
            "less the exact maximum",
            "standard errors / exact",
            "their error",
            "distance",
            "seconds",
        ),
        rows,
    )
    return [(f"PPG ends within 0.002 of the maximum: at most {max(gaps):.4f} off", max(gaps) < 0.002)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=("score", "maximum"), help="one part")
    parser.add_argument(
        "--repeats", type=int, default=2000, help="repetitions of each estimator of the score"
    )
    options = parser.parse_args()
    versions = ", ".join(f"{name} {version(name)}" for name in ("sojourn", "numpyro", "jax"))
    print("## Score and maximum likelihood\n")
    print(
        f"{datetime.date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores, {versions}.\n"
    )
    targets: list[tuple[str, bool]] = []
    if options.only != "maximum":
        targets += bench_score(options.repeats)
    if options.only != "score":
        targets += bench_maximum(2)
    print("### Targets\n")
    for what, met in targets:
        print(f"- {'met' if met else 'MISSED'}: {what}")


if __name__ == "__main__":
    main()
