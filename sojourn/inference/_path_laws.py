"""Laws that are made of normal noise, in the model and in a guide, and where the systems are in a site."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import sum_rightmost

__all__ = ["JointNormal", "NormalThrough", "Placed", "bare", "made_of", "normal_law", "point"]


def bare(fn: Any) -> tuple[Any, bool]:
    """A law without what only reshapes or masks it, and whether something masks it."""
    masked = False
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        masked = masked or isinstance(fn, dist.MaskedDistribution)
        fn = fn.base_dist
    return fn, masked


class normal_law(NamedTuple):
    """A law of the form location + scale * standard normal noise, over all entries of a site."""

    loc: Array
    """of the site's shape."""
    scale: Array
    """of the site's shape, or with one more axis: lower triangular."""
    triangular: bool

    @classmethod
    def of(cls, fn: Any) -> normal_law | None:
        """``None`` for a law of another form."""
        base, masked = bare(fn)
        if masked:
            return None
        shape = fn.shape()
        if isinstance(base, dist.Normal):
            return cls(jnp.broadcast_to(base.loc, shape), jnp.broadcast_to(base.scale, shape), False)
        if isinstance(base, dist.MultivariateNormal):
            root = jnp.broadcast_to(base.scale_tril, (*shape, shape[-1]))
            return cls(jnp.broadcast_to(base.loc, shape), root, True)
        return None

    def value(self, noise: Array) -> Array:
        if self.triangular:
            return self.loc + (self.scale @ noise[..., None])[..., 0]
        return self.loc + self.scale * noise


@dataclass(frozen=True)
class Placed:
    """Where the systems are in an array, which is ``(systems, entries)`` when they come first."""

    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def pack(self, x: Any) -> Array:
        """``(..., *shape)`` to ``(..., systems, entries)``."""
        x = jnp.asarray(x)
        lead = x.ndim - len(self.shape)
        if self.axes:
            x = jnp.moveaxis(x, [lead + a for a in self.axes], range(lead, lead + len(self.axes)))
        size = int(np.prod([self.shape[a] for a in self.axes], dtype=int))
        return x.reshape((*x.shape[:lead], size, -1))

    def unpack(self, flat: Array) -> Array:
        """``(..., systems, entries)`` to ``(..., *shape)``."""
        lead = flat.shape[:-2]
        rest = [n for a, n in enumerate(self.shape) if a not in self.axes]
        x = flat.reshape((*lead, *(self.shape[a] for a in self.axes), *rest))
        at = len(lead)
        return jnp.moveaxis(x, range(at, at + len(self.axes)), [at + a for a in self.axes])

    @property
    def size(self) -> int:
        """Entries for each system."""
        return int(np.prod([n for a, n in enumerate(self.shape) if a not in self.axes], dtype=int))


class JointNormal(dist.Distribution):
    """Entries of a site that are jointly normal within each system: law + factor of the site's own noise.

    The noise is ``mean + factor @ standard normal``; the value is what the site's own law makes of it.

    Args:
        law: of the site in the model.
        mean: ``(systems, m)``.
        factor: ``(systems, m, m)`` upper triangular, or ``(systems, m)`` for a diagonal.
        placed: where the systems are in the site.
        event_dim: of the site.
    """

    support = constraints.real
    pytree_data_fields = ("loc", "scale", "mean_", "factor")
    pytree_aux_fields = ("triangular", "placed")

    def __init__(self, law: normal_law, mean: Array, factor: Array, placed: Placed, event_dim: int = 0):
        self.loc, self.scale, self.triangular = law
        self.mean_, self.factor, self.placed = mean, factor, placed
        split = len(placed.shape) - event_dim
        super().__init__(placed.shape[:split], placed.shape[split:], validate_args=False)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.of(jax.random.normal(key, (*sample_shape, *self.mean_.shape), self.mean_.dtype))

    def of(self, noise: Array) -> Array:
        """The value that standard normal numbers ``(..., systems, m)`` make."""
        noise = self.factor * noise if self._diagonal else (self.factor @ noise[..., None])[..., 0]
        return normal_law(self.loc, self.scale, self.triangular).value(self.placed.unpack(self.mean_ + noise))

    @property
    def _diagonal(self) -> bool:
        return self.factor.ndim == self.mean_.ndim

    def own_noise(self, value: Array) -> Array:
        """``(..., systems, m)`` standard normal numbers that make ``value``."""
        away = self.noise(value) - self.mean_
        if self._diagonal:
            return away / self.factor
        return jax.scipy.linalg.solve_triangular(self.factor, away[..., None])[..., 0]

    def noise(self, value: Array) -> Array:
        """``(..., systems, m)``: what the site's own law makes ``value`` of."""
        away = value - self.loc
        if self.triangular:
            away = jax.scipy.linalg.solve_triangular(self.scale, away[..., None], lower=True)[..., 0]
        else:
            away = away / self.scale
        return self.placed.pack(away)

    def log_prob(self, value: Array, intermediates: list | None = None) -> Array:
        own = self.own_noise(value)
        scale = jnp.diagonal(self.scale, axis1=-2, axis2=-1) if self.triangular else self.scale
        own_scale = self.factor if self._diagonal else jnp.diagonal(self.factor, axis1=-2, axis2=-1)
        term = -0.5 * own**2 - jnp.log(own_scale) - self.placed.pack(jnp.log(scale)) - 0.5 * np.log(2 * np.pi)
        term = term.sum(-1)
        # One term a system, in equal shares where a system has several entries of the batch.
        lead, inside = term.shape[:-1], self.placed.shape[: len(self.placed.shape) - self.event_dim]
        along = tuple(n if a in self.placed.axes else 1 for a, n in enumerate(inside))
        shares = int(np.prod([n for a, n in enumerate(inside) if a not in self.placed.axes], dtype=int))
        return jnp.broadcast_to(term.reshape((*lead, *along)) / shares, (*lead, *inside))


@promote_batch_shape.register
def _promote_joint_normal(law: JointNormal):
    """With the time axis that a scan puts in front."""
    new = copy.copy(law)
    new._batch_shape = law.mean_.shape[:-2] + law.placed.shape[: len(law.placed.shape) - law.event_dim]
    return new


class NormalThrough(dist.TransformedDistribution):
    """A transformed normal law that may be the law of a site in a scan."""


@promote_batch_shape.register
def _promote_normal_through(law: NormalThrough):
    """With the time axis in front, which NumPyro does not give to transformed laws."""
    new = copy.copy(law)
    new.base_dist = promote_batch_shape(law.base_dist)
    before, after = len(law.base_dist.batch_shape), new.base_dist.batch_shape
    new._batch_shape = after[: len(after) - before] + law.batch_shape
    return new


def made_of(law: Any, noise: Array, placed: Placed) -> Array:
    """The value of a site under one of our laws from standard normal numbers ``(systems, m)``."""
    if isinstance(law, JointNormal):
        return law.of(noise)
    while isinstance(law, dist.Independent):
        law = law.base_dist
    if isinstance(law, dist.TransformedDistribution):
        value = made_of(law.base_dist, noise, placed)
        for transform in law.transforms:
            value = transform(value)
        return value
    return law.loc + law.scale * placed.unpack(noise)


def point(fn: Any, unconstrained: Array) -> dist.Delta:
    """Where the parameters of a model are put: all of a site's mass at one value, with the density of the change of
    variables."""
    transform = biject_to(fn.support)
    value = transform(unconstrained)
    density = -transform.log_abs_det_jacobian(unconstrained, value)
    density = sum_rightmost(density, jnp.ndim(density) - jnp.ndim(value) + fn.event_dim)
    return dist.Delta(value, log_density=density, event_dim=fn.event_dim)
