"""Metropolis-adjusted Langevin trajectories."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.infer.hmc_util import HMCAdaptState, warmup_adapter

from sojourn._arguments import whole_number
from sojourn.inference._gradient_kernel import GradientKernel, Position, Potential, check_number, whitened
from sojourn.ops.langevin import LangevinPoint, baoab_trajectory

__all__ = ["MALT"]

_DIVERGENCE = 1000.0


class MALTState(NamedTuple):
    """State of a chain; NumPyro's names where it has one."""

    i: Array
    z: Position
    z_grad: Position
    potential_energy: Array
    energy: Array
    num_steps: Array
    accept_prob: Array
    mean_accept_prob: Array
    diverging: Array
    adapt_state: HMCAdaptState
    rng_key: Array


class MALT(GradientKernel):
    """Metropolis-adjusted Langevin trajectories (Riou-Durand and Vogrinc 2022, arXiv:2202.13230).

    Each draw takes a fresh velocity, follows underdamped Langevin dynamics for a while by
    :func:`~sojourn.ops.langevin.baoab_step`, one gradient a step, and accepts the end by a Metropolis test of the
    energy errors along the way: exact, like HMC, but for its noise free of resonances between trajectory and target,
    and of trees. Warm-up is NumPyro's: windows of variance estimates, and dual averaging of the step.

    Args:
        model: any model with continuous latents.
        friction: gamma, in units of one over the time below. One is best for the slower of x and x^2 on a Gaussian.
        trajectory_length: time followed by each draw, in units in which the posterior has unit variance.
        target_accept_prob: acceptance rate that warm-up aims at.
        dense_mass: precondition by the whole posterior covariance rather than by the variances.
        step_size: the first one, of time in the same units.
        adapt_step_size: whether warm-up adapts the step.
        adapt_mass_matrix: whether warm-up adapts the preconditioner.
        max_num_steps: most steps of a trajectory; one that would need more is cut short.
        init_strategy: NumPyro's; by default the hints of the model, else uniform.

    Statistics (``extra_fields``): ``num_steps`` (gradients of this draw), ``accept_prob``, ``diverging`` (an energy
    error above 1000, or not finite), ``energy``, ``potential_energy``, ``adapt_state.step_size``.

    Raises:
        ValueError: a setting out of range; at the start a discrete latent, a subsampled plate, a density without
            gradient or with another's.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from sojourn.inference import MALT
        >>> def model():
        ...     numpyro.sample("x", dist.Gamma(3.0, 1.0))
        >>> mcmc = MCMC(MALT(model), num_warmup=300, num_samples=1000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> bool(abs(mcmc.get_samples()["x"].mean() - 3.0) < 0.3)
        True
    """

    stat_fields = (
        "potential_energy",
        "energy",
        "num_steps",
        "accept_prob",
        "adapt_state.step_size",
        "diverging",
    )

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        friction: float = 1.0,
        trajectory_length: float = 2.0,
        target_accept_prob: float = 0.7,
        dense_mass: bool = False,
        step_size: float = 0.5,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        max_num_steps: int = 1000,
        init_strategy: Callable[..., Any] | None = None,
    ):
        super().__init__(model, init_strategy)
        check_number("friction", friction, 0.0)
        check_number("trajectory_length", trajectory_length, 0.0)
        check_number("target_accept_prob", target_accept_prob, 0.0, 1.0)
        check_number("step_size", step_size, 0.0)
        check_number("max_num_steps", whole_number(max_num_steps, "max_num_steps", None), 0)
        self.friction = friction
        self.trajectory_length = trajectory_length
        self.target_accept_prob = target_accept_prob
        self.dense_mass = dense_mass
        self.step_size = step_size
        self.adapt_step_size = adapt_step_size
        self.adapt_mass_matrix = adapt_mass_matrix
        self.max_num_steps = max_num_steps

    def _adapter(self) -> tuple[Callable[..., HMCAdaptState], Callable[..., HMCAdaptState]]:
        return warmup_adapter(
            self._num_warmup,
            adapt_step_size=self.adapt_step_size,
            adapt_mass_matrix=self.adapt_mass_matrix,
            dense_mass=self.dense_mass,
            target_accept_prob=self.target_accept_prob,
        )

    def _begin(
        self, key: Array, z: Position, potential_energy: Array, z_grad: Position, potential: Potential
    ) -> Any:
        key, key_adapt = jax.random.split(key)
        step_size = jnp.asarray(self.step_size, potential_energy.dtype)
        adapt_state = self._adapter()[0]((z,), key_adapt, step_size)
        one = jnp.ones_like(potential_energy)
        return MALTState(
            i=jnp.array(0),
            z=z,
            z_grad=z_grad,
            potential_energy=potential_energy,
            energy=potential_energy,
            num_steps=jnp.array(0),
            accept_prob=one,
            mean_accept_prob=one,
            diverging=jnp.array(False),
            adapt_state=adapt_state,
            rng_key=key,
        )

    def _advance(self, state: MALTState, potential: Potential) -> MALTState:
        flat = self._flat(state.z, potential)
        place, potential_and_grad = whitened(flat, state.adapt_state)
        key, key_velocity, key_path, key_test = jax.random.split(state.rng_key, 4)
        step_size = state.adapt_state.step_size
        wanted = jnp.ceil(self.trajectory_length / step_size)
        num_steps = jnp.clip(wanted, 1, self.max_num_steps).astype(state.num_steps.dtype)
        step_size = jnp.where(wanted > self.max_num_steps, step_size, self.trajectory_length / num_steps)

        root = state.adapt_state.mass_matrix_sqrt_inv
        gradient, _ = jax.flatten_util.ravel_pytree(state.z_grad)
        here = LangevinPoint(
            position=jnp.zeros_like(flat.x),
            velocity=jax.random.normal(key_velocity, flat.x.shape, flat.x.dtype),
            potential=state.potential_energy,
            gradient=root * gradient if root.ndim == 1 else root @ gradient,
            energy_error=jnp.zeros_like(state.potential_energy),
        )
        there = baoab_trajectory(key_path, potential_and_grad, here, step_size, self.friction, num_steps)
        error = jnp.where(jnp.isfinite(there.energy_error), there.energy_error, jnp.inf)
        accept_prob = jnp.exp(jnp.minimum(-error, 0.0))
        accepted = jax.random.uniform(key_test, (), error.dtype) < accept_prob
        end = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), there, here)
        end_gradient = (
            end.gradient / root
            if root.ndim == 1
            else jax.scipy.linalg.solve_triangular(root, end.gradient, lower=True)
        )
        z_grad = jnp.where(accepted, end_gradient, gradient)
        z = flat.unravel(place(end.position))

        warming = state.i < self._num_warmup
        adapt_state = jax.lax.cond(
            warming,
            lambda: self._adapter()[1](state.i, accept_prob, (z,), state.adapt_state),
            lambda: state.adapt_state,
        )
        i = state.i + 1
        since = jnp.where(warming, i, i - self._num_warmup)
        return MALTState(
            i=i,
            z=z,
            z_grad=flat.unravel(z_grad),
            potential_energy=end.potential,
            energy=end.potential + 0.5 * jnp.sum(end.velocity**2),
            num_steps=num_steps,
            accept_prob=accept_prob,
            mean_accept_prob=state.mean_accept_prob + (accept_prob - state.mean_accept_prob) / since,
            diverging=error > _DIVERGENCE,
            adapt_state=adapt_state,
            rng_key=key,
        )

    def get_diagnostics_str(self, state: MALTState) -> str:
        return (
            f"{state.num_steps} steps of size {state.adapt_state.step_size:.2e}. "
            f"acc. prob={state.mean_accept_prob:.2f}"
        )

    def refresh(self, state: MALTState, model_args: Any, model_kwargs: Any) -> MALTState:
        """The state with the potential of the new arguments (for blocks of ``numpyro.infer.gibbs.Gibbs``)."""
        potential = self._potential(model_args, model_kwargs or {})
        energy, gradient = jax.value_and_grad(potential)(state.z)
        return state._replace(potential_energy=energy, z_grad=gradient)

    def wrap_model(self, wrapper: Callable[..., Any]) -> MALT:
        """A copy of the kernel on ``wrapper(model)``, to be a block of ``numpyro.infer.gibbs.Gibbs``."""
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel.starts_constrained = True
        return kernel

    def get_constrain_fn(self, model_args=(), model_kwargs=None, *, return_deterministic=False):
        constrain = self.postprocess_fn(model_args, model_kwargs)
        if return_deterministic:
            return constrain
        return lambda z: {name: value for name, value in constrain(z).items() if name in z}
