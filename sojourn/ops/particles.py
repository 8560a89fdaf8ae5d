"""Particle filter and conditional particle filter over a process given as pure functions.

A *system* is one set of particles with weights and ancestors of its own. Usually there is one; independent
series side by side have one each, and then log-weights have shape ``(N, *systems)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.scipy.special import logsumexp

from sojourn.ops.resampling import SCHEMES, draw, effective_sample_size
from sojourn.ops.sharding import gather_particles, spread_particles

__all__ = ["Move", "Process", "Sweep", "lanes", "particle_sweep", "pick", "run_filter"]

PATHS = ("ancestor", "backward", "genealogy")


class Move(NamedTuple):
    """One particle's step."""

    carry: Any
    """State after the step."""
    values: Any
    """Latent values of the step."""
    log_weight: Array
    """``systems``: log-increment of the weight."""
    log_joint: Array
    """``systems``: log-density of everything in the step, latent and observed."""
    twist: Array
    """``systems``: the look-ahead weight of the state before the step, zero without one."""


class Process(NamedTuple):
    """A process in discrete time, as functions for one particle; the particle filter maps them.

    Axes of the systems: for each leaf of ``carry`` and ``values`` (in the order of ``jax.tree.leaves``) a tuple
    of axes, in the order of ``systems``, or ``None`` for a leaf that is the same for every particle.
    """

    length: int
    xs: Any
    """Inputs, leading axis ``length``."""
    start: Callable[[Array], tuple[Any, Any, Array]]
    """``key -> (carry, initial values, log_weight)``."""
    start_at: Callable[[Any], tuple[Any, Array]]
    """``initial values -> (carry, log_weight)``."""
    move: Callable[[Array, Any, Any, Array], Move]
    """``(key, carry, x, t) -> Move``."""
    move_to: Callable[[Any, Any, Array, Any], Move]
    """``(carry, x, t, values) -> Move``."""
    twist: Callable[[Any, Any, Array], Array] | None = None
    """``(carry, x, t) -> systems``: look-ahead weights of an auxiliary filter."""
    systems: tuple[int, ...] = ()
    carry_axes: tuple[tuple[int, ...] | None, ...] | None = None
    value_axes: tuple[tuple[int, ...] | None, ...] | None = None
    start_axes: tuple[tuple[int, ...] | None, ...] | None = None


class Sweep(NamedTuple):
    """Result of one pass over the series."""

    start: Any
    """Initial values of the selected path."""
    path: Any
    """Values of the selected path, leading axis time."""
    log_evidence: Array
    """``systems``: estimate of the log-likelihood."""
    ess: Array
    """``(T, *systems)``: effective sample size of the weights after each step."""
    log_weights: Array | None
    """``(T, N, *systems)`` after each step, where the history was asked for."""
    values: Any
    """``(T, N, ...)`` likewise."""
    carry: Any
    """``(N, ...)``: the particles after the last step."""
    last_log_weights: Array
    """``(N, *systems)``: their log-weights."""


def pick(tree: Any, index: Array, axes: Any, systems: tuple[int, ...]) -> Any:
    """Particles ``index``, of shape ``(M, *systems)`` or ``systems``, from leaves with leading axis ``N``."""
    if not systems:
        return jax.tree.map(lambda v: v[index], tree)
    leaves, treedef = jax.tree.flatten(tree)
    single = index.ndim == len(systems)
    rows = index[None] if single else index

    def one(leaf, where):
        if where is None:  # the same for every particle
            chosen = leaf[jnp.zeros(rows.shape[0], int)]
        else:
            moved = jnp.moveaxis(leaf, [a + 1 for a in where], range(1, len(where) + 1))
            chosen = jnp.take_along_axis(
                moved, rows.reshape(rows.shape + (1,) * (moved.ndim - rows.ndim)), axis=0
            )
            chosen = jnp.moveaxis(chosen, range(1, len(where) + 1), [a + 1 for a in where])
        return chosen[0] if single else chosen

    return jax.tree.unflatten(treedef, [one(leaf, w) for leaf, w in zip(leaves, axes, strict=True)])


def _by_system(fn: Callable[..., Array], systems: tuple[int, ...]) -> Callable[..., Array]:
    """``fn(key, log_weights (N,), *indices ())`` over log-weights ``(N, *systems)`` and indices ``systems``."""
    if not systems:
        return fn
    size = 1
    for n in systems:
        size *= n

    def mapped(key, log_weights, *indices):
        flat = log_weights.reshape((log_weights.shape[0], size))
        keys = random.split(key, size)
        out = jax.vmap(fn, (0, 1, *(0 for _ in indices)), -1)(keys, flat, *(i.reshape(size) for i in indices))
        return out.reshape(out.shape[:-1] + systems)

    return mapped


def lanes(key: Array, num: int) -> Array:
    """``num`` keys that differ from ``key`` by a counter, without a hash for each.

    Threefry is made for keys in sequence (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"); of
    other generators the key is split. To be used on a fresh key, once: neighbours of one key are its lanes.

    Example:
        >>> len(set(random.bits(k) .item() for k in lanes(random.key(0), 5)))
        5
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jax.vmap(random.key_data)(lanes(random.wrap_key_data(key), num))
    if random.key_impl(key) != "threefry2x32":
        return random.split(key, num)
    words = random.key_data(key)
    counter = words[1] + jnp.arange(num, dtype=words.dtype)
    return random.wrap_key_data(jnp.stack([jnp.broadcast_to(words[0], (num,)), counter], 1))


def _set_first(tree: Any, values: Any) -> Any:
    return jax.tree.map(lambda v, r: v.at[0].set(r.astype(v.dtype)), tree, values)


def _cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def _row(tree: Any, t: Array) -> Any:
    return jax.tree.map(lambda v: v[t], tree)


def _proper(log_weight: Array) -> Array:
    """A weight that is not a number counts as zero."""
    return jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)


def _normalise(log_weight: Array) -> Array:
    """Weights that sum to one; equal ones where all are zero, so that a hopeless start still gives a path."""
    total = logsumexp(log_weight, 0)
    return jnp.where(jnp.isneginf(total), -jnp.log(log_weight.shape[0]), log_weight - total)


def particle_sweep(
    process: Process,
    key: Array,
    num_particles: int,
    reference: tuple[Any, Any] | None = None,
    *,
    path: str = "ancestor",
    memory: int = 1,
    resampling: str = "systematic",
    ess_threshold: float | None = None,
    keep_history: bool = False,
) -> Sweep:
    """One pass of a particle filter, conditional on a path if one is given, and a draw of a path from it.

    Conditional on a reference, this is a Markov kernel on paths that leaves their posterior law invariant
    (conditional sequential Monte Carlo; Andrieu, Doucet and Holenstein 2010).

    Args:
        process: the process, already given its parameters.
        key: random key.
        num_particles: ``N``.
        reference: initial values and path values of the reference, which takes slot 0.
        path: ``"ancestor"`` gives the rest of the reference a new past at each step (ancestor sampling; Lindsten,
            Jordan and Schön 2014, *JMLR* 15:2145); ``"backward"`` draws the path from the end, at each step among
            all particles (Whiteley 2010; needs ``memory=1``); ``"genealogy"`` follows the particles' own past.
        memory: number of steps after which the state has forgotten its past, given the latent values between:
            ancestor sampling weighs that many steps of the reference.
        resampling: ``"multinomial"``, ``"systematic"`` or ``"killing"``.
        ess_threshold: resample a system only when its effective sample size is below this share of ``N``.
        keep_history: return all particles and weights.

    Example:
        >>> walk = Process(
        ...     length=50,
        ...     xs=jnp.zeros(50),
        ...     start=lambda key: (jnp.zeros(()), {}, jnp.zeros(())),
        ...     start_at=lambda values: (jnp.zeros(()), jnp.zeros(())),
        ...     move=lambda key, c, x, t: _example_move(c, c + random.normal(key), x),
        ...     move_to=lambda c, x, t, values: _example_move(c, values, x),
        ... )
        >>> sweep = particle_sweep(walk, random.key(0), 100)
        >>> sweep.path.shape, bool(sweep.ess.min() > 10)
        ((50,), True)
    """
    n, systems = num_particles, process.systems
    zero = jnp.zeros(systems)
    scheme = SCHEMES[resampling]
    free, conditional = _by_system(scheme.free, systems), _by_system(scheme.conditional, systems)
    one_of = _by_system(draw, systems)
    key_start, key_moves, key_path = random.split(key, 3)

    carry, start, log_weight = jax.vmap(process.start)(lanes(key_start, n))
    carry = spread_particles(carry)
    log_weight = _proper(log_weight + zero)
    if reference is not None:
        first_carry, first_weight = process.start_at(reference[0])
        carry, start = _set_first(carry, first_carry), _set_first(start, reference[0])
        log_weight = log_weight.at[0].set(_proper(first_weight))

    def reference_ahead(carry, t):
        """The reference's next step from each particle, and the log-density of its next ``memory`` steps."""

        def single(state):
            step = process.move_to(state, _row(process.xs, t), t, _row(reference[1], t))

            def ahead(running, lag):
                state, total = running
                at = jnp.minimum(t + lag, process.length - 1)
                step = process.move_to(state, _row(process.xs, at), at, _row(reference[1], at))
                total = total + jnp.where(t + lag < process.length, step.log_joint, 0.0)
                return (_cast(step.carry, state), total), None

            total = step.log_joint
            if memory > 1:
                lags = jnp.arange(1, min(memory, process.length))
                total = lax.scan(ahead, (_cast(step.carry, state), total), lags)[0][1]
            return step, total

        return jax.vmap(single)(carry)

    move_axes = None
    if systems:
        ours = (process.carry_axes, process.value_axes)
        each = tuple(range(len(systems)))
        move_axes = (*(ours[0] or ()), *(ours[1] or ()), each, each, each)

    def body(running, inputs):
        carry, log_weight = running
        log_weight = gather_particles(log_weight)
        x, t, keys = inputs
        key_ancestor, key_resample, key_move = keys[0], keys[1], keys[2]
        staged = log_weight
        if process.twist is not None:
            staged = staged + jax.vmap(lambda c: process.twist(c, x, t))(carry)
        if reference is None:
            ancestor = free(key_resample, staged)
        else:
            # The reference's ancestor first, then the others given it: the other order is right for
            # multinomial resampling only.
            own = jnp.zeros(systems, int)
            if path == "ancestor":
                ahead, density = reference_ahead(carry, t)
                own = one_of(key_ancestor, log_weight + _proper(density))
            ancestor = conditional(key_resample, staged, own)
        base = jnp.full((n, *systems), -jnp.log(n)) + zero
        if ess_threshold is not None:
            resample = effective_sample_size(staged) < ess_threshold * n
            stay = jnp.broadcast_to(jnp.arange(n).reshape((n,) + (1,) * len(systems)), ancestor.shape)
            ancestor = jnp.where(resample, ancestor, stay)
            base = jnp.where(resample, base, jax.nn.log_softmax(staged, 0))
        # Whole on each device: XLA deals out the turns of systematic resampling wrongly.
        ancestor = gather_particles(ancestor)
        parents = spread_particles(pick(carry, ancestor, process.carry_axes, systems))
        moved = jax.vmap(process.move, (0, 0, None, None))(lanes(key_move, n), parents, x, t)
        if reference is not None:
            if path == "ancestor":
                kept = pick(ahead, ancestor[0], move_axes, systems)
            else:
                kept = process.move_to(jax.tree.map(lambda v: v[0], parents), x, t, _row(reference[1], t))
            moved = _set_first(moved, kept)
        increment = moved.log_weight
        if process.twist is not None:  # out again, with the normaliser of the stage weights
            increment = increment - moved.twist + logsumexp(staged, 0)
        log_weight = gather_particles(base + _proper(increment))
        carry = spread_particles(_cast(moved.carry, carry))
        kept_history = (log_weight, carry) if path == "backward" or keep_history else None
        outputs = (
            moved.values,
            ancestor,
            effective_sample_size(_normalise(log_weight)),
            logsumexp(log_weight, 0),
        )
        return (carry, _normalise(log_weight)), (outputs, kept_history)

    first = logsumexp(log_weight, 0)
    steps = jnp.arange(process.length)
    (last_carry, last_weight), ((values, ancestors, ess, increments), history) = lax.scan(
        body,
        (carry, _normalise(log_weight)),
        (process.xs, steps, random.split(key_moves, (process.length, 3))),
    )
    key_last, key_back = random.split(key_path)
    last = one_of(key_last, last_weight)
    if path == "backward":
        origin, line = _backward(process, key_back, last, values, history, carry, log_weight)
    else:
        origin, line = lax.scan(
            lambda index, ancestor: (jnp.take_along_axis(ancestor, index[None], 0)[0], index),
            last,
            ancestors,
            reverse=True,
        )
    return Sweep(
        start=pick(start, origin, process.start_axes, systems),
        path=jax.vmap(lambda v, i: pick(v, i, process.value_axes, systems))(values, line),
        log_evidence=first - jnp.log(n) + increments.sum(0),
        ess=ess,
        log_weights=history[0] if keep_history else None,
        values=values if keep_history else None,
        carry=last_carry,
        last_log_weights=last_weight,
    )


def _backward(process, key, last, values, history, carry, log_weight):
    """Indices of a path drawn from the end: the particle at ``t`` in proportion to weight times density of the
    step that follows."""
    one_of = _by_system(draw, process.systems)
    keys = random.split(key, process.length)

    def choose(key, t, index, chosen, log_weight, carry):
        x = _row(process.xs, t)
        following = pick(chosen, index, process.value_axes, process.systems)
        joint = jax.vmap(lambda c: process.move_to(c, x, t, following).log_joint)(carry)
        return one_of(key, log_weight + _proper(joint))

    def body(index, inputs):
        key, t, chosen, log_weight, carry = inputs
        index = choose(key, t, index, chosen, log_weight, carry)
        return index, index

    log_weights, carries = history
    before = jax.tree.map(lambda v: v[:-1], (log_weights, carries))
    after = jax.tree.map(lambda v: v[1:], values)
    index, line = lax.scan(
        body, last, (keys[1:], jnp.arange(1, process.length), after, *before), reverse=True
    )
    origin = choose(keys[0], jnp.array(0), index, _row(values, 0), log_weight, carry)
    return origin, jnp.concatenate([line, last[None]])


def run_filter(process: Process, key: Array, num_particles: int, **options: Any) -> Sweep:
    """:func:`particle_sweep` without a reference: the particle filter.

    Example:
        >>> still = Process(1, jnp.zeros(1), lambda key: (jnp.zeros(()), {}, jnp.zeros(())), None,
        ...                 lambda key, c, x, t: _example_move(c, c, x), None)
        >>> round(float(run_filter(still, random.key(0), 10).log_evidence), 4)  # log N(0 | 0, 1)
        -0.9189
    """
    return particle_sweep(process, key, num_particles, None, path="genealogy", **options)


def _example_move(before, after, observed):
    """A Gaussian random walk seen through Gaussian noise (for the examples)."""
    density = jax.scipy.stats.norm.logpdf
    weight = density(observed, after)
    return Move(after, after, weight, weight + density(after, before), jnp.zeros(()))
