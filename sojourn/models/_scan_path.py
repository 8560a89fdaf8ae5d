"""A hidden chain as sample sites inside a ``scan``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.control_flow import scan

from sojourn._arguments import shown
from sojourn.distributions._missing import only_observed

__all__ = ["Emission", "as_function", "law_of_states", "scan_path"]

Emission = Callable[[Any], dist.Distribution]


def as_function(given: Any, num_states: int, path: bool) -> Emission:
    """What ``emission(num_states)`` returned, as a function of the state."""
    if isinstance(given, dist.Distribution):
        if path:
            raise ValueError(
                "With path=True `emission` must return the law of one observation as a function of the state, "
                "such as `lambda state: dist.Normal(loc[state], scale)`."
            )
        if given.batch_shape not in ((), (num_states,)):
            raise ValueError(
                f"`emission` has batch shape {given.batch_shape}; {num_states} states need ({num_states},)."
            )
        return lambda state: given
    if not callable(given):
        raise ValueError("`emission(num_states)` must return a function of the state or a distribution.")
    return given


def law_of_states(by_state: Emission, num_states: int) -> dist.Distribution:
    """The law of one observation, batched over all states."""
    law = by_state(np.arange(num_states))
    if not isinstance(law, dist.Distribution):
        raise ValueError(
            "`emission(num_states)` must return a function that gives the law of one observation in a state, such as "
            f"`lambda state: dist.Normal(loc[state], scale)`; it gave {shown(law)}."
        )
    return law.expand((num_states,)) if law.batch_shape == () else law


def scan_path(
    y: Array | None,
    observed: Array | None,
    by_state: Emission,
    initial: Array,
    transition: Array,
    shape: tuple[int, ...],
    name: str,
    *,
    densities: bool = False,
) -> Array:
    """The path form: one categorical site and one observed site a step, in one ``scan``.

    Args:
        y: the series ``(T, ...)`` or ``(N, T, ...)``, or ``None`` to simulate.
        observed: booleans of its shape; ``None`` for all.
        by_state: law of one observation as a function of the state.
        initial: ``(K,)`` or ``(N, K)``.
        transition: ``(K, K)``, or ``(..., T - 1, K, K)``.
        shape: ``(T,)`` or ``(N, T)``.
        name: of the observed site.
        densities: rows of ``transition`` do not sum to one: what they sum to is a factor of its own, ``arrival``.

    Returns:
        The series.
    """
    several = len(shape) == 2
    steps = jnp.arange(shape[-1])
    initial, transition = jnp.asarray(initial), jnp.asarray(transition)

    def time_first(x):
        return None if x is None else jnp.moveaxis(x, 1, 0) if several else x

    if transition.ndim > 2:  # covariates: the move *into* each step, the first of which is never made
        moves = transition if not several else jnp.moveaxis(jnp.atleast_3d(transition), -3, 0)
        never_made = jnp.broadcast_to(jnp.eye(moves.shape[-1]), (1, *moves.shape[1:]))
        moves = jnp.concatenate([never_made, moves])
    else:
        moves = None

    def step(before, x):
        t, y_t, observed_t, move = x
        move = transition if move is None else move
        rows = (
            jnp.take_along_axis(move, before[..., None, None], -2)[..., 0, :]
            if move.ndim > 2
            else move[before]
        )
        probs = jnp.where(t == 0, initial, rows)
        total = probs.sum(-1, keepdims=True)
        law_of_state = probs / jnp.where(total > 0, total, 1.0) if densities else probs

        def emit():
            if densities:
                numpyro.factor("arrival", jnp.log(total[..., 0]))
            state = numpyro.sample("hidden_state", dist.Categorical(probs=law_of_state))
            law = by_state(state)
            if observed_t is None:
                return state, numpyro.sample(name, law, obs=y_t)
            if y_t is not None:
                return state, _sample_observed(name, law, y_t, observed_t)
            with numpyro.handlers.mask(mask=observed_t):
                return state, numpyro.sample(name, law)

        if several:
            with numpyro.plate("series", shape[0], dim=-1):
                state, value = emit()
        else:
            state, value = emit()
        return state, value

    first = jnp.zeros(shape[:1] if several else (), int)
    _, values = scan(step, first, (steps, time_first(y), time_first(observed), moves))
    return jnp.moveaxis(values, 0, 1) if several else values


def _sample_observed(name: str, law: dist.Distribution, value: Array, observed: Array) -> Array:
    law, value = only_observed(law, value, observed)
    return numpyro.sample(name, law, obs=value)
