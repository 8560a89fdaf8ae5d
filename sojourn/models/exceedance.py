"""How long a noisy signal stays above or below a level: droughts, warm spells, barrier crossings, one-bit sensors.

The signal is a stationary Gaussian process, known by its covariance. What is observed is when it crosses a level, or
no more than on which side of it the signal is at regular times:

===================== ========================================================== ===========================
model                 data                                                       from a sampled path
===================== ========================================================== ===========================
:func:`durations`     durations of excursions, complete or cut off               :func:`excursions`
:func:`run_lengths`   numbers of readings in a row on one side                   :func:`sign_runs`
:func:`noisy_signs`   the readings, some of them wrong                           the path's own signs
:func:`slepian`       the path from a crossing on                                the path itself
===================== ========================================================== ===========================

    >>> import jax, sojourn as sj
    >>> from sojourn.models import covariance, exceedance
    >>> with jax.enable_x64(True):
    ...     path = exceedance.gaussian_paths(jax.random.key(1), covariance.Matern52(), num_steps=4000, step=0.2)
    ...     fit = sj.fit(exceedance.durations, exceedance.excursions(path, step=0.2), covariance=covariance.Matern52,
    ...                  num_warmup=150, num_samples=150, num_chains=2, progress_bar=False)
    >>> sorted(fit.posterior.data_vars)
    ['mean_interval', 'persistency_exponent']

All models are parametrised by the **mean interval** between zero crossings and the shape of the covariance, which a
posterior keeps apart; the scale of a family and its shape are almost one direction (correlation 0.93 to 0.98 in
a diffusion).

**The covariance** is given as a family (``covariance.Diffusion``), whose hyper-parameters get the priors of
:data:`SHAPE_PRIORS`; as an instance, whose shape is then fixed; or as a function that samples its own
hyper-parameters and returns a covariance. Its time scale is set by the model.

**Levels** are in standard deviations of the process, from its mean. At level zero the two sides are alike and the
amplitude of the process cannot be told. At another, durations above and below identify the level itself.

**What the law cannot do.** Successive intervals are taken as independent, which they nearly are (correlations within
0.05 in simulations of smooth processes). More than about ten thousand intervals show the difference: the mean stays
right, a fitted shape is off by 2 to 8 % and its interval too narrow. The models warn; fit every tenth interval then.

The questions (:func:`survival` and so on) are about the excursions themselves, also after a fit to readings.

Times need double precision: ``numpyro.enable_x64()`` before anything else.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import finite_numbers, is_known, numbers, positive_numbers, shown, whole_number
from sojourn.distributions import (
    KINDS,
    CensoredExcursion,
    ExcursionTime,
    LevelExcursionTime,
    NoisySigns,
    SignRuns,
)
from sojourn.distributions._censored_excursion import read_kinds
from sojourn.models._excursion_records import excursions, sign_runs
from sojourn.models._given import posterior_of
from sojourn.models._sign_path import scan_signs
from sojourn.ops.covariance import (
    Covariance,
    DampedCosine,
    Diffusion,
    Matern32,
    Matern52,
    RandomAcceleration,
    RationalQuadratic,
    SquaredExponential,
    check_covariance,
)
from sojourn.ops.gaussian_path import sample_paths

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "SHAPE_PRIORS",
    "durations",
    "excursions",
    "gaussian_paths",
    "hazard",
    "longest",
    "noisy_signs",
    "persistence",
    "posterior_law",
    "run_lengths",
    "sign_runs",
    "slepian",
    "survival",
]

Declared = Covariance | type[Covariance] | Callable[[], Covariance]
Side = Literal["above", "below"]

SHAPE_PRIORS: dict[type[Covariance], dict[str, dist.Distribution]] = {
    Diffusion: {"dimension": dist.LogNormal(np.log(2.0), 0.75)},
    RationalQuadratic: {"alpha": dist.LogNormal(0.0, 0.75)},
    DampedCosine: {"frequency": dist.HalfNormal(0.7)},
}
"""Priors of the hyper-parameters of each family that has a shape."""

_MANY = 10_000
_PROVEN = (Diffusion, Matern32, Matern52, RandomAcceleration, RationalQuadratic, SquaredExponential)


# --------------------------------------------------------------------------------------------------- the process


def _shape(declared: Any) -> Covariance:
    """The covariance that the user declared, its hyper-parameters sampled; of any time scale."""
    if isinstance(declared, type) and issubclass(declared, Covariance):
        priors = SHAPE_PRIORS.get(declared, {})
        declared = declared(**{field: numpyro.sample(field, prior) for field, prior in priors.items()})
    elif not isinstance(declared, Covariance) and callable(declared):
        declared = declared()
    check_covariance(declared)
    return declared


def _process(declared: Any, mean_interval: Any, typical: float, sensors: int | None = None) -> Covariance:
    """Sample sites of the process: its shape and its mean interval, of each sensor where there are several."""
    shape = _shape(declared)
    if mean_interval is None:
        mean_interval = dist.LogNormal(np.log(typical), 1.0)
    if isinstance(mean_interval, dist.Distribution):
        mean_interval = numpyro.sample("mean_interval", mean_interval, infer={"init": np.asarray(typical)})
    else:
        mean_interval = numbers(mean_interval, "mean_interval")
        known = np.asarray(mean_interval) if is_known(mean_interval) else np.ones(())
        if not ((known > 0) & np.isfinite(known)).all():
            raise ValueError(f"`mean_interval` must be positive, or a prior; got {mean_interval}.")
    if sensors is not None:
        spread = numpyro.sample("mean_interval_sd", dist.HalfNormal(0.5), infer={"init": np.asarray(0.3)})
        with numpyro.plate("sensor", sensors):
            own = numpyro.sample("sensor_effect", dist.Normal(0.0, 1.0), infer={"init": np.zeros(sensors)})
            mean_interval = numpyro.deterministic(
                "sensor_mean_interval", mean_interval * jnp.exp(spread * own)
            )
    return shape.with_mean_interval(mean_interval)


def _level(level: Any, start: float) -> Any:
    if isinstance(level, str):
        if level != "free":
            raise ValueError(
                f"`level` must be a number of standard deviations, None or 'free'; got {level!r}."
            )
        return numpyro.sample("level", dist.Normal(0.0, 1.0), infer={"init": np.asarray(start)})
    return level if level is None else finite_numbers(level, "level")


def _law(process: Covariance, level: Any, side: str, index: Any = None) -> Any:
    if level is None:
        return ExcursionTime(process, index=index, on_invalid="ignore")
    return LevelExcursionTime(process, level, side, index=index, on_invalid="ignore")  # type: ignore[arg-type]


def _tell(process: Covariance, level: Any, sides: list[str]) -> None:
    """Persistency exponents as sites; and whether the law exists, where that hangs on hyper-parameters."""
    for side in sides:
        law = _law(process, level, side)
        with numpyro.plate("sensor", law.batch_shape[0]) if law.batch_shape else contextlib.nullcontext():
            name = "persistency_exponent" + ("" if level is None else f"_{side}")
            if not isinstance(process, RationalQuadratic):  # it has none
                numpyro.deterministic(name, law.tail_rate())
            if not isinstance(process, _PROVEN):
                numpyro.deterministic("iia_valid" + ("" if level is None else f"_{side}"), law.is_valid())


# ------------------------------------------------------------------------------------------------------- the data


class _Pieces(NamedTuple):
    value: np.ndarray
    kind: np.ndarray
    above: np.ndarray | None
    sensor: np.ndarray | None
    lower: np.ndarray | None

    def of(self, chosen: Any) -> _Pieces:
        take = jnp.asarray if isinstance(chosen, Array) else np.asarray
        return _Pieces(*(None if x is None else take(x)[chosen] for x in self))  # type: ignore[arg-type]


def _read(
    data: Any, variable: str, kind: Any, side: Any, sensor: Any, lower: Any, level: Any, caller: str
) -> _Pieces | None:
    """The data as NumPy arrays of one length, checked."""
    if data is None:
        return None
    if hasattr(data, "data_vars"):
        if variable not in data:
            raise ValueError(
                f"{caller}(): the dataset has no variable `{variable}`; it holds {sorted(data.data_vars)}."
            )
        given = {name: data[name].values for name in ("kind", "side", "sensor") if name in data}
        kind = given.get("kind") if kind is None else kind
        side = given.get("side") if side is None else side
        sensor = given.get("sensor") if sensor is None else sensor
        at = data.attrs.get("level_in_sd")
        if level is None and at is not None and abs(at) > 0.1:
            warnings.warn(
                f"{caller}(): these excursions are of a level {at:.2f} standard deviations from the mean, and are fitted "
                f"as if it were zero; give level={at:.2f}, or level='free'.",
                stacklevel=3,
            )
        data = data[variable].values
    value = np.asarray(numbers(data, variable))
    if value.ndim != 1 or value.size == 0:
        raise ValueError(
            f"{caller}(): `{variable}` must be (N,) with at least one entry; got shape {value.shape}."
        )
    bad = np.flatnonzero(~((value > 0) & np.isfinite(value)))
    if bad.size:
        raise ValueError(
            f"{caller}(): `{variable}` must be positive and finite; entry {bad[0]} is {value[bad[0]]}. Leave it out, or say "
            "by `kind` what is known of it."
        )
    if variable == "length" and not np.all(value == np.round(value)):
        raise ValueError(f"{caller}(): `length` counts readings; got {value[value != np.round(value)][0]}.")

    def column(x: Any, name: str) -> np.ndarray | None:
        if x is None:
            return None
        x = np.asarray(x)
        if x.ndim and x.shape != value.shape:
            raise ValueError(
                f"{caller}(): `{name}` has shape {x.shape}, `{variable}` {value.shape}; they go together."
            )
        return np.broadcast_to(x, value.shape)

    kinds = column(read_kinds("complete" if kind is None else kind, caller), "kind")
    assert kinds is not None
    sides = column(side, "side")
    if sides is not None:
        known = np.isin(sides, ["above", "below"] if sides.dtype.kind in "US" else [1, -1]) | (
            sides.dtype == bool
        )
        if not known.all():
            raise ValueError(
                f"{caller}(): `side` must be 1 or 'above', and -1 or 'below'; got {sides[~known][0].item()!r}."
            )
        sides = sides == "above" if sides.dtype.kind in "US" else sides > 0
    bounds = None if lower is None else column(numbers(lower, "lower"), "lower")
    if bounds is not None:
        empty = np.flatnonzero((kinds == KINDS.index("interval")) & ~(bounds < value))
        if empty.size:
            raise ValueError(
                f"{caller}(): `lower` must be below `{variable}` where the kind is 'interval'; entry {empty[0]} lies between "
                f"{bounds[empty[0]]} and {value[empty[0]]}."
            )
    if level is not None and sides is None:
        raise ValueError(f"{caller}(): off level zero the sides differ; give `side`, 1 above and -1 below.")
    if len(value) > _MANY:
        warnings.warn(
            f"{caller}(): {len(value)} intervals are more than the independent-interval law bears (about {_MANY}): its shape "
            "would come out off by 2 to 8 %, with too narrow an interval. Fit every tenth of them, say.",
            stacklevel=3,
        )
    return _Pieces(value, kinds, sides, column(sensor, "sensor"), bounds)


def _groups(pieces: _Pieces | None, level: Any, count: int | None, caller: str) -> dict[str, _Pieces | None]:
    """The data of each law: one at level zero, else one on each side that occurs."""
    if pieces is None:
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{caller}(): to simulate, `num_excursions` must be a positive number.")
        return dict.fromkeys(["both"] if level is None else ["above", "below"])
    if level is None:
        return {"both": pieces}
    assert pieces.above is not None
    chosen = {"above": pieces.above, "below": ~pieces.above}
    return {side: pieces.of(mask) for side, mask in chosen.items() if mask.any()}


def _typical(pieces: _Pieces | None, unit: float, level: Any) -> tuple[float, float]:
    """A rough mean interval, and level in standard deviations, to scale a prior and to start from."""
    if pieces is None:
        return float(unit), 0.0
    ended = max(
        1,
        int(np.isin(pieces.kind, [KINDS.index(k) for k in ("complete", "left", "interval", "first")]).sum()),
    )
    total = float(pieces.value.sum()) * unit
    if level is None or pieces.above is None:
        return total / ended, 0.0
    if pieces.above.all() or not pieces.above.any():  # the share of time on one side is not to be seen
        start = float(level) if isinstance(level, int | float) else 0.0
        share = NormalDist().cdf(-start if pieces.above[0] else start)
        return total / ended / (2 * share) * float(np.exp(-0.5 * start**2)), start
    share = float(np.clip(pieces.value[pieces.above].sum() * unit / total, 0.01, 0.99))
    start = NormalDist().inv_cdf(1 - share)
    return total / ended * float(np.exp(-0.5 * start**2)), start


def _observe(
    pieces: _Pieces | None,
    make: Callable[[str, Any], Any],
    groups: dict[str, _Pieces | None],
    hierarchical: bool,
    count: int | None,
    subsample_size: int | None,
    name: str,
) -> Any:
    """One observed site for each law, in a plate of its own."""
    if subsample_size is not None:
        subsample_size = whole_number(subsample_size, "subsample_size")
    values = {}
    for side, group in groups.items():
        suffix = "" if side == "both" else f"_{side}"
        size = count if group is None else len(group.value)
        assert size is not None
        minibatch = None
        if subsample_size is not None and pieces is not None:
            minibatch = max(1, min(size, round(subsample_size * size / len(pieces.value))))
        with numpyro.plate(f"excursion{suffix}", size, subsample_size=minibatch) as chosen:
            if group is None:
                values[side] = numpyro.sample(f"{name}{suffix}", make(side, None))
                continue
            # Traced only where a minibatch is drawn: what is known before compilation stays known.
            part = group if minibatch in (None, size) else group.of(chosen)
            law = make(side, part.sensor if hierarchical else None)
            among = [KINDS[k] for k in np.unique(group.kind)]
            if among != ["complete"]:
                law = CensoredExcursion(law, part.kind, lower=part.lower, among=among)
            values[side] = numpyro.sample(f"{name}{suffix}", law, obs=part.value)
    return values["both"] if list(values) == ["both"] else values


def durations(
    data: Any = None,
    *,
    covariance: Declared = Diffusion,
    level: float | Literal["free"] | None = None,
    kind: Any = None,
    side: Any = None,
    sensor: Any = None,
    lower: ArrayLike | None = None,
    hierarchical: bool = False,
    mean_interval: dist.Distribution | float | None = None,
    subsample_size: int | None = None,
    num_excursions: int | None = None,
    name: str = "duration",
) -> Any:
    """Durations of excursions, complete or cut off, as independent draws of the law that the covariance implies.

    Args:
        data: what :func:`excursions` returned, or durations ``(N,)`` in units of time, or ``None`` to simulate.
        covariance: of the process: a family, an instance whose shape is then fixed, or a function that samples
            hyper-parameters and returns one (see the module's text).
        level: in standard deviations of the process from its mean; ``None`` for zero, where the sides are alike;
            ``"free"`` with prior Normal(0, 1).
        kind: what is known of each duration (:data:`sojourn.distributions.KINDS`); complete by default. Pieces cut off
            by the ends of a window belong in: without them a fit to short windows is badly biased.
        side: 1 above and -1 below, or ``"above"`` and ``"below"``; needed with a level.
        sensor: integers from 0 on: which record each duration comes from.
        lower: lower bounds of durations known to lie in an interval.
        hierarchical: each sensor has a mean interval of its own, log-normal around ``mean_interval``
            (``mean_interval_sd``, HalfNormal(0.5)); the shape is shared.
        mean_interval: prior, or value, of the mean time between zero crossings. By default LogNormal with the data's
            own estimate as median and 1 as the sd of its logarithm; without data median 1.
        subsample_size: durations in a minibatch, for SVI and stochastic-gradient Langevin.
        num_excursions: to simulate (on each side, with a level).
        name: of the observed site; with a level there are two, ``name_above`` and ``name_below``.

    Returns:
        The durations (with a level a dictionary of both sides).

    Raises:
        ValueError: durations that are not positive, columns of different lengths, an unknown kind, no ``side`` with a
            level, no ``sensor`` with ``hierarchical``; and as :class:`sojourn.distributions.LevelExcursionTime`.
        UserWarning: more than ten thousand durations.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> with jax.enable_x64(True):
        ...     simulate = Predictive(durations, num_samples=3)
        ...     draws = simulate(jax.random.key(1), num_excursions=5)
        >>> {site: draws[site].shape for site in ("dimension", "duration", "mean_interval")}
        {'dimension': (3,), 'duration': (3, 5), 'mean_interval': (3,)}
    """
    pieces = _read(data, "duration", kind, side, sensor, lower, level, "durations")
    groups = _groups(pieces, level, num_excursions, "durations")
    typical, start = _typical(pieces, 1.0, level)
    process = _process(covariance, mean_interval, typical, _sensors(pieces, hierarchical, "durations"))
    level = _level(level, start)
    _tell(process, level, list(groups))

    def make(of_side: str, index: Any) -> Any:
        return _law(process, level, of_side, index)

    return _observe(pieces, make, groups, hierarchical, num_excursions, subsample_size, name)


def _sensors(pieces: _Pieces | None, hierarchical: bool, caller: str) -> int | None:
    if not hierarchical:
        return None
    if pieces is None or pieces.sensor is None:
        raise ValueError(f"{caller}(): `hierarchical` needs `sensor`, which record each entry comes from.")
    if not np.issubdtype(pieces.sensor.dtype, np.integer) or pieces.sensor.min() < 0:
        raise ValueError(
            f"{caller}(): `sensor` must hold integers from 0 on; got {pieces.sensor[:3].tolist()} ..."
        )
    return int(pieces.sensor.max()) + 1


def run_lengths(
    data: Any = None,
    *,
    step: float,
    covariance: Declared = Diffusion,
    level: float | Literal["free"] | None = None,
    kind: Any = None,
    side: Any = None,
    sensor: Any = None,
    lower: ArrayLike | None = None,
    hierarchical: bool = False,
    mean_interval: dist.Distribution | float | None = None,
    subsample_size: int | None = None,
    num_excursions: int | None = None,
    name: str = "length",
) -> Any:
    """Numbers of readings in a row on one side of a level: a signal of one bit, read every ``step``.

    Runs merged by an excursion that fell between two readings are accounted for
    (:class:`sojourn.distributions.SignRuns`), so that readings may be up to four tenths of a mean interval apart.

    Args:
        data: what :func:`sign_runs` returned, or run lengths ``(N,)``, or ``None`` to simulate.
        step: time between readings.
        covariance, level, kind, side, sensor, lower, hierarchical, mean_interval, subsample_size, num_excursions, name:
            as in :func:`durations`.

    Returns:
        The run lengths (with a level a dictionary of both sides).

    Raises:
        ValueError: as :func:`durations`; lengths that are not whole numbers, a step that is not positive.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> with jax.enable_x64(True):
        ...     simulate = Predictive(run_lengths, num_samples=2)
        ...     draws = simulate(jax.random.key(1), step=0.1, num_excursions=4)["length"]
        ...     print(draws.shape, bool((draws >= 1).all()))
        (2, 4) True
    """
    if not (np.ndim(numbers(step, "step")) == 0 and 0 < step < np.inf):
        raise ValueError(f"run_lengths(): `step` must be positive, the time between readings; got {step}.")
    pieces = _read(data, "length", kind, side, sensor, lower, level, "run_lengths")
    groups = _groups(pieces, level, num_excursions, "run_lengths")
    typical, start = _typical(pieces, step if pieces is not None else 1.0, level)
    process = _process(covariance, mean_interval, typical, _sensors(pieces, hierarchical, "run_lengths"))
    level = _level(level, start)
    _tell(process, level, list(groups))

    def make(of_side: str, index: Any) -> Any:
        return SignRuns(_law(process, level, of_side, index), step)

    return _observe(pieces, make, groups, hierarchical, num_excursions, subsample_size, name)


def noisy_signs(
    y: ArrayLike | None = None,
    *,
    step: float,
    covariance: Declared = Diffusion,
    level: float | Literal["free"] | None = None,
    flip: dist.Distribution | float | None = None,
    mean_interval: dist.Distribution | float | None = None,
    num_ages: int | None = None,
    num_steps: int | None = None,
    path: bool = False,
    name: str = "y",
) -> Array:
    """One-bit readings at regular times, some of them wrong, of the side on which a signal is.

    The true signs make runs with the lengths of :class:`sojourn.distributions.SignRuns`, independent of each other. With
    ``path=False`` they are summed out (:class:`sojourn.distributions.NoisySigns`); with ``path=True`` each reading
    has a latent site ``signed_age`` in a ``scan``: the number of readings since the last change, negative below.

    Args:
        y: readings ``(T,)``, 1 above and 0 below, NaN where there is none; ``None`` to simulate.
        step: time between readings.
        covariance, level, mean_interval: as in :func:`durations`.
        flip: prior, or value, of the probability that a reading is wrong, below one half; Beta(1, 19) by default.
        num_ages: ages that are told apart, in readings; beyond, the hazard is constant. By default ten mean runs, at most 400.
        num_steps: ``T``; only to simulate.
        path: declare the signs as sample sites.
        name: of the observed site.

    Returns:
        The readings.

    Raises:
        ValueError: readings other than 0, 1 and NaN, a step that is not positive, no ``num_steps`` to simulate.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> with jax.enable_x64(True):
        ...     simulate = Predictive(noisy_signs, num_samples=2)
        ...     draws = simulate(jax.random.key(1), step=0.2, mean_interval=1.0, num_steps=30)
        >>> draws["y"].shape
        (2, 30)
    """
    if not (np.ndim(numbers(step, "step")) == 0 and 0 < step < np.inf):
        raise ValueError(f"noisy_signs(): `step` must be positive, the time between readings; got {step}.")
    mean_run = 10.0
    if y is None:
        if not isinstance(num_steps, int | np.integer) or num_steps < 1:
            raise ValueError("noisy_signs(): to simulate, `num_steps` must be a positive number of readings.")
        if isinstance(mean_interval, int | float):
            mean_run = mean_interval / step
    else:
        y = np.asarray(numbers(y, "y"), float)
        seen = y[~np.isnan(y)]
        if y.ndim != 1 or not seen.size or not np.isin(seen, (0, 1)).all():
            raise ValueError("noisy_signs(): `y` must be (T,) of 0, 1 and NaN, with at least one reading.")
        num_steps = len(y)
        mean_run = max(2.0, len(seen) / (1 + np.count_nonzero(np.diff(seen))))
    start = 0.0 if y is None else NormalDist().inv_cdf(1 - float(np.clip(np.nanmean(y), 0.01, 0.99)))
    typical = mean_run * step * (1.0 if level is None else float(np.exp(-0.5 * start**2)))
    process = _process(covariance, mean_interval, 1.0 if y is None else typical)
    level = _level(level, start)
    sides = ["both"] if level is None else ["below", "above"]
    _tell(process, level, sides)
    flip = dist.Beta(1.0, 19.0) if flip is None else flip
    if not isinstance(flip, dist.Distribution):
        flip = numbers(flip, "flip")
    if isinstance(flip, dist.Distribution):
        flip = numpyro.sample("flip", flip, infer={"init": np.asarray(0.05)})
    elif not isinstance(flip, jax.core.Tracer) and not np.all(
        (np.asarray(flip) >= 0) & (np.asarray(flip) < 0.5)
    ):
        raise ValueError(
            f"noisy_signs(): `flip` must lie in [0, 0.5), or be a prior; got {flip}: beyond, a reading would tell of the "
            "other side."
        )
    if num_ages is None:
        num_ages = int(np.clip(np.ceil(10 * mean_run), 32, 400))
    num_ages = whole_number(num_ages, "num_ages")
    hazards = [SignRuns(_law(process, level, side), step).hazard(num_ages) for side in sides]
    hazard = jnp.stack(hazards) if len(hazards) == 2 else hazards[0]
    if path:
        readings = None if y is None else jnp.asarray(y)
        observed = None if y is None or not np.isnan(y).any() else jnp.asarray(~np.isnan(y))
        return scan_signs(readings, observed, hazard, flip, num_steps, name)
    law = NoisySigns(hazard, num_steps=num_steps, flip=flip, validate_args=False)
    return numpyro.sample(name, law, obs=y, infer={"event_dims": ["time"]})


def slepian(
    x: ArrayLike | None = None,
    *,
    times: ArrayLike,
    covariance: Declared = Diffusion,
    level: float = 0.0,
    direction: Literal[1, -1] = 1,
    noise: dist.Distribution | float | None = None,
    mean_interval: dist.Distribution | float | None = None,
    name: str = "x",
) -> Array:
    r"""The path of the process from a crossing on: the Slepian model.

    After an up-crossing of ``u`` at time zero,
    :math:`X(t) = u\,r(t) - r'(t) R / \sqrt{\lambda_2} + \Delta(t)`: the site ``slope`` is ``R``, Rayleigh, and the
    sites ``residual`` are the independent normal variables of ``Delta``, with
    :math:`\mathrm{Cov} = r(t - s) - r(s) r(t) - r'(s) r'(t) / \lambda_2` (Leadbetter, Lindgren and Rootzen, 1983,
    section 10.3). ``path`` is the sum.

    Args:
        x: the path with errors of measurement ``(T,)``, in standard deviations of the process; or ``None``.
        times: ``(T,)`` since the crossing, positive and increasing.
        covariance: as in :func:`durations`, but an instance keeps its own time scale.
        level: in standard deviations.
        direction: 1 for an up-crossing, -1 for a down-crossing.
        noise: prior, or value, of the standard deviation of the errors; ``None`` for none, and then no ``x``.
        mean_interval: as in :func:`durations`; ``None`` leaves the time scale of ``covariance``.
        name: of the observed site.

    Returns:
        ``x``, or without noise the path.

    Raises:
        ValueError: times that are not positive and increasing, data without noise.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> with jax.enable_x64(True):
        ...     simulate = Predictive(slepian, num_samples=4)
        ...     draws = simulate(jax.random.key(1), times=[0.01, 1.0, 2.0], covariance=Diffusion(2.0))
        ...     print(bool((draws["path"][:, 0] > 0).all()))
        True
    """
    t = np.asarray(numbers(times, "times"), float)
    level = finite_numbers(level, "level")
    if noise is not None and not isinstance(noise, dist.Distribution):
        noise = positive_numbers(noise, "noise")
    if t.ndim != 1 or t.size == 0 or not (t[0] > 0 and (np.diff(t) > 0).all() and t[-1] < np.inf):
        raise ValueError("slepian(): `times` since the crossing must be positive and increasing, (T,).")
    if x is not None:
        x = numbers(x, "x")
        if np.shape(x) != t.shape:
            raise ValueError(f"slepian(): `x` has shape {np.shape(x)}; {len(t)} times need ({len(t)},).")
        if is_known(x) and np.isinf(x).any():
            raise ValueError("slepian(): `x` must be finite; it holds infinity.")
    if direction not in (1, -1):
        raise ValueError(f"slepian(): `direction` must be 1 (up) or -1 (down); got {direction!r}.")
    if x is not None and noise is None:
        raise ValueError(
            "slepian(): data need `noise`, the standard deviation of their errors, or a prior for it."
        )
    process = (
        _shape(covariance) if mean_interval is None else _process(covariance, mean_interval, float(t.mean()))
    )
    rest, first, _ = process.derivatives(jnp.asarray(t))
    r, root = 1 - rest, jnp.sqrt(process.second_spectral_moment())
    between = process(jnp.asarray(t[:, None] - t)) - r[:, None] * r - first[:, None] * first / root**2
    slope = numpyro.sample("slope", dist.Weibull(np.sqrt(2.0), 2.0))  # Rayleigh
    z = numpyro.sample(
        "residual", dist.Normal(0.0, 1.0).expand([len(t)]).to_event(1), infer={"event_dims": ["time"]}
    )
    # A smooth path is almost determined by a few of its points: what rounding takes from the last ones is put back.
    jitter = len(t) * jnp.finfo(r.dtype).eps * 10
    residual = jnp.linalg.cholesky(between + jitter * jnp.eye(len(t))) @ z
    path = level * r - direction * first / root * slope + residual
    path = numpyro.deterministic("path", path)
    if noise is None:
        return path
    if isinstance(noise, dist.Distribution):
        noise = numpyro.sample("noise", noise)
    law = dist.Normal(path, noise).to_event(1)
    return numpyro.sample(
        name, law, obs=None if x is None else jnp.asarray(x), infer={"event_dims": ["time"]}
    )


def gaussian_paths(
    key: Array, covariance: Covariance, *, num_steps: int, step: float, num_paths: int | None = None
) -> Array:
    """Paths of the stationary process itself, by circulant embedding: the truth that the law approximates.

    Args:
        key: random key.
        covariance: with its time scale.
        num_steps: readings of each path.
        step: time between them; at most a hundredth of the mean interval, where crossings are to be located.
        num_paths: how many; ``None`` for one, without an axis.

    Returns:
        ``(num_steps,)`` or ``(num_paths, num_steps)``; in standard deviations.

    Raises:
        ValueError: not a covariance (the embedding has negative eigenvalues), or a record too short to embed it.

    Example:
        >>> import jax
        >>> from sojourn.models.covariance import Matern52
        >>> with jax.enable_x64(True):
        ...     path = gaussian_paths(jax.random.key(0), Matern52(scale=2.0), num_steps=2000, step=0.1)
        >>> path.shape
        (2000,)
    """
    if not isinstance(covariance, Covariance):
        check_covariance(covariance)
    num_steps, step = whole_number(num_steps, "num_steps", 2), positive_numbers(step, "step")
    num_paths = None if num_paths is None else whole_number(num_paths, "num_paths")
    if not isinstance(key, jax.Array):
        raise ValueError(f"`key` must be a random key, such as jax.random.key(0), not {shown(key)}.")
    r = covariance(step * np.arange(num_steps))
    return sample_paths(key, r, () if num_paths is None else (num_paths,))


# ---------------------------------------------------------------------------------------------------- the questions


def posterior_law(
    fit: Any,
    *,
    covariance: Declared = Diffusion,
    level: float | None = None,
    side: Side = "above",
    sensor: int | None = None,
) -> Any:
    """The law of excursions of every draw of a fit: a distribution with batch shape ``(chain, draw)``.

    Args:
        fit: of a model of this module.
        covariance: as it was given to the model (hyper-parameters that a function samples are found by name).
        level: as it was given to the model, where it was a number; a fitted one is found.
        side: which side of the level.
        sensor: which one of a hierarchy; ``None`` for the typical one.

    Returns:
        :class:`sojourn.distributions.ExcursionTime`, or with a level
        :class:`sojourn.distributions.LevelExcursionTime`.

    Example:
        >>> import jax, jax.numpy as jnp, types
        >>> from sojourn.models.covariance import Matern52
        >>> posterior = {"mean_interval": jnp.array([[4.0, 5.0, 6.0]])}
        >>> with jax.enable_x64(True):
        ...     law = posterior_law(types.SimpleNamespace(posterior=posterior), covariance=Matern52)
        ...     print(law.batch_shape, law.mean.round(6).tolist())
        (1, 3) [[4.0, 5.0, 6.0]]
    """
    posterior = posterior_of(fit)
    if side not in ("above", "below"):
        raise ValueError(f"`side` must be 'above' or 'below'; got {side!r}.")
    if level is not None:
        level = finite_numbers(level, "level")
    if "mean_interval" not in posterior:
        raise ValueError(
            "The fit has no `mean_interval`: it is not of a model of sojourn.models.exceedance, or that was fixed."
        )
    draws = {
        name: jnp.asarray(np.asarray(posterior[name]), float)
        for name in posterior
        if np.ndim(posterior[name]) == 2
    }
    if sensor is not None:
        if "sensor_mean_interval" not in posterior:
            raise ValueError("The fit is of no hierarchy, so there is no `sensor` to ask for.")
        draws["mean_interval"] = jnp.asarray(
            np.asarray(posterior["sensor_mean_interval"])[..., sensor], float
        )

    def one(values: dict[str, Array]) -> Covariance:
        with (
            numpyro.handlers.block(),
            numpyro.handlers.trace() as sites,
            numpyro.handlers.substitute(data=values),
            numpyro.handlers.seed(rng_seed=0),
        ):
            process = _shape(covariance).with_mean_interval(values["mean_interval"])
        # Else it would have been drawn from its prior.
        missing = [n for n, site in sites.items() if site["type"] == "sample" and n not in values]
        if missing:
            raise ValueError(
                f"The fit has no `{missing[0]}`, of which this covariance is made: give `covariance` as it was given to "
                "the model."
            )
        return process

    processes = jax.vmap(jax.vmap(one))(draws)
    return _law(processes, draws.get("level", level), side)


def _ask(fit: Any, times: ArrayLike, method: str, options: dict[str, Any]) -> xr.DataArray:
    import xarray as xr

    grid = np.atleast_1d(np.asarray(numbers(times, "times"), float))
    if grid.ndim != 1 or not (np.isfinite(grid).all() and (grid >= 0).all()):
        raise ValueError(f"{method}(): `times` must be finite and not negative, (T,).")
    law = posterior_law(fit, **options)
    values = jax.lax.map(
        lambda t: getattr(law, method)(jnp.broadcast_to(t, law.batch_shape)), jnp.asarray(grid)
    )
    coords = {"time": grid}
    for dim in ("chain", "draw"):
        if hasattr(fit.posterior, "coords"):
            coords[dim] = np.asarray(fit.posterior[dim])
    return xr.DataArray(
        np.asarray(values), dims=("time", "chain", "draw"), coords=coords, name=method
    ).transpose("chain", "draw", "time")


def survival(fit: Any, times: ArrayLike, **options: Any) -> xr.DataArray:
    """Probability that an excursion lasts longer than each time, ``(chain, draw, time)``.

    Args:
        fit: of a model of this module.
        times: ``(T,)``, in units of time.
        **options: as in :func:`posterior_law`.

    Example:
        >>> import jax, jax.numpy as jnp, types
        >>> from sojourn.models.covariance import Matern52
        >>> fit = types.SimpleNamespace(posterior={"mean_interval": jnp.array([[4.0, 5.0]])})
        >>> with jax.enable_x64(True):
        ...     print(survival(fit, [0.0, 5.0], covariance=Matern52).values.round(3))
        [[[1.    0.279]
          [1.    0.376]]]
    """
    return _ask(fit, times, "survival", options)


def hazard(fit: Any, times: ArrayLike, **options: Any) -> xr.DataArray:
    """Rate at which an excursion ends that has lasted for each time, ``(chain, draw, time)``; per unit of time.

    Args:
        fit: of a model of this module.
        times: ``(T,)``, in units of time.
        **options: as in :func:`posterior_law`.

    Example:
        >>> import jax, jax.numpy as jnp, types
        >>> from sojourn.models.covariance import Matern52
        >>> fit = types.SimpleNamespace(posterior={"mean_interval": jnp.array([[4.0]])})
        >>> with jax.enable_x64(True):
        ...     print(hazard(fit, [1.0, 40.0], covariance=Matern52).values.round(3))
        [[[0.219 0.298]]]
    """
    return _ask(fit, times, "hazard", options)


def persistence(fit: Any, times: ArrayLike, **options: Any) -> xr.DataArray:
    """Probability that the process does not cross within each time from now, ``(chain, draw, time)``.

    Args:
        fit: of a model of this module.
        times: ``(T,)``, in units of time.
        **options: as in :func:`posterior_law`.

    Example:
        >>> import jax, jax.numpy as jnp, types
        >>> from sojourn.models.covariance import Matern52
        >>> fit = types.SimpleNamespace(posterior={"mean_interval": jnp.array([[4.0]])})
        >>> with jax.enable_x64(True):
        ...     print(persistence(fit, [0.0, 4.0], covariance=Matern52).values.round(3))
        [[[1.    0.315]]]
    """
    return _ask(fit, times, "persistence", options)


def longest(fit: Any, number: int, *, seed: int = 0, **options: Any) -> xr.DataArray:
    """Posterior predictive draws of the longest of ``number`` excursions, ``(chain, draw)``, in units of time.

    Args:
        fit: of a model of this module.
        number: of excursions, independent ones.
        seed: of the draws.
        **options: as in :func:`posterior_law`.

    Example:
        >>> import jax, jax.numpy as jnp, types
        >>> from sojourn.models.covariance import Matern52
        >>> fit = types.SimpleNamespace(posterior={"mean_interval": jnp.full((1, 200), 4.0)})
        >>> with jax.enable_x64(True):
        ...     print(f"{longest(fit, 1000, covariance=Matern52).mean():.0f}")
        25
    """
    import xarray as xr

    if not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"longest(): `number` of excursions must be at least 1; got {number!r}.")
    seed = whole_number(seed, "seed", None)
    law = posterior_law(fit, **options)
    uniform = jax.random.uniform(jax.random.key(seed), law.batch_shape, law.mean.dtype, minval=1e-12)
    # The longest of n has distribution function F^n; the survival is worked out without losing it against one.
    draws = law.inverse_survival(-jnp.expm1(jnp.log(uniform) / number))
    coords = (
        {d: np.asarray(fit.posterior[d]) for d in ("chain", "draw")}
        if hasattr(fit.posterior, "coords")
        else None
    )
    return xr.DataArray(np.asarray(draws), dims=("chain", "draw"), coords=coords, name="longest")
