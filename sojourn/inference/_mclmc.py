"""Microcanonical Langevin Monte Carlo, from BlackJAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sojourn._arguments import whole_number
from sojourn._contract import Site
from sojourn.inference._gradient_kernel import GradientKernel, Position, Potential, check_number

__all__ = ["MCLMC", "AdjustedMCLMC"]

_GRADIENTS_PER_STEP = 2  # of the isokinetic McLachlan integrator


class MCLMCState(NamedTuple):
    """State of a chain; NumPyro's names where it has one."""

    i: Array
    z: Position
    chain: Any
    step_size: Array
    decoherence_length: Array
    inverse_mass_matrix: Array
    potential_energy: Array
    num_steps: Array
    accept_prob: Array
    diverging: Array
    tuning_steps: Array
    rng_key: Array


class _Microcanonical(GradientKernel):
    stat_fields: tuple[str, ...] = ("potential_energy", "num_steps", "step_size", "diverging")

    def _check(self, trace: Mapping[str, Site], num_latent: int) -> None:
        if num_latent < 2:
            raise ValueError(
                f"{type(self).__name__} moves along a sphere of directions and needs two or more latent numbers; "
                "this model has one: use NUTS or MALT."
            )

    def _check_start(self, state: MCLMCState) -> None:
        step, length = np.asarray(state.step_size), np.asarray(state.decoherence_length)
        reach = step * np.maximum(np.asarray(state.tuning_steps), 1) / length
        for chain in range(len(step)):
            frozen = not np.isfinite(step[chain] * length[chain]) or reach[chain] < 0.1
            if frozen:
                raise RuntimeError(
                    f"{type(self).__name__} could not tune chain {chain}: its step collapsed to {step[chain]:.1e} "
                    f"(decoherence length {length[chain]:.1e}), so that it would stay where it is. The density or its "
                    "gradient is not finite in part of the space, or changes scale as a funnel does, or the warm-up "
                    "is too short: reparametrise, give it a longer warm-up, or use NUTS or MALT."
                )

    def _tuned(
        self, i: Array, state: Any, tuned: Any, tuning_steps: int, z: Position, key: Array
    ) -> MCLMCState:
        zero = jnp.zeros_like(state.logdensity)
        return MCLMCState(
            i=i,
            z=z,
            chain=state,
            step_size=tuned.step_size,
            decoherence_length=tuned.L,
            inverse_mass_matrix=tuned.inverse_mass_matrix,
            potential_energy=-state.logdensity,
            num_steps=jnp.array(0),
            accept_prob=zero + 1.0,
            diverging=jnp.array(False),
            tuning_steps=jnp.asarray(tuning_steps),
            rng_key=key,
        )

    def get_diagnostics_str(self, state: MCLMCState) -> str:
        return f"{state.num_steps} gradients, step size {state.step_size:.2e}"


class MCLMC(_Microcanonical):
    """Microcanonical Langevin Monte Carlo (Robnik, De Luca, Silverstein and Seljak 2023, JMLR 24:311). Approximate.

    Velocity of unit length, energy kept fixed, direction refreshed at random over a decoherence length; no Metropolis
    test, and hence a bias that grows with the step. BlackJAX supplies the kernel and the tuning, which holds the
    variance of the energy error at ``energy_variance`` a dimension. ``sj.fit`` measures what bias is left, by a
    rerun at half the step, and ``sj.check`` reports it.

    A draw is one decoherence length: L / step steps of two gradients each.

    Args:
        model: any model with two or more continuous latents.
        energy_variance: variance of the energy error of a step for each dimension; smaller is less biased.
        tuning_steps: steps spent on tuning, before the first draw; by default four for each draw of warm-up, at least
            2000. The draws of warm-up themselves then cost nothing and stay where they are.
        diagonal_preconditioning: tune a scale for each latent.
        max_num_steps: most steps of one draw.
        measures_bias: whether ``sj.fit`` follows the run by one as long at half the step.
        init_strategy: NumPyro's; by default the hints of the model, else uniform.

    Statistics: ``num_steps`` (gradients of this draw), ``step_size``, ``diverging`` (a step whose energy error was
    not finite or large enough to mean a collision with a wall; it is undone), ``potential_energy``.

    Raises:
        ValueError: one latent number only; a setting out of range; at the start as :class:`MALT`.
        RuntimeError: the tuning collapsed: the step is too small to move, or not finite.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from sojourn.inference import MCLMC
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(3.0, 1.0).expand([4]))
        >>> mcmc = MCMC(MCLMC(model), num_warmup=500, num_samples=1000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> bool(abs(mcmc.get_samples()["x"].mean() - 3.0) < 0.2)
        True
    """

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        energy_variance: float = 5e-4,
        tuning_steps: int | None = None,
        diagonal_preconditioning: bool = True,
        max_num_steps: int = 200,
        measures_bias: bool = True,
        init_strategy: Callable[..., Any] | None = None,
    ):
        super().__init__(model, init_strategy)
        check_number("energy_variance", energy_variance, 0.0)
        check_number("max_num_steps", whole_number(max_num_steps, "max_num_steps", None), 0)
        if tuning_steps is not None:
            check_number("tuning_steps", whole_number(tuning_steps, "tuning_steps", None), 99)
        self.energy_variance = energy_variance
        self.tuning_steps = tuning_steps
        self.diagonal_preconditioning = diagonal_preconditioning
        self.max_num_steps = max_num_steps
        self.measures_bias = measures_bias

    def _guarded_kernel(self, dim: int) -> Callable[..., Any]:
        """Undoes what only a collision can do; the ordinary error of a step is a few hundredths of sqrt(dim).

        Not for the tuning, which takes an undone step for one without error, and lengthens it.
        """
        from blackjax.mcmc import mclmc

        cutoff = 20.0 + 5.0 * math.sqrt(dim)
        ratio = cutoff**2 / (dim * self.energy_variance)
        return mclmc.build_kernel(desired_energy_var_max_ratio=ratio, desired_energy_var=self.energy_variance)

    def _begin(
        self, key: Array, z: Position, potential_energy: Array, z_grad: Position, potential: Potential
    ) -> Any:
        import blackjax

        flat = self._flat(z, potential)
        key, key_start, key_tune = jax.random.split(key, 3)

        def log_density(x: Array) -> Array:
            return -flat.potential(x)

        state, tuned, steps = blackjax.mclmc_find_L_and_step_size(
            mclmc_kernel=blackjax.mcmc.mclmc.build_kernel(),
            num_steps=self.tuning_steps or max(4 * self._num_warmup, 2000),
            state=blackjax.mcmc.mclmc.init(flat.x, log_density, key_start),
            rng_key=key_tune,
            logdensity_fn=log_density,
            # All the steps go into the tuning: half settle the step, a tenth measures the length.
            frac_tune1=0.45,
            frac_tune2=0.45,
            frac_tune3=0.1,
            desired_energy_var=self.energy_variance,
            diagonal_preconditioning=self.diagonal_preconditioning,
        )
        return self._tuned(jnp.array(0), state, tuned, steps, flat.unravel(state.position), key)

    def _advance(self, state: MCLMCState, potential: Potential) -> MCLMCState:
        flat = self._flat(state.z, potential)
        kernel = self._guarded_kernel(flat.x.size)
        key, key_path = jax.random.split(state.rng_key)
        steps = jnp.clip(jnp.ceil(state.decoherence_length / state.step_size), 1, self.max_num_steps)
        steps = jnp.where(state.i < self._num_warmup, 0, steps).astype(state.num_steps.dtype)

        def step(n: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            chain, diverging = carry
            new, info = kernel(
                jax.random.fold_in(key_path, n),
                chain,
                lambda x: -flat.potential(x),
                state.inverse_mass_matrix,
                state.decoherence_length,
                state.step_size,
            )
            undone = ~info.nonans | jnp.all(new.position == chain.position)
            return new, diverging | undone

        chain, diverging = jax.lax.fori_loop(0, steps, step, (state.chain, jnp.array(False)))
        return state._replace(
            i=state.i + 1,
            z=flat.unravel(chain.position),
            chain=chain,
            potential_energy=-chain.logdensity,
            num_steps=_GRADIENTS_PER_STEP * steps,
            diverging=diverging,
            rng_key=key,
        )

    def halve_step(self, state: MCLMCState) -> MCLMCState:
        """The same chain with half the step, to see what the step does to the draws."""
        return state._replace(step_size=0.5 * state.step_size)


class AdjustedMCLMC(_Microcanonical):
    """Metropolis-adjusted microcanonical Langevin Monte Carlo (Robnik, Cohn-Gordon and Seljak 2025, arXiv:2503.01707).

    Exact: short microcanonical trajectories of random length with a Metropolis test. Kernel and tuning are
    BlackJAX's. On a funnel it looks healthy and is under-dispersed: prefer MALT or NUTS for hierarchical models in
    their centred form.

    Args:
        model: any model with two or more continuous latents.
        target_accept_prob: acceptance rate that the tuning aims at.
        num_integration_steps: average steps of a trajectory; two is robust, much longer ones are not.
        tuning_steps: trajectories spent on tuning, before the first draw; by default the draws of warm-up, at least
            500. The draws of warm-up themselves then cost nothing and stay where they are.
        init_strategy: NumPyro's; by default the hints of the model, else uniform.

    Statistics: as :class:`MCLMC`, and ``accept_prob``.

    Raises:
        ValueError: one latent number only; a setting out of range; at the start as :class:`MALT`.
        RuntimeError: the tuning collapsed: the step is too small to move, or not finite.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from sojourn.inference import AdjustedMCLMC
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(3.0, 1.0).expand([4]))
        >>> mcmc = MCMC(AdjustedMCLMC(model), num_warmup=500, num_samples=1000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> bool(abs(mcmc.get_samples()["x"].mean() - 3.0) < 0.2)
        True
    """

    stat_fields = (*_Microcanonical.stat_fields, "accept_prob")

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        target_accept_prob: float = 0.9,
        num_integration_steps: float = 2.0,
        tuning_steps: int | None = None,
        init_strategy: Callable[..., Any] | None = None,
    ):
        super().__init__(model, init_strategy)
        check_number("target_accept_prob", target_accept_prob, 0.0, 1.0)
        check_number("num_integration_steps", num_integration_steps, 1.1)
        if tuning_steps is not None:
            check_number("tuning_steps", whole_number(tuning_steps, "tuning_steps", None), 99)
        self.target_accept_prob = target_accept_prob
        self.num_integration_steps = num_integration_steps
        self.tuning_steps = tuning_steps

    def _kernel(self) -> Callable[..., Any]:
        from blackjax.mcmc import adjusted_mclmc_dynamic as dynamic

        step = dynamic.build_kernel(integration_steps_fn=dynamic.make_random_trajectory_length_fn(True))

        def kernel(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix, integration_steps_params):
            return step(
                rng_key,
                state,
                logdensity_fn,
                step_size,
                inverse_mass_matrix=inverse_mass_matrix,
                integration_steps_params=integration_steps_params,
            )

        return kernel

    def _begin(
        self, key: Array, z: Position, potential_energy: Array, z_grad: Position, potential: Potential
    ) -> Any:
        import blackjax
        from blackjax.mcmc import adjusted_mclmc_dynamic as dynamic

        flat = self._flat(z, potential)
        key, key_start, key_tune = jax.random.split(key, 3)

        def log_density(x: Array) -> Array:
            return -flat.potential(x)

        proposals = self.tuning_steps or max(self._num_warmup, 500)
        state, tuned, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
            mclmc_kernel=self._kernel(),
            logdensity_fn=log_density,
            # One pass of the two phases takes (2 frac_tune1 + frac_tune2) of these.
            num_steps=proposals,
            state=dynamic.init(flat.x, log_density, key_start),
            rng_key=key_tune,
            target=self.target_accept_prob,
            frac_tune1=0.3,
            frac_tune2=0.4,
            target_num_integration_steps=self.num_integration_steps,
        )
        return self._tuned(jnp.array(0), state, tuned, proposals, flat.unravel(state.position), key)

    def _advance(self, state: MCLMCState, potential: Potential) -> MCLMCState:
        flat = self._flat(state.z, potential)
        key, key_step = jax.random.split(state.rng_key)

        def move(_: Array, carry: tuple[Any, Array, Array, Array]) -> tuple[Any, Array, Array, Array]:
            chain, info = self._kernel()(
                key_step,
                carry[0],
                lambda x: -flat.potential(x),
                state.step_size,
                state.inverse_mass_matrix,
                (state.decoherence_length / state.step_size,),
            )
            rate = info.acceptance_rate.astype(state.accept_prob.dtype)
            return chain, info.num_integration_steps.astype(state.num_steps.dtype), rate, info.is_divergent

        # A loop of one round or none: under vmap a branch would be paid for in warm-up too.
        rounds = (state.i >= self._num_warmup).astype(int)
        still = jnp.zeros_like(state.num_steps), jnp.zeros_like(state.accept_prob), jnp.array(False)
        chain, steps, accept_prob, diverging = jax.lax.fori_loop(0, rounds, move, (state.chain, *still))
        return state._replace(
            i=state.i + 1,
            z=flat.unravel(chain.position),
            chain=chain,
            potential_energy=-chain.logdensity,
            num_steps=_GRADIENTS_PER_STEP * steps,
            accept_prob=accept_prob,
            diverging=diverging,
            rng_key=key,
        )

    def get_diagnostics_str(self, state: MCLMCState) -> str:
        return f"{super().get_diagnostics_str(state)}, acc. prob={state.accept_prob:.2f}"
