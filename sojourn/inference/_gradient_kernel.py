"""What the Langevin samplers have in common: kernels that follow the gradient of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_value
from numpyro.infer.hmc_util import HMCAdaptState
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model
from numpyro.util import identity, is_prng_key

from sojourn._arguments import numbers
from sojourn._contract import Site, check_function, trace_model
from sojourn.inference._check_gradient import check_model_gradient
from sojourn.inference._check_model import check_gradient_engine, check_latents, check_takes_all
from sojourn.inference._initial import init_to_hint

__all__ = ["Flat", "GradientKernel", "check_number", "whitened"]

Position = dict[str, Array]
Potential = Callable[[Position], Array]


class Flat(NamedTuple):
    """A position as one vector.

    Attributes:
        x: shape ``(d,)``.
        unravel: from such a vector back to the sites.
        potential: minus the log density at such a vector.
    """

    x: Array
    unravel: Callable[[Array], Position]
    potential: Callable[[Array], Array]


class GradientKernel(MCMCKernel):
    """A kernel on the unconstrained latents of a model, for one chain or a batch of them.

    A subclass says how a chain begins and how it goes on; its state is a ``NamedTuple`` with ``z`` (unconstrained
    values by site) and ``rng_key`` among its fields.
    """

    sample_field = "z"
    default_fields = ("z", "diverging")
    stat_fields: tuple[str, ...] = ()
    follows_gradient = True
    gradient_checked = False
    starts_constrained = False
    """Whether ``init_params`` are values of the sites themselves, as ``Gibbs`` hands them to its blocks."""

    def __init__(self, model: Callable[..., Any], init_strategy: Callable[..., Any] | None = None):
        check_function(model)
        self._model = model
        self._init_strategy = init_to_hint() if init_strategy is None else init_strategy
        self._num_warmup = 0
        self._potential_of: Callable[..., Potential] | None = None
        self._postprocess: Callable[..., Any] | None = None
        self._sample_fn: Callable[..., Any] | None = None

    def _begin(
        self, key: Array, z: Position, potential_energy: Array, z_grad: Position, potential: Potential
    ) -> Any:
        """The first state of a chain."""
        raise NotImplementedError

    def _advance(self, state: Any, potential: Potential) -> Any:
        """The state after ``state``."""
        raise NotImplementedError

    def _check(self, trace: Mapping[str, Site], num_latent: int) -> None:
        """Refuse a model that this kernel is not for."""

    def _check_start(self, state: Any) -> None:
        """Refuse a start that bodes ill; ``state`` has a leading axis over chains."""

    @property
    def model(self) -> Callable[..., Any]:
        return self._model

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        kwargs = model_kwargs or {}
        self._num_warmup = num_warmup
        alone = is_prng_key(rng_key)
        keys = jax.random.split(rng_key) if alone else jnp.swapaxes(jax.vmap(jax.random.split)(rng_key), 0, 1)
        visible = not isinstance(rng_key, jax.core.Tracer)
        if visible:
            self._refuse(model_args, kwargs)
        strategy = self._init_strategy
        if self.starts_constrained and init_params is not None:
            strategy, init_params = init_to_value(values=init_params), None
        info, self._potential_of, self._postprocess, trace = initialize_model(
            keys[1],
            self._model,
            init_strategy=strategy,
            dynamic_args=True,
            model_args=model_args,
            model_kwargs=kwargs,
        )
        start = info.z if init_params is None else init_params
        self._check(trace, sum(jnp.size(v) // (1 if alone else keys[1].shape[0]) for v in start.values()))

        def begin(key: Array, z: Position) -> Any:
            potential = self._potential(model_args, kwargs)
            return self._begin(key, z, *jax.value_and_grad(potential)(z), potential)

        state = jax.jit(begin if alone else jax.vmap(begin))(keys[0], start)
        self._sample_fn = self._sample_one if alone else jax.vmap(self._sample_one, in_axes=(0, None, None))
        if visible:
            self._check_start(jax.tree.map(lambda a: a[None], state) if alone else state)
        return state

    def sample(self, state, model_args, model_kwargs):
        assert self._sample_fn is not None
        return self._sample_fn(state, model_args, model_kwargs or {})

    def _sample_one(self, state: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return self._advance(state, self._potential(args, kwargs))

    def postprocess_fn(self, model_args, model_kwargs):
        return (
            identity if self._postprocess is None else self._postprocess(*model_args, **(model_kwargs or {}))
        )

    def _potential(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Potential:
        assert self._potential_of is not None
        return self._potential_of(*args, **kwargs)

    def _flat(self, z: Position, potential: Potential) -> Flat:
        x, unravel = ravel_pytree(z)
        return Flat(x, unravel, lambda x: potential(unravel(x)))

    def _refuse(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        name = type(self).__name__
        key = jax.random.key(0)
        trace = trace_model(self._model, args, kwargs, key=key)
        check_latents(trace)
        check_gradient_engine(trace, name)
        check_takes_all(trace, name)
        if not self.gradient_checked:
            check_model_gradient(self._model, args, kwargs, trace, name, key)


def whitened(
    flat: Flat, adapt_state: HMCAdaptState
) -> tuple[Callable[[Array], Array], Callable[[Array], Any]]:
    """Coordinates q around x in which the inverse mass matrix is one.

    Returns:
        x as a function of q, and the potential and its gradient in q as a function of q.
    """
    root = adapt_state.mass_matrix_sqrt_inv

    def place(q: Array) -> Array:
        return flat.x + (root * q if root.ndim == 1 else root.T @ q)

    return place, jax.value_and_grad(lambda q: flat.potential(place(q)))


def check_number(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuse a setting that does not lie strictly between two numbers."""
    if np.ndim(numbers(value, name)) or not low < value < high:
        span = f"above {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ValueError(f"`{name}` must be {span}, not {value!r}.")
