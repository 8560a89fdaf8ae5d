"""Markov jump processes: systems that sit in one of a few states and jump, seen now and then or all along.

Each model function is a plain NumPyro model. Data come first, ``None`` simulates.

    >>> import numpy as np
    >>> import sojourn as sj
    >>> from sojourn.models import jump_process
    >>> times = np.linspace(0.0, 10.0, 21)
    >>> states = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    >>> fit = sj.fit(jump_process.panel, states, times, num_states=2, num_warmup=300, num_samples=200,
    ...              num_chains=2, progress_bar=False)
    >>> jump_process.mean_sojourn_times(fit.posterior["rate_matrix"]).dims
    ('chain', 'draw', 'state')

:func:`panel`
    states seen without error at given times (``obstype`` for exact times, ``censored`` for sets of states);
:func:`misclassified`
    states seen through a confusion matrix;
:func:`normal`
    a signal with a level for each state;
:func:`model`
    any emission;
:func:`complete`
    paths watched without interruption.

**Rates** are free by default. ``rates=`` takes ``"birth_death"``, ``"linear_chain"``, ``"cycle"``, ``"reversible"``, a
``(K, K)`` graph of the jumps that are possible, or a function of the time unit that samples whatever it likes and
returns a rate matrix: the builders :func:`free`, :func:`masked`, :func:`reversible`, :func:`arrhenius`,
:func:`driven_cycle`, :func:`birth_death`, :func:`linear_chain`, :func:`flashing_ratchet` make one.

**Priors** are LogNormal(-1, 1.5) in the data's own time unit: the geometric mean of a typical interval and a typical
length of a series, the middle of the range of rates that such data can tell.

**Rates faster than** ``max_rate`` (ten jumps in the median interval) have probability zero: the ends of an interval
say nothing of them.

**Hidden states have no names.** As in :mod:`sojourn.models.hidden_markov`: ordered levels keep one labelling, for other
emissions look at ``sj.check`` and ``sj.relabel``. A confusion matrix that is mostly right names the states itself.

**Answers** are functions of rate matrices, of ``fit.posterior["rate_matrix"]`` or of arrays: :func:`stationary_law`,
:func:`relaxation_times`, :func:`mean_sojourn_times`, :func:`mean_first_passage_times`, :func:`entropy_production_rate`,
:func:`probability_currents`, :func:`transition_probabilities`, :func:`survival`, :func:`simulate`; and of a fit with its
data: :func:`decode`, :func:`expected_statistics`, :func:`sample_paths`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import numbers, positive_numbers, shown, whole_number
from sojourn.distributions import HiddenJumpProcess, MarkovJumpPath, Ordered, PanelJumpProcess, stack_paths
from sojourn.distributions._missing import is_missing
from sojourn.distributions._panel_jump_process import plain
from sojourn.distributions._panel_times import default_max_rate, read_times
from sojourn.models._decoding import decode
from sojourn.models._given import check_emission, check_priors
from sojourn.models._jump_answers import (
    entropy_production_rate,
    expected_statistics,
    mean_first_passage_times,
    mean_sojourn_times,
    probability_currents,
    rate_matrix_at,
    relaxation_times,
    sample_paths,
    simulate,
    stationary_law,
    survival,
    transition_probabilities,
)
from sojourn.models._jump_prior import first_state, sample_rates, state_names
from sojourn.models._rate_matrices import (
    arrhenius,
    birth_death,
    driven_cycle,
    flashing_ratchet,
    free,
    generator,
    linear_chain,
    masked,
    reversible,
)
from sojourn.models._scan_path import Emission, as_function, law_of_states, scan_path
from sojourn.models._series import (
    Scale,
    check_categories,
    check_lengths,
    check_mask,
    increasing,
    observed_steps,
    pad,
    read_series,
)
from sojourn.ops.transition_probability import Method

__all__ = [
    "ProcessOptions",
    "arrhenius",
    "birth_death",
    "complete",
    "decode",
    "driven_cycle",
    "entropy_production_rate",
    "expected_statistics",
    "flashing_ratchet",
    "free",
    "generator",
    "linear_chain",
    "masked",
    "mean_first_passage_times",
    "mean_sojourn_times",
    "misclassified",
    "model",
    "normal",
    "pad",
    "panel",
    "probability_currents",
    "rate_matrix_at",
    "relaxation_times",
    "reversible",
    "sample_paths",
    "simulate",
    "stack_paths",
    "stationary_law",
    "survival",
    "transition_probabilities",
]


class ProcessOptions(TypedDict, total=False):
    """Keywords that every model of noisy states takes (see :func:`model` for what they mean)."""

    rates: str | ArrayLike | Callable[[float], Array]
    rate_prior: dist.Distribution | None
    time_unit: float | None
    covariates: ArrayLike | None
    effect_prior: dist.Distribution | None
    hierarchical: bool
    initial: str | ArrayLike
    mask: ArrayLike | None
    lengths: ArrayLike | None
    obstype: ArrayLike | None
    states: Sequence[str] | None
    max_rate: float | None
    method: Method
    path: bool
    name: str


def _bare(x: Any) -> Any:
    """An xarray or pandas object as a NumPy array; anything else as it is."""
    return x.to_numpy() if hasattr(x, "to_numpy") else x


def _scalar(value: Any, name: str) -> float:
    number = positive_numbers(value, name)
    if np.ndim(number):
        raise ValueError(f"`{name}` must be one positive number, not {shown(value)}.")
    return float(number)


class _Times:
    """Times of observation, their unit, and the capacity that goes with them."""

    def __init__(self, times: Any, lengths: Any, time_unit: float | None, max_rate: float | None):
        if times is None:
            raise ValueError("`times`, at which the process is looked at, are needed, to simulate as well.")
        times = numbers(_bare(times), "times")
        shape = np.shape(times)
        check_lengths(lengths, shape)
        steps, within = read_times(times, lengths)
        self.given = np.asarray(times)
        self.shape = shape
        self.several = len(shape) == 2
        self.num_series = shape[0] if self.several else None
        self.num_steps = shape[-1]
        self.steps, self.within = steps, within
        span = float(np.median(steps.sum(1)[within.any(1)]))
        typical = float(np.median(steps[within]))
        self.unit = float(np.sqrt(span * typical)) if time_unit is None else _scalar(time_unit, "time_unit")
        self.max_rate = (
            default_max_rate(steps, within) if max_rate is None else float(numbers(max_rate, "max_rate"))
        )

    def coords(self) -> dict[str, Any]:
        shared = not self.several or (self.given == self.given[:1]).all()
        return {"time": np.atleast_2d(self.given)[0]} if shared else {}


def _rough_rates(y: Any, times: _Times, num_states: int, seen: Any) -> np.ndarray | None:
    """``(K, K)`` jumps between neighbouring observations over time, as a start; ``None`` where data are not states."""
    if y is None or isinstance(y, jax.core.Tracer):
        return None
    y = np.atleast_2d(np.asarray(y, float))
    known = np.isfinite(y) & (y >= 0) & (y < num_states)
    if seen is not None:
        known &= np.atleast_2d(np.asarray(seen, bool))
    both = known[:, 1:] & known[:, :-1] & times.within
    before, after = y[:, :-1][both].astype(int), y[:, 1:][both].astype(int)
    count = np.zeros((num_states, num_states))
    np.add.at(count, (before, after), 1.0)
    held = np.bincount(before, times.steps[both] / 2, num_states) + np.bincount(
        after, times.steps[both] / 2, num_states
    )
    rate = (count + 0.3) / (held + 0.3 * times.unit)[:, None]
    return np.minimum(rate, 0.5 * times.max_rate / num_states)


def model(
    y: ArrayLike | None,
    times: ArrayLike,
    emission: Callable[[int], Emission | dist.Distribution],
    *,
    num_states: int,
    rates: str | ArrayLike | Callable[[float], Array] = "free",
    rate_prior: dist.Distribution | None = None,
    time_unit: float | None = None,
    covariates: ArrayLike | None = None,
    effect_prior: dist.Distribution | None = None,
    hierarchical: bool = False,
    initial: str | ArrayLike = "free",
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    obstype: ArrayLike | None = None,
    states: Sequence[str] | None = None,
    max_rate: float | None = None,
    method: Method = "uniformization",
    path: bool = False,
    name: str = "y",
) -> Array | None:
    r"""A Markov jump process seen through noise of your own.

    Args:
        y: ``(L, ...)`` or ``(N, L, ...)`` observations, NaN where missing, or ``None`` to simulate.
        times: ``(L,)`` or ``(N, L)`` times, increasing along each series; ``(L,)`` serves all series of ``y``.
        emission: called with ``num_states``; samples the parameters of the emission and returns the law of one
            observation as a function of the state, ``lambda state: dist.Normal(loc[state], scale)``, or, with
            ``path=False``, a distribution of batch shape ``(num_states,)``.
        num_states: number of states ``K``, at least two.
        rates: which jumps are possible, see the module's text. A function is called with the time unit and returns a
            ``(K, K)`` rate matrix; the prior is then its own affair.
        rate_prior: of one rate, in the inverse of the unit of ``times``. Default: LogNormal(-1, 1.5) in the inverse of
            ``time_unit``.
        time_unit: in the unit of ``times``. Default: the geometric mean of the median interval and the median length
            of a series.
        covariates: ``(N, P)``, or ``(N, L, P)`` where row ``l`` holds from observation ``l`` to the next. They act on
            the rates as :math:`\log q_{ij}(x) = \log q_{ij} + x \cdot \beta_{ij}`.
        effect_prior: of one entry of ``covariate_effect``. Default: Normal(0, 1).
        hierarchical: every series has rates of its own, :math:`\log q_{ij} + \sigma_{ij} z_{n,ij}`.
        initial: ``"free"`` (a Dirichlet(1) site ``initial``), ``"stationary"`` (of the rate matrix; needs one closed
            class of states), or ``(K,)`` or ``(N, K)`` probabilities.
        mask: booleans of the shape of the series, false where missing.
        lengths: ``(N,)`` observations that belong to each series; the rest is padding.
        obstype: how each observation came about, see :class:`~sojourn.distributions.HiddenJumpProcess`.
        states: names of the states.
        max_rate: capacity, see :class:`~sojourn.distributions.HiddenJumpProcess`.
        method: how exponentials are taken, see :mod:`sojourn.ops.transition_probability`.
        path: declare the states at the times of observation as sample sites ``hidden_state`` in a ``scan``.
        name: of the observed site.

    Returns:
        The observations (simulated where ``y`` is ``None``).

    Sites: ``rate`` (move) and the deterministic ``rate_matrix`` (state, next_state); ``covariate_effect`` (covariate,
    move); ``rate_sd`` (move) and ``series_effect`` (series, move).

    Raises:
        ValueError: times that do not increase, one observation a series, shapes that do not agree, an unknown structure.

    Example:
        >>> import jax, numpy as np, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import Predictive
        >>> def emission(num_states):
        ...     with numpyro.plate("state", num_states):
        ...         mean = numpyro.sample("mean", dist.LogNormal(1.0, 1.0))
        ...     return lambda state: dist.Poisson(mean[state])
        >>> times = np.array([0.0, 0.4, 1.0, 1.1])
        >>> Predictive(model, num_samples=3)(jax.random.key(0), None, times, emission, num_states=2)["y"].shape
        (3, 4)
    """
    names = _check_states(num_states, states)
    check_emission(emission)
    by_state = as_function(emission(num_states), num_states, path)
    all_states = law_of_states(by_state, num_states)
    event = len(all_states.event_shape)
    clock, y = _clock_and_series(y, times, event, lengths, time_unit, max_rate, name)
    check_mask(y, mask, clock.shape, event, name)
    mask = plain(mask, bool)
    rough = _rough_rates(y, clock, num_states, mask) if _sees_states(all_states, num_states) else None
    process = sample_rates(
        num_states,
        rates,
        rate_prior,
        clock.unit,
        names,
        start=rough,
        covariates=covariates,
        effect_prior=effect_prior,
        hierarchical=hierarchical,
        num_series=clock.num_series,
        num_steps=clock.num_steps,
    )
    start = first_state(initial, num_states, process, clock.num_series, names)
    law = HiddenJumpProcess(
        process.matrix,
        start,
        all_states,
        clock.given,
        lengths=lengths,
        mask=mask,
        obstype=obstype,
        group=process.group,
        max_rate=clock.max_rate,
        method=method,
        validate_args=False,  # a draw of the prior may lie beyond the capacity, where it is impossible, not wrong
    )
    if path:
        numpyro.factor("capacity", jnp.where(law._within_capacity(), 0.0, -jnp.inf))
        observed = observed_steps(None, mask, lengths, clock.shape, event)
        if observed is None and y is not None and is_missing(y) is not None:
            observed = jnp.ones(clock.shape, bool)
        steps = law.step_matrices()
        densities = obstype is not None
        return scan_path(y, observed, by_state, start, steps, clock.shape, name, densities=densities)
    infer = {"event_dims": ["time"], "event_coords": {**clock.coords(), **_state_coords(names)}}
    if not clock.several:
        return numpyro.sample(name, law, obs=y, infer=infer)
    with numpyro.plate("series", clock.num_series, dim=-1):
        return numpyro.sample(name, law, obs=y, infer=infer)


def _check_states(num_states: Any, states: Sequence[str] | None) -> list[str]:
    if not isinstance(num_states, int | np.integer) or num_states < 2:
        raise ValueError(f"`num_states` must be a whole number of at least two, not {num_states!r}.")
    return state_names(states, int(num_states))


def _state_coords(names: list[str]) -> dict[str, list[str]]:
    """Labels of the axes of ``rate_matrix``, a deterministic site that cannot carry them itself."""
    return {"state": names, "next_state": names}


def _sees_states(emission: dist.Distribution, num_states: int) -> bool:
    """Whether the observations are labels of the states themselves."""
    support = emission.support
    return bool(support.is_discrete) and getattr(support, "upper_bound", None) == num_states - 1


def _clock_and_series(y, times, event, lengths, time_unit, max_rate, name) -> tuple[_Times, Array | None]:
    """Times and observations of one shape; ``(L,)`` times serve all series."""
    times = _bare(times)
    if y is None:
        return _Times(times, lengths, time_unit, max_rate), None
    y = numbers(_bare(y), name)
    _, shape = read_series(y, event, None, None, name)
    y = plain(y)
    if len(shape) == 2 and np.ndim(times) == 1 and not isinstance(times, jax.core.Tracer):
        times = np.broadcast_to(np.asarray(times), (shape[0], np.shape(times)[0]))
    clock = _Times(times, lengths, time_unit, max_rate)
    if clock.shape != shape:
        raise ValueError(f"`times` has shape {np.shape(times)}; `{name}` needs {shape}.")
    return clock, y


def panel(
    y: ArrayLike | None,
    times: ArrayLike,
    *,
    num_states: int,
    rates: str | ArrayLike | Callable[[float], Array] = "free",
    rate_prior: dist.Distribution | None = None,
    time_unit: float | None = None,
    covariates: ArrayLike | None = None,
    effect_prior: dist.Distribution | None = None,
    hierarchical: bool = False,
    initial: str | ArrayLike = "observed",
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    obstype: ArrayLike | None = None,
    censored: Mapping[int, Sequence[int]] | None = None,
    states: Sequence[str] | None = None,
    max_rate: float | None = None,
    method: Method = "uniformization",
    path: bool = False,
    name: str = "y",
) -> Array | None:
    """States seen without error at given times.

    The cost of the likelihood does not depend on the number of series, but on the number of different transitions over
    different intervals (see :class:`~sojourn.distributions.PanelJumpProcess`).

    Args:
        y: ``(L,)`` or ``(N, L)`` integers from 0 to ``num_states - 1``, codes of ``censored``, NaN where missing; or
            ``None`` to simulate.
        initial: ``"observed"``, the likelihood given the first states (with ``y=None`` they are uniform); otherwise as
            in :func:`model`.
        censored: ``{99: [0, 1]}``: codes for states of which only a set is known.
        path: must be false: without noise the path at the times of observation is what was observed.
        times, num_states, rates, rate_prior, time_unit, covariates, effect_prior, hierarchical, mask, lengths, obstype,
            states, max_rate, method, name: as in :func:`model`.

    Example:
        >>> import jax, numpy as np
        >>> from numpyro.infer import Predictive
        >>> times = np.linspace(0.0, 5.0, 6)
        >>> draws = Predictive(panel, num_samples=2)(jax.random.key(0), None, times, num_states=3)
        >>> draws["rate"].shape, draws["rate_matrix"].shape, draws["y"].shape
        ((2, 6), (2, 3, 3), (2, 6))
    """
    names = _check_states(num_states, states)
    if path:
        raise ValueError(
            "States seen without error leave no path to sample at the times of observation: use path=False, and "
            "`jump_process.sample_paths` for what happened in between."
        )
    clock, y = _clock_and_series(y, times, 0, lengths, time_unit, max_rate, name)
    check_mask(y, mask, clock.shape, 0, name)
    mask = plain(mask, bool)
    _check_labels(y, num_states, mask, lengths, censored)
    process = sample_rates(
        num_states,
        rates,
        rate_prior,
        clock.unit,
        names,
        start=_rough_rates(y, clock, num_states, mask),
        covariates=covariates,
        effect_prior=effect_prior,
        hierarchical=hierarchical,
        num_series=clock.num_series,
        num_steps=clock.num_steps,
    )
    if isinstance(initial, str) and initial == "observed":
        start: ArrayLike = _first_observed(y, mask, num_states)
    else:
        start = first_state(initial, num_states, process, clock.num_series, names)
    law = PanelJumpProcess(
        process.matrix,
        start,
        clock.given,
        lengths=lengths,
        mask=mask,
        obstype=obstype,
        group=process.group,
        censored=censored,
        max_rate=clock.max_rate,
        method=method,
        validate_args=False,  # as in `model`
    )
    dims = ["series", "time"] if clock.several else ["time"]
    infer = {"event_dims": dims, "event_coords": {**clock.coords(), **_state_coords(names)}}
    return numpyro.sample(name, law, obs=y, infer=infer)


def _check_labels(
    y: Any, num_states: int, mask: Any, lengths: Any, censored: Mapping[int, Any] | None
) -> None:
    if y is None or isinstance(y, jax.core.Tracer):
        return
    if censored is not None and not isinstance(censored, Mapping):
        raise ValueError(
            f"`censored` must map codes to states, such as {{99: [0, 1]}}, not {shown(censored)}."
        )
    values = np.asarray(y, float)
    # A code stands for states: any admissible label will do for the check.
    values = np.where(np.isin(values, list(censored or {})), 0.0, values)
    check_categories(values, num_states, mask, lengths)


def _first_observed(y: Any, mask: Any, num_states: int) -> ArrayLike:
    """A law for each series that puts everything on its first state."""
    if y is None:
        return np.full(num_states, 1.0 / num_states)
    numeric: Any = jnp if any(isinstance(x, jax.core.Tracer) for x in (y, mask)) else np
    first = numeric.asarray(y, float)[..., 0]
    unknown = ~((first >= 0) & (first < num_states))
    if mask is not None:
        unknown = unknown | ~mask[..., 0]
    if numeric is np and unknown.any():
        where = int(np.argwhere(np.atleast_1d(unknown))[0][0])
        raise ValueError(
            f"The first state of series {where} is not known, and initial='observed' takes it as given: use "
            "initial='free', 'stationary' or probabilities."
        )
    return (first[..., None] == np.arange(num_states)).astype(float)


def misclassified(
    y: ArrayLike | None,
    times: ArrayLike,
    *,
    num_states: int,
    confusion: str | ArrayLike = "uniform",
    error_prior: dist.Distribution | None = None,
    **process: Unpack[ProcessOptions],
) -> Array | None:
    """States seen with errors.

    Args:
        y: ``(L,)`` or ``(N, L)`` integers from 0 to ``num_states - 1``, NaN where missing, or ``None``.
        times: as in :func:`model`.
        num_states: number of states ``K``.
        confusion: ``"uniform"``: with probability ``error_rate`` the label is replaced by one drawn from all ``K``;
            a ``(K, K)`` array of booleans: the errors that are possible, with a Dirichlet(1) site ``confusion`` in
            each row where there are any, in favour of the diagonal; a ``(K, M)`` matrix of probabilities: known.
        error_prior: of ``error_rate``. Default: Beta(1, 9).
        **process: see :func:`model`.

    Raises:
        ValueError: rows of ``confusion`` that are not probabilities.

    Example:
        >>> import jax, numpy as np
        >>> from numpyro.infer import Predictive
        >>> draws = Predictive(misclassified, num_samples=2)(
        ...     jax.random.key(0), None, np.linspace(0.0, 5.0, 6), num_states=3)
        >>> draws["error_rate"].shape, draws["y"].shape
        ((2,), (2, 6))
    """
    names = _check_states(num_states, process.get("states"))
    check_priors(error_prior=error_prior)
    known = None if isinstance(confusion, str) else np.asarray(numbers(confusion, "confusion"))
    if known is not None and known.ndim != 2:
        raise ValueError(f"`confusion` has shape {known.shape}; {num_states} states need ({num_states}, M).")
    labels = num_states if known is None or known.dtype == bool else known.shape[-1]
    y = None if y is None else numbers(_bare(y), "y")
    check_categories(y, labels, process.get("mask"), process.get("lengths"))

    def emission(num_states: int) -> Emission:
        if known is None:
            if confusion != "uniform":
                raise ValueError(f"`confusion` is 'uniform', booleans or probabilities, not {confusion!r}.")
            prior = dist.Beta(1.0, 9.0) if error_prior is None else error_prior
            error = numpyro.sample("error_rate", prior, infer={"init": 0.1})
            probs = (1.0 - error) * jnp.eye(num_states) + error / num_states
        elif known.dtype == bool:
            probs = _possible_errors(known, num_states, names)
        else:
            probs = jnp.asarray(_known_confusion(known, num_states))
        return lambda state: dist.Categorical(probs=probs[state])

    return model(y, times, emission, num_states=num_states, **process)


def _known_confusion(probs: np.ndarray, num_states: int) -> np.ndarray:
    if probs.ndim != 2 or probs.shape[0] != num_states:
        raise ValueError(f"`confusion` has shape {probs.shape}; {num_states} states need ({num_states}, M).")
    total = probs.sum(-1)
    if (probs < 0).any() or not np.isfinite(probs).all() or (np.abs(total - 1) > 1e-4).any():
        bad = int(np.argmax(np.abs(total - 1) + (probs < 0).any(-1)))
        raise ValueError(
            f"Row {bad} of `confusion` is no law of the label: it sums to {total[bad]:.6g}, and its entries must be "
            "probabilities."
        )
    return probs


def _possible_errors(possible: np.ndarray, num_states: int, names: Sequence[str]) -> Array:
    """A confusion matrix with free entries where errors are possible; the others are right for certain."""
    if possible.shape != (num_states, num_states):
        raise ValueError(
            f"`confusion` has shape {possible.shape}; {num_states} states need ({num_states}, {num_states})."
        )
    probs = jnp.eye(num_states)
    for state in range(num_states):
        others = [int(k) for k in np.flatnonzero(possible[state]) if k != state]
        if not others:
            continue
        # Right as a rule: prior mean of each error 1 / (K + 8).
        weights = np.concatenate([[9.0], np.ones(len(others))])
        start = np.concatenate([[0.9], np.full(len(others), 0.1 / len(others))])
        labels = [names[state], *(names[k] for k in others)]
        infer = {"event_dims": [f"label_{names[state]}"], "event_coords": {f"label_{names[state]}": labels}}
        row = numpyro.sample(
            f"confusion_{names[state]}", dist.Dirichlet(weights), infer={**infer, "init": start}
        )
        probs = probs.at[state, state].set(row[0]).at[state, np.array(others)].set(row[1:])
    return probs


def normal(
    y: ArrayLike | None,
    times: ArrayLike,
    *,
    num_states: int,
    loc_prior: dist.Distribution | None = None,
    scale_prior: dist.Distribution | None = None,
    shared_scale: bool = True,
    **process: Unpack[ProcessOptions],
) -> Array | None:
    """A signal with a level for each state, and Gaussian noise.

    Args:
        y: ``(L,)`` or ``(N, L)``, NaN where missing, or ``None``.
        times: as in :func:`model`.
        num_states: number of states; levels ``loc`` increase with the state.
        loc_prior: of one level. Default: Normal(m, 2 s), m and s mean and standard deviation of the data.
        scale_prior: of the noise. Default: LogNormal(log(s / 2), 1).
        shared_scale: the same noise in all states.
        **process: see :func:`model`.

    Example:
        >>> import jax, numpy as np
        >>> from numpyro.infer import Predictive
        >>> draws = Predictive(normal, num_samples=2)(jax.random.key(0), None, np.arange(9.0), num_states=2)
        >>> draws["loc"].shape, draws["scale"].shape
        ((2, 2), (2,))
    """
    check_priors(loc_prior=loc_prior, scale_prior=scale_prior)
    y = None if y is None else numbers(_bare(y), "y")
    scale = Scale(y, process.get("mask"), process.get("lengths"))
    names = _check_states(num_states, process.get("states"))
    numeric = jnp if isinstance(scale.sd, jax.core.Tracer) else np

    def emission(num_states: int) -> Emission:
        prior = dist.Normal(scale.mean, 2.0 * scale.sd) if loc_prior is None else loc_prior
        infer = {
            "event_dims": ["state"],
            "event_coords": {"state": names},
            "init": increasing(scale.spread(num_states)),
        }
        loc = numpyro.sample("loc", Ordered(prior, num_states), infer=infer)
        spread = dist.LogNormal(numeric.log(0.5 * scale.sd), 1.0) if scale_prior is None else scale_prior
        start = scale.sd / (2.0 * num_states)
        if shared_scale:
            noise = numpyro.sample("scale", spread, infer={"init": start})
            return lambda state: dist.Normal(loc[state], noise)
        with numpyro.plate("state", num_states):
            each = numpyro.sample("scale", spread, infer={"init": start})
        return lambda state: dist.Normal(loc[state], each[state])

    return model(y, times, emission, num_states=num_states, **process)


def complete(
    paths: ArrayLike | None,
    duration: ArrayLike,
    *,
    num_states: int,
    rates: str | ArrayLike | Callable[[float], Array] = "free",
    rate_prior: dist.Distribution | None = None,
    time_unit: float | None = None,
    covariates: ArrayLike | None = None,
    effect_prior: dist.Distribution | None = None,
    hierarchical: bool = False,
    initial: str | ArrayLike = "observed",
    max_jumps: int | None = None,
    states: Sequence[str] | None = None,
    name: str = "path",
) -> Array | None:
    """Paths watched without interruption: every jump is known, and when it happened.

    Args:
        paths: ``(N, J, 2)`` entry times and states, as :func:`stack_paths` and
            :class:`~sojourn.distributions.MarkovJumpPath` have them, or ``None`` to simulate.
        duration: ``(N,)`` how long each path was watched.
        time_unit: Default: the mean sojourn in a state.
        covariates: ``(N, P)``.
        initial: ``"observed"``: the likelihood given the first states (with ``paths=None`` they are uniform);
            otherwise as in :func:`model`.
        max_jumps: room for jumps in replicated paths, at least as many as in the data. Default: ten more. A
            replicate that needs more is NaN.
        num_states, rates, rate_prior, effect_prior, hierarchical, states, name: as in :func:`model`.

    Example:
        >>> import jax, numpy as np
        >>> from numpyro.infer import Predictive
        >>> paths = stack_paths([[0.0, 1.0], [0.0]], [[0, 1], [0]], [3.0, 2.0])
        >>> draws = Predictive(complete, num_samples=2)(
        ...     jax.random.key(0), None, np.array([3.0, 2.0]), num_states=2, max_jumps=200)
        >>> draws["path"].shape
        (2, 2, 201, 2)
    """
    names = _check_states(num_states, states)
    duration = np.asarray(numbers(_bare(duration), "duration"), float)
    if duration.ndim != 1 or not np.isfinite(duration).all() or (duration <= 0).any():
        raise ValueError("`duration` must hold one positive, finite time for each path, (N,).")
    count = len(duration)
    observed = None
    unit = float(np.median(duration)) if time_unit is None else _scalar(time_unit, "time_unit")
    if max_jumps is not None:
        max_jumps = whole_number(max_jumps, "max_jumps", 0)
    start_rates = None
    if paths is not None:
        observed = np.asarray(numbers(_bare(paths), "paths"), float)
        if observed.ndim != 3 or observed.shape[::2] != (count, 2):
            raise ValueError(f"`paths` has shape {observed.shape}; {count} durations need ({count}, J, 2).")
        found = observed[..., 1]
        if ((found < 0) | (found >= num_states) | (found != np.round(found))).any():
            raise ValueError(f"States are integers from 0 to {num_states - 1}; `paths` holds others.")
        jumps = int((np.diff(found, axis=1) != 0).sum(1).max(initial=0))
        if time_unit is None:
            unit = float(duration.sum() / (count + (np.diff(found, axis=1) != 0).sum()))
        max_jumps = max(jumps + 10, observed.shape[1] - 1) if max_jumps is None else max_jumps
        extra = max_jumps + 1 - observed.shape[1]
        if extra < 0:
            raise ValueError(
                f"`max_jumps` is {max_jumps}, and the paths have room for {observed.shape[1] - 1}."
            )
        rest = np.stack(
            [np.broadcast_to(duration[:, None], (count, extra)), np.repeat(found[:, -1:], extra, 1)], -1
        )
        observed = np.concatenate([observed, rest], 1)
        start_rates = _exact_rates(observed, duration, num_states, unit)
    if max_jumps is None:
        raise ValueError("To simulate, `max_jumps` must say how many jumps a path has room for.")
    process = sample_rates(
        num_states,
        rates,
        rate_prior,
        unit,
        names,
        start=start_rates,
        covariates=covariates,
        effect_prior=effect_prior,
        hierarchical=hierarchical,
        num_series=count,
    )
    if isinstance(initial, str) and initial == "observed":
        first = (
            np.full(num_states, 1.0 / num_states)
            if observed is None
            else np.eye(num_states)[found[:, 0].astype(int)]
        )
    else:
        first = first_state(initial, num_states, process, count, names)
    if process.group is not None and process.group.ndim != 1:
        raise ValueError("`covariates` of complete paths do not vary in time: (N, P).")
    matrix = process.matrix if process.group is None else process.matrix[process.group]
    law = MarkovJumpPath(matrix, first, duration, max_jumps=max_jumps)
    coords = {"entry": ["time", "state"], **_state_coords(names)}
    infer = {"event_dims": ["visit", "entry"], "event_coords": coords}
    with numpyro.plate("series", count, dim=-1):
        return numpyro.sample(name, law, obs=None if observed is None else jnp.asarray(observed), infer=infer)


def _exact_rates(paths: np.ndarray, duration: np.ndarray, num_states: int, unit: float) -> np.ndarray:
    """``(K, K)`` jumps over time in the state, a start for chains."""
    time, state = paths[..., 0], paths[..., 1].astype(int)
    held = np.diff(time, axis=1, append=duration[:, None])
    dwell = np.bincount(state.ravel(), held.ravel(), num_states)
    count = np.zeros((num_states, num_states))
    np.add.at(count, (state[:, :-1].ravel(), state[:, 1:].ravel()), 1.0)
    return (count + 0.3) / (dwell + 0.3 * unit)[:, None]
