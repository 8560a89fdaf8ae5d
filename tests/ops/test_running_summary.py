import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sojourn.ops.running_summary import begin_summary, summary_quantiles, update_summary

QUANTILES = (0.05, 0.5, 0.95)


@jax.jit
def summarised(draws):
    def step(summary, value):
        return update_summary(summary, value, QUANTILES), None

    return lax.scan(step, begin_summary(draws.shape[1:], QUANTILES), draws)[0]


def correlated(key, count, width, memory):
    """AR(1) draws of variance one, as a sampler gives them."""
    start, noise = jax.random.split(key)
    noise = jax.random.normal(noise, (count, width)) * np.sqrt(1 - memory**2)
    first = jax.random.normal(start, (width,))
    return lax.scan(lambda x, e: (memory * x + e, memory * x + e), first, noise)[1]


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_mean_sd_and_quantiles_of_a_stream(memory):
    draws = correlated(jax.random.key(1), 2000, 200, memory)
    summary = summarised(draws)
    np.testing.assert_allclose(summary.mean, draws.mean(0), atol=1e-5)
    np.testing.assert_allclose(jnp.sqrt(summary.square / (len(draws) - 1)), draws.std(0, ddof=1), rtol=1e-4)
    error = np.asarray(summary_quantiles(summary) - jnp.quantile(draws, jnp.array(QUANTILES), axis=0))
    # What the running rule adds is less than what chance does: sqrt(p (1 - p) / n) / density, .047 at the outer
    # quantiles for independent draws, three times that at a correlation of .8.
    allowed = 0.047 * np.sqrt((1 + memory) / (1 - memory))
    assert np.sqrt((error**2).mean(1)).max() < allowed
    assert np.abs(error.mean(1)).max() < 0.5 * allowed


def test_too_few_values_have_no_quantiles():
    draws = jnp.arange(5.0)[:, None]
    summary = summarised(draws)
    assert float(summary.mean[0]) == 2.0
    assert np.isnan(summary_quantiles(summary)).all()


def test_extremes_are_exact_and_markers_stay_in_order():
    draws = jax.random.cauchy(jax.random.key(3), (500, 50))
    summary = summarised(draws)
    np.testing.assert_array_equal(summary.heights[0], draws.min(0))
    np.testing.assert_array_equal(summary.heights[-1], draws.max(0))
    assert (np.diff(summary.heights, axis=0) >= 0).all()
    assert (np.diff(summary.ranks, axis=0) > 0).all()


def test_constant_streams_stay_constant():
    summary = summarised(jnp.full((100, 3), 2.0))
    np.testing.assert_array_equal(summary_quantiles(summary), np.full((3, 3), 2.0))
    np.testing.assert_array_equal(summary.square, np.zeros(3))
