r"""Competing hazards whose events write several cells at once.

Laws :math:`i` have exponential clocks of rates :math:`w_i`, which run for one unit of time. A law whose clock rings
writes all its cells if no other law has yet written any of them; otherwise nothing comes of it. Cells that no law has
written follow the frame. For laws of one and the same cell these are the usual competing hazards,

.. math:: p = e^{-W} f + (1 - e^{-W}) \sum_i \frac{w_i}{W} q_i, \qquad W = \sum_i w_i,

with the probability :math:`q_i` of what was seen if law i fires and :math:`f` if none does. That holds whenever at
most one law can fire (:func:`at_most_one`). In general the written cells are a Markov jump process on the subsets of
cells, in which law i leads from a set S disjoint from its cells to the union of both. Attach :math:`q_i` to each such
move: then the sum over all orders of firing is one row of the exponential of a triangular matrix (:func:`race`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["MOST_CELLS", "at_most_one", "fire", "race"]

MOST_CELLS = 8
"""Cells of one :func:`race`: its matrices have ``2**cells`` rows."""

_SQUARINGS = 6  # with eleven terms total hazards up to 64 are right to 1e-9, up to 32 to rounding
_FEW = 8  # sets below which products of matrices are better written out


def _rescaled(seen: Array, frame: Array) -> tuple[Array, Array, Array]:
    """Probabilities divided by the largest at each cell, and the logarithm of what they were divided by."""
    largest = jnp.maximum(frame, seen.max(-2))
    return seen / largest[..., None, :], frame / largest, jnp.log(largest).sum(-1)


def _log(x: Array) -> Array:
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))


def at_most_one(hazard: Array, writes: Array, seen: Array, frame: Array) -> Array:
    """Log-probability of what was seen, where any two laws have a cell in common.

    Args:
        hazard: ``(..., M)``: the laws' hazards, 0 for none.
        writes: ``(..., M, C)``: whether the law writes the cell.
        seen: ``(..., M, C)``: probability that it writes what was seen there.
        frame: ``(..., C)``: probability of what was seen if no law writes the cell.

    Returns:
        ``(...)``.

    Example:
        >>> import jax.numpy as jnp
        >>> from sojourn.ops.law_race import at_most_one
        >>> one = at_most_one(jnp.array([jnp.log(4.0)]), jnp.array([[True]]), jnp.array([[1.0]]), jnp.array([0.0]))
        >>> f"{jnp.exp(one):.2f}"
        '0.75'
    """
    # Sums of logarithms: the derivative of a product costs more than all the rest.
    log_frame = _log(frame)
    log_seen = jnp.where(writes, _log(seen), log_frame[..., None, :]).sum(-1)
    log_none = log_frame.sum(-1)
    scale = lax.stop_gradient(jnp.maximum(log_none, log_seen.max(-1)))
    total = hazard.sum(-1)
    # (1 - exp(-W)) / W, and its derivative, at W = 0 as well
    some = jnp.where(total > 1e-6, total, 1.0)
    per_hazard = jnp.where(total > 1e-6, -jnp.expm1(-some) / some, 1.0 - total / 2)
    fired = (hazard * jnp.exp(log_seen - scale[..., None])).sum(-1) * per_hazard
    return _log(jnp.exp(log_none - scale - total) + fired) + scale


def race(hazard: Array, writes: Array, seen: Array, frame: Array) -> Array:
    """Log-probability of what was seen, whichever laws can fire together; arguments as in :func:`at_most_one`.

    Every term is positive (uniformization and squaring), so that small probabilities keep their digits.

    Example:
        Two laws of a cell each, and one of both.

        >>> import jax.numpy as jnp
        >>> from sojourn.ops.law_race import race
        >>> writes = jnp.array([[True, False], [False, True], [True, True]])
        >>> log_p = race(jnp.array([0.5, 0.5, 0.0]), writes, 1.0 * writes, jnp.zeros(2))
        >>> f"{jnp.exp(log_p):.4f} {(1 - jnp.exp(-0.5)) ** 2:.4f}"
        '0.1548 0.1548'
    """
    num_cells = frame.shape[-1]
    seen, frame, scale = _rescaled(jnp.where(writes, seen, frame[..., None, :]), frame)
    power = 2 ** jnp.arange(num_cells)
    mask = (writes * power).sum(-1)  # (..., M)
    sets = jnp.arange(2**num_cells)
    free = (sets[:, None] & mask[..., None, :]) == 0  # (..., S, M)
    rate = free * hazard[..., None, :]
    gain = rate * jnp.where(writes, seen, 1.0).prod(-1)[..., None, :]
    target = sets[:, None] | mask[..., None, :]
    moves = (gain[..., None] * (target[..., None] == sets)).sum(-2)  # (..., S, S)
    leave = rate.sum(-1)
    top = leave.max(-1)[..., None, None] + 1e-3  # any rate no smaller than the largest will do
    stays = jnp.eye(len(sets), dtype=hazard.dtype) * (1 - leave / top[..., 0])[..., None]
    chain = moves / top + stays
    short = top / 2**_SQUARINGS
    within = _exp_series(chain * short, jnp.eye(len(sets), dtype=hazard.dtype)) * jnp.exp(-short)
    for _ in range(_SQUARINGS - 1):
        within = _product(within, within)
    whole = _product(within[..., :1, :], within)
    unwritten = ((sets[:, None] >> jnp.arange(num_cells)) & 1) == 0  # (S, C)
    left = jnp.where(unwritten, frame[..., None, :], 1.0).prod(-1)
    return _log((whole[..., 0, :] * left).sum(-1)) + scale


def _product(a: Array, b: Array) -> Array:
    """Of small matrices, many at a time."""
    if b.shape[-1] > _FEW:
        return a @ b
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def _exp_series(a: Array, one: Array) -> Array:
    """``sum_k a^k / k!`` to the eleventh power by five products (Paterson and Stockmeyer 1973)."""
    square = _product(a, a)
    powers = [one, a, square, _product(square, a)]
    fourth = _product(square, square)
    total = jnp.zeros_like(a)
    for block in (2, 1, 0):
        total = _product(fourth, total) if block < 2 else total
        total = total + sum(p / math.factorial(4 * block + i) for i, p in enumerate(powers))
    return total


def fire(key: Array, hazard: Array, writes: Array) -> Array:
    """Which law writes each cell in one draw of the race.

    Args:
        key: random key.
        hazard: ``(M,)``.
        writes: ``(M, C)``: whether the law writes the cell.

    Returns:
        ``(C,)``: the law that has written the cell, -1 for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sojourn.ops.law_race import fire
        >>> print(fire(jax.random.key(0), jnp.array([50.0, 0.0]), jnp.array([[True, True, False], [False, True, True]])))
        [ 0  0 -1]
    """
    clock = jax.random.exponential(key, hazard.shape) / jnp.maximum(hazard, jnp.finfo(hazard.dtype).tiny)
    clock = jnp.where(hazard > 0, clock, jnp.inf)

    def ring(writer, law):
        cells = writes[law]
        fires = (clock[law] < 1) & ~(cells & (writer >= 0)).any()
        return jnp.where(fires & cells, law, writer), None

    writer, _ = lax.scan(ring, jnp.full(writes.shape[-1], -1), jnp.argsort(clock))
    return writer
