r"""Recursions on an alternating renewal process in discrete time, its sign read through noise.

A sign is below (0) or above (1) at the steps 1, ..., T. Runs of equal signs are independent; the law of their
length on side :math:`s` is given by its hazard

.. math::
    h_s(a) = P(\text{a run on side } s \text{ ends at length } a \mid \text{it is at least } a \text{ long}),
    \quad a = 1, \dots, K,

whose last entry holds for every length from :math:`K` on, so that long runs have a geometric tail. The pair
of the sign and the age of its run, ages from ``K`` on in one state, is a Markov chain: from age ``a`` the
run goes on to ``min(a + 1, K)`` or gives way to age 1 of the other side. A step of any recursion is a shift
and a sum, hence ``O(K)`` (Yu 2010, *Artificial Intelligence* 174:215, has the general case, hidden
semi-Markov models). The process is stationary: it was switching long before the first step, which falls
anywhere in a run.

For one series every function takes

``hazard`` : ``(2, K)``, below and above, or ``(K,)`` for both sides
    Probabilities. Two laws of unequal length are brought to one ``K`` by repeating the last entry.
``log_emission`` : ``(T, 2)``
    ``log p(y_t | sign)``; ``-inf`` for a reading that the sign excludes. A missing reading is a row of zeros.
``length`` : integer, optional
    Number of leading steps that belong to the series; what follows counts as missing. Traceable.

A state is written as one integer, its *signed age*: ``+a`` at age ``a`` above, ``-a`` at age ``a`` below.

Probabilities are scaled to sum to one at every step. A state less probable than e^-87 (float32) given the
readings so far is lost, which matters only where hazards of zero keep every likelier state from what comes
next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from sojourn.ops.hidden_markov import _draw, _log

__all__ = [
    "Filtered",
    "filter",
    "hazard_at",
    "hazard_from_pmf",
    "log_likelihood",
    "next_state",
    "sample_paths",
    "simulate",
    "smooth",
    "state_from_index",
    "stationary_law",
]


class Filtered(NamedTuple):
    """Result of :func:`filter`; column 0 is below, column 1 above."""

    log_predictive: Array
    """``(T,)``: ``log p(y_t | y_<t)``; zero at padded steps, and to rounding at missing ones."""
    predicted: Array
    """``(T, 2)``: law of the sign at ``t`` given ``y_<t``."""
    filtered: Array
    """``(T, 2)``: law of the sign at ``t`` given ``y_<=t``."""


# ------------------------------------------------------------------------------------------------- the laws


def hazard_from_pmf(pmf: ArrayLike, tail: ArrayLike | None = None) -> Array:
    """Hazard of a run length from its probabilities.

    ``hazard[a - 1] = p(a) / S(a)`` with ``S(a) = P(run >= a)``, and beyond ``K`` a geometric tail. The
    survivor is summed from the end, ``S(K) = p(K) / tail`` and ``S(a) = S(a + 1) + p(a)``, which keeps every
    hazard between zero and one and loses no digits, and which makes the total one: where the given
    probabilities and the mass that the tail implies do not add up to one, all are divided by their sum.

    Args:
        pmf: ``(..., K)`` probabilities of the lengths 1, ..., K.
        tail: ``(...)`` hazard from length ``K`` on, in (0, 1]; one for a run that is at most ``K`` long. By
            default the decay at the end goes on, ``1 - p(K) / p(K - 1)``. Of a single probability it is that.

    Returns:
        ``(..., K)`` hazard; one at lengths that no run reaches.

    Raises:
        ValueError: probabilities negative, not finite, of sum above one; no ``tail`` where the last two do
            not fall; ``tail`` outside (0, 1]. Traced values are not checked.

    Example:
        >>> print(hazard_from_pmf(jnp.array([0.5, 0.25, 0.125])))
        [0.5 0.5 0.5]
        >>> print(hazard_from_pmf(jnp.array([0.5, 0.25, 0.25]), tail=1.0))
        [0.5 0.5 1. ]
    """
    _check_pmf(pmf, tail)
    pmf = jnp.asarray(pmf)
    pmf = pmf.astype(jnp.result_type(float, pmf))
    last = pmf[..., -1]
    if tail is not None:
        end = jnp.broadcast_to(jnp.asarray(tail, pmf.dtype), last.shape)
    elif pmf.shape[-1] == 1:
        end = last
    else:
        before = pmf[..., -2]
        end = jnp.where(before > 0, 1.0 - last / jnp.where(before > 0, before, 1.0), 1.0)
    mass = last / jnp.where(end > 0, end, 1.0)
    weights = jnp.concatenate([pmf[..., :-1], mass[..., None]], -1)
    survivor = lax.cumsum(weights, axis=weights.ndim - 1, reverse=True)[..., :-1]
    reached = survivor > 0
    hazard = jnp.where(reached, pmf[..., :-1] / jnp.where(reached, survivor, 1.0), 1.0)
    return jnp.concatenate([hazard, end[..., None]], -1)


def _check_pmf(pmf: ArrayLike, tail: ArrayLike | None) -> None:
    if isinstance(pmf, jax.core.Tracer):
        return
    p = np.asarray(pmf, float)
    if p.ndim < 1 or p.shape[-1] < 1:
        raise ValueError(f"`pmf` has shape {p.shape}; it holds the probabilities of the lengths 1, ..., K.")
    if not np.isfinite(p).all() or (p < 0).any():
        raise ValueError("`pmf` holds probabilities; it has an entry negative or not finite.")
    if (total := p.sum(-1).max()) > 1 + 1e-3:
        raise ValueError(f"`pmf` sums to {total:.6g}; probabilities of run lengths sum to at most one.")
    if tail is None:
        if p.shape[-1] > 1 and ((p[..., -1] >= p[..., -2]) & (p[..., -1] > 0)).any():
            raise ValueError(
                "`pmf` does not fall at its end, so no geometric tail can continue it: give more lengths, or "
                "the hazard from there on as `tail` (1.0 if no run is longer)."
            )
    elif not isinstance(tail, jax.core.Tracer):
        end = np.asarray(tail)
        if not ((end > 0) & (end <= 1)).all():
            raise ValueError("`tail` is the hazard of the longest runs and must lie in (0, 1].")


def stationary_law(hazard: ArrayLike) -> Array:
    """Law of sign and age at any one step of the stationary process.

    Proportional to ``S_s(a) = P(a run on side s is at least a long)`` at ages below ``K``, and to
    ``S_s(K) / hazard[s, K - 1]``, the sum of the geometric tail, for the ages from ``K`` on; so the age has
    the equilibrium law of renewal theory, and each side the share of its mean (Cox 1962, *Renewal Theory*,
    chapters 5 and 7). Leading axes are a batch. A tail hazard of zero stands for its limit.

    Args:
        hazard: ``(..., 2, K)``, or ``(K,)``.

    Returns:
        ``(..., 2, K)`` probabilities.

    Example:
        >>> print(stationary_law(jnp.array([[0.5, 1.0], [1.0, 1.0]])))
        [[0.4 0.2]
         [0.4 0. ]]
    """
    return _stationary_law(_two_sides(hazard))


# Compiled as one piece even when called eagerly, as NumPyro does when it looks at a model for the first time.
@jax.jit
def _stationary_law(hazard: Array) -> Array:
    going_on = jnp.cumprod(1.0 - hazard[..., :-1], -1)
    survivor = jnp.concatenate([jnp.ones_like(hazard[..., :1]), going_on], -1)
    # The square root leaves room for the sum of two such numbers.
    end = jnp.maximum(hazard[..., -1:], jnp.finfo(hazard.dtype).tiny ** 0.5)
    weights = jnp.concatenate([survivor[..., :-1], survivor[..., -1:] / end], -1)
    return weights / weights.sum((-2, -1), keepdims=True)


def _two_sides(hazard: ArrayLike) -> Array:
    hazard = jnp.asarray(hazard)
    hazard = hazard.astype(jnp.result_type(float, hazard))
    if hazard.ndim == 1:
        return jnp.stack([hazard, hazard])
    if hazard.ndim < 1 or hazard.shape[-2] != 2:
        raise ValueError(
            f"`hazard` has shape {hazard.shape}; it must be (K,), or (2, K) for below and above."
        )
    return hazard


def _arrays(hazard: ArrayLike, log_emission: ArrayLike, length: ArrayLike | None) -> tuple[Array, Array]:
    """Both of one type, with rows of zeros beyond the end of the series."""
    hazard, log_emission = _two_sides(hazard), jnp.asarray(log_emission)
    if hazard.ndim != 2 or log_emission.ndim != 2 or log_emission.shape[1] != 2:
        raise ValueError(
            f"One series has `hazard` (2, K) and `log_emission` (T, 2), not {hazard.shape} and "
            f"{log_emission.shape}; map over several with jax.vmap."
        )
    dtype = jnp.result_type(hazard, log_emission)
    log_emission = log_emission.astype(dtype)
    if length is not None:
        log_emission = jnp.where(jnp.arange(len(log_emission))[:, None] < length, log_emission, 0.0)
    return hazard.astype(dtype), log_emission


# ------------------------------------------------------------------------------------------- the recursions


def _advance(law: Array, hazard: Array) -> Array:
    """The law one step later: a shift and a sum."""
    ends = (law * hazard).sum(-1)
    goes_on = law * (1.0 - hazard)
    moved = jnp.concatenate([ends[::-1, None], goes_on[:, :-1]], 1)
    return moved.at[:, -1].add(goes_on[:, -1])


def _forward(hazard: Array, log_emission: Array, keep_laws: bool = False) -> tuple[Filtered, Any]:
    """The filter, and with ``keep_laws`` the filtered laws of sign and age ``(T, 2, K)``, else ``None``."""
    cap = jnp.log(jnp.finfo(hazard.dtype).max) / 2

    def step(predicted, ll):
        mass = predicted.sum(-1)
        top = lax.stop_gradient(jnp.where(mass > 0, ll, -jnp.inf).max())
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        # A sign of probability zero has a gradient too; capped, it stays a number.
        likelihood = jnp.exp(jnp.minimum(ll - top, cap))
        joint = mass * likelihood
        norm = joint.sum()
        scale = 1.0 / jnp.where(norm > 0, norm, 1.0)
        law = predicted * (likelihood * scale)[:, None]
        out = (_log(norm) + top, mass, joint * scale)
        return _advance(law, hazard), (out, law if keep_laws else None)

    _, (out, laws) = lax.scan(step, stationary_law(hazard), log_emission)
    return Filtered(*out), laws


def filter(hazard: ArrayLike, log_emission: ArrayLike, length: ArrayLike | None = None) -> Filtered:
    """Laws of the sign given the past, and ``log p(y_t | y_<t)`` term by term.

    Of an impossible series the term at which it becomes so, and all after it, are ``-inf``.

    Example:
        A reading says "above" twice, then "below"; runs last one or two steps.

        >>> emission = jnp.log(jnp.array([[0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]))
        >>> above = filter(jnp.array([0.5, 1.0]), emission).filtered[:, 1]
        >>> [f"{p:.3f}" for p in above]
        ['0.900', '0.839', '0.021']
    """
    found, _ = _forward(*_arrays(hazard, log_emission, length))
    return found._replace(log_predictive=_inside(found.log_predictive, length))


def _inside(log_predictive: Array, length: ArrayLike | None) -> Array:
    """Zero, and not a rounding error, beyond the end: padding may be long."""
    if length is None:
        return log_predictive
    return jnp.where(jnp.arange(len(log_predictive)) < length, log_predictive, 0.0)


def log_likelihood(hazard: ArrayLike, log_emission: ArrayLike, length: ArrayLike | None = None) -> Array:
    """Log-likelihood ``log p(y_1, ..., y_T)`` of one series, the sum of the terms of :func:`filter`.

    ``-inf`` if the series is impossible. Differentiable in both arguments, forwards and backwards; the
    gradient in ``log_emission`` is the smoothed law of the signs.

    Example:
        >>> emission = jnp.log(jnp.array([[0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]))
        >>> print(f"{log_likelihood(jnp.array([0.5, 1.0]), emission):.4f}")
        -1.8861
    """
    found, _ = _forward(*_arrays(hazard, log_emission, length))
    return _inside(found.log_predictive, length).sum()


def smooth(hazard: ArrayLike, log_emission: ArrayLike, length: ArrayLike | None = None) -> Array:
    """Law of the sign at each step given the whole series, ``(T, 2)``: below, above.

    It is the gradient of :func:`log_likelihood` in ``log_emission``. Zero beyond ``length``; for an
    impossible series it means nothing.

    Example:
        >>> emission = jnp.log(jnp.array([[0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]))
        >>> above = smooth(jnp.array([0.5, 1.0]), emission)[:, 1]
        >>> [f"{p:.3f}" for p in above]
        ['0.900', '0.900', '0.021']
    """
    hazard, log_emission = _arrays(hazard, log_emission, length)
    return jax.grad(log_likelihood, argnums=1)(hazard, log_emission, length)


def state_from_index(index: ArrayLike, num_ages: int) -> Array:
    """Signed age of entry ``index`` of a law ``(2, K)``, read row by row.

    Example:
        >>> print(state_from_index(jnp.arange(6), 3))
        [-1 -2 -3  1  2  3]
    """
    index = jnp.asarray(index)
    age = index % num_ages + 1
    return jnp.where(index < num_ages, -age, age)


def hazard_at(hazard: ArrayLike, state: ArrayLike) -> Array:
    """Hazard of a state given by its signed age, of the shape of ``state``.

    Example:
        >>> print(hazard_at(jnp.array([0.25, 0.5]), jnp.array([-1, 7])))  # the last one holds for all older runs
        [0.25 0.5 ]
    """
    hazard, state = _two_sides(hazard), jnp.asarray(state)
    return hazard[(state > 0).astype(int), jnp.clip(jnp.abs(state), 1, hazard.shape[-1]) - 1]


def next_state(state: ArrayLike, ends: ArrayLike, num_ages: int) -> Array:
    """The signed age one step later, if the run ends or if it does not.

    Example:
        >>> print(next_state(jnp.array([2, 2, -3]), jnp.array([False, True, False]), 3))
        [ 3 -1 -3]
    """
    state = jnp.asarray(state)
    sign = jnp.where(state > 0, 1, -1)
    return jnp.where(ends, -sign, sign * jnp.minimum(jnp.abs(state) + 1, num_ages))


def simulate(key: Array, hazard: ArrayLike, num_steps: int) -> Array:
    """A path of the stationary process, ``(num_steps,)`` signed ages.

    Example:
        Runs of three steps exactly.

        >>> path = simulate(jax.random.key(1), jnp.array([0.0, 0.0, 1.0]), 8)
        >>> print(path)
        [-3  1  2  3 -1 -2 -3  1]
        >>> print((path > 0).astype(int))
        [0 1 1 1 0 0 0 1]
    """
    hazard = _two_sides(hazard)
    uniforms = jax.random.uniform(key, (num_steps,), hazard.dtype)
    num_ages = hazard.shape[-1]
    start = state_from_index(_draw(stationary_law(hazard).reshape(-1), uniforms[0]), num_ages)

    def step(state, u):
        state = next_state(state, u < hazard_at(hazard, state), num_ages)
        return state, state

    _, path = lax.scan(step, start, uniforms[1:])
    return jnp.concatenate([start[None], path])


def sample_paths(
    key: Array,
    hazard: ArrayLike,
    log_emission: ArrayLike,
    length: ArrayLike | None = None,
    *,
    num_samples: int = 1,
) -> Array:
    """Independent draws of sign and age given the series, ``(num_samples, T)`` signed ages.

    Forward filtering, backward sampling (Chib 1996, *J. Econometrics* 75:79): the filter runs once for all
    draws. Beyond ``length`` the process goes on under its own law. An impossible series has no path; what is
    returned for it means nothing.

    Example:
        >>> emission = jnp.log(jnp.array([[0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]))
        >>> sample_paths(jax.random.key(0), jnp.array([0.5, 1.0]), emission, num_samples=7).shape
        (7, 3)
    """
    hazard, log_emission = _arrays(hazard, log_emission, length)
    _, laws = _forward(hazard, log_emission, keep_laws=True)
    num_ages = hazard.shape[-1]
    uniforms = jax.random.uniform(key, (len(log_emission), num_samples), hazard.dtype)
    reached = jnp.minimum(jnp.arange(1, num_ages + 1) + 1, num_ages)  # from each age, if the run goes on

    def backward(state, x):
        law, u = x
        side, age = (state > 0).astype(int), jnp.abs(state)[:, None]
        ended = jnp.where(age == 1, (law * hazard)[1 - side], 0.0)
        went_on = jnp.where(age == reached, (law * (1.0 - hazard))[side], 0.0)
        index = _draw(jnp.concatenate([ended, went_on], -1), u)
        before = jnp.where(index < num_ages, 1 - side, side)
        state = state_from_index(before * num_ages + index % num_ages, num_ages)
        return state, state

    last = jnp.broadcast_to(laws[-1].reshape(-1), (num_samples, 2 * num_ages))
    end = state_from_index(_draw(last, uniforms[-1]), num_ages)
    _, path = lax.scan(backward, end, (laws[:-1], uniforms[:-1]), reverse=True)
    return jnp.concatenate([path, end[None]]).T
