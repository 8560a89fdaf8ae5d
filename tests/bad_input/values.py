"""Strategies for values that a contract refuses, and the judge of how they were refused."""

from __future__ import annotations

import contextlib
import linecache
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import sojourn

NAN, INF = float("nan"), float("inf")
_PACKAGE = str(Path(sojourn.__file__).parent)


class Case(NamedTuple):
    """One public function: a call that is right, and for each argument what makes it wrong."""

    name: str
    call: Callable[..., Any]
    good: dict[str, Any]
    bad: dict[str, st.SearchStrategy]
    examples: int = 40
    try_good: bool = True  # not where the right call would compile for seconds


# --------------------------------------------------------------------------------------- of the wrong type

words = st.text(alphabet="qwxyz", min_size=2, max_size=5)  # no letters of nan or inf
not_numbers = st.one_of(
    words,
    st.lists(words, min_size=1, max_size=3),
    st.builds(object),
    st.dictionaries(words, st.integers(), max_size=2),
    st.just(len),
)
"""Nothing that NumPy makes numbers of."""

not_functions = st.one_of(st.integers(), st.floats(), words, st.lists(st.integers(), max_size=2), st.just({}))
not_fits = st.one_of(st.none(), words, st.integers(), st.builds(object), st.lists(st.floats(), max_size=2))
not_paths = st.one_of(st.integers(3, 9), st.floats(0, 1), st.lists(words, max_size=2), st.builds(object))


# ------------------------------------------------------------------------------------------- single numbers


def above(bound: float, *, strict: bool = True) -> st.SearchStrategy:
    return st.floats(bound, bound + 1e6, exclude_min=strict, allow_subnormal=False)


def below(bound: float, *, strict: bool = True) -> st.SearchStrategy:
    return st.floats(bound - 1e6, bound, exclude_max=strict, allow_subnormal=False)


not_finite = st.sampled_from([NAN, INF, -INF])
not_positive = st.one_of(below(0.0, strict=False), not_finite, not_numbers)
not_positive_or_infinite = st.one_of(below(0.0, strict=False), st.just(NAN), not_numbers)
negative = st.one_of(below(-1e-6), not_finite, not_numbers)
not_probability = st.one_of(below(-1e-6), above(1.0 + 1e-6), not_finite, not_numbers)
not_open_probability = st.one_of(below(0.0, strict=False), above(1.0, strict=False), not_finite, not_numbers)


def not_count(least: int = 1) -> st.SearchStrategy:
    """Not a whole number of at least ``least``."""
    fractions = st.floats(least + 0.01, least + 0.99)
    return st.one_of(st.integers(least - 1000, least - 1), fractions, not_finite, not_numbers)


not_seed = st.one_of(st.floats(0.1, 0.9), st.just(NAN), not_numbers)
"""No whole number."""


def not_one_of(*names: Any) -> st.SearchStrategy:
    return st.one_of(words, st.integers(11, 99), st.floats(2.5, 3.5), st.builds(object)).filter(
        lambda value: value not in names
    )


# --------------------------------------------------------------------------------------------------- arrays


@st.composite
def poisoned(draw, array: Any, entries: st.SearchStrategy = not_finite, kind: type = float):
    """``array`` with a bad entry somewhere."""
    array = np.array(array, kind)
    array[tuple(draw(st.integers(0, n - 1)) for n in array.shape)] = draw(entries)
    return array


@st.composite
def misshapen(draw, array: Any, *, shapes: tuple[tuple[int, ...], ...] = ()):
    """``array`` cut, lengthened, emptied or with other axes."""
    array = np.asarray(array)
    how = draw(st.sampled_from(["empty", "cut", "longer", "axis", *shapes]))
    if how == "empty":
        return np.zeros((0, *array.shape[1:]), array.dtype)
    if how == "cut":
        return array[:-1]
    if how == "longer":
        return np.concatenate([array, array[: draw(st.integers(1, len(array)))]])
    if how == "axis":
        return array.reshape(*(1,) * draw(st.integers(2, 3)), *array.shape)
    return np.ones(how, array.dtype)


def shaped(*shapes: tuple[int, ...], value: float = 0.5) -> st.SearchStrategy:
    """Arrays of shapes that are all wrong."""
    return st.sampled_from(shapes).map(lambda shape: np.full(shape, value))


def spoiled(array: Any, *more: st.SearchStrategy, entries: st.SearchStrategy = not_finite):
    return st.one_of(poisoned(array, entries), not_numbers, *more)


@st.composite
def not_increasing(draw, times: Any):
    """Times, one of which repeats, falls back, or is no number."""
    times = np.array(times, float)
    how = draw(st.sampled_from(["repeat", "back", "bad", "swap"]))
    i = draw(st.integers(1, len(times) - 1))
    if how == "repeat":
        times[i] = times[i - 1]
    elif how == "back":
        times[i] = times[i - 1] - draw(st.floats(1e-2, 1e3))
    elif how == "swap":
        times[[i - 1, i]] = times[[i, i - 1]]
    else:
        times[i] = draw(not_finite)
    return times


@st.composite
def not_rate_matrix(draw, matrix: Any, *, shapes: bool = True):
    """A rate matrix with a row that does not sum to zero, a negative rate, an entry that is no number, or no matrix."""
    matrix = np.array(matrix, float)
    size = len(matrix)
    i, j = draw(st.permutations(range(size)))[:2]
    how = draw(st.sampled_from(["row", "negative", "bad", *(["shape"] if shapes else [])]))
    if how == "row":
        matrix[i, i] += draw(st.floats(0.1, 1e3))
    elif how == "negative":
        size = draw(st.floats(0.1, 1e3))
        matrix[i, i] += size + matrix[i, j]
        matrix[i, j] = -size
    elif how == "bad":
        matrix[i, j] = draw(not_finite)
    else:
        return draw(
            st.sampled_from([matrix[0], matrix[:-1], matrix[:, :-1], matrix[:1, :1], matrix[:0, :0], 1.0])
        )
    return matrix


@st.composite
def not_stochastic(draw, matrix: Any):
    """Rows of probabilities, one of which does not sum to one, is negative, or no number."""
    matrix = np.array(matrix, float)
    rows = matrix.reshape(-1, matrix.shape[-1])
    row = rows[draw(st.integers(0, len(rows) - 1))]
    how = draw(st.sampled_from(["sum", "negative", "bad"]))
    if how == "sum":
        row *= draw(st.one_of(st.floats(1.1, 9.0), st.floats(0.0, 0.9)))
    elif how == "negative":
        shift = draw(st.floats(0.1, 5.0))
        row[0], row[1] = -shift, row[1] + row[0] + shift
    else:
        row[draw(st.integers(0, len(row) - 1))] = draw(not_finite)
    return matrix


# ------------------------------------------------------------------------------------------------ the judge

_JARGON = re.compile(r"Traced<|jax\._src|ShapedArray|\bvmap\b|ConcretizationTypeError|dtype\[")
_NUMPYRO_SAYS = re.compile(r"distribution got invalid .* parameter")
_OURS = (ValueError, TypeError, RuntimeError, NotImplementedError)


class Hang(BaseException):
    """A call that took longer than a minute."""


@contextlib.contextmanager
def no_hang(seconds: float = 60.0) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def complaint(call: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """What is wrong with how the call ended; empty if it was refused in one sentence of ours."""
    try:
        with no_hang():
            result = call(**arguments)
    except Hang:
        return "hung"
    except _OURS as error:
        return _complaint_about(error)
    except Exception as error:
        return f"{type(error).__name__} {_where(error)}: {str(error)[:120]}"
    return f"accepted: {type(result).__name__} {str(result)[:60]}"


def _complaint_about(error: Exception) -> str:
    message = str(error)
    if _NUMPYRO_SAYS.search(message):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = linecache.getline(frame.filename, frame.lineno or 0).strip()
    told = f"{type(error).__name__} {_where(error)}: {message[:120]}"
    if not frame.filename.startswith(_PACKAGE) or not raised.startswith("raise"):
        return "not raised by us: " + told
    if _JARGON.search(message):
        return "jargon: " + told
    if not message.rstrip().endswith((".", "?", ")", "`")) or len(message) > 600 or "\n" in message:
        return "no sentence: " + told
    return ""


def _where(error: BaseException) -> str:
    """The last frame of ours."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(_PACKAGE)]
    if not frames:
        return "(no frame of ours)"
    return f"{Path(frames[-1].filename).relative_to(_PACKAGE)}:{frames[-1].lineno}"
