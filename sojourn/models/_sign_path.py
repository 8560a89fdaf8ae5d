"""An alternating renewal process, read with errors, as sample sites inside a ``scan``.

The site of a step is sign *and* age of its run, not the sign alone. The law of the next sign hangs on the
age, which signs alone tell only to whoever remembers all of them: as part of the carry it would make every
step depend on the whole past, and particle methods could not give a path a new past (``ConditionalSMC``). As
part of the site the carry is the site's own value and forgets after one step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from sojourn.distributions._missing import only_observed
from sojourn.distributions._noisy_signs import log_reading
from sojourn.ops import switching_renewal as ops
from sojourn.ops.hidden_markov import _draw, _log

__all__ = ["scan_signs"]


def scan_signs(
    y: Array | None,
    observed: Array | None,
    hazard: ArrayLike,
    flip: ArrayLike,
    num_steps: int,
    name: str,
) -> Array:
    """The path form of :class:`sojourn.distributions.NoisySigns`: one latent and one observed site a step.

    Sites, both ``(T,)``: ``signed_age``, ``+a`` at the ``a``-th step of a run above and ``-a`` below (``K``
    stands for all ages from ``K`` on), so that the hidden signs are ``signed_age > 0``; and the readings.

    Args:
        y: the readings, ``(T,)`` of 0, 1 and NaN, or ``None`` to simulate.
        observed: booleans ``(T,)``, true where there is a reading; ``None`` for everywhere.
        hazard: ``(2, K)``, below and above, or ``(K,)``.
        flip: probability of a wrong reading: one number, or ``(2,)``.
        num_steps: ``T``.
        name: of the observed site.

    Returns:
        The readings.

    Example:
        >>> from numpyro.handlers import seed, trace
        >>> hazard = jnp.array([0.0, 0.0, 1.0])
        >>> sites = trace(seed(scan_signs, 1)).get_trace(None, None, hazard, 0.0, 8, "y")
        >>> print(sites["signed_age"]["value"])
        [-1 -2 -3  1  2  3 -1 -2]
        >>> print(sites["y"]["value"])
        [0 0 0 1 1 1 0 0]
    """
    first = ops.stationary_law(hazard).reshape(-1)
    reading = log_reading(flip)

    def step(before, x):
        y_t, observed_t = x
        state = numpyro.sample("signed_age", _RunStep(before, ops.hazard_at(hazard, before), first))
        law = _Reading(reading[(state > 0).astype(int)])
        if observed_t is None:
            return state, numpyro.sample(name, law, obs=y_t)
        if y_t is not None:
            law, y_t = only_observed(law, y_t, observed_t)
            return state, numpyro.sample(name, law, obs=y_t)
        with numpyro.handlers.mask(mask=observed_t):
            return state, numpyro.sample(name, law)

    nothing = jnp.zeros((), int)
    _, values = scan(step, nothing, (y, observed), length=num_steps)
    return values


class _RunStep(dist.Distribution):
    """Law of the signed age one step after ``before``, a run that ends there with probability ``ends``.

    At the first step ``before`` is zero, and the law is ``first``, ``(..., 2 K)``.
    """

    arg_constraints = {
        "before": constraints.dependent(is_discrete=True, event_dim=0),
        "ends": constraints.unit_interval,
        "first": constraints.simplex,
    }
    pytree_data_fields = ("before", "ends", "first")
    has_enumerate_support = True

    def __init__(self, before: Array, ends: Array, first: Array):
        self.before, self.ends, self.first = before, ends, first
        super().__init__(jnp.shape(before), validate_args=False)

    @property
    def num_ages(self) -> int:
        return self.first.shape[-1] // 2

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(-self.num_ages, self.num_ages)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape), self.first.dtype)
        start = ops.state_from_index(_draw(self.first, u), self.num_ages)
        return jnp.where(self.before == 0, start, ops.next_state(self.before, u < self.ends, self.num_ages))

    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        value = jnp.asarray(value)
        age = jnp.abs(value)
        index = jnp.clip(jnp.where(value > 0, self.num_ages, 0) + age - 1, 0, 2 * self.num_ages - 1)
        table = self.first.reshape((1,) * (value.ndim + 1 - self.first.ndim) + self.first.shape)
        start = jnp.take_along_axis(table, index[..., None], -1)[..., 0]
        start = jnp.where((age > 0) & (age <= self.num_ages), start, 0.0)
        later = jnp.where(value == ops.next_state(self.before, False, self.num_ages), 1.0 - self.ends, 0.0)
        later = jnp.where(value == ops.next_state(self.before, True, self.num_ages), self.ends, later)
        return _log(jnp.where(self.before == 0, start, later))

    def enumerate_support(self, expand: bool = True) -> Array:
        ages = np.arange(1, self.num_ages + 1)
        values: Any = np.concatenate([-ages, ages]).reshape((-1, *(1,) * len(self.batch_shape)))
        if expand:
            values = np.broadcast_to(values, (2 * self.num_ages, *self.batch_shape))
        return values


class _Reading(dist.Distribution):
    """Zero or one, of given log-probabilities ``(..., 2)``; minus infinity is one (NumPyro clamps them)."""

    arg_constraints = {"log_probs": constraints.real_vector}
    support = constraints.boolean
    pytree_data_fields = ("log_probs",)

    def __init__(self, log_probs: Array):
        self.log_probs = log_probs
        super().__init__(jnp.shape(log_probs)[:-1], validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        u = jax.random.uniform(key, (*sample_shape, *self.batch_shape), self.log_probs.dtype)
        return (u < jnp.exp(self.log_probs[..., 1])).astype(int)

    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        return jnp.where(jnp.asarray(value) == 1, self.log_probs[..., 1], self.log_probs[..., 0])
