"""Hidden Markov models beside dynamax, hmmlearn and NumPyro: kernel, time to a first draw, import.

    python benchmarks/hidden_markov.py [--quick] [--only kernel|viterbi|first-draw|import] [--repeats N]

Prints Markdown tables and, at the end, each target and whether it was met. It never fails for being slow.
Everything runs on the CPU, in float32 (hmmlearn: float64). Within a table the programs take turns, call by
call, so that a busy machine slows all of them alike: compare the ratios of one run, not the times of two.
Needs the extra ``sojourn[bench]``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

SHAPES = ((5, 2000), (20, 5000), (50, 5000))
"""(states, steps)."""
VALUE_TOLERANCE = 3e-6
"""Relative, between log-likelihoods."""
GRADIENT_TOLERANCE = 1e-3
"""Of the largest entry of the same gradient; also for smoothed probabilities and expected moves."""
ENUMERATED_REPEATS = 5
OURS, DYNAMAX = "sojourn", "dynamax"
BY_HAND, ENUMERATED = "`lax.scan` of `logsumexp`, by hand", "NumPyro, enumerated (funsor)"

Program = Callable[[], Any]


# ------------------------------------------------------------------------------------------------- timing


@dataclass
class Timing:
    """Calls of one program: the first one apart."""

    first: float
    seconds: list[float] = field(default_factory=list)
    result: Any = None

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Target:
    """A bound on a ratio. ``at_least`` for a speed-up, otherwise a cost that must stay below."""

    what: str
    bound: float
    by_median: float
    by_minimum: float
    at_least: bool = True
    note: str = ""

    def __str__(self) -> str:
        ratios = (self.by_median, self.by_minimum)
        met = [(r >= self.bound) if self.at_least else (r <= self.bound) for r in ratios]
        half = f"met by the {'median' if met[0] else 'minimum'} only"
        verdict = {2: "met", 0: "MISSED"}.get(sum(met), half)
        sign = ">=" if self.at_least else "<="
        return (
            f"- {self.what}: {self.by_median:.2f} by medians, {self.by_minimum:.2f} by minima "
            f"(target {sign} {self.bound:g}): {verdict}{self.note}"
        )


def take_turns(
    programs: Mapping[str, Program], repeats: int, few: Mapping[str, int] | None = None
) -> dict[str, Timing]:
    """Time the programs in rotating order, ``repeats`` times each (or as many as ``few`` says)."""
    import jax

    def once(program: Program) -> tuple[float, Any]:
        started = time.perf_counter()
        result = jax.block_until_ready(program())
        return time.perf_counter() - started, result

    timings = {}
    for name, program in programs.items():
        seconds, result = once(program)
        timings[name] = Timing(seconds, result=result)
    names = list(programs)
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            if turn < (few or {}).get(name, repeats):
                timings[name].seconds.append(once(programs[name])[0])
    return timings


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)
    print(flush=True)


def kernel_table(timings: Mapping[str, Timing]) -> None:
    ours = timings[OURS]
    table(
        ("program", "first call, s", "median, ms", "min, ms", "median / sojourn", "min / sojourn"),
        (
            (
                name,
                f"{t.first:.2f}",
                f"{1e3 * t.median:.3f}",
                f"{1e3 * t.least:.3f}",
                f"{t.median / ours.median:.2f}",
                f"{t.least / ours.least:.2f}",
            )
            for name, t in timings.items()
        ),
    )


def speedup(what: str, bound: float, timings: Mapping[str, Timing], note: str = "") -> Target:
    ours, theirs = timings[OURS], timings[DYNAMAX]
    return Target(what, bound, theirs.median / ours.median, theirs.least / ours.least, note=note)


# ------------------------------------------------------------------------------------------------- kernel


class Series(NamedTuple):
    """A simulated series, in float32."""

    initial: np.ndarray
    transition: np.ndarray
    log_emission: np.ndarray
    loc: np.ndarray
    y: np.ndarray


def series(states: int, steps: int) -> Series:
    """A series of given size.

    Two independent normal observations a step; the chain stays put with probability about 0.9.
    """
    rng = np.random.default_rng(states)
    transition = 0.9 * np.eye(states) + 0.1 * rng.dirichlet(np.ones(states), states)
    initial = rng.dirichlet(np.ones(states))
    loc = rng.normal(0.0, 3.0, (states, 2))
    path = np.zeros(steps, int)
    path[0] = rng.choice(states, p=initial)
    for t in range(1, steps):
        path[t] = rng.choice(states, p=transition[path[t - 1]])
    y = loc[path] + rng.normal(size=(steps, 2))
    log_emission = -0.5 * ((y[:, None] - loc) ** 2).sum(-1) - math.log(2 * math.pi)
    return Series(*(x.astype(np.float32) for x in (initial, transition, log_emission, loc, y)))


def hmmlearn_model(initial: np.ndarray, transition: np.ndarray, implementation: str) -> Any:
    """hmmlearn's model class with log-emissions as its data."""
    from hmmlearn.base import BaseHMM

    class Given(BaseHMM):
        def _compute_log_likelihood(self, X: np.ndarray) -> np.ndarray:
            return X

        def _compute_likelihood(self, X: np.ndarray) -> np.ndarray:
            return np.exp(X)

    model = Given(len(initial), implementation=implementation)
    model.startprob_ = initial.astype(float) / initial.astype(float).sum()
    model.transmat_ = transition.astype(float) / transition.astype(float).sum(1, keepdims=True)
    return model


def log_likelihoods() -> dict[str, Callable[..., Any]]:
    """Log-likelihood as a function of (initial, transition, log_emission), by program.

    The enumerated one takes (initial, transition, loc, y) and works the emissions out: NumPyro has no site for
    given log-densities in an enumerated scan.
    """
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from dynamax.hidden_markov_model import hmm_filter
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import config_enumerate, enum
    from numpyro.contrib.funsor.infer_util import log_density

    from sojourn.ops import hidden_markov

    def written(initial: Any, transition: Any, log_emission: Any) -> Any:
        log_transition = jnp.log(transition)

        def step(log_prob: Any, log_emission_t: Any) -> tuple[Any, None]:
            return jax.nn.logsumexp(log_prob[:, None] + log_transition, axis=0) + log_emission_t, None

        last, _ = jax.lax.scan(step, jnp.log(initial) + log_emission[0], log_emission[1:])
        return jax.nn.logsumexp(last)

    def enumerated_model(initial: Any, transition: Any, loc: Any, y: Any) -> None:
        def step(state: Any, y_t: Any) -> tuple[Any, None]:
            law = dist.Categorical(transition[state])
            state = numpyro.sample("state", law, infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(loc[state], 1.0).to_event(1), obs=y_t)
            return state, None

        first = numpyro.sample("first", dist.Categorical(initial), infer={"enumerate": "parallel"})
        numpyro.sample("first_y", dist.Normal(loc[first], 1.0).to_event(1), obs=y[0])
        scan(step, first, y[1:])

    def enumerated(*args: Any) -> Any:
        return log_density(enum(config_enumerate(enumerated_model), -1), args, {}, {})[0]

    return {
        OURS: hidden_markov.log_likelihood,
        DYNAMAX: lambda *args: hmm_filter(*args).marginal_loglik,
        BY_HAND: written,
        ENUMERATED: enumerated,
    }


def agree(what: str, results: Mapping[str, Any], tolerance: float, scale: float | None = None) -> None:
    """Say how far the results lie from those of hmmlearn, or else of dynamax.

    Sums of unscaled logarithms in float32 lose digits with the length of the series: ten times the tolerance.
    """
    reference_name = next((n for n in results if n.startswith("hmmlearn")), DYNAMAX)
    reference = np.asarray(results[reference_name], float)
    size = np.abs(reference).max() if scale is None else scale
    gaps = {n: np.abs(np.asarray(r, float) - reference).max() / size for n, r in results.items()}
    allowed = {n: tolerance * (10 if n in (BY_HAND, ENUMERATED) else 1) for n in gaps}
    verdict = "agree" if all(gaps[n] <= allowed[n] for n in gaps) else "DISAGREE"
    told = ", ".join(f"{n} {gap:.1e}" for n, gap in gaps.items() if n != reference_name)
    print(f"- {what} {verdict} (tolerance {tolerance:g}). Distance from {reference_name}: {told}.")


def bench_kernel(repeats: int, quick: bool) -> list[Target]:
    import jax
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import hmm_posterior_sample, hmm_smoother

    from sojourn.ops import hidden_markov

    targets = []
    for states, steps in SHAPES:
        simulated = series(states, steps)
        arrays = simulated[:3]
        args = tuple(jnp.asarray(x) for x in arrays)
        jax.block_until_ready(jax.jit(lambda x: x + 1)(args[0]))  # start the backend
        functions = log_likelihoods()
        if quick or states > 5:
            del functions[ENUMERATED]
        learned = {i: hmmlearn_model(arrays[0], arrays[1], i) for i in ("scaling", "log")}
        as_double = arrays[2].astype(float)

        def bind(fn: Callable[..., Any], *args: Any) -> Program:
            compiled = jax.jit(fn)
            return lambda: compiled(*args)

        print(f"### Value and gradient: K = {states}, T = {steps}\n")
        given = {n: args for n in functions} | {ENUMERATED: (*args[:2], *map(jnp.asarray, simulated[3:]))}
        programs = {n: bind(jax.value_and_grad(f, (0, 1, 2)), *given[n]) for n, f in functions.items()}
        programs["hmmlearn, scaling (value only)"] = lambda m=learned["scaling"], x=as_double: m.score(x)
        programs["hmmlearn, log (value only)"] = lambda m=learned["log"], x=as_double: m.score(x)
        timings = take_turns(programs, repeats, {ENUMERATED: ENUMERATED_REPEATS})
        kernel_table(timings)
        agree(
            "Values",
            {n: t.result if n.startswith("hmmlearn") else t.result[0] for n, t in timings.items()},
            VALUE_TOLERANCE,
        )
        gradients = {n: t.result[1] for n, t in timings.items() if not n.startswith("hmmlearn")}
        for i, name in enumerate(("initial", "transition", "log-emissions")):
            comparable = {n: g[i] for n, g in gradients.items() if i < 2 or n != ENUMERATED}
            agree(f"Gradients in the {name}", comparable, GRADIENT_TOLERANCE)
        print()
        targets.append(speedup(f"value and gradient, dynamax / sojourn, K={states}, T={steps}", 1.3, timings))

        print(f"### Value: K = {states}, T = {steps}\n")
        programs = {n: bind(f, *args) for n, f in functions.items() if n != ENUMERATED}
        kernel_table(take_turns(programs, repeats))

        print(f"### Smoothed states and expected moves: K = {states}, T = {steps}\n")

        def smoothed(*args: Any) -> Any:
            return hidden_markov.smooth(*args)[1:]

        def smoothed_dynamax(*args: Any) -> Any:
            found = hmm_smoother(*args)
            return found.smoothed_probs, found.trans_probs

        programs = {OURS: bind(smoothed, *args), DYNAMAX: bind(smoothed_dynamax, *args)}
        programs["hmmlearn, scaling (states only)"] = lambda m=learned["scaling"], x=as_double: (
            m.score_samples(x)[1]
        )
        timings = take_turns(programs, repeats)
        kernel_table(timings)
        marginals = {n: t.result if n.startswith("hmmlearn") else t.result[0] for n, t in timings.items()}
        agree("Smoothed probabilities", marginals, GRADIENT_TOLERANCE, 1.0)
        agree("Expected moves", {n: timings[n].result[1] for n in (OURS, DYNAMAX)}, GRADIENT_TOLERANCE)
        print()

        print(f"### 64 sampled paths (forward filtering, backward sampling): K = {states}, T = {steps}\n")
        key = jax.random.PRNGKey(0)

        def sampled(key: Any, *args: Any) -> Any:
            return hidden_markov.sample_paths(key, *args, num_samples=64)

        def sampled_dynamax(key: Any, *args: Any) -> Any:
            return jax.vmap(lambda k: hmm_posterior_sample(k, *args)[1])(jax.random.split(key, 64))

        programs = {OURS: bind(sampled, key, *args), DYNAMAX: bind(sampled_dynamax, key, *args)}
        timings = take_turns(programs, max(3, repeats // 4))
        kernel_table(timings)
        shares = {n: _state_shares(np.asarray(t.result), states) for n, t in timings.items()}
        expected = np.asarray(marginals[OURS], float).mean(0)
        gaps = ", ".join(f"{n} {np.abs(s - expected).max():.4f}" for n, s in shares.items())
        print(f"Share of time in a state, largest gap between draws and smoothed law: {gaps}.\n")
    return targets


def _state_shares(paths: np.ndarray, states: int) -> np.ndarray:
    return np.bincount(paths.ravel(), minlength=states) / paths.size


def bench_viterbi(repeats: int, quick: bool) -> list[Target]:
    import jax
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import hmm_posterior_mode

    from sojourn.ops import hidden_markov

    targets = []
    for states, steps in SHAPES:
        simulated = series(states, steps)
        arrays = simulated[:3]
        args = tuple(jnp.asarray(x) for x in arrays)
        jax.block_until_ready(jax.jit(lambda x: x + 1)(args[0]))
        ours, theirs = jax.jit(hidden_markov.viterbi), jax.jit(hmm_posterior_mode)
        learned, as_double = hmmlearn_model(arrays[0], arrays[1], "log"), arrays[2].astype(float)
        programs: dict[str, Program] = {
            OURS: lambda f=ours, a=args: f(*a),
            DYNAMAX: lambda f=theirs, a=args: f(*a),
            "hmmlearn": lambda m=learned, x=as_double: m.decode(x)[1],
        }
        print(f"### Most likely path (Viterbi): K = {states}, T = {steps}\n")
        timings = take_turns(programs, repeats)
        kernel_table(timings)
        path = np.asarray(timings[OURS].result)
        verdicts = []
        for name in (DYNAMAX, "hmmlearn"):
            other = np.asarray(timings[name].result)
            if (path == other).all():
                verdicts.append(f"the same as that of {name}")
            else:
                gap = _log_joint(path, *arrays) - _log_joint(other, *arrays)
                verdicts.append(
                    f"other than that of {name} at {(path != other).sum()} of {steps} steps "
                    f"(its log-probability minus that one's, in float64: {gap:+.1e})"
                )
        print(f"The path of sojourn is {' and '.join(verdicts)}.\n")
        same = "" if verdicts[0].startswith("the same") else "; paths differ, see above"
        if states == 50:
            targets.append(speedup(f"Viterbi, dynamax / sojourn, K={states}, T={steps}", 4.0, timings, same))
    return targets


def _log_joint(
    path: np.ndarray, initial: np.ndarray, transition: np.ndarray, log_emission: np.ndarray
) -> float:
    moves = np.log(transition.astype(float))[path[:-1], path[1:]].sum()
    return float(
        np.log(float(initial[path[0]])) + moves + log_emission.astype(float)[np.arange(len(path)), path].sum()
    )


# --------------------------------------------------------------------------------------- fresh interpreters


def _environment() -> dict[str, str]:
    """That of this process, with no cache of compiled programs."""
    dropped = ("JAX_", "PYTHONDONTWRITEBYTECODE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "JAX_PLATFORMS": "cpu"}


def _python(*args: str, text: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *args], input=text, capture_output=True, text=True, env=_environment(), check=False
    )
    if done.returncode:
        raise RuntimeError(f"`python {' '.join(args)}` failed:\n{done.stderr[-2000:]}")
    return done


def _child(program: str, *options: str) -> dict[str, Any]:
    from sojourn.datasets import earthquakes

    counts = json.dumps(earthquakes()["count"].values.tolist())
    done = _python(str(Path(__file__).with_name("first_draw.py")), program, *options, text=counts)
    return json.loads(done.stdout.splitlines()[-1])


def bench_first_draw(repeats: int, quick: bool) -> list[Target]:
    labels = {
        "sojourn": "sojourn: NUTS on `hidden_markov.poisson`",
        "written": "NumPyro, forward algorithm by hand",
        "enumerated": ENUMERATED,
        "fit": "`sojourn.fit`, whole",
    }
    few = {"enumerated": 2, "fit": 3}
    print("### From import to the first NUTS draws, fresh interpreter\n")
    densities = _child("densities")["densities"]  # also writes the byte code that later runs read
    gap = {n: densities[n] - math.log(6) * (n == "sojourn") - densities["written"] for n in densities}
    print(
        "Log-densities at one point, less that of the model by hand (and less log 3! for the sorted rates): "
        f"{', '.join(f'{n} {g:+.1e}' for n, g in gap.items())}.\n"
    )
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for turn in range(repeats):
        for name in list(labels) if turn % 2 == 0 else list(labels)[::-1]:
            if turn < few.get(name, repeats) and not (quick and name in few):
                runs[name].append(_child(name))
                print(f"{labels[name]}: {runs[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)

    def of(name: str, what: str) -> list[float]:
        return [run[what] for run in runs[name]]

    base = statistics.median(of("written", "seconds"))
    base_cpu = statistics.median(of("written", "cpu_seconds"))
    shown = [name for name in labels if name in runs]
    table(
        (
            "program",
            "runs",
            "median, s",
            "min, s",
            "median CPU, s",
            "of which import, s",
            "median / by hand",
            "CPU / by hand",
        ),
        (
            (
                labels[name],
                str(len(runs[name])),
                f"{statistics.median(of(name, 'seconds')):.2f}",
                f"{min(of(name, 'seconds')):.2f}",
                f"{statistics.median(of(name, 'cpu_seconds')):.2f}",
                f"{statistics.median(of(name, 'import_seconds')):.2f}",
                f"{statistics.median(of(name, 'seconds')) / base:.2f}",
                f"{statistics.median(of(name, 'cpu_seconds')) / base_cpu:.2f}",
            )
            for name in shown
        ),
    )
    for name in ("written", "sojourn") if quick else ("written", "sojourn", "fit"):
        _compilations(labels[name], _child(name, "--compilations")["compilations"])
    targets = []
    for what, kind in (("seconds", "wall clock"), ("cpu_seconds", "CPU")):
        ratios = [f(of("sojourn", what)) / f(of("written", what)) for f in (statistics.median, min)]
        label = f"import to first NUTS draw, {kind}, sojourn / NumPyro by hand"
        targets.append(Target(label, 1.2, ratios[0], ratios[1], at_least=False))
    return targets


def _compilations(label: str, found: Sequence[Mapping[str, Any]]) -> None:
    """What XLA compiled, by the file that asked for it."""
    total = sum(c["seconds"] for c in found)
    print(f"Compilations of {label}: {len(found)}, {total:.1f} s. By caller, the costliest:\n")
    by_caller: dict[str, list[float]] = defaultdict(list)
    for c in found:
        by_caller[c["caller"]].append(c["seconds"])
    ranked = sorted(by_caller.items(), key=lambda item: -sum(item[1]))[:8]
    table(("caller", "programs", "seconds"), ((f"`{n}`", str(len(s)), f"{sum(s):.2f}") for n, s in ranked))


def bench_import(repeats: int, quick: bool) -> list[Target]:
    packages = ("numpyro", "sojourn", "dynamax", "arviz")
    clock = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    seconds: dict[str, list[float]] = {name: [] for name in packages}
    for name in packages:
        _python("-c", clock.format(name))  # writes the byte code
    for turn in range(repeats):
        for name in packages if turn % 2 == 0 else packages[::-1]:
            seconds[name].append(float(_python("-c", clock.format(name)).stdout))
    print("### Import, fresh interpreter\n")
    base = seconds["numpyro"]
    table(
        ("package", "median, s", "min, s", "median / numpyro", "min / numpyro"),
        (
            (
                f"`{name}`",
                f"{statistics.median(s):.3f}",
                f"{min(s):.3f}",
                f"{statistics.median(s) / statistics.median(base):.2f}",
                f"{min(s) / min(base):.2f}",
            )
            for name, s in seconds.items()
        ),
    )
    beyond = _beyond_numpyro()
    total = sum(beyond.values())
    print(f"`import sojourn` after `import numpyro`: {len(beyond)} more modules, {total:.0f} ms.\n")
    by_package: dict[str, list[float]] = defaultdict(list)
    for name, milliseconds in beyond.items():
        by_package[name.partition(".")[0]].append(milliseconds)
    ranked = sorted(by_package.items(), key=lambda item: -sum(item[1]))[:8]
    rows = ((f"`{name}`", str(len(ms)), f"{sum(ms):.0f}", f"{max(ms):.0f}") for name, ms in ranked)
    table(("package", "modules", "ms", "costliest module, ms"), rows)
    ours = seconds["sojourn"]
    ratios = [f(ours) / f(base) for f in (statistics.median, min)]
    return [Target("`import sojourn` / `import numpyro`", 1.3, ratios[0], ratios[1], at_least=False)]


def _beyond_numpyro() -> dict[str, float]:
    """Milliseconds of each module that ``import sojourn`` adds to numpyro's (``-X importtime``)."""
    report = _python("-X", "importtime", "-c", "import numpyro; import sojourn").stderr
    rows = [line.removeprefix("import time:").split("|") for line in report.splitlines() if "|" in line]
    own = [(name.strip(), int(micro) / 1e3) for micro, _, name in rows if micro.strip().isdigit()]
    last = next(i for i, (name, _) in enumerate(own) if name == "numpyro")
    return dict(own[last + 1 :])


# --------------------------------------------------------------------------------------------------- main

PARTS: dict[str, tuple[Callable[[int, bool], list[Target]], int, int]] = {
    "kernel": (bench_kernel, 40, 8),
    "viterbi": (bench_viterbi, 40, 8),
    "first-draw": (bench_first_draw, 5, 1),
    "import": (bench_import, 9, 3),
}
"""By name: the function, its repeats, and its repeats under ``--quick``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing enumerated")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--repeats", type=int, help="timed calls (or interpreters) of each program")
    options = parser.parse_args()

    versions = ", ".join(
        f"{name} {version(name)}" for name in ("sojourn", "numpyro", "jax", "dynamax", "hmmlearn", "funsor")
    )
    print("## Hidden Markov models\n")
    python = f"Python {platform.python_version()}"
    print(f"{datetime.date.today()}, {python}, {os.cpu_count()} cores, {versions}.\n")
    targets: list[Target] = []
    for name in [options.only] if options.only else list(PARTS):
        bench, usual, quick = PARTS[name]
        targets += bench(options.repeats or (quick if options.quick else usual), options.quick)
    print("### Targets\n")
    for target in targets:
        print(target)


if __name__ == "__main__":
    main()
