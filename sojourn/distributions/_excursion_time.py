"""How long a stationary Gaussian process stays on one side of a level."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import numbers, whole_number
from sojourn.ops import excursion, renewal
from sojourn.ops.covariance import Covariance, batch_shape, check_covariance, flatten

__all__ = ["ExcursionTime", "IIAInvalidError", "LevelExcursionTime", "Validity"]

_HIGHEST_LEVEL = 4.0


class IIAInvalidError(ValueError):
    """No process with independent intervals has the crossings of this covariance: its density would be negative."""


class Validity(NamedTuple):
    """Whether a law of independent intervals exists: what :meth:`ExcursionTime.validity` returns."""

    state: Literal["guaranteed", "numerical", "invalid"]
    """``guaranteed``: the law is a geometric sum of proper times. ``numerical``: it is not, but the solved density is
    nowhere negative. ``invalid``: the density is negative somewhere."""
    min_density: float
    """Least value of the density, times the mean."""
    min_kernel: float
    """Least value of the density of one summand, times the mean."""
    first_negative: float | None
    """First time at which the density is negative, in units of time."""


class _Interval(dist.Distribution):
    """What the laws at level zero and at others share: everything but the equation that they solve."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.positive
    reparametrized_params: list[str] = []

    _mean_may_be_missed = False  # by the grid, at high levels

    covariance: Covariance
    num_steps: int
    horizon: float
    _grid: excursion.ExcursionGrid  # of covariances stretched to a mean interval of one
    _unit: Array  # (rows,): what the mean interval is
    _row: Any

    def _check_options(self, num_steps: int, horizon: float, on_invalid: str) -> None:
        """Before anything is compiled."""
        self.num_steps = whole_number(num_steps, "num_steps", None)
        self.horizon = float(numbers(horizon, "horizon"))
        name = type(self).__name__
        if on_invalid not in ("raise", "warn", "ignore"):
            raise ValueError(f"{name}: `on_invalid` must be 'raise', 'warn' or 'ignore'; got {on_invalid!r}.")
        if self.num_steps % 4 or self.num_steps < 64:
            raise ValueError(
                f"{name}: `num_steps` must be a multiple of 4, at least 64; got {self.num_steps}."
            )
        if not 4 <= self.horizon <= 16:
            raise ValueError(
                f"{name}: `horizon` must lie between 4 and 16 mean intervals (beyond, the survival drowns in rounding; "
                f"the tail is exponential anyway); got {self.horizon}."
            )

    def _set_up(
        self,
        index: ArrayLike | None,
        own: tuple[int, ...],
        on_invalid: str,
        validate_args: bool | None,
    ) -> None:
        name = type(self).__name__
        if index is None:
            batch = own
            self._row = np.arange(int(np.prod(own, dtype=int))).reshape(own)
        else:
            if len(own) != 1:
                raise ValueError(
                    f"{name}: `index` picks from several covariances, so their hyper-parameters need shape (J,); got {own}."
                )
            self._row = index if isinstance(index, Array) else np.asarray(index)
            batch = self._row.shape
            if isinstance(self._row, np.ndarray) and self._row.size:
                low, high = self._row.min(), self._row.max()
                if not (np.issubdtype(self._row.dtype, np.integer) and low >= 0 and high < own[0]):
                    raise ValueError(
                        f"{name}: `index` must hold integers from 0 to {own[0] - 1}; got {low} to {high}."
                    )
        if self._grid.step.dtype != jnp.float64:
            warnings.warn(
                f"{name} in single precision is wrong for durations below 0.03 and beyond about 5 mean "
                "intervals; call numpyro.enable_x64() before anything else.",
                stacklevel=3,
            )
        super().__init__(batch_shape=batch, event_shape=(), validate_args=validate_args)
        if on_invalid != "ignore" and not isinstance(self._grid.step, jax.core.Tracer):
            self._judge(on_invalid)

    # ------------------------------------------------------------------------------------------- validity

    @property
    def _tolerance(self) -> float:
        # Proper densities are above -1e-10 (times their mean) in double precision.
        return 1e-6 if self._grid.step.dtype == jnp.float64 else 2e-3

    def _exists(self, grid: excursion.ExcursionGrid) -> Array:
        """``(rows,)``: whether the density is nowhere negative and has its mean."""
        # The first density is extrapolated: with derivatives taken automatically it is noise.
        least = jnp.min(grid.density[:, 1:], -1) * grid.mean
        density, survival = grid.density[:, -1], grid.survival[:, -1]
        proper = (least >= -self._tolerance) & (density > 0) & (survival > 0)
        if not self._mean_may_be_missed:
            return proper
        mean = grid.integral[:, -1] + survival**2 / jnp.where(proper, density, 1.0)
        close = 5e-3 if grid.step.dtype == jnp.float64 else 5e-2
        return proper & (~grid.exponential_tail | (abs(mean - grid.mean) <= close * grid.mean))

    def is_valid(self) -> Array:
        """Whether the law exists: a density nowhere negative, of the right mean; traceable, ``batch_shape``."""
        return self._exists(self._grid)[self._row]

    def _solve_finer(self) -> excursion.ExcursionGrid:
        raise NotImplementedError

    def validity(self) -> Validity:
        """Whether independent intervals can have these crossings, judged on a finer grid; the worst of a batch.

        Bengtsson and Podgorski (2024) give the sufficient condition, that the mean clipped Slepian process falls
        (at level zero: that ``arccos r`` is concave). Weak oscillation breaks it and still leaves a proper density.
        """
        return self._read_validity(self._solve_finer())

    def _read_validity(self, grid: excursion.ExcursionGrid) -> Validity:
        density, kernel, mean, step = (
            np.asarray(x) for x in (grid.density[:, 1:], grid.kernel, grid.mean, grid.step)
        )
        exists = np.asarray(self._exists(grid))
        least = density.min(-1) * mean
        worst = int(np.argmin(np.where(np.isnan(least), -np.inf, least)))
        if exists[worst] and not exists.all():
            worst = int(np.argmin(exists))
        least_kernel = float((kernel.min(-1) * mean).min())
        below = np.flatnonzero(~(density[worst] * mean[worst] >= -self._tolerance))
        first = float((below[0] + 1) * step[worst] * np.asarray(self._unit)[worst]) if below.size else None
        noise = 1e-7 if self._grid.step.dtype == jnp.float64 else 1e-2
        state: Any = "invalid" if not exists.all() else "guaranteed" if least_kernel > -noise else "numerical"
        return Validity(state, float(least[worst]), least_kernel, first)

    def _judge(self, on_invalid: str) -> None:
        found = self._read_validity(self._grid)
        if found.state == "invalid":
            of = f"{type(self).__name__}: no independent intervals have the crossings of this {type(self.covariance).__name__}: "
            if found.first_negative is None:
                sentence = of + (
                    "the survival function would turn negative, or misses its mean. The level is too high for this "
                    "covariance; take a lower one."
                )
            else:
                sentence = of + (
                    f"their density would be negative from t = {found.first_negative:.4g} on. The covariance oscillates or "
                    "mixes very different scales (measurement noise or jitter on the path looks like that): smooth the "
                    "path first, or take another family."
                )
            if on_invalid == "raise":
                raise IIAInvalidError(sentence)
            warnings.warn(sentence, stacklevel=5)
        elif found.state == "numerical":
            warnings.warn(
                f"{type(self).__name__}: that independent intervals have these crossings is not guaranteed (the covariance "
                "oscillates, or the level is high); the density was solved and is nowhere negative. "
                "on_invalid='ignore' says nothing.",
                stacklevel=5,
            )

    # -------------------------------------------------------------------------------------------- look up

    def _rows(self, value: Array) -> Array:
        return jnp.broadcast_to(self._row, jnp.broadcast_shapes(value.shape, np.shape(self._row)))

    def _tail_rate(self) -> Array:
        """``(rows,)``: the hazard at the end of the grid, in its units, which is that of all longer times."""
        density, survival = self._grid.density[:, -1], self._grid.survival[:, -1]
        # Where the law does not exist either may be negative, and times beyond the grid would grow likelier.
        proper = (density > 0) & (survival > 0)
        return jnp.where(proper, density / jnp.where(proper, survival, 1.0), 1 / self._grid.mean)

    def _place(self, t: Array, row: Array) -> tuple[Array, Array]:
        """Where times lie on the grid, and how many decay times beyond its end."""
        step = self._grid.step[row]
        position = t / (step * self._unit[row])
        over = jnp.maximum(position - self.num_steps, 0.0) * step * self._tail_rate()[row]
        return jnp.clip(position, 0.0, self.num_steps), over

    def _log_density_at(self, t: Array, row: Array) -> Array:
        position, over = self._place(t, row)
        return _log(renewal.cubic(self._grid.density, row, position)) - over - jnp.log(self._unit)[row]

    def _survival_at(self, t: Array, row: Array) -> Array:
        position, over = self._place(t, row)
        return renewal.cubic(self._grid.survival, row, position) * jnp.exp(-over)

    def _log_survival_at(self, t: Array, row: Array) -> Array:
        position, over = self._place(t, row)
        return _log(renewal.cubic(self._grid.survival, row, position)) - over

    def _left_over_at(self, t: Array, row: Array) -> Array:
        """``int_t^inf S``, in units of time."""
        position, over = self._place(t, row)
        tail = self._grid.survival[:, -1] / self._tail_rate()
        inside = (self._grid.integral[:, -1] + tail)[row] - renewal.cubic(self._grid.integral, row, position)
        return jnp.where(over > 0, tail[row] * jnp.exp(-over), inside) * self._unit[row]

    def _only_valid(self, log_prob: Array, row: Array) -> Array:
        return jnp.where(self._exists(self._grid)[row], log_prob, -jnp.inf)

    # --------------------------------------------------------------------------------------------- the law

    def tail_rate(self) -> Array:
        """The persistency exponent as read off the end of the grid: at no cost, good to 1e-6; NaN where there is none."""
        rate = jnp.where(self._grid.exponential_tail, self._tail_rate() / self._unit, jnp.nan)
        return rate[self._row]

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """Log-density of a complete excursion; minus infinity where the law does not exist."""
        value = jnp.asarray(value, self._grid.step.dtype)
        row = self._rows(value)
        return self._only_valid(jnp.where(value > 0, self._log_density_at(value, row), -jnp.inf), row)

    def survival(self, value: ArrayLike) -> Array:
        """``P(T > value)``."""
        value = jnp.asarray(value, self._grid.step.dtype)
        return self._survival_at(value, self._rows(value))

    def log_survival(self, value: ArrayLike) -> Array:
        """``log P(T > value)``: what a duration cut off at ``value`` contributes."""
        value = jnp.asarray(value, self._grid.step.dtype)
        return self._log_survival_at(value, self._rows(value))

    log_reach = log_survival  # the name under which runs of readings, too, are cut off

    def cdf(self, value: ArrayLike) -> Array:
        """``P(T <= value)``."""
        return 1 - self.survival(value)

    def hazard(self, value: ArrayLike) -> Array:
        """Rate at which an excursion ends that has lasted for ``value``; per unit of time."""
        value = jnp.asarray(value, self._grid.step.dtype)
        row = self._rows(value)
        return jnp.exp(self._log_density_at(value, row) - self._log_survival_at(value, row))

    def persistence(self, window: ArrayLike) -> Array:
        """Probability that the stationary process, on this side now, does not cross within ``window``.

        ``int_window^inf S / mean``: the probability of a record of this length without a crossing.
        """
        window = jnp.asarray(window, self._grid.step.dtype)
        row = self._rows(window)
        return self._left_over_at(window, row) / (self._grid.mean * self._unit)[row]

    def icdf(self, q: ArrayLike) -> Array:
        """Time that an excursion stays below with probability ``q``."""
        return self.inverse_survival(1 - jnp.asarray(q, self._grid.step.dtype))

    def inverse_survival(self, probability: ArrayLike) -> Array:
        """Time that an excursion outlasts with this probability; exact also for small ones."""
        probability = jnp.asarray(probability, self._grid.step.dtype)
        row = self._rows(probability)
        return self._invert(self._grid.survival, self._grid.density, probability, row)

    def _inverse_persistence(self, probability: Array) -> Array:
        row = self._rows(probability)
        grid = self._grid
        tail = grid.survival[:, -1:] / self._tail_rate()[:, None]
        left_over = (grid.integral[:, -1:] + tail - grid.integral) / grid.mean[:, None]
        return self._invert(left_over, grid.survival / grid.mean[:, None], probability, row)

    def _invert(self, falling: Array, slope: Array, target: Array, row: Array) -> Array:
        """Where a function that falls at rate ``slope`` on the grid, exponentially beyond it, is ``target``."""

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) // 2
            above = falling[row, middle] >= target
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        zeros = jnp.zeros(row.shape, int)
        halvings = int(np.ceil(np.log2(self.num_steps))) + 1
        left, _ = lax.fori_loop(0, halvings, halve, (zeros, zeros + self.num_steps))
        left = jnp.minimum(left, self.num_steps - 1)
        start, end = _log(falling[row, left]), _log(falling[row, left + 1])
        position = left + jnp.clip((start - jnp.log(target)) / jnp.maximum(start - end, 1e-12), 0.0, 1.0)
        step = self._grid.step[row]

        def polish(_: int, position: Array) -> Array:
            value, rate = renewal.cubic(falling, row, position), renewal.cubic(slope, row, position) * step
            moved = position + (value - target) / jnp.maximum(rate, 1e-30)
            return jnp.clip(moved, left, left + 1)

        position = lax.fori_loop(0, 6, polish, position)  # six, for the flat start
        beyond = (_log(falling[:, -1])[row] - jnp.log(target)) / self._tail_rate()[row]
        return jnp.where(beyond > 0, self.num_steps * step + beyond, position * step) * self._unit[row]

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Durations, ``sample_shape + batch_shape``."""
        return self.sample_like(key, (*sample_shape, *self.batch_shape))

    def sample_like(self, key: Array, shape: tuple[int, ...], *, left_over: bool = False) -> Array:
        """Draws of this shape; with ``left_over`` of the time until the next crossing of a stationary record."""
        uniform = _uniform(key, shape, self._grid.step.dtype)
        return self._inverse_persistence(uniform) if left_over else self.inverse_survival(uniform)

    @property
    def mean(self) -> Array:
        """Mean duration: exactly Rice's, for every covariance."""
        return (self._grid.mean * self._unit)[self._row]

    @property
    def variance(self) -> Array:
        grid = self._grid
        t = grid.step[:, None] * jnp.arange(self.num_steps + 1)
        half = renewal.running_integral(
            t * grid.survival, grid.survival - t * grid.density, grid.step[:, None]
        )[:, -1]
        rate = self._tail_rate()
        half = half + grid.survival[:, -1] / rate * (t[:, -1] + 1 / rate)
        return ((2 * half - grid.mean**2) * self._unit**2)[self._row]

    @property
    def side_probability(self) -> Array:
        """Share of time on this side; one where both sides are alike."""
        return jnp.ones(self.batch_shape, self._grid.step.dtype)

    @property
    def opposite(self) -> Any:
        """The law of the excursions on the other side; itself at level zero."""
        return self


def _say_if_none(theta: Array, law: _Interval) -> None:
    if not isinstance(theta, jax.core.Tracer) and np.isnan(np.asarray(theta)).any():
        warnings.warn(
            f"{type(law).__name__}: there is no persistency exponent (NaN): the covariance falls like a power of the lag, so "
            "that P(T > t) does not fall exponentially, or the level is too high.",
            stacklevel=3,
        )


def _log(x: Array) -> Array:
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))


def _uniform(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.uniform(key, shape, dtype, minval=jnp.finfo(dtype).tiny)


# The grids are those of the covariances at a mean interval of one: nothing in them then depends on the scale of time,
# and what only has a scale is differentiated through no equation.
@partial(jax.jit, static_argnums=(1, 2))
def _solve(covariances: Any, num_steps: int, horizon: float) -> excursion.ExcursionGrid:
    return jax.vmap(lambda c: excursion.solve(c.with_mean_interval(1.0), num_steps, horizon))(covariances)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _solve_level(
    covariances: Any, levels: Array, above: bool, num_steps: int, horizon: float
) -> excursion.ExcursionGrid:
    def one(covariance: Any, level: Array) -> excursion.ExcursionGrid:
        return excursion.solve_level(covariance.with_mean_interval(1.0), level, above, num_steps, horizon)

    return jax.vmap(one)(covariances, levels)


@jax.jit
def _exponents(covariances: Any) -> Array:
    return jax.vmap(excursion.exponent)(covariances)


@partial(jax.jit, static_argnums=2)
def _level_exponents(covariances: Any, levels: Array, above: bool) -> Array:
    return jax.vmap(lambda covariance, level: excursion.exponent(covariance, level, above))(
        covariances, levels
    )


class ExcursionTime(_Interval):
    r"""Time between zero crossings of a stationary Gaussian process, as if intervals were independent.

    The process is known by its covariance alone. The law is that of the independent-interval approximation, found
    by matching the mean clipped Slepian process (Bengtsson and Podgorski, 2024, arXiv:2401.01805): its mean is Rice's
    exactly, its slope at zero is the exact one where the process is smooth, its exponent misses the exact one by
    0.7 % for diffusion in two dimensions and by 6 % for random acceleration.

    It is an approximation, and more than some ten thousand intervals show it: mean durations stay right (0.3 %), a
    fitted shape is then off by 2 to 8 %.

    Args:
        covariance: of the process; its hyper-parameters may have shape ``(J,)``, one law for each.
        index: integers: which of ``J`` laws each entry follows (sensors, say). The batch shape is then theirs, and
            ``J`` equations are solved, however many entries there are.
        num_steps: of the grid on which the equation is solved.
        horizon: its length in mean intervals; longer times follow the exponential tail.
        on_invalid: what to do where no law of independent intervals exists: ``"raise"``, ``"warn"`` or
            ``"ignore"``. Inside ``jit``, where nothing can be raised, the log-density is minus infinity.
        validate_args: as in NumPyro.

    Shapes: scalar events; batch shape that of the hyper-parameters, or of ``index``.

    Raises:
        IIAInvalidError: the density is negative somewhere (names the first such time).
        ValueError: not a covariance of variance one, or one with an infinite second spectral moment.

    Example:
        >>> import jax
        >>> from sojourn.models import covariance
        >>> with jax.enable_x64(True):
        ...     gaps = ExcursionTime(covariance.Diffusion(2.0, scale=3.0))
        ...     print(f"{gaps.mean:.4f} {gaps.survival(40.0):.4f} {gaps.persistency_exponent():.6f}")
        18.8496 0.0998 0.062070
    """

    pytree_data_fields = ("covariance", "_grid", "_unit", "_row")
    pytree_aux_fields = ("num_steps", "horizon")

    def __init__(
        self,
        covariance: Covariance,
        *,
        index: ArrayLike | None = None,
        num_steps: int = 512,
        horizon: float = 8.0,
        on_invalid: Literal["raise", "warn", "ignore"] = "raise",
        validate_args: bool | None = None,
    ):
        self._check_options(num_steps, horizon, on_invalid)
        check_covariance(covariance)
        self.covariance = covariance
        own = batch_shape(covariance)
        covariances = flatten(covariance, own)
        self._grid = _solve(covariances, num_steps, self.horizon)
        self._unit = covariances.mean_interval()
        self._set_up(index, own, on_invalid, validate_args)

    def _solve_finer(self) -> excursion.ExcursionGrid:
        horizon = 12.0 if self._grid.step.dtype == jnp.float64 else 8.0  # where rounding is far off
        return _solve(flatten(self.covariance, batch_shape(self.covariance)), 2048, horizon)

    def persistency_exponent(self) -> Array:
        r"""Rate ``theta`` of the tail, ``P(T > t) ~ exp(-theta t)``; differentiable; per unit of time.

        NaN where the covariance falls like a power of the lag: then there is none.
        """
        own = batch_shape(self.covariance)
        theta = _exponents(flatten(self.covariance, own))[self._row]
        _say_if_none(theta, self)
        return theta


class LevelExcursionTime(_Interval):
    r"""Time a stationary Gaussian process stays above, or below, a level at one go.

    Excursions above and below alternate and are taken as independent; their laws are matched to the clipped Slepian
    processes after up- and down-crossings (the idea of Bengtsson and Podgorski, arXiv:2410.06000). Means are
    Rice's exactly. At level zero both laws are :class:`ExcursionTime`. Durations above and below, together,
    identify the level.

    Args:
        covariance: of the process, of variance one.
        level: in standard deviations of the process, from its mean.
        side: ``"above"`` or ``"below"``.
        index, num_steps, horizon, on_invalid, validate_args: as in :class:`ExcursionTime`.

    Raises:
        IIAInvalidError: as :class:`ExcursionTime`.
        ValueError: as :class:`ExcursionTime`; a level beyond 4 standard deviations.

    Example:
        >>> import jax
        >>> from sojourn.models import covariance
        >>> with jax.enable_x64(True):
        ...     spells = LevelExcursionTime(covariance.SquaredExponential(), 1.0, "above")
        ...     print(f"{spells.mean:.4f} {spells.opposite.mean:.4f} {spells.persistency_exponent():.4f}")
        1.6435 8.7157 0.9424
    """

    _mean_may_be_missed = True
    pytree_data_fields = ("covariance", "level", "_grid", "_unit", "_row")
    pytree_aux_fields = ("side", "num_steps", "horizon")

    def __init__(
        self,
        covariance: Covariance,
        level: ArrayLike,
        side: Literal["above", "below"] = "above",
        *,
        index: ArrayLike | None = None,
        num_steps: int = 512,
        horizon: float = 8.0,
        on_invalid: Literal["raise", "warn", "ignore"] = "raise",
        validate_args: bool | None = None,
    ):
        self._check_options(num_steps, horizon, on_invalid)
        check_covariance(covariance)
        if side not in ("above", "below"):
            raise ValueError(f"LevelExcursionTime: `side` must be 'above' or 'below'; got {side!r}.")
        self.covariance = covariance
        self.level = jnp.asarray(numbers(level, "level"), float)
        # The number that was given: in a model that is being compiled the array is no longer known.
        if not isinstance(level, jax.core.Tracer) and not np.all(abs(np.asarray(level)) <= _HIGHEST_LEVEL):
            raise ValueError(
                f"LevelExcursionTime: `level` is in standard deviations of the process, from its mean, and must lie "
                f"within {_HIGHEST_LEVEL:g} of zero; got {level}. For a level u in the units of the data give "
                "(u - mean) / sd."
            )
        self.side = side
        covariances, levels = self._laid_out()
        self._grid = _solve_level(covariances, levels, side == "above", num_steps, self.horizon)
        self._unit = covariances.mean_interval()
        self._set_up(index, self._own, on_invalid, validate_args)

    @property
    def _own(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(batch_shape(self.covariance), jnp.shape(self.level))

    def _laid_out(self) -> tuple[Any, Array]:
        own = self._own
        return flatten(self.covariance, own), jnp.broadcast_to(self.level, own).reshape(-1)

    def _solve_finer(self) -> excursion.ExcursionGrid:
        return _solve_level(*self._laid_out(), self.side == "above", 2048, self.horizon)

    def persistency_exponent(self) -> Array:
        """As in :class:`ExcursionTime`; NaN also where the level is too high for the law to have a proper tail."""
        theta = _level_exponents(*self._laid_out(), self.side == "above")[self._row]
        _say_if_none(theta, self)
        return theta

    @property
    def side_probability(self) -> Array:
        from jax.scipy.stats import norm

        share = norm.sf(self.level) if self.side == "above" else norm.cdf(self.level)
        return jnp.broadcast_to(share, self._own).reshape(-1)[self._row]

    @property
    def opposite(self) -> LevelExcursionTime:
        """The law of the excursions on the other side."""
        return LevelExcursionTime(
            self.covariance,
            self.level,
            "below" if self.side == "above" else "above",
            index=self._row if len(self._own) == 1 else None,
            num_steps=self.num_steps,
            horizon=self.horizon,
            on_invalid="ignore",
            validate_args=self._validate_args,
        )
