"""Is a sample uniform? The simultaneous envelope of its empirical distribution function.

Follows Säilynoja, Bürkner and Vehtari (2022), "Graphical test for discrete uniformity and its applications in
goodness-of-fit evaluation and multiple sample comparison", Statistics and Computing 32:32. At each point z
the count of values up to z is binomial under uniformity; the envelope joins the pointwise intervals whose
common level gives all points at once the wanted probability. That probability is computed exactly, by their
recursion over the points: given c of n values up to z, the count up to z' is c plus a binomial of n - c with
probability (z' - z) / (1 - z).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

MAX_POINTS = 100


def evaluation_points(cells: int, most: int = MAX_POINTS) -> np.ndarray:
    """Points strictly inside (0, 1), on the grid k / cells, at most `most` of them.

    Args:
        cells: Number of equally likely cells: one more than the number of draws, for ranks.
        most: The largest number of points.

    Returns:
        Increasing points, shape (point,).

    Example:
        >>> evaluation_points(4).tolist()
        [0.25, 0.5, 0.75]
    """
    return np.unique(np.linspace(1, cells - 1, min(cells - 1, most)).round()) / cells


def _intervals(n: int, points: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts whose two-sided pointwise p-value exceeds `level`, from lowest to highest, at each point."""
    from scipy.stats import binom

    # The smallest c with P(X <= c) > level / 2, and the largest c with P(X >= c) > level / 2.
    low = binom.ppf(level / 2, n, points).astype(int)
    low = np.where(binom.cdf(low, n, points) > level / 2, low, low + 1)
    high = binom.isf(level / 2, n, points).astype(int) + 1
    high = np.where(binom.sf(high - 1, n, points) > level / 2, high, high - 1)
    return np.clip(low, 0, n), np.clip(high, 0, n)


def _coverage(n: int, points: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Probability that the counts of n uniform values stay within the intervals at all points."""
    from scipy.special import gammaln

    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    counts, weights, before = np.array([0]), np.array([1.0]), 0.0
    for point, lowest, highest in zip(points, low, high, strict=True):
        target = np.arange(lowest, highest + 1)
        step = (point - before) / (1.0 - before)
        gained, rest = target[None, :] - counts[:, None], n - counts[:, None]
        possible = (gained >= 0) & (gained <= rest)
        gained = np.where(possible, gained, 0)
        log_mass = (
            log_factorial[rest]
            - log_factorial[gained]
            - log_factorial[rest - gained]
            + gained * np.log(step)
            + (rest - gained) * np.log1p(-step)
        )
        weights = weights @ np.where(possible, np.exp(log_mass), 0.0)
        counts, before = target, point
    return float(min(weights.sum(), 1.0))


def p_value(counts: np.ndarray, n: int, points: np.ndarray) -> float:
    """Exact p-value of uniformity: the chance of counts at least as far out at some point.

    Args:
        counts: Number of values up to and including each point, shape (point,).
        n: Number of values.
        points: From `evaluation_points`, shape (point,).

    Returns:
        The p-value, small where the values are not uniform.

    Example:
        >>> import numpy as np
        >>> p_value(np.array([25, 50, 75]), 100, np.array([0.25, 0.5, 0.75]))
        1.0
        >>> p_value(np.array([50, 70, 90]), 100, np.array([0.25, 0.5, 0.75])) < 1e-5
        True
    """
    from scipy.stats import binom

    tails = np.minimum(binom.cdf(counts, n, points), binom.sf(counts - 1, n, points))
    # The margin makes counts that are equally far out on either side equal in spite of rounding.
    level = 2.0 * float(tails.min()) * (1.0 + 1e-9)
    low, high = _intervals(n, points, level)
    if (low > high).any():
        return 1.0
    return max(0.0, 1.0 - _coverage(n, points, low, high))


def envelope(n: int, points: np.ndarray, probability: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest counts between which uniform values stay at all points with the given probability.

    Args:
        n: Number of values.
        points: From `evaluation_points`, shape (point,).
        probability: Of staying inside everywhere.

    Returns:
        Lowest and highest counts, shapes (point,).

    Example:
        >>> import numpy as np
        >>> low, high = envelope(100, np.array([0.5]))
        >>> low.tolist(), high.tolist()
        ([40], [60])
    """
    return _envelope(int(n), tuple(map(float, points)), float(probability))


@lru_cache(maxsize=64)
def _envelope(n: int, points: tuple[float, ...], probability: float) -> tuple[np.ndarray, np.ndarray]:
    grid = np.array(points)
    narrow, wide = np.log(1.0 - probability), np.log((1.0 - probability) / (2.0 * len(grid)))
    for _ in range(14):
        middle = (narrow + wide) / 2
        if _coverage(n, grid, *_intervals(n, grid, np.exp(middle))) >= probability:
            wide = middle
        else:
            narrow = middle
    return _intervals(n, grid, np.exp(wide))
