"""A NumPyro model with a discrete path: summed out by ``marginalize``, by hand, and by NumPyro's enumeration.

    python benchmarks/marginalize.py [--quick] [--repeats N]

Value and gradient of the log-density of one model at one point, in float32 on the CPU. The programs take turns,
call by call: compare the ratios of one run, not the times of two. Prints Markdown tables and, at the end, each
target and whether it was met. Needs the extra ``sojourn[bench]``; without funsor the enumeration is left out.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hidden_markov import ENUMERATED, ENUMERATED_REPEATS, OURS, Target, kernel_table, series, take_turns

SHAPES = ((5, 2000), (20, 2000))
"""(states, steps)."""
GIVEN = "`HiddenMarkov` distribution"
TOLERANCE = 1e-5  # relative, between values and between gradients


def programs(states: int, steps: int, enumerate_too: bool) -> dict[str, Callable[[], Any]]:
    """Value and gradient in the initial law, the transition matrix and the means, by program."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.infer.util import log_density

    import sojourn.distributions
    from sojourn.inference._marginalize import marginalize

    simulated = series(states, steps)
    y = jnp.asarray(simulated.y)

    def written(initial: Any, transition: Any, loc: Any) -> None:
        """As a user writes it: the first state before the scan, with its observation."""

        def step(state: Any, y_t: Any) -> tuple[Any, None]:
            law = dist.Categorical(transition[state])
            state = numpyro.sample("state", law, infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(loc[state], 1.0).to_event(1), obs=y_t)
            return state, None

        first = numpyro.sample("first", dist.Categorical(initial), infer={"enumerate": "parallel"})
        numpyro.sample("first_y", dist.Normal(loc[first], 1.0).to_event(1), obs=y[0])
        scan(step, first, y[1:])

    def given(initial: Any, transition: Any, loc: Any) -> None:
        emission = dist.Normal(loc, 1.0).to_event(1)
        law = sojourn.distributions.HiddenMarkov(initial, transition, emission, num_steps=steps)
        numpyro.sample("y", law, obs=y)

    summed = marginalize(written)
    densities = {
        OURS: lambda *args: log_density(summed, args, {}, {})[0],
        GIVEN: lambda *args: log_density(given, args, {}, {})[0],
    }
    if enumerate_too:
        from numpyro.contrib.funsor import config_enumerate, enum
        from numpyro.contrib.funsor.infer_util import log_density as enumerated_density

        densities[ENUMERATED] = lambda *args: enumerated_density(
            enum(config_enumerate(written), -1), args, {}, {}
        )[0]
    args = tuple(jnp.asarray(x) for x in (simulated.initial, simulated.transition, simulated.loc))

    def bind(density: Callable[..., Any]) -> Callable[[], Any]:
        compiled = jax.jit(jax.value_and_grad(density, (0, 1, 2)))
        return lambda: compiled(*args)

    return {name: bind(density) for name, density in densities.items()}


def agreement(results: dict[str, Any]) -> None:
    import jax
    import numpy as np

    reference = jax.tree.leaves(results[GIVEN])
    for name, result in results.items():
        if name == GIVEN:
            continue
        # Gradients in a probability are compared along its simplex: the distribution's own is free of that.
        pairs = [
            (np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(result), reference, strict=True)
        ]
        gap = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in (pairs[0], pairs[-1]))
        verdict = "agree" if gap < (TOLERANCE if name == OURS else 10 * TOLERANCE) else "DISAGREE"
        print(f"- {name}: value and gradient in the means {verdict} with those of {GIVEN}, to {gap:.1e}.")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few repeats, nothing enumerated")
    parser.add_argument("--repeats", type=int, help="timed calls of each program")
    options = parser.parse_args()
    funsor = importlib.util.find_spec("funsor") is not None and not options.quick
    packages = ("sojourn", "numpyro", "jax", *(("funsor",) if funsor else ()))
    print("## A discrete path summed out of a NumPyro model\n")
    python = f"Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    print(f"{datetime.date.today()}, {python}, {os.cpu_count()} cores, {versions}.\n")
    targets = []
    for states, steps in SHAPES:
        small = states == SHAPES[0][0]
        print(f"### Value and gradient: K = {states}, T = {steps}\n")
        repeats = options.repeats or (8 if options.quick else 40)
        timings = take_turns(
            programs(states, steps, funsor and small), repeats, {ENUMERATED: ENUMERATED_REPEATS}
        )
        kernel_table(timings)
        agreement({name: t.result for name, t in timings.items()})
        ours, by_hand = timings[OURS], timings[GIVEN]
        what = f"value and gradient, marginalize / HiddenMarkov, K={states}, T={steps}"
        ratios = (ours.median / by_hand.median, ours.least / by_hand.least)
        targets.append(Target(what, 3.0, *ratios, at_least=False))
        if ENUMERATED in timings:
            slow = timings[ENUMERATED]
            what = f"value and gradient, enumeration / marginalize, K={states}, T={steps}"
            targets.append(Target(what, 8.0, slow.median / ours.median, slow.least / ours.least))
    print("### Targets\n")
    for target in targets:
        print(target)


if __name__ == "__main__":
    main()
