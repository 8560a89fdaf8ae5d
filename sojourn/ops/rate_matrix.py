r"""A rate matrix (generator) of a Markov jump process, and what it says of the long run.

``rate_matrix`` is ``(..., K, K)``: entry ``[i, j]`` is the rate at which state ``i`` jumps to state ``j``, the
diagonal makes every row sum to zero, and a law ``p`` (a row) moves by ``dp/dt = p Q``. Leading axes are a batch.
Rates are in the inverse of whatever unit time has. Everything is differentiable.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import numbers

__all__ = [
    "check_rate_matrix",
    "entropy_production_rate",
    "exit_rates",
    "generator",
    "mean_first_passage_times",
    "off_diagonal",
    "probability_currents",
    "relaxation_times",
    "stationary",
]


_ROW_TOLERANCE = 1e-4  # of the largest entry: float32 rows that were summed up stay well within


def check_rate_matrix(rate_matrix: Any, name: str = "rate_matrix") -> None:
    """Refuse a concrete matrix that is not the generator of a jump process.

    Raises:
        ValueError: a wrong shape, an entry not finite, a negative rate, a row that does not sum to zero.

    Example:
        >>> check_rate_matrix([[-1.0, 2.0], [1.0, -1.0]])
        Traceback (most recent call last):
        ValueError: Row 0 of `rate_matrix` sums to 1; the rows of a rate matrix sum to zero ...
    """
    rate_matrix = numbers(rate_matrix, name)
    shape = np.shape(rate_matrix)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        raise ValueError(f"`{name}` has shape {shape}; K >= 2 states need (..., K, K).")
    if isinstance(rate_matrix, jax.core.Tracer):
        return
    value = np.asarray(rate_matrix)
    states = shape[-1]
    if not np.isfinite(value).all():
        raise ValueError(f"`{name}` has an entry that is not finite.")
    bad = (value < 0) & ~np.eye(states, dtype=bool)
    if bad.any():
        i, j = (int(k) for k in np.argwhere(bad)[0][-2:])
        raise ValueError(f"`{name}` has a negative rate {value[bad][0]:g} from state {i} to state {j}.")
    total = value.sum(-1)
    slack = _ROW_TOLERANCE * np.maximum(np.abs(value).max((-2, -1)), 1e-30)[..., None]
    if (np.abs(total) > slack).any():
        where = np.argwhere(np.abs(total) > slack)[0]
        raise ValueError(
            f"Row {int(where[-1])} of `{name}` sums to {total[tuple(where)]:.6g}; the rows of a rate matrix sum to "
            "zero (sojourn.models.jump_process.generator fills in the diagonal)."
        )


def off_diagonal(rate_matrix: ArrayLike) -> Array:
    """The matrix with zeros on its diagonal."""
    rate_matrix = jnp.asarray(rate_matrix)
    return rate_matrix * (1.0 - jnp.eye(rate_matrix.shape[-1], dtype=rate_matrix.dtype))


def generator(rates: ArrayLike) -> Array:
    """The rate matrix with the off-diagonal entries of ``rates``, whatever its diagonal.

    Example:
        >>> import jax.numpy as jnp
        >>> print(generator(jnp.array([[0.0, 1.0], [2.0, 0.0]])))
        [[-1.  1.]
         [ 2. -2.]]
    """
    rates = off_diagonal(rates)
    eye = jnp.eye(rates.shape[-1], dtype=rates.dtype)
    return rates - rates.sum(-1, keepdims=True) * eye


def exit_rates(rate_matrix: ArrayLike) -> Array:
    """``(..., K)``: rate at which each state is left, the inverse of its mean sojourn time."""
    return -jnp.diagonal(jnp.asarray(rate_matrix), axis1=-2, axis2=-1)


# Compiled as one piece even when called eagerly, as NumPyro does when it looks at a model for the first time.
@jax.jit
def stationary(rate_matrix: ArrayLike) -> Array:
    """``(..., K)``: the law that does not move, of a chain with one recurrent class.

    Example:
        >>> import jax.numpy as jnp
        >>> print(stationary(jnp.array([[-1.0, 1.0], [2.0, -2.0]])).round(4))
        [0.6667 0.3333]
    """
    rate_matrix = jnp.asarray(rate_matrix)
    # pi Q = 0 and pi 1 = 1: pi (1 1' s - Q) = s 1', with s of the size of the rates.
    size = jnp.abs(rate_matrix).max((-2, -1), keepdims=True)
    size = jnp.where(size > 0, size, 1.0)
    ones = jnp.ones((*rate_matrix.shape[:-1], 1), rate_matrix.dtype)
    law = jnp.linalg.solve(1.0 - jnp.swapaxes(rate_matrix / size, -1, -2), ones)[..., 0]
    law = jnp.maximum(law, 0.0)
    return law / law.sum(-1, keepdims=True)


def relaxation_times(rate_matrix: ArrayLike) -> Array:
    """``(..., K - 1)``: ``-1 / Re(eigenvalue)`` of the eigenvalues other than zero, longest first.

    Infinite where there is more than one closed class. By a general eigendecomposition: on a CPU.

    Example:
        >>> import jax.numpy as jnp
        >>> print(relaxation_times(jnp.array([[-1.0, 1.0], [2.0, -2.0]])).round(4))
        [0.3333]
    """
    rate_matrix = jnp.asarray(rate_matrix)
    decay = jnp.sort(-jnp.linalg.eigvals(rate_matrix).real, -1)[..., 1:]
    tiny = jnp.finfo(decay.dtype).eps * jnp.abs(rate_matrix).max((-2, -1))[..., None] * rate_matrix.shape[-1]
    return jnp.where(decay > tiny, 1.0 / jnp.where(decay > tiny, decay, 1.0), jnp.inf)


def mean_first_passage_times(rate_matrix: ArrayLike) -> Array:
    """``(..., K, K)``: mean time from state ``i`` until state ``j`` is first entered; zero on the diagonal.

    Solves ``Q m = -1`` with the row and column of the target taken out (Norris 1997, *Markov Chains*, theorem 3.3.3).
    Not finite, or negative, where the target may never be reached: see :func:`sojourn.models.jump_process` for the
    version that looks.

    Example:
        >>> import jax.numpy as jnp
        >>> print(mean_first_passage_times(jnp.array([[-1.0, 1.0], [2.0, -2.0]])).round(4))
        [[0.  1. ]
         [0.5 0. ]]
    """
    rate_matrix = jnp.asarray(rate_matrix)
    states = rate_matrix.shape[-1]
    eye = jnp.eye(states, dtype=rate_matrix.dtype)

    def to(target):
        # The target's row and column become those of the identity: it is at distance zero from itself.
        keep = 1.0 - eye[target]
        system = rate_matrix * keep[:, None] * keep[None, :] + jnp.diag(eye[target])
        return jnp.where(keep > 0, jnp.linalg.solve(system, -keep[:, None])[..., 0], 0.0)  # no minus zero

    return jnp.moveaxis(jax.vmap(to)(jnp.arange(states)), 0, -1)


def probability_currents(rate_matrix: ArrayLike, law: ArrayLike | None = None) -> Array:
    """``(..., K, K)``: net flow ``p_i q_ij - p_j q_ji`` of probability from ``i`` to ``j``, by default in the long run.

    Example:
        >>> import jax.numpy as jnp
        >>> ring = generator(jnp.array([[0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]]))
        >>> f"{probability_currents(ring)[0, 1]:.4f}"
        '0.3333'
    """
    rate_matrix = jnp.asarray(rate_matrix)
    law = stationary(rate_matrix) if law is None else jnp.asarray(law)
    flow = law[..., None] * off_diagonal(rate_matrix)
    return flow - jnp.swapaxes(flow, -1, -2)


def entropy_production_rate(rate_matrix: ArrayLike) -> Array:
    r"""``(...)``: :math:`\tfrac12 \sum_{ij} (J_{ij} - J_{ji}) \log (J_{ij} / J_{ji})` with the stationary flows
    :math:`J_{ij} = \pi_i q_{ij}`, in units of Boltzmann's constant a unit of time (Schnakenberg 1976, *Rev. Mod. Phys.*
    48:571, equation 7.6). Zero in detailed balance; infinite where a flow has no way back.

    Example:
        >>> import jax.numpy as jnp
        >>> ring = generator(jnp.array([[0.0, 2.0, 1.0], [1.0, 0.0, 2.0], [2.0, 1.0, 0.0]]))
        >>> f"{entropy_production_rate(ring):.4f}"
        '0.6931'
    """
    rate_matrix = jnp.asarray(rate_matrix)
    flow = stationary(rate_matrix)[..., None] * off_diagonal(rate_matrix)
    back = jnp.swapaxes(flow, -1, -2)
    both = (flow > 0) & (back > 0)
    ratio = jnp.log(jnp.where(both, flow, 1.0)) - jnp.log(jnp.where(both, back, 1.0))
    one_way = ((flow > 0) != (back > 0)).any((-2, -1))
    return jnp.where(one_way, jnp.inf, ((flow - back) * ratio).sum((-2, -1)) / 2.0)
