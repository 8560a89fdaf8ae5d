"""Which ArviZ is installed, and how to keep it quiet where a user can do nothing about it."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def arviz_module() -> ModuleType:
    """Return the installed `arviz`, without the notice that ArviZ 0.23 prints when it is imported.

    Returns:
        The module.

    Example:
        >>> arviz_module().__name__
        'arviz'
    """
    with warnings.catch_warnings():
        # ArviZ 0.23 announces ArviZ 1.0 at import; both are supported here.
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major", category=FutureWarning)
        import arviz
    return arviz


def is_old(az: ModuleType) -> bool:
    # Not hasattr(az, "InferenceData"): ArviZ 1.x answers that with a MigrationWarning.
    return az.__version__.startswith("0.")


def generation() -> int:
    """Generation of the ArviZ that is installed: 0 (`InferenceData`) or 1 (`DataTree`).

    Returns:
        0 or 1.

    Example:
        >>> generation() in (0, 1)
        True
    """
    return 0 if is_old(arviz_module()) else 1


class _DropShapeNotice(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "Shape validation failed" not in record.getMessage()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence, one by one, the upstream notices that a user of sojourn can do nothing about."""
    notice = _DropShapeNotice()
    # ArviZ logs "Shape validation failed" for the R-hat of one chain; sojourn computes that one itself.
    loggers = [logging.getLogger(name) for name in ("arviz", "arviz_stats", "arviz.stats")]
    for logger in loggers:
        logger.addFilter(notice)
    try:
        # R-hat of an entry that never varies is 0/0; such entries are skipped or shown as NaN.
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            # ArviZ 0.23 calls DataFrame.sort_values(inplace=True), which pandas 3.1 deprecates.
            warnings.filterwarnings("ignore", message=r"The inplace keyword in DataFrame\.")
            # ArviZ 0.23 calls matplotlib's normalize_kwargs in a form that matplotlib 3.11 deprecates.
            warnings.filterwarnings("ignore", message=r"Passing a dict or None as alias_mapping")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(notice)
