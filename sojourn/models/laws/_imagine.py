"""One step of a world forward, from a state, an action and rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sojourn.models.laws._cast import Cast, LawShape, cast_one
from sojourn.models.laws._law import Law
from sojourn.models.laws._space import ALIVE, GONE, Space
from sojourn.ops import law_race

__all__ = ["Beliefs", "codes_of", "decode_into", "levels_of", "next_codes"]

Beliefs = Mapping[str, Any]
"""Values of a world's sites by name, as its model has them."""


def levels_of(space: Space, laws: Sequence[Law], shapes: Sequence[LawShape]) -> list[int]:
    """The phase in which each law acts: after all attributes that it sees updated."""
    level = dict.fromkeys(space.attributes, 0)
    changed = True
    for _ in range(len(space) + 1):
        changed = False
        for law, shape in zip(laws, shapes, strict=True):
            written = [w.attribute.name for w in shape.writes]
            least = max([level[n] for n in written] + [level[n] + 1 for n in law.after])
            changed |= any(level[n] < least for n in written)
            level |= {n: max(level[n], least) for n in written}
        if not changed:
            break
    for law, shape in zip(laws, shapes, strict=True):
        for write in shape.writes:
            if write.attribute.name in law.after:
                raise ValueError(
                    f"law {law.name!r} cannot see {write.attribute.name!r} after the step: it writes it itself."
                )
    if changed:
        circle = [law.name for law in laws if law.after]
        raise ValueError(
            f"Some of the laws {', '.join(map(repr, circle))} wait for each other: what one is to see after the step "
            "(`after`) is written by another that in turn sees what the first writes, or is tied to it."
        )
    return [level[shape.writes[0].attribute.name] for shape in shapes]


def codes_of(space: Space, state: Mapping[str, Any]) -> Array:
    """``(num_cells,)``: values of one state; ``gone`` is 0."""
    columns = []
    for attribute in space:
        if attribute.field == GONE and attribute.group is not None:
            columns.append(jnp.zeros(attribute.slots, jnp.int32))
            continue
        value = state[attribute.name] if attribute.group is None else state[attribute.group][attribute.field]
        columns.append(jnp.atleast_1d(attribute.encode(value)))
    return jnp.concatenate(columns)


def decode_into(space: Space, state: Mapping[str, Any], codes: Array) -> dict[str, Any]:
    """``state`` with these values; objects whose ``gone`` is 1 are alive no more, and dead ones stay as they were."""
    after: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in state.items()}
    for attribute in space:
        code = codes[attribute.first : attribute.first + attribute.slots]
        if attribute.group is None:
            old = jnp.asarray(state[attribute.name])
            after[attribute.name] = attribute.decode(code[0]).astype(old.dtype)
            continue
        members = after[attribute.group]
        alive = jnp.asarray(state[attribute.group].get(ALIVE, np.ones(attribute.slots, bool))).astype(bool)
        if attribute.field == GONE:
            members[ALIVE] = alive & (code == 0)
            continue
        old = jnp.asarray(members[attribute.field])
        new = attribute.decode(code).astype(old.dtype)
        members[attribute.field] = jnp.where(alive.reshape(alive.shape + (1,) * (new.ndim - 1)), new, old)
    return after


def next_codes(
    world: Any, key: Array, state: Mapping[str, Any], action: Any, beliefs: Beliefs, leaks: bool
) -> Array:
    """``(num_cells,)``: a draw of the next state's values.

    With ``leaks`` the draw is exactly from the model's density, with the small probabilities of values that no law
    names; without, only named values come.
    """
    space: Space = world.space
    before = codes_of(space, state)
    codes = before
    draw = _competing if world.pool == "hazard" else _log_linear
    levels = world.levels
    for level in sorted(set(levels)):
        after = decode_into(space, state, codes) if level else state
        chosen = [i for i, own in enumerate(levels) if own == level]
        casts = [
            cast_one(space, world.laws[i], state, after, action, world.law_parameters(i, beliefs))
            for i in chosen
        ]
        key, key_level = jax.random.split(key)
        codes = draw(world, key_level, chosen, casts, before, codes, beliefs, leaks)
    if leaks and world.pool == "hazard":
        codes = _leak_untouched(world, key, codes, beliefs)
    return codes


def _leak_untouched(world: Any, key: Array, codes: Array, beliefs: Beliefs) -> Array:
    """Attributes that no law ever writes change by the frame's own rate."""
    written = {w.attribute.name for shape in world.shapes for w in shape.writes}
    idle = np.concatenate([np.full(a.slots, a.name not in written) for a in world.space])
    return _leak(world, key, codes, idle, beliefs["change"][world.attribute_of])


def _leak(world: Any, key: Array, codes: Array, where: Any, rate: Any) -> Array:
    key_leak, key_value = jax.random.split(key)
    sizes = jnp.asarray(world.sizes)[world.attribute_of]
    leaks = (jax.random.uniform(key_leak, codes.shape) < rate) & where
    return jnp.where(leaks, jax.random.randint(key_value, codes.shape, 0, sizes), codes)


def _competing(
    world: Any,
    key: Array,
    chosen: Sequence[int],
    casts: Sequence[Cast],
    before: Array,
    codes: Array,
    beliefs: Beliefs,
    leaks: bool,
) -> Array:
    del before  # what no law writes stays as it is in `codes`
    cells = world.space.num_cells
    key_race, key_leak, *keys = jax.random.split(key, 2 + len(chosen))
    hazards, masks, outcomes = [], [], []
    for i, cast, key_law in zip(chosen, casts, keys, strict=True):
        where = world.cells[i]  # (slots, writes)
        slots = len(where)
        active = jnp.reshape(cast.active, (slots,))
        hazards.append(jnp.where(active, beliefs["hazard"][i], 0.0))
        mask = np.zeros((slots, cells), bool)
        mask[np.arange(slots)[:, None], where] = True
        masks.append(mask)
        outcome = jnp.zeros((slots, cells), codes.dtype)
        for j, write in enumerate(world.shapes[i].writes):
            key_law, key_write = jax.random.split(key_law)
            if write.uniform:
                value = jax.random.randint(key_write, (slots,), 0, write.attribute.size)
            else:
                values = cast.values[j].reshape(slots, -1)
                probs = cast.probs[j].reshape(slots, -1)
                which = jax.random.categorical(key_write, jnp.log(jnp.maximum(probs, 1e-30)))
                value = jnp.take_along_axis(values, which[:, None], 1)[:, 0]
                value = jnp.clip(value, 0, write.attribute.size - 1)
            outcome = outcome.at[np.arange(slots), where[:, j]].set(value.astype(codes.dtype))
        outcomes.append(outcome)
    mask = np.concatenate(masks)
    writer = law_race.fire(key_race, jnp.concatenate(hazards), jnp.asarray(mask))
    outcome = jnp.concatenate(outcomes)
    drawn = jnp.take_along_axis(outcome, jnp.maximum(writer, 0)[None], 0)[0]
    result = jnp.where(writer >= 0, drawn, codes)
    if leaks:
        change = beliefs["change"][world.attribute_of]
        rate = jnp.where(writer >= 0, world.noise, change)
        result = _leak(world, key_leak, result, mask.any(0), rate)
    return result


def _log_linear(
    world: Any,
    key: Array,
    chosen: Sequence[int],
    casts: Sequence[Cast],
    before: Array,
    codes: Array,
    beliefs: Beliefs,
    leaks: bool,
) -> Array:
    """Cell by cell: the values that laws name, each with its score."""
    del leaks  # a value that no law names would need the whole support
    result = codes
    for attribute in world.space:
        votes = []  # (values (slots, K), probs, weight (slots,))
        for i, cast in zip(chosen, casts, strict=True):
            slots = len(world.cells[i])
            active = jnp.reshape(cast.active, (slots,))
            weight = jnp.where(active, beliefs["weight"][i], 0.0)
            for j, write in enumerate(world.shapes[i].writes):
                if write.attribute.name != attribute.name:
                    continue
                if write.uniform:
                    continue  # the same score for every value
                values, probs = cast.values[j].reshape(slots, -1), cast.probs[j].reshape(slots, -1)
                if attribute.group is not None:
                    votes.append((values, probs, weight))
                else:
                    votes += [(values[s][None], probs[s][None], weight[s][None]) for s in range(slots)]
        if not votes:
            continue
        key, key_cell = jax.random.split(key)
        columns = slice(attribute.first, attribute.first + attribute.slots)
        now = before[columns]
        candidates = jnp.concatenate([now[:, None], *(v for v, _, _ in votes)], 1)  # (slots, J)
        kappa = (1 - world.noise) / world.noise * attribute.size

        def score(p, kappa=kappa):
            return jnp.log1p(kappa * p) if world.boost is None else world.boost * (p > 0)

        total = beliefs["frame"][list(world.space.attributes).index(attribute.name)] * score(
            1.0 * (candidates == now[:, None])
        )
        for values, probs, weight in votes:
            named = (probs[:, :, None] * (values[:, :, None] == candidates[:, None, :])).sum(1)
            total = total + weight[:, None] * score(named)
        same = candidates[:, :, None] == candidates[:, None, :]
        first = same.argmax(-1) == jnp.arange(candidates.shape[-1])
        which = jax.random.categorical(key_cell, jnp.where(first, total, -jnp.inf))
        result = result.at[columns].set(jnp.take_along_axis(candidates, which[:, None], 1)[:, 0])
    return result
