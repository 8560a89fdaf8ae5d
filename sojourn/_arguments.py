"""What an argument must be, said in one sentence before anything is compiled.

Traced values pass: nothing is known of them but their shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "finite_numbers",
    "is_known",
    "is_list",
    "must_be",
    "numbers",
    "positive_numbers",
    "shown",
    "whole_number",
]


def shown(value: Any) -> str:
    """A value, short enough for a sentence."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def is_known(value: Any) -> bool:
    """Whether neither the value nor, in a list, an entry of it is traced."""
    if isinstance(value, list | tuple):
        return all(is_known(entry) for entry in value)
    return not isinstance(value, jax.core.Tracer)


def numbers(value: Any, name: str) -> Any:
    """``value`` itself where it is a JAX array; otherwise a NumPy array of numbers or booleans, or a JAX array of a list
    with traced entries.

    Raises:
        ValueError: not numbers, or rows of different lengths.

    Example:
        >>> numbers("fast", "rate")
        Traceback (most recent call last):
        ValueError: `rate` must be numbers, not 'fast'.
    """
    if isinstance(value, jax.Array):
        return value
    if not is_known(value):
        return jnp.asarray(value)
    try:
        array = np.asarray(value)
        kind: str = array.dtype.kind
    except (TypeError, ValueError):
        kind = ""
    if kind not in ("b", "i", "u", "f"):
        raise ValueError(f"`{name}` must be numbers, not {shown(value)}.")
    return array


def finite_numbers(value: Any, name: str) -> Any:
    """:func:`numbers`, none of which is NaN or infinite.

    Example:
        >>> finite_numbers([1.0, float("nan")], "barrier")
        Traceback (most recent call last):
        ValueError: `barrier` must be finite; it holds nan.
    """
    array = numbers(value, name)
    if is_known(array):
        bad = np.asarray(array)[~np.isfinite(np.asarray(array))]
        if bad.size:
            raise ValueError(f"`{name}` must be finite; it holds {bad.flat[0]}.")
    return array


def positive_numbers(value: Any, name: str, *, zero: bool = False) -> Any:
    """:func:`finite_numbers` above zero, or with ``zero`` not below it.

    Example:
        >>> positive_numbers(-1.0, "temperature")
        Traceback (most recent call last):
        ValueError: `temperature` must be positive, not -1.
    """
    array = finite_numbers(value, name)
    if is_known(array):
        known = np.asarray(array)
        bad = known[known < 0 if zero else known <= 0]
        if bad.size:
            must = "not be negative" if zero else "be positive"
            raise ValueError(f"`{name}` must {must}, not {bad.flat[0]:g}.")
    return array


def whole_number(value: Any, name: str, least: int | None = 1) -> int:
    """``value`` as an ``int``.

    Raises:
        ValueError: no whole number, or one below ``least``.

    Example:
        >>> whole_number(2.5, "num_steps")
        Traceback (most recent call last):
        ValueError: `num_steps` must be a whole number of at least 1, not 2.5.
    """
    is_whole = (
        isinstance(value, int | np.integer)
        or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iu")
    ) and not isinstance(value, bool)
    if not is_whole or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"`{name}` must be a whole number{bound}, not {shown(value)}.")
    return int(value)


def must_be(holds: bool, name: str, what: str, value: Any) -> None:
    """Refuse a value that is not what it must be.

    Example:
        >>> must_be(callable(3), "policy", "a function", 3)
        Traceback (most recent call last):
        ValueError: `policy` must be a function, not 3.
    """
    if not holds:
        raise ValueError(f"`{name}` must be {what}, not {shown(value)}.")


def is_list(value: Any) -> bool:
    """Whether the value holds several others, and is neither text nor a mapping."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
