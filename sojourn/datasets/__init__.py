"""Real data, one function each, as ``xarray.Dataset`` with named variables, dimensions and a source."""

from sojourn.datasets._tables import earthquakes, lynx, old_faithful, sp500

__all__ = ["earthquakes", "lynx", "old_faithful", "sp500"]
