r"""Likelihood of many series of a hidden chain whose moves come from one stock of matrices.

Series ``n`` of ``N`` starts from ``initial[n]`` and moves from step ``l`` to ``l + 1`` by the matrix
``moves[index[n, l]]``. The matrices need not be stochastic: a row may hold densities, of jumps at exactly known times.

``initial`` : ``(N, K)`` or ``(K,)``
``moves`` : ``(D, K, K)``
``index`` : ``(N, L - 1)`` integers
``log_emission`` : ``(N, L, K)``, zeros where nothing was observed

The recursions are those of :mod:`sojourn.ops.hidden_markov`, all series side by side, without a copy of its matrix for
each step. Series of unequal lengths are padded by moves that are the identity and emissions that are zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from sojourn.ops.hidden_markov import _log, _scale

__all__ = ["log_likelihood"]


def log_likelihood(
    initial: ArrayLike, moves: ArrayLike, index: ArrayLike, log_emission: ArrayLike, *, vjp: bool = True
) -> Array:
    """``(N,)`` log-likelihoods.

    Reverse-mode differentiation costs one backward pass: the gradient in ``log_emission`` is the smoothed law of the
    states, that in ``moves`` the expected use of each entry over the entry. Hessians by ``jax.hessian`` (forward over
    reverse) are right. Plain forward mode needs ``vjp=False``.

    Example:
        >>> import jax.numpy as jnp
        >>> stay, swap = jnp.eye(2), jnp.eye(2)[::-1]
        >>> seen = jnp.log(jnp.array([[[0.9, 0.1], [0.1, 0.9]]]))
        >>> for moves in (stay, swap):
        ...     value = log_likelihood(jnp.array([0.5, 0.5]), moves[None], jnp.zeros((1, 1), int), seen)
        ...     print(f"{value[0]:.4f}")
        -2.4079
        -0.8916
    """
    arrays = [jnp.asarray(x) for x in (initial, moves, log_emission)]
    dtype = jnp.result_type(float, *arrays)
    first, stock, seen = (x.astype(dtype) for x in arrays)
    series, steps, states = seen.shape
    which = jnp.asarray(index)
    if which.shape != (series, steps - 1):
        raise ValueError(f"`index` has shape {which.shape}; the series need ({series}, {steps - 1}).")
    if stock.shape[-2:] != (states, states) or first.shape[-1] != states:
        raise ValueError(
            f"`initial` {first.shape} and `moves` {stock.shape} do not fit the {states} states of `log_emission`."
        )
    first = jnp.broadcast_to(first, (series, states))
    # Data are constants to the compiler, which would take seconds to work out beforehand what it can of them.
    which, seen = lax.optimization_barrier((which, seen))
    return _log_likelihood(first, stock, which, seen) if vjp else _forward(first, stock, which, seen)[0]


_scale_all = jax.vmap(_scale)


def _forward(initial: Array, moves: Array, index: Array, log_emission: Array) -> tuple[Array, Array]:
    """Log-likelihoods ``(N,)`` and filtered laws ``(L, N, K)``."""
    lik, top = _scale_all(log_emission)
    lik = jnp.swapaxes(lik, 0, 1)

    def update(predicted, b):
        weights = predicted * b
        norm = weights.sum(-1)
        return weights / jnp.where(norm > 0, norm, 1.0)[:, None], norm

    def step(alpha, x):
        i, b = x
        alpha, norm = update(jnp.einsum("ni,nij->nj", alpha, moves[i]), b)
        return alpha, (alpha, norm)

    first, norm0 = update(initial, lik[0])
    _, (alphas, norms) = lax.scan(step, first, (index.T, lik[1:]))
    # Summed after the scan: in a carry the rounding errors would add up.
    total = _log(jnp.concatenate([norm0[None], norms])).sum(0) + top.sum(-1)
    return total, jnp.concatenate([first[None], alphas])


@jax.custom_vjp
def _log_likelihood(initial: Array, moves: Array, index: Array, log_emission: Array) -> Array:
    return _forward(initial, moves, index, log_emission)[0]


def _keep(initial, moves, index, log_emission):
    value, alphas = _forward(initial, moves, index, log_emission)
    return value, (initial, moves, index, log_emission, alphas)


def _backward(kept, g):
    initial, moves, index, log_emission, alphas = kept
    lik = jnp.swapaxes(_scale_all(log_emission)[0], 0, 1)

    def scaled(x, norm):
        return x / jnp.where(norm > 0, norm, 1.0)[:, None]

    def step(ahead, x):
        i, b, alpha = x
        beta = jnp.einsum("nij,nj->ni", moves[i], ahead)
        norm = (alpha * beta).sum(-1)
        beta = scaled(beta, norm)  # now alpha . beta is one: the smoothed law is their product
        use = alpha[:, :, None] * scaled(g[:, None] * ahead, norm)[:, None, :]
        return b * beta, (beta, use)

    ahead, (betas, uses) = lax.scan(step, lik[-1], (index.T, lik[:-1], alphas[:-1]), reverse=True)
    betas = jnp.concatenate([betas, jnp.ones_like(lik[-1:])])
    d_moves = jax.ops.segment_sum(uses.reshape(-1, *moves.shape[1:]), index.T.reshape(-1), len(moves))
    d_initial = scaled(g[:, None] * ahead, (initial * ahead).sum(-1))
    d_emission = jnp.swapaxes(alphas * betas * g[:, None], 0, 1)
    return d_initial, d_moves, None, d_emission


_log_likelihood.defvjp(_keep, _backward)
