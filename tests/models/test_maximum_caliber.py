"""The models of maximum caliber: their likelihoods, what they find again, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

import sojourn as sj
from sojourn.models import maximum_caliber as mc

SWITCH = np.array([[-1.0, 1.0], [1.0, -1.0]])
OCCUPIED = np.array([[0.0, 1.0]])
RING = np.array([[-3.0, 2.0, 1.0], [1.0, -3.0, 2.0], [2.0, 1.0, -3.0]])
VOLTAGES = np.array([-60.0, -40.0, -20.0, 0.0, 20.0])
TRUTH = {"preference": np.array([0.5, 1.0]), "gating_charge": np.array(2.5), "activity": np.array(2.0)}


def trace(model, values, *args, **kwargs):
    seeded = handlers.seed(handlers.substitute(model, data=values), 0)
    return handlers.trace(seeded).get_trace(*args, **kwargs)


def channel_rates(preference, gating_charge, activity, voltages=VOLTAGES, kT=25.2617):
    """Rates as in a textbook: Boltzmann's law, half of the difference in each direction."""
    energy = np.stack(
        [
            0.0 * voltages,
            preference[0] + gating_charge * voltages / kT / 2,
            preference[1] + gating_charge * voltages / kT,
        ],
        -1,
    )
    chain = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    return activity * chain * np.exp((energy[:, None, :] - energy[:, :, None]) / 2)


def simulate(rng, moves, duration):
    """Jump counts and dwell times of one path of fixed duration (Gillespie), from the law of Boltzmann."""
    law = np.append(1.0, np.cumprod(np.diagonal(moves, 1) / np.diagonal(moves, -1)))
    state, left = rng.choice(len(moves), p=law / law.sum()), duration
    counts, times = np.zeros(moves.shape, int), np.zeros(len(moves))
    while True:
        stay = rng.exponential(1 / moves[state].sum())
        times[state] += min(stay, left)
        left -= stay
        if left < 0:
            return counts, times
        new = rng.choice(len(moves), p=moves[state] / moves[state].sum())
        counts[state, new] += 1
        state = new


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(11)
    pairs = [simulate(rng, moves, 150.0) for moves in channel_rates(**TRUTH)]
    return np.stack([c for c, _ in pairs]), np.stack([t for _, t in pairs])


# ---------------------------------------------------------------------------------------------- likelihood


def test_poisson_counts_have_the_likelihood_of_the_record(x64):
    """They differ by a number that holds no parameter: the same at every tilt."""
    counts, times = np.array([[0, 3, 1], [2, 0, 4], [2, 3, 0]]), np.array([1.5, 2.5, 3.0])
    process = {"rate_matrix": RING, "dwell": np.array([[0.0, 1.0, 2.0]])}
    off = []
    for tilt in (-1.0, 0.3, 2.0):
        sites = trace(mc.complete_record, {"tilt": np.array([tilt])}, counts, times, **process)
        rates = np.asarray(sites["driven_rate_matrix"]["value"])
        moves = ~np.eye(3, dtype=bool)
        path = (counts[moves] * np.log(rates[moves])).sum() + np.diagonal(rates) @ times
        site = sites["jump_counts"]
        off.append(float(site["fn"].log_prob(site["value"]).sum()) - path)
    assert np.ptp(off) < 1e-10


def test_deterministic_sites(x64):
    values = {"tilt": np.array([0.4])}
    jump = np.asarray(mc.entropy_flow(RING))[None]
    sites = trace(mc.complete_record, values, None, np.ones(3), rate_matrix=RING, jump=jump)
    process = (values["tilt"], RING, None, jump)
    assert float(sites["free_energy"]["value"]) == pytest.approx(float(mc.free_energy(*process)))
    np.testing.assert_allclose(sites["average"]["value"], mc.averages(*process))
    np.testing.assert_allclose(sites["covariance"]["value"], mc.covariances(*process))
    # A ring with equal steps keeps its law, and goes round with rates 2 e^{h} and e^{-h}, h the tilt times log 2.
    h = 0.4 * np.log(2.0)
    ahead, back = 2 * np.exp(h), np.exp(-h)
    expected = (ahead - back) * np.log(ahead / back)
    assert float(sites["entropy_production"]["value"]) == pytest.approx(expected, rel=1e-10)


def test_channel_is_of_maximum_caliber(x64):
    """The recorded tilts lead, by the Doob transform, to the textbook rates at every voltage."""
    sites = trace(mc.voltage_gated_channel, TRUTH, None, np.ones((5, 3)), voltages=VOLTAGES)
    rates = channel_rates(**TRUTH)
    found = np.asarray(sites["driven_rate_matrix"]["value"])
    np.testing.assert_allclose(np.where(np.eye(3), 0.0, found), rates, rtol=1e-6)  # to the digits of kT
    site = sites["jump_counts"]["fn"].base_dist
    np.testing.assert_allclose(site.rate, found[:, [0, 1, 1, 2], [1, 0, 2, 1]], rtol=1e-9)
    law = np.asarray(sites["stationary"]["value"])
    flow = law[:, :, None] * found
    np.testing.assert_allclose(flow, np.swapaxes(flow, 1, 2), atol=1e-12)
    jumps = flow.sum((1, 2)) - np.trace(flow, axis1=1, axis2=2)
    expected = np.stack([law[:, 2], law[:, 1] / 2 + law[:, 2], jumps], -1)
    np.testing.assert_allclose(sites["average"]["value"], expected, rtol=1e-9)
    # Half-activation: z = kT d log(p_O / p_C1) / d V.
    slope = np.log(law[3, 2] / law[3, 0]) - np.log(law[2, 2] / law[2, 0])
    assert slope * 25.2617 / 20.0 == pytest.approx(2.5, rel=1e-5)


def test_averages_of_paths_have_the_law_that_the_model_says():
    """400 paths of one voltage. Means within 4.5 standard errors, and variances within 4.5 of theirs, 4.5 / sqrt(200);
    the remainder of order 1 / T is 2 % here (relaxation 0.3, duration 60; stationary start)."""
    duration, number = 60.0, 400
    sites = trace(mc.voltage_gated_channel_averages, TRUTH, None, duration=duration, voltages=VOLTAGES[1:2])
    mean = np.asarray(sites["expected_average"]["value"])[0]
    sd = np.sqrt(np.diagonal(np.asarray(sites["covariance"]["value"])[0]) / duration)
    rng = np.random.default_rng(4)
    moves = channel_rates(**TRUTH)[1]
    paths = [simulate(rng, moves, duration) for _ in range(number)]
    found = np.array([[t[2], t[1] / 2 + t[2], c.sum()] for c, t in paths]) / duration
    assert (np.abs(found.mean(0) - mean) < 4.5 * sd / np.sqrt(number)).all()
    np.testing.assert_allclose(found.var(0) / sd**2, 1.0, atol=4.5 / np.sqrt(number / 2) + 0.02)


def test_simulation():
    draws = Predictive(mc.long_run_averages, {"tilt": jnp.full((500, 1), 0.5)})(
        jax.random.key(1), None, duration=50.0, rate_matrix=SWITCH, dwell=OCCUPIED
    )["average"]
    assert draws.shape == (500, 1, 1)
    mean = float(mc.averages(np.array([0.5]), SWITCH, OCCUPIED)[0])
    sd = float(jnp.sqrt(mc.covariances(np.array([0.5]), SWITCH, OCCUPIED)[0, 0] / 50.0))
    assert abs(float(draws.mean()) - mean) < 4.5 * sd / np.sqrt(500)
    assert float(draws.std()) == pytest.approx(sd, rel=4.5 / np.sqrt(1000))


def test_a_state_never_visited_adds_nothing():
    counts, times = np.zeros((1, 3, 3), int), np.array([[5.0, 0.0, 0.0]])
    (value, _), gradient = jax.value_and_grad(
        lambda z: log_density(
            mc.voltage_gated_channel,
            (counts, times),
            {"voltages": np.zeros(1)},
            {**TRUTH, "gating_charge": z},
        ),
        has_aux=True,
    )(2.5)
    assert np.isfinite(value)
    assert np.isfinite(gradient)


# ------------------------------------------------------------------------------------------------------ fits


def assert_recovered(fit, truth=TRUTH):
    for name, true in truth.items():
        draws = fit.posterior[name]
        mean, sd = draws.mean(("chain", "draw")).values, draws.std(("chain", "draw")).values
        assert (np.abs(mean - true) < 4.0 * sd).all(), name
        assert (sd < 0.2 * np.abs(true) + 0.1).all(), name


def test_nuts_finds_the_channel_again(records):
    counts, times = records
    fit = sj.fit(
        mc.voltage_gated_channel,
        counts,
        times,
        voltages=VOLTAGES,
        num_warmup=200,
        num_samples=200,
        num_chains=2,
        progress_bar=False,
    )
    assert_recovered(fit)
    assert fit.posterior["preference"].dims == ("chain", "draw", "excited")
    assert fit.observed_data["jump_counts"].dims == ("voltage", "move")
    assert list(fit.observed_data["move"].values) == ["C1->C2", "C2->C1", "C2->O", "O->C2"]
    np.testing.assert_array_equal(fit.observed_data["voltage"], VOLTAGES)
    assert fit.log_likelihood["jump_counts"].dims == ("chain", "draw", "voltage")
    assert int(fit.sample_stats["diverging"].sum()) == 0
    # Conjugate check: with its law known, the activity is Gamma(jumps, total exit per unit activity).
    exits = channel_rates(TRUTH["preference"], TRUTH["gating_charge"], 1.0).sum(-1)
    jumps, exposure = counts.sum(), (exits * times).sum()
    assert float(fit.posterior["activity"].mean()) == pytest.approx(jumps / exposure, rel=5 / np.sqrt(jumps))


def test_nuts_finds_it_from_averages_alone(records):
    counts, times = records
    average = np.stack([times[:, 2], times[:, 1] / 2 + times[:, 2], counts.sum((1, 2))], -1) / 150.0
    fit = sj.fit(
        mc.voltage_gated_channel_averages,
        average,
        duration=150.0,
        voltages=VOLTAGES,
        num_warmup=150,
        num_samples=100,
        num_chains=1,
        progress_bar=False,
    )
    assert_recovered(fit)
    assert list(fit.observed_data["observable"].values) == ["open", "charge", "jumps"]


def test_variational_fit_of_a_tilt():
    """Two states: 140 jumps up in 100, 60 down in 120. The posterior mode of the one tilt solves a scalar equation."""
    counts, times = np.array([[0, 140], [60, 0]]), np.array([100.0, 120.0])
    prior = dist.Normal(0.0, 2.0)
    fit = sj.fit(
        mc.complete_record,
        counts,
        times,
        rate_matrix=SWITCH,
        dwell=OCCUPIED,
        tilt_prior=prior,
        observables=["occupied"],
        engine=sj.Variational(num_restarts=1, max_steps=3000),
        num_samples=500,
        progress_bar=False,
    )
    # Driven rates are e^h and e^{-h} with 2 sinh h = tilt.
    h = np.linspace(-1.5, 1.5, 20001)
    tilt = 2 * np.sinh(h)
    log = 140 * h - 100 * np.exp(h) - 60 * h - 120 * np.exp(-h) + np.asarray(prior.log_prob(tilt))
    weight = np.exp(log - log.max()) * 2 * np.cosh(h)
    mean = (weight * tilt).sum() / weight.sum()
    sd = np.sqrt((weight * (tilt - mean) ** 2).sum() / weight.sum())
    draws = fit.posterior["tilt"].sel(observable="occupied")
    assert float(draws.mean()) == pytest.approx(
        mean, abs=0.3 * sd
    )  # Monte Carlo error 0.05 sd, and the optimiser's
    assert float(draws.std()) == pytest.approx(sd, rel=0.25)


# --------------------------------------------------------------------------------------------------- refused

REFUSED = {
    "no observables": (lambda: mc.free_energy(np.zeros(1), SWITCH), "pass `dwell`, `jump` or both"),
    "rows": (
        lambda: mc.free_energy(np.zeros(1), np.array([[-1.0, 2.0], [1.0, -1.0]]), OCCUPIED),
        "Row 0 of `rate_matrix` sums to 1",
    ),
    "reducible": (
        lambda: mc.free_energy(np.zeros(1), np.array([[-1.0, 1.0], [0.0, 0.0]]), OCCUPIED),
        "`rate_matrix` is reducible",
    ),
    "shapes": (
        lambda: mc.averages(np.zeros(2), SWITCH, OCCUPIED),
        r"`tilt` has shape \(2,\) and `dwell` \(1, 2\)",
    ),
    "not finite": (
        lambda: mc.averages(np.array([np.nan]), SWITCH, OCCUPIED),
        "`tilt` has an entry that is not",
    ),
    "beyond the edge": (
        lambda: mc.solve_tilt(np.array([1.2]), SWITCH, OCCUPIED),
        r"No tilt gives the averages \[1.2",
    ),
    "at the edge": (lambda: mc.solve_tilt(np.array([0.0]), SWITCH, OCCUPIED), "No tilt gives the averages"),
    "redundant": (
        lambda: mc.solve_tilt(np.array([0.4, 0.6]), SWITCH, np.eye(2)),
        "The observables are redundant",
    ),
    "no net current on a chain": (
        lambda: mc.solve_tilt(np.array([0.1]), SWITCH, jump=np.array([[[0.0, 1.0], [-1.0, 0.0]]])),
        "The observables are redundant",
    ),
    "duration": (
        lambda: mc.finite_time_free_energy(np.zeros(1), SWITCH, OCCUPIED, duration=0.0),
        "`duration` must be positive",
    ),
    "initial": (
        lambda: mc.finite_time_free_energy(np.zeros(1), SWITCH, OCCUPIED, duration=1.0, initial=np.ones(2)),
        "sum to one",
    ),
    "cycle": (lambda: mc.cycle_affinity(RING, [0, 1]), "three or more different states"),
    "no dwell times": (
        lambda: mc.complete_record(None, rate_matrix=SWITCH, dwell=OCCUPIED),
        "`dwell_times` are needed",
    ),
    "counts of a forbidden move": (
        lambda: mc.voltage_gated_channel(np.ones((1, 3, 3), int), np.ones((1, 3)), voltages=np.zeros(1)),
        "jump 0 -> 2, and the reference gives no rate",
    ),
    "counts without time": (
        lambda: trace(
            mc.complete_record,
            {},
            np.ones((2, 2), int),
            np.array([1.0, 0.0]),
            rate_matrix=SWITCH,
            dwell=OCCUPIED,
        ),
        "jump 1 -> 0, and no time was spent",
    ),
    "fractions": (
        lambda: mc.voltage_gated_channel(np.full((1, 3, 3), 0.5), np.ones((1, 3)), voltages=np.zeros(1)),
        "whole numbers",
    ),
    "voltages": (
        lambda: mc.voltage_gated_channel(None, np.ones((2, 3)), voltages=np.zeros(3)),
        "3 voltages need",
    ),
    "charge": (
        lambda: mc.voltage_gated_channel(
            None, np.ones((1, 3)), voltages=np.zeros(1), charge_fraction=(0, 0, 1)
        ),
        "`charge_fraction` is",
    ),
    "averages": (
        lambda: trace(mc.long_run_averages, {}, np.ones(2), duration=1.0, rate_matrix=SWITCH, dwell=OCCUPIED),
        "counts 1 observables",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        call()


def test_traced_targets_beyond_reach_are_nan():
    found = jax.jit(lambda a: mc.solve_tilt(a, SWITCH, OCCUPIED))(jnp.array([1.2]))
    assert np.isnan(found).all()
