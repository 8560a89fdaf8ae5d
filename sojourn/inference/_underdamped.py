"""Underdamped Langevin dynamics without a Metropolis test, by the stochastic solvers of diffrax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from numpyro.infer.hmc_util import HMCAdaptState, warmup_adapter

from sojourn._arguments import whole_number
from sojourn.inference._gradient_kernel import GradientKernel, Position, Potential, check_number, whitened
from sojourn.ops.langevin import LangevinPoint, baoab_trajectory, draw_levy_area, join_levy_areas

__all__ = ["UnderdampedLangevin"]

_SOLVERS = {"quicsort": ("QUICSORT", 2), "should": ("ShOULD", 3), "align": ("ALIGN", 1)}
"""Diffrax's name, and gradients a step, of which the last is the first of the next where it can be."""
_LARGEST_STEP = 1.8
_TAYLOR = 0.01
_TARGET = 0.8
_GAIN = 0.2
_SPREAD = 3.5
"""Power of the step that the local error of a solver of strong order three follows."""


class UnderdampedState(NamedTuple):
    """State of a chain; NumPyro's names where it has one."""

    i: Array
    z: Position
    velocity: Array
    potential_energy: Array
    energy: Array
    num_steps: Array
    step_size: Array
    tolerance: Array
    diverging: Array
    adapt_state: HMCAdaptState
    rng_key: Array


class UnderdampedLangevin(GradientKernel):
    """Underdamped Langevin dynamics followed by a solver of high order. Approximate: no Metropolis test.

    dx = v dt, dv = -gamma v dt - grad U dt + sqrt(2 gamma) dW in coordinates scaled by the posterior standard
    deviations, which warm-up estimates. A draw is the end of a stretch of ``trajectory_length``; the velocity is
    carried over. ``sj.fit`` measures the bias of the step by a rerun at half of it, and ``sj.check`` reports it.

    A step from a place where the density falls off steeply (the logarithm of a scale near zero) can end far outside.
    A draw whose potential rises by more than 20 + 5 sqrt(d), or that is not finite, is undone, its velocity dropped,
    and reported as ``diverging``.

    Args:
        model: any model with continuous latents.
        solver: ``"quicsort"`` (strong order three, two gradients a step; Jelincic, Foster and Kidger 2024,
            arXiv:2405.06464), ``"should"``, ``"align"`` (diffrax's), or ``"baoab"``
            (:func:`~sojourn.ops.langevin.baoab_step`, one gradient, exact on Gaussian targets).
        step: ``"constant"``, with a step that warm-up adapts to ``tolerance``; or ``"adaptive"``: each step is chosen
            by a PID controller, compared with two halves of it, and rejected where they disagree, along one Brownian
            path (a single-seed Virtual Brownian Tree with space-time-time Levy area). Costs three times the
            gradients, and pays where the density has walls.
        friction: gamma, per unit of the time below.
        trajectory_length: time between draws, in units in which the posterior has unit variance.
        tolerance: for ``"constant"`` the error of a step, as the largest coordinate of the difference to two half
            steps, in posterior standard deviations, aimed at on average (for ``"baoab"`` the absolute energy error of
            a trajectory over sqrt(d)); for ``"adaptive"`` the bound of that difference at each step. By default
            0.02, 0.05 and 0.05.
        step_size: the first step (constant), or the first trial (adaptive).
        adapt_step_size: whether warm-up adapts the constant step.
        adapt_mass_matrix: whether warm-up adapts the scales.
        max_num_steps: most steps of a draw.
        measures_bias: whether ``sj.fit`` follows the run by one as long at half the step.
        init_strategy: NumPyro's; by default the hints of the model, else uniform.

    Statistics: ``num_steps`` (gradients of this draw, those of rejected steps and of the error estimates included),
    ``step_size`` (the mean of the draw if adaptive), ``diverging``, ``energy``, ``potential_energy``.

    Raises:
        ValueError: an unknown solver or setting; BAOAB with adaptive steps; at the start as
            :class:`~sojourn.inference.MALT`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from sojourn.inference import UnderdampedLangevin
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(3.0, 1.0).expand([2]))
        >>> mcmc = MCMC(UnderdampedLangevin(model), num_warmup=300, num_samples=1000, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> bool(abs(mcmc.get_samples()["x"].mean() - 3.0) < 0.2)
        True
    """

    stat_fields = ("potential_energy", "energy", "num_steps", "step_size", "diverging")

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        solver: str = "quicsort",
        step: str = "constant",
        friction: float = 1.0,
        trajectory_length: float = 2.0,
        tolerance: float | None = None,
        step_size: float = 0.1,
        adapt_step_size: bool = True,
        adapt_mass_matrix: bool = True,
        max_num_steps: int = 4096,
        measures_bias: bool = True,
        init_strategy: Callable[..., Any] | None = None,
    ):
        super().__init__(model, init_strategy)
        if solver not in (*_SOLVERS, "baoab"):
            names = ", ".join(repr(name) for name in (*_SOLVERS, "baoab"))
            raise ValueError(f"There is no solver {solver!r}; the names are {names}.")
        if step not in ("constant", "adaptive"):
            raise ValueError(f"`step` must be 'constant' or 'adaptive', not {step!r}.")
        if solver == "baoab" and step == "adaptive":
            raise ValueError(
                "BAOAB has no error estimate to choose its steps by: use step='constant', or 'quicsort'."
            )
        if tolerance is None:
            tolerance = 0.02 if step == "constant" and solver != "baoab" else 0.05
        check_number("friction", friction, 0.0)
        check_number("trajectory_length", trajectory_length, 0.0)
        check_number("tolerance", tolerance, 0.0)
        check_number("step_size", step_size, 0.0)
        check_number("max_num_steps", whole_number(max_num_steps, "max_num_steps", None), 0)
        self.solver = solver
        self.step = step
        self.friction = friction
        self.trajectory_length = trajectory_length
        self.tolerance = tolerance
        self.step_size = step_size
        self.adapt_step_size = adapt_step_size and step == "constant"
        self.adapt_mass_matrix = adapt_mass_matrix
        self.max_num_steps = max_num_steps
        self.measures_bias = measures_bias

    def _adapter(self) -> tuple[Callable[..., HMCAdaptState], Callable[..., HMCAdaptState]]:
        return warmup_adapter(
            self._num_warmup,
            adapt_step_size=self.adapt_step_size,
            adapt_mass_matrix=self.adapt_mass_matrix,
            target_accept_prob=_TARGET,
        )

    def _begin(
        self, key: Array, z: Position, potential_energy: Array, z_grad: Position, potential: Potential
    ) -> Any:
        key, key_adapt, key_velocity = jax.random.split(key, 3)
        step_size = jnp.asarray(self.step_size, potential_energy.dtype)
        x, _ = ravel_pytree(z)
        return UnderdampedState(
            i=jnp.array(0),
            z=z,
            velocity=jax.random.normal(key_velocity, x.shape, x.dtype),
            potential_energy=potential_energy,
            energy=potential_energy,
            num_steps=jnp.array(0),
            step_size=step_size,
            tolerance=jnp.asarray(self.tolerance, potential_energy.dtype),
            diverging=jnp.array(False),
            adapt_state=self._adapter()[0]((z,), key_adapt, step_size),
            rng_key=key,
        )

    def _advance(self, state: UnderdampedState, potential: Potential) -> UnderdampedState:
        flat = self._flat(state.z, potential)
        place, potential_and_grad = whitened(flat, state.adapt_state)
        key, key_path, key_error = jax.random.split(state.rng_key, 3)
        warming = state.i < self._num_warmup
        step_size = jnp.minimum(state.adapt_state.step_size, _LARGEST_STEP)
        count = jnp.clip(jnp.ceil(self.trajectory_length / step_size), 1, self.max_num_steps)
        step_size = self.trajectory_length / count
        count = count.astype(state.num_steps.dtype)

        if self.solver == "baoab":
            zero = jnp.zeros_like(flat.x)
            energy, gradient = potential_and_grad(zero)
            start = LangevinPoint(zero, state.velocity, energy, gradient, jnp.zeros_like(energy))
            point = baoab_trajectory(key_path, potential_and_grad, start, step_size, self.friction, count)
            position, velocity, potential_energy = point.position, point.velocity, point.potential
            gradients = count + 1
            error = jnp.abs(point.energy_error) / math.sqrt(flat.x.size)
        else:
            path = _Path(self, lambda q: potential_and_grad(q)[1])
            if self.step == "constant":
                position, velocity = path.constant(key_path, state.velocity, step_size, count)
                gradients = _SOLVERS[self.solver][1] * count
            else:
                position, velocity, attempts, accepted = path.adaptive(
                    key_path, state.velocity, state.tolerance
                )
                gradients = (3 * _SOLVERS[self.solver][1] * attempts).astype(state.num_steps.dtype)
                step_size = self.trajectory_length / jnp.maximum(accepted, 1)
            potential_energy = flat.potential(place(position))
        rise = potential_energy - state.potential_energy
        bad = ~(jnp.all(jnp.isfinite(velocity)) & (rise < 20.0 + 5.0 * math.sqrt(flat.x.size)))
        position = jnp.where(bad, 0.0, position)
        velocity = jnp.where(bad, 0.0, velocity)
        potential_energy = jnp.where(bad, state.potential_energy, potential_energy)

        if self.adapt_step_size and self.solver != "baoab":
            # A loop of one round or none: under vmap a branch would be paid for after warm-up too.
            rounds = warming.astype(int)
            error = jax.lax.fori_loop(
                0,
                rounds,
                lambda _, __: path.error_of_step(key_error, position, velocity, step_size),
                jnp.zeros_like(step_size),
            )
            gradients = gradients + (3 * _SOLVERS[self.solver][1] * rounds).astype(gradients.dtype)
        z = flat.unravel(place(position))
        adapt_state = state.adapt_state
        if self.adapt_step_size or self.adapt_mass_matrix:
            # Dual averaging drives a statistic to its target; this one is there when the mean error is `tolerance`.
            # Its gain is made for acceptance rates, which scatter less than errors do: hence the factor.
            excess = (
                jnp.clip((1.0 - error / self.tolerance) / _SPREAD, -1.0, 0.3) if self.adapt_step_size else 0.0
            )
            score = _TARGET + _GAIN * jnp.where(bad, -1.0, jnp.where(jnp.isfinite(excess), excess, -1.0))
            adapt_state = jax.lax.cond(
                warming,
                lambda: self._adapter()[1](state.i, score, (z,), state.adapt_state),
                lambda: state.adapt_state,
            )
        return UnderdampedState(
            i=state.i + 1,
            z=z,
            velocity=velocity,
            potential_energy=potential_energy,
            energy=potential_energy + 0.5 * jnp.sum(velocity**2),
            num_steps=gradients,
            step_size=step_size,
            tolerance=state.tolerance,
            diverging=bad,
            adapt_state=adapt_state,
            rng_key=key,
        )

    def halve_step(self, state: UnderdampedState) -> UnderdampedState:
        """The same chain with half the step, to see what the step does to the draws."""
        smaller = state.adapt_state._replace(
            step_size=0.5 * jnp.minimum(state.adapt_state.step_size, _LARGEST_STEP)
        )
        return state._replace(adapt_state=smaller, tolerance=state.tolerance / 2**_SPREAD)

    def get_diagnostics_str(self, state: UnderdampedState) -> str:
        return f"{state.num_steps} gradients, step size {state.step_size:.2e}"


class _Path:
    """A stretch of the dynamics from the origin of the scaled coordinates, by diffrax."""

    def __init__(self, settings: UnderdampedLangevin, gradient: Callable[[Array], Array]):
        import diffrax

        self.settings = settings
        self.gradient = gradient
        self.solver = getattr(diffrax, _SOLVERS[settings.solver][0])(_TAYLOR)

    def _terms(self, brownian: Any) -> Any:
        import diffrax

        gamma = self.settings.friction
        return diffrax.MultiTerm(
            diffrax.UnderdampedLangevinDriftTerm(gamma, 1.0, lambda q, args: self.gradient(q)),
            diffrax.UnderdampedLangevinDiffusionTerm(gamma, 1.0, brownian),
        )

    def constant(self, key: Array, velocity: Array, step_size: Array, count: Array) -> tuple[Array, Array]:
        import diffrax

        # Fresh increments for each step are the path's law so long as no step is looked at twice. The solver alone,
        # without diffeqsolve around it, compiles in a third of the time.
        like = jax.ShapeDtypeStruct(velocity.shape, velocity.dtype)
        terms = self._terms(diffrax.UnsafeBrownianPath(like, key, diffrax.SpaceTimeTimeLevyArea))
        start = (jnp.zeros_like(velocity), velocity)
        memory = self.solver.init(terms, 0.0, step_size, start, None)

        def step(n: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            y, memory = carry
            t = n * step_size
            y, _, _, memory, _ = self.solver.step(terms, t, t + step_size, y, None, memory, False)
            return y, memory

        (position, velocity), _ = jax.lax.fori_loop(0, count, step, (start, memory))
        return position, velocity

    def adaptive(self, key: Array, velocity: Array, tolerance: Array) -> tuple[Array, Array, Array, Array]:
        import diffrax

        length = self.settings.trajectory_length
        smallest = length / self.settings.max_num_steps
        like = jax.ShapeDtypeStruct(velocity.shape, velocity.dtype)
        brownian = diffrax.VirtualBrownianTree(
            0.0, length, smallest / 4, like, key, diffrax.SpaceTimeTimeLevyArea
        )
        solution = diffrax.diffeqsolve(
            self._terms(brownian),
            diffrax.HalfSolver(self.solver),
            t0=0.0,
            t1=length,
            dt0=self.settings.step_size,
            y0=(jnp.zeros_like(velocity), velocity),
            stepsize_controller=diffrax.PIDController(
                rtol=0.0,
                atol=tolerance,
                pcoeff=0.1,
                icoeff=0.4,
                dtmin=smallest,
                dtmax=_LARGEST_STEP,
                norm=_largest,
            ),
            saveat=diffrax.SaveAt(t1=True),
            max_steps=self.settings.max_num_steps,
            throw=False,
            adjoint=diffrax.ForwardMode(),
        )
        position, velocity = (y[0] for y in solution.ys)
        done = solution.result == diffrax.RESULTS.successful
        counts = solution.stats["num_steps"], solution.stats["num_accepted_steps"]
        return position, jnp.where(done, velocity, jnp.nan), *counts

    def error_of_step(self, key: Array, position: Array, velocity: Array, step_size: Array) -> Array:
        """Largest coordinate of the difference between one step and two halves of it, along one path."""
        import diffrax

        half = 0.5 * step_size
        halves = tuple(draw_levy_area(k, half, velocity.shape, velocity.dtype) for k in jax.random.split(key))

        class Known(diffrax.AbstractPath):
            t0 = -math.inf
            t1 = math.inf

            def evaluate(self, t0, t1=None, left=True, use_levy=False):
                whole = join_levy_areas(*halves)
                first = t0 < 0.25 * step_size
                long = t1 - t0 > 0.75 * step_size
                area = jax.tree.map(
                    lambda a, b, w: jnp.where(long, w, jnp.where(first, a, b)), *halves, whole
                )
                return diffrax.SpaceTimeTimeLevyArea(dt=t1 - t0, W=area.W, H=area.H, K=area.K)

        solver, terms, start = diffrax.HalfSolver(self.solver), self._terms(Known()), (position, velocity)
        zero = jnp.zeros_like(step_size)
        state = solver.init(terms, zero, step_size, start, None)
        error = solver.step(terms, zero, step_size, start, None, state, False)[1]
        return jnp.maximum(_largest(error), 1e-12).astype(step_size.dtype)


def _largest(tree: Any) -> Array:
    return jnp.max(jnp.abs(ravel_pytree(tree)[0]))
