"""Worlds of laws: what the likelihood costs beside a dense tensor, a fit of Crafter's fifty laws, and routing.

    python benchmarks/laws.py [--quick] [--only value|fit|routing] [--repeats N]

Parts:

- ``value``: value and gradient in the hazards of 12, 100 and 1000 laws, four of which hold in every transition of one
  attribute with 16 values: *dense*, probabilities of every value under every law as one tensor (transitions, laws,
  values) and an ``einsum``; *sparse*, one row a transition of the laws that hold; *merged*, equal rows once, which is
  what :meth:`World.route` makes. The same likelihood three times, which is checked. CPU milliseconds once compiled.
- ``fit``: NUTS over 38 laws of Crafter and 12 wrong ones on 6000 recorded transitions, 300 warm-up steps and 300 draws,
  by ``sj.fit`` and by NumPyro's own ``MCMC``; CPU seconds in a fresh interpreter (imports and routing apart).
- ``routing``: those 6000 transitions by chunk size: the first call, which compiles the laws, a later one, and what the
  peak of memory grows by; each in a fresh interpreter.

float32, as JAX comes.
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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hidden_markov import Target, _python, table

from sojourn.models.laws import Space, World, law, one_of, when

RECORD = Path(__file__).parents[1] / "tests" / "data" / "crafter_transitions.npz"
VALUES, TOGETHER = 16, 4  # of the attribute; laws that hold at a time

CRAFTER = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
import jax, numpyro
from numpyro.infer import MCMC, NUTS
import sojourn as sj
from sojourn.environments.crafter_records import crafter_transitions
from sojourn.models.laws import World, crafter_laws, crafter_space, wrong_crafter_laws

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

seen = crafter_transitions(sys.argv[1])
world = World(crafter_space(), crafter_laws() + wrong_crafter_laws())
chunk = {"chunk": int(sys.argv[3])} if len(sys.argv) > 3 else {}
before, start = peak(), time.process_time()
routed = world.route(*seen, **chunk)
found = {"first": time.process_time() - start, "memory": peak() - before}
found |= {"situations": routed.book.num_rows, "rows": routed.rows.num_rows, "num": seen.num_transitions}
start = time.process_time()
if sys.argv[2] == "routing":
    world.route(*seen, **chunk)
    found["later"] = time.process_time() - start
else:
    if sys.argv[2] == "fit":
        fit = sj.fit(world.model, routed, num_chains=1, num_warmup=300, num_samples=300, seed=0, progress_bar=False)
        found["seconds"] = time.process_time() - start
        hazard, diverging = fit.posterior["hazard"].values, fit.sample_stats["diverging"].values
    else:
        mcmc = MCMC(NUTS(world.model), num_warmup=300, num_samples=300, num_chains=1, progress_bar=False)
        mcmc.run(jax.random.key(0), routed, extra_fields=("diverging",))
        hazard = mcmc.get_samples(group_by_chain=True)["hazard"]
        found["seconds"] = time.process_time() - start
        diverging = mcmc.get_extra_fields()["diverging"]
    found["ess"] = float(numpyro.diagnostics.effective_sample_size(hazard).min())
    found["diverging"] = int(diverging.sum())
print(json.dumps(found))
"""


def synthetic(num_laws: int, num: int, seed: int = 0) -> tuple[World, Any, Any]:
    """A world of one attribute whose context says which laws hold, its transitions, and the outcomes by law.

    Every law offers two outcomes a fixed step from the current value; the first law of each four is right.
    """
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, VALUES, (num_laws, 2))

    def rule(number: int) -> Any:
        @law(name=f"law_{number}")
        def rule_(s, a):
            return when(a == number // TOGETHER, x=one_of((s.x + steps[number]) % VALUES))

        return rule_

    x, kind = rng.integers(0, VALUES, num), rng.integers(0, num_laws // TOGETHER, num)
    outcome = (x + steps[TOGETHER * kind, rng.integers(0, 2, num)]) % VALUES
    after = np.where(rng.random(num) < 0.8, outcome, x)
    world = World(Space(x=VALUES), [rule(i) for i in range(num_laws)])
    return world, ({"x": x}, kind, {"x": after}), steps


def dense_loss(world: World, transitions: Any, steps: np.ndarray) -> tuple[Any, Any]:
    """The same likelihood from the probabilities of all values under all laws."""
    (states, kind, after), noise = transitions, world.noise
    x, y, num = states["x"], after["x"], len(kind)
    tensor = np.zeros((num, len(steps), VALUES), np.float32)
    rows = np.arange(num)
    for j in range(TOGETHER):
        which = TOGETHER * kind + j
        tensor[rows, which] = noise / VALUES
        for k in range(2):
            tensor[rows, which, (x + steps[which, k]) % VALUES] += (1 - noise) / 2
    holds = (tensor > 0).any(-1).astype(np.float32)

    def loss(hazard, change, tensor, holds, x, y):
        total = holds @ hazard
        fired = jnp.einsum("l,tlv->tv", hazard, tensor) / total[:, None]
        frame = (1 - change) * jax.nn.one_hot(x, VALUES) + change / VALUES
        p = jnp.exp(-total)[:, None] * frame - jnp.expm1(-total)[:, None] * fired
        return -jnp.log(jnp.take_along_axis(p, y[:, None], 1)).sum()

    return loss, tuple(map(jnp.asarray, (tensor, holds, x, y)))


def cpu_ms(program: Any, arguments: Any, repeats: int, calls: int) -> tuple[float, float]:
    jax.block_until_ready(program(*arguments))
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            result = program(*arguments)
        jax.block_until_ready(result)
        taken.append((time.process_time() - start) / calls * 1e3)
    return statistics.median(taken), min(taken)


def bench_value(repeats: int, quick: bool) -> list[Any]:
    print("### Value and gradient\n")
    rows, merged_times, ratios = [], {}, {}
    for num, num_laws in ((2000, 100), (20_000, 12), (20_000, 100), (20_000, 1000)):
        if quick and num_laws == 1000:
            continue
        world, transitions, steps = synthetic(num_laws, num)
        routed = world.route(*transitions)
        hazard = jnp.linspace(0.2, 1.5, num_laws)
        change = jnp.asarray(0.05)

        def loss(hazard, change, rows, value, count, world=world):
            law_of_rows = world.situation_law({"hazard": hazard, "change": change[None]}, _Rows(rows))
            return -(law_of_rows.log_prob(value) * count).sum()

        which = routed.book.row_of[:, 0]
        assert not len(routed.rows.several)
        each = [np.asarray(x)[which] for x in routed.rows[:-1]]
        sparse = (
            type(routed.rows)(*each, routed.rows.several),
            np.asarray(routed.value)[which],
            np.ones(num),
        )
        merged = (routed.rows, routed.value, routed.count)
        dense, arguments = dense_loss(world, transitions, steps)
        timings, results = {}, {}
        for name, function, given in (
            ("dense", dense, arguments),
            ("sparse", loss, sparse),
            ("merged", loss, merged),
        ):
            program = jax.jit(jax.value_and_grad(function))
            given = (hazard, change, *jax.tree.map(jnp.asarray, given))
            results[name] = program(*given)
            few = name == "dense" and num_laws == 1000
            calls = 1 if name == "dense" else 300 if name == "merged" else 10
            timings[name] = cpu_ms(program, given, 3 if few else repeats, calls)
        for name in ("sparse", "merged"):
            value, gradient = results[name]
            np.testing.assert_allclose(value, results["dense"][0], rtol=1e-4)
            largest = float(jnp.abs(results["dense"][1]).max())
            np.testing.assert_allclose(gradient, results["dense"][1], atol=1e-3 * largest)
        merged_times[num, num_laws] = timings["merged"]
        ratios[num, num_laws] = [d / m for d, m in zip(timings["dense"], timings["merged"], strict=True)]
        rows.append(
            [
                f"{num}",
                f"{num_laws}",
                f"{timings['dense'][0]:.2f}",
                f"{arguments[0].nbytes / 1e6:.0f}",
                f"{timings['sparse'][0]:.2f}",
                f"{timings['merged'][0]:.3f}",
                f"{routed.rows.num_rows}",
                f"{timings['dense'][0] / timings['merged'][0]:.0f}",
            ]
        )
    head = [
        "transitions",
        "laws",
        "dense, CPU ms",
        "MB",
        "sparse, CPU ms",
        "merged, CPU ms",
        "rows",
        "dense / merged",
    ]
    table(head, rows)
    of_laws = [t for (num, _), t in merged_times.items() if num == 20_000]
    medians, minima = ([t[i] for t in of_laws] for i in (0, 1))
    (few, many) = merged_times[2000, 100], merged_times[20_000, 100]
    return [
        Target("100 laws, 20 000 transitions, dense / merged", 100.0, *ratios[20_000, 100]),
        Target(
            "merged, the dearest / the cheapest number of laws",
            2.0,
            max(medians) / min(medians),
            max(minima) / min(minima),
            at_least=False,
        ),
        Target("merged, 20 000 / 2000 transitions", 2.0, many[0] / few[0], many[1] / few[1], at_least=False),
    ]


class _Rows:
    """What :meth:`World.situation_law` reads of routed transitions."""

    def __init__(self, rows: Any):
        self.rows = rows


def _crafter(*options: str) -> dict[str, Any]:
    return json.loads(_python("-c", CRAFTER, str(RECORD), *options).stdout.splitlines()[-1])


def bench_fit(repeats: int, quick: bool) -> list[Any]:
    del quick
    print("### NUTS over fifty laws of Crafter\n")
    rows, targets = [], []
    for name, label in (("fit", "`sj.fit`, whole"), ("plain", "NumPyro's `MCMC` on `world.model`")):
        found = [_crafter(name) for _ in range(repeats)]
        seconds = [f["seconds"] for f in found]
        rows.append(
            [
                label,
                f"{statistics.median(seconds):.1f}",
                f"{min(seconds):.1f}",
                f"{found[0]['diverging']}",
                f"{found[0]['ess']:.0f}",
            ]
        )
        targets.append(
            Target(f"CPU s, {label}", 30.0, statistics.median(seconds), min(seconds), at_least=False)
        )
    table(["program", "CPU s, median", "min", "divergences", "least ESS of a hazard"], rows)
    last = found[0]
    print(f"{last['num']} transitions, {last['situations']} situations, {last['rows']} of them different.\n")
    return targets


def bench_routing(repeats: int, quick: bool) -> list[Any]:
    print("### Routing\n")
    rows = []
    for chunk in (1024,) if quick else (256, 1024, 4096):
        found = [_crafter("routing", str(chunk)) for _ in range(repeats)]
        first, later = (statistics.median(f[name] for f in found) for name in ("first", "later"))
        num = found[0]["num"]
        memory = statistics.median(f["memory"] for f in found)
        rows.append(
            [
                f"{chunk}",
                f"{first:.1f}",
                f"{num / first:.0f}",
                f"{later:.2f}",
                f"{num / later:.0f}",
                f"{memory:.0f}",
            ]
        )
    table(
        [
            "chunk",
            "first call, CPU s",
            "transitions / s",
            "later, CPU s",
            "transitions / s",
            "peak, MB above",
        ],
        rows,
    )
    return []


PARTS = {"value": (bench_value, 15, 5), "fit": (bench_fit, 3, 1), "routing": (bench_routing, 3, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few repeats, no thousand laws")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--repeats", type=int, help="timed calls, or interpreters, of each program")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    packages = ", ".join(f"{name} {version(name)}" for name in ("sojourn", "numpyro", "jax"))
    print("## Laws\n")
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
