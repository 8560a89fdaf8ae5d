"""Small tables that ship with the package."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["earthquakes", "lynx", "nile", "old_faithful", "sp500"]


def _columns(name: str) -> dict[str, np.ndarray]:
    with resources.files(__package__).joinpath("tables", f"{name}.csv").open(encoding="utf-8") as file:
        header = file.readline().strip().split(",")
        rows = np.loadtxt(file, delimiter=",")
    return dict(zip(header, rows.T, strict=True))


def earthquakes() -> xr.Dataset:
    """Earthquakes of magnitude 7 or more in the world, a year, 1900 to 2006.

    Returns:
        ``count`` (107 integers) over ``time`` (the year).

    Example:
        >>> quakes = earthquakes()
        >>> int(quakes["count"].sum()), int(quakes["time"][0])
        (2072, 1900)
    """
    import xarray as xr

    table = _columns("earthquakes")
    return xr.Dataset(
        {"count": ("time", table["count"].astype(int), {"long_name": "earthquakes of magnitude 7 or more"})},
        coords={"time": ("time", table["year"].astype(int), {"long_name": "year"})},
        attrs={
            "source": (
                "United States Geological Survey; as tabulated by W. Zucchini, I. L. MacDonald and R. Langrock, "
                "Hidden Markov Models for Time Series, 2nd edition, 2016, table 1.1"
            ),
            "licence": "public domain (work of the United States government)",
        },
    )


def old_faithful() -> xr.Dataset:
    """Eruptions of the Old Faithful geyser, 1 to 15 August 1985, in order: 299 of them.

    Durations noted at night as "short", "medium" or "long" stand as 2, 3 and 4 minutes.

    Returns:
        Over ``time`` (number of the eruption, from 1): ``duration`` (minutes), ``waiting`` (minutes from the
        eruption before), and ``long`` (1 where the duration is at least 3 minutes, else 0), the form in which
        the series is a binary one.

    Example:
        >>> geyser = old_faithful()
        >>> geyser.sizes["time"], int(geyser["long"].sum())
        (299, 194)
    """
    import xarray as xr

    table = _columns("old_faithful")
    duration = table["duration"]
    return xr.Dataset(
        {
            "duration": ("time", duration, {"units": "min"}),
            "waiting": ("time", table["waiting"].astype(int), {"units": "min"}),
            "long": ("time", (duration >= 3).astype(int), {"long_name": "eruption of 3 minutes or more"}),
        },
        coords={"time": np.arange(1, len(duration) + 1)},
        attrs={
            "source": (
                "A. Azzalini and A. W. Bowman, A look at some data on the Old Faithful geyser, "
                "Applied Statistics 39:357-365, 1990; as table `geyser` of R's MASS"
            ),
            "licence": "facts; no licence is claimed on the table",
        },
    )


def lynx() -> xr.Dataset:
    """Canadian lynx trapped in the Mackenzie River district, a year, 1821 to 1934.

    Returns:
        ``trapped`` (114 integers) over ``time`` (the year).

    Example:
        >>> trapped = lynx()["trapped"]
        >>> trapped.sizes["time"], int(trapped.sum())
        (114, 175334)
    """
    import xarray as xr

    table = _columns("lynx")
    return xr.Dataset(
        {"trapped": ("time", table["trapped"].astype(int), {"long_name": "lynx trapped"})},
        coords={"time": ("time", table["year"].astype(int), {"long_name": "year"})},
        attrs={
            "source": (
                "C. Elton and M. Nicholson, The ten-year cycle in numbers of the lynx in Canada, Journal of Animal "
                "Ecology 11:215-244, 1942; as table `lynx` of R"
            ),
            "licence": "facts; no licence is claimed on the table",
        },
    )


def nile() -> xr.Dataset:
    """Flow of the Nile at Aswan, a year, 1871 to 1970.

    From 1899 on it is lower by a quarter (Cobb 1978): whether that is a change or a long memory is what the series
    has been studied for.

    Returns:
        ``flow`` (100 numbers, in units of 10^8 cubic metres) over ``time`` (the year).

    Example:
        >>> flow = nile()["flow"]
        >>> flow.sizes["time"], float(flow.mean())
        (100, 919.35)
    """
    import xarray as xr

    table = _columns("nile")
    return xr.Dataset(
        {
            "flow": (
                "time",
                table["flow"],
                {"long_name": "annual flow of the Nile at Aswan", "units": "1e8 m3"},
            )
        },
        coords={"time": ("time", table["year"].astype(int), {"long_name": "year"})},
        attrs={
            "source": (
                "G. W. Cobb, The problem of the Nile: conditional solution to a changepoint problem, Biometrika "
                "65:243-251, 1978, table 1; as table `nile` of the package statsmodels and `Nile` of R"
            ),
            "licence": "public domain, as the package statsmodels declares",
        },
    )


def sp500() -> xr.Dataset:
    """Daily closings of the S&P 500 index, 3 January 2007 to 31 December 2010, and their returns.

    Returns:
        Over ``time`` (1007 trading days, as dates): ``close``, and ``log_return``, in per cent:
        100 log(close / close of the trading day before).

    Example:
        >>> market = sp500()
        >>> market.sizes["time"], round(float(market["log_return"].std()), 2)
        (1007, 1.73)
    """
    import xarray as xr

    table = _columns("sp500")
    close = table["close"]
    days = [f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in (f"{int(day)}" for day in table["date"])]
    return xr.Dataset(
        {
            "close": ("time", close[1:], {"long_name": "S&P 500 at the close"}),
            "log_return": (
                "time",
                100.0 * np.diff(np.log(close)),
                {"long_name": "daily log-return", "units": "%"},
            ),
        },
        coords={"time": np.array(days[1:], "datetime64[ns]")},
        attrs={
            "source": (
                "S&P 500 closing prices 2007-2010, from the table `arch.data.sp500` of K. Sheppard's package arch, "
                "which took it from Yahoo Finance"
            ),
            "licence": "facts; the package arch, which carries the table, is under the NCSA licence",
        },
    )
