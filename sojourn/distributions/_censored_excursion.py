"""Durations of which only part is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn.distributions._excursion_time import _log

__all__ = ["KINDS", "CensoredExcursion", "read_kinds"]

KINDS = ("complete", "right", "left", "interval", "first", "empty")
"""What is known of a duration. ``complete``: begun and ended by a crossing; ``right``: begun by one, and its
end not seen; ``left``, ``interval``: known to be below, or between, two bounds; ``first``: from the start of
a window, in the middle of an excursion, to the first crossing; ``empty``: a window without a crossing."""


def read_kinds(kind: Any, caller: str) -> Any:
    """Kinds by name or by number, as an integer array (left alone where it is traced)."""
    if isinstance(kind, jax.core.Tracer):
        return kind
    given = np.asarray(kind)
    if given.dtype.kind in "US":
        unknown = sorted(set(given.ravel().tolist()) - set(KINDS))
        if unknown:
            raise ValueError(f"{caller}: `kind` must be among {', '.join(KINDS)}; got {unknown[0]!r}.")
        return np.vectorize(KINDS.index, otypes=[int])(given)
    if not np.issubdtype(given.dtype, np.integer) or (
        given.size and not (given.min() >= 0 and given.max() < len(KINDS))
    ):
        raise ValueError(
            f"{caller}: `kind` holds names ({', '.join(KINDS)}) or their numbers, 0 to {len(KINDS) - 1}; got "
            f"{given.ravel()[:3].tolist()} ..."
        )
    return given


class CensoredExcursion(dist.Distribution):
    r"""Durations with what is known of each: complete, cut off at either end, or a window without a crossing.

    With the density ``f``, the survival ``S`` and the mean of ``law``, a value ``t`` contributes

    ========== ============================================ ==========================================
    kind       what happened                                density or probability
    ========== ============================================ ==========================================
    complete   it lasted ``t``                              ``f(t)``
    right      it lasted longer than ``t``                  ``S(t)``
    left       it lasted less than ``t``                    ``1 - S(t)``
    interval   it lasted between ``lower`` and ``t``        ``S(lower) - S(t)``
    first      a stationary record crossed first at ``t``   ``p S(t) / mean``
    empty      a record of length ``t`` had no crossing     ``p`` :math:`\int_t^\infty S` ``/ mean``
    ========== ============================================ ==========================================

    where ``p`` is the share of time on this side of the level (one at level zero, where the sides are alike).
    Leaving out windows without crossings, or pieces cut off, biases a fit badly when windows are short.

    Args:
        law: :class:`ExcursionTime`, :class:`LevelExcursionTime` or :class:`SignRuns`.
        kind: names or numbers, see :data:`KINDS`; of the shape of the data or one for all.
        lower: lower bounds, where ``kind`` is ``interval``.
        among: names of the kinds that may occur, where ``kind`` is not known before compilation (a minibatch); saves
            the work of the others.
        validate_args: as in NumPyro.

    Shapes: the batch shape is the broadcast of that of ``law``, of ``kind`` and of ``lower``.

    :meth:`sample` draws the durations themselves as if nothing had been cut off: of a whole excursion where the
    piece began with a crossing, and of what is left of one for ``first`` and ``empty``.

    Raises:
        ValueError: an unknown kind, or ``interval`` without ``lower``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from sojourn.distributions import ExcursionTime
        >>> from sojourn.models import covariance
        >>> with jax.enable_x64(True):
        ...     law = ExcursionTime(covariance.Diffusion(2.0))
        ...     pieces = CensoredExcursion(law, ["complete", "right", "empty"])
        ...     print([f"{x:.3f}" for x in pieces.log_prob(jnp.array([5.0, 5.0, 20.0]))])
        ['-2.433', '-0.752', '-3.703']
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("law", "kind", "lower")
    pytree_aux_fields = ("_present",)

    def __init__(
        self,
        law: Any,
        kind: Any,
        *,
        lower: ArrayLike | None = None,
        among: Any = None,
        validate_args: bool | None = None,
    ):
        if not hasattr(law, "persistence"):
            raise ValueError(
                f"CensoredExcursion: `law` must be an ExcursionTime, LevelExcursionTime or SignRuns; got "
                f"{type(law).__name__}."
            )
        self.law = law
        self.kind = read_kinds(kind, "CensoredExcursion")
        if not isinstance(self.kind, jax.core.Tracer):
            present = np.unique(self.kind).tolist()
        elif among is not None:
            present = read_kinds(list(among), "CensoredExcursion").tolist()
        else:
            present = range(len(KINDS))
        self._present = frozenset(present)
        if lower is None and KINDS.index("interval") in self._present:
            if among is not None or not isinstance(self.kind, jax.core.Tracer):
                raise ValueError("CensoredExcursion: kind 'interval' needs `lower`, the lower bounds.")
            self._present = self._present - {KINDS.index("interval")}
        self.lower = None if lower is None else jnp.asarray(lower)
        shape = jnp.broadcast_shapes(
            law.batch_shape, np.shape(self.kind), () if lower is None else np.shape(lower)
        )
        super().__init__(batch_shape=shape, event_shape=(), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return self.law.support

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log of what each value contributes."""
        law = self.law
        at: Any = value if isinstance(value, np.ndarray) else jnp.asarray(value)
        # A bound where there is none may be NaN, which would reach the gradient.
        interval = self.kind == KINDS.index("interval")
        lower = None if self.lower is None else jnp.where(interval, self.lower, 0.0)
        apart = isinstance(self.kind, np.ndarray) and not law.batch_shape and self.kind.ndim == 1
        if apart and at.shape == self.kind.shape:  # each kind is worked out where it occurs
            where = [np.flatnonzero(self.kind == number) for number in sorted(self._present)]
            pieces = [
                self._part(
                    number,
                    at[chosen],
                    None if lower is None else jnp.broadcast_to(lower, self.kind.shape)[chosen],
                )
                for number, chosen in zip(sorted(self._present), where, strict=True)
            ]
            total = jnp.concatenate(pieces)[np.argsort(np.concatenate(where))]
        else:
            total = jnp.full(jnp.broadcast_shapes(at.shape, self.batch_shape), -jnp.inf)
            for number in sorted(self._present):
                total = jnp.where(self.kind == number, self._part(number, at, lower), total)
        # The other kinds are as impossible as a complete one where the law does not exist.
        return jnp.where(law.is_valid(), total, -jnp.inf)

    def _part(self, number: int, value: Any, lower: Any) -> Array:
        law, share = self.law, jnp.log(self.law.side_probability)
        return {
            "complete": lambda: law.log_prob(value),
            "right": lambda: law.log_reach(value),
            "left": lambda: _log(law.cdf(value)),
            "interval": lambda: _log(law.cdf(value) - law.cdf(lower)),
            "first": lambda: share + law.log_reach(value) - jnp.log(law.mean),
            "empty": lambda: share + _log(law.persistence(value)),
        }[KINDS[number]]()

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = (*sample_shape, *self.batch_shape)
        left_over = (KINDS.index("first"), KINDS.index("empty"))
        whole = self.law.sample_like(key, shape)
        if not self._present & set(left_over):
            return whole
        rest = self.law.sample_like(key, shape, left_over=True)
        return jnp.where((self.kind == left_over[0]) | (self.kind == left_over[1]), rest, whole)
