"""Order statistics."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import whole_number

__all__ = ["Ordered"]


class Ordered(dist.Distribution):
    """Sorted values of ``size`` independent draws from one continuous distribution.

    Exchangeable components (the states of a hidden Markov model, the parts of a mixture) carry no names:
    a posterior over their parameters has ``size!`` copies of every mode. A prior on the *sorted* values
    keeps one of them and is otherwise the same prior.

    Args:
        base: distribution of one value before sorting, batch shape ``()`` or ``batch_shape``, on the real
            line or on the positive numbers.
        size: number of values.
        validate_args: as in NumPyro.

    Shapes: batch shape that of ``base``, event shape ``(size,)``.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> rate = Ordered(dist.LogNormal(2.0, 1.0), 3)
        >>> draw = rate.sample(jax.random.key(0))
        >>> bool((draw[1:] > draw[:-1]).all()), rate.log_prob(draw).shape
        (True, ())
    """

    pytree_data_fields = ("base",)
    pytree_aux_fields = ("size",)
    arg_constraints: dict = {}

    def __init__(self, base: dist.Distribution, size: int, *, validate_args: bool | None = None):
        if not isinstance(base, dist.Distribution) or base.event_shape != () or base.support.is_discrete:
            raise ValueError("`base` of Ordered must be a continuous univariate distribution.")
        size = whole_number(size, "size", None)
        if size < 1:
            raise ValueError(f"`size` of Ordered must be at least one, not {size}.")
        self.base = base
        self.size = size
        self.support  # noqa: B018 - an unsupported base fails here, not at the first draw
        super().__init__(base.batch_shape, (size,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        kind = self.base.support
        if kind is constraints.real:
            return constraints.ordered_vector
        if kind is constraints.positive or kind is constraints.nonnegative:
            return constraints.positive_ordered_vector
        raise ValueError(
            f"`base` of Ordered has support {kind}; the real line or the positive numbers serve."
        )

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        draws = self.base.sample(key, (self.size, *sample_shape))
        return jnp.sort(jnp.moveaxis(draws, 0, -1), axis=-1)

    @validate_sample
    def log_prob(self, value: ArrayLike, intermediates: list | None = None) -> Array:
        return self.base.log_prob(jnp.moveaxis(jnp.asarray(value), -1, 0)).sum(0) + gammaln(self.size + 1.0)
