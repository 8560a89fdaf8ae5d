"""How the cost of every engine grows: with length, series, particles, states, draws, processes and devices.

    python benchmarks/scaling.py results.json                     # everything, half an hour on two quiet cores
    python benchmarks/scaling.py results.json --only length       # series, particles, states, draws, ...
    python benchmarks/scaling.py results.json --only length --engines nuts svi
    python benchmarks/scaling.py --quick results.json             # two small values an axis: does all of it run?
    python benchmarks/scaling.py --plot-from results.json         # the picture, tables and estimate alone

Costs are processor time (all threads of the process), in steady state and without compiling: the median of several
blocks. They are for one chain and for one *gradient* under engines that follow the gradient of the whole model (steps
are fixed and short, so that every trajectory has the same number of them), and for one *sweep*, or step of the
optimiser, under the others. Exponents are least squares on logarithms over the larger values of an axis. New results
replace those of the same name in the file and leave the others there. Throughput is wall-clock time, in two rounds
over the places. It never fails for being slow.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

STEP = 1e-3  # of all integrators: so short that none turns back, so that trajectories are alike
TREE_DEPTH = 4  # 15 gradients
MINIBATCH = 64
BLOCKS = 5
AXES = {
    "length": (400, 1600, 6400),
    "series": (16, 64, 256),
    "particles": (16, 64, 256, 1024),
    "states": (4, 16, 64),
    "draws": (250, 1000, 4000, 16000),
}
QUICK = 2  # values an axis under --quick
LONGER = {"stochastic_gradient": (1600, 6400, 25600, 102400), "map": (6400, 25600, 102400)}

Key = tuple[str, str]


# ------------------------------------------------------------------------------------------------- models


def walk(y):
    """A random walk seen in noise; its path is sampled."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan

    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def walks(y):
    """Many of them with one scale: ``y`` is ``(T, N)``."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan

    number = np.shape(y)[1]
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        with numpyro.plate("series", number):
            x = numpyro.sample("x", dist.Normal(x, scale))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, jnp.zeros(number), y)


def minibatches(y):
    """A mean and a scale, by minibatches."""
    import numpyro
    import numpyro.distributions as dist

    mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("unit", len(y), subsample_size=MINIBATCH):
        numpyro.sample("y", dist.Normal(mean, scale), obs=numpyro.subsample(y, event_dim=0))


def walk_data(steps: int, number: int | None = None) -> np.ndarray:
    size = (steps,) if number is None else (steps, number)
    rng = np.random.default_rng(0)
    return (0.5 * rng.normal(size=size).cumsum(0) + rng.normal(size=size)).astype(np.float32)


def count_data(states: int, steps: int, number: int | None = None) -> np.ndarray:
    """Counts of a chain that stays where it is nine times in ten."""
    rng = np.random.default_rng(0)
    lead = () if number is None else (number,)
    moves = rng.random((*lead, steps)) < 0.1
    path = np.cumsum(moves * rng.integers(1, max(states, 2), moves.shape), -1) % states
    return rng.poisson(2.0 * 1.5 ** np.minimum(path, 8)).astype(np.float32)


# ------------------------------------------------------------------------------------------------- engines


def gradient_kernels() -> dict[str, Callable[..., Any]]:
    """Engines that follow the gradient of the whole model, with trajectories of fixed length."""
    from numpyro.infer import NUTS

    from sojourn.inference import MALT, MCLMC, AdjustedMCLMC, StochasticGradientLangevin, UnderdampedLangevin
    from sojourn.inference._initial import init_to_hint

    still = {"adapt_step_size": False, "adapt_mass_matrix": False, "step_size": STEP}
    return {
        "nuts": partial(NUTS, init_strategy=init_to_hint(), max_tree_depth=TREE_DEPTH, **still),
        "langevin": partial(MALT, trajectory_length=16 * STEP, **still),
        "mclmc": partial(MCLMC, tuning_steps=100),
        "adjusted_mclmc": partial(AdjustedMCLMC, tuning_steps=100),
        "underdamped_langevin": partial(UnderdampedLangevin, trajectory_length=16 * STEP, **still),
        "stochastic_gradient": partial(StochasticGradientLangevin, step_size=STEP),
    }


def particle_kernels(num_particles: int = 32) -> dict[str, Callable[..., Any]]:
    from numpyro.infer import NUTS

    from sojourn.inference import ParticleGibbs, ParticleMarginal
    from sojourn.inference._initial import init_to_hint

    still = {"adapt_step_size": False, "adapt_mass_matrix": False, "step_size": STEP}
    inner = partial(NUTS, init_strategy=init_to_hint(), max_tree_depth=3, **still)
    return {
        "particle_gibbs": partial(ParticleGibbs, num_particles=num_particles, inner_kernel=inner),
        "particle_marginal": partial(ParticleMarginal, num_particles=num_particles),
    }


class Cost(NamedTuple):
    """Of one gradient, sweep or step."""

    unit: str
    blocks: list[float]
    """Milliseconds of processor time, block by block."""
    compile: float
    """Seconds of processor time until the program that goes on is there."""


class _Enough(Exception):
    """Ends an engine that has been watched for long enough."""


class Clock:
    """Stands where an engine keeps its checkpoint, and notes when it asks whether one is due."""

    def __init__(self, blocks: int):
        self.blocks, self.times, self.counts = blocks, [time.process_time()], [0]

    def restore(self) -> None:
        return None

    def save(self, *what: Any, **more: Any) -> None:
        pass

    def due(self, count: int) -> bool:
        self.times.append(time.process_time())
        self.counts.append(count)
        if len(self.times) > self.blocks + 1:
            raise _Enough
        return False

    def cost(self, unit: str) -> Cost:
        spent, steps = np.diff(self.times), np.diff(self.counts)
        each = (1e3 * spent[1:] / steps[1:]).tolist()
        return Cost(unit, each, spent[0] - statistics.median(spent[1:]))


def of_kernel(
    kernel_of: Callable[..., Any], model: Callable[..., Any], y: np.ndarray, seconds: float
) -> Cost:
    """One chain, compiled once, advanced block by block."""
    import jax
    import jax.numpy as jnp

    from sojourn.inference import ParticleGibbs, ParticleMarginal
    from sojourn.inference._chains import Chains
    from sojourn.inference._gradient_kernel import GradientKernel
    from sojourn.inference._initial import compiled_once
    from sojourn.inference._places import Places
    from sojourn.inference._scan import prepared

    kernel = kernel_of(prepared(model))
    if isinstance(kernel, GradientKernel):
        kernel.gradient_checked = True
        kernel._check_start = lambda state: None  # of a tuning that is not used
    by_sweep = isinstance(kernel, ParticleGibbs | ParticleMarginal)
    fields = tuple if by_sweep else lambda: ("num_steps",)
    chains = Chains(kernel, (y,), {}, num_warmup=0, places=Places(1), fields=fields)
    with compiled_once():
        state = chains.start(jax.random.key(0))[0]
    if hasattr(state, "decoherence_length"):
        fixed = {"step_size": STEP, "decoherence_length": 16 * STEP}
        state = state._replace(**{n: jnp.full_like(getattr(state, n), v) for n, v in fixed.items()})
    chains.compile(state, 1000, None)
    carry = chains.fresh(state)
    done = 0

    def advance(steps: int) -> float:
        nonlocal carry, done
        before = time.process_time()
        carry = chains.advance(carry, done, done + steps, 0)
        done += steps
        return time.process_time() - before

    first, steps = advance(1), 1
    spent = once = advance(1)
    while spent < seconds:
        steps = min(4 * steps, max(math.ceil(steps * seconds / max(spent, 1e-4)), 2 * steps))
        spent = advance(steps)
    each = []
    for _ in range(BLOCKS):
        carry = carry._replace(slot=jnp.zeros_like(carry.slot))
        spent = advance(steps)
        gradients = 1.0
        if not by_sweep:
            rows = chains.rows([carry], min(steps, chains.block), only="sample_stats.num_steps")
            gradients = float(rows["sample_stats.num_steps"].mean())
        each.append(1e3 * spent / steps / gradients)
    return Cost("sweep" if by_sweep else "gradient", each, first - once)


def watched(engine: Any, model: Callable[..., Any], y: np.ndarray, blocks: int) -> Clock:
    """An engine that runs by itself, until it has run so many blocks after its first."""
    import jax

    from sojourn.inference._scan import prepared

    clock = Clock(blocks)
    with contextlib.suppress(_Enough):
        settings = {"num_samples": 1, "key": jax.random.key(0), "progress_bar": False, "stage": clock}
        engine.run(prepared(model), (y,), {}, **settings)
    return clock


def of_variational(model: Callable[..., Any], y: np.ndarray, seconds: float) -> Cost:
    """Of one step of the optimiser: the gradient of the bound at the default number of draws."""
    import sojourn as sj

    block = 10
    while True:
        engine = sj.Variational(num_restarts=1, block_size=block, tolerance=0.0, max_steps=100 * block)
        clock = watched(engine, model, y, BLOCKS)
        spent = statistics.median(np.diff(clock.times)[1:])
        if spent > 0.3 * seconds:
            return clock.cost("step")
        block = math.ceil(block * seconds / max(spent, 1e-3))


def of_score_ascent(num_particles: int, model: Callable[..., Any], y: np.ndarray) -> Cost:
    """Of one step of the optimiser, with one sweep."""
    import sojourn as sj

    engine = sj.ScoreAscent(num_particles=num_particles, num_sweeps=1, num_steps=1000)
    return watched(engine, model, y, 3).cost("step")


def of_map(model: Callable[..., Any], y: np.ndarray, seconds: float) -> Cost:
    """Of one value and gradient, as L-BFGS asks for them; its own arithmetic is not in it."""
    import jax

    from sojourn.inference._map import _Density
    from sojourn.inference._scan import prepared

    density = _Density(prepared(model), (y,), {}, jax.random.key(0))

    def spend(calls: int) -> float:
        before = time.process_time()
        for _ in range(calls):
            density(density.first)
        return time.process_time() - before

    first, once = spend(1), spend(1)
    calls = max(math.ceil(seconds / max(once, 1e-4)), 1)
    return Cost("gradient", [1e3 * spend(calls) / calls for _ in range(BLOCKS)], first - once)


# ------------------------------------------------------------------------------------------------- axes


def cases(axis: str) -> dict[str, Callable[[int, float], Cost]]:
    """By engine: the cost at one value of an axis, measured for so many seconds a block."""
    from sojourn.inference import marginalize
    from sojourn.inference._scan import prepared
    from sojourn.models import hidden_markov

    follow = gradient_kernels()
    found: dict[str, Callable[[int, float], Cost]] = {}
    if axis == "length":
        for name, kernel in {**follow, **particle_kernels()}.items():
            model = minibatches if name == "stochastic_gradient" else walk
            found[name] = lambda n, s, k=kernel, m=model: of_kernel(k, m, walk_data(n), s)
        found["svi"] = lambda n, s: of_variational(walk, walk_data(n), s)
        found["score_ascent"] = lambda n, s: of_score_ascent(32, walk, walk_data(n))
        found["map"] = lambda n, s: of_map(walk, walk_data(n), s)
    elif axis == "series":
        for name in ("nuts", "langevin", "mclmc", "particle_gibbs"):
            kernel = {**follow, **particle_kernels()}[name]
            found[name] = lambda n, s, k=kernel: of_kernel(k, walks, walk_data(50, n), s)
        found["svi"] = lambda n, s: of_variational(walks, walk_data(50, n), s)
        two_states = partial(hidden_markov.poisson, num_states=2)
        found["nuts, path summed out"] = lambda n, s: of_kernel(
            follow["nuts"], two_states, count_data(2, 50, n), s
        )
    elif axis == "particles":
        for name in ("particle_gibbs", "particle_marginal"):
            found[name] = lambda n, s, i=name: of_kernel(particle_kernels(n)[i], walk, walk_data(100), s)
        found["score_ascent"] = lambda n, s: of_score_ascent(n, walk, walk_data(100))
    elif axis == "states":

        def model(states: int, path: bool) -> Callable[..., Any]:
            return partial(hidden_markov.poisson, num_states=states, path=path)

        nuts, gibbs = follow["nuts"], particle_kernels()["particle_gibbs"]
        found["nuts"] = lambda n, s: of_kernel(nuts, model(n, False), count_data(n, 200), s)
        found["nuts, path summed out"] = lambda n, s: of_kernel(
            nuts, marginalize(prepared(model(n, True))), count_data(n, 200), s
        )
        found["particle_gibbs"] = lambda n, s: of_kernel(gibbs, model(n, True), count_data(n, 200), s)
    return found


def measure(axis: str, results: Results, quick: bool, engines: Sequence[str] | None) -> None:
    if axis == "draws":
        return measure_draws(results, quick)
    for name, cost_at in cases(axis).items():
        if engines is not None and name not in engines:
            continue
        values = LONGER.get(name, AXES[axis]) if axis == "length" else AXES[axis]
        values = values[: QUICK if quick else None]
        for value in values:
            try:
                cost = cost_at(value, 0.05 if quick else 0.2)
            except Exception as error:  # of one engine at one value: the others are worth having
                print(f"{axis} {name} {value}: {type(error).__name__}: {error}", flush=True)
                break
            results.put(axis, name, value, cost)


def measure_draws(results: Results, quick: bool) -> None:
    """Whole runs of NUTS, buffers and all, of a program that is there already."""
    import jax

    from sojourn.inference._chains import Chains
    from sojourn.inference._places import Places

    kernel = gradient_kernels()["nuts"](walk)
    chains = Chains(
        kernel, (walk_data(40),), {}, num_warmup=0, places=Places(1), fields=lambda: ("num_steps",)
    )

    def run(draws: int) -> float:
        before = time.process_time()
        chains.run(lambda: [state], draws, num_warmup=0, progress_bar=False)
        return time.process_time() - before

    values = AXES["draws"][: QUICK if quick else None]
    starts = iter([chains.start(jax.random.key(i))[0] for i in range(1 + 3 * len(values))])
    state = next(starts)
    chains.compile(state, values[-1], None)
    compiling = run(1)
    for value in values:
        spent = []
        for _ in range(3):
            state = next(starts)  # a run uses its start up
            spent.append(1e3 * run(value))
        results.put("draws", "nuts", value, Cost("run", spent, compiling))


# ------------------------------------------------------------------------------------------------- results


class Results:
    """Points measured, in a JSON file that is written after each of them."""

    def __init__(self, path: Path):
        self.path = path
        self.all: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def put(self, axis: str, engine: str, value: int, cost: Cost) -> None:
        point = {"unit": cost.unit, "ms": statistics.median(cost.blocks), "blocks": cost.blocks}
        point["compile"] = cost.compile
        self.all.setdefault("points", {}).setdefault(axis, {}).setdefault(engine, {})[str(value)] = point
        self.write()
        print(
            f"{axis:10s} {engine:24s} {value:7d} {point['ms']:10.4f} ms, compiled {cost.compile:5.1f} s",
            flush=True,
        )

    def write(self) -> None:
        self.path.write_text(json.dumps(self.all, indent=1))

    def lines(self, axis: str) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, str]]:
        """By engine: values, milliseconds, seconds of compiling, unit."""
        found = {}
        for engine, points in self.all.get("points", {}).get(axis, {}).items():
            order = sorted(points, key=int)
            columns = [[points[v][c] for v in order] for c in ("ms", "compile")]
            found[engine] = (np.array(order, float), *map(np.array, columns), points[order[0]]["unit"])
        return found


def exponent(values: np.ndarray, costs: np.ndarray) -> float:
    """Least squares on logarithms, over the larger values: the last three."""
    return float(np.polyfit(np.log(values[-3:]), np.log(np.maximum(costs[-3:], 1e-9)), 1)[0])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print(flush=True)


def show(results: Results) -> None:
    for axis in AXES:
        lines = results.lines(axis)
        if not lines:
            continue
        print(f"### {axis}\n")
        rows = []
        for engine, (values, costs, compiling, unit) in lines.items():
            each = "; ".join(f"{v:.0f}: {number(c)}" for v, c in zip(values, costs, strict=True))
            powers = (
                [f"{exponent(values, x):.2f}" for x in (costs, compiling)] if len(values) > 1 else ["", ""]
            )
            span = f"{compiling.min():.1f} to {compiling.max():.1f}"
            rows.append((f"`{engine}`", unit, each, powers[0], span, powers[1]))
        head = ("engine", "ms of CPU per", f"{axis}: ms", "exponent", "compiling, s", "exponent")
        table(head, rows)


def number(value: float) -> str:
    """Three digits."""
    digits = max(2 - math.floor(math.log10(abs(value))), 0) if value else 0
    return f"{value:.{digits}f}"


# ------------------------------------------------------------------------------------------------- machines


def throughput_model(name: str) -> tuple[Callable[..., Any], np.ndarray]:
    from sojourn.models import hidden_markov

    if name == "small":
        return walk, walk_data(40)
    return partial(hidden_markov.poisson, num_states=3), count_data(3, 1000)


PLACES = ((1, 1), (1, 2), (1, 4), (2, 1))
"""Processes, devices of each."""


def throughput(results: Results, quick: bool) -> None:
    """Draws a second of four chains of NUTS, adapted, on processes and devices."""
    from sojourn._launch import launch

    for round_ in range(1 if quick else 2):
        for model in ("small",) if quick else ("small", "mid-sized"):
            for processes, devices in PLACES[: 2 if quick else None]:
                with tempfile.TemporaryDirectory() as room:
                    answer = Path(room) / "rates.json"
                    arguments = [str(answer), "--child", model] + ["--quick"] * quick
                    if launch(__file__, arguments, processes=processes, devices=devices):
                        continue
                    rates = json.loads(answer.read_text())
                known = results.all.setdefault("throughput", {}).setdefault(model, {})
                place = f"{processes} x {devices}"
                known[place] = (known.get(place, []) if round_ else []) + rates
                results.write()
                print(f"{model:10s} {place}: {statistics.median(rates):.1f} draws a second", flush=True)


def throughput_child(model_name: str, answer: Path, quick: bool) -> None:
    """One of the processes. Process 0 writes the rates of all, block by block."""
    import jax
    from numpyro.infer import NUTS

    from sojourn.inference._chains import Chains
    from sojourn.inference._initial import init_to_hint
    from sojourn.inference._places import choose_places

    model, y = throughput_model(model_name)
    kernel = NUTS(model, init_strategy=init_to_hint())
    places = choose_places(kernel, 4, "auto", None, {})
    warmup = 50 if quick else 300
    chains = Chains(kernel, (y,), {}, num_warmup=warmup, places=places, fields=lambda: ("num_steps",))
    state = chains.start(jax.random.key(0))[0]
    chains.compile(state, 1000, None)
    carry = chains.advance(chains.fresh(state), 0, warmup, warmup)
    done, draws = warmup, 20
    rates = []
    for block in range(3 if quick else 6):
        places.agree(ready=1.0)
        before = time.perf_counter()
        carry = chains.advance(carry, done, done + draws, warmup)
        places.agree(ready=1.0)
        took = time.perf_counter() - before
        done += draws
        if block:
            rates.append(4 * draws / took)
        else:
            draws = int(places.agree(draws=max(round(draws * (0.3 if quick else 2.0) / took), 1))["draws"])
    if jax.process_index() == 0:
        answer.write_text(json.dumps(rates))


def show_throughput(results: Results) -> None:
    known = results.all.get("throughput")
    if not known:
        return
    print("### Throughput, four chains of NUTS\n")
    rows = []
    for model, places in known.items():
        base = statistics.median(places["1 x 1"]) if "1 x 1" in places else math.nan
        for place, rates in places.items():
            processes, _, devices = place.partition(" x ")
            middle = statistics.median(rates)
            spread = f"{number(min(rates))} to {number(max(rates))}"
            rows.append((model, processes, devices, number(middle), spread, f"{middle / base:.2f}"))
    head = ("model", "processes", "devices of each", "draws a second, median", "blocks", "ratio to 1 x 1")
    table(head, rows)


# ------------------------------------------------------------------------------------------------- messages


class Message(NamedTuple):
    """A collective operation of a compiled program."""

    kind: str
    bytes: int
    depth: int
    """Loops around it."""


def messages_of(text: str) -> list[Message]:
    """The collective operations of a program, and how deep in its loops they are.

    Example:
        >>> messages_of('''
        ... %body (p: f32[2]) -> f32[2] {
        ...   %r = f32[2]{0} all-reduce(%p), to_apply=%add
        ... }
        ... ENTRY %main (p: f32[2]) -> f32[2] {
        ...   %w = f32[2]{0} while(%p), condition=%cond, body=%body
        ... }''')
        [Message(kind='all-reduce', bytes=8, depth=1)]
    """
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    here = entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            here = head[2]
            entry = here if head[1] else entry
            continue
        for role, names in re.findall(r"(\w+)=\{?(%[\w.\-]+(?:, *%[\w.\-]+)*)", line):
            for name in re.findall(r"%([\w.\-]+)", names):
                calls[here].append((name, int(role in ("body", "condition"))))
        what = re.match(
            r"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)\(",
            line,
        )
        if what:
            size = sum(
                int(re.sub(r"\D", "", kind) or 8) // 8 * math.prod(int(n) for n in shape.split(",") if n)
                for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", what[1])
            )
            found[here].append((what[2], size))

    messages, seen = [], set()

    def visit(name: str, depth: int) -> None:
        if (name, depth) in seen:
            return
        seen.add((name, depth))
        messages.extend(Message(kind, size, depth) for kind, size in found[name])
        for inner, deeper in calls[name]:
            visit(inner, depth + deeper)

    visit(entry, 0)
    return messages


def sharded_model(name: str, number_of_series: int) -> tuple[Callable[..., Any], np.ndarray]:
    from sojourn.models import hidden_markov

    if name == "path sampled":
        return walks, walk_data(50, number_of_series)
    return partial(hidden_markov.poisson, num_states=2), count_data(2, 50, number_of_series)


def messages(results: Results, quick: bool) -> None:
    """What two devices that share out a plate tell each other, read off the compiled program."""
    from sojourn._launch import launch

    known = results.all.setdefault("messages", {})
    flags = os.environ.get("XLA_FLAGS", "")
    for model in ("path summed out", "path sampled"):
        for size in (16, 64) if quick else (64, 256):
            with tempfile.TemporaryDirectory() as room:
                dump = f"--xla_dump_to={room} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*spread.*"
                os.environ["XLA_FLAGS"] = f"{flags} {dump}".strip()
                try:
                    launch(__file__, [f"{room}/none", "--child", f"{model}:{size}"], processes=1, devices=2)
                finally:
                    os.environ["XLA_FLAGS"] = flags
                programs = sorted(Path(room).glob("*after_optimizations.txt"))
                texts = [p.read_text() for p in programs]
            found = [m for text in texts for m in messages_of(text)]
            known[f"{model}: {size}"] = [m._asdict() for m in found]
            results.write()
            print(f"{model}, {size} series: {summary(found)}", flush=True)


def summary(found: Sequence[Message]) -> str:
    """By depth and kind: how many and how large."""
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for m in found:
        groups[m.depth, m.kind].append(m.bytes)
    parts = [f"depth {d}: {len(b)} {k} ({sum(b)} bytes)" for (d, k), b in sorted(groups.items())]
    return "; ".join(parts) or "none"


def messages_child(name: str) -> None:
    """One draw of one chain of a model whose series are shared out."""
    import jax

    from sojourn._contract import trace_model
    from sojourn.inference._chains import Chains
    from sojourn.inference._places import choose_places, spread_plate
    from sojourn.inference._scan import prepared

    kind, _, size = name.partition(":")
    model, y = sharded_model(kind, int(size))
    model = spread_plate(prepared(model))
    kernel = gradient_kernels()["nuts"](model)
    trace = trace_model(model, (y,), {}, key=jax.random.key(0))
    places = choose_places(kernel, 1, "auto", "series", trace)
    chains = Chains(kernel, (y,), {}, num_warmup=0, places=places, fields=lambda: ("num_steps",))
    state = chains.start(jax.random.key(0))[0]
    chains.compile(state, 10, None)
    chains.advance(chains.fresh(state), 0, 1, 0)


def many(results: Results, quick: bool) -> None:
    """Processor seconds of ``fit_many``, by number of series: two chains of 500 draws after 500 of warm-up."""
    import sojourn as sj
    from sojourn.models import hidden_markov

    sizes = {"num_warmup": 500, "num_samples": 500, "num_chains": 2}
    if quick:
        sizes = {"num_warmup": 20, "num_samples": 20, "num_chains": 2}
    for size in (4, 8) if quick else (8, 32):
        y = count_data(2, 100, size)
        before = time.process_time()
        sj.fit_many(partial(_two_states, hidden_markov.poisson), y, progress_bar=False, **sizes)
        spent = time.process_time() - before
        results.all.setdefault("many", {})[str(size)] = spent
        results.write()
        print(f"fit_many, {size} series: {spent:.1f} s of CPU", flush=True)


def _two_states(poisson: Callable[..., Any], y: Any) -> None:
    poisson(y, num_states=2)


# ------------------------------------------------------------------------------------------------- picture

STYLES = {
    "nuts": ("#0072B2", "o", "-"),
    "langevin": ("#D55E00", "s", "-"),
    "mclmc": ("#009E73", "^", "-"),
    "adjusted_mclmc": ("#009E73", "v", "--"),
    "underdamped_langevin": ("#D55E00", "D", "--"),
    "stochastic_gradient": ("#56B4E9", "P", "-"),
    "map": ("#000000", "X", "-"),
    "svi": ("#7F7F7F", "h", "-"),
    "particle_gibbs": ("#CC79A7", "o", "-."),
    "particle_marginal": ("#8A5A00", "s", "-."),
    "score_ascent": ("#E69F00", "^", "-."),
    "nuts, path summed out": ("#0072B2", "v", "--"),
}
"""Colours of Okabe and Ito, two of them darkened; marker and dashes tell apart what shares one."""
PANELS = (
    ("length", "length of the series (observations)", "ms of CPU per gradient, sweep or step"),
    ("compile", "length of the series (observations)", "s of CPU to compile"),
    ("series", "number of series, 50 steps each", "ms of CPU per gradient, sweep or step"),
    ("particles", "particles, 100 steps", "ms of CPU per sweep or step"),
    ("states", "hidden states, 200 steps", "ms of CPU per gradient or sweep"),
    ("draws", "draws", "ms of CPU of the run"),
)
_GAP = 15.0  # points between two labels


def plot(results: Results, path: Path) -> None:
    """A panel an axis, both axes logarithmic; every line says its engine and exponent."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter

    settings = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(settings):
        figure, places = plt.subplots(3, 2, figsize=(14.5, 15.5))
        for place, (axis, what, unit) in zip(places.flat, PANELS, strict=True):
            lines = results.lines("length" if axis == "compile" else axis)
            for engine, (values, costs, compiling, _) in lines.items():
                colour, marker, dashes = STYLES[engine]
                y = compiling if axis == "compile" else costs
                place.plot(values, y, color=colour, marker=marker, ls=dashes, lw=1.8, ms=6)
            place.set(xscale="log", yscale="log", xlabel=what, ylabel=unit)
            ticks = sorted({float(v) for values, *_ in lines.values() for v in values})
            place.set_xticks(ticks, [_short(t) for t in ticks])
            place.tick_params(axis="x", which="minor", bottom=False)
            place.xaxis.set_minor_formatter(NullFormatter())
            low, high = place.get_ylim()
            room = max(30.0 / (high / low), 1.0) ** 0.5  # so that what is flat looks flat
            place.set_ylim(low / room, high * room)
            place.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            place.yaxis.set_minor_formatter(NullFormatter())
            place.grid(which="major", color="0.9", lw=0.8)
            place.set_axisbelow(True)
            place.set_title("compiling" if axis == "compile" else axis, loc="left", fontweight="bold")
        figure.tight_layout(w_pad=22.0, h_pad=2.5, rect=(0, 0, 0.825, 1))
        for place, (axis, *_) in zip(places.flat, PANELS, strict=True):
            _name_lines(place, results.lines("length" if axis == "compile" else axis), axis == "compile")
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _name_lines(place: Any, lines: Mapping[str, Any], compiling: bool) -> None:
    """Labels to the right of the panel, in the order of the lines' ends and clear of each other."""
    box = place.get_window_extent()
    scale = place.figure.dpi / 72.0
    ends = []
    for engine, (values, costs, spent, _) in lines.items():
        y = spent if compiling else costs
        height = place.transData.transform((values[-1], y[-1]))[1]
        power = f", {exponent(values, y):.2f}" if len(values) > 1 else ""
        ends.append([height, height, engine, f"{engine}{power}", values[-1], y[-1]])
    ends.sort(key=lambda end: end[0])
    gap = _GAP * scale
    for _ in range(200):  # neighbours push each other apart
        for low, high in itertools.pairwise(ends):
            lack = gap - (high[1] - low[1])
            if lack > 0:
                low[1] -= lack / 2
                high[1] += lack / 2
    for _, height, engine, text, x, y in ends:
        colour = STYLES[engine][0]
        place.annotate(
            text,
            (x, y),
            (1.06, (height - box.y0) / box.height),
            xycoords="data",
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=11,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.7,
                "alpha": 0.6,
                "shrinkA": 1,
                "relpos": (0.0, 0.5),
                "shrinkB": 4,
            },
        )


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 and value % 100 == 0 else f"{value:g}"


# ------------------------------------------------------------------------------------------------- on paper

HOSTS, SERIES, CORES = 64, 10**6, (2, 32)
DRAWS, CHAINS = 2000, 4  # a chain, warm-up included
LATENCY = 50e-6  # seconds a hop
BANDWIDTH = 1.25e9  # bytes a second and host: 10 Gbit/s


class Hierarchy(NamedTuple):
    """One model of all series, its plate shared out over the hosts."""

    what: str
    ms: float
    """Of processor time, per gradient and series."""
    gradients: int
    """A draw: a guess."""
    count: int
    """Messages a gradient."""
    bytes: float
    """That a host sends or receives, a gradient and chain."""


def wall(model: Hierarchy, cores: int) -> tuple[float, float]:
    """Hours of computing and of messages."""
    steps = DRAWS * model.gradients
    computing = steps * CHAINS * SERIES / HOSTS / cores * model.ms / 1e3
    hops = 2 * math.ceil(math.log2(HOSTS))  # to one and back to all
    message = model.count * hops * LATENCY + CHAINS * model.bytes / BANDWIDTH
    return computing / 3600, steps * message / 3600


def told(results: Results, model: str) -> tuple[int, float]:
    """Messages of a gradient, and their bytes for all the series: in the innermost loops, along a line through two sizes."""
    by_size = {}
    for name, found in results.all.get("messages", {}).items():
        kind, _, size = name.partition(": ")
        if kind == model:
            deepest = max(m["depth"] for m in found)
            inner = [m for m in found if m["depth"] == deepest]
            share = {"all-reduce": 2.0}  # once to the sum, once back; others travel once
            by_size[int(size)] = len(inner), sum(share.get(m["kind"], 1.0) * m["bytes"] for m in inner)
    if len(by_size) < 2:
        return 0, math.nan
    (low, (_, least)), (high, (count, most)) = sorted(by_size.items())[-2:]
    slope = (most - least) / (high - low)
    return count, most + slope * (SERIES - high)


def hierarchies(results: Results) -> list[Hierarchy]:
    lines, found = results.lines("series"), []
    each = {engine: costs[-1] / values[-1] for engine, (values, costs, *_) in lines.items()}
    if "nuts, path summed out" in each:
        message = told(results, "path summed out")
        found.append(Hierarchy("paths summed out", each["nuts, path summed out"], 15, *message))
    if "nuts" in each:
        message = told(results, "path sampled")
        found.append(Hierarchy("paths sampled, as it is", each["nuts"], 255, *message))
        found.append(Hierarchy("paths sampled, each where it lies", each["nuts"], 255, 1, 16.0))
    return found


def estimate(results: Results) -> None:
    print(f"### {SERIES:,} series on {HOSTS} hosts, on paper\n")
    rows = []
    spent = {int(n): seconds for n, seconds in results.all.get("many", {}).items()}
    if len(spent) > 1:
        low, high = min(spent), max(spent)
        each = (spent[high] - spent[low]) / (high - low)
        for cores in CORES:
            hours = number(SERIES / HOSTS * each / cores / 3600)
            rows.append(("one by one", f"{each:.2f} s a series", "0", "", str(cores), hours, "0", hours))
    for model in hierarchies(results):
        for cores in CORES:
            computing, telling = wall(model, cores)
            hours = [number(x) for x in (computing, telling, computing + telling)]
            measured = f"{1e3 * model.ms:.2f} us a gradient"
            size = f"{model.bytes:,.0f}"
            rows.append((model.what, measured, str(model.count), size, str(cores), *hours))
    if rows:
        head = ("fit", "CPU a series", "messages a gradient", "bytes", "cores a host", "computing, h")
        table((*head, "messages, h", "wall time, h"), rows)


# ------------------------------------------------------------------------------------------------- main


PARTS: dict[str, Callable[[Results, bool], None]] = {
    "throughput": throughput,
    "messages": messages,
    "many": many,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", nargs="?", type=Path, help="JSON file that results are put into")
    parser.add_argument("--only", choices=(*AXES, *PARTS), help="one part")
    parser.add_argument("--engines", nargs="*", help="of an axis, these alone")
    parser.add_argument("--quick", action="store_true", help="two small values an axis")
    parser.add_argument("--plot-from", type=Path, help="measure nothing; show this file")
    parser.add_argument("--plot-to", type=Path, help="the picture; by default docs/scaling.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if ":" in options.child:
            return messages_child(options.child)
        return throughput_child(options.child, options.results, options.quick)
    if options.plot_from is None:
        if options.results is None:
            parser.error("say where results go, or --plot-from which file")
        results = Results(options.results)
        for axis in AXES:
            if options.only in (None, axis):
                measure(axis, results, options.quick, options.engines)
        for name, part in PARTS.items():
            if options.only in (None, name):
                part(results, options.quick)
    else:
        results = Results(options.plot_from)
    show(results)
    show_throughput(results)
    estimate(results)
    plot(results, options.plot_to or Path(__file__).parents[1] / "docs" / "scaling.png")


if __name__ == "__main__":
    sys.exit(main())
