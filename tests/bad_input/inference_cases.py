"""The engines, what is asked of a model or a fit, the diagnostics and the command line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from hypothesis import strategies as st
from numpyro.contrib.control_flow import scan
from numpyro.infer import NUTS

import sojourn as sj
from sojourn import diagnostics, inference
from sojourn.cli import main
from sojourn.diagnostics._arviz import container
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
    not_positive_or_infinite,
    not_probability,
    not_seed,
    poisoned,
    shaped,
    spoiled,
    words,
)


def walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def coin(tosses):
    p = numpyro.sample("p", dist.Beta(1.0, 1.0))
    numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)


def level(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("time", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


Y = np.array([0.1, 0.9, 1.4])
TOSSES = np.array([1, 0, 1, 1])
rng = np.random.default_rng(0)
fitted = container(
    {
        "posterior": xr.Dataset({"mu": (("chain", "draw"), rng.normal(size=(2, 50)))}),
        "posterior_predictive": xr.Dataset({"y": (("chain", "draw", "time"), rng.normal(size=(2, 50, 3)))}),
        "observed_data": xr.Dataset({"y": ("time", Y)}),
    },
    {"engine": "nuts"},
)
bad_coins = st.one_of(
    st.sampled_from([np.array([]), np.array([2, 0, 1]), np.array([-1, 0])]),
    poisoned(np.array([1.0, 0.0, 1.0]), st.sampled_from([np.inf, 0.5, -1.0, 7.0])),
)
bad_walks = st.one_of(shaped((0,)), poisoned(Y, st.sampled_from([np.inf, -np.inf])))

# ------------------------------------------------------------------------------- engines, before they see a model

run_lengths = {
    "step_size": not_positive,
    "max_num_steps": not_count(1),
    "target_accept_prob": not_open_probability,
}
whose_particles = {
    "num_particles": not_count(2),
    "resampling": not_one_of("systematic"),
    "ess_threshold": st.one_of(below(0.0), above(1.0), st.just(np.nan), not_numbers),
}
RING = np.roll(np.eye(5), 1, axis=0) + np.roll(np.eye(5), -1, axis=0)
bad_graph = st.one_of(
    shaped((5,), (4, 5), (1, 1), (0, 0), ()), poisoned(RING, not_finite | below(-0.1)), not_numbers
)

engine_cases = [
    Case(
        "MALT",
        inference.MALT,
        {"model": coin},
        {"friction": not_positive, "trajectory_length": not_positive, **run_lengths, "model": not_functions},
        examples=80,
    ),
    Case(
        "MCLMC",
        inference.MCLMC,
        {"model": coin},
        {
            "energy_variance": not_positive,
            "tuning_steps": not_count(100),
            "max_num_steps": not_count(1),
            "model": not_functions,
        },
        examples=60,
    ),
    Case(
        "AdjustedMCLMC",
        inference.AdjustedMCLMC,
        {"model": coin},
        {
            "target_accept_prob": not_open_probability,
            "num_integration_steps": st.one_of(below(1.1, strict=False), not_finite, not_numbers),
            "tuning_steps": not_count(100),
            "model": not_functions,
        },
        examples=60,
    ),
    Case(
        "UnderdampedLangevin",
        inference.UnderdampedLangevin,
        {"model": coin},
        {
            "solver": not_one_of("quicsort", "baoab"),
            "step": not_one_of("constant", "adaptive"),
            "friction": not_positive,
            "trajectory_length": not_positive,
            "tolerance": not_positive,
            "step_size": not_positive,
            "max_num_steps": not_count(1),
            "model": not_functions,
        },
        examples=80,
    ),
    Case(
        "StochasticGradientLangevin",
        inference.StochasticGradientLangevin,
        {"model": coin},
        {
            "step_size": not_positive.filter(lambda value: not callable(value)),
            "method": not_one_of("sgnht", "sgld", "sghmc"),
            "steps_per_draw": not_count(1),
            "friction": not_open_probability,
            "temperature": not_positive,
            "scale": not_positive.filter(lambda value: not isinstance(value, dict)),
            "model": not_functions,
        },
        examples=80,
    ),
    Case(
        "SelfRepellentWalk",
        inference.SelfRepellentWalk,
        {"model": coin},
        {
            "alpha": negative,
            "step_exponent": st.one_of(below(0.5, strict=False), above(1.0), not_finite, not_numbers),
            "adjacency": bad_graph.filter(lambda graph: np.shape(graph) != (1, 1)),
            "max_states": not_count(2),
            "model": not_functions,
        },
        examples=80,
    ),
    Case(
        "TokenWalk",
        inference.TokenWalk,
        {"adjacency": RING},
        {
            "adjacency": bad_graph,
            "alpha": negative,
            "step_exponent": st.one_of(below(0.5, strict=False), above(1.0), not_finite, not_numbers),
        },
        examples=80,
    ),
    Case(
        "ParticleGibbs",
        inference.ParticleGibbs,
        {"model": walk},
        {
            "num_particles": not_count(2),
            "inner_kernel": st.one_of(st.builds(lambda: NUTS(coin)), st.integers(), words),
            "interweave": st.integers(3, 9) | st.floats(0.1, 0.9),
            "path": not_one_of("auto", "ancestor", "backward", "genealogy"),
            "resampling": not_one_of("systematic"),
            "ess_threshold": whose_particles["ess_threshold"],
            "model": not_functions,
        },
        examples=80,
    ),
    Case(
        "ConditionalSMC",
        inference.ConditionalSMC,
        {"model": walk},
        {**whose_particles, "path": not_one_of("auto"), "memory": not_count(1), "model": not_functions},
        examples=80,
    ),
    Case(
        "ParticleMarginal",
        inference.ParticleMarginal,
        {"model": walk},
        {
            **whose_particles,
            "correlation": st.one_of(below(-1.0), above(1.0), st.just(np.nan), not_numbers),
            "target_accept_prob": not_open_probability,
            "step_size": not_positive,
            "model": not_functions,
        },
        examples=80,
    ),
    Case("BlockedGibbs", inference.BlockedGibbs, {"model": walk}, {"model": not_functions}, examples=15),
    Case(
        "PathGuide",
        inference.PathGuide,
        {"model": walk},
        {
            "model": not_functions,
            "encoder": not_one_of("conv", "gru", "mlp").filter(lambda value: not callable(value)),
            "control": not_one_of("network"),
            "scale": not_one_of("free"),
            "width": not_count(1),
            "depth": not_count(1),
            "context_size": not_count(1),
            "data": not_functions,
            "seed": not_seed,
        },
        examples=80,
    ),
    Case(
        "PseudoObservationGuide",
        inference.PseudoObservationGuide,
        {"model": walk},
        {
            "model": not_functions,
            "encoder": not_one_of("conv", "gru", "mlp").filter(lambda value: not callable(value)),
            "width": not_count(1),
            "data": not_functions,
            "seed": not_seed,
        },
        examples=60,
    ),
    Case(
        "MaximumAPosteriori",
        inference.MaximumAPosteriori,
        {},
        {"num_restarts": not_count(1), "max_steps": not_count(1), "tolerance": not_positive},
        examples=60,
    ),
    Case(
        "Variational",
        inference.Variational,
        {},
        {
            "guide": not_functions.filter(lambda value: not isinstance(value, str)),
            "num_restarts": not_count(1),
            "num_particles": not_count(1),
            "step_size": not_positive,
            "block_size": not_count(1),
            "max_steps": not_count(1),
            "tolerance": negative,
        },
        examples=80,
    ),
    Case(
        "ScoreAscent",
        inference.ScoreAscent,
        {},
        {
            "optimizer": not_fits.filter(lambda value: value is not None),
            "estimator": not_one_of("ppg", "paris"),
            "num_particles": not_count(2),
            "num_sweeps": not_count(1),
            "num_steps": not_count(1),
            "average": st.one_of(below(0.0, strict=False), above(1.0), not_finite, not_numbers),
            "num_information_sweeps": not_count(2),
            "num_backward": not_count(2),
            "backward": not_one_of("auto"),
            "num_tries": not_count(1),
            "start": st.integers(3, 9) | words,
        },
        examples=80,
    ),
    Case(
        "Checkpoint",
        inference.Checkpoint,
        {"path": "/tmp/a folder that is not there"},
        {
            "path": st.integers(3, 9) | st.floats(0.1, 0.9) | st.none(),
            "every": st.one_of(below(0.0), st.just(np.nan), not_numbers),
            "every_draws": not_count(1),
        },
    ),
    Case(
        "Keep",
        inference.Keep,
        {"summarise": ["x"]},
        {
            "sites": st.integers(3, 9) | st.just([3]) | st.just(["x"]),
            "summarise": st.integers(3, 9) | st.just([3]),
            "thinning": not_count(1),
            "quantiles": st.one_of(
                st.just([0.5, 0.1]),
                poisoned(np.array([0.1, 0.5]), not_finite | above(1.0) | below(0.0)),
                not_numbers,
            ),
        },
        examples=60,
    ),
]

# ------------------------------------------------------------------------------------ questions to a model


def of_walk(ask: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    def call(model: Any = walk, y: Any = Y, **given: Any) -> Any:
        return ask(model, y, **{**settings, **given})

    return call


SCALE = {"scale": 0.5}
bad_parameters = st.one_of(
    st.just({}),
    st.just({"scale": 0.5, "other": 1.0}),
    st.just({"scale": "wide"}),
    st.just({"scale": np.ones(3)}),
    st.integers(3, 9),
    words,
    st.just({"scale": np.nan}),
)
kernel_options = {
    **whose_particles,
    "parameters": bad_parameters,
    "seed": not_seed,
    "guide": st.integers(3, 9) | words,
    "scan": words | st.integers(3, 9) | st.floats(0.1, 0.9),
}
model_cases = [
    Case(
        "particle_filter",
        of_walk(inference.particle_filter, num_particles=5),
        {"parameters": SCALE},
        {
            **kernel_options,
            "model": not_functions,
            "y": bad_walks,
            "num_draws": not_count(1),
            "horizon": not_count(0),
            "quantiles": st.one_of(st.just([1.5]), st.just([-0.5]), st.just([np.nan]), not_numbers),
            "fit": not_fits.filter(lambda value: value is not None),
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "one_step_ahead",
        of_walk(inference.one_step_ahead, num_particles=5, num_draws=5),
        {"parameters": SCALE},
        {
            **kernel_options,
            "model": not_functions,
            "y": bad_walks,
            "num_draws": not_count(1),
            "method": not_one_of("auto"),
            "fit": not_fits.filter(lambda value: value is not None),
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "particle_log_likelihood",
        of_walk(inference.particle_log_likelihood),
        {},
        {
            **{
                k: kernel_options[k]
                for k in ("num_particles", "resampling", "ess_threshold", "guide", "scan")
            },
            "gradient": not_one_of("score", "pathwise"),
            "model": not_functions,
            "y": shaped((0,)),
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "paris",
        of_walk(inference.paris, num_particles=5),
        {"parameters": SCALE, "functional": lambda x, x_next, y, t: x_next},
        {
            "functional": words | st.integers(3, 9),
            "parameters": bad_parameters,
            "num_particles": not_count(2),
            "num_backward": not_count(2),
            "backward": not_one_of("auto"),
            "num_tries": not_count(1),
            "num_repeats": not_count(1),
            "seed": not_seed,
            "model": not_functions,
            "y": shaped((0,)),
        },
        examples=50,
        try_good=False,
    ),
    Case(
        "ppg",
        of_walk(inference.ppg, num_particles=5),
        {"parameters": SCALE, "functional": "score"},
        {
            "functional": words | st.integers(3, 9),
            "parameters": bad_parameters,
            "num_particles": not_count(2),
            "num_sweeps": not_count(1),
            "num_burn": not_count(0),
            "num_repeats": not_count(1),
            "seed": not_seed,
            "model": not_functions,
        },
        examples=30,
        try_good=False,
    ),
    Case(
        "read_scan",
        of_walk(inference.read_scan),
        {},
        {
            "model": st.one_of(not_functions, st.just(level)),
            "scan": kernel_options["scan"],
            "y": shaped((0,)),
        },
        examples=30,
    ),
    Case(
        "marginalize",
        lambda model: inference.marginalize(model),
        {"model": walk},
        {"model": not_functions},
        examples=15,
    ),
    Case(
        "decode_paths",
        lambda **given: inference.decode_paths(given.pop("fit"), given.pop("model"), Y, **given),
        {"fit": fitted, "model": walk},
        {
            "fit": not_fits,
            "model": st.one_of(not_functions, st.just(walk)),
            "num_draws": not_count(1),
            "seed": not_seed,
        },
        examples=30,
        try_good=False,
    ),
    Case(
        "trained_model",
        inference.trained_model,
        {"model": walk, "fit": fitted},
        {"model": not_functions, "fit": not_fits},
        examples=30,
        try_good=False,
    ),
    Case("whole_data", inference.whole_data, {"fn": level}, {"fn": not_functions}, examples=15),
    Case(
        "diagnose_model",
        lambda **given: inference.diagnose_model(given.pop("model"), TOSSES, **given),
        {"model": coin},
        {"model": not_functions, "num_draws": not_count(1), "seed": not_seed},
        examples=30,
        try_good=False,
    ),
    Case(
        "calibrate",
        lambda **given: sj.calibrate(given.pop("model"), TOSSES, progress_bar=False, **given),
        {"model": coin},
        {
            "model": not_functions,
            "engine": not_one_of("nuts"),
            "num_simulations": not_count(1),
            "num_samples": not_count(1),
            "num_warmup": not_count(0),
            "num_ranked": not_count(1),
            "seed": not_seed,
        },
        examples=40,
        try_good=False,
    ),
    Case(
        "leave_future_out",
        lambda **given: sj.leave_future_out(
            given.pop("model"), given.pop("data"), progress_bar=False, **given
        ),
        {"model": level, "data": np.arange(8.0), "first": 5},
        {
            "model": not_functions,
            "data": st.one_of(shaped((0,), ()), words, st.none()),
            "first": st.one_of(not_count(1), st.integers(8, 99)),
            "horizon": st.one_of(not_count(1), st.integers(4, 99)),
            "engine": not_one_of("nuts"),
            "khat": st.just(np.nan) | not_numbers,
            "truncate": not_one_of("auto", "missing", "cut"),
            "num_draws": not_count(1),
            "num_particles": not_count(2),
            "method": not_one_of("auto"),
            "num_samples": not_count(1),
            "num_chains": not_count(1),
            "seed": not_seed,
        },
        examples=60,
        try_good=False,
    ),
    Case(
        "fit",
        lambda **given: sj.fit(given.pop("model"), given.pop("tosses"), progress_bar=False, **given),
        {"model": coin, "tosses": TOSSES, "num_samples": 5, "num_warmup": 5, "num_chains": 1},
        {
            "model": not_functions,
            "tosses": bad_coins,
            "engine": not_one_of("nuts").filter(lambda value: not callable(value)),
            "num_samples": not_count(1),
            "num_warmup": not_count(0),
            "num_chains": not_count(1),
            "seed": not_seed,
            "warm_start": st.one_of(
                st.integers(3, 9),
                words,
                st.just({"q": dist.Normal(0.0, 1.0)}),
                st.just({"p": 3.0}),
                st.just({"p": dist.Normal(jnp.zeros(3), 1.0)}),
            ),
            "checkpoint": st.integers(3, 9) | st.floats(0.1, 0.9),
            "keep": st.one_of(st.integers(3, 9), st.just([3]), st.just(["q"])),
            "chain_method": not_one_of("auto", "parallel", "sequential", "vectorized"),
            "shard": not_one_of("chains", "particles").filter(lambda value: value != "data"),
        },
        examples=50,
        try_good=False,
    ),
    Case(
        "fit_many",
        lambda **given: sj.fit_many(given.pop("model"), given.pop("datasets"), progress_bar=False, **given),
        {"model": level, "datasets": [np.arange(3.0), np.arange(4.0)]},
        {
            "model": not_functions,
            "datasets": st.one_of(st.just([]), st.integers(), words, st.none()),
            "engine": not_one_of("nuts").filter(lambda value: not callable(value)),
            "num_samples": not_count(1),
            "num_warmup": not_count(0),
            "num_chains": not_count(1),
            "seed": not_seed,
        },
        examples=40,
        try_good=False,
    ),
    Case(
        "amortized_jump_process",
        inference.amortized_jump_process,
        {"y": np.array([[0, 1, 1, 0], [1, 1, 0, 0]]), "times": np.array([0.0, 0.5, 1.5, 2.0])},
        {
            "y": st.one_of(
                shaped((2, 3), (0,), (2, 2, 4)),
                poisoned(np.array([[0, 1, 1, 0]]), st.sampled_from([np.inf, -1.0, 0.5, 99.0])),
                not_numbers,
            ),
            "times": st.one_of(
                not_increasing([0.0, 0.5, 1.5, 2.0]), shaped((0,), (3,), (2, 2, 2)), not_numbers
            ),
            "num_states": not_count(2) | st.integers(9, 99),
            "mask": shaped((3,), (5, 5)) | words,
            "lengths": st.integers(5, 9) | words | shaped((3,)),
        },
        examples=80,
        try_good=False,
    ),
]

RETURNS = np.array([0.0, 1.0, 3.0])
bad_returns = spoiled(RETURNS, shaped((0,), (2,), (3, 1)))
bad_lengths = st.one_of(
    poisoned(np.array([1, 2, 1]), not_finite | below(0.0, strict=False) | st.floats(0.1, 0.9)),
    shaped((2,), (0,)),
    not_numbers,
)
weight_cases = [
    Case(
        "return_weights",
        inference.return_weights,
        {"returns": RETURNS, "lengths": [1, 2, 1]},
        {"returns": bad_returns, "lengths": bad_lengths, "temperature": not_positive_or_infinite},
        examples=60,
    ),
    Case(
        "advantage_weights",
        inference.advantage_weights,
        {"returns": RETURNS, "lengths": [1, 2, 1], "initial_observations": [0.0, 0.0, 1.0]},
        {
            "returns": bad_returns,
            "lengths": bad_lengths,
            "initial_observations": spoiled(RETURNS, shaped((2,), (0,))),
            "temperature": not_positive_or_infinite,
        },
        examples=60,
    ),
    Case(
        "top_fraction_weights",
        inference.top_fraction_weights,
        {"returns": RETURNS, "lengths": [1, 2, 1]},
        {
            "returns": bad_returns,
            "lengths": bad_lengths,
            "fraction": st.one_of(below(0.0, strict=False), above(1.0), not_finite, not_numbers),
        },
        examples=60,
    ),
    Case(
        "positive_sided_variance",
        inference.positive_sided_variance,
        {"returns": RETURNS},
        {"returns": spoiled(RETURNS, shaped((0,)))},
        examples=30,
    ),
    Case(
        "effective_sample_size",
        inference.effective_sample_size,
        {"weights": np.ones(4)},
        {
            "weights": spoiled(
                np.ones(4), shaped((0,)), st.just(np.zeros(4)), entries=not_finite | below(-1e-3)
            ),
            "lengths": st.one_of(st.just([1, 1]), shaped((0,)), not_numbers),
        },
        examples=40,
    ),
    Case(
        "weighted",
        inference.weighted,
        {"model": level, "weights": np.ones(4), "plate": "time"},
        {
            "model": not_functions,
            "weights": spoiled(
                np.ones(4), shaped((0,)), st.just(np.zeros(4)), entries=not_finite | below(-1e-3)
            ),
            "plate": st.integers() | st.none(),
            "at": not_one_of("effective", "sum", "mean").filter(
                lambda value: not isinstance(value, int | float)
            ),
        },
        examples=40,
    ),
]

# ---------------------------------------------------------------------------------------------- diagnostics

DRAWS = rng.normal(size=(20, 3))
diagnostic_cases = [
    Case("check", diagnostics.check, {"fit": fitted}, {"fit": not_fits}, examples=30),
    Case(
        "report",
        diagnostics.report,
        {"fit": fitted, "path": "/tmp/no such folder/page.html"},
        {
            "fit": not_fits,
            "path": st.integers(3, 9) | st.none(),
            "var_names": st.lists(words, min_size=1, max_size=2) | st.integers(),
            "sections": st.integers() | st.just([3]) | words,
        },
        examples=40,
        try_good=False,
    ),
    Case(
        "relabel",
        diagnostics.relabel,
        {"fit": fitted},
        {
            "fit": st.one_of(not_fits, st.just(fitted)),
            "label_dims": st.lists(words, min_size=1, max_size=2) | st.integers(),
        },
        examples=30,
        try_good=False,
    ),
    Case(
        "score",
        diagnostics.score,
        {"fit": fitted},
        {
            "fit": not_fits,
            "var_name": words | st.integers(),
            "observed": st.one_of(
                st.just({"y": np.ones(2)}), st.just({"z": np.ones(3)}), st.integers(), words
            ),
            "intervals": st.one_of(st.just([1.5]), st.just([-0.1]), st.just([np.nan]), not_numbers),
            "seed": not_seed,
        },
        examples=60,
    ),
    Case(
        "crps",
        diagnostics.crps,
        {"draws": DRAWS, "observed": Y},
        {
            "draws": spoiled(DRAWS, shaped((1, 3), (20, 2), (0, 3), ())),
            "observed": st.one_of(shaped((2,), (20, 3)), not_numbers),
            "weights": spoiled(np.ones(20), shaped((3,)), entries=not_finite | below(-1e-3)),
        },
        examples=60,
    ),
    Case(
        "interval_coverage",
        diagnostics.interval_coverage,
        {"draws": DRAWS, "observed": Y},
        {
            "draws": spoiled(DRAWS, shaped((1, 3), (20, 2), (0, 3), ())),
            "observed": st.one_of(shaped((2,), (20, 3)), not_numbers),
            "intervals": st.one_of(
                st.just([]), poisoned(np.array([0.5, 0.9]), not_finite | above(1.0) | below(0.0)), not_numbers
            ),
            "weights": spoiled(np.ones(20), shaped((3,)), entries=not_finite | below(-1e-3)),
        },
        examples=60,
    ),
    Case(
        "log_score",
        diagnostics.log_score,
        {"log_likelihood": -(DRAWS**2)},
        {
            "log_likelihood": st.one_of(not_numbers, shaped((0, 3), ())),
            "weights": spoiled(np.ones(20), shaped((3,)), entries=not_finite | below(-1e-3)),
        },
        examples=40,
    ),
    Case(
        "Calibration",
        diagnostics.Calibration,
        {"ranks": xr.Dataset({"mu": ("simulation", np.array([0, 5, 9]))}), "num_draws": 9},
        {
            "ranks": st.one_of(
                not_fits,
                st.just(xr.Dataset({"mu": ("other", np.array([0, 5]))})),
                st.integers(10, 99).map(lambda n: xr.Dataset({"mu": ("simulation", np.array([0, n]))})),
                st.integers(-99, -1).map(lambda n: xr.Dataset({"mu": ("simulation", np.array([0, n]))})),
            ),
            "num_draws": not_count(1),
        },
        examples=40,
    ),
    Case(
        "Section",
        diagnostics.Section,
        {"title": "A", "body": "text"},
        {"body": st.integers() | st.builds(object) | st.none()},
        examples=15,
    ),
    Case(
        "plot_states",
        diagnostics.plot_states,
        {"states": None, "observed": xr.DataArray(Y, dims="time")},
        {"states": not_fits, "observed": not_fits},
        examples=20,
        try_good=False,
    ),
]


def command(arguments: Any) -> None:
    """The parser says what is wrong on the standard error stream, and leaves with status 2."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main(arguments)
    except SystemExit as left:
        last = said.getvalue().strip().splitlines()[-1]
        if left.code != 2 or "error: " not in last:
            raise AssertionError(f"left with status {left.code}: {last}") from None
        return
    raise AssertionError("accepted")


not_whole = st.one_of(words, st.floats(0.1, 0.9).map(str), st.integers(-99, 0).map(str))
COMMANDS = st.one_of(
    st.just([]),
    words.map(lambda w: [w]),
    words.map(lambda w: ["demo", w]),
    words.map(lambda w: ["demo", f"--{w}"]),
    not_whole.map(lambda n: ["demo", "--num-samples", n]),
    not_whole.map(lambda n: ["demo", "--num-warmup", n]),
    words.map(lambda w: ["demo", "--seed", w]),
    st.just(["run"]),
    not_whole.map(lambda n: ["run", "--processes", n, "script.py"]),
    not_whole.map(lambda n: ["run", "--devices", n, "script.py"]),
)

CASES = [*engine_cases, *model_cases, *weight_cases, *diagnostic_cases]
_ = (misshapen, not_probability)
