"""Runs of one sign in a process that is read at regular times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import numbers
from sojourn.distributions._excursion_time import _Interval, _log, _uniform
from sojourn.ops import renewal

__all__ = ["SignRuns"]


class SignRuns(dist.Distribution):
    r"""Number of readings in a row on one side of a level, when a process is read every ``step``.

    An excursion of length ``T`` holds ``T / step`` readings give or take one: with a uniform phase,
    :math:`P(k) = E(1 - |T / \mathrm{step} - k|)_+`. One shorter than the step is missed with probability
    :math:`1 - T / \mathrm{step}`, and then its two neighbours count as one run. With the density ``f`` of excursions
    on this side, that of missed ones on the other, :math:`m(t) = f_o(t)(1 - t/\mathrm{step})_+`, and that of seen ones
    ``s``, the run seen has the law :math:`s + m * f * s + \dots`, one more renewal equation.

    Without the merging, one-bit records sampled at a tenth of the mean interval already bias a fitted shape; with it
    they can be read up to four tenths apart.

    Args:
        law: :class:`ExcursionTime` or :class:`LevelExcursionTime`, of the excursions between readings.
        step: time between readings, positive, at most the mean of ``law``.
        validate_args: as in NumPyro.

    Shapes: scalar events, positive integers; the batch shape of ``law``.

    Raises:
        ValueError: a step that is not positive, or longer than the mean excursion.

    Example:
        >>> import jax
        >>> from sojourn.distributions import ExcursionTime
        >>> from sojourn.models import covariance
        >>> with jax.enable_x64(True):
        ...     law = ExcursionTime(covariance.Diffusion(2.0))
        ...     runs = SignRuns(law, step=0.2 * law.mean)
        ...     exact = jax.numpy.pi / jax.numpy.arccos(law.covariance(0.2 * law.mean))
        ...     print(f"{runs.mean:.3f} {exact:.3f}")
        5.32... 5.319
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.positive_integer
    pytree_data_fields = ("law", "step", "_table", "_total", "_slower")

    def __init__(self, law: Any, step: ArrayLike, *, validate_args: bool | None = None):
        if not isinstance(law, _Interval):
            raise ValueError(
                f"SignRuns: `law` must be an ExcursionTime or a LevelExcursionTime; got {type(law).__name__}."
            )
        self.law = law
        self.step = jnp.asarray(numbers(step, "step"), law._grid.step.dtype)
        if self.step.ndim:
            raise ValueError(f"SignRuns: `step` is one number, the time between readings; got {step}.")
        if not isinstance(self.step, jax.core.Tracer) and not self.step > 0:
            raise ValueError(f"SignRuns: `step` must be positive; got {step}.")
        mean = law._grid.mean * law._unit
        if not any(isinstance(x, jax.core.Tracer) for x in (mean, self.step)) and not np.all(
            self.step <= mean
        ):
            raise ValueError(
                f"SignRuns: readings {float(self.step):.4g} apart miss most excursions, whose mean is {float(mean.min()):.4g}: "
                "such runs tell nothing of them; `step` must be at most the mean."
            )
        opposite = law.opposite
        self._table, self._total, self._slower = _merge(law, None if opposite is law else opposite, self.step)
        super().__init__(batch_shape=law.batch_shape, event_shape=(), validate_args=validate_args)

    def is_valid(self) -> Array:
        """Whether the law of the excursions exists; traceable, ``batch_shape``."""
        return self.law.is_valid()

    @property
    def side_probability(self) -> Array:
        """Share of time on this side; one where both sides are alike."""
        return self.law.side_probability

    def _beyond(self, length: Array, row: Array) -> Array:
        """Second integral of the law of the runs, from ``length`` on, in steps; to be differenced."""
        position, over = self.law._place(length * self.step, row)
        return renewal.cubic(self._table, row, position) * jnp.exp(-over * self._slower[row])

    def _value(self, value: ArrayLike) -> tuple[Array, Array]:
        length = jnp.asarray(value).astype(self.step.dtype)
        return length, self.law._rows(length)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log-probability of a complete run of this many readings."""
        if isinstance(value, np.ndarray) and value.ndim == 1 and not self.batch_shape:
            distinct, which = np.unique(value, return_inverse=True)  # few lengths, however many runs
            return self._log_prob(distinct)[which]
        return self._log_prob(value)

    def _log_prob(self, value: ArrayLike) -> Array:
        length, row = self._value(value)
        around = self._beyond(length[..., None] + jnp.arange(-1.0, 2.0), row[..., None])
        mass = around[..., 0] - 2 * around[..., 1] + around[..., 2]
        log_prob = _log(mass) - jnp.log(self._total[row])
        return self.law._only_valid(jnp.where(length >= 1, log_prob, -jnp.inf), row)

    def _reach(self, length: Array, row: Array) -> Array:
        """``P(run >= length)``."""
        return (self._beyond(length - 1, row) - self._beyond(length, row)) / self._total[row]

    def log_reach(self, value: ArrayLike) -> Array:
        """``log P(run >= value)``: what a run contributes that is cut off after ``value`` readings."""
        return _log(self._reach(*self._value(value)))

    def cdf(self, value: ArrayLike) -> Array:
        """``P(run <= value)``."""
        length, row = self._value(value)
        return 1 - self._reach(length + 1, row)

    def persistence(self, window: ArrayLike) -> Array:
        """Probability that ``window`` readings in a row are on this side, given that the first is."""
        length, row = self._value(window)
        return self._beyond(length - 1, row) / self._beyond(jnp.zeros_like(length), row)

    def hazard(self, num_lengths: int) -> Array:
        """``batch_shape + (num_lengths,)``: probability that a run ends at length 1, 2, ..., given that it gets there.

        As :class:`NoisySigns` takes it, whose last entry holds for all longer runs.
        """
        shape = (*self.batch_shape, num_lengths)
        length = jnp.broadcast_to(jnp.arange(1.0, num_lengths + 1), shape).astype(self.step.dtype)
        row = jnp.broadcast_to(jnp.asarray(self.law._row)[..., None], shape)
        reach = self._beyond(length - 1, row) - self._beyond(length, row)
        further = self._beyond(length, row) - self._beyond(length + 1, row)
        return jnp.clip(1 - further / reach, 0.0, 1.0)

    @property
    def mean(self) -> Array:
        """Mean number of readings in a run."""
        row = jnp.asarray(self.law._row)
        return self._beyond(jnp.zeros(row.shape), row) / self._total[row]

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Integers, ``sample_shape + batch_shape``."""
        return self.sample_like(key, (*sample_shape, *self.batch_shape))

    def sample_like(self, key: Array, shape: tuple[int, ...], *, left_over: bool = False) -> Array:
        """Draws of this shape; with ``left_over`` of the readings that are still to come on this side, this one included."""
        uniform = _uniform(key, shape, self.step.dtype)
        row = jnp.broadcast_to(self.law._row, shape)

        def at_least(length: Array) -> Array:
            length = length.astype(self.step.dtype)
            if left_over:
                return self._beyond(length - 1, row) / self._beyond(jnp.zeros_like(length), row)
            return self._reach(length, row)

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) // 2
            reached = at_least(middle) >= uniform
            return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

        ones = jnp.ones(shape, int)
        return lax.fori_loop(0, 24, halve, (ones, ones * 2**24))[0]


@jax.jit
def _merge(law: _Interval, opposite: _Interval | None, step: Array) -> tuple[Array, Array, Array]:
    """On the grid of ``law`` the second integral of the law of the runs, ``(rows, n + 1)``; their mass, ``(rows,)``; and
    the rate of their tail over that of the excursions, ``(rows,)``.

    Runs of one excursion need the integral of its survival alone; what merging adds comes from a renewal equation.
    """
    grid, unit = law._grid, law._unit[:, None]
    width = grid.step[:, None] * unit
    t = width * jnp.arange(law.num_steps + 1)
    row = jnp.arange(len(grid.step))[:, None]
    rate = law._tail_rate()[:, None] / unit
    whole = grid.integral * unit

    # Excursions that fall between two readings: their distribution function, by parts, from S and its integral.
    def missed(survival: Array, integral: Array, at_step: Array) -> Array:
        return jnp.where(
            t < step,
            1 - survival * (1 - t / step) - integral / step,
            1 - jnp.broadcast_to(at_step, t.shape) / step,
        )

    at_step = renewal.cubic(whole, row, step / width)
    unseen = missed(grid.survival, whole, at_step)
    if opposite is None:
        between = unseen
    else:
        early = jnp.minimum(t, step)
        start = opposite._left_over_at(jnp.zeros_like(step * width), row)
        integral = start - opposite._left_over_at(early, row)
        ends = start - opposite._left_over_at(jnp.broadcast_to(step, width.shape), row)
        between = missed(opposite._survival_at(early, row), integral, ends)
    fallen = 1 - grid.survival
    seen = fallen - unseen
    joined = jax.vmap(renewal.convolve)(fallen, between)
    damping = 1e-6 if t.dtype == jnp.float64 else 3e-2
    runs = jax.vmap(lambda source, measure: renewal.solve(source, measure, damping))(seen, joined)
    extra_mass = (1 - unseen[:, -1:]) * between[:, -1:] / (1 - between[:, -1:])
    still = extra_mass - (runs - seen)
    # Merged runs are longer, and their tail falls more slowly than that of the excursions: read it off the last eighth.
    eighth = law.num_steps // 8
    first, last = (_log(grid.survival[:, i] + still[:, i])[:, None] for i in (-1 - eighth, -1))
    slower = jnp.clip((first - last) / (eighth * width * rate), 0.1, 1.0)
    rate = rate * slower
    pieces = 0.5 * width * (still[:, 1:] + still[:, :-1])
    tail = (grid.survival[:, -1:] + still[:, -1:]) / rate
    added = jnp.concatenate([jnp.cumsum(pieces[:, ::-1], -1)[:, ::-1], jnp.zeros_like(tail)], -1)
    table = (whole[:, -1:] - whole + added + tail) / step
    return table, table[:, 0] - renewal.cubic(table, row, step / width)[:, 0], slower[:, 0]
