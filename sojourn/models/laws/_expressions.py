"""The expressions of the declared form: Python's syntax, a few of its operators, the names of a space; no execution."""

from __future__ import annotations

import ast
import functools
import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np

from sojourn.models.laws._space import ALIVE, GONE, Attribute, Space

__all__ = ["DIRECTIONS", "Expressions", "Node", "Scope", "Unreadable", "fail", "joined", "parse", "quoted"]

DIRECTIONS = {"stay": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_DEEPEST = 40
_LARGEST = 2**31 - 1
_ORDER = {ast.Lt: jnp.less, ast.LtE: jnp.less_equal, ast.Gt: jnp.greater, ast.GtE: jnp.greater_equal}


class Scope(NamedTuple):
    """What an expression is worked out in: the object that a law is about, the state, the action."""

    it: Any
    s: Any
    a: Any


class Node(NamedTuple):
    """A part of an expression: what kind of thing it is, and how to work it out."""

    kind: str
    """``"truth"``, ``"number"``, ``"pair"``, or ``"context"``, which may be a truth or a number."""
    run: Callable[[Scope], Any]
    over: frozenset[str] = frozenset()
    """Classes of objects over all of which it ranges: their slots are its first axis."""


class Unreadable(ValueError):
    """What is wrong with a line; whoever reads the lines says which it is."""


def fail(what: str) -> NoReturn:
    """Give up on a line."""
    raise Unreadable(what)


def parse(text: str) -> Any:
    """The syntax tree of one expression, not too deep to walk."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        fail(f"cannot read the expression {text!r}")
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        fail("the expression is nested too deeply")
    return tree


def quoted(label: str) -> str:
    """A named value as an expression writes it."""
    plain = label.isidentifier() and not keyword.iskeyword(label) and label not in ("true", "false")
    return label if plain else repr(label)


def joined(parts: Sequence[Node], kind: str, combine: Callable[..., Any]) -> Node:
    """What ``combine`` makes of the values of several nodes."""
    over = frozenset().union(*(part.over for part in parts))
    if len(over) > 1:
        fail(f"{' and '.join(sorted(over))} objects are compared all with all, which laws cannot say")
    return Node(kind, lambda scope: combine(*(part.run(scope) for part in parts)), over)


def _any_of(*truths: Any) -> Any:
    return functools.reduce(jnp.logical_or, truths)


def _all_of(*truths: Any) -> Any:
    return functools.reduce(jnp.logical_and, truths)


def _same(item: ast.expr, parts: Sequence[Node]) -> str:
    """The kind of things that are added or compared."""
    kinds = {"number" if part.kind == "context" else part.kind for part in parts}
    if len(kinds) > 1 or "truth" in kinds:
        what = " and a ".join(sorted(kinds)) if len(kinds) > 1 else "truth"
        fail(f"{ast.unparse(item)!r} does not work for a {what}")
    return kinds.pop()


def _equal(item: ast.expr, one: Node, other: Node) -> Node:
    if _same(item, [one, other]) == "pair":
        return joined([one, other], "truth", lambda x, y: (jnp.asarray(x) == y).all(-1))
    return joined([one, other], "truth", lambda x, y: jnp.asarray(x) == y)


def _kind(attribute: Attribute) -> str:
    return "pair" if attribute.kind == "cells" else "number"


def _step(name: str) -> Node:
    step = np.array(DIRECTIONS[name])
    return Node("pair", lambda scope: step)


@dataclass(frozen=True)
class Expressions:
    """Reads the expressions of one law, each into a :class:`Node`.

    Args:
        space: of the world.
        actions: their names.
        context: further names, functions of a state and an action; see ``read_laws``.
        each: the class of objects that the law is about, if it is.
        after: what the law sees as it is after the step.

    Raises:
        Unreadable: by all methods, with a sentence that lacks its place and its full stop.
    """

    space: Space
    actions: tuple[str, ...]
    context: Mapping[str, Callable[..., Any]]
    each: str | None = None
    after: tuple[str, ...] = ()

    def condition(self, text: str) -> Callable[[Scope], Any]:
        """A condition of the law as a whole."""
        item = parse(text)
        node = self._truth(item)
        if node.over:
            fail(f"{ast.unparse(item)!r} ranges over all {min(node.over)} objects; say any(..)")
        return node.run

    def value(self, item: ast.expr, attribute: Attribute, labels: tuple[str, ...] = ()) -> Node:
        """What ``attribute`` could take for a value; ``labels`` are names of its values."""
        node = self._read(item, labels)
        wanted = _kind(attribute)
        if node.kind not in (wanted, "context"):
            what = "a pair (x, y)" if wanted == "pair" else "a number"
            fail(f"{attribute.name!r} takes {what}, not a {node.kind}")
        return node

    def step(self, item: ast.expr, attribute: Attribute) -> Node | None:
        """A direction in which a cell moves, or ``None`` if it is something else."""
        if attribute.kind == "cells" and isinstance(item, ast.Name) and item.id in DIRECTIONS:
            return _step(item.id)
        return None

    def own(self, attribute: Attribute) -> Node:
        """An attribute of the world or of the law's own object."""
        if attribute.group is not None:
            return Node(_kind(attribute), lambda scope: scope.it[attribute.field])
        return Node(_kind(attribute), lambda scope: scope.s[attribute.name])

    # ----------------------------------------------------------------------------------------------- operators

    def _read(self, item: ast.expr, labels: tuple[str, ...] = ()) -> Node:
        """Any expression; a name among ``labels`` is their value first."""
        match item:
            case ast.Constant(value=bool() as value):
                return Node("truth", lambda scope: jnp.asarray(value))
            case ast.Constant(value=int() | float() as value) if abs(value) <= _LARGEST:
                return Node("number", lambda scope: value)
            case ast.Constant(value=str() as name) | ast.Name(id=name):
                return self._named(name, labels)
            case ast.Attribute(value=ast.Name(id=of), attr=field):
                return self._field(of, field)
            case ast.Tuple(elts=[x, y]):
                parts = [self._of_kind("number", part) for part in (x, y)]
                return joined(parts, "pair", lambda x, y: jnp.stack(jnp.broadcast_arrays(x, y), -1))
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return joined([self._truth(inner)], "truth", jnp.logical_not)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                part = self._read(inner)
                return joined([part], _same(item, [part]), lambda x: -x)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mod() as op, right=right):
                parts = [self._read(left), self._read(right)]
                if isinstance(op, ast.Mod):
                    return joined(parts, _same(item, parts), jnp.mod)
                sign = 1 if isinstance(op, ast.Add) else -1
                return joined(parts, _same(item, parts), lambda x, y: x + sign * y)
            case ast.BoolOp(op=op, values=values):
                return joined(
                    [self._truth(value) for value in values],
                    "truth",
                    _all_of if isinstance(op, ast.And) else _any_of,
                )
            case ast.Compare():
                return self._comparison(item)
            case ast.Call(func=ast.Name(id="distance"), args=[one, other], keywords=[]):
                parts = [self._read(one), self._read(other)]
                if any(part.kind != "pair" for part in parts):
                    fail(f"{ast.unparse(item)!r}: a distance is that of two cells")
                return joined(parts, "number", lambda x, y: jnp.abs(x - y).sum(-1))
            case ast.Call(func=ast.Name(id="any"), args=[inner], keywords=[]):
                return self._any(inner)
        fail(f"{ast.unparse(item)!r} is not in the declared form")

    def _of_kind(self, kind: str, item: ast.expr) -> Node:
        node = self._read(item)
        if node.kind not in (kind, "context"):
            what = "condition" if kind == "truth" else "number"
            fail(f"{ast.unparse(item)!r} is a {node.kind}, where a {what} is needed")
        return node

    def _truth(self, item: ast.expr) -> Node:
        node = self._of_kind("truth", item)
        return node._replace(run=lambda scope: jnp.asarray(node.run(scope)).astype(bool))

    def _comparison(self, item: ast.Compare) -> Node:
        operands = [item.left, *item.comparators]
        labels = [self._labels(x) for x in operands]
        first = next((i for i, x in enumerate(labels) if x), 0)  # names on the other sides are its values

        def side(i: int) -> Node:
            return self._read(operands[i], () if i == first else labels[first])

        nodes = []
        for i, op in enumerate(item.ops):
            one, right = side(i), operands[i + 1]
            if isinstance(op, ast.In | ast.NotIn):
                if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
                    fail(f"{ast.unparse(item)!r}: after `in` comes a list of values, (a, b, ..)")
                each = [_equal(item, one, self._read(x, labels[first])) for x in right.elts]
                node = joined(each, "truth", _any_of)
            elif isinstance(op, ast.Eq | ast.NotEq):
                node = _equal(item, one, side(i + 1))
            else:
                parts = [one, side(i + 1)]
                if type(op) not in _ORDER:
                    fail(f"{ast.unparse(item)!r} is not in the declared form")
                if _same(item, parts) != "number":
                    fail(f"{ast.unparse(item)!r} puts cells in order")
                node = joined(parts, "truth", _ORDER[type(op)])
            negated = isinstance(op, ast.NotIn | ast.NotEq)
            nodes.append(joined([node], "truth", jnp.logical_not) if negated else node)
        return joined(nodes, "truth", _all_of)

    def _any(self, inner: ast.expr) -> Node:
        node = self._truth(inner)
        if not node.over:
            fail(f"any({ast.unparse(inner)}) asks about no class of objects")
        (group,) = node.over
        gone = f"{group}.{GONE}" in self.after

        def some(scope: Scope) -> Any:
            members = scope.s[group]
            there = node.run(scope)
            if ALIVE in members._values:
                there = there & members[ALIVE]
            return (there & ~members[GONE] if gone else there).any()

        return Node("truth", some)

    # --------------------------------------------------------------------------------------------------- names

    def _labels(self, item: ast.expr) -> tuple[str, ...]:
        """The named values of what an expression stands for, if it has any."""
        found: Attribute | None = None
        match item:
            case ast.Name(id="action"):
                return self.actions
            case ast.Name(id=name):
                found = self.space.find(name, self.each)
            case ast.Attribute(value=ast.Name(id="world"), attr=name):
                found = self.space.find(name)
            case ast.Attribute(value=ast.Name(id=of), attr=field):
                found = self.space.attributes.get(f"{of}.{field}")
        return found.labels if found is not None else ()

    def _named(self, name: str, labels: tuple[str, ...]) -> Node:
        if name in labels:
            code = labels.index(name)
            return Node("number", lambda scope: code)
        if name in ("true", "false"):
            return Node("truth", lambda scope: jnp.asarray(name == "true"))
        if name == "action":
            return Node("number", lambda scope: scope.a)
        attribute = self.space.find(name, self.each)
        if attribute is not None:
            return self.own(attribute)
        of_object, of_world = self.context.get(f"{self.each}.{name}"), self.context.get(name)
        if of_object is not None:
            return Node("context", lambda scope: of_object(scope.it, scope.s, scope.a))
        if of_world is not None:
            return Node("context", lambda scope: of_world(scope.s, scope.a))
        if name in DIRECTIONS:
            return _step(name)
        known = [*labels, *self.space.attributes, *self.context, "action"]
        fail(f"nothing is called {name!r} here; there are {', '.join(known)}")

    def _field(self, of: str, field: str) -> Node:
        if of == "world" and (attribute := self.space.find(field)) is not None:
            return self.own(attribute)
        attribute = self.space.attributes.get(f"{of}.{field}")
        if attribute is None:
            known = [f"world.{a.name}" if a.group is None else a.name for a in self.space]
            fail(f"there is no {of}.{field}; there are {', '.join(known)}")
        if of == self.each:
            return self.own(attribute)
        return Node(_kind(attribute), lambda scope: scope.s[of][field], frozenset([of]))
