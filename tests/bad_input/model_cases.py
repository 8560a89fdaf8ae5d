"""The systems of ``sojourn.models``, and what each of their arguments must not be."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import xarray as xr
from hypothesis import strategies as st
from numpyro import handlers

from sojourn.distributions import ExcursionTime
from sojourn.models import (
    covariance,
    exceedance,
    fractional_sde,
    hidden_markov,
    jump_process,
    langevin_flow,
    maximum_caliber,
)
from tests.bad_input.values import (
    Case,
    above,
    below,
    misshapen,
    negative,
    not_count,
    not_finite,
    not_fits,
    not_functions,
    not_increasing,
    not_numbers,
    not_one_of,
    not_open_probability,
    not_positive,
    not_probability,
    not_rate_matrix,
    not_seed,
    not_stochastic,
    poisoned,
    shaped,
    spoiled,
    words,
)


def traced(model: Callable[..., Any]) -> Callable[..., Any]:
    """One run of a model, as an engine looks at it first."""
    return lambda **arguments: handlers.seed(model, 0)(**arguments)


def bad_matrix(matrix: Any) -> st.SearchStrategy:
    return st.one_of(not_rate_matrix(matrix), not_numbers)


# ------------------------------------------------------------------------------------------ jump processes

SWITCH = np.array([[-1.0, 1.0], [2.0, -2.0]])
CHAIN = np.array([[-3.0, 2.0, 1.0], [1.0, -3.0, 2.0], [2.0, 1.0, -3.0]])
STUCK = np.array([[-1.0, 1.0], [0.0, 0.0]])
TIMES = np.array([0.0, 0.5, 1.5, 2.0])
STATES = np.array([0, 1, 1, 0])
LABELLED = xr.Dataset(
    {
        "rate_matrix": (("state", "next_state"), SWITCH),
        "covariate_effect": (("covariate", "move"), np.log([[3.0, 1.0]])),
    },
    coords={"state": ["a", "b"], "next_state": ["a", "b"], "move": ["a->b", "b->a"]},
)

bad_rates = spoiled(np.ones(2), entries=st.one_of(not_finite, below(-1e-3)))
rate_matrix_questions = [
    Case(
        f"jump_process.{ask.__name__}",
        ask,
        {"rate_matrix": CHAIN},
        {"rate_matrix": st.one_of(bad_matrix(CHAIN), more)},
        examples=60,
        try_good=False,
    )
    for ask, more in (
        (jump_process.stationary_law, st.just(STUCK)),
        (jump_process.mean_sojourn_times, st.nothing()),
        (jump_process.relaxation_times, st.nothing()),
        (jump_process.mean_first_passage_times, st.nothing()),
        (jump_process.entropy_production_rate, st.just(STUCK)),
        (jump_process.probability_currents, st.just(STUCK)),
    )
]

unfinished = poisoned(np.ones((3, 1))).map(
    lambda rows: np.concatenate([rows, np.ones((1, 1))])
)  # the last is not used
observed_process = {
    "num_states": not_count(2),
    "time_unit": not_positive,
    "rates": st.one_of(words, shaped((3, 2), (2,), (1, 1)), st.just(np.zeros((2, 2)))),
    "initial": st.one_of(words, not_stochastic([0.5, 0.5]), shaped((3,), (2, 2))),
    "covariates": shaped((4, 4, 1), (2, 1)) | unfinished | words,
    "mask": shaped((3,), (4, 4), (0,)) | words,
    "lengths": st.integers(1, 3) | st.lists(st.integers(1, 3), max_size=3) | words,
    "states": st.lists(words, max_size=1) | st.just(["a", "a"]) | st.integers(),
    "max_rate": not_positive,
    "method": not_one_of("uniformization", "expm"),
    "rate_prior": not_functions | st.builds(object),
}
bad_times = st.one_of(not_increasing(TIMES), shaped((4, 4), (0,), (1,)), not_numbers, st.none())
bad_labels = st.one_of(
    poisoned(STATES, st.sampled_from([2.0, -1.0, 0.5, np.inf, 7.0])),
    shaped((3,), (0,), (1, 1, 4)),
    not_numbers,
)

jump_cases = [
    *rate_matrix_questions,
    Case(
        "jump_process.transition_probabilities",
        jump_process.transition_probabilities,
        {"rate_matrix": SWITCH, "times": [0.5]},
        {
            "rate_matrix": bad_matrix(SWITCH),
            "times": spoiled(np.ones(3), shaped((2, 2)), entries=not_finite | below(-1e-3)),
        },
    ),
    Case(
        "jump_process.survival",
        jump_process.survival,
        {"rate_matrix": SWITCH, "times": [0.5], "until": 1},
        {
            "rate_matrix": bad_matrix(SWITCH),
            "times": spoiled(np.ones(3), shaped((2, 2)), entries=not_finite | below(-1e-3)),
            "until": st.one_of(
                st.integers(2, 99), st.integers(-99, -1), st.just([]), st.floats(0.1, 0.9), not_numbers
            ),
        },
    ),
    Case(
        "jump_process.simulate",
        jump_process.simulate,
        {"rate_matrix": SWITCH, "duration": 5.0, "initial": 0, "max_jumps": 20},
        {
            "rate_matrix": bad_matrix(SWITCH),
            "duration": not_positive,
            "initial": st.one_of(
                st.integers(2, 99), st.integers(-9, -1), not_stochastic([0.5, 0.5]), shaped((3,)), not_numbers
            ),
            "seed": not_seed,
            "max_jumps": not_count(0),
        },
        try_good=False,
    ),
    Case(
        "jump_process.rate_matrix_at",
        jump_process.rate_matrix_at,
        {"posterior": LABELLED, "covariates": [1.0]},
        {
            "posterior": st.one_of(st.just(LABELLED[["rate_matrix"]]), not_fits),
            "covariates": st.one_of(not_finite, shaped((2,), (0,), (1, 1)), not_numbers),
        },
    ),
    Case(
        "jump_process.generator",
        jump_process.generator,
        {"rates": np.ones((2, 2))},
        {
            "rates": st.one_of(
                not_finite.map(lambda rate: np.array([[0.0, rate], [1.0, 0.0]])),
                shaped((2,), (2, 3), (0, 0), (1, 1), ()),
                st.floats(-9.0, -0.1).map(lambda rate: np.array([[0.0, rate], [1.0, 0.0]])),
                not_numbers,
            )
        },
    ),
    Case(
        "jump_process.free",
        jump_process.free,
        {"rates": np.ones(2)},
        {"rates": bad_rates | shaped((3,), (0,), ())},
    ),
    Case(
        "jump_process.masked",
        jump_process.masked,
        {"rates": np.ones(2), "adjacency": np.ones((2, 2))},
        {
            "rates": bad_rates | shaped((3,), (0,), ()),
            "adjacency": shaped((2, 3), (3, 3), (2,), ()) | not_numbers,
        },
    ),
    Case(
        "jump_process.reversible",
        jump_process.reversible,
        {"exchange": np.ones(1), "stationary": np.array([0.8, 0.2])},
        {
            "exchange": spoiled(np.ones(1), shaped((3,), (0,), ()), entries=not_finite | below(-1e-3)),
            "stationary": st.one_of(
                not_stochastic([0.8, 0.2]), st.just(np.array([1.0, 0.0])), shaped((3,), ()), not_numbers
            ),
        },
    ),
    Case(
        "jump_process.arrhenius",
        jump_process.arrhenius,
        {"energy": np.zeros(2), "barrier": np.zeros((2, 2))},
        {
            "energy": spoiled(np.zeros(2), shaped((3,), (0,), ())),
            "barrier": spoiled(
                np.zeros((2, 2)), shaped((3, 3), (2,)), entries=st.sampled_from([np.nan, -np.inf])
            ),
            "temperature": not_positive,
            "attempt_rate": negative,
        },
    ),
    Case(
        "jump_process.driven_cycle",
        jump_process.driven_cycle,
        {"energy": np.zeros(3), "barrier": np.zeros(3), "affinity": 0.0},
        {
            "energy": spoiled(np.zeros(3), shaped((2,), (0,), (), (5,))),
            "barrier": spoiled(np.zeros(3), shaped((2,), (0,))),
            "affinity": not_finite | not_numbers,
            "temperature": not_positive,
            "attempt_rate": negative,
        },
    ),
    Case(
        "jump_process.birth_death",
        jump_process.birth_death,
        {"birth": np.ones(2), "death": np.ones(2)},
        {"birth": bad_rates | shaped((3,), (0,)), "death": bad_rates | shaped((3,), (0,))},
    ),
    Case(
        "jump_process.linear_chain",
        jump_process.linear_chain,
        {"rates": np.ones(2)},
        {"rates": bad_rates | shaped((0,), ())},
    ),
    Case(
        "jump_process.flashing_ratchet",
        jump_process.flashing_ratchet,
        {"potential": 1.0, "switching": 1.0, "diffusion": 1.0},
        {
            "potential": not_finite | not_numbers,
            "switching": negative,
            "diffusion": negative,
            "num_sites": not_count(2),
        },
    ),
    Case(
        "jump_process.stack_paths",
        jump_process.stack_paths,
        {"entry_times": [[0.0, 1.0], [0.0]], "states": [[0, 1], [0]], "durations": [3.0, 2.0]},
        {
            "entry_times": st.one_of(
                above(3.0).map(lambda t: [[0.0, t], [0.0]]),
                (above(0.0) | below(0.0)).map(lambda t: [[t, t + 1], [0.0]]),
                not_finite.map(lambda t: [[0.0, t], [0.0]]),
                st.just([[0.0, 1.0]]),
                st.just([]),
                not_numbers,
            ),
            "states": st.one_of(
                st.just([[0, 0], [0]]), st.just([[0, 1, 0], [0]]), st.just([[0, 1]]), st.just([]), not_numbers
            ),
            "durations": st.one_of(
                not_finite.map(lambda t: [3.0, t]),
                below(0.0).map(lambda t: [3.0, t]),
                shaped((3,), ()),
                not_numbers,
            ),
        },
    ),
    Case(
        "jump_process.pad",
        jump_process.pad,
        {"series": [[1, 2, 3], [4]]},
        {
            "series": st.one_of(
                st.just([]),
                st.just([[], [1]]),
                st.just([[[1, 2]], [3]]),
                st.integers(),
                st.just([1, 2]),
                not_numbers,
            )
        },
    ),
    Case(
        "jump_process.panel",
        traced(jump_process.panel),
        {"y": STATES, "times": TIMES, "num_states": 2},
        {
            **{k: v for k, v in observed_process.items()},
            "y": bad_labels,
            "times": bad_times,
            "censored": st.one_of(
                st.just({99: [0, 5]}), st.just({99: []}), st.just({0: [0, 1]}), st.integers(1, 9), words
            ),
            "path": st.just(True),
        },
        examples=120,
    ),
    Case(
        "jump_process.misclassified",
        traced(jump_process.misclassified),
        {"y": STATES, "times": TIMES, "num_states": 2},
        {
            **observed_process,
            "y": bad_labels,
            "times": bad_times,
            "confusion": st.one_of(
                words, not_stochastic([[0.9, 0.1], [0.2, 0.8]]), shaped((3, 3), (2,), value=1 / 3)
            ),
            "error_prior": not_functions | st.builds(object),
        },
        examples=100,
    ),
    Case(
        "jump_process.normal",
        traced(jump_process.normal),
        {"y": np.array([0.1, 0.9, 1.1, 0.2]), "times": TIMES, "num_states": 2},
        {
            **observed_process,
            "y": st.one_of(
                poisoned(np.zeros(4), st.sampled_from([np.inf, -np.inf])), shaped((3,), (0,)), not_numbers
            ),
            "times": bad_times,
            "loc_prior": not_functions | st.builds(object),
            "scale_prior": not_functions | st.builds(object),
        },
        examples=100,
    ),
    Case(
        "jump_process.model",
        traced(jump_process.model),
        {
            "y": np.array([0.1, 0.9, 1.1, 0.2]),
            "times": TIMES,
            "emission": lambda k: dist.Normal(jnp.arange(2.0), 1.0),
            "num_states": 2,
        },
        {
            **observed_process,
            "y": st.one_of(
                poisoned(np.zeros(4), st.sampled_from([np.inf, -np.inf])), shaped((3,), (0,)), not_numbers
            ),
            "times": bad_times,
            "emission": st.one_of(
                not_functions,
                st.just(lambda k: None),
                st.just(lambda k: 3.0),
                st.just(lambda k: dist.Normal(jnp.zeros(3), 1.0)),
                st.just(lambda k: lambda state: 1.0),
            ),
        },
        examples=100,
    ),
    Case(
        "jump_process.complete",
        traced(jump_process.complete),
        {
            "paths": jump_process.stack_paths([[0.0, 1.0], [0.0]], [[0, 1], [0]], [3.0, 2.0]),
            "duration": np.array([3.0, 2.0]),
            "num_states": 2,
        },
        {
            "paths": st.one_of(shaped((2, 2), (2, 2, 3), (0, 2, 2), (3, 2, 2)), not_numbers),
            "duration": st.one_of(
                not_finite.map(lambda t: np.array([3.0, t])), below(0.0), shaped((3,)), not_numbers
            ),
            **{k: observed_process[k] for k in ("num_states", "time_unit", "rates", "states", "rate_prior")},
            "initial": st.one_of(words, not_stochastic([0.5, 0.5]), shaped((3,), (3, 2))),
            "covariates": shaped((3,), (2, 2, 1), (3, 1)) | poisoned(np.ones((2, 1))) | words,
            "max_jumps": not_count(1),
        },
        examples=80,
    ),
]

# ------------------------------------------------------------------------------------------- hidden Markov

COUNTS = np.array([3, 0, 12, 9, 4])
chain_options = {
    "num_states": not_count(1),
    "num_steps": not_count(1),
    "mask": shaped((3,), (5, 5), (0,)) | words,
    "lengths": st.integers(1, 3) | st.lists(st.integers(1, 3), max_size=3) | words,
    "concentration": not_positive,
    "stickiness": negative,
    "initial": st.one_of(words, not_stochastic([0.5, 0.5]), shaped((3,), (2, 2))),
    "covariates": shaped((3,), (4, 4, 1), (3, 1)) | poisoned(np.ones((5, 1))) | words,
}
bad_series = st.one_of(
    poisoned(np.zeros(5), st.sampled_from([np.inf, -np.inf])), shaped((0,), (2, 2, 2), ()), not_numbers
)
bad_counts = st.one_of(
    poisoned(COUNTS, st.one_of(st.sampled_from([np.inf, -1.0]), st.floats(0.1, 0.9))),
    shaped((0,), (2, 2, 2), ()),
    not_numbers,
)
not_priors = not_functions | st.builds(object)


def with_y(bad: dict[str, st.SearchStrategy]) -> dict[str, st.SearchStrategy]:
    """`num_steps` counts only where the model simulates."""
    return {name: strategy for name, strategy in bad.items() if name != "num_steps"}


markov_cases = [
    Case(
        "hidden_markov.poisson",
        traced(hidden_markov.poisson),
        {"counts": COUNTS, "num_states": 2},
        {**with_y(chain_options), "counts": bad_counts, "rate_prior": not_priors},
        examples=100,
    ),
    Case(
        "hidden_markov.poisson simulated",
        traced(hidden_markov.poisson),
        {"num_states": 2, "num_steps": 5},
        {"num_steps": not_count(1), "num_series": not_count(1), "num_states": not_count(1)},
    ),
    Case(
        "hidden_markov.normal",
        traced(hidden_markov.normal),
        {"y": np.array([0.1, 0.9, 1.1, 0.2, 0.0]), "num_states": 2},
        {**with_y(chain_options), "y": bad_series, "loc_prior": not_priors, "scale_prior": not_priors},
        examples=100,
    ),
    Case(
        "hidden_markov.categorical",
        traced(hidden_markov.categorical),
        {"y": np.array([0, 1, 3, 2, 0]), "num_states": 2, "num_categories": 4},
        {
            **with_y(chain_options),
            "y": bad_counts | st.just(np.array([0, 4, 1])),
            "num_categories": not_count(2),
            "emission_concentration": not_positive,
        },
        examples=100,
    ),
    Case(
        "hidden_markov.multivariate_normal",
        traced(hidden_markov.multivariate_normal),
        {"y": np.arange(10.0).reshape(5, 2), "num_states": 2},
        {
            **with_y(chain_options),
            "y": st.one_of(
                poisoned(np.zeros((5, 2)), st.just(np.inf)), shaped((0, 2), (5, 0), (5,)), not_numbers
            ),
            "dimension": st.one_of(st.integers(3, 9), not_count(1)),
            "correlation": not_positive,
            "loc_prior": not_priors,
            "scale_prior": not_priors,
        },
        examples=100,
    ),
    Case(
        "hidden_markov.model",
        traced(hidden_markov.model),
        {"y": COUNTS, "emission": lambda k: dist.Poisson(jnp.array([1.0, 5.0])), "num_states": 2},
        {
            **with_y(chain_options),
            "y": st.one_of(shaped((0,), (2, 2, 2), ()), not_numbers),
            "emission": st.one_of(
                not_functions,
                st.just(lambda k: None),
                st.just(lambda k: 3.0),
                st.just(lambda k: dist.Normal(jnp.zeros(3), 1.0)),
                st.just(lambda k: lambda state: 1.0),
            ),
        },
        examples=100,
    ),
    Case(
        "hidden_markov.stationary",
        hidden_markov.stationary,
        {"transition": np.array([[0.9, 0.1], [0.2, 0.8]])},
        {
            "transition": st.one_of(
                not_stochastic([[0.9, 0.1], [0.2, 0.8]]), shaped((2,), (2, 3), (0, 0), ()), not_numbers
            )
        },
    ),
    Case(
        "hidden_markov.pad",
        hidden_markov.pad,
        {"series": [[1, 2, 3], [4]]},
        {
            "series": st.one_of(
                st.just([]), st.just([[], [1]]), st.just([[[1, 2]], [3]]), st.integers(), not_numbers
            )
        },
        examples=15,
    ),
    Case(
        "hidden_markov.decode",
        lambda **a: hidden_markov.decode(a.pop("fit"), a.pop("model"), COUNTS, num_states=2, **a),
        {
            "fit": types.SimpleNamespace(
                posterior=xr.Dataset({"rate": (("chain", "draw", "state"), np.ones((1, 5, 2)))})
            ),
            "model": hidden_markov.poisson,
        },
        {"fit": not_fits, "model": not_functions, "num_draws": not_count(1) | st.integers(6, 99)},
        try_good=False,
    ),
    Case(
        "hidden_markov.forecast",
        lambda **a: hidden_markov.forecast(a.pop("fit"), a.pop("model"), COUNTS, num_states=2, **a),
        {
            "fit": types.SimpleNamespace(
                posterior=xr.Dataset({"rate": (("chain", "draw", "state"), np.ones((1, 5, 2)))})
            ),
            "model": hidden_markov.poisson,
            "horizon": 3,
        },
        {
            "fit": not_fits,
            "model": not_functions,
            "num_draws": not_count(1) | st.integers(6, 99),
            "horizon": not_count(1),
            "future_covariates": shaped((2, 1)),
        },
        try_good=False,
    ),
]

# ------------------------------------------------------------------------------------------ maximum caliber

EVEN = np.array([[-1.0, 1.0], [1.0, -1.0]])
OCCUPIED = np.array([[0.0, 1.0]])
bad_process = {
    "rate_matrix": bad_matrix(EVEN) | st.just(STUCK),
    "dwell": st.one_of(poisoned(OCCUPIED), shaped((1, 3), (1, 2, 2), (2,), ()), not_numbers, st.none()),
}
bad_tilt = st.one_of(not_finite.map(lambda t: np.array([t])), shaped((2,), (0,), ()), not_numbers, st.none())
bad_jump = st.one_of(poisoned(np.ones((1, 2, 2))), shaped((1, 3, 3), (2, 2), (2, 2, 2), ()), not_numbers)

caliber_cases = [
    *(
        Case(
            f"maximum_caliber.{ask.__name__}",
            ask,
            {"tilt": np.array([0.5]), "rate_matrix": EVEN, "dwell": OCCUPIED},
            {"tilt": bad_tilt, "jump": bad_jump, **bad_process},
            try_good=False,
        )
        for ask in (
            maximum_caliber.averages,
            maximum_caliber.covariances,
            maximum_caliber.doob_transform,
            maximum_caliber.free_energy,
            maximum_caliber.tilted_generator,
        )
    ),
    Case(
        "maximum_caliber.finite_time_free_energy",
        maximum_caliber.finite_time_free_energy,
        {"tilt": np.array([0.5]), "rate_matrix": EVEN, "dwell": OCCUPIED, "duration": 5.0},
        {
            "tilt": bad_tilt,
            **bad_process,
            "duration": not_positive,
            "initial": st.one_of(not_stochastic([0.5, 0.5]), shaped((3,), ()), not_numbers),
        },
        try_good=False,
    ),
    Case(
        "maximum_caliber.solve_tilt",
        maximum_caliber.solve_tilt,
        {"targets": np.array([0.8]), "rate_matrix": EVEN, "dwell": OCCUPIED},
        {"targets": st.one_of(bad_tilt, st.sampled_from([np.array([1.5]), np.array([-0.2])])), **bad_process},
    ),
    Case(
        "maximum_caliber.rate_function",
        maximum_caliber.rate_function,
        {"value": np.array([0.8]), "rate_matrix": EVEN, "dwell": OCCUPIED},
        {"value": st.one_of(bad_tilt, st.sampled_from([np.array([1.5]), np.array([-0.2])])), **bad_process},
    ),
    Case(
        "maximum_caliber.green_kubo",
        maximum_caliber.green_kubo,
        {"rate_matrix": EVEN, "dwell": OCCUPIED},
        {
            **bad_process,
            "dwell": st.one_of(poisoned(OCCUPIED), shaped((1, 3), (2,), ()), not_numbers, st.none()),
        },
    ),
    Case(
        "maximum_caliber.entropy_flow",
        maximum_caliber.entropy_flow,
        {"rate_matrix": EVEN},
        {"rate_matrix": bad_matrix(EVEN)},
    ),
    Case(
        "maximum_caliber.cycle_affinity",
        maximum_caliber.cycle_affinity,
        {"rate_matrix": CHAIN, "cycle": [0, 1, 2]},
        {
            "rate_matrix": bad_matrix(CHAIN),
            "cycle": st.one_of(
                st.lists(st.integers(3, 9), min_size=2, max_size=3),
                st.lists(st.integers(-9, -1), min_size=2, max_size=3),
                st.sampled_from([[], [0], [0, 0, 1], 1, [0.5, 1.2]]),
                not_numbers,
            ),
        },
    ),
    Case(
        "maximum_caliber.maximum_entropy",
        maximum_caliber.maximum_entropy,
        {"tilt": np.array([1.0]), "features": np.array([[0.0, 1.0]])},
        {
            "tilt": bad_tilt,
            "features": st.one_of(
                poisoned(OCCUPIED), shaped((2, 2), (2,), (), (1, 0)), not_numbers, st.none()
            ),
            "log_weight": st.one_of(
                not_numbers, poisoned(np.zeros(2), st.sampled_from([np.nan, np.inf])), shaped((3,))
            ),
        },
    ),
    Case(
        "maximum_caliber.complete_record",
        traced(maximum_caliber.complete_record),
        {
            "jump_counts": np.array([[0, 5], [5, 0]]),
            "dwell_times": np.array([9.0, 9.0]),
            "rate_matrix": EVEN,
            "dwell": OCCUPIED,
        },
        {
            "jump_counts": st.one_of(
                st.integers(-9, -1).map(lambda n: np.array([[0, n], [5, 0]])),
                st.floats(0.1, 0.9).map(lambda n: np.array([[0, n], [5, 0]])),
                not_finite.map(lambda n: np.array([[0, n], [5, 0]])),
                shaped((2,), (3, 3), ()),
                not_numbers,
            ),
            "dwell_times": st.one_of(
                poisoned(np.ones(2), not_finite | below(-1e-3)),
                shaped((3,), ()),
                not_numbers,
                st.none(),
                st.just(np.array([0.0, 9.0])),
            ),
            **bad_process,
            "tilt_prior": not_priors,
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "maximum_caliber.long_run_averages",
        traced(maximum_caliber.long_run_averages),
        {"average": np.array([0.4]), "duration": 100.0, "rate_matrix": EVEN, "dwell": OCCUPIED},
        {
            "average": st.one_of(
                not_finite.map(lambda n: np.array([n])), shaped((3,), (1, 1, 1), (0, 1)), not_numbers
            ),
            "duration": not_positive | shaped((3,)),
            **bad_process,
            "tilt_prior": not_priors,
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "maximum_caliber.voltage_gated_channel",
        traced(maximum_caliber.voltage_gated_channel),
        {"dwell_times": np.full((2, 3), 50.0), "voltages": np.array([-60.0, 0.0])},
        {
            "jump_counts": shaped((2, 3), (2, 2, 2), ()) | not_numbers,
            "dwell_times": st.one_of(
                poisoned(np.ones((2, 3)), not_finite | below(-1e-3)),
                shaped((3,), (2, 2), (4, 3), ()),
                not_numbers,
            ),
            "voltages": st.one_of(poisoned(np.zeros(2)), shaped((0,), (2, 2), ()), not_numbers),
            "charge_fraction": st.one_of(
                (above(1.0) | below(0.0, strict=False) | not_finite).map(lambda c: (0.0, c, 1.0)),
                st.sampled_from([(0.0, 1.0), (0.1, 0.5, 1.0), (0.0, 0.5, 0.9)]),
                not_numbers,
            ),
            "temperature": not_positive,
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "maximum_caliber.voltage_gated_channel_averages",
        traced(maximum_caliber.voltage_gated_channel_averages),
        {"average": np.full((2, 3), 0.5), "duration": 500.0, "voltages": np.array([-40.0, 0.0])},
        {
            "average": st.one_of(poisoned(np.ones((2, 3))), shaped((3,), (2, 2), (0, 3)), not_numbers),
            "duration": not_positive | shaped((3,)),
            "voltages": st.one_of(poisoned(np.zeros(2)), shaped((0,), (2, 2), (3,), ()), not_numbers),
            "temperature": not_positive,
        },
        try_good=False,
    ),
]

# -------------------------------------------------------------------------------------------- Langevin flow

RATES = np.array([[0.5, 1.0], [1.5, 2.0], [1.0, 0.5]])
SPIKES = np.array([[0, 1], [2, 2], [1, 0]])
bad_spikes = st.one_of(
    poisoned(SPIKES, st.one_of(st.sampled_from([np.inf, -1.0]), st.floats(0.1, 0.9))),
    shaped((0, 2), (2,), (2, 3)),
    not_numbers,
)
flow_fit = types.SimpleNamespace(
    posterior=xr.Dataset({"rate": (("chain", "draw", "trial", "time", "neuron"), np.ones((1, 2, 2, 5, 3)))})
)
FLOW = np.arange(30).reshape(2, 5, 3) % 3

flow_cases = [
    Case(
        "langevin_flow.bits_per_spike",
        langevin_flow.bits_per_spike,
        {"rates": RATES, "counts": SPIKES},
        {
            "rates": spoiled(RATES, misshapen(RATES), entries=not_finite | below(-1e-3)),
            "counts": bad_spikes | st.just(np.zeros((3, 2))),
            "null": st.one_of(shaped((3,), (5, 5)), negative),
        },
    ),
    Case(
        "langevin_flow.rate_r2",
        langevin_flow.rate_r2,
        {"rates": RATES, "truth": RATES},
        {
            "rates": spoiled(RATES, misshapen(RATES)),
            "truth": spoiled(RATES, misshapen(RATES), st.just(np.ones((3, 2)))),
        },
    ),
    Case(
        "langevin_flow.gaussian_smoothing",
        langevin_flow.gaussian_smoothing,
        {"counts": SPIKES, "widths": 2.0},
        {
            "counts": st.one_of(
                shaped((3,), (), (2, 2, 2, 2), (0, 2)), not_numbers, poisoned(SPIKES, st.just(np.inf))
            ),
            "widths": st.one_of(
                not_positive, poisoned(np.ones(2), not_finite | below(0.0)), shaped((2, 2), (0,))
            ),
        },
    ),
    Case(
        "langevin_flow.lorenz_spikes",
        langevin_flow.lorenz_spikes,
        {"num_conditions": 2, "num_trials": 2, "num_steps": 5, "num_neurons": 3},
        {
            "seed": not_seed,
            "num_conditions": not_count(1),
            "num_trials": not_count(1),
            "num_steps": not_count(1),
            "num_neurons": not_count(1),
            "step": not_positive,
        },
    ),
    Case(
        "langevin_flow.co_smoothing",
        langevin_flow.co_smoothing,
        {"fit": flow_fit, "counts": FLOW, "held_out": [1]},
        {
            "fit": not_fits,
            "counts": st.one_of(misshapen(FLOW), not_numbers, poisoned(FLOW, st.just(np.inf))),
            "held_out": st.one_of(
                st.lists(st.integers(3, 9), min_size=1, max_size=2),
                st.sampled_from([[], [0, 0], [-1], [True, False]]),
                not_numbers,
            ),
        },
        try_good=False,
    ),
    Case(
        "langevin_flow.forward_prediction",
        langevin_flow.forward_prediction,
        {"fit": flow_fit, "counts": FLOW, "start": 3},
        {
            "fit": not_fits,
            "counts": st.one_of(misshapen(FLOW), not_numbers),
            "start": st.one_of(not_count(1), st.integers(5, 99)),
        },
        try_good=False,
    ),
    Case(
        "langevin_flow.decode",
        langevin_flow.decode,
        {"train_latents": RATES, "train_behaviour": RATES, "test_latents": RATES, "num_folds": 2},
        {
            "train_latents": spoiled(RATES, misshapen(RATES)),
            "train_behaviour": spoiled(RATES, misshapen(RATES)),
            "test_latents": spoiled(RATES, shaped((3, 1), (3,), (0, 2))),
            "test_behaviour": spoiled(RATES, shaped((3, 1), (3,), (0, 2), (5, 2))),
            "penalties": st.one_of(not_positive, poisoned(np.ones(2), not_finite | below(0.0)), shaped((0,))),
            "num_folds": st.one_of(not_count(2), st.integers(4, 99)),
        },
    ),
    Case(
        "langevin_flow.spikes",
        traced(langevin_flow.spikes),
        {"counts": FLOW, "num_dims": 2},
        {
            "counts": st.one_of(
                poisoned(FLOW, st.one_of(st.sampled_from([np.inf, -1.0]), st.floats(0.1, 0.9))),
                shaped((0, 2, 2), (2,), (2, 2, 2, 2)),
                not_numbers,
            ),
            "num_dims": not_count(0),
            "held_out": st.one_of(
                st.lists(st.integers(3, 9), min_size=1, max_size=2),
                st.sampled_from([[0, 0], [-1], [0, 1, 2]]),
                not_numbers,
            ),
            "potential": not_one_of("oscillators", "network"),
            "friction": not_positive,
            "time_step": not_positive,
            "hidden": not_count(1),
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "langevin_flow.spikes simulated",
        traced(langevin_flow.spikes),
        {"num_dims": 2, "num_steps": 5, "num_trials": 2, "num_neurons": 3},
        {
            "num_steps": not_count(1),
            "num_trials": not_count(1),
            "num_neurons": not_count(1),
            "seed": not_seed,
        },
        try_good=False,
    ),
]

# ----------------------------------------------------------------------------------------------- fractional

sde_good = {
    "y": np.array([0.1, 0.4, 0.2]),
    "times": np.array([0.1, 0.2, 0.3]),
    "hurst": 0.3,
    "initial": 0.0,
    "diffusion": 1.0,
    "observation_noise": 0.1,
    "step": 0.1,
}
bad_grid = {
    "y": st.one_of(
        poisoned(np.zeros(3), st.sampled_from([np.inf, -np.inf])),
        shaped((0,), (2, 2, 2, 2), (4,)),
        not_numbers,
    ),
    "times": st.one_of(
        not_increasing([0.1, 0.2, 0.3]), shaped((0,), (3, 3)), not_numbers, st.just([0.1, 0.25, 0.3])
    ),
    "hurst": not_open_probability,
    "diffusion": words | st.builds(object) | not_finite,
    "observation_noise": negative,
    "step": not_positive,
    "start": st.one_of(above(0.11), not_finite, not_numbers),
    "kind": not_one_of("I", "II"),
    "mask": shaped((2,), (5, 5)),
    "tolerance": st.one_of(below(0.0, strict=False), above(0.51), not_finite, not_numbers),
    "num_dims": not_count(0),
    "initial": not_numbers | not_finite,
}
fractional_cases = [
    Case(
        "fractional_sde.linear",
        traced(fractional_sde.linear),
        {**sde_good, "rate": 1.0},
        {
            **bad_grid,
            "rate": not_numbers | not_finite,
            "offset": not_numbers | not_finite,
            "num_terms": not_count(1),
            "solver": not_one_of("euler", "heun", "rk4", None),
        },
        examples=120,
        try_good=False,
    ),
    Case(
        "fractional_sde.sde",
        traced(fractional_sde.sde),
        {**sde_good, "drift": lambda x: -x},
        {
            **bad_grid,
            "drift": st.one_of(
                words, st.builds(object), st.just(lambda x: jnp.zeros(3)), st.just(lambda x: "a")
            ),
            "solver": not_one_of("euler", "heun", "rk4", None),
            "calculus": not_one_of("ito", "stratonovich", None),
            "substeps": not_count(1) | st.integers(2, 3),
            "correlation": st.one_of(not_numbers, shaped((3, 3))),
        },
        examples=120,
        try_good=False,
    ),
    Case(
        "fractional_sde.mean_squared_displacement",
        fractional_sde.mean_squared_displacement,
        {
            "fit": types.SimpleNamespace(
                posterior=xr.Dataset(
                    {"hurst": (("chain", "draw"), [[0.25]]), "diffusion": (("chain", "draw"), [[2.0]])}
                )
            ),
            "lags": [1.0, 2.0],
        },
        {
            "fit": not_fits,
            "lags": spoiled(np.ones(2), shaped((0,), (2, 2)), entries=not_finite | below(0.0)),
            "hurst": not_open_probability.filter(lambda value: not callable(value)),
            "diffusion": not_numbers | not_finite,
            "kind": not_one_of("I", "II"),
        },
    ),
    Case(
        "fractional_sde.drift_field",
        fractional_sde.drift_field,
        {
            "fit": types.SimpleNamespace(posterior=xr.Dataset({"rate": (("chain", "draw"), [[0.25]])})),
            "states": [1.0, 2.0],
            "drift": lambda x: -x,
        },
        {
            "fit": not_fits,
            "states": spoiled(np.ones(2), shaped((0,))),
            "drift": words | st.builds(object),
            "time": not_finite | not_numbers,
        },
    ),
    Case(
        "fractional_sde.smoothed_state",
        fractional_sde.smoothed_state,
        {
            "fit": types.SimpleNamespace(posterior=xr.Dataset({"diffusion": (("chain", "draw"), [[1.0]])})),
            "y": [1.0],
            "times": [2.0],
            "step": 1.0,
            "start": 0.0,
            "rate": 0.0,
            "hurst": 0.5,
            "initial": 0.0,
            "observation_noise": 1e-3,
        },
        {
            "fit": not_fits,
            "num_draws": not_count(1),
            "y": bad_grid["y"],
            "times": not_numbers,
            "step": not_positive,
        },
        try_good=False,
    ),
]

# ------------------------------------------------------------------------------------------------ exceedance

DURATIONS = np.array([1.0, 2.5, 0.7, 4.0])
interval_fit = types.SimpleNamespace(posterior={"mean_interval": jnp.array([[4.0, 5.0]])})
bad_law = {
    "covariance": st.one_of(words, st.integers(), st.builds(object)),
    "level": st.one_of(not_finite, words, above(4.1), below(-4.1)),
    "mean_interval": not_positive,
}


def in_double(call: Callable[..., Any]) -> Callable[..., Any]:
    def within(**arguments: Any) -> Any:
        with jax.enable_x64(True):
            return call(**arguments)

    return within


exceedance_cases = [
    Case(
        "exceedance.excursions",
        exceedance.excursions,
        {"path": np.array([1.0, 1.0, -1.0, -3.0, 1.0, 2.0])},
        {
            "path": st.one_of(
                poisoned(np.array([1.0, -1.0, 2.0]), st.sampled_from([np.inf, -np.inf])),
                shaped((0,), (), (2, 2, 2), (5,)),
                st.sampled_from([np.full(4, np.nan), np.array([True, False]), np.array([1.0, np.nan, 1.0])]),
                not_numbers,
            ),
            "step": not_positive,
            "level": not_finite | not_numbers | shaped((2,)),
            "smooth": not_positive,
        },
        examples=60,
    ),
    Case(
        "exceedance.sign_runs",
        exceedance.sign_runs,
        {"path": np.array([1.0, 1.0, -1.0, -3.0, 1.0, 2.0])},
        {
            "path": st.one_of(
                poisoned(np.array([1.0, -1.0, 2.0]), st.sampled_from([np.inf, -np.inf])),
                shaped((0,), (), (2, 2, 2)),
                st.just(np.full(4, np.nan)),
                not_numbers,
            ),
            "level": not_finite | not_numbers | shaped((2,)),
        },
        examples=60,
    ),
    Case(
        "exceedance.gaussian_paths",
        in_double(exceedance.gaussian_paths),
        {"key": jax.random.key(0), "covariance": covariance.Matern52(), "num_steps": 100, "step": 0.5},
        {
            "covariance": st.one_of(words, st.integers(), st.builds(object)),
            "num_steps": not_count(1),
            "step": not_positive,
            "num_paths": not_count(1),
            "key": words | st.floats(0.1, 0.9),
        },
    ),
    Case(
        "exceedance.durations",
        in_double(traced(exceedance.durations)),
        {"data": DURATIONS},
        {
            "data": st.one_of(
                poisoned(DURATIONS, not_finite | below(0.0, strict=False)),
                shaped((0,), (2, 2, 2)),
                not_numbers,
            ),
            **bad_law,
            "kind": st.one_of(words, shaped((2,)), st.integers(9, 99)),
            "sensor": shaped((2,)),
            "lower": shaped((2,)) | words,
            "hierarchical": st.just(True),
            "subsample_size": not_count(1),
        },
        examples=80,
        try_good=False,
    ),
    Case(
        "exceedance.durations simulated",
        in_double(traced(exceedance.durations)),
        {"num_excursions": 4},
        {"num_excursions": not_count(1)},
        examples=20,
        try_good=False,
    ),
    Case(
        "exceedance.run_lengths",
        in_double(traced(exceedance.run_lengths)),
        {"data": np.array([3, 5, 2]), "step": 0.1},
        {
            "data": st.one_of(
                poisoned(np.array([3, 5, 2]), not_finite | below(0.0, strict=False) | st.floats(0.1, 0.9)),
                shaped((0,), (2, 2, 2)),
                not_numbers,
            ),
            **bad_law,
            "step": not_positive,
            "kind": st.one_of(words, shaped((2,)), st.integers(9, 99)),
            "sensor": shaped((2,)),
            "subsample_size": not_count(1),
        },
        examples=80,
        try_good=False,
    ),
    Case(
        "exceedance.noisy_signs",
        in_double(traced(exceedance.noisy_signs)),
        {"y": np.array([1, 1, 0, 0, 1]), "step": 0.2},
        {
            "y": st.one_of(
                poisoned(np.array([1, 1, 0, 0, 1]), st.sampled_from([np.inf, -1.0, 2.0, 0.5])),
                shaped((0,), (2, 2, 2)),
                not_numbers,
            ),
            **bad_law,
            "step": not_positive,
            "flip": not_probability,
            "num_ages": not_count(1),
        },
        examples=80,
        try_good=False,
    ),
    Case(
        "exceedance.slepian",
        in_double(traced(exceedance.slepian)),
        {"x": np.array([0.1, 0.9]), "times": np.array([0.5, 1.0]), "noise": 0.1, "mean_interval": 4.0},
        {
            "x": st.one_of(
                poisoned(np.zeros(2), st.just(np.inf)), shaped((0,), (3,), (2, 2, 2)), not_numbers
            ),
            "times": st.one_of(
                not_increasing([0.5, 1.0]), below(0.0).map(lambda t: [t, 1.0]), shaped((0,)), not_numbers
            ),
            "covariance": bad_law["covariance"],
            "level": not_finite | not_numbers,
            "direction": st.integers(2, 9) | words,
            "noise": not_positive | st.none(),
            "mean_interval": not_positive,
        },
        examples=60,
        try_good=False,
    ),
    *(
        Case(
            f"exceedance.{ask.__name__}",
            in_double(ask),
            {"fit": interval_fit, "times": [1.0, 5.0], "covariance": covariance.Matern52},
            {
                "fit": not_fits,
                "times": spoiled(np.ones(2), shaped((2, 2)), entries=not_finite | below(-1e-3)),
                "covariance": bad_law["covariance"],
                "level": st.one_of(not_finite, words),
                "side": not_one_of("above", "below"),
            },
            try_good=False,
        )
        for ask in (exceedance.survival, exceedance.persistence, exceedance.hazard)
    ),
    Case(
        "exceedance.longest",
        in_double(exceedance.longest),
        {"fit": interval_fit, "number": 100, "covariance": covariance.Matern52},
        {"fit": not_fits, "number": not_count(1), "seed": not_seed, "covariance": bad_law["covariance"]},
        try_good=False,
    ),
    Case(
        "exceedance.posterior_law",
        in_double(exceedance.posterior_law),
        {"fit": interval_fit, "covariance": covariance.Matern52},
        {
            "fit": not_fits,
            "covariance": bad_law["covariance"],
            "level": st.one_of(not_finite, words),
            "side": not_one_of("above", "below"),
            "sensor": st.integers(0, 3) | words,
        },
        try_good=False,
    ),
    *(
        Case(
            f"covariance.{law.__name__}",
            law,
            {},
            {"scale": not_positive, **{name: not_positive for name in more}},
            examples=30,
        )
        for law, more in (
            (covariance.Diffusion, ["dimension"]),
            (covariance.Matern32, []),
            (covariance.Matern52, []),
            (covariance.RandomAcceleration, []),
            (covariance.RationalQuadratic, ["alpha"]),
            (covariance.SquaredExponential, []),
        )
    ),
    Case(
        "covariance.DampedCosine",
        covariance.DampedCosine,
        {},
        {"scale": not_positive, "frequency": not_finite | not_numbers},
        examples=30,
    ),
    Case(
        "covariance.FromFunction",
        in_double(lambda **given: ExcursionTime(covariance.FromFunction(**given))),
        {"function": lambda x: 1 / jnp.cosh(x)},
        {
            "function": st.one_of(
                not_functions,
                st.floats(0.1, 0.9).map(lambda c: lambda x: c * jnp.exp(-(x**2))),
                st.floats(0.1, 9.0).map(lambda c: lambda x: 1.0 + c * x),
                st.just(lambda x: jnp.ones_like(x)),
                st.just(lambda x: jnp.exp(-jnp.abs(x))),
            ),
            "scale": not_positive,
        },
        examples=30,
    ),
]

CASES = [*jump_cases, *markov_cases, *caliber_cases, *flow_cases, *fractional_cases, *exceedance_cases]
