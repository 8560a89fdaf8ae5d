"""Langevin samplers beside NUTS, BlackJAX's MALA and NumPyro's BarkerMH: gradients for an effective sample, bias.

    python benchmarks/langevin.py [--quick] [--only PART ...] [--samplers NAME ...] [--repeats N] [--tables]

Parts: ``gaussian``, ``eight-schools``, ``logistic``, ``latent-sde`` (see ``langevin_models.py``) and ``compile``.
Prints Markdown tables and, at the end, each target and whether it was met; with ``--tables`` standard output gets
only a summary of sampler by target for the documentation. It never fails for being slow. Everything runs on the CPU,
in float64, with four chains at once (those of BarkerMH under ``jax.vmap``). All samplers have their default settings
and 1000 draws of warm-up; MALA, which has no metric, gets coordinates scaled by the standard deviations of the
reference posterior ("oracle scaling"), and its step adapted to an acceptance rate of 0.574.

Gradients for an effective sample: gradients of all chains over the least effective sample size
(``numpyro.diagnostics.effective_sample_size``, all chains together) of any coordinate on the unconstrained scale (x),
and of any square about the reference mean (x^2). On the latent SDE the coordinates are the path at 24 times, and H
apart. Gradients are those that the states of the kernels count (``num_steps``; one a draw for MALA and BarkerMH), and
without warm-up, save where the head of a column says otherwise. Those of warm-up are counted the same way, but for the
search for a first step. MCLMC and AdjustedMCLMC tune before they warm up: two gradients for each step of tuning that
the state of MCLMC reports, and an average of two steps for each of AdjustedMCLMC's ``tuning_steps`` trajectories (an
estimate: lengths vary meanwhile). Draws that differ much in price come in different numbers, and those of MALA and
BarkerMH are thinned.

CPU time is that of all threads, of draws only: the program that draws is compiled ahead, which "compiling" shows;
"until the first draw" has the start (MCLMC: its tuning), that compilation and the warm-up. Costs are medians over
seeds, in each of which the chains start anew. Bias: of the draws of all seeds together, against a long run of NUTS:
least and largest ratio of standard deviations, and largest shift of a mean in standard deviations, with the standard
error of the mean (of the coordinate worst known; the error of the reference included).

The part ``compile`` asks, in fresh interpreters and of ``MCMC``, for the first draw after 10 of warm-up (MCLMC and
AdjustedMCLMC: 100 steps of tuning): CPU seconds, imports apart. Needs the extra ``sojourn[bench]``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hidden_markov import Target, _python, table  # it also chooses the CPU
from langevin_models import POSTERIORS, Draws, Posterior

CHAINS = 4
BLOCK = 100
"""Iterations of one call. Warm-up and draws are multiples of it, and it is one of every thinning."""
NUTS, MALT, MCLMC, ADJUSTED = "NUTS", "MALT", "MCLMC", "AdjustedMCLMC"
QUICSORT, ADAPTIVE, BAOAB = "quicsort", "quicsort-adaptive", "baoab"
MALA, BARKER = "MALA", "BarkerMH"
SDE = "latent-sde"
BIAS_SD, BIAS_SHIFT = 0.1, 0.1
"""A sampler may win a comparison if its standard deviations and means lie within these, save for two standard errors."""


# ---------------------------------------------------------------------------------------------------- samplers


class Reference(NamedTuple):
    """What a long run of NUTS says of a posterior.

    Attributes:
        mean, sd, error: by name of what is measured; ``error`` is the standard error of the mean.
        line_sd: on the unconstrained scale, by site.
    """

    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    line_sd: dict[str, np.ndarray]


Build = Callable[[Posterior, Reference | None, int | None], Any]
"""From the posterior, its reference and the steps of tuning (if it tunes, else unused) to a kernel."""


@dataclass(frozen=True)
class Sampler:
    """A program of the comparison.

    Attributes:
        exact: it has a Metropolis test.
        ours: of sojourn.
        more: draws, in units of those of NUTS.
        thinning: of those.
        tuning: gradients spent before the warm-up, from its state.
        batched: its own interface takes several chains at once.
    """

    title: str
    build: Build
    exact: bool = True
    ours: bool = True
    more: float = 1.0
    thinning: int = 1
    tuning: Callable[[Any], float] = lambda state: 0.0
    batched: bool = True


def _nuts(posterior: Posterior, reference: Reference | None, tuning: int | None) -> Any:
    from numpyro import infer

    return infer.NUTS(posterior.model)


def _malt(posterior: Posterior, reference: Reference | None, tuning: int | None) -> Any:
    from sojourn import inference

    return inference.MALT(posterior.model)


def _mclmc(posterior: Posterior, reference: Reference | None, tuning: int | None) -> Any:
    from sojourn import inference

    return inference.MCLMC(posterior.model, tuning_steps=tuning)


def _adjusted(posterior: Posterior, reference: Reference | None, tuning: int | None) -> Any:
    from sojourn import inference

    return inference.AdjustedMCLMC(posterior.model, tuning_steps=tuning)


def _underdamped(**settings: str) -> Build:
    def build(posterior: Posterior, reference: Reference | None, tuning: int | None) -> Any:
        from sojourn import inference

        return inference.UnderdampedLangevin(posterior.model, **settings)

    return build


class MALAState(NamedTuple):
    """State of BlackJAX's MALA with its step under adaptation."""

    i: Any
    z: Any
    chain: Any
    num_steps: Any
    diverging: Any
    adapt_state: Any
    rng_key: Any


def _mala(posterior: Posterior, reference: Reference | None, tuning: int | None) -> Any:
    """MALA in coordinates of unit variance (without a reference: the coordinates of the model)."""
    import jax
    import jax.numpy as jnp
    from blackjax.mcmc import mala
    from jax.flatten_util import ravel_pytree
    from numpyro.infer.hmc_util import warmup_adapter

    from sojourn.inference._gradient_kernel import GradientKernel

    scale = 1.0 if reference is None else ravel_pytree(reference.line_sd)[0]
    step = mala.build_kernel()

    class ScaledMALA(GradientKernel):
        def _adapter(self) -> Any:
            return warmup_adapter(self._num_warmup, adapt_mass_matrix=False, target_accept_prob=0.574)

        def _begin(self, key: Any, z: Any, potential_energy: Any, z_grad: Any, potential: Any) -> Any:
            flat = self._flat(z, potential)
            key, key_adapt = jax.random.split(key)
            chain = mala.init(flat.x / scale, lambda q: -flat.potential(scale * q))
            adapt_state = self._adapter()[0]((z,), key_adapt, jnp.array(0.1))
            return MALAState(jnp.array(0), z, chain, jnp.array(0), jnp.array(False), adapt_state, key)

        def _advance(self, state: Any, potential: Any) -> Any:
            flat = self._flat(state.z, potential)
            key, key_step = jax.random.split(state.rng_key)
            chain, info = step(
                key_step, state.chain, lambda q: -flat.potential(scale * q), state.adapt_state.step_size
            )
            z = flat.unravel(scale * chain.position)
            adapt_state = jax.lax.cond(
                state.i < self._num_warmup,
                lambda: self._adapter()[1](state.i, info.acceptance_rate, (z,), state.adapt_state),
                lambda: state.adapt_state,
            )
            return state._replace(
                i=state.i + 1,
                z=z,
                chain=chain,
                num_steps=jnp.ones_like(state.num_steps),
                adapt_state=adapt_state,
                rng_key=key,
            )

    return ScaledMALA(posterior.model)


def _barker(posterior: Posterior, reference: Reference | None, tuning: int | None) -> Any:
    from numpyro import infer

    return infer.BarkerMH(posterior.model)


def _tuning_steps(state: Any) -> float:
    return float(np.sum(np.asarray(state.tuning_steps)))


SAMPLERS: dict[str, Sampler] = {
    NUTS: Sampler("NUTS", _nuts, ours=False),
    MALT: Sampler("MALT", _malt),
    MCLMC: Sampler("MCLMC", _mclmc, exact=False, tuning=lambda state: 2.0 * _tuning_steps(state)),
    ADJUSTED: Sampler("AdjustedMCLMC", _adjusted, more=4.0, tuning=lambda state: 4.0 * _tuning_steps(state)),
    QUICSORT: Sampler("UnderdampedLangevin, quicsort, constant step", _underdamped(), exact=False),
    ADAPTIVE: Sampler(
        "UnderdampedLangevin, quicsort, adaptive", _underdamped(step="adaptive"), exact=False, more=0.5
    ),
    BAOAB: Sampler("UnderdampedLangevin, baoab", _underdamped(solver="baoab"), exact=False),
    MALA: Sampler("BlackJAX MALA, oracle scaling", _mala, ours=False, more=20.0, thinning=10),
    BARKER: Sampler("NumPyro BarkerMH", _barker, ours=False, more=20.0, thinning=10, batched=False),
}


# ----------------------------------------------------------------------------------------------------- running


class Lengths(NamedTuple):
    """Draws of a chain."""

    warmup: int
    draws: int
    reference: int


LENGTHS, QUICK_LENGTHS = Lengths(1000, 2000, 8000), Lengths(200, 200, 800)


class Run(NamedTuple):
    """All chains of one seed; gradients are of all of them."""

    draws: Draws
    gradients: float
    warmup_gradients: float
    num_draws: int
    divergences: int
    cpu: float
    first_cpu: float


class Chains:
    """A sampler on a posterior, compiled once and run from several seeds.

    ``MCMC`` compiles again for every run. Here one program of ``BLOCK`` iterations serves warm-up and draws.
    """

    def __init__(self, sampler: Sampler, posterior: Posterior, reference: Reference | None, lengths: Lengths):
        self.sampler = sampler
        self.kernel = sampler.build(posterior, reference, None)
        self.num_warmup = lengths.warmup
        self.blocks = math.ceil(lengths.draws * sampler.more / BLOCK)
        self.program: Any = None
        self.compile_cpu = math.nan

    def run(self, seed: int) -> Run:
        import jax

        key_start, key_draws = jax.random.split(jax.random.key(seed))
        began = time.process_time()
        state = jax.block_until_ready(self._start(jax.random.split(key_start, CHAINS)))
        if self.program is None:
            before = time.process_time()
            self.program = jax.jit(self._block).lower(state).compile()
            self.compile_cpu = time.process_time() - before
        warmup_gradients = self.sampler.tuning(state)
        for _ in range(self.num_warmup // BLOCK):
            state, (_, gradients, _) = self.program(state)
            warmup_gradients += float(gradients.sum())
        jax.block_until_ready(state)
        warm = time.process_time()
        state = state._replace(rng_key=jax.random.split(key_draws, CHAINS))
        found = []
        for _ in range(self.blocks):
            state, block = self.program(state)
            found.append(block)
        jax.block_until_ready(state)
        done = time.process_time()
        draws, gradients, divergences = zip(*found, strict=True)
        return Run(
            {n: np.swapaxes(np.concatenate([np.asarray(z[n]) for z in draws]), 0, 1) for n in draws[0]},
            gradients=float(np.sum(gradients)),
            warmup_gradients=warmup_gradients,
            num_draws=self.blocks * BLOCK * CHAINS,
            divergences=int(np.sum(divergences)),
            cpu=done - warm,
            first_cpu=warm - began,
        )

    def _start(self, keys: Any) -> Any:
        import jax
        import jax.numpy as jnp

        if self.sampler.batched:
            return self.kernel.init(keys, self.num_warmup, None, (), {})
        states = [self.kernel.init(key, self.num_warmup, None, (), {}) for key in keys]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def _block(self, state: Any) -> tuple[Any, Any]:
        """``BLOCK`` iterations: the draws kept, gradients and divergences of each chain."""
        import jax
        import jax.numpy as jnp

        def advance(state: Any) -> Any:
            if self.sampler.batched:
                return self.kernel.sample(state, (), {})
            return jax.vmap(lambda one: self.kernel.sample(one, (), {}))(state)

        def iterate(_: Any, carry: Any) -> Any:
            state, gradients, divergences = carry
            state = advance(state)
            count = getattr(state, "num_steps", jnp.ones(CHAINS, int))
            diverging = getattr(state, "diverging", jnp.zeros(CHAINS, bool))
            return state, gradients + count, divergences + diverging

        def keep(carry: Any, _: Any) -> tuple[Any, Any]:
            carry = jax.lax.fori_loop(0, self.sampler.thinning, iterate, carry)
            return carry, carry[0].z

        start = state, jnp.zeros(CHAINS, int), jnp.zeros(CHAINS, int)
        (state, *counts), draws = jax.lax.scan(keep, start, None, length=BLOCK // self.sampler.thinning)
        return state, (draws, *counts)


def effective(values: np.ndarray) -> np.ndarray:
    """Effective sample sizes; zero where there is no telling."""
    from numpyro.diagnostics import effective_sample_size

    with np.errstate(all="ignore"):
        sizes = np.asarray(effective_sample_size(values))
    return np.where(np.isfinite(sizes) & (sizes > 0.0), sizes, 0.0)


def refer(posterior: Posterior, lengths: Lengths) -> tuple[Reference, str]:
    long = Chains(SAMPLERS[NUTS], posterior, None, lengths._replace(draws=lengths.reference))
    run = long.run(10_000)
    measured = posterior.measured(run.draws)
    sizes = {name: effective(values) for name, values in measured.items()}
    sd = {name: values.std((0, 1)) for name, values in measured.items()}
    reference = Reference(
        mean={name: values.mean((0, 1)) for name, values in measured.items()},
        sd=sd,
        error={name: sd[name] / np.sqrt(np.maximum(sizes[name], 1.0)) for name in sd},
        line_sd={name: values.std((0, 1)) for name, values in run.draws.items()},
    )
    least = ", ".join(f"{name} {size.min():.0f}" for name, size in sizes.items())
    squares = ", ".join(
        f"{name}^2 {effective((values - reference.mean[name]) ** 2).min():.0f}"
        for name, values in measured.items()
    )
    said = (
        f"Reference: NUTS, {CHAINS} x {lengths.reference} draws, {run.divergences} divergences; least effective "
        f"sample sizes {least}, {squares}."
    )
    return reference, said


# --------------------------------------------------------------------------------------------------- measuring


@dataclass
class Result:
    """What the seeds of one sampler on one posterior have given; costs by seed."""

    sampler: Sampler
    sizes: dict[str, list[float]] = field(default_factory=dict)
    """Least effective sample size, by quantity: ``x``, ``x^2``, on the latent SDE ``H``."""
    gradients: list[float] = field(default_factory=list)
    warmup_gradients: list[float] = field(default_factory=list)
    num_draws: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first_cpu: float = math.nan
    compile_cpu: float = math.nan
    divergences: int = 0
    sd_ratio: tuple[float, float] = (math.nan, math.nan)
    shift: tuple[float, float] = (math.nan, math.nan)
    """The largest, and the standard error of a mean."""
    hurst: tuple[float, float] = (math.nan, math.nan)
    """Mean and its standard error."""
    failures: list[str] = field(default_factory=list)
    """What seeds that gave up had to say; the rest is of the others."""

    def each(self, quantity: str, what: str = "gradients") -> list[float]:
        """Cost of an effective sample, by seed."""
        cost = {
            "gradients": self.gradients,
            "total": [a + b for a, b in zip(self.gradients, self.warmup_gradients, strict=True)],
            "cpu": self.cpu,
        }[what]
        return [c / s if s > 0.0 else math.inf for c, s in zip(cost, self.sizes[quantity], strict=True)]

    def median(self, quantity: str, what: str = "gradients") -> float:
        return statistics.median(self.each(quantity, what)) if self.gradients else math.inf

    def least(self, quantity: str) -> float:
        return min(self.each(quantity)) if self.gradients else math.inf

    @property
    def close(self) -> bool:
        """The bias is small."""
        (low, high), (shift, error) = self.sd_ratio, self.shift
        return max(1.0 - low, high - 1.0) <= BIAS_SD + 2.0 * error and shift <= BIAS_SHIFT + 2.0 * error


def measure(name: str, posterior: Posterior, reference: Reference, lengths: Lengths, repeats: int) -> Result:
    sampler = SAMPLERS[name]
    result = Result(sampler)
    chains = Chains(sampler, posterior, reference, lengths)
    means, squares, sizes = [], [], []
    for seed in range(repeats):
        try:
            run = chains.run(seed)
        except (RuntimeError, ValueError, FloatingPointError) as error:
            result.failures.append(f"{type(error).__name__}: {error}".splitlines()[0])
            print(f"{posterior.title}: {sampler.title}, seed {seed}, gave up", file=sys.stderr, flush=True)
            continue
        measured = posterior.measured(run.draws)
        of_x = {quantity: effective(values) for quantity, values in measured.items()}
        of_square = effective((measured["x"] - reference.mean["x"]) ** 2)
        for quantity, found in {**of_x, "x^2": of_square}.items():
            result.sizes.setdefault(quantity, []).append(float(found.min()))
        result.gradients.append(run.gradients)
        result.warmup_gradients.append(run.warmup_gradients)
        result.num_draws.append(run.num_draws)
        result.cpu.append(run.cpu)
        result.divergences += run.divergences
        if len(means) == 0:
            result.first_cpu, result.compile_cpu = run.first_cpu, chains.compile_cpu
        means.append({n: values.mean((0, 1)) for n, values in measured.items()})
        squares.append(
            {n: ((values - reference.mean[n]) ** 2).mean((0, 1)) for n, values in measured.items()}
        )
        sizes.append(of_x)
        print(f"{posterior.title}: {sampler.title}, seed {seed}", file=sys.stderr, flush=True)
    if means:
        ratios, shifts, errors = [], [], []
        for n, centre in reference.mean.items():
            mean = np.mean([m[n] for m in means], axis=0)
            variance = np.mean([s[n] for s in squares], axis=0) - (mean - centre) ** 2
            sd = np.sqrt(np.maximum(variance, 0.0))
            own = sd / np.sqrt(np.maximum(np.sum([s[n] for s in sizes], axis=0), 1.0))
            error = np.hypot(own, reference.error[n])
            ratios.append(sd / reference.sd[n])
            shifts.append(np.abs(mean - centre) / reference.sd[n])
            errors.append(error / reference.sd[n])
            if n == "H":
                result.hurst = float(mean[0]), float(own[0])
        ratio = np.concatenate(ratios)
        result.sd_ratio = float(ratio.min()), float(ratio.max())
        result.shift = float(np.concatenate(shifts).max()), float(np.concatenate(errors).max())
    return result


Results = dict[str, Result]
"""By sampler."""


def show(results: Results) -> None:
    """Two tables: costs; warm-up, time and bias."""
    done = {name: r for name, r in results.items() if r.gradients}
    quantities = [q for q in ("H", "x", "x^2") if any(q in r.sizes for r in done.values())]
    nuts = done.get(NUTS)

    def numbers(result: Result, what: str, scale: float = 1.0) -> list[str]:
        return [_number(scale * result.median(q, what)) for q in quantities]

    table(
        (
            "sampler",
            *(f"gradients / ESS({q})" for q in quantities),
            *(f"/ NUTS, {q}" for q in quantities),
            *(f"with warm-up, {q}" for q in quantities),
            *(f"CPU ms / ESS({q})" for q in quantities),
        ),
        (
            (
                r.sampler.title,
                *numbers(r, "gradients"),
                *(f"{r.median(q) / nuts.median(q):.2f}" if nuts else "" for q in quantities),
                *numbers(r, "total"),
                *numbers(r, "cpu", 1e3),
            )
            for r in done.values()
        ),
    )
    table(
        (
            "sampler",
            "exact",
            "gradients a draw",
            "draws",
            "gradients of warm-up",
            "compiling, CPU s",
            "until the first draw, CPU s",
            "ratio of sd",
            "largest shift (s.e.)",
            "divergences",
        ),
        (
            (
                r.sampler.title,
                "yes" if r.sampler.exact else "no",
                f"{statistics.median(r.gradients) / r.num_draws[0]:.1f}",
                str(r.num_draws[0]),
                f"{statistics.median(r.warmup_gradients):.0f}",
                f"{r.compile_cpu:.1f}",
                f"{r.first_cpu:.1f}",
                f"{r.sd_ratio[0]:.3f} to {r.sd_ratio[1]:.3f}",
                f"{r.shift[0]:.3f} ({r.shift[1]:.3f})",
                str(r.divergences),
            )
            for r in done.values()
        ),
    )
    for r in results.values():
        if r.failures:
            seeds = len(r.failures) + len(r.gradients)
            print(f"- {r.sampler.title} gave up on {len(r.failures)} of {seeds} seeds: {r.failures[0]}")
    if any(r.failures for r in results.values()):
        print()


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


# ----------------------------------------------------------------------------------------------------- targets


def worst(result: Result, how: Callable[[Result, str], float] = Result.median) -> float:
    """Gradients for an effective sample of x, or of H where that takes more."""
    if not result.gradients:
        return math.inf
    return max(how(result, q) for q in ("H", "x") if q in result.sizes)


def square(result: Result, how: Callable[[Result, str], float] = Result.median) -> float:
    return how(result, "x^2") if result.gradients else math.inf


def judge(all_results: dict[str, Results]) -> list[str]:
    """The targets on gradients, as lines."""
    lines, met = [], {"x": 0, "x^2": 0}
    costs: dict[str, Callable[..., float]] = {"x": worst, "x^2": square}
    for part, results in all_results.items():
        nuts = results.get(NUTS)
        ours = [r for r in results.values() if r.sampler.ours and r.gradients]
        if nuts is None or not nuts.gradients or not ours:
            continue
        for what, cost in costs.items():
            admitted = [r for r in ours if r.close]
            if not admitted:
                lines.append(f"- gradients for an effective sample of {what}, {part}: nothing close: MISSED")
                continue
            best = min(admitted, key=cost)
            target = Target(
                f"gradients for an effective sample of {what}, {part}, NUTS / {best.sampler.title}",
                1.5,
                cost(nuts) / cost(best),
                cost(nuts, Result.least) / cost(best, Result.least),
                note=_also(nuts, [r for r in admitted if r.sampler.exact], cost),
            )
            met[what] += target.by_median >= target.bound
            lines.append(str(target))
    for what, count in met.items():
        if all_results:
            verdict = "met" if count >= 3 else "MISSED"
            lines.append(
                f"- 1.5 times fewer gradients than NUTS for {what}, by medians: {count} of {len(all_results)} "
                f"(target >= 3 of {len(POSTERIORS)}): {verdict}"
            )
    lines.append(
        f"  (A sampler counts whose standard deviations lie within {BIAS_SD:.0%} of the reference's and whose means "
        f"within {BIAS_SHIFT:g} of one, both give or take two standard errors; on {SDE} x is the dearer of path and H.)"
    )
    results = all_results.get(SDE, {})
    nuts = results.get(NUTS)
    if nuts and nuts.gradients:
        for name in (MALT, MCLMC):
            if name in results and results[name].gradients:
                lines.append(_on_path(results[name], nuts))
    return lines


def _also(nuts: Result, exact: Sequence[Result], cost: Callable[..., float]) -> str:
    if not exact:
        return "; of the exact ones none"
    best = min(exact, key=cost)
    return f"; of the exact ones {best.sampler.title} {cost(nuts) / cost(best):.2f}"


def _on_path(result: Result, nuts: Result) -> str:
    target = Target(
        f"gradients for an effective sample of x^2, {SDE}, NUTS / {result.sampler.title}",
        1.0,
        nuts.median("x^2") / result.median("x^2"),
        nuts.least("x^2") / result.least("x^2"),
    )
    gap = result.hurst[0] - nuts.hurst[0]
    error = math.hypot(result.hurst[1], nuts.hurst[1])
    same = "met" if abs(gap) <= 3.0 * error else "MISSED"
    return (
        f"{target}; H {result.hurst[0]:.3f}, {nuts.hurst[0]:.3f} by NUTS, {abs(gap) / error:.1f} standard errors "
        f"apart (target <= 3): {same}"
    )


def summary(all_results: dict[str, Results]) -> None:
    """Sampler by posterior: gradients relative to NUTS, for x and for x^2; the worst bias."""
    parts = [p for p, results in all_results.items() if NUTS in results and results[NUTS].gradients]
    titles = [POSTERIORS[p]().title for p in parts]
    names = [n for n in SAMPLERS if any(n in all_results[p] for p in parts)]

    def cell(name: str, part: str) -> str:
        result, nuts = all_results[part].get(name), all_results[part][NUTS]
        if result is None:
            return ""
        if not result.gradients:
            return "failed"
        return f"{worst(result) / worst(nuts):.2f} / {square(result) / square(nuts):.2f}"

    def bias(name: str) -> str:
        found = [all_results[p][name] for p in parts if name in all_results[p]]
        found = [r for r in found if r.gradients]
        if not found:
            return ""
        low, high = min(r.sd_ratio[0] for r in found), max(r.sd_ratio[1] for r in found)
        return f"{low:.2f} to {high:.2f}, {max(r.shift[0] for r in found):.2f}"

    table(
        ("sampler", "Metropolis test", *titles, "sd ratios, largest shift (sd)"),
        (
            (
                SAMPLERS[n].title,
                "yes" if SAMPLERS[n].exact else "no",
                *(cell(n, p) for p in parts),
                bias(n),
            )
            for n in names
        ),
    )
    said = {p: all_results[p][NUTS] for p in parts}
    base = "; ".join(f"{p} {worst(r):.0f} and {square(r):.0f}" for p, r in said.items())
    print(
        "Gradients for an effective sample of x / of x^2, relative to those of NUTS, without warm-up: below one is "
        f"better. NUTS itself takes, of x and of x^2: {base}. Bias: over all of the posteriors, against long runs of "
        "NUTS, which has itself the error shown in its own row."
    )


# ----------------------------------------------------------------------------------------- fresh interpreters


def first_draw(name: str, part: str) -> dict[str, float]:
    """The first draw after a warm-up of 10."""
    began = time.process_time()
    import jax
    import numpyro

    numpyro.enable_x64()
    from numpyro.infer import MCMC

    sampler, posterior = SAMPLERS[name], POSTERIORS[part]()
    kernel = sampler.build(posterior, None, 100)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(0.0))  # start the backend
    imported, clock = time.process_time(), time.perf_counter()
    mcmc = MCMC(
        kernel,
        num_warmup=10,
        num_samples=1,
        num_chains=CHAINS if sampler.batched else 1,
        chain_method="vectorized",
        progress_bar=False,
    )
    # The step of so short a tuning may well be refused: what is timed is the way there.
    if name in (MCLMC, ADJUSTED):
        kernel._check_start = lambda state: None
    mcmc.run(jax.random.key(0))
    jax.block_until_ready(mcmc.get_samples())
    return {
        "imports": imported - began,
        "cpu": time.process_time() - imported,
        "seconds": time.perf_counter() - clock,
    }


def bench_compile(names: Iterable[str], repeats: int, quick: bool) -> list[str]:
    """Compilation; NUTS and MALT in turn, ``repeats`` times, the others once."""
    lines = []
    names = list(dict.fromkeys((NUTS, MALT, *(() if quick else names))))
    for part in ("logistic",) if quick else ("logistic", SDE):
        shown = names if part == "logistic" else [n for n in names if n in (NUTS, MALT, MCLMC)]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in shown}
        for turn in range(repeats):
            for name in shown if turn % 2 == 0 else shown[::-1]:
                if turn == 0 or name in (NUTS, MALT):
                    done = _python(str(Path(__file__)), "--first-draw", name, "--only", part)
                    runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                    print(f"{part}: first draw of {name}", file=sys.stderr, flush=True)

        def of(name: str, what: str, runs: Any = runs) -> list[float]:
            return [run[what] for run in runs[name]]

        print(f"### First draw in a fresh interpreter: {POSTERIORS[part]().title}\n")
        table(
            (
                "sampler",
                "runs",
                "imports, CPU s",
                "first draw, CPU s",
                "least",
                "wall clock, s",
                "CPU / NUTS",
            ),
            (
                (
                    SAMPLERS[name].title,
                    str(len(runs[name])),
                    f"{statistics.median(of(name, 'imports')):.1f}",
                    f"{statistics.median(of(name, 'cpu')):.1f}",
                    f"{min(of(name, 'cpu')):.1f}",
                    f"{statistics.median(of(name, 'seconds')):.1f}",
                    f"{statistics.median(of(name, 'cpu')) / statistics.median(of(NUTS, 'cpu')):.2f}",
                )
                for name in shown
            ),
        )
        ratios = [f(of(MALT, "cpu")) / f(of(NUTS, "cpu")) for f in (statistics.median, min)]
        lines.append(
            str(Target(f"CPU seconds to a first draw, {part}, MALT / NUTS", 1.5, *ratios, at_least=False))
        )
    return lines


# -------------------------------------------------------------------------------------------------------- main

COMPILE = "compile"


def bench(options: argparse.Namespace) -> tuple[dict[str, Results], list[str]]:
    import numpyro

    numpyro.enable_x64()
    usual = QUICK_LENGTHS if options.quick else LENGTHS
    lengths = Lengths(usual.warmup, options.draws or usual.draws, options.reference_draws or usual.reference)
    repeats = options.repeats or (1 if options.quick else 3)
    parts = options.only or [*POSTERIORS, COMPILE]
    all_results: dict[str, Results] = {}
    for part in (p for p in parts if p in POSTERIORS):
        posterior = POSTERIORS[part]()
        print(f"### {posterior.title}\n", flush=True)
        reference, said = refer(posterior, lengths)
        print(f"{said} Seeds: {repeats}; draws of warm-up: {lengths.warmup}.\n", flush=True)
        results: Results = {}
        for name in options.samplers:
            results[name] = measure(name, posterior, reference, lengths, repeats)
        show(results)
        all_results[part] = results
    lines = judge(all_results) if all_results else []
    if COMPILE in parts:
        lines += bench_compile(options.samplers, repeats, options.quick)
    return all_results, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one seed, short chains: numbers mean little")
    parser.add_argument("--only", choices=[*POSTERIORS, COMPILE], nargs="+", help="these parts")
    parser.add_argument("--samplers", choices=SAMPLERS, nargs="+", default=list(SAMPLERS), help="these")
    parser.add_argument("--repeats", type=int, help="seeds (or interpreters) of each sampler; default 3")
    parser.add_argument("--draws", type=int, help=f"of a chain of NUTS; default {LENGTHS.draws}")
    parser.add_argument("--reference-draws", type=int, help=f"of a chain; default {LENGTHS.reference}")
    parser.add_argument("--tables", action="store_true", help="only a summary on standard output")
    parser.add_argument("--first-draw", choices=SAMPLERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.first_draw:
        print(json.dumps(first_draw(options.first_draw, options.only[0])))
        return

    packages = ("sojourn", "numpyro", "jax", "blackjax", "diffrax")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    heading = (
        f"{datetime.date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores, {versions}."
    )
    with contextlib.redirect_stdout(sys.stderr) if options.tables else contextlib.nullcontext():
        print(f"## Langevin samplers\n\n{heading}\n")
        all_results, lines = bench(options)
        print("### Targets\n")
        for line in lines:
            print(line)
        print()
        print("### Which one when\n")
        summary(all_results)
    if options.tables:
        summary(all_results)
        print(f"\n{heading}")


if __name__ == "__main__":
    main()
