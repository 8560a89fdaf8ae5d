"""OneLife's evaluation (Khan et al. 2025) on the real Crafter, with the laws of :mod:`sojourn.models.laws`.

    python benchmarks/crafter_protocol.py [--trials 10] [--paths 500] [--only MODEL ...]

Needs the extra ``sojourn[crafter]``; about a quarter of an hour of CPU time, most of it compiling. Prints Markdown
tables. ``--only fitted`` takes the models with that word in their name.

Every step of the 23 scenarios is a question: which of the candidates came next? They are the true next state, one draw
from the model and up to ten distractors (two rounds of the seven published mutators, the first ten that apply; see
:mod:`sojourn.environments.crafter_mutants`), less those equal to the truth. A model ranks them by their probability,
ties at random. "Rank@1" is the share of questions in which the truth is first, "MRR" the mean of 1 / rank, "recall" that
of 1 - (rank - 1) / (candidates - 1). The edit distance is from the model's draw to the truth, in leaves of the state,
also as a share of its leaves. A trial's number is the mean over its steps; a scenario's the mean over trials; the table's
the mean over scenarios. "+-" is the mean over scenarios of the standard deviation over trials.

The models, learnt from 6000 transitions of the law laboratory (``tests/data/crafter_transitions.npz``), all with the 38
laws of Crafter and the 12 wrong ones: fitted (competing hazards, posterior mode); fitted in OneLife's own pool (log-linear,
boost 10, penalty 0.001); not fitted, all rates one half; without conditions, as PoE-World pools its experts: every law
votes on every step unless it names a value outside the support, fitted in OneLife's pool (competing hazards cannot be
worked out when all laws hold at once: they tie all attributes together). "Nothing changes" has no laws, "random" no
model.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"  # OneLife's pool has flat directions, on which single precision stalls

import jax
import jax.numpy as jnp
import numpy as np

import sojourn as sj
from sojourn.environments import Transitions
from sojourn.environments.crafter import Crafter
from sojourn.environments.crafter_mutants import MUTATORS, crafter_mutants
from sojourn.environments.crafter_records import crafter_transitions
from sojourn.environments.crafter_scenarios import PLANS, SCENARIOS
from sojourn.models.laws import (
    Effect,
    Law,
    Ranking,
    Space,
    World,
    crafter_laws,
    crafter_refresh,
    crafter_space,
    edit_distance,
    wrong_crafter_laws,
)

RECORDS = Path(__file__).parents[1] / "tests" / "data" / "crafter_transitions.npz"
MOST_DISTRACTORS = 10
KINDS = ("next", "previous")
ONELIFE = {"pool": "product", "boost": 10.0, "penalty": 0.001}


class Model(NamedTuple):
    """A world and what is believed of it; neither, for the random one."""

    name: str
    world: World | None = None
    fit: Any = None


class Score(NamedTuple):
    """Of one model, by question: (T,) each; rankings and held-out log-likelihoods by name."""

    rankings: dict[str, Ranking]
    raw: np.ndarray
    normalised: np.ndarray
    held_out: dict[str, float]


# ---------------------------------------------------------------------------------------------------- the models


def without_condition(law: Law, space: Space) -> Law:
    """The same law whenever what it writes exists."""

    def always(*args: Any, **parameters: Any) -> Effect:
        writes = law.function(*args, **parameters).writes
        exists: Any = True
        for name, outcome in writes.items():
            attribute = space.find(name, law.each)
            assert attribute is not None
            for value in () if outcome.uniform else outcome.values:
                code = attribute.encode(value)
                exists &= (code >= 0) & (code < attribute.size)
        return Effect(jnp.asarray(exists), writes)

    return dataclasses.replace(law, function=always)


def models(train: Transitions, only: list[str]) -> list[Model]:
    laws = crafter_laws() + wrong_crafter_laws()
    bare = [without_condition(law, crafter_space()) for law in laws]
    found = []
    for name, chosen, options in (
        ("laws, fitted", laws, {}),
        ("laws, fitted, OneLife's pool", laws, ONELIFE),
        ("laws, not fitted", laws, {}),
        ("laws without conditions, fitted", bare, ONELIFE),
        ("nothing changes", laws, {}),
    ):
        if only and not any(word in name for word in only):
            continue
        world = World(crafter_space(), chosen, **options)
        if name == "nothing changes":
            fit = world.supposing(0.0)
        elif name == "laws, not fitted":
            fit = world.supposing(0.5)
        else:
            began = time.process_time()
            routed = world.route(*train)
            routing, began = time.process_time() - began, time.process_time()
            engine = sj.MaximumAPosteriori(num_restarts=1)
            fit = sj.fit(world.model, routed, engine=engine, progress_bar=False)
            took = time.process_time() - began
            steps, mode = fit.attrs["num_steps"], fit.attrs["log_density"]
            print(
                f"- {name}: {routed}; routing {routing:.0f}, fit {took:.0f} CPU s; log-density {mode:.2f} after "
                f"{steps} steps, {'converged' if fit.attrs['converged'] else 'not converged'}",
                flush=True,
            )
        found.append(Model(name, world, fit))
    print()
    return [*found, Model("random")]


# ---------------------------------------------------------------------------------------------------- the questions


def join(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


def episodes(trials: int) -> tuple[Transitions, np.ndarray, np.ndarray]:
    """All steps of all trials, and of which scenario and trial each is."""
    played, scenario, trial = [], [], []
    for number, scene in enumerate(SCENARIOS.values()):
        for seed in range(trials):
            seen = scene.play(seed)
            played.append(tuple(seen))
            scenario += [number] * seen.num_transitions
            trial += [seed] * seen.num_transitions
    return Transitions(*join(played)), np.array(scenario), np.array(trial)


def distractors(seen: Transitions, of: str) -> list[tuple[Any, np.ndarray]]:
    """Two rounds of mutators, the first ten that apply to a step."""
    found = [pair for seed in (0, 1) for pair in crafter_mutants(seen, of=of, seed=seed)]
    so_far = np.cumsum([applies for _, applies in found], 0)
    assert len(found) == 2 * len(MUTATORS)
    return [
        (state, applies & (n <= MOST_DISTRACTORS)) for (state, applies), n in zip(found, so_far, strict=True)
    ]


def imagined(model: Model, seen: Transitions) -> Any:
    """One draw of every next state."""
    world = model.world
    if world is None:
        return anything(crafter_space(), seen.states)
    drawn = []
    for t in range(seen.num_transitions):
        now = jax.tree.map(lambda x, t=t: x[t], seen.states)
        path = world.simulate(model.fit, now, seen.actions[t : t + 1], num_paths=1, seed=t)
        drawn.append(jax.tree.map(lambda x: x[:, 1], path))
    return join(drawn)


def anything(space: Space, states: Any) -> Any:
    """Every attribute drawn evenly from its support; of the animals that are there."""
    rng, state = (
        np.random.default_rng(0),
        {k: dict(v) if isinstance(v, dict) else v for k, v in states.items()},
    )
    for attribute in space:
        if attribute.field == "gone":
            continue
        within = state if attribute.group is None else state[attribute.group]
        value = within[attribute.field]
        if attribute.kind == "cells":
            width = attribute.size // attribute.height
            within[attribute.field] = rng.integers(0, (width, attribute.height), value.shape)
        else:
            within[attribute.field] = rng.integers(0, attribute.size, value.shape)
    return state


def score(
    model: Model, seen: Transitions, wrong: dict[str, list[Any]], held_out: dict[str, Transitions]
) -> Score:
    """Ranks of the truth, :meth:`World.rank` with all candidates asked about at once."""
    draw, space, num = imagined(model, seen), crafter_space(), seen.num_transitions
    truth = only_declared(seen.next_states, space)
    others = {kind: [*wrong[kind], (draw, np.ones(num, bool))] for kind in KINDS}
    candidates = [truth, *(only_declared(state, space) for kind in KINDS for state, _ in others[kind])]
    world = model.world
    if world is None:
        logs = np.zeros((len(candidates), num))
    else:
        many = len(candidates)
        again = jax.tree.map(lambda x: np.concatenate([x] * many), (seen.states, seen.actions))
        logs = world.log_prob(model.fit, *again, join(candidates), num_draws=20).reshape(many, num)
    rng, rankings, at = np.random.default_rng(0), {}, 1
    for kind in KINDS:
        own, rank, number = rng.random(num), np.ones(num, int), np.ones(num, int)
        for _, applies in others[kind]:
            counts = applies & (edit_distance(space, candidates[at], truth) > 0)
            tie = np.isclose(logs[at], logs[0], atol=1e-6)
            rank += counts & np.where(tie, rng.random(num) < own, logs[at] > logs[0])
            number += counts
            at += 1
        rankings[kind] = Ranking(rank, number, logs[0])
    known = {} if world is None else held_out
    return Score(
        rankings,
        edit_distance(space, draw, truth),
        edit_distance(space, draw, truth, normalised=True),
        {name: float(world.log_prob(model.fit, *data).mean()) for name, data in known.items() if world},
    )


def only_declared(state: Any, space: Space) -> dict[str, Any]:
    """Without maps, which no law writes and which are large."""
    names = {attribute.name for attribute in space if attribute.group is None} | set(space.groups)
    return {name: value for name, value in state.items() if name in names}


# ---------------------------------------------------------------------------------------------------- the tables


def by_trial(values: np.ndarray, scenario: np.ndarray, trial: np.ndarray) -> np.ndarray:
    """(scenario, trial): means over steps."""
    trials = trial.max() + 1
    cell = scenario * trials + trial
    return (np.bincount(cell, values) / np.bincount(cell)).reshape(-1, trials)


def measures(result: Score, kind: str) -> dict[str, np.ndarray]:
    rank, number = result.rankings[kind].rank, result.rankings[kind].num_candidates
    return {
        "Rank@1": (rank == 1) * 1.0,
        "MRR": 1 / rank,
        "recall": 1 - (rank - 1) / (number - 1),
        "candidates": number * 1.0,
        "raw edit": result.raw,
        "norm. edit": result.normalised,
    }


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join("---" if i == 0 else "---:" for i in range(len(head))) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def summary(scores: dict[str, Score], scenario: np.ndarray, trial: np.ndarray) -> None:
    for kind in KINDS:
        print(f"Distractors made of the {kind} state:\n")
        rows = []
        for name, result in scores.items():
            cells = []
            for what, values in measures(result, kind).items():
                if what == "candidates":
                    continue
                grid = by_trial(values, scenario, trial)
                mean, spread = grid.mean(), grid.std(1, ddof=1).mean()
                if what == "Rank@1":
                    cells.append(f"{100 * mean:.1f}% +- {100 * spread:.1f}")
                else:
                    cells.append(f"{mean:.3f} +- {spread:.3f}")
            rows.append([name, *cells])
        table(["model", "Rank@1", "MRR", "recall", "raw edit", "norm. edit"], rows)
        number = by_trial(measures(result, kind)["candidates"], scenario, trial).mean(1)
        print(
            f"Candidates a question: {number.mean():.1f}, by scenario {number.min():.1f} to {number.max():.1f}.\n"
        )
    print("Held-out log-likelihood a transition, nats:\n")
    rows = [
        [name, *(f"{result.held_out[n]:.3f}" if n in result.held_out else "-" for n in ("test", "wild"))]
        for name, result in scores.items()
    ]
    table(["model", "1000 of the laboratory", "600 of random play"], rows)


def scenario_table(scores: dict[str, Score], scenario: np.ndarray, trial: np.ndarray) -> None:
    if not {"laws, fitted", "laws, not fitted"} <= set(scores):
        return
    ours, none = scores["laws, fitted"], scores["laws, not fitted"]
    steps = np.bincount(scenario) / (trial.max() + 1)
    print("By scenario, mean over trials: laws, fitted; in brackets laws, not fitted.\n")
    rows = []
    for i, name in enumerate(SCENARIOS):
        cells = [name, f"{steps[i]:.1f}"]
        for kind in KINDS:
            a, b = measures(ours, kind), measures(none, kind)
            for what in ("Rank@1", "MRR"):
                cells.append(
                    f"{by_trial(a[what], scenario, trial)[i].mean():.2f} "
                    f"({by_trial(b[what], scenario, trial)[i].mean():.2f})"
                )
        for what in ("raw edit", "norm. edit"):
            digits = 2 if what == "raw edit" else 3
            cells.append(
                f"{by_trial(a[what], scenario, trial)[i].mean():.{digits}f} "
                f"({by_trial(b[what], scenario, trial)[i].mean():.{digits}f})"
            )
        rows.append(cells)
    heads = [f"{what}, {kind}" for kind in KINDS for what in ("Rank@1", "MRR")]
    table(["scenario", "steps", *heads, "raw edit", "norm. edit"], rows)


def planning(found: list[Model], paths: int) -> None:
    """Does a model rank two plans as Crafter does?"""
    print("Plans: mean reward of the better and the worse one, played and imagined.\n")
    rows = []
    starts = {name: Crafter().restore(plan.prepare()).state() for name, plan in PLANS.items()}
    cells: dict[str, list[str]] = {name: [] for name in PLANS}
    for name, plan in PLANS.items():
        for actions in (plan.good, plan.bad):
            rewards = [float(plan.reward(plan.play(actions, seed).next_states)) for seed in range(100)]
            cells[name].append(f"{np.mean(rewards):.2f} +- {np.std(rewards, ddof=1) / 10:.2f}")
        cells[name] = [" / ".join(cells[name])]
    for model in found:
        assert model.world is not None
        options = ONELIFE if model.world.pool == "product" else {}
        world = World(crafter_space(), model.world.laws, **options, refresh=crafter_refresh)
        for name, plan in PLANS.items():
            got = world.compare_plans(
                model.fit, starts[name], {"good": plan.good, "bad": plan.bad}, plan.reward, num_paths=paths
            )
            good, bad = (f"{got.reward[p]:.2f} +- {got.error[p]:.2f}" for p in ("good", "bad"))
            right = got.reward["good"] > got.reward["bad"]
            cells[name].append(f"{good} / {bad}{'' if right else ' (wrong)'}")
    rows = [[name, *row] for name, row in cells.items()]
    table(["situation", "played (100)", *(model.name for model in found)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10, help="performances of each scenario, at least 2")
    parser.add_argument("--paths", type=int, default=500, help="imagined for each plan")
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of models")
    options = parser.parse_args()
    libraries = ", ".join(f"{lib} {version(lib)}" for lib in ("sojourn", "numpyro", "jax", "crafter"))
    print(f"{datetime.date.today()}, Python {platform.python_version()}, {libraries}\n")
    train = crafter_transitions(RECORDS, "train")
    held_out = {name: crafter_transitions(RECORDS, name) for name in ("test", "wild")}
    found = models(train, options.only)
    seen, scenario, trial = episodes(options.trials)
    print(
        f"{seen.num_transitions} questions from {options.trials} trials of {len(SCENARIOS)} scenarios.\n",
        flush=True,
    )
    wrong = {kind: distractors(seen, kind) for kind in KINDS}
    scores = {model.name: score(model, seen, wrong, held_out) for model in found}
    summary(scores, scenario, trial)
    scenario_table(scores, scenario, trial)
    planning([model for model in found if model.world is not None], options.paths)


if __name__ == "__main__":
    main()
