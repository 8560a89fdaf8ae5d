"""What ``marginalize`` does to a model, and what it refuses; its numbers are in tests/exact."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive
from numpyro.infer.util import log_density

from sojourn._contract import trace_model
from sojourn.distributions import HiddenMarkov
from sojourn.inference._decode import decode_paths
from sojourn.inference._marginalize import marginalizable, marginalize
from sojourn.inference._predictive import evaluate, missing_entries

MOVE = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])
LOC = np.array([-1.0, 0.5, 2.0])
Y = np.array([0.3, -1.0, 2.2, 0.1, 1.4, 2.0])


def markov(y=None, length=None):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))

    def step(s, y):
        s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
        numpyro.sample("y", dist.Normal(loc[s], 0.5), obs=y)
        numpyro.deterministic("level", loc[s])
        numpyro.deterministic("shift", loc[0] + jnp.zeros(()))
        return s, s

    _, path = scan(step, jnp.array(0), y, length=length)
    numpyro.deterministic("visits", (path == 2).sum())


def switching(y=None, length=None):
    def step(carry, y):
        s, x = carry
        s = numpyro.sample("s", dist.Bernoulli(jnp.where(s == 1, 0.7, 0.4)))
        x = numpyro.sample("x", dist.Normal(3.0 * s, 0.5))
        numpyro.sample("y", dist.Normal(x + 10.0 * s, 1.0), obs=y)
        return (s, x), None

    scan(step, (jnp.array(0), 0.0), y, length=length)


def one_draw(**values):
    return {n: jnp.asarray(v, float)[None, None] for n, v in values.items()}


def test_it_looks_like_the_model():
    assert marginalizable(markov, (Y,)) == ("s",)
    assert inspect.signature(marginalize(markov)) == inspect.signature(markov)
    assert marginalize(markov).__wrapped__ is markov

    def nothing(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("loc", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    assert marginalizable(nothing, (Y,)) == ()
    assert list(handlers.trace(handlers.seed(marginalize(nothing), 0)).get_trace(Y)) == ["loc", "y"]


def test_sites_that_depend_on_the_path_are_gone():
    trace = trace_model(marginalize(markov), (Y,), {}, key=jax.random.key(0))
    assert list(trace) == ["loc", "y", "shift"]
    assert trace["y"]["fn"].batch_shape == (6,)
    assert trace["shift"]["value"].shape == (6,)


def test_infinite_supports_and_persistent_sites_are_left_alone():
    def model(y):
        k = numpyro.sample("k", dist.Bernoulli(0.5))

        def step(s, y):
            s = numpyro.sample("s", dist.Bernoulli(jnp.where(s == 1, 0.3, 0.6)))
            n = numpyro.sample("n", dist.Poisson(1.0 + s + k))
            numpyro.sample("y", dist.Normal(n, 1.0), obs=y)
            return s, None

        scan(step, jnp.array(0), y)

    assert marginalizable(model, (Y,)) == ("s",)
    trace = trace_model(marginalize(model), (Y,), {}, key=jax.random.key(0))
    assert [n for n, s in trace.items() if not s["is_observed"]] == ["k", "n"]


def test_evaluation_knows_the_terms_the_gaps_and_new_data():
    """4000 replicates and one-step-ahead draws: moments within 4.5 standard errors."""
    y = np.where(np.arange(6) == 2, np.nan, Y)
    model = marginalize(markov)
    site = trace_model(model, (y,), {}, key=jax.random.key(0), values={"loc": jnp.asarray(LOC)})["y"]
    assert missing_entries(site).tolist() == [False, False, True, False, False, False]
    draws = {"loc": jnp.broadcast_to(jnp.asarray(LOC), (1, 4000, 3))}
    found = evaluate(model, (y,), {}, draws, jax.random.key(1))
    law = HiddenMarkov(MOVE[0], MOVE, dist.Normal(LOC, 0.5), num_steps=6)
    np.testing.assert_allclose(found.log_likelihood["y"][0, 0], law.predictive_log_prob(y), atol=2e-6)

    def check(sample, mean, variance):
        z = (sample.mean(0) - mean) / np.sqrt(variance / 4000)
        assert np.abs(z).max() < 4.5

    check(found.replicated["y"][0], np.asarray(law.mean), np.asarray(law.variance))
    predicted = np.asarray(law.filter(y).predicted)
    mean, second = predicted @ LOC, predicted @ (LOC**2 + 0.25)
    check(found.one_step_ahead["y"][0], mean, second - mean**2)
    # A new path for each: neighbours go together as the chain has them, not as if states were drawn one by one.
    joint = found.replicated["y"][0]
    both = np.einsum("i,ij,i,j->", MOVE[0], MOVE, LOC, LOC)
    product = joint[:, 0] * joint[:, 1]
    assert abs(product.mean() - both) < 4.5 * product.std() / np.sqrt(4000)


@pytest.mark.parametrize("carried", [True, False])
def test_a_site_that_the_carry_does_not_hold_makes_a_mixture_of_every_step(carried):
    def mixture(y):
        loc = numpyro.sample("loc", dist.Normal(0.0, 3.0).expand([3]).to_event(1))

        def step(shift, y):
            s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE[0])))
            numpyro.sample("y", dist.Normal(loc[s] + (shift if carried else 0.0), 0.5), obs=y)
            return (shift + 0.1, None) if carried else (None, None)

        scan(step, 0.0 if carried else None, y)

    shift = 0.1 * np.arange(len(Y)) * carried
    by_state = MOVE[0] * np.exp(-0.5 * ((Y[:, None] - shift[:, None] - LOC) / 0.5) ** 2) / np.sqrt(np.pi / 2)
    found = evaluate(marginalize(mixture), (Y,), {}, one_draw(loc=LOC), jax.random.key(0))
    np.testing.assert_allclose(found.log_likelihood["y"][0, 0], np.log(by_state.sum(1)), atol=2e-6)
    prior = dist.Normal(0.0, 3.0).log_prob(LOC).sum()
    np.testing.assert_allclose(found.log_joint[0, 0], prior + np.log(by_state.sum(1)).sum(), rtol=1e-6)
    assert found.replicated["y"].shape == found.one_step_ahead["y"].shape == (1, 1, len(Y))


@pytest.mark.parametrize("summed", [True, False])
def test_draws_of_an_expanded_law_have_the_shape_of_the_data(summed):
    """1000 replicates: means of every entry within 4.5 standard errors; no entry is a copy of another."""

    def repeated(y):
        def step(s, y):
            if summed:
                s = numpyro.sample("s", dist.Categorical(jnp.asarray(MOVE)[s]))
            else:
                s = numpyro.sample("s", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(1.0 * s, 0.5).expand([3]).to_event(1), obs=y)
            return s, None

        scan(step, jnp.array(0) if summed else 0.0, y)

    y = np.stack([Y, Y, Y], 1)
    draws = {"": jnp.zeros((1, 1000))} if summed else {"s": jnp.broadcast_to(jnp.asarray(Y), (1, 1000, 6))}
    found = evaluate(marginalize(repeated) if summed else repeated, (y,), {}, draws, jax.random.key(0))
    drawn = found.replicated["y"][0]
    assert drawn.shape == (1000, 6, 3)
    assert (drawn[..., :2] != drawn[..., 1:]).all()
    if summed:
        law = np.stack([MOVE[0] @ np.linalg.matrix_power(MOVE, t) for t in range(6)])
        mean, second = law @ np.arange(3.0), law @ np.arange(3.0) ** 2
        assert found.one_step_ahead["y"].shape == (1, 1000, 6, 3)
    else:
        mean, second = Y, Y**2
    error = np.sqrt((second - mean**2 + 0.25) / 1000)
    assert (np.abs(drawn.mean(0) - mean[:, None]) < 4.5 * error[:, None]).all()


def test_it_simulates():
    """Lag-one product of 4000 simulated series against its expectation."""
    posterior = {"loc": jnp.broadcast_to(jnp.asarray(LOC), (4000, 3))}
    y = np.asarray(Predictive(marginalize(markov), posterior)(jax.random.key(0), None, 3)["y"])
    product = y[:, 0] * y[:, 1]
    both = np.einsum("i,ij,i,j->", MOVE[0], MOVE, LOC, LOC)
    assert abs(product.mean() - both) < 4.5 * product.std() / np.sqrt(4000)


def test_new_data_follow_the_path_that_the_given_latent_values_imply():
    x = jnp.array([0.0, 3.0, 0.0, 3.0])  # 6 standard deviations from the other state
    y = Predictive(marginalize(switching), {"x": jnp.tile(x, (50, 1))})(jax.random.key(1), None, 4)["y"]
    np.testing.assert_allclose(y.mean(0), [0.0, 13.0, 0.0, 13.0], atol=1.0)


def test_a_replayed_trace_gives_the_continuous_path():
    """As variational inference hands over the guide's draws."""
    y, x = np.array([0.0, 13.0, 12.0]), jnp.array([0.1, 2.8, 3.3])

    def guide(y):
        scan(lambda c, loc: (c, numpyro.sample("x", dist.Delta(loc))), 0.0, x)

    model = marginalize(switching)
    drawn = handlers.trace(handlers.seed(guide, 0)).get_trace(y)
    replayed = log_density(handlers.replay(handlers.seed(model, 1), drawn), (y,), {}, {})[0]
    given, _ = log_density(model, (y,), {}, {"x": x})
    np.testing.assert_allclose(replayed, given, rtol=1e-6)


def test_traced_data_use_what_was_found_for_their_shape():
    model = marginalize(markov)
    values = {"loc": jnp.asarray(LOC, float)}

    def density(y):
        return log_density(model, (y,), {}, values)[0]

    alone = [density(Y), density(Y + 0.1)]
    both = jax.jit(jax.vmap(density))(jnp.stack([Y, Y + 0.1]))
    np.testing.assert_allclose(both, alone, rtol=1e-5)
    assert len(model._plans) == 1


def test_decoded_paths_have_names_and_what_hangs_on_them():
    draws = {"loc": (("chain", "draw", "k"), np.broadcast_to(LOC, (2, 5, 3)))}
    posterior = xr.Dataset(draws, coords={"chain": [0, 1], "draw": np.arange(5)})
    times = xr.Dataset(coords={"time": np.arange(2000, 2006)})
    found = decode_paths({"posterior": posterior, "observed_data": times}, markov, Y, num_draws=3)
    assert found["s"].dims == ("chain", "draw", "time")
    assert found["s_probability"].dims == ("chain", "draw", "time", "s_value")
    assert found["draw"].values.tolist() == [0, 2, 4]
    assert found["time"].values.tolist() == times["time"].values.tolist()
    np.testing.assert_allclose(found["level"], LOC[found["s"].values], rtol=1e-6)
    np.testing.assert_array_equal(found["visits"], (found["s"] == 2).sum("time"))
    with pytest.raises(ValueError, match="`num_draws` must lie between"):
        decode_paths({"posterior": posterior}, markov, Y, num_draws=9)


def coin(carry, _):
    return numpyro.sample("s", dist.Bernoulli(0.3 + 0.2 * carry)), carry


def counting(y):
    def step(carry, y):
        s, count = carry
        s = numpyro.sample("s", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(count, 1.0), obs=y)
        return (s, count + s), None

    scan(step, (jnp.array(0), jnp.array(0)), y)


def observed_later(y):
    _, path = scan(coin, jnp.array(0), None, length=len(y))
    numpyro.sample("y", dist.Normal(path, 1.0), obs=y)


def too_many(y):
    def step(s, y):
        s = numpyro.sample("s", dist.Bernoulli(jnp.where(s.sum() > 1, 0.3, 0.6)).expand([12]))
        numpyro.sample("y", dist.Normal(s.sum(), 1.0), obs=y)
        return s, None

    scan(step, jnp.zeros(12, int), y)


def two_scans(y):
    scan(coin, jnp.array(0), None, length=3)
    with handlers.scope(prefix="other"):
        scan(
            lambda s, _: (numpyro.sample("z", dist.Bernoulli(0.3 + 0.2 * s)), None),
            jnp.array(0),
            None,
            length=3,
        )


def computed_support(y):
    n = numpyro.sample("n", dist.Normal(0.0, 1.0))

    def step(s, y):
        s = numpyro.sample("s", dist.Binomial(jnp.where(n > 0, 2, 3), 0.5))
        numpyro.sample("y", dist.Normal(s, 1.0), obs=y)
        return s, None

    scan(step, jnp.array(0), y)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (counting, ValueError, r"'s' cannot be summed out: carry\[1\] remembers it for ever"),
        (observed_later, ValueError, "law of 'y', after the scan, depends on the path"),
        (too_many, ValueError, "4096 values a step"),
        (two_scans, NotImplementedError, "Several scans"),
        (computed_support, ValueError, "support of 's' is not known"),
        (
            handlers.condition(marginalize(markov), {"s": jnp.zeros(6, int)}),
            ValueError,
            "'s' is summed out, so handlers.condition",
        ),
    ],
)
def test_refusals_are_sentences(model, error, says):
    with pytest.raises(error, match=says):
        handlers.seed(marginalize(model), 0)(Y)


def test_a_path_conditioned_inside_is_no_longer_latent():
    fixed = handlers.condition(markov, {"s": jnp.array([0, 1, 1, 2, 0, 1])})
    assert marginalizable(fixed, (Y,)) == ()
