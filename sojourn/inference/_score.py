"""Derivatives of the log-likelihood of a model with a scan, as statistics of its hidden path.

Fisher's identity: the score is the smoothed expectation of the derivative ``S`` of the log-density of path and data
together. Louis' identity (1982, *JRSS B* 44:226): the second derivative is the expectation of that log-density's own
second derivative plus ``S S'``, less the score times its transpose.

The path is what its sites sample. Where the carry is a function of sampled values *and* of parameters (a value that
is scaled on its way into the carry, a parameter carried along), derivatives run through the carry as well; then it
travels with its own derivatives in the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.ops.provenance import eval_provenance

from sojourn._arguments import finite_numbers, must_be
from sojourn._contract import Site
from sojourn.inference._read import ScanModel, read_scan
from sojourn.inference._scan import capture_scan, site_term
from sojourn.inference._structure import ScanStructure, scan_numbers
from sojourn.ops.paris import Statistic
from sojourn.ops.particles import Process

__all__ = ["Moments", "Outside", "Parametric", "read_parametric", "require_memory_one"]


def require_memory_one(structure: ScanStructure) -> None:
    """Refuse a carry that a backward kernel cannot go through."""
    if structure.memory == 1:
        return
    if np.isinf(structure.memory):
        raise NotImplementedError(
            "Smoothing backwards needs a carry that the latent values of its own step settle; of this one "
            f"{', '.join(structure.blocking)} never forgets. Sample the state itself in place of its increments."
        )
    raise NotImplementedError(
        "Smoothing backwards needs a carry that the latent values of its own step settle; this one forgets only "
        f"after {int(structure.memory)} steps. Particle Gibbs takes such models."
    )


def read_parametric(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, plates: bool = True
) -> Parametric:
    """Read a model whose likelihood is to be differentiated in its parameters."""
    read = read_scan(model, *args, plates=plates, **kwargs)
    require_memory_one(read.structure)
    numbers = scan_numbers(read.model, read.args, read.kwargs)
    others = sorted(n for n, number in numbers.items() if number != read.structure.index)
    if others:
        raise NotImplementedError(
            f"{_quoted(others)} is latent in another scan than {_quoted(read.structure.path_sites)}: one hidden path "
            "is integrated out, and the other would count as a parameter."
        )
    return Parametric(read)


class Outside(NamedTuple):
    """What a model says apart from its hidden path."""

    values: dict[str, Any]
    """The parameters, on their own scale."""
    log_likelihood: Array
    """Of data that neither the path nor its initial state touches."""
    log_prior: Array
    """Of the parameters."""


class Moments(NamedTuple):
    """Derivatives of the log-density of path and data, in ``p`` parameters."""

    score: Array
    """``(*systems, p)``: the first."""
    second: Array | None
    """``(*systems, p, p)``: the second, plus the outer product of the first; where asked for."""


class Parametric:
    """A model with a scan, its parameters the entries of a vector.

    Parameters are the latent sites that belong neither to the scan nor to its initial state, and the
    ``numpyro.param`` statements outside the scan. The vector holds them on their own scale, or ``free``: on the
    unconstrained one.

    Attributes:
        read: the model, read.
        names: its parameters.
        size: length of the vector on the unconstrained scale.
        moving_carry: whether the carry depends on parameters while the latent values stay.
        moving_inputs: whether the inputs of the scan depend on parameters.
    """

    def __init__(self, read: ScanModel):
        self.read = read
        trace = self._trace(lambda site: None)
        inside = [n for n, s in trace.items() if s["type"] == "param" and s.get("_control_flow_done")]
        if inside:
            raise NotImplementedError(
                f"The parameters {_quoted(inside)} are declared inside the scan: move them out."
            )
        wanted = set(read.structure.global_sites)
        self.names = tuple(sorted(n for n, s in trace.items() if n in wanted or s["type"] == "param"))
        values = {n: jax.tree.map(jnp.asarray, trace[n]["value"]) for n in self.names}
        if not self.names:
            raise ValueError("The model has no parameter: all its latent sites belong to the hidden path.")
        discrete = [
            n
            for n in self.names
            if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(values[n]))
        ]
        if discrete:
            raise ValueError(f"{_quoted(discrete)} is discrete: the likelihood has no derivative in it.")
        self._sampled = {n for n in self.names if trace[n]["type"] == "sample"}
        self._like = jax.eval_shape(lambda: values)
        _, self._unravel = ravel_pytree(values)
        free, self._unravel_free = ravel_pytree(
            {n: _transform(trace[n])._inverse(values[n]) for n in self.names}
        )
        self.size = free.size
        self.moving_carry, self.moving_inputs = self._moving(values, trace)

    def _trace(self, substitute: Callable[[Site], Any]) -> dict[str, Site]:
        """Run the whole model. Its scan starts from constants, and what it computes is not used."""
        read = self.read
        with (
            handlers.block(),
            capture_scan(read.structure.index, cut=True),
            handlers.trace() as trace,
            handlers.seed(rng_seed=0),
            handlers.substitute(substitute_fn=substitute),
        ):
            read.model(*read.args, **read.kwargs)
        return trace

    def _moving(self, values, trace):
        structure = self.read.structure

        def run(parameters, initial, step, carry, t):
            space = self.read.at(parameters)
            carry_start = space.initial_carry(initial)
            x = jax.tree.map(lambda v: v[0], space.xs)
            after = space.transition(carry, x, t, step)
            return [*jax.tree.leaves(carry_start), *jax.tree.leaves(after)], jax.tree.leaves(space.xs)

        initial = {n: trace[n]["value"] for n in structure.initial_sites}
        step = {n: trace[n]["value"][0] for n in structure.path_sites}
        carry = jax.eval_shape(lambda: self.read.at(values).initial_carry(initial))
        carries, inputs = eval_provenance(
            run,
            **jax.tree.map(
                lambda v: jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)),
                {"parameters": values, "initial": initial, "step": step, "carry": carry, "t": jnp.array(0)},
            ),
        )
        return any("parameters" in made for made in carries), any("parameters" in made for made in inputs)

    # ---------------------------------------------------------------------------------------- parameters
    def flat(self, values: Mapping[str, Any]) -> Array:
        """The vector that holds the given values on their own scale."""
        must_be(isinstance(values, Mapping), "parameters", "a mapping from names to values", values)
        missing = [n for n in self.names if n not in values]
        unknown = [n for n in values if n not in self.names]
        if missing or unknown:
            said = [f"{_quoted(missing)} has no value"] * bool(missing)
            said += [f"it has no {_quoted(unknown)}"] * bool(unknown)
            raise ValueError(
                f"`parameters` must be those of the model, {_quoted(self.names)}: {', '.join(said)}."
            )

        def fill(name, value, like):
            value = finite_numbers(value, f"parameters[{name!r}]")
            if jnp.shape(value) != like.shape:
                raise ValueError(f"The parameter '{name}' has shape {like.shape}, not {jnp.shape(value)}.")
            return jnp.asarray(value, like.dtype)

        return ravel_pytree(
            {n: jax.tree.map(lambda v, a, n=n: fill(n, v, a), values[n], self._like[n]) for n in self.names}
        )[0]

    def unflat(self, vector: Array) -> dict[str, Any]:
        """The parameters in a vector on their own scale."""
        return self._unravel(vector)

    def outside(self, vector: Array) -> Outside:
        """The model at a vector on the unconstrained scale."""
        free = self._unravel_free(vector)

        def place(site):
            return _transform(site)(free[site["name"]]) if site["name"] in free else None

        return self._outside(place)

    def outside_at(self, vector: Array) -> Outside:
        """The model at a vector on the parameters' own scale."""
        values = self._unravel(vector)
        return self._outside(lambda site: values.get(site["name"]))

    def _outside(self, place):
        structure = self.read.structure
        within = {
            *structure.path_sites,
            *structure.observed_sites,
            *structure.initial_sites,
            *structure.weighing,
        }
        trace = self._trace(place)
        likelihood, prior = jnp.zeros(()), jnp.zeros(())
        for name, site in trace.items():
            if site["type"] != "sample" or name in within:
                continue
            if name in self._sampled:
                prior = prior + site_term(site)
            else:
                likelihood = likelihood + site_term(site)
        return Outside({n: trace[n]["value"] for n in self.names}, likelihood, prior)

    def begin(self, given: Mapping[str, Any], key: Array) -> Array:
        """A vector on the unconstrained scale: at the values given, at hints of the model, at prior medians."""
        unknown = [n for n in given if n not in self.names]
        if unknown:
            raise ValueError(f"`start` names {_quoted(unknown)}; the parameters are {_quoted(self.names)}.")
        free = {}

        def place(site):
            name = site["name"]
            if name not in self.names:
                return None
            transform, like = _transform(site), self._like[name]
            hint = given.get(name, site["infer"].get("init") if site["type"] == "sample" else None)
            if hint is not None:
                hint = jax.tree.map(
                    lambda v, a: jnp.broadcast_to(jnp.asarray(v, a.dtype), a.shape), hint, like
                )
                free[name] = transform._inverse(hint)
            elif site["type"] == "sample":
                try:
                    draws = site["fn"].sample(jax.random.fold_in(key, len(free)), (1000,))
                    free[name] = jnp.median(jax.vmap(transform._inverse)(draws), 0)
                except NotImplementedError:  # an improper prior
                    free[name] = jnp.zeros(transform.inverse_shape(like.shape))
            else:
                return None
            return transform(free[name])

        trace = self._trace(place)
        for name in self.names:
            if name not in free:  # `numpyro.param` starts where it says
                free[name] = _transform(trace[name])._inverse(trace[name]["value"])
        return ravel_pytree(free)[0]

    # --------------------------------------------------------------------------------------- derivatives
    def statistic(self, vector: Array, *, free: bool, order: int = 1) -> tuple[Process, Statistic]:
        """The process at a vector of parameters, and the :class:`Moments` to accumulate along its path."""
        read, systems = self.read, self.read.structure.systems
        zero = jnp.zeros_like(vector)
        # Inside the recursion the parameters stand as their own Taylor polynomial, so that the way from the
        # unconstrained scale is differentiated once and not at every step.
        values_at = (
            (lambda eps: self.outside(vector + eps).values)
            if free
            else (lambda eps: self.unflat(vector + eps))
        )
        expansion = _expand(values_at, zero, order)
        base = read.at(values_at(zero)).process()
        # One system: backwards through the step, whatever the number of parameters.
        first = jax.jacfwd if systems else jax.grad

        def at(eps):
            return read.at(_polynomial(expansion, eps))

        def input_of(space, x, t):
            return jax.tree.map(lambda v: v[t], space.xs) if self.moving_inputs else x

        def derivatives(fn):
            gradient = first(fn)(zero)
            return gradient, jax.jacfwd(first(fn))(zero) if order == 2 else None

        def carry_at(state, eps):
            return _polynomial(state, eps) if self.moving_carry else state

        def start(state, values):
            gradient, second = derivatives(lambda eps: at(eps).initial_log_prob(values))
            return Moments(gradient, None if second is None else second + _outer(gradient, gradient))

        def update(total, step):
            def log_joint(eps):
                space = at(eps)
                x = input_of(space, step.x, step.t)
                return space.process().move_to(carry_at(step.carry, eps), x, step.t, step.values).log_joint

            gradient, second = derivatives(log_joint)
            score = total.score + gradient
            if second is None:
                return Moments(score, None)
            # (S + s)(S + s)' = S S' + S s' + s S' + s s'
            cross = _outer(total.score, gradient)
            second = total.second + second + cross + jnp.swapaxes(cross, -1, -2) + _outer(gradient, gradient)
            return Moments(score, second)

        if not self.moving_carry:
            return base, Statistic(start, update)

        def expand_start(values):
            return _expand(lambda eps: at(eps).initial_carry(values), zero, order)

        def expand_after(state, x, t, values):
            def after(eps):
                space = at(eps)
                return space.transition(carry_at(state, eps), input_of(space, x, t), t, values)

            return _expand(after, zero, order)

        def moving_start(key):
            _, values, weight = base.start(key)
            return expand_start(values), values, weight

        def moving_start_at(values):
            return expand_start(values), base.start_at(values)[1]

        def moving_move(key, state, x, t):
            moved = base.move(key, state[0], x, t)
            return moved._replace(carry=expand_after(state, x, t, moved.values))

        def moving_move_to(state, x, t, values):
            moved = base.move_to(state[0], x, t, values)
            return moved._replace(carry=expand_after(state, x, t, values))

        axes = base.carry_axes
        if axes:  # every derivative keeps the axes of the carry in front
            state = jax.eval_shape(lambda: moving_start(jax.random.key(0))[0])
            floating = [jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(state[0])]
            moved_axes = tuple(a for a, on in zip(axes, floating, strict=True) if on)
            axes = axes + moved_axes * order
        process = base._replace(
            start=moving_start,
            start_at=moving_start_at,
            move=moving_move,
            move_to=moving_move_to,
            carry_axes=axes,
        )
        return process, Statistic(start, update)

    def total_score(
        self, vector: Array, score: Array, *, free: bool, prior: bool = False, lead: int = 0
    ) -> Array:
        """``(p,)``: a smoothed score summed over systems, with what lies outside the path; ``lead`` axes in front."""

        def apart(vector):
            outside = self.outside(vector) if free else self.outside_at(vector)
            return outside.log_likelihood + (outside.log_prior if prior else 0.0)

        return score.sum(tuple(range(lead, score.ndim - 1))) + jax.grad(apart)(vector)

    def information(self, vector: Array, moments: Moments, *, prior: bool = False) -> Array:
        """``(p, p)``: observed information on the unconstrained scale, from smoothed moments of order 2."""

        def apart(vector):
            outside = self.outside(vector)
            return outside.log_likelihood + (outside.log_prior if prior else 0.0)

        assert moments.second is not None
        second = moments.second - _outer(moments.score, moments.score)
        return -second.reshape(-1, vector.size, vector.size).sum(0) - jax.hessian(apart)(vector)


def _expand(fn: Callable[[Array], Any], zero: Array, order: int) -> tuple[Any, ...]:
    """``fn`` at zero and the derivatives of its floating leaves there, the axis of the argument last."""

    def floating(eps):
        leaves = jax.tree.leaves(fn(eps))
        return [v for v in leaves if jnp.issubdtype(jnp.result_type(v), jnp.floating)]

    slope = jax.jacfwd(floating)
    terms = (jax.tree.map(jnp.asarray, fn(zero)), slope(zero))
    return terms if order == 1 else (*terms, jax.jacfwd(slope)(zero))


def _polynomial(expansion: tuple[Any, ...], eps: Array) -> Any:
    """The Taylor polynomial of :func:`_expand` at ``eps``."""
    leaves, tree = jax.tree.flatten(expansion[0])
    terms = iter(zip(*expansion[1:], strict=True))
    moved = []
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            slope, *curved = next(terms)
            leaf = leaf + slope @ eps
            for curvature in curved:
                leaf = leaf + 0.5 * curvature @ eps @ eps
        moved.append(leaf)
    return jax.tree.unflatten(tree, moved)


def _outer(one: Array, two: Array) -> Array:
    return one[..., :, None] * two[..., None, :]


def _transform(site: Site) -> Any:
    if site["type"] == "param":
        return biject_to(site["kwargs"].get("constraint", constraints.real))
    return biject_to(site["fn"].support)


def _quoted(names: Any) -> str:
    return ", ".join(f"'{n}'" for n in names)
