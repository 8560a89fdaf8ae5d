"""Resampling: unbiased, and the conditional twins have the law of the free scheme given slot 0.

The reference is rejection: draw from the free scheme, turn its slots by a uniform shift, keep the draws in which
slot 0 has the wanted ancestor. What is compared are mean numbers of offspring and the probability of sharing the
ancestor of slot 0, slot by slot. Bounds are 4.5 standard errors of the two samples together; with some 30 numbers a
check they fail by chance once in 5000 runs, and the seeds are fixed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from sojourn.ops import resampling
from sojourn.ops.particles import lanes
from sojourn.ops.resampling import SCHEMES

WEIGHTS = np.array([0.12, 0.38, 0.05, 0.25, 0.20])
N = len(WEIGHTS)
DRAWS = 100_000
BOUND = 4.5
LOG_WEIGHTS = jnp.log(jnp.asarray(WEIGHTS)) + 3.0  # not normalised


def many(fn, seed=0, draws=DRAWS):
    return np.asarray(jax.jit(jax.vmap(fn))(random.split(random.key(seed), draws)))


def statistics_of(ancestors):
    """For each draw: offspring of each particle, and which slots share the ancestor of slot 0."""
    offspring = (ancestors[:, :, None] == np.arange(N)).sum(1)
    return np.concatenate([offspring, ancestors == ancestors[:, :1]], 1).astype(float)


def z_scores(one, two):
    one, two = statistics_of(one), statistics_of(two)
    error = np.sqrt(one.var(0) / len(one) + two.var(0) / len(two))
    gap = one.mean(0) - two.mean(0)
    return np.where(error > 0, gap / np.where(error > 0, error, 1.0), np.where(gap == 0, 0.0, np.inf))


def by_rejection(scheme, index):
    def one(key):
        key_scheme, key_shift = random.split(key)
        return jnp.roll(SCHEMES[scheme].free(key_scheme, LOG_WEIGHTS), random.randint(key_shift, (), 0, N))

    drawn = many(one, seed=1)
    return drawn[drawn[:, 0] == index]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_free_schemes_give_each_particle_its_share(scheme):
    drawn = many(lambda key: SCHEMES[scheme].free(key, LOG_WEIGHTS))
    offspring = (drawn[:, :, None] == np.arange(N)).sum(1)
    error = offspring.std(0) / np.sqrt(DRAWS)
    assert (np.abs(offspring.mean(0) - N * WEIGHTS) <= BOUND * error + 1e-5).all()


@pytest.mark.parametrize("index", [1, 2, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_conditional_schemes_have_the_law_of_the_free_one_given_slot_0(scheme, index):
    drawn = many(lambda key: SCHEMES[scheme].conditional(key, LOG_WEIGHTS, index))
    assert (drawn[:, 0] == index).all()
    assert np.abs(z_scores(drawn, by_rejection(scheme, index))).max() < BOUND


@pytest.mark.parametrize("scheme", ["systematic", "killing"])
def test_keeping_slot_0_and_drawing_the_others_freely_is_found_out(scheme):
    """The mutant, right for multinomial resampling alone: offspring off by tens of standard errors."""
    drawn = many(lambda key: SCHEMES[scheme].free(key, LOG_WEIGHTS).at[0].set(1))
    assert np.abs(z_scores(drawn, by_rejection(scheme, 1))).max() > 4 * BOUND


def test_keeping_slot_0_is_right_for_multinomial_resampling():
    drawn = many(lambda key: resampling.multinomial(key, LOG_WEIGHTS).at[0].set(1))
    assert np.abs(z_scores(drawn, by_rejection("multinomial", 1))).max() < BOUND


def test_without_the_shift_the_systematic_scheme_is_found_out():
    """Conditioning the free scheme without a cyclic shift: its slots are ordered, slot 0 is nearly particle 0."""
    drawn = many(lambda key: resampling.systematic(key, LOG_WEIGHTS), seed=1)
    drawn = drawn[drawn[:, 0] == 1]
    assert np.abs(z_scores(drawn, by_rejection("systematic", 1))).max() > 4 * BOUND


@pytest.mark.parametrize("scheme", SCHEMES)
def test_particles_of_weight_zero_have_no_offspring(scheme):
    log_weights = jnp.log(jnp.array([0.0, 0.3, 0.0, 0.7, 0.0]))
    drawn = many(lambda key: SCHEMES[scheme].free(key, log_weights), draws=5000)
    assert set(np.unique(drawn)) == {1, 3}
    drawn = many(lambda key: SCHEMES[scheme].conditional(key, log_weights, 3), draws=5000)
    assert set(np.unique(drawn)) == {1, 3}
    assert (drawn[:, 0] == 3).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_particle_with_all_the_weight_has_all_offspring(scheme):
    log_weights = jnp.array([-jnp.inf, -500.0, -jnp.inf])
    assert SCHEMES[scheme].free(random.key(0), log_weights).tolist() == [1, 1, 1]
    assert SCHEMES[scheme].conditional(random.key(0), log_weights, 1).tolist() == [1, 1, 1]


def test_systematic_numbers_differ_from_their_mean_by_less_than_one():
    log_weights = random.normal(random.key(2), (50,))
    share = 50 * np.asarray(jax.nn.softmax(log_weights))
    drawn = many(lambda key: resampling.systematic(key, log_weights), draws=2000)
    offspring = (drawn[:, :, None] == np.arange(50)).sum(1)
    assert (np.abs(offspring - share) < 1.0 + 1e-3).all()


def test_draw_follows_the_weights():
    drawn = np.asarray(resampling.draw(random.key(0), LOG_WEIGHTS, (DRAWS,)))
    share = np.bincount(drawn, minlength=N) / DRAWS
    assert (np.abs(share - WEIGHTS) < BOUND * np.sqrt(WEIGHTS * (1 - WEIGHTS) / DRAWS)).all()


def test_effective_sample_size_of_two_equal_weights_among_many():
    log_weights = jnp.array([-1000.0, -3.0, -3.0, -jnp.inf])
    assert float(resampling.effective_sample_size(log_weights)) == pytest.approx(2.0)


def test_lanes_are_independent_streams():
    """Normals from neighbouring lanes of consecutive keys: means, squares and products along both axes."""
    keys = jax.vmap(lambda key: lanes(key, 256))(random.split(random.key(3), 256))
    x = np.asarray(jax.vmap(jax.vmap(random.normal))(keys), float)
    count = x.size
    assert abs(x.mean()) < BOUND / np.sqrt(count)
    assert abs((x**2).mean() - 1) < BOUND * np.sqrt(2 / count)
    for lag in (1, 2, 3):
        assert abs((x[:, lag:] * x[:, :-lag]).mean()) < BOUND / np.sqrt(count)
        assert abs((x[lag:] * x[:-lag]).mean()) < BOUND / np.sqrt(count)
    assert len(np.unique(np.asarray(random.key_data(keys)).reshape(-1, 2), axis=0)) == count


def test_lanes_of_old_keys_and_of_other_generators():
    old = random.PRNGKey(0)
    assert (np.asarray(lanes(old, 4)) == np.asarray(random.key_data(lanes(random.key(0), 4)))).all()
    assert lanes(random.key(0, impl="rbg"), 4).shape == (4,)
