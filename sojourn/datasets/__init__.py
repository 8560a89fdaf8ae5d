"""Real data, one function each, as ``xarray.Dataset`` with named variables, dimensions and a source."""

from sojourn.datasets._tables import earthquakes, old_faithful

__all__ = ["earthquakes", "old_faithful"]
