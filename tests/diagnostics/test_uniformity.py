"""The simultaneous envelope of the ECDF."""

from __future__ import annotations

import numpy as np
import pytest

from sojourn.diagnostics._uniformity import _coverage, envelope, evaluation_points, p_value


def uniform_counts(seed, n, points, repeats):
    values = np.sort(np.random.default_rng(seed).random((repeats, n)), axis=1)
    return np.array([np.searchsorted(row, points, side="right") for row in values])


@pytest.mark.parametrize(("n", "cells"), [(20, 10), (100, 100), (250, 1000)])
def test_coverage_is_that_of_simulated_uniform_values(n, cells):
    points = evaluation_points(cells)
    low, high = envelope(n, points, 0.9)
    counts = uniform_counts(0, n, points, 4000)
    simulated = ((counts >= low) & (counts <= high)).all(axis=1).mean()
    # 4000 repeats: standard error below 0.005; the exact number must agree within four of them.
    assert _coverage(n, points, low, high) == pytest.approx(simulated, abs=0.02)
    assert 0.9 <= _coverage(n, points, low, high) < 0.95


def test_coverage_of_one_point_is_binomial():
    from scipy.stats import binom

    points = np.array([0.3])
    expected = binom.cdf(40, 100, 0.3) - binom.cdf(24, 100, 0.3)
    assert _coverage(100, points, np.array([25]), np.array([40])) == pytest.approx(expected, rel=1e-10)


def test_p_values_of_uniform_values_are_themselves_uniform_below_the_level():
    points = evaluation_points(50)
    p = np.array([p_value(counts, 80, points) for counts in uniform_counts(1, 80, points, 1000)])
    # Discreteness makes them conservative by a little; standard errors at 1000 repeats: 0.003, 0.007, 0.009.
    assert 0.002 < (p <= 0.01).mean() < 0.02
    assert 0.025 < (p <= 0.05).mean() < 0.07
    assert 0.06 < (p <= 0.10).mean() < 0.13


def test_the_envelope_and_the_p_value_agree():
    points = evaluation_points(60)
    low, high = envelope(90, points, 0.95)
    for counts in uniform_counts(2, 90, points, 300):
        inside = bool(((counts >= low) & (counts <= high)).all())
        assert inside == (p_value(counts, 90, points) > 1.0 - _coverage(90, points, low, high) - 1e-12)


def test_points_are_on_the_grid_and_limited():
    points = evaluation_points(1001)
    assert len(points) == 100
    np.testing.assert_allclose(points * 1001, np.rint(points * 1001), atol=1e-9)
    assert evaluation_points(2).tolist() == [0.5]
