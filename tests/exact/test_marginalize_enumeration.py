"""``marginalize`` against a sum over every path, written with NumPyro's own joint density."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import log_likelihood
from numpyro.infer.util import log_density

from sojourn.distributions import HiddenMarkov
from sojourn.inference._decode import decode_paths
from sojourn.inference._marginalize import marginalize
from sojourn.inference._scan import prepared

MOVE = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
TWO = np.array([[0.8, 0.2], [0.35, 0.65]])
LOC = np.array([-1.0, 0.5, 2.0])
Y = np.array([0.3, -1.0, 2.2, 0.1, 1.4])
LONG = np.concatenate([Y, [-0.4, 2.0]])
TOLERANCE = 1e-12  # relative, in double precision: sums of a few hundred terms


def paths_and_weights(model, args, params, spaces):
    """All values of the discrete sites and their log-density: ``spaces`` holds their shapes and number of values."""
    sizes = [k for shape, k in spaces.values() for _ in range(int(np.prod(shape)))]
    grid = np.indices(sizes).reshape(len(sizes), -1).T

    def one(row):
        values, place = {}, 0
        for name, (shape, _) in spaces.items():
            count = int(np.prod(shape))
            values[name] = row[place : place + count].reshape(shape)
            place += count
        return {**values, "weight": log_density(prepared(model), args, {}, {**params, **values})[0]}

    return jax.jit(jax.vmap(one))(jnp.asarray(grid))


def every_path(model, args, params, spaces):
    return jax.nn.logsumexp(paths_and_weights(model, args, params, spaces)["weight"])


def markov(y, move=MOVE):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))

    def step(s, y):
        s = numpyro.sample("s", dist.Categorical(jnp.asarray(move)[s]))
        numpyro.sample("y", dist.Normal(loc[s], 1.0), obs=y)
        return s, s

    scan(step, jnp.array(0), y)


def second_order(y):
    rise = numpyro.sample("rise", dist.Normal(0.0, 1.0))

    def step(carry, y):
        older, old = carry
        s = numpyro.sample("s", dist.Bernoulli(logits=rise + 1.5 * old - 0.7 * older))
        numpyro.sample("y", dist.Normal(s + 0.5 * old - 2.0 * older, 1.0), obs=y)
        return (old, s), None

    scan(step, (jnp.array(0), jnp.array(0)), y)


def second_order_from_roots(y):
    rise = numpyro.sample("rise", dist.Normal(0.0, 1.0))
    first = numpyro.sample("first", dist.Bernoulli(0.3))
    second = numpyro.sample("second", dist.Bernoulli(jnp.where(first == 1, 0.9, 0.4)))

    def step(carry, y):
        older, old = carry
        s = numpyro.sample("s", dist.Bernoulli(logits=rise + 1.5 * old - 0.7 * older))
        numpyro.sample("y", dist.Normal(s + 0.5 * old - 2.0 * older, 1.0), obs=y)
        return (old, s), None

    scan(step, (first, second), y)


def factorial(y):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))

    def step(carry, y):
        a, b = carry
        a = numpyro.sample("a", dist.Categorical(jnp.asarray(MOVE)[a]))
        numpyro.sample("y", dist.Normal(jnp.asarray(LOC)[a], noise), obs=y[0])
        b = numpyro.sample("b", dist.Bernoulli(jnp.asarray(TWO)[b, 1] * 0.9**a))
        numpyro.sample("n", dist.Poisson(1.0 + a + 2.0 * b), obs=y[1])
        return (a, b), None

    scan(step, (jnp.array(0), jnp.array(1)), y)


def panel(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))

    def step(s, y):
        with numpyro.plate("series", y.shape[0]):
            s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
            numpyro.sample("y", dist.Normal(loc[s], 1.0), obs=y)
        return s, None

    scan(step, jnp.zeros(y.shape[1], int), y)


def panel_from_roots(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    with numpyro.plate("series", y.shape[1]):
        s0 = numpyro.sample("s0", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))
        numpyro.sample("y0", dist.Normal(loc[s0], 2.0), obs=y[0])

    def step(s, y):
        with numpyro.plate("series", y.shape[0]):
            s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
            numpyro.sample("y", dist.Normal(loc[s], 1.0), obs=y)
        return s, None

    scan(step, s0, y[1:])


def switching(y):
    """A continuous state that stays, moved by a discrete one; a clock; an autoregressive observation."""
    drag = numpyro.sample("drag", dist.Beta(4.0, 2.0))
    s0 = numpyro.sample("s0", dist.Bernoulli(0.4))
    x0 = numpyro.sample("x0", dist.Normal(2.0 * s0, 1.0))

    def step(carry, y):
        s, x, before, clock = carry
        s = numpyro.sample("s", dist.Bernoulli(jnp.asarray(TWO)[s, 1]))
        x = numpyro.sample("x", dist.Normal(jnp.where(s == 1, drag * x, x + 0.1 * clock), 0.5))
        numpyro.sample("y", dist.Normal(x + 0.3 * before + 0.2 * s, 1.0), obs=y)
        return (s, x, y, clock + 1.0), None

    scan(step, (s0, x0, 0.0, 0.0), y)


def scaled_carry(y):
    """The carry holds a product of the state and the input: it varies in time and with the path."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))

    def step(carry, inputs):
        y, x = inputs
        s, product, total = carry
        s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
        numpyro.sample("y", dist.Normal(slope * product + s + 0.1 * total, 1.0), obs=y)
        return (s, s * x, total + x), None

    scan(step, (jnp.array(0), 0.5, 0.0), (y, jnp.arange(1.0, 1.0 + len(y)) / 3))


def many_roots(y):
    s0 = numpyro.sample("s0", dist.Categorical(jnp.array([0.1, 0.2, 0.3, 0.4])))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))

    def step(p, y):
        s = numpyro.sample("s", dist.Bernoulli(p))
        numpyro.sample("y", dist.Normal(s, noise), obs=y)
        return jnp.where(s == 1, 0.7, 0.2), None

    scan(step, 0.2 + 0.2 * s0, y)


def entries(y):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))

    def step(s, y):
        s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
        numpyro.sample("y", dist.Normal(jnp.asarray(LOC)[s[0]] + 0.4 * s[1], noise), obs=y)
        return s, None

    scan(step, jnp.array([0, 2]), y)


def padded(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))

    def step(s, inputs):
        y, inside = inputs
        with handlers.mask(mask=inside):
            s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
            numpyro.sample("y", dist.Normal(loc[s], 1.0), obs=y)
        return s, None

    scan(step, jnp.array(0), (y, jnp.arange(len(y)) < 3))


def tempered(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    with handlers.scale(scale=0.5):
        s0 = numpyro.sample("s0", dist.Categorical(jnp.array([0.2, 0.5, 0.3])))

    def step(s, y):
        with handlers.scale(scale=0.3):
            s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
            numpyro.sample("y", dist.Normal(loc[s], 1.0), obs=y)
        return s, None

    scan(step, s0, y)


def forbidden(y):
    """Left to right, with a state that is hard to leave in time."""
    move = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]])
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))

    def step(s, y):
        s = numpyro.sample("s", dist.Categorical(move[s]))
        numpyro.sample("y", dist.Normal(loc[s], 0.05), obs=y)
        return s, None

    scan(step, jnp.array(0), y)


PANEL = np.array([[0.3, 1.2], [-1.0, 2.0], [2.2, 0.4]])
CASES = {
    "markov": (markov, (LONG,), {"loc": LOC}, {"s": ((7,), 3)}),
    "missing": (markov, (np.where([0, 1, 0, 0, 1], np.nan, Y),), {"loc": LOC}, {"s": ((5,), 3)}),
    "second order": (second_order, (LONG,), {"rise": 0.3}, {"s": ((7,), 2)}),
    "second order, one step": (second_order, (Y[:1],), {"rise": 0.3}, {"s": ((1,), 2)}),
    "second order from roots": (
        second_order_from_roots,
        (Y,),
        {"rise": 0.3},
        {"s": ((5,), 2), "first": ((), 2), "second": ((), 2)},
    ),
    "factorial": (
        factorial,
        (np.stack([Y[:4], [0, 3, 1, 4]], 1),),
        {"noise": 0.8},
        {"a": ((4,), 3), "b": ((4,), 2)},
    ),
    "panel, missing": (
        panel,
        (np.where([[0, 1], [0, 0], [1, 0]], np.nan, PANEL),),
        {"loc": LOC},
        {"s": ((3, 2), 3)},
    ),
    "panel from roots": (panel_from_roots, (PANEL,), {"loc": LOC}, {"s": ((2, 2), 3), "s0": ((2,), 3)}),
    "switching": (
        switching,
        (LONG,),
        {"drag": 0.6, "x0": 0.4, "x": np.array([0.1, 0.5, 1.0, 0.8, 0.9, -0.3, 0.2])},
        {"s": ((7,), 2), "s0": ((), 2)},
    ),
    "scaled carry": (scaled_carry, (Y,), {"slope": 0.7}, {"s": ((5,), 3)}),
    "many roots": (many_roots, (Y,), {"noise": 0.7}, {"s": ((5,), 2), "s0": ((), 4)}),
    "entries": (entries, (Y[:3],), {"noise": 0.7}, {"s": ((3, 2), 3)}),
    "padded": (padded, (Y,), {"loc": LOC}, {"s": ((5,), 3)}),
    "tempered": (tempered, (Y,), {"loc": LOC}, {"s": ((5,), 3), "s0": ((), 3)}),
    "forbidden": (forbidden, (Y,), {"loc": LOC}, {"s": ((5,), 3)}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_sum_over_every_path(x64, name):
    model, args, params, spaces = CASES[name]
    params = {n: jnp.asarray(v, float) for n, v in params.items()}

    def ours(params):
        return log_density(marginalize(model), args, {}, params)[0]

    value, gradient = jax.jit(jax.value_and_grad(ours))(params)
    expected, slope = jax.value_and_grad(lambda p: every_path(model, args, p, spaces))(params)
    np.testing.assert_allclose(value, expected, rtol=TOLERANCE)
    for n in params:
        np.testing.assert_allclose(gradient[n], slope[n], rtol=1e-9, atol=1e-10)


def test_terms_are_those_of_the_hidden_markov_distribution(x64):
    y = jnp.asarray(np.where(np.arange(60) % 7 == 3, np.nan, np.tile(Y, 12)))
    terms = log_likelihood(marginalize(markov), {"loc": jnp.asarray(LOC)[None]}, y)["y"][0]
    law = HiddenMarkov(MOVE[0], MOVE, dist.Normal(jnp.asarray(LOC), 1.0), num_steps=60)
    np.testing.assert_allclose(terms, law.predictive_log_prob(y), rtol=1e-10, atol=1e-12)


def test_terms_of_two_sites_follow_the_order_of_the_step(x64):
    """log p(y_t | past) is what the sum over paths changes by when y_t comes in, then log p(n_t | y_t, past)."""
    data, params = CASES["factorial"][1][0], {"noise": jnp.asarray(0.8)}
    terms = log_likelihood(marginalize(factorial), {"noise": jnp.asarray([0.8])}, data)

    def whole(data):
        spaces = {"a": ((len(data),), 3), "b": ((len(data),), 2)}
        return float(every_path(factorial, (data,), params, spaces)) - float(
            dist.HalfNormal(1.0).log_prob(0.8)
        )

    without = data[:3].copy()
    without[2, 1] = np.nan
    np.testing.assert_allclose(terms["y"][0, 2], whole(without) - whole(data[:2]), rtol=1e-10)
    np.testing.assert_allclose(terms["n"][0, 2], whole(data[:3]) - whole(without), rtol=1e-10)


def test_paths_follow_the_posterior_by_enumeration(x64):
    """Probabilities and best path to 1e-10; 2000 sampled paths within 4.5 standard errors."""
    model, (y,), _, spaces = CASES["panel from roots"]
    posterior = xr.Dataset({"loc": (("chain", "draw", "k"), np.broadcast_to(LOC, (1, 2000, 3)))})
    found = decode_paths({"posterior": posterior}, model, y)
    table = paths_and_weights(model, (y,), {"loc": jnp.asarray(LOC)}, spaces)
    table = {n: np.asarray(v) for n, v in table.items()}
    law = np.exp(table["weight"] - np.logaddexp.reduce(table["weight"]))
    best = np.argmax(law)
    for name in ("s", "s0"):
        np.testing.assert_array_equal(found[f"{name}_viterbi"].values[0, 0], table[name][best])
        exact = np.einsum("n,n...k->...k", law, table[name][..., None] == np.arange(3))
        np.testing.assert_allclose(found[f"{name}_probability"].values[0, 0], exact, rtol=1e-10, atol=1e-12)
        drawn = (found[name].values[0, ..., None] == np.arange(3)).mean(0)
        z = (drawn - exact) / np.sqrt(exact * (1 - exact) / 2000)
        assert np.abs(z).max() < 4.5
    pair = (found["s0"].values[0, :, 0] == 0) & (found["s"].values[0, :, 0, 0] == 0)
    exact = law[(table["s0"][:, 0] == 0) & (table["s"][:, 0, 0] == 0)].sum()
    assert abs(pair.mean() - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 2000)
