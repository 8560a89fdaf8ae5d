"""Mean, variance and quantiles of a stream of arrays, entry by entry, in memory that does not grow."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["RunningSummary", "begin_summary", "summary_quantiles", "update_summary"]


class RunningSummary(NamedTuple):
    """What is remembered of the arrays so far.

    Attributes:
        seen: how many there were.
        mean, square: their mean, and the sum of squared distances from it (Welford 1962, *Technometrics* 4:419).
        heights: ``(markers, ...)``: the smallest and largest value and estimates of quantiles between.
        ranks: ``(markers, ...)``: their ranks among the values so far, from one.
    """

    seen: Array
    mean: Array
    square: Array
    heights: Array
    ranks: Array


def _shares(quantiles: tuple[float, ...]) -> np.ndarray:
    """Shares of the markers: the quantiles, the ends, and one between each two of these."""
    points = np.array([0.0, *quantiles, 1.0])
    between = 0.5 * (points[1:] + points[:-1])
    return np.sort(np.concatenate([points, between])).astype(np.float32)


def begin_summary(
    shape: tuple[int, ...], quantiles: tuple[float, ...], dtype: type = float
) -> RunningSummary:
    """A summary of nothing.

    Args:
        shape: of the arrays to come.
        quantiles: increasing, between 0 and 1.
        dtype: floating type.
    """
    markers = len(_shares(quantiles))
    ranks = jnp.broadcast_to(
        jnp.arange(1, markers + 1, dtype=jnp.int32).reshape(-1, *(1,) * len(shape)), (markers, *shape)
    )
    zero = jnp.int32(0)
    return RunningSummary(
        zero, jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((markers, *shape), dtype), ranks
    )


def update_summary(summary: RunningSummary, value: Array, quantiles: tuple[float, ...]) -> RunningSummary:
    """Take one more array in.

    Quantiles follow the P-square rule: each marker stands at a height whose rank should be a given share of the
    count, and moves by one rank along a parabola through its neighbours when it has fallen behind by one (Jain and
    Chlamtac 1985, *Comm. ACM* 28:1076; with several quantiles at once Raatikainen 1987). Odd and even markers move in
    turn, so that all entries of an array move in two strokes.

    Args:
        summary: of the arrays so far.
        value: the next one.
        quantiles: as in :func:`begin_summary`.

    Example:
        >>> import jax
        >>> def step(summary, value):
        ...     return update_summary(summary, value, (0.05, 0.5, 0.95)), None
        >>> draws = jax.random.normal(jax.random.key(0), (4000, 2))
        >>> summary, _ = lax.scan(step, begin_summary((2,), (0.05, 0.5, 0.95)), draws)
        >>> bool(jnp.abs(summary_quantiles(summary)[:, 0] - jnp.quantile(draws[:, 0], jnp.array([0.05, 0.5, 0.95]))).max() < 0.05)
        True
    """
    shares = _shares(quantiles)
    value = value.astype(summary.mean.dtype)
    count = summary.seen + 1
    step = value - summary.mean
    mean = summary.mean + step / count
    square = summary.square + step * (value - mean)

    def first(heights: Array, ranks: Array) -> tuple[Array, Array]:
        filled = lax.dynamic_update_index_in_dim(heights, value, summary.seen, 0)
        return jnp.where(count == len(shares), jnp.sort(filled, 0), filled), ranks

    def later(heights: Array, ranks: Array) -> tuple[Array, Array]:
        heights = heights.at[0].min(value).at[-1].max(value)
        ranks = ranks.at[1:-1].add((heights[1:-1] > value).astype(ranks.dtype)).at[-1].add(1)
        wanted = 1 + (count - 1) * shares.reshape(-1, *(1,) * value.ndim)
        for parity in (0, 1):
            heights, ranks = _moved(heights, ranks, wanted, parity)
        return heights, ranks

    heights, ranks = lax.cond(summary.seen < len(shares), first, later, summary.heights, summary.ranks)
    return RunningSummary(count, mean, square, heights, ranks)


def _moved(heights: Array, ranks: Array, wanted: Array, parity: int) -> tuple[Array, Array]:
    low, own, high = heights[:-2], heights[1:-1], heights[2:]
    below, rank, above = (r.astype(heights.dtype) for r in (ranks[:-2], ranks[1:-1], ranks[2:]))
    behind = wanted[1:-1] - rank
    move = jnp.where((behind >= 1) & (above - rank > 1), 1.0, 0.0)
    move = jnp.where((behind <= -1) & (below - rank < -1), -1.0, move)
    turn = (np.arange(own.shape[0]) % 2 == parity).reshape(-1, *(1,) * (own.ndim - 1))
    move = jnp.where(turn, move, 0.0).astype(heights.dtype)
    up, down = (high - own) / (above - rank), (own - low) / (rank - below)
    parabola = own + move / (above - below) * ((rank - below + move) * up + (above - rank - move) * down)
    line = own + jnp.where(move > 0, up, -down) * jnp.abs(move)
    new = jnp.where((low < parabola) & (parabola < high), parabola, line)
    heights = heights.at[1:-1].set(jnp.where(move == 0, own, new))
    return heights, ranks.at[1:-1].add(move.astype(ranks.dtype))


def summary_quantiles(summary: RunningSummary) -> Array:
    """Estimates of the quantiles, leading axis by quantile; before as many values as markers have come, NaN."""
    markers = summary.heights.shape[0]
    found = summary.heights[2:-2:2]
    return jnp.where(summary.seen >= markers, found, jnp.nan)
