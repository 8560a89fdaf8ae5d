"""Laws in a declared form, which nothing executes, so that what a language model writes can be used as it comes."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sojourn._arguments import must_be
from sojourn.environments import Transitions
from sojourn.models.laws._expressions import Expressions, Node, Scope, Unreadable, fail, joined, parse
from sojourn.models.laws._law import Effect, Law, anywhere, law, one_of, when
from sojourn.models.laws._space import Attribute, Space

__all__ = ["TextProposer", "read_laws"]

_HEADER = re.compile(r"law\s+(?P<name>\S+)(?:\s+each\s+(?P<each>\w+))?(?:\s+after\s+(?P<after>\S.*))?$")
_WHEN = re.compile(r"when\b\s*(?P<text>.*)$")
_WRITE = re.compile(r"(?P<name>[\w.]+)\s*(?P<how>\+=|-=|=(?!=)|one\s+of\b)\s*(?P<value>\S.*)$")


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
        >>> from sojourn.models.laws import Objects, Space, World, cells, levels, read_laws
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
    must_be(
        isinstance(path_or_text, str | PathLike) and path_or_text != "",
        "path_or_text",
        "text, or a file",
        path_or_text,
    )
    must_be(isinstance(space, Space), "space", "a Space", space)
    text = str(path_or_text)
    if isinstance(path_or_text, PathLike) or "\n" not in text:
        text = Path(path_or_text).read_text(encoding="utf-8")
    laws: dict[str, Law] = {}
    for lines in _paragraphs(text):
        found = _law(lines, laws, space, tuple(actions), context or {})
        laws[found.name] = found
    return list(laws.values())


class _Line(NamedTuple):
    number: int
    text: str


def _paragraphs(text: str) -> list[list[_Line]]:
    paragraphs: list[list[_Line]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = _without_comment(raw).strip()
        if not line:
            continue
        if line.split()[0] == "law":
            paragraphs.append([])
        elif not paragraphs:
            raise ValueError(f"line {number}: this belongs to no law; begin with `law name`.")
        paragraphs[-1].append(_Line(number, line))
    return paragraphs


def _without_comment(line: str) -> str:
    """A line up to the first ``#`` that is not in quotes."""
    code = re.match(r"""(?:[^#'"]|'[^']*'|"[^"]*")*""", line)
    assert code is not None
    return line[: code.end()] if line[code.end() :].startswith("#") else line


def _law(
    lines: Sequence[_Line],
    taken: Collection[str],
    space: Space,
    actions: tuple[str, ...],
    context: Mapping[str, Callable[..., Any]],
) -> Law:
    line, name = lines[0], ""  # which an error names
    holds: Callable[[Scope], Any] | None = None
    writes: dict[str, Callable[[Scope], Any]] = {}
    try:
        header = _HEADER.match(line.text)
        if header is None:
            fail("a law begins with `law name`, then `each class` and `after attribute` where needed")
        name, each = header["name"], header["each"]
        after = tuple(part.strip() for part in (header["after"] or "").split(",") if part.strip())
        if name in taken:
            fail("another law has this name")
        if each is not None and each not in space.groups:
            fail(f"there is no class of objects {each!r}; there are {', '.join(space.groups) or 'none'}")
        for part in after:
            if part not in space.attributes:
                fail(f"after {part!r}: no such attribute; there are {', '.join(space.attributes)}")
        expressions = Expressions(space, actions, context, each, after)
        for line in lines[1:]:
            if condition := _WHEN.match(line.text):
                if holds is not None:
                    fail("there is a second `when`; join conditions with `and`")
                holds = expressions.condition(condition["text"] or "()")
                continue
            effect = _WRITE.match(line.text)
            if effect is None:
                fail(
                    f"cannot read {line.text!r}; write `when condition`, or `attribute` and one of `= value`, "
                    "`+= value`, `-= value`, `one of value, value`"
                )
            attribute, key = _written(effect["name"], space, each)
            if key in writes:
                fail(f"{effect['name']!r} is written twice")
            writes[key] = _write(attribute, effect["how"], effect["value"], expressions)
        line = lines[0]
        if holds is None:
            fail("it has no `when`; a law that always holds says `when true`")
        if not writes:
            fail("it writes nothing; add a line such as `attribute += 1`")
    except Unreadable as error:
        of = f", law {name!r}" if name else ""
        raise ValueError(f"line {line.number}{of}: {error}.") from None

    def function(it: Any, s: Any, a: Any) -> Effect:
        scope = Scope(it, s, a)
        return when(holds(scope), **{key: write(scope) for key, write in writes.items()})

    return law(each=each, after=after, name=name)(function if each else functools.partial(function, None))


def _written(name: str, space: Space, each: str | None) -> tuple[Attribute, str]:
    """The attribute that a law writes, and what it is called in the law."""
    key = name.rpartition(".")[2]
    attribute = space.find(key, each)
    if attribute is None or name not in (key, f"{attribute.group or 'world'}.{key}"):
        fail(f"it cannot write {name!r}; there are {', '.join(space.attributes)}")
    return attribute, key


def _write(attribute: Attribute, how: str, value: str, expressions: Expressions) -> Callable[[Scope], Any]:
    """The new value of an attribute, or several."""
    if how == "=" and value == "anywhere":
        return lambda scope: anywhere()
    now = expressions.own(attribute)

    def moved(change: Node, sign: int = 1) -> Callable[[Scope], Any]:
        return _checked(attribute, now, joined([now, change], now.kind, lambda x, dx: x + sign * dx))

    def new(item: ast.expr) -> Callable[[Scope], Any]:
        return _checked(attribute, now, expressions.value(item, attribute, attribute.labels))

    if how == "=":
        return new(parse(value))
    if how.startswith("one"):
        items = parse(f"[{value}]")
        if not isinstance(items, ast.List):
            fail(f"cannot read the values {value!r}")
        steps = [expressions.step(item, attribute) for item in items.elts]
        ways = [
            new(item) if step is None else moved(step) for item, step in zip(items.elts, steps, strict=True)
        ]
        return lambda scope: one_of([way(scope) for way in ways])
    item = parse(value)
    change = expressions.step(item, attribute) or expressions.value(item, attribute)
    return moved(change, -1 if how == "-=" else 1)


def _checked(attribute: Attribute, now: Node, new: Node) -> Callable[[Scope], Any]:
    """A new value, which is the old one where the new is off the grid."""
    if new.over:
        fail(f"what is written to {attribute.name!r} ranges over all {min(new.over)} objects")
    if attribute.kind != "cells":
        return new.run
    last = np.array([attribute.size // attribute.height, attribute.height]) - 1

    def on_the_grid(scope: Scope) -> Any:
        there = jnp.asarray(new.run(scope))
        return jnp.where(((there >= 0) & (there <= last)).all(), there, jnp.asarray(now.run(scope)))

    return on_the_grid


@dataclasses.dataclass(frozen=True)
class TextProposer:
    """The laws of a text, whatever the transitions are: the seam for people and for language models.

    Args:
        path_or_text: a file, or the text; see :func:`read_laws`.
        space: of the world.
        actions: names of the actions.
        context: further names for conditions.

    Example:
        >>> from sojourn.environments import Meadow, record
        >>> from sojourn.models.laws import TextProposer, meadow_space, propose
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
