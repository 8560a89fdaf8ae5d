"""``marginalize`` against a sum over every path, written with NumPyro's own joint density."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

from sojourn.inference._marginalize import marginalize
from sojourn.inference._scan import prepared

MOVE = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
TWO = np.array([[0.8, 0.2], [0.35, 0.65]])
LOC = np.array([-1.0, 0.5, 2.0])
Y = np.array([0.3, -1.0, 2.2, 0.1, 1.4])
TOLERANCE = 1e-12  # relative, in double precision: sums of a few hundred terms


def every_path(model, args, params, spaces):
    """Log-density summed over all values of the discrete sites: ``spaces`` holds their shapes and number of values."""
    sizes = [k for shape, k in spaces.values() for _ in range(int(np.prod(shape)))]
    grid = np.indices(sizes).reshape(len(sizes), -1).T

    def one(row):
        values, place = dict(params), 0
        for name, (shape, _) in spaces.items():
            count = int(np.prod(shape))
            values[name] = row[place : place + count].reshape(shape)
            place += count
        return log_density(prepared(model), args, {}, values)[0]

    return jax.nn.logsumexp(jax.jit(jax.vmap(one))(jnp.asarray(grid)))


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
    "markov": (markov, (Y,), {"loc": LOC}, {"s": ((5,), 3)}),
    "missing": (markov, (np.where([0, 1, 0, 0, 1], np.nan, Y),), {"loc": LOC}, {"s": ((5,), 3)}),
    "second order": (second_order, (Y,), {"rise": 0.3}, {"s": ((5,), 2)}),
    "second order, short": (second_order, (Y[:2],), {"rise": 0.3}, {"s": ((2,), 2)}),
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
    "panel": (panel, (PANEL,), {"loc": LOC}, {"s": ((3, 2), 3)}),
    "panel, missing": (
        panel,
        (np.where([[0, 1], [0, 0], [1, 0]], np.nan, PANEL),),
        {"loc": LOC},
        {"s": ((3, 2), 3)},
    ),
    "panel from roots": (panel_from_roots, (PANEL,), {"loc": LOC}, {"s": ((2, 2), 3), "s0": ((2,), 3)}),
    "switching": (
        switching,
        (Y,),
        {"drag": 0.6, "x0": 0.4, "x": np.array([0.1, 0.5, 1.0, 0.8, 0.9])},
        {"s": ((5,), 2), "s0": ((), 2)},
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
