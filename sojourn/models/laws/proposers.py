"""Where laws come from: a library, a look at what changed, or a text that a person or a language model wrote.

A proposer is any function that looks at transitions and returns laws; :func:`propose` collects what several of them
have to say. None has to be right: a fit of the :class:`~sojourn.models.laws.World` of all proposals tells which laws
are real, and the others cost little. :func:`read_laws` reads laws in a declared form, which nothing executes, so that
what a language model writes can be used as it comes.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import keyword
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from sojourn.environments import Transitions
from sojourn.models.laws._cast import numeric
from sojourn.models.laws._law import Law, Outcome, View, anywhere, law, one_of, when
from sojourn.models.laws._space import ALIVE, GONE, Attribute, Space
from sojourn.models.laws._world import World

__all__ = ["Proposer", "TemplateProposer", "TextProposer", "library", "propose", "read_laws"]

Proposer = Callable[[Transitions], Iterable[Law]]
"""``proposer(transitions)``: laws that may explain them."""

_DIRECTIONS = {"stay": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_CHUNK = 1024
_ALL_ROUND = 0.9  # share of the changes of an attribute that goes round
_FOREIGN = ("the space lacks", "which the states do not hold")  # what World says of a law of another world


# ------------------------------------------------------------------------------------------------- collecting


def library(laws: Iterable[Law], space: Space | None = None) -> Proposer:
    """A proposer of hand-written laws.

    Args:
        laws: the library.
        space: if given, laws that read or write what this space or the states lack are left out, so that one library
            serves worlds that hold only part of what it speaks of.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.meadow import Meadow
        >>> from sojourn.models.laws import Space, levels, meadow_laws
        >>> from sojourn.models.laws.proposers import library
        >>> part = Space(energy=levels(10), weather=3)
        >>> [law.name for law in library(meadow_laws(), part)(record(Meadow(), 10))]
        ['tire', 'rest', 'seasons']
    """
    laws = list(laws)

    def proposer(transitions: Transitions) -> list[Law]:
        if space is None:
            return laws
        state, action = _first(transitions)
        return [law for law in laws if _fits(law, space, state, action)]

    return proposer


def _first(transitions: Transitions) -> tuple[Any, Any]:
    return jax.tree.map(lambda x: x[0], numeric(transitions.states)), np.asarray(transitions.actions)[0]


def _fits(law: Law, space: Space, state: Any, action: Any) -> bool:
    try:
        World(space, [law]).look(state, action)
    except ValueError as error:
        if any(words in str(error) for words in _FOREIGN):
            return False
        raise
    return True


def propose(transitions: Transitions, space: Space, proposers: Iterable[Proposer]) -> list[Law]:
    """What several proposers propose, each law once.

    Of laws that behave the same in these transitions (they hold at the same times and would write the same) the first
    stays. Laws that hold nowhere in them cannot be compared and all stay. A name that is taken gets a number.

    Args:
        transitions: what the proposers look at.
        space: of the world.
        proposers: in order of preference.

    Raises:
        ValueError: nothing is proposed, or something that is no law; a law that does not fit the space or the states.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.meadow import Meadow
        >>> from sojourn.models.laws import meadow_laws, meadow_space
        >>> from sojourn.models.laws.proposers import library, propose
        >>> twice = [library(meadow_laws()), library(reversed(meadow_laws()))]
        >>> [law.name for law in propose(record(Meadow(), 100), meadow_space(), twice)]
        ['walk', 'tire', 'rest', 'pick', 'seasons', 'bite', 'roam']
    """
    laws: list[Law] = []
    for proposer in proposers:
        for proposed in proposer(transitions):
            if not isinstance(proposed, Law):
                raise ValueError(f"propose: {proposed!r} is no law; a proposer returns laws.")
            if proposed not in laws:
                laws.append(proposed)
    if not laws:
        raise ValueError(
            "propose: no proposer proposes any law for these transitions; record more of them or lower `min_count`."
        )
    names = _distinct([law.name for law in laws])
    laws = [dataclasses.replace(law, name=name) for law, name in zip(laws, names, strict=True)]
    known: set[bytes] = set()
    kept = []
    for law_, behaviour in zip(laws, _behaviours(space, laws, transitions), strict=True):
        if behaviour is None or behaviour not in known:
            kept.append(law_)
            known |= set() if behaviour is None else {behaviour}
    return kept


def _distinct(names: Sequence[str]) -> list[str]:
    taken, found = set(names), []
    used: set[str] = set()
    for name in names:
        new, number = name, 1
        while new in used or (number > 1 and new in taken):
            number += 1
            new = f"{name}_{number}"
        used.add(new)
        found.append(new)
    return found


def _behaviours(space: Space, laws: Sequence[Law], transitions: Transitions) -> list[bytes | None]:
    """A digest of where each law holds and what it would write there; ``None`` if it holds nowhere."""
    world = World(space, laws)
    states, next_states = numeric(transitions.states), numeric(transitions.next_states)
    actions = np.asarray(transitions.actions)
    world.look(*_first(transitions))
    # equal parameters get equal values, whatever law they belong to
    draws = {
        law.name: {
            name: prior.sample(jax.random.key(j)) for j, (name, prior) in enumerate(law.parameters.items())
        }
        for law in laws
    }
    digests = [
        hashlib.blake2b(repr((law.each, sorted(w.attribute.name for w in shape.writes))).encode())
        for law, shape in zip(laws, world.shapes, strict=True)
    ]
    seen = np.zeros(len(laws), int)
    num = len(actions)
    for begin in range(0, num, _CHUNK):
        which = np.minimum(np.arange(begin, begin + _CHUNK), num - 1)
        part = jax.tree.map(lambda x, which=which: x[which], (states, next_states, actions))
        for i, cast in enumerate(world._cast_all(*part, draws)):
            active = np.asarray(cast.active)[: num - begin]
            seen[i] += active.sum()
            digests[i].update(np.packbits(active).tobytes())
            order = np.argsort([w.attribute.name for w in world.shapes[i].writes])
            for j in order:
                values, probs = (np.asarray(x[j])[: num - begin][active] for x in (cast.values, cast.probs))
                for array in _canonical(values, probs, world.shapes[i].writes[j].uniform):
                    digests[i].update(array.tobytes())
    return [digest.digest() if n else None for digest, n in zip(digests, seen, strict=True)]


def _canonical(values: np.ndarray, probs: np.ndarray, uniform: bool) -> tuple[np.ndarray, ...]:
    """Outcomes ``(n, K)`` in order of their values, equal values made one, without those of probability zero."""
    if uniform:
        return (np.array([-1]),)
    order = np.argsort(values, -1, kind="stable")
    values = np.take_along_axis(values, order, -1)
    total = np.zeros(values.shape)
    place = np.cumsum(np.diff(values, axis=-1, prepend=values[:, :1]) != 0, -1)
    row = np.arange(len(values))[:, None]
    np.add.at(total, (row, place), np.take_along_axis(probs, order, -1))
    first = np.zeros_like(values)
    first[row, place] = values
    n, k = np.nonzero(total > 1e-9)
    return n, first[n, k].astype(np.int64), np.round(total[n, k], 5)


# --------------------------------------------------------------------------------------------- the declared form


class _Scope(NamedTuple):
    it: Any
    s: Any
    a: Any


class _Node(NamedTuple):
    """A part of an expression: what kind of thing it is, and how to work it out."""

    kind: str
    """``"truth"``, ``"number"``, ``"pair"``, or ``"context"``, which may be a truth or a number."""
    run: Callable[[_Scope], Any]
    over: frozenset[str] = frozenset()
    """Classes of objects over all of which it ranges: their slots are its first axis."""


class _Line(NamedTuple):
    number: int
    text: str


_HEADER = re.compile(r"law\s+(?P<name>\S+)(?:\s+each\s+(?P<each>\w+))?(?:\s+after\s+(?P<after>\S.*))?$")
_WRITE = re.compile(r"(?P<name>[\w.]+)\s*(?P<how>\+=|-=|=(?!=)|one\s+of\b)\s*(?P<value>\S.*)$")
_DEEPEST = 40
_LARGEST = 2**31 - 1


def read_laws(
    path_or_text: str | PathLike[str],
    space: Space,
    actions: Sequence[str] = (),
    *,
    context: Mapping[str, Callable[..., Any]] | None = None,
) -> list[Law]:
    """Laws in the declared form: a text that says when each holds and what it writes. Nothing in it is executed.

    A law is a paragraph::

        law collect_wood                       # a name; then what it is about, each of a class of objects
          when action == do and target == tree
          wood += 1                            # all of what it writes happens, or none of it
          target = grass

        law cow_roams each cow after pos       # sees the player where it is after the step
          when distance(world.pos, pos) < 20
          pos one of stay, left, right, up, down

    *Conditions* are comparisons (``== != < <= > >=``, ``in (..)``, ``not in (..)``) of numbers, joined by ``and``,
    ``or``, ``not`` and parentheses, or ``true``. Numbers are attributes, ``action``, constants, and their sums,
    differences and remainders (``%``). Where one side has named values (an attribute with categories, the action), names
    on the other side mean those first. A cell is a pair ``(x, y)``; ``distance(a, b)`` is the number of steps between
    two. ``any(..)`` asks whether something holds for some object that is alive: ``any(distance(pos, cow.pos) <= 1)``.
    In a law of each object its own attributes come first, and ``world.pos`` is that of the world.

    *Effects* are ``attribute = value``, ``+= value``, ``-= value``, ``one of value, value, ..`` with equal
    probabilities, and ``= anywhere``. Cells are moved by ``left``, ``right``, ``up`` (y falls), ``down``, ``stay`` or
    pairs; a move off the grid leads nowhere. Other values beyond the support are as in :func:`~sojourn.models.laws.law`.
    How often a law happens is not said: that is learnt.

    Args:
        path_or_text: a file, or the text itself if it has more than one line.
        space: what attributes and categories there are.
        actions: names of the actions, in order of their numbers.
        context: further names that conditions may use, functions ``(state, action)`` of one truth or whole number, as in
            a law; under ``"cow.<name>"`` a function ``(cow, state, action)`` for laws of each cow.

    Raises:
        ValueError: what is not in the declared form, with the number of the line and the law.

    Example:
        >>> from sojourn.models.laws import Objects, Space, World, cells, levels
        >>> from sojourn.models.laws.proposers import read_laws
        >>> space = Space(wood=levels(10), target=("grass", "tree"), cow=Objects(3, pos=cells(8, 8)))
        >>> text = '''
        ... law collect_wood
        ...   when action == do and target == tree
        ...   wood += 1
        ...   target = grass
        ...
        ... law cow_roams each cow
        ...   when true
        ...   pos one of stay, left, right, up, down
        ... '''
        >>> laws = read_laws(text, space, actions=["noop", "do"])
        >>> laws
        [Law(collect_wood), Law(cow_roams, each cow)]
        >>> world = World(space, laws)
        >>> state = {"wood": [3], "target": [1], "cow": {"pos": [[[0, 0], [4, 4], [7, 7]]]}}
        >>> after = {"wood": [4], "target": [0], "cow": {"pos": [[[0, 1], [4, 4], [7, 6]]]}}
        >>> world.route(state, [1], after).activations
        {'collect_wood': 1, 'cow_roams': 3}
        >>> read_laws(text.replace("tree", "tre"), space, actions=["noop", "do"])
        Traceback (most recent call last):
        ValueError: line 3, law 'collect_wood': nothing is called 'tre' here; there are grass, tree, ...
    """
    text = str(path_or_text)
    if isinstance(path_or_text, PathLike) or "\n" not in text:
        text = Path(path_or_text).read_text(encoding="utf-8")
    return _Reader(space, actions, context or {}).read(text)


def _without_comment(line: str) -> str:
    """A line up to the first ``#`` that is not in quotes."""
    code = re.match(r"""(?:[^#'"]|'[^']*'|"[^"]*")*""", line)
    assert code is not None
    return line[: code.end()] if line[code.end() :].startswith("#") else line


class _Reader:
    """Turns the lines of one text into laws."""

    def __init__(self, space: Space, actions: Sequence[str], context: Mapping[str, Callable[..., Any]]):
        self.space = space
        self.actions = tuple(actions)
        self.context = context
        self.each: str | None = None
        self.name = ""
        self.after: tuple[str, ...] = ()
        self.line = 0
        self.depth = 0

    def read(self, text: str) -> list[Law]:
        laws: list[Law] = []
        for header, body in self._paragraphs(text):
            self.line, self.name = header.number, ""
            found = _HEADER.match(header.text)
            if found is None:
                self._fail(
                    "a law begins with `law name`, then `each class` and `after attribute` where needed"
                )
            self.name, self.each = found["name"], found["each"]
            if any(law.name == self.name for law in laws):
                self._fail("another law has this name")
            if self.each is not None and self.each not in self.space.groups:
                self._fail(
                    f"there is no class of objects {self.each!r}; there are {', '.join(self.space.groups) or 'none'}"
                )
            self.after = tuple(part.strip() for part in (found["after"] or "").split(",") if part.strip())
            for name in self.after:
                if name not in self.space.attributes:
                    self._fail(f"after {name!r}: no such attribute; there are {self._attributes()}")
            laws.append(self._law(header, body))
        return laws

    def _paragraphs(self, text: str) -> Iterator[tuple[_Line, list[_Line]]]:
        header: _Line | None = None
        body: list[_Line] = []
        for number, raw in enumerate(text.splitlines(), 1):
            line = _Line(number, _without_comment(raw).strip())
            if not line.text:
                continue
            if line.text.split()[0] == "law":
                if header is not None:
                    yield header, body
                header, body = line, []
            elif header is None:
                self.line = number
                self._fail("this belongs to no law; begin with `law name`")
            else:
                body.append(line)
        if header is not None:
            yield header, body

    def _fail(self, what: str) -> NoReturn:
        of = f", law {self.name!r}" if self.name else ""
        raise ValueError(f"line {self.line}{of}: {what}.")

    def _attributes(self) -> str:
        return ", ".join(self.space.attributes)

    # ------------------------------------------------------------------------------------------------ paragraphs

    def _law(self, header: _Line, body: Sequence[_Line]) -> Law:
        condition: _Node | None = None
        writes: dict[str, Callable[[_Scope], Any]] = {}
        for line in body:
            self.line = line.number
            if re.match(r"when\b", line.text):
                if condition is not None:
                    self._fail("there is a second `when`; join conditions with `and`")
                condition = self._truth(self._parse(line.text[4:].strip() or "()"))
                continue
            found = _WRITE.match(line.text)
            if found is None:
                self._fail(
                    f"cannot read {line.text!r}; write `when condition`, or `attribute` and one of `= value`, "
                    "`+= value`, `-= value`, `one of value, value`"
                )
            attribute, key = self._written(found["name"])
            if key in writes:
                self._fail(f"{found['name']!r} is written twice")
            writes[key] = self._write(attribute, found["how"], found["value"])
        self.line = header.number
        if condition is None:
            self._fail("it has no `when`; a law that always holds says `when true`")
        if not writes:
            self._fail("it writes nothing; add a line such as `attribute += 1`")
        holds = condition.run

        def effect(it, s, a):
            scope = _Scope(it, s, a)
            written = {key: write(scope) for key, write in writes.items()}
            return when(jnp.asarray(holds(scope)).astype(bool), **written)

        decorate = law(each=self.each, after=self.after, name=self.name)
        if self.each is None:
            return decorate(lambda s, a: effect(None, s, a))
        return decorate(lambda it, s, a: effect(it, s, a))

    def _written(self, name: str) -> tuple[Attribute, str]:
        key = name
        for prefix in ("world", self.each):
            if prefix is not None and name.startswith(f"{prefix}."):
                key = name[len(prefix) + 1 :]
        attribute = self.space.find(key, self.each)
        if attribute is None or (name != key and (attribute.group or "world") != name.split(".")[0]):
            self._fail(f"it cannot write {name!r}; there are {self._attributes()}")
        return attribute, key

    def _write(self, attribute: Attribute, how: str, value: str) -> Callable[[_Scope], Any]:
        if how == "=" and value == "anywhere":
            return lambda scope: anywhere()
        now = self._own(attribute)
        if how.startswith("one"):
            items = self._parse(f"[{value}]").elts
            if not items:
                self._fail("`one of` needs at least one value")
            parts = [
                self._moved(attribute, now, self._step(item))
                if attribute.kind == "cells" and self._is_step(item)
                else self._value(attribute, now, self._number(item, attribute))
                for item in items
            ]

            def some(scope: _Scope) -> Outcome:
                return one_of([part(scope) for part in parts])

            return some
        if how == "=":
            return self._value(attribute, now, self._number(self._parse(value), attribute))
        item = self._parse(value)
        if attribute.kind == "cells" and self._is_step(item):
            change = self._step(item)
        else:
            change = self._number(item, dataclasses.replace(attribute, labels=()))
        sign = -1 if how == "-=" else 1
        return self._moved(attribute, now, change._replace(run=lambda scope: sign * change.run(scope)))

    def _moved(self, attribute: Attribute, now: _Node, change: _Node) -> Callable[[_Scope], Any]:
        return self._value(
            attribute, now, _Node(now.kind, lambda scope: now.run(scope) + change.run(scope), change.over)
        )

    def _value(self, attribute: Attribute, now: _Node, new: _Node) -> Callable[[_Scope], Any]:
        if new.over:
            self._fail(f"what is written to {attribute.name!r} ranges over all {min(new.over)} objects")
        if attribute.kind != "cells":
            return new.run
        last = np.array([attribute.size // attribute.height, attribute.height]) - 1

        def on_the_grid(scope: _Scope) -> Any:
            there = jnp.asarray(new.run(scope))
            return jnp.where(((there >= 0) & (there <= last)).all(), there, jnp.asarray(now.run(scope)))

        return on_the_grid

    @staticmethod
    def _is_step(item: ast.expr) -> bool:
        return isinstance(item, ast.Name) and item.id in _DIRECTIONS

    @staticmethod
    def _step(item: Any) -> _Node:
        step = np.array(_DIRECTIONS[item.id])
        return _Node("pair", lambda scope: step)

    def _number(self, item: ast.expr, attribute: Attribute) -> _Node:
        """An expression that ``attribute`` can take for a value."""
        node = self._expression(item, attribute.labels)
        wanted = "pair" if attribute.kind == "cells" else "number"
        if node.kind not in (wanted, "context"):
            self._fail(
                f"{attribute.name!r} takes {'a pair (x, y)' if wanted == 'pair' else 'a number'}, not a {node.kind}"
            )
        return node

    # ----------------------------------------------------------------------------------------------- expressions

    def _parse(self, text: str) -> Any:
        try:
            return ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            self._fail(f"cannot read the expression {text!r}")

    def _truth(self, item: ast.expr) -> _Node:
        node = self._expression(item)
        if node.kind not in ("truth", "context"):
            self._fail(f"{ast.unparse(item)!r} is a {node.kind}, where a condition is needed")
        if node.over:
            self._fail(f"{ast.unparse(item)!r} ranges over all {min(node.over)} objects; say any(..)")
        return node

    def _expression(self, item: ast.expr, labels: tuple[str, ...] = ()) -> _Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            self.depth = 0
            self._fail("the expression is nested too deeply")
        node = self._of_type(item, labels)
        self.depth -= 1
        return node

    def _of_type(self, item: ast.expr, labels: tuple[str, ...]) -> _Node:
        match item:
            case ast.Constant(value=bool() as value):
                return _Node("truth", lambda scope: jnp.asarray(value))
            case ast.Constant(value=int() | float() as value) if abs(value) <= _LARGEST:
                return _Node("number", lambda scope: value)
            case ast.Constant(value=str() as name) | ast.Name(id=name):
                return self._named(name, labels)
            case ast.Attribute(value=ast.Name(id=of), attr=field):
                return self._field(of, field)
            case ast.Tuple(elts=[x, y]):
                parts = [self._plain(e) for e in (x, y)]
                return self._joined(
                    parts, "pair", lambda x, y: jnp.stack([jnp.asarray(x), jnp.asarray(y)], -1)
                )
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return self._joined([self._inner_truth(inner)], "truth", jnp.logical_not)
            case ast.UnaryOp(op=ast.USub(), operand=inner):
                part = self._expression(inner)
                self._same(item, [part])
                return self._joined([part], part.kind, lambda x: -x)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mod() as op, right=right):
                parts = [self._expression(left), self._expression(right)]
                kind = self._same(item, parts)
                if isinstance(op, ast.Mod):
                    return self._joined(parts, kind, jnp.mod)
                sign = 1 if isinstance(op, ast.Add) else -1
                return self._joined(parts, kind, lambda x, y: x + sign * y)
            case ast.BoolOp(op=op, values=values):
                both = jnp.logical_and if isinstance(op, ast.And) else jnp.logical_or
                parts = [self._inner_truth(value) for value in values]
                return self._joined(parts, "truth", lambda *each: functools.reduce(both, each))
            case ast.Compare():
                return self._comparison(item)
            case ast.Call(func=ast.Name(id="distance"), args=[one, other], keywords=[]):
                parts = [self._expression(one), self._expression(other)]
                if any(part.kind != "pair" for part in parts):
                    self._fail(f"{ast.unparse(item)!r}: a distance is that of two cells")
                return self._joined(parts, "number", lambda x, y: jnp.abs(x - y).sum(-1))
            case ast.Call(func=ast.Name(id="any"), args=[inner], keywords=[]):
                return self._any(inner)
        self._fail(f"{ast.unparse(item)!r} is not in the declared form")

    def _joined(self, parts: Sequence[_Node], kind: str, combine: Callable[..., Any]) -> _Node:
        over = frozenset().union(*(part.over for part in parts))
        if len(over) > 1:
            self._fail(
                f"{' and '.join(sorted(over))} objects are compared all with all, which laws cannot say"
            )
        return _Node(kind, lambda scope: combine(*(part.run(scope) for part in parts)), over)

    def _plain(self, item: ast.expr) -> _Node:
        node = self._expression(item)
        if node.kind not in ("number", "context"):
            self._fail(f"{ast.unparse(item)!r} is a {node.kind}, where a number is needed")
        return node

    def _inner_truth(self, item: ast.expr) -> _Node:
        node = self._expression(item)
        if node.kind not in ("truth", "context"):
            self._fail(f"{ast.unparse(item)!r} is a {node.kind}, where a condition is needed")
        return node._replace(run=lambda scope: jnp.asarray(node.run(scope)).astype(bool))

    def _same(self, item: ast.expr, parts: Sequence[_Node]) -> str:
        kinds = {"number" if part.kind == "context" else part.kind for part in parts}
        if len(kinds) > 1 or "truth" in kinds:
            what = " and a ".join(sorted(kinds)) if len(kinds) > 1 else "truth"
            self._fail(f"{ast.unparse(item)!r} does not work for a {what}")
        return kinds.pop()

    def _comparison(self, item: ast.Compare) -> _Node:
        operands = [item.left, *item.comparators]
        named = next(((i, found) for i, x in enumerate(operands) if (found := self._labels(x))), (-1, ()))
        nodes: list[_Node] = []
        for left, op, right in zip(operands, item.ops, operands[1:], strict=False):
            one = self._side(left, operands.index(left), named)
            if isinstance(op, ast.In | ast.NotIn):
                if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
                    self._fail(f"{ast.unparse(item)!r}: after `in` comes a list of values, (a, b, ..)")
                each = [self._equal(item, one, self._expression(x, named[1])) for x in right.elts]
                node = self._joined(each, "truth", lambda *x: functools.reduce(jnp.logical_or, x))
                if isinstance(op, ast.NotIn):
                    node = self._joined([node], "truth", jnp.logical_not)
                nodes.append(node)
                continue
            other = self._side(right, operands.index(right), named)
            if isinstance(op, ast.Eq | ast.NotEq):
                node = self._equal(item, one, other)
                nodes.append(
                    node if isinstance(op, ast.Eq) else self._joined([node], "truth", jnp.logical_not)
                )
                continue
            order = {
                ast.Lt: jnp.less,
                ast.LtE: jnp.less_equal,
                ast.Gt: jnp.greater,
                ast.GtE: jnp.greater_equal,
            }
            if type(op) not in order:
                self._fail(f"{ast.unparse(item)!r} is not in the declared form")
            if self._same(item, [one, other]) != "number":
                self._fail(f"{ast.unparse(item)!r} puts cells in order")
            nodes.append(self._joined([one, other], "truth", order[type(op)]))
        return self._joined(nodes, "truth", lambda *x: functools.reduce(jnp.logical_and, x))

    def _side(self, item: ast.expr, position: int, named: tuple[int, tuple[str, ...]]) -> _Node:
        return self._expression(item, () if position == named[0] else named[1])

    def _equal(self, item: ast.expr, one: _Node, other: _Node) -> _Node:
        if self._same(item, [one, other]) == "pair":
            return self._joined([one, other], "truth", lambda x, y: (jnp.asarray(x) == y).all(-1))
        return self._joined([one, other], "truth", lambda x, y: jnp.asarray(x) == y)

    def _any(self, inner: ast.expr) -> _Node:
        node = self._inner_truth(inner)
        if not node.over:
            self._fail(f"any({ast.unparse(inner)}) asks about no class of objects")
        (group,) = node.over
        gone = f"{group}.{GONE}" in self.after

        def some(scope: _Scope) -> Any:
            members = scope.s[group]
            there = jnp.asarray(node.run(scope))
            if ALIVE in members._values:
                there = there & members[ALIVE]
            return (there & ~members[GONE] if gone else there).any()

        return _Node("truth", some)

    # ----------------------------------------------------------------------------------------------------- names

    def _labels(self, item: ast.expr) -> tuple[str, ...]:
        """The named values of what an expression stands for, if it has any."""
        match item:
            case ast.Name(id="action"):
                return self.actions
            case ast.Name(id=name):
                found = self.space.find(name, self.each)
            case ast.Attribute(value=ast.Name(id="world"), attr=name):
                found = self.space.find(name)
            case ast.Attribute(value=ast.Name(id=of), attr=field):
                found = self.space.attributes.get(f"{of}.{field}")
            case _:
                found = None
        return found.labels if found is not None else ()

    def _named(self, name: str, labels: tuple[str, ...]) -> _Node:
        if name in labels:
            code = labels.index(name)
            return _Node("number", lambda scope: code)
        if name in ("true", "false"):
            return _Node("truth", lambda scope: jnp.asarray(name == "true"))
        if name == "action":
            return _Node("number", lambda scope: scope.a)
        attribute = self.space.find(name, self.each)
        if attribute is not None:
            return self._own(attribute)
        of_object, of_world = self.context.get(f"{self.each}.{name}"), self.context.get(name)
        if of_object is not None:
            return _Node("context", lambda scope: of_object(scope.it, scope.s, scope.a))
        if of_world is not None:
            return _Node("context", lambda scope: of_world(scope.s, scope.a))
        if name in _DIRECTIONS:
            step = np.array(_DIRECTIONS[name])
            return _Node("pair", lambda scope: step)
        known = [*labels, *self.space.attributes, *self.context, "action"]
        self._fail(f"nothing is called {name!r} here; there are {', '.join(known)}")

    def _own(self, attribute: Attribute) -> _Node:
        kind = "pair" if attribute.kind == "cells" else "number"
        if attribute.group is not None:
            return _Node(kind, lambda scope: scope.it[attribute.field])
        return _Node(kind, lambda scope: scope.s[attribute.name])

    def _field(self, of: str, field: str) -> _Node:
        if of == "world" and (attribute := self.space.find(field)) is not None:
            return self._own(attribute)
        attribute = self.space.attributes.get(f"{of}.{field}")
        if attribute is None:
            known = [f"world.{a.name}" if a.group is None else a.name for a in self.space]
            self._fail(f"there is no {of}.{field}; there are {', '.join(known)}")
        if of == self.each:
            return self._own(attribute)
        kind = "pair" if attribute.kind == "cells" else "number"
        return _Node(kind, lambda scope: scope.s[of][field], frozenset([of]))


@dataclasses.dataclass(frozen=True)
class TextProposer:
    """The laws of a text, whatever the transitions are: the seam for people and for language models.

    Args:
        path_or_text: a file, or the text; see :func:`read_laws`.
        space: of the world.
        actions: names of the actions.
        context: further names for conditions.

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.meadow import Meadow
        >>> from sojourn.models.laws import meadow_space
        >>> from sojourn.models.laws.proposers import TextProposer, propose
        >>> written = TextProposer('''
        ... law bite
        ...   when any(distance(pos, beast.pos) <= 1)
        ...   health -= 2
        ... ''', meadow_space())
        >>> propose(record(Meadow(), 50), meadow_space(), [written])
        [Law(bite)]
    """

    path_or_text: str | PathLike[str]
    space: Space
    actions: Sequence[str] = ()
    context: Mapping[str, Callable[..., Any]] | None = None

    def __call__(self, transitions: Transitions) -> list[Law]:
        """The laws; a file is read anew."""
        return read_laws(self.path_or_text, self.space, self.actions, context=self.context)


# ------------------------------------------------------------------------------------------- a look at what changed


class _Variable(NamedTuple):
    """What a condition may ask about."""

    name: str
    """As the declared form writes it."""
    codes: np.ndarray
    """``(N,)``: its values, -1 where not seen."""
    kind: str
    """``"plain"``, ``"levels"`` or ``"truth"``."""
    place: int
    """In the order in which conditions are written."""
    labels: tuple[str, ...] = ()


class _Change(NamedTuple):
    """One way of writing an attribute."""

    text: str
    name: str
    code: np.ndarray
    """``(N,)``: what it would write, -1 where that is off the grid."""


class _Sighting(NamedTuple):
    """A change and a condition under which it was seen."""

    group: str | None
    condition: str
    when: str
    """The condition as part of a name."""
    change: _Change
    where: np.ndarray
    """Positions in which the condition held."""
    happened: np.ndarray
    """In which of all it was seen to happen."""


@dataclasses.dataclass(frozen=True)
class TemplateProposer:
    r"""Laws of the form "under these conditions the attribute changes so", read off what changed.

    For every attribute, of the world and of objects, the changes that were seen are put down to as few ways of changing
    as explain them: adding an amount (levels), moving by a step (cells), being set to a value, or going round where
    nearly all changes of numbers without ends or of categories do; the commonest first, each at least ``min_count`` times. *When* each happens is read off
    a tree: situations are split by the action, another attribute's value or a ``context`` if that makes what was
    seen likelier by more than the description of the split costs (values between which the data see no difference
    stay together), and every leaf in which the change was seen often enough is a law. The likelihood of a leaf with k
    changes among n is :math:`k \log(k/n) + (n - k) \log(1 - k/n)`; a leaf more costs :math:`\frac12 \log N`, and which
    variable, and which of its m values, :math:`\log(\mathrm{variables}) + (m - 1) \log 2`, or :math:`\log m` for
    every cut between amounts, whose values keep their order. Changes of several attributes that always came together under one
    condition become one law.

    The laws are written in the declared form, which :meth:`text` shows and :func:`read_laws` reads.

    Args:
        space: of the world.
        actions: names of the actions.
        min_count: how often a change must have been seen, altogether and under each condition.
        max_conditions: how many variables a condition may ask about.
        context: further variables, as in :func:`read_laws`: functions of a state and an action that return a truth or a
            whole number.

    Raises:
        ValueError: `min_count` or `max_conditions` below one.

    References:
        Splits after Kass (1980), "An exploratory technique for investigating large quantities of categorical data", with
        description lengths in place of tests; change detectors after Khan et al. (2025).

    Example:
        >>> from sojourn.environments import record
        >>> from sojourn.environments.meadow import Meadow
        >>> from sojourn.models.laws import meadow_space
        >>> from sojourn.models.laws.proposers import TemplateProposer
        >>> look = TemplateProposer(meadow_space(), ["up", "down", "left", "right", "pick", "rest"])
        >>> print(look.text(record(Meadow(), 1000, seed=1)))
        law ...
        law energy+1_when_rest
          when action == rest
          energy += 1
        ...
    """

    space: Space
    actions: Sequence[str] = ()
    min_count: int = 5
    max_conditions: int = 3
    context: Mapping[str, Callable[..., Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("min_count", "max_conditions"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"TemplateProposer: `{name}` is {getattr(self, name)}; it must be at least 1."
                )

    def __call__(self, transitions: Transitions) -> list[Law]:
        """The laws that these transitions suggest."""
        return read_laws(self.text(transitions) + "\n", self.space, self.actions, context=self.context)

    def text(self, transitions: Transitions) -> str:
        """The laws in the declared form, one a paragraph."""
        now, exists = self.space.read(transitions.states, "states")
        then, exists_after = self.space.read_next(transitions.states, transitions.next_states)
        contexts = self._contexts(transitions)
        sightings: list[_Sighting] = []
        for group in (None, *self.space.groups):
            slots = 1 if group is None else self.space.groups[group]
            variables = self._variables(group, slots, now, exists, np.asarray(transitions.actions), contexts)
            for attribute in self.space:
                if attribute.group == group:
                    cells = attribute.range
                    before, after = now[:, cells].ravel(), then[:, cells].ravel()
                    known = (exists & exists_after)[:, cells].ravel() & (before >= 0) & (after >= 0)
                    others = [v for v in variables if v.codes[known].size and np.ptp(v.codes[known]) > 0]
                    sightings += self._sightings(attribute, before, after, known, others)
        return _paragraphs(sightings)

    # ------------------------------------------------------------------------------------------------- variables

    def _contexts(self, transitions: Transitions) -> dict[str, np.ndarray]:
        """``(T,)``, or ``(T, slots)`` for those of objects."""
        if not self.context:
            return {}
        context = self.context

        def one(state, action):
            view = View(state, set(), of="context")
            found = {}
            for name, function in context.items():
                group = name.rpartition(".")[0]
                if not group:
                    found[name] = function(view, action)
                    continue
                found[name] = jax.vmap(
                    lambda member, function=function, group=group: function(
                        View(member, set(), prefix=f"{group}.", of="context"), view, action
                    )
                )(state[group])
            return found

        found = jax.jit(jax.vmap(one))(numeric(transitions.states), np.asarray(transitions.actions))
        return {name: np.asarray(value) for name, value in found.items()}

    def _variables(self, group, slots, now, exists, actions, contexts) -> list[_Variable]:
        wide = functools.partial(np.repeat, repeats=slots)
        variables = [_Variable("action", wide(actions), "plain", 0, tuple(self.actions))]
        for attribute in self.space:
            if attribute.kind == "cells" or attribute.field == GONE or attribute.group not in (None, group):
                continue
            codes = now[:, attribute.range]
            codes = wide(codes[:, 0]) if attribute.group is None else codes.ravel()
            shadowed = attribute.group is None and self.space.find(attribute.name, group) is not attribute
            name = f"world.{attribute.name}" if shadowed else attribute.field
            kind = "levels" if attribute.kind == "levels" else "plain"
            variables.append(_Variable(name, codes, kind, len(variables), attribute.labels))
        for name, values in contexts.items():
            of, _, field = name.rpartition(".")
            if of in ("", group):
                codes = values.ravel() if of else wide(values)
                kind = "truth" if codes.dtype.kind == "b" else "plain"
                variables.append(_Variable(field, codes.astype(int), kind, len(variables)))
        return variables

    # --------------------------------------------------------------------------------------------------- changes

    def _sightings(self, attribute, before, after, known, variables) -> list[_Sighting]:
        found = []
        for change in self._changes(attribute, before, after, known):
            visible = known & (change.code >= 0) & (change.code != before)
            happened = visible & (change.code == after)
            for where, parts in self._leaves(happened, np.flatnonzero(visible), variables):
                parts = sorted(parts)  # the action first, then as the space has them
                condition = " and ".join(text for _, text, _ in parts) or "true"
                when = "_".join(name for _, _, name in parts)
                found.append(_Sighting(attribute.group, condition, when, change, where, happened))
        return found

    def _changes(self, attribute, before, after, known) -> list[_Change]:
        """As few ways of changing as explain what was seen."""
        changed = known & (before != after)
        candidates = _candidates(attribute, before, before[changed], after[changed])
        left = changed.copy()
        chosen = []
        while candidates:
            counts = [int((left & (c.code == after)).sum()) for c in candidates]
            best = int(np.argmax(counts))
            if counts[best] < self.min_count:
                break
            chosen.append(candidates.pop(best))
            left &= chosen[-1].code != after
        return chosen

    def _leaves(
        self, happened: np.ndarray, rows: np.ndarray, variables: Sequence[_Variable], depth: int = 0
    ) -> list[tuple[np.ndarray, list[tuple[int, str, str]]]]:
        """Where it happens: rows, and conditions (the variable's place, in words, as part of a name)."""
        if happened[rows].sum() < self.min_count:
            return []
        split = None
        if depth < self.max_conditions and not happened[rows].all():
            splits = [(_split(happened[rows], v, rows), v) for v in variables]
            split = max(splits, key=lambda s: s[0][0], default=None)
        if split is None or split[0][0] <= np.log(max(len(variables), 1)):
            return [(rows, [])]
        (_, parts), variable = split
        others = [v for v in variables if v is not variable]
        codes = variable.codes[rows]
        values = [v for part in parts for v in part]
        found = []
        for part in parts:
            words = (variable.place, *_words(variable, part, values))
            for where, more in self._leaves(happened, rows[np.isin(codes, part)], others, depth + 1):
                found.append((where, [words, *more]))
        return found


def _candidates(attribute: Attribute, before: np.ndarray, old: np.ndarray, new: np.ndarray) -> list[_Change]:
    """Ways of changing that were seen; of two that explain as much the first is taken."""
    field, size = attribute.field, attribute.size
    name = attribute.name.replace(".", "_")
    relative, fixed = [], []
    if attribute.kind == "cells":
        height, width = attribute.height, size // attribute.height
        x, y = np.divmod(before, height)
        steps = np.unique(np.stack([new // height - old // height, new % height - old % height], 1), axis=0)
        words = {step: word for word, step in _DIRECTIONS.items()}
        for dx, dy in steps.tolist():
            inside = (x + dx >= 0) & (x + dx < width) & (y + dy >= 0) & (y + dy < height) & (before >= 0)
            word = words.get((dx, dy))
            text = f"{field} += {word or f'({dx}, {dy})'}"
            code = np.where(inside, before + dx * height + dy, -1)
            relative.append(_Change(text, f"{name}_{word}" if word else f"{name}+({dx},{dy})", code))
    elif attribute.kind == "levels":
        for d in np.unique(new - old).tolist():
            code = np.clip(before + d, 0, size - 1)
            relative.append(_Change(f"{field} {'+' if d > 0 else '-'}= {abs(d)}", f"{name}{d:+d}", code))
    elif size > 2:
        turns = (new - old) % size
        for d in np.unique(turns).tolist():
            if (turns == d).mean() < _ALL_ROUND:
                continue
            text = f"{field} = ({field} + {d}) % {size}"
            relative.append(_Change(text, f"{name}_turns_{d}", (before + d) % size))
    for v in np.unique(new).tolist():
        value = attribute.value(v)
        word = _quoted(value) if isinstance(value, str) else str(value)
        short = re.sub(r"\W+", "_", value) if isinstance(value, str) else word.replace(" ", "")
        fixed.append(_Change(f"{field} = {word}", f"{name}={short}", np.full(len(before), v)))
    return [*fixed, *relative] if attribute.kind == "plain" else [*relative, *fixed]


def _log_likelihood(k: Any, n: Any) -> np.ndarray:
    """Of k among n at the rate that suits them best."""
    k, n = np.asarray(k, float), np.asarray(n, float)
    rate = k / np.maximum(n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(k > 0, k * np.log(rate), 0.0) + np.where(k < n, (n - k) * np.log1p(-rate), 0.0)


def _split(happened: np.ndarray, variable: _Variable, rows: np.ndarray) -> tuple[float, list[list[int]]]:
    """The best partition of a variable's values: its gain less its cost, and the parts."""
    codes = variable.codes[rows]
    seen = codes >= 0
    n = np.bincount(codes[seen])
    k = np.bincount(codes[seen], weights=happened[seen], minlength=len(n))
    values = np.flatnonzero(n)
    unseen = _log_likelihood(happened[~seen].sum(), (~seen).sum())
    each = 0.5 * np.log(len(codes))
    ordered = variable.kind == "levels"
    parts: list[Any] = [([int(v)], float(k[v]), float(n[v])) for v in values]
    if not ordered:  # those in which it never happens belong together
        never = [p for p in parts if p[1] == 0]
        parts = [p for p in parts if p[1] > 0]
        if never:
            parts.append(([v for p in never for v in p[0]], 0.0, sum(p[2] for p in never)))
    cost_of_value = np.log(max(len(values), 1)) if ordered else 0.0
    while len(parts) > 1:
        ks, ns = (np.array([p[j] for p in parts]) for j in (1, 2))
        alone = _log_likelihood(ks, ns)
        loss = (
            alone[:, None] + alone - _log_likelihood(ks[:, None] + ks, ns[:, None] + ns)
        )  # of making two of them one
        allowed = np.triu(np.ones(loss.shape, bool), 1)
        if ordered:
            allowed &= ~np.triu(np.ones(loss.shape, bool), 2)
        loss = np.where(allowed, loss, np.inf)
        i, j = np.unravel_index(np.argmin(loss), loss.shape)
        if loss[i, j] >= each + cost_of_value:
            break
        parts[i] = (parts[i][0] + parts[j][0], parts[i][1] + parts[j][1], parts[i][2] + parts[j][2])
        del parts[j]
    if len(parts) < 2:
        return -np.inf, []
    total = _log_likelihood(happened.sum(), len(happened))
    gain = sum(float(_log_likelihood(p[1], p[2])) for p in parts) + float(unseen) - float(total)
    which = (len(parts) - 1) * cost_of_value if ordered else (len(values) - 1) * np.log(2)
    return gain - each * (len(parts) - 1) - which, [sorted(p[0]) for p in parts]


def _quoted(label: str) -> str:
    plain = label.isidentifier() and not keyword.iskeyword(label) and label not in ("true", "false")
    return label if plain else repr(label)


def _words(variable: _Variable, part: Sequence[int], values: Sequence[int]) -> tuple[str, str]:
    """A condition that a variable is among some values, in the declared form and as part of a name."""
    name = variable.name
    short = "" if name == "action" and variable.labels else f"{name.replace('.', '_')}_"

    def word(value: int) -> str:
        return _quoted(variable.labels[value]) if value < len(variable.labels) else str(value)

    def label(value: int) -> str:
        return re.sub(r"\W+", "_", word(value)).strip("_")

    if variable.kind == "truth":
        return (name, name) if part[0] else (f"not {name}", f"not_{name}")
    if variable.kind == "levels":
        low, high = min(part), max(part)
        if low == 0 == high:
            return f"{name} == 0", f"{short}0"
        if high == max(values):
            return f"{name} >= {low}", f"{short}from_{low}"
        if low == min(values):
            return f"{name} <= {high}", f"{short}to_{high}"
        if low == high:
            return f"{name} == {low}", f"{short}{low}"
        return f"{low} <= {name} <= {high}", f"{short}{low}_to_{high}"
    rest = [v for v in values if v not in part]
    among, yes = (part, True) if len(part) <= len(rest) else (rest, False)
    if len(among) == 1:
        text = f"{name} {'==' if yes else '!='} {word(among[0])}"
    else:
        text = f"{name} {'in' if yes else 'not in'} ({', '.join(map(word, among))})"
    return text, f"{'' if yes else 'not_'}{short}{'_'.join(map(label, sorted(among)))}"


def _paragraphs(sightings: Sequence[_Sighting]) -> str:
    """Laws in the declared form; what always came together is one of them."""
    laws: list[list[_Sighting]] = []
    for new in sightings:
        for writes in laws:
            if all(_together(new, old) for old in writes):
                writes.append(new)
                break
        else:
            laws.append([new])
    names = ["_".join(s.change.name for s in w) + (f"_when_{w[0].when}" if w[0].when else "") for w in laws]
    paragraphs = []
    for name, writes in zip(_distinct(names), laws, strict=True):
        each = f" each {writes[0].group}" if writes[0].group else ""
        lines = [f"when {writes[0].condition}", *(s.change.text for s in writes)]
        paragraphs.append("\n  ".join([f"law {name}{each}", *lines]))
    return "\n\n".join(paragraphs)


def _together(one: _Sighting, other: _Sighting) -> bool:
    same = one.group == other.group and one.condition == other.condition
    if not same or one.change.text.split()[0] == other.change.text.split()[0]:
        return False
    both = np.intersect1d(one.where, other.where)  # where the change would have shown in either
    a, b = one.happened[both], other.happened[both]
    return bool((a & b).sum() > 0 and (a != b).sum() <= 0.02 * (a | b).sum())
