"""From transitions to rows: each situation once, with how often it was met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from sojourn.distributions import LawRows
from sojourn.models.laws._cast import Cast, LawShape
from sojourn.models.laws._law import Law
from sojourn.models.laws._space import GONE, HIDDEN, Space
from sojourn.ops.law_race import MOST_CELLS

__all__ = ["Book", "Routed", "Router"]

_UNSEEN = -2  # as in LawRows
_ELSEWHERE = -1


@dataclass(frozen=True, eq=False)
class Book:
    """What was met where: kept on the host, never traced."""

    row_of: np.ndarray
    """``(T, num_cells)``: row of the situation whose first cell this is, -1 elsewhere."""
    activations: dict[str, int]
    """How often the condition of each law held (once for every object)."""
    num_rows: int
    """Situations before merging."""
    dropped: int
    """Cells not used because something they depend on was not seen."""
    laws: tuple[str, ...]
    """Names of the laws that the rows count."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routed:
    """Transitions as a world's model takes them; made by :meth:`World.route`."""

    rows: LawRows
    value: Any
    """``(U, C)``: labels of what came."""
    count: Any
    """``(U,)``: how often, or the sum of the transitions' weights."""
    example: Any
    """A state, the one after it and the action between."""
    book: Book = field(metadata={"static": True})

    @property
    def num_transitions(self) -> int:
        """How many transitions there are."""
        return len(self.book.row_of)

    @property
    def activations(self) -> dict[str, int]:
        """How often the condition of each law held: what decides how well its rate is known."""
        return self.book.activations

    def __repr__(self) -> str:
        return (
            f"Routed({self.num_transitions} transitions, {self.book.num_rows} situations, "
            f"{self.rows.num_rows} of them different)"
        )


class _Table(NamedTuple):
    """Different rows of one chunk, before padding."""

    law: np.ndarray
    writes: np.ndarray
    label: np.ndarray
    probs: np.ndarray
    uniform: np.ndarray
    attribute: np.ndarray
    value: np.ndarray


class Router:
    """Collects chunk after chunk."""

    def __init__(self, space: Space, laws: Sequence[Law], shapes: Sequence[LawShape], *, joint: bool):
        self.space = space
        self.laws = laws
        self.shapes = shapes
        self.joint = joint
        self.cells = [shape.cells(law, space) for law, shape in zip(laws, shapes, strict=True)]
        self.attribute_of = space.attribute_of_cell()
        self.sizes = np.array([a.size for a in space])
        self.tables: list[_Table] = []
        self.row_of: list[np.ndarray] = []
        self.activations = dict.fromkeys((law.name for law in laws), 0)
        self.dropped = 0
        self.done = 0

    def add(
        self,
        current: np.ndarray,
        exists: np.ndarray,
        following: np.ndarray,
        exists_after: np.ndarray,
        casts: Sequence[Cast],
    ) -> None:
        """One chunk: values before and after with the cells that exist (``Space.read``), and laws."""
        space = self.space
        # what a law sees of the state after the step: objects that are gone keep their old values
        unseen_after = np.where(exists_after, following == HIDDEN, current == HIDDEN) & exists
        following = np.where(exists_after & (following != HIDDEN), following, _UNSEEN)
        num, cells = current.shape
        unknown = exists & (current == HIDDEN)
        for shape, where in zip(self.shapes, self.cells, strict=True):
            blind = self._blind(shape, (current == HIDDEN) & exists, unseen_after)
            if blind is not None:
                blind = np.broadcast_to(blind, (num, len(where)))
                for slot, cells_of_law in enumerate(where):
                    unknown[:, cells_of_law] |= blind[:, slot : slot + 1]
        component = self._components(casts, num, cells)
        key = np.arange(num)[:, None] * cells + component
        bad = np.zeros(num * cells, bool)
        bad[key[unknown]] = True
        seen = np.zeros(num * cells, bool)
        seen[key[exists & (following != _UNSEEN)]] = True
        used = exists & ~bad[key] & seen[key]
        self.dropped += int((exists & (following != _UNSEEN) & bad[key]).sum())
        # rows in order of (transition, component); each cell's place within its row
        at = np.argwhere(used)
        order = np.lexsort((at[:, 1], key[used]))
        at = at[order]
        keys, start, size = np.unique(key[used][order], return_index=True, return_counts=True)
        row_of_key = np.full(num * cells, -1)
        row_of_key[keys] = np.arange(len(keys))
        row = np.repeat(np.arange(len(keys)), size)
        place = np.arange(len(at)) - np.repeat(start, size)
        width = int(size.max(initial=1))
        places = np.full((num, cells), -1)
        places[at[:, 0], at[:, 1]] = place
        attribute = np.full((len(keys), width), len(space))
        now = np.full((len(keys), width), -1)
        then = np.full((len(keys), width), _UNSEEN)
        attribute[row, place] = self.attribute_of[at[:, 1]]
        now[row, place] = current[at[:, 0], at[:, 1]]
        then[row, place] = following[at[:, 0], at[:, 1]]
        votes = self._votes(casts, key, row_of_key, places, width)
        table, inverse = self._merge(votes, attribute, now, then)
        offset = sum(len(t.law) for t in self.tables)
        self.tables.append(table)
        row_of = np.full((num, cells), -1, np.int32)
        row_of.reshape(-1)[keys] = inverse + offset
        self.row_of.append(row_of)
        self.done += num

    def _blind(self, shape: LawShape, before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
        """Where a law reads what was not seen: ``(T, 1)``, or ``(T, slots)`` for one of objects."""
        blind: Any = None
        for reads, own in ((shape.reads, False), (shape.own_reads, True)):
            for name, fresh in reads:
                attribute = self.space.attributes.get(name)
                if attribute is None or attribute.field == GONE:
                    continue
                hidden: Any = (after if fresh else before)[
                    :, attribute.first : attribute.first + attribute.slots
                ]
                if not hidden.any():
                    continue
                if not own:
                    hidden = hidden.any(1, keepdims=True)
                blind = hidden if blind is None else blind | hidden
        return blind

    def _components(self, casts: Sequence[Cast], num: int, cells: int) -> np.ndarray:
        """``(T, num_cells)``: cells that laws tie together carry the number of the first of them."""
        component = np.broadcast_to(np.arange(cells), (num, cells)).copy()
        ties = [
            (np.asarray(cast.active).reshape(num, -1), where)
            for cast, where in zip(casts, self.cells, strict=True)
            if self.joint and where.shape[1] > 1
        ]
        changed = bool(ties)
        while changed:
            changed = False
            for active, where in ties:
                t, slot = np.nonzero(active)
                for s in np.unique(slot):
                    rows = t[slot == s]
                    block = component[rows[:, None], where[s]]
                    least = np.broadcast_to(block.min(1, keepdims=True), block.shape)
                    if not np.array_equal(least, block):
                        component[rows[:, None], where[s]] = least
                        changed = True
        return component

    def _votes(self, casts: Sequence[Cast], key, row_of_key, places, width: int) -> dict[str, np.ndarray]:
        num = len(key)
        most = max(w.num_outcomes for shape in self.shapes for w in shape.writes)
        parts: list[dict[str, np.ndarray]] = []
        for number, (law, shape, where, cast) in enumerate(
            zip(self.laws, self.shapes, self.cells, casts, strict=True)
        ):
            active = np.asarray(cast.active).reshape(num, -1)
            self.activations[law.name] += int(active.sum())
            t, slot = np.nonzero(active)
            groups = [range(len(shape.writes))] if self.joint else [[j] for j in range(len(shape.writes))]
            for group in groups:
                row = row_of_key[key[t, where[slot, group[0]]]]
                kept = row >= 0
                n = int(kept.sum())
                part = {
                    "row": row[kept],
                    "law": np.full(n, number),
                    "value": np.full((n, width, most), -1),
                    "probs": np.zeros((n, width, most), np.float32),
                    "uniform": np.zeros((n, width), bool),
                    "writes": np.zeros((n, width), bool),
                }
                for j in group:
                    write = shape.writes[j]
                    values = np.asarray(cast.values[j]).reshape(num, -1, write.num_outcomes)
                    probs = np.asarray(cast.probs[j]).reshape(num, -1, write.num_outcomes)
                    values, probs = values[t[kept], slot[kept]], probs[t[kept], slot[kept]]
                    self._check(law, write, values, probs, t[kept])
                    place = places[t[kept], where[slot[kept], j]]
                    here = np.arange(n)
                    if write.uniform:
                        part["uniform"][here, place] = True
                    else:
                        part["value"][here, place, : write.num_outcomes] = values
                        part["probs"][here, place, : write.num_outcomes] = probs
                    part["writes"][here, place] = True
                parts.append(part)
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _check(self, law: Law, write: Any, values: np.ndarray, probs: np.ndarray, t: np.ndarray) -> None:
        attribute = write.attribute
        if not np.all(np.abs(probs.sum(-1) - 1) < 1e-4) or np.any(probs < 0):
            worst = probs[np.argmax(np.abs(probs.sum(-1) - 1))]
            raise ValueError(
                f"law {law.name!r}: the probabilities of the values it writes to {attribute.name!r} do not sum to one: "
                f"{np.round(worst, 4).tolist()}."
            )
        outside = (values < 0) | (values >= attribute.size)
        if not write.uniform and outside.any():
            i, k = np.argwhere(outside)[0]
            what = "a cell off the grid" if attribute.kind == "cells" else str(values[i, k])
            hint = (
                "let its condition, or the value, respect the edge"
                if attribute.kind == "cells"
                else f"declare it as levels({attribute.size}) if it should stop at the end"
            )
            raise ValueError(
                f"law {law.name!r} writes {what} to {attribute.name!r}, outside its support ({attribute.describe()}), "
                f"at transition {self.done + int(t[i])}: {hint}."
            )

    def _merge(self, votes, attribute, now, then) -> tuple[_Table, np.ndarray]:
        """Equal rows made one: values give way to labels."""
        num_rows, width = attribute.shape
        order = np.lexsort((votes["law"], votes["row"]))
        votes = {name: value[order] for name, value in votes.items()}
        per_row = np.bincount(votes["row"], minlength=num_rows)
        depth = max(int(per_row.max(initial=0)), 1)
        voted = np.flatnonzero(per_row)
        slot = np.arange(len(votes["row"])) - np.repeat(
            np.concatenate([[0], np.cumsum(per_row)[:-1]]), per_row
        )
        outcomes = votes["value"].shape[-1]
        none = len(self.laws)
        table = _blank(num_rows, depth, width, outcomes, none)
        table = table._replace(attribute=attribute, value=np.where(then == now, 0, _ELSEWHERE))
        at = votes["row"], slot
        table.law[at] = votes["law"]
        table.writes[at] = votes["writes"]
        table.uniform[at] = votes["uniform"]
        table.probs[at] = votes["probs"]
        if len(voted):
            value = np.full((num_rows, depth, width, outcomes), -1)
            value[at] = votes["value"]
            mentioned = np.moveaxis(value[voted], 2, 1).reshape(len(voted), width, -1)
            mentioned = np.concatenate([now[voted][..., None], mentioned], -1)  # (R, C, J)
            label, came = _labels(mentioned, then[voted])
            inner = label[..., 1:].reshape(len(voted), width, depth, outcomes)
            table.label[voted] = np.moveaxis(inner, 1, 2)
            table.value[voted] = came
        table.value[then == _UNSEEN] = _UNSEEN
        return _unique(table)

    def finish(self, weights: np.ndarray | None, example: Any) -> Routed:
        """All chunks merged."""
        depth = max(t.law.shape[1] for t in self.tables)
        width = max(t.attribute.shape[1] for t in self.tables)
        outcomes = self.tables[0].label.shape[-1]
        none = len(self.laws)
        padded = []
        for table in self.tables:
            n, m, c = table.writes.shape
            wide = _blank(n, depth, width, outcomes, none, len(self.space))
            wide.law[:, :m] = table.law
            wide.writes[:, :m, :c] = table.writes
            wide.label[:, :m, :c] = table.label
            wide.probs[:, :m, :c] = table.probs
            wide.uniform[:, :m, :c] = table.uniform
            wide.attribute[:, :c] = table.attribute
            wide.value[:, :c] = table.value
            padded.append(wide)
        whole = _Table(*(np.concatenate(parts) for parts in zip(*padded, strict=True)))
        table, inverse = _unique(whole)
        row_of = np.concatenate(self.row_of)
        row_of = np.where(row_of >= 0, inverse[np.maximum(row_of, 0)], -1).astype(np.int32)
        t, _ = np.nonzero(row_of >= 0)
        found = row_of[row_of >= 0]
        each = None if weights is None else np.asarray(weights, float)[t]
        count = np.bincount(found, weights=each, minlength=len(table.law)).astype(float)
        several = _several(table)
        if len(several) and (table.writes[several].any(1).sum(1) > MOST_CELLS).any():
            worst = several[np.argmax(table.writes[several].any(1).sum(1))]
            names = ", ".join(sorted({self.laws[i].name for i in table.law[worst] if i < none}))
            raise NotImplementedError(
                f"The laws {names} hold together and tie more than {MOST_CELLS} attributes to each other: "
                "let a law write fewer of them."
            )
        rows = LawRows(
            law=table.law,
            writes=table.writes,
            label=table.label,
            probs=table.probs,
            uniform=table.uniform,
            attribute=table.attribute,
            size=np.append(self.sizes, 1)[table.attribute],
            named=np.maximum(table.label.max((1, 3)), 0) + 1,
            several=several,
        )
        book = Book(row_of, self.activations, len(found), self.dropped, tuple(one.name for one in self.laws))
        return Routed(rows, table.value, count, example, book)


def _blank(rows: int, depth: int, width: int, outcomes: int, none: int, no_cell: int = 0) -> _Table:
    return _Table(
        law=np.full((rows, depth), none),
        writes=np.zeros((rows, depth, width), bool),
        label=np.full((rows, depth, width, outcomes), -1),
        probs=np.zeros((rows, depth, width, outcomes), np.float32),
        uniform=np.zeros((rows, depth, width), bool),
        attribute=np.full((rows, width), no_cell),
        value=np.full((rows, width), _UNSEEN),
    )


def _labels(mentioned: Any, came: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of first occurrence along the last axis, -1 for -1; and that of ``came``."""
    rows, width, many = mentioned.shape
    label = np.full(mentioned.shape, -1)
    found = np.full(came.shape, _ELSEWHERE)
    step = max(1, int(2e7 // max(width * many * many, 1)))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        values = mentioned[part]
        first = (values[..., :, None] == values[..., None, :]).argmax(-1)  # where each value occurs first
        rank = np.cumsum((first == np.arange(many)) & (values >= 0), -1) - 1
        label[part] = np.where(values >= 0, np.take_along_axis(rank, first, -1), -1)
        hit = values == came[part][..., None]
        position = hit.argmax(-1)
        named = np.take_along_axis(label[part], position[..., None], -1)[..., 0]
        found[part] = np.where(hit.any(-1) & (came[part] >= 0), named, _ELSEWHERE)
    return label, found


def _unique(table: _Table) -> tuple[_Table, np.ndarray]:
    rows = len(table.law)
    parts = [
        np.ascontiguousarray(a.reshape(rows, -1)).astype(np.int32)
        for a in (table.law, table.writes, table.label, table.uniform, table.attribute, table.value)
    ]
    parts.append(np.ascontiguousarray(table.probs.reshape(rows, -1)).view(np.int32))
    signature = np.ascontiguousarray(np.concatenate(parts, 1))
    void = signature.view(np.dtype((np.void, signature.dtype.itemsize * signature.shape[1])))[:, 0]
    _, index, inverse = np.unique(void, return_index=True, return_inverse=True)
    return _Table(*(a[index] for a in table)), inverse.reshape(-1)


def _several(table: _Table) -> np.ndarray:
    """Rows in which two laws hold that have no cell in common."""
    writes = table.writes.astype(int)
    holds: Any = table.writes.any(-1)
    shared: Any = np.einsum("umc,unc->umn", writes, writes) > 0
    apart: Any = ~shared & holds[:, :, None] & holds[:, None, :]
    return np.flatnonzero(apart.any((1, 2)))
