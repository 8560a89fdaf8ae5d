"""What a world consists of: attributes with finite supports, of the world itself or of classes of objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["Attribute", "Cells", "Levels", "Objects", "Space", "cells", "levels"]

HIDDEN = -1  # in data: not seen
ALIVE = "alive"
GONE = "gone"


@dataclass(frozen=True)
class Levels:
    """See :func:`levels`."""

    size: int


@dataclass(frozen=True)
class Cells:
    """See :func:`cells`."""

    width: int
    height: int


def levels(size: int) -> Levels:
    """An amount from 0 to ``size - 1`` that saturates: what a law writes beyond either end stops at the end.

    A plain number in a :class:`Space` has the same support but no ends to stop at; writing beyond it is an error.

    Example:
        >>> from sojourn.models.laws import Space, levels
        >>> Space(health=levels(10), weather=3)
        Space(health: 0..9, saturating; weather: 0..2)
    """
    return Levels(_size("levels", size))


def cells(width: int, height: int) -> Cells:
    """A place on a grid, a pair of whole numbers ``(x, y)``: one attribute, so that x and y move together.

    Example:
        >>> from sojourn.models.laws import Space, cells
        >>> Space(pos=cells(8, 8))
        Space(pos: a cell of 8 x 8)
    """
    return Cells(_size("cells", width), _size("cells", height))


def _size(what: str, size: Any) -> int:
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ValueError(f"{what}: a size is a whole number of at least 1, not {size!r}.")
    return int(size)


class Objects:
    """A class of up to ``slots`` objects that all have the same attributes.

    In data it is a mapping of arrays with one row a slot; ``alive`` (optional, boolean) says which slots hold an
    object. An attribute named ``gone``, of support 2, is never in the data: it is 1 in the next state where an object
    that was alive is so no longer, and a law that writes ``gone=1`` removes its object.

    Args:
        slots: how many objects there can be at a time.
        **attributes: as in :class:`Space`.
    """

    def __init__(self, slots: int, **attributes: Any):
        self.slots = _size("Objects", slots)
        self.attributes = attributes


@dataclass(frozen=True)
class Attribute:
    """One attribute of a :class:`Space`."""

    name: str
    """``"health"``, or ``"cow.pos"`` for one of a class."""
    size: int
    """How many values it has."""
    kind: str
    """``"plain"``, ``"levels"`` or ``"cells"``."""
    group: str | None
    """The class of objects, if it belongs to one."""
    field: str
    """Its name within the class or the world."""
    slots: int
    """Objects of the class; 1 for an attribute of the world."""
    first: int
    """Position of its first cell among all cells of the space."""
    height: int = 1
    labels: tuple[str, ...] = ()

    @property
    def range(self) -> range:
        """Positions of its cells, one a slot."""
        return range(self.first, self.first + self.slots)

    def describe(self) -> str:
        """Its support in words."""
        if self.kind == "cells":
            return f"a cell of {self.size // self.height} x {self.height}"
        if self.labels:
            return "one of " + ", ".join(self.labels)
        return f"0..{self.size - 1}" + (", saturating" if self.kind == "levels" else "")

    def encode(self, value: Any) -> Array:
        """Values (pairs, for cells) as whole numbers below ``size``; -1 or beyond ``size`` outside the support."""
        value = jnp.asarray(value)
        if self.kind != "cells":
            value = value.astype(jnp.int32)
            return jnp.clip(value, 0, self.size - 1) if self.kind == "levels" else value
        x, y = value[..., 0].astype(jnp.int32), value[..., 1].astype(jnp.int32)
        inside = (x >= 0) & (x < self.size // self.height) & (y >= 0) & (y < self.height)
        return jnp.where(inside, x * self.height + y, -1)

    def decode(self, code: Array) -> Array:
        """And back."""
        if self.kind != "cells":
            return code
        return jnp.stack([code // self.height, code % self.height], -1)

    def value(self, code: int) -> Any:
        """A value as one would write it."""
        if self.kind == "cells":
            return divmod(int(code), self.height)
        return self.labels[int(code)] if self.labels else int(code)


class Space:
    """The attributes of a world, each with a finite support.

    Args:
        **attributes: by name, a whole number ``n`` (values 0 to n - 1), a sequence of names (values count them from
            0), :func:`levels`, :func:`cells`, or :class:`Objects`. Whatever else a state holds is context: laws read
            it, and none writes it.

    Raises:
        ValueError: nothing declared; a size below one; a name that is no Python name or taken by the view of a state
            (``before``, ``alive``).

    Example:
        >>> from sojourn.models.laws import Objects, Space, cells, levels
        >>> Space(pos=cells(8, 8), weather=("dry", "wet"), beast=Objects(2, pos=cells(8, 8)))
        Space(pos: a cell of 8 x 8; weather: one of dry, wet; beast.pos: a cell of 8 x 8, 2 slots)
    """

    def __init__(self, **attributes: Any):
        self.attributes: dict[str, Attribute] = {}
        self.groups: dict[str, int] = {}
        self.num_cells = 0
        for name, declared in attributes.items():
            if isinstance(declared, Objects):
                self.groups[name] = declared.slots
                for field, inner in declared.attributes.items():
                    self._declare(f"{name}.{field}", field, inner, name, declared.slots)
            else:
                self._declare(name, name, declared, None, 1)
        if not self.attributes:
            raise ValueError("Space: declare at least one attribute, such as Space(health=10).")

    def _declare(self, name: str, field: str, declared: Any, group: str | None, slots: int) -> None:
        if field in ("before", ALIVE) or field.startswith("_") or not field.isidentifier():
            raise ValueError(
                f"Space: {name!r} is no name for an attribute: it means something else to a law."
            )
        kind, height = "plain", 1
        labels: tuple[str, ...] = ()
        if isinstance(declared, Levels):
            kind, size = "levels", declared.size
        elif isinstance(declared, Cells):
            kind, size, height = "cells", declared.width * declared.height, declared.height
        elif isinstance(declared, Sequence) and not isinstance(declared, str):
            labels = tuple(str(x) for x in declared)
            size = _size(f"Space: {name!r}", len(labels))
        else:
            size = _size(f"Space: {name!r}", declared)
        if field == GONE and (group is None or size != 2):
            raise ValueError(f"Space: {name!r} must belong to Objects and have a support of 2.")
        self.attributes[name] = Attribute(
            name, size, kind, group, field, slots, self.num_cells, height, labels
        )
        self.num_cells += slots

    def __iter__(self) -> Iterator[Attribute]:
        return iter(self.attributes.values())

    def __len__(self) -> int:
        return len(self.attributes)

    def __repr__(self) -> str:
        of = "; ".join(f"{a.name}: {a.describe()}" + (f", {a.slots} slots" if a.group else "") for a in self)
        return f"Space({of})"

    def attribute_of_cell(self) -> np.ndarray:
        """``(num_cells,)``: which attribute each cell belongs to."""
        return np.repeat(np.arange(len(self)), [a.slots for a in self])

    def find(self, name: str, group: str | None = None) -> Attribute | None:
        """The attribute that ``name`` means to a law of ``group``."""
        if group is not None and f"{group}.{name}" in self.attributes:
            return self.attributes[f"{group}.{name}"]
        found = self.attributes.get(name)
        return found if found is not None and found.group is None else None

    def read(self, states: Mapping[str, Any], what: str) -> tuple[np.ndarray, np.ndarray]:
        """Values ``(T, num_cells)`` of stacked states, -1 where not seen, and which cells exist.

        ``gone`` reads as 0; :meth:`read_next` knows better.
        """
        columns, exists = [], []
        length = None
        for attribute in self:
            if attribute.field == GONE and attribute.group is not None:
                alive = self.alive(states, attribute.group, what)
                columns.append(np.zeros((len(alive) if alive.ndim == 2 else 0, attribute.slots), np.int64))
                exists.append(alive)
                continue
            raw = self._raw(states, attribute, what)
            shape: tuple[int, ...] = (attribute.slots,) if attribute.group else ()
            shape += (2,) if attribute.kind == "cells" else ()
            if raw.ndim != 1 + len(shape) or raw.shape[1:] != shape:
                raise ValueError(
                    f"{what}: {attribute.name!r} has shape {raw.shape}; it must be (T,{' ' if shape else ''}"
                    f"{', '.join(map(str, shape))}), one row a transition."
                )
            length = len(raw) if length is None else length
            if len(raw) != length:
                raise ValueError(
                    f"{what}: {attribute.name!r} has {len(raw)} rows where others have {length}."
                )
            code = _encode(raw, attribute, what)
            columns.append(code.reshape(length, attribute.slots))
            present = np.ones(columns[-1].shape, bool)
            exists.append(self.alive(states, attribute.group, what) if attribute.group else present)
        return np.concatenate(columns, 1), np.concatenate(exists, 1)

    def read_next(
        self, states: Mapping[str, Any], next_states: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`read`, of the states that follow ``states``: ``gone`` and what is left of each object."""
        values, exists = self.read(next_states, "next_states")
        for attribute in self:
            if attribute.group is None:
                continue
            columns = slice(attribute.first, attribute.first + attribute.slots)
            before = self.alive(states, attribute.group, "states")
            if attribute.field == GONE:
                values[:, columns] = before & ~exists[:, columns]
                exists[:, columns] = before
        return values, exists

    def _raw(self, states: Mapping[str, Any], attribute: Attribute, what: str) -> np.ndarray:
        try:
            group = states if attribute.group is None else states[attribute.group]
            return np.asarray(group[attribute.field])
        except KeyError:
            raise ValueError(f"{what}: there is no {attribute.name!r}, which the space declares.") from None

    def alive(self, states: Mapping[str, Any], group: str, what: str) -> np.ndarray:
        """``(T, slots)``: which slots of a class hold an object."""
        members = states.get(group)
        if members is None:
            raise ValueError(f"{what}: there is no {group!r}, which the space declares.")
        if ALIVE in members:
            return np.asarray(members[ALIVE]).astype(bool)
        some = next(np.asarray(v) for v in members.values())
        return np.ones(some.shape[:2], bool)


def _encode(raw: np.ndarray, attribute: Attribute, what: str) -> np.ndarray:
    if raw.dtype.kind == "f":
        if not np.all(np.isfinite(raw)) or np.any(raw != np.floor(raw)):
            raise ValueError(
                f"{what}: {attribute.name!r} must hold whole numbers (-1 for what was not seen)."
            )
    elif raw.dtype.kind not in "iub":
        raise ValueError(f"{what}: {attribute.name!r} must hold whole numbers, not {raw.dtype}.")
    raw = raw.astype(np.int64)
    if attribute.kind == "cells":
        width = attribute.size // attribute.height
        hidden = (raw < 0).any(-1)
        outside = (raw[..., 0] >= width) | (raw[..., 1] >= attribute.height)
        code = np.where(hidden, HIDDEN, raw[..., 0] * attribute.height + raw[..., 1])
    else:
        hidden, outside, code = raw < 0, raw >= attribute.size, np.where(raw < 0, HIDDEN, raw)
    if np.any(outside & ~hidden):
        where = tuple(int(i) for i in np.argwhere(outside & ~hidden)[0])
        value = raw[where].tolist()
        raise ValueError(
            f"{what}: {attribute.name!r} is {value} at {where}, outside its support ({attribute.describe()})."
        )
    return code
