"""The race of laws against an enumeration of every set of laws that can have fired."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sojourn.ops import law_race
from tests.ops.law_enumeration import enumerated


def case(seed, exclusive=False):
    rng = np.random.default_rng(seed)
    laws, cells = rng.integers(1, 6), rng.integers(1, 5)
    writes = rng.random((laws, cells)) < 0.5
    writes[:, 0] |= exclusive | ~writes.any(1)
    return rng.exponential(1.0, laws), writes, rng.random((laws, cells)), rng.random(cells)


@pytest.mark.parametrize("seed", range(12))
def test_race_is_the_enumeration(x64, seed):
    hazard, writes, seen, frame = case(seed)
    log_prob = law_race.race(*(jnp.asarray(x) for x in (hazard, writes, seen, frame)))
    np.testing.assert_allclose(np.exp(log_prob), enumerated(hazard, writes, seen, frame), rtol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_one_at_most_is_the_race(x64, seed):
    hazard, writes, seen, frame = case(seed, exclusive=True)
    args = [jnp.asarray(x) for x in (hazard, writes, seen, frame)]
    one, race = law_race.at_most_one(*args), law_race.race(*args)
    np.testing.assert_allclose(one, race, rtol=1e-12)
    np.testing.assert_allclose(
        jax.grad(law_race.at_most_one)(*args), jax.grad(law_race.race)(*args), rtol=1e-9, atol=1e-12
    )


def test_without_hazard_the_law_is_absent(x64):
    hazard, writes, seen, frame = case(3)
    more = jnp.append(jnp.asarray(hazard), 0.0), np.concatenate([writes, np.ones((1, writes.shape[1]), bool)])
    with_zero = law_race.race(
        *more, np.concatenate([seen, np.ones((1, writes.shape[1]))]), jnp.asarray(frame)
    )
    without = law_race.race(*(jnp.asarray(x) for x in (hazard, writes, seen, frame)))
    np.testing.assert_allclose(with_zero, without, rtol=1e-12)


def test_single_precision_keeps_small_probabilities():
    # six cells that all came as no law would have them, at chances of a ten-millionth each
    seen, frame = np.full((2, 6), 1e-7, np.float32), np.full(6, 1e-7, np.float32)
    writes = np.array([[True] * 3 + [False] * 3, [False] * 3 + [True] * 3])
    args = jnp.array([0.5, 12.0]), jnp.asarray(writes), jnp.asarray(seen), jnp.asarray(frame)
    np.testing.assert_allclose(law_race.race(*args), 6 * np.log(1e-7), rtol=1e-5)
    np.testing.assert_allclose(law_race.at_most_one(*args), 6 * np.log(1e-7), rtol=1e-5)
    assert np.isfinite(jax.grad(law_race.race)(*args)).all()


def test_draws_have_the_probabilities_of_the_race():
    hazard = jnp.array([0.7, 1.2, 0.4])
    writes = np.array([[True, False], [False, True], [True, True]])
    writers = np.asarray(
        jax.vmap(lambda k: law_race.fire(k, hazard, jnp.asarray(writes)))(
            jax.random.split(jax.random.key(0), 20_000)
        )
    )
    for outcome in itertools.product((-1, 0, 2), (-1, 1, 2)):
        if (outcome[0] == 2) != (outcome[1] == 2):
            assert not (writers == outcome).all(1).any()
            continue
        # what was seen names the writer of each cell
        seen = np.array([[outcome[0] == i, outcome[1] == i] for i in range(3)], float)
        frame = np.array([o == -1 for o in outcome], float)
        p = enumerated(np.asarray(hazard), writes, seen, frame)
        share = (writers == outcome).all(1).mean()
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / 20_000)
