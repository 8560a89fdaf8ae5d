"""Running laws on states: which hold, and what they would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sojourn._arguments import must_be
from sojourn.models.laws._law import Effect, Law, View
from sojourn.models.laws._space import ALIVE, GONE, Attribute, Space

__all__ = ["Cast", "LawShape", "Write", "cast_one", "numeric", "shapes_of", "with_shape", "with_updates"]


class Write(NamedTuple):
    """One attribute that a law writes."""

    attribute: Attribute
    num_outcomes: int
    uniform: bool


class LawShape(NamedTuple):
    """What a law writes and reads, wherever it holds."""

    writes: tuple[Write, ...]
    reads: frozenset[tuple[str, bool]]
    """Attributes read of the world or of all objects, and whether as they are after the step."""
    own_reads: frozenset[tuple[str, bool]]
    """Those of the law's own object."""

    def cells(self, law: Law, space: Space) -> np.ndarray:
        """``(slots, writes)``: the cells that the law of each slot writes."""
        slots = space.groups[law.each] if law.each else 1
        columns = [
            w.attribute.first + (np.arange(slots) if w.attribute.group else np.zeros(slots, int))
            for w in self.writes
        ]
        return np.stack(columns, 1)


class Cast(NamedTuple):
    """One law on one transition: shapes with a leading ``(slots,)`` for laws of objects."""

    active: Any
    values: tuple[Any, ...]
    """``(K,)`` by write: codes."""
    probs: tuple[Any, ...]


def numeric(state: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays as laws compute with them: whole numbers as int32, whatever they are stored as."""
    must_be(isinstance(state, Mapping), "states", "a mapping from names to arrays", state)
    result: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            result[name] = numeric(value)
            continue
        array = np.asarray(value) if not isinstance(value, jax.Array) else value
        if array.dtype.kind in "iu":
            result[name] = array.astype(np.int32)
        elif array.dtype.kind in "fb":
            result[name] = array if array.dtype.kind == "b" else array.astype(jnp.result_type(float))
    return result


def with_updates(
    space: Space, state: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str]
) -> Any:
    """``state`` with the attributes ``names`` as they are in ``after``; objects that are gone keep theirs."""
    if not names:
        return state
    result = {k: dict(v) if isinstance(v, Mapping) else v for k, v in state.items()}
    for name in names:
        attribute = space.attributes[name]
        if attribute.group is None:
            result[name] = after[name]
            continue
        now, then = result[attribute.group], after[attribute.group]
        stays = then.get(ALIVE, jnp.ones(attribute.slots, bool))
        if attribute.field == GONE:
            now[GONE] = now.get(ALIVE, jnp.ones(attribute.slots, bool)) & ~stays
            continue
        new, old = then[attribute.field], now[attribute.field]
        now[attribute.field] = jnp.where(stays.reshape(stays.shape + (1,) * (new.ndim - 1)), new, old)
    return result


def cast_one(
    space: Space,
    law: Law,
    state: Mapping[str, Any],
    after: Mapping[str, Any],
    action: Any,
    parameters: Mapping[str, Any],
    shape: dict[str, Any] | None = None,
) -> Cast:
    """A law on one state (no leading axis) and action.

    Args:
        after: the state after the step, of which only ``law.after`` is read.
        parameters: values of the law's parameters, by their own names.
        shape: takes up what the law writes and reads.
    """
    reads: set[tuple[str, bool]] = set()
    own: set[tuple[str, bool]] = set()
    fresh = frozenset(law.after)
    seen = with_updates(space, state, after, law.after)
    view = View(seen, reads, fresh, of=law.name)
    view.before = View(state, reads, of=law.name)
    found: dict[str, Any] = {}

    def arrays(effect: Effect) -> Cast:
        if not isinstance(effect, Effect):
            raise ValueError(
                f"law {law.name!r} must return when(condition, attribute=value, ...), not {type(effect).__name__}."
            )
        active = jnp.asarray(effect.condition)
        if active.shape:
            raise ValueError(
                f"law {law.name!r}: its condition has shape {active.shape}; it must be one truth value (.any(), .all())."
            )
        values, probs, writes = [], [], []
        for name, outcome in effect.writes.items():
            attribute = space.find(name, law.each)
            if attribute is None:
                raise ValueError(
                    f"law {law.name!r} writes {name!r}, which the space lacks; it has {', '.join(space.attributes)}."
                )
            wanted = (2,) if attribute.kind == "cells" else ()
            if not outcome.uniform and any(jnp.shape(v) != wanted for v in outcome.values):
                what = "a pair (x, y)" if wanted else "one number"
                raise ValueError(f"law {law.name!r}: the value it writes to {name!r} must be {what}.")
            codes = [jnp.int32(0)] if outcome.uniform else [attribute.encode(v) for v in outcome.values]
            values.append(jnp.stack(codes))
            probs.append(jnp.stack([jnp.asarray(p, jnp.result_type(float)) for p in outcome.probs]))
            writes.append(Write(attribute, len(codes), outcome.uniform))
        found["writes"] = tuple(writes)
        return Cast(active.astype(bool), tuple(values), tuple(probs))

    if law.each is None:
        result = arrays(law.function(view, action, **parameters))
    else:
        objects = dict(seen[law.each])
        alive = objects.setdefault(ALIVE, jnp.ones(space.groups[law.each], bool))
        before = dict(state[law.each])

        def each(member, member_before):
            this = View(member, own, fresh, f"{law.each}.", law.name)
            this.before = View(member_before, own, prefix=f"{law.each}.", of=law.name)
            return arrays(law.function(this, view, action, **parameters))

        result = jax.vmap(each)(objects, before)
        result = result._replace(active=result.active & alive)
    if shape is not None:
        shape["shape"] = LawShape(found["writes"], frozenset(reads), frozenset(own))
    return result


def shapes_of(
    space: Space, laws: Sequence[Law], state: Mapping[str, Any], action: Any, parameters: Mapping[str, Any]
) -> list[LawShape]:
    """What each law writes and reads, without computing anything."""
    found = []
    for law in laws:
        shape: dict[str, Any] = {}
        jax.eval_shape(
            lambda s, a, p, law=law, shape=shape: cast_one(space, law, s, s, a, p, shape),
            state,
            action,
            parameters[law.name],
        )
        found.append(shape["shape"])
    return found


def with_shape(one: Any, states: Any, actions: Any) -> tuple[LawShape, Cast]:
    """``one(state, action, shape)`` over stacked states, and what it put into ``shape``."""
    shape: dict[str, Any] = {}
    cast = jax.jit(jax.vmap(lambda s, a: one(s, a, shape)))(states, actions)
    return shape["shape"], cast
