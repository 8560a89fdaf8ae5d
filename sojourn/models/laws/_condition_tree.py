"""When something happens: situations split by what makes it likelier, as far as the data carry it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sojourn.models.laws._expressions import quoted

__all__ = ["Condition", "Variable", "leaves"]


class Variable(NamedTuple):
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


class Condition(NamedTuple):
    """That a variable is among some values; in the order in which conditions are written."""

    place: int
    text: str
    """In the declared form."""
    name: str
    """As part of a name."""


def leaves(
    happened: np.ndarray, rows: np.ndarray, variables: Sequence[Variable], min_count: int, depth: int
) -> list[tuple[np.ndarray, list[Condition]]]:
    """Where something happens at least ``min_count`` times, as a tree says that asks about up to ``depth`` variables.

    Args:
        happened: ``(N,)`` booleans.
        rows: positions to look at.
        variables: what conditions may ask about.
        min_count: of what happened under each condition.
        depth: of the tree.

    Returns:
        The rows of each such leaf and its conditions.
    """
    if happened[rows].sum() < min_count:
        return []
    best, parts, variable = -np.inf, [], None
    if depth > 0 and not happened[rows].all():
        for candidate in variables:
            gain, ways = _split(happened[rows], candidate, rows)
            if gain > best:
                best, parts, variable = gain, ways, candidate
    if variable is None or best <= np.log(len(variables)):
        return [(rows, [])]
    others = [v for v in variables if v is not variable]
    values = [v for part in parts for v in part]
    return [
        (where, [_condition(variable, part, values), *more])
        for part in parts
        for where, more in leaves(
            happened, rows[np.isin(variable.codes[rows], part)], others, min_count, depth - 1
        )
    ]


def _log_likelihood(k: Any, n: Any) -> np.ndarray:
    """Of k among n at the rate that suits them best."""
    k, n = np.asarray(k, float), np.asarray(n, float)
    rate = k / np.maximum(n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(k > 0, k * np.log(rate), 0.0) + np.where(k < n, (n - k) * np.log1p(-rate), 0.0)


class _Part(NamedTuple):
    """Values that are taken as one: how often it happened among how many."""

    values: list[int]
    k: float
    n: float

    def log_likelihood(self) -> float:
        return float(_log_likelihood(self.k, self.n))


def _merged(parts: Sequence[_Part]) -> _Part:
    return _Part([v for p in parts for v in p.values], sum(p.k for p in parts), sum(p.n for p in parts))


def _split(happened: np.ndarray, variable: Variable, rows: np.ndarray) -> tuple[float, list[list[int]]]:
    """The best partition of a variable's values: its gain less its cost, and the parts."""
    codes = variable.codes[rows]
    seen = codes >= 0
    n = np.bincount(codes[seen])
    k = np.bincount(codes[seen], weights=happened[seen], minlength=len(n))
    parts = [_Part([int(v)], float(k[v]), float(n[v])) for v in np.flatnonzero(n)]
    num_values = len(parts)
    ordered = variable.kind == "levels"
    if not ordered and (never := [p for p in parts if p.k == 0]):  # they belong together
        parts = [*(p for p in parts if p.k > 0), _merged(never)]
    cost = 0.5 * np.log(len(codes))  # of one part more
    if ordered:
        cost += np.log(max(num_values, 1))
    while len(parts) > 1:
        ks, ns = np.array([p.k for p in parts]), np.array([p.n for p in parts])
        alone = _log_likelihood(ks, ns)
        together = _log_likelihood(ks[:, None] + ks, ns[:, None] + ns)
        mergeable = np.triu(np.ones(together.shape, bool), 1)
        if ordered:  # neighbours
            mergeable &= np.tri(len(parts), k=1, dtype=bool)
        loss = np.where(mergeable, alone[:, None] + alone - together, np.inf)
        i, j = np.unravel_index(np.argmin(loss), loss.shape)
        if loss[i, j] >= cost:
            break
        parts[i] = _merged([parts[i], parts[j]])
        del parts[j]
    if len(parts) < 2:
        return -np.inf, []
    unseen = _Part([], happened[~seen].sum(), (~seen).sum())
    whole = _Part([], happened.sum(), len(happened))
    gain = sum(p.log_likelihood() for p in (*parts, unseen)) - whole.log_likelihood()
    which = 0.0 if ordered else (num_values - 1) * np.log(2)
    return gain - cost * (len(parts) - 1) - which, [sorted(p.values) for p in parts]


def _condition(variable: Variable, part: Sequence[int], values: Sequence[int]) -> Condition:
    """That a variable is in this part of the values it was seen to have."""
    name = variable.name
    short = "" if name == "action" and variable.labels else f"{name.replace('.', '_')}_"
    condition = functools.partial(Condition, variable.place)
    if variable.kind == "truth":
        return condition(name, name) if part[0] else condition(f"not {name}", f"not_{name}")
    if variable.kind == "levels":
        low, high = min(part), max(part)
        if low == 0 == high:
            return condition(f"{name} == 0", f"{short}0")
        if high == max(values):
            return condition(f"{name} >= {low}", f"{short}from_{low}")
        if low == min(values):
            return condition(f"{name} <= {high}", f"{short}to_{high}")
        if low == high:
            return condition(f"{name} == {low}", f"{short}{low}")
        return condition(f"{low} <= {name} <= {high}", f"{short}{low}_to_{high}")
    rest = sorted(v for v in values if v not in part)
    among, yes = (part, True) if len(part) <= len(rest) else (rest, False)
    words = [quoted(variable.labels[v]) if v < len(variable.labels) else str(v) for v in among]
    if len(words) == 1:
        text = f"{name} {'==' if yes else '!='} {words[0]}"
    else:
        text = f"{name} {'in' if yes else 'not in'} ({', '.join(words)})"
    labels = [re.sub(r"\W+", "_", word).strip("_") for word in words]
    return condition(text, f"{'' if yes else 'not_'}{short}{'_'.join(labels)}")
