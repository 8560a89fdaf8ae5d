"""Laws read off what changed: under these conditions, this attribute changes so."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from sojourn._arguments import must_be, whole_number
from sojourn.environments import Transitions
from sojourn.models.laws._cast import numeric
from sojourn.models.laws._condition_tree import Variable, leaves
from sojourn.models.laws._declared_form import read_laws
from sojourn.models.laws._expressions import DIRECTIONS, quoted
from sojourn.models.laws._law import Law, View
from sojourn.models.laws._propose import distinct
from sojourn.models.laws._space import GONE, Attribute, Space

__all__ = ["TemplateProposer"]

_ALL_ROUND = 0.9  # share of the changes of an attribute that goes round


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


@dataclass(frozen=True)
class TemplateProposer:
    r"""Laws of the form "under these conditions the attribute changes so", read off what changed.

    For every attribute, of the world and of objects, the changes that were seen are put down to as few ways of changing
    as explain them: adding an amount (levels), moving by a step (cells), being set to a value, or going round where
    nearly all changes of numbers without ends or of categories do; the commonest first, each at least ``min_count``
    times. *When* each happens is read off a tree: situations are split by the action, another attribute's value or a
    ``context`` if that makes what was seen likelier by more than the description of the split costs (values between
    which the data see no difference stay together), and every leaf in which the change was seen often enough is a law.
    The likelihood of a leaf with k changes among n is :math:`k \log(k/n) + (n - k) \log(1 - k/n)`; a leaf more costs
    :math:`\frac12 \log N`, and which variable, and which of its m values,
    :math:`\log(\mathrm{variables}) + (m - 1) \log 2`, or :math:`\log m` for every cut between amounts, whose values
    keep their order. Changes of several attributes that always came together under one condition become one law.

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
        >>> from sojourn.environments import Meadow, record
        >>> from sojourn.models.laws import TemplateProposer, meadow_space
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
        must_be(isinstance(self.space, Space), "space", "a Space", self.space)
        for name in ("min_count", "max_conditions"):
            if whole_number(getattr(self, name), name, None) < 1:
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
        seen = exists & exists_after & (now >= 0) & (then >= 0)
        contexts = self._contexts(transitions)
        sightings: list[_Sighting] = []
        for group in (None, *self.space.groups):
            slots = 1 if group is None else self.space.groups[group]
            variables = self._variables(group, slots, now, np.asarray(transitions.actions), contexts)
            for attribute in self.space:
                if attribute.group == group:
                    before, after, known = (x[:, attribute.range].ravel() for x in (now, then, seen))
                    others = [v for v in variables if v.codes[known].size and np.ptp(v.codes[known]) > 0]
                    sightings += self._sightings(attribute, before, after, known, others)
        return _paragraphs(sightings)

    def _contexts(self, transitions: Transitions) -> dict[str, np.ndarray]:
        """``(T,)``, or ``(T, slots)`` for those of objects."""
        if not self.context:
            return {}
        context = self.context

        def one(state, action):
            return {name: _in_context(name, function, state, action) for name, function in context.items()}

        found = jax.jit(jax.vmap(one))(numeric(transitions.states), np.asarray(transitions.actions))
        return {name: np.asarray(value) for name, value in found.items()}

    def _variables(
        self,
        group: str | None,
        slots: int,
        now: np.ndarray,
        actions: np.ndarray,
        contexts: Mapping[str, np.ndarray],
    ) -> list[Variable]:
        """What the laws of one class of objects, or of the world, may depend on: codes ``(T * slots,)``."""
        wide = functools.partial(np.repeat, repeats=slots)
        variables = [Variable("action", wide(actions), "plain", 0, tuple(self.actions))]
        for attribute in self.space:
            if attribute.kind == "cells" or attribute.field == GONE or attribute.group not in (None, group):
                continue
            codes = now[:, attribute.range]
            codes = wide(codes[:, 0]) if attribute.group is None else codes.ravel()
            shadowed = attribute.group is None and self.space.find(attribute.name, group) is not attribute
            name = f"world.{attribute.name}" if shadowed else attribute.field
            variables.append(Variable(name, codes, attribute.kind, len(variables), attribute.labels))
        for name, values in contexts.items():
            of, _, field = name.rpartition(".")
            if of in ("", group):
                codes = values.ravel() if of else wide(values)
                kind = "truth" if codes.dtype.kind == "b" else "plain"
                variables.append(Variable(field, codes.astype(int), kind, len(variables)))
        return variables

    def _sightings(
        self,
        attribute: Attribute,
        before: np.ndarray,
        after: np.ndarray,
        known: np.ndarray,
        variables: Sequence[Variable],
    ) -> list[_Sighting]:
        found = []
        for change in self._changes(attribute, before, after, known):
            visible = known & (change.code >= 0) & (change.code != before)
            happened = visible & (change.code == after)
            rows = np.flatnonzero(visible)
            for where, conditions in leaves(happened, rows, variables, self.min_count, self.max_conditions):
                conditions = sorted(conditions)  # the action first, then as the space has them
                text = " and ".join(c.text for c in conditions) or "true"
                name = "_".join(c.name for c in conditions)
                found.append(_Sighting(attribute.group, text, name, change, where, happened))
        return found

    def _changes(
        self, attribute: Attribute, before: np.ndarray, after: np.ndarray, known: np.ndarray
    ) -> list[_Change]:
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


def _in_context(name: str, function: Callable[..., Any], state: Mapping[str, Any], action: Any) -> Any:
    view = View(state, set(), of="context")
    group = name.rpartition(".")[0]
    if not group:
        return function(view, action)
    prefix = f"{group}."
    return jax.vmap(lambda member: function(View(member, set(), prefix=prefix, of="context"), view, action))(
        state[group]
    )


def _candidates(attribute: Attribute, before: np.ndarray, old: np.ndarray, new: np.ndarray) -> list[_Change]:
    """Ways of changing that were seen; of two that explain as much the first is taken."""
    field, size = attribute.field, attribute.size
    name = attribute.name.replace(".", "_")
    relative: list[_Change] = []
    fixed = []
    if attribute.kind == "cells":
        height, width = attribute.height, size // attribute.height
        x, y = np.divmod(before, height)
        steps = np.unique(np.stack([new // height - old // height, new % height - old % height], 1), axis=0)
        words = {step: word for word, step in DIRECTIONS.items()}
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
        word = quoted(value) if isinstance(value, str) else str(value)
        short = re.sub(r"\W+", "_", value) if isinstance(value, str) else word.replace(" ", "")
        fixed.append(_Change(f"{field} = {word}", f"{name}={short}", np.full(len(before), v)))
    return [*fixed, *relative] if attribute.kind == "plain" else [*relative, *fixed]


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
    for name, writes in zip(distinct(names), laws, strict=True):
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
