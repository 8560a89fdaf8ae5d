"""Digests of traced functions that do not depend on the order in which JAX writes things down."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from sojourn.inference._checkpoint import on_host

__all__ = ["ADDRESS", "array_digest", "program_digest"]

ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")


def program_digest(fn: Callable[..., Any], values: Mapping[str, Any]) -> str:
    """Digest of what a function of arrays by name computes.

    NumPyro flattens distributions in the order of a set, which changes from one process to the next, and with it the
    order of what goes into a loop and comes out of it. So each value is known by how it is computed from others, all
    the way down, and not by its place.

    Args:
        fn: takes and gives arrays by name.
        values: of the form that it takes.

    Example:
        >>> import jax.numpy as jnp
        >>> one = program_digest(lambda v: {"y": v["a"] + v["b"]}, {"a": jnp.ones(2), "b": jnp.ones(2)})
        >>> two = program_digest(lambda v: {"y": v["b"] + v["a"]}, {"a": jnp.ones(2), "b": jnp.ones(2)})
        >>> three = program_digest(lambda v: {"y": v["a"] + v["a"]}, {"a": jnp.ones(2), "b": jnp.ones(2)})
        >>> one == two, one == three
        (False, False)
    """
    traced, forms = jax.make_jaxpr(fn, return_shape=True)(values)
    inputs = [_joined(name, aval) for name, aval in zip(_names(values), traced.in_avals, strict=True)]
    found = _of(traced)(inputs)
    return _joined(*sorted(_joined(name, value) for name, value in zip(_names(forms), found, strict=True)))


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _values_of(jaxpr: Jaxpr, constants: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """How each output is computed from inputs that are known by these texts."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

    def text(atom: Any) -> str:
        return f"{array_digest(atom.val)} {atom.aval}" if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        given = [text(atom) for atom in equation.invars]
        known |= zip(equation.outvars, _results(equation, given), strict=True)
    return [text(atom) for atom in jaxpr.outvars]


def _results(equation: Any, given: list[str]) -> list[str]:
    name, settings = equation.primitive.name, equation.params
    if name == "scan":
        inner = getattr(settings["jaxpr"], "jaxpr", settings["jaxpr"])
        carried = len(given) - _rows(equation.invars, inner.invars)
        first = carried - (len(equation.outvars) - _rows(equation.outvars, inner.outvars))
        body = _of(settings["jaxpr"])
        head = _joined(name, settings["length"], settings["reverse"])
        rows = [_joined("row", value) for value in given[carried:]]
        return _loop(body, head, given[:first], given[first:carried], rows)
    if name == "while":
        first = settings["cond_nconsts"]
        second = first + settings["body_nconsts"]
        test, body = _of(settings["cond_jaxpr"]), _of(settings["body_jaxpr"])
        going_on = functools.partial(_joined, "while")
        found = _loop(body, name, given[first:second], given[second:], [])
        (until,) = test([*given[:first], *found])
        return [going_on(value, until) for value in found]
    if name == "cond":
        branches = [_of(branch)(given[1:]) for branch in settings["branches"]]
        return [_joined(name, given[0], *parts) for parts in zip(*branches, strict=True)]
    parts = list(jaxprs_in_params(settings))
    whole = [v for v in settings.values() if parts and getattr(v, "jaxpr", v) is parts[0]]
    places = len(given), len(equation.outvars)
    if len(parts) == 1 and whole and (len(parts[0].invars), len(parts[0].outvars)) == places:
        return _of(whole[0])(given)  # a call
    if parts:  # of unknown meaning: what is in them, without the order
        inner = [sorted(_values_of(p, _forms(p.constvars), _forms(p.invars))) for p in parts]
        head = _joined(name, *(value for part in inner for value in part), *sorted(given))
    else:
        words = (f"{key}={ADDRESS.sub('', str(value))}" for key, value in sorted(settings.items()))
        head = _joined(name, *words, *given)
    return [_joined(head, i) for i in range(len(equation.outvars))]


def _rows(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many arrays a scan takes row by row, or stacks: they have an axis more outside. (Versions of JAX keep this
    number in different ways.)"""
    return sum(a.aval.ndim != b.aval.ndim for a, b in zip(outside, inside, strict=True))


def _loop(
    body: Callable[[list[str]], list[str]], head: str, constants: list[str], carry: list[str], rows: list[str]
) -> list[str]:
    """What a loop gives: the last carry, and what it stacks."""
    labels = [_joined(head, value) for value in carry]
    outer, turn = [], ""
    for _ in range(2):  # carries that begin alike are told apart by what becomes of them
        outer = body([*constants, *labels, *rows])
        turn = _joined(*sorted(outer))  # whatever changes in a step changes all that comes of it
        labels = [_joined(label, value, turn) for label, value in zip(labels, outer, strict=False)]
    return labels + [_joined("rows", value, turn) for value in outer[len(carry) :]]


def _of(closed: Any) -> Callable[[list[str]], list[str]]:
    """A closed or open part of a program, as a function of texts."""
    constants = [array_digest(c) for c in getattr(closed, "consts", ())]
    return lambda given: _values_of(getattr(closed, "jaxpr", closed), constants, given)


def _forms(variables: Sequence[Any]) -> list[str]:
    return [str(variable.aval) for variable in variables]


def _joined(*parts: Any) -> str:
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=12).hexdigest()


def array_digest(array: Any) -> str:
    """Of shape, type and content."""
    try:
        value = on_host(array)
        content = value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
        head = f"{value.shape} {value.dtype}".encode()
    except Exception:
        content, head = ADDRESS.sub("", repr(array)).encode(), b""
    return hashlib.blake2b(head + content, digest_size=12).hexdigest()
