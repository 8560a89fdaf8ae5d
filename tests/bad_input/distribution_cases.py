"""``sojourn.distributions``, the environments, the laws of a world and the data sets."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from hypothesis import strategies as st

from sojourn import datasets
from sojourn import distributions as sd
from sojourn.environments import Meadow, hooks, record, stack
from sojourn.environments.meadow import mutants
from sojourn.models import covariance, laws
from tests.bad_input.model_cases import CHAIN, SWITCH, bad_matrix, in_double
from tests.bad_input.values import (
    NAN,
    Case,
    above,
    below,
    negative,
    not_count,
    not_finite,
    not_functions,
    not_increasing,
    not_numbers,
    not_one_of,
    not_open_probability,
    not_paths,
    not_positive,
    not_probability,
    not_seed,
    not_stochastic,
    poisoned,
    shaped,
    spoiled,
    words,
)

START = np.array([0.5, 0.5])
STAY = np.array([[0.9, 0.1], [0.2, 0.8]])
TIMES = np.array([0.0, 0.5, 1.5])
bad_start = st.one_of(not_stochastic(START), shaped((3,), ()), not_numbers)
not_laws = st.one_of(words, st.builds(object), shaped((3,)))
bad_observation_times = st.one_of(not_increasing(TIMES), shaped((2, 2, 2), (1,)), not_numbers)
process_options = {
    "rate_matrix": bad_matrix(SWITCH),
    "initial": bad_start,
    "times": bad_observation_times,
    "lengths": st.integers(4, 9) | words,
    "mask": shaped((2,), (5, 5)) | words,
    "max_rate": not_positive,
    "method": not_one_of("uniformization", "expm"),
}
one = np.ones((1, 1))
rows = sd.LawRows(
    law=np.array([[0]]),
    writes=np.array([[[True]]]),
    label=np.array([[[[1]]]]),
    probs=np.array([[[[1.0]]]]),
    uniform=np.array([[[False]]]),
    attribute=np.array([[0]]),
    size=np.array([[10]]),
    named=np.array([[2]]),
    several=np.array([], int),
)
smooth = covariance.Matern52()

distribution_cases = [
    Case(
        "distributions.HiddenMarkov",
        sd.HiddenMarkov,
        {
            "initial": START,
            "transition": STAY,
            "emission": dist.Poisson(jnp.array([1.0, 5.0])),
            "num_steps": 4,
            "validate_args": True,
        },
        {
            "initial": bad_start,
            "transition": st.one_of(not_stochastic(STAY), shaped((2,), (3, 3), ()), not_numbers),
            "emission": st.one_of(words, st.builds(object), st.just(dist.Normal(jnp.zeros(3), 1.0))),
            "num_steps": not_count(1),
            "mask": shaped((3,), (5, 5)) | words,
            "lengths": st.integers(5, 9) | st.integers(-3, 0) | words,
        },
        examples=100,
    ),
    Case(
        "distributions.HiddenJumpProcess",
        sd.HiddenJumpProcess,
        {
            "rate_matrix": SWITCH,
            "initial": START,
            "emission": dist.Normal(jnp.zeros(2), 1.0),
            "times": TIMES,
            "validate_args": True,
        },
        {
            **process_options,
            "emission": st.one_of(words, st.builds(object), st.just(dist.Normal(jnp.zeros(3), 1.0))),
        },
        examples=100,
    ),
    Case(
        "distributions.PanelJumpProcess",
        sd.PanelJumpProcess,
        {"rate_matrix": SWITCH, "initial": START, "times": TIMES, "validate_args": True},
        {
            **process_options,
            "censored": st.one_of(
                st.just({99: [0, 5]}), st.just({99: []}), st.just({0: [0, 1]}), st.integers(1, 9), words
            ),
        },
        examples=100,
    ),
    Case(
        "distributions.MarkovJumpPath",
        sd.MarkovJumpPath,
        {"rate_matrix": SWITCH, "initial": START, "duration": 5.0, "validate_args": True},
        {
            "rate_matrix": bad_matrix(SWITCH),
            "initial": bad_start,
            "duration": not_positive,
            "max_jumps": not_count(0),
        },
        examples=80,
    ),
    Case(
        "distributions.LinearGaussian",
        sd.LinearGaussian,
        {
            "initial_mean": np.zeros(1),
            "initial_covariance": one,
            "transition": one,
            "transition_covariance": one,
            "observation": np.ones(1),
            "observation_covariance": 1.0,
            "num_steps": 3,
        },
        {
            "initial_mean": shaped((), (2,)) | not_numbers,
            "initial_covariance": shaped((2, 2), ()) | not_numbers,
            "transition": shaped((2, 2), ()) | not_numbers,
            "transition_covariance": shaped((2, 2), ()) | not_numbers,
            "observation": shaped((2,), ()) | not_numbers,
            "observation_covariance": not_numbers,
            "num_steps": not_count(1),
            "offset": shaped((2,), ()) | not_numbers,
            "steps": st.one_of(
                st.just([1, 0]),
                st.just([0, 0]),
                st.lists(st.integers(3, 9), min_size=1),
                st.just([-1]),
                not_numbers,
            ),
        },
        examples=100,
    ),
    Case(
        "distributions.FractionalBrownianMotion",
        sd.FractionalBrownianMotion,
        {"hurst": 0.7, "times": [0.5, 1.0, 2.0]},
        {
            "hurst": not_open_probability,
            "times": st.one_of(
                not_increasing([0.5, 1.0, 2.0]), shaped((2, 2), (0,), ()), not_numbers, st.just([0.0, 1.0])
            ),
            "scale": not_positive,
            "noise": negative,
            "start": not_finite | not_numbers,
            "kind": not_one_of("I", "II"),
        },
        examples=100,
    ),
    Case(
        "distributions.FractionalGaussianNoise",
        sd.FractionalGaussianNoise,
        {"hurst": 0.7, "num_steps": 3},
        {
            "hurst": not_open_probability,
            "num_steps": not_count(1),
            "loc": not_finite | not_numbers,
            "scale": not_positive,
        },
        examples=80,
    ),
    Case(
        "distributions.NoisySigns",
        sd.NoisySigns,
        {"hazard": np.array([0.2, 0.5, 1.0]), "num_steps": 5, "validate_args": True},
        {
            "hazard": spoiled(
                np.array([0.2, 0.5, 1.0]), shaped((), (3, 2)), entries=not_finite | above(1.01) | below(-0.01)
            ),
            "num_steps": not_count(1),
            "flip": not_probability,
            "mask": shaped((3,), (4, 4)) | words,
        },
        examples=80,
    ),
    Case(
        "distributions.Ordered",
        sd.Ordered,
        {"base": dist.Normal(0.0, 1.0), "size": 3},
        {
            "base": st.one_of(
                not_laws,
                st.just(dist.Poisson(3.0)),
                st.just(dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))),
            ),
            "size": not_count(1),
        },
        examples=60,
    ),
    Case(
        "distributions.ExcursionTime",
        in_double(sd.ExcursionTime),
        {"covariance": smooth},
        {
            "covariance": not_laws,
            "num_steps": not_count(2),
            "horizon": not_positive,
            "on_invalid": not_one_of("raise", "warn", "ignore"),
        },
        examples=60,
    ),
    Case(
        "distributions.LevelExcursionTime",
        in_double(sd.LevelExcursionTime),
        {"covariance": smooth, "level": 1.0},
        {
            "covariance": not_laws,
            "level": st.one_of(above(4.01), below(-4.01), not_finite, not_numbers),
            "side": not_one_of("above", "below"),
            "num_steps": not_count(2),
            "horizon": not_positive,
            "on_invalid": not_one_of("raise", "warn", "ignore"),
        },
        examples=60,
    ),
    Case(
        "distributions.SignRuns",
        in_double(lambda law, step: sd.SignRuns(sd.ExcursionTime(smooth) if law is None else law, step)),
        {"law": None, "step": 0.1},
        {"law": not_laws, "step": not_positive | above(1e3)},
        examples=60,
    ),
    Case(
        "distributions.CensoredExcursion",
        in_double(
            lambda law, kind, **more: sd.CensoredExcursion(
                sd.ExcursionTime(smooth) if law is None else law, kind, **more
            )
        ),
        {"law": None, "kind": ["complete", "right"]},
        {"law": not_laws, "kind": st.one_of(words, st.integers(9, 99), st.just("interval"), shaped((2,)))},
        examples=60,
    ),
    Case(
        "distributions.CompetingLaws",
        sd.CompetingLaws,
        {"hazard": np.array([0.3]), "change": np.array([1e-4]), "rows": rows},
        {
            "hazard": spoiled(np.ones(1), shaped((), (1, 1)), entries=st.just(NAN) | below(-0.01)),
            "change": spoiled(
                np.ones(1), shaped((), (1, 1)), entries=st.just(NAN) | below(-0.01) | above(1.01)
            ),
            "rows": not_laws,
            "noise": not_open_probability,
        },
        examples=60,
    ),
    Case(
        "distributions.LogLinearLaws",
        sd.LogLinearLaws,
        {"weight": np.array([0.3]), "frame": np.zeros(1), "rows": rows},
        {
            "weight": spoiled(np.ones(1), shaped((), (1, 1)), entries=st.just(NAN)),
            "frame": spoiled(np.ones(1), shaped((), (1, 1)), entries=st.just(NAN)),
            "rows": not_laws,
            "noise": not_open_probability,
            "boost": not_positive,
        },
        examples=60,
    ),
]

# ------------------------------------------------------------------------------------------- environments

meadow = Meadow()
seen = record(meadow, 20, seed=1)
not_worlds = st.one_of(words, st.integers(), st.builds(object))
not_records = st.one_of(words, st.integers(), st.builds(object), st.none())

environment_cases = [
    Case(
        "environments.Meadow",
        Meadow,
        {},
        {name: not_probability for name in ("slip", "tire", "pick", "weather", "roam", "bite")},
        examples=80,
    ),
    Case(
        "environments.record",
        record,
        {"environment": meadow, "num_transitions": 3},
        {
            "environment": not_worlds,
            "num_transitions": not_count(1),
            "policy": not_functions,
            "horizon": not_count(1),
            "seed": not_seed,
        },
        examples=80,
    ),
    Case(
        "environments.stack",
        stack,
        {"states": [{"health": 3}, {"health": 2}]},
        {
            "states": st.one_of(
                st.just([]), st.just([{"health": 3}, {"wood": 3}]), st.integers(), words, st.just([3, 4])
            )
        },
        examples=20,
    ),
    Case(
        "hooks.cyclic_drift",
        hooks.cyclic_drift,
        {"environment": meadow, "other": meadow, "every": 3},
        {"environment": not_worlds, "other": not_worlds, "every": not_count(1)},
    ),
    Case(
        "hooks.sudden_drift",
        hooks.sudden_drift,
        {"environment": meadow, "other": meadow, "at": 3},
        {"environment": not_worlds, "other": not_worlds, "at": not_count(1)},
    ),
    Case(
        "hooks.random_action",
        hooks.random_action,
        {"environment": meadow, "probability": 0.3},
        {"environment": not_worlds, "probability": not_probability},
    ),
    Case(
        "hooks.sticky_action",
        hooks.sticky_action,
        {"environment": meadow, "probability": 0.3},
        {"environment": not_worlds, "probability": not_probability},
    ),
    Case(
        "hooks.random_event",
        hooks.random_event,
        {"environment": meadow, "event": lambda rng, state, after: {}, "probability": 0.3},
        {"environment": not_worlds, "event": not_functions, "probability": not_probability},
    ),
    Case(
        "hooks.hide",
        hooks.hide,
        {"transitions": seen, "probability": 0.3},
        {
            "transitions": not_records,
            "probability": not_probability,
            "seed": not_seed,
            "attributes": st.one_of(words, st.lists(words, min_size=1, max_size=2), st.integers()),
        },
        examples=60,
    ),
    Case(
        "hooks.represented",
        hooks.represented,
        {"transitions": seen, "encode": lambda state: {"cell": state["pos"][1]}},
        {
            "transitions": not_records,
            "encode": st.one_of(not_functions, st.just(lambda state: 3), st.just(lambda state: None)),
        },
    ),
    Case("meadow.mutants", mutants, {"transitions": seen}, {"transitions": not_records, "seed": not_seed}),
]

# --------------------------------------------------------------------------------------------------- laws


@laws.law
def tire(s, a):
    return laws.when(a == 1, energy=s.energy - 1)


space = laws.Space(energy=laws.levels(10))
not_spaces = st.one_of(words, st.integers(), st.builds(object), st.none())
not_law_lists = st.one_of(
    st.just([]), st.integers(), words, st.lists(words, min_size=1, max_size=2), st.just([tire, tire])
)
world = laws.World(space, [tire])
energy = {"energy": np.array([3, 4])}
not_beta = st.one_of(words, st.integers(), st.just(dist.Normal(0.0, 1.0)))
text = "law tire\n  when true\n  energy -= 1\n"

law_cases = [
    Case(
        "laws.World",
        laws.World,
        {"space": space, "laws": [tire]},
        {
            "space": not_spaces,
            "laws": not_law_lists,
            "pool": not_one_of("hazard", "product"),
            "prior": not_beta,
            "change": st.one_of(words, st.integers()),
            "penalty": negative,
            "noise": not_open_probability,
            "boost": not_positive,
            "refresh": not_functions,
        },
        examples=100,
    ),
    Case(
        "laws.World.route",
        world.route,
        {"states": energy, "actions": np.array([1, 0]), "next_states": energy},
        {
            "states": st.one_of(
                words,
                st.just({}),
                st.just({"wood": np.array([1, 2])}),
                shaped((2,)),
                st.integers(10, 99).map(lambda e: {"energy": np.array([3, e])}),
                st.floats(0.1, 0.9).map(lambda e: {"energy": np.array([3, e])}),
            ),
            "actions": st.one_of(shaped((3,), (2, 2), ()), words, st.none()),
            "next_states": st.one_of(
                words,
                st.just({}),
                shaped((2,)),
                st.integers(10, 99).map(lambda e: {"energy": np.array([3, e])}),
            ),
        },
        examples=60,
    ),
    Case(
        "laws.Space",
        laws.Space,
        {"energy": laws.levels(10)},
        {
            "energy": st.one_of(
                st.integers(-9, 0), st.floats(0.1, 9.9), st.just(()), st.builds(object), st.none()
            ),
            "before": st.just(3),
            "alive": st.just(3),
            "two words": st.just(3),
        },
    ),
    Case("laws.levels", laws.levels, {"size": 5}, {"size": not_count(1)}),
    Case(
        "laws.cells", laws.cells, {"width": 3, "height": 3}, {"width": not_count(1), "height": not_count(1)}
    ),
    Case("laws.Objects", laws.Objects, {"slots": 2, "pos": laws.cells(3, 3)}, {"slots": not_count(1)}),
    Case(
        "laws.one_of",
        laws.one_of,
        {"values": [3, 4], "p": [0.5, 0.5]},
        {
            "values": st.one_of(st.just([]), st.just([1]), st.just([1, 2, 3])),
            "p": st.one_of(not_stochastic([0.5, 0.5]), shaped((3,)), words),
        },
        examples=30,
    ),
    Case(
        "laws.law",
        lambda function, **more: laws.law(function, **more),
        {"function": lambda s, a: laws.when(True, energy=3)},
        {
            "function": st.one_of(
                st.integers(),
                words,
                st.just(lambda s: None),
                st.just(lambda s, a, p: None),
                st.just(lambda s, a, p=3: None),
            ),
            "prior": not_beta,
            "each": st.integers() | st.builds(object),
            "after": st.integers() | st.builds(object),
            "name": st.integers() | st.builds(object),
        },
    ),
    Case(
        "laws.read_laws",
        laws.read_laws,
        {"path_or_text": text, "space": space},
        {
            "path_or_text": st.one_of(
                words.map(lambda w: f"law tire\n  when {w} == 3\n  energy -= 1\n"),
                words.map(lambda w: f"law tire\n  when true\n  {w} -= 1\n"),
                words.map(lambda w: f"{w}\n  when true\n"),
                words.map(lambda w: f"law {w}\n  {w} true\n"),
                st.just(""),
                st.integers(),
            ),
            "space": not_spaces,
        },
        examples=60,
    ),
    Case(
        "laws.propose",
        laws.propose,
        {
            "transitions": record(meadow, 20),
            "space": laws.meadow_space(),
            "proposers": [laws.library(laws.meadow_laws())],
        },
        {
            "transitions": not_records,
            "space": not_spaces,
            "proposers": st.one_of(st.just([]), st.integers(), words, st.just([3]), st.just([lambda t: [3]])),
        },
    ),
    Case(
        "laws.library",
        laws.library,
        {"laws": [tire]},
        {"laws": st.one_of(st.integers(), words, st.just([3])), "space": words | st.integers()},
        examples=20,
    ),
    Case(
        "laws.TemplateProposer",
        laws.TemplateProposer,
        {"space": space},
        {"min_count": not_count(1), "max_conditions": not_count(1), "space": not_spaces},
    ),
    Case(
        "laws.edit_distance",
        laws.edit_distance,
        {"space": space, "states": energy, "others": energy},
        {
            "space": not_spaces,
            "states": st.one_of(words, st.just({})),
            "others": st.one_of(words, st.just({}), st.just({"energy": np.ones(3)})),
        },
        examples=30,
    ),
    Case(
        "laws.RandomAction",
        laws.RandomAction,
        {"num_actions": 3},
        {"num_actions": not_count(2), "prior": words | st.integers()},
    ),
    Case(
        "laws.StickyAction",
        laws.StickyAction,
        {"num_actions": 3},
        {"num_actions": not_count(2), "prior": words | st.integers()},
    ),
    Case(
        "laws.RandomEvent",
        laws.RandomEvent,
        {"event": tire},
        {"event": not_functions, "prior": words | st.integers()},
    ),
    Case(
        "laws.SuddenDrift",
        laws.SuddenDrift,
        {},
        {"laws": st.one_of(st.integers(), st.just([]), st.just([3]))},
        examples=15,
    ),
    Case(
        "laws.CyclicDrift",
        laws.CyclicDrift,
        {"every": 3},
        {
            "every": st.one_of(not_count(1), st.just([])),
            "laws": st.one_of(st.integers(), st.just([]), st.just([3])),
        },
    ),
    Case("laws.Represented", laws.Represented, {"decode": lambda s: s}, {"decode": not_functions}),
    Case(
        "laws.NoisyWorld",
        laws.NoisyWorld,
        {"world": world, "transforms": [laws.Hidden()]},
        {"world": not_worlds, "transforms": st.one_of(st.integers(), words, st.just([3]))},
    ),
    Case(
        "laws.crafter_space",
        laws.crafter_space,
        {},
        {"area": st.one_of(st.just((0, 3)), st.just((3,)), st.just((2.5, 3)), words, st.integers())},
        examples=20,
    ),
]

data_cases = [
    Case(
        "datasets.single_channel",
        datasets.single_channel,
        {},
        {"record": not_one_of("CO"), "dead_time": not_positive | above(1e6)},
        try_good=False,
    ),
]

CASES = [*distribution_cases, *environment_cases, *law_cases, *data_cases]
_ = (CHAIN, not_paths, poisoned)
