r"""The dominant eigenvalue of a Metzler matrix (no negative entry off the diagonal), its two vectors, and how they move.

Irreducible matrices only: every state is reached from every other. The eigenvalue of largest real part is then
real and simple, and its right and left vectors are positive (Perron 1907, Frobenius 1912).

They are found by the iteration of Noda (1971, *Numer. Math.* 17:382), which is inverse iteration from the upper
Collatz-Wielandt bound: it converges quadratically from any positive vector (Elsner 1976, *Linear Algebra Appl.*
15:235). Here it runs on :math:`B_{ij} = A_{ij} r_j / r_i`, in which all row sums come to be the eigenvalue. That
needs a linear solver rather than a general eigensolver (none on most accelerators, complex, no second
derivative), and holds in single precision too where the vectors range over many orders of magnitude.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.nn import logsumexp
from jax.typing import ArrayLike

__all__ = ["Perron", "check_irreducible", "deviation_matrix", "perron"]

_MAX_STEPS = 60  # two to ten are typical


class Perron(NamedTuple):
    """Result of :func:`perron`. Scaled such that ``exp(log_left)`` sums to one and ``left . right = 1``."""

    value: Array
    """``(...)``: the eigenvalue."""
    log_right: Array
    """``(..., K)``: logarithm of the right vector."""
    log_left: Array
    """``(..., K)``: logarithm of the left vector."""


def perron(matrix: ArrayLike) -> Perron:
    r"""Dominant eigenvalue and vectors of an irreducible Metzler matrix.

    With this scaling :math:`e^{tA} \approx e^{t \psi} r l^T` for long times: the left vector is the law of the
    last state, and the right vector weighs the first.

    Differentiable to any order in both modes. The derivatives are those of perturbation theory, by solves with the
    matrix :math:`\psi - A` bordered by its vectors (Meyer and Stewart 1988, *SIAM J. Numer. Anal.* 25:679), in
    directions that keep the zeros of the matrix or fill them.

    Args:
        matrix: ``(..., K, K)``; entries off the diagonal are not negative.

    Raises:
        ValueError: a matrix that is not square, and, unless traced, one with NaN, with a negative entry off
            the diagonal, or with states that cannot reach each other.

    Example:
        >>> import jax.numpy as jnp
        >>> found = perron(jnp.array([[-1.0, 2.0], [2.0, -4.0]]))
        >>> print(jnp.exp(found.log_left).round(4), bool(abs(found.value) < 1e-6))
        [0.6667 0.3333] True
    """
    check_irreducible(matrix)
    matrix = jnp.asarray(matrix)
    matrix = matrix.astype(jnp.result_type(float, matrix))
    return Perron(*_batched(matrix))


def check_irreducible(matrix: ArrayLike, name: str = "matrix") -> None:
    """Refuse a matrix without positive Perron vectors: :func:`perron` says which. A traced one only by its shape.

    Example:
        >>> import numpy as np
        >>> check_irreducible(np.array([[-1.0, 1.0], [0.0, 0.0]]))
        Traceback (most recent call last):
        ValueError: `matrix` is reducible: state 1 never leads to state 0. Leave out states ...
    """
    shape = np.shape(matrix)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"`{name}` has shape {shape}; a Perron eigenvalue needs (..., K, K).")
    if isinstance(matrix, jax.core.Tracer):
        return
    values = np.asarray(matrix)
    states = shape[-1]
    off = values[..., ~np.eye(states, dtype=bool)]
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` has an entry that is not finite.")
    if (off < 0).any():
        raise ValueError(
            f"`{name}` has the entry {off.min():.6g} off its diagonal, where none may be negative."
        )
    reached = (values != 0) | np.eye(states, dtype=bool)
    for _ in range((states - 1).bit_length()):
        reached = reached @ reached
    if not reached.all():
        *_, i, j = np.argwhere(~reached)[0]
        raise ValueError(
            f"`{name}` is reducible: state {i} never leads to state {j}. Leave out states that are not visited "
            "again and again, or give every move back a rate."
        )


# ------------------------------------------------------------------------------------------- the iteration


def _similar(matrix: Array, log_right: Array) -> Array:
    """``A_ij r_j / r_i``."""
    diagonal = jnp.diag(jnp.diagonal(matrix))
    return diagonal + (matrix - diagonal) * jnp.exp(log_right - log_right[:, None])


def _noda(matrix: Array) -> Array:
    """Logarithm of the right vector, mean zero."""
    states = len(matrix)
    eps = jnp.finfo(matrix.dtype).eps

    def rows(log_right):
        similar = _similar(matrix, log_right)
        return similar, similar.sum(-1), jnp.abs(similar).sum(-1)

    def unfinished(carry):
        log_right, step = carry
        # Each row by its own scale: fast rows know the eigenvalue to fewer digits than slow ones.
        _, sums, scale = rows(log_right)
        weight = 1.0 / jnp.maximum(scale, jnp.finfo(matrix.dtype).tiny)
        weight = (weight / weight.max()) ** 2
        value = weight @ sums / weight.sum()
        apart = (jnp.abs(sums - value) > 4 * states * eps * (scale + jnp.abs(value))).any()
        return apart & (step < _MAX_STEPS)

    def step(carry):
        log_right, count = carry
        similar, sums, scale = rows(log_right)
        # The shift keeps the system regular when all row sums agree. Rows dominate by it at least.
        system = jnp.diag(sums.max() + 4 * eps * scale) - similar
        scale = jnp.where(scale > 0, scale, 1.0)
        new = jnp.linalg.solve(system / scale[:, None], 1.0 / scale)
        log_right = log_right + jnp.log(jnp.maximum(new / new.max(), jnp.finfo(matrix.dtype).tiny))
        return log_right - log_right.mean(), count + 1

    return lax.while_loop(unfinished, step, (jnp.zeros(states, matrix.dtype), 0))[0]


@jax.custom_jvp
def _perron(matrix: Array) -> tuple[Array, Array, Array]:
    log_right, log_left = jax.vmap(_noda)(jnp.stack([matrix, matrix.T]))
    log_left = log_left - logsumexp(log_left)
    log_right = log_right - logsumexp(log_left + log_right)
    # Weighed by left times right, the error of the row sums is of second order in that of the vectors.
    value = jnp.exp(log_left + log_right) @ _similar(matrix, log_right).sum(-1)
    return value, log_right, log_left


@_perron.defjvp
def _perturbation(primals, tangents):
    """Perturbation theory in the coordinates ``A_ij r_j / r_i``."""
    (matrix,), (direction,) = primals, tangents
    value, log_right, log_left = _perron(matrix)
    law = jnp.exp(log_right + log_left)
    deviation = _deviation(_similar(matrix, log_right), law)
    change = _similar(direction, log_right)
    d_value = law @ change.sum(-1)
    d_log_right = deviation @ change.sum(-1)
    d_left = (law @ change) @ deviation  # times right
    d_sum = (d_left * jnp.exp(-log_right)).sum()
    return (value, log_right, log_left), (d_value, d_log_right + d_sum, d_left / law - d_sum)


def _deviation(rates: Array, law: Array) -> Array:
    """:func:`deviation_matrix` of the generator with these rates off its diagonal and this stationary law.

    By a solve for the chain of its jumps, bordered by the law of that chain, so that slow and fast states come on
    one scale.
    """
    moves = rates - jnp.diag(jnp.diagonal(rates))
    leave = moves.sum(-1)
    leave = jnp.where(leave > 0, leave, 1.0)  # a single state
    visits = law * leave
    system = jnp.diag(moves.sum(-1) / leave) - moves / leave[:, None] + visits / visits.sum()
    deviation = jnp.linalg.inv(system) / leave
    deviation = deviation - law @ deviation
    return deviation - deviation.sum(-1, keepdims=True) * law


def deviation_matrix(rate_matrix: ArrayLike) -> Array:
    r"""How far the occupation of each state stays from its mean, all time taken together.

    :math:`D = \int_0^\infty (e^{tQ} - 1 \pi) \, dt`, the negative group inverse of the generator (Coolen-Schrijner and
    van Doorn 2002, *Probab. Eng. Inf. Sci.* 16:351). Differentiable.

    Args:
        rate_matrix: ``(..., K, K)`` irreducible; rows sum to zero.

    Returns:
        ``(..., K, K)``, in units of time.

    Example:
        >>> import jax.numpy as jnp
        >>> print(deviation_matrix(jnp.array([[-1.0, 1.0], [1.0, -1.0]])))
        [[ 0.25 -0.25]
         [-0.25  0.25]]
    """
    _, log_right, log_left = perron(rate_matrix)
    return _batched_deviation(jnp.asarray(rate_matrix), jnp.exp(log_right + log_left))


_batched = jax.jit(partial(jnp.vectorize, signature="(k,k)->(),(k),(k)")(_perron))
_batched_deviation = jax.jit(partial(jnp.vectorize, signature="(k,k),(k)->(k,k)")(_deviation))
