"""Conditional SMC against exact Gaussian posteriors, and wrong variants of it that the same numbers reject.

A z-score is (estimate - exact) / standard error over 64 independent chains; a right sampler has root mean square
about 1. Values along one path go up and down together, so one run gives between 0.5 and 1.6: the bound is 2.0 for
the root mean square and 5 for the largest. The wrong variants give 3 to 30.
"""

from __future__ import annotations

import numpy as np
import pytest

import sojourn as sj
from sojourn.inference._structure import audit
from sojourn.ops import particles, resampling
from tests.exact import particle_models as models

BOUND, LARGEST = 2.0, 5.0


def process_of(model, *args, memory=None, **proposal):
    read = sj.read_scan(model, *args)
    audit(read.model, read.args, read.kwargs, read.structure)
    sites = (*read.structure.path_sites, *read.structure.initial_sites)
    options = {} if np.isinf(read.structure.memory) else {"memory": int(read.structure.memory)}
    return read.at().process(**proposal), models.exact_moments(model, args, sites), options, read.structure


def assert_exact(scores):
    assert np.isfinite(scores).all()
    assert (models.root_mean_square(scores) < BOUND).all(), models.root_mean_square(scores)
    assert np.abs(scores).max() < LARGEST


@pytest.fixture(scope="module")
def level():
    return process_of(models.local_level, models.SERIES)


# One test for each path update and each scheme in the fast suite, the other pairs in the slow one.
QUICK = {
    ("ancestor", "systematic"),
    ("ancestor", "killing"),
    ("backward", "systematic"),
    ("genealogy", "multinomial"),
}


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        pytest.param(path, scheme, marks=() if (path, scheme) in QUICK else pytest.mark.slow)
        for path in particles.PATHS
        for scheme in resampling.SCHEMES
    ],
)
def test_every_path_update_with_every_resampling_scheme_smooths_exactly(level, path, scheme):
    process, exact, _, _ = level
    assert_exact(models.smoothing_scores(process, exact, 5, path=path, resampling=scheme))


@pytest.mark.parametrize(
    "path", ["ancestor", *(pytest.param(p, marks=pytest.mark.slow) for p in ("backward", "genealogy"))]
)
def test_adaptive_resampling_smooths_exactly(level, path):
    process, exact, _, _ = level
    scores = models.smoothing_scores(process, exact, 5, path=path, resampling="systematic", ess_threshold=0.5)
    assert_exact(scores)


@pytest.mark.parametrize("scheme", ["systematic", "killing"])
def test_drawing_the_other_ancestors_freely_is_caught(level, scheme, monkeypatch):
    process, exact, _, _ = level
    right = resampling.SCHEMES[scheme]
    naive = right._replace(conditional=lambda key, w, index: right.free(key, w).at[0].set(index))
    monkeypatch.setitem(resampling.SCHEMES, scheme, naive)
    scores = models.smoothing_scores(process, exact, 5, path="ancestor", resampling=scheme)
    assert models.root_mean_square(scores).max() > BOUND


def test_two_lags_need_two_steps_of_the_reference():
    process, exact, options, structure = process_of(models.second_order, models.SERIES)
    assert structure.memory == 2
    assert_exact(models.smoothing_scores(process, exact, 6, **options))
    scores = models.smoothing_scores(process, exact, 6, memory=1)
    assert models.root_mean_square(scores).max() > BOUND


def test_a_state_that_never_forgets_keeps_its_genealogy_or_looks_ahead_to_the_end():
    process, exact, _, structure = process_of(models.increments, models.SERIES)
    assert np.isinf(structure.memory)
    assert structure.blocking == ("carry",)
    assert_exact(models.smoothing_scores(process, exact, 12, path="genealogy"))
    assert_exact(models.smoothing_scores(process, exact, 6, path="ancestor", memory=len(models.SERIES)))


def test_what_is_observed_of_the_initial_state_weighs_the_first_particles():
    process, exact, options, structure = process_of(models.observed_first, models.SERIES)
    assert structure.weighing == ("before",)
    assert_exact(models.smoothing_scores(process, exact, 5, **options))

    def start(key):
        carry, values, weight = process.start(key)
        return carry, values, 0.0 * weight

    def start_at(values):
        carry, weight = process.start_at(values)
        return carry, 0.0 * weight

    dropped = process._replace(start=start, start_at=start_at)
    assert models.root_mean_square(models.smoothing_scores(dropped, exact, 5, **options)).max() > 5.0


def test_a_panel_falls_apart_into_independent_systems():
    process, exact, options, structure = process_of(models.panel, *models.panel_arguments())
    assert structure.systems == (2,)
    assert structure.path_sites == ("slope", "level")
    assert_exact(models.smoothing_scores(process, exact, 6, **options))
    assert_exact(models.smoothing_scores(process, exact, 6, path="backward"))


def test_a_plate_whose_elements_drive_each_other_stays_one_system():
    process, exact, options, structure = process_of(
        models.coupled, np.stack([models.SERIES, -models.SERIES], 1)
    )
    assert structure.systems == ()
    assert_exact(models.smoothing_scores(process, exact, 8, **options))


def test_no_inputs_a_parameter_in_the_carry_and_scaled_observations():
    process, exact, options, structure = process_of(models.clock, 8)
    assert structure.memory == 1
    assert_exact(models.smoothing_scores(process, exact, 6, **options))


def test_entries_under_obs_mask_join_the_path():
    seen = np.arange(8) % 3 > 0
    read = sj.read_scan(models.half_seen, models.SERIES, seen)
    assert set(read.structure.path_sites) == {"x", "y_unobserved"}
    mean, covariance = models.exact_moments(models.half_masked, (models.SERIES, seen), ("x",))
    # The other half of the flattened path is y_unobserved, which has no density where y is observed.
    rest = np.full(8, np.nan)
    whole = np.full((16, 16), np.nan)
    whole[:8, :8] = covariance
    scores = models.smoothing_scores(read.at().process(), (np.concatenate([mean, rest]), whole), 6)
    assert_exact(scores[:, :7])


@pytest.mark.parametrize("path", ["ancestor", pytest.param("backward", marks=pytest.mark.slow)])
def test_guided_and_auxiliary_filters_smooth_exactly(path):
    proposals = {"guide": models.best_proposal, "twist": models.next_fit}
    process, exact, options, _ = process_of(models.local_level, models.SERIES, **proposals)
    assert_exact(models.smoothing_scores(process, exact, 4, path=path, **options))
