"""The Langevin flow: its sites, what it refuses, and the questions asked of a fit."""

from __future__ import annotations

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import xarray as xr
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy.ndimage import gaussian_filter1d

from sojourn.inference._labels import Labels, site_dims
from sojourn.models import langevin_flow

RNG = np.random.default_rng(3)
COUNTS = RNG.poisson(1.5, (3, 8, 4)).astype(float)
GAPS = COUNTS.copy()
GAPS[0, 5:] = np.nan
GAPS[1, :, 2] = np.nan
GAPS[2, 3, 0] = np.nan


def trace_of(*args, **kwargs):
    """Sites, without compiling anything."""
    found = {}

    def run(key):
        found.update(handlers.trace(handlers.seed(langevin_flow.spikes, key)).get_trace(*args, **kwargs))
        return ()

    jax.eval_shape(run, jax.random.key(0))
    return found


class _Stopped(Exception):
    pass


class learnt(handlers.trace):
    """Stops at the first sample site: what is learnt comes before."""

    def process_message(self, msg):
        if msg["type"] == "sample":
            raise _Stopped


def starts(*args, **kwargs):
    """What is learnt, at its start."""
    with pytest.raises(_Stopped), learnt() as trace:
        langevin_flow.spikes(*args, **kwargs)
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


# ----------------------------------------------------------------------------------------------------------- sites


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        (
            {"counts": COUNTS, "held_out": [1]},
            {
                "initial_state": ["trial", "phase", "dim"],
                "noise": ["time", "trial", "dim"],
                "spikes": ["time", "trial", "seen_neuron"],
                "held_out_spikes": ["time", "trial", "held_out_neuron"],
            },
        ),
        (
            {"counts": COUNTS[0]},
            {
                "initial_state": ["phase", "dim"],
                "noise": ["time", "dim"],
                "spikes": ["time", "neuron"],
            },
        ),
    ],
)
def test_sites_have_names_for_their_axes(kwargs, expected):
    trace = trace_of(**kwargs, num_dims=2)
    samples = {n: s for n, s in trace.items() if s["type"] == "sample"}
    assert {n: site_dims(s) for n, s in samples.items()} == expected
    shapes = {n: s["value"].shape for n, s in trace.items() if s["type"] in ("sample", "deterministic")}
    labels = Labels(shapes, trace)
    trials = ["trial"] if kwargs["counts"].ndim == 3 else []
    assert labels.dims["rate"] == ["time", *trials, "neuron"]
    assert labels.dims["latent"] == labels.dims["velocity"] == ["time", *trials, "dim"]
    assert shapes["latent"] == (8, *kwargs["counts"].shape[:-2], 2)
    if "held_out" in kwargs:
        assert labels.coords["seen_neuron"].tolist() == [0, 2, 3]
        assert labels.coords["held_out_neuron"].tolist() == [1]


def test_simulated_counts_are_in_the_order_of_the_neurons():
    held_out = np.array([False, True, False, True, False])

    @jax.jit
    def simulate(key):
        with handlers.seed(rng_seed=key), handlers.trace() as trace:
            counts = langevin_flow.spikes(
                num_dims=2, held_out=held_out, num_steps=6, num_trials=3, num_neurons=5, seed=1
            )
        return counts, trace["spikes"]["value"], trace["held_out_spikes"]["value"]

    counts, seen, hidden = simulate(jax.random.key(1))
    assert counts.shape == (3, 6, 5)
    assert np.array_equal(counts[..., held_out], np.moveaxis(hidden, 0, 1))
    assert np.array_equal(counts[..., ~held_out], np.moveaxis(seen, 0, 1))
    assert len(np.unique(counts)) > 2


def test_starting_values():
    counts = COUNTS.copy()
    counts[..., 1] = 0
    counts[..., 2] = np.nan
    start = starts(counts, num_dims=3)
    seen = np.log([COUNTS[..., 0].mean(), 0.5 / 24, 0.5, COUNTS[..., 3].mean()])
    np.testing.assert_allclose(start["baseline"], seen, rtol=1e-6)
    assert set(start) == {"loading", "baseline", "friction", "time_step", "stiffness", "coupling"}
    assert start["loading"].shape == (3, 4)
    again, other = starts(counts, num_dims=3), starts(counts, num_dims=3, seed=1)
    assert all(np.array_equal(start[n], again[n]) for n in start)
    assert not np.array_equal(start["loading"], other["loading"])
    network = starts(counts, num_dims=3, potential="network", hidden=5, friction=0.5, time_step=0.1)
    assert set(network) == {"loading", "baseline", "stiffness", "coupling", "potential$params"}
    assert network["potential$params"].layers[0].weight.shape == (5, 3)


class Well(eqx.Module):
    depth: jax.Array

    def __call__(self, z):
        return self.depth * jnp.sum((z**2 - 1) ** 2)


def declared():
    depth = numpyro.param("depth", jnp.array(2.0))
    return lambda z: depth * jnp.sum((z**2 - 1) ** 2)


def one_step(potential):
    """The state after one step from a given one, without noise."""

    @jax.jit
    def step(state):
        fixed = {"initial_state": state, "noise": jnp.zeros((1, 2))}
        with handlers.trace() as trace, handlers.substitute(data=fixed):
            langevin_flow.spikes(
                np.ones((1, 1)), num_dims=2, potential=potential, friction=0.8, time_step=0.25
            )
        return jnp.concatenate([trace["latent"]["value"], trace["velocity"]["value"]])

    return step(np.array([[0.3, -0.7], [0.2, 0.5]]))


@pytest.mark.parametrize(
    "potential", [Well(jnp.array(2.0)), declared, lambda z: 2 * jnp.sum((z**2 - 1) ** 2)]
)
def test_a_potential_of_ones_own(potential):
    z, v = np.array([0.3, -0.7]), np.array([0.2, 0.5])
    v = v - 0.25 * 8 * z * (z**2 - 1)
    z = z + 0.25 * v
    np.testing.assert_allclose(one_step(potential), [z, np.exp(-0.2) * v], rtol=1e-5)


def test_a_module_is_learnt():
    assert "potential$params" in starts(COUNTS, num_dims=2, potential=Well(jnp.array(2.0)))
    assert "depth" in starts(COUNTS, num_dims=2, potential=declared)


def test_the_network_is_bounded():
    """So that U grows like the ring's, whatever is learnt."""
    network = starts(COUNTS, num_dims=2, potential="network")["potential$params"]
    network = eqx.combine(network, langevin_flow._network(2, 32, 0, "float32"))
    loud = jax.tree.map(lambda x: 1e3 * x if eqx.is_inexact_array(x) else x, network)
    values = jax.vmap(loud)(jnp.asarray(RNG.normal(size=(50, 2)), jnp.float32))
    assert abs(values).max() <= 10.0
    assert values.min() < -9.0
    assert values.max() > 9.0


def test_gradients_live_where_rates_would_overflow():
    """Baselines at which exp() is infinite, or zero where spikes were seen."""
    latents = {
        "initial_state": jnp.asarray(RNG.normal(size=(3, 2, 2)), float),
        "noise": jnp.asarray(RNG.normal(size=(8, 3, 2)), float),
    }

    @jax.jit
    @jax.value_and_grad
    def log_joint(baseline):
        model = handlers.substitute(langevin_flow.spikes, data={"baseline": baseline})
        return log_density(model, (GAPS,), {"num_dims": 2, "held_out": [1]}, latents)[0]

    for size in (200.0, 1e20):
        value, gradient = log_joint(jnp.array([size, -size, size, -size]))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert (np.sign(gradient) == [-1, 1, -1, 1]).all()


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"counts": COUNTS[0, 0]},
            r"`counts` has shape \(4,\); it must be \(T, neurons\) or \(trials, T, neur",
        ),
        ({"counts": COUNTS[:, :0]}, r"`counts` has shape \(3, 0, 4\)"),
        ({"counts": -COUNTS}, r"non-negative integers; at index \(0, 0, \d\) stands -"),
        ({"counts": COUNTS + 0.5}, "non-negative integers"),
        ({"counts": np.where(COUNTS > 2, np.inf, COUNTS)}, r"`counts` is infinite at index \(0, \d, \d\)"),
        ({"counts": np.full((5, 2), np.nan)}, "`counts` is NaN throughout"),
        ({"num_neurons": 3}, "to simulate, `num_steps` must be a positive integer; got None"),
        ({"num_steps": 3, "num_neurons": 0}, "to simulate, `num_neurons` must be a positive integer; got 0"),
        ({"num_steps": 3, "num_neurons": 3, "num_trials": 0}, "`num_trials` must be positive, or None"),
        ({"counts": COUNTS, "num_dims": 0}, "`num_dims` must be a positive integer, not 0"),
        ({"counts": COUNTS, "hidden": 0.5}, "`hidden` must be a positive integer, not 0.5"),
        (
            {"counts": COUNTS, "held_out": [4]},
            r"different indices from 0 to 3, one for each neuron; got \[4\]",
        ),
        ({"counts": COUNTS, "held_out": [1, 1]}, r"different indices from 0 to 3.*got \[1, 1\]"),
        ({"counts": COUNTS, "held_out": [-1]}, "different indices from 0 to 3"),
        ({"counts": COUNTS, "held_out": []}, "`held_out` must be indices of neurons, or booleans"),
        ({"counts": COUNTS, "held_out": [True, False]}, r"`held_out` has shape \(2,\); as booleans it needs"),
        ({"counts": COUNTS, "held_out": range(4)}, "`held_out` holds all 4 neurons; leave some"),
        ({"counts": COUNTS, "friction": 0.0}, "`friction` must be a positive number, or None to learn it"),
        ({"counts": COUNTS, "time_step": np.nan}, "`time_step` must be a positive number, or None to learn"),
        ({"counts": COUNTS, "potential": "quartic"}, "`potential` is 'oscillators', 'network', an equinox"),
        ({"counts": COUNTS, "potential": 3.0}, "an equinox module or a function of the position; got 3.0"),
        ({"counts": COUNTS, "potential": lambda z: z**2}, r"one position \(6,\) to one real number; it retu"),
        ({"counts": COUNTS, "potential": lambda z: 1}, "to one real number; it returned"),
    ],
)
def test_bad_input_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message), handlers.seed(rng_seed=0):
        langevin_flow.spikes(**kwargs)


# -------------------------------------------------------------------------------------------------- simulated data


@pytest.fixture(scope="module")
def data():
    return langevin_flow.lorenz_spikes(2, num_conditions=3, num_trials=4)


def fit_of(rate, **groups):
    """A fit whose two draws have this mean rate, (time, trial, neuron) as a scan leaves it."""
    draws = xr.concat([0.5 * rate, 1.5 * rate], "draw").expand_dims("chain")
    posterior = xr.Dataset({"rate": draws.transpose("chain", "draw", "time", ..., "neuron")})
    return types.SimpleNamespace(posterior=posterior, **groups)


def test_lorenz_spikes(data):
    xr.testing.assert_identical(data, langevin_flow.lorenz_spikes(2, num_conditions=3, num_trials=4))
    assert not data["spikes"].equals(langevin_flow.lorenz_spikes(3, num_conditions=3, num_trials=4)["spikes"])
    assert data["condition"].values.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.ptp(data["rate"].values.reshape(3, 4, 60, 30), 1).max() == 0.0
    assert abs(data["behaviour"]).max() == 1.0
    # A sum of independent Poisson variables; 4 standard deviations.
    total = float(data["rate"].sum())
    assert abs(float(data["spikes"].sum()) - total) < 4 * np.sqrt(total)
    # The coordinates obey the equations: those of x and y differ by x's derivative over 10.
    b = data["behaviour"].values
    slope = np.gradient(b[..., 0], 0.015, axis=1)[:, 1:-1]
    between = 10 * (b[..., 1] - b[..., 0])[:, 1:-1]
    assert np.corrcoef(slope.ravel(), between.ravel())[0, 1] > 0.99
    with pytest.raises(ValueError, match="all of its numbers and its step must be positive"):
        langevin_flow.lorenz_spikes(num_neurons=0)


# ---------------------------------------------------------------------------------------------------- the questions


def test_bits_per_spike_leaves_out_what_is_missing(data):
    rates, counts = data["rate"].values, data["spikes"].values.astype(float)
    gaps = counts.copy()
    gaps[:, 40:] = np.nan
    assert langevin_flow.bits_per_spike(rates, gaps) == pytest.approx(
        langevin_flow.bits_per_spike(rates[:, :40], counts[:, :40]), rel=1e-12
    )
    gaps[..., 3] = np.nan
    assert np.isfinite(langevin_flow.bits_per_spike(rates, gaps))
    names = data["rate"].transpose("neuron", "time", "trial")
    assert langevin_flow.bits_per_spike(names, data["spikes"]) == langevin_flow.bits_per_spike(rates, counts)
    assert langevin_flow.bits_per_spike([[0.0], [1.0]], [[1], [1]]) == -np.inf


def test_constant_rates_tell_nothing(data):
    counts = data["spikes"].values
    constant = np.broadcast_to(counts.mean((0, 1)), counts.shape)
    assert langevin_flow.bits_per_spike(constant, counts) == pytest.approx(0.0, abs=1e-12)
    assert langevin_flow.bits_per_spike(2 * constant, counts, null=2 * constant) == 0.0


def test_answers_are_those_of_the_mean_rate(data):
    rates, counts = data["rate"].values, data["spikes"].values
    fit = fit_of(data["rate"])
    held_out = [2, 5]
    answer = langevin_flow.co_smoothing(fit, counts, held_out)
    assert float(answer) == pytest.approx(
        langevin_flow.bits_per_spike(rates[..., held_out], counts[..., held_out])
    )
    assert answer.attrs == {"spikes": counts[..., held_out].sum(), "neurons": 2}
    answer = langevin_flow.forward_prediction(fit, data["spikes"], 50, null=np.ones(30))
    ahead = langevin_flow.bits_per_spike(rates[:, 50:], counts[:, 50:], np.ones(30))
    assert float(answer) == pytest.approx(ahead)
    one = fit_of(data["rate"][0])
    assert float(langevin_flow.co_smoothing(one, counts[0], held_out)) == pytest.approx(
        langevin_flow.bits_per_spike(rates[0][:, held_out], counts[0][:, held_out])
    )


def test_forward_prediction_asks_for_bins_that_were_hidden(data):
    shown = data["spikes"].astype(float)
    fit = fit_of(data["rate"], constant_data=xr.Dataset({"counts": shown}))
    with pytest.raises(ValueError, match="the fit was shown bins from 50 on; fit counts that are NaN there"):
        langevin_flow.forward_prediction(fit, data["spikes"], 50)
    hidden = shown.where(shown["time"] < 50)
    fit = fit_of(data["rate"], constant_data=xr.Dataset({"counts": hidden}))
    assert np.isfinite(langevin_flow.forward_prediction(fit, data["spikes"], 50))


def test_rate_r2(data):
    rate = data["rate"]
    assert langevin_flow.rate_r2(rate.transpose("time", "neuron", "trial"), rate) == 1.0
    assert langevin_flow.rate_r2(xr.zeros_like(rate) + rate.mean(("trial", "time")), rate) == pytest.approx(0)
    with pytest.raises(ValueError, match="`truth` does not vary"):
        langevin_flow.rate_r2(np.ones((3, 2)), np.ones((3, 2)))


def test_gaussian_smoothing(data):
    counts = data["spikes"]
    smooth = langevin_flow.gaussian_smoothing(counts, [1.0, 2.5])
    assert smooth.dims == ("width", "trial", "time", "neuron")
    assert smooth["condition"].equals(counts["condition"])
    expected = gaussian_filter1d(counts.values.astype(float), 2.5, axis=1)
    np.testing.assert_allclose(smooth.sel(width=2.5), expected, rtol=1e-12)
    one = langevin_flow.gaussian_smoothing(counts.values[0], 1.0)
    assert one.dims == ("time", "neuron")
    np.testing.assert_array_equal(one, smooth.values[0, 0])
    # Missing bins weigh nothing: a constant stays one, and out of reach the mean stands.
    gaps = np.full((60, 2), 3.0)
    gaps[20:] = np.nan
    gaps[:, 1] = np.nan
    rates = langevin_flow.gaussian_smoothing(gaps, 2.0)
    np.testing.assert_allclose(rates[:, 0], 3.0, rtol=1e-12)
    np.testing.assert_array_equal(rates[:, 1], 0.0)


def test_decode_is_ridge_regression():
    x, y = RNG.normal(size=(6, 10, 3)), RNG.normal(size=(6, 10, 2))
    answer = langevin_flow.decode(x, y, x[:2], y[:2], penalties=[0.3])
    flat, target = x.reshape(-1, 3), y.reshape(-1, 2)
    z = (flat - flat.mean(0)) / flat.std(0)
    w = np.linalg.solve(z.T @ z + 60 * 0.3 * np.eye(3), z.T @ (target - target.mean(0)))
    expected = (z @ w + target.mean(0)).reshape(6, 10, 2)[:2]
    np.testing.assert_allclose(answer["prediction"], expected, rtol=1e-10)
    assert answer.attrs == {"penalty": 0.3}
    left = ((expected - y[:2]) ** 2).sum((0, 1))
    r2 = 1 - left / ((y[:2] - y[:2].mean((0, 1))) ** 2).sum((0, 1))
    np.testing.assert_allclose(answer["r2"], r2, rtol=1e-10)


def test_decode_chooses_its_penalty():
    x = RNG.normal(size=(10, 20, 4))
    signal = x @ RNG.normal(size=(4, 2)) + 1.0
    clear = langevin_flow.decode(x[:8], signal[:8], x[8:], signal[8:])
    assert clear.attrs["penalty"] == pytest.approx(1e-6)
    assert float(clear["r2_total"]) > 1 - 1e-9
    noise = langevin_flow.decode(x[:8], RNG.normal(size=(8, 20, 2)), x[8:])
    assert noise.attrs["penalty"] >= 1.0
    assert set(noise.data_vars) == {"prediction"}
    # One recording: (T, D), in stretches; and labelled arrays whose time comes first, as in a fit.
    flat = langevin_flow.decode(x[0], signal[0], x[1], signal[1])
    assert flat["prediction"].dims == ("time", "coordinate")
    named = xr.DataArray(x, dims=("trial", "time", "dim")).transpose("time", "trial", "dim")
    again = langevin_flow.decode(named[:, :8], signal[:8], named[:, 8:], signal[8:])
    np.testing.assert_allclose(again["prediction"], clear["prediction"], rtol=1e-12)


A = np.ones((4, 5, 2))
ASKED_WRONGLY = {
    "other shapes": (
        lambda f: f.bits_per_spike(np.ones((2, 3)), np.ones((3, 2))),
        r"the rates have shape \(2, 3\) and `counts` \(3, 2\); they must be the same, neurons last",
    ),
    "negative rates": (
        lambda f: f.bits_per_spike(-np.ones((2, 3)), np.ones((2, 3))),
        "`rates` must be finite and not negative, in spikes a bin",
    ),
    "no spikes": (lambda f: f.bits_per_spike(A, 0 * A), "`counts` holds no spike, so nothing can be said"),
    "no rate": (
        lambda f: f.co_smoothing(types.SimpleNamespace(posterior=xr.Dataset()), A, [0]),
        "The fit has no `rate`: it is not of sojourn.models.langevin_flow.spikes",
    ),
    "no bin": (
        lambda f: f.forward_prediction(fit_of(xr.DataArray(A, dims=("trial", "time", "neuron"))), A, 5),
        "`start` must lie between 1 and 4, the last bin; got 5",
    ),
    "width": (lambda f: f.gaussian_smoothing(A, [1.0, 0.0]), "`widths` must be positive, in bins; got"),
    "counts": (
        lambda f: f.gaussian_smoothing(A[0, 0], 1.0),
        r"`counts` has shape \(2,\); it must be \(T, neu",
    ),
    "not finite": (
        lambda f: f.decode(np.nan * A, A, A),
        "`train_latents` must be finite and of shape.*holds NaN",
    ),
    "not aligned": (
        lambda f: f.decode(A, A[:3], A),
        r"latents \(4, 5, 2\) and behaviour \(3, 5, 2\) must share",
    ),
    "columns": (
        lambda f: f.decode(A, A, A[..., :1]),
        "must have as many columns for testing as for training",
    ),
    "penalties": (lambda f: f.decode(A, A, A, penalties=[0.0]), "`penalties` must be positive"),
    "folds": (
        lambda f: f.decode(A, A, A, num_folds=5),
        "between 2 and the 4 trials of the training set; got 5",
    ),
}


@pytest.mark.parametrize("case", ASKED_WRONGLY)
def test_bad_questions_are_refused(case):
    ask, message = ASKED_WRONGLY[case]
    with pytest.raises(ValueError, match=message):
        ask(langevin_flow)
