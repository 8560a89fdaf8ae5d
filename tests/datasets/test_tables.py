"""The tables that ship, against what is known of them from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from sojourn.datasets import earthquakes, old_faithful


def test_earthquakes():
    data = earthquakes()
    counts = data["count"]
    assert counts.dims == ("time",)
    assert counts.shape == (107,)
    assert counts.dtype.kind == "i"
    np.testing.assert_array_equal(data["time"], np.arange(1900, 2007))
    # Zucchini, MacDonald and Langrock (2016): mean 19.36, variance 51.57, from 6 to 41 a year.
    assert float(counts.mean()) == pytest.approx(19.364, abs=5e-4)
    assert float(counts.var(ddof=1)) == pytest.approx(51.573, abs=5e-4)
    assert (int(counts.min()), int(counts.max())) == (6, 41)
    assert counts.values[:5].tolist() == [13, 14, 8, 10, 16]
    assert counts.values[-3:].tolist() == [16, 11, 11]
    assert int(counts.sel(time=1943)) == 41


def test_old_faithful():
    data = old_faithful()
    assert data.sizes == {"time": 299}
    np.testing.assert_array_equal(data["time"], np.arange(1, 300))
    # The help page of MASS's `geyser`: 299 waiting times and durations, nights noted as 2, 3 and 4 minutes.
    assert float(data["duration"].min()) > 0.5
    assert float(data["duration"].max()) < 6
    assert {2.0, 3.0, 4.0} <= set(data["duration"].values.tolist())
    assert int(data["long"].sum()) == 194
    np.testing.assert_array_equal(data["long"], data["duration"] >= 3)
    assert (int(data["waiting"].min()), int(data["waiting"].max())) == (43, 108)
    # A short eruption is never followed by a short one.
    long = data["long"].values
    assert not ((long[1:] == 0) & (long[:-1] == 0)).any()


@pytest.mark.parametrize("load", [earthquakes, old_faithful])
def test_source_and_licence(load):
    attrs = load().attrs
    assert {"source", "licence"} <= set(attrs)
    assert all(isinstance(v, str) and len(v) > 20 for v in attrs.values())


@pytest.mark.parametrize("load", [earthquakes, old_faithful])
def test_every_call_gives_a_table_of_its_own(load):
    first = load()
    name = next(iter(first.data_vars))
    first[name].values[:] = 0
    assert load()[name].values.any()
