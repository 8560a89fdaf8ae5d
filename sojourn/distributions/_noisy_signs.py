"""Marginal law of noisy readings of an alternating renewal process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import numbers, whole_number
from sojourn.distributions._hidden_markov import _batched, _concrete
from sojourn.distributions._missing import is_missing, series_support
from sojourn.ops import switching_renewal as ops
from sojourn.ops.hidden_markov import _log

__all__ = ["NoisySigns", "log_reading"]


class NoisySigns(dist.Distribution):
    r"""Zeros and ones that report, with errors, on which side of a level something is; the sides summed out.

    .. math::
        s_1, \dots, s_T \text{ runs of } 0 \text{ and } 1 \text{ in turn, their lengths independent}, \quad
        P(y_t \neq s_t \mid s_t) = \text{flip}_{s_t}

    The process is stationary, so the first run is met somewhere in its course, and the last one is cut off
    (:mod:`sojourn.ops.switching_renewal`). The value is the whole series of readings; its density costs
    ``O(T K)``.

    Args:
        hazard: ``(K,)`` for runs of one law on both sides, or ``(..., 2, K)``, below (0) and above (1):
            entry ``a - 1`` is the probability that a run ends at length ``a`` given that it gets there; the
            last one holds for all longer runs. :func:`sojourn.ops.switching_renewal.hazard_from_pmf` makes
            it from probabilities of lengths.
        num_steps: ``T``.
        flip: probability of a wrong reading, in [0, 0.5): a number, or ``(..., 2)``: that of reading 1
            below, and of reading 0 above.
        mask: ``(..., T)`` booleans, true where ``y_t`` was read.
        validate_args: as in NumPyro, but a value other than 0, 1 and NaN is an error, not a warning.

    Shapes: event shape ``(T,)``; batch shape the broadcast of all ``...``.

    Missing readings are entries of ``mask`` that are false, or NaN in the value: time passes, nothing is
    learnt.

    Raises:
        ValueError: shapes that do not fit, fewer than one step; with ``validate_args``, probabilities out of
            range.

    Example:
        Runs last one or two steps below, three above; one reading in ten is wrong.

        >>> import jax.numpy as jnp
        >>> signs = NoisySigns(jnp.array([[0.5, 1.0, 1.0], [0.0, 0.0, 1.0]]), num_steps=5, flip=0.1)
        >>> value = jnp.array([1.0, 1.0, 0.0, jnp.nan, 1.0])
        >>> f"{signs.log_prob(value):.4f}"
        '-1.8073'
        >>> [f"{p:.2f}" for p in signs.sign_probabilities(value)]
        ['1.00', '0.94', '0.06', '0.50', '0.99']
    """

    arg_constraints = {
        "hazard": constraints.dependent(is_discrete=False, event_dim=2),
        "flip": constraints.dependent(is_discrete=False, event_dim=1),
    }
    pytree_data_fields = ("hazard", "flip", "_mask")
    pytree_aux_fields = ("num_steps",)

    def __init__(
        self,
        hazard: ArrayLike,
        *,
        num_steps: int,
        flip: ArrayLike = 0.0,
        mask: ArrayLike | None = None,
        validate_args: bool | None = None,
    ):
        hazard, flip = numbers(hazard, "hazard"), numbers(flip, "flip")
        mask = None if mask is None else numbers(mask, "mask")
        num_steps = whole_number(num_steps, "num_steps", None)
        hazard, flip = (x.astype(jnp.result_type(float, x)) for x in map(jnp.asarray, (hazard, flip)))
        if hazard.ndim < 1 or hazard.shape[-1] < 1 or (hazard.ndim > 1 and hazard.shape[-2] != 2):
            raise ValueError(
                f"`hazard` has shape {hazard.shape}; it must be (K,), or (..., 2, K) for below and above."
            )
        if flip.ndim > 0 and flip.shape[-1] != 2:
            raise ValueError(
                f"`flip` has shape {flip.shape}; it is one probability, or (..., 2): below and above."
            )
        if num_steps < 1:
            raise ValueError(f"`num_steps` must be at least one step, not {num_steps}.")
        self.hazard = jnp.broadcast_to(hazard, (2, *hazard.shape)) if hazard.ndim == 1 else hazard
        self.flip = jnp.broadcast_to(flip, (2,)) if flip.ndim == 0 else flip
        self._mask = None if mask is None else jnp.asarray(mask, bool)
        self.num_steps = int(num_steps)
        parts = [self.hazard.shape[:-2], self.flip.shape[:-1]]
        if self._mask is not None:
            if self._mask.shape[-1:] != (num_steps,):
                raise ValueError(
                    f"`mask` has shape {self._mask.shape}; its last axis must be the {num_steps} steps."
                )
            parts.append(self._mask.shape[:-1])
        super().__init__(jnp.broadcast_shapes(*parts), (self.num_steps,), validate_args=validate_args)

    def validate_args(self, strict: bool = True) -> None:
        """Check the values of the arguments; those inside a compiled function are skipped, or refused."""
        hazard, flip = _concrete(self.hazard), _concrete(self.flip)
        if strict and (hazard is None or flip is None):
            raise RuntimeError("Cannot validate arguments inside jitted code.")
        if hazard is not None:
            bad = ~((hazard >= 0) & (hazard <= 1))
            if bad.any():
                where = np.argwhere(bad)[0]
                raise ValueError(
                    f"`hazard` is {hazard[tuple(where)]:g} at length {where[-1] + 1} on side {where[-2]}; "
                    "the probability that a run ends must lie in [0, 1]."
                )
            endless = (hazard[..., -1] == 0) & (hazard[..., :-1] < 1).all(-1)
            if endless.any():
                raise ValueError(
                    f"The last `hazard` is zero on side {np.argwhere(endless)[0][-1]}: its long runs would "
                    "never end, and such a process has no stationary law."
                )
        if flip is not None and not ((flip >= 0) & (flip < 0.5)).all():
            worst = flip[~((flip >= 0) & (flip < 0.5))][0]
            raise ValueError(
                f"`flip` is {worst:g}; the probability of a wrong reading must lie in [0, 0.5): beyond it a "
                "reading would tell of the other side."
            )

    @property
    def observed(self) -> Array | None:
        """``(..., T)``: which steps ``mask`` declares read; ``None`` for all."""
        return self._mask

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return series_support(dist.Bernoulli(np.full(2, 0.5)), self._mask)

    def _validate_sample(self, value: ArrayLike) -> Array:
        fits = self.support(value)
        if not isinstance(fits, jax.core.Tracer) and not np.all(fits):
            each = np.broadcast_to(np.asarray(value), (*np.shape(fits), self.num_steps))
            bad = ~(np.isin(each, (0, 1)) | np.isnan(each))
            if self._mask is not None:
                bad = bad & np.asarray(self._mask)
            where = tuple(int(i) for i in np.argwhere(bad)[0])
            at = where[0] if len(where) == 1 else where
            raise ValueError(
                f"The value is {each[where]:g} at index {at}; a reading is 0 or 1, or NaN if there is none."
            )
        return fits

    # -------------------------------------------------------------------------------------- log-probability

    def _log_emission(self, value: ArrayLike) -> Array:
        """``(..., T, 2)`` with the whole batch shape; zero where nothing was read."""
        value = jnp.asarray(value)
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"The series has shape {value.shape}; its last axis must be the {self.num_steps} steps."
            )
        table = log_reading(self.flip)[..., None, :, :]  # (..., 1, sign, reading)
        read = jnp.where((value == 1)[..., None], table[..., 1], table[..., 0])
        missing = is_missing(value)
        if self._mask is not None:
            missing = ~self._mask if missing is None else missing | ~self._mask
        if missing is not None:
            read = jnp.where(missing[..., None], 0.0, read)
        batch = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return jnp.broadcast_to(read, (*batch, self.num_steps, 2))

    def _each(self, fn: Callable[..., Any], log_emission: Array, *others: Array) -> Any:
        """Map ``fn(hazard, log_emission, *others)`` over the batch."""
        batch = len(log_emission.shape) - 2
        args: list[tuple[Array | None, int]] = [(self.hazard, 2), (log_emission, 2)]
        args += [(other, other.ndim - batch) for other in others]
        return _batched(fn, args, batch, full=1)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        return self._each(ops.log_likelihood, self._log_emission(value))

    def predictive_log_prob(self, value: ArrayLike) -> Array:
        """One-step-ahead log-probabilities ``log p(y_t | y_<t)``, shape ``(..., T)``.

        They sum to :meth:`log_prob`; zero (to rounding) where nothing was read. This is what ``sj.fit``
        stores as the pointwise ``log_likelihood``.
        """
        return self.filter(value).log_predictive

    # ------------------------------------------------------------------------------------------ hidden signs

    def filter(self, value: ArrayLike) -> ops.Filtered:
        """Laws of the sign given the past; arrays of shape ``(..., T)`` and ``(..., T, 2)``."""
        return self._each(ops.filter, self._log_emission(value))

    def sign_probabilities(self, value: ArrayLike, *, filtered: bool = False) -> Array:
        """Probability of being above at each step, ``(..., T)``.

        Args:
            value: the readings, ``(..., T)``.
            filtered: given the readings up to the step, instead of all of them.
        """
        if filtered:
            return self.filter(value).filtered[..., 1]
        return self._each(ops.smooth, self._log_emission(value))[..., 1]

    def sample_path(self, key: Array, value: ArrayLike, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of the hidden process given the readings, ``sample_shape + (..., T)`` integers.

        Each is a signed age: ``+a`` at the ``a``-th step of a run above, ``-a`` below, ages from ``K`` on
        written as ``K``. The signs are ``path > 0``.
        """
        log_emission = self._log_emission(value)
        keys = jax.random.split(key, log_emission.shape[:-2])
        draws = int(np.prod(sample_shape))

        def one(hazard, log_emission, key):
            return ops.sample_paths(key, hazard, log_emission, num_samples=draws)

        paths = jnp.moveaxis(self._each(one, log_emission, keys), -2, 0)
        return paths.reshape((*sample_shape, *paths.shape[1:]))

    # ---------------------------------------------------------------------------------------------- sampling

    def _read(self, key: Array, above: Array) -> Array:
        """Readings of given probabilities of being above."""
        says_above = self._says_above(above)
        return (jax.random.uniform(key, above.shape, says_above.dtype) < says_above).astype(int)

    def _says_above(self, above: Array) -> Array:
        low, high = self.flip[..., :1], self.flip[..., 1:]
        return above * (1.0 - high) + (1.0 - above) * low

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        key_signs, key_read = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        keys = jax.random.split(key_signs, shape)
        blank = jnp.zeros((*shape, 1, 2), self.hazard.dtype)
        path = self._each(lambda hazard, _, key: ops.simulate(key, hazard, self.num_steps), blank, keys)
        return self._read(key_read, (path > 0).astype(self.hazard.dtype))

    def sample_one_step_ahead(self, key: Array, value: ArrayLike) -> Array:
        """At every step a draw from ``p(y_t | y_<t)``, of the shape of the series."""
        return self._read(key, self.filter(value).predicted[..., 1])

    # ----------------------------------------------------------------------------------------------- moments

    @property
    def mean(self) -> Array:
        above = ops.stationary_law(self.hazard)[..., 1, :].sum(-1)
        return jnp.broadcast_to(self._says_above(above[..., None]), self.shape())

    @property
    def variance(self) -> Array:
        return self.mean * (1.0 - self.mean)


def log_reading(flip: ArrayLike) -> Array:
    """``log p(reading | sign)``, ``(..., 2, 2)``: row the sign, column the reading.

    Args:
        flip: ``(..., 2)`` probabilities of a wrong reading below and above, or one for both.

    Example:
        >>> print(jnp.exp(log_reading(jnp.array([0.0, 0.25]))))
        [[1.   0.  ]
         [0.25 0.75]]
    """
    flip = jnp.asarray(flip)
    flip = jnp.broadcast_to(flip, (2,)) if flip.ndim == 0 else flip
    wrong, right = _log(flip), jnp.log1p(-flip)
    return jnp.stack(
        [jnp.stack([right[..., 0], wrong[..., 0]], -1), jnp.stack([wrong[..., 1], right[..., 1]], -1)], -2
    )
