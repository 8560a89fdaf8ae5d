"""A scan with its finite discrete sites summed out: terms of its density, laws of its sites, paths.

Within a step every site is evaluated for each state: the discrete values of the last ``L`` steps, after which the
carry has forgotten them, times those of the step itself. What does not vary in time is evaluated once. The rest is
a recursion on arrays (:mod:`sojourn.ops.discrete_chain`).

Where the model falls apart over plates, each of their elements is a chain of its own. Those axes (``systems``) come
last in the arrays here, and the number of a state has their shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.ops.provenance import eval_provenance

from sojourn._contract import Site
from sojourn.inference._check_model import mask_of
from sojourn.inference._predictive import replicate
from sojourn.inference._scan import Plate, ScanCall, is_latent, run_step, site_term
from sojourn.inference._structure import canonical_carry
from sojourn.ops import discrete_chain
from sojourn.ops.discrete_chain import Forward, Piece

__all__ = ["Layout", "Path", "SummedScan", "SummedSite", "Support", "log_sum", "over_systems"]


@dataclass(frozen=True, eq=False)
class Support:
    """The values of a discrete site in one step."""

    values: np.ndarray
    """``(k, *event)``: what one entry can be."""
    entries: tuple[int, ...]
    """Shape of the entries."""
    systems: tuple[int, ...]
    """Which axes of the entries are independent systems: all of them take the same value here."""

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(1 if axis in self.systems else size for axis, size in enumerate(self.entries))

    @property
    def size(self) -> int:
        return len(self.values) ** int(np.prod(self.free))

    @cached_property
    def table(self) -> np.ndarray:
        """``(size, *entries, *event)``: all joint values."""
        number = int(np.prod(self.free))
        index = np.indices((len(self.values),) * number).reshape(number, -1).T
        chosen = self.values[index.reshape(-1, *self.free)]
        return np.broadcast_to(chosen, (len(chosen), *self.entries, *self.values.shape[1:]))


@dataclass(frozen=True, eq=False)
class Layout:
    """What is known of a scan to sum out before any number is."""

    sites: Mapping[str, Support]
    """Discrete sites of the step."""
    roots: Mapping[str, Support]
    """Discrete sites before the scan that feed nothing but its initial carry."""
    memory: int
    """``L``: steps after which the carry has forgotten the discrete values."""
    head: int
    """Steps after which what is ``steady`` has become so."""
    touched: tuple[bool, ...]
    """Entries of the carry that depend on discrete values."""
    steady: tuple[bool, ...]
    """Entries of the carry that are, given the discrete values, the same at every step."""
    looks_back: bool
    """Whether the others depend on what they were a step before."""
    plates: tuple[Plate, ...]
    carry_axes: tuple[tuple[int, ...] | None, ...]

    @property
    def systems(self) -> tuple[int, ...]:
        return tuple(p.size for p in self.plates)

    @property
    def num_values(self) -> int:
        """``K``: joint values of the discrete sites of a step."""
        return int(np.prod([s.size for s in self.sites.values()]))

    @property
    def num_roots(self) -> int:
        return int(np.prod([s.size for s in self.roots.values()]))

    @property
    def num_states(self) -> int:
        """``S``: before the first step a state is a root, later a value."""
        return max(self.num_values, self.num_roots)

    @property
    def num_tuples(self) -> int:
        return self.num_states**self.memory

    def values(self, supports: Mapping[str, Support], number: Array) -> dict[str, Array]:
        """Values of several sites from the number of their combination (the last one varies fastest)."""
        result: dict[str, Array] = {}
        for name in reversed(list(supports)):
            support = supports[name]
            result[name] = _pick(jnp.asarray(support.table), number % support.size, support.systems)
            number = number // support.size
        return result


class Path(NamedTuple):
    """States of the chain: the number of the tuple before each step, and of the value of each step."""

    tuples: Array
    values: Array


class _Kept(NamedTuple):
    """What is evaluated once for all questions; time in two pieces, first steps and others."""

    carries: tuple[list[list[Array]], list[Array], list[Array | None]]
    """Those before the first steps one by one; the one after them; where it goes on changing, all later ones."""
    head: list[dict[str, Array]]
    """Terms of the sites in the first steps, ``(A, K, *systems)``."""
    tail: dict[str, Array]
    """Those of the others, ``(n, A, K, *systems)``, with axes of length one where nothing varies."""
    before: Array
    """``(T, A, *systems)``: log-law of the tuple before each step given all that precedes it."""
    terms: dict[str, Array]


class _Reach(NamedTuple):
    """What the term of a site varies with."""

    time: bool
    tuple: bool
    value: bool
    chance: bool

    @property
    def path(self) -> bool:
        return self.tuple or self.value


def _pick(stack: Array, index: Array, axes: tuple[int, ...] | None) -> Array:
    """Entry ``index`` along the first axis, system by system where ``index`` has their shape."""
    if jnp.ndim(index) == 0:
        return stack[index]
    assert axes is not None
    places = tuple(a + 1 for a in axes)
    fronts = tuple(range(1, len(axes) + 1))
    stack = jnp.moveaxis(stack, places, fronts)
    index = index.reshape((1, *index.shape, *(1,) * (stack.ndim - 1 - index.ndim)))
    return jnp.moveaxis(jnp.take_along_axis(stack, index, 0)[0], tuple(range(len(axes))), axes)


def log_sum(x: Array, axis: int | tuple[int, ...]) -> Array:
    top = jax.lax.stop_gradient(x).max(axis, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.exp(x - top).sum(axis)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1.0)), -jnp.inf) + jnp.squeeze(top, axis)


def _less(x: Array, y: Array) -> Array:
    """``x - y``, where an impossible ``y`` has been reported before."""
    return x - jnp.where(jnp.isfinite(y), y, 0.0)


def over_systems(x: Array, plates: tuple[Plate, ...], reduce: Callable[..., Array]) -> Array:
    """Reduce all axes but those of ``plates``."""
    if not plates:
        return reduce(x)
    least = -plates[0].dim
    x = jnp.reshape(x, (1,) * max(least - jnp.ndim(x), 0) + jnp.shape(x))
    kept = {x.ndim + p.dim: p.size for p in plates}
    x = jnp.broadcast_to(x, tuple(kept.get(axis, size) for axis, size in enumerate(x.shape)))
    return reduce(x, axis=tuple(axis for axis in range(x.ndim) if axis not in kept))


class SummedScan:
    """One scan of one run of a model.

    Args:
        layout: see :class:`Layout`.
        call: the scan's arguments, with the values that handlers give to its other sites.
        carry: entries of the initial carry; those that are ``touched`` with a leading axis over the roots.
        log_start: ``(R, *systems)``: log-law of the roots given what was observed of them.
        vjp: see :func:`sojourn.ops.discrete_chain.forward`.
    """

    def __init__(
        self, layout: Layout, call: ScanCall, carry: Sequence[Array], log_start: Array, *, vjp: bool = True
    ):
        self.layout, self.vjp = layout, vjp
        self.call = call._replace(xs=jax.tree.map(jnp.asarray, call.xs))
        self._like, self._tree = jax.tree.flatten(canonical_carry(call))
        states, tuples = layout.num_states, layout.num_tuples
        # Before the first step all of a tuple but its newest entry is padding.
        root = jnp.minimum(jnp.arange(tuples) % states, layout.num_roots - 1)
        self._start = [
            jnp.asarray(leaf[root] if on else leaf, like.dtype)
            for leaf, on, like in zip(carry, layout.touched, self._like, strict=True)
        ]
        self._roots = log_start
        nowhere = jnp.full((tuples, *layout.systems), -jnp.inf, log_start.dtype)
        self.log_start = nowhere.at[: layout.num_roots].set(log_start)
        self._look()
        self._kept: _Kept | None = None
        if not self._concrete:
            self._keep()  # here and now: asked for later, it might be in the middle of another trace

    # ------------------------------------------------------------------------------------- one step
    def _step(self, leaves, x, t, values, key=None):
        carry = jax.tree.unflatten(self._tree, leaves)
        carry, output, trace = run_step(self.call, carry, x, t, values=values, key=key)
        leaves = [jnp.asarray(v, a.dtype) for v, a in zip(jax.tree.leaves(carry), self._like, strict=True)]
        return leaves, output, trace

    def _terms(self, trace: Mapping[str, Site]) -> dict[str, Array]:
        return {n: site_term(s, self.layout.plates) for n, s in trace.items() if s["type"] == "sample"}

    def _x(self, t: Any) -> Any:
        return jax.tree.map(lambda v: v[t], self.call.xs)

    def _look(self) -> None:
        """Static facts about the sites of the step, and what each term varies with."""
        layout = self.layout
        self.sites: dict[str, Site] = {}
        self.stochastic: list[str] = []

        def step(**given):
            leaves = [given[f"{kind}{j}"] for j, kind in enumerate(kinds)]
            new, _, trace = self._step(leaves, given["x"], given["t"], given["values"], given["key"])
            self.sites = {n: s for n, s in trace.items() if s["type"] != "plate"}
            self.stochastic = [n for n, s in trace.items() if s["type"] == "sample"]
            return self._terms(trace), new

        kinds = [
            ("tuple " if touched else "fixed ") if steady else ("both " if touched else "time ")
            for touched, steady in zip(layout.touched, layout.steady, strict=True)
        ]
        given = dict(
            x=jax.eval_shape(lambda: self._x(0)),
            t=jax.ShapeDtypeStruct((), jnp.int32),
            key=jax.eval_shape(lambda: jax.random.key(0)),
            values={n: jax.eval_shape(lambda s=s: jnp.asarray(s.table[0])) for n, s in layout.sites.items()},
            **{f"{kind}{j}": like for j, (kind, like) in enumerate(zip(kinds, self._like, strict=True))},
        )
        found, carried = eval_provenance(step, **given)
        given_too = (self.call.xs, self._start, self.log_start, jnp.zeros(()))
        held = jax.make_jaxpr(lambda given: step(**given))(given).consts
        self._concrete = not any(isinstance(x, jax.core.Tracer) for x in (*jax.tree.leaves(given_too), *held))

        def reach(names: frozenset[str]) -> _Reach:
            begins = {n.split(" ")[0] for n in names}
            return _Reach(
                time=bool(begins & {"x", "t", "time", "both"}),
                tuple=bool(begins & {"tuple", "both"}),
                value="values" in begins,
                chance="key" in begins,
            )

        self.reach = {n: reach(found[n]) for n in self.stochastic}
        self.carry_by_chance = any("key" in names for names in carried)

    # ------------------------------------------------------------------------------------- all steps
    @property
    def _steps(self) -> tuple[int, int]:
        head = min(self.layout.head, self.call.length)
        return head, self.call.length - head

    def _keep(self) -> _Kept:
        if self._kept is None:
            # Compiled beforehand: in the middle of a trace a call would be traced too, and its result stay behind.
            run = jax.jit(self._evaluate).lower().compile() if self._concrete else self._evaluate
            self._kept = run()
        return self._kept

    def _evaluate(self) -> _Kept:
        carries, head, tail = self._walk()
        self._kept = _Kept(carries, head, tail, self._roots, {})
        run = self._forward([*self.discrete, *self.members], self.vjp)[0]
        before = self._systems_last(run.before)
        before = before.reshape(len(before), -1, *before.shape[3:])
        self._kept = self._kept._replace(before=before)
        kept = self._kept._replace(terms=self._all_terms(self._systems_last(run.increments)))
        self._kept = None
        return kept

    def _walk(self):
        """Carries and terms at every step."""
        layout, length = self.layout, self.call.length
        rest = layout.num_tuples // layout.num_states
        values = self._all_values()
        touched = layout.touched
        axes = [0 if on else None for on in touched]

        def everywhere(fn, tuples, out_axes, inner_axes):
            """``fn(leaves, values, ...)`` for each tuple (their number is told: no leaf may have it) and each value."""
            fn = jax.vmap(fn, in_axes=(None, 0, None, None), out_axes=inner_axes)
            return jax.vmap(fn, in_axes=(axes, None, None, None), out_axes=out_axes, axis_size=tuples)

        def advance(leaves, x, t):
            """The carry after a step. It does not depend on the oldest entry of the tuple: that one is zero."""

            def new(leaves, values, x, t):
                return self._step(leaves, x, t, values)[0]

            first = [leaf[:rest] if on else leaf for leaf, on in zip(leaves, touched, strict=True)]
            found = everywhere(new, rest, axes, axes)(first, values, x, t)
            return [self._as_tuples(v) if on else v for v, on in zip(found, touched, strict=True)]

        def terms(leaves, values, x, t):
            return self._terms(self._step(leaves, x, t, values)[2])

        # The first steps one by one: the initial carry may be anything.
        head, steps = self._steps
        carries, first = [self._start], []
        every = {n: 0 for n in self.stochastic}
        for t in range(head):
            first.append(
                everywhere(terms, layout.num_tuples, every, every)(
                    carries[t], values, self._x(t), jnp.array(t)
                )
            )
            if t + 1 < length:
                carries.append(advance(carries[t], self._x(t), jnp.array(t)))

        # The others at once, as far as may be.
        tail: dict[str, Array] = {}
        settled = carries[head] if steps else carries[-1]
        later: list[Array | None] = [None] * len(settled)
        if steps and not all(layout.steady):
            inputs = (jax.tree.map(lambda v: v[head:-1], self.call.xs), jnp.arange(head, length - 1))
            moving = [j for j, on in enumerate(layout.steady) if not on]

            def onward(now, inputs):
                leaves = list(settled)
                for j, leaf in zip(moving, now, strict=True):
                    leaves[j] = leaf
                new = advance(leaves, *inputs)
                return [new[j] for j in moving], [new[j] for j in moving]

            start = [settled[j] for j in moving]
            if layout.looks_back:
                _, found = jax.lax.scan(onward, start, inputs)
            else:
                found = jax.vmap(lambda inputs: onward(start, inputs)[1])(inputs)
            for j, now, others in zip(moving, start, found, strict=True):
                later[j] = jnp.concatenate([now[None], others])
        if steps:
            time = [None if leaf is None else 0 for leaf in later]
            leaves = [a if b is None else b for a, b in zip(settled, later, strict=True)]

            def out(what):
                return {n: 0 if getattr(r, what) else None for n, r in self.reach.items()}

            found = jax.vmap(
                everywhere(terms, layout.num_tuples, out("tuple"), out("value")),
                in_axes=(time, None, 0, 0),
                out_axes=out("time"),
            )(leaves, values, self._x(slice(head, None)), jnp.arange(head, length))
            for n, r in self.reach.items():
                lacking = [axis for axis, on in enumerate((r.time, r.tuple, r.value)) if not on]
                tail[n] = jnp.expand_dims(found[n], lacking)
        return (carries[:head], settled, later), first, tail

    def _all_values(self) -> dict[str, Array]:
        """Joint values of the step's sites, ``(K, ...)``: all systems take the same."""
        layout = self.layout
        number = jnp.arange(layout.num_values)
        result: dict[str, Array] = {}
        for name in reversed(list(layout.sites)):
            support = layout.sites[name]
            result[name] = jnp.asarray(support.table)[number % support.size]
            number = number // support.size
        return result

    def _as_tuples(self, found: Array) -> Array:
        """From ``(B, K, ...)`` to ``(A, ...)``: values beyond ``K`` stand for nothing."""
        states, number = self.layout.num_states, self.layout.num_values
        if number < states:
            found = found[:, jnp.minimum(jnp.arange(states), number - 1)]
        return found.reshape(-1, *found.shape[2:])

    def _all_carries(self) -> list[Array]:
        """The carry before each step: ``(T, A, ...)``, or ``(T, ...)`` where the path does not matter."""
        head, settled, later = self._keep().carries
        steps = self._steps[1]
        result = []
        for j, moving in enumerate(later):
            parts = [leaves[j][None] for leaves in head]
            if steps:
                fixed = settled[j]
                parts.append(jnp.broadcast_to(fixed, (steps, *fixed.shape)) if moving is None else moving)
            result.append(jnp.concatenate(parts))
        return result

    # ----------------------------------------------------------------------------------- the chain
    def _summed(self, names: Sequence[str]) -> list[Array]:
        """Sum of the terms of some sites, ``(n, A, K, *systems)`` in each piece; axes of length one may remain."""
        blank = jnp.zeros((1, 1, 1, *self.layout.systems), self.log_start.dtype)
        kept = self._keep()
        head, steps = self._steps
        pieces = []
        if head:
            pieces.append(sum((jnp.stack([terms[n] for terms in kept.head]) for n in names), blank))
        if steps:
            pieces.append(sum((kept.tail[n] for n in names), blank))
        return pieces

    def _pieces(self, names: Sequence[str]) -> list[Piece]:
        """The chain whose weights are the densities of these sites, its systems along a first axis."""
        layout = self.layout
        states, number, systems = layout.num_states, layout.num_values, layout.systems
        full = (layout.num_tuples, number, *systems)
        looking = [n for n in names if self.reach[n].tuple]
        others = [n for n in names if not self.reach[n].tuple]
        pieces = []
        for steps, move, weight in zip(
            (n for n in self._steps if n), self._summed(looking), self._summed(others), strict=True
        ):
            move = jnp.broadcast_to(move, (len(move), *full))
            move = move.reshape(len(move), states, full[0] // states, *full[1:])
            weight = jnp.broadcast_to(weight[:, 0], (steps, *full[1:]))
            pieces.append(Piece(self._systems_first(move), self._systems_first(weight)))
        return pieces

    def _systems_first(self, x: Array) -> Array:
        """The axes of the systems as one in front, absent if there are none."""
        depth = len(self.layout.systems)
        if not depth:
            return x
        x = jnp.moveaxis(x, tuple(range(-depth, 0)), tuple(range(depth)))
        return x.reshape(-1, *x.shape[depth:])

    def _systems_last(self, x: Array) -> Array:
        if not self.layout.systems:
            return x
        return jnp.moveaxis(x, 0, -1).reshape(*x.shape[1:], *self.layout.systems)

    def _each(self, fn: Callable[..., Any], *args: Any) -> Any:
        return jax.vmap(fn)(*args) if self.layout.systems else fn(*args)

    def _chain(self, names: Sequence[str]) -> tuple[Array, list[Piece]]:
        states = self.layout.num_states
        start = self.log_start.reshape(states, -1, *self.layout.systems)
        return self._systems_first(start), self._pieces(names)

    def _forward(self, names: Sequence[str], vjp: bool) -> tuple[Forward, list[Piece]]:
        start, pieces = self._chain(names)
        return self._each(lambda s, p: discrete_chain.forward(s, p, vjp=vjp), start, pieces), pieces

    @cached_property
    def discrete(self) -> list[str]:
        return [n for n in self.stochastic if n in self.layout.sites]

    @cached_property
    def members(self) -> list[str]:
        """The other sites whose law depends on the path, in the order of the step."""
        return [n for n in self.stochastic if n not in self.layout.sites and self.reach[n].path]

    def _ahead(self, names: Sequence[str]) -> list[Array]:
        """``(n, A, K, *systems)``: joint log-law of tuple, value and ``names`` given what precedes the step."""
        head = self._steps[0]
        spans = [slice(0, head)] if head else []
        if self._steps[1]:
            spans.append(slice(head, None))
        full = (self.layout.num_tuples, self.layout.num_values, *self.layout.systems)
        return [
            jnp.broadcast_to(
                self._keep().before[span][:, :, None] + terms, (self._steps[bool(span.start)], *full)
            )
            for span, terms in zip(spans, self._summed(names), strict=True)
        ]

    @property
    def unnormalised(self) -> bool:
        """Whether a scale or a mask keeps the laws of the discrete sites from summing to one."""
        return any(
            self.sites[n]["scale"] is not None or mask_of(self.sites[n]["fn"]) is not None
            for n in self.discrete
        )

    @property
    def terms(self) -> dict[str, Array]:
        """``(T, *systems)``: log-density of each site given all that precedes it; they sum to that of the scan.

        Under ``""`` what the discrete sites contribute by themselves, if their laws do not sum to one.
        """
        return self._keep().terms

    def _all_terms(self, increments: Array) -> dict[str, Array]:
        shape = (self.call.length, *self.layout.systems)
        result: dict[str, Array] = {}
        for name in self.stochastic:
            if name not in self.layout.sites and name not in self.members:
                spans = (steps for steps in self._steps if steps)
                parts = [
                    jnp.broadcast_to(part[:, 0, 0], (steps, *shape[1:]))
                    for part, steps in zip(self._summed([name]), spans, strict=True)
                ]
                result[name] = jnp.concatenate(parts)
        sofar = jnp.zeros(shape)
        if self.unnormalised:
            sofar = result[""] = self._partial(self.discrete) if self.members else increments
        for name in self.members:
            if name == self.members[-1]:
                upto = increments
            else:
                upto = self._partial([*self.discrete, *self.members[: self.members.index(name) + 1]])
            result[name], sofar = _less(upto, sofar), upto
        return result

    def _partial(self, names: Sequence[str]) -> Array:
        return jnp.concatenate([log_sum(piece, (1, 2)) for piece in self._ahead(names)])

    # -------------------------------------------------------------------------------------- paths
    def _path(self, start: Array, states: Array) -> Path:
        """From the numbers of the first tuple and of the states, which have a last axis over time."""
        layout = self.layout
        start, states = self._unstack(start), self._unstack(states)
        rest = layout.num_tuples // layout.num_states

        def onward(at, state):
            return (at % rest) * layout.num_states + state, at

        _, tuples = jax.lax.scan(onward, start, states)
        return Path(tuples, states)

    def _unstack(self, x: Array) -> Array:
        """From ``(P, ...)`` to ``(..., *systems)``."""
        return self._systems_last(x)

    def sample_path(self, key: Array, names: Sequence[str] | None = None) -> Path:
        """A draw of the path given the values of some sites (of all, if none are named)."""
        names = [*self.discrete, *(self.members if names is None else names)]
        run, pieces = self._forward(names, vjp=False)  # half as much to compile

        def draw(key, run, pieces):
            start, path = discrete_chain.sample_paths(key, run, pieces)
            return start[0], path[0]

        count = int(np.prod(self.layout.systems))
        keys = jax.random.split(key, count) if self.layout.systems else key
        return self._path(*self._each(draw, keys, run, pieces))

    def most_likely_path(self) -> Path:
        start, pieces = self._chain([*self.discrete, *self.members])
        return self._path(*self._each(discrete_chain.viterbi, start, pieces))

    def marginals(self) -> dict[str, Array]:
        """Probabilities of the values of each discrete site: ``(T, *entries, k)``, for roots without time."""
        layout = self.layout
        start, pieces = self._chain([*self.discrete, *self.members])
        smoothed = self._each(discrete_chain.smooth, start, pieces)
        result = {}
        joint = self._systems_last(smoothed.marginals)  # (T, K, *systems)
        for name in layout.sites:
            result[name] = jax.vmap(lambda p, name=name: _entries(layout.sites, name, p))(joint)
        if layout.roots:
            first = self._systems_last(smoothed.start)
            first = first.reshape(-1, *first.shape[2:])[: layout.num_roots]
            for name in layout.roots:
                result[name] = _entries(layout.roots, name, first)
        return result

    def values_along(self, path: Path) -> dict[str, Array]:
        """Values of the discrete sites along a path: ``(T, ...)``, for roots without time."""
        layout = self.layout
        result = jax.vmap(lambda z: layout.values(layout.sites, z))(path.values)
        return result | layout.values(layout.roots, path.tuples[0] % layout.num_states)

    def _along(self, path: Path, ask: Callable[[dict[str, Site]], Any], keys: Array | None = None) -> Any:
        """``ask(trace)`` at every step of a path."""
        layout = self.layout
        axes = layout.carry_axes or (None,) * len(layout.touched)

        def at(leaves, x, t, where, state, key):
            leaves = [
                _pick(v, where, a) if on else v for v, on, a in zip(leaves, layout.touched, axes, strict=True)
            ]
            return ask(self._step(leaves, x, t, layout.values(layout.sites, state), key)[2])

        over = (0, 0, 0, 0, 0, None if keys is None else 0)
        time = jnp.arange(self.call.length)
        return jax.vmap(at, in_axes=over)(self._all_carries(), self.call.xs, time, *path, keys)

    def drawn_along(self, path: Path, names: Sequence[str], key: Array) -> dict[str, Array]:
        """New values of sites that no handler gives."""
        keys = jax.random.split(key, self.call.length)
        return self._along(path, lambda trace: {n: trace[n]["value"] for n in names}, keys)

    def anywhere(self) -> tuple[list[Array], Any, dict[str, Site]]:
        """Last carry, outputs and sites along one path, whichever: right where the path does not matter."""
        layout = self.layout
        values = {n: jnp.asarray(s.table[0]) for n, s in layout.sites.items()}
        static: dict[str, Site] = {}

        def step(leaves, inputs):
            leaves, output, trace = self._step(leaves, *inputs, values)
            found: dict[str, dict[str, Any]] = {}
            for name, site in trace.items():
                if site["type"] not in ("sample", "deterministic"):
                    continue
                static[name] = site
                found[name] = {"value": site["value"]}
                if site["type"] == "sample":
                    mask = mask_of(site["fn"])
                    if mask is not None:
                        found[name]["mask"] = over_systems(mask, layout.plates, jnp.any)
                    if is_latent(site):
                        found[name]["fn"] = site["fn"]
            return leaves, (output, found)

        inputs = (self.call.xs, jnp.arange(self.call.length))

        def first(leaves, axis):
            return [jnp.take(v, 0, axis) if on else v for v, on in zip(leaves, layout.touched, strict=True)]

        if self._concrete:  # the carries may never be asked for
            last, (output, found) = jax.lax.scan(step, first(self._start, 0), inputs)
        else:
            last, (output, found) = jax.vmap(step)(first(self._all_carries(), 1), inputs)
            last = [leaf[-1] for leaf in last]
        return last, output, {n: {**static[n], **found[n]} for n in static}

    # ------------------------------------------------------------------------------ laws of the sites
    def replicated(self, name: str, key: Array) -> Array:
        """A new series at a site, on a new path from its law given the latent values."""
        key_path, key_noise = jax.random.split(key)
        path = self.sample_path(key_path, [n for n in self.members if is_latent(self.sites[n])])
        return self._draw(name, path, key_noise)

    def ahead(self, name: str, key: Array) -> Array:
        """At every step a draw of a site given all that precedes it."""
        key_path, key_noise = jax.random.split(key)
        earlier = self.members[: self.members.index(name)] if name in self.members else []
        laws = self._ahead([*self.discrete, *earlier])
        joint = jnp.concatenate([law.reshape(len(law), -1, *self.layout.systems) for law in laws])
        top = joint.max(1, keepdims=True)
        cumulative = jnp.cumsum(jnp.exp(joint - jnp.where(jnp.isfinite(top), top, 0.0)), 1)
        # By inversion: a draw by Gumbel noise takes three times as long to compile.
        uniform = jax.random.uniform(key_path, top.shape, joint.dtype) * cumulative[:, -1:]
        chosen = jnp.minimum((cumulative <= uniform).sum(1), joint.shape[1] - 1)
        number = self.layout.num_values
        return self._draw(name, Path(chosen // number, chosen % number), key_noise)

    def _draw(self, name: str, path: Path, key: Array) -> Array:
        fn, value = self._along(path, lambda trace: (trace[name]["fn"], trace[name]["value"]))
        return replicate({"fn": promote_batch_shape(fn), "value": value}, key)

    def admits(self, name: str) -> Array:
        """``(T, *systems)``: whether the value of a site is in its support in some state."""
        layout = self.layout

        def fits(leaves, values, x, t):
            site = self._step(leaves, x, t, values)[2][name]
            return over_systems(site["fn"].support(site["value"]), layout.plates, jnp.all)

        axes = [0 if on else None for on in layout.touched]
        fits = jax.vmap(fits, in_axes=(None, 0, None, None))
        fits = jax.vmap(fits, in_axes=(axes, None, None, None), axis_size=layout.num_tuples)
        found = jax.vmap(fits, in_axes=(0, None, 0, 0))(
            self._all_carries(), self._all_values(), self.call.xs, jnp.arange(self.call.length)
        )
        return found.any((1, 2))

    def law(self, name: str, site: dict[str, Any]) -> SummedSite:
        """The law of a site that is not discrete: see :class:`SummedSite`."""
        value = site["value"]
        base = self.sites[name]["fn"]
        lead = value.ndim - base.event_dim
        batch = 1 + _systems_depth(lead - 1, self.layout.plates)
        support: Any
        if is_latent(site):
            support = promote_batch_shape(site["fn"]).support
            extra = lead - batch
            support = constraints.independent(support, extra) if extra else support
        else:
            support = _Admitted(
                lambda: _in_place(self.admits(name), value.shape[:batch], self.layout.plates),
                base.support.is_discrete,
                value.ndim - batch,
            )
        return SummedSite(
            value.shape[:batch],
            value.shape[batch:],
            support,
            lambda: _in_place(self.terms[name], value.shape[:batch], self.layout.plates),
            lambda key: self.replicated(name, key),
            lambda key: self.ahead(name, key),
        )


def _systems_depth(batch_ndim: int, plates: tuple[Plate, ...]) -> int:
    """How many leading axes of a batch hold all of the plates."""
    return batch_ndim + plates[-1].dim + 1 if plates else 0


def _in_place(x: Array, shape: tuple[int, ...], plates: tuple[Plate, ...]) -> Array:
    """From ``(T, *systems)`` to the leading axes of a site, of length one where those are no system."""
    if not plates:
        return x
    last = plates[-1].dim
    places = {len(shape) - 1 + p.dim - last for p in plates}
    return x.reshape(tuple(n if axis in places or axis == 0 else 1 for axis, n in enumerate(shape)))


def _entries(supports: Mapping[str, Support], name: str, joint: Array) -> Array:
    """Marginals of the entries of one site, ``(*entries, k)``, from the joint ``(K, *systems)`` of all."""
    systems = joint.shape[1:]
    place = list(supports).index(name)
    joint = joint.reshape(*(s.size for s in supports.values()), *systems)
    count = len(supports)
    joint = joint.sum(tuple(axis for axis in range(count) if axis != place))
    support = supports[name]
    free, k = support.free, len(support.values)
    number = int(np.prod(free))
    joint = joint.reshape(*(k,) * number, *systems)
    each = [joint.sum(tuple(i for i in range(number) if i != j)) for j in range(number)]
    table = jnp.moveaxis(jnp.stack(each, -1), 0, -1).reshape(*systems, *free, k)
    table = jnp.squeeze(table, tuple(len(systems) + axis for axis in support.systems))
    return jnp.moveaxis(table, tuple(range(len(systems))), support.systems)


class _Admitted(constraints.Constraint):
    """In the support of the law of at least one state."""

    def __init__(self, fits: Callable[[], Array], is_discrete: bool, event_dim: int):
        self._fits, self.is_discrete, self.event_dim = fits, is_discrete, event_dim

    def __call__(self, x: Any) -> Array:
        return self._fits()

    def feasible_like(self, prototype: Array) -> Array:
        return prototype

    def eq(self, other: object, static: bool = False) -> bool:
        return self is other


class SummedSite(dist.Distribution):
    """Law of a site given all that precedes it in the model, a discrete path summed out.

    It belongs to one run of the model and to the value that the site has there: ``log_prob`` has the shape of time
    and of the independent plates and disregards its argument. The terms of all sites add up to the joint density.

    ``sample`` draws a new series, on a new path; ``sample_one_step_ahead`` draws every entry given the values
    before it.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        batch_shape: tuple[int, ...],
        event_shape: tuple[int, ...],
        support: Any,
        terms: Callable[[], Array],
        draw: Callable[[Array], Array],
        ahead: Callable[[Array], Array] | None = None,
    ):
        self._support, self._terms, self._draw, self._ahead = support, terms, draw, ahead
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    def support(self):
        return self._support

    def log_prob(self, value, intermediates=None):
        return self._terms()

    def sample(self, key, sample_shape=()):
        if not sample_shape:
            return self._draw(key)
        keys = jax.random.split(key, int(np.prod(sample_shape)))
        draws = jax.vmap(self._draw)(keys)
        return draws.reshape((*sample_shape, *draws.shape[1:]))

    def sample_one_step_ahead(self, key: Array, value: Any) -> Array:
        """At every step a draw given all that precedes it, of the shape of the series."""
        return self._ahead(key) if self._ahead is not None else self._draw(key)
