"""Markov jump processes beside the obvious code, dynestyx and deeptime: likelihoods, exponentials, whole fits.

    python benchmarks/jump_processes.py [--quick] [--only filter|panel|transition|fit|deeptime|compile] [--repeats N]

Prints Markdown tables and, at the end, each target and whether it was met. It never fails for being slow.
Everything runs on the CPU, in float32 (deeptime: float64). Within a table the programs take turns, call by call, so
that a busy machine slows all of them alike: compare the ratios of one run, not the times of two.
Needs the peers that ``make bench`` installs; one that is missing is left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from hidden_markov import OURS, Program, Target, Timing, kernel_table, table, take_turns  # it chooses the CPU

BY_HAND, DISTINCT_BY_HAND = (
    "`vmap(expm)` and `lax.scan`, by hand",
    "`vmap(expm)` of distinct intervals, by hand",
)
THROUGH_SCAN, TIGHT = "sojourn, `vjp=False`", "sojourn, `max_rate=20`"
DYNESTYX, EIGEN, EXPM = "dynestyx", 'sojourn, `"eigen"`', "`vmap(expm)`"
Outcome = Target | str
VALUE_TOLERANCE = 1e-4
"""Relative, between log-likelihoods."""
GRADIENT_TOLERANCE = 1e-3
"""Of the largest entry of the same gradient."""
SLOW_REPEATS = 3
"""Calls of a program that takes seconds."""


def available(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def speedup(what: str, bound: float, timings: Mapping[str, Timing], peer: str) -> list[Outcome]:
    if peer not in timings:
        return []
    ours, theirs = timings[OURS], timings[peer]
    return [
        Target(f"{what}, {peer} / sojourn", bound, theirs.median / ours.median, theirs.least / ours.least)
    ]


def agreement(results: Mapping[str, Any]) -> None:
    """Say how far values and gradients ``(value, (gradient, ...))`` lie from ours."""
    value, gradients = results[OURS]
    told, fine = [], True
    for name, (other, others) in results.items():
        if name == OURS:
            continue
        gap = abs(float(other) - float(value)) / abs(float(value))
        slopes = [
            float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())
            for a, b in zip(others, gradients, strict=True)
        ]
        fine &= gap <= VALUE_TOLERANCE and max(slopes) <= GRADIENT_TOLERANCE
        told.append(f"{name} {gap:.1e}, {max(slopes):.1e}")
    print(
        f"Values and gradients {'agree' if fine else 'DISAGREE'} (tolerance {VALUE_TOLERANCE:g}, "
        f"{GRADIENT_TOLERANCE:g}). Distance from sojourn: {'; '.join(told)}.\n"
    )


# ------------------------------------------------------------------------------------------------- filter


def observation_times(subjects: int, steps: int, distinct: bool) -> np.ndarray:
    """``(N, L)`` over about 2.5 units: a grid with thirteen different intervals, or no interval twice."""
    rng = np.random.default_rng(0)
    if distinct:
        return np.sort(rng.uniform(0.0, 2.5, (subjects, steps)), axis=1)
    ticks = np.arange(1, 14)
    jumps = rng.choice(ticks, (subjects, steps - 1), p=0.5**ticks / (0.5**ticks).sum())
    return 0.025 * np.concatenate([np.zeros((subjects, 1)), np.cumsum(jumps, 1)], 1)


def noisy_panel(times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates ``(6, 6)`` of a flashing ratchet, its confusion matrix (one label in ten is drawn anew), and labels."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from sojourn.distributions import HiddenJumpProcess
    from sojourn.models import jump_process

    rates = jump_process.flashing_ratchet(1.0, 1.0, 1.0)
    confusion = 0.9 * jnp.eye(6) + 0.1 / 6
    law = HiddenJumpProcess(rates, jnp.full(6, 1 / 6), dist.Categorical(probs=confusion), times)
    labels = law.sample(jax.random.key(0))
    return np.asarray(rates), np.asarray(confusion), np.asarray(labels, np.int32)


def filters(times: np.ndarray, y: np.ndarray, distinct: bool) -> dict[str, tuple[Callable[..., Any], tuple]]:
    """Log-likelihoods as functions of (rates, confusion, *data), and the data, by program."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from jax.scipy.linalg import expm

    from sojourn.distributions import HiddenJumpProcess
    from sojourn.ops.rate_matrix import generator

    initial = jnp.full(6, 1 / 6)

    def ours(rates: Any, confusion: Any, y: Any, **options: Any) -> Any:
        emission = dist.Categorical(probs=confusion)
        return HiddenJumpProcess(generator(rates), initial, emission, times, **options).log_prob(y).sum()

    def scanned(moves: Any, confusion: Any, y: Any) -> Any:
        """``moves`` is called with each step of time and returns ``(N, K, K)``."""
        seen = confusion.T[y.T]  # (L, N, K)

        def update(weights: Any) -> tuple[Any, Any]:
            total = weights.sum(-1)
            return weights / total[:, None], jnp.log(total)

        def step(alpha: Any, inputs: Any) -> tuple[Any, Any]:
            move, likelihood = inputs
            return update(jnp.einsum("ni,nij->nj", alpha, move) * likelihood)

        alpha, first = update(initial * seen[0])
        _, rest = jax.lax.scan(step, alpha, (moves, seen[1:]))
        return first.sum() + rest.sum()

    def by_hand(rates: Any, confusion: Any, y: Any, intervals: Any) -> Any:
        each = jax.vmap(lambda t: expm(generator(rates) * t))(intervals.T.reshape(-1))
        return scanned(each.reshape(*intervals.T.shape, 6, 6), confusion, y)

    def by_hand_distinct(rates: Any, confusion: Any, y: Any, intervals: Any, which: Any) -> Any:
        return scanned(jax.vmap(lambda t: expm(generator(rates) * t))(intervals)[which.T], confusion, y)

    labels = jnp.asarray(y)
    steps = np.diff(times, axis=1)
    programs: dict[str, tuple[Callable[..., Any], tuple]] = {
        OURS: (ours, (labels,)),
        TIGHT: (partial(ours, max_rate=20.0), (labels,)),
        THROUGH_SCAN: (partial(ours, vjp=False), (labels,)),
    }
    if distinct:
        programs[BY_HAND] = (by_hand, (labels, jnp.asarray(steps, jnp.float32)))
    else:
        few, which = np.unique(np.round(steps, 9), return_inverse=True)
        data = (labels, jnp.asarray(few, jnp.float32), jnp.asarray(which.reshape(steps.shape)))
        programs[DISTINCT_BY_HAND] = (by_hand_distinct, data)
    if available("dynestyx"):
        import dynestyx
        from dynestyx.inference.configs.filter import HMMConfig

        def subject(rates: Any, confusion: Any, y: Any, times: Any) -> Any:
            rate_matrix = generator(rates)
            system = dynestyx.DynamicalModel(
                initial_condition=dist.Categorical(probs=initial),
                state_evolution=lambda x, u, t_now, t_next: dist.Categorical(
                    probs=expm(rate_matrix * (t_next - t_now))[x]
                ),
                observation_model=lambda x, u, t: dist.Categorical(probs=confusion[x]),
            )
            with dynestyx.Filter(filter_config=HMMConfig()):
                return dynestyx.condition("f", system, obs_times=times, obs_values=y).marginal_loglik

        def subjects(rates: Any, confusion: Any, y: Any, times: Any) -> Any:
            return jax.vmap(subject, (None, None, 0, 0))(rates, confusion, y, times).sum()

        programs[DYNESTYX] = (subjects, (labels, jnp.asarray(times, jnp.float32)))
    return programs


def bench_filter(repeats: int, quick: bool) -> list[Outcome]:
    import jax
    import jax.numpy as jnp

    subjects, steps = (100 if quick else 1000), 50
    targets: list[Outcome] = []
    for distinct in (True, False):
        times = observation_times(subjects, steps, distinct)
        rates, confusion, y = noisy_panel(times)
        count = len(np.unique(np.round(np.diff(times, axis=1), 9)))
        size = f"{subjects} x {steps}, {count} distinct intervals"
        print(f"### Noisy panel, value and gradient in rates and confusion: K = 6, {size}\n")
        arguments = (jnp.asarray(rates), jnp.asarray(confusion))

        def bind(f: Callable[..., Any], data: tuple, arguments: tuple = arguments) -> Program:
            compiled = jax.jit(jax.value_and_grad(f, (0, 1)))
            return lambda: compiled(*arguments, *data)

        programs = {name: bind(*given) for name, given in filters(times, y, distinct).items()}
        timings = take_turns(
            programs, repeats, dict.fromkeys((BY_HAND, DYNESTYX), min(repeats, SLOW_REPEATS))
        )
        kernel_table(timings)
        agreement({name: t.result for name, t in timings.items()})
        what = f"noisy panel, {size}"
        for peer, bound in ((BY_HAND, 10.0), (DISTINCT_BY_HAND, 1.0), (DYNESTYX, 10.0)):
            targets += speedup(what, bound, timings, peer)
    return targets


# -------------------------------------------------------------------------------------------------- panel


def bench_panel(repeats: int, quick: bool) -> list[Outcome]:
    """States seen without noise: many paths at the same regular times."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.linalg import expm

    from sojourn.distributions import PanelJumpProcess
    from sojourn.models import jump_process

    paths, steps = (500 if quick else 5000), 100
    times = np.linspace(0.0, 2.5, steps)
    initial = jnp.full(6, 1 / 6)
    every = np.broadcast_to(times, (paths, steps))
    # Away from the parameters of the data, where the terms of the gradient would cancel but for rounding errors.
    at = (jnp.asarray(1.2), jnp.asarray(0.8), jnp.asarray(1.1))
    law = PanelJumpProcess(jump_process.flashing_ratchet(1.0, 1.0, 1.0), initial, every)
    y = np.asarray(law.sample(jax.random.key(0)))
    gaps = jnp.asarray(np.diff(times), jnp.float32)

    def ours(*parameters: Any) -> Any:
        return PanelJumpProcess(jump_process.flashing_ratchet(*parameters), initial, every).log_prob(y)

    def gathered(*inputs: Any) -> Any:
        *parameters, y = inputs
        rate_matrix = jump_process.flashing_ratchet(*parameters)
        moves = jax.vmap(lambda t: expm(rate_matrix * t))(gaps)
        each = jnp.log(moves[jnp.arange(steps - 1), y[:, :-1], y[:, 1:]])
        return jnp.log(initial)[y[:, 0]].sum() + each.sum()

    counts = np.zeros((6, 6), np.float32)
    np.add.at(counts, (y[:, :-1], y[:, 1:]), 1.0)

    def counted(*parameters: Any) -> Any:
        log_move = jnp.log(expm(jump_process.flashing_ratchet(*parameters) * gaps[0]))
        return (counts * log_move).sum() + jnp.log(initial)[y[:, 0]].sum()

    def bind(f: Callable[..., Any], *data: Any) -> Program:
        compiled = jax.jit(jax.value_and_grad(f, (0, 1, 2)))
        return lambda: compiled(*at, *data)

    gather = "`vmap(expm)` and gather, by hand"
    programs = {OURS: bind(ours), gather: bind(gathered, jnp.asarray(y))}
    programs["one `expm` and counts, by hand"] = bind(counted)
    size = f"{paths} x {steps} regular"
    print(f"### States without noise, value and gradient in three parameters: K = 6, {size}\n")
    timings = take_turns(programs, repeats)
    kernel_table(timings)
    agreement({name: t.result for name, t in timings.items()})
    return speedup(f"panel without noise, {size}", 10.0, timings, gather)


# --------------------------------------------------------------------------------------------- transition

SHAPES = ((3, 100, 1.0), (6, 5000, 10.0), (20, 2000, 10.0), (50, 50, 10.0))
"""(states, intervals, how many times faster than ``vmap(expm)`` is hoped for)."""


def bench_transition(repeats: int, quick: bool) -> list[Outcome]:
    """Transition probabilities alone: value and gradient in the rates of a weighted sum of all entries."""
    import jax
    import jax.numpy as jnp

    from sojourn.ops.rate_matrix import generator
    from sojourn.ops.transition_probability import plan, transition_probabilities

    targets: list[Outcome] = []
    for states, intervals, bound in SHAPES:
        rng = np.random.default_rng(states)
        rates = jnp.asarray(rng.gamma(1.0, 1.0, (states, states)), jnp.float32)
        exit_rate = float(-jnp.diagonal(generator(rates)).min())
        times = rng.uniform(0.0, 4.0, intervals) / exit_rate
        weights = jnp.asarray(rng.normal(size=(intervals, states, states)), jnp.float32)
        # Room for exit rates twice as fast, as a sampler needs it.
        planned = plan(times, 2.0 * exit_rate)

        def bind(method: Any, rates: Any = rates, planned: Any = planned, weights: Any = weights) -> Program:
            def value(rates: Any) -> Any:
                return (weights * transition_probabilities(generator(rates), planned, method=method)).sum()

            compiled = jax.jit(jax.value_and_grad(value, (0,)))
            return lambda: compiled(rates)

        methods = {OURS: "uniformization", EIGEN: "eigen", EXPM: "expm"}
        programs = {name: bind(method) for name, method in methods.items()}
        size = f"K = {states}, D = {intervals}"
        print(
            f"### Transition probabilities, value and gradient: {size}, q t to 4, {planned.num_terms} terms\n"
        )
        timings = take_turns(programs, repeats, {EXPM: max(SLOW_REPEATS, repeats // 3)})
        kernel_table(timings)
        agreement({name: t.result for name, t in timings.items()})
        targets += speedup(f"transition probabilities, {size}", bound, timings, EXPM)
    return targets


# ---------------------------------------------------------------------------------------------------- fit


def fit_data() -> tuple[np.ndarray, np.ndarray]:
    """Labels and times of 100 subjects looked at 20 times each, one label in ten drawn anew."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from sojourn.distributions import HiddenJumpProcess

    times = np.sort(np.random.default_rng(0).uniform(0.0, 10.0, (100, 20)), axis=1)
    rates = jnp.array([[-0.5, 0.4, 0.1], [0.3, -0.6, 0.3], [0.2, 0.6, -0.8]])
    emission = dist.Categorical(probs=0.9 * jnp.eye(3) + 0.1 / 3)
    law = HiddenJumpProcess(rates, jnp.full(3, 1 / 3), emission, times)
    return np.asarray(law.sample(jax.random.key(0)), np.int32), times


def fit_models(times: np.ndarray) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The model of the package and the same by hand, as functions of the labels."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.scipy.linalg import expm

    from sojourn.models import jump_process

    steps = np.diff(times, axis=1)
    unit = float(np.sqrt(np.median(steps.sum(1)) * np.median(steps)))
    rows, columns = np.nonzero(~np.eye(3, dtype=bool))

    def ours(y: Any) -> Any:
        return jump_process.misclassified(y, times, num_states=3)

    def by_hand(y: Any) -> None:
        rate = numpyro.sample("rate", dist.LogNormal(-1.0 - np.log(unit), 1.5).expand([6]).to_event(1))
        initial = numpyro.sample("initial", dist.Dirichlet(jnp.ones(3)))
        error = numpyro.sample("error_rate", dist.Beta(1.0, 9.0))
        off = jnp.zeros((3, 3)).at[rows, columns].set(rate)
        rate_matrix = off - jnp.diag(off.sum(1))
        confusion = (1 - error) * jnp.eye(3) + error / 3
        moves = jax.vmap(jax.vmap(lambda t: expm(rate_matrix * t)))(jnp.asarray(steps.T, jnp.float32))
        seen = confusion.T[jnp.asarray(y).T]

        def step(alpha: Any, inputs: Any) -> tuple[Any, Any]:
            move, likelihood = inputs
            weights = jnp.einsum("ni,nij->nj", alpha, move) * likelihood
            total = weights.sum(-1)
            return weights / total[:, None], jnp.log(total)

        weights = initial * seen[0]
        alpha = weights / weights.sum(-1, keepdims=True)
        _, rest = jax.lax.scan(step, alpha, (moves, seen[1:]))
        numpyro.factor("y", jnp.log(weights.sum(-1)).sum() + rest.sum())

    return ours, by_hand


def bench_fit(repeats: int, quick: bool) -> list[Outcome]:
    """Whole fits, compilation and all."""
    import jax
    from jax import random
    from numpyro.infer import MCMC, NUTS
    from numpyro.infer.util import log_density

    import sojourn as sj

    import arviz as az  # isort: skip  (imported first, it would leave NumPyro lazy)

    y, times = fit_data()
    ours, by_hand = fit_models(times)
    point = {"rate": np.full(6, 0.4, np.float32), "error_rate": np.float32(0.1)}
    point["initial"] = np.full(3, 1 / 3, np.float32)
    densities = [float(log_density(model, (y,), {}, point)[0]) for model in (ours, by_hand)]
    print("### Whole fit: 100 subjects x 20 labels, K = 3, one chain of NUTS\n")
    gap = abs(densities[0] / densities[1] - 1)
    verdict = "agree" if gap <= VALUE_TOLERANCE else "DISAGREE"
    print(
        f"Log-densities at one point {verdict}: {densities[0]:.2f} (sojourn), {densities[1]:.2f} (by hand).\n"
    )

    def chain(model: Callable[..., Any], warmup: int, samples: int) -> Mapping[str, Any]:
        mcmc = MCMC(NUTS(model), num_warmup=warmup, num_samples=samples, progress_bar=False)
        mcmc.run(random.key(1), y, extra_fields=("num_steps",))
        draws = jax.block_until_ready(mcmc.get_samples())
        return {**draws, "num_steps": mcmc.get_extra_fields()["num_steps"]}

    def fitted(warmup: int, samples: int) -> Mapping[str, Any]:
        options: dict[str, Any] = {"num_chains": 1, "progress_bar": False, "seed": 1}
        found = sj.fit(ours, y, num_warmup=warmup, num_samples=samples, **options)
        steps = found.sample_stats["n_steps"].values[0]
        draws = {name: found.posterior[name].values[0] for name in ("rate", "error_rate")}
        return {**draws, "num_steps": steps}

    hand = "NumPyro, `vmap(expm)` by hand"
    programs = {OURS: partial(chain, ours), hand: partial(chain, by_hand)}
    if not quick:
        programs["`sojourn.fit`, whole"] = fitted
    warmup, samples = (20, 20) if quick else (200, 300)
    first: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    told: dict[str, tuple[str, ...]] = {}
    for _ in range(repeats):
        for name, program in programs.items():
            for seconds, counts in ((first, (10, 10)), (rows, (warmup, samples))):
                jax.clear_caches()
                began, began_cpu = time.perf_counter(), time.process_time()
                draws = program(*counts)
                wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
                print(f"{name} {counts}: {wall:.1f} s", file=sys.stderr, flush=True)
                if seconds is first:
                    first[name].append((wall, cpu))
            columns = [*np.asarray(draws["rate"], float).T, np.asarray(draws["error_rate"], float)]
            least = min(float(az.ess(x[None])) for x in columns)
            rows[name].append((least / wall, least / cpu))
            told[name] = (
                f"{wall:.1f}",
                f"{cpu:.1f}",
                f"{np.mean(draws['num_steps']):.1f}",
                f"{np.mean(columns[-1]):.3f}",
                f"{least:.0f}",
            )

    def of(found: Mapping[str, list[tuple[float, float]]], name: str, which: int) -> float:
        return statistics.median(pair[which] for pair in found[name])

    table(
        (
            "program",
            "10 + 10 draws, s",
            "CPU s",
            f"{warmup} + {samples} draws, s",
            "CPU s",
            "gradients a draw",
            "mean error rate",
            "least ESS",
            "ESS / CPU s",
        ),
        (
            (
                name,
                f"{of(first, name, 0):.1f}",
                f"{of(first, name, 1):.1f}",
                *told[name],
                f"{of(rows, name, 1):.2f}",
            )
            for name in programs
        ),
    )
    ratios = [of(rows, OURS, k) / of(rows, hand, k) for k in (1, 0)]
    earlier = [of(first, OURS, k) / of(first, hand, k) for k in (1, 0)]
    return [
        Target("least ESS a second (here: CPU, wall) of NUTS, sojourn / by hand", 2.0, ratios[0], ratios[1]),
        Target(
            "seconds to 10 + 10 draws (here: CPU, wall), sojourn / by hand", 1.2, *earlier, at_least=False
        ),
    ]


# ----------------------------------------------------------------------------------------------- deeptime

EXACT_STEPS = 10
"""Steps of the double well's exact transition matrix from one entry of deeptime's trajectory to the next."""


def maximised(log_likelihood: Callable[[Any], Any], start: np.ndarray, size: int) -> Program:
    """A program that climbs to the maximum by L-BFGS; gradients in float32."""
    import jax
    import jax.numpy as jnp
    from scipy.optimize import minimize

    compiled = jax.jit(jax.value_and_grad(lambda x: -log_likelihood(x) / size))

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = compiled(jnp.asarray(x, jnp.float32))
        return float(value), np.asarray(slope, float)

    options = {"maxiter": 2000, "maxfun": 5000, "ftol": 1e-10, "gtol": 1e-7}
    return lambda: minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x


def fact(what: str, bound: float, value: float) -> str:
    """A number that is not a time, and must stay below its bound."""
    return f"- {what}: {value:.4f} (target <= {bound:g}): {'met' if value <= bound else 'MISSED'}"


def quicker(what: str, timings: Mapping[str, Timing], theirs: str, ours: str) -> Target:
    peer, own = timings[theirs], timings[ours]
    label = f"{what}, seconds once compiled, {theirs} / {ours}"
    return Target(label, 1.0, peer.median / own.median, peer.least / own.least)


def rows_of(timings: Mapping[str, Timing]) -> dict[str, tuple[str, ...]]:
    return {name: (f"{t.first:.2f}", f"{t.median:.3f}", f"{t.least:.3f}") for name, t in timings.items()}


def bench_deeptime(repeats: int, quick: bool) -> list[Outcome]:
    """Maximum likelihood on deeptime's double well, cut into six states, and with two hidden states."""
    if not available("deeptime"):
        print("deeptime is not installed.\n")
        return []
    from deeptime.data import double_well_discrete

    well = double_well_discrete()
    exact = well.analytic_msm.timescales(k=1)[0] / EXACT_STEPS
    print(
        f"Slowest timescale of the exact 100-state chain: {exact:.1f} entries of the trajectory, which crosses about "
        f"{len(well.dtraj) / (2 * exact):.0f} times: estimates err by 8 %. Cut into six cells it is no Markov chain, and "
        "at short lags no jump process either: the exact likelihood of a rate matrix stays below that of a free "
        "transition matrix. Calls of sojourn after the first one leave out counting and compiling.\n"
    )
    y = np.asarray(well.dtraj_n6good)
    targets: list[Outcome] = []
    for lag in (1, 10):
        targets += visible_states(y, lag, repeats)
    return targets + hidden_states(y, 10, repeats)


def visible_states(y: np.ndarray, lag: int, repeats: int) -> list[Outcome]:
    import jax
    import jax.numpy as jnp
    from deeptime.markov import TransitionCountEstimator
    from deeptime.markov.msm import MaximumLikelihoodMSM
    from deeptime.markov.tools.estimation import rate_matrix
    from scipy.linalg import expm

    from sojourn.distributions import PanelJumpProcess
    from sojourn.models import jump_process

    counter = TransitionCountEstimator(lag, "sliding")
    counts = np.asarray(counter.fit_fetch(y).count_matrix, float)
    # The sliding window is one series for each offset.
    length = len(y) // lag
    series = y[: length * lag].reshape(length, lag).T
    times = np.broadcast_to(lag * np.arange(length, dtype=float), series.shape)
    first = np.eye(6)[series[:, 0]]  # given the first states
    pairs = int(counts.sum())

    def log_likelihood(matrix: Any) -> Any:
        return PanelJumpProcess(matrix, first, times).log_prob(series)

    rough = (counts + 0.3) / (lag * (counts.sum(1, keepdims=True) + 1.0))
    rows, columns = np.nonzero(~np.eye(6, dtype=bool))
    upper = np.triu_indices(6, 1)

    def free(x: Any) -> Any:
        return jump_process.free(jnp.exp(x))

    def reversible(x: Any) -> Any:
        return jump_process.reversible(jnp.exp(x[:15]), jax.nn.softmax(x[15:]))

    share = np.bincount(series.ravel(), minlength=6) / series.size
    starts = np.log(rough[rows, columns]), np.log(np.sqrt(rough * rough.T)[upper])
    climb = {
        free: maximised(lambda x: log_likelihood(free(x)), starts[0], pairs),
        reversible: maximised(
            lambda x: log_likelihood(reversible(x)), np.concatenate([starts[1], np.log(share)]), pairs
        ),
    }

    def chain(reversible: bool) -> Any:
        return MaximumLikelihoodMSM(reversible=reversible).fit_fetch(counter.fit_fetch(y)).transition_matrix

    def generator_of(build: Callable[..., Any]) -> Any:
        return expm(lag * np.asarray(build(climb[build]()), float))

    def lawless() -> Any:
        found = np.asarray(counter.fit_fetch(y).count_matrix, float)
        return expm(lag * rate_matrix(found, dt=float(lag), method="KL", on_error="warn"))

    msm, msm_free, kl = "deeptime, MSM, reversible", "deeptime, MSM", 'deeptime, `rate_matrix(method="KL")`'
    rev = "sojourn, reversible"
    programs: dict[str, Program] = {
        OURS: partial(generator_of, free),
        rev: partial(generator_of, reversible),
        kl: lawless,
        msm_free: partial(chain, False),
        msm: partial(chain, True),
    }
    timings = take_turns(programs, repeats)
    made = counts > 0

    def likelihood(matrix: Any) -> float:
        return float((counts[made] * np.log(np.asarray(matrix)[made])).sum())

    def timescales(matrix: Any) -> np.ndarray:
        return -lag / np.log(np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1][1:])

    results = {name: np.asarray(t.result, float) for name, t in timings.items()}
    top = likelihood(results[msm_free])
    print(f"### Double well, six visible states, lag {lag} (sliding window, {pairs} transitions)\n")
    laws = {OURS: "rate matrix", rev: "rate matrix, pi free", kl: "rate matrix, reversible, pi from the MSM"}
    table(
        (
            "program",
            "estimates",
            "log-likelihood below the MSM's",
            "timescales 1, 2, 3",
            "largest gap to the MSM's P",
            "first call, s",
            "median, s",
            "min, s",
        ),
        (
            (
                name,
                laws.get(name, "transition matrix"),
                f"{top - likelihood(p):.2f}",
                ", ".join(f"{t:.4g}" for t in timescales(p)[:3]),
                f"{np.abs(p - results[msm_free]).max():.1e}",
                *rows_of(timings)[name],
            )
            for name, p in results.items()
        ),
    )
    what = f"six states, lag {lag}, reversible rate matrix"
    off = abs(timescales(results[rev])[0] / timescales(results[kl])[0] - 1)
    return [
        fact(
            f"{what}, log-likelihood of {kl} less sojourn's",
            0.1,
            likelihood(results[kl]) - likelihood(results[rev]),
        ),
        fact(f"{what}, relative gap of the slowest timescales", 0.02, off),
        quicker(what, timings, kl, rev),
    ]


def hidden_states(y: np.ndarray, lag: int, repeats: int) -> list[Outcome]:
    """Two hidden states and six labels. Any such chain with a positive second eigenvalue is a jump process."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from deeptime.markov.hmm import MaximumLikelihoodHMM, init
    from scipy.linalg import expm

    from sojourn.distributions import HiddenJumpProcess
    from sojourn.models import jump_process

    series = np.asarray(y[::lag], np.int32)
    times = lag * np.arange(len(series), dtype=float)

    def read(x: Any) -> tuple[Any, Any, Any]:
        emission = jax.nn.softmax(x[3:].reshape(2, 6))
        return jax.nn.softmax(jnp.stack([x[2], 0.0])), jump_process.free(jnp.exp(x[:2])), emission

    def log_likelihood(x: Any) -> Any:
        initial, rates, emission = read(x)
        return HiddenJumpProcess(rates, initial, dist.Categorical(probs=emission), times).log_prob(series)

    # A rough guess: low labels in one state, high labels in the other, a jump in a hundred observations.
    guess = np.log(0.01 + np.eye(6)[:, :3].sum(1))
    start = np.concatenate([np.log([0.01 / lag] * 2), [0.0], guess, guess[::-1]])
    climb = maximised(log_likelihood, start, len(series))

    def ours() -> tuple[np.ndarray, ...]:
        initial, rates, emission = (np.asarray(a, float) for a in read(jnp.asarray(climb(), jnp.float32)))
        return initial, expm(lag * rates), emission

    def theirs() -> tuple[np.ndarray, ...]:
        begin = init.discrete.metastable_from_data(y, n_hidden_states=2, lagtime=lag)
        found = MaximumLikelihoodHMM(begin, lagtime=lag, stride=lag).fit_fetch(y)
        emission = found.output_probabilities
        return found.initial_distribution, found.transition_model.transition_matrix, emission

    name = "deeptime, hidden MSM (Baum-Welch)"
    timings = take_turns({OURS: ours, name: theirs}, repeats)

    def likelihood(initial: np.ndarray, move: np.ndarray, emission: np.ndarray) -> float:
        weights, total = initial * emission[:, series[0]], 0.0
        for label in series[1:]:
            norm = weights.sum()
            total += np.log(norm)
            weights = (weights / norm @ move) * emission[:, label]
        return float(total + np.log(weights.sum()))

    values = {n: likelihood(*t.result) for n, t in timings.items()}
    slow = {n: float(-lag / np.log(np.linalg.eigvals(t.result[1]).real.min())) for n, t in timings.items()}
    print(f"### Double well, two hidden states behind six labels, lag {lag} ({len(series)} observations)\n")
    head = ("program", "log-likelihood", "timescale", "first call, s", "median, s", "min, s")
    table(head, ((n, f"{values[n]:.2f}", f"{slow[n]:.1f}", *rows_of(timings)[n]) for n in timings))
    what = "two hidden states"
    return [
        fact(f"{what}, log-likelihood of deeptime's less sojourn's", 0.1, values[name] - values[OURS]),
        fact(f"{what}, relative gap of the timescales", 0.02, abs(slow[OURS] / slow[name] - 1)),
        quicker(what, timings, name, OURS),
    ]


# ------------------------------------------------------------------------------------------------ compile


def bench_compile(repeats: int, quick: bool) -> list[Outcome]:
    """CPU seconds to trace and to compile value and gradient of the noisy panel, all intervals distinct."""
    import jax
    import jax.numpy as jnp

    times = observation_times(100 if quick else 1000, 50, True)
    rates, confusion, y = noisy_panel(times)
    programs = filters(times, y, True)
    arguments = (jnp.asarray(rates), jnp.asarray(confusion))
    seconds: dict[str, list[tuple[float, float]]] = {
        n: [] for n in (OURS, BY_HAND, DYNESTYX) if n in programs
    }
    for _ in range(repeats):
        for name in seconds:
            jax.clear_caches()
            f, data = programs[name]
            began = time.process_time()
            lowered = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*arguments, *data)
            traced = time.process_time()
            lowered.compile()
            seconds[name].append((traced - began, time.process_time() - traced))
    print(
        f"### Compiling value and gradient: K = 6, {len(times)} x 50, all intervals distinct, CPU seconds\n"
    )
    totals = {n: [sum(pair) for pair in pairs] for n, pairs in seconds.items()}
    table(
        ("program", "tracing, median", "compiling, median", "together, median", "min"),
        (
            (
                name,
                *(f"{statistics.median(p[k] for p in pairs):.2f}" for k in (0, 1)),
                f"{statistics.median(totals[name]):.2f}",
                f"{min(totals[name]):.2f}",
            )
            for name, pairs in seconds.items()
        ),
    )
    ratios = [f(totals[OURS]) / f(totals[BY_HAND]) for f in (statistics.median, min)]
    return [Target("CPU seconds to trace and compile, sojourn / by hand", 1.5, *ratios, at_least=False)]


# --------------------------------------------------------------------------------------------------- main

PARTS: dict[str, tuple[Callable[[int, bool], list[Outcome]], int, int]] = {
    "filter": (bench_filter, 7, 2),
    "panel": (bench_panel, 20, 3),
    "transition": (bench_transition, 15, 3),
    "fit": (bench_fit, 1, 1),
    "deeptime": (bench_deeptime, 5, 2),
    "compile": (bench_compile, 3, 1),
}
"""By name: the function, its repeats, and its repeats under ``--quick``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few repeats, fewer subjects, short chains")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--repeats", type=int, help="timed calls of each program")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    packages = [p for p in ("sojourn", "numpyro", "jax", "dynestyx", "deeptime") if available(p)]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print("## Markov jump processes\n")
    python = f"Python {platform.python_version()}"
    print(f"{datetime.date.today()}, {python}, {os.cpu_count()} cores, {versions}.\n")
    targets: list[Outcome] = []
    for name in [options.only] if options.only else list(PARTS):
        bench, usual, quick = PARTS[name]
        targets += bench(options.repeats or (quick if options.quick else usual), options.quick)
    print("### Targets\n")
    for target in targets:
        print(target)


if __name__ == "__main__":
    main()
