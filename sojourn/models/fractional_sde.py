r"""Stochastic differential equations driven by noise with memory, observed now and then and with errors.

.. math::
    dX = b(X, t)\,dt + \sigma(X)\,dB, \qquad y_t \sim p(y_t \mid X_t)

``B`` is fractional Brownian motion: its increments are correlated over all times, and its paths are rough
(Hurst index ``H`` below 1/2: volatility, crowded cells), smooth (above: rivers, moving cells) or Brownian
(1/2).

:func:`sde`
    any drift and diffusion, as functions or networks, any observation;
:func:`linear`
    drift linear in the state and Gaussian errors, by default with the path integrated out (Kalman filter).

    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import Predictive
    >>> from sojourn.models import fractional_sde
    >>> def double_well():
    ...     depth = numpyro.sample("depth", dist.LogNormal(0.0, 0.5))
    ...     return lambda x: depth * x * (1 - x**2)
    >>> draws = Predictive(fractional_sde.sde, num_samples=2)(
    ...     jax.random.key(0), None, drift=double_well, hurst=0.3, diffusion=0.5, initial=-1.0, num_steps=100,
    ...     step=0.05, observation_noise=0.1)
    >>> draws["y"].shape, draws["state"].shape
    ((2, 100), (2, 100))

**The path** is a ``scan`` over a regular grid. Its only random sites are ``noise``, standard normal whatever
the parameters, so that the same model serves NUTS, Langevin samplers, particle methods and variational
guides. The memory of ``B`` is carried by a few exponentials (:func:`sojourn.ops.fractional.hybrid_scheme`).

**Step.** Over a step, ``B`` moves on a straight line and the state follows the ordinary differential equation
:math:`dx / du = b(x)\,h + \sigma(x)\,\Delta B`, ``u`` from 0 to 1 (Wong and Zakai 1965, *Ann. Math. Stat.*
36:1560), solved by one step of a Runge-Kutta method. As the grid is refined this tends to the Stratonovich
solution (for ``H > 1/2`` that of Young), for one driver at every ``H``, for several that do not commute at
``H > 1/4`` (Coutin and Qian 2002, *Probab. Theory Relat. Fields* 122:108). The Runge-Kutta step itself errs
by the power 5 of the increment (3 for Heun): with multiplicative noise that vanishes upon refinement where
``H > 1/5`` (1/3), and is small beside the noise below.

**Priors.** Wherever a parameter is asked for, a number or array fixes it; a NumPyro distribution samples it,
at a site of that name; a function without arguments is called and may sample what it likes.

**Which engine.** Where the equation is linear and the errors are normal, :func:`linear` leaves only the
parameters to sample. Else the path is as long as the grid, and the more precise the observations, the harder
``noise`` is to sample as it stands; a variational guide that follows the data has it easier. A particle's
past is part of its state, so that particle Gibbs keeps the particles' own genealogy (``path="genealogy"``).

**Missing observations** are NaN, or false in ``mask``.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions.batch_util import promote_batch_shape

from sojourn._arguments import finite_numbers, numbers, whole_number
from sojourn.distributions import LinearGaussian
from sojourn.distributions._missing import fill_missing, only_observed
from sojourn.models._given import posterior_of
from sojourn.models._observation_grid import Grid, GridData, GridOptions, Units, read_data
from sojourn.ops.fractional import HybridScheme, hybrid_scheme, unnormalised_variance

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["drift_field", "linear", "mean_squared_displacement", "sde", "smoothed_state"]

Given: TypeAlias = "ArrayLike | dist.Distribution | Callable[..., Any]"

_STAGES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((), (1.0,)),
    "heun": ((1.0,), (1 / 2, 1 / 2)),
    "rk4": ((1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
"""Explicit methods in which each slope is taken where the one before it leads: how far, and weights."""


class Carry(NamedTuple):
    """What the scan remembers; the first two are ``None`` under Brownian noise."""

    memory: Array | None
    """``([N,] M, K)``."""
    driver: Array | None
    """``([N,] M)``, the value of ``B``."""
    state: Array
    """``([N,] [D])``."""


def sde(
    y: ArrayLike | None = None,
    times: ArrayLike | None = None,
    *,
    drift: Given | eqx.Module | None = None,
    diffusion: Given | eqx.Module | None = None,
    hurst: Given = dist.Uniform(0.02, 0.98),  # noqa: B008
    correlation: ArrayLike | dist.Distribution | None = None,
    observation: Callable[..., Any] | None = None,
    observation_noise: Given | None = None,
    initial: Given | None = None,
    step: float | None = None,
    substeps: int = 1,
    start: float | None = None,
    tolerance: float = 0.01,
    kind: Literal["I", "II"] = "II",
    num_terms: int = 5,
    calculus: Literal["stratonovich", "ito"] = "stratonovich",
    solver: Literal["euler", "heun", "rk4"] | None = None,
    num_dims: int | None = None,
    num_steps: int | None = None,
    num_series: int | None = None,
    mask: ArrayLike | None = None,
    name: str = "y",
) -> Array | None:
    r"""A stochastic differential equation with fractional noise, its path as sample sites.

    Args:
        y: ``(T,)`` for a scalar state, ``(T, D)`` for ``D`` dimensions; several series of the same law
            ``(N, T, D)``, or ``(N, T)`` with ``num_dims=0`` or ``num_series``. ``None`` simulates.
        times: ``(T,)``, increasing. By default one observation every ``substeps`` steps, from ``substeps x
            step`` on.
        drift: function of the state, ``() -> ()`` or ``(D,) -> (D,)``, or of state and time; an equinox
            module, learnt at ``drift$params`` (``numpyro.contrib.module.eqx_module``: point estimates, under
            variational inference); or a function without arguments that samples its parameters, or declares a
            network of its own, and returns one. ``None`` for no drift.
        diffusion: a number; ``(D,)``, a driver for each dimension; ``(D, M)`` with ``M`` drivers (``(M,)``
            for a scalar state); a function of the state that returns one of these (multiplicative noise), an
            equinox module, a distribution (site ``diffusion``), or a function without arguments. Default:
            LogNormal about the root mean square difference of neighbouring observations, by dimension, with a
            spread of 1 in the logarithm and, where ``hurst`` is not fixed, what that leaves open over the
            time between them.
        hurst: index in (0, 1), or ``(M,)`` of each driver. Fixed at 1/2 the noise is Brownian and nothing is
            remembered.
        correlation: ``(M, M)`` matrix of the drivers, or a distribution over its Cholesky factors (site
            ``correlation_cholesky``), such as ``dist.LKJCholesky(2, 2.0)``.
        observation: law of an observation, as a function of one state, ``lambda x:
            dist.Poisson(jnp.exp(x))``; or a function without arguments that samples its parameters and
            returns one. By default Normal about the state with standard deviation ...
        observation_noise: ... a number or ``(D,)``; LogNormal about 0.3 root mean square differences by
            default.
        initial: state at ``start``; by default Normal about the first observation, as wide as the data (site
            ``initial_state``). Where the observation is your own, standard normal.
        step: length of a time step. By default the spacing of regular times over ``substeps``; irregular
            times need it.
        substeps: steps from one of regular times to the next.
        start: time at which ``B`` and its memory begin; by default a step before the first time.
        tolerance: how far from the grid ``start + k step`` a time may lie, in steps; 0.5 moves each to the
            nearest.
        kind: ``"II"``, noise that begins at ``start``; ``"I"``, noise with stationary increments, whose past
            before ``start`` is the site ``past``, ``(M, 4)``.
        num_terms: exponentials in the memory of a driver.
        calculus: ``"ito"`` takes the diffusion at the beginning of a step. With multiplicative noise it
            converges only for ``H`` of at least 1/2.
        solver: ``"euler"``, ``"heun"`` or ``"rk4"``; by default Euler's method for additive noise, else
            ``"rk4"``.
        num_dims: ``D``, 0 for a scalar state; by default as in one observation.
        num_steps: ``T``, to simulate without ``times``.
        num_series: ``N``.
        mask: booleans, of the shape of the data or of their first axes; false is missing.
        name: of the observed site.

    Sites: ``hurst``, ``diffusion`` and so on where they are sampled; in the scan ``noise`` ``(time, [N,] M,
    2)``, standard normal (``(..., 1)`` for Brownian noise), and the data on the grid; ``state`` ``(time, [N,]
    [D])``, the path. Inside the scan time comes first and there are as many times as grid steps; where there
    is no datum nothing is weighed.

    Returns:
        The data, or what was simulated at ``times``.

    Raises:
        ValueError: times that do not increase or lie off the grid, infinite data, shapes that do not agree
            (of the drift, the diffusion, the observation, the state), ``hurst`` outside (0, 1), fewer terms
            than the horizon needs, an Ito scheme that does not converge, Euler's method for a Stratonovich
            equation.

    Example:
        Two series of a rough process at irregular times.

        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> simulate = Predictive(sde, num_samples=3)
        >>> draws = simulate(jax.random.key(0), None, [0.1, 0.2, 0.5], drift=lambda x: -x, hurst=0.2,
        ...     diffusion=1.0, initial=0.0, observation_noise=0.1, step=0.1, num_series=2)
        >>> draws["y"].shape  # on the grid 0.1, 0.2, ..., 0.5
        (3, 5, 2)
    """
    caller = "sde"
    _check_choice("calculus", calculus, ("stratonovich", "ito"), caller)
    _check_scheme(kind, solver, caller)
    data = read_data(
        y,
        times,
        observation is None,
        caller,
        step=step,
        substeps=substeps,
        start=start,
        tolerance=tolerance,
        num_dims=num_dims,
        num_steps=num_steps,
        num_series=num_series,
        mask=mask,
    )
    several, grid, units, state_shape = data.num_series is not None, data.grid, data.units, data.state_shape
    index, fixed = _hurst(hurst, caller)
    move = _drift(drift, state_shape, caller)
    spread, additive = _diffusion(diffusion, index if fixed else None, units, state_shape, caller)
    num_drivers = _num_drivers(spread, additive, state_shape, caller)
    _check_drivers(index, num_drivers, caller)
    if solver is None:
        solver = "euler" if additive or calculus == "ito" else "rk4"
    _check_calculus(calculus, solver, additive, index if fixed else None, caller)
    mix = _correlation(correlation, num_drivers, caller)
    law = _observation(observation, observation_noise, units, state_shape, data.event_shape, caller)
    series, lead = data.plate(), data.lead
    first = _initial(initial, data, caller)

    noise = _Noise(index, fixed, grid, num_drivers, num_terms, kind, mix)
    shift = noise.past(series)
    dtype = jnp.result_type(float)

    def advance(x: Array, increment: Array, t: Any) -> Array:
        pushed = _push(spread, increment, len(state_shape)) if additive else None

        def field(x, t):
            push = _push(spread(x), increment, len(state_shape)) if pushed is None else pushed
            return push if move is None else grid.step * move.at(x, t) + push

        return _runge_kutta(field, x, t, grid.step, solver)

    advance_all = jax.vmap(advance, (0, 0, None)) if several else advance
    law_of_all = (lambda x: promote_batch_shape(jax.vmap(law)(x))) if several else law
    placed, rows, partial = data.placed()
    begins = np.concatenate([[grid.start], grid.times[:-1]]) if move is not None and move.timed else None
    infer = _labels(grid, several, state_shape, _event_shape(law, state_shape))

    def transition(carry: Carry, x: Any) -> tuple[Carry, Any]:
        y_t, seen_t, shift_t, t = x
        with series:
            white = numpyro.sample("noise", noise.law, infer=infer["noise"])
        memory, driver, increment = noise.step(carry.memory, carry.driver, white, shift_t)
        state = advance_all(carry.state, increment, t).astype(dtype)
        with series:
            value = _observe(name, law_of_all(state), y_t, seen_t, partial, infer["y"])
        return Carry(memory, driver, state), (state, value)

    memory, driver = noise.nothing(lead, dtype)
    begin = Carry(memory, driver, first.astype(dtype))
    _, (path, values) = scan(transition, begin, (placed, rows, shift, begins), length=grid.num_steps)
    numpyro.deterministic("state", path)
    return data.given_back(values)


def linear(
    y: ArrayLike | None = None,
    times: ArrayLike | None = None,
    *,
    rate: Given | None = None,
    offset: Given | None = None,
    diffusion: Given | None = None,
    hurst: Given = dist.Uniform(0.02, 0.98),  # noqa: B008
    correlation: ArrayLike | dist.Distribution | None = None,
    observation_noise: Given | None = None,
    initial: Given | None = None,
    kind: Literal["I", "II"] = "II",
    num_terms: int = 5,
    solver: Literal["euler", "heun", "rk4"] | None = None,
    path: bool = False,
    name: str = "y",
    **grid: Unpack[GridOptions],
) -> Array | None:
    r"""A linear equation with fractional noise and Gaussian errors.

    .. math::
        dX = (\text{offset} - \text{rate}\,X)\,dt + \text{diffusion}\,dB, \qquad y_t = X_t + \varepsilon_t

    With ``rate=0`` it is fractional Brownian motion seen with errors; else the fractional Ornstein-Uhlenbeck
    process.

    With ``path=False`` the path is integrated out by a Kalman filter over state and memory
    (:class:`sojourn.distributions.LinearGaussian`), exactly for the scheme of :func:`sde`; so is the state at
    the start, where its law is normal. With ``path=True`` the same law is declared as :func:`sde` declares
    it.

    Args:
        y, times: as in :func:`sde`.
        rate: of the return, per unit of time: a number, ``(D,)``, or a matrix ``(D, D)``; a distribution of
            such. Default: LogNormal about the geometric mean of one over the time between observations and
            one over their span, with a spread of 1.5 in the logarithm; in ``D`` dimensions of each.
        offset: a number or ``(D,)``. Default: zero where ``rate`` is fixed at zero, else normal about the
            mean of the data times that typical rate, four times as wide as the data times that rate.
        diffusion: as in :func:`sde`, but no function of the state.
        hurst, correlation, observation_noise, initial: as in :func:`sde`.
        kind, num_terms, solver, name: as in :func:`sde`.
        path: declare the path as sample sites.
        **grid: ``step``, ``substeps``, ``start``, ``tolerance``, ``num_dims``, ``num_steps``, ``num_series``,
            ``mask``, as in :func:`sde`.

    Sites: ``hurst``, ``rate``, ``offset``, ``diffusion``, ``observation_noise`` where they are sampled; the
    data on the grid, ``(time, [D])`` or ``(N, time, [D])`` (with ``path=True`` as in :func:`sde`).

    Returns:
        The data, or what was simulated at ``times``.

    Raises:
        ValueError: as in :func:`sde`; a diffusion that depends on the state.

    Example:
        >>> import jax
        >>> from numpyro.infer import Predictive
        >>> simulate = Predictive(linear, num_samples=3)
        >>> draws = simulate(jax.random.key(0), None, rate=0.0, hurst=0.2, num_steps=50)
        >>> draws["y"].shape
        (3, 50)
    """
    caller = "linear"
    _check_scheme(kind, solver, caller)
    data = read_data(y, times, True, caller, **grid)
    units, state_shape = data.units, data.state_shape
    slope = _rate(rate, data, caller)
    level = _offset(offset, rate, data, caller)

    if path:

        def drift(x):
            return level - (slope @ x if jnp.ndim(slope) > 1 else slope * x)

        shape: GridOptions = {"num_series": data.num_series, "num_dims": state_shape[0] if state_shape else 0}
        return sde(
            y,
            times,
            drift=drift,
            diffusion=diffusion,
            hurst=hurst,
            correlation=correlation,
            observation_noise=observation_noise,
            initial=initial,
            kind=kind,
            num_terms=num_terms,
            solver=solver,
            name=name,
            **{**grid, **shape},  # type: ignore[arg-type]
        )
    index, fixed = _hurst(hurst, caller)
    spread, additive = _diffusion(diffusion, index if fixed else None, units, state_shape, caller)
    if not additive:
        raise ValueError(f"{caller}(): `diffusion` must not depend on the state; sde() takes one that does.")
    num_drivers = _num_drivers(spread, additive, state_shape, caller)
    _check_drivers(index, num_drivers, caller)
    mix = _correlation(correlation, num_drivers, caller)
    errors = _observation_noise(observation_noise, units, state_shape, caller)
    mean, variance = _initial_moments(initial, data, caller)
    noise = _Noise(index, fixed, data.grid, num_drivers, num_terms, kind, mix)
    law = _marginal(noise, data, slope, level, spread, solver or "euler", errors, mean, variance)
    placed: Any = data.placed()[0]
    if placed is not None and data.lead:
        placed = placed.swapaxes(0, 1)
    dims = ["time", *(["dimension"] if state_shape else [])]
    with data.plate():
        values = numpyro.sample(
            name, law, obs=placed, infer={"event_dims": dims, "event_coords": {"time": data.grid.times}}
        )
    return data.given_back(jnp.moveaxis(values, 1, 0) if data.lead else values)


# ------------------------------------------------------------------------------------ what is declared


def _check_choice(name: str, value: Any, choices: tuple[Any, ...], caller: str) -> None:
    if value not in choices:
        told = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{caller}(): `{name}` must be one of {told}; got {value!r}.")


def _check_scheme(kind: str, solver: str | None, caller: str) -> None:
    _check_choice("kind", kind, ("I", "II"), caller)
    _check_choice("solver", solver, (None, *_STAGES), caller)


def _num_arguments(fn: Callable[..., Any]) -> int:
    """How many positional arguments a function must be given; one where Python cannot tell."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return 1
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def _declared(name: str, given: Any, **infer: Any) -> Any:
    """A number or array as it is, a distribution sampled, a network registered, a builder called."""
    if isinstance(given, dist.Distribution):
        return numpyro.sample(name, given, infer=infer)
    if isinstance(given, eqx.Module):
        from numpyro.contrib.module import eqx_module

        return eqx_module(name, given)
    if callable(given) and _num_arguments(given) == 0:
        return given()
    return given


def _is_known(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def _hurst(given: Any, caller: str) -> tuple[Any, bool]:
    """The Hurst index, and whether it is fixed, and known before compilation."""
    if isinstance(given, dist.Distribution):
        low = getattr(given.support, "lower_bound", None)
        high = getattr(given.support, "upper_bound", None)
        base = getattr(given.support, "base_constraint", given.support)
        low, high = getattr(base, "lower_bound", low), getattr(base, "upper_bound", high)
        known = low is not None and high is not None and _is_known(low) and _is_known(high)
        if low is None or high is None or (known and (np.min(low) < 0 or np.max(high) > 1)):
            raise ValueError(
                f"{caller}(): the prior of `hurst` must keep to (0, 1), as dist.Uniform(0.02, 0.98) or "
                "dist.Beta(2, 2) do."
            )
        return numpyro.sample("hurst", given, infer={"event_dims": ["driver"]}), False
    if callable(given) or not _is_known(given):
        return jnp.asarray(numbers(_declared("hurst", given), "hurst")), False
    given = np.asarray(numbers(given, "hurst"), float)
    if not ((given > 0) & (given < 1)).all():
        bad = given[~((given > 0) & (given < 1))].flat[0]
        raise ValueError(f"{caller}(): `hurst` must lie strictly between 0 and 1; got {bad:g}.")
    return given, True


class _Drift(NamedTuple):
    fn: Callable[..., Any]
    timed: bool

    def at(self, x: Array, t: Any) -> Any:
        return self.fn(x, t) if self.timed else self.fn(x)


def _drift(given: Any, state_shape: tuple[int, ...], caller: str) -> _Drift | None:
    if given is None:
        return None
    fn = _declared("drift", given, event_dims=["dimension"])
    if not callable(fn):
        constant = fn
        fn = lambda x: jnp.broadcast_to(constant, x.shape)  # noqa: E731
    found = _Drift(fn, _num_arguments(fn) == 2)
    shape = _shape_at("drift", found.at, state_shape, caller)
    if shape != state_shape:
        raise ValueError(
            f"{caller}(): `drift` returns shape {shape} for a state of shape {state_shape}; it must return "
            "the rate of "
            "change of each component."
        )
    return found


def _shape_at(
    name: str, fn: Callable[..., Any], state_shape: tuple[int, ...], caller: str
) -> tuple[int, ...]:
    """Shape that a function of state and time returns; nothing is computed."""
    state = jax.ShapeDtypeStruct(state_shape, jnp.result_type(float))
    time = jax.ShapeDtypeStruct((), jnp.result_type(float))
    try:
        return jnp.shape(jax.eval_shape(lambda x, t: numbers(fn(x, t), name), state, time))
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{caller}(): `{name}` fails on a state of shape {state_shape}: {error}") from error


def _diffusion(
    given: Any, hurst: Any, units: Units, state_shape: tuple[int, ...], caller: str
) -> tuple[Any, bool]:
    """The diffusion, as an array or as a function of the state; and whether it is the former."""
    if given is None:
        power = 0.5 if hurst is None else float(np.mean(hurst))
        rough = np.ones(state_shape) * units.jump / units.gap**power
        # Uniform over (0, 1), H has a standard deviation of 0.29.
        width = (1 + (0.29 * _log(units.gap)) ** 2) ** 0.5 if hurst is None else 1.0
        prior = dist.LogNormal(_log(rough), np.ones(state_shape) * width).to_event(len(state_shape))
        return _declared("diffusion", prior, event_dims=["dimension"], **_start(rough)), True
    if isinstance(given, dist.Distribution):
        names = ["dimension", "driver"][: len(given.shape())] if state_shape else ["driver"]
        return _declared("diffusion", given, event_dims=names), True
    found = _declared("diffusion", given)
    if callable(found):
        return found, False
    if _is_known(found):
        found = np.asarray(numbers(found, "diffusion"), float)
        if not np.isfinite(found).all():
            raise ValueError(f"{caller}(): `diffusion` has an entry that is not finite.")
    return found, True


def _num_drivers(spread: Any, additive: bool, state_shape: tuple[int, ...], caller: str) -> int:
    if additive:
        shape = jnp.shape(spread)
    else:
        shape = _shape_at("diffusion", lambda x, _: spread(x), state_shape, caller)
    if len(shape) == len(state_shape) + 1 and shape[:-1] == state_shape and shape[-1] > 0:
        return int(shape[-1])
    if shape in ((), state_shape):
        return state_shape[0] if state_shape else 1
    right = f"(), {state_shape} or ({state_shape[0]}, M)" if state_shape else "() or (M,)"
    raise ValueError(
        f"{caller}(): `diffusion` has shape {shape}; with a state of shape {state_shape} it must be {right}, "
        "M the number "
        "of drivers."
    )


def _check_drivers(hurst: Any, num_drivers: int, caller: str) -> None:
    if hurst.shape not in ((), (num_drivers,)):
        raise ValueError(
            f"{caller}(): `hurst` has shape {hurst.shape}; with {num_drivers} drivers it is () or "
            f"({num_drivers},)."
        )


def _check_calculus(calculus: str, solver: str, additive: bool, hurst: Any, caller: str) -> None:
    if additive:
        return
    if calculus == "ito":
        if hurst is None or not np.all(hurst >= 0.5):
            raise ValueError(
                f"{caller}(): with multiplicative noise calculus='ito' converges only where `hurst` is fixed "
                "at 1/2 or "
                "above (below, its correction grows without bound as the step shrinks); use 'stratonovich'."
            )
        if solver != "euler":
            raise ValueError(
                f"{caller}(): calculus='ito' with multiplicative noise is Euler's method; leave `solver` out."
            )
    elif solver == "euler":
        raise ValueError(
            f"{caller}(): with multiplicative noise Euler's method does not solve the Stratonovich equation; "
            "take "
            "solver='heun' or 'rk4'."
        )


def _correlation(given: Any, num_drivers: int, caller: str) -> Any:
    """Cholesky factor of the drivers' correlation, or ``None``."""
    if given is None:
        return None
    if isinstance(given, dist.Distribution):
        factor = numpyro.sample("correlation_cholesky", given, infer={"event_dims": ["driver", "factor"]})
    else:
        factor = (
            jnp.linalg.cholesky(given)
            if not _is_known(given)
            else _known_factor(np.asarray(numbers(given, "correlation"), float), caller)
        )
    if jnp.shape(factor) != (num_drivers, num_drivers):
        raise ValueError(
            f"{caller}(): `correlation` has shape {jnp.shape(factor)}; {num_drivers} drivers need "
            f"({num_drivers}, {num_drivers})."
        )
    return factor


def _known_factor(matrix: np.ndarray, caller: str) -> np.ndarray:
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if square and np.allclose(matrix, matrix.T) and np.allclose(np.diagonal(matrix), 1):
        with contextlib.suppress(np.linalg.LinAlgError):
            return np.linalg.cholesky(matrix)
    raise ValueError(
        f"{caller}(): `correlation` must be a matrix with ones on its diagonal, symmetric and positive "
        "definite."
    )


def _observation_noise(given: Any, units: Units, state_shape: tuple[int, ...], caller: str) -> Any:
    hint: dict[str, Any] = {}
    if given is None:
        typical = 0.3 * np.ones(state_shape) * units.jump
        given, hint = dist.LogNormal(_log(typical), 1.0).to_event(len(state_shape)), _start(typical)
    errors = _declared("observation_noise", given, event_dims=["dimension"], **hint)
    errors = numbers(errors, "observation_noise")
    if _is_known(errors) and not np.all((np.asarray(errors) > 0) & np.isfinite(errors)):
        raise ValueError(f"{caller}(): `observation_noise` must be positive; got {errors}.")
    if jnp.shape(errors) not in ((), state_shape):
        raise ValueError(
            f"{caller}(): `observation_noise` has shape {jnp.shape(errors)}; the state has shape "
            f"{state_shape}."
        )
    return errors


def _observation(
    given: Any, noise: Any, units: Units, state_shape: tuple[int, ...], event_shape: Any, caller: str
) -> Callable[[Array], dist.Distribution]:
    """Law of an observation as a function of one state."""
    if given is None:
        errors = _observation_noise(noise, units, state_shape, caller)
        return lambda x: dist.Normal(x, errors).to_event(len(state_shape))
    if noise is not None:
        raise ValueError(f"{caller}(): give `observation` or `observation_noise`, but not both.")
    law = _declared("observation", given)
    if not callable(law):
        raise ValueError(
            f"{caller}(): `observation` must be a function of the state that returns a NumPyro distribution, "
            "or build one."
        )
    state = jax.ShapeDtypeStruct(state_shape, jnp.result_type(float))
    try:
        found = jax.eval_shape(law, state)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{caller}(): `observation` fails on a state of shape {state_shape}: {error}"
        ) from error
    if not isinstance(found, dist.Distribution):
        raise ValueError(
            f"{caller}(): `observation` must return a NumPyro distribution, not {type(found).__name__}."
        )
    if found.batch_shape:
        raise ValueError(
            f"{caller}(): `observation` returns a batch of shape {found.batch_shape} for one state; one "
            "observation with "
            "several parts is made by .to_event()."
        )
    if event_shape not in (None, found.event_shape):
        raise ValueError(
            f"{caller}(): one observation in the data has shape {event_shape}, and `observation` returns "
            "laws of shape "
            f"{found.event_shape}."
        )
    return law


def _initial_law(given: Any, data: GridData, caller: str) -> tuple[Any, dict[str, Any]]:
    """The state at the start as declared, with the default filled in and its event that of a state."""
    units, state_shape = data.units, data.state_shape
    if given is None:
        shape = data.lead + state_shape
        loc = np.broadcast_to(units.first, shape) if _is_known(units.first) else units.first
        return dist.Normal(loc, np.ones(shape) * units.spread).to_event(len(state_shape)), _start(loc)
    if isinstance(given, dist.Distribution):
        free = len(state_shape) - len(given.event_shape)
        if free > 0 and given.batch_shape[len(given.batch_shape) - free :] == state_shape:
            given = given.to_event(free)
        if given.event_shape != state_shape:
            raise ValueError(
                f"{caller}(): `initial` is a distribution of shape {given.shape()}; the state has shape "
                f"{state_shape}."
            )
    return given, {}


def _initial(given: Any, data: GridData, caller: str) -> Array:
    given, hint = _initial_law(given, data, caller)
    if isinstance(given, dist.Distribution):
        with data.plate():
            infer = {"event_dims": ["dimension"] if data.state_shape else [], **hint}
            return jnp.asarray(numpyro.sample("initial_state", given, infer=infer))
    start = finite_numbers(_declared("initial_state", given), "initial")
    value, shape = jnp.asarray(start, float), data.lead + data.state_shape
    try:
        return jnp.broadcast_to(value, shape)
    except ValueError:
        raise ValueError(
            f"{caller}(): `initial` has shape {value.shape}; the state has shape {shape}."
        ) from None


def _initial_moments(given: Any, data: GridData, caller: str) -> tuple[Array, Any]:
    """Mean of the state at the start, and its covariance ``([N,] D, D)``: zero unless it is normal."""
    law, _ = _initial_law(given, data, caller)
    size = data.state_shape[0] if data.state_shape else 1
    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, dist.Normal):
        variance = jnp.broadcast_to(
            law.variance, jnp.shape(law.variance)[: len(law.batch_shape)] + data.state_shape
        )
        return law.mean, variance.reshape((*law.batch_shape, size))[..., None] * jnp.eye(size)
    if isinstance(base, dist.MultivariateNormal):
        return law.mean, law.covariance_matrix
    return _initial(given, data, caller), jnp.zeros((size, size))


def _rate(given: Any, data: GridData, caller: str) -> Any:
    typical = _typical_rate(data) * np.ones(data.state_shape)
    hint: dict[str, Any] = {}
    if given is None:
        given, hint = dist.LogNormal(np.log(typical), 1.5).to_event(typical.ndim), _start(typical)
    if not callable(given) and not isinstance(given, dist.Distribution):
        given = finite_numbers(given, "rate")
    names = ["dimension", "other_dimension"] if np.ndim(given) == 2 else ["dimension"]
    if isinstance(given, dist.Distribution):
        names = ["dimension", "other_dimension"][: max(len(given.shape()), 1)]
    rate = _declared("rate", given, event_dims=names, **hint)
    rate = rate if callable(rate) else finite_numbers(rate, "rate")
    shapes = [(), data.state_shape, *([data.state_shape * 2] if data.state_shape else [])]
    if callable(rate) or jnp.shape(rate) not in shapes:
        found = "a function" if callable(rate) else f"shape {jnp.shape(rate)}"
        raise ValueError(
            f"{caller}(): `rate` is {found}; with a state of shape {data.state_shape} it must be one of "
            f"{shapes}."
        )
    return rate


def _typical_rate(data: GridData) -> float:
    times = data.grid.observed_times
    span = times[-1] - data.grid.start
    return float(1 / np.sqrt(span * span / len(times)))


def _offset(given: Any, rate: Any, data: GridData, caller: str) -> Any:
    hint: dict[str, Any] = {}
    if given is None:
        known = (
            rate is not None
            and not isinstance(rate, dist.Distribution)
            and not callable(rate)
            and _is_known(rate)
        )
        if known and not np.any(np.asarray(rate)):
            return np.zeros(())
        at = _typical_rate(data) * np.ones(data.state_shape)
        loc, width = data.units.mean * at, 4 * (data.units.spread + abs(data.units.mean)) * at
        given, hint = dist.Normal(loc, width).to_event(at.ndim), _start(loc)
    offset = _declared("offset", given, event_dims=["dimension"], **hint)
    offset = finite_numbers(offset, "offset")
    if jnp.shape(offset) not in ((), data.state_shape):
        raise ValueError(
            f"{caller}(): `offset` has shape {jnp.shape(offset)}; the state has shape {data.state_shape}."
        )
    return offset


def _log(x: Any) -> Any:
    return np.log(x) if _is_known(x) else jnp.log(x)


def _start(value: Any) -> dict[str, Any]:
    return {"init": value} if _is_known(value) else {}


# ------------------------------------------------------------------------------------------- the noise


class _Noise:
    """The drivers: fractional or, with ``hurst`` fixed at 1/2, plain Brownian motions."""

    def __init__(
        self, hurst: Any, fixed: bool, grid: Grid, num_drivers: int, num_terms: int, kind: Any, mix: Any
    ):
        self.num_drivers, self.num_terms, self.mix = num_drivers, num_terms, mix
        self.brownian = fixed and bool(np.all(hurst == 0.5))
        self.root = float(np.sqrt(grid.step))
        self.scheme: HybridScheme | None = None
        if not self.brownian:

            def scheme(h):
                return hybrid_scheme(h, grid.step, grid.num_steps, num_terms=num_terms, kind=kind)

            self.scheme = scheme(hurst) if hurst.ndim == 0 else jax.vmap(scheme)(jnp.asarray(hurst))
            self.recall = self.scheme.weights * self.scheme.decay
        shape = (num_drivers, 1 if self.brownian else 2)
        self.law = dist.Normal(np.zeros(shape), np.ones(shape)).to_event(2)

    def past(self, series: Any) -> Array | None:
        """``(steps, ..., M)``: what the time before the start adds to ``B``."""
        if self.scheme is None or self.scheme.loadings.shape[-1] == 0:
            return None
        loadings = self.scheme.loadings  # ([M,] steps, terms)
        terms = loadings.shape[-1]
        zeros = np.zeros((self.num_drivers, terms))
        with series:
            past = numpyro.sample(
                "past",
                dist.Normal(zeros, 1.0).to_event(2),
                infer={"event_dims": ["driver", "term"], "init": 0.0},
            )
        if self.mix is not None:
            past = self.mix @ past
        by_driver = jnp.broadcast_to(loadings, (self.num_drivers, *loadings.shape[-2:]))
        return jnp.einsum("mtj,...mj->t...m", by_driver, past)

    def nothing(self, lead: tuple[int, ...], dtype: Any) -> tuple[Array | None, Array | None]:
        """Memory and value of ``B`` at the start."""
        if self.brownian:
            return None, None
        shape = (*lead, self.num_drivers)
        return jnp.zeros((*shape, self.num_terms), dtype), jnp.zeros(shape, dtype)

    def step(self, memory: Any, driver: Any, white: Array, shift: Array | None) -> tuple[Any, Any, Array]:
        """Memory, value and increment of ``B`` after the noise ``white``, ``(..., M, 2)``."""
        if self.mix is not None:
            white = self.mix @ white
        if self.scheme is None:
            return None, None, self.root * white[..., 0]
        s, w = self.scheme, white[..., 0]
        value = s.first * w + (self.recall * memory).sum(-1) + s.residual * white[..., 1]
        memory = s.decay * memory + s.gain * w[..., None]
        if shift is not None:
            value = value + shift
        return memory, value, value - driver


def _marginal(
    noise: _Noise,
    data: GridData,
    slope: Any,
    level: Any,
    spread: Any,
    solver: str,
    errors: Any,
    mean: Array,
    variance: Array,
) -> LinearGaussian:
    """The law of the observations: state, memories, values and past of the drivers as one linear system.

    A Runge-Kutta step of order p of a linear equation is a polynomial in the drift matrix ``A = -h rate``:
    ``x + sum_k A^(k - 1) / k! (A x + h offset + diffusion increment)``, k up to p.
    """
    grid, state_shape = data.grid, data.state_shape
    size, drivers = (state_shape[0] if state_shape else 1), noise.num_drivers
    eye, each = jnp.eye(size), jnp.eye(drivers)
    matrix = slope if jnp.ndim(slope) > 1 else jnp.broadcast_to(slope, (size,)) * eye
    if jnp.ndim(spread) == len(state_shape) + 1:
        push = jnp.reshape(spread, (size, drivers))
    else:
        push = jnp.broadcast_to(spread, (size,)) * eye
    power = gathered = eye
    for k in range(2, len(_STAGES[solver][1]) + 1):
        power = power @ (-grid.step * matrix) / k
        gathered = gathered + power
    stay = eye - grid.step * gathered @ matrix
    push = gathered @ push
    drift = grid.step * gathered @ (level * jnp.ones(size))
    mix = each if noise.mix is None else noise.mix
    mean = jnp.reshape(mean, (*mean.shape[: mean.ndim - len(state_shape)], size))
    lead = mean.shape[:-1]

    if noise.scheme is None:
        pushed = noise.root * push @ mix
        transition, covariance, before = stay, pushed @ pushed.T, 0
        later = 0
    else:
        s, terms = noise.scheme, noise.num_terms
        decay, gain = jnp.broadcast_to(s.decay, (drivers, terms)), jnp.broadcast_to(s.gain, (drivers, terms))
        # Rows of the memories, of the drivers, of the state; columns of the same, then of the past.
        recall = (each[:, :, None] * noise.recall).reshape(drivers, drivers * terms)
        transition = jnp.block(
            [
                [jnp.diag(decay.ravel()), jnp.zeros((drivers * terms, drivers + size))],
                [recall, jnp.zeros((drivers, drivers + size))],
                [push @ recall, -push, stay],
            ]
        )
        fresh = jnp.concatenate([each * s.first @ mix, each * s.residual @ mix], -1)
        kept = (each[:, None, :] * gain[..., None]).reshape(drivers * terms, drivers) @ mix
        loading = jnp.concatenate([jnp.concatenate([kept, jnp.zeros_like(kept)], -1), fresh, push @ fresh])
        covariance, before = loading @ loading.T, drivers * (terms + 1)
        loadings = jnp.broadcast_to(s.loadings, (drivers, *s.loadings.shape[-2:]))
        later = drivers * loadings.shape[-1]
        if later:
            # The past is a state that stays; what it adds to the drivers moves the state.
            moved = jnp.diff(loadings, axis=1, prepend=0.0)  # (M, N, terms)
            moved = jnp.moveaxis(each[:, :, None, None] * moved[:, None], 2, 0)
            moved = push @ moved.reshape(grid.num_steps, drivers, later)
            added = jnp.concatenate([jnp.zeros((grid.num_steps, before, later)), moved], 1)
            transition = jnp.broadcast_to(transition, (grid.num_steps, *transition.shape))
            below = jnp.broadcast_to(
                jnp.eye(later, before + size + later, before + size),
                (grid.num_steps, later, before + size + later),
            )
            transition = jnp.concatenate([jnp.concatenate([transition, added], 2), below], 1)
            covariance = jnp.pad(covariance, (0, later))
    total = before + size + later
    start = jnp.concatenate([jnp.zeros((*lead, before)), mean, jnp.zeros((*lead, later))], -1)
    spread_at_start = jnp.zeros((*variance.shape[:-2], total, total))
    spread_at_start = spread_at_start.at[..., before : before + size, before : before + size].set(variance)
    if later:  # correlated as the drivers are
        past = jnp.kron(mix @ mix.T, jnp.eye(later // drivers))
        spread_at_start = spread_at_start.at[..., before + size :, before + size :].set(past)
    observe = jnp.zeros((size, total)).at[:, before : before + size].set(eye)
    offset = jnp.zeros(total).at[before : before + size].set(drift)
    if state_shape:
        error = jnp.broadcast_to(errors, (size,)) ** 2 * eye
    else:
        observe, error = observe[0], jnp.asarray(errors) ** 2
    return LinearGaussian(
        start,
        spread_at_start,
        transition,
        covariance,
        observe,
        error,
        num_steps=grid.num_steps,
        offset=offset,
        validate_args=False,
    )


def _push(spread: Any, increment: Array, state_ndim: int) -> Array:
    """Diffusion times increment, ``(M,)``, in the shape of a state."""
    if jnp.ndim(spread) > state_ndim:
        return spread @ increment
    return spread * (increment if state_ndim else increment[0])


def _runge_kutta(field: Callable[..., Array], x: Array, t: Any, step: float, solver: str) -> Array:
    """One step of ``dx / du = field(x, t + u step)``, u from 0 to 1."""
    reach, weights = _STAGES[solver]
    slope = field(x, t)
    total = weights[0] * slope
    for far, weight in zip(reach, weights[1:], strict=True):
        slope = field(x + far * slope, None if t is None else t + far * step)
        total = total + weight * slope
    return x + total


# -------------------------------------------------------------------------------------------- the data


def _observe(
    name: str, law: dist.Distribution, y: Any, seen: Any, partial: bool, infer: dict[str, Any]
) -> Array:
    if y is None or seen is None:
        return numpyro.sample(name, law, obs=y, infer=infer)
    if partial:
        law, y = only_observed(law, y, seen)
    else:
        y = fill_missing(law, y, ~seen)
    return numpyro.sample(name, law.mask(seen), obs=y, infer=infer)


def _event_shape(law: Callable[[Array], dist.Distribution], state_shape: tuple[int, ...]) -> tuple[int, ...]:
    return jax.eval_shape(law, jax.ShapeDtypeStruct(state_shape, jnp.result_type(float))).event_shape


def _labels(
    grid: Grid, several: bool, state_shape: tuple[int, ...], event_shape: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    """Names of dimensions, and the times of the grid, for the sites in the scan."""
    dims = ["time", *(["series"] if several else []), *(["dimension"] if state_shape else [])]
    coords = {"time": [float(t) for t in grid.times]}
    noise = {
        "event_dims": ["driver", "component"],
        "event_coords": coords,
        "dims_of": {"state": dims},
        "init": 0.0,
    }
    own = ["dimension"] if event_shape == state_shape else ["channel"]
    return {"noise": noise, "y": {"event_dims": own if len(event_shape) == 1 else []}}


# --------------------------------------------------------------------------------------- the questions


def mean_squared_displacement(
    fit: Any,
    lags: ArrayLike,
    *,
    hurst: ArrayLike | None = None,
    diffusion: ArrayLike | None = None,
    kind: Literal["I", "II"] = "II",
) -> xr.DataArray:
    r"""How far the noise alone carries the state.

    .. math::
        E\,(\sigma B(t + \tau) - \sigma B(t))^2 = c_H \sigma^2 \tau^{2H}

    with :math:`c_H = 1` for noise of type I. For type II the first displacement from the start has 1 as well, and late
    ones, which are meant here, :math:`c_H = 2 H \Gamma(H + 1/2)^2 V_H` (1.56 at H = 0.1, 1 at 1/2, 1.17 at 0.7), with
    :math:`V_H` of :func:`sojourn.ops.fractional.unnormalised_variance`.

    Its slope in a doubly logarithmic plot, ``2 H``, is the anomalous exponent: below 1 subdiffusion, above
    superdiffusion. Errors of measurement are not part of it, as they are of the displacements in the data
    (which they lift by twice their variance, and flatten at short lags).

    Args:
        fit: of a model of this module with additive noise.
        lags: ``(L,)``, positive, in the unit of the times.
        hurst: as given to the model, where it was fixed.
        diffusion: likewise; a number or ``(D,)``.
        kind: of the noise, as given to the model.

    Returns:
        Dimensions (chain, draw, [dimension,] lag), each component by itself.

    Raises:
        ValueError: a parameter that is neither in the fit nor given; a diffusion that mixes drivers; lags
            that are not positive.

    Example:
        >>> import types, xarray as xr
        >>> lead = ("chain", "draw")
        >>> posterior = xr.Dataset({"hurst": (lead, [[0.25, 0.5]]), "diffusion": (lead, [[2.0, 1.0]])})
        >>> msd = mean_squared_displacement(types.SimpleNamespace(posterior=posterior), [1.0, 16.0], kind="I")
        >>> msd.values.tolist()
        [[[4.0, 16.0], [1.0, 16.0]]]
    """
    import xarray as xr

    posterior = posterior_of(fit)
    _check_choice("kind", kind, ("I", "II"), "mean_squared_displacement")
    if hurst is not None:
        _hurst(hurst, "mean_squared_displacement")
    if diffusion is not None:
        finite_numbers(diffusion, "diffusion")
    lags = np.asarray(finite_numbers(lags, "lags"), float)
    if lags.ndim != 1 or not lags.size or not (lags > 0).all():
        raise ValueError("mean_squared_displacement(): `lags` must be (L,), all positive.")
    lag = xr.DataArray(lags, dims="lag", coords={"lag": lags})
    found = []
    for what, given in (("hurst", hurst), ("diffusion", diffusion)):
        if given is not None:
            value = xr.DataArray(np.asarray(given, float), dims=["dimension"][: np.ndim(given)])
        elif what in posterior:
            value = posterior[what]
        else:
            raise ValueError(
                f"mean_squared_displacement(): the fit has no `{what}`; give it, as it was fixed in the "
                "model."
            )
        found.append(value)
    index, spread = found
    _check_choice("kind", kind, ("I", "II"), "mean_squared_displacement")
    inner = [dim for dim in spread.dims if dim not in ("chain", "draw")]
    if len(inner) > 1 or (inner and inner[0] == "driver"):
        raise ValueError(
            "mean_squared_displacement(): a diffusion matrix mixes its drivers; this answer is for one "
            "driver a dimension."
        )
    if "driver" in index.dims:
        index = index.rename(driver=inner[0]) if inner else index.rename(driver="dimension")
    result = spread**2 * lag ** (2 * index)
    if kind == "II":
        h = jnp.asarray(index.values, float)
        late = 2 * h * jnp.exp(2 * jax.scipy.special.gammaln(h + 0.5)) * unnormalised_variance(h)
        result = result * index.copy(data=np.asarray(late))
    rest = [dim for dim in result.dims if dim not in ("chain", "draw", "lag")]
    lead = [dim for dim in ("chain", "draw") if dim in result.dims]
    return result.transpose(*lead, *rest, "lag").rename("mean_squared_displacement")


def drift_field(
    fit: Any,
    states: ArrayLike,
    *,
    drift: Given | eqx.Module,
    params: dict[str, Any] | None = None,
    time: float = 0.0,
) -> xr.DataArray:
    """The drift at given states, for every draw of a fit.

    Args:
        fit: of :func:`sde`.
        states: ``(S,)``, or ``(S, D)`` in ``D`` dimensions.
        drift: as given to the model.
        params: values of ``numpyro.param`` sites of the drift. A network given as a module needs none: what
            variational inference learnt of it is in the fit.
        time: at which a drift that depends on time is taken.

    Returns:
        Dimensions (chain, draw, at) or (chain, draw, at, dimension); in one dimension ``at`` is labelled by
        the states.

    Example:
        >>> import types, xarray as xr, numpyro, numpyro.distributions as dist
        >>> def spring():
        ...     stiffness = numpyro.sample("stiffness", dist.HalfNormal(1.0))
        ...     return lambda x: -stiffness * x
        >>> posterior = xr.Dataset({"stiffness": (("chain", "draw"), [[1.0, 2.0]])})
        >>> fit = types.SimpleNamespace(posterior=posterior)
        >>> drift_field(fit, [1.0, 3.0], drift=spring).values.tolist()
        [[[-1.0, -3.0], [-2.0, -6.0]]]
    """
    import xarray as xr

    states = np.asarray(finite_numbers(states, "states"), float)
    time = float(finite_numbers(time, "time"))
    if not (callable(drift) or isinstance(drift, dist.Distribution)):
        finite_numbers(drift, "drift")
    if states.ndim not in (1, 2) or not states.size:
        raise ValueError(f"drift_field(): `states` must be (S,) or (S, D); got shape {states.shape}.")
    draws, lead = _draws(fit)
    if params is None and isinstance(drift, eqx.Module):
        params = _learnt(fit, drift)

    def one(values):
        with (
            handlers.block(),
            handlers.seed(rng_seed=0),
            handlers.substitute(data={**values, **(params or {})}),
        ):
            found = _drift(drift, states.shape[1:], "drift_field")
        return jax.vmap(lambda x: found.at(x, time))(jnp.asarray(states, float))

    field = np.asarray(jax.jit(jax.vmap(one))(draws))
    dims = ["chain", "draw", "at", *(["dimension"] if states.ndim == 2 else [])]
    coords = {"at": states} if states.ndim == 1 else {}
    return xr.DataArray(field.reshape((*lead, *field.shape[1:])), dims=dims, coords=coords, name="drift")


def _learnt(fit: Any, network: eqx.Module) -> dict[str, Any]:
    """The arrays of a network of the model, from the group ``params`` of a variational fit."""
    group = getattr(fit, "params", None)
    if group is None:
        return {}
    leaves, tree = jax.tree_util.tree_flatten_with_path(eqx.filter(network, eqx.is_inexact_array))
    name = "drift$params"
    found = [jnp.asarray(group[name + jax.tree_util.keystr(path)].values) for path, _ in leaves]
    return {name: jax.tree.unflatten(tree, found)}


def smoothed_state(
    fit: Any, y: ArrayLike, times: ArrayLike | None = None, *, num_draws: int = 100, **model: Any
) -> xr.Dataset:
    """The path of :func:`linear`, integrated out of the fit: mean and standard deviation given all data.

    Args:
        fit: of :func:`linear`.
        y, times: the data.
        num_draws: how many draws of the parameters to average over, evenly spaced.
        **model: the other arguments that the model was fitted with.

    Returns:
        ``mean`` and ``sd``, dimensions (time, [series,] [dimension]) on the grid: also between the
        observations.

    Example:
        Brownian motion between two fixed points, two units of time apart: half a unit of variance in the
            middle.

        >>> import types, xarray as xr
        >>> posterior = xr.Dataset({"diffusion": (("chain", "draw"), [[1.0, 1.0]])})
        >>> fit = types.SimpleNamespace(posterior=posterior)
        >>> found = smoothed_state(fit, [1.0], [2.0], step=1.0, start=0.0, rate=0.0, hurst=0.5, initial=0.0,
        ...     observation_noise=1e-3)
        >>> print(found["sd"].values.round(3))
        [0.707 0.001]
    """
    import xarray as xr

    num_draws = whole_number(num_draws, "num_draws")
    draws, _ = _draws(fit)
    total = len(next(iter(draws.values())))
    chosen = np.unique(np.linspace(0, total - 1, min(num_draws, total)).astype(int))
    name = model.get("name", "y")
    model = {**model, "path": False}

    def one(values):
        with (
            handlers.block(),
            handlers.trace() as trace,
            handlers.seed(rng_seed=0),
            handlers.substitute(data=values),
        ):
            linear(y, times, **model)
        law, value = trace[name]["fn"], trace[name]["value"]
        while isinstance(law, dist.ExpandedDistribution):
            law = law.base_dist
        found = law.smooth(value)
        observe = jnp.atleast_2d(law.observation)
        mean = found.mean @ observe.T
        return mean, jnp.einsum("pi,...ij,pj->...p", observe, found.covariance, observe)

    mean, variance = jax.jit(lambda d: jax.lax.map(one, d))({n: v[chosen] for n, v in draws.items()})
    mean, variance = np.asarray(mean), np.asarray(variance)
    sd = np.sqrt(np.maximum(variance.mean(0) + mean.var(0), 0.0))
    mean = mean.mean(0)
    keywords = GridOptions.__annotations__
    data = read_data(y, times, True, "linear", **{k: v for k, v in model.items() if k in keywords})
    if not data.state_shape:
        mean, sd = mean[..., 0], sd[..., 0]
    dims = [*(["series"] if data.lead else []), "time", *(["dimension"] if data.state_shape else [])]
    result = xr.Dataset({"mean": (dims, mean), "sd": (dims, sd)}, coords={"time": data.grid.times})
    return result.transpose("time", ...)


def _draws(fit: Any) -> tuple[dict[str, Array], tuple[int, ...]]:
    """Every variable of the posterior with chains and draws in one leading axis; their numbers."""
    posterior = posterior_of(fit)
    lead = (posterior.sizes["chain"], posterior.sizes["draw"])
    arrays = {n: v.transpose("chain", "draw", ...).values for n, v in posterior.data_vars.items()}
    return {n: jnp.asarray(v.reshape((-1, *v.shape[2:]))) for n, v in arrays.items()}, lead
