r"""Transition probabilities of a Markov jump process over many intervals at once.

For a rate matrix :math:`Q` (rows sum to zero, ``[i, j]`` is the rate from ``i`` to ``j``) and intervals
:math:`t_1, \dots, t_D` these functions return :math:`P(t_d) = e^{Q t_d}`.

``"uniformization"`` (the default)
    :math:`P(t) = \sum_k \mathrm{Pois}(k; q t) R^k` with :math:`R = I + Q / q` and :math:`q` no smaller than any
    exit rate (Jensen 1953, *Skand. Aktuarietidskr.* 36:87). All terms are positive, so no entry is ever negative,
    and rows sum to one. The powers of :math:`R` are worked out once, and one matrix product serves all intervals.
``"eigen"``
    The eigendecomposition of :math:`Q`, with the derivative of Kalbfleisch and Lawless (1985, *JASA* 80:863,
    section 3.2). Right for any :math:`q t`, and faster in float64 for tens of states and few intervals. On a CPU
    only; :math:`Q` must have a full set of eigenvectors.
``"reversible"``
    The same for a chain in detailed balance, by a symmetric eigendecomposition: all real, on any device.
``"expm"``
    ``jax.scipy.linalg.expm`` interval by interval: a reference, slow from a few hundred intervals on.

How many terms uniformization needs depends on the largest :math:`q t`, and is fixed when the program is compiled.
A :class:`Plan` holds that number, for exit rates up to its ``max_rate``. Beyond it the sum is cut short, and whoever
uses it has to look at :func:`within_capacity`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from scipy.special import gammainc, gammaln, xlogy

from sojourn.ops.rate_matrix import exit_rates, stationary

__all__ = [
    "METHODS",
    "Method",
    "Plan",
    "log_poisson",
    "most_events",
    "plan",
    "powers",
    "transition_probabilities",
    "uniformized",
    "within_capacity",
]

Method = Literal["uniformization", "eigen", "reversible", "expm"]
METHODS: tuple[Method, ...] = ("uniformization", "eigen", "reversible", "expm")

_PER_SUM = 64.0
"""Largest ``q t`` of one Poisson sum. Above it ``P(t)`` is the square of ``P(t / 2)``: batches of small products
cost more than longer sums, so the limit is high."""

_MARGIN = 1e-4  # keeps the diagonal of R positive, and the gradient in it alive


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """Intervals, and what it takes to exponentiate a rate matrix over them: see :func:`plan`."""

    intervals: Array | np.ndarray
    """``(..., D)``, as given."""
    order: Array | np.ndarray
    """``(..., D)``: positions of the intervals from the longest to the shortest."""
    rank: Array | np.ndarray
    """``(..., D)``: and back."""
    num_terms: int = field(metadata={"static": True})
    """Terms of the Poisson sum."""
    squarings: tuple[int, ...] = field(metadata={"static": True})
    """How many of the longest intervals are squared in each round."""
    max_rate: float = field(metadata={"static": True})
    """Exit rates up to here are within capacity."""


def plan(intervals: ArrayLike, max_rate: float) -> Plan:
    """What :func:`transition_probabilities` needs to know of the intervals before it is compiled.

    Args:
        intervals: ``(..., D)`` non-negative times, concrete.
        max_rate: the largest exit rate that will be met, in the inverse of the intervals' unit.

    Raises:
        ValueError: intervals that are negative or not finite, a capacity that is not positive.

    Example:
        >>> import numpy as np
        >>> plan(np.array([0.1, 1.0, 200.0]), max_rate=2.0).squarings
        (1, 1, 1)
    """
    times = np.asarray(intervals, float)
    if not np.isfinite(times).all() or (times < 0).any():
        raise ValueError("Intervals must be finite and not negative.")
    if not (np.isfinite(max_rate) and max_rate > 0):
        raise ValueError(f"`max_rate` must be a positive number, not {max_rate!r}.")
    order = np.argsort(-times, axis=-1, kind="stable")
    longest = (
        np.take_along_axis(times, order, -1).reshape(-1, times.shape[-1]).max(0)
    )  # over any leading axes
    load = max_rate * (1.0 + _MARGIN) * longest
    rounds = np.ceil(np.log2(np.maximum(load / _PER_SUM, 1.0))).astype(int)
    most = int(rounds.max(initial=0))
    squarings = tuple(int((rounds >= level).sum()) for level in range(most, 0, -1))
    per_sum = float((load / 2.0**rounds).max(initial=0.0))
    # A relative error of the order of rounding: probabilities far below that are as good as zero.
    tail = float(jnp.finfo(jnp.result_type(float)).eps) / 4.0
    terms = most_events(per_sum, tail) + 1
    rank = np.argsort(order, -1)
    return Plan(times, order, rank, terms, squarings, float(max_rate))


def most_events(mean: float, tail: float) -> int:
    """The smallest number that a Poisson variable exceeds with a probability below ``tail``.

    Example:
        >>> most_events(3.0, 1e-6)
        14
    """
    enough = np.arange(int(mean + 12.0 * np.sqrt(mean) + 40.0))
    return int(np.argmax(gammainc(enough + 1.0, mean) < tail))  # (scipy.stats costs a second to import)


def within_capacity(rate_matrix: Array, plan: Plan) -> Array:
    """Whether no exit rate exceeds the plan's ``max_rate``: ``(...)`` booleans for ``(..., K, K)`` rates."""
    return exit_rates(rate_matrix).max(-1) <= plan.max_rate


# ------------------------------------------------------------------------------------------ uniformization


@jax.custom_jvp
def _constant(x: Array) -> Array:
    """``x``, where what follows does not depend on it at all: it takes no part in differentiation.

    ``lax.stop_gradient`` would do the same, and is what ``sj.fit`` takes for a sign of a gradient kept back.
    """
    return x


@_constant.defjvp
def _constant_jvp(primals, tangents):
    return primals[0], jnp.zeros_like(primals[0])


def uniformized(rate_matrix: Array) -> tuple[Array, Array]:
    """The chain of a uniformized process: its event rate ``q`` ``(...)`` and transition matrix ``(..., K, K)``.

    ``q`` counts as a constant under differentiation. :math:`e^{Qt}` does not depend on it, so every derivative in
    :math:`Q` comes out right, in the entries taken one by one (with a free diagonal) as well.
    """
    rate = _constant(exit_rates(rate_matrix).max(-1)) * (1.0 + _MARGIN)
    rate = jnp.where(rate > 0, rate, 1.0)
    return rate, jnp.eye(rate_matrix.shape[-1], dtype=rate_matrix.dtype) + rate_matrix / rate[..., None, None]


def powers(matrix: Array, num: int) -> Array:
    """``(..., num, K, K)``: powers 0 to ``num - 1``, one by one.

    By doubling there are fewer products, but each round is a program of its own: four times as long to compile, and no
    faster to run.
    """
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    _, stack = lax.scan(lambda power, _: (power @ matrix, power), eye, length=num)
    return jnp.moveaxis(stack, 0, -3)


def log_poisson(mean: Array, num: int) -> Array:
    """``(..., num)``: log-probabilities of ``0, ..., num - 1`` events; a mean of zero is legal."""
    k = np.arange(num)
    at_mode = gammaln(k + 1.0) - xlogy(k, k) + k  # minus the logarithm where the mean is k
    mean = mean[..., None]
    safe = jnp.where(mean > 0, mean, 1.0)
    # Around the mode the logarithm of the ratio is small, and so are the rounding errors (Loader 2000).
    ratio = jnp.log(safe / np.maximum(k, 1).astype(mean.dtype))
    weights = (k * ratio + k - safe) - at_mode.astype(mean.dtype)
    return jnp.where(mean > 0, weights, jnp.where(k == 0, 0.0, -jnp.inf))


# Compiled as one piece even when called eagerly, as NumPyro does when it looks at a model for the first time.
@jax.jit
def _poisson_sum(rate_matrix: Array, plan: Plan) -> Array:
    rate, chain = uniformized(rate_matrix)
    batch = jnp.broadcast_shapes(rate.shape, plan.order.shape[:-1])
    order = jnp.broadcast_to(plan.order, (*batch, plan.order.shape[-1]))
    intervals = jnp.broadcast_to(plan.intervals, order.shape).astype(rate_matrix.dtype)
    if plan.squarings:
        intervals = jnp.take_along_axis(intervals, order, -1)
        rounds = np.zeros(order.shape[-1], int)
        for count in plan.squarings:
            rounds[:count] += 1
        intervals = intervals / 2.0**rounds
    states = rate_matrix.shape[-1]
    # A state may be K - 1 jumps away: whatever can be reached has a positive probability.
    terms = max(plan.num_terms, states)
    weights = jnp.exp(log_poisson(rate[..., None] * intervals, terms))
    weights = weights / weights.sum(-1, keepdims=True)
    stack = powers(chain, terms)
    flat = weights @ stack.reshape(*stack.shape[:-2], states**2)
    probs = flat.reshape(*intervals.shape, states, states)
    for count in plan.squarings:
        longest = probs[..., :count, :, :]
        probs = jnp.concatenate([longest @ longest, probs[..., count:, :, :]], -3)
    if plan.squarings:
        rank = jnp.broadcast_to(plan.rank, order.shape)
        probs = jnp.take_along_axis(probs, rank[..., None, None], -3)
    # Rounding only: the rows of the exact sum need no correction, and neither do their derivatives.
    return probs / _constant(probs.sum(-1, keepdims=True))


# ---------------------------------------------------------------------------------------- eigendecomposition


def _eigen(rate_matrix: Array, reversible: bool) -> tuple[Array, Array, Array]:
    """Eigenvalues, right eigenvectors in columns, and their inverse."""
    if not reversible:
        values, vectors = jnp.linalg.eig(rate_matrix)
        return values, vectors, jnp.linalg.inv(vectors)
    root = jnp.sqrt(stationary(rate_matrix))
    symmetric = root[:, None] * rate_matrix / root[None, :]
    values, vectors = jnp.linalg.eigh((symmetric + symmetric.T) / 2.0)
    return values, vectors / root[:, None], vectors.T * root[None, :]


def _divided_difference(values: Array, times: Array) -> Array:
    """``(D, K, K)``: :math:`(e^{a t} - e^{b t}) / (a - b)` for all pairs of eigenvalues, :math:`t e^{a t}` on ties."""
    a, b, t = values[:, None], values[None, :], times[:, None, None]
    half = (a - b) * t / 2.0
    near = jnp.abs(half) < 0.5
    close, gap = jnp.where(near, half, 0.0), jnp.where(near, 1.0, a - b)
    # sinh(x) / x to 1e-16 below one half
    ratio = 1.0 + close**2 / 6.0 * (1.0 + close**2 / 20.0 * (1.0 + close**2 / 42.0 * (1.0 + close**2 / 72.0)))
    ratio = ratio + close**10 / 39916800.0
    return jnp.where(near, t * jnp.exp((a + b) * t / 2.0) * ratio, (jnp.exp(a * t) - jnp.exp(b * t)) / gap)


def _spectral_forward(rate_matrix, times, reversible):
    values, vectors, inverse = _eigen(rate_matrix, reversible)
    each = jnp.exp(values * times[:, None])
    probs = jnp.einsum("ik,dk,kj->dij", vectors, each, inverse).real
    return jnp.maximum(probs, 0.0), (values, vectors, inverse, times, rate_matrix, probs)


@jax.custom_vjp
def _by_eig(rate_matrix: Array, times: Array) -> Array:
    return _spectral_forward(rate_matrix, times, False)[0]


@jax.custom_vjp
def _by_eigh(rate_matrix: Array, times: Array) -> Array:
    return _spectral_forward(rate_matrix, times, True)[0]


def _spectral_backward(kept, g):
    values, vectors, inverse, times, rate_matrix, probs = kept
    rotated = jnp.einsum("ik,dij,lj->dkl", vectors, g.astype(vectors.dtype), inverse)
    summed = (rotated * _divided_difference(values, times)).sum(0)
    d_rates = (inverse.T @ summed @ vectors.T).real
    d_times = jnp.einsum("dij,ik,dkj->d", g, rate_matrix, probs)
    return d_rates.astype(rate_matrix.dtype), d_times.astype(times.dtype)


for _function, _reversible in ((_by_eig, False), (_by_eigh, True)):

    def _forward(rate_matrix, times, reversible=_reversible):
        return _spectral_forward(rate_matrix, times, reversible)

    _function.defvjp(_forward, _spectral_backward)


def _by_expm(rate_matrix: Array, times: Array) -> Array:
    return jax.vmap(lambda t: jax.scipy.linalg.expm(rate_matrix * t))(times)


_ONE_BY_ONE: dict[str, Callable[[Array, Array], Array]] = {
    "eigen": _by_eig,
    "reversible": _by_eigh,
    "expm": _by_expm,
}


def transition_probabilities(
    rate_matrix: ArrayLike,
    intervals: Plan | ArrayLike,
    *,
    max_rate: float | None = None,
    method: Method = "uniformization",
) -> Array:
    """Transition matrices over many intervals.

    Reverse-mode derivatives are right for each entry of the rate matrix taken by itself, the diagonal included.

    Args:
        rate_matrix: ``(..., K, K)``, rows summing to zero.
        intervals: ``(..., D)`` times, or the :func:`plan` made of them; leading axes broadcast with those of the
            rate matrix.
        max_rate: capacity of the plan, needed where the rate matrix is traced; by default its largest exit rate.
        method: see the module's text.

    Returns:
        ``(..., D, K, K)``; rows sum to one, entries are not negative.

    Example:
        >>> import jax.numpy as jnp
        >>> rates = jnp.array([[-1.0, 1.0], [2.0, -2.0]])
        >>> for matrix in transition_probabilities(rates, jnp.array([0.0, 0.5, 100.0])):
        ...     print(", ".join(f"{p:.4f}" for p in matrix.ravel()))
        1.0000, 0.0000, 0.0000, 1.0000
        0.7410, 0.2590, 0.5179, 0.4821
        0.6667, 0.3333, 0.6667, 0.3333
    """
    rate_matrix = jnp.asarray(rate_matrix, float)
    if method not in METHODS:
        raise ValueError(f"`method` is one of {', '.join(map(repr, METHODS))}, not {method!r}.")
    if not isinstance(intervals, Plan) and method == "uniformization":
        if max_rate is None:
            if isinstance(rate_matrix, jax.core.Tracer):
                raise ValueError(
                    "Inside a compiled function `max_rate`, the largest exit rate, must be given."
                )
            max_rate = max(float(exit_rates(rate_matrix).max()), 1e-30)
        intervals = plan(intervals, max_rate)
    if method == "uniformization":
        return _poisson_sum(rate_matrix, intervals)
    times = jnp.asarray(getattr(intervals, "intervals", intervals), rate_matrix.dtype)
    batch = jnp.broadcast_shapes(rate_matrix.shape[:-2], times.shape[:-1])
    each = _ONE_BY_ONE[method]
    for _ in batch:
        each = jax.vmap(each)
    states = rate_matrix.shape[-1]
    return each(
        jnp.broadcast_to(rate_matrix, (*batch, states, states)),
        jnp.broadcast_to(times, (*batch, times.shape[-1])),
    )
