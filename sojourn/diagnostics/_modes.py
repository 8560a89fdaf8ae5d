"""Do the chains sit in different modes?"""

from __future__ import annotations

import numpy as np

STATIONARY = 1.1
SEPARATION = 2.5
SEGMENTS = 4
MAX_SCALARS = 1000


def stationarity(draws: np.ndarray) -> np.ndarray:
    """R-hat of four consecutive segments of each chain alone, on the ranks of its own draws.

    Args:
        draws: Shape (chain, draw, scalar).

    Returns:
        Shape (chain, scalar): near 1 for a chain that keeps to one place, large for one that drifts or
        crawls; NaN where the chain never moves.

    Example:
        >>> import numpy as np
        >>> draws = np.random.default_rng(0).normal(size=(1, 400, 1))
        >>> still, crawling = stationarity(np.concatenate([draws, draws.cumsum(axis=1)])).ravel()
        >>> bool(still < 1.1 < crawling)
        True
    """
    from scipy.stats import rankdata

    length = draws.shape[1] // SEGMENTS
    ranks = rankdata(draws[:, : length * SEGMENTS], axis=1)
    segments = ranks.reshape(draws.shape[0], SEGMENTS, length, draws.shape[2])
    within = segments.var(axis=2, ddof=1).mean(axis=1)
    between = segments.mean(axis=2).var(axis=1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.ptp(ranks, axis=1) > 0, np.sqrt((length - 1) / length + between / within), np.nan)


def groups_of_chains(draws: np.ndarray) -> tuple[list[list[int]], np.ndarray]:
    """Group the chains by the mode they sit in.

    Two chains sit in different modes if, in some scalar, each of them is stationary alone (R-hat of its own
    four quarters below 1.1, which takes about 20 effective draws) and yet their medians are more than 2.5 of
    their robust standard deviations apart; the mean of 20 effective draws of one mode is off by 0.3 of them
    only by two standard errors. A chain that crawls through a single mode is not stationary alone, so it is
    left to R-hat. Chains that no scalar separates are joined, and the groups are the connected parts.

    Args:
        draws: Finite draws, relabelled where labels have switched, shape (chain, draw, scalar). At most 1000
            scalars, evenly spaced, are looked at.

    Returns:
        The groups, each a list of chains, and for each scalar looked at the number of pairs of chains it
        separates, shape (scalar,) with zeros for those not looked at.

    Example:
        >>> import numpy as np
        >>> draws = np.random.default_rng(0).normal(size=(4, 200, 1))
        >>> draws[2:] += 8.0
        >>> groups_of_chains(draws)[0]
        [[0, 1], [2, 3]]
    """
    chains, length, size = draws.shape
    pairs = np.zeros(size, dtype=int)
    if chains < 2 or length < 5 * SEGMENTS or size == 0:
        return [list(range(chains))], pairs
    picked = np.unique(np.linspace(0, size - 1, MAX_SCALARS).astype(int))
    looked = draws[..., picked]
    still = stationarity(looked) < STATIONARY
    low, median, high = np.quantile(looked, [0.16, 0.5, 0.84], axis=1)
    # A binary entry can vary and have equal quantiles: its standard deviation keeps the scale above zero.
    scale = np.maximum((high - low) / 2, looked.std(axis=1) / 3)
    group = np.arange(chains)
    for first in range(chains):
        for second in range(first):
            both = still[first] & still[second]
            width = np.sqrt((scale[first] ** 2 + scale[second] ** 2) / 2)
            apart = both & (np.abs(median[first] - median[second]) > SEPARATION * width)
            pairs[picked] += apart
            if not apart.any():
                group[group == group[first]] = group[second]
    return [np.flatnonzero(group == value).tolist() for value in dict.fromkeys(group.tolist())], pairs
