"""Pools of laws as NumPyro distributions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from sojourn.distributions import CompetingLaws, LawRows, LogLinearLaws


def pair():
    """Two rows of two cells of three values: laws 0 and 1 of a cell each, and law 2 of both, in the first row alone."""
    writes = np.zeros((2, 3, 2), bool)
    label = np.full((2, 3, 2, 2), -1)
    probs = np.zeros((2, 3, 2, 2))
    for m, cell in ((0, 0), (1, 1)):
        writes[:, m, cell] = True
        label[:, m, cell] = [1, 2] if m else [1, -1]
        probs[:, m, cell] = [0.25, 0.75] if m else [1.0, 0.0]
    law = np.array([[0, 1, 2], [0, 1, 3]])
    writes[0, 2] = True
    label[0, 2, :, 0] = [2, 1]
    probs[0, 2, :, 0] = 1.0
    return LawRows(
        law=law,
        writes=writes,
        label=label,
        probs=probs,
        uniform=np.zeros((2, 3, 2), bool),
        attribute=np.array([[0, 1], [0, 1]]),
        size=np.full((2, 2), 3),
        named=np.full((2, 2), 3),
        several=np.array([0, 1]),
    )


def single():
    return LawRows(
        law=np.array([[0, 1], [1, 2]]),
        writes=np.array([[[True], [True]], [[True], [False]]]),
        label=np.array([[[[1, 2]], [[0, 2]]], [[[1, -1]], [[-1, -1]]]]),
        probs=np.array([[[[0.25, 0.75]], [[0.5, 0.5]]], [[[1.0, 0.0]], [[0.0, 0.0]]]]),
        uniform=np.array([[[False], [False]], [[False], [False]]]),
        attribute=np.zeros((2, 1), int),
        size=np.full((2, 1), 5),
        named=np.array([[3], [2]]),
        several=np.array([], int),
    )


def competing(rows=None, hazard=(0.7, 0.4, 1.1)):
    return CompetingLaws(
        jnp.array(hazard), jnp.array([0.05, 0.1]), pair() if rows is None else rows, noise=0.02
    )


def voting(boost=None):
    return LogLinearLaws(jnp.array([0.3, 0.2]), jnp.array([0.1]), single(), noise=0.01, boost=boost)


VALUES = np.array(list(itertools.product(range(3), repeat=2)))


def test_the_values_of_all_cells_sum_to_one(x64):
    law = competing()
    log_prob = jax.vmap(law.log_prob)(jnp.asarray(np.repeat(VALUES[:, None], 2, 1)))
    np.testing.assert_allclose(np.exp(log_prob).sum(0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("boost", [None, 4.0])
def test_votes_sum_to_one(x64, boost):
    law = voting(boost)
    for row, named in ((0, 3), (1, 2)):
        p = [np.exp(law.log_prob(np.array([[v], [v]]))[row]) for v in (*range(named), -1)]
        assert sum(p[:-1]) + (5 - named) * p[-1] == pytest.approx(1.0, rel=1e-12)


def test_hidden_cells_are_summed_out(x64):
    law = competing()
    value = np.array([[1, -2], [-2, 2]])
    both = [law.log_prob(np.array([[1, v], [v, 2]])) for v in range(3)]
    np.testing.assert_allclose(law.log_prob(value), np.logaddexp.reduce(both), rtol=1e-12)
    np.testing.assert_allclose(law.log_prob(np.full((2, 2), -2)), 0.0, atol=1e-12)


@pytest.mark.parametrize("make", [competing, voting])
def test_draws_follow_the_density(make):
    law = make()
    num = 8000
    draws = np.asarray(law.sample(jax.random.key(0), (num,)))
    assert draws.shape == (num, *law.batch_shape, *law.event_shape)
    size, named = np.asarray(law.rows.size), np.asarray(law.rows.named)
    for row in range(2):
        found, count = np.unique(draws[:, row], axis=0, return_counts=True)
        for value, n in zip(found, count, strict=True):
            p = np.exp(law.log_prob(np.repeat(value[None], 2, 0))[row])
            p = p * np.prod(
                np.where(value == -1, size[row] - named[row], 1)
            )  # -1 stands for all that none names
            assert abs(n / num - p) < 4.5 * np.sqrt(p * (1 - p) / num)


def test_numpyro_conventions():
    law = competing()
    assert law.batch_shape == (2,)
    assert law.event_shape == (2,)
    assert law.is_discrete
    value = law.sample(jax.random.key(1))
    assert law.support(value).all()
    leaves, tree = jax.tree.flatten(law)
    again = jax.tree.unflatten(tree, leaves)
    np.testing.assert_allclose(again.log_prob(value), law.log_prob(value))
    np.testing.assert_allclose(
        jax.jit(lambda d, v: d.log_prob(v))(law, value), law.log_prob(value), rtol=1e-5
    )
    many = jax.vmap(lambda h: competing(hazard=h).log_prob(value))(jnp.ones((4, 3)))
    assert many.shape == (4, 2)
    assert law.to_event(1).log_prob(value).shape == ()
    assert law.expand((5, 2)).batch_shape == (5, 2)
    gradient = jax.grad(lambda h: competing(hazard=h).log_prob(value).sum())(jnp.array([0.7, 0.4, 1.1]))
    assert np.isfinite(gradient).all()
    assert (gradient != 0).all()


def test_gradients_at_no_hazard_are_finite():
    value = np.zeros((2, 2), int)
    gradient = jax.grad(lambda h: competing(hazard=h).log_prob(value).sum())(jnp.zeros(3))
    assert np.isfinite(gradient).all()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="hazard"):
        CompetingLaws(jnp.array([-1.0, 0.0, 0.0]), jnp.array([0.1, 0.1]), pair(), validate_args=True)
    with pytest.raises(ValueError, match="pools each cell alone; its rows have several"):
        LogLinearLaws(jnp.ones(3), jnp.ones(2), pair())


def test_as_a_site():
    def model(value):
        hazard = numpyro.sample("hazard", dist.Exponential(1.0).expand((3,)).to_event(1))
        with numpyro.plate("row", 2):
            numpyro.sample("value", competing(hazard=hazard), obs=value)

    trace = handlers.trace(handlers.seed(model, 0)).get_trace(np.zeros((2, 2), int))
    assert trace["value"]["fn"].log_prob(trace["value"]["value"]).shape == (2,)


def test_rates_as_hazards_keep_their_density(x64):
    from sojourn.models.laws._world import _RateToHazard

    law = dist.TransformedDistribution(dist.Beta(3.0, 2.0), [_RateToHazard()])
    hazard = jnp.array([0.2, 1.0, 3.0])
    rate = -jnp.expm1(-hazard)
    exact = dist.Beta(3.0, 2.0).log_prob(rate) - hazard
    np.testing.assert_allclose(law.log_prob(hazard), exact, rtol=1e-10)
    assert biject_to(law.support)(jnp.array(0.3)) > 0
