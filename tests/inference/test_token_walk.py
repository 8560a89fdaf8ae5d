"""Minibatches in the order of a walk over data shards, by themselves and under SVI."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from sojourn.inference._token_walk import TokenWalk

SHARDS, SIZE = 6, 10
RING = np.roll(np.eye(SHARDS), 1, 0) + np.roll(np.eye(SHARDS), -1, 0)
INDICES = np.arange(SHARDS * SIZE).reshape(SHARDS, SIZE)


def data():
    """Shards that differ: ``x`` grows from one to the next."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=SHARDS * SIZE))
    return jnp.asarray(x), jnp.asarray(0.5 + 1.5 * x + rng.normal(size=x.size))


X, Y = data()


def regression(x, y, batch=SIZE):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", len(x), subsample_size=batch) as index:
        numpyro.sample("y", dist.Normal(a + b * x[index], 1.0), obs=y[index])


def svi(model=regression, guide=AutoMultivariateNormal, steps=2000):
    rate = optax.exponential_decay(0.03, steps, 0.01)
    return SVI(model, guide(model), optax.adam(rate), Trace_ELBO())


def token(model=regression, guide=AutoMultivariateNormal, alpha=2.0, steps=2000, **options):
    return TokenWalk(RING, alpha=alpha).svi(
        svi(model, guide, steps), **{"plate": "data", "shards": INDICES, **options}
    )


# ---------------------------------------------------------------------------------------------- the walk


def test_a_walk_under_jit_scan_and_vmap():
    walk = TokenWalk(RING)
    state = walk.init(random.key(0), start=2)
    assert int(state.shard) == 2
    shard, state = jax.jit(walk.step)(state)
    assert int(shard) in (1, 3)
    assert int(state.shard) == int(shard)

    @jax.jit
    @jax.vmap
    def go(key):
        return lax.scan(lambda s, _: walk.step(s)[::-1], walk.init(key), length=2000)

    last, shards = go(random.split(random.key(1), 8))
    step = np.abs(np.diff(shards, axis=1)) % (SHARDS - 2)
    assert (step == 1).all()  # neighbours on the ring: by 1, or from one end to the other, by 5
    share = np.stack([np.bincount(s, minlength=SHARDS) for s in shards]) / 2000
    assert np.abs(share - 1 / SHARDS).max() < 0.01
    assert np.allclose(last.visits.sum(1), 1, atol=1e-4)
    assert (last.i == 2000).all()


@pytest.mark.slow
def test_repulsion_evens_out_the_visits():
    """On a ring of odd length, whose walk is not periodic: theory has a gain of 25 for alpha = 2 in this mode."""
    ring = np.roll(np.eye(7), 1, 0) + np.roll(np.eye(7), -1, 0)

    def spread(alpha):
        walk = TokenWalk(ring, alpha=alpha)

        @jax.jit
        @jax.vmap
        def go(key):
            return lax.scan(lambda s, _: walk.step(s)[::-1], walk.init(key), length=1000)[1]

        shards = go(random.split(random.key(3), 32))
        return np.mean([(np.bincount(s, minlength=7) / 1000).var() for s in shards])

    assert spread(2.0) < spread(0.0) / 5


# -------------------------------------------------------------------------------------------------- SVI


def exact_posterior():
    design = np.stack([np.ones_like(X), X], 1)
    covariance = np.linalg.inv(design.T @ design + np.eye(2) / 4)
    return covariance @ design.T @ np.asarray(Y), covariance


def all_data(x, y):
    regression(x, y, None)


@pytest.mark.parametrize(
    "build", [token, pytest.param(lambda: svi(all_data), marks=pytest.mark.slow)], ids=["shards", "all"]
)
def test_svi_on_shards_finds_the_guide_of_all_data(build):
    """Which is the exact posterior, here: means to a fifth of a standard deviation, deviations to a fifth.

    The slow test has full batches under the same bounds. A shard by itself is many standard deviations off.
    """
    mean, covariance = exact_posterior()
    scale = np.sqrt(np.diag(covariance))
    result = build().run(random.key(0), 2000, X, Y, progress_bar=False)
    assert result.losses.shape == (2000,)
    params = result.params
    assert (np.abs(params["auto_loc"] - mean) < 0.2 * scale).all()
    spread = np.sqrt(np.diag(params["auto_scale_tril"] @ params["auto_scale_tril"].T))
    assert np.allclose(spread, scale, rtol=0.2)


def test_it_is_used_like_svi():
    guide = AutoNormal(regression)
    base = SVI(regression, guide, optax.adam(0.01), Trace_ELBO())
    inference = TokenWalk(RING).svi(base, plate="data", shards=jnp.asarray(INDICES))
    state = inference.init(random.key(0), X, Y)
    shard = int(state.walk.shard)
    before = inference.get_params(state)
    for update in (jax.jit(inference.update), jax.jit(inference.stable_update)):
        state, loss = update(state, X, Y)
        assert np.isfinite(loss)
        assert abs(int(state.walk.shard) - shard) in (1, SHARDS - 1)
        shard = int(state.walk.shard)
    after = inference.get_params(state)
    assert before["a_auto_loc"] != after["a_auto_loc"]
    assert base.get_params(state.svi) == after
    assert np.isfinite(inference.evaluate(state, X, Y))
    assert set(guide.sample_posterior(random.key(0), after)) == {"a", "b"}
    more = inference.run(random.key(9), 5, X, Y, init_state=state, progress_bar=False)
    assert int(more.state.walk.i) == 7
    start = inference.init(random.key(0), X, Y, init_params={"a_auto_loc": jnp.array(3.0)})
    assert inference.get_params(start)["a_auto_loc"] == pytest.approx(3.0)


def test_the_model_sees_the_shard_of_the_walk():
    seen = []

    def model(x, y):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x), subsample_size=SIZE) as index:
            seen.append(index)
            numpyro.sample("y", dist.Normal(a, 1.0), obs=y[index])

    inference = token(model, AutoNormal)
    state = inference.init(random.key(0), X, Y)
    for _ in range(3):
        seen.clear()
        state, _ = inference.update(state, X, Y)
        assert len(seen) == 1
        assert np.asarray(seen[0]).tolist() == INDICES[int(state.walk.shard)].tolist()


@pytest.mark.slow
def test_a_guide_with_a_factor_for_each_element():
    """Plates of the model and of the guide hold the same shard."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
        with numpyro.plate("data", len(y), subsample_size=SIZE) as index:
            x = numpyro.sample("x", dist.Normal(mu, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y[index])

    def guide(y):
        loc = numpyro.param("loc", jnp.zeros(()))
        scale = numpyro.param("scale", jnp.ones(()), constraint=dist.constraints.positive)
        numpyro.sample("mu", dist.Normal(loc, scale))
        where = numpyro.param("where", jnp.zeros(len(y)))
        with numpyro.plate("data", len(y), subsample_size=SIZE) as index:
            numpyro.sample("x", dist.Normal(where[index], 0.7))

    inference = TokenWalk(RING).svi(
        SVI(model, guide, optax.adam(optax.exponential_decay(0.05, 3000, 0.01)), Trace_ELBO()),
        plate="data",
        shards=INDICES,
    )
    found = inference.run(random.key(0), 3000, Y, progress_bar=False).params
    mean = float(np.sum(np.asarray(Y)) / 2 / (len(Y) / 2 + 1 / 9))
    assert float(found["loc"]) == pytest.approx(mean, abs=0.15)
    assert np.corrcoef(found["where"], Y)[0, 1] > 0.95


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adjacency": RING, "alpha": -0.1}, "`alpha` must be a number not negative"),
        ({"adjacency": RING, "step_exponent": 0.4}, "`step_exponent`"),
        ({"adjacency": np.ones((2, 3))}, "square"),
        ({"adjacency": np.eye(3)}, "falls into 3 pieces"),
        ({"adjacency": np.eye(1)}, "one shard"),
    ],
)
def test_what_is_wrong_with_a_walk_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenWalk(**arguments)


def test_a_start_outside_the_graph():
    with pytest.raises(ValueError, match="`start` must be a shard, 0 to 5, not 6"):
        TokenWalk(RING).init(random.key(0), start=6)


UNEVEN = [[0, 1], [2, 3], [4, 5], [6], [7, 8], [9, 10]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": UNEVEN}, "shards have from 1 to 2 elements.*make them of one size"),
        ({"shards": np.arange(60)}, r"indices of shape \(num_shards, shard_size\)"),
        ({"shards": INDICES / 2}, "indices of shape"),
        ({"shards": INDICES[:5]}, "5 shards, and the graph of the walk has 6 nodes"),
        ({"plate": "observations"}, r"no plate 'observations'; its plates are \['data'\]"),
        ({"shards": INDICES[:, :5]}, "takes 10 of its 60 elements at a time, and the shards have 5"),
        (
            {"shards": np.where(INDICES == 59, 58, INDICES)},
            "each of the indices 0 to 59 of plate 'data' once",
        ),
    ],
)
def test_what_is_wrong_with_shards_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        token(guide=AutoNormal, **options).init(random.key(0), X, Y)
