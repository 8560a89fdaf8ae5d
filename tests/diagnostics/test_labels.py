"""Relabelling."""

from __future__ import annotations

import numpy as np
import pytest

from sojourn.diagnostics import relabel
from sojourn.diagnostics._arviz import group


def shuffled_mixture(seed, labels=3, chains=2, draws=200):
    """A mixture with a scale, a transition matrix and a path; and the same, each draw's labels shuffled."""
    rng = np.random.default_rng(seed)
    mu = np.linspace(-4.0, 4.0, labels) + 0.4 * rng.normal(size=(chains, draws, labels))
    scale = 1e3 * np.exp(0.1 * rng.standard_t(2, size=(chains, draws, labels)))
    matrix = rng.dirichlet(np.ones(labels), size=(chains, draws, labels))
    path = rng.integers(0, labels, size=(chains, draws, 7))
    permutations = rng.permuted(np.broadcast_to(np.arange(labels), (chains, draws, labels)), axis=-1)
    inverse = np.argsort(permutations, axis=-1)
    true = {"mu": mu, "scale": scale, "matrix": matrix, "path": path}
    shuffled_rows = np.take_along_axis(matrix, permutations[..., None], axis=2)
    shuffled = {
        "mu": np.take_along_axis(mu, permutations, axis=-1),
        "scale": np.take_along_axis(scale, permutations, axis=-1),
        "matrix": np.take_along_axis(shuffled_rows, permutations[..., None, :], axis=3),
        "path": np.take_along_axis(inverse, path, axis=-1),
    }
    return true, shuffled


DIMS = {"mu": ("state",), "scale": ("state",), "matrix": ("state", "next_state"), "path": ("time",), "lp": ()}


@pytest.mark.parametrize("with_lp", [True, False])
@pytest.mark.parametrize("labels", [2, 3, 5])
def test_relabel_undoes_random_permutations_exactly(make_fit, labels, with_lp):
    true, shuffled = shuffled_mixture(labels, labels)
    lp = np.random.default_rng(0).normal(size=(2, 200))
    fit = make_fit(shuffled, stats={"lp": lp} if with_lp else None, dims=DIMS)
    found = relabel(fit, label_values=("path",)).posterior
    order = np.argsort(found["mu"].mean(("chain", "draw")).values)
    np.testing.assert_array_equal(found["mu"].values[..., order], true["mu"])
    np.testing.assert_array_equal(found["scale"].values[..., order], true["scale"])
    np.testing.assert_array_equal(found["matrix"].values[..., order, :][..., order], true["matrix"])
    np.testing.assert_array_equal(np.argsort(order)[found["path"].values], true["path"])


def test_the_permutation_says_where_each_label_came_from(make_fit):
    _, shuffled = shuffled_mixture(1)
    fit = make_fit(shuffled, dims=DIMS)
    new = relabel(fit)
    permutation = group(new, "sample_stats")["label_permutation"]
    assert permutation.dims == ("chain", "draw", "state")
    np.testing.assert_array_equal(
        np.take_along_axis(shuffled["mu"], permutation.values, -1), new.posterior["mu"]
    )


def test_relabelling_twice_composes_the_permutations(make_fit):
    _, shuffled = shuffled_mixture(2)
    once = relabel(make_fit(shuffled, dims=DIMS))
    twice = relabel(once)
    permutation = group(twice, "sample_stats")["label_permutation"].values
    np.testing.assert_array_equal(np.take_along_axis(shuffled["mu"], permutation, -1), twice.posterior["mu"])
    order = [np.argsort(fit.posterior["mu"].mean(("chain", "draw")).values) for fit in (once, twice)]
    np.testing.assert_array_equal(once.posterior["mu"][..., order[0]], twice.posterior["mu"][..., order[1]])


def test_variables_without_labels_and_the_fit_itself_stay_as_they_were(make_fit):
    _, shuffled = shuffled_mixture(3)
    fit = make_fit({**shuffled, "other": shuffled["mu"][..., 0]}, dims=DIMS, seed=9)
    new = relabel(fit)
    np.testing.assert_array_equal(new.posterior["other"], shuffled["mu"][..., 0])
    np.testing.assert_array_equal(fit.posterior["mu"], shuffled["mu"])
    assert new.attrs["seed"] == 9
    assert new.posterior["matrix"].dims == fit.posterior["matrix"].dims


def test_a_useless_variable_in_large_units_does_not_dominate(make_fit):
    true, shuffled = shuffled_mixture(4, draws=300)
    noise = 1e9 * np.random.default_rng(1).normal(size=shuffled["mu"].shape)
    fit = make_fit({"mu": shuffled["mu"], "noise": noise}, dims={"mu": ("state",), "noise": ("state",)})
    found = relabel(fit).posterior["mu"].values
    order = np.argsort(found.mean((0, 1)))
    # Labels are four scores apart, so noise of the same weight misplaces only a few draws.
    assert np.mean(np.any(found[..., order] != true["mu"], axis=-1)) < 0.1


def test_two_label_dimensions_get_a_permutation_each(make_fit):
    _, shuffled = shuffled_mixture(5)
    fit = make_fit({"mu": shuffled["mu"], "nu": shuffled["mu"]}, dims={"mu": ("state",), "nu": ("kind",)})
    new = relabel(fit, label_dims=("state", "kind"))
    assert {"label_permutation_state", "label_permutation_kind"} <= set(group(new, "sample_stats"))
    np.testing.assert_array_equal(new.posterior["mu"].values, new.posterior["nu"].values)


def test_relabel_says_what_is_wrong(make_fit):
    fit = make_fit({"mu": np.zeros((2, 10, 3))})
    with pytest.raises(ValueError, match="no posterior variable has a dimension"):
        relabel(fit)
    with pytest.raises(TypeError, match="takes a fit"):
        relabel("x")
    with pytest.raises(TypeError, match="sequence of names"):
        relabel(fit, label_dims="state")
    labelled = make_fit({"mu": np.full((2, 10, 3), np.nan)}, dims={"mu": ("state",)})
    with pytest.raises(ValueError, match="has NaN"):
        relabel(labelled)
    with pytest.raises(ValueError, match="label_values"):
        relabel(make_fit({"mu": np.zeros((2, 10, 3))}, dims={"mu": ("state",)}), label_values=("z",))
