r"""Backward information filter: the control under which a linear system meets all that is still to be seen.

A step takes the state :math:`z` and noise :math:`e \sim N(0, I)` to :math:`z' = F z + G e + c`, and something is
seen of it: a log-density that is quadratic in :math:`(z, e)`. Going backwards, the log-density of everything that is
seen from a step on stays quadratic in the state, :math:`-\tfrac12 z^\top \Lambda z + \eta^\top z`, and the law of the
noise given the state and all of the future is normal with a mean linear in the state. Drawn forwards from these laws,
a path is a draw from the exact posterior: Doob's h-transform of a linear-Gaussian system.

The recursion is that of the Kalman filter in information form, run from the end (Fraser and Potter 1969, *IEEE
Trans. Autom. Control* 14:387), and of the linear-quadratic regulator (Todorov 2008, *CDC* p. 4286, on their duality).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["Control", "Quadratic", "backward", "initial_control", "noise_factor"]


class Quadratic(NamedTuple):
    r"""What is seen in a step, as :math:`q_z^\top z + q_e^\top e - \tfrac12 (z, e)^\top Q (z, e)`."""

    state: Array
    """``(..., d, d)`` block of ``Q`` for the state."""
    cross: Array
    """``(..., m, d)`` block for noise and state."""
    noise: Array
    """``(..., m, m)`` block for the noise."""
    state_score: Array
    """``(..., d)``: :math:`q_z`."""
    noise_score: Array
    """``(..., m)``: :math:`q_e`."""


class Control(NamedTuple):
    r"""Law of the noise of each step given the state: :math:`e \mid z \sim N(a + C z, (L L^\top)^{-1})`."""

    mean: Array
    """``(..., m)``: :math:`a`."""
    gain: Array
    """``(..., m, d)``: :math:`C`."""
    precision_root: Array
    """``(..., m, m)``: lower triangular :math:`L`."""


def backward(
    transition: Array, input: Array, offset: Array, seen: Quadratic, noise_mean: Array
) -> tuple[Control, tuple[Array, Array]]:
    r"""Laws of the noise given the state and all that is seen from each step on.

    Args:
        transition: ``(T, ..., d, d)``: :math:`F`.
        input: ``(T, ..., d, m)``: :math:`G`.
        offset: ``(T, ..., d)``: :math:`c`.
        seen: with leading axes ``(T, ...)``.
        noise_mean: ``(T, ..., m)``: mean of the noise before anything is seen (its covariance is one).

    Returns:
        The controls, with leading axes ``(T, ...)``, and :math:`\Lambda` ``(..., d, d)`` and :math:`\eta`
        ``(..., d)`` of everything that is seen, as a function of the first state.

    Example:
        A random walk from 1, its one step seen as 0 with standard deviation 1: the step is half way back.

        >>> import jax.numpy as jnp
        >>> one, none = jnp.ones((1, 1, 1)), jnp.zeros((1, 1))
        >>> seen = Quadratic(one, one, one, none, none)  # -(z + e)^2 / 2
        >>> control, _ = backward(one, one, none, seen, none)
        >>> print((control.mean[0] + control.gain[0] @ jnp.ones(1)).round(3))
        [-0.5]
    """
    d, m = transition.shape[-1], input.shape[-1]
    move = jnp.concatenate([transition, input], -1)
    top = jnp.concatenate([seen.state, _t(seen.cross)], -1)
    bottom = jnp.concatenate([seen.cross, seen.noise + jnp.eye(m, dtype=input.dtype)], -1)
    now = jnp.concatenate([top, bottom], -2)
    score_now = jnp.concatenate([seen.state_score, seen.noise_score + noise_mean], -1)

    def step(future, x):
        precision, score = future
        move, shift, now, score_now = x
        ahead = precision @ jnp.concatenate([move, shift[..., None]], -1)
        whole = now + _t(move) @ ahead[..., :-1]
        pull = score_now + _mv(_t(move), score - ahead[..., -1])
        weight, coupling = whole[..., d:, d:], whole[..., d:, :d]
        solved = _solve_small(weight, jnp.concatenate([coupling, pull[..., d:, None]], -1))
        left = _t(coupling) @ solved
        precision = whole[..., :d, :d] - left[..., :-1]
        score = pull[..., :d] - left[..., -1]
        return (0.5 * (precision + _t(precision)), score), (solved, weight)

    batch = transition.shape[1:-2]
    nothing = jnp.zeros((*batch, d, d), transition.dtype), jnp.zeros((*batch, d), transition.dtype)
    start, (solved, weight) = jax.lax.scan(step, nothing, (move, offset, now, score_now), reverse=True)
    return Control(solved[..., -1], -solved[..., :-1], _root(weight)), start


def initial_control(
    input: Array, offset: Array, noise_mean: Array, future: tuple[Array, Array]
) -> tuple[Array, Array]:
    r"""Law of the noise that makes the first state, :math:`z_0 = G e + c`, given all that is seen.

    Args:
        input: ``(..., d, m)``.
        offset: ``(..., d)``.
        noise_mean: ``(..., m)``, before anything is seen.
        future: from :func:`backward`.

    Returns:
        Its mean ``(..., m)`` and the root of its precision ``(..., m, m)``.

    Example:
        >>> import jax.numpy as jnp
        >>> seen = 3.0 * jnp.eye(1), jnp.array([3.0])  # one value, 1, of variance 1/3
        >>> mean, root = initial_control(jnp.eye(1), jnp.zeros(1), jnp.zeros(1), seen)
        >>> float(mean[0]), float(root[0, 0])
        (0.75, 2.0)
    """
    precision, score = future
    transported = _t(input) @ precision
    root = _root(jnp.eye(input.shape[-1], dtype=input.dtype) + transported @ input)
    pull = noise_mean + _mv(_t(input), score - _mv(precision, offset))
    return _solve(root, pull[..., None])[..., 0], root


def noise_factor(precision_root: Array) -> Array:
    r"""Upper triangular ``(..., m, m)`` :math:`U = L^{-\top}`, for which :math:`U U^\top` is the covariance.

    Example:
        >>> import jax.numpy as jnp
        >>> print(noise_factor(jnp.array([[2.0, 0.0], [2.0, 1.0]])))
        [[ 0.5 -1. ]
         [ 0.   1. ]]
    """
    m = precision_root.shape[-1]
    if m == 1:
        return 1.0 / precision_root
    if m == 2:
        a, b, c = precision_root[..., 0, 0], precision_root[..., 1, 0], precision_root[..., 1, 1]
        return jnp.stack([jnp.stack([1 / a, -b / (a * c)], -1), jnp.stack([0 * a, 1 / c], -1)], -2)
    identity = jnp.broadcast_to(jnp.eye(m, dtype=precision_root.dtype), precision_root.shape)
    return jax.scipy.linalg.solve_triangular(precision_root, identity, lower=True, trans="T")


def _t(matrix: Array) -> Array:
    return jnp.swapaxes(matrix, -1, -2)


def _mv(matrix: Array, vector: Array) -> Array:
    return (matrix @ vector[..., None])[..., 0]


def _solve(root: Array, right: Array) -> Array:
    half = jax.scipy.linalg.solve_triangular(root, right, lower=True)
    return jax.scipy.linalg.solve_triangular(root, half, lower=True, trans="T")


def _solve_small(matrix: Array, right: Array) -> Array:
    """For matrices at least the identity. Up to two by two in plain arithmetic, which compiles to one loop."""
    m = matrix.shape[-1]
    if m == 1:
        return right / matrix
    if m == 2:
        a, b, c = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
        determinant = (a * c - b * b)[..., None]
        a, b, c = a[..., None], b[..., None], c[..., None]
        one, two = right[..., 0, :], right[..., 1, :]
        return jnp.stack([(c * one - b * two) / determinant, (a * two - b * one) / determinant], -2)
    return _solve(jnp.linalg.cholesky(matrix), right)


def _root(matrix: Array) -> Array:
    m = matrix.shape[-1]
    if m == 1:
        return jnp.sqrt(matrix)
    if m == 2:
        a = jnp.sqrt(matrix[..., 0, 0])
        b = matrix[..., 0, 1] / a
        c = jnp.sqrt(matrix[..., 1, 1] - b * b)
        return jnp.stack([jnp.stack([a, 0 * a], -1), jnp.stack([b, c], -1)], -2)
    return jnp.linalg.cholesky(matrix)
