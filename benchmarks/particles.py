"""Particle methods beside particles, cuthbert, dynestyx and NUTS: filter, conditional sweep, compiling, whole fit.

    python benchmarks/particles.py [--quick] [--only filter|sweep|compile|fit] [--repeats N]

Prints Markdown tables and, at the end, each target and whether it was met. It never fails for being slow.
Everything runs on the CPU, in float32 (particles: float64). Within a table the programs take turns, call by call,
so that a busy machine slows all of them alike: compare the ratios of one run, not the times of two.
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
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from hidden_markov import Program, Target, table  # it also chooses the CPU

# This file has the name of a package that it measures.
sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

PARTICLES, STEPS = 1000, 500
"""Of the filter."""
SWEEP_PARTICLES = 100
FIT_STEPS, FIT_PARTICLES = 1000, 100
OURS, BY_HAND, NUMPY, CUTHBERT, DYNESTYX = (
    "sojourn",
    "`lax.scan`, by hand",
    "particles",
    "cuthbert",
    "dynestyx",
)
MODELS = ("linear-Gaussian", "stochastic volatility")
PARAMETERS = {MODELS[0]: (0.9, 0.5), MODELS[1]: (0.95, 0.3)}
"""Autoregression and noise of the state."""


def available(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def simulate(name: str, steps: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    a, q = PARAMETERS[name]
    x, path = rng.normal() * stationary(a, q), []
    for _ in range(steps):
        x = a * x + q * rng.normal()
        path.append(x)
    state = np.array(path)
    noise = rng.normal(size=steps)
    return state + noise if name == MODELS[0] else np.exp(state / 2) * noise


def stationary(a: float, q: float) -> float:
    return q / float(np.sqrt(1 - a**2))


def kalman(y: np.ndarray) -> float:
    """Exact log-likelihood of the linear-Gaussian series."""
    a, q = PARAMETERS[MODELS[0]]
    mean, var, total = 0.0, stationary(a, q) ** 2, 0.0
    for value in y:
        mean, var = a * mean, a**2 * var + q**2
        s = var + 1.0
        total -= 0.5 * (np.log(2 * np.pi * s) + (value - mean) ** 2 / s)
        mean, var = mean + var / s * (value - mean), var / s
    return total


def observation(name: str, x: Any) -> Any:
    import jax.numpy as jnp
    import numpyro.distributions as dist

    return dist.Normal(x, 1.0) if name == MODELS[0] else dist.Normal(0.0, jnp.exp(x / 2))


def numpyro_model(name: str) -> Callable[..., None]:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan

    def model(y: Any) -> None:
        a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
        q = numpyro.sample("q", dist.HalfNormal(1.0))
        first = numpyro.sample("x0", dist.Normal(0.0, q / jnp.sqrt(1 - a**2)))

        def step(x: Any, y: Any) -> tuple[Any, None]:
            x = numpyro.sample("x", dist.Normal(a * x, q))
            numpyro.sample("y", observation(name, x), obs=y)
            return x, None

        scan(step, first, y)

    return model


def particles_model(name: str) -> Any:
    """The same in particles: its first state is the one after the first step."""
    from particles import distributions as law
    from particles import state_space_models as ssm

    class Model(ssm.StateSpaceModel):
        default_params = dict(zip(("a", "q"), PARAMETERS[name], strict=True))

        def PX0(self) -> Any:
            return law.Normal(scale=self.q / np.sqrt(1 - self.a**2))

        def PX(self, t: int, xp: Any) -> Any:
            return law.Normal(loc=self.a * xp, scale=self.q)

        def PY(self, t: int, xp: Any, x: Any) -> Any:
            return law.Normal(loc=x) if name == MODELS[0] else law.Normal(scale=np.exp(x / 2))

    return Model


@dataclass
class Timing:
    """Calls of one program: the first one apart. Wall clock, and CPU time of all threads."""

    first: float
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)


def take_turns(programs: Mapping[str, Program], repeats: int) -> dict[str, Timing]:
    """Time the programs in rotating order, ``repeats`` times each."""
    import jax

    def once(program: Program) -> tuple[float, float]:
        began, began_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(program())
        return time.perf_counter() - began, time.process_time() - began_cpu

    timings = {name: Timing(once(program)[0]) for name, program in programs.items()}
    names = list(programs)
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            seconds, cpu = once(programs[name])
            timings[name].seconds.append(seconds)
            timings[name].cpu.append(cpu)
    return timings


def show(timings: Mapping[str, Timing]) -> None:
    ours = timings[OURS]
    table(
        (
            "program",
            "first call, s",
            "median, ms",
            "min, ms",
            "median CPU, ms",
            "median / sojourn",
            "min / sojourn",
            "CPU / sojourn",
        ),
        (
            (
                name,
                f"{t.first:.2f}",
                f"{1e3 * t.median:.2f}",
                f"{1e3 * t.least:.2f}",
                f"{1e3 * t.cpu_median:.2f}",
                f"{t.median / ours.median:.1f}",
                f"{t.least / ours.least:.1f}",
                f"{t.cpu_median / ours.cpu_median:.1f}",
            )
            for name, t in timings.items()
        ),
    )


def ratio(what: str, bound: float, timings: Mapping[str, Timing], peer: str) -> list[Target]:
    if peer not in timings:
        return []
    ours, theirs = timings[OURS], timings[peer]
    note = f"; by CPU time {theirs.cpu_median / ours.cpu_median:.1f}"
    return [Target(what, bound, theirs.median / ours.median, theirs.least / ours.least, note=note)]


# ------------------------------------------------------------------------------------------------- filter


def filters(name: str, y: np.ndarray) -> dict[str, Callable[[int], Any]]:
    """Log-likelihood estimates as functions of a seed; systematic resampling below half the particles."""
    import jax
    import jax.numpy as jnp
    from jax import random

    from sojourn.inference._particle_filter import particle_log_likelihood

    n, steps = PARTICLES, len(y)
    a, q = PARAMETERS[name]
    data = jnp.asarray(y, jnp.float32)
    estimate = particle_log_likelihood(numpyro_model(name), data, num_particles=n, gradient="stop")
    ours = jax.jit(lambda key: estimate({"a": a, "q": q}, key))

    @jax.jit
    def by_hand(key: Any) -> Any:
        key_start, key = random.split(key)

        def step(running: Any, inputs: Any) -> Any:
            x, log_weight, total = running
            key, value = inputs
            key_resample, key_move = random.split(key)
            weight = jax.nn.softmax(log_weight)

            def resample() -> Any:
                points = (random.uniform(key_resample) + jnp.arange(n)) / n
                chosen = jnp.minimum(jnp.searchsorted(jnp.cumsum(weight), points), n - 1)
                return x[chosen], jnp.full(n, -jnp.log(n)), jax.nn.logsumexp(log_weight)

            few = 1 / jnp.sum(weight**2) < n / 2
            x, log_weight, gained = jax.lax.cond(few, resample, lambda: (x, log_weight, 0.0))
            x = a * x + q * random.normal(key_move, (n,))
            return (x, log_weight + observation(name, x).log_prob(value), total + gained), None

        start = (stationary(a, q) * random.normal(key_start, (n,)), jnp.full(n, -jnp.log(n)), 0.0)
        (_, log_weight, total), _ = jax.lax.scan(step, start, (random.split(key, steps), data))
        return total + jax.nn.logsumexp(log_weight)

    programs: dict[str, Callable[[int], Any]] = {
        OURS: lambda seed: ours(random.key(seed)),
        BY_HAND: lambda seed: by_hand(random.key(seed)),
    }
    if available("particles"):
        import particles
        from particles import state_space_models as ssm

        fk = ssm.Bootstrap(ssm=particles_model(name)(), data=y)

        def numpy_filter(seed: int) -> float:
            np.random.seed(seed)  # noqa: NPY002  (the library draws from it)
            smc = particles.SMC(fk=fk, N=n, resampling="systematic", ESSrmin=0.5, collect="off")
            smc.run()
            return smc.logLt

        programs[NUMPY] = numpy_filter
    if available("cuthbert"):
        import cuthbert
        from cuthbert.smc import particle_filter
        from cuthbertlib.resampling import systematic
        from cuthbertlib.resampling.adaptive import ess_decorator

        # Its first state has no observation: entry 0 of the inputs is not looked at.
        inputs = jnp.concatenate([jnp.zeros(1, data.dtype), data])

        @jax.jit
        def cuthbert_filter(key: Any) -> Any:
            built = particle_filter.build_filter(
                lambda key: stationary(a, q) * random.normal(key),
                lambda key, x, value: a * x + q * random.normal(key),
                lambda before, x, value: observation(name, x).log_prob(value),
                n,
                ess_decorator(systematic.resampling, 0.5),
            )
            key_start, key = random.split(key)
            found = cuthbert.filter(built, inputs, built.init_prepare(key=key_start), key=key)
            return found.log_normalizing_constant[-1]

        programs[CUTHBERT] = lambda seed: cuthbert_filter(random.key(seed))
    if available("dynestyx"):
        import dynestyx
        import numpyro.distributions as dist
        from dynestyx.inference.configs.filter import PFConfig

        times = jnp.arange(float(steps))

        @jax.jit
        def dynestyx_filter(key: Any) -> Any:
            system = dynestyx.DynamicalModel(
                initial_condition=dist.Normal(0.0, stationary(a, q)).expand([1]).to_event(1),
                state_evolution=lambda x, u, t_now, t_next: dist.Normal(a * x, q).to_event(1),
                observation_model=lambda x, u, t: observation(name, x).to_event(1),
            )
            with dynestyx.Filter(
                filter_config=PFConfig(n_particles=n, ess_threshold_ratio=0.5, crn_seed=key)
            ):
                found = dynestyx.condition("f", system, obs_times=times, obs_values=data[:, None])
            return found.marginal_loglik

        programs[DYNESTYX] = lambda seed: dynestyx_filter(random.PRNGKey(seed))
    return programs


def bench_filter(repeats: int, quick: bool) -> list[Target]:
    targets = []
    for name in MODELS:
        y = simulate(name, STEPS)
        programs = filters(name, y)
        print(f"### Bootstrap filter, {name}: N = {PARTICLES}, T = {STEPS}\n")
        timings = take_turns({n: partial(f, 0) for n, f in programs.items()}, repeats)
        show(timings)
        seeds = range(1, 5 if quick else 25)
        told = []
        for program, f in programs.items():
            values = [float(f(seed)) for seed in seeds]
            told.append(f"{program} {statistics.mean(values):.2f} ({statistics.stdev(values):.2f})")
        exact = f"; exact {kalman(y):.2f}" if name == MODELS[0] else ""
        print(f"Mean (standard deviation) of {len(seeds)} estimates: {', '.join(told)}{exact}.\n")
        for peer, bound in ((NUMPY, 8.0), (CUTHBERT, 8.0), (DYNESTYX, 5.0)):
            targets += ratio(f"bootstrap filter, {name}, {peer} / sojourn", bound, timings, peer)
    return targets


# -------------------------------------------------------------------------------------------------- sweep


def bulk_ess(paths: np.ndarray) -> np.ndarray:
    """Effective sample size at each step of draws ``(draws, T)`` of a path, from one chain."""
    import arviz as az

    return np.array([float(az.ess(paths[None, :, t])) for t in range(paths.shape[1])])


def bench_sweep(repeats: int, quick: bool) -> list[Target]:
    """Conditional SMC at fixed parameters: time of a sweep, and what a sweep is worth."""
    import jax
    import jax.numpy as jnp
    from jax import random

    from sojourn import read_scan
    from sojourn.ops.particles import particle_sweep, run_filter

    name, n = MODELS[1], SWEEP_PARTICLES
    y = simulate(name, STEPS)
    a, q = PARAMETERS[name]
    process = read_scan(numpyro_model(name), jnp.asarray(y, jnp.float32)).at({"a": a, "q": q}).process()
    count = 100 if quick else 300
    sweep_of = {}
    for path in ("ancestor", "backward"):

        def once(key: Any, reference: Any, path: str = path) -> Any:
            sweep = particle_sweep(process, key, n, reference, path=path)
            return sweep.start, sweep.path

        sweep_of[path] = jax.jit(once)
    start = jax.jit(lambda key: run_filter(process, key, n))(random.key(0))
    reference = (start.start, start.path)

    def chain(path: str) -> np.ndarray:
        state, draws = reference, []
        for key in random.split(random.key(1), count):
            state = sweep_of[path](key, state)
            draws.append(np.asarray(state[1]["x"]))
        return np.array(draws)

    programs: dict[str, Program] = {
        OURS: lambda: sweep_of["ancestor"](random.key(2), reference),
        "sojourn, backward sampling": lambda: sweep_of["backward"](random.key(2), reference),
    }
    paths = {OURS: chain("ancestor"), "sojourn, backward sampling": chain("backward")}
    if available("particles"):
        from particles import mcmc
        from particles import state_space_models as ssm

        fk = ssm.Bootstrap(ssm=particles_model(name)(), data=y)

        def sweep(before: Any) -> Any:
            smc = mcmc.CSMC(fk=fk, N=n, xstar=before)
            smc.run()
            return smc.hist.backward_sampling_ON2(1)

        np.random.seed(0)  # noqa: NPY002
        state, draws = [np.atleast_1d(x)[0] for x in paths[OURS][-1]], []
        for _ in range(count):
            state = [np.asarray(x).reshape(-1)[0] for x in sweep(state)]
            draws.append(state)
        paths[NUMPY] = np.array(draws, float)
        programs[NUMPY] = lambda state=state: sweep(state)
    print(f"### One sweep of conditional SMC, {name}: N = {n}, T = {STEPS}\n")
    timings = take_turns(programs, repeats)
    show(timings)
    worth = {k: bulk_ess(v[len(v) // 10 :]) / (0.9 * count) for k, v in paths.items()}
    table(
        ("program", "ESS a sweep: lowest", "lowest tenth", "median", "median ESS / s"),
        (
            (
                k,
                f"{w.min():.2f}",
                f"{np.quantile(w, 0.1):.2f}",
                f"{np.median(w):.2f}",
                f"{np.median(w) / timings[k].median:.0f}",
            )
            for k, w in worth.items()
        ),
    )
    targets = ratio("sweep of conditional SMC, particles / sojourn", 10.0, timings, NUMPY)
    if NUMPY in worth:
        shares = [f(worth[OURS]) / f(worth[NUMPY]) for f in (np.median, partial(np.quantile, q=0.1))]
        targets.append(
            Target(
                "ESS of a sweep, sojourn / particles",
                0.9,
                *shares,
                note=" (here: median of the steps, and their lowest tenth; estimates from so few sweeps err by 5 %)",
            )
        )
    return targets


# ------------------------------------------------------------------------------------------------ compile


def bench_compile(repeats: int, quick: bool) -> list[Target]:
    """CPU seconds from a new kernel to its first iteration."""
    import jax
    import jax.numpy as jnp
    from jax import random

    from sojourn.inference import ParticleGibbs

    y = jnp.asarray(simulate(MODELS[1], STEPS), jnp.float32)
    jax.block_until_ready(jax.jit(lambda x: x + 1)(y))
    seconds = {"set up": [], "first iteration": []}
    for turn in range(repeats):
        kernel = ParticleGibbs(numpyro_model(MODELS[1]), num_particles=SWEEP_PARTICLES)
        began = time.process_time()
        state = jax.block_until_ready(kernel.init(random.key(turn), 100, None, (y,), {}))
        seconds["set up"].append(time.process_time() - began)
        began = time.process_time()
        jax.block_until_ready(jax.jit(lambda s, k=kernel: k.sample(s, (y,), {}))(state))
        seconds["first iteration"].append(time.process_time() - began)
    total = [sum(pair) for pair in zip(*seconds.values(), strict=True)]
    print(f"### Compiling ParticleGibbs: N = {SWEEP_PARTICLES}, T = {STEPS}, CPU seconds\n")
    rows = [
        (k, f"{statistics.median(v):.1f}", f"{min(v):.1f}") for k, v in {**seconds, "together": total}.items()
    ]
    table(("part", "median, s", "min, s"), rows)
    return [
        Target(
            "CPU seconds to compile ParticleGibbs", 10.0, statistics.median(total), min(total), at_least=False
        )
    ]


# ---------------------------------------------------------------------------------------------------- fit


def bench_fit(repeats: int, quick: bool) -> list[Target]:
    """Whole fits, compilation and all: effective draws of the parameters a second."""
    import jax
    import jax.numpy as jnp
    from jax import random
    from numpyro.infer import MCMC, NUTS

    from sojourn.inference import ParticleGibbs
    from sojourn.inference._particle_marginal import ParticleMarginal

    import arviz as az  # isort: skip  (imported first, it would leave NumPyro lazy)

    name = MODELS[1]
    y = simulate(name, FIT_STEPS)
    data = jnp.asarray(y, jnp.float32)
    scale = 0.2 if quick else 1.0
    model = numpyro_model(name)
    kernels = {
        OURS: (lambda: ParticleGibbs(model, num_particles=FIT_PARTICLES), 500, 2000),
        "sojourn, ParticleMarginal": (lambda: ParticleMarginal(model, num_particles=1000), 500, 2000),
        "NUTS on path and parameters": (lambda: NUTS(model), 500, 1000),
    }
    rows = {}

    def note(program: str, draws: Mapping[str, Any], seconds: float, cpu: float) -> None:
        ess = {n: float(az.ess(np.asarray(draws[n], float)[None])) for n in ("a", "q")}
        means = {n: float(np.mean(draws[n])) for n in ess}
        rows[program] = (seconds, cpu, ess, means, len(draws["a"]))

    for program, (build, warmup, samples) in kernels.items():
        jax.clear_caches()
        began, began_cpu = time.perf_counter(), time.process_time()
        mcmc = MCMC(
            build(), num_warmup=int(scale * warmup), num_samples=int(scale * samples), progress_bar=False
        )
        mcmc.run(random.key(0), data)
        draws = jax.block_until_ready(mcmc.get_samples())
        note(program, draws, time.perf_counter() - began, time.process_time() - began_cpu)
    if available("particles"):
        from particles import distributions as law
        from particles import mcmc as peer

        class Prior(law.StructDist):
            """With a number where NumPy 2.5 no longer takes an array of one for it."""

            def logpdf(self, theta: Any) -> Any:
                found = super().logpdf(theta)
                return found.item() if np.size(found) == 1 else found

        prior = Prior({"a": law.Uniform(0.0, 1.0), "q": law.Gamma(2.0, 4.0)})
        np.random.seed(0)  # noqa: NPY002
        count = int(scale * 1000)
        began, began_cpu = time.perf_counter(), time.process_time()
        chain = peer.PMMH(ssm_cls=particles_model(name), prior=prior, data=y, Nx=PARTICLES, niter=count)
        chain.run()
        kept = {n: chain.chain.theta[n][count // 5 :] for n in ("a", "q")}
        note("particles, PMMH", kept, time.perf_counter() - began, time.process_time() - began_cpu)
    print(f"### Whole fit, {name}: T = {FIT_STEPS}, one chain\n")
    table(
        ("program", "draws", "seconds", "CPU s", "mean of a, q", "ESS of a, q", "least ESS / CPU s"),
        (
            (
                program,
                str(count),
                f"{seconds:.1f}",
                f"{cpu:.1f}",
                ", ".join(f"{m:.3f}" for m in means.values()),
                ", ".join(f"{e:.0f}" for e in ess.values()),
                f"{min(ess.values()) / cpu:.2f}",
            )
            for program, (seconds, cpu, ess, means, count) in rows.items()
        ),
    )
    rate = {p: min(ess.values()) / cpu for p, (_, cpu, ess, _, _) in rows.items()}
    wall = {p: min(ess.values()) / seconds for p, (seconds, _, ess, _, _) in rows.items()}
    peers = [p for p in rate if not p.startswith(OURS)]
    return [
        Target(
            f"least ESS a second (CPU, wall) of a whole fit, sojourn / {p}",
            1.0,
            rate[OURS] / rate[p],
            wall[OURS] / wall[p],
        )
        for p in peers
    ]


# --------------------------------------------------------------------------------------------------- main

PARTS: dict[str, tuple[Callable[[int, bool], list[Target]], int, int]] = {
    "filter": (bench_filter, 15, 4),
    "sweep": (bench_sweep, 15, 5),
    "compile": (bench_compile, 3, 1),
    "fit": (bench_fit, 1, 1),
}
"""By name: the function, its repeats, and its repeats under ``--quick``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few repeats, short chains")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--repeats", type=int, help="timed calls of each program")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    packages = [p for p in ("sojourn", "numpyro", "jax", "particles", "cuthbert", "dynestyx") if available(p)]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print("## Particle methods\n")
    print(
        f"{datetime.date.today()}, Python {platform.python_version()}, {os.cpu_count()} cores, {versions}.\n"
    )
    targets: list[Target] = []
    for name in [options.only] if options.only else list(PARTS):
        bench, usual, quick = PARTS[name]
        targets += bench(options.repeats or (quick if options.quick else usual), options.quick)
    print("### Targets\n")
    for target in targets:
        print(target)


if __name__ == "__main__":
    main()
