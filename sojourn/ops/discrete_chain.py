r"""Recursions on a chain of finite memory that is given by log-weights.

The states of one step are ``0..K-1``, and a weight may look back ``L`` steps. A path ``z_1, ..., z_T`` that
sets out from the tuple ``c`` of the ``L`` states before it has the weight

.. math::
    \text{start}(c) \prod_t \text{move}_t(z_{t-L}, \dots, z_t) \, \text{weight}_t(z_t) ,

and these functions sum it over all paths, maximise it, and draw from it. Nothing has to sum to one. Weights are
logarithms; minus infinity is legal. Before the first step there may be other states than later (``S >= K``),
so tuples count in base ``S``. All arrays split a tuple into its oldest entry and the rest, ``B = S**(L - 1)``:

``log_start`` : ``(S, B)``
    Log-weight of the tuple before the first step, oldest entry first.
:class:`Piece`
    A stretch of ``n`` steps: ``log_move`` ``(n, S, B, K)``, or ``(1, S, B, K)`` where it is the same at every
    step, and ``log_weight`` ``(n, K)``. A chain is a sequence of pieces.

A forward pass on scaled probabilities is ten times as fast as one on logarithms, and loses a state whose
probability underflows, which matters when every state that leads to the next one has. Here the fast pass comes
first. It notes the smallest probability from which a later one was made; if that has too few digits, the pass is
done again on logarithms. So nothing is lost, and the price is paid where there is something to lose. Several
chains under ``vmap`` are redone together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

__all__ = ["Forward", "Piece", "Smoothed", "forward", "sample_paths", "smooth", "viterbi"]


class Piece(NamedTuple):
    """Some consecutive steps of a chain."""

    log_move: Array
    """``(n, S, B, K)`` or ``(1, S, B, K)``."""
    log_weight: Array
    """``(n, K)``."""


class Forward(NamedTuple):
    """Result of :func:`forward`."""

    increments: Array
    """``(T,)``: logarithm of what each step adds to the sum: the total is ``log sum start`` times their product,
    where ``start`` is taken to sum to one."""
    before: Array
    """``(T, S, B)``: log-law of the tuple before each step, given the weights so far."""
    last: Array
    """``(S, B)``: the same after the last step."""


class Smoothed(NamedTuple):
    """Result of :func:`smooth`."""

    start: Array
    """``(S, B)``: law of the tuple before the first step, given all weights."""
    marginals: Array
    """``(T, K)``: law of each state."""


# ----------------------------------------------------------------------------------------------- numerics


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _log(x: Array) -> Array:
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)


def _log_sum(x: Array, axis: int | tuple[int, ...]) -> Array:
    top = _finite(lax.stop_gradient(x).max(axis, keepdims=True))
    return _log(jnp.exp(x - top).sum(axis)) + jnp.squeeze(top, axis)


def _shift(new: Array, states: int) -> Array:
    """From ``(..., B, K)``, rest of the tuple and newest state, to ``(..., S, B)``; absent states weigh nothing."""
    *batch, rest, newest = new.shape
    if newest < states:
        new = jnp.pad(new, [(0, 0)] * (new.ndim - 1) + [(0, states - newest)], constant_values=-jnp.inf)
    return new.reshape(*batch, states, rest)


def _unshift(tuples: Array, newest: int) -> Array:
    """The inverse of :func:`_shift`, for whatever has a number for each tuple."""
    *batch, states, rest = tuples.shape
    return tuples.reshape(*batch, rest, states)[..., :newest]


def _time_first(x: Array, own: int) -> Array:
    """The time axis, left of ``own`` others, in front of the batch."""
    return jnp.moveaxis(x, -1 - own, 0)


def _time_back(x: Array, own: int) -> Array:
    return jnp.moveaxis(x, 0, -1 - own)


def _for_batches(core: Callable[..., Any], on_logarithms: Callable[..., Any]) -> Callable[..., Any]:
    """Under ``vmap`` the new axis leads those that ``core`` takes anyway.

    Its branches are then taken once for the whole batch; a branch that ``vmap`` handles is taken both ways.
    Derivatives (second ones, here) are those of ``on_logarithms``, which gives the same and has no branches.
    """

    @custom_vmap
    def run(*args):
        return core(*args)

    @run.def_vmap
    def rule(size, batched, *args):
        wide = [
            a if b else jnp.broadcast_to(a, (size, *jnp.shape(a))) for a, b in zip(args, batched, strict=True)
        ]
        out = run(*wide)
        return out, jax.tree.map(lambda _: True, out)

    differentiable = jax.custom_jvp(run)

    @differentiable.defjvp
    def tangent(primals, tangents):
        return run(*primals), jax.jvp(on_logarithms, primals, tangents)[1]

    return differentiable


# --------------------------------------------------------------------------------- one piece, with any batch
#
# Shapes have leading batch axes `...`, equal for all arguments. `arrived` is the logarithm of the sum over the
# oldest entry, (..., n, B, K): the law of the next tuple before its own weight.


def _scaled_arrivals(log_start: Array, log_move: Array, log_weight: Array) -> tuple[Array, Array]:
    top = _finite(log_move.max(-3))
    move = jnp.exp(log_move - top[..., None, :, :])
    each = top + log_weight[..., None, :]
    weight = jnp.exp(each - _finite(each.max((-2, -1), keepdims=True)))
    states = log_start.shape[-2]
    tiny = jnp.finfo(weight.dtype).tiny
    fixed = log_move.shape[-4] == 1
    moves = lax.optimization_barrier(jnp.moveaxis(_time_first(move, 3), -3, -1))  # (n, ..., B, K, S)

    def step(law, x):
        weight, move = x if not fixed else (x, moves[0])
        arrived = jnp.einsum("...bks,...sb->...bk", move, law)
        new = arrived * weight
        new = new / jnp.maximum(new.sum((-2, -1), keepdims=True), tiny)
        if new.shape[-1] < states:
            new = jnp.pad(new, [(0, 0)] * (new.ndim - 1) + [(0, states - new.shape[-1])])
        return new.reshape(law.shape), arrived

    weights = _time_first(weight, 2)
    _, arrived = lax.scan(step, jnp.exp(log_start), weights if fixed else (weights, moves))
    arrived = _time_back(arrived, 2)
    possible = jnp.isfinite(log_move).any(-3)
    enough = ((arrived >= 1e8 * tiny) | ~possible).all()
    return jnp.where(possible, _log(arrived) + top, -jnp.inf), enough


def _unroll(xs: Array) -> int:
    """One or two steps take less to compile than a loop."""
    return len(xs) if len(xs) <= 2 else 1


def _log_arrivals(log_start: Array, log_move: Array, log_weight: Array) -> Array:
    states = log_start.shape[-2]
    fixed = log_move.shape[-4] == 1
    moves = _time_first(log_move, 3)

    def step(law, x):
        weight, move = (x, moves[0]) if fixed else x
        arrived = _log_sum(law[..., None] + move, -3)
        new = arrived + weight[..., None, :]
        new = new - _finite(_log_sum(new, (-2, -1)))[..., None, None]
        return _shift(new, states), arrived

    weights = _time_first(log_weight, 1)
    _, arrived = lax.scan(step, log_start, weights if fixed else (weights, moves), unroll=_unroll(weights))
    return _time_back(arrived, 2)


_SHORT = 4  # so few steps are done on logarithms at once: at first most tuples are impossible, not improbable


def _slow_run(log_start: Array, log_move: Array, log_weight: Array) -> tuple[Array, Array]:
    arrived = _log_arrivals(log_start, log_move, log_weight)
    return arrived, jnp.zeros(log_start.shape[:-2], arrived.dtype)


def _fast_run(log_start: Array, log_move: Array, log_weight: Array) -> tuple[Array, Array]:
    if log_weight.shape[-2] <= _SHORT:
        return _slow_run(log_start, log_move, log_weight)
    arrived, enough = _scaled_arrivals(log_start, log_move, log_weight)
    arrived = lax.cond(enough, lambda: arrived, lambda: _log_arrivals(log_start, log_move, log_weight))
    return arrived, jnp.full(log_start.shape[:-2], enough, arrived.dtype)


_run = _for_batches(_fast_run, _slow_run)
"""``arrived``, and one if the pass on scaled probabilities was enough, else zero."""


def _laws(log_start: Array, arrived: Array, log_weight: Array) -> tuple[Array, Array, Array]:
    """Increments, laws before each step and after the last one."""
    joint = arrived + log_weight[..., None, :]
    increments = _log_sum(joint, (-2, -1))
    after = _shift(joint - _finite(increments)[..., None, None], log_start.shape[-2])
    before = jnp.concatenate([log_start[..., None, :, :], after[..., :-1, :, :]], -3)
    return increments, before, after[..., -1, :, :]


def _ratio(x: Array) -> Array:
    """Exponential of a difference that may be that of two impossible things."""
    return jnp.exp(jnp.where(jnp.isnan(x), -jnp.inf, x))


def _scaled_backward(before, arrived, posterior, log_move, g_increments, g_before, g_last):
    newest = arrived.shape[-1]
    fixed = log_move.shape[-4] == 1
    top = _finite(log_move.max(-3))
    move = jnp.exp(log_move - top[..., None, :, :])
    law = jnp.exp(before)
    scale = _ratio(top - arrived)  # one over what arrived, in units of the best move
    scale = jnp.where(jnp.isfinite(arrived), scale, 0.0)
    moves = lax.optimization_barrier(_time_first(jnp.swapaxes(move, -3, -2), 3))  # (n, ..., B, S, K)

    def step(g_law, x):
        g_new = _unshift(g_law, newest)
        g_new = g_new + (x["g"] - g_new.sum((-2, -1), keepdims=True)) * x["posterior"]
        each = g_new * x["scale"]
        g_law = jnp.einsum("...bsk,...bk->...sb", moves[0] if fixed else x["move"], each)
        return g_law * x["law"] + x["g_before"], (g_new, each)

    xs = {
        "g": _time_first(g_increments, 0)[..., None, None],
        "posterior": _time_first(posterior, 2),
        "scale": _time_first(scale, 2),
        "law": _time_first(law, 2),
        "g_before": _time_first(g_before, 2),
    }
    if not fixed:
        xs["move"] = moves
    g_start, (g_new, each) = lax.scan(step, g_last, xs, reverse=True)
    g_new, each = _time_back(g_new, 2), _time_back(each, 2)
    if fixed:
        g_move = move[..., 0, :, :, :] * jnp.einsum("...tsb,...tbk->...sbk", law, each)
        g_move = g_move[..., None, :, :, :]
    else:
        g_move = move * law[..., None] * each[..., None, :, :]
    return g_start, g_move, g_new.sum(-2)


def _log_backward(before, arrived, posterior, log_move, g_increments, g_before, g_last):
    newest = arrived.shape[-1]
    fixed = log_move.shape[-4] == 1
    moves = _time_first(log_move, 3)

    def step(carry, x):
        g_law, total = carry
        g_new = _unshift(g_law, newest)
        g_new = g_new + (x["g"] - g_new.sum((-2, -1), keepdims=True)) * x["posterior"]
        move = moves[0] if fixed else x["move"]
        arrived = x["arrived"][..., None, :, :]
        share = jnp.exp(x["before"][..., None] + move - _finite(arrived))
        g_move = jnp.where(jnp.isfinite(arrived), share, 0.0) * g_new[..., None, :, :]
        g_law = g_move.sum(-1) + x["g_before"]
        return (g_law, total + g_move if fixed else total), (g_new, None if fixed else g_move)

    xs = {
        "g": _time_first(g_increments, 0)[..., None, None],
        "posterior": _time_first(posterior, 2),
        "arrived": _time_first(arrived, 2),
        "before": _time_first(before, 2),
        "g_before": _time_first(g_before, 2),
    }
    if not fixed:
        xs["move"] = moves
    total = jnp.zeros_like(log_move[..., 0, :, :, :]) if fixed else jnp.zeros(())
    unroll = _unroll(moves if not fixed else xs["g"])
    (g_start, total), (g_new, g_move) = lax.scan(step, (g_last, total), xs, reverse=True, unroll=unroll)
    g_move = total[..., None, :, :, :] if fixed else _time_back(g_move, 3)
    return g_start, g_move, _time_back(g_new, 2).sum(-2)


def _slow_back(*args):
    return _any_back(False, *args)


def _fast_back(*args):
    return _any_back(True, *args)


def _any_back(fast, log_start, log_move, log_weight, arrived, enough, g_increments, g_before, g_last):
    increments, before, _ = _laws(log_start, arrived, log_weight)
    joint = arrived + log_weight[..., None, :]
    posterior = jnp.exp(joint - _finite(increments)[..., None, None])
    args = (before, arrived, posterior, log_move, g_increments, g_before, g_last)
    if not fast or log_weight.shape[-2] <= _SHORT:
        return _log_backward(*args)
    return lax.cond(enough.all(), _scaled_backward, _log_backward, *args)


_back = _for_batches(_fast_back, _slow_back)
"""Gradients in ``log_start``, ``log_move`` and ``log_weight``.

With the tuples' laws at hand the chain rule is linear in what comes from the right: each step multiplies by the law
of the oldest entry given the rest.
"""


@jax.custom_vjp
def _piece(log_start: Array, log_move: Array, log_weight: Array) -> tuple[Array, Array, Array]:
    return _laws(log_start, _run(log_start, log_move, log_weight)[0], log_weight)


def _piece_forward(log_start, log_move, log_weight):
    arrived, enough = _run(log_start, log_move, log_weight)
    kept = (log_start, log_move, log_weight, arrived, enough)
    return _laws(log_start, arrived, log_weight), kept


def _piece_backward(kept, gradients):
    return _back(*kept, *gradients)


_piece.defvjp(_piece_forward, _piece_backward)


def _piece_autodiff(log_start: Array, log_move: Array, log_weight: Array) -> tuple[Array, Array, Array]:
    return _laws(log_start, _log_arrivals(log_start, log_move, log_weight), log_weight)


# ------------------------------------------------------------------------------------------------- public


def forward(log_start: Array, pieces: Sequence[Piece], *, vjp: bool = True) -> Forward:
    """Sum over all paths, step by step.

    Reverse-mode differentiation costs one more pass, whatever is made of the result. Hessians by
    ``jax.hessian`` work. Plain forward mode needs ``vjp=False``: logarithms throughout, differentiated by JAX.

    Args:
        log_start: ``(S, B)``; it is normalised.
        pieces: the chain.
        vjp: use the hand-written reverse rule.

    Example:
        >>> import jax.numpy as jnp
        >>> start = jnp.log(jnp.array([0.5, 0.5]))[:, None]
        >>> move = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))[None, :, None, :]
        >>> weight = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.9]]))
        >>> print(f"{forward(start, [Piece(move, weight)]).increments.sum():.4f}")
        -3.5833
    """
    run = _piece if vjp else _piece_autodiff
    law = log_start - _finite(_log_sum(log_start, (-2, -1)))
    increments, before = [], []
    for piece in pieces:
        more, laws, law = run(law, piece.log_move, piece.log_weight)
        increments.append(more)
        before.append(laws)
    return Forward(jnp.concatenate(increments), jnp.concatenate(before), law)


def smooth(log_start: Array, pieces: Sequence[Piece]) -> Smoothed:
    """Laws of the states given all weights: the gradient of the logarithm of the sum in their log-weights.

    Example:
        >>> import jax.numpy as jnp
        >>> start = jnp.log(jnp.array([0.5, 0.5]))[:, None]
        >>> move = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))[None, :, None, :]
        >>> weight = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.9]]))
        >>> [round(float(p), 3) for p in smooth(start, [Piece(move, weight)]).marginals[-1]]
        [0.42, 0.58]
    """
    law = log_start - _finite(_log_sum(log_start, (-2, -1)))

    def total(law, weights):
        increments = []
        for piece, weight in zip(pieces, weights, strict=True):
            more, _, law = _piece(law, piece.log_move, weight)
            increments.append(more)
        return jnp.concatenate(increments).sum()

    d_start, d_weights = jax.grad(total, (0, 1))(law, [piece.log_weight for piece in pieces])
    return Smoothed(d_start, jnp.concatenate(d_weights))


def viterbi(log_start: Array, pieces: Sequence[Piece]) -> tuple[Array, Array]:
    """The path of greatest weight: number of the tuple it sets out from, and its states, ``(T,)``.

    A tuple's number is its place in ``log_start.ravel()``. (Viterbi 1967, *IEEE Trans. Inf. Theory* 13:260.)

    Example:
        >>> import jax.numpy as jnp
        >>> start = jnp.log(jnp.array([0.5, 0.5]))[:, None]
        >>> move = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))[None, :, None, :]
        >>> weight = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.01, 0.99]]))
        >>> [x.tolist() for x in viterbi(start, [Piece(move, weight)])]
        [0, [0, 0, 1]]
    """
    states, rest = log_start.shape
    score, chosen = log_start, []
    for piece in pieces:

        def step(score, x, piece=piece):
            weight, move = x if len(piece.log_move) != 1 else (x, piece.log_move[0])
            through = score[..., None] + move
            new = through.max(0) + weight
            new = new - _finite(new.max())
            return _shift(new, states), jnp.argmax(through, 0).astype(jnp.int32)

        weights = piece.log_weight
        score, oldest = lax.scan(
            step, score, weights if len(piece.log_move) == 1 else (weights, piece.log_move)
        )
        chosen.append(oldest)

    def back(at, oldest):
        others, state = at // states, at % states
        return oldest[others, state] * rest + others, state

    start, path = lax.scan(back, jnp.argmax(score.ravel()), jnp.concatenate(chosen), reverse=True)
    return start, path


def sample_paths(
    key: Array, run: Forward, pieces: Sequence[Piece], *, num_samples: int = 1
) -> tuple[Array, Array]:
    """Independent draws of the path, with probability proportional to its weight.

    Backward sampling after one forward pass (Chib 1996, *J. Econometrics* 75:79).

    Args:
        key: random key.
        run: result of :func:`forward` for the same pieces.
        pieces: the chain.
        num_samples: number of draws.

    Returns:
        Numbers of the tuples set out from (places in ``log_start.ravel()``), ``(num_samples,)``, and states,
        ``(num_samples, T)``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> start = jnp.log(jnp.array([0.5, 0.5]))[:, None]
        >>> move = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))[None, :, None, :]
        >>> pieces = [Piece(move, jnp.zeros((3, 2)))]
        >>> sample_paths(jax.random.key(0), forward(start, pieces), pieces, num_samples=7)[1].shape
        (7, 3)
    """
    states, rest = run.last.shape
    steps = len(run.before)
    noise = jax.random.gumbel(key, (num_samples, states * (steps + rest)), run.last.dtype)
    noise, noise_end = jnp.split(noise, [states * steps], 1)
    at = jnp.argmax(run.last.ravel() + noise_end, 1)
    noise = jnp.moveaxis(noise.reshape(num_samples, steps, states), 0, 2)
    paths: list[Array] = []
    first = len(run.before)
    for piece in reversed(pieces):
        first -= len(piece.log_weight)
        span = slice(first, first + len(piece.log_weight))

        def back(at, x, piece=piece):
            before, noise, *move = x
            others, state = at // states, at % states
            log_move = move[0] if move else piece.log_move[0]
            score = before[:, others] + log_move[:, others, state] + noise
            return jnp.argmax(score, 0) * rest + others, state

        xs = (run.before[span], noise[span])
        at, path = lax.scan(back, at, xs if len(piece.log_move) == 1 else (*xs, piece.log_move), reverse=True)
        paths.insert(0, path)
    return at, jnp.concatenate(paths).T
