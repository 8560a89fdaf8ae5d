"""The tables that ship, against what is known of them from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from sojourn.datasets import earthquakes, lynx, nile, old_faithful, sp500


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


def test_lynx():
    trapped = lynx()["trapped"]
    np.testing.assert_array_equal(trapped["time"], np.arange(1821, 1935))
    # Mean and standard deviation of R's `lynx`; the trough of 1861 and the peak of 1904.
    assert float(trapped.mean()) == pytest.approx(1538.018, abs=5e-4)
    assert float(trapped.std(ddof=1)) == pytest.approx(1585.844, abs=5e-4)
    assert (int(trapped.min()), int(trapped.max())) == (39, 6991)
    assert int(trapped.sel(time=1904)) == 6991


def test_nile():
    flow = nile()["flow"]
    np.testing.assert_array_equal(flow["time"], np.arange(1871, 1971))
    # Mean and standard deviation of R's `Nile`; the drop of 1899 (means 1097.75 and 849.97), the drought of 1913.
    assert float(flow.mean()) == pytest.approx(919.35)
    assert float(flow.std(ddof=1)) == pytest.approx(169.2275, abs=5e-5)
    assert float(flow.sel(time=slice(None, 1898)).mean()) == pytest.approx(1097.75)
    assert float(flow.sel(time=slice(1899, None)).mean()) == pytest.approx(849.97, abs=5e-3)
    assert (float(flow.min()), int(flow.idxmin())) == (456, 1913)


def test_sp500():
    data = sp500()
    assert data.sizes == {"time": 1007}
    assert (np.diff(data["time"].values) > np.timedelta64(0, "D")).all()
    # The low of 9 March 2009, and the two largest moves of October 2008: -9.47 % and +10.96 % as log-returns.
    assert float(data["close"].min()) == pytest.approx(676.53)
    assert str(data["time"].values[data["close"].values.argmin()])[:10] == "2009-03-09"
    assert float(data["log_return"].min()) == pytest.approx(-9.47, abs=0.01)
    assert float(data["log_return"].max()) == pytest.approx(10.96, abs=0.01)


@pytest.mark.parametrize("load", [earthquakes, lynx, nile, old_faithful, sp500])
def test_source_and_licence(load):
    attrs = load().attrs
    assert {"source", "licence"} <= set(attrs)
    assert all(isinstance(v, str) and len(v) > 20 for v in attrs.values())


@pytest.mark.parametrize("load", [earthquakes, lynx, nile, old_faithful, sp500])
def test_every_call_gives_a_table_of_its_own(load):
    first = load()
    name = next(iter(first.data_vars))
    first[name].values[:] = 0
    assert load()[name].values.any()
