r"""Maximum caliber: a Markov jump process tilted by what is known of its long-run averages.

A path of duration ``T`` has time averages :math:`a_k = A_k / T` of

* *dwell observables* ``f_k(i)``, collected at a rate while in state ``i``: an occupation, a current, a charge;
* *jump observables* ``g_k(i, j)``, collected at a jump from ``i`` to ``j``: a count, a displacement, an entropy flow.

Of all processes with given averages, the one of least relative entropy to a reference ``W`` (of maximum caliber,
Jaynes 1980, *Annu. Rev. Phys. Chem.* 31:579) weighs paths by :math:`e^{\lambda \cdot A}`, with one Lagrange multiplier
for each average, here the ``tilt``. All of it follows from one matrix,

.. math::
    L_{ij} = W_{ij} \, e^{\sum_k \lambda_k g_k(i, j)} , \qquad L_{ii} = W_{ii} + \sum_k \lambda_k f_k(i) ,

its dominant eigenvalue :math:`\psi(\lambda)`, the process free energy, and the vectors that go with it: averages are
the gradient of the free energy, fluctuations and responses its Hessian, arbitrarily far from equilibrium
(Rogers, Beck and Rempe 2011, *J. Stat. Phys.* 145:385), and the rates of the process that has these averages are the
Doob transform (Chetrite and Touchette 2015, *Ann. Henri Poincare* 16:2005).

**Shapes and units.** ``tilt`` is ``(..., A)``; ``rate_matrix``, the reference, ``(..., K, K)`` with rows that sum to
zero, row = from, irreducible; ``dwell`` ``(..., A, K)``; ``jump`` ``(..., A, K, K)``, its diagonal unused. Leading axes
are batches, and either kind of observable may be left out (an observable can have a part of each kind). The tilt
of a dwell observable is in units of ``1 / (f x time)``, that of a jump observable of ``1 / g``.

Everything is differentiable. Bad input is refused with a ``ValueError`` unless it is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from sojourn._arguments import finite_numbers, numbers, positive_numbers
from sojourn.models._given import check_priors
from sojourn.ops.maximum_caliber import (
    Driven,
    averages,
    covariances,
    cycle_affinity,
    doob_transform,
    entropy_flow,
    finite_time_free_energy,
    free_energy,
    green_kubo,
    is_concrete,
    maximum_entropy,
    process_arrays,
    rate_function,
    solve_tilt,
    summary_of,
    tilted_generator,
)
from sojourn.ops.rate_matrix import entropy_production_rate

__all__ = [
    "Driven",
    "averages",
    "complete_record",
    "covariances",
    "cycle_affinity",
    "doob_transform",
    "entropy_flow",
    "finite_time_free_energy",
    "free_energy",
    "green_kubo",
    "long_run_averages",
    "maximum_entropy",
    "rate_function",
    "solve_tilt",
    "tilted_generator",
    "voltage_gated_channel",
    "voltage_gated_channel_averages",
]


Process = tuple[Array, Array, Array]  # rate matrix, dwell and jump observables


def complete_record(
    jump_counts: ArrayLike | None = None,
    dwell_times: ArrayLike | None = None,
    *,
    rate_matrix: ArrayLike,
    dwell: ArrayLike | None = None,
    jump: ArrayLike | None = None,
    tilt_prior: dist.Distribution | None = None,
    observables: Sequence[str] | None = None,
) -> Array:
    r"""A tilted jump process whose path was observed without gaps.

    A complete record has the likelihood :math:`\prod_{ij} q_{ij}^{N_{ij}} e^{-q_{ij} T_i}`, with ``N_ij`` jumps and time
    ``T_i`` spent in ``i``. That of ``N_ij ~ Poisson(q_ij T_i)`` given the times is the same times
    :math:`\prod T_i^{N_{ij}} / N_{ij}!`, which holds no parameter. So the counts are Poisson sites: the posterior is
    that of the record, and they have pointwise log-likelihoods. What is simulated, here and in the posterior
    predictive group, is a record in which each state is watched for its given time. A path of fixed length is
    another thing: its times vary, and its jumps into and out of a state differ by one at most.

    Args:
        jump_counts: ``(K, K)``, from row to column, diagonal unused; of several records, their sum. ``None`` simulates.
        dwell_times: ``(K,)`` time spent in each state.
        rate_matrix, dwell, jump: reference and observables (see the module's text), unbatched.
        tilt_prior: of one tilt, or of all with event shape ``(A,)``. Default: Normal(0, 1). Mind the units.
        observables: their names.

    Sites: ``tilt`` (observable), ``jump_counts`` (move, the moves to which the reference gives a rate).
    Deterministic: ``driven_rate_matrix``, ``stationary``, ``free_energy``, ``average``, ``covariance``,
    ``entropy_production`` (infinite where a move has no way back).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro.infer import Predictive
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> Predictive(complete_record, num_samples=3)(
        ...     jax.random.key(0), None, jnp.array([9.0, 9.0]), rate_matrix=switch, dwell=jnp.array([[0.0, 1.0]])
        ... )["jump_counts"].shape
        (3, 2)
    """
    if dwell_times is None:
        raise ValueError("`dwell_times` are needed: the time spent in each state, also to simulate.")
    tilt, process = _sample_tilt(rate_matrix, dwell, jump, tilt_prior, observables)
    driven, _, _ = _tilted_sites(tilt, process)
    numpyro.deterministic("entropy_production", entropy_production_rate(driven.rate_matrix))
    origin, target, counts, times = _read_record(jump_counts, dwell_times, np.asarray(rate_matrix))
    rate = driven.rate_matrix[origin, target] * times[origin]
    labels = {"move": [f"{i}->{j}" for i, j in zip(origin, target, strict=True)]}
    with numpyro.plate("move", len(origin)):
        return numpyro.sample("jump_counts", dist.Poisson(rate), obs=counts, infer={"event_coords": labels})


def long_run_averages(
    average: ArrayLike | None = None,
    *,
    duration: ArrayLike,
    rate_matrix: ArrayLike,
    dwell: ArrayLike | None = None,
    jump: ArrayLike | None = None,
    tilt_prior: dist.Distribution | None = None,
    observables: Sequence[str] | None = None,
) -> Array:
    r"""A tilted jump process of which only the averages over a long time are known.

    Averages over a time ``T`` are normal about the gradient of the free energy with covariance its Hessian divided
    by ``T``: the central limit of :func:`rate_function`. ``T`` has to exceed the slowest relaxation many times.

    Args:
        average: ``(A,)``, or ``(N, A)`` for ``N`` independent records; ``None`` simulates one.
        duration: over which they were taken: a number, or ``(N,)``.
        rate_matrix, dwell, jump, tilt_prior, observables: as in :func:`complete_record`. No combination of the
            observables may be free of fluctuations (see :func:`solve_tilt`).

    Sites: ``tilt`` (observable), ``average`` (record, observable). Deterministic: ``driven_rate_matrix``,
    ``stationary``, ``free_energy``, ``expected_average``, ``covariance``, ``entropy_production``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from numpyro.infer import Predictive
        >>> switch = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
        >>> Predictive(long_run_averages, num_samples=3)(
        ...     jax.random.key(0), None, duration=100.0, rate_matrix=switch, dwell=jnp.array([[0.0, 1.0]])
        ... )["average"].shape
        (3, 1, 1)
    """
    duration = _check_duration(duration)
    tilt, process = _sample_tilt(rate_matrix, dwell, jump, tilt_prior, observables)
    driven, mean, covariance = _tilted_sites(tilt, process, "expected_average")
    numpyro.deterministic("entropy_production", entropy_production_rate(driven.rate_matrix))
    value = None if average is None else jnp.atleast_2d(jnp.asarray(finite_numbers(average, "average")))
    if value is not None and (value.ndim > 2 or value.shape[-1] != tilt.shape[-1] or not len(value)):
        raise ValueError(
            f"`average` has shape {value.shape}; the last axis counts {tilt.shape[-1]} observables."
        )
    if duration.ndim > 1 or (value is not None and duration.ndim and len(duration) not in (1, len(value))):
        raise ValueError(
            f"`duration` has shape {duration.shape}; it must be one number, or one for each record."
        )
    duration = jnp.broadcast_to(
        duration, np.broadcast_shapes(duration.shape, (1,) if value is None else value.shape[:1])
    )
    with numpyro.plate("record", len(duration)):
        return numpyro.sample(
            "average", _central_limit(mean, covariance, duration), obs=value, infer=_named(observables)
        )


def voltage_gated_channel(
    jump_counts: ArrayLike | None = None,
    dwell_times: ArrayLike | None = None,
    *,
    voltages: ArrayLike,
    charge_fraction: Sequence[float] = (0.0, 0.5, 1.0),
    temperature: float = 293.15,
    gating_charge_prior: dist.Distribution | None = None,
    preference_prior: dist.Distribution | None = None,
    activity_prior: dist.Distribution | None = None,
) -> Array:
    r"""A voltage-gated ion channel C1 - C2 - O, recorded without gaps at several voltages.

    What is known of the channel at voltage ``V`` are three averages: how much of the time it is open, how much of
    its gating charge is displaced, and how often it jumps. The law of greatest entropy with the first two is
    Boltzmann's, with ``e V / kT`` times the charge as tilt,

    .. math:: \pi_i(V) \propto \exp(b_i + z \, c_i \, e V / kT) ,

    and the process of maximum caliber with that law and a mean number of jumps, relative to a chain with equal
    rates, has the rates :math:`\nu \sqrt{\pi_j / \pi_i}`, in which a barrier lies halfway along the charge's way
    (electrical distance 1/2). ``z`` is the gating charge in elementary charges. All voltages share the parameters.

    The likelihood is that of :func:`complete_record`. It takes C1 and C2 for distinguishable, as they are in
    simulations and idealised multi-level records; where only the current is seen, fit averages
    (:func:`voltage_gated_channel_averages`).

    Args:
        jump_counts: ``(V, 3, 3)`` jumps at each voltage, from row to column, or ``None`` to simulate.
        dwell_times: ``(V, 3)`` time spent in each state at each voltage.
        voltages: ``(V,)`` in mV, of the side from which positive gating charge leaves as the channel opens.
        charge_fraction: fraction ``c`` of the gating charge displaced in each state, from 0 to 1.
        temperature: in kelvin.
        gating_charge_prior: of ``z``. Default: Normal(0, 5).
        preference_prior: of ``b`` in C2 and in O, in kT, relative to C1 and at 0 mV. Default: Normal(0, 3).
        activity_prior: of ``nu``, per unit of time. Default: LogNormal(log m, 2), m the mean number of jumps in a
            unit of time (1 without data). Its logarithm is the tilt of jump counting, up to the unit.

    Sites: ``preference`` (excited: C2, O), ``gating_charge``, ``activity``, ``jump_counts`` (voltage, move).
    Deterministic, by voltage: ``driven_rate_matrix``, ``stationary``, and, for the observables open fraction,
    displaced fraction of the charge and jumps in a unit of time, relative to a chain of unit rates, ``tilt``,
    ``free_energy``, ``average``, ``covariance``. There is no entropy production and no affinity: a linear chain
    has no cycle, and is in detailed balance at every voltage.

    Example:
        >>> import jax, numpy as np
        >>> from numpyro.infer import Predictive
        >>> Predictive(voltage_gated_channel, num_samples=2)(
        ...     jax.random.key(0), None, np.full((4, 3), 50.0), voltages=np.array([-60.0, -30.0, 0.0, 30.0])
        ... )["jump_counts"].shape
        (2, 4, 4)
    """
    if dwell_times is None:
        raise ValueError("`dwell_times` are needed: the time spent in each state, also to simulate.")
    voltages = _check_voltages(voltages, dwell_times, "dwell_times")
    origin, target, counts, times = _read_record(jump_counts, dwell_times, _CHANNEL)
    pace = 1.0 if counts is None else (counts.sum() + 0.5) / times.sum()
    priors = (gating_charge_prior, preference_prior, activity_prior)
    rates, _, _ = _sample_channel(voltages, charge_fraction, temperature, *priors, pace)
    law = dist.Poisson(rates[:, origin, target] * times[:, origin]).to_event(1)
    with numpyro.plate("voltage", len(voltages)):
        return numpyro.sample(
            "jump_counts", law, obs=counts, infer=_channel_labels(voltages, move=_CHANNEL_MOVES)
        )


def voltage_gated_channel_averages(
    average: ArrayLike | None = None,
    *,
    duration: ArrayLike,
    voltages: ArrayLike,
    charge_fraction: Sequence[float] = (0.0, 0.5, 1.0),
    temperature: float = 293.15,
    gating_charge_prior: dist.Distribution | None = None,
    preference_prior: dist.Distribution | None = None,
    activity_prior: dist.Distribution | None = None,
) -> Array:
    """The channel of :func:`voltage_gated_channel`, of which only averages over a long time are known.

    Open fraction (the current by that of an open channel), displaced fraction of the gating charge, and jumps in a
    unit of time, at each voltage. Their law is that of :func:`long_run_averages`: fluctuations follow from the
    same free energy as the averages.

    Args:
        average: ``(V, 3)``, or ``None`` to simulate.
        duration: over which each was taken, a number or ``(V,)``.
        voltages, charge_fraction, temperature: as in :func:`voltage_gated_channel`, and so are the priors (``m`` is
            the mean of the third column).

    Sites: as there, with ``average`` (voltage, observable) observed and ``expected_average`` deterministic.

    Example:
        >>> import jax, numpy as np
        >>> from numpyro.infer import Predictive
        >>> Predictive(voltage_gated_channel_averages, num_samples=2)(
        ...     jax.random.key(0), None, duration=500.0, voltages=np.array([-40.0, 0.0])
        ... )["average"].shape
        (2, 2, 3)
    """
    duration = _check_duration(duration)
    voltages = _check_voltages(voltages, average, "average")
    value = None if average is None else jnp.asarray(finite_numbers(average, "average"))
    if duration.shape not in ((), (len(voltages),)):
        raise ValueError(
            f"`duration` has shape {duration.shape}; it must be one number, or ({len(voltages)},)."
        )
    pace = 1.0 if value is None else value[:, 2].mean()
    priors = (gating_charge_prior, preference_prior, activity_prior)
    _, mean, covariance = _sample_channel(
        voltages, charge_fraction, temperature, *priors, pace, average="expected_average"
    )
    law = _central_limit(mean, covariance, duration)
    with numpyro.plate("voltage", len(voltages)):
        return numpyro.sample(
            "average", law, obs=value, infer=_channel_labels(voltages, observable=_CHANNEL_OBSERVABLES)
        )


# ------------------------------------------------------------------------------------- parts of the models


def _sample_tilt(
    rate_matrix: ArrayLike,
    dwell: ArrayLike | None,
    jump: ArrayLike | None,
    prior: dist.Distribution | None,
    observables: Sequence[str] | None,
) -> tuple[Array, Process]:
    check_priors(tilt_prior=prior)
    given = dwell if dwell is not None else jump
    size = (np.shape(given) or (0,))[0] if given is not None else 0
    process = process_arrays(jnp.zeros(size), rate_matrix, dwell, jump)[1:]
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    if not prior.event_shape:
        prior = prior.expand([size]).to_event(1)
    tilt = numpyro.sample("tilt", prior, infer={**_named(observables), "init": np.zeros(size)})
    return tilt, process


def _named(observables: Sequence[str] | None) -> dict[str, Any]:
    coords = {} if observables is None else {d: list(observables) for d in ("observable", "other_observable")}
    return {"event_dims": ["observable"], "event_coords": coords, "dims_of": _dims()}


def _dims(*lead: str, average: str = "average") -> dict[str, list[str]]:
    """Dimensions of what :func:`_tilted_sites` records."""
    own = {
        "driven_rate_matrix": ["state", "next_state"],
        "stationary": ["state"],
        "free_energy": [],
        average: ["observable"],
        "covariance": ["observable", "other_observable"],
        "entropy_production": [],
        "tilt": ["observable"],
    }
    return {name: [*lead, *dims] for name, dims in own.items()}


def _tilted_sites(tilt: Array, process: Process, average: str = "average") -> tuple[Driven, Array, Array]:
    """The driven process, the averages and their covariances, recorded."""
    rates, law, value, mean, covariance = summary_of(tilt, *process)
    numpyro.deterministic("driven_rate_matrix", rates)
    numpyro.deterministic("stationary", law)
    numpyro.deterministic("free_energy", value)
    numpyro.deterministic(average, mean)
    numpyro.deterministic("covariance", covariance)
    return Driven(rates, law), mean, covariance


def _central_limit(mean: Array, covariance: Array, duration: Array) -> dist.Distribution:
    covariance = covariance / duration[..., None, None]
    sd = jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1))
    # Where a state all but vanishes correlations come within rounding of one.
    correlation = covariance / (sd[..., None] * sd[..., None, :])
    correlation = correlation + 8 * jnp.finfo(sd.dtype).eps * jnp.eye(sd.shape[-1])
    factor = sd[..., None] * jnp.linalg.cholesky(correlation)
    return dist.MultivariateNormal(mean, scale_tril=factor)


def _check_duration(duration: ArrayLike) -> Array:
    return jnp.asarray(positive_numbers(duration, "duration"), float)


def _read_record(
    jump_counts: ArrayLike | None, dwell_times: ArrayLike, rate_matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Array | None, Array]:
    """Origin and target of each move of the reference, ``(M,)``; its counts, ``(..., M)``; and the dwell times."""
    states = len(rate_matrix)
    allowed = (rate_matrix > 0) & ~np.eye(states, dtype=bool)
    origin, target = np.nonzero(allowed)
    dwell_times = numbers(dwell_times, "dwell_times")
    jump_counts = None if jump_counts is None else finite_numbers(jump_counts, "jump_counts")
    times = jnp.maximum(jnp.asarray(dwell_times, float), 1e-30)  # a state may not have been visited
    shape = np.shape(dwell_times)
    if not shape or shape[-1] != states:
        raise ValueError(f"`dwell_times` has shape {shape}; the last axis counts {states} states.")
    if is_concrete(dwell_times) and not ((np.asarray(dwell_times) >= 0) & np.isfinite(dwell_times)).all():
        raise ValueError("`dwell_times` must be finite and not negative.")
    if jump_counts is None:
        return origin, target, None, times
    if np.shape(jump_counts) != (*shape, states):
        raise ValueError(
            f"`jump_counts` has shape {np.shape(jump_counts)}; with `dwell_times` of shape {shape} it needs "
            f"{(*shape, states)}."
        )
    if is_concrete(jump_counts, dwell_times):
        counts, spent = np.asarray(jump_counts), np.asarray(dwell_times)
        off = np.where(np.eye(states, dtype=bool), 0, counts)
        if (off < 0).any() or (off != np.round(off)).any():
            raise ValueError("`jump_counts` must be whole numbers that are not negative.")
        for wrong, why in (
            (~allowed, "the reference gives no rate to that move"),
            (
                np.broadcast_to(spent[..., None] == 0, counts.shape),
                "no time was spent in the state before it",
            ),
        ):
            if (off * wrong).any():
                *_, i, j = np.argwhere(off * wrong)[0]
                raise ValueError(f"`jump_counts` has a jump {i} -> {j}, and {why}.")
    return origin, target, jnp.asarray(jump_counts)[..., origin, target].astype(int), times


_CHANNEL_STATES = ("C1", "C2", "O")
_CHANNEL = np.array([[-1.0, 1.0, 0.0], [1.0, -2.0, 1.0], [0.0, 1.0, -1.0]])
_CHANNEL_MOVES = tuple(f"{_CHANNEL_STATES[i]}->{_CHANNEL_STATES[j]}" for i, j in np.argwhere(_CHANNEL > 0))
_CHANNEL_OBSERVABLES = ("open", "charge", "jumps")
_BOLTZMANN = 0.08617333  # mV e / K


def _check_voltages(voltages: ArrayLike, data: ArrayLike | None, name: str) -> np.ndarray:
    voltages = np.asarray(numbers(voltages, "voltages"), float)
    if voltages.ndim != 1 or not len(voltages) or not np.isfinite(voltages).all():
        raise ValueError(f"`voltages` must be a vector of numbers in mV, not of shape {voltages.shape}.")
    if data is not None and np.shape(data) != (len(voltages), 3):
        raise ValueError(
            f"`{name}` has shape {np.shape(data)}; {len(voltages)} voltages need ({len(voltages)}, 3)."
        )
    return voltages


def _channel_labels(voltages: np.ndarray, **labels: Sequence[str]) -> dict[str, Any]:
    coords = {name: list(values) for name, values in labels.items()}
    return {"event_dims": list(labels), "event_coords": {"voltage": voltages, **coords}}


def _sample_channel(
    voltages: np.ndarray,
    charge_fraction: Sequence[float],
    temperature: float,
    gating_charge_prior: dist.Distribution | None,
    preference_prior: dist.Distribution | None,
    activity_prior: dist.Distribution | None,
    pace: Any,
    average: str = "average",
) -> tuple[Array, Array, Array]:
    """Rates ``(V, 3, 3)``, averages ``(V, 3)`` and their covariances ``(V, 3, 3)``."""
    check_priors(
        gating_charge_prior=gating_charge_prior,
        preference_prior=preference_prior,
        activity_prior=activity_prior,
    )
    charge = np.asarray(numbers(charge_fraction, "charge_fraction"), float)
    if charge.shape != (3,) or charge[0] != 0 or charge[2] != 1 or not 0 < charge[1] <= 1:
        raise ValueError(
            f"`charge_fraction` is (0, c, 1) in C1, C2, O, with 0 < c <= 1, not {charge.tolist()}."
        )
    temperature = positive_numbers(temperature, "temperature")
    if gating_charge_prior is None:
        gating_charge_prior = dist.Normal(0.0, 5.0)
    if preference_prior is None:
        preference_prior = dist.Normal(0.0, 3.0)
    if not preference_prior.event_shape:
        preference_prior = preference_prior.expand([2]).to_event(1)
    if activity_prior is None:
        activity_prior = dist.LogNormal(jnp.log(pace), 2.0)
    coords = {
        "excited": list(_CHANNEL_STATES[1:]),
        "state": list(_CHANNEL_STATES),
        "next_state": list(_CHANNEL_STATES),
        "observable": list(_CHANNEL_OBSERVABLES),
        "other_observable": list(_CHANNEL_OBSERVABLES),
        "voltage": voltages,
    }
    labels = {"event_dims": ["excited"], "event_coords": coords, "dims_of": _dims("voltage", average=average)}
    preference = numpyro.sample("preference", preference_prior, infer={**labels, "init": np.zeros(2)})
    gating_charge = numpyro.sample("gating_charge", gating_charge_prior, infer={"init": 0.0})
    activity = numpyro.sample("activity", activity_prior, infer={"init": pace})

    features = np.concatenate([np.eye(3)[1:], charge[None]])
    field = gating_charge * voltages / (_BOLTZMANN * temperature)
    multipliers = jnp.concatenate([jnp.broadcast_to(preference, (len(voltages), 2)), field[:, None]], -1)
    log_law = jnp.log(maximum_entropy(multipliers, features))
    moves = activity * (_CHANNEL > 0) * jnp.exp((log_law[:, None, :] - log_law[:, :, None]) / 2)
    rates = moves - moves.sum(-1)[..., None] * jnp.eye(3)

    # The right vector of the tilted matrix is the square root of the law. So the dwell tilts make up, up to a
    # constant, for how much slower each state is left than in the reference.
    slower = -np.diagonal(_CHANNEL) - moves.sum(-1)
    slower = slower - slower[:, :1]
    tilt_charge = slower[:, 1] / charge[1]
    tilt_jumps = jnp.broadcast_to(jnp.log(activity), tilt_charge.shape)
    tilt = jnp.stack([slower[:, 2] - tilt_charge, tilt_charge, tilt_jumps], -1)
    dwell = np.stack([np.eye(3)[2], charge, np.zeros(3)])
    jump = np.stack([np.zeros((3, 3)), np.zeros((3, 3)), np.ones((3, 3))])
    process = (jnp.asarray(_CHANNEL), jnp.asarray(dwell), jnp.asarray(jump))
    numpyro.deterministic("tilt", tilt)
    _, mean, covariance = _tilted_sites(tilt, process, average)
    return rates, mean, covariance
