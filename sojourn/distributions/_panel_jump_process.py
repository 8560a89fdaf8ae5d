"""Marginal laws of a Markov jump process looked at now and then, with or without noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import must_be, numbers
from sojourn.distributions._hidden_markov import HiddenMarkov, _concrete, _draw
from sojourn.distributions._missing import is_missing, log_prob_observed, series_support
from sojourn.distributions._panel_times import (
    OBSTYPES,
    default_max_rate,
    moves,
    read_times,
    schedule,
)
from sojourn.ops import jump_path, panel_filter
from sojourn.ops.hidden_markov import _log
from sojourn.ops.rate_matrix import check_rate_matrix, exit_rates, off_diagonal
from sojourn.ops.transition_probability import METHODS, Method, within_capacity

__all__ = ["HiddenJumpProcess", "PanelJumpProcess", "plain"]

_ROW_TOLERANCE = 1e-4


class _JumpProcess(dist.Distribution):
    """What both laws share: a rate matrix, a law of the first state, and times."""

    arg_constraints = {
        "rate_matrix": constraints.dependent(is_discrete=False, event_dim=2),
        "initial": constraints.simplex,
    }
    pytree_data_fields: tuple[str, ...] = (
        "rate_matrix",
        "initial",
        "_mask",
        "_lengths",
        "_schedule",
        "_snapshots",
        "_times",
    )
    pytree_aux_fields: tuple[str, ...] = ("num_steps", "series_shape", "method", "vjp")

    def _read(
        self, rate_matrix, initial, times, lengths, mask, obstype, group, max_rate, method, vjp
    ) -> None:
        self.rate_matrix = jnp.asarray(numbers(rate_matrix, "rate_matrix"))
        self.initial = jnp.asarray(numbers(initial, "initial"))
        mask = None if mask is None else numbers(mask, "mask")
        if max_rate is not None:
            numbers(max_rate, "max_rate")
        if self.rate_matrix.ndim not in (2, 3) or self.rate_matrix.shape[-1] != self.rate_matrix.shape[-2]:
            raise ValueError(
                f"`rate_matrix` has shape {self.rate_matrix.shape}; it must be (K, K), or (G, K, K) with `group`."
            )
        if self.initial.shape[-1:] != self.rate_matrix.shape[-1:]:
            raise ValueError(
                f"`initial` has shape {self.initial.shape}; {self.num_states} states need (..., {self.num_states})."
            )
        if method not in METHODS:
            raise ValueError(f"`method` is one of {', '.join(map(repr, METHODS))}, not {method!r}.")
        shape = np.shape(times)
        steps, within = read_times(times, lengths)
        self.series_shape = tuple(shape[:-1])
        self.num_steps = int(shape[-1])
        self.method, self.vjp = method, vjp
        self._times = np.asarray(times, float).reshape(-1, self.num_steps)
        self._mask = plain(mask, bool)
        if self._mask is not None and self._mask.shape != shape:
            raise ValueError(f"`mask` has shape {self._mask.shape}; the times have {shape}.")
        self._lengths = plain(lengths, int)
        groups = self.rate_matrix.shape[0] if self.rate_matrix.ndim == 3 else 1
        per_step = {
            "obstype": _arrivals(obstype, shape, "obstype"),
            "group": _departures(group, shape, groups),
        }
        kinds = per_step["obstype"]
        if kinds is not None and not np.isin(kinds[within], list(OBSTYPES)).all():
            raise ValueError(
                "`obstype` holds 1 (snapshot), 2 (exact transition time) or 3 (exact time of entry)."
            )
        if max_rate is None:
            max_rate = default_max_rate(steps, within)
        rest: dict[str, Any] = {"group": per_step["group"], "num_groups": groups}
        self._schedule = schedule(steps, within, max_rate, obstype=kinds, **rest)
        # A replicate holds the states at the given times, however they came to be observed.
        ordinary = kinds is None or (kinds[within] == 1).all()
        self._snapshots = self._schedule if ordinary else schedule(steps, within, max_rate, **rest)

    @property
    def num_states(self) -> int:
        """Number of states ``K``."""
        return self.rate_matrix.shape[-1]

    @property
    def max_rate(self) -> float:
        """Exit rates beyond this one have probability zero."""
        return self._schedule.plan.max_rate

    @property
    def observed(self) -> Any:
        """``(..., L)``: what ``mask`` and ``lengths`` declare observed; ``None`` for everything."""
        if self._lengths is None:
            return self._mask
        inside = np.arange(self.num_steps) < self._lengths[..., None]
        return inside if self._mask is None else self._mask & inside

    def validate_args(self, strict: bool = True) -> None:
        """Check the values of the arguments; those inside a compiled function are skipped, or refused."""
        if strict and (_concrete(self.rate_matrix) is None or _concrete(self.initial) is None):
            raise RuntimeError("Cannot validate arguments inside jitted code.")
        check_rate_matrix(self.rate_matrix)
        initial = _concrete(self.initial)
        if initial is not None and (
            not (initial >= 0).all() or (np.abs(initial.sum(-1) - 1) > _ROW_TOLERANCE).any()
        ):
            raise ValueError("`initial` must hold probabilities that sum to one.")
        rates = _concrete(self.rate_matrix)
        if rates is not None and self.method == "uniformization":
            exits = np.asarray(exit_rates(rates))
            if exits.max() > self.max_rate:
                state = int(np.unravel_index(exits.argmax(), exits.shape)[-1])
                raise ValueError(
                    f"State {state} is left at rate {exits.max():.4g}, beyond the capacity `max_rate` = "
                    f"{self.max_rate:.4g}: raise `max_rate`."
                )

    def _stock(self, snapshots: bool = False) -> Array:
        return moves(self.rate_matrix, self._snapshots if snapshots else self._schedule, self.method)

    def step_matrices(self) -> Array:
        """``(..., L - 1, K, K)``: the matrix that carries each observation to the next."""
        steps = self._stock()[self._schedule.index]
        return steps if self.series_shape else steps[0]

    def _within_capacity(self) -> Array:
        if self.method != "uniformization":
            return jnp.ones((), bool)
        return within_capacity(self.rate_matrix, self._schedule.plan).all()

    def _chain(self, emission: Any, snapshots: bool = False) -> HiddenMarkov:
        """The same law as a hidden Markov chain with one matrix for each step."""
        index = (self._snapshots if snapshots else self._schedule).index
        steps = self._stock(snapshots)[index]
        steps = steps if self.series_shape else steps[0]
        rest = {"num_steps": self.num_steps, "mask": self._mask, "lengths": self._lengths, "vjp": self.vjp}
        return HiddenMarkov(self.initial, steps, emission, validate_args=False, **rest)

    def _filtered(self, log_emission: Array) -> Array:
        """Log-likelihood ``(...)`` of each series, for log-emissions ``(..., L, K)``."""
        lead = log_emission.shape[: log_emission.ndim - 2 - len(self.series_shape)]
        initial = jnp.broadcast_to(self.initial, (*self.series_shape, self.num_states)).reshape(
            -1, self.num_states
        )
        stock = self._stock()

        def run(one):
            return panel_filter.log_likelihood(initial, stock, self._schedule.index, one, vjp=self.vjp)

        flat = log_emission.reshape(-1, len(initial), *log_emission.shape[-2:])
        value = run(flat[0])[None] if len(flat) == 1 else jax.vmap(run)(flat)
        value = jnp.where(self._within_capacity(), value, -jnp.inf)
        return value.reshape(*lead, *self.series_shape)

    def _predicted(self, chain: HiddenMarkov, value: ArrayLike) -> Array:
        """Law of the state at each time given what was seen before, ``(..., L, K)``."""
        if self._snapshots is self._schedule:
            return chain.filter(value).predicted
        filtered = chain.filter(value).filtered
        ahead = self._stock(snapshots=True)[self._snapshots.index]
        ahead = ahead if self.series_shape else ahead[0]
        moved = jnp.einsum("...li,...lij->...lj", filtered[..., :-1, :], ahead)
        first = jnp.broadcast_to(self.initial, filtered[..., 0, :].shape)[..., None, :]
        return jnp.concatenate([first, moved], -2)

    def _fill_in(self, key: Array, states: Array, num_events: int) -> Array:
        """A path through ``states`` ``(..., L)`` at the times of observation, ``(..., J, 2)`` times and states."""
        schedule = self._snapshots
        states = states.reshape(-1, self.num_steps)
        before, after = states[:, :-1].reshape(-1), states[:, 1:].reshape(-1)
        inside = self._inside().reshape(-1)
        kinds = self._kinds().reshape(-1)
        rates = jnp.broadcast_to(self.rate_matrix, (schedule.num_groups, self.num_states, self.num_states))
        group = schedule.index.reshape(-1) // schedule.plan.intervals.shape[-1]
        interval = np.where(inside & (kinds != 2), np.diff(self._times, axis=1).reshape(-1), 0.0)
        key_entry, key_bridge = jax.random.split(key)
        if (kinds == 3).any():  # an entry at an exact time from a state that is drawn
            arrive = self._stock(snapshots=True)[schedule.index.reshape(-1), before]
            arrive = arrive * off_diagonal(rates)[group, :, after]
            origin = _draw(arrive, jax.random.uniform(key_entry, before.shape))
            after = jnp.where(kinds == 3, origin, after)
        end = jnp.where(interval > 0, after, before)
        each = rates[group] if schedule.num_groups > 1 else rates[0]
        time, state = jump_path.bridge(key_bridge, each, before, end, interval, num_events=num_events)
        steps = self.num_steps - 1
        time = time.reshape(-1, steps, num_events + 1) + self._times[:, :-1, None]
        state = state.reshape(-1, steps * (num_events + 1))
        last = self._times[:, -1:]
        if self._lengths is not None:  # what follows the end of a series repeats it
            stop = np.take_along_axis(self._times, self._lengths.reshape(-1, 1) - 1, 1)
            final = jnp.take_along_axis(states, self._lengths.reshape(-1, 1) - 1, 1)
            beyond = jnp.repeat(~self._inside(), num_events + 1, axis=1)
            time = jnp.where(beyond, stop, time.reshape(len(state), -1))
            state = jnp.where(beyond, final, state)
            last, states = stop, final
        time = jnp.concatenate([time.reshape(len(state), -1), last], 1)
        state = jnp.concatenate([state, states[:, -1:]], 1)
        path = jnp.stack([time, state.astype(time.dtype)], -1)
        return path.reshape(*self.series_shape, *path.shape[1:])

    def _inside(self) -> np.ndarray:
        """``(N, L - 1)``: intervals that belong to a series."""
        steps = np.arange(1, self.num_steps)
        lengths = np.full(1, self.num_steps) if self._lengths is None else self._lengths.reshape(-1)
        return np.broadcast_to(steps < lengths[:, None], (len(self._times), self.num_steps - 1))

    def _kinds(self) -> np.ndarray:
        """``(N, L - 1)`` obstypes of the ends of the intervals."""
        stock = self._schedule.plan.intervals.size
        index = np.asarray(self._schedule.index)
        return np.where(index < stock, 1, np.where(index < stock + len(self._schedule.entry), 3, 2))

    def max_events(self) -> Array:
        """Mean number of events of the uniformized process in the longest interval."""
        longest = float(np.asarray(self._snapshots.plan.intervals).max())
        return exit_rates(self.rate_matrix).max() * longest

    def expected_statistics(self, value: ArrayLike) -> tuple[Array, Array]:
        """Expected time in each state and number of jumps between states, given the observations.

        One gradient gives both: :math:`E[T_i] = \\partial \\ell / \\partial q_{ii}` and
        :math:`E[N_{ij}] = q_{ij} \\partial \\ell / \\partial q_{ij}`, the entries of the rate matrix, diagonal included,
        taken one by one. The expectation step of an EM algorithm, and the score, follow.

        Returns:
            ``(G, K)`` times and ``(G, K, K)`` counts, summed over series (without ``G`` for a single rate matrix).

        Example:
            >>> import jax.numpy as jnp
            >>> law = PanelJumpProcess(
            ...     jnp.array([[-1.0, 1.0], [2.0, -2.0]]), jnp.array([1.0, 0.0]), times=[0.0, 0.5, 2.0])
            >>> dwell, jumps = law.expected_statistics(jnp.array([0, 1, 0]))
            >>> dwell.sum().round(4).item(), abs(jumps[0, 1] - jumps[1, 0]).round(4).item()
            (2.0, 0.0)
        """

        def total(rate_matrix):
            return self._with_rates(rate_matrix).log_prob(value).sum()

        gradient = jax.grad(total)(self.rate_matrix)
        dwell = jnp.diagonal(gradient, axis1=-2, axis2=-1)
        return dwell, self.rate_matrix * gradient * (1.0 - jnp.eye(self.num_states))

    def _with_rates(self, rate_matrix: Array) -> Any:
        leaves, aux = self.tree_flatten()
        other = type(self).tree_unflatten(aux, leaves)
        other.rate_matrix = rate_matrix
        return other


def plain(x: Any, dtype: Any = None) -> Any:
    """A NumPy array, which stays concrete while a program is traced; a traced array as it is."""
    return x if x is None or isinstance(x, jax.core.Tracer) else np.asarray(x, dtype)


def _arrivals(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray | None:
    """``(N, L - 1)`` from one entry for each observation: the first has no interval before it."""
    if values is None:
        return None
    values = np.asarray(values)
    if values.shape != shape:
        raise ValueError(f"`{name}` has shape {values.shape}; the times have {shape}.")
    return np.atleast_2d(values)[:, 1:]


def _departures(group: Any, shape: tuple[int, ...], num_groups: int) -> np.ndarray | None:
    """``(N, L - 1)`` groups of the intervals, from ``(N,)`` or ``(N, L - 1)``."""
    if group is None:
        if num_groups > 1:
            raise ValueError(
                f"`rate_matrix` holds {num_groups} matrices: `group` must say which holds where."
            )
        return None
    group = np.asarray(group)
    rows, steps = (int(np.prod(shape[:-1], dtype=int)), shape[-1] - 1)
    if group.shape == shape[:-1]:
        group = np.broadcast_to(group.reshape(rows, 1), (rows, steps))
    elif group.shape == (*shape[:-1], steps):
        group = group.reshape(rows, steps)
    else:
        raise ValueError(
            f"`group` has shape {group.shape}; the series need {shape[:-1]}, or {(*shape[:-1], steps)} by interval."
        )
    if group.size and (group.min() < 0 or group.max() >= num_groups):
        raise ValueError(f"`group` must hold integers from 0 to {num_groups - 1}.")
    return group


class HiddenJumpProcess(_JumpProcess):
    r"""Noisy observations of a Markov jump process at given times, with its path summed out.

    .. math::
        x_{t_1} \sim \pi, \quad P(x_{t_{l+1}} = j \mid x_{t_l} = i) = (e^{Q (t_{l+1} - t_l)})_{ij},
        \quad y_l \mid x_{t_l} \sim f_{x_{t_l}}

    Args:
        rate_matrix: ``(K, K)``, rows summing to zero; or ``(G, K, K)`` with ``group``.
        initial: ``(K,)`` or ``(N, K)`` law of the state at the first time.
        emission: a NumPyro distribution with one batch entry a state, batch shape ``(K,)`` or ``(..., L, K)``; or an
            array ``(..., L, K)`` of log-densities of the data at hand (then the value is ignored, and nothing can be
            sampled). Misclassified states are ``Categorical(probs=confusion)`` with a ``(K, M)`` matrix.
        times: ``(L,)`` or ``(N, L)``, increasing along each series; not traced.
        lengths: ``(N,)`` observations that belong to each series; what follows is padding.
        mask: booleans of the shape of ``times``, true where observed.
        obstype: of the shape of ``times``: how each state came to be observed. 1, a snapshot (default); 2, the state
            was entered at exactly this time from the one before, which had been held all along (or is still held);
            3, it was entered at exactly this time from an unknown state (a death). That of the first is ignored.
        group: ``(N,)`` or ``(N, L - 1)`` integers: which rate matrix holds for each series, or in each interval.
        max_rate: capacity: the log-probability of faster exits is minus infinity. By default ten jumps in the
            median interval, beyond which its ends say nothing of the rates.
        method: how the exponentials are taken, see :mod:`sojourn.ops.transition_probability`.
        vjp: ``False`` for forward-mode differentiation.
        validate_args: as in NumPyro.

    Shapes: batch shape ``()`` or ``(N,)``, event shape ``(L,) + emission.event_shape``. Missing observations are NaN,
    or false in ``mask``. With obstypes 2 and 3 the density is one in time, in the inverse of its unit.

    Raises:
        ValueError: times that do not increase, one observation a series, shapes that do not agree, rows of the rate
            matrix not summing to zero, rates beyond the capacity.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> channel = HiddenJumpProcess(
        ...     rate_matrix=jnp.array([[-1.0, 1.0], [2.0, -2.0]]),
        ...     initial=jnp.array([2 / 3, 1 / 3]),
        ...     emission=dist.Normal(jnp.array([0.0, 1.0]), 0.3),
        ...     times=[0.0, 0.5, 1.5],
        ... )
        >>> channel.event_shape, f"{channel.log_prob(jnp.array([0.1, 0.2, 1.1])):.4f}"
        ((3,), '-1.3118')
    """

    pytree_data_fields = (*_JumpProcess.pytree_data_fields, "emission")

    def __init__(
        self,
        rate_matrix: ArrayLike,
        initial: ArrayLike,
        emission: dist.Distribution | ArrayLike,
        times: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        obstype: ArrayLike | None = None,
        group: ArrayLike | None = None,
        max_rate: float | None = None,
        method: Method = "uniformization",
        vjp: bool = True,
        validate_args: bool | None = None,
    ):
        self._read(rate_matrix, initial, times, lengths, mask, obstype, group, max_rate, method, vjp)
        self.emission: Any
        is_law = isinstance(emission, dist.Distribution)
        self.emission = emission if is_law else jnp.asarray(numbers(emission, "emission"))
        batch = self.emission.shape if self._is_raw else self.emission.batch_shape
        if batch[-1:] != (self.num_states,):
            raise ValueError(
                f"`emission` has batch shape {batch}; its last axis must be the {self.num_states} states."
            )
        event = getattr(self.emission, "event_shape", ())
        super().__init__(self.series_shape, (self.num_steps, *event), validate_args=validate_args)

    @property
    def _is_raw(self) -> bool:
        return not isinstance(self.emission, dist.Distribution)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return series_support(None if self._is_raw else self.emission, self.observed)

    def _log_emission(self, value: ArrayLike) -> Array:
        observed = self.observed
        if self._is_raw:
            log_emission = self.emission
            log_emission = (
                log_emission if observed is None else jnp.where(observed[..., None], log_emission, 0.0)
            )
            lead: tuple[int, ...] = self.series_shape
        else:
            value = jnp.asarray(value)
            event = len(self.emission.event_shape)
            if value.shape[value.ndim - event - 1 :] != self.event_shape:
                raise ValueError(
                    f"The series has shape {value.shape}; its last axes must be {self.event_shape}."
                )
            log_emission = log_prob_observed(self.emission, value, observed, lead_axis=True)
            lead = jnp.broadcast_shapes(value.shape[: value.ndim - event - 1], self.series_shape)
        return jnp.broadcast_to(log_emission, (*lead, self.num_steps, self.num_states))

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        return self._filtered(self._log_emission(value))

    def _as_chain(self) -> HiddenMarkov:
        return self._chain(self.emission)

    def predictive_log_prob(self, value: ArrayLike) -> Array:
        """``log p(y_l | y_<l)``, shape ``(..., L)``: they sum to :meth:`log_prob`."""
        return self._as_chain().predictive_log_prob(value)

    def smooth(self, value: ArrayLike) -> Any:
        """Laws of the states at the times of observation given the whole series, see :class:`HiddenMarkov`."""
        return self._as_chain().smooth(value)

    def filter(self, value: ArrayLike) -> Any:
        """Laws of the states given the past, see :class:`HiddenMarkov`."""
        return self._as_chain().filter(value)

    def most_likely_path(self, value: ArrayLike) -> Array:
        """Most probable states at the times of observation, ``(..., L)``."""
        return self._as_chain().most_likely_path(value)

    def sample_path(self, key: Array, value: ArrayLike, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of the states at the times of observation given the series, ``sample_shape + (..., L)``."""
        return self._as_chain().sample_path(key, value, sample_shape)

    def sample_jump_path(self, key: Array, value: ArrayLike, *, num_events: int) -> Array:
        """A draw of the whole path given the series, jumps between observations included.

        Args:
            key: random key.
            value: the series.
            num_events: room for events of the uniformized process in one interval, see
                :func:`sojourn.ops.jump_path.bridge`.

        Returns:
            ``(..., J, 2)`` times of entry and states, entries that repeat the state among them.
        """
        key_states, key_between = jax.random.split(key)
        return self._fill_in(key_between, self.sample_path(key_states, value), num_events)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return self._chain(self.emission, snapshots=True).sample(key, sample_shape)

    def sample_one_step_ahead(self, key: Array, value: ArrayLike) -> Array:
        """At every time a draw of ``y_l`` given ``y_<l``, of the shape of the series."""
        chain = self._as_chain()
        key_state, key_emit = jax.random.split(key)
        predicted = self._predicted(chain, value)
        return chain._emit(key_emit, _draw(predicted, jax.random.uniform(key_state, predicted.shape[:-1])))


class PanelJumpProcess(_JumpProcess):
    r"""States of Markov jump processes seen without noise at given times.

    The likelihood is a product of transition probabilities, and equal transitions over equal intervals are counted
    once: its cost does not depend on the number of series (Kalbfleisch and Lawless 1985, *JASA* 80:863). For that the
    whole panel is one event.

    Args:
        rate_matrix, times, lengths, mask, obstype, group, max_rate, method, vjp: as in :class:`HiddenJumpProcess`.
        initial: ``(K,)`` or ``(N, K)`` law of the first states. The usual likelihood given the first states has a row
            of ``initial`` for each series with its first state marked by a one.
        censored: codes of states of which only a set is known, ``{99: [0, 1, 2]}``; codes are integers beyond
            ``K - 1``.

    Shapes: batch shape ``()``, event shape ``(L,)`` or ``(N, L)``. The value holds integers from 0 to ``K - 1`` and
    codes of ``censored``; NaN, or false in ``mask``, is missing.

    Raises:
        ValueError: as :class:`HiddenJumpProcess`; states outside ``0..K - 1`` are outside its support.

    Example:
        >>> import jax.numpy as jnp
        >>> panel = PanelJumpProcess(
        ...     rate_matrix=jnp.array([[-1.0, 1.0], [2.0, -2.0]]),
        ...     initial=jnp.array([2 / 3, 1 / 3]),
        ...     times=[[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]],
        ... )
        >>> f"{panel.log_prob(jnp.array([[0, 0, 1], [1, 1, 1]])):.4f}"
        '-4.6141'
    """

    pytree_aux_fields = (*_JumpProcess.pytree_aux_fields, "censored")

    def __init__(
        self,
        rate_matrix: ArrayLike,
        initial: ArrayLike,
        times: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        obstype: ArrayLike | None = None,
        group: ArrayLike | None = None,
        censored: Mapping[int, Sequence[int]] | None = None,
        max_rate: float | None = None,
        method: Method = "uniformization",
        vjp: bool = True,
        validate_args: bool | None = None,
    ):
        self._read(rate_matrix, initial, times, lengths, mask, obstype, group, max_rate, method, vjp)
        must_be(
            censored is None or isinstance(censored, Mapping),
            "censored",
            "a mapping of codes to states, such as {99: [0, 1]}",
            censored,
        )
        self.censored = tuple(sorted((int(c), tuple(map(int, s))) for c, s in (censored or {}).items()))
        for code, allowed in self.censored:
            if code < self.num_states:
                raise ValueError(
                    f"The code {code} in `censored` is a state; codes begin at {self.num_states}."
                )
            if not allowed or min(allowed) < 0 or max(allowed) >= self.num_states:
                raise ValueError(
                    f"`censored` code {code} needs some of the states 0 to {self.num_states - 1}."
                )
        super().__init__((), (*self.series_shape, self.num_steps), validate_args=validate_args)

    @property
    def series_ndim(self) -> int:
        """Number of axes of the event over which :meth:`predictive_log_prob` has its terms."""
        return len(self.event_shape)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return _States(
            self.num_states, tuple(code for code, _ in self.censored), self.observed, self.series_ndim
        )

    def _allowed(self, value: ArrayLike) -> Array | np.ndarray:
        """``(..., L, K)`` booleans: the states that agree with what was seen; NumPy's where all is concrete."""
        given = plain(value)
        observed = self.observed
        concrete = not isinstance(given, jax.core.Tracer) and not isinstance(observed, jax.core.Tracer)
        numeric: Any = np if concrete else jnp
        if given.shape[given.ndim - len(self.event_shape) :] != self.event_shape:
            raise ValueError(f"The panel has shape {given.shape}; its last axes must be {self.event_shape}.")
        missing = (
            numeric.isnan(given) if numeric.issubdtype(given.dtype, numeric.floating) else given != given
        )
        missing = missing if observed is None else missing | ~observed
        allowed = (given[..., None] == np.arange(self.num_states)) | missing[..., None]
        for code, states in self.censored:
            allowed = allowed | ((given[..., None] == code) & np.isin(np.arange(self.num_states), states))
        return allowed

    def _indicator(self, value: ArrayLike) -> Array:
        return jnp.where(self._allowed(value), 0.0, -jnp.inf)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        allowed = self._allowed(value)
        if isinstance(allowed, np.ndarray) and allowed.ndim == len(self.event_shape) + 1:
            return self._by_counts(allowed.reshape(-1, self.num_steps, self.num_states))
        each = self._filtered(jnp.where(allowed, 0.0, -jnp.inf))
        return each.sum(tuple(range(-len(self.series_shape), 0)))

    def _by_counts(self, allowed: np.ndarray) -> Array:
        """Log-likelihood with equal transitions counted; series with gaps or censored states go through the filter."""
        known, blank = allowed.sum(-1) == 1, allowed.all(-1)
        states = allowed.argmax(-1)
        stock = self._stock()
        schedule_index: Any = self._schedule.index
        index = _concrete(schedule_index)
        if index is None:
            counted = np.zeros(len(states), bool)
            index = np.zeros_like(states[:, 1:])
        else:
            # Nothing follows from snapshots after the last known state that show nothing.
            last = np.where(known, np.arange(self.num_steps), -1).max(1)
            after = np.arange(self.num_steps) > last[:, None]
            after[:, 1:] &= index < len(stock) - len(self._schedule.entry) - len(self._schedule.exact)
            counted = (known | (blank & after)).all(1) & (last >= 0)
        initial = jnp.broadcast_to(self.initial, (len(states), self.num_states))
        total = jnp.zeros((), stock.dtype)
        if counted.any():
            if self.initial.ndim == 1:
                first, how_often = np.unique(states[counted, 0], return_counts=True)
                total = total + how_often @ _log(self.initial[first])
            else:
                total = total + _log(initial[counted, states[counted, 0]]).sum()
            made = known[:, 1:] & counted[:, None]
            transitions = np.stack([index[made], states[:, :-1][made], states[:, 1:][made]])
            distinct, how_often = np.unique(transitions, axis=1, return_counts=True)
            total = total + how_often @ _log(stock[tuple(distinct)])
        if not counted.all():
            rest = ~counted
            indicator = np.where(allowed[rest], 0.0, -np.inf)
            each = panel_filter.log_likelihood(
                initial[rest], stock, self._schedule.index[rest], indicator, vjp=self.vjp
            )
            total = total + each.sum()
        return jnp.where(self._within_capacity(), total, -jnp.inf)

    def _as_chain(self, value: ArrayLike) -> HiddenMarkov:
        return self._chain(self._indicator(value))

    def predictive_log_prob(self, value: ArrayLike) -> Array:
        """``log p(x_l | x_<l)``, of the shape of the panel: they sum to :meth:`log_prob`."""
        return self._as_chain(value).predictive_log_prob(jnp.zeros(self.event_shape))

    def sample_jump_path(self, key: Array, value: ArrayLike, *, num_events: int) -> Array:
        """A draw of the whole path given the panel, see :meth:`HiddenJumpProcess.sample_jump_path`."""
        key_states, key_between = jax.random.split(key)
        states = self._as_chain(value).sample_path(key_states, jnp.zeros(self.event_shape))
        return self._fill_in(key_between, states, num_events)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        blank = jnp.zeros((*self.series_shape, self.num_steps, self.num_states))
        return self._chain(blank, snapshots=True).sample_states(key, sample_shape)

    def sample_one_step_ahead(self, key: Array, value: ArrayLike) -> Array:
        """At every time a draw of the state given those before, of the shape of the panel."""
        predicted = self._predicted(self._as_chain(value), jnp.zeros(self.event_shape))
        return _draw(predicted, jax.random.uniform(key, predicted.shape[:-1]))


class _States(constraints.Constraint):
    """States, codes, or missing."""

    is_discrete = True

    def __init__(self, num_states: int, codes: tuple[int, ...], observed: Array | None, event_dim: int):
        self.num_states, self.codes, self.observed, self.event_dim = num_states, codes, observed, event_dim

    def __call__(self, x: ArrayLike) -> Array:
        x = jnp.asarray(x)
        fits = (x >= 0) & (x < self.num_states) & (x == jnp.floor(x))
        for code in self.codes:
            fits = fits | (x == code)
        missing = is_missing(x)
        fits = fits if missing is None else fits | missing
        fits = fits if self.observed is None else fits | ~self.observed
        return fits.all(tuple(range(-self.event_dim, 0)))

    def feasible_like(self, prototype: Array) -> Array:
        return jnp.zeros_like(prototype)

    def eq(self, other: object, static: bool = False) -> bool:
        return (
            isinstance(other, _States)
            and (self.num_states, self.codes, self.event_dim)
            == (other.num_states, other.codes, other.event_dim)
            and self.observed is other.observed
        )

    def tree_flatten(self):
        aux = {"num_states": self.num_states, "codes": self.codes, "event_dim": self.event_dim}
        return (self.observed,), (("observed",), aux)
