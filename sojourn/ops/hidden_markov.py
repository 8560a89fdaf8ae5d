r"""Recursions on a finite-state hidden Markov chain.

For one series of length ``T`` over ``K`` states, every function takes

``initial`` : ``(K,)``
    Law of the first state.
``transition`` : ``(K, K)`` or ``(T - 1, K, K)``
    Row-stochastic; entry ``[i, j]`` is the probability of moving from ``i`` to ``j``. With a leading
    time axis, ``transition[t]`` carries step ``t`` to step ``t + 1``.
``log_emission`` : ``(T, K)``
    ``log p(y_t | state k)``. A missing observation is a row of zeros.
``length`` : integer, optional
    Number of leading steps that belong to the series; the rest is padding (its emissions and
    transitions are ignored, its marginals are zero). Traceable, so ragged batches are one ``vmap``.

``log_space`` : bool
    Zeros in ``initial`` and ``transition`` are legal, and an impossible series has log-likelihood ``-inf``.
    The recursions are those of Rabiner (1989, *Proc. IEEE* 77:257) on probabilities scaled to sum to one at
    every step, which is fast and loses a state whose probability underflows (below e^-87 in float32). A
    positive transition matrix brings it back at the next step. Where some moves are forbidden it may be
    needed later (a left-to-right chain, and one observation 87 nats off): ``log_space=True`` then loses
    nothing and costs two to ten times as much.

Log-normalisers are summed after the scan: carried along in float32 they lose about 0.1 nats in 50 000 steps.
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

from sojourn._arguments import is_known, positive_numbers

__all__ = [
    "Filtered",
    "Smoothed",
    "filter",
    "log_likelihood",
    "sample_paths",
    "smooth",
    "stationary",
    "viterbi",
]


class Filtered(NamedTuple):
    """Result of :func:`filter`."""

    log_predictive: Array
    """``(T,)``: ``log p(y_t | y_<t)``; zero at missing and padded steps."""
    predicted: Array
    """``(T, K)``: law of the state at ``t`` given ``y_<t``."""
    filtered: Array
    """``(T, K)``: law of the state at ``t`` given ``y_<=t``."""


class Smoothed(NamedTuple):
    """Result of :func:`smooth`."""

    log_likelihood: Array
    """Scalar: ``log p(y)``."""
    marginals: Array
    """``(T, K)``: law of the state at ``t`` given the whole series."""
    transitions: Array
    """Expected number of moves ``i -> j`` given the whole series: ``(K, K)`` summed over time, or
    ``(T - 1, K, K)`` one by one where ``transition`` varies in time."""


class _TwoFilter(NamedTuple):
    """Scaled forward and backward variables of one series."""

    log_norm: Array  # (T,) log-normalisers of the forward pass
    alpha: Array  # (T, K) filtered laws
    beta: Array  # (T, K) p(y_>t | state at t), up to a factor per step
    ahead: Array  # (T, K) emission * beta, up to a factor per step


# ---------------------------------------------------------------------------------------------- numerics


def _scale(log_emission: Array) -> tuple[Array, Array]:
    """Emission likelihoods with largest entry one at each step, and the logarithm of the scale."""
    top = log_emission.max(-1)
    top = jnp.where(jnp.isneginf(top), 0.0, top)
    return jnp.exp(log_emission - top[:, None]), top


def _normalise(weights: Array) -> tuple[Array, Array]:
    total = weights.sum()
    return weights / jnp.maximum(total, jnp.finfo(weights.dtype).tiny), total


def _materialised_transpose(transition: Array) -> Array:
    # XLA folds a transpose into the product that follows and then walks columns: half the speed at K = 50.
    return lax.optimization_barrier(jnp.swapaxes(transition, -1, -2))


def _log(x: Array) -> Array:
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)


def _cumulative(weights: Array) -> Array:
    """Cumulative sums along the last axis in log2 K shifted additions (Hillis and Steele 1986).

    Three to five times as fast as XLA's on a CPU at K = 20 to 50.
    """
    shift = 1
    while shift < weights.shape[-1]:
        before = jnp.pad(weights[..., :-shift], [(0, 0)] * (weights.ndim - 1) + [(shift, 0)])
        weights, shift = weights + before, 2 * shift
    return weights


def _draw(probs: Array, uniforms: Array) -> Array:
    """Index drawn from ``probs`` ``(..., K)`` by inversion of ``uniforms`` ``(...)``."""
    cumulative = jnp.cumsum(probs, -1)
    index = (cumulative <= uniforms[..., None] * cumulative[..., -1:]).sum(-1)
    return jnp.minimum(index, probs.shape[-1] - 1)


def _predict(initial: Array, transition: Array, alpha: Array) -> Array:
    """Laws of the states given the past alone, from the filtered laws."""
    if transition.ndim == 2:
        moved = alpha[:-1] @ transition
    else:
        moved = jnp.einsum("ti,tij->tj", alpha[:-1], transition)
    return jnp.concatenate([initial[None], moved])


# ----------------------------------------------------------------------------------------- the recursions


def _forward(initial: Array, transition: Array, log_emission: Array) -> tuple[Array, Array]:
    """Log-normalisers ``(T,)`` and filtered laws ``(T, K)``."""
    lik, top = _scale(log_emission)
    backward = _materialised_transpose(transition)
    varies = transition.ndim == 3

    def step(alpha, x):
        b, move = x if varies else (x, backward)
        alpha, norm = _normalise((move @ alpha) * b)
        return alpha, (alpha, norm)

    first, norm0 = _normalise(initial * lik[0])
    _, (alphas, norms) = lax.scan(step, first, (lik[1:], backward) if varies else lik[1:])
    alphas = jnp.concatenate([first[None], alphas])
    return _log(jnp.concatenate([norm0[None], norms])) + top, alphas


def _log_forward(initial: Array, transition: Array, log_emission: Array) -> tuple[Array, Array]:
    """Log-normalisers ``(T,)`` and logarithms of the filtered laws: slower, loses nothing."""
    log_transition = _log(transition)
    varies = transition.ndim == 3

    def normalise(w):
        norm = logsumexp(w)
        return w - jnp.where(jnp.isneginf(norm), 0.0, norm), norm

    def step(log_alpha, x):
        ll, move = x if varies else (x, log_transition)
        log_alpha, norm = normalise(logsumexp(log_alpha[:, None] + move, 0) + ll)
        return log_alpha, (log_alpha, norm)

    first, norm0 = normalise(_log(initial) + log_emission[0])
    xs = (log_emission[1:], log_transition) if varies else log_emission[1:]
    _, (alphas, norms) = lax.scan(step, first, xs)
    return jnp.concatenate([norm0[None], norms]), jnp.concatenate([first[None], alphas])


def _two_filter(initial: Array, transition: Array, log_emission: Array, length: Array | None) -> _TwoFilter:
    """Forward and backward recursions in one scan: at each turn one step of either."""
    lik, top = _scale(log_emission)
    moves_back = _materialised_transpose(transition)
    varies = transition.ndim == 3
    steps = len(log_emission)
    inside = None if length is None else jnp.arange(1, steps) < length

    def step(carry, x):
        alpha, ahead = carry
        alpha, norm = _normalise(((x["move"] if varies else moves_back) @ alpha) * x["lik"])
        beta = (x["back"] if varies else transition) @ ahead
        if inside is not None:
            beta = jnp.where(x["inside"], beta, 1.0)
        ahead, _ = _normalise(beta * x["lik_back"])
        return (alpha, ahead), (alpha, norm, beta, ahead)

    xs = {"lik": lik[1:], "lik_back": lik[:-1][::-1]}
    if varies:
        xs |= {"move": moves_back, "back": transition[::-1]}
    if inside is not None:
        xs["inside"] = inside[::-1]
    first, norm0 = _normalise(initial * lik[0])
    _, (alphas, norms, betas, aheads) = lax.scan(step, (first, lik[-1]), xs)
    return _TwoFilter(
        _log(jnp.concatenate([norm0[None], norms])) + top,
        jnp.concatenate([first[None], alphas]),
        jnp.concatenate([betas[::-1], jnp.ones_like(first)[None]]),
        jnp.concatenate([aheads[::-1], lik[-1:]]),
    )


def _log_posterior(
    initial: Array, transition: Array, log_emission: Array, length: Array | None
) -> tuple[Array, tuple[Array, Array, Array]]:
    """:func:`_posterior` on log-probabilities."""
    log_transition = _log(transition)
    varies = transition.ndim == 3
    steps = len(log_emission)
    inside = jnp.arange(steps) < (steps if length is None else length)
    # A forbidden move can have a gradient beyond the largest number; capped, it stays a number.
    cap = jnp.log(jnp.finfo(initial.dtype).max) / 2

    def gradient(log_before, log_ahead, log_norm):
        return jnp.exp(jnp.minimum(log_before + log_ahead - log_norm, cap))

    def step(carry, x):
        log_beta, total = carry
        move = x.get("move", log_transition)
        ahead = x["ll"] + log_beta
        ahead = ahead - _finite_max(ahead)
        log_beta = jnp.where(x["inside"], logsumexp(move + ahead[None, :], 1), 0.0)
        norm = _finite(logsumexp(x["log_alpha"] + log_beta))
        here = jnp.where(x["inside"], gradient(x["log_alpha"][:, None], ahead[None, :], norm), 0.0)
        return (log_beta, total if varies else total + here), (log_beta, here if varies else None)

    log_norm, log_alpha = _log_forward(initial, transition, log_emission)
    xs = {"ll": log_emission[1:], "inside": inside[1:], "log_alpha": log_alpha[:-1]}
    if varies:
        xs["move"] = log_transition
    last = jnp.zeros_like(log_emission[0])
    start = (last, jnp.zeros((len(last), len(last)), last.dtype))
    (_, total), (log_betas, each) = lax.scan(step, start, xs, reverse=True)
    log_beta = jnp.concatenate([log_betas, last[None]])
    log_joint = log_alpha + log_beta
    marginals = jnp.exp(log_joint - _finite(logsumexp(log_joint, -1))[:, None])
    marginals = jnp.where(inside[:, None], marginals, 0.0)
    ahead = log_emission[0] + log_beta[0]
    d_initial = gradient(0.0, ahead, _finite(logsumexp(_log(initial) + ahead)))
    return _total(log_norm, length), (d_initial, each if varies else total, marginals)


def _finite(x: Array) -> Array:
    return jnp.where(jnp.isfinite(x), x, 0.0)


def _finite_max(x: Array) -> Array:
    return _finite(x.max(-1))


def _clean(log_emission: Array, length: Array | None) -> Array:
    """Rows of zeros beyond the end of the series."""
    if length is None:
        return log_emission
    return jnp.where(jnp.arange(len(log_emission))[:, None] < length, log_emission, 0.0)


def _total(log_norm: Array, length: Array | None) -> Array:
    if length is not None:
        log_norm = jnp.where(jnp.arange(len(log_norm)) < length, log_norm, 0.0)
    return log_norm.sum()


def _posterior(
    initial: Array, transition: Array, log_emission: Array, length: Array | None, log_space: bool
) -> tuple[Array, tuple[Array, Array, Array]]:
    """Log-likelihood and its gradient in (initial, transition, log_emission)."""
    log_emission = _clean(log_emission, length)
    if log_space:
        return _log_posterior(initial, transition, log_emission, length)
    run = _two_filter(initial, transition, log_emission, length)
    joint = run.alpha * run.beta
    norm = joint.sum(-1, keepdims=True)
    norm = jnp.where(norm == 0, 1.0, norm)
    marginals = joint / norm
    here = run.alpha[:-1] / norm[:-1]
    if length is not None:
        index = jnp.arange(len(log_emission))[:, None]
        marginals = jnp.where(index < length, marginals, 0.0)
        here = jnp.where(index[1:] < length, here, 0.0)
    if transition.ndim == 2:
        d_transition = lax.dot_general(here, run.ahead[1:], (((0,), (0,)), ((), ())))
    else:
        d_transition = here[:, :, None] * run.ahead[1:, None, :]
    start = initial @ run.ahead[0]
    d_initial = run.ahead[0] / jnp.where(start == 0, 1.0, start)
    return _total(run.log_norm, length), (d_initial, d_transition, marginals)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _log_likelihood(initial, transition, log_emission, length, log_space):
    run = _log_forward if log_space else _forward
    return _total(run(initial, transition, _clean(log_emission, length))[0], length)


def _log_likelihood_bwd(log_space, gradients, g):
    return (*(g * d for d in gradients), None)


_log_likelihood.defvjp(_posterior, _log_likelihood_bwd)


def _log_likelihood_autodiff(initial: Array, transition: Array, log_emission: Array, length: Array | None):
    log_emission = _clean(log_emission, length)
    varies = transition.ndim == 3
    cap = jnp.log(jnp.finfo(initial.dtype).max) / 2

    def update(predicted, ll):
        top = lax.stop_gradient(jnp.where(predicted > 0, ll, -jnp.inf).max())
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        # A state of probability zero has a gradient too; capped, it stays a number.
        weights = predicted * jnp.exp(jnp.minimum(ll - top, cap))
        norm = weights.sum()
        return weights / jnp.where(norm > 0, norm, 1.0), _log(norm) + top

    def step(alpha, x):
        ll, move = x if varies else (x, transition)
        return update(alpha @ move, ll)

    first, norm0 = update(initial, log_emission[0])
    _, norms = lax.scan(step, first, (log_emission[1:], transition) if varies else log_emission[1:])
    return _total(jnp.concatenate([norm0[None], norms]), length)


# ------------------------------------------------------------------------------------------------- public


def _arrays(initial: ArrayLike, transition: ArrayLike, log_emission: ArrayLike) -> tuple[Array, Array, Array]:
    arrays = [jnp.asarray(x) for x in (initial, transition, log_emission)]
    dtype = jnp.result_type(float, *arrays)
    initial, transition, log_emission = (x.astype(dtype) for x in arrays)
    steps, states = log_emission.shape
    if initial.shape != (states,):
        raise ValueError(f"`initial` has shape {initial.shape}; {states} states need ({states},).")
    if transition.shape not in {(states, states), (steps - 1, states, states)}:
        raise ValueError(
            f"`transition` has shape {transition.shape}; {states} states and {steps} steps need "
            f"({states}, {states}) or ({steps - 1}, {states}, {states})."
        )
    return initial, transition, log_emission


def log_likelihood(
    initial: ArrayLike,
    transition: ArrayLike,
    log_emission: ArrayLike,
    length: ArrayLike | None = None,
    *,
    vjp: bool = True,
    log_space: bool = False,
) -> Array:
    """Log-likelihood ``log p(y_1, ..., y_T)`` of one series.

    Reverse-mode differentiation costs one forward-backward pass: the gradient in ``log_emission`` is the
    smoothed law of the states, and the gradient in ``transition`` the expected moves over it. Hessians by
    ``jax.hessian`` (forward over reverse) work too. Plain forward mode (``jax.jvp``, ``jax.jacfwd``) does
    not: it needs ``vjp=False``, the same sum by a scan that JAX differentiates itself.

    Args:
        initial: ``(K,)`` law of the first state.
        transition: ``(K, K)`` or ``(T - 1, K, K)`` transition matrix.
        log_emission: ``(T, K)`` log-density of each observation in each state.
        length: number of leading steps that count.
        vjp: use the hand-written reverse rule.
        log_space: lose nothing to underflow (see the module's text). Without ``vjp`` it has no effect.

    Returns:
        A scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> move = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> emission = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.9]]))
        >>> print(f"{log_likelihood(jnp.array([0.5, 0.5]), move, emission):.4f}")
        -3.6512
    """
    initial, transition, log_emission = _arrays(initial, transition, log_emission)
    length = None if length is None else jnp.asarray(length)
    if not vjp:
        return _log_likelihood_autodiff(initial, transition, log_emission, length)
    return _log_likelihood(initial, transition, log_emission, length, log_space)


def filter(
    initial: ArrayLike,
    transition: ArrayLike,
    log_emission: ArrayLike,
    length: ArrayLike | None = None,
    *,
    log_space: bool = False,
) -> Filtered:
    """Laws of the states given the past, and ``log p(y_t | y_<t)`` term by term.

    Arguments as in :func:`log_likelihood`, which is the sum of ``log_predictive``.

    Example:
        >>> import jax.numpy as jnp
        >>> move = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> emission = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.9]]))
        >>> filter(jnp.array([0.5, 0.5]), move, emission).filtered.shape
        (3, 2)
    """
    initial, transition, log_emission = _arrays(initial, transition, log_emission)
    length = None if length is None else jnp.asarray(length)
    run = _log_forward if log_space else _forward
    log_norm, alpha = run(initial, transition, _clean(log_emission, length))
    alpha = jnp.exp(alpha) if log_space else alpha
    if length is not None:
        log_norm = jnp.where(jnp.arange(len(log_norm)) < length, log_norm, 0.0)
    return Filtered(log_norm, _predict(initial, transition, alpha), alpha)


def smooth(
    initial: ArrayLike,
    transition: ArrayLike,
    log_emission: ArrayLike,
    length: ArrayLike | None = None,
    *,
    log_space: bool = False,
) -> Smoothed:
    """Laws of the states, and expected moves between them, given the whole series.

    Arguments as in :func:`log_likelihood`. One forward-backward pass gives everything that an EM step or a
    Dirichlet update of the transition rows needs.

    Example:
        >>> import jax.numpy as jnp
        >>> move = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> emission = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.9]]))
        >>> smooth(jnp.array([0.5, 0.5]), move, emission).transitions.sum().round(4).item()
        2.0
    """
    initial, transition, log_emission = _arrays(initial, transition, log_emission)
    length = None if length is None else jnp.asarray(length)
    value, (_, d_transition, marginals) = _posterior(initial, transition, log_emission, length, log_space)
    return Smoothed(value, marginals, transition * d_transition)


def viterbi(
    initial: ArrayLike, transition: ArrayLike, log_emission: ArrayLike, length: ArrayLike | None = None
) -> Array:
    """Most probable path of states, ``(T,)`` integers (Viterbi 1967, *IEEE Trans. Inf. Theory* 13:260).

    Arguments as in :func:`log_likelihood`. Beyond ``length`` the last state is repeated.

    Example:
        >>> import jax.numpy as jnp
        >>> move = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> emission = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.05, 0.95]]))
        >>> viterbi(jnp.array([0.5, 0.5]), move, emission).tolist()
        [0, 0, 1]
    """
    initial, transition, log_emission = _arrays(initial, transition, log_emission)
    length = None if length is None else jnp.asarray(length)
    log_emission = _clean(log_emission, length)
    into = jnp.swapaxes(_log(transition), -1, -2)  # [..., to, from]
    varies = transition.ndim == 3
    inside = None if length is None else jnp.arange(1, len(log_emission)) < length
    xs: dict[str, Array] = {"ll": log_emission[1:]}
    if varies:
        xs["into"] = into
    if inside is not None:
        xs["inside"] = inside

    def forward(score, x):
        new = (score[None, :] + x.get("into", into)).max(-1) + x["ll"]
        if inside is not None:
            new = jnp.where(x["inside"], new, score)
        return new, score

    # The scores suffice: the best predecessor is worked out again along the one path that is followed.
    def backward(state, x):
        before = jnp.argmax(x["score"] + x.get("into", into)[state])
        if inside is not None:
            before = jnp.where(x["inside"], before, state)
        return before, before

    last, scores = lax.scan(forward, _log(initial) + log_emission[0], xs)
    end = jnp.argmax(last)
    _, path = lax.scan(backward, end, {**xs, "score": scores}, reverse=True)
    return jnp.concatenate([path, end[None]])


def sample_paths(
    key: Array,
    initial: ArrayLike,
    transition: ArrayLike,
    log_emission: ArrayLike,
    length: ArrayLike | None = None,
    *,
    num_samples: int = 1,
    log_space: bool = False,
) -> Array:
    """Independent draws of the path of states given the series, ``(num_samples, T)`` integers.

    Forward filtering, backward sampling (Chib 1996, *J. Econometrics* 75:79): the filter runs once for all
    draws. Other arguments as in :func:`log_likelihood`. Beyond ``length`` the chain goes on under its own law.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> move = jnp.array([[0.9, 0.1], [0.2, 0.8]])
        >>> emission = jnp.log(jnp.array([[0.5, 0.1], [0.5, 0.1], [0.1, 0.9]]))
        >>> sample_paths(jax.random.key(0), jnp.array([0.5, 0.5]), move, emission, num_samples=7).shape
        (7, 3)
    """
    initial, transition, log_emission = _arrays(initial, transition, log_emission)
    length = None if length is None else jnp.asarray(length)
    run = _log_forward if log_space else _forward
    _, alpha = run(initial, transition, _clean(log_emission, length))
    states = initial.shape[0]
    into = _materialised_transpose(_log(transition) if log_space else transition)
    varies = transition.ndim == 3
    uniforms = jax.random.uniform(key, (len(alpha), num_samples), alpha.dtype)

    def draw(weights, u):
        if log_space:
            weights = jnp.exp(weights - _finite_max(weights)[:, None])
        cumulative = _cumulative(weights)
        return jnp.minimum((cumulative <= u[:, None] * cumulative[:, -1:]).sum(-1), states - 1)

    xs: dict[str, Array] = {"alpha": alpha[:-1], "u": uniforms[:-1]}
    if varies:
        xs["into"] = into
    if length is not None:
        xs["inside"] = jnp.arange(1, len(alpha)) < length

    def backward(state, x):
        move = x.get("into", into)[state]
        weights = x["alpha"] + move if log_space else x["alpha"] * move
        if length is not None:  # what follows the end says nothing of what precedes it
            weights = jnp.where(x["inside"], weights, x["alpha"][None, :])
        state = draw(weights, x["u"])
        return state, state

    end = draw(jnp.broadcast_to(alpha[-1], (num_samples, states)), uniforms[-1])
    _, path = lax.scan(backward, end, xs, reverse=True)
    path = jnp.concatenate([path, end[None]])
    if length is None:
        return path.T
    onward = _log(transition) if log_space else transition

    def forward(state, x):
        state = jnp.where(x["inside"], x["state"], draw(x.get("move", onward)[state], x["u"]))
        return state, state

    xs = {"state": path[1:], "u": uniforms[1:], "inside": xs["inside"]}
    if varies:
        xs["move"] = onward
    _, rest = lax.scan(forward, path[0], xs)
    return jnp.concatenate([path[:1], rest]).T


def stationary(transition: ArrayLike) -> Array:
    """Stationary law of a transition matrix with one recurrent class.

    Solves ``delta (I - P + U) = 1`` with ``U`` a matrix of ones (Zucchini, MacDonald and Langrock 2016,
    *Hidden Markov Models for Time Series*, section 1.3). Differentiable.

    Args:
        transition: ``(..., K, K)`` row-stochastic.

    Returns:
        ``(..., K)`` probabilities.

    Example:
        >>> import jax.numpy as jnp
        >>> print(stationary(jnp.array([[0.9, 0.1], [0.2, 0.8]])).round(4))
        [0.6667 0.3333]
    """
    transition = positive_numbers(transition, "transition", zero=True)
    shape = np.shape(transition)
    if len(shape) < 2 or shape[-1] != shape[-2] or not shape[-1]:
        raise ValueError(f"`transition` has shape {shape}; K states need (..., K, K).")
    if is_known(transition) and np.abs(np.asarray(transition).sum(-1) - 1.0).max() > 1e-3:
        raise ValueError("`transition` has a row that does not sum to one.")
    return _stationary(jnp.asarray(transition))


# Compiled as one piece even when called eagerly, as NumPyro does when it looks at a model for the first time.
@jax.jit
def _stationary(transition: Array) -> Array:
    states = transition.shape[-1]
    if states == 1:
        return jnp.ones_like(transition[..., 0])
    system = jnp.eye(states) - transition + 1.0
    ones = jnp.ones((*transition.shape[:-1], 1), transition.dtype)
    law = jnp.maximum(jnp.linalg.solve(jnp.swapaxes(system, -1, -2), ones)[..., 0], 0.0)
    return law / law.sum(-1, keepdims=True)
