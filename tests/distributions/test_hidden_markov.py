"""HiddenMarkov under NumPyro's conventions, and what it makes of missing observations."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from sojourn.distributions import HiddenMarkov
from sojourn.ops import hidden_markov as ops

INITIAL = np.array([0.6, 0.4])
TRANSITION = np.array([[0.9, 0.1], [0.25, 0.75]])
RATE = np.array([2.0, 7.0])
COUNTS = np.array([1, 0, 4, 9, 6])
STEPS = len(COUNTS)


def quakes(**kwargs):
    return HiddenMarkov(INITIAL, TRANSITION, dist.Poisson(RATE), num_steps=STEPS, **kwargs)


def weather(**kwargs):
    emission = dist.Categorical(probs=np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))
    return HiddenMarkov(INITIAL, TRANSITION, emission, num_steps=4, **kwargs)


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


@jax.jit
def smooth(law, value):
    return law.smooth(value)


@jax.jit
def lone_chain(log_emission, length):
    return ops.log_likelihood(INITIAL, TRANSITION, log_emission, length)


def repeat(x, *lead):
    return np.broadcast_to(x, (*lead, *np.shape(x)))


# ------------------------------------------------------------------------------------------------ shapes

POISSON = dist.Poisson(RATE)
RAW = np.asarray(POISSON.log_prob(COUNTS[:, None]))
SHAPES = {
    "nothing batched": ((INITIAL, TRANSITION, POISSON, {"num_steps": 5}), ()),
    "homogeneous transitions": ((INITIAL, repeat(TRANSITION, 3, 1), POISSON, {"num_steps": 5}), (3,)),
    "batched transitions in time": ((INITIAL, repeat(TRANSITION, 2, 3, 4), POISSON, {}), (2, 3)),
    "emission in time": ((INITIAL, TRANSITION, dist.Poisson(repeat(RATE, 5)), {}), ()),
    "batched constant emission": (
        (INITIAL, TRANSITION, dist.Poisson(repeat(RATE, 3, 1)), {"num_steps": 5}),
        (3,),
    ),
    "mask": ((INITIAL, TRANSITION, POISSON, {"mask": np.ones((3, 5), bool)}), (3,)),
    "lengths": ((INITIAL, TRANSITION, POISSON, {"lengths": np.array([5, 2, 1]), "num_steps": 5}), (3,)),
    "everything, broadcast": (
        (
            repeat(INITIAL, 2, 1),
            repeat(TRANSITION, 1, 3, 4),
            dist.Poisson(repeat(RATE, 3, 1)),
            {"lengths": np.array([[5], [3]])},
        ),
        (2, 3),
    ),
    "axes of length one": ((repeat(INITIAL, 1, 1), TRANSITION, POISSON, {"num_steps": 5}), (1, 1)),
}


@pytest.mark.parametrize("what", SHAPES)
def test_batch_and_event_shapes(what):
    (initial, transition, emission, kwargs), batch = SHAPES[what]
    law = HiddenMarkov(initial, transition, emission, **kwargs)
    assert (law.batch_shape, law.event_shape, law.num_states) == (batch, (5,), 2)
    draw = jax.jit(lambda law, key: law.sample(key, (4,)))(law, jax.random.key(0))
    assert draw.shape == (4, *batch, 5)
    assert draw.dtype == jnp.int32
    # All batch entries hold the same numbers (lengths apart): each must have the density of the lone chain.
    found = log_prob(law, COUNTS)
    assert found.shape == batch
    lengths = np.broadcast_to(kwargs.get("lengths", 5), batch)
    for index in np.ndindex(*batch):
        assert float(found[index]) == pytest.approx(float(lone_chain(RAW, lengths[index])), rel=1e-5)
    several = log_prob(law, np.broadcast_to(COUNTS, (4, *batch, 5)))
    np.testing.assert_allclose(several, repeat(found, 4), rtol=1e-5)


def test_vector_events():
    loc = np.arange(6.0).reshape(2, 3)
    for emission in (dist.Normal(loc, 1.0).to_event(1), dist.MultivariateNormal(loc, np.eye(3))):
        law = HiddenMarkov(INITIAL, repeat(TRANSITION, 4, 1), emission, num_steps=5)
        assert (law.batch_shape, law.event_shape) == ((4,), (5, 3))
        draw = jax.jit(lambda law, key: law.sample(key, (2,)))(law, jax.random.key(0))
        assert draw.shape == (2, 4, 5, 3)
        assert log_prob(law, draw).shape == (2, 4)
        assert jax.jit(lambda law: law.mean)(law).shape == (4, 5, 3)


def test_batch_entries_are_independent():
    """Different parameters in each entry, against separate distributions."""
    rng = np.random.default_rng(0)
    initial, transition = rng.dirichlet(np.ones(2), 3), rng.dirichlet(np.ones(2), (3, 1, 2))
    rate, lengths = rng.uniform(1, 9, (3, 1, 2)), np.array([5, 3, 1])
    mask = rng.uniform(size=(3, 5)) < 0.7
    counts = rng.poisson(4.0, (3, 5))
    law = HiddenMarkov(initial, transition, dist.Poisson(rate), num_steps=5, mask=mask, lengths=lengths)
    found = log_prob(law, counts)
    smoothed = smooth(law, counts)
    paths = jax.jit(lambda law, key: law.sample_path(key, counts, (7,)))(law, jax.random.key(0))
    assert smoothed.marginals.shape == (3, 5, 2)
    assert paths.shape == (7, 3, 5)
    for n in range(3):
        alone = HiddenMarkov(
            initial[n],
            transition[n, 0],
            dist.Poisson(rate[n, 0]),
            num_steps=lengths[n],
            mask=mask[n, : lengths[n]],
        )
        assert float(found[n]) == pytest.approx(float(log_prob(alone, counts[n, : lengths[n]])), rel=1e-5)
        marginals = smooth(alone, counts[n, : lengths[n]]).marginals
        np.testing.assert_allclose(smoothed.marginals[n, : lengths[n]], marginals, atol=1e-5)


# ------------------------------------------------------------------------------------------- transformations


def test_vmap_and_grad_over_parameters():
    rates = np.array([[1.0, 5.0], [2.0, 7.0], [3.0, 4.0]])

    def density(rate):
        return HiddenMarkov(INITIAL, TRANSITION, dist.Poisson(rate), num_steps=STEPS).log_prob(COUNTS)

    together = jax.jit(jax.vmap(density))(rates)
    np.testing.assert_allclose(together, [float(jax.jit(density)(r)) for r in rates], rtol=1e-6)
    slope = jax.jit(jax.grad(density))(rates[1])
    # d/d rate_k = sum_t P(state k at t) (y_t / rate_k - 1)
    marginals = np.asarray(quakes().smooth(COUNTS).marginals)
    np.testing.assert_allclose(slope, (marginals * (COUNTS[:, None] / rates[1] - 1)).sum(0), rtol=1e-4)


def test_forward_mode_with_vjp_false():
    def density(rate, vjp):
        return HiddenMarkov(INITIAL, TRANSITION, dist.Poisson(rate), num_steps=STEPS, vjp=vjp).log_prob(
            COUNTS
        )

    forward = jax.jit(jax.jacfwd(lambda rate: density(rate, False)))(RATE)
    reverse = jax.jit(jax.grad(lambda rate: density(rate, True)))(RATE)
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)


def test_pytree_round_trip():
    law = quakes(mask=np.array([1, 1, 0, 1, 1], bool), log_space=True, vjp=False)
    leaves, tree = jax.tree.flatten(law)
    again = jax.tree.unflatten(tree, leaves)
    assert (again.batch_shape, again.event_shape, again.num_steps) == ((), (5,), 5)
    assert (again.log_space, again.vjp) == (True, False)
    assert float(again.log_prob(COUNTS)) == float(law.log_prob(COUNTS))
    moved = jax.tree.unflatten(tree, [jnp.array(leaf) for leaf in leaves])
    assert float(moved.log_prob(COUNTS)) == float(law.log_prob(COUNTS))


def test_expand_to_event_and_mask():
    law = quakes()
    alone = float(law.log_prob(COUNTS))
    expanded = law.expand((3,))
    assert (expanded.batch_shape, expanded.event_shape) == ((3,), (5,))
    assert expanded.sample(jax.random.key(0)).shape == (3, 5)
    np.testing.assert_allclose(expanded.log_prob(COUNTS), [alone] * 3, rtol=1e-6)
    joined = expanded.to_event(1)
    assert (joined.batch_shape, joined.event_shape) == ((), (3, 5))
    assert float(joined.log_prob(np.stack([COUNTS] * 3))) == pytest.approx(3 * alone, rel=1e-6)
    hidden = expanded.mask(np.array([True, False, True]))
    np.testing.assert_allclose(hidden.log_prob(COUNTS), [alone, 0.0, alone], rtol=1e-6)


def test_in_a_plate():
    def model(y):
        with numpyro.plate("series", 2):
            numpyro.sample("y", quakes(lengths=np.array([5, 3])), obs=y)

    y = np.stack([COUNTS, COUNTS])
    found, trace = log_density(model, (y,), {}, {})
    assert trace["y"]["fn"].batch_shape == (2,)
    expected = float(quakes().log_prob(COUNTS)) + float(quakes(lengths=np.array(3)).log_prob(COUNTS))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    simulated = handlers.trace(handlers.seed(lambda: model(None), 0)).get_trace()
    assert simulated["y"]["value"].shape == (2, 5)


# ----------------------------------------------------------------------------------------------- bad arguments

WRONG = {
    r"`transition` has shape \(3, 3\); `initial` has 2 states": (
        INITIAL,
        np.eye(3),
        POISSON,
        {"num_steps": 5},
    ),
    r"`transition` has shape \(2,\)": (INITIAL, INITIAL, POISSON, {"num_steps": 5}),
    r"`emission` has batch shape \(3,\); its last axis must be the 2 states": (
        INITIAL,
        TRANSITION,
        dist.Poisson(np.ones(3)),
        {"num_steps": 5},
    ),
    r"`emission` has batch shape \(\)": (INITIAL, TRANSITION, dist.Poisson(1.0), {"num_steps": 5}),
    r"`emission` as an array must have axes": (INITIAL, TRANSITION, np.zeros(2), {"num_steps": 5}),
    r"number of steps does not agree: `transition` says 5, `num_steps` says 7": (
        INITIAL,
        repeat(TRANSITION, 4),
        POISSON,
        {"num_steps": 7},
    ),
    r"`emission` says 3, `mask` says 4": (
        INITIAL,
        TRANSITION,
        dist.Poisson(repeat(RATE, 3)),
        {"mask": np.ones(4, bool)},
    ),
    r"`num_steps` is needed": (INITIAL, TRANSITION, POISSON, {}),
    r"at least one step; this one is empty": (INITIAL, TRANSITION, POISSON, {"num_steps": 0}),
}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_agree(message):
    initial, transition, emission, kwargs = WRONG[message]
    with pytest.raises(ValueError, match=message):
        HiddenMarkov(initial, transition, emission, **kwargs)


@pytest.mark.parametrize(
    ("initial", "transition", "lengths", "message"),
    [
        ([0.6, 0.5], TRANSITION, None, r"`initial` sums to 1.1; probabilities must sum to one"),
        (INITIAL, [[0.9, 0.1], [0.3, 0.6]], None, r"Row 1 of `transition` sums to 0.9"),
        (INITIAL, [[1.1, -0.1], [0.5, 0.5]], None, r"`transition` holds probabilities; .* negative"),
        ([np.nan, 1.0], TRANSITION, None, r"`initial` holds probabilities; .* not finite"),
        (INITIAL, TRANSITION, [5, 6], r"`lengths` has an entry 6; it must lie between 1 and the 5 steps"),
        (INITIAL, TRANSITION, [0, 5], r"`lengths` has an entry 0"),
    ],
)
def test_validation_of_values(initial, transition, lengths, message):
    def build(validate_args):
        return HiddenMarkov(
            np.array(initial),
            np.array(transition),
            POISSON,
            num_steps=5,
            lengths=None if lengths is None else np.array(lengths),
            validate_args=validate_args,
        )

    with pytest.raises(ValueError, match=message):
        build(True)
    build(False)  # NumPyro's convention: no cost unless asked for


def test_validation_leaves_compiled_arguments_alone():
    @jax.jit
    def density(transition):
        return HiddenMarkov(INITIAL, transition, POISSON, num_steps=STEPS, validate_args=True).log_prob(
            COUNTS
        )

    assert float(density(TRANSITION)) == pytest.approx(float(quakes().log_prob(COUNTS)), rel=1e-6)


def test_a_series_of_another_length():
    with pytest.raises(ValueError, match=r"The series has shape \(3,\); its last axes must be \(5,\)"):
        quakes().log_prob(COUNTS[:3])


def test_support():
    support = quakes().support
    assert support.event_dim == 1
    assert support.is_discrete
    assert bool(support(COUNTS))
    assert bool(support(np.array([1, np.nan, 4, 9, 6])))
    assert not bool(support(np.array([1, -2, 4, 9, 6])))
    assert not bool(support(np.array([1, 2.5, 4, 9, 6])))
    both = support(np.stack([COUNTS, -COUNTS]))
    assert both.tolist() == [True, False]
    masked = quakes(mask=np.array([1, 0, 1, 1, 1], bool)).support
    assert bool(masked(np.array([1, -2, 4, 9, 6])))
    short = quakes(lengths=np.array(3)).support
    assert bool(short(np.array([1, 2, 4, -1, -1])))
    vector = HiddenMarkov(
        INITIAL, TRANSITION, dist.Gamma(np.ones((2, 3)), 1.0).to_event(1), num_steps=2
    ).support
    assert bool(vector(np.ones((2, 3))))
    assert not bool(vector(np.array([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]])))


def test_out_of_support_under_validation():
    law = quakes(validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert float(law.log_prob(-COUNTS)) == -np.inf
    assert np.isfinite(float(law.log_prob(np.array([1, np.nan, 4, 9, 6]))))


# ------------------------------------------------------------------------------------------------ missing


def test_the_density_is_the_sum_of_its_predictions():
    law = quakes(mask=np.array([1, 1, 0, 1, 1], bool))
    terms = law.predictive_log_prob(COUNTS)
    assert terms.shape == (5,)
    assert float(terms.sum()) == pytest.approx(float(law.log_prob(COUNTS)), rel=1e-6)
    assert float(terms[2]) == pytest.approx(0.0, abs=1e-6)
    # By hand: what the first two observations say of the third, under the whole data.
    y, probs = COUNTS[:2], np.exp(np.asarray(POISSON.log_prob(COUNTS[:, None])))
    alpha = INITIAL * probs[0]
    assert float(terms[0]) == pytest.approx(np.log(alpha.sum()), rel=1e-5)
    alpha = (alpha / alpha.sum()) @ TRANSITION * probs[1]
    assert float(terms[1]) == pytest.approx(np.log(alpha.sum()), rel=1e-5)
    assert len(y) == 2


def test_missing_is_nan_is_masked_is_summed_out():
    law = weather()
    y = np.array([0, 2, 1, 2])
    for gone in ([0], [2], [1, 3], [0, 1, 2, 3]):
        blank = y.astype(float)
        blank[gone] = np.nan
        mask = np.ones(4, bool)
        mask[gone] = False
        everything = []
        for values in itertools.product(range(3), repeat=len(gone)):
            full = y.copy()
            full[gone] = values
            everything.append(full)
        total = float(jax.nn.logsumexp(log_prob(law, np.array(everything))))
        assert float(log_prob(law, blank)) == pytest.approx(total, abs=1e-5)
        garbage = np.where(mask, y, -7)
        assert float(log_prob(weather(mask=mask), garbage)) == pytest.approx(total, abs=1e-5)
    assert float(log_prob(law, np.full(4, np.nan))) == pytest.approx(0.0, abs=1e-6)


def test_probabilities_of_all_series_sum_to_one():
    everything = np.array(list(itertools.product(range(3), repeat=4)))
    assert float(jnp.exp(log_prob(weather(), everything)).sum()) == pytest.approx(1.0, abs=1e-5)


def test_gradient_beside_missing_observations():
    y = np.array([0.3, np.nan, 2.0, np.nan, -1.0])

    def density(loc, y, mask):
        return HiddenMarkov(INITIAL, TRANSITION, dist.LogNormal(loc, 1.0), num_steps=5, mask=mask).log_prob(y)

    y = np.abs(y)
    slope = jax.jit(jax.grad(density))
    loc = np.array([0.0, 1.0])
    by_nan = slope(loc, y, np.ones(5, bool))
    # Not even an inadmissible number (log of -1) may leak through the mask.
    by_mask = slope(loc, np.where(np.isnan(y), -1.0, y), ~np.isnan(y))
    assert bool(jnp.isfinite(by_nan).all())
    np.testing.assert_allclose(by_nan, by_mask, rtol=1e-6)


def test_a_missing_component():
    loc = np.array([[0.0, 1.0], [3.0, -2.0]])
    y = np.array([[0.1, 0.9], [np.nan, -1.5], [2.8, np.nan], [np.nan, np.nan]])
    law = HiddenMarkov(INITIAL, TRANSITION, dist.Normal(loc, 1.0).to_event(1), num_steps=4)
    each = dist.Normal(loc, 1.0, validate_args=False).log_prob(y[:, None, :])
    expected = ops.log_likelihood(INITIAL, TRANSITION, jnp.where(np.isnan(y)[:, None, :], 0.0, each).sum(-1))
    assert float(log_prob(law, y)) == pytest.approx(float(expected), rel=1e-5)
    # In any other vector law the whole vector is missing.
    whole = HiddenMarkov(INITIAL, TRANSITION, dist.MultivariateNormal(loc, np.eye(2)), num_steps=4)
    steps = jnp.where(np.isnan(y).any(-1)[:, None], 0.0, each.sum(-1))
    expected = ops.log_likelihood(INITIAL, TRANSITION, steps)
    assert float(log_prob(whole, y)) == pytest.approx(float(expected), rel=1e-5)


def test_a_missing_component_of_an_expanded_emission():
    emission = dist.Normal(np.zeros(2), 1.0).to_event(1).expand((2,))
    law = HiddenMarkov(INITIAL, TRANSITION, emission, num_steps=2)
    y = np.array([[0.1, np.nan], [0.5, 0.2]])
    expected = dist.Normal(0.0, 1.0).log_prob(np.array([0.1, 0.5, 0.2])).sum()
    assert float(log_prob(law, y)) == pytest.approx(float(expected), rel=1e-5)


def test_lengths_are_cut_series():
    lengths = np.array([5, 3, 1])
    y = np.stack([COUNTS, COUNTS[::-1], COUNTS]).astype(float)
    y[1, 3:] = np.nan
    y[2, 1:] = -1
    found = log_prob(quakes(lengths=lengths), y)
    for n, length in enumerate(lengths):
        alone = HiddenMarkov(INITIAL, TRANSITION, POISSON, num_steps=length)
        assert float(found[n]) == pytest.approx(float(log_prob(alone, y[n, :length])), rel=1e-5)


def test_an_array_of_log_densities():
    raw = np.asarray(POISSON.log_prob(COUNTS[:, None]))
    law = HiddenMarkov(INITIAL, TRANSITION, raw)
    assert law.event_shape == (5,)
    assert float(law.log_prob(np.zeros(5))) == pytest.approx(float(quakes().log_prob(COUNTS)), rel=1e-6)
    mask = np.array([1, 0, 1, 1, 0], bool)
    masked = HiddenMarkov(INITIAL, TRANSITION, raw, mask=mask)
    expected = float(quakes(mask=mask).log_prob(COUNTS))
    assert float(masked.log_prob(np.full(5, np.nan))) == pytest.approx(expected, rel=1e-6)
    assert HiddenMarkov(INITIAL, TRANSITION, np.stack([raw] * 3)).log_prob(np.zeros(5)).shape == (3,)
    with pytest.raises(NotImplementedError, match="array of log-densities cannot be sampled"):
        law.sample(jax.random.key(0))
    # One step is not mistaken for a time axis that stands for all.
    assert HiddenMarkov(INITIAL, TRANSITION, raw[:1]).event_shape == (1,)


# ---------------------------------------------------------------------------------------------- hidden states


def test_hidden_states_are_those_of_the_kernel():
    law, raw = quakes(), POISSON.log_prob(COUNTS[:, None])
    smoothed = ops.smooth(INITIAL, TRANSITION, raw)
    np.testing.assert_allclose(law.smooth(COUNTS).marginals, smoothed.marginals, atol=1e-6)
    np.testing.assert_allclose(law.smooth(COUNTS).transitions, smoothed.transitions, atol=1e-5)
    np.testing.assert_array_equal(law.most_likely_path(COUNTS), ops.viterbi(INITIAL, TRANSITION, raw))
    draws = 20_000
    paths = jax.jit(lambda key: law.sample_path(key, COUNTS, (draws,)))(jax.random.key(3))
    # Five standard errors of a frequency near one half.
    bound = 5 * np.sqrt(0.25 / draws)
    np.testing.assert_allclose(paths.mean(0), smoothed.marginals[:, 1], atol=bound)
    assert law.sample_path(jax.random.key(0), COUNTS).shape == (5,)
    assert law.sample_path(jax.random.key(0), COUNTS, (2, 3)).shape == (2, 3, 5)


# -------------------------------------------------------------------------------------------------- sampling


def test_draws_have_the_stated_law():
    law, draws = weather(), 200_000
    y = np.asarray(jax.jit(lambda key: law.sample(key, (draws,)))(jax.random.key(0)))
    everything = np.array(list(itertools.product(range(3), repeat=4)))
    probs = np.exp(np.asarray(log_prob(law, everything)))
    counts = np.bincount(y @ 3 ** np.arange(4)[::-1], minlength=81)
    # Pearson's statistic on 80 degrees of freedom: mean 80, standard deviation sqrt(160); 5 of them. All 81
    # expectations exceed 200.
    statistic = ((counts - draws * probs) ** 2 / (draws * probs)).sum()
    assert draws * probs.min() > 200
    assert abs(statistic - 80) < 5 * np.sqrt(160)


def test_draws_of_a_chain_that_varies_in_time():
    transition = np.array([np.eye(2), [[0.0, 1.0], [1.0, 0.0]], np.eye(2)])
    law = HiddenMarkov([1.0, 0.0], transition, dist.Delta(np.array([10.0, 20.0])))
    np.testing.assert_array_equal(law.sample(jax.random.key(0), (3,)), repeat([10.0, 10.0, 20.0, 20.0], 3))
    states = law.sample_states(jax.random.key(0), (3,))
    np.testing.assert_array_equal(states, repeat([0, 0, 1, 1], 3))


def test_mean_and_variance():
    draws = 100_000
    law = HiddenMarkov(
        repeat(INITIAL, 1), repeat(TRANSITION, 2, 1), dist.Normal(np.array([-1.0, 2.0]), 0.5), num_steps=3
    )
    y = np.asarray(jax.jit(lambda law, key: law.sample(key, (draws,)))(law, jax.random.key(1)))
    mean, variance = np.asarray(law.mean), np.asarray(law.variance)
    assert mean.shape == variance.shape == (2, 3)
    # The law of the state at step t is initial P^t.
    for t in range(3):
        share = (INITIAL @ np.linalg.matrix_power(TRANSITION, t))[1]
        np.testing.assert_allclose(mean[:, t], -1 + 3 * share, atol=1e-5)
        np.testing.assert_allclose(variance[:, t], 0.25 + 9 * share * (1 - share), rtol=1e-5)
    # Five standard errors: sd / sqrt(n) of a mean, at most sd^2 sqrt(2 / n) of a variance (kurtosis below 3).
    assert np.all(np.abs(y.mean(0) - mean) < 5 * np.sqrt(variance / draws))
    assert np.all(np.abs(y.var(0) - variance) < 5 * variance * np.sqrt(2 / draws))


def test_one_step_ahead():
    law, y, draws = weather(), np.array([0, 0, 2, 2]), 50_000
    keys = jax.random.split(jax.random.key(2), draws)
    ahead = np.asarray(jax.jit(jax.vmap(lambda key: law.sample_one_step_ahead(key, y)))(keys))
    assert ahead.shape == (draws, 4)
    predicted = np.asarray(law.filter(y).predicted)
    expected = predicted @ np.asarray(law.emission.probs)
    frequency = np.stack([(ahead == k).mean(0) for k in range(3)], -1)
    # Five standard errors of a frequency.
    np.testing.assert_allclose(frequency, expected, atol=5 * np.sqrt(0.25 / draws))
    # It must look at the past: without it the law would be that of the mean of the state.
    assert (
        np.abs(expected[2] - INITIAL @ np.linalg.matrix_power(TRANSITION, 2) @ law.emission.probs).max()
        > 0.02
    )


@pytest.mark.parametrize("length", [4, 2])
def test_the_future(length):
    y, draws = np.array([0, 0, 2, 2]), 100_000
    law = weather(lengths=None if length == 4 else np.array(length))
    keys = jax.random.split(jax.random.key(4), draws)
    states, future = jax.jit(jax.vmap(lambda key: law.sample_future(key, y, 2)))(keys)
    assert states.shape == future.shape == (draws, 2)
    # Exactly: p(y_{T+1} | y) and p(y_{T+1}, y_{T+2} | y) are ratios of the densities of longer series.
    pairs = np.array(list(itertools.product(range(3), repeat=2)))
    emission = weather().emission
    longer = HiddenMarkov(INITIAL, TRANSITION, emission, num_steps=length + 2)
    shorter = HiddenMarkov(INITIAL, TRANSITION, emission, num_steps=length)
    series = np.concatenate([repeat(y[:length], 9), pairs], 1)
    joint = np.exp(np.asarray(log_prob(longer, series)) - float(log_prob(shorter, y[:length])))
    frequency = np.bincount(np.asarray(future) @ [3, 1], minlength=9) / draws
    # Five standard errors of a frequency.
    bound = 5 * np.sqrt(0.25 / draws)
    np.testing.assert_allclose(frequency, joint, atol=bound)
    np.testing.assert_allclose(frequency.reshape(3, 3).sum(1), joint.reshape(3, 3).sum(1), atol=bound)


def test_the_future_of_a_batch_and_of_what_varies_in_time():
    batch = HiddenMarkov(INITIAL, repeat(TRANSITION, 3, 1), POISSON, num_steps=5, lengths=np.array([5, 2, 1]))
    states, future = batch.sample_future(jax.random.key(0), np.stack([COUNTS] * 3), 6)
    assert states.shape == future.shape == (3, 6)
    varies = HiddenMarkov(INITIAL, repeat(TRANSITION, 4), POISSON)
    with pytest.raises(ValueError, match="transitions vary in time: pass those of the future"):
        varies.sample_future(jax.random.key(0), COUNTS, 2)
    swap = repeat(np.array([[0.0, 1.0], [1.0, 0.0]]), 6)
    states, _ = varies.sample_future(jax.random.key(0), COUNTS, 6, transition=swap)
    assert (jnp.abs(jnp.diff(states)) == 1).all()
    seasonal = HiddenMarkov(INITIAL, TRANSITION, dist.Poisson(repeat(RATE, 5)))
    with pytest.raises(ValueError, match="emission varies in time: pass that of the future"):
        seasonal.sample_future(jax.random.key(0), COUNTS, 2)
    far = dist.Normal(np.array([[100.0, 100.0], [200.0, 200.0]]), 1e-3)
    _, future = seasonal.sample_future(jax.random.key(0), COUNTS, 2, emission=far)
    np.testing.assert_allclose(future, [100.0, 200.0], atol=0.1)
    with pytest.raises(ValueError, match="`horizon` must be at least one step, not 0"):
        batch.sample_future(jax.random.key(0), np.stack([COUNTS] * 3), 0)
