"""PaRIS and PPG for NumPyro models: functionals, the score, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan

from sojourn.inference._score import read_parametric
from sojourn.inference._smoothing import paris, ppg

Y = jnp.array([0.5, -0.3, 1.2, 2.0, 1.1, 0.2, 0.4, -0.9])
AT = {"phi": 0.7, "q": 0.5}


def kalman(y, phi, q, noise=0.5):
    """Log-likelihood of a stationary autoregression seen in noise; NaN where nothing was seen."""

    def body(state, y):
        mean, variance = phi * state[0], phi**2 * state[1] + q**2
        total = variance + noise**2
        gain = jnp.where(jnp.isnan(y), 0.0, variance / total)
        gap = jnp.where(jnp.isnan(y), 0.0, y - mean)
        term = jnp.where(jnp.isnan(y), 0.0, dist.Normal(0.0, jnp.sqrt(total)).log_prob(gap))
        return (mean + gain * gap, (1 - gain) * variance), term

    return jax.lax.scan(body, (0.0 * phi, q**2 / (1 - phi**2)), y)[1].sum()


def parameters():
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))
    return phi, numpyro.sample("q", dist.HalfNormal(1.0))


def autoregression(y, mean_of=None):
    phi, q = parameters()
    if mean_of is not None:  # data outside the scan
        numpyro.sample("other", dist.Normal(phi, q), obs=mean_of)

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(phi * x, q))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, numpyro.sample("x0", dist.Normal(0.0, q / jnp.sqrt(1 - phi**2))), y)


def rescaled(y):
    """The same law; the sites sample ``x / q``, a parameter rides in the carry and another in the inputs."""
    phi, q = parameters()

    def step(carry, inputs):
        (x, phi, count), (y, scale) = carry, inputs
        u = numpyro.sample("u", dist.Normal(phi * x / scale, 1.0))
        numpyro.sample("y", dist.Normal(scale * u, 0.5), obs=y)
        return (scale * u, phi, count + 1), None

    u0 = numpyro.sample("u0", dist.Normal(0.0, 1 / jnp.sqrt(1 - phi**2)))
    scan(step, (q * u0, phi, 0), (y, jnp.full(y.shape, q)))


def panel(y):
    """Independent series with common parameters."""
    phi, q = parameters()
    with numpyro.plate("series", y.shape[1]):
        x0 = numpyro.sample("x0", dist.Normal(0.0, q / jnp.sqrt(1 - phi**2)))

    def step(x, y):
        with numpyro.plate("series", y.shape[0]):
            x = numpyro.sample("x", dist.Normal(phi * x, q))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    scan(step, x0, y)


def exact_score(*series):
    grads = [jax.grad(kalman, (1, 2))(y, AT["phi"], AT["q"]) for y in series]
    return {"phi": sum(float(g[0]) for g in grads), "q": sum(float(g[1]) for g in grads)}


SETTINGS = {"num_particles": 10, "num_sweeps": 60, "num_burn": 10, "num_repeats": 40}


def test_score():
    """Within 4 standard errors (of 40 repetitions) of the derivative of the Kalman filter, one value missing."""
    y = Y.at[3].set(jnp.nan)
    result = ppg(rescaled, y, parameters=AT, functional="score", **SETTINGS)
    truth = exact_score(y)
    for name in truth:
        assert abs(result.estimate[name] - truth[name]) < 4 * result.standard_error[name]
        assert result.standard_error[name] < 0.2  # of values around 1
    assert result.sweeps["phi"].shape == result.log_evidence.shape == (40, 60)


def test_score_of_a_panel():
    """Three series, each a particle system of its own: within 4 standard errors of the sum of their scores."""
    y = jnp.stack([Y, Y[::-1], 0.5 * Y], 1)
    result = ppg(panel, y, parameters=AT, functional="score", **SETTINGS)
    truth = exact_score(*y.T)
    for name in truth:
        assert abs(result.estimate[name] - truth[name]) < 4 * result.standard_error[name]
        assert result.standard_error[name] < 0.3


def test_data_outside_the_scan_count():
    """Their part of the score is d log N(1.5 | phi, q), and a prior's is its own derivative."""
    parametric = read_parametric(autoregression, (Y, 1.5), {})
    vector, nothing = parametric.flat(AT), jnp.zeros(2)
    z = (1.5 - AT["phi"]) / AT["q"]
    expected = np.array([z / AT["q"], (z**2 - 1) / AT["q"]])
    np.testing.assert_allclose(parametric.total_score(vector, nothing, free=False), expected, rtol=1e-5)
    with_prior = parametric.total_score(vector, nothing, free=False, prior=True)
    np.testing.assert_allclose(with_prior, expected - [0.0, AT["q"]], rtol=1e-5)


def switching(y):
    """Two hidden states, one of them noisy; the carry is a pair."""

    def step(carry, y):
        state, count = carry
        state = numpyro.sample("state", dist.Categorical(TRANSITION[state]))
        numpyro.sample("y", dist.Normal(0.0, SCALE[state]), obs=y)
        return (state, count + 1), None

    scan(step, (0, 0), y)


TRANSITION = jnp.array([[0.9, 0.1], [0.3, 0.7]])
SCALE = jnp.array([0.3, 1.5])


def test_functionals_of_a_discrete_path():
    """Expected number of moves 0 -> 1 and sum of data while noisy: within 4 standard errors of enumeration."""
    paths = jnp.array(np.indices((2,) * len(Y)).reshape(len(Y), -1).T)
    before = jnp.concatenate([jnp.zeros((len(paths), 1), int), paths[:, :-1]], 1)
    log_joint = jnp.log(TRANSITION)[before, paths] + dist.Normal(0.0, SCALE[paths]).log_prob(Y)
    weight = jax.nn.softmax(log_joint.sum(1))
    moves = (weight * ((before == 0) & (paths == 1)).sum(1)).sum()
    noisy = (weight * (paths * Y).sum(1)).sum()

    def functional(carry, carry_next, y, values, t):
        return {
            "moves": (carry[0] == 0) & (carry_next[0] == 1),
            "noisy": y * values["state"],
            "clock": carry[1] == t,
        }

    result = ppg(switching, Y, functional=functional, **SETTINGS)
    assert abs(result.estimate["moves"] - moves) < 4 * result.standard_error["moves"]
    assert abs(result.estimate["noisy"] - noisy) < 4 * result.standard_error["noisy"]
    assert result.estimate["clock"] == len(Y)
    assert result.path["state"].shape == (40, len(Y))
    # One free pass: the evidence is unbiased.
    passes = paris(switching, Y, functional=functional, num_particles=50, num_repeats=500)
    ratio = np.exp(passes.log_evidence[:, 0] - float(logsumexp(log_joint.sum(1))))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(500)


def test_begins_where_another_ended():
    def functional(x, x_next, y):
        return x_next

    # Far from where particles go by themselves, the frozen path is all that has weight.
    few = {"num_particles": 5, "num_sweeps": 1, "num_burn": 0, "num_repeats": 2}
    far = {"x": jnp.stack([Y + 100.0, Y + 100.1]), "x0": jnp.full(2, 100.0)}
    moved = ppg(autoregression, Y + 100.0, parameters=AT, functional=functional, start=far, **few)
    np.testing.assert_allclose(moved.sweeps[:, 0], far["x"].sum(1), rtol=1e-5)
    np.testing.assert_allclose(moved.path["x"], far["x"], rtol=1e-5)
    with pytest.raises(ValueError, match="a path for each of 3 repetitions"):
        ppg(autoregression, Y, parameters=AT, functional=functional, start=far, **{**few, "num_repeats": 3})
    with pytest.raises(ValueError, match="`start` must hold the sites"):
        ppg(autoregression, Y, parameters=AT, functional=functional, start={"x": far["x"]}, **few)


def increments(y):
    def step(x, y):
        x = x + numpyro.sample("dx", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def second_order(y):
    def step(carry, y):
        x = numpyro.sample("x", dist.Normal(0.5 * carry["lag1"] - 0.2 * carry["lag2"], 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return {"lag1": x, "lag2": carry["lag1"]}, None

    scan(step, {"lag1": 0.0, "lag2": 0.0}, y)


def two_paths(y):
    phi, _ = parameters()
    for name in ("a", "b"):

        def step(x, y, name=name):
            x = numpyro.sample(name, dist.Normal(phi * x, 1.0))
            numpyro.sample(f"y_{name}", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, 0.0, y)


def discrete_parameter(y):
    k = numpyro.sample("k", dist.Poisson(2.0))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0 + k))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    scan(step, 0.0, y)


def first(x, x_next, y):
    return x


@pytest.mark.parametrize(
    ("error", "message", "model", "options"),
    [
        (NotImplementedError, "carry never forgets", increments, {"functional": first}),
        (NotImplementedError, "forgets only after 2 steps", second_order, {"functional": first}),
        (ValueError, "no parameter", switching, {"functional": "score"}),
        (ValueError, "'k' is discrete", discrete_parameter, {"functional": "score", "parameters": {"k": 1}}),
        (ValueError, "'q' has no value", autoregression, {"functional": "score", "parameters": {"phi": 0.1}}),
        (ValueError, "no value for 'phi', 'q'", autoregression, {"functional": first}),
        (
            ValueError,
            "it has no 'r'",
            autoregression,
            {"functional": "score", "parameters": {**AT, "r": 1.0}},
        ),
        (
            ValueError,
            r"shape \(\), not \(2,\)",
            autoregression,
            {"functional": "score", "parameters": {**AT, "q": jnp.ones(2)}},
        ),
        (ValueError, "h.carry, carry_next, x.", autoregression, {"functional": "mean"}),
        (ValueError, "`num_backward`", autoregression, {"functional": first, "num_backward": 1}),
        (ValueError, "`backward` must be", autoregression, {"functional": first, "backward": "reject"}),
        (ValueError, "no scan", lambda y: None, {"functional": first}),
        (ValueError, "Several scans", two_paths, {"functional": "score"}),
    ],
)
def test_refuses(error, message, model, options):
    with pytest.raises(error, match=message):
        paris(model, Y, **options)
    with pytest.raises(error, match=message):
        ppg(model, Y, **options)


def test_burn_must_leave_a_sweep():
    with pytest.raises(ValueError, match="must leave some of the 5 sweeps"):
        ppg(autoregression, Y, parameters=AT, functional=first, num_sweeps=5, num_burn=5)
