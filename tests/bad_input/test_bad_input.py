"""Bad input ends in one sentence of ours: never in a traceback of JAX, a hang, or a result that is NaN.

Each case is a public function with a call that is right; of each of its arguments hypothesis draws values that the
contract refuses, one argument at a time. The judge (``values.complaint``) accepts a ``ValueError``, ``TypeError``,
``RuntimeError`` or ``NotImplementedError`` that a ``raise`` in this package made, with a message that is a sentence.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sojourn as sj
from tests.bad_input import distribution_cases, inference_cases, model_cases
from tests.bad_input.values import Case, complaint, no_hang

CASES = {
    case.name: case for module in (model_cases, distribution_cases, inference_cases) for case in module.CASES
}
RUN: Counter[str] = Counter()
TWO_THOUSAND = 2000


def refused(case: Case, max_examples: int) -> None:
    """Draw bad values for one argument at a time; each has to be refused."""

    # Building arrays inside composite strategies is slow by hypothesis's measure, not by ours; and a case may
    # compile something at its first example.
    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(data=st.data())
    def run(data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(case.bad)), "argument")
        value = data.draw(case.bad[name], "value")
        RUN[case.name] += 1
        wrong = complaint(case.call, {**case.good, name: value})
        assert not wrong, f"{case.name}({name}={value!r}): {wrong}"

    run()


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_a_sentence(name: str) -> None:
    case = CASES[name]
    refused(case, case.examples)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_times_as_much_bad_input_is_refused(name: str) -> None:
    case = CASES[name]
    refused(case, 10 * case.examples)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.try_good])
def test_the_other_arguments_are_right(name: str) -> None:
    """Else the input would be refused for a reason of its own."""
    with no_hang():
        CASES[name].call(**CASES[name].good)


TRACED = {
    "jump_process.free": "rates",
    "jump_process.reversible": "exchange stationary",
    "jump_process.arrhenius": "energy barrier",
    "jump_process.driven_cycle": "energy affinity",
    "jump_process.birth_death": "birth death",
    "jump_process.flashing_ratchet": "potential switching diffusion",
    "jump_process.normal": "y",
    "hidden_markov.normal": "y",
    "hidden_markov.stationary": "transition",
    "maximum_caliber.averages": "tilt rate_matrix dwell",
    "maximum_caliber.finite_time_free_energy": "duration",
    "maximum_caliber.green_kubo": "rate_matrix dwell",
    "maximum_caliber.maximum_entropy": "tilt features",
    "maximum_caliber.long_run_averages": "average duration",
    "fractional_sde.linear": "y hurst rate observation_noise",
    "exceedance.slepian": "x noise mean_interval",
    "distributions.HiddenMarkov": "initial transition",
    "distributions.PanelJumpProcess": "rate_matrix initial",
    "distributions.LinearGaussian": "transition observation_covariance",
    "distributions.FractionalGaussianNoise": "hurst",
    "distributions.NoisySigns": "hazard",
    "distributions.CompetingLaws": "hazard change",
    "distributions.LogLinearLaws": "weight frame",
    "laws.one_of": "p",
}
"""Arguments that the caller's program may be compiled for."""


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n, names in TRACED.items() for a in names.split()])
def test_of_a_traced_argument_nothing_is_asked_but_its_shape(name: str, argument: str) -> None:
    case = CASES[name]

    def call(value):
        return [jnp.asarray(leaf) for leaf in jax.tree.leaves(case.call(**{**case.good, argument: value}))]

    assert jax.eval_shape(call, jnp.asarray(case.good[argument], float))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(arguments=inference_cases.COMMANDS)
def test_a_bad_command_leaves_with_a_sentence_and_status_two(arguments: list[str]) -> None:
    RUN["command line"] += 1
    inference_cases.command(arguments)


# ------------------------------------------------------------------------------------------------- coverage

NO_BAD_INPUT = {
    # results and types, which the package makes itself
    "AmortizedJumpProcess", "Check", "ChainOptions", "Driven", "Effect", "Environment", "Finding", "IIAInvalidError",
    "KINDS", "Law", "LawRows", "LeaveFutureOut", "ManyFits", "ModelDiagnosis", "Outcome", "Policy", "ProcessOptions", "Proposer",
    "Ranking", "Routed", "RoutedSeries", "ScanModel", "ScanStructure", "Score", "State", "StateSpace", "Transitions",
    "Validity", "Covariance", "Hidden", "SHAPE_PRIORS",
    # without arguments
    "anywhere", "clemson_temperatures", "crafter_laws", "earthquakes", "lynx", "meadow_laws", "meadow_space", "nile",
    "old_faithful", "prothr", "sp500", "sp500_ohlc", "wrong_crafter_laws", "wrong_meadow_laws",
    # called by the package itself, or with whatever a law writes
    "crafter_refresh", "marginalizable", "when", "TextProposer",
    # the same questions as `decode`, of a fit that takes seconds
    "expected_statistics", "sample_paths",
    # modules
    "covariance", "datasets", "distributions", "exceedance", "fractional_sde", "hidden_markov", "hooks", "jump_process",
    "langevin_flow", "maximum_caliber", "models",
}  # fmt: skip


def test_every_public_name_is_tried() -> None:
    public = [sj, sj.inference, sj.diagnostics, sj.distributions, sj.datasets, sj.models, sj.environments]
    public += [getattr(sj.models, name) for name in sj.models.__all__]
    public += [sj.models.laws, sj.environments.hooks]
    tried = {name.split(" ")[0].split(".")[-1] for name in CASES}
    for module in public:
        left = {n for n in module.__all__ if n not in tried and n not in NO_BAD_INPUT}
        assert not left, f"{module.__name__}: {sorted(left)} are not tried with bad input"


def test_two_thousand_bad_inputs_were_tried() -> None:
    """The last test of the file, which runs in one process: how many the tests before it have tried."""
    if not set(CASES) <= set(RUN):
        pytest.skip("only some of the cases were chosen")
    assert RUN.total() >= TWO_THOUSAND, RUN
