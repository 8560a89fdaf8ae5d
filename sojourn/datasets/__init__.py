"""Real data, one function each, as ``xarray.Dataset`` with named variables, dimensions and a source."""

from sojourn.datasets._packages import clemson_temperatures, prothr, single_channel, sp500_ohlc
from sojourn.datasets._tables import earthquakes, lynx, nile, old_faithful, sp500

__all__ = [
    "clemson_temperatures",
    "earthquakes",
    "lynx",
    "nile",
    "old_faithful",
    "prothr",
    "single_channel",
    "sp500",
    "sp500_ohlc",
]
