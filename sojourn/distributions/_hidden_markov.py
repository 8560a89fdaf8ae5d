"""Marginal law of a series driven by a hidden Markov chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import numbers, whole_number
from sojourn.distributions._missing import log_prob_observed, series_support
from sojourn.ops import hidden_markov as ops
from sojourn.ops.hidden_markov import _draw

__all__ = ["HiddenMarkov"]

_ROW_TOLERANCE = 1e-4  # float32 rows of 50 entries built by a softmax stay within 1e-6


class HiddenMarkov(dist.Distribution):
    r"""Observations of a finite-state Markov chain, with the chain summed out.

    .. math::
        x_1 \sim \pi, \quad x_{t+1} \mid x_t \sim P_{x_t \cdot}, \quad y_t \mid x_t \sim f_{x_t}

    The value is the whole series :math:`y_1, \dots, y_T`; its log-density costs one forward pass and its
    gradient one forward-backward pass (:mod:`sojourn.ops.hidden_markov`).

    Args:
        initial: ``(..., K)`` law of the first state.
        transition: ``(K, K)``, or ``(..., T - 1, K, K)`` with a time axis, which may be 1 (batches of
            time-homogeneous chains are ``(..., 1, K, K)``). Rows sum to one. ``transition[t]`` carries step
            ``t`` to step ``t + 1``.
        emission: a NumPyro distribution with one batch entry a state: batch shape ``(K,)``, or
            ``(..., T, K)`` with a time axis, which may be 1. Or an array ``(..., T, K)`` of log-densities
            ``log f_k(y_t)`` of the data at hand; then the value given to :meth:`log_prob` is ignored and
            nothing can be sampled.
        num_steps: ``T``. Needed when no argument has a time axis.
        mask: ``(..., T)`` booleans, true where ``y_t`` was observed.
        lengths: ``(...)`` integers: steps that belong to each series; what follows is padding.
        log_space: loses nothing to underflow where some transitions are forbidden, at two to ten times the
            cost (see :mod:`sojourn.ops.hidden_markov`).
        vjp: ``False`` for forward-mode differentiation.
        validate_args: as in NumPyro.

    Shapes: event shape ``(T,) + emission.event_shape``; batch shape the broadcast of all ``...``.

    Missing observations are entries of ``mask`` that are false, or NaN in the value: the step stays, its
    emission factor is one. In a vector emission made by ``to_event`` a NaN drops its own component; in any
    other vector emission it drops the step.

    Raises:
        ValueError: rows that do not sum to one, an emission whose batch shape does not match the number of
            states, lengths beyond ``T``, no ``num_steps`` where it cannot be read off.

    Example:
        >>> import jax.numpy as jnp, numpyro.distributions as dist
        >>> quakes = HiddenMarkov(
        ...     initial=jnp.array([0.5, 0.5]),
        ...     transition=jnp.array([[0.93, 0.07], [0.13, 0.87]]),
        ...     emission=dist.Poisson(jnp.array([15.5, 26.1])),
        ...     num_steps=4,
        ... )
        >>> quakes.event_shape, f"{quakes.log_prob(jnp.array([13.0, 14.0, 8.0, jnp.nan])):.3f}"
        ((4,), '-9.753')
    """

    arg_constraints = {
        "initial": constraints.simplex,
        "transition": constraints.dependent(is_discrete=False, event_dim=2),
    }
    pytree_data_fields = ("initial", "transition", "emission", "_mask", "_lengths")
    pytree_aux_fields = ("num_steps", "log_space", "vjp")

    def __init__(
        self,
        initial: ArrayLike,
        transition: ArrayLike,
        emission: dist.Distribution | ArrayLike,
        *,
        num_steps: int | None = None,
        mask: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        log_space: bool = False,
        vjp: bool = True,
        validate_args: bool | None = None,
    ):
        self.initial = jnp.asarray(numbers(initial, "initial"))
        self.transition = jnp.asarray(numbers(transition, "transition"))
        given = (
            emission
            if isinstance(emission, dist.Distribution)
            else jnp.asarray(numbers(emission, "emission"))
        )
        self.emission: Any = given
        self._mask = None if mask is None else jnp.asarray(numbers(mask, "mask"), bool)
        self._lengths = None if lengths is None else jnp.asarray(numbers(lengths, "lengths"))
        num_steps = None if num_steps is None else whole_number(num_steps, "num_steps", None)
        self.log_space = log_space
        self.vjp = vjp
        self.num_steps = self._read_num_steps(num_steps)
        emission_batch = self._emission_batch
        parts = [self.initial.shape[:-1], self.transition.shape[:-3], emission_batch[:-2]]
        if self._mask is not None:
            parts.append(self._mask.shape[:-1])
        if self._lengths is not None:
            parts.append(self._lengths.shape)
        event = getattr(self.emission, "event_shape", ())
        super().__init__(jnp.broadcast_shapes(*parts), (self.num_steps, *event), validate_args=validate_args)

    # ------------------------------------------------------------------------------------- construction

    @property
    def num_states(self) -> int:
        """Number of states ``K``."""
        return self.initial.shape[-1]

    @property
    def _is_raw(self) -> bool:
        return not isinstance(self.emission, dist.Distribution)

    @property
    def _emission_batch(self) -> tuple[int, ...]:
        return self.emission.shape if self._is_raw else self.emission.batch_shape

    def _read_num_steps(self, num_steps: int | None) -> int:
        if self.initial.ndim < 1:
            raise ValueError("`initial` must be (..., K), a probability for each state, not one number.")
        states = self.num_states
        if self.transition.ndim < 2 or self.transition.shape[-2:] != (states, states):
            raise ValueError(
                f"`transition` has shape {self.transition.shape}; `initial` has {states} states, so its last "
                f"two axes must be ({states}, {states})."
            )
        batch = self._emission_batch
        if batch[-1:] != (states,):
            raise ValueError(
                f"`emission` has batch shape {batch}; its last axis must be the {states} states."
            )
        found = {
            "transition": self.transition.shape[-3] + 1 if self.transition.ndim > 2 else 2,
            "emission": batch[-2] if len(batch) > 1 else 1,
        }
        # A time axis of length one stands for every step.
        steps = {name: n for name, n in found.items() if n != (2 if name == "transition" else 1)}
        if self._is_raw:
            if len(batch) < 2:
                raise ValueError(f"`emission` as an array must have axes (..., T, {states}).")
            steps["emission"] = batch[-2]
        if self._mask is not None:
            steps["mask"] = self._mask.shape[-1] if self._mask.ndim else 0
        if num_steps is not None:
            steps["num_steps"] = num_steps
        if len(set(steps.values())) > 1:
            told = ", ".join(f"`{name}` says {n}" for name, n in steps.items())
            raise ValueError(
                f"The number of steps does not agree: {told}. Batches of time-homogeneous chains need a time "
                "axis of length one: `transition` (..., 1, K, K), `emission` (..., 1, K)."
            )
        if not steps:
            raise ValueError("`num_steps` is needed: no argument of HiddenMarkov has a time axis.")
        total = next(iter(steps.values()))
        if total < 1:
            raise ValueError("A series needs at least one step; this one is empty.")
        return int(total)

    def validate_args(self, strict: bool = True) -> None:
        """Check the values of the arguments; those inside a compiled function are skipped, or refused."""
        for name in ("initial", "transition"):
            value = _concrete(getattr(self, name))
            if value is None:
                if strict:
                    raise RuntimeError("Cannot validate arguments inside jitted code.")
                continue
            if not np.isfinite(value).all() or (value < 0).any():
                raise ValueError(f"`{name}` holds probabilities; it has an entry negative or not finite.")
            total = value.sum(-1)
            worst = np.unravel_index(np.argmax(np.abs(total - 1)), total.shape)
            if abs(total[worst] - 1) > _ROW_TOLERANCE:
                what = f"Row {worst[-1]} of `transition`" if name == "transition" else "`initial`"
                raise ValueError(f"{what} sums to {total[worst]:.6g}; probabilities must sum to one.")
        lengths = _concrete(self._lengths)
        if lengths is not None and lengths.size and (lengths.max() > self.num_steps or lengths.min() < 1):
            bad = lengths.max() if lengths.max() > self.num_steps else lengths.min()
            raise ValueError(
                f"`lengths` has an entry {bad}; it must lie between 1 and the {self.num_steps} steps given."
            )

    @property
    def observed(self) -> Array | None:
        """``(..., T)``: which steps ``mask`` and ``lengths`` declare observed; ``None`` for all."""
        inside = None
        if self._lengths is not None:
            inside = jnp.arange(self.num_steps) < self._lengths[..., None]
        if self._mask is None or inside is None:
            return inside if self._mask is None else self._mask
        return self._mask & inside

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return series_support(None if self._is_raw else self.emission, self.observed)

    # ---------------------------------------------------------------------------------- log-probability

    def _log_emission(self, value: ArrayLike) -> Array:
        """``(..., T, K)`` with the whole batch shape; zero where nothing was observed."""
        if self._is_raw:
            log_emission = self.emission
            if self.observed is not None:
                log_emission = jnp.where(self.observed[..., None], log_emission, 0.0)
            batch = self.batch_shape
        else:
            value = jnp.asarray(value)
            event = len(self.emission.event_shape)
            if value.shape[value.ndim - event - 1 :] != self.event_shape:
                raise ValueError(
                    f"The series has shape {value.shape}; its last axes must be {self.event_shape}."
                )
            log_emission = log_prob_observed(self.emission, value, self.observed, lead_axis=True)
            batch = jnp.broadcast_shapes(value.shape[: value.ndim - event - 1], self.batch_shape)
        return jnp.broadcast_to(log_emission, (*batch, self.num_steps, self.num_states))

    def _each(self, fn: Callable[..., Any], log_emission: Array, *others: Array) -> Any:
        """Map ``fn(initial, transition, log_emission, length, *others)`` over the batch."""
        batch = log_emission.shape[:-2]
        transition = self.transition
        if transition.ndim > 2 and transition.shape[-3] == 1 and self.num_steps != 2:
            transition = transition[..., 0, :, :]
            core = 2
        else:
            core = min(transition.ndim, 3)
        args: list[tuple[Array | None, int]] = [(self.initial, 1), (transition, core), (log_emission, 2)]
        args.append((self._lengths, 0))
        args += [(other, other.ndim - len(batch)) for other in others]
        return _batched(fn, args, len(batch), full=2)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        def one(initial, transition, log_emission, length):
            return ops.log_likelihood(
                initial, transition, log_emission, length, vjp=self.vjp, log_space=self.log_space
            )

        return self._each(one, self._log_emission(value))

    def predictive_log_prob(self, value: ArrayLike) -> Array:
        """One-step-ahead log-densities ``log p(y_t | y_<t)``, shape ``(..., T)``.

        They sum to :meth:`log_prob`; they are zero (to rounding) where nothing was observed. This is what ``sj.fit`` stores
        as the pointwise ``log_likelihood``.
        """
        return self.filter(value).log_predictive

    # -------------------------------------------------------------------------------------- hidden states

    def filter(self, value: ArrayLike) -> ops.Filtered:
        """Laws of the states given the past; arrays of shape ``(..., T)`` and ``(..., T, K)``."""
        run = _with(ops.filter, log_space=self.log_space)
        return self._each(run, self._log_emission(value))

    def smooth(self, value: ArrayLike) -> ops.Smoothed:
        """Laws of the states, ``(..., T, K)``, and expected moves between them, given the whole series."""
        return self._each(_with(ops.smooth, log_space=self.log_space), self._log_emission(value))

    def most_likely_path(self, value: ArrayLike) -> Array:
        """Viterbi path, ``(..., T)`` integers."""
        return self._each(ops.viterbi, self._log_emission(value))

    def sample_path(self, key: Array, value: ArrayLike, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of the path of states given the series, ``sample_shape + (..., T)`` integers."""
        log_emission = self._log_emission(value)
        batch = log_emission.shape[:-2]
        keys = jax.random.split(key, batch)
        draws = int(np.prod(sample_shape))

        def one(initial, transition, log_emission, length, key):
            return ops.sample_paths(
                key, initial, transition, log_emission, length, num_samples=draws, log_space=self.log_space
            )

        paths = jnp.moveaxis(self._each(one, log_emission, keys), -2, 0)
        return paths.reshape((*sample_shape, *paths.shape[1:]))

    # ------------------------------------------------------------------------------------------- sampling

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        states = self.sample_states(key, sample_shape)
        return self._emit(jax.random.fold_in(key, 1), states)

    def sample_states(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Paths of the chain from its own law, ``sample_shape + batch_shape + (T,)`` integers."""
        shape = (*sample_shape, *self.batch_shape)
        uniforms = jax.random.uniform(key, (*shape, self.num_steps))
        blank = jnp.zeros((*shape, self.num_steps, self.num_states), self.initial.dtype)

        def one(initial, transition, _, __, uniforms):
            return _walk(_draw(initial, uniforms[0]), transition, uniforms[1:])

        return self._each(one, blank, uniforms)

    def sample_one_step_ahead(self, key: Array, value: ArrayLike) -> Array:
        """At every step a draw from ``p(y_t | y_<t)``, of the shape of the series.

        The reference against which a series is judged forecast by forecast (probability integral transform).
        """
        predicted = self.filter(value).predicted
        key_state, key_emit = jax.random.split(key)
        uniforms = jax.random.uniform(key_state, predicted.shape[:-1])
        return self._emit(key_emit, _draw(predicted, uniforms))

    def sample_future(
        self,
        key: Array,
        value: ArrayLike,
        horizon: int,
        *,
        transition: ArrayLike | None = None,
        emission: dist.Distribution | None = None,
    ) -> tuple[Array, Array]:
        """Draws of the ``horizon`` steps that follow each series.

        Args:
            key: random key.
            value: the series, ``(..., T) + emission.event_shape``.
            horizon: number of steps after the last one of each series (after its length, where lengths were
                given).
            transition: ``(horizon, K, K)``, first entry the move out of the last step; needed where the
                transitions vary in time.
            emission: with batch shape ``(horizon, K)``; needed where the emission varies in time.

        Returns:
            States, ``(..., horizon)`` integers, and observations, ``(..., horizon) + emission.event_shape``.
        """
        if horizon < 1:
            raise ValueError(f"`horizon` must be at least one step, not {horizon}.")
        if transition is None:
            if self.transition.ndim > 2 and self.transition.shape[-3] != 1:
                raise ValueError("The transitions vary in time: pass those of the future as `transition`.")
            moves = self.transition if self.transition.ndim > 2 else self.transition[None]
            moves = jnp.broadcast_to(moves, (*moves.shape[:-3], horizon, self.num_states, self.num_states))
        else:
            moves = jnp.asarray(transition)
        if emission is None and len(self._emission_batch) > 1 and self._emission_batch[-2] != 1:
            raise ValueError("The emission varies in time: pass that of the future as `emission`.")
        filtered = self.filter(value).filtered
        if self._lengths is None:
            last = filtered[..., -1, :]
        else:
            index = jnp.broadcast_to(self._lengths, filtered.shape[:-2])[..., None, None] - 1
            last = jnp.take_along_axis(filtered, index, axis=-2)[..., 0, :]
        key_start, key_walk, key_emit = jax.random.split(key, 3)
        batch = last.shape[:-1]
        start = _draw(last, jax.random.uniform(key_start, batch))
        uniforms = jax.random.uniform(key_walk, (*batch, horizon))
        walk: list[tuple[Array | None, int]] = [(start, 0), (moves, 3), (uniforms, 1)]
        states = _batched(lambda s, p, u: _walk(s, p, u)[1:], walk, len(batch), full=2)
        return states, self._emit(key_emit, states, emission)

    def _emit(self, key: Array, states: Array, emission: dist.Distribution | None = None) -> Array:
        """A draw of the emission of each state, ``states.shape + emission.event_shape``."""
        emission = self.emission if emission is None else emission
        if not isinstance(emission, dist.Distribution):
            raise NotImplementedError("HiddenMarkov built from an array of log-densities cannot be sampled.")
        event = len(emission.event_shape)
        # Every state draws and the right one is picked: K times the work, for any emission whatever.
        everyone = emission.expand((*states.shape, self.num_states)).sample(key)
        index = states.reshape((*states.shape, 1, *(1,) * event))
        return jnp.take_along_axis(everyone, index, axis=states.ndim).squeeze(states.ndim)

    # -------------------------------------------------------------------------------------------- moments

    def _state_probs(self) -> Array:
        """``batch_shape + (T, K)``: law of the state at each step."""
        blank = jnp.zeros((*self.batch_shape, self.num_steps, self.num_states), self.initial.dtype)
        return self._each(lambda *args: ops.filter(*args[:3]).predicted, blank)

    def _mixture(self, moment: Array) -> Array:
        event = len(self.emission.event_shape)
        probs = self._state_probs()
        probs = probs.reshape((*probs.shape, *(1,) * event))
        return (probs * moment).sum(-1 - event)

    @property
    def mean(self) -> Array:
        return self._mixture(self.emission.mean)

    @property
    def variance(self) -> Array:
        second = self._mixture(self.emission.variance + self.emission.mean**2)
        return second - self.mean**2


def _concrete(x: Array | None) -> np.ndarray | None:
    return None if x is None or isinstance(x, jax.core.Tracer) else np.asarray(x)


def _with(fn: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    return lambda *args: fn(*args, **kwargs)


def _walk(start: Array, transition: Array, uniforms: Array) -> Array:
    """``(1 + len(uniforms),)`` states of a chain from ``start``."""
    if transition.ndim == 2:
        _, path = lax.scan(lambda s, u: (_draw(transition[s], u),) * 2, start, uniforms)
    else:
        _, path = lax.scan(lambda s, x: (_draw(x[0][s], x[1]),) * 2, start, (transition, uniforms))
    return jnp.concatenate([start[None], path])


def _batched(
    fn: Callable[..., Any], args: list[tuple[Array | None, int]], batch_ndim: int, *, full: int
) -> Any:
    """Map ``fn`` over ``batch_ndim`` leading axes.

    ``args`` holds arrays and the number of their own axes. An array may lack leading batch axes or have them
    of length one; it is then shared rather than copied, so that a common transition matrix stays one matrix
    product. The array ``args[full]`` must have every batch axis.
    """
    squeezed: list[Array | None] = []
    axes: list[list[int | None]] = []
    for array, core in args:
        if array is None:
            squeezed.append(None)
            axes.append([None] * batch_ndim)
            continue
        lead = array.shape[: array.ndim - core]
        shared = [n == 1 for n in (1,) * (batch_ndim - len(lead)) + lead]
        squeezed.append(array.reshape([n for n in lead if n != 1] + list(array.shape[array.ndim - core :])))
        axes.append([None if alone else 0 for alone in shared])
    # An axis of length one in every array still has to appear in the result.
    squeezed[full] = args[full][0]
    axes[full] = [0] * batch_ndim
    for level in reversed(range(batch_ndim)):
        fn = jax.vmap(fn, in_axes=tuple(a[level] for a in axes))
    return fn(*squeezed)
