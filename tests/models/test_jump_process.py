"""The ready jump processes: their densities by hand, one law in two forms, what they simulate and what they refuse."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.linalg
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from scipy import stats

from sojourn.inference._labels import Labels
from sojourn.models import jump_process as mjp

NAN = np.nan
TIMES = np.array([0.0, 0.5, 1.2, 3.0])
TWO_TIMES = np.stack([TIMES, [1.0, 1.5, 3.5, 4.0]])


def trace_of(model, *args, seed=3, values=None, **kwargs):
    """One run of the model, with ``values`` at the sites they name."""
    seeded = handlers.substitute(handlers.seed(model, seed), data=values or {})
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def unobserved(trace):
    return {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


# ---------------------------------------------------------------------------------- marginal form = path form


def both_forms(model, y, times, num_states, **kwargs):
    """log p(parameters, y) from the marginal form, and from the sum over all paths of the path form."""
    # Rates of the order of one, well within the capacity whatever the seed.
    prior = {} if "rates" in kwargs else {"rate_prior": dist.LogNormal(-0.5, 0.5)}
    kwargs = {"num_states": num_states, **prior, **kwargs}

    def joint(parameters, path):
        values = {**parameters, "hidden_state": path}
        return log_density(model, (y, times), {"path": True, **kwargs}, values)[0]

    @jax.jit
    def both(paths):
        parameters = unobserved(trace_of(model, y, times, **kwargs))
        alone = log_density(model, (y, times), kwargs, parameters)[0]
        return alone, jax.nn.logsumexp(jax.vmap(lambda path: joint(parameters, path))(paths))

    drawn = jax.eval_shape(lambda: unobserved(trace_of(model, y, times, path=True, **kwargs)))
    shape = drawn["hidden_state"].shape  # time first
    paths = np.array(list(itertools.product(range(num_states), repeat=int(np.prod(shape)))))
    alone, total = both(paths.reshape((-1, *shape)))
    return float(alone), float(total), shape


def count_emission(num_states):
    with numpyro.plate("state", num_states):
        mean = numpyro.sample("mean", dist.LogNormal(1.0, 1.0))
    return lambda state: dist.NegativeBinomial2(mean[state], 5.0)


def vector_emission(num_states):
    with numpyro.plate("state", num_states):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    return lambda state: dist.Normal(loc[state], 1.0).to_event(1)


def counts(y, times, **kwargs):
    return mjp.model(y, times, count_emission, **kwargs)


def vectors(y, times, **kwargs):
    return mjp.model(y, times, vector_emission, **kwargs)


def one_way(time_unit):
    """Stages of which the last absorbs: a row without jumps."""
    return mjp.linear_chain(numpyro.sample("rate", dist.LogNormal(0.0, 0.5).expand([2]).to_event(1)))


WIND = np.array([[0.3], [-1.0], [0.8], [0.1]])
CONFUSION = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.0, 0.3, 0.7]])
SIGNAL = np.array([[0.1, 2.0, NAN, -1.0], [0.3, -1.0, 5.0, 9.0]])
CASES = {
    "uniform errors, NaN": (mjp.misclassified, [0, NAN, 2, 1], TIMES, 3, {}),
    "known errors, mask, stationary": (
        mjp.misclassified,
        [0, 1, 2, 1],
        TIMES,
        3,
        {"confusion": CONFUSION, "mask": np.array([1, 0, 1, 1], bool), "initial": "stationary"},
    ),
    "possible errors, reversible": (
        mjp.misclassified,
        [0, 1, 2, 1],
        TIMES,
        3,
        {"confusion": np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]], bool), "rates": "reversible"},
    ),
    "several, lengths, NaN": (mjp.normal, SIGNAL, TWO_TIMES, 2, {"lengths": np.array([4, 3])}),
    "several, one clock, covariates of each, own rates": (
        mjp.normal,
        SIGNAL,
        TIMES,
        2,
        {"covariates": WIND[:2], "hierarchical": True, "shared_scale": False},
    ),
    "several, covariates in time, stationary": (
        mjp.normal,
        SIGNAL,
        TWO_TIMES,
        2,
        {"covariates": np.stack([WIND, 2.0 * WIND]), "initial": "stationary"},
    ),
    "counts, covariates in time": (counts, [3, 0, 1, 7], TIMES, 3, {"covariates": WIND}),
    "vectors": (vectors, [[0.1, 1.0], [2.0, -0.3], [NAN, NAN], [-1.0, 1.4]], TIMES, 2, {}),
    "exact times": (
        mjp.misclassified,
        [0, 1, NAN, 1],
        TIMES,
        3,
        {"obstype": np.array([1, 2, 3, 1]), "rates": "birth_death"},
    ),
    "exact times, absorbing state": (
        mjp.misclassified,
        [0, 1, 2, 2],
        TIMES,
        3,
        {"obstype": np.array([1, 1, 3, 2]), "rates": one_way, "confusion": CONFUSION},
    ),
    "exact times, several, lengths, first laws": (
        mjp.normal,
        SIGNAL,
        TWO_TIMES,
        2,
        {
            "obstype": np.array([[1, 3, 2, 1], [1, 2, 1, 3]]),
            "lengths": np.array([4, 3]),
            "initial": np.array([[0.9, 0.1], [0.4, 0.6]]),
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_both_forms_declare_the_same_law(case):
    model, y, times, num_states, kwargs = CASES[case]
    y = np.asarray(y)
    marginal, summed, shape = both_forms(model, y, times, num_states, **kwargs)
    assert np.isfinite(marginal)
    assert summed == pytest.approx(marginal, rel=1e-5, abs=1e-5)
    assert shape == np.shape(y)[: 1 if model is vectors else None][::-1]


@pytest.mark.parametrize("path", [False, True])
def test_rates_beyond_the_capacity_are_impossible_in_both_forms(path):
    y, start, seen = np.array([0, 1, 0, 0]), jnp.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.2, 0.8]])
    kwargs = {"num_states": 2, "confusion": seen, "max_rate": 19.0, "path": path}

    @jax.jit
    def density(rates):
        values = {"rate": rates, "initial": start, "hidden_state": jnp.array([0, 1, 0, 0])}
        return log_density(mjp.misclassified, (y, TIMES), kwargs, values)[0]

    assert float(density(jnp.array([19.5, 3.0]))) == -np.inf
    assert np.isfinite(density(jnp.array([18.5, 3.0])))


def test_impossible_by_capacity_is_no_error():
    """Two observations a series, four states: a fifth of the prior's draws is beyond the default capacity."""
    y, times = np.array([[0, 1], [1, 2], [2, 0], [3, 3]]), np.array([0.0, 1.0])
    fast = {"rate": jnp.full(12, 5.0)}  # exits at 15; the capacity is 10
    law = trace_of(mjp.panel, y, times, num_states=4, values=fast)["y"]["fn"]
    assert law.max_rate == pytest.approx(10.0)
    assert float(jax.jit(lambda law: law.log_prob(y))(law)) == -np.inf


# ------------------------------------------------------------------------------------------- densities by hand


def matrix_of(rates, graph):
    q = np.zeros(graph.shape)
    q[graph] = rates
    return q - np.diag(q.sum(1))


def move(q, dt, kind):
    """Snapshot, exact transition, exact time of entry (Jackson 2011, J. Stat. Software 38(8), section 1.3)."""
    jump = q - np.diag(np.diag(q))
    if kind == 2:
        return np.diag(np.exp(np.diag(q) * dt)) @ (np.eye(len(q)) + jump)
    return scipy.linalg.expm(q * dt) @ (jump if kind == 3 else np.eye(len(q)))


def log_likelihood(start, matrices, times, fits, kinds):
    """log of start D(fits_0) M_1 D(fits_1) ...: of one series, with a rate matrix for each interval."""
    row = start * fits[0]
    for q, dt, kind, fit in zip(matrices, np.diff(times), kinds[1:], fits[1:], strict=True):
        row = row @ move(q, dt, kind) * fit
    return np.log(row.sum())


def log_normal(x, loc, scale):
    """Log-density of LogNormal(loc, scale)."""
    return (stats.norm.logpdf(np.log(x), loc, scale) - np.log(x)).sum()


def stationary(q):
    return np.linalg.solve(np.vstack([q.T[:-1], np.ones(len(q))]), np.eye(len(q))[-1])


def states_seen(y, num_states, censored=()):
    fits = (y[..., None] == np.arange(num_states)) | np.isnan(y)[..., None]
    for code, allowed in censored:
        fits = fits | ((y[..., None] == code) & np.isin(np.arange(num_states), allowed))
    return fits.astype(float)


def density(model, y, times, values, **kwargs):
    """The model's log p(values, y), compiled."""
    return float(jax.jit(lambda v: log_density(model, (y, times), kwargs, v)[0])(values))


RAGGED = np.array([[0, 1, NAN, 2], [2, 2, 1, NAN], [1, 0, 0, 1]])
RAGGED_TIMES = np.stack([TIMES, TIMES + 1.0, [0.0, 0.5, 1.0, 2.0]])
LENGTHS = np.array([4, 2, 4])
FREE = ~np.eye(3, dtype=bool)
RATES = np.array([1.0, 0.4, 0.3, 0.8, 0.6, 0.2])


@pytest.mark.parametrize("initial", ["observed", "free", "stationary", "given"])
def test_panel_of_ragged_series(initial):
    """A gap, a series cut at its length, and each law of the first state."""
    q, law = matrix_of(RATES, FREE), np.array([0.5, 0.3, 0.2])
    values = {"rate": RATES} | ({"initial": law} if initial == "free" else {})
    given = {"observed": np.eye(3)[RAGGED[:, 0].astype(int)], "stationary": stationary(q)}.get(initial, law)
    given = np.broadcast_to(given, (3, 3))
    found = density(
        mjp.panel,
        RAGGED,
        RAGGED_TIMES,
        values,
        num_states=3,
        lengths=LENGTHS,
        initial=given if initial == "given" else initial,
        rate_prior=dist.LogNormal(-1.0, 0.7),
    )
    fits = states_seen(RAGGED, 3)
    expected = log_normal(RATES, -1.0, 0.7) + (np.log(2.0) if initial == "free" else 0.0)  # Dirichlet(1): 2!
    expected += sum(
        log_likelihood(given[n], [q] * (k - 1), RAGGED_TIMES[n, :k], fits[n, :k], np.ones(k))
        for n, k in enumerate(LENGTHS)
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_panel_of_one_series_with_exact_times_and_codes():
    y, kinds = np.array([0, 9, 1, 2]), np.array([1, 1, 2, 3])
    found = density(
        mjp.panel,
        y,
        TIMES,
        {"rate": RATES},
        num_states=3,
        obstype=kinds,
        censored={9: [0, 2]},
        time_unit=2.0,
    )
    q, fits = matrix_of(RATES, FREE), states_seen(y.astype(float), 3, [(9, [0, 2])])
    expected = log_normal(RATES, -1.0 - np.log(2.0), 1.5)
    expected += log_likelihood(np.eye(3)[0], [q] * 3, TIMES, fits, kinds)
    assert found == pytest.approx(expected, rel=1e-5)


def test_covariates_and_subjects():
    """log q_ij(x, n) = log q_ij + x beta_ij + sigma_ij z_nij, on the edges of a graph."""
    graph = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    rates, effect = np.array([1.0, 0.4, 0.3, 0.8]), np.array([[0.5, -1.0, 0.2, 0.0], [0.3, 0.1, -0.4, 1.2]])
    spread, own = np.array([0.3, 0.6, 0.1, 0.2]), np.random.default_rng(2).normal(size=(3, 4))
    x = np.array([[1.0, 0.0], [0.0, 0.5], [1.0, 0.5]])
    y = np.where(np.isnan(RAGGED), 0, RAGGED).astype(int)
    found = density(
        mjp.panel,
        y,
        TIMES,
        {"rate": rates, "covariate_effect": effect, "rate_sd": spread, "series_effect": own},
        num_states=3,
        rates="birth_death",
        rate_prior=dist.LogNormal(0.0, 1.0),
        covariates=x,
        effect_prior=dist.Normal(0.0, 0.5),
        hierarchical=True,
    )
    expected = log_normal(rates, 0.0, 1.0) + stats.norm.logpdf(effect, 0.0, 0.5).sum()
    expected += stats.halfnorm.logpdf(spread, scale=0.5).sum() + stats.norm.logpdf(own).sum()
    for n in range(3):
        q = matrix_of(rates * np.exp(x[n] @ effect + spread * own[n]), graph)
        fits = states_seen(y[n].astype(float), 3)
        expected += log_likelihood(np.eye(3)[y[n, 0]], [q] * 3, TIMES, fits, np.ones(4))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_covariates_that_vary_in_time(several):
    """Row l holds from observation l to the next: the last one never; the first law is that of the first row."""
    rates, effect, seen = np.array([1.0, 0.4]), np.array([[0.5, -1.0]]), np.array([[0.9, 0.1], [0.2, 0.8]])
    y, x = np.array([[0, 1, 1, 0], [1, 1, 0, 1]]), np.stack([WIND, WIND[::-1]])
    lead = slice(None) if several else 0
    values = {"rate": rates, "covariate_effect": effect}
    kwargs = {"num_states": 2, "confusion": seen, "initial": "stationary", "time_unit": 1.0}
    found = [
        density(mjp.misclassified, y[lead], TIMES, values, covariates=z[lead], **kwargs)
        for z in (x, np.where(np.arange(4)[:, None] == 3, 5.0, x))
    ]
    expected = log_normal(rates, -1.0, 1.5) + stats.norm.logpdf(effect).sum()
    for n in range(2 if several else 1):
        matrices = [matrix_of(rates * np.exp(row @ effect), ~np.eye(2, dtype=bool)) for row in x[n, :3]]
        start = stationary(matrices[0])
        expected += log_likelihood(start, matrices, TIMES, seen[:, y[n]].T, np.ones(4))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_confusion():
    """Errors anywhere at one rate; a row of free errors and rows that are right."""
    y, q, start = np.array([0, 2, 2, 1]), matrix_of(RATES, FREE), np.full(3, 1 / 3)
    kwargs = {"num_states": 3, "initial": start, "time_unit": 1.0}
    found = density(mjp.misclassified, y, TIMES, {"rate": RATES, "error_rate": 0.3}, **kwargs)
    seen = 0.7 * np.eye(3) + 0.1
    prior = log_normal(RATES, -1.0, 1.5)
    expected = prior + stats.beta.logpdf(0.3, 1, 9)
    expected += log_likelihood(start, [q] * 3, TIMES, seen[:, y].T, np.ones(4))
    assert found == pytest.approx(expected, rel=1e-5)

    row = np.array([0.85, 0.1, 0.05])  # of state 1: right, taken for 0, taken for 2
    possible = np.array([[0, 0, 0], [1, 0, 1], [0, 0, 1]], bool)
    values = {"rate": RATES, "confusion_b": row}
    found = density(mjp.misclassified, y, TIMES, values, confusion=possible, states=["a", "b", "c"], **kwargs)
    seen = np.array([[1.0, 0.0, 0.0], [0.1, 0.85, 0.05], [0.0, 0.0, 1.0]])
    expected = prior + stats.dirichlet.logpdf(row, [9.0, 1.0, 1.0])
    expected += log_likelihood(start, [q] * 3, TIMES, seen[:, y].T, np.ones(4))
    assert found == pytest.approx(expected, rel=1e-5)


def test_signal():
    y = np.array([0.1, 2.0, NAN, -1.0])
    loc, scale = np.array([-0.5, 1.5]), np.array([0.4, 0.8])
    values = {"rate": np.array([1.0, 0.4]), "initial": np.array([0.7, 0.3]), "loc": loc, "scale": scale}
    found = density(mjp.normal, y, TIMES, values, num_states=2, shared_scale=False, time_unit=1.0)
    mean, sd = np.nanmean(y), np.nanstd(y)
    expected = log_normal(values["rate"], -1.0, 1.5) + log_normal(scale, np.log(sd / 2), 1.0)
    expected += stats.norm.logpdf(loc, mean, 2 * sd).sum() + np.log(2.0)  # two orders of the levels
    fits = np.where(np.isnan(y)[:, None], 1.0, stats.norm.pdf(y[:, None], loc, scale))
    q = matrix_of(values["rate"], ~np.eye(2, dtype=bool))
    expected += log_likelihood(values["initial"], [q] * 3, TIMES, fits, np.ones(4))
    assert found == pytest.approx(expected, rel=1e-5)


PATHS = mjp.stack_paths([[0.0, 0.5, 1.25], [0.0], [0.0, 1.0]], [[0, 2, 1], [1], [2, 0]], [2.0, 3.0, 1.5])
DURATION = np.array([2.0, 3.0, 1.5])


def test_complete_paths():
    """sum N log q - q T, with covariates, and the law of the first states."""
    x, effect = np.array([[0.0], [1.0], [2.0]]), 0.1 * np.arange(1.0, 7.0)[None]
    values = {"rate": RATES, "covariate_effect": effect}
    found = density(mjp.complete, PATHS, DURATION, values, num_states=3, covariates=x, time_unit=1.0)
    expected = log_normal(RATES, -1.0, 1.5) + stats.norm.logpdf(effect).sum()
    each = [matrix_of(RATES * np.exp(row @ effect), FREE) for row in x]
    expected += 0.5 * each[0][0, 0] + 0.75 * each[0][2, 2] + 0.75 * each[0][1, 1]
    expected += np.log(each[0][0, 2]) + np.log(each[0][2, 1]) + 3.0 * each[1][1, 1]
    expected += 1.0 * each[2][2, 2] + 0.5 * each[2][0, 0] + np.log(each[2][2, 0])
    assert found == pytest.approx(expected, rel=1e-5)
    q = matrix_of(RATES, FREE)
    for initial in ("stationary", np.array([0.5, 0.3, 0.2])):
        kwargs = {"num_states": 3, "time_unit": 1.0}
        law = stationary(q) if isinstance(initial, str) else initial
        given = density(mjp.complete, PATHS, DURATION, {"rate": RATES}, initial=initial, **kwargs)
        bare = density(mjp.complete, PATHS, DURATION, {"rate": RATES}, **kwargs)
        assert given - bare == pytest.approx(np.log(law[[0, 1, 2]]).sum(), rel=1e-4)


# --------------------------------------------------------------------------------- priors, starts, and labels


def test_default_unit_of_time():
    """The geometric mean of the median interval and the median length of a series."""
    trace = trace_of(mjp.panel, RAGGED, RAGGED_TIMES, num_states=3, lengths=LENGTHS)
    # Intervals .5 .7 1.8 | .5 | .5 .5 1, lengths 3, .5, 2.
    unit = np.sqrt(0.5 * 2.0)
    assert float(trace["rate"]["fn"].base_dist.base_dist.loc) == pytest.approx(-1.0 - np.log(unit), rel=1e-6)
    assert float(trace["rate"]["fn"].base_dist.base_dist.scale) == 1.5
    assert trace["y"]["fn"].max_rate == pytest.approx(10.0 / 0.5)
    complete = trace_of(mjp.complete, PATHS, DURATION, num_states=3)["rate"]["fn"].base_dist.base_dist
    assert float(complete.loc) == pytest.approx(-1.0 - np.log(6.5 / (3 + 3)), rel=1e-6)  # 3 stays, 3 jumps
    unit_of = {}
    trace_of(mjp.panel, [0, 1], [0.0, 4.0], num_states=2, rates=lambda u: unit_of.setdefault("u", u) * ON_OFF)
    assert unit_of["u"] == pytest.approx(4.0)


ON_OFF = np.array([[-1.0, 1.0], [2.0, -2.0]])


def start_of(*args, **kwargs):
    """The hint of the site ``rate``, from a run that computes nothing."""
    found = []
    jax.eval_shape(lambda: found.append(trace_of(*args, **kwargs)["rate"]["infer"]["init"]))
    return found[0]


def test_chains_start_at_jumps_over_time():
    """(N_ij + 0.3) / (T_i + 0.3 unit), an interval shared half and half by its ends; no faster than half the capacity."""
    y, times = np.array([[0, 1, 1, 0], [0, 0, 1, 0]]), np.array([0.0, 1.0, 2.0, 4.0])
    kwargs = {"num_states": 2, "time_unit": 2.0, "lengths": np.array([4, 3])}

    def start(model=mjp.panel, data=y, **more):
        return start_of(model, data, times, **{**kwargs, **more})

    # Series 0: 01 11 10 over 1, 1, 2; series 1: 00 01 over 1, 1.
    held = np.array([0.5 + 1.0 + 1.0 + 0.5, 0.5 + 1.0 + 1.0 + 0.5])
    np.testing.assert_allclose(start(), np.array([2.3, 1.3]) / (held + 0.6), rtol=1e-6)
    np.testing.assert_allclose(start(mjp.misclassified), start(), rtol=1e-6)
    np.testing.assert_allclose(start(max_rate=1.0), 0.25)
    # Hidden behind the mask the second series starts one observation later.
    mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1]], bool)
    held = held - np.array([1.0, 0.0])
    np.testing.assert_allclose(
        start(mask=mask, initial="free"), np.array([2.3, 1.3]) / (held + 0.6), rtol=1e-6
    )
    # A signal has no states to count.
    np.testing.assert_allclose(start(mjp.normal, y + 0.5), np.exp(-1.0) / 2.0, rtol=1e-6)
    # Complete paths: dwell times .75 .5 + .75 + 3, .75 + 1 and jumps as they were.
    complete = start_of(mjp.complete, PATHS, DURATION, num_states=3, time_unit=1.0)
    count = np.array([0.3, 1.3, 0.3, 0.3, 1.3, 1.3])
    dwell = np.repeat([0.5 + 0.5, 0.75 + 3.0, 0.75 + 1.0], 2)
    np.testing.assert_allclose(complete, count / (dwell + 0.3), rtol=1e-6)


def on_off(time_unit):
    return mjp.birth_death(numpyro.sample("up", dist.LogNormal(0.0, 1.0).expand([1]).to_event(1)), 1.0)


LABELLED = {
    "free": (mjp.panel, {}, {"rate": ("move",)}),
    "reversible": (mjp.panel, {"rates": "reversible"}, {"stationary": ("state",), "exchange": ("pair",)}),
    "a function": (
        mjp.panel,
        {"rates": on_off, "covariates": np.ones((2, 3))},
        {"up": ("up_dim_0",), "covariate_effect": ("covariate", "move")},
    ),
    "everything": (
        mjp.normal,
        {"hierarchical": True, "shared_scale": False},
        {
            "rate_sd": ("move",),
            "series_effect": ("series", "move"),
            "initial": ("state",),
            "loc": ("state",),
            "scale": ("state",),
        },
    ),
    "errors": (
        mjp.misclassified,
        {"confusion": np.ones((2, 2), bool)},
        {"confusion_low": ("label_low",), "confusion_high": ("label_high",)},
    ),
}


@pytest.mark.parametrize("case", LABELLED)
def test_what_a_fit_will_be_labelled_with(case):
    model, kwargs, dims = LABELLED[case]
    y = np.array([[0, 1, 1], [1, 1, 0]])
    trace = trace_of(model, y, TIMES[:3], num_states=2, states=["low", "high"], **kwargs)
    sites = {n: np.asarray(s["value"]) for n, s in trace.items() if s["type"] != "plate"}
    found = Labels({n: v.shape for n, v in sites.items()}, trace).dataset(sites, lead=())
    assert found["rate_matrix"].dims == ("state", "next_state")
    assert found["y"].dims == ("series", "time")
    for name, expected in dims.items():
        assert found[name].dims == expected
    for dim in ("state", "next_state"):
        assert found[dim].values.tolist() == ["low", "high"]
    np.testing.assert_allclose(found["time"], TIMES[:3])
    if "move" in found.dims:
        assert found["move"].values.tolist() == ["low->high", "high->low"]
    if "confusion_high" in found:
        assert found["label_high"].values.tolist() == ["high", "low"]
    # Where a chain starts must be a point of the prior's support.
    for site in trace.values():
        start = site.get("infer", {}).get("init") if site["type"] == "sample" else None
        if start is not None:
            assert np.asarray(site["fn"].support(jnp.asarray(start))).all()


def test_series_with_clocks_of_their_own_have_no_common_time():
    trace = trace_of(mjp.panel, [[0, 1, 1, 0]] * 2, TWO_TIMES, num_states=2)
    assert "time" not in trace["y"]["infer"]["event_coords"]


# ---------------------------------------------------------------------------------------------------- simulation


@pytest.mark.parametrize(
    ("model", "kwargs", "lead", "event"),
    [
        (mjp.panel, {"covariates": WIND[:2]}, (2, 4), ()),
        (mjp.misclassified, {"path": True, "lengths": np.array([4, 2])}, (2, 4), ()),
        (mjp.normal, {"obstype": np.array([1, 2, 3, 1])}, (4,), ()),
        (vectors, {}, (2, 4), (2,)),
    ],
)
def test_simulation(model, kwargs, lead, event):
    times = TIMES if len(lead) == 1 else TWO_TIMES
    returned, draw = simulated(model, times, num_states=3, **kwargs)
    assert draw["rate"].shape == (6,)
    np.testing.assert_allclose(draw["rate_matrix"].sum(-1), 0.0, atol=1e-4)
    assert returned.shape == (*lead, *event)  # series first whatever the form
    assert np.isfinite(np.asarray(returned, float)).all()
    if "path" in kwargs:
        assert draw["hidden_state"].shape == lead[::-1]  # inside the scan time comes first
        assert set(np.unique(draw["hidden_state"])) <= {0, 1, 2}
    else:
        np.testing.assert_array_equal(draw["y"], returned)
    if model is mjp.panel:
        assert set(np.unique(returned)) <= {0, 1, 2}


def simulated(model, *args, **kwargs):
    """What the model returns, and its sites, compiled."""

    @jax.jit
    def run():
        with handlers.trace() as trace:
            returned = handlers.seed(model, 0)(None, *args, **kwargs)
        return returned, {n: s["value"] for n, s in trace.items() if s["type"] != "plate"}

    return run()


def test_simulated_paths():
    drawn, _ = simulated(
        mjp.complete, DURATION, num_states=3, max_jumps=20, rates=lambda u: mjp.free(jnp.asarray(RATES))
    )
    assert drawn.shape == (3, 21, 2)
    time, state = np.asarray(drawn[..., 0]), np.asarray(drawn[..., 1])
    assert (np.diff(time, axis=1) >= 0).all()
    np.testing.assert_allclose(time[:, -1], DURATION, rtol=1e-6)
    assert set(np.unique(state)) <= {0, 1, 2}


def test_first_states_are_uniform_where_none_were_observed():
    first = Predictive(mjp.panel, num_samples=600)(jax.random.key(1), None, TIMES[:2], num_states=3)["y"][
        :, 0
    ]
    share = np.bincount(first, minlength=3) / 600
    assert np.abs(share - 1 / 3).max() < 4.5 * np.sqrt(2 / 9 / 600)


# -------------------------------------------------------------------------------------------------- bad input

STATES = np.array([0, 1, 1, 0])
PAIR = np.stack([STATES, 1 - STATES])
TWO = {"num_states": 2}


def levels(y, times, emission=None, **kwargs):
    return mjp.model(y, times, emission or (lambda n: lambda s: dist.Normal(jnp.arange(n)[s], 1.0)), **kwargs)


def tripled(u):
    return jnp.zeros((3, 3))


def ones(u):
    return jnp.ones((2, 2))


BAD = [
    (
        r"`times` do not increase in series 0: 1 is followed by 1",
        mjp.panel,
        STATES,
        [0.0, 1.0, 1.0, 2.0],
        TWO,
    ),
    (
        r"`times` do not increase in series 1: 1 is followed by 0.5",
        mjp.panel,
        PAIR,
        [[0, 1, 2, 3], [0, 1, 0.5, 3]],
        TWO,
    ),
    (r"`times` is not finite at step 1 of series 0; a missing state", mjp.panel, STATES, [0, NAN, 1, 2], TWO),
    (r"`times`, at which the process is looked at, are needed", mjp.panel, None, None, TWO),
    (r"`times` has shape \(3,\); `y` needs \(4,\)", mjp.panel, STATES, TIMES[:3], TWO),
    (r"`times` has shape \(2, 3\); `y` needs \(2, 4\)", mjp.panel, PAIR, TIMES[:3], TWO),
    (r"`times` has shape \(2, 4\); `y` needs \(4,\)", mjp.panel, STATES, TWO_TIMES, TWO),
    (r"`times` has shape \(1, 2, 4\); a series needs \(L,\)", mjp.panel, None, TWO_TIMES[None], TWO),
    (r"Every series has one observation only", mjp.panel, [[0], [1]], [[0.0], [1.0]], TWO),
    (r"Every series has one observation only", mjp.normal, PAIR, TWO_TIMES, {**TWO, "lengths": [1, 1]}),
    (
        r"`lengths` has an entry 5; it must lie between 1 and the 4",
        mjp.panel,
        PAIR,
        TIMES,
        {**TWO, "lengths": [5, 1]},
    ),
    (r"`lengths` describes several series", mjp.panel, STATES, TIMES, {**TWO, "lengths": [4]}),
    (r"`lengths` has shape \(1,\); 2 series need", mjp.panel, PAIR, TIMES, {**TWO, "lengths": [4]}),
    (r"integers from 0 to 1; at index 1 stands 2", mjp.panel, [0, 2, 1, 0], TIMES, TWO),
    (r"integers from 0 to 1; at index 1 stands -1", mjp.panel, [0, -1, 1, 0], TIMES, TWO),
    (r"integers from 0 to 1; at index \(1, 1\) stands 0.5", mjp.panel, [[0, 1], [1, 0.5]], TIMES[:2], TWO),
    (r"integers from 0 to 1; at index 1 stands 2", mjp.misclassified, [0, 2, 1, 0], TIMES, TWO),
    (r"`y` is infinite at index 1", mjp.normal, [0, np.inf, 1, 0], TIMES, TWO),
    (
        r"`y` is NaN at index 1, where `mask` says that it was observed",
        mjp.panel,
        [0, NAN, 1, 0],
        TIMES,
        {**TWO, "mask": np.ones(4, bool)},
    ),
    (
        r"`mask` has shape \(3,\); the series need \(4,\)",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "mask": np.ones(3)},
    ),
    (
        r"The first state of series 1 is not known, and initial='observed' takes it as given",
        mjp.panel,
        [[0, 0, 1, 0], [NAN, 0, 1, 1]],
        TIMES,
        TWO,
    ),
    (
        r"The first state of series 0 is not known",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "mask": np.array([0, 1, 1, 1])},
    ),
    (
        r"The first state of series 0 is not known",
        mjp.panel,
        [9, 0, 1, 0],
        TIMES,
        {**TWO, "censored": {9: [0, 1]}},
    ),
    (r"`censored` code 9 needs some of the states", mjp.panel, STATES, TIMES, {**TWO, "censored": {9: [2]}}),
    (r"The code 1 in `censored` is a state", mjp.panel, STATES, TIMES, {**TWO, "censored": {1: [0]}}),
    (r"States seen without error leave no path", mjp.panel, STATES, TIMES, {**TWO, "path": True}),
    (r"There is no structure 'ring'; the names are", mjp.panel, STATES, TIMES, {**TWO, "rates": "ring"}),
    (
        r"graph of jumps has shape \(3, 3\); 2 states",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "rates": np.ones((3, 3))},
    ),
    (
        r"`rates\(time_unit\)` must return a \(2, 2\) matrix",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "rates": tripled},
    ),
    (r"Row 0 of `rates\(time_unit\)` sums to 2", mjp.panel, STATES, TIMES, {**TWO, "rates": ones}),
    (
        r"`num_states` must be a whole number of at least two, not 1",
        mjp.panel,
        STATES,
        TIMES,
        {"num_states": 1},
    ),
    (r"`num_states` must be .*, not 2.5", mjp.normal, STATES, TIMES, {"num_states": 2.5}),
    (
        r"`states` must hold 2 different names, not \['a'\]",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "states": ["a"]},
    ),
    (r"`states` must hold 2 different names", mjp.panel, STATES, TIMES, {**TWO, "states": ["a", "a"]}),
    (r"`time_unit` must be positive, not 0", mjp.panel, STATES, TIMES, {**TWO, "time_unit": 0.0}),
    (r"`max_rate` must be a positive number, not -1", mjp.panel, STATES, TIMES, {**TWO, "max_rate": -1.0}),
    (r"`method` is one of 'uniformization'", mjp.panel, STATES, TIMES, {**TWO, "method": "pade"}),
    (
        r"`obstype` has shape \(3,\); the times have \(4,\)",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "obstype": [1, 1, 1]},
    ),
    (r"`obstype` holds 1 \(snapshot\)", mjp.panel, STATES, TIMES, {**TWO, "obstype": [1, 1, 4, 1]}),
    (r"`initial` is 'free', .* here, not 'uniform'", mjp.panel, STATES, TIMES, {**TWO, "initial": "uniform"}),
    (r"`initial` is 'free', .* here, not 'observed'", levels, STATES, TIMES, {**TWO, "initial": "observed"}),
    (
        r"`initial` has shape \(3,\); 2 states need \(2,\)\.",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "initial": np.ones(3)},
    ),
    (
        r"`initial` has shape \(3, 2\); 2 states need \(2,\) or \(2, 2\)",
        mjp.panel,
        PAIR,
        TIMES,
        {**TWO, "initial": np.ones((3, 2)) / 2},
    ),
    (
        r"`initial` must hold probabilities",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "initial": np.array([0.5, 0.6])},
    ),
    (
        r"State ill is absorbing: .* initial='stationary'",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "initial": "stationary", "rates": "linear_chain", "states": ["well", "ill"]},
    ),
    (
        r"`covariates` has shape \(3, 1\); it must be \(P,\) or \(4, P\)",
        mjp.panel,
        STATES,
        TIMES,
        {**TWO, "covariates": np.ones((3, 1))},
    ),
    (
        r"`covariates` has shape \(2,\); it must be \(2, P\) or \(2, 4, P\)",
        mjp.panel,
        PAIR,
        TIMES,
        {**TWO, "covariates": np.ones(2)},
    ),
    (
        r"`covariates` has an entry that is not finite",
        mjp.panel,
        PAIR,
        TIMES,
        {**TWO, "covariates": [[1.0], [NAN]]},
    ),
    (
        r"With path=True `emission` must return",
        levels,
        STATES,
        TIMES,
        {**TWO, "path": True, "emission": lambda n: dist.Normal(jnp.arange(n), 1.0)},
    ),
    (
        r"`emission` has batch shape \(3,\); 2 states need \(2,\)",
        levels,
        STATES,
        TIMES,
        {**TWO, "emission": lambda n: dist.Normal(jnp.arange(n + 1), 1.0)},
    ),
    (r"must return a function of the state", levels, STATES, TIMES, {**TWO, "emission": lambda n: 3.0}),
    (r"`confusion` is 'uniform', booleans", mjp.misclassified, STATES, TIMES, {**TWO, "confusion": "none"}),
    (
        r"Row 0 of `confusion` is no law of the label: it sums to 1.1",
        mjp.misclassified,
        STATES,
        TIMES,
        {**TWO, "confusion": np.array([[0.9, 0.2], [0.1, 0.9]])},
    ),
    (
        r"Row 1 of `confusion` is no law of the label",
        mjp.misclassified,
        STATES,
        TIMES,
        {**TWO, "confusion": np.array([[0.9, 0.1], [-0.1, 1.1]])},
    ),
    (
        r"`confusion` has shape \(3, 3\); 2 states need \(2, M\)",
        mjp.misclassified,
        STATES,
        TIMES,
        {**TWO, "confusion": np.eye(3)},
    ),
    (
        r"`confusion` has shape \(3, 3\); 2 states need \(2, 2\)",
        mjp.misclassified,
        STATES,
        TIMES,
        {**TWO, "confusion": np.ones((3, 3), bool)},
    ),
    (
        r"`duration` must hold one positive, finite time",
        mjp.complete,
        PATHS,
        [2.0, 3.0, 0.0],
        {"num_states": 3},
    ),
    (
        r"`duration` must hold one positive, finite time",
        mjp.complete,
        PATHS,
        [2.0, 3.0, np.inf],
        {"num_states": 3},
    ),
    (r"`duration` must hold one positive, finite time", mjp.complete, PATHS, 2.0, {"num_states": 3}),
    (
        r"`paths` has shape \(3, 3, 2\); 1 durations need \(1, J, 2\)",
        mjp.complete,
        PATHS,
        [2.0],
        {"num_states": 3},
    ),
    (r"integers from 0 to 1; `paths` holds others", mjp.complete, PATHS, DURATION, TWO),
    (
        r"`max_jumps` is 1, and the paths have room for 2",
        mjp.complete,
        PATHS,
        DURATION,
        {"num_states": 3, "max_jumps": 1},
    ),
    (r"To simulate, `max_jumps` must say", mjp.complete, None, DURATION, TWO),
    (
        r"`time_unit` must be positive, not -1",
        mjp.complete,
        PATHS,
        DURATION,
        {"num_states": 3, "time_unit": -1.0},
    ),
    (
        r"`covariates` of complete paths do not vary in time",
        mjp.complete,
        PATHS,
        DURATION,
        {"num_states": 3, "covariates": np.ones((3, 1, 1))},
    ),
    (
        r"State 2 is absorbing",
        mjp.complete,
        PATHS,
        DURATION,
        {"num_states": 3, "initial": "stationary", "rates": "linear_chain"},
    ),
]


@pytest.mark.parametrize(("message", "model", "y", "times", "kwargs"), BAD, ids=range(len(BAD)))
def test_bad_input_is_refused_in_a_sentence(message, model, y, times, kwargs):
    y = None if y is None else np.asarray(y)
    with pytest.raises(ValueError, match=message):
        handlers.seed(model, 0)(y, times if times is None else np.asarray(times), **kwargs)


def test_what_looks_bad_and_is_not():
    quiet = handlers.seed(mjp.panel, 0)
    # Beyond its length and behind its mask a series may hold anything, and a single observation among several.
    quiet(np.array([[0, 1, -9, 7], [1, 1, 0, 1]]), TIMES, num_states=2, lengths=np.array([2, 4]))
    quiet(np.array([[0, -9, -9, -9], [1, 1, 0, 1]]), TIMES, num_states=2, lengths=np.array([1, 4]))
    quiet(np.array([0, -5, 1, 1]), TIMES, num_states=2, mask=np.array([1, 0, 1, 1], bool))
    quiet(np.array([[0, 1], [1, 0]]), np.array([[0.0, 1.0], [-3.0, 1.0]]), num_states=2)
    # A state that nobody was seen in.
    quiet(np.array([0, 1, 0, 0]), TIMES, num_states=3)
