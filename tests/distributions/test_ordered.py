"""Ordered: the density of sorted independent draws."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

from sojourn.distributions import Ordered


@pytest.mark.parametrize("size", [1, 2, 5])
def test_density(size):
    base = dist.Normal(1.0, 2.0)
    x = np.sort(np.random.default_rng(0).normal(size=(4, size)), -1)
    expected = base.log_prob(x).sum(-1) + math.log(math.factorial(size))
    np.testing.assert_allclose(Ordered(base, size).log_prob(x), expected, rtol=1e-5)


@pytest.mark.parametrize(("base", "low"), [(dist.Normal(0.5, 1.0), -9.0), (dist.Gamma(2.0, 1.0), 0.0)])
def test_integrates_to_one(base, low, x64):
    # Midpoint rule over the triangle low < x < y: the diagonal cells count half.
    n = 800
    edges = np.linspace(low, low + 25.0, n + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    x, y = np.meshgrid(middle, middle, indexing="ij")
    density = np.exp(np.asarray(Ordered(base, 2, validate_args=False).log_prob(np.stack([x, y], -1))))
    weight = np.where(x < y, 1.0, np.where(x == y, 0.5, 0.0))
    assert (density * weight).sum() * (25.0 / n) ** 2 == pytest.approx(1.0, abs=1e-4)


def test_draws_are_the_sorted_draws_of_the_base():
    law = Ordered(dist.Normal(0.0, 1.0), 3)
    x = np.asarray(law.sample(jax.random.key(0), (50_000,)))
    assert x.shape == (50_000, 3)
    assert (np.diff(x) > 0).all()
    # Means of the order statistics of three normals: -3 / (2 sqrt(pi)), 0, 3 / (2 sqrt(pi)); their standard
    # deviations are below 0.75, so five standard errors are below 0.017.
    np.testing.assert_allclose(x.mean(0), np.array([-1.5, 0.0, 1.5]) / np.sqrt(np.pi), atol=0.017)
    # Shuffled, they are draws of the base: variance one, standard error of it sqrt(2 / 150 000).
    assert x.var() == pytest.approx(1.0, abs=5 * np.sqrt(2 / 150_000))


def test_shapes_and_batches():
    law = Ordered(dist.Normal(np.array([0.0, 100.0]), 1.0), 3)
    assert (law.batch_shape, law.event_shape) == ((2,), (3,))
    x = law.sample(jax.random.key(0), (4, 5))
    assert x.shape == (4, 5, 2, 3)
    assert (x[..., 1, :] > 50).all()
    assert (x[..., 0, :] < 50).all()
    assert law.log_prob(x).shape == (4, 5, 2)
    for n, loc in enumerate([0.0, 100.0]):
        alone = Ordered(dist.Normal(loc, 1.0), 3).log_prob(x[:, :, n])
        np.testing.assert_allclose(law.log_prob(x)[..., n], alone, rtol=1e-4)
    again = jax.tree.unflatten(*reversed(jax.tree.flatten(law)))
    np.testing.assert_array_equal(again.log_prob(x), law.log_prob(x))
    assert jax.jit(lambda law, x: law.log_prob(x))(law, x).shape == (4, 5, 2)


@pytest.mark.parametrize(
    ("base", "support"),
    [
        (dist.Normal(0.0, 1.0), constraints.ordered_vector),
        (dist.StudentT(3.0), constraints.ordered_vector),
        (dist.LogNormal(0.0, 1.0), constraints.positive_ordered_vector),
        (dist.Gamma(2.0), constraints.positive_ordered_vector),
        (dist.HalfNormal(1.0), constraints.positive_ordered_vector),
    ],
)
def test_support(base, support):
    law = Ordered(base, 3)
    assert law.support is support
    x = biject_to(law.support)(jnp.array([0.3, -0.2, 0.5]))
    assert bool(law.support(x))
    assert not bool(law.support(x[::-1]))
    assert np.isfinite(float(law.log_prob(x)))


def test_validation_refuses_unsorted_values():
    law = Ordered(dist.Normal(0.0, 1.0), 2, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert float(law.log_prob(np.array([1.0, 0.0]))) == -np.inf


@pytest.mark.parametrize(
    ("base", "size", "message"),
    [
        (dist.Poisson(3.0), 2, "continuous univariate"),
        (dist.MultivariateNormal(np.zeros(2), np.eye(2)), 2, "continuous univariate"),
        (3.0, 2, "continuous univariate"),
        (dist.Normal(), 0, "`size` of Ordered must be at least one, not 0"),
        (dist.Beta(1.0, 1.0), 2, "the real line or the positive numbers serve"),
    ],
)
def test_what_cannot_be_sorted(base, size, message):
    with pytest.raises(ValueError, match=message):
        Ordered(base, size)
