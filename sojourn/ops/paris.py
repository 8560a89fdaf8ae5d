"""PaRIS: expectations of additive functionals of a hidden path, forward in time and in memory that does not grow.

Particle ``i`` at time ``t`` carries an estimate ``tau_t^i`` of the functional's expectation up to ``t``, given that
the path is at ``i`` now. Each step draws ``M`` indices ``J`` from the backward law, ``P(J = l)`` proportional to
``w_{t-1}^l p(z_t^i, y_t | c_{t-1}^l)``, and sets (Olsson and Westerborn 2017, *Bernoulli* 23:1951)::

    tau_t^i = 1/M sum_j [ tau_{t-1}^{J_j} + h_t(c_{t-1}^{J_j}, z_t^i) ]

Conditional on a path that keeps slot 0, and with a new path drawn through the same indices, the sweep is a Markov
kernel: the Parisian particle Gibbs sampler (Cardoso, Moulines and Olsson 2023, arXiv:2301.00900). In its
stationary law the estimate has no bias, however few the particles.

**Two ways to draw backwards.** ``"exact"`` weighs all ``N^2`` pairs. ``"mcmc"`` takes a fixed number of
independent Metropolis steps from the particle's own ancestor. Under multinomial resampling that ancestor, given
where the particle went, already has the backward law, and the steps leave that law as it is: they only make the
draws less alike. The cost is linear in ``N``, and every particle does the same work, which a machine that runs
particles in lockstep needs.

Accept-reject is left out. It needs a bound of the transition density, which no model states and which costs ``N^2``
to find among the particles. Cut off after a fixed number of tries, with the ancestor to fall back on, its law would
be as exact; but a proposal of density ``p`` is accepted with probability ``p / bound`` instead of at least as much,
``min(1, p / p_now)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.scipy.special import logsumexp

from sojourn.ops.particles import (
    Process,
    _by_system,
    _cast,
    _example_move,
    _normalise,
    _proper,
    _row,
    _set_first,
    pick,
)
from sojourn.ops.resampling import _inverse_cdf, draw, multinomial

__all__ = [
    "BACKWARD",
    "Parisian",
    "Statistic",
    "Step",
    "additive",
    "blank_path",
    "paris_sweep",
    "parisian_gibbs",
]

BACKWARD = ("exact", "mcmc")


class Step(NamedTuple):
    """One step of one particle's path."""

    carry: Any
    """State before the step."""
    carry_next: Any
    """State after it."""
    values: Any
    """Latent values of the step."""
    x: Any
    """Input of the step."""
    t: Array
    """Its number, from 0."""


class Statistic(NamedTuple):
    """What a particle carries along: a pytree of arrays, each with leading axes ``systems``."""

    start: Callable[[Any, Any], Any]
    """``(carry, initial values) -> statistic`` before the first step."""
    update: Callable[[Any, Step], Any]
    """``(statistic, step) -> statistic``; affine in the statistic, since expectations of it are what is passed on."""


class Parisian(NamedTuple):
    """Result of one sweep."""

    estimate: Any
    """Smoothed expectation of the statistic after the last step; leaves ``(*systems, ...)``."""
    start: Any
    """Initial values of the path drawn."""
    path: Any
    """Values of the path drawn, leading axis time."""
    log_evidence: Array
    """``systems``: estimate of the log-likelihood."""


def additive(process: Process, term: Callable[[Step], Any]) -> Statistic:
    """The statistic of an additive functional: the sum of ``term(step)`` over the steps.

    Example:
        >>> walk = _example_walk(jnp.zeros(4))
        >>> count = additive(walk, lambda step: jnp.ones(()))
        >>> float(paris_sweep(walk, random.key(0), 10, count).estimate)
        4.0
    """

    def shapes(key):
        carry, _, _ = process.start(key)
        x = _row(process.xs, 0)
        moved = process.move(key, carry, x, jnp.array(0))
        return term(Step(carry, _cast(moved.carry, carry), moved.values, x, jnp.array(0)))

    like = jax.eval_shape(shapes, random.key(0))

    def start(carry, values):
        return jax.tree.map(lambda v: jnp.zeros(v.shape, jnp.result_type(float, v.dtype)), like)

    return Statistic(start, lambda total, step: jax.tree.map(jnp.add, total, term(step)))


def paris_sweep(
    process: Process,
    key: Array,
    num_particles: int,
    statistic: Statistic,
    reference: tuple[Any, Any] | None = None,
    *,
    frozen: Array | bool = True,
    num_backward: int = 2,
    backward: str = "exact",
    num_tries: int = 4,
) -> Parisian:
    """One pass over the series: the smoothed statistic, and a draw of the path.

    The process must have memory 1: given the values of a step, what follows no longer depends on the state before
    it.

    Args:
        process: the process, already given its parameters.
        key: random key.
        num_particles: ``N``.
        statistic: what to accumulate; see :func:`additive`.
        reference: initial values and path values of the path that keeps slot 0.
        frozen: whether slot 0 does keep the reference. May be traced, so that one program serves both cases.
        num_backward: ``M``, at least 2: with one draw the paths coalesce as those of a plain filter do.
        backward: ``"exact"``, at a cost of ``N^2`` a step, or ``"mcmc"``, at a cost of ``N M num_tries``.
        num_tries: Metropolis steps of each draw under ``"mcmc"``.

    Example:
        Mean of the last state of a Gaussian random walk seen in noise; exactly, 0.6.

        >>> walk = _example_walk(jnp.array([0.0, 1.0]))
        >>> last = additive(walk, lambda step: step.carry_next * (step.t == 1))
        >>> round(float(paris_sweep(walk, random.key(0), 2000, last, backward="mcmc").estimate), 1)
        0.6
    """
    n, m, systems = num_particles, num_backward, process.systems
    resample, one_of = _by_system(multinomial, systems), _by_system(draw, systems)
    key_start, key_moves, key_last = random.split(key, 3)

    def freeze(tree, values):
        """Put ``values`` into slot 0."""
        return _set_first(tree, jax.tree.map(lambda r, v: jnp.where(frozen, r, v[0]), values, tree))

    carry, start, log_weight = jax.vmap(process.start)(random.split(key_start, n))
    log_weight = _proper(log_weight + jnp.zeros(systems))
    if reference is not None:
        first_carry, first_weight = process.start_at(reference[0])
        carry, start, log_weight = freeze(
            (carry, start, log_weight), (first_carry, reference[0], _proper(first_weight))
        )
    tau = jax.tree.map(
        lambda v: jnp.asarray(v, jnp.result_type(float, v)), jax.vmap(statistic.start)(carry, start)
    )
    tau_axes = tuple(tuple(range(len(systems))) for _ in jax.tree.leaves(tau))

    def repeat(tree):
        """Each particle ``M`` times over: ``(M N, ...)``, all particles first."""
        return jax.tree.map(lambda v: jnp.tile(v, (m,) + (1,) * (v.ndim - 1)), tree)

    def draw_back(key, carry, log_weight, ancestor, moved, x, t):
        """``(M N, *systems)`` indices from the backward law."""

        def joint(values):
            """Weight of each particle as the state from which the step with these values was made."""
            return log_weight + _proper(jax.vmap(lambda c: process.move_to(c, x, t, values).log_joint)(carry))

        # One call for all uniforms of a step: with few particles the generator costs more than the densities.
        if backward == "exact":
            uniforms = random.uniform(key, (n, m, *systems))
            index = jax.vmap(_found)(uniforms, jax.vmap(joint)(moved.values))
            return jnp.swapaxes(index, 0, 1).reshape((m * n, *systems))
        uniforms = random.uniform(key, (2 * num_tries + 1, m * n, *systems))
        proposals = _found(uniforms[:num_tries].reshape((-1, *systems)), log_weight)
        values = repeat(moved.values)

        def attempt(now, inputs):
            index, density = now
            proposal, uniform = inputs
            parents = pick(carry, proposal, process.carry_axes, systems)
            proposed = _proper(jax.vmap(process.move_to, (0, None, None, 0))(parents, x, t, values).log_joint)
            accept = jnp.log(uniform) < proposed - density
            return (jnp.where(accept, proposal, index), jnp.where(accept, proposed, density)), None

        (index, _), _ = lax.scan(
            attempt,
            (repeat(ancestor), repeat(_proper(moved.log_joint))),
            (proposals.reshape((num_tries, m * n, *systems)), uniforms[num_tries : 2 * num_tries]),
        )
        if reference is not None:
            # The frozen particle was not drawn from its ancestor; one exact draw costs no more than N.
            kept = _found(uniforms[-1, :m], joint(jax.tree.map(lambda v: v[0], moved.values)))
            index = index.at[jnp.arange(m) * n].set(kept)
        return index

    def body(running, inputs):
        carry, log_weight, tau = running
        x, t, key = inputs
        key_resample, key_move, key_back = random.split(key, 3)
        ancestor = resample(key_resample, log_weight)
        if reference is not None:
            # Right because multinomial ancestors are independent.
            ancestor = freeze(ancestor, jnp.zeros(systems, ancestor.dtype))
        parents = pick(carry, ancestor, process.carry_axes, systems)
        moved = jax.vmap(process.move, (0, 0, None, None))(random.split(key_move, n), parents, x, t)
        if reference is not None:
            kept = process.move_to(jax.tree.map(lambda v: v[0], carry), x, t, _row(reference[1], t))
            moved = freeze(moved, kept)
        after = _cast(moved.carry, carry)
        index = draw_back(key_back, carry, log_weight, ancestor, moved, x, t)
        # With memory 1 the state after the step is the same whichever particle it is reached from.
        steps = Step(
            pick(carry, index, process.carry_axes, systems), repeat(after), repeat(moved.values), x, t
        )
        drawn = jax.vmap(statistic.update, (0, Step(0, 0, 0, None, None)))(
            pick(tau, index, tau_axes, systems), steps
        )
        tau = jax.tree.map(
            lambda v, old: v.reshape((m, n, *v.shape[1:])).mean(0).astype(old.dtype), drawn, tau
        )
        log_weight = _proper(moved.log_weight)
        increment = logsumexp(log_weight, 0) - jnp.log(n)
        return (after, _normalise(log_weight), tau), (moved.values, index[:n], increment)

    first = logsumexp(log_weight, 0)
    (_, log_weight, tau), (values, backwards, increments) = lax.scan(
        body,
        (carry, _normalise(log_weight), tau),
        (process.xs, jnp.arange(process.length), random.split(key_moves, process.length)),
    )
    weight = jax.nn.softmax(log_weight, 0)

    def average(v):
        w = weight.reshape(weight.shape + (1,) * (v.ndim - weight.ndim))
        return jnp.sum(jnp.where(w > 0, w * v, 0.0), 0)

    origin, line = lax.scan(
        lambda index, back: (jnp.take_along_axis(back, index[None], 0)[0], index),
        one_of(key_last, log_weight),
        backwards,
        reverse=True,
    )
    return Parisian(
        estimate=jax.tree.map(average, tau),
        start=pick(start, origin, process.start_axes, systems),
        path=jax.vmap(lambda v, i: pick(v, i, process.value_axes, systems))(values, line),
        log_evidence=first - jnp.log(n) + increments.sum(0),
    )


def parisian_gibbs(
    process: Process,
    key: Array,
    num_particles: int,
    statistic: Statistic,
    reference: tuple[Any, Any] | None,
    num_sweeps: int,
    *,
    fresh: Array | bool = False,
    **options: Any,
) -> tuple[tuple[Any, Any], Any, Array]:
    """Conditional sweeps one after the other, each given the path that the last one drew.

    Args:
        process, key, num_particles, statistic, **options: of :func:`paris_sweep`.
        reference: initial values and path values to begin with; ``None`` to begin with a free sweep.
        num_sweeps: number of sweeps, a free one among them.
        fresh: let the first sweep be a free one, whatever the reference. May be traced.

    Returns:
        The last path, as initial values and path values; the estimates of all sweeps, leading axis
        ``num_sweeps``; their log-evidences ``(num_sweeps, *systems)``, biased where a path is frozen.

    Example:
        >>> walk = _example_walk(jnp.array([0.0, 1.0]))
        >>> last = additive(walk, lambda step: step.carry_next * (step.t == 1))
        >>> path, estimates, _ = parisian_gibbs(walk, random.key(0), 5, last, None, 2000)
        >>> round(float(estimates.mean()), 1)
        0.6
    """
    if reference is None:
        reference, fresh = blank_path(process), True

    def body(reference, inputs):
        key, number = inputs
        frozen = (number > 0) | ~jnp.asarray(fresh)
        swept = paris_sweep(process, key, num_particles, statistic, reference, frozen=frozen, **options)
        path = jax.tree.map(lambda v, r: v.astype(jnp.result_type(r)), (swept.start, swept.path), reference)
        return path, (swept.estimate, swept.log_evidence)

    reference = jax.tree.map(jnp.asarray, reference)
    inputs = (random.split(key, num_sweeps), jnp.arange(num_sweeps))
    path, (estimates, log_evidence) = lax.scan(body, reference, inputs)
    return path, estimates, log_evidence


def blank_path(process: Process) -> tuple[Any, Any]:
    """Zeros in the shape of initial values and path values.

    Example:
        >>> blank_path(_example_walk(jnp.zeros(3)))[1].tolist()
        [0.0, 0.0, 0.0]
    """

    def shapes(key):
        carry, start, _ = process.start(key)
        return start, process.move(key, carry, _row(process.xs, 0), jnp.array(0)).values

    start, values = jax.eval_shape(shapes, random.key(0))
    path = jax.tree.map(lambda v: jnp.zeros((process.length, *v.shape), v.dtype), values)
    return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), start), path


def _found(uniforms: Array, log_weights: Array) -> Array:
    """Indices by inverting each system's distribution function: ``(K, *systems)``, ``(N, *systems)``."""
    systems = log_weights.shape[1:]
    flat = (uniforms.reshape(len(uniforms), -1), log_weights.reshape(len(log_weights), -1))
    return jax.vmap(_inverse_cdf, 1, 1)(*flat).reshape(len(uniforms), *systems)


def _example_walk(ys):
    """A Gaussian random walk from 0 seen through Gaussian noise (for the examples)."""
    return Process(
        length=ys.shape[0],
        xs=ys,
        start=lambda key: (jnp.zeros(()), {}, jnp.zeros(())),
        start_at=lambda values: (jnp.zeros(()), jnp.zeros(())),
        move=lambda key, c, y, t: _example_move(c, c + random.normal(key), y),
        move_to=lambda c, y, t, values: _example_move(c, values, y),
    )
