"""The state as sample sites in a ``scan``: worlds of which not everything is seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from sojourn.models.laws._cast import cast_one, numeric
from sojourn.models.laws._imagine import codes_of, decode_into
from sojourn.models.laws._space import ALIVE, GONE, HIDDEN, Space
from sojourn.ops import law_race

__all__ = ["path_model"]

_PINNED = -2  # nothing to tell: a cell of an object that is not there, which reads 0


@dataclass(frozen=True, eq=False)
class _Ties:
    """Cells of one phase in groups that laws tie together: Q groups of C cells, M laws, K outcomes."""

    laws: tuple[int, ...]
    """Laws of the phase."""
    instance: np.ndarray
    """``(Q, M)``: numbers of laws by slot, the last for none."""
    cell: np.ndarray
    """``(Q, C)``: as many as there are cells for none."""
    write: np.ndarray
    """``(Q, M, C)``: which of the law's writes it is, -1 for none."""
    exclusive: np.ndarray
    """``(Q,)``: at most one law of the group can fire."""
    most_values: int
    """Largest support of a cell of the phase."""


def _ties(world: Any, level: int) -> _Ties:
    space: Space = world.space
    laws = tuple(i for i, own in enumerate(world.levels) if own == level)
    instances = [(i, slot, cells) for i in laws for slot, cells in enumerate(world.cells[i])]
    phase = _phase_of_cells(world)
    group = np.arange(space.num_cells)
    for _, _, cells in instances:
        joined = np.isin(group, group[cells])
        group[joined] = group[joined].min()
    cells_of = [
        np.flatnonzero(group == g) for g in np.unique(group) if phase[np.flatnonzero(group == g)[0]] == level
    ]
    laws_of = [[n for n, (_, _, w) in enumerate(instances) if np.isin(w, c).any()] for c in cells_of]
    width, depth = max(map(len, cells_of)), max(1, *map(len, laws_of))
    instance = np.full((len(cells_of), depth), len(instances))
    cell = np.full((len(cells_of), width), space.num_cells)
    write = np.full((len(cells_of), depth, width), -1)
    exclusive = np.ones(len(cells_of), bool)
    for q, (cells, mine) in enumerate(zip(cells_of, laws_of, strict=True)):
        instance[q, : len(mine)] = mine
        cell[q, : len(cells)] = cells
        for m, n in enumerate(mine):
            for j, c in enumerate(instances[n][2]):
                write[q, m, int(np.flatnonzero(cells == c)[0])] = j
        used = (write[q, : len(mine)] >= 0).astype(int)
        exclusive[q] = bool(((used @ used.T) > 0).all())
        if not exclusive[q] and len(cells) > law_race.MOST_CELLS:
            names = sorted({world.names[instances[n][0]] for n in mine})
            raise NotImplementedError(
                f"path: the laws {', '.join(names)} tie {len(cells)} attributes to each other, and at most "
                f"{law_race.MOST_CELLS} can be followed together; let them write fewer, or use World.model."
            )
    sizes = world.sizes[world.attribute_of]
    most = int(max(sizes[c].max() for c in cells_of))
    return _Ties(laws, instance, cell, write, exclusive, most)


def _phase_of_cells(world: Any) -> np.ndarray:
    phase = dict.fromkeys(world.space.attributes, 0)
    for level, shape in zip(world.levels, world.shapes, strict=True):
        for write in shape.writes:
            phase[write.attribute.name] = level
    return np.concatenate([np.full(a.slots, phase[a.name]) for a in world.space])


class _Situation(NamedTuple):
    """Laws of one phase on one state, as arrays by group."""

    hazard: Array  # (Q, M)
    values: Array  # (Q, M, C, K)
    probs: Array
    uniform: Array  # (Q, M, C)
    change: Array  # (Q, C)
    size: Array
    current: Array


class _NextValues(dist.Distribution):
    """Next values of the cells of one phase, given those that were seen.

    ``observed`` holds them, -1 for the others. ``log_seen()`` is the log-probability of those seen; the distribution is
    that of all given these, so that both together are the law of the next state.
    """

    support = constraints.independent(constraints.integer_greater_than(-3), 1)
    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("situation", "observed")
    pytree_aux_fields = ("ties", "noise")

    def __init__(
        self, situation: _Situation, observed: Array, ties: Any, noise: float, *, validate_args=None
    ):
        self.situation = situation
        self.observed = observed
        self.ties = ties
        self.noise = noise
        super().__init__((), jnp.shape(observed), validate_args=validate_args)

    def groups_log_prob(self, codes: Array) -> Array:
        """``(..., Q)``: log-probability of ``codes`` ``(..., Q, C)``; those below zero are summed out.

        Leading axes are those of a scan, along which NumPyro stacks the law of a site.
        """
        s, write = self.situation, self.ties.write
        hit = (s.values == codes[..., None, :, None]) & (codes >= 0)[..., None, :, None]
        size = s.size[..., None, :]
        exact = jnp.where(s.uniform, 1.0 / size, (s.probs * hit).sum(-1))
        seen = (1 - self.noise) * exact + self.noise / size
        frame = jnp.where(codes == s.current, 1 - s.change, 0.0) + s.change / s.size
        seen = jnp.where((codes < 0)[..., None, :], 1.0, seen)
        frame = jnp.where(codes < 0, 1.0, frame)
        writes = jnp.asarray(write >= 0)
        one = law_race.at_most_one(s.hazard, writes, seen, frame)
        some = np.flatnonzero(~self.ties.exclusive)
        if not len(some):
            return one
        joint = law_race.race(
            s.hazard[..., some, :], writes[some], seen[..., some, :, :], frame[..., some, :]
        )
        return one.at[..., some].set(joint)

    def _grouped(self, codes: Array) -> Array:
        return _with_last(codes, HIDDEN)[..., self.ties.cell]

    def log_seen(self) -> Array:
        """Log-probability of what was seen."""
        return self.groups_log_prob(self._grouped(self.observed)).sum(-1)

    def log_prob(self, value: Array) -> Array:
        """Of all values, those that were seen being given; elsewhere than in this phase nothing is asked."""
        whole = jnp.where(self.observed == _PINNED, _PINNED, value)
        agrees = (self.observed == HIDDEN) | (value == jnp.maximum(self.observed, 0))
        agrees = _with_last(agrees, True)[..., self.ties.cell].all((-2, -1))
        log_prob = self.groups_log_prob(self._grouped(whole)).sum(-1) - self.log_seen()
        return jnp.where(agrees, log_prob, -jnp.inf)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Cell by cell within each group, the cells seen being known; other phases' cells are 0."""
        if sample_shape:
            keys = jax.random.split(key, int(np.prod(sample_shape)))
            return jax.vmap(self.sample)(keys).reshape(*sample_shape, *self.event_shape)
        codes = self._grouped(self.observed)
        numbers = jnp.arange(self.ties.most_values, dtype=codes.dtype)
        for c in range(codes.shape[1]):
            tried = jax.vmap(lambda v, c=c, codes=codes: self.groups_log_prob(codes.at[:, c].set(v)))(numbers)
            tried = jnp.where(numbers[:, None] < self.situation.size[:, c], tried, -jnp.inf)
            key, key_cell = jax.random.split(key)
            drawn = jax.random.categorical(key_cell, tried, axis=0).astype(codes.dtype)
            codes = codes.at[:, c].set(jnp.where(codes[:, c] == HIDDEN, drawn, codes[:, c]))
        flat = jnp.zeros(self.event_shape[0] + 1, self.observed.dtype)
        return flat.at[self.ties.cell].set(jnp.maximum(codes, 0).astype(flat.dtype))[:-1]


def _with_last(x: Array, value: Any) -> Array:
    last = jnp.full((*x.shape[:-1], 1), value, x.dtype)
    return jnp.concatenate([x, last], -1)


class _Seen(dist.Distribution):
    """Whether what was seen came: its log-probability, next to the values that it is given with."""

    support = constraints.boolean
    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("log_seen",)

    def __init__(self, log_seen: Array, *, validate_args=None):
        self.log_seen = log_seen
        super().__init__(jnp.shape(log_seen), (), validate_args=validate_args)

    def log_prob(self, value: Array) -> Array:
        not_seen = jnp.log(
            -jnp.expm1(jnp.minimum(self.log_seen, -1e-7))
        )  # where nothing was to be seen: log 1
        return jnp.where(jnp.asarray(value) == 1, self.log_seen, not_seen)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape))
        return (jnp.log(u) < self.log_seen).astype(jnp.int32)


def _situation(world: Any, ties: _Ties, state: Any, after: Any, action: Any, beliefs: Any, before: Array):
    """Laws of one phase as arrays."""
    space: Space = world.space
    hazards, values, probs, uniform = [], [], [], []
    most = max((w.num_outcomes for i in ties.laws for w in world.shapes[i].writes), default=1)
    writes = max((len(world.shapes[i].writes) for i in ties.laws), default=1)
    for i in ties.laws:
        cast = cast_one(space, world.laws[i], state, after, action, world.law_parameters(i, beliefs))
        slots = len(world.cells[i])
        hazards.append(jnp.where(jnp.reshape(cast.active, (slots,)), beliefs["hazard"][i], 0.0))
        v = jnp.full((slots, writes, most), -1)
        p = jnp.zeros((slots, writes, most), beliefs["hazard"].dtype)
        u = np.zeros((slots, writes), bool)
        for j, one in enumerate(world.shapes[i].writes):
            u[:, j] = one.uniform
            if not one.uniform:
                v = v.at[:, j, : one.num_outcomes].set(cast.values[j].reshape(-1, one.num_outcomes))
                p = p.at[:, j, : one.num_outcomes].set(cast.probs[j].reshape(-1, one.num_outcomes))
        values.append(v)
        probs.append(p)
        uniform.append(u)
    dtype = beliefs["hazard"].dtype
    hazard = jnp.concatenate([*hazards, jnp.zeros(1, dtype)])[ties.instance]
    v = jnp.concatenate([*values, jnp.full((1, writes, most), -1)])
    p = jnp.concatenate([*probs, jnp.zeros((1, writes, most), dtype)])
    u = np.concatenate([*uniform, np.zeros((1, writes), bool)])
    at = ties.instance[:, :, None], np.maximum(ties.write, 0)
    attribute = np.append(world.attribute_of, 0)[ties.cell]
    size = np.where(ties.cell < space.num_cells, world.sizes[attribute], 1)
    change = jnp.where(ties.cell < space.num_cells, beliefs["change"][attribute], 0.5)
    current = jnp.append(before, 0)[ties.cell]
    return _Situation(hazard, v[at], p[at], jnp.asarray(u[at]), change, jnp.asarray(size), current)


def path_model(world: Any, series: Mapping[str, Any], actions: Any) -> None:
    """See :meth:`World.path`."""
    space: Space = world.space
    if world.pool != "hazard":
        raise ValueError("path: hidden attributes are for worlds with pool='hazard'.")
    actions = np.asarray(actions)
    series = numeric(series)
    num = len(actions)
    lengths = {len(x) for x in jax.tree.leaves(series)}
    if num == 0 or lengths != {num + 1}:
        raise ValueError(
            f"path: {num} actions lead through {num + 1} states, and `series` has {sorted(lengths)} rows."
        )
    observed, exists = space.read(series, "series")
    begin, end = (jax.tree.map(lambda x, s=s: x[s], series) for s in (slice(0, num), slice(1, None)))
    following, exists_after = space.read_next(begin, end)
    following = np.where(exists[:-1] & exists_after, following, _PINNED).astype(np.int32)
    first = np.where(exists[0], observed[0], _PINNED).astype(np.int32)
    world.look(jax.tree.map(lambda x: x[0], begin), actions[0])
    beliefs = world.sample_beliefs()
    levels = sorted(set(world.levels) | {0})
    ties = [_ties(world, level) for level in levels]
    phase = _phase_of_cells(world)
    cells = {"event_dims": ["cell"], "event_coords": {"cell": _cell_names(space)}}
    labels = {**cells, "dims_of": {"state": ["time", "cell"]}}

    def step(codes, x):
        given, action, seen, begins = x
        state = _filled(space, given, codes)
        before = codes_of(space, state)
        now, new = before, jnp.zeros_like(before)
        for level, tie in zip(levels, ties, strict=True):
            after = decode_into(space, state, now) if level else state
            situation = _situation(world, tie, state, after, action, beliefs, before)
            # The first state comes from nowhere: no law holds, and any value is as likely as another.
            situation = situation._replace(
                hazard=jnp.where(begins, 0.0, situation.hazard),
                change=jnp.where(begins, 1.0, situation.change),
            )
            law = _NextValues(situation, seen, tie, world.noise)
            log_seen = jnp.where(begins, 0.0, law.log_seen())
            numpyro.sample(f"seen_{level}", _Seen(log_seen), obs=jnp.ones((), jnp.int32))
            drawn = numpyro.sample(f"state_{level}", law, infer=labels)
            now = jnp.where(phase == level, drawn, now)
            new = jnp.where(
                phase == level, drawn, new
            )  # of sampled values alone: what went before is forgotten
        numpyro.deterministic("state", new)
        return new, None

    begin = jax.tree.map(lambda x: np.concatenate([x[:1], x]), begin)
    actions = np.concatenate([actions[:1], actions])
    begins = np.arange(num + 1) == 0
    scan(
        step,
        jnp.zeros(space.num_cells, jnp.int32),
        (begin, actions, np.concatenate([first[None], following]), begins),
    )


def _cell_names(space: Space) -> list[str]:
    return [f"{a.name}[{slot}]" if a.group else a.name for a in space for slot in range(a.slots)]


def _filled(space: Space, given: Mapping[str, Any], codes: Array) -> dict[str, Any]:
    """The state of data and path: context and who is alive from the data, attributes from the path."""
    state: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in given.items()}
    for attribute in space:
        code = codes[attribute.first : attribute.first + attribute.slots]
        if attribute.group is None:
            state[attribute.name] = attribute.decode(code[0])
        elif attribute.field != GONE:
            state[attribute.group][attribute.field] = attribute.decode(code)
    for group, slots in space.groups.items():
        state[group].setdefault(ALIVE, jnp.ones(slots, bool))
    return state
