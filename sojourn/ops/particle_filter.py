"""Particle filter that keeps no history: the likelihood, its gradient, and a summary of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.scipy.special import logsumexp

from sojourn.ops.particles import Process, _by_system, _cast, _proper, lanes, pick
from sojourn.ops.resampling import SCHEMES, effective_sample_size

__all__ = ["GRADIENTS", "Filtered", "particle_filter"]

GRADIENTS = ("stop", "score", "pathwise")


class Filtered(NamedTuple):
    """Result of one pass of a particle filter."""

    first: Array
    """``systems``: log-average weight before the first step, zero unless something is observed there."""
    increments: Array
    """``(T, *systems)``: estimates of log p(y_t | y_<t)."""
    ess: Array
    """``(T, *systems)``: effective sample size of the weights after each step."""
    summaries: Any
    """What ``summarise`` returned, leading axis time."""
    carry: Any
    """``(N, ...)``: the particles after the last step."""
    log_weights: Array
    """``(N, *systems)``: their normalised log-weights."""

    @property
    def log_evidence(self) -> Array:
        """``systems``: log-likelihood; its exponential is unbiased."""
        return self.first + self.increments.sum(0)


def particle_filter(
    process: Process,
    key: Array,
    num_particles: int,
    *,
    resampling: str = "systematic",
    ess_threshold: float | None = 0.5,
    summarise: Callable[[Any, Array], Any] | None = None,
    gradient: str = "stop",
    initial_log_joint: Callable[[Any], Array] | None = None,
) -> Filtered:
    """Bootstrap, guided or auxiliary particle filter (Gordon, Salmond and Smith 1993; Pitt and Shephard 1999).

    Args:
        process: the process, already given its parameters.
        key: random key.
        num_particles: ``N``.
        resampling: ``"multinomial"``, ``"systematic"`` or ``"killing"``.
        ess_threshold: resample a system only when its effective sample size is below this share of ``N``;
            ``None`` resamples at every step.
        summarise: ``(values, log_weights) -> pytree`` of the particles ``(N, ...)`` after a step, kept for
            each step.
        gradient: what ``jax.grad`` sees. ``"score"`` and ``"pathwise"`` carry the probability of each ancestor
            along in the weights, as its ratio to itself with the gradient stopped (Ścibior and Wood 2021,
            arXiv:2106.10314); latent values count as constants whose density is differentiated (any latent) or
            as functions of the parameters (reparametrised latents). Either way the gradient of
            ``exp(log_evidence)`` is unbiased, and that of ``log_evidence`` consistent as ``N`` grows.
            ``"stop"`` passes through the weights and the values but not through the choice of ancestors: less
            noise, and a bias that no number of particles removes.
        initial_log_joint: ``initial values -> systems``: log-density of the initial state and of what is
            observed with it, for ``gradient="score"``.

    Example:
        >>> from sojourn.ops.particles import _example_move
        >>> still = Process(1, jnp.zeros(1), lambda key: (jnp.zeros(()), {}, jnp.zeros(())), None,
        ...                 lambda key, c, x, t: _example_move(c, c, x), None)
        >>> round(float(particle_filter(still, random.key(0), 10).log_evidence), 4)  # log N(0 | 0, 1)
        -0.9189
    """
    n, systems = num_particles, process.systems
    free = _by_system(SCHEMES[resampling].free, systems)
    key_start, key_moves = random.split(key)
    stop = lax.stop_gradient

    def weighed(log_weight):
        """Normalised weights, the log of their sum, and their effective number."""
        top = stop(jnp.max(log_weight, 0))
        top = jnp.where(jnp.isneginf(top), 0.0, top)
        weight = jnp.exp(log_weight - top)
        total = weight.sum(0)
        hopeless = total == 0.0
        log_total = top + jnp.log(total)
        # Equal weights where all are zero: the estimate is zero already, and the particles go on.
        log_weight = jnp.where(hopeless, -jnp.log(n), log_weight - log_total)
        return log_weight, log_total, jnp.where(hopeless, 0.0, stop(total**2 / (weight**2).sum(0)))

    carry, start, log_weight = jax.vmap(process.start)(lanes(key_start, n))
    if gradient == "score" and initial_log_joint is not None:
        start = stop(start)
        carry = jax.vmap(lambda values: process.start_at(values)[0], axis_size=n)(start)
        joint = jax.vmap(initial_log_joint, axis_size=n)(start)
        log_weight = stop(log_weight) + joint - stop(joint)
    log_weight = _proper(log_weight + jnp.zeros(systems))
    log_weight, first, ess = weighed(log_weight)

    def resampled(key, carry, log_weight, staged, stays=False):
        ancestor = free(key, stop(staged))
        if systems:
            own = jnp.arange(n).reshape((n,) + (1,) * len(systems))
            ancestor = jnp.where(stays, own, ancestor)
        # The weight over the probability of having been chosen.
        chosen, odds = (jnp.take_along_axis(w, ancestor, 0) for w in (log_weight, staged))
        total = logsumexp(staged, 0)
        fresh = chosen - odds + total if gradient == "stop" else chosen - stop(odds - total)
        base = jnp.where(stays, log_weight, fresh - jnp.log(n))
        return pick(carry, ancestor, process.carry_axes, systems), base

    def moved(key, parents, x, t):
        move = jax.vmap(process.move, (0, 0, None, None))(lanes(key, n), parents, x, t)
        if gradient != "score":
            return move
        values = stop(move.values)
        again = jax.vmap(process.move_to, (0, None, None, 0))(parents, x, t, values)
        weight = stop(move.log_weight) + again.log_joint - stop(again.log_joint)
        return again._replace(values=values, log_weight=weight)

    def body(running, inputs):
        carry, log_weight, ess = running
        x, t, (key_resample, key_move) = inputs
        staged = log_weight
        if process.twist is not None:
            staged = staged + jax.vmap(lambda c: process.twist(c, x, t))(carry)
            ess = effective_sample_size(stop(staged))
        if ess_threshold is None:
            parents, base = resampled(key_resample, carry, log_weight, staged)
        else:
            stays = ess >= ess_threshold * n
            if systems:
                parents, base = resampled(key_resample, carry, log_weight, staged, stays)
            else:
                parents, base = lax.cond(
                    stays,
                    lambda: (carry, log_weight),
                    lambda: resampled(key_resample, carry, log_weight, staged),
                )
        move = moved(key_move, parents, x, t)
        log_weight, increment, ess = weighed(base + _proper(move.log_weight))
        summary = None if summarise is None else summarise(move.values, log_weight)
        return (_cast(move.carry, carry), log_weight, ess), (increment, ess, summary)

    keys = random.split(key_moves, (process.length, 2))
    (carry, log_weight, _), (increments, ess, summaries) = lax.scan(
        body,
        (carry, log_weight, ess),
        (process.xs, jnp.arange(process.length), (keys[:, 0], keys[:, 1])),
    )
    return Filtered(first - jnp.log(n), increments, ess, summaries, carry, log_weight)
