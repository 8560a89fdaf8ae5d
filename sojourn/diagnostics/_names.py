"""Names of the entries of arrays, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def entry_name(array: xr.DataArray, name: Any, index: int) -> str:
    """Name one entry of an array by its coordinates, for example `rate[slow, time=3]`.

    Args:
        array: Without the dimensions `chain` and `draw`.
        name: The variable.
        index: Position in the flattened array.

    Returns:
        The name alone for a scalar; labels stand for themselves, numbers after the name of their dimension.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rate = xr.DataArray(np.zeros((2, 3)), dims=("state", "time"), coords={"state": ["slow", "fast"]})
        >>> entry_name(rate, "rate", 4)
        'rate[fast, time=1]'
    """
    if not array.dims:
        return str(name)
    position = np.unravel_index(index, array.shape)
    labels = []
    for dim, place in zip(array.dims, position, strict=True):
        label = array[dim].values[place] if dim in array.coords else place
        labels.append(str(label) if isinstance(label, str) else f"{dim}={_label(label)}")
    return f"{name}[{', '.join(labels)}]"


def _label(label: Any) -> str:
    if isinstance(label, np.datetime64):
        return str(label.astype("datetime64[s]")).removesuffix("T00:00:00")
    return f"{label:g}" if isinstance(label, (float, np.floating)) else str(label)
