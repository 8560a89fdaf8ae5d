"""How far an approximation was from the posterior that it started."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sojourn.diagnostics import check

STATES = {"state": ["slow", "fast"]}


def finding(fit):
    return next((f for f in check(fit).findings if f.name == "warm_start"), None)


def started(make_fit, posterior, rough):
    """The draws of ``rough``, in an order of axes that is not the posterior's."""
    dims = {name: ("state",) for name, array in posterior.items() if array.ndim == 3}
    warm = {
        n: (("warm_draw", *dims.get(n, ()))[::-1], a.reshape(-1, *a.shape[2:]).T) for n, a in rough.items()
    }
    group = xr.Dataset(warm, coords=STATES if dims else {})
    return make_fit(posterior, dims=dims, coords=STATES, groups={"warm_start": group})


def test_a_fit_from_nowhere_has_none(make_fit, chains):
    assert finding(make_fit({"x": chains(0)})) is None


def test_a_good_approximation(make_fit, chains):
    """The posterior itself: no shift, ratios of one."""
    x = chains(0, size=2)
    found = finding(started(make_fit, {"x": x}, {"x": x}))
    assert found.value == 0.0
    assert found.where.endswith("ratios of sd 1 to 1: its margins agree with this posterior")


@pytest.mark.parametrize(("positive", "name"), [(False, "x"), (True, "rate")])
def test_shift_and_ratio(make_fit, chains, positive, name):
    """Draws of the posterior times 2 about its median, and half a standard deviation on: known without chance.

    For a positive variable that happens to its logarithm.
    """
    x = chains(1, size=2)
    low, middle, high = np.quantile(x, [0.16, 0.5, 0.84], axis=(0, 1))
    rough = x.copy()
    rough[..., 1] = middle[1] + 2.0 * (x[..., 1] - middle[1]) + 0.5 * (high[1] - low[1]) / 2.0
    move = np.exp if positive else np.asarray
    fit = started(make_fit, {name: move(x), "x_other": x[..., 0]}, {name: move(rough), "x_other": x[..., 0]})
    found = finding(fit)
    assert found.value == pytest.approx(0.5)
    assert found.where == f"at {name}[fast]; ratios of sd 1 to 2: not to be used in place of this fit"


def test_it_never_speaks_against_the_fit(make_fit, chains):
    x = chains(2, size=2)
    verdict = check(started(make_fit, {"x": x}, {"x": x + 100.0}))
    assert verdict.ok
    assert "vs 0.25" in str(verdict)
    assert finding(started(make_fit, {"x": x}, {"x": x + 100.0})).value > 50


def test_entries_that_cannot_be_compared(make_fit, chains):
    """A constant has no standard deviation; a scalar has no axes."""
    fixed, scalar = np.ones((4, 500)), chains(3)[..., 0]
    alone = started(make_fit, {"fixed": fixed, "x": scalar}, {"fixed": 2.0 * fixed})
    assert finding(alone) is None
    found = finding(
        started(make_fit, {"fixed": fixed, "x": scalar}, {"fixed": 2.0 * fixed, "x": scalar + 3.0})
    )
    assert 2.5 < found.value < 3.5
    assert found.where.startswith("at x; ")


def test_infinite_draws_do_no_harm(make_fit, chains):
    x = chains(4, size=2)
    broken = x.copy()
    broken[0, 0, 0] = np.inf
    assert np.isfinite(finding(started(make_fit, {"x": broken}, {"x": x})).value)
