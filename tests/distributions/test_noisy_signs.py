"""NoisySigns under NumPyro's conventions; the recursions themselves are tested in tests/ops."""

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

from sojourn.distributions import HiddenMarkov, NoisySigns
from sojourn.ops import switching_renewal as ops

HAZARD = np.array([[0.3, 0.1, 0.6], [0.5, 0.8, 0.2]])
FLIP = np.array([0.1, 0.25])
STEPS = 5
VALUE = np.array([1.0, 1.0, 0.0, np.nan, 1.0])
EVERY = np.array(list(itertools.product((0, 1), repeat=STEPS)))


def signs(hazard=HAZARD, flip=FLIP, **kwargs):
    return NoisySigns(hazard, num_steps=STEPS, flip=flip, **kwargs)


@jax.jit
def log_prob(law, value):
    return law.log_prob(value)


# ------------------------------------------------------------------------------------------------ the density


def test_hidden_markov_of_sign_and_age(x64):
    """Every method against ``HiddenMarkov`` over the states (sign, age)."""
    num_ages = 3
    move = np.zeros((2, num_ages, 2, num_ages))
    for side, age in np.ndindex(2, num_ages):
        move[side, age, 1 - side, 0] += HAZARD[side, age]
        move[side, age, side, min(age + 1, num_ages - 1)] += 1 - HAZARD[side, age]
    says_above = np.repeat([FLIP[0], 1 - FLIP[1]], num_ages)
    chain = HiddenMarkov(
        ops.stationary_law(HAZARD).reshape(-1),
        move.reshape(6, 6),
        dist.Bernoulli(says_above),
        num_steps=STEPS,
    )
    law = signs()

    @jax.jit
    def answers(law, chain):
        mine = (law.predictive_log_prob(VALUE), law.sign_probabilities(VALUE, filtered=True))
        run = chain.filter(VALUE)
        theirs = (run.log_predictive, run.filtered[:, 3:].sum(-1))
        mine = (*mine, law.sign_probabilities(VALUE), law.mean, law.variance)
        return mine, (*theirs, chain.smooth(VALUE).marginals[:, 3:].sum(-1), chain.mean, chain.variance)

    for mine, theirs in zip(*answers(law, chain), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert float(log_prob(law, VALUE)) == pytest.approx(float(log_prob(chain, VALUE)), abs=1e-12)


def test_probabilities_sum_to_one(x64):
    """Over all series; exactly impossible ones are minus infinity without errors of reading."""
    assert float(np.exp(log_prob(signs(), EVERY)).sum()) == pytest.approx(1.0, abs=1e-12)
    hazard = np.array([[0.0, 1.0], [0.5, 1.0]])
    found = log_prob(signs(hazard, 0.0), EVERY)
    assert float(np.exp(found).sum()) == pytest.approx(1.0, abs=1e-12)
    lone_zero = np.array(["101" in "".join(map(str, s)) for s in EVERY])  # runs below last two steps
    assert np.isneginf(found)[lone_zero].all()


def test_missing_readings(x64):
    """NaN, or a false entry of the mask: the sum over both readings; its gradient is finite."""
    filled = np.stack([np.where(np.isnan(VALUE), r, VALUE) for r in (0, 1)])
    expected = float(jax.nn.logsumexp(log_prob(signs(), filled)))
    assert float(log_prob(signs(), VALUE)) == pytest.approx(expected, abs=1e-12)
    masked = signs(mask=~np.isnan(VALUE))
    for rubbish in (0.0, 7.0):
        value = np.where(np.isnan(VALUE), rubbish, VALUE)
        assert float(log_prob(masked, value)) == pytest.approx(expected, abs=1e-12)
    nothing = np.full(STEPS, np.nan)
    assert float(log_prob(signs(), nothing)) == pytest.approx(0.0, abs=1e-14)
    slope = jax.jit(jax.grad(lambda flip: signs(flip=flip).log_prob(VALUE)))
    assert np.isfinite(slope(FLIP)).all()
    assert np.isfinite(slope(np.zeros(2))).all()


# ----------------------------------------------------------------------------------------------------- shapes


def repeat(x, *lead):
    return np.broadcast_to(x, (*lead, *np.shape(x)))


@pytest.mark.parametrize(
    ("kwargs", "batch"),
    [
        ({"flip": repeat(FLIP, 3)}, (3,)),
        ({"hazard": repeat(HAZARD, 2, 1), "mask": np.ones((3, STEPS), bool)}, (2, 3)),
    ],
)
def test_batch_and_event_shapes(kwargs, batch):
    law = signs(**kwargs)
    assert (law.batch_shape, law.event_shape) == (batch, (STEPS,))
    draw, path, ahead, mean = jax.jit(
        lambda law, key: (
            law.sample(key, (4,)),
            law.sample_path(key, VALUE, (2,)),
            law.sample_one_step_ahead(key, VALUE),
            law.mean,
        )
    )(law, jax.random.key(0))
    assert (draw.shape, draw.dtype) == ((4, *batch, STEPS), jnp.int32)
    assert (path.shape, path.dtype) == ((2, *batch, STEPS), jnp.int32)
    assert ahead.shape == mean.shape == (*batch, STEPS)
    np.testing.assert_allclose(
        log_prob(law, VALUE), np.full(batch, float(log_prob(signs(), VALUE))), rtol=1e-5
    )
    assert log_prob(law, draw).shape == (4, *batch)


def test_batch_entries_are_independent():
    rng = np.random.default_rng(0)
    hazard, flip = rng.uniform(0.1, 0.9, (3, 2, 4)), rng.uniform(0, 0.4, (3, 2))
    value = rng.integers(0, 2, (3, STEPS))
    found = log_prob(signs(hazard, flip), value)
    alone = [float(log_prob(signs(h, f), v)) for h, f, v in zip(hazard, flip, value, strict=True)]
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    mapped = jax.jit(jax.vmap(lambda h, f, v: signs(h, f).log_prob(v)))(hazard, flip, value)
    np.testing.assert_allclose(mapped, alone, rtol=1e-5)


def test_one_law_for_both_sides():
    same = log_prob(signs(HAZARD[0], 0.1), VALUE)
    assert float(same) == float(log_prob(signs(np.stack([HAZARD[0]] * 2), np.full(2, 0.1)), VALUE))
    swapped = log_prob(signs(HAZARD[0], 0.1), 1 - VALUE)
    assert float(same) == pytest.approx(float(swapped), rel=1e-6)


def test_pytree_round_trip():
    law = signs(mask=np.array([1, 1, 0, 1, 1], bool))
    again = jax.tree.unflatten(*jax.tree.flatten(law)[::-1])
    assert (again.batch_shape, again.event_shape, again.num_steps) == ((), (STEPS,), STEPS)
    assert float(log_prob(again, EVERY[5])) == float(log_prob(law, EVERY[5]))


def test_expand_to_event_and_plate():
    alone = float(log_prob(signs(), EVERY[9]))
    expanded = signs().expand((2,))
    np.testing.assert_allclose(log_prob(expanded, EVERY[9]), [alone] * 2, rtol=1e-6)
    assert float(log_prob(expanded.to_event(1), EVERY[[9, 9]])) == pytest.approx(2 * alone, rel=1e-6)

    def model(y):
        with numpyro.plate("series", 2):
            numpyro.sample("y", signs(), obs=y)

    found = jax.jit(lambda y: log_density(model, (y,), {}, {})[0])(EVERY[[9, 9]])
    assert float(found) == pytest.approx(2 * alone, rel=1e-6)
    simulated = jax.eval_shape(lambda: handlers.trace(handlers.seed(model, 0)).get_trace(None)["y"]["value"])
    assert simulated.shape == (2, STEPS)


# --------------------------------------------------------------------------------------------------- sampling


def test_draws_have_the_law():
    """Frequencies of all 32 series in 20 000 draws, and of one-step-ahead draws: 4.5 standard errors."""
    law, draws = signs(), 20_000
    series = np.asarray(jax.jit(lambda key: law.sample(key, (draws,)))(jax.random.key(3)))
    count = np.bincount(series @ (2 ** np.arange(STEPS)[::-1]), minlength=32)
    prob = np.exp(np.asarray(log_prob(law, EVERY)))
    assert np.abs((count - draws * prob) / np.sqrt(draws * prob * (1 - prob))).max() < 4.5

    keys = jax.random.split(jax.random.key(4), draws)
    ahead = np.asarray(jax.jit(jax.vmap(lambda key: law.sample_one_step_ahead(key, VALUE)))(keys))
    # P(y_t = 1 | y_<t) from the joint probabilities of beginnings.
    beginning = np.where(np.arange(STEPS) < np.arange(STEPS)[:, None], VALUE, np.nan)
    one = np.where(np.eye(STEPS, dtype=bool), 1.0, beginning)
    chance = np.exp(log_prob(law, one) - log_prob(law, beginning))
    z = (ahead.mean(0) - chance) / np.sqrt(chance * (1 - chance) / draws)
    assert np.abs(z).max() < 4.5


def test_paths_follow_the_readings():
    """Signs of 20 000 sampled paths against the smoothed probabilities, 4.5 standard errors."""
    law, draws = signs(), 20_000
    sample = jax.jit(lambda law, key, value: law.sample_path(key, value, (draws,)))
    path = sample(law, jax.random.key(5), VALUE)
    above = np.asarray(jax.jit(law.sign_probabilities)(VALUE))
    z = ((np.asarray(path) > 0).mean(0) - above) / np.sqrt(above * (1 - above) / draws)
    assert np.abs(z).max() < 4.5
    series = EVERY[11].astype(float)
    exact = sample(signs(flip=np.zeros(2)), jax.random.key(6), series)
    assert ((np.asarray(exact) > 0) == (series == 1)).all()


# ---------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"hazard": 0.5},
            r"`hazard` has shape \(\); it must be \(K,\), or \(..., 2, K\) for below and above",
        ),
        ({"hazard": np.ones((3, 4))}, r"`hazard` has shape \(3, 4\); it must be"),
        ({"flip": np.zeros(3)}, r"`flip` has shape \(3,\); it is one probability, or \(..., 2\)"),
        ({"mask": np.ones(4, bool)}, r"`mask` has shape \(4,\); its last axis must be the 5 steps"),
    ],
)
def test_shapes_that_do_not_fit(kwargs, message):
    with pytest.raises(ValueError, match=message):
        signs(**kwargs)


def test_a_series_has_a_step():
    with pytest.raises(ValueError, match="`num_steps` must be at least one step, not 0"):
        NoisySigns(HAZARD, num_steps=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hazard": np.array([0.2, 1.5])}, r"`hazard` is 1.5 at length 2 on side 0; .* must lie in \[0, 1\]"),
        ({"hazard": np.array([[0.2, 0.1], [np.nan, 1]])}, "`hazard` is nan at length 1 on side 1"),
        ({"hazard": np.array([[0.2, 0.1], [0.4, 0.0]])}, "last `hazard` is zero on side 1: .* never end"),
        ({"flip": 0.5}, r"`flip` is 0.5; the probability of a wrong reading must lie in \[0, 0.5\)"),
        ({"flip": np.array([0.1, -0.2])}, "`flip` is -0.2"),
    ],
)
def test_validation_of_arguments(kwargs, message):
    signs(**kwargs, validate_args=False)  # then nothing is checked
    with pytest.raises(ValueError, match=message):
        signs(**kwargs, validate_args=True)


def test_validation_of_the_value():
    law = signs(validate_args=True)
    law.log_prob(VALUE)
    with pytest.raises(
        ValueError, match="The value is 2 at index 2; a reading is 0 or 1, or NaN if there is"
    ):
        law.log_prob(np.array([0, 1, 2, 0, 0]))
    with pytest.raises(ValueError, match=r"The value is -1 at index \(1, 4\)"):
        law.log_prob(np.array([[0, 1, 0, 0, 0], [0, 1, 0, 0, -1]]))
    with pytest.raises(ValueError, match=r"The series has shape \(4,\); its last axis must be the 5 steps"):
        law.log_prob(np.zeros(4))
    hidden = signs(validate_args=True, mask=np.array([1, 1, 0, 1, 1], bool))
    hidden.log_prob(np.array([0, 1, 2, 0, 0]))  # nobody looks at the masked entry
    # Inside a compiled function it cannot raise: such a value has no probability.
    assert np.isneginf(jax.jit(law.log_prob)(np.array([0, 1, 2, 0, 0])))
    with pytest.raises(RuntimeError, match="Cannot validate arguments inside jitted code"):
        jax.jit(lambda flip: signs(flip=flip).validate_args())(0.1)
