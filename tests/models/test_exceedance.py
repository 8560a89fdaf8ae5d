"""The models of excursions: their sites, their densities, what they refuse, and the questions asked of a fit."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
import xarray as xr
from jax import Array
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

import sojourn as sj
from sojourn.diagnostics import _arviz
from sojourn.distributions import KINDS, CensoredExcursion, ExcursionTime, LevelExcursionTime, SignRuns
from sojourn.models import exceedance
from sojourn.models.covariance import (
    Covariance,
    DampedCosine,
    Diffusion,
    Matern32,
    Matern52,
    RationalQuadratic,
    SquaredExponential,
)
from sojourn.ops.excursion import clipped_slepian
from sojourn.ops.switching_renewal import next_state

RNG = np.random.default_rng(5)
GAPS = RNG.gamma(2.0, 3.0, 12)
KIND = np.array([4, 0, 0, 0, 1, 5, 0, 0, 0, 3, 0, 2])
SIDE = np.where(np.arange(12) % 3 == 1, 1, -1)
LOWER = np.where(KIND == 3, GAPS / 2, np.nan)
SENSOR = np.array([0] * 5 + [1] * 3 + [2] * 4)
LENGTHS = np.array([3, 1, 8, 2, 2, 5, 11, 1, 4, 6, 9, 2])
D2 = Diffusion(2.0)
DURATIONS = xr.Dataset(
    {name: ("excursion", x) for name, x in (("duration", GAPS), ("kind", KIND), ("side", SIDE))},
    attrs={"level_in_sd": 0.02},
).assign(kind=("excursion", np.where(KIND == 3, 0, KIND)))


class TwoScales(Covariance):
    share: Array

    def correlation(self, x):
        return self.share * jnp.exp(-(x**2) / 2) + (1 - self.share) * jnp.exp(-(x**2) / 18)


def two_scales():
    return TwoScales(numpyro.sample("share", dist.Beta(20.0, 2.0)))


def sites_of(model, *args, **kwargs):
    """The sites, without compiling anything: name -> (shape, names of its plates)."""
    plates = {}

    def run(key):
        trace = handlers.trace(handlers.seed(model, key)).get_trace(*args, **kwargs)
        found = {n: s for n, s in trace.items() if s["type"] in ("sample", "deterministic")}
        plates.update({n: [f.name for f in s.get("cond_indep_stack", [])] for n, s in found.items()})
        return {n: s["value"] for n, s in found.items()}

    shapes = jax.eval_shape(run, jax.random.key(0))
    return {name: (value.shape, plates[name]) for name, value in shapes.items()}


def trace_of(model, *args, **kwargs):
    """Sites with their distributions; for what is known before compilation."""
    found = {}

    def run(key):
        found.update(handlers.trace(handlers.seed(model, key)).get_trace(*args, **kwargs))
        return ()

    jax.eval_shape(run, jax.random.key(0))
    return found


def density(model, *args, **kwargs):
    """Jitted function from latent values to the joint log-density."""
    return jax.jit(lambda values: log_density(model, args, kwargs, values)[0])


# ----------------------------------------------------------------------------------------------------------- sites

SCALAR = ((), [])
SITES = {
    "durations": (
        functools.partial(exceedance.durations, GAPS),
        {
            "dimension": SCALAR,
            "mean_interval": SCALAR,
            "persistency_exponent": SCALAR,
            "duration": ((12,), ["excursion"]),
        },
    ),
    "a dataset": (
        functools.partial(exceedance.durations, DURATIONS, covariance=Matern52),
        {"mean_interval": SCALAR, "persistency_exponent": SCALAR, "duration": ((12,), ["excursion"])},
    ),
    "all fixed": (
        functools.partial(exceedance.durations, GAPS, covariance=D2, mean_interval=5.0, name="gap"),
        {"persistency_exponent": SCALAR, "gap": ((12,), ["excursion"])},
    ),
    "a level": (
        functools.partial(exceedance.durations, GAPS, level=0.5, side=SIDE, kind=KIND, lower=LOWER),
        {
            "dimension": SCALAR,
            "mean_interval": SCALAR,
            "persistency_exponent_above": SCALAR,
            "persistency_exponent_below": SCALAR,
            "duration_above": ((4,), ["excursion_above"]),
            "duration_below": ((8,), ["excursion_below"]),
        },
    ),
    "a level, one side": (
        functools.partial(
            exceedance.durations, GAPS, level="free", side="above", covariance=SquaredExponential
        ),
        {
            "level": SCALAR,
            "mean_interval": SCALAR,
            "persistency_exponent_above": SCALAR,
            "duration_above": ((12,), ["excursion_above"]),
        },
    ),
    "a hierarchy": (
        functools.partial(exceedance.durations, GAPS, hierarchical=True, sensor=SENSOR),
        {
            "dimension": SCALAR,
            "mean_interval": SCALAR,
            "mean_interval_sd": SCALAR,
            "sensor_effect": ((3,), ["sensor"]),
            "sensor_mean_interval": ((3,), ["sensor"]),
            "persistency_exponent": ((3,), ["sensor"]),
            "duration": ((12,), ["excursion"]),
        },
    ),
    "a hierarchy at a level": (
        functools.partial(
            exceedance.durations, GAPS, hierarchical=True, sensor=SENSOR, level=0.2, side=SIDE, covariance=D2
        ),
        {
            "mean_interval": SCALAR,
            "mean_interval_sd": SCALAR,
            "sensor_effect": ((3,), ["sensor"]),
            "sensor_mean_interval": ((3,), ["sensor"]),
            "persistency_exponent_above": ((3,), ["sensor"]),
            "persistency_exponent_below": ((3,), ["sensor"]),
            "duration_above": ((4,), ["excursion_above"]),
            "duration_below": ((8,), ["excursion_below"]),
        },
    ),
    "a minibatch": (
        functools.partial(exceedance.durations, GAPS, subsample_size=5, kind=KIND, lower=LOWER),
        {
            "dimension": SCALAR,
            "mean_interval": SCALAR,
            "persistency_exponent": SCALAR,
            "duration": ((5,), ["excursion"]),
        },
    ),
    "run lengths": (
        functools.partial(exceedance.run_lengths, LENGTHS, step=0.3, level="free", side=SIDE),
        {
            "dimension": SCALAR,
            "mean_interval": SCALAR,
            "level": SCALAR,
            "persistency_exponent_above": SCALAR,
            "persistency_exponent_below": SCALAR,
            "length_above": ((4,), ["excursion_above"]),
            "length_below": ((8,), ["excursion_below"]),
        },
    ),
    "noisy signs": (
        functools.partial(exceedance.noisy_signs, [0, 1, 1, np.nan, 0, 0], step=0.3),
        {
            "dimension": SCALAR,
            "mean_interval": SCALAR,
            "persistency_exponent": SCALAR,
            "flip": SCALAR,
            "y": ((6,), []),
        },
    ),
    "noisy signs, their path": (
        functools.partial(
            exceedance.noisy_signs, [0, 1, 1, 1, 0, 0], step=0.3, path=True, flip=0.1, level=0.5
        ),
        {
            "dimension": SCALAR,
            "mean_interval": SCALAR,
            "persistency_exponent_above": SCALAR,
            "persistency_exponent_below": SCALAR,
            "signed_age": ((6,), []),
            "y": ((6,), []),
        },
    ),
    "slepian": (
        functools.partial(exceedance.slepian, times=[0.1, 1.0, 2.0], noise=dist.HalfNormal(1.0)),
        {
            "dimension": SCALAR,
            "slope": SCALAR,
            "residual": ((3,), []),
            "path": ((3,), []),
            "noise": SCALAR,
            "x": ((3,), []),
        },
    ),
    "slepian, its own time": (
        functools.partial(
            exceedance.slepian, times=[0.1, 1.0], covariance=Matern52, mean_interval=dist.LogNormal(0.0, 1.0)
        ),
        {"mean_interval": SCALAR, "slope": SCALAR, "residual": ((2,), []), "path": ((2,), [])},
    ),
}


@pytest.mark.parametrize("name", SITES)
def test_sites(name, x64):
    model, expected = SITES[name]
    assert sites_of(model) == expected


def test_time_is_a_dimension(x64):
    signs = trace_of(exceedance.noisy_signs, [0, 1, 1, 0], step=0.3)
    assert signs["y"]["infer"]["event_dims"] == ["time"]
    path = trace_of(exceedance.slepian, times=[0.1, 1.0], noise=0.1)
    assert path["x"]["infer"]["event_dims"] == path["residual"]["infer"]["event_dims"] == ["time"]


COVARIANCES = {
    "family without a shape": (Matern52, set()),
    "diffusion": (Diffusion, {"dimension"}),
    "rational quadratic": (RationalQuadratic, {"alpha"}),
    "cosine": (DampedCosine, {"frequency", "iia_valid"}),
    "instance": (D2, set()),
    "instance of any scale": (Matern32(scale=7.0), set()),
    "function": (lambda: Diffusion(numpyro.sample("d", dist.Uniform(1.0, 3.0))), {"d"}),
    "own family": (two_scales, {"share", "iia_valid"}),
    "own family, fixed": (TwoScales(0.9), {"iia_valid"}),
}


@pytest.mark.parametrize("name", COVARIANCES)
def test_a_covariance_is_declared_in_three_ways(name, x64):
    """With sites for its own hyper-parameters; and one that says whether the law exists, where that is not proven."""
    declared, own = COVARIANCES[name]
    found = set(sites_of(exceedance.durations, GAPS, covariance=declared))
    # The covariance of a rational quadratic falls like a power: there is no exponent.
    exponent = set() if name == "rational quadratic" else {"persistency_exponent"}
    assert found == own | exponent | {"mean_interval", "duration"}
    if "iia_valid" in own:
        at_level = sites_of(exceedance.durations, GAPS, covariance=declared, level=0.5, side=SIDE)
        assert {"iia_valid_above", "iia_valid_below"} < set(at_level)


def test_priors(x64):
    """Documented ones, of shapes; of the mean interval around the data's own estimate."""
    for family, priors in exceedance.SHAPE_PRIORS.items():
        trace = trace_of(exceedance.durations, GAPS, covariance=family)
        for site, prior in priors.items():
            assert trace[site]["fn"] is prior
    trace = trace_of(exceedance.durations, GAPS, kind=KIND, lower=LOWER, level="free", side=SIDE)
    assert isinstance(trace["level"]["fn"], dist.Normal)
    prior = trace_of(exceedance.durations, GAPS)["mean_interval"]["fn"]
    assert isinstance(prior, dist.LogNormal)
    assert (float(np.exp(prior.loc)), float(prior.scale)) == (pytest.approx(GAPS.mean()), 1.0)
    # Of time in all, by what ended in it.
    trace = trace_of(exceedance.durations, GAPS, kind=KIND, lower=LOWER)
    assert float(trace["mean_interval"]["infer"]["init"]) == pytest.approx(GAPS.sum() / 10)
    assert float(trace_of(exceedance.durations, num_excursions=2)["mean_interval"]["fn"].loc) == 0.0
    lengths = trace_of(exceedance.run_lengths, LENGTHS, step=0.3)["mean_interval"]
    assert float(np.exp(lengths["fn"].loc)) == pytest.approx(0.3 * LENGTHS.mean())
    mine = dist.Gamma(3.0, 1.0)
    assert trace_of(exceedance.durations, GAPS, mean_interval=mine)["mean_interval"]["fn"] is mine


@pytest.mark.parametrize("sides", ["both", "above", "below"])
@pytest.mark.parametrize("u", [None, 1.0, "free"])
def test_the_prior_of_the_mean_interval_fits_its_data(u, sides, x64):
    """Durations with the means of level one (of level zero, without a level): the median is the mean interval, 5.

    Of one side alone and no level, it is the best that the two can be told apart: a factor of two.
    """
    level = 0.0 if u is None else 1.0
    share = scipy.stats.norm.sf(level)
    mean = {
        "above": 2 * share * 5.0 * np.exp(level**2 / 2),
        "below": 2 * (1 - share) * 5.0 * np.exp(level**2 / 2),
    }
    side = ["above", "below"] * 50 if sides == "both" else [sides] * 100
    data = np.array([mean[s] for s in side])
    found = trace_of(exceedance.durations, data, covariance=D2, level=u, side=side)
    median = float(np.exp(found["mean_interval"]["fn"].loc))
    if u == "free" and sides != "both":
        assert median == pytest.approx(mean[sides])
        assert float(found["level"]["infer"]["init"]) == 0.0
    else:
        assert median == pytest.approx(5.0, rel=1e-6)
        if u == "free":
            assert float(found["level"]["infer"]["init"]) == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------------- densities


@functools.cache
def terms():
    """Of each duration at level zero, under diffusion in two dimensions at a mean interval of five."""
    law = ExcursionTime(D2.with_mean_interval(5.0))
    return np.asarray(jax.jit(lambda: CensoredExcursion(law, KIND, lower=LOWER).log_prob(GAPS))())


def lognormal(x, median, sd):
    return scipy.stats.lognorm.logpdf(x, sd, scale=median)


PRIOR = lognormal(2.0, 2.0, 0.75)


def test_density_of_durations(x64):
    """The sum of the priors and of the terms; and of a minibatch, scaled, over all choices of it."""
    values = {"dimension": jnp.array(2.0), "mean_interval": jnp.array(5.0)}
    prior = PRIOR + lognormal(5.0, GAPS.sum() / 10, 1.0)
    model = functools.partial(exceedance.durations, GAPS, kind=KIND, lower=LOWER)
    assert float(density(model)(values)) == pytest.approx(prior + terms().sum(), rel=1e-9)

    @jax.jit
    def minibatch(chosen):
        part = handlers.substitute(functools.partial(model, subsample_size=4), {"excursion": chosen})
        return log_density(part, (), {}, values)[0]

    parts = [minibatch(np.array(c)) for c in np.arange(12).reshape(3, 4)]
    np.testing.assert_allclose(parts, prior + 3 * terms().reshape(3, 4).sum(1), rtol=1e-9)


def test_density_at_a_level_of_several_sensors(x64):
    mean = 5.0 * np.exp(0.4 * np.array([0.5, -1.0, 0.2]))
    expected = PRIOR + lognormal(5.0, 6.0, 0.5) + scipy.stats.halfnorm.logpdf(0.4, scale=0.5)
    expected += scipy.stats.norm.logpdf([0.5, -1.0, 0.2]).sum() + scipy.stats.norm.logpdf(0.3)

    @jax.jit
    def term(mean, u):
        total = 0.0
        for side, which in (("above", SIDE > 0), ("below", SIDE < 0)):
            law = LevelExcursionTime(D2.with_mean_interval(mean), u, side, index=SENSOR[which])
            total += CensoredExcursion(law, KIND[which], lower=LOWER[which]).log_prob(GAPS[which]).sum()
        return total

    model = density(
        exceedance.durations,
        GAPS,
        kind=[KINDS[k] for k in KIND],
        lower=LOWER,
        level="free",
        side=["above" if s > 0 else "below" for s in SIDE],
        sensor=SENSOR,
        hierarchical=True,
        mean_interval=dist.LogNormal(np.log(6.0), 0.5),
    )
    values = {
        "dimension": 2.0,
        "mean_interval": 5.0,
        "mean_interval_sd": 0.4,
        "sensor_effect": np.array([0.5, -1.0, 0.2]),
        "level": 0.3,
    }
    found = model({name: jnp.asarray(x) for name, x in values.items()})
    assert float(found) == pytest.approx(expected + float(term(mean, 0.3)), rel=1e-9)


def test_density_of_run_lengths(x64):
    kind = np.array([4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    law = SignRuns(ExcursionTime(D2.with_mean_interval(1.1)), 0.3)
    expected = float(jax.jit(lambda law: CensoredExcursion(law, kind).log_prob(LENGTHS * 1.0).sum())(law))
    model = density(exceedance.run_lengths, LENGTHS, step=0.3, covariance=D2, mean_interval=1.1, kind=kind)
    assert float(model({})) == pytest.approx(expected, rel=1e-9)


def paths_of(num_steps, num_ages):
    """Every signed-age path, ``(2 K 2^(T-1), T)``."""
    paths = [np.array([[s * a] for s in (1, -1) for a in range(1, num_ages + 1)])]
    for _ in range(num_steps - 1):
        before = paths[-1]
        nexts = [np.asarray(next_state(before[:, -1], ends, num_ages)) for ends in (True, False)]
        paths.append(np.concatenate([np.column_stack([before, n]) for n in nexts]))
    return paths[-1]


@pytest.mark.parametrize("u", [None, pytest.param(0.7, marks=pytest.mark.slow)])
def test_signs_summed_out(u, x64):
    """The path form, summed over all 192 paths of six readings, is the marginal form; a reading is missing."""
    y = np.array([1.0, 1.0, 0.0, np.nan, 1.0, 0.0])
    options = {"step": 0.3, "covariance": D2, "mean_interval": 1.1, "num_ages": 3, "level": u}
    values = {"flip": jnp.array(0.12)}
    marginal = density(exceedance.noisy_signs, y, **options)(values)
    joint = jax.jit(
        jax.vmap(
            lambda path: log_density(
                exceedance.noisy_signs, (y,), options | {"path": True}, values | {"signed_age": path}
            )[0]
        )
    )(jnp.asarray(paths_of(6, 3)))
    assert len(joint) == 192
    # Of the prior of the flips there is one in each.
    prior = scipy.stats.beta.logpdf(0.12, 1, 19)
    summed = np.log(np.exp(np.asarray(joint) - prior).sum()) + prior
    assert summed == pytest.approx(float(marginal), abs=1e-10)


def test_more_ages_change_nothing(x64):
    """The default number of ages against a hundred more: to 1e-3 of a log-density of 60 readings."""
    above = np.asarray(exceedance.gaussian_paths(jax.random.key(2), D2, num_steps=60, step=1.5)) > 0
    options = {"step": 1.5, "covariance": D2, "mean_interval": 2 * np.pi, "flip": 0.05}
    few = density(exceedance.noisy_signs, above, **options)({})
    many = density(exceedance.noisy_signs, above, num_ages=150, **options)({})
    assert float(few) == pytest.approx(float(many), abs=1e-3)


# ------------------------------------------------------------------------------------------------------ simulation


def test_simulated_durations(x64):
    """Both sides of a level: means within five errors."""
    simulate = Predictive(exceedance.durations, num_samples=1)
    options = {"covariance": D2, "mean_interval": 3.0, "level": 0.8, "num_excursions": 20_000}
    draws = simulate(jax.random.key(1), **options)
    for side in ("above", "below"):
        law = LevelExcursionTime(D2.with_mean_interval(3.0), 0.8, side)
        found = np.asarray(draws[f"duration_{side}"])
        assert found.shape == (1, 20_000)
        assert abs(found.mean() - float(law.mean)) < 5 * found.std() / np.sqrt(20_000)
    trace = trace_of(exceedance.run_lengths, step=0.3, num_excursions=4, level=0.3)
    assert trace["length_above"]["value"].shape == trace["length_below"]["value"].shape == (4,)


def test_simulated_signs_are_those_of_the_path_form(x64):
    """Two readings differ with the chance of 1 / mean run and of the flips, in both forms."""
    options = {
        "step": 0.4,
        "covariance": D2,
        "mean_interval": 2.0,
        "flip": 0.1,
        "num_steps": 400,
        "num_ages": 60,
    }
    runs = SignRuns(ExcursionTime(D2.with_mean_interval(2.0)), 0.4)
    changes = 1 / float(runs.mean)
    same_errors = 0.9**2 + 0.1**2
    expected = changes * same_errors + (1 - changes) * (1 - same_errors)
    for path in (False, True):
        simulate = Predictive(exceedance.noisy_signs, num_samples=100)
        y = np.asarray(simulate(jax.random.key(3), path=path, **options)["y"])
        assert y.shape == (100, 400)
        share = (y[:, 1:] != y[:, :-1]).mean(1)
        assert abs(share.mean() - expected) < 5 * share.std() / 10


@pytest.mark.parametrize(("u", "direction"), [(0.0, 1), (0.7, -1)])
def test_paths_from_a_crossing_on(u, direction, x64):
    """The share of paths above the level against the clipped Slepian process; five errors of 20,000."""
    times, n = np.array([0.3, 1.5, 4.0, 9.0]), 20_000
    simulate = Predictive(exceedance.slepian, num_samples=n)
    draws = simulate(jax.random.key(4), times=times, covariance=D2, level=u, direction=direction)
    up, down, *_ = clipped_slepian(D2, u, jnp.asarray(times))
    expected = np.asarray(up if direction == 1 else down)
    share = (np.asarray(draws["path"]) > u).mean(0)
    assert (abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_a_path_with_errors(x64):
    """At given slope and residual what is left are the errors."""
    times, x = np.array([0.5, 2.0]), np.array([0.4, -0.3])
    options = {"times": times, "covariance": D2, "mean_interval": 6.0, "noise": 0.2}
    values = {"slope": jnp.array(1.3), "residual": jnp.array([0.2, -0.5])}
    found = density(exceedance.slepian, x, **options)(values)
    seeded = handlers.seed(handlers.substitute(exceedance.slepian, values), 0)
    path = np.asarray(handlers.trace(seeded).get_trace(x, **options)["path"]["value"])
    expected = scipy.stats.norm.logpdf(x, path, 0.2).sum() + scipy.stats.norm.logpdf([0.2, -0.5]).sum()
    assert float(found) == pytest.approx(expected + scipy.stats.rayleigh.logpdf(1.3), rel=1e-9)


def test_gaussian_paths(x64):
    paths = exceedance.gaussian_paths(jax.random.key(1), D2, num_steps=900, step=0.5, num_paths=30)
    assert paths.shape == (30, 900)
    lag = (paths[:, 2:] * paths[:, :-2]).mean(1)
    assert abs(float(lag.mean()) - float(D2(1.0))) < 5 * float(lag.std()) / np.sqrt(30)
    with pytest.raises(ValueError, match="covariance"):
        exceedance.gaussian_paths(jax.random.key(1), D2, num_steps=5, step=0.5)


# ---------------------------------------------------------------------------------------------------------- refused

durations = functools.partial(exceedance.durations, GAPS)
signs = functools.partial(exceedance.noisy_signs, [0, 1, 1, 0])
slepian = functools.partial(exceedance.slepian, times=[0.5, 1.0])


def changed(values, at, to):
    values = np.array(values, float)
    values[at] = to
    return values


ERRORS = {
    "zero": (
        lambda: exceedance.durations(changed(GAPS, 3, 0.0)),
        "durations[(][)]: `duration` must be positive and finite; entry 3 is 0.0. Leave it out, or say by `kind`",
    ),
    "negative": (lambda: exceedance.durations(changed(GAPS, 2, -1.0)), "entry 2 is -1.0"),
    "NaN": (lambda: exceedance.durations(changed(GAPS, 4, np.nan)), "entry 4 is nan"),
    "infinite": (lambda: exceedance.durations(changed(GAPS, 4, np.inf)), "entry 4 is inf"),
    "table": (
        lambda: exceedance.durations(GAPS.reshape(3, 4)),
        r"`duration` must be \(N,\) .*; got shape \(3, 4\)",
    ),
    "nothing": (lambda: exceedance.durations([]), r"at least one entry; got shape \(0,\)"),
    "variable": (
        lambda: exceedance.durations(DURATIONS.rename(duration="time")),
        r"the dataset has no variable `duration`; it holds \['kind', 'side', 'time'\]",
    ),
    "columns": (
        lambda: durations(kind=KIND[:5]),
        r"`kind` has shape \(5,\), `duration` \(12,\); they go together",
    ),
    "kind": (
        lambda: durations(kind="censored"),
        "durations: `kind` must be among complete, right, .*; got 'censored'",
    ),
    "kind, a number": (lambda: durations(kind=KIND + 1), "or their numbers, 0 to 5"),
    "no side": (
        lambda: durations(level=0.5),
        "off level zero the sides differ; give `side`, 1 above and -1 below",
    ),
    "no side, free": (lambda: durations(level="free"), "off level zero the sides differ"),
    "side, a name": (
        lambda: durations(side=["above"] * 11 + ["Below"]),
        "`side` must be 1 or 'above', and -1 or 'below'; got 'Below'",
    ),
    "side, a number": (lambda: durations(side=SIDE * (np.arange(12) > 3)), "and -1 or 'below'; got 0"),
    "lower": (lambda: durations(kind="interval"), "kind 'interval' needs `lower`"),
    "lower, a minibatch": (
        lambda: durations(kind=np.where(KIND == 5, 3, 0), subsample_size=4),
        "kind 'interval' needs `lower`",
    ),
    "lower, too high": (
        lambda: durations(kind=KIND, lower=2 * GAPS),
        "`lower` must be below `duration` where the kind is 'interval'; entry 9 lies between",
    ),
    "lower, missing": (
        lambda: durations(kind=KIND, lower=np.full(12, np.nan)),
        "entry 9 lies between nan and",
    ),
    "no sensor": (
        lambda: durations(hierarchical=True),
        "`hierarchical` needs `sensor`, which record each entry comes from",
    ),
    "no sensor, no data": (
        lambda: exceedance.durations(hierarchical=True, num_excursions=3),
        "`hierarchical` needs `sensor`",
    ),
    "sensor": (
        lambda: durations(hierarchical=True, sensor=SENSOR - 1),
        r"`sensor` must hold integers from 0 on; got \[-1, -1, -1\]",
    ),
    "sensor, names": (
        lambda: durations(hierarchical=True, sensor=["a"] * 12),
        "integers from 0 on; got .'a'",
    ),
    "nothing to simulate": (
        lambda: exceedance.durations(),
        "to simulate, `num_excursions` must be a positive number",
    ),
    "level": (
        lambda: durations(level="fre", side=SIDE),
        "`level` must be a number of standard deviations, None or 'free'; got 'fre'",
    ),
    "level, in units of the data": (
        lambda: durations(level=300.0, side=SIDE),
        r"must lie within 4 of zero; got 300.0. For a level u in the units of the data give \(u - mean\) / sd",
    ),
    "mean interval": (
        lambda: durations(mean_interval=-1.0),
        "`mean_interval` must be positive, or a prior; got -1.0",
    ),
    "covariance": (lambda: durations(covariance="matern"), "[Cc]ovariance"),
    "lengths": (
        lambda: exceedance.run_lengths(LENGTHS + 0.5, step=0.3),
        "run_lengths[(][)]: `length` counts readings; got 3.5",
    ),
    "lengths, zero": (lambda: exceedance.run_lengths(LENGTHS - 1, step=0.3), "entry 1 is 0"),
    "step": (
        lambda: exceedance.run_lengths(LENGTHS, step=0.0),
        "run_lengths[(][)]: `step` must be positive, the time between readings; got 0.0",
    ),
    "steps": (lambda: exceedance.run_lengths(LENGTHS, step=[0.1, 0.2]), "`step` must be positive"),
    "signs": (
        lambda: exceedance.noisy_signs([0, 1, 2], step=0.3),
        r"noisy_signs[(][)]: `y` must be \(T,\) of 0, 1 and NaN, with at least one reading",
    ),
    "signs, table": (lambda: exceedance.noisy_signs([[0, 1]], step=0.3), r"`y` must be \(T,\)"),
    "signs, none": (lambda: exceedance.noisy_signs([np.nan] * 3, step=0.3), "with at least one reading"),
    "signs, step": (lambda: signs(step=-1.0), "noisy_signs[(][)]: `step` must be positive"),
    "signs, to simulate": (
        lambda: exceedance.noisy_signs(step=0.3),
        "to simulate, `num_steps` must be a positive number of readings",
    ),
    "flip": (lambda: signs(step=0.3, flip=0.6), r"`flip` must lie in \[0, 0.5\), or be a prior; got 0.6"),
    "times": (
        lambda: exceedance.slepian(times=[0.0, 1.0]),
        "`times` since the crossing must be positive and increasing",
    ),
    "times, back": (lambda: exceedance.slepian(times=[1.0, 0.5]), "must be positive and increasing"),
    "times, NaN": (lambda: exceedance.slepian(times=[1.0, np.nan]), "must be positive and increasing"),
    "direction": (lambda: slepian(direction=0), r"`direction` must be 1 \(up\) or -1 \(down\); got 0"),
    "no noise": (lambda: slepian([0.1, 0.2]), "data need `noise`, the standard deviation of their errors"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_refused(name, x64):
    """As far as abstract tracing goes: nothing is compiled before the sentence."""
    call, sentence = ERRORS[name]
    with pytest.raises(ValueError, match=sentence):
        sites_of(call)


def test_a_dataset_of_another_level_warns(x64):
    high = DURATIONS.assign_attrs(level_in_sd=0.84)
    with pytest.warns(
        UserWarning, match="are of a level 0.84 standard deviations from the mean.*give level=0.84"
    ):
        sites_of(exceedance.durations, high)
    assert "duration_above" in sites_of(exceedance.durations, high, level=0.84)  # says nothing


def test_too_many_intervals_warn(x64):
    with pytest.warns(UserWarning, match="10001 intervals are more than the independent-interval law bears"):
        sites_of(exceedance.durations, np.ones(10_001), covariance=D2)
    sites_of(exceedance.durations, np.ones(10_000), covariance=D2)


# ------------------------------------------------------------------------------------------------------ the answers


def posterior(**values):
    draws = {name: (("chain", "draw"), np.asarray(x, float)) for name, x in values.items()}
    coords = {"chain": np.arange(2), "draw": np.array([10, 11, 12])}
    return types.SimpleNamespace(posterior=xr.Dataset(draws, coords))


MEANS = np.array([[4.0, 5.0, 6.0], [3.0, 8.0, 5.5]])
DIMENSIONS = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 1.5]])


@pytest.mark.parametrize("u", [None, 0.6])
def test_answers_of_a_known_posterior(u, x64):
    fit = posterior(mean_interval=MEANS, dimension=DIMENSIONS)
    options = {} if u is None else {"level": u, "side": "below"}
    times = np.array([0.0, 1.0, 7.0])
    found = {n: getattr(exceedance, n)(fit, times, **options) for n in ("survival", "hazard", "persistence")}
    for name, answer in found.items():
        assert answer.name == name
        assert answer.dims == ("chain", "draw", "time")
        assert answer.coords["draw"].values.tolist() == [10, 11, 12]
        assert answer.coords["time"].values.tolist() == times.tolist()
    process = Diffusion(2.0).with_mean_interval(8.0)
    law = ExcursionTime(process) if u is None else LevelExcursionTime(process, u, "below")
    for name, answer in found.items():
        expected = jax.jit(lambda law, t, name=name: getattr(law, name)(t))(law, times)
        np.testing.assert_allclose(answer.sel(chain=1, draw=11), expected, rtol=1e-9)


def test_posterior_law(x64):
    """Its hyper-parameters by name, also of a function; a fitted level; a sensor."""
    law = exceedance.posterior_law(posterior(mean_interval=MEANS, dimension=DIMENSIONS))
    assert isinstance(law, ExcursionTime)
    np.testing.assert_allclose(law.mean, MEANS)
    np.testing.assert_array_equal(law.covariance.dimension, DIMENSIONS)
    share = np.full((2, 3), 0.9)
    own = exceedance.posterior_law(posterior(mean_interval=MEANS, share=share), covariance=two_scales)
    assert isinstance(own.covariance, TwoScales)
    np.testing.assert_allclose(own.mean, MEANS)
    levels = np.linspace(-1.0, 1.0, 6).reshape(2, 3)
    at = posterior(mean_interval=MEANS, level=levels)
    high = exceedance.posterior_law(at, covariance=Matern52, side="above")
    assert isinstance(high, LevelExcursionTime)
    np.testing.assert_allclose(high.level, levels)
    np.testing.assert_allclose(high.side_probability, scipy.stats.norm.sf(levels))
    fit = posterior(mean_interval=MEANS)
    fit.posterior["sensor_mean_interval"] = (("chain", "draw", "sensor"), np.stack([MEANS, 2 * MEANS], -1))
    of_sensor = exceedance.posterior_law(fit, covariance=Matern52, sensor=1)
    np.testing.assert_allclose(of_sensor.mean, 2 * MEANS)
    np.testing.assert_allclose(exceedance.posterior_law(fit, covariance=Matern52).mean, MEANS)


def test_longest(x64):
    """The longest of n has the distribution function ``F^n``: Kolmogorov's 99.9 % point."""
    draws = types.SimpleNamespace(posterior={"mean_interval": np.full((2, 2000), 4.0)})
    law = ExcursionTime(Matern52().with_mean_interval(4.0))
    for number in (1, 50):
        found = exceedance.longest(draws, number, covariance=Matern52, seed=3)
        assert found.dims == ("chain", "draw")
        log_cdf = np.log1p(-np.asarray(jax.jit(lambda law, t: law.survival(t))(law, found.values.ravel())))
        assert scipy.stats.kstest(np.exp(number * log_cdf), "uniform").statistic < 1.95 / np.sqrt(4000)
    again = exceedance.longest(draws, 50, covariance=Matern52, seed=3)
    np.testing.assert_array_equal(found, again)


FIT = posterior(mean_interval=MEANS, dimension=DIMENSIONS)
QUESTIONS = {
    "no mean interval": (
        lambda: exceedance.survival(posterior(dimension=DIMENSIONS), [1.0]),
        "The fit has no `mean_interval`",
    ),
    "another covariance": (
        lambda: exceedance.survival(posterior(mean_interval=MEANS), [1.0]),
        "The fit has no `dimension`, of which this covariance is made: give `covariance` as it was given",
    ),
    "no hierarchy": (lambda: exceedance.hazard(FIT, [1.0], sensor=0), "The fit is of no hierarchy"),
    "times": (
        lambda: exceedance.persistence(FIT, [1.0, -1.0]),
        r"persistence[(][)]: `times` must be finite and not",
    ),
    "times, NaN": (lambda: exceedance.hazard(FIT, [np.nan]), "`times` must be finite"),
    "side": (
        lambda: exceedance.hazard(FIT, [1.0], level=0.5, side="over"),
        "`side` must be 'above' or 'below'",
    ),
    "number": (lambda: exceedance.longest(FIT, 0), "`number` of excursions must be at least 1; got 0"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_refused(name, x64):
    ask, sentence = QUESTIONS[name]
    with pytest.raises(ValueError, match=sentence):
        ask()


# ------------------------------------------------------------------------------------------------------------- fits

TINY = {"num_warmup": 6, "num_samples": 4, "num_chains": 1, "progress_bar": False}


def test_a_fit_of_a_hierarchy(x64):
    """Names and dimensions in ArviZ, and the questions asked of them."""
    fit = sj.fit(
        exceedance.durations,
        GAPS,
        covariance=Matern52,
        kind=KIND,
        lower=LOWER,
        hierarchical=True,
        sensor=SENSOR,
        **TINY,
    )
    draws = _arviz.group(fit, "posterior")
    assert {name: draws[name].dims[2:] for name in draws.data_vars} == {
        "mean_interval": (),
        "mean_interval_sd": (),
        "sensor_effect": ("sensor",),
        "sensor_mean_interval": ("sensor",),
        "persistency_exponent": ("sensor",),
    }
    assert _arviz.group(fit, "log_likelihood")["duration"].dims == ("chain", "draw", "excursion")
    assert _arviz.group(fit, "posterior_predictive")["duration"].sizes["excursion"] == 12
    rate = np.asarray(exceedance.posterior_law(fit, covariance=Matern52, sensor=2).tail_rate())
    np.testing.assert_allclose(rate, draws["persistency_exponent"].sel(sensor=2), rtol=1e-6)
    assert exceedance.survival(fit, [1.0, 2.0], covariance=Matern52, sensor=0).shape == (1, 4, 2)


@pytest.mark.slow
def test_a_fit_of_noisy_signs(x64):
    y = np.array([0, 0, 1, 1, 1, 0, 0, 0, np.nan, 1, 1, 0])
    fit = sj.fit(exceedance.noisy_signs, y, step=0.5, covariance=Matern52, num_ages=20, **TINY)
    draws = _arviz.group(fit, "posterior")
    assert set(draws.data_vars) == {"mean_interval", "persistency_exponent", "flip"}
    terms = _arviz.group(fit, "log_likelihood")["y"]
    assert terms.dims == ("chain", "draw", "time")
    assert np.isnan(terms.values[0, 0, 8])
    assert np.isfinite(terms.values[0, 0, :8]).all()
