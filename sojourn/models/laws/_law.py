"""A law: when its condition holds, its effect may happen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer

from sojourn._arguments import is_list, must_be, numbers, shown

__all__ = ["Effect", "Law", "Outcome", "View", "anywhere", "law", "one_of", "when"]


class Outcome(NamedTuple):
    """Values that an attribute may take when a law fires, and with what probabilities."""

    values: tuple[Any, ...]
    probs: tuple[Any, ...]
    uniform: bool = False


class Effect(NamedTuple):
    """What a law says about one state and action."""

    condition: Any
    writes: dict[str, Outcome]


def when(condition: Any, /, **writes: Any) -> Effect:
    """The effect of a law: where ``condition`` holds, it may write these values, all of them or none.

    Args:
        condition: a boolean.
        **writes: by attribute, the new value, or :func:`one_of` several, or :func:`anywhere`.

    Example:
        >>> from sojourn.models.laws import when
        >>> when(True, wood=3, target=1).writes["wood"].values
        (3,)
    """
    if not writes:
        raise ValueError(
            "when: a law has to write at least one attribute, such as when(..., health=s.health - 1)."
        )
    return Effect(
        condition,
        {k: v if isinstance(v, Outcome) else Outcome((v,), (1.0,)) for k, v in writes.items()},
    )


def one_of(values: Any, p: Sequence[Any] | None = None) -> Outcome:
    """One of several values.

    Args:
        values: the values, along their first axis.
        p: their probabilities, which sum to one; by default all are equal. They may be parameters of the law.

    Raises:
        ValueError: no values, another number of probabilities, or probabilities that do not sum to one.

    Example:
        >>> from sojourn.models.laws import one_of
        >>> one_of([3, 4]).probs
        (0.5, 0.5)
    """
    values = tuple(values)
    if not values:
        raise ValueError("one_of: there must be at least one value.")
    probs = (1.0 / len(values),) * len(values) if p is None else tuple(p)
    if len(probs) != len(values):
        raise ValueError(f"one_of: {len(values)} values have {len(probs)} probabilities.")
    if not any(isinstance(x, Tracer) for x in probs):
        known = np.asarray(numbers(probs, "p"), float)
        if not np.all(known >= 0) or abs(known.sum() - 1) > 1e-5:
            raise ValueError(f"one_of: the probabilities {known.tolist()} do not sum to one.")
    return Outcome(values, probs)


def anywhere() -> Outcome:
    """Any value of the attribute's support, all equally likely (a teleport, a fresh draw).

    Example:
        >>> from sojourn.models.laws import anywhere
        >>> anywhere().uniform
        True
    """
    return Outcome((0,), (1.0,), True)


@dataclass(frozen=True)
class Law:
    """A function and what is to be known of it; :func:`law` makes one."""

    function: Callable[..., Effect]
    name: str
    each: str | None = None
    after: tuple[str, ...] = ()
    prior: dist.Beta | None = None
    parameters: Mapping[str, dist.Distribution] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Effect:
        """The effect on a state and an action."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        each = f", each {self.each}" if self.each else ""
        return f"Law({self.name}{each})"


@overload
def law(function: Callable[..., Effect], /) -> Law: ...
@overload
def law(
    *,
    each: str | None = None,
    after: str | Sequence[str] = (),
    prior: dist.Beta | None = None,
    name: str | None = None,
) -> Callable[[Callable[..., Effect]], Law]: ...
def law(
    function: Callable[..., Effect] | None = None,
    /,
    *,
    each: str | None = None,
    after: str | Sequence[str] = (),
    prior: dist.Beta | None = None,
    name: str | None = None,
) -> Any:
    """Make a law of a function ``(state, action) -> when(...)``.

    The law's *rate*, the probability that the effect happens where the condition holds and nothing competes, is not
    written anywhere: it is learnt.

    Args:
        function: of a state and an action; with ``each``, of an object, a state and an action. Attributes read as
            ``s.health``, those of a class as arrays ``s.cow.pos`` ``(slots, 2)``. An argument whose default is a
            distribution is a parameter of the law with that prior, a latent site ``"<law>.<argument>"``.
        each: a class of objects: the law holds for every object of it that is alive.
        after: attributes that the law sees as they are *after* this step (``"pos"``, ``"cow.pos"``); what it writes
            is decided later than they are. ``s.before`` keeps the state before the step.
        prior: of the rate, a ``Beta`` distribution; by default that of the world, which is uniform.
        name: by default that of the function.

    Raises:
        ValueError: wrong arguments of ``function``; a prior that is not ``Beta``.

    Example:
        >>> import numpyro.distributions as dist
        >>> from sojourn.models.laws import law, one_of, when
        >>> @law
        ... def find_sapling(s, a):
        ...     return when((a == 5) & (s.target == 2), sapling=s.sapling + 1)
        >>> @law(each="zombie", after="pos")
        ... def chase(zombie, s, a, long_axis=dist.Beta(1.0, 1.0)):
        ...     step = (s.pos - zombie.pos) // 8
        ...     return when(True, pos=one_of([zombie.pos + step, zombie.pos], p=[long_axis, 1 - long_axis]))
        >>> find_sapling, chase, list(chase.parameters)
        (Law(find_sapling), Law(chase, each zombie), ['long_axis'])
    """
    if function is None:
        return lambda f: _make(f, each, after, prior, name)
    return _make(function, each, after, prior, name)


def _make(function, each, after, prior, name):
    must_be(name is None or isinstance(name, str), "name", "text", name)
    must_be(each is None or isinstance(each, str), "each", "the name of a class of objects", each)
    must_be(isinstance(after, str) or is_list(after), "after", "a name, or a list of names", after)
    name = name or getattr(function, "__name__", "law")
    if not callable(function):
        raise ValueError(f"law {name!r}: a law is a function of a state and an action, not {function!r}.")
    if prior is not None and not isinstance(prior, dist.Beta):
        raise ValueError(
            f"law {name!r}: `prior` is a Beta distribution of its rate, not {type(prior).__name__}."
        )
    wanted = 2 if each is None else 3
    arguments = list(inspect.signature(function).parameters.values())
    plain = [p for p in arguments if p.default is p.empty]
    if len(plain) != wanted:
        what = "(state, action)" if each is None else f"({each}, state, action)"
        raise ValueError(
            f"law {name!r}: its arguments without a default must be {what}; there are {len(plain)}."
        )
    other = next(
        (p for p in arguments if p.default is not p.empty and not isinstance(p.default, dist.Distribution)),
        None,
    )
    if other is not None:
        raise ValueError(
            f"law {name!r}: the default of {other.name!r} must be a distribution, its prior, not {shown(other.default)}."
        )
    parameters = {p.name: p.default for p in arguments if isinstance(p.default, dist.Distribution)}
    after = (after,) if isinstance(after, str) else tuple(after)
    return Law(function, name, each, after, prior, parameters)


class View:
    """A state as a law sees it; remembers what was read."""

    __slots__ = ("_fresh", "_of", "_prefix", "_reads", "_values", "before")

    def __init__(
        self, values: Mapping[str, Any], reads: set, fresh: frozenset = frozenset(), prefix: str = "", of=""
    ):
        self._values = values
        self._reads = reads
        self._fresh = fresh
        self._prefix = prefix
        self._of = of
        self.before: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Any:
        try:
            value = self._values[name]
        except KeyError:
            known = ", ".join(map(str, self._values))
            raise ValueError(
                f"law {self._of!r} reads {self._prefix + name!r}, which the states do not hold (they hold {known})."
            ) from None
        if isinstance(value, Mapping):
            return View(value, self._reads, self._fresh, f"{name}.", self._of)
        full = self._prefix + name
        self._reads.add((full, full in self._fresh))
        return value
